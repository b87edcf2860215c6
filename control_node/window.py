"""Whether a run may change something now: the change's number and the maintenance window.

A window is a mapping with ``start``, ``end`` and ``timezone``. With ``HH:MM`` it opens every day; an end that is not
after the start is on the next day. With a date (``2026-11-25 22:00``, or with an offset, ``2026-11-25T22:00+01:00``)
it opens once. Its end does not belong to it.

Times are the zone's own. A time that its clock skips (the hour lost in spring) stands for the moment of the skip or
later, as far as it lies into the lost hour; of a time that comes twice (in autumn) a start is the first and an end is
the second, so that a window is never shorter than its clock says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Any

from module_utils.offline_rebuild.errors import OfflineRebuildError

__all__ = ["Window", "refusal"]

_HOURS = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_KEYS = frozenset({"start", "end", "timezone"})


def refusal(
    window: Mapping[str, Any], require_change_id: bool, change_id: Any = "", now: datetime | None = None
) -> str:
    """:returns: why a run may not change anything now, with code and remedy; ``""`` where it may.

    :param now: with a time zone; the clock's if it is not given.
    """
    try:
        if require_change_id and not str(change_id or "").strip():
            raise OfflineRebuildError(
                "change-id-missing",
                "offline_rebuild_require_change_id asks for the number of the change, and none is given",
                "give it with -e offline_rebuild_change_id=NUMBER; a plan (--check) needs none",
            )
        if window:
            Window(window).check(now or datetime.now(timezone.utc))
    except OfflineRebuildError as error:
        return str(error)
    return ""


class Window:
    """A maintenance window.

    :raises OfflineRebuildError: ``window-invalid``.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        unknown = sorted(set(map(str, given)) - _KEYS)
        missing = sorted(_KEYS - set(given))
        if unknown or missing:
            raise _invalid(f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}")
        self.zone_name = str(given["timezone"])
        self.zone = _zone(self.zone_name)
        start, end = (self._time(name, given[name]) for name in ("start", "end"))
        self.shown = f"from {self._shown(start)} to {self._shown(end)}"
        #: the times of each day, or ``None``; and the moments of the one time, or ``None``
        self.daily: tuple[time, time] | None = None
        self.once: tuple[datetime, datetime] | None = None
        if isinstance(start, datetime) and isinstance(end, datetime):
            self.once = self._moment(start, 0), self._moment(end, 1)
            if self.once[0] >= self.once[1]:
                raise _invalid("it ends before it starts")
        elif isinstance(start, datetime) or isinstance(end, datetime):
            raise _invalid("start and end must both have a date, or neither")
        else:
            self.daily = start, end
            if start == end:
                raise _invalid("start and end are the same")

    def _time(self, name: str, value: Any) -> time | datetime:
        """``HH:MM``, or a date with a time. YAML itself makes 1320 of an unquoted 22:00, and a datetime of a date."""
        if isinstance(value, datetime):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 24 * 60:
            return time(value // 60, value % 60)
        text = str(value).strip()
        hours = _HOURS.fullmatch(text)
        if hours:
            return time(int(hours[1]), int(hours[2]))
        try:
            if len(text) > len("2026-11-25"):
                return datetime.fromisoformat(text)
        except ValueError:
            pass
        raise _invalid(f"{name} is {text!r}, which is neither HH:MM nor a date with a time")

    def _moment(self, local: datetime, fold: int) -> datetime:
        """:returns: a local time as a moment in UTC."""
        if local.tzinfo is None:
            local = local.replace(tzinfo=self.zone, fold=fold)
        return local.astimezone(timezone.utc)

    def spans(self, day: date) -> list[tuple[datetime, datetime]]:
        """:returns: the moments (UTC) between which the window is open, from the day before to two days after."""
        if self.daily is None:
            return [self.once] if self.once else []
        start, end = self.daily
        found = []
        for first in (day + timedelta(days=days) for days in (-1, 0, 1, 2)):
            last = first if end > start else first + timedelta(days=1)
            begin = self._moment(datetime.combine(first, start), 0)
            found.append((begin, self._moment(datetime.combine(last, end), 1)))
        return found

    def check(self, now: datetime) -> None:
        """:raises OfflineRebuildError: ``outside-window``."""
        spans = self.spans(now.astimezone(self.zone).date())
        if any(begin <= now < end for begin, end in spans):
            return
        coming = min((begin for begin, end in spans if begin > now and begin < end), default=None)
        if coming is None:
            opens = "it does not open again"
        else:
            opens = f"it opens next on {coming.astimezone(self.zone):%Y-%m-%d at %H:%M}"
        raise OfflineRebuildError(
            "outside-window",
            f"it is {now.astimezone(self.zone):%Y-%m-%d %H:%M} in {self.zone_name}, outside the maintenance window "
            f"{self.shown}; {opens}; nothing was touched",
            "wait for it, look with --check --diff until then, or change offline_rebuild_window",
        )

    @staticmethod
    def _shown(value: time | datetime) -> str:
        return value.strftime("%Y-%m-%d %H:%M" if isinstance(value, datetime) else "%H:%M")


def _invalid(why: str) -> OfflineRebuildError:
    return OfflineRebuildError(
        "window-invalid",
        f"offline_rebuild_window is not usable: {why}",
        'give start and end (as "22:00", or "2026-11-25 22:00") and timezone (as Europe/Berlin)',
    )


def _zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # not found, not a key, a folder
        raise _invalid(
            f"there is no time zone {name!r} on the control node (or it has no time zone data: package tzdata)"
        ) from None

"""How long a plan will take, from this host's own past releases. A pure function over values.

The journal keeps ``keep_releases`` releases that are done, with those between them that failed: that is the history.

* Making a service is measured per service and way (``make <service>``; in an older record, ``making`` of a release that
  made this service alone).
* Away is a service that is recreated, at most from the beginning of the swap to the end of the gate: releases that
  swapped it alone count, the others only where there is none. A rolling service is not away.
* In all: the services' making, then pre-gate, swap and gate of whole releases that were done. Where one of them has no
  history, the sum has none.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Callable, Iterable, List, Optional, Sequence

from .plan import Plan, ServicePlan, Span, Times
from .release import Release

__all__ = ["estimated", "span"]

#: Releases that count, the newest.
MOST = 20


def span(values: Iterable[float]) -> Optional[Span]:
    """:returns: median, least and most of seconds, ``None`` for none."""
    found = sorted(values)
    return Span(round(statistics.median(found), 3), found[0], found[-1], len(found)) if found else None


def estimated(plan: Plan, releases: Sequence[Release]) -> Plan:
    """:returns: the plan with its times.

    :param releases: of the same project on the same host, oldest first.
    """
    past = [release for release in releases if not release.rollback_to][-MOST:]
    services = tuple(replace(s, times=_times(s, past)) if s.changed else s for s in plan.services)
    made = replace(plan, services=services)
    return replace(made, time=_in_all(made, past), estimated=plan.changed)


def _times(service: ServicePlan, past: Sequence[Release]) -> Times:
    make = span(seconds for r in past for seconds in [_make(service, r)] if seconds is not None)
    return Times(make if service.action == "rebuild" else None, _away(service, past) if _goes(service) else None)


def _goes(service: ServicePlan) -> bool:
    return service.swap != "rolling"


def _make(service: ServicePlan, release: Release) -> Optional[float]:
    record = release.services.get(service.service)
    if record is None or record.action != "rebuild" or record.way != service.way:
        return None
    made = [name for name, one in release.services.items() if one.action == "rebuild"]
    alone = release.timings.get("making") if made == [service.service] else None
    return release.timings.get(f"make {service.service}", alone)


def _away(service: ServicePlan, past: Sequence[Release]) -> Optional[Span]:
    def took(wanted: Callable[[Release], bool]) -> Optional[Span]:
        return span(r.timings["swap"] + r.timings["gate"] for r in _done(past) if wanted(r))

    def swapped(release: Release) -> bool:
        record = release.services.get(service.service)
        return service.service in release.swapped and record is not None and record.swap == "recreate"

    return took(lambda r: swapped(r) and len(r.swapped) == 1) or took(swapped)


def _done(past: Sequence[Release]) -> List[Release]:
    return [r for r in past if r.state == "done" and {"swap", "gate"} <= set(r.timings)]


def _in_all(plan: Plan, past: Sequence[Release]) -> Optional[Span]:
    changed = [service for service in plan.services if service.changed]
    parts = [s.times.make for s in changed if s.times is not None and s.action == "rebuild"]
    if any(service.pregate for service in changed):
        parts.append(span(r.timings["pregate"] for r in past if "pregate" in r.timings))
    parts += [span(r.timings[phase] for r in _done(past)) for phase in ("swap", "gate")]
    known = [part for part in parts if part is not None]
    if not changed or len(known) < len(parts):
        return None
    return Span(
        round(sum(part.seconds for part in known), 3),
        round(sum(part.least for part in known), 3),
        round(sum(part.most for part in known), 3),
        min(part.releases for part in known),
    )

"""Maintenance windows and the change's number: over midnight, at the two changes of the clock, in whatever form."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from control_node.window import refusal

BERLIN = "Europe/Berlin"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def window(start: Any, end: Any, zone: str = BERLIN) -> dict[str, Any]:
    return {"start": start, "end": end, "timezone": zone}


@pytest.mark.parametrize(
    ("given", "now", "open_"),
    [
        (window("22:00", "23:30"), "2026-11-25T21:00", True),  # 22:00 in Berlin
        (window("22:00", "23:30"), "2026-11-25T20:59", False),
        (window("22:00", "23:30"), "2026-11-25T22:30", False),  # the end is outside
        (window("22:00", "23:30", "UTC"), "2026-11-25T22:30", True),
        (window("22:00", "04:00"), "2026-11-25T22:59", True),  # before midnight
        (window("22:00", "04:00"), "2026-11-26T02:59", True),  # after midnight
        (window("22:00", "04:00"), "2026-11-26T03:00", False),
        (window("22:00", "04:00", "Pacific/Kiritimati"), "2026-11-25T12:00", True),  # 02:00 of the next day there
        # spring, 29 March 2026: from 02:00 the clock goes to 03:00, which is 01:00 UTC
        (window("01:00", "03:00"), "2026-03-29T00:59", True),
        (window("01:00", "03:00"), "2026-03-29T01:00", False),
        (window("02:00", "03:00"), "2026-03-29T01:00", False),  # this hour does not exist
        (window("02:00", "04:00"), "2026-03-29T01:30", True),
        # autumn, 25 October 2026: from 03:00 the clock goes back to 02:00, which is 01:00 UTC
        (window("02:00", "02:30"), "2026-10-25T00:10", True),
        (window("02:00", "02:30"), "2026-10-25T01:20", True),  # the second 02:20
        (window("02:00", "02:30"), "2026-10-25T01:30", False),
        (window("2026-11-25 22:00", "2026-11-27 04:00"), "2026-11-26T12:00", True),
        (window("2026-11-25 22:00", "2026-11-27 04:00"), "2026-11-27T03:00", False),
        (window("2026-11-25T22:00+05:00", "2026-11-25T23:00+05:00"), "2026-11-25T17:30", True),
        (window(1320, "04:00"), "2026-11-25T21:30", True),  # what YAML makes of 22:00
    ],
)  # fmt: skip
def test_open_or_not(given: dict[str, Any], now: str, open_: bool) -> None:
    said = refusal(given, False, now=at(now))
    assert (said == "") is open_, said
    if not open_:
        assert "[outside-window] Remedy: " in said
        assert "nothing was touched" in said


def test_what_yaml_makes_of_it() -> None:
    given = yaml.safe_load("{start: 22:00, end: 04:00, timezone: Europe/Berlin}")
    assert refusal(given, False, now=at("2026-11-25T21:30")) == ""
    given = yaml.safe_load("{start: 2026-11-25 22:00:00, end: 2026-11-26 04:00:00, timezone: Europe/Berlin}")
    assert refusal(given, False, now=at("2026-11-25T21:30")) == ""
    assert "outside-window" in refusal(given, False, now=at("2026-11-25T20:30"))


def test_says_when_it_opens() -> None:
    said = refusal(window("22:00", "04:00"), False, now=at("2026-11-25T12:00"))
    assert "it is 2026-11-25 13:00 in Europe/Berlin" in said
    assert "opens next on 2026-11-25 at 22:00" in said
    once = window("2026-11-20 22:00", "2026-11-20 23:00")
    assert "does not open again" in refusal(once, False, now=at("2026-11-25T12:00"))


@pytest.mark.parametrize(
    "given",
    [
        window("22:00", "22:00"), window("25:00", "04:00"), window("22:00", "2026-11-27 04:00"),
        window("soon", "04:00"),
        window("2026-11-27 22:00", "2026-11-26 04:00"), window("22:00", "04:00", "Mars/Olympus"),
        window("22:00", "04:00", "../etc/passwd"), window("2026-11-25", "2026-11-26"), {"start": "22:00"},
        {**window("22:00", "04:00"), "days": "sun"},
    ],
)  # fmt: skip
def test_unusable_windows(given: dict[str, Any]) -> None:
    said = refusal(given, False, now=at("2026-11-25T12:00"))
    assert "[window-invalid] Remedy: " in said


@pytest.mark.parametrize(
    ("required", "given", "code"),
    [(True, "", "[change-id-missing]"), (True, "  ", "[change-id-missing]"), (True, "CHG-1", ""), (True, 12, ""),
     (False, "", "")],
)  # fmt: skip
def test_change_id(required: bool, given: Any, code: str) -> None:
    said = refusal({}, required, given)
    assert code in said
    assert bool(said) is bool(code)

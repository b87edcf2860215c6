"""Plans as an operator reads them."""

from __future__ import annotations

import json
from dataclasses import replace

from module_utils.offline_rebuild.plan import FileChange, Plan, ServicePlan, Start, describe, mend_command, short

UNCHANGED = ServicePlan("db", "db:1", "unchanged", image_before="sha256:" + "1" * 64)
REBUILD = ServicePlan(
    "web",
    "web:1",
    "rebuild",
    "graft",
    ("a file changed",),
    (FileChange("app.py", "changed", ("mode",), "only the mode differs"),),
    "Dockerfile",
    3,
    5,
    Start(4, "COPY app.py /"),
    "assumed",
    ("FROM base",),
    "web:1",
    "sha256:" + "2" * 64,
)
BLOCKED = ServicePlan("job", "job:1", "blocked", reasons=("it needs a network", "remedy: bring it in"))


def plan(*services: ServicePlan) -> Plan:
    return Plan("p", "28.5.2", "classic", services)


def test_what_changes() -> None:
    assert not plan().changed
    assert not plan(UNCHANGED, BLOCKED).changed
    assert plan(UNCHANGED, REBUILD).changed
    assert plan(ServicePlan("a", "a", "restart")).changed
    assert plan(UNCHANGED, BLOCKED).blocked == (BLOCKED,)


def test_the_document_is_json() -> None:
    document = json.loads(json.dumps(plan(UNCHANGED, REBUILD).to_dict()))
    assert document["schema"] == 1
    assert document["changed"] is True
    assert document["services"][1]["start"] == {"line": 4, "text": "COPY app.py /"}
    assert document["services"][1]["files"][0]["what"] == ["mode"]


def test_the_diff_names_service_file_and_instruction_and_nothing_unchanged() -> None:
    diff = plan(UNCHANGED, REBUILD).diff()
    assert diff["before"] == "web: image 222222222222\n"
    assert diff["after"].splitlines() == [
        "web: rebuild by graft",
        "  reason: a file changed",
        "  file: app.py (changed, mode; only the mode differs)",
        "  reuses 3 of 5 instructions; starts at Dockerfile:4 COPY app.py /",
        "  evidence: assumed",
        "  assumed: FROM base",
    ]
    assert plan(UNCHANGED).diff()["after"] == ""


def test_a_blocked_service_says_why() -> None:
    assert describe(BLOCKED) == ["job: blocked", "  reason: it needs a network", "  reason: remedy: bring it in"]
    assert short("") == "none"


def test_the_command_that_mends_and_the_modes_of_the_image_are_shown() -> None:
    command = mend_command(
        "/srv/a b", [("chmod 0644 --", "it's"), ("", "x"), ("chmod 0755 --", "y"), ("chmod 0644 --", "z")]
    )
    assert command == """cd '/srv/a b' && chmod 0644 -- 'it'"'"'s' z && chmod 0755 -- y"""
    assert mend_command("/srv", [("", "x")]) == ""
    service = replace(REBUILD, mend=command, image_modes=("a", "b", "c", "d"), image_modes_total=40)
    lines = describe(service)
    assert f"  to give the files what the image has: {command}" in lines
    assert "  modes taken from the image: 40 (a, b, c, ...)" in lines
    (line,) = [line for line in describe(replace(service, mend="x" * 9000)) if "what the image has" in line]
    assert "see mend in the plan" in line

"""Estimates from past releases: per service, in all, and in the words that an operator reads."""

from __future__ import annotations

import json
from dataclasses import replace

from control_node.confirm import plan_digest, plan_text
from module_utils.offline_rebuild.estimate import estimated, span
from module_utils.offline_rebuild.plan import Plan, ServicePlan, Span
from module_utils.offline_rebuild.release import Release, ServiceRecord

WEB = ServicePlan("web", "web:1", "rebuild", "assemble", ("x",), swap="recreate")
JOB = ServicePlan("job", "job:1", "rebuild", "graft", ("x",), swap="rolling")
DB = ServicePlan("db", "db:1", "restart", "", ("x",), swap="recreate")


def past(number: int, names: str = "web", state: str = "done", **timings: float) -> Release:
    known = {"web": "assemble", "job": "graft"}
    services = {n: ServiceRecord(n, "rebuild" if n in known else "restart", known.get(n, "")) for n in names.split()}
    swapped = names.split() if state == "done" else []
    return Release(f"{number:04}", "shop", state=state, services=services, swapped=swapped, timings=timings)


def plan(*services: ServicePlan) -> Plan:
    return Plan("shop", "28.5.2", "classic", services)


def test_median_and_bounds() -> None:
    assert span([]) is None
    assert span([3.0]) == Span(3.0, 3.0, 3.0, 1)
    assert span([9.0, 1.0, 2.0]) == Span(2.0, 1.0, 9.0, 3)
    assert str(span([9.0, 1.0, 2.0])) == "about 2.0 s (1.0 to 9.0 s in 3 releases)"
    assert str(span([3.0])) == "about 3.0 s (once before)"


def test_without_a_history_it_says_so() -> None:
    made = estimated(plan(WEB, JOB), [])
    after = made.diff()["after"]
    assert after.count("time to make: no history yet") == 2
    assert "  away: no history yet\n" in after
    assert "  away: not at all (rolling)\n" in after
    assert after.endswith("in all: no history yet\n")


def test_a_service_is_measured_by_its_way() -> None:
    releases = [
        past(1, making=1.0, swap=2.0, gate=1.0),  # an older record: the only service that was made
        past(2, "web job", **{"making": 9.0, "make web": 3.0, "make job": 6.0, "swap": 20.0, "gate": 10.0}),
        past(3, "job", making=60.0, swap=1.0, gate=1.0),
        past(4, state="failed", **{"making": 5.0, "make web": 5.0}),
    ]
    made = estimated(plan(WEB, JOB), releases)
    web, job = made.services
    assert web.times is not None
    assert job.times is not None
    assert web.times.make == Span(3.0, 1.0, 5.0, 3)
    assert web.times.away == Span(3.0, 3.0, 3.0, 1)  # the release that swapped it alone
    assert job.times.make == Span(33.0, 6.0, 60.0, 2)
    assert job.times.away is None
    assert made.time == Span(39.0, 9.0, 95.0, 2)
    other = estimated(plan(replace(WEB, way="graft")), releases)
    assert other.services[0].times is not None
    assert other.services[0].times.make is None
    assert other.time is None


def test_a_restart_is_only_away() -> None:
    made = estimated(plan(DB), [past(1, "db web", swap=2.0, gate=1.0, making=9.0)])
    assert made.services[0].times is not None
    assert made.services[0].times.make is None
    assert made.services[0].times.away == made.time == Span(3.0, 3.0, 3.0, 1)


def test_a_pregate_counts_and_a_rollback_does_not() -> None:
    tried = past(1, making=1.0, pregate=4.0, swap=2.0, gate=1.0)
    back = replace(past(2, making=50.0, swap=50.0, gate=50.0), rollback_to="0001")
    assert estimated(plan(replace(WEB, pregate=True)), [tried, back]).time == Span(8.0, 8.0, 8.0, 1)
    assert estimated(plan(WEB), [tried, back]).time == Span(4.0, 4.0, 4.0, 1)


def test_what_is_not_touched_has_no_times() -> None:
    still = plan(replace(WEB, action="unchanged"), replace(JOB, action="blocked"))
    made = estimated(still, [past(1, making=1.0, swap=2.0, gate=1.0)])
    assert made == still
    document = json.loads(json.dumps(made.to_dict()))
    assert (document["schema"], document["estimated"], document["time"]) == (1, False, None)
    assert document["services"][0]["times"] is None


def test_the_digest_that_is_confirmed_does_not_move_with_the_history() -> None:
    bare = plan(WEB).to_dict()
    old = {key: value for key, value in bare.items() if key not in ("time", "estimated")}
    old["services"] = [{k: v for k, v in s.items() if k != "times"} for s in bare["services"]]
    made = estimated(plan(WEB), [past(1, making=1.0, swap=2.0, gate=1.0)]).to_dict()
    assert plan_digest({"a": bare}) == plan_digest({"a": made}) == plan_digest({"a": old})
    assert plan_text({"a": bare, "b": made}).startswith("2 host(s): a, b\n")

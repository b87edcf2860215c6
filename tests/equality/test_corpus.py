"""The equality corpus on one combination: ``OFR_ENGINE`` and ``OFR_STORE`` name it (default: trixie, classic)."""

from __future__ import annotations

import copy
import os
import platform

import pytest

from tests.hosts import Hosts
from tests.unit.figures import record, record_combination

from .corpus import load_cases
from .run import Report, compare, judge_case, run

ENGINE = os.environ.get("OFR_ENGINE", "trixie")
STORE = os.environ.get("OFR_STORE", "classic")


@pytest.fixture(scope="module")
def report() -> Report:
    with Hosts.up(f"corpus-{ENGINE}-{STORE}", count=2, engine=ENGINE, store=STORE) as hosts:
        found = run(ENGINE, STORE, hosts)
    print(f"\n{found}")
    counts = {"corpus_equal": found.cases_equal, "corpus_total": found.cases}
    record_combination(
        "exactness",
        ENGINE,
        STORE,
        **counts,
        corpus_edits=found.edits,
        corpus_images_compared=found.compared,
        false_reuse=found.false_reuse,
    )
    record("exactness", engine=ENGINE, store=STORE, machine=platform.machine())
    ways = {f"corpus_{way.replace(' ', '_')}": count for way, count in found.ways.items()}
    record_combination("thin", ENGINE, STORE, **counts, **ways)
    return found


def test_no_false_reuse(report: Report) -> None:
    assert report.false_reuse == 0, str(report)


def test_the_corpus_is_large_enough_and_was_compared(report: Report) -> None:
    assert report.cases >= 30
    assert report.compared >= report.edits // 2
    for way, least in {"assemble": 50, "thin graft": 50, "graft": 100}.items():
        assert report.ways.get(way, 0) >= least, report.ways


@pytest.mark.parametrize("name", [case.name for case in load_cases(None, ENGINE)])
def test_equal(report: Report, name: str) -> None:
    found = [str(f) for f in report.findings if f.case in (name, "all")]
    assert not found, "\n".join(found)


def test_a_difference_would_be_seen(report: Report) -> None:
    """The judge is held against a result with one bit off, and against a plan that reuses one instruction too many."""
    case = report.judged["single"]
    truth = report.answers["truth"]["single/code"]
    for path, place, value in (("app/src/run.sh", 4, "0"), ("lock", 1, "0o600"), ("lock", 2, 7), ("bin/sh", 0, "file")):
        wrong = copy.deepcopy(truth)
        wrong["files"][path][place] = value
        assert compare(truth, wrong), path
    fewer = copy.deepcopy(truth)
    del fewer["files"]["lock"]
    assert compare(truth, fewer)
    assert compare(fewer, truth)
    assert compare(truth, {**truth, "config": {**truth["config"], "User": "x"}})
    answers = copy.deepcopy(report.answers["offline"]["single"])
    answers["code/fresh"]["plan"] = answers["untouched/fresh"]["plan"]
    seen = Report(ENGINE, STORE)
    judge_case(case, report.answers["truth"], answers, seen)
    assert seen.false_reuse == 1

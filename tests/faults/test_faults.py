"""The fault matrix on one combination: ``OFR_ENGINE`` and ``OFR_STORE`` name it (default: trixie, classic).

``-m quick`` runs a subset of the rows. The table is printed at the end; the whole matrix writes results/faults.json.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.hosts import Hosts

from .judge import Report, judge
from .matrix import ROWS, Fault
from .site import Site

pytestmark = pytest.mark.engine
ENGINE = os.environ.get("OFR_ENGINE", "trixie")
STORE = os.environ.get("OFR_STORE", "classic")


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    made = Report(ENGINE, STORE)
    yield made
    made.show()
    if {row.name for row in made.rows} == {fault.name for fault in ROWS}:
        made.record()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Hosts.up(os.environ.get("OFR_NAME", "faults"), count=1, engine=ENGINE, store=STORE) as hosts:
        made = Site(hosts[0])
        made.install()
        yield made


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, id=fault.name, marks=[pytest.mark.quick] if fault.quick else []) for fault in ROWS],
)
def test_survives(site: Site, report: Report, fault: Fault) -> None:
    row = judge(site, fault)
    report.rows.append(row)
    assert not row.wrong, f"{row.seen}\n" + "\n".join(row.wrong)

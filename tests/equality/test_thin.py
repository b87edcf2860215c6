"""Thin layers against full builds, on random trees: ``OFR_ENGINE`` and ``OFR_STORE`` name the combination.

``OFR_THIN_CASES`` (300) cases that a thin layer made, from the fixed seed ``OFR_THIN_SEED``; thin_driver.py does the
work on the host. ``OFR_THIN_HOSTS`` names hosts to use that are up.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import Host, Hosts
from tests.unit.figures import record, record_combination

from .bases import rootfs

ROOT = Path(__file__).resolve().parents[2]
ENGINE = os.environ.get("OFR_ENGINE", "trixie")
STORE = os.environ.get("OFR_STORE", "classic")
CASES = int(os.environ.get("OFR_THIN_CASES", "300"))
SEED = int(os.environ.get("OFR_THIN_SEED", "20"))
WRONG = ("difference", "error", "blocked", "uneven", "another image with a record", "made although a build fails")


@contextmanager
def one_host() -> Iterator[Host]:
    known = os.environ.get("OFR_THIN_HOSTS")
    if known:
        yield Hosts.get(known)[0]
        return
    with Hosts.up(f"thin-{ENGINE}-{STORE}", count=1, engine=ENGINE, store=STORE) as hosts:
        yield hosts[0]


def run(host: Host, job: dict[str, Any]) -> dict[str, Any]:
    """One run of the driver on a host."""
    with tempfile.TemporaryDirectory(prefix="offline-rebuild-thin-") as folder:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "module_utils/offline_rebuild", Path(folder, "offline_rebuild"), ignore=skip)
        for name in ("driver.py", "thin_driver.py"):
            shutil.copy(Path(__file__).parent / name, folder)
        Path(folder, "rootfs.tar").write_bytes(rootfs())
        host.put(folder, "/opt/ofr", delete=True)
    done = host.ssh("python3 /opt/ofr/thin_driver.py", input=json.dumps(job), timeout=3600)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    with one_host() as host:
        made = run(host, {"seed": SEED, "cases": CASES, "batch": 30})
    counts = made["counts"]
    ways = {
        way.replace(" ", "_"): counts.get(f"primed: {way}", 0) + counts.get(f"fresh: {way}", 0)
        for way in ("assemble", "thin graft", "graft")
    }
    record_combination(
        "thin",
        ENGINE,
        STORE,
        cases=counts.get("cases", 0),
        differences=sum(counts.get(f"finding: {kind}", 0) for kind in WRONG),
        chained_cases=counts.get("chained cases", 0),
        images_compared=counts.get("images compared", 0),
        fast_path=counts.get("by the fast path", 0),
        **ways,
    )
    record("thin", engine=made["engine"], store=made["store"], machine=platform.machine())
    print(json.dumps({key: made[key] for key in ("counts", "no_thin_layer", "seconds")}, indent=1))
    return made


def test_no_differences(report: dict[str, Any]) -> None:
    assert not report["findings"], json.dumps(report["findings"][:5], indent=1)


def test_enough_cases_by_every_way(report: dict[str, Any]) -> None:
    counts = report["counts"]
    assert counts["cases"] >= CASES
    for key in ("primed: assemble", "fresh: assemble", "by the fast path", "chained cases", "primed: thin graft"):
        assert counts.get(key, 0) >= max(1, CASES // 40), key

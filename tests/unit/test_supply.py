"""Packages for RUNs that have to install again with no network: which RUNs get them, how, and which stay blocked."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from module_utils.offline_rebuild.derive import blocked_reason, derive
from module_utils.offline_rebuild.dockerfile import parse
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.graft import REGISTRY
from module_utils.offline_rebuild.supply import Sources, Supply, missing_in, pip_conf, with_flags
from tests.unit.depot import Depot
from tests.unit.test_reuse import BASE, write

OLD = "FROM base\nCOPY requirements.txt /app/\nRUN pip install -r /app/requirements.txt\n"


OS_RELEASE = "ID=debian\nVERSION_ID=12\n"


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    made = Depot(tmp_path)
    made.build("base:latest", BASE)
    made.build("app:latest", OLD, {2: {"app/requirements.txt": "a==1\n"}}, base="base:latest")
    write(tmp_path / "context", {"requirements.txt": "a==2\n"})
    return made


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    write(folder, {"a-2-py3-none-any.whl": "a", "notes.txt": "no package"})
    return folder


def test_a_package_that_is_missing_is_named_with_the_remedy(depot: Depot, wheels: Path) -> None:
    """The old file is read from the image, the Python too: from the program that RUN calls."""
    python = {
        "usr/bin/python3.12": "elf",
        "usr/bin/pip": "#!/usr/bin/python3.12\n",
        "etc/os-release": OS_RELEASE,
        "usr/lib/python3/dist-packages/pip-23.0.dist-info/METADATA": "",
        "usr/lib/python3/dist-packages/old-1.egg-info": "",
    }
    depot.build("base:latest", "FROM scratch\nCOPY rootfs /\n", {2: python})
    depot.build("app:latest", OLD, {2: {"app/requirements.txt": "a==1\nb==1\n"}}, base="base:latest")
    write(depot.root / "context", {"requirements.txt": "a==2\nc==3\n"})
    analyzer = depot.analyzer(OLD, depot.root / "context", cheapest="graft")
    reason, remedy = blocked_reason(analyzer, supply(wheels))
    assert reason.endswith("; c==3: the wheelhouse has no c (requirements.txt: +c==3, a 1 -> 2, -b)")
    command = "pip download --dest wheels --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312"
    assert f"in the build context: {command} --platform manylinux_2_35_x86_64" in remedy
    assert remedy.endswith(f" -r requirements.txt; bring wheels here as {wheels}")
    reason, remedy = blocked_reason(analyzer)
    assert "(requirements.txt: +c==3, a 1 -> 2, -b)" in reason
    assert command in remedy
    assert "set offline_rebuild_wheelhouse" in remedy
    for name in wheels.iterdir():
        name.unlink()
    assert f"the wheelhouse {wheels} is empty" in blocked_reason(analyzer, supply(wheels))[0]
    write(wheels, {"a-2-py3-none-any.whl": "", "c-3-py3-none-any.whl": ""})
    assert blocked_reason(analyzer, supply(wheels)) == ("", "")
    more = OLD.replace("RUN ", "RUN pip install -U pip 'old>=1' && ")  # what is there already need not come
    analyzer = depot.analyzer(more, depot.root / "context", cheapest="graft")
    assert blocked_reason(analyzer, supply(wheels)) == ("", "")
    analyzer = depot.analyzer(more.replace("old>=1", "old>1"), depot.root / "context", cheapest="graft")
    assert "old>1: the wheelhouse has no old" in blocked_reason(analyzer, supply(wheels))[0]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "#9 1.2 ERROR: No matching distribution found for x==1 (from y)\n",
            "No matching distribution found for x==1 (from y)",
        ),
        (
            "#9 1 ERROR: ResolutionImpossible: for help\n#9 1     x 2 depends on y\n#9 1   x 1 depends on y\n",
            "x 2 depends on y; x 1 depends on y",
        ),
        (
            "#9 npm error request to https://x/a failed: cache mode is 'only-if-cached' but no\n",
            "request to https://x/a failed: cache mode is 'only-if-cached' but no",
        ),
        ("#9 ERROR: process did not complete", ""),
    ],
)
def test_what_pip_did_not_find(log: str, said: str) -> None:
    assert missing_in(log) == said


def supply(wheels: Path, **more: Any) -> Supply:
    return Supply(Sources(wheelhouse=str(wheels)), **more)


def test_a_run_gets_the_wheels_and_nothing_else_changes(depot: Depot, wheels: Path) -> None:
    analyzer = depot.analyzer(OLD + "RUN true\n", depot.root / "context", cheapest="graft")
    assert "needs a network" in blocked_reason(analyzer)[0]
    assert blocked_reason(analyzer, supply(wheels)) == ("", "")
    made = derive(analyzer, 1, str(depot.root), {}, supply=supply(wheels))
    _, copy, run, last = made.text.splitlines()
    assert (copy, last) == ("COPY requirements.txt /app/", "RUN true")
    assert run.endswith(" pip install -r /app/requirements.txt")
    step = parse(made.text.encode()).stages[0].instructions[1]
    assert [(m.type, m.target) for m in step.mounts] == [
        ("bind", "/dev/offline-rebuild/wheels"),
        ("bind", "/etc/pip.conf"),
    ]
    assert {m.from_ for m in step.mounts} == {made.grafts[0].ref}
    assert made.grafts[0].ref.startswith(f"{REGISTRY}/supply:")
    assert json.loads(made.grafts[0].config)["rootfs"]["diff_ids"] == list(made.grafts[0].diff_ids)
    with tarfile.open(made.grafts[0].carried[0].path) as layer:
        names = layer.getnames()
    assert [name for name in names if name.startswith("wheels")] == ["wheels", "wheels/a-2-py3-none-any.whl"]
    assert len(names) == 4
    without = derive(analyzer, 1, str(depot.root), {})
    assert without.text == made.text.replace(run, "RUN pip install -r /app/requirements.txt")
    assert without.grafts == made.grafts[1:]


def test_the_image_of_the_wheels_is_the_same_each_time(depot: Depot, wheels: Path) -> None:
    analyzer = depot.analyzer(OLD, depot.root / "context", cheapest="graft")
    one, two = (derive(analyzer, time, str(depot.root), {}, supply=supply(wheels)).grafts[0] for time in (1, 2))
    assert one.id == two.id


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("RUN pip install x", ""),
        ("RUN python3 -m pip install x", ""),
        ('RUN ["pip", "install", "x"]', ""),
        ("RUN <<E\npip3 install x\nE", ""),
        ("RUN --mount=type=cache,target=/root/.cache pip install x", ""),
        ("RUN apt-get update && pip install x", "does not serve apt-get update"),
        ("RUN curl https://x | sh; pip install x", "does not serve curl"),
        ("RUN npm ci", "does not serve npm ci"),
        ("RUN poetry install", "does not serve poetry install"),
        ("RUN pip download x", "does not serve pip download"),
        ("ENV PIP_FIND_LINKS=/x\nRUN pip install x", "PIP_FIND_LINKS is set"),
        ("RUN --mount=type=secret,id=conf,target=/etc/pip.conf pip install x", ""),
        ("RUN --mount=type=secret,id=ours,target=/etc/pip.conf pip install x", "mounts /etc/pip.conf itself"),
        ("RUN --mount=type=secret,id=x,required,target=/etc/pip.conf pip install x", "mounts /etc/pip.conf itself"),
        ("RUN --mount=type=bind,source=c,target=/etc/pip.conf pip install x", "mounts /etc/pip.conf itself"),
        ("COPY pip.conf /etc/\nRUN pip install x", "writes pip.conf"),
    ],
)
def test_which_runs_are_served(depot: Depot, wheels: Path, line: str, said: str) -> None:
    write(depot.root / "context", {"pip.conf": "", "c": ""})
    analyzer = depot.analyzer(f"FROM base\n{line}\n", depot.root / "context", cheapest="graft")
    reason, remedy = blocked_reason(analyzer, supply(wheels, secrets=frozenset({"ours"})))
    assert said in reason
    assert bool(reason) == bool(remedy) == bool(said)


@pytest.mark.parametrize(
    ("raw", "made"),
    [
        ("RUN x", "RUN --a --b x"),
        ("  run x RUN", "  run --a --b x RUN"),
        ("RUN \\\n  x", "RUN --a --b \\\n  x"),
        ('RUN ["x"]', 'RUN --a --b ["x"]'),
        ("RUN --mount=target=/x <<E\nx\nE", "RUN --a --b --mount=target=/x <<E\nx\nE"),
    ],
)
def test_flags_come_first(raw: str, made: str) -> None:
    assert with_flags(raw, ["--a", "--b"]) == made
    assert with_flags(raw, []) == raw


def test_pips_settings_of_the_image_stay_but_for_the_source() -> None:
    text = pip_conf(
        b"[global]\ntimeout = 9\nno-index = false\nindex-url = https://x\n[install]\nfind-links = /y\n"
    ).decode()
    assert "timeout = 9" in text
    assert "/y" not in text
    assert text.count("no-index") == text.count("no-index = true") == 1
    assert pip_conf(None) == pip_conf(b"") == pip_conf(b"no section")


def test_a_wheelhouse_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OfflineRebuildError, match="wheelhouse-missing") as caught:
        Sources(wheelhouse=str(tmp_path / "no")).check()
    assert caught.value.file == str(tmp_path / "no")
    Sources().check()
    Sources(wheelhouse=str(tmp_path)).check()

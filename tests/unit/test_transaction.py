"""The pure parts of the transaction; all the rest is tested on a real engine (tests/engine)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from module_utils.offline_rebuild import compose, transaction
from module_utils.offline_rebuild.cli import Docker
from module_utils.offline_rebuild.compose import ContainerState, Dependency, Project, Service
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.lock import Lock
from module_utils.offline_rebuild.plan import Plan, ServicePlan
from module_utils.offline_rebuild.release import Release, ServiceRecord
from module_utils.offline_rebuild.run import Request, options_of

DB = Service("db", "pg:15")
JOB = Service("job", "shop-job:latest")
WEB = Service(
    "web",
    "shop-web:latest",
    depends_on=(Dependency("db", restart=True), Dependency("job", "service_completed_successfully")),
)
PROXY = Service("proxy", "shop-proxy:latest", depends_on=(Dependency("web", restart=True),))
PROJECT = Project("shop", "/srv", ("compose",), (), (DB, JOB, WEB, PROXY))


def state(service: str, status: str = "running", code: int = 0) -> ContainerState:
    return ContainerState(service, f"shop-{service}-1", "sha256:aa", status, "", 0, "h", "", 1, service, code)


@pytest.fixture
def work(tmp_path: Path) -> transaction._Transaction:
    lock = Lock.acquire(str(tmp_path), "shop")
    options = transaction.Options(state_dir=str(tmp_path))
    made = transaction._Transaction(Docker(), PROJECT, options, transaction.unheard, lock)
    lock.release()
    return made


@pytest.mark.parametrize(
    ("changed", "states", "expected"),
    [
        (["web"], {"db": [state("db")], "job": [state("job", "exited")], "web": [state("web")]}, ["web"]),
        (["web"], {}, ["db", "job", "web"]),
        (["web"], {"db": [state("db", "exited")], "job": [state("job", "exited", 1)]}, ["db", "job", "web"]),
        (["db"], {"db": [state("db")], "web": [state("web")]}, ["db", "web"]),
        (["db"], {"db": [state("db")], "web": [state("web")], "proxy": [state("proxy")]}, ["db", "web", "proxy"]),
        (["job"], {}, ["job"]),
    ],
)
def test_up_is_told_what_changed_and_what_must_come_along(
    work: transaction._Transaction, changed: list[str], states: dict[str, list[ContainerState]], expected: list[str]
) -> None:
    assert work._swap_set(changed, states) == expected


def test_only_images_that_change_are_kept_and_no_two_under_one_name() -> None:
    release = Release("ID", "shop")
    release.services = {
        "a": ServiceRecord("reg:5000/x/app:1", "rebuild", before="old", after="new"),
        "b": ServiceRecord("reg:5000/x/app:2", "rebuild", before="old2", after="new2"),
        "c": ServiceRecord("app", "rebuild", before="", after="new"),
        "d": ServiceRecord("app:1", "restart", before="same", tag_before="same"),
        "e": ServiceRecord("app:1", "restart", before="old", tag_before="moved"),
    }
    transaction._name_kept(release)
    assert [record.kept_as for record in release.services.values()] == [
        "reg:5000/x/app:offline-rebuild-ID",
        "reg:5000/x/app:offline-rebuild-ID-b",
        "",
        "",
        "app:offline-rebuild-ID",
    ]


def test_a_rendered_project_is_what_compose_would_write() -> None:
    model = {"services": {"a": {"environment": {"X": "5$ ${Y}", "N": None}, "n": 1}}}
    assert json.loads(compose.dump(model)) == {
        "services": {"a": {"environment": {"X": "5$$ $${Y}", "N": None}, "n": 1}}
    }


def test_a_blocked_plan_touches_nothing(tmp_path: Path) -> None:
    plan = Plan("shop", "", "", (ServicePlan("web", "w", "blocked", reasons=("base missing",)),))
    options = transaction.Options(state_dir=str(tmp_path))
    with pytest.raises(OfflineRebuildError, match="web: base missing") as caught:
        transaction.run(Docker("/no/such/docker"), PROJECT, plan, lambda _: "", options)
    assert caught.value.code == "plan-blocked"
    assert not (tmp_path / "releases").exists()
    assert not (tmp_path / "locks" / "shop.lock").exists()


def test_an_unchanged_plan_asks_the_engine_nothing(tmp_path: Path) -> None:
    plan = Plan("shop", "", "", (ServicePlan("web", "w", "unchanged"),))
    options = transaction.Options(state_dir=str(tmp_path))
    assert transaction.run(Docker("/no/such/docker"), PROJECT, plan, lambda _: "", options) is None
    assert transaction.recover(Docker("/no/such/docker"), PROJECT, options) == []


def test_an_image_that_cannot_be_made_ends_the_release_before_anything_is_touched(tmp_path: Path) -> None:
    plan = Plan("shop", "", "", (ServicePlan("web", "w", "rebuild"),))
    options = transaction.Options(state_dir=str(tmp_path))

    def fail(_: ServicePlan) -> str:
        raise OfflineRebuildError("build-failed", "npm is missing")

    with pytest.raises(OfflineRebuildError, match="npm is missing"):
        transaction.run(Docker("/no/such/docker"), PROJECT, plan, fail, options)
    (path,) = (tmp_path / "releases" / "shop").glob("*.json")
    written = json.loads(path.read_text())
    assert written["state"] == "failed"
    assert written["note"].startswith("nothing was touched: npm is missing")


def test_a_secret_build_argument_is_in_no_journal(tmp_path: Path) -> None:
    request = Request("/srv", build_args={"NPM_TOKEN": "tok-1234", "LONG_TOKEN": "tok-123456", "VERSION": "1.2.3"})
    options = replace(options_of(request), state_dir=str(tmp_path))

    def fail(_: ServicePlan) -> str:
        raise OfflineRebuildError("build-failed", "1.2.3 said tok-1234 and tok-123456")

    plan = Plan("shop", "", "", (ServicePlan("web", "w", "rebuild"),))
    with pytest.raises(OfflineRebuildError):
        transaction.run(Docker("/no/such/docker"), PROJECT, plan, fail, options)
    (path,) = (tmp_path / "releases" / "shop").glob("*.json")
    assert json.loads(path.read_text())["note"].startswith("nothing was touched: 1.2.3 said *** and ***")
    assert "tok-1234" not in (tmp_path / "audit.log").read_text()


SAID = "Error response from daemon: ... Bind for {}18080 failed: port is already allocated"


@pytest.mark.parametrize(
    ("said", "publishes", "told"),
    [
        (SAID.format("127.0.0.1:"), "", True),
        (SAID.format(":::"), "", True),
        (SAID.format("127.0.0.1:"), "0123456789ab", False),  # another container's: that is another trouble
        ("address already in use", "", False),
    ],
)
def test_a_port_that_the_engine_holds_for_nobody_is_told(
    work: transaction._Transaction, tmp_path: Path, said: str, publishes: str, told: bool
) -> None:
    """The engine keeps it only when it is killed at one moment: what it would say of its containers is set here."""
    engine = tmp_path / "docker"
    engine.write_text(f"#!/bin/sh\n[ \"$*\" != 'ps -q --filter publish=18080' ] || printf '%s' '{publishes}'\n")
    engine.chmod(0o755)
    work.docker = Docker(str(engine))
    assert ("restart the engine, then run again" in work._held_port(said)) is told

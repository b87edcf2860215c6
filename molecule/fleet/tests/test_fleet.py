"""One builds for all; a bad image stops at the canary; a fleet goes back; a lost host is brought up later."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hosts import Host, mixed
from tests.hosts.sample import playbook, state, write_variables

CANARY = ("-e", "offline_rebuild_canary=1", "-e", "offline_rebuild_serial=2")
FLEET = ("-e", "offline_rebuild_revert_scope=fleet")


@dataclass(frozen=True)
class Seen:
    """What runs on a host: what the application answers, and the image's id, config digest and layers."""

    version: str
    build: str
    site: str
    image: str
    config: str
    layers: tuple[str, ...]


@pytest.fixture(scope="module")
def fleet() -> mixed.Mixed:
    return mixed.get(os.environ["OFR_FLEET"])


def ask(host: Host, name: str) -> str:
    return host.ssh(f"curl -s http://127.0.0.1:{mixed.PORT}/{name}").stdout.strip()


def seen(host: Host) -> Seen:
    container = json.loads(host.docker("inspect", "shop-web-1"))[0]
    image = json.loads(host.docker("image", "inspect", container["Config"]["Image"]))[0]
    saved = host.ssh(f"docker save {mixed.IMAGE} | tar -xO manifest.json").stdout
    config = re.sub(r"\W|blobs|sha256|json", "", json.loads(saved)[0]["Config"])
    assert image["Id"] == container["Image"] or host.store == "containerd"
    layers = tuple(image["RootFS"]["Layers"])
    return Seen(*(ask(host, name) for name in ("version", "build-id", "site")), image["Id"], config, layers)


def run(fleet: mixed.Mixed, *options: str) -> tuple[int, str]:
    """The return code and what the playbook printed, in which one blank stands for all white space."""
    done = playbook(fleet, *options)
    return done.returncode, " ".join(done.stdout.split())


def recap(text: str) -> dict[str, dict[str, int]]:
    rows = re.findall(r"(app\d) : ((?:\w+=\d+ ?)+)", text.partition("PLAY RECAP")[2])
    return {host: {k: int(v) for k, v in (part.split("=") for part in told.split())} for host, told in rows}


def edit(fleet: mixed.Mixed, version: str) -> None:
    for host in fleet:
        mixed.write(host, version)


def same_everywhere(fleet: mixed.Mixed) -> dict[str, Seen]:
    """All have the same config and layers, and the same id where the store is the same. :returns: host to it."""
    every = {f"app{number}": seen(host) for number, host in enumerate(fleet, 1)}
    assert len({(one.config, one.layers, one.build) for one in every.values()}) == 1
    stores = {(host.store, one.image) for host, one in zip(fleet, every.values(), strict=True)}
    assert len(stores) == len({host.store for host in fleet}) == 2
    return every


def nothing_is_left(fleet: mixed.Mixed) -> None:
    for host in fleet:
        names = host.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
        assert not [name for name in names if "offline-rebuild/" in name]
        assert host.docker("image", "ls", "-qf", "dangling=true") == ""


def test_one_built_for_all(fleet: mixed.Mixed) -> None:
    every = same_everywhere(fleet)
    assert {one.version for one in every.values()} == {"2 good"}
    assert {host.engine for host in fleet} == {"trixie", "testing"}
    nothing_is_left(fleet)


def test_check_mode_says_who_would_build_and_changes_nothing(fleet: mixed.Mixed) -> None:
    edit(fleet, "3 good")
    before = [state(host) for host in fleet]
    code, said = run(fleet, "--check", "--diff")
    assert code == 0, said
    assert said.count("+web: rebuild by delta + reason: app1 makes the image") == len(fleet.hosts)
    assert all(row["changed"] == 1 for row in recap(said).values())
    assert [state(host) for host in fleet] == before


def test_a_bad_image_stops_at_the_canary(fleet: mixed.Mixed) -> None:
    before = [seen(host) for host in fleet]
    edit(fleet, "3 bad")
    others = [state(host) for host in fleet][1:]
    for options in (CANARY, (*CANARY, *FLEET)):
        code, said = run(fleet, *options)
        assert code != 0
        assert "the container reports unhealthy" in said
        assert [host for host, row in recap(said).items() if row["failed"]] == ["app1"]
        assert [seen(host) for host in fleet] == before
    assert "not touched, since the rollout stopped: app2, app3, app4" in said
    # read, and nothing else: a preflight keeps what it read of the tree nowhere
    assert [state(host) for host in fleet][1:] == others


def test_a_fleet_goes_back_when_a_later_batch_fails(fleet: mixed.Mixed) -> None:
    before = [seen(host) for host in fleet]
    edit(fleet, "4 good")
    checks = [{"command": ["test", "!", "-e", "/srv/fails"], "inside": False}]
    write_variables(fleet, {**mixed.VARIABLES, "offline_rebuild_health_checks": checks})
    fleet[2].ssh("touch /srv/fails")
    try:
        code, said = run(fleet, *CANARY, *FLEET)
        assert code != 0
        rows = recap(said)
        assert [host for host, row in rows.items() if row["failed"]] == ["app3"]
        for host in ("app1", "app2"):
            assert f"{host}: web: rebuild by delta; release" in said
            assert rows[host]["changed"] >= 2
        assert [seen(host) for host in fleet] == before
        assert "not touched, since the rollout stopped: app4" in said
    finally:
        fleet[2].ssh("rm /srv/fails")
        write_variables(fleet, mixed.VARIABLES)
    code, said = run(fleet, *CANARY, *FLEET)
    assert code == 0, said
    assert same_everywhere(fleet)["app4"].version == "4 good"


def test_hosts_whose_build_arguments_differ_are_groups(fleet: mixed.Mixed) -> None:
    for number, host in enumerate(fleet):
        host.ssh(f"cat > {mixed.TARGET}/.env", input=f"SITE={'north' if number < 2 else 'south'}\n")
    code, said = run(fleet)
    assert code == 0, said
    every = [seen(host) for host in fleet]
    assert [one.site for one in every] == ["north", "north", "south", "south"]
    assert every[0].config == every[1].config != every[2].config == every[3].config
    assert sum(row["failed"] for row in recap(said).values()) == 0
    for host in fleet:
        host.ssh(f"rm {mixed.TARGET}/.env")


def test_a_lost_host_is_brought_up_to_the_others_later(fleet: mixed.Mixed) -> None:
    edit(fleet, "6 good")
    fleet[1].container.stop(timeout=1)
    try:
        code, said = run(fleet, "-e", "offline_rebuild_max_fail_percentage=50")
        assert code != 0
        assert recap(said)["app2"]["unreachable"] == 1
        built = seen(fleet[0])
        assert {seen(host).build for host in fleet if host is not fleet[1]} == {built.build}
    finally:
        fleet[1].container.start()
        fleet[1].wait_ready()
    code, said = run(fleet)
    assert code == 0, said
    assert same_everywhere(fleet)["app2"] == built
    changed = {host for host, row in recap(said).items() if row["changed"]}
    assert "app2" in changed
    assert not changed & {"app3", "app4"}
    nothing_is_left(fleet)


def test_what_every_host_can_assemble_is_not_sent(fleet: mixed.Mixed) -> None:
    for host in fleet:
        mixed.write(host, "6 good", page="2")
    code, said = run(fleet)
    assert code == 0, said
    assert "Build once" not in said
    assert re.search(r"4 hosts \(app1, app2, app3, app4\): side: rebuild by assemble", said), said
    made = [json.loads(host.docker("image", "inspect", mixed.SIDE_IMAGE))[0] for host in fleet]
    assert len({tuple(image["RootFS"]["Layers"]) for image in made}) == 1
    assert len({(host.store, image["Id"]) for host, image in zip(fleet, made, strict=True)}) == 2


def test_the_report_names_the_way(fleet: mixed.Mixed) -> None:
    edit(fleet, "8 good")
    code, said = run(fleet)
    assert code == 0, said
    page = re.search(r"Report: (\S+)/report.html", said)
    assert page
    assert '"delta"' in Path(page.group(1), "report.json").read_text(encoding="utf-8")

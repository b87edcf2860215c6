"""What runs leave on a host, and what is taken away: by the file, by the playbook, in check mode.

``OFR_ENGINE`` and ``OFR_STORE`` choose the host.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_pyz_engine import base
from tests.hosts import Host, Hosts

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
SRC, STATE, PYZ = "/srv/shop", "/srv/state", "/opt/offline/offline-rebuild.pyz"
#: The test host's engine knows nothing of this release.
DROPPED = "offline-rebuild-20250101T000000Z-abcdef"
GRAFT = "127.0.0.1:9/offline-rebuild/build:shop-web"
COMPOSE = """name: shop
services:
  web:
    build: ./web
    init: true
    healthcheck: {test: [CMD, cat, /app/good], interval: 1s, retries: 1}
"""
DOCKERFILE = "FROM shop-base:1\nCOPY . /app/\nRUN cat /app/run.sh > /made\nCMD [sh, /app/run.sh]\n".replace(
    "[sh, /app/run.sh]", '["sh", "/app/run.sh"]'
)
SNAPSHOT = (
    f"find {STATE} -path {STATE}/locks -prune -o -printf '%p %T@ %s\\n' | sort; "
    "docker image ls -a --no-trunc --format '{{.Repository}}:{{.Tag}} {{.ID}}' | sort; docker volume ls -q; "
    "docker ps -a --no-trunc --format '{{.ID}} {{.Image}}'; docker system df --format '{{.Type}} {{.TotalCount}}'"
)


def write(host: Host, path: str, text: str) -> None:
    host.ssh(f"mkdir -p $(dirname {SRC}/{path}) && cat > {SRC}/{path}", input=text)


def pyz(host: Host, *argv: str, code: int = 0) -> Any:
    words = " ".join(f"'{word}'" for word in (*argv, "--state-dir", STATE, "--json"))
    done = host.ssh(f"cd {SRC} && python3 {PYZ} {words}", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def run(host: Host, version: str, code: int = 0) -> Any:
    write(host, "web/run.sh", f"echo {version}; exec sleep 100000\n")
    return pyz(host, "rebuild", "--gate-timeout", "20", "--no-pregate", "web", code=code)["release"]


def ids(host: Host, *names: str) -> list[str]:
    return [str(host.ssh(f"docker image inspect -f '{{{{.Id}}}}' {name}").stdout).strip() for name in names]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A project with two releases that are done and one that went back."""
    dist = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, ROOT / "scripts/make-pyz", dist], check=True, capture_output=True)
    engine, store = os.environ.get("OFR_ENGINE", "trixie"), os.environ.get("OFR_STORE", "classic")
    with Hosts.up(os.environ.get("OFR_NAME", "prune"), count=1, engine=engine, store=store) as hosts:
        made: Host = hosts[0]
        made.put(dist, "/opt/offline")
        (dist / "base.tar").write_bytes(base())
        made.put(dist / "base.tar", "/tmp/base.tar")
        made.ssh("docker import -c 'ENV PATH=/bin' /tmp/base.tar shop-base:1")
        write(made, "compose.yaml", COMPOSE)
        write(made, "web/Dockerfile", DOCKERFILE)
        write(made, "web/good", "good\n")
        for version in ("one", "two"):
            assert run(made, version)["state"] == "done"
        write(made, "web/.dockerignore", "good\n")
        assert run(made, "bad", code=4)["state"] == "rolled_back"
        yield made


def rolled_back(host: Host) -> str:
    (found,) = [r["id"] for r in pyz(host, "releases")["releases"] if r["state"] == "rolled_back"]
    return str(found)


@pytest.fixture(scope="module")
def littered(host: Host) -> Host:
    """The same with all that is to go, and some of what only looks like it."""
    build = "docker build -q --network=none"
    big = f"head -c 3000000 /dev/urandom > {SRC}/big && printf 'FROM shop-base:1\\nCOPY big /{{0}}\\n' > {SRC}/D"
    host.ssh(f"cd {SRC} && {big.format('graft')} && {build} -t {GRAFT} -f D . && docker tag {GRAFT} shop-web:{DROPPED}")
    host.ssh(f"cd {SRC} && {big.format('other')} && {build} -t other-web:{DROPPED} -f D .")
    host.ssh(f"docker tag shop-web:latest shop-web:{DROPPED}-web")
    host.ssh(f"cd {SRC} && {big.format('used')} && {build} -t shop-web:{DROPPED}-used -f D .")
    host.ssh(f"docker create --name stopped shop-web:{DROPPED}-used sh")
    host.ssh(f"cd {SRC} && {big.format('bad')} && {build} -t bad -f D . > /tmp/bad && docker tag shop-base:1 bad")
    host.ssh(f"docker image rm bad; rm {SRC}/big {SRC}/D")
    record = f"{STATE}/releases/shop/{rolled_back(host)}.json"  # as a release has it that was cut off after its swap
    host.ssh(f"""sed -i 's|"after": "sha256:[0-9a-f]*"|"after": "'$(cat /tmp/bad)'"|' {record}""")
    host.ssh(f"mkdir -p {STATE}/records && touch -d '1 day ago' {STATE}/records/gone.json")
    host.ssh(f"touch {STATE}/records/young.json")
    return host


def test_check_says_what_a_run_then_does(littered: Host) -> None:
    bad = littered.ssh("cat /tmp/bad").stdout.strip()
    kept = ids(littered, "shop-web:latest", f"other-web:{DROPPED}", f"shop-web:{DROPPED}-used", "shop-base:1")
    before = littered.ssh(SNAPSHOT).stdout
    said = pyz(littered, "prune", "--check")
    assert littered.ssh(SNAPSHOT).stdout == before
    assert said["changed"]
    named = {(item["kind"], item["name"]) for item in said["items"]}
    assert named == {
        ("graft", GRAFT),
        ("kept", f"shop-web:{DROPPED}"),
        ("kept", f"shop-web:{DROPPED}-web"),
        ("dangling", bad),
        ("file", f"{STATE}/records/gone.json"),
    }
    assert said["left"] == [f"shop-web:{DROPPED}-used: a container uses its image"]
    assert 6_000_000 <= said["freed"] < 6_100_000
    used = used_by_layers(littered)
    done = pyz(littered, "prune")
    assert {**done, "msg": ""} == {**said, "msg": ""}
    assert done["msg"] == said["msg"].replace("would remove", "removed")
    # the layer of the graft's build is in the build cache, too, on the classic store
    assert used - used_by_layers(littered) <= said["freed"] + 100_000
    assert ids(littered, *kept) == kept
    assert bad not in littered.ssh("docker image ls -aq --no-trunc").stdout
    again = pyz(littered, "prune", "--check")
    assert (again["changed"], again["items"], again["freed"]) == (False, [], 0)
    before = littered.ssh(SNAPSHOT).stdout
    assert not pyz(littered, "prune")["changed"]
    assert littered.ssh(SNAPSHOT).stdout == before


def used_by_layers(host: Host) -> int:
    return int(host.ssh("du -s -B1 /var/lib/docker | cut -f1").stdout)


def test_a_rollback_is_still_there(littered: Host) -> None:
    """What was kept is what a rollback needs."""
    assert pyz(littered, "rollback", "--gate-timeout", "20", "--check")["changed"]


def test_old_cache_goes_and_young_cache_stays(littered: Host) -> None:
    program = (
        f"import sys, json; sys.path.insert(0, {PYZ!r})\n"
        "from offline_rebuild.prune import prune, DAY\n"
        "from offline_rebuild.run import Request\n"
        f"ask = lambda check, days: prune(Request({SRC!r}, check, state_dir={STATE!r}), days)\n"
        "young, zero = ask(True, 1), ask(True, 0)\n"
        "said = ask(True, 2 / DAY)\n"
        "while not said.changed: said = ask(True, 2 / DAY)\n"
        "done, after = ask(False, 2 / DAY), ask(True, 2 / DAY)\n"
        "print(json.dumps([r.to_dict() for r in (young, zero, said, done, after)]))\n"
    )
    young, zero, said, done, after = json.loads(littered.ssh("python3 -", input=program).stdout)
    assert not young["changed"]
    assert not zero["changed"]
    (item,), (gone,) = said["items"], done["items"]
    assert item["kind"] == gone["kind"] == "cache"
    assert item["name"] == gone["name"]
    assert abs(item["size"] - gone["size"]) <= 0.02 * gone["size"]
    assert not after["changed"], after


def test_the_playbook(littered: Host) -> None:
    littered.ssh(f"docker tag shop-base:1 {GRAFT}")
    variables = ["-e", f"offline_rebuild_project_src={SRC}", "-e", f"offline_rebuild_state_dir={STATE}"]
    program = Path(sys.executable).parent / "ansible-playbook"
    argv = [program, "-i", littered.directory / "inventory.yml", "playbooks/prune.yml", *variables]
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    for more, word, changed in ((["--check"], "would remove", 1), ([], "removed", 1), ([], "nothing to remove", 0)):
        done = subprocess.run([*argv, *more], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert word in done.stdout
        assert f"changed={changed}" in done.stdout


def test_a_build_that_fails_can_be_entered_where_it_failed(littered: Host) -> None:
    """The instruction and its line, the whole log, the state before it; prune takes the image away."""
    lines = "RUN echo good > /good && date +%N > /once\nRUN cat /app/run.sh && echo pw-hunter22 && exit 3\n"
    write(littered, "web/Dockerfile", DOCKERFILE.replace("CMD", lines + "CMD"))
    error = pyz(littered, "rebuild", "--build-arg", "TOKEN=pw-hunter22", code=1)["error"]
    assert (error["code"], error["line"]) == ("build-failed", 5)
    assert error["file"].endswith("web/Dockerfile")
    before = littered.ssh(SNAPSHOT).stdout
    said = pyz(littered, "debug", "--build-arg", "TOKEN=pw-hunter22", "--check")
    assert littered.ssh(SNAPSHOT).stdout == before
    assert said["changed"]
    made = pyz(littered, "debug", "web", "--build-arg", "TOKEN=pw-hunter22")
    assert (made["changed"], made["line"], made["image"]) == (True, 5, "shop-web:offline-rebuild-debug")
    assert made["text"].startswith("RUN cat /app/run.sh && echo ")
    log = littered.ssh(f"cat {made['log']}").stdout
    assert made["log"] in error["remedy"]
    assert "exit 3" in log
    assert "hunter22" not in log + json.dumps(made) + json.dumps(error)
    command = made["command"].replace(" -it ", " ")
    assert littered.ssh(f"{command} -c 'cat /good /app/run.sh'").stdout.startswith("good\n")
    assert not pyz(littered, "debug", "--build-arg", "TOKEN=pw-hunter22")["changed"]
    gone = pyz(littered, "prune")["items"]
    assert ("debug", made["image"]) in {(item["kind"], item["name"]) for item in gone}

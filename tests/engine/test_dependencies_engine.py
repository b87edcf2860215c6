"""Changed Python dependencies on an air-gapped host: blocked with the remedy, then live by what the remedy made.

The packages are made here: no index is asked. A connected build of the same tree says what the image has to hold.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.engine.supplied import SNAPSHOT, STORES, plan_refused, run, serving, write
from tests.engine.wheel import wheel
from tests.hosts import Host

pytestmark = pytest.mark.engine
BASE = "offline-rebuild/python:3.13-slim"
COMPOSE = """services:
  web:
    build: {context: ./web}
    image: ofr-deps-web:1
    command: [python, /app/main.py]
    stop_signal: SIGKILL
    healthcheck: {test: [CMD, test, -e, /tmp/ok], interval: 1s, retries: 20}
"""
DOCKERFILE = f"""FROM {BASE}
WORKDIR /app
COPY requirements.txt .
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf pip install --no-cache-dir -r requirements.txt
COPY main.py .
"""
WHEELS = {"wheelhouse": "/opt/wheels"}
MAIN = "import {0}, pathlib, time\npathlib.Path('/tmp/ok').write_text({0}.__name__)\ntime.sleep(100000)\n"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an index would have."""
    folder = tmp_path_factory.mktemp("deps") / "index"
    folder.mkdir()
    wheel(folder, "ofrone", "1.0")
    wheel(folder, "ofrtwo", "1.0", requires=["ofrthree>=1; python_version >= '3.9'", "never; sys_platform == 'win32'"])
    wheel(folder, "ofrthree", "1.5", tags="cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64")
    return folder


@pytest.fixture(scope="module", params=STORES)
def host(request: pytest.FixtureRequest, packages: Path) -> Iterator[Host]:
    files = {"Dockerfile": DOCKERFILE, "requirements.txt": "ofrone==1.0\n", "main.py": MAIN.format("ofrone")}
    with serving("deps", request.param, "python", packages.parent, COMPOSE, files, build) as made:
        yield made


def build(host: Host, name: str) -> None:
    """A connected build: pip has an index, as a secret's settings say."""
    host.ssh(
        "mkdir -p /opt/build && cp -a /srv/web/web/. /opt/build/ && cd /opt/build"
        # the index is a folder here; it reaches the RUN the way a cache folder does
        " && printf '[global]\\nno-index=true\\nfind-links=/dev/index\\n' > /opt/pip.conf"
        " && tar -C /opt/index -c . | docker import - ofr-deps-index:1 > /dev/null"
        " && sed -i 's,^RUN ,RUN --mount=type=bind\\,from=ofr-deps-index:1\\,target=/dev/index ,' Dockerfile"
        " && DOCKER_BUILDKIT=1 docker build -q --network=none --no-cache --secret id=pip.conf,src=/opt/pip.conf"
        f" -t {name} . && docker image rm ofr-deps-index:1 > /dev/null; rm -rf /opt/build"
    )


def refused(host: Host, **request: Any) -> str:
    """A plan and a run that are refused leave the host as it is. Returns the one line for the operator."""
    said = plan_refused(host, **request)
    running = host.ssh("docker ps -q --no-trunc; docker image ls -q --no-trunc").stdout
    ran = run(host, **request)
    assert (ran["failed"], ran["msg"]) == (True, said)
    assert host.ssh("docker ps -q --no-trunc; docker image ls -q --no-trunc").stdout == running
    assert "\n" not in ran["msg"]
    assert "Traceback" not in ran["msg"]
    return str(ran["msg"])


def snapshot(host: Host, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.ssh(["python3", "-c", SNAPSHOT, name]).stdout)
    return found


def test_a_package_is_added(host: Host, packages: Path, tmp_path: Path) -> None:
    """Blocked with the remedy; then live by what the remedy's command makes; then no change."""
    write(host, {"requirements.txt": "ofrone==1.0\nofrtwo==1.0\n", "main.py": MAIN.format("ofrtwo")})
    said = refused(host)
    assert "needs a network" in said
    assert "requirements.txt: +ofrtwo==1.0" in said
    host.put(downloaded(said, packages, tmp_path), "/opt/wheels")
    assert host.ssh("ls /opt/wheels | wc -l").stdout.strip() == "3"
    planned = run(host, check=True, **WHEELS)
    assert not planned["failed"], planned["msg"]
    done = run(host, **WHEELS)
    assert not done["failed"], done["msg"]
    assert host.ssh("cd /srv/web && docker compose exec -T web cat /tmp/ok").stdout == "ofrtwo"
    again = run(host, **WHEELS)
    assert (again["failed"], again["changed"]) == (False, False), again["msg"]
    assert not run(host)["changed"]  # nor does it need the folder any more
    same_as_connected(host)


def downloaded(said: str, packages: Path, folder: Path) -> Path:
    """What the remedy's command, run in the build context on this machine, brings; its index is a folder here."""
    command = said.partition("in the build context: ")[2].partition("; bring wheels here")[0]
    assert "--python-version 3.13" in command
    (folder / "requirements.txt").write_text("ofrone==1.0\nofrtwo==1.0\n")
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(packages), "PIP_CONFIG_FILE": os.devnull}
    subprocess.run(shlex.split(command), cwd=folder, env={**os.environ, **settings}, check=True)
    return folder / "wheels"


HASHED = "ofrone==1.0 --hash=sha256:" + "0" * 64 + "\n"
BAD: Mapping[str, tuple[str, str, str]] = {
    "another Python": ("ofrnew==1\n", "ofrnew-1-cp312-cp312-manylinux2014_x86_64.whl", "only for another Python"),
    "wrong hash": (HASHED, "", "has another sha256 than requirements.txt asks for"),
    "sdist only": ("ofrsource==1\n", "ofrsource-1.tar.gz", "only as source (ofrsource-1.tar.gz)"),
    "transitive": ("ofrtwo==1.0\n", "", "ofrthree>=1 (needed by ofrtwo 1.0): the wheelhouse has no ofrthree"),
    "another version": ("ofrone==2.0\n", "", "only in version 1.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wheelhouse_that_will_not_do_is_named_by_the_plan(host: Host, case: str) -> None:
    requirements, file, said = BAD[case]
    host.ssh("rm -rf /opt/bad && mkdir /opt/bad && cp /opt/index/ofrone* /opt/index/ofrtwo* /opt/bad/")
    if file:
        host.ssh(f"touch /opt/bad/{file}")
    write(host, {"requirements.txt": requirements})
    assert said in refused(host, wheelhouse="/opt/bad")


def test_no_wheelhouse_and_an_empty_one(host: Host) -> None:
    write(host, {"requirements.txt": "ofrnew==1\n"})
    assert "[wheelhouse-missing]" in refused(host, wheelhouse="/opt/none")
    host.ssh("rm -rf /opt/bad && mkdir /opt/bad")
    assert "the wheelhouse /opt/bad is empty" in refused(host, wheelhouse="/opt/bad")


def test_what_only_pip_finds_out_fails_before_anything_is_touched(host: Host) -> None:
    """Two versions, of which neither can be installed: the plan leaves that to pip."""
    host.ssh("rm -rf /opt/bad && mkdir /opt/bad")
    script = (
        "import sys; sys.path.insert(0, '/opt'); import made\nfor v in ('1', '2'): made.wheel(made.Path('/opt/bad'), "
    )
    host.put(Path(__file__).parent / "wheel.py", "/opt/made.py")
    host.ssh(["python3", "-c", script + "'ofrnew', v, requires=['never'])"])
    write(host, {"requirements.txt": "ofrnew\n"})
    before = host.ssh("docker ps -q --no-trunc; docker image ls -q --no-trunc").stdout
    assert not run(host, check=True, wheelhouse="/opt/bad")["failed"]
    done = run(host, wheelhouse="/opt/bad")
    assert (done["failed"], done["error"]["code"]) == (True, "dependency-missing"), done["msg"]
    assert "ofrnew 2 depends on never" in done["msg"]
    assert "\n" not in done["msg"]
    assert host.ssh("docker ps -q --no-trunc; docker image ls -q --no-trunc").stdout == before


def same_as_connected(host: Host) -> None:
    """The image has the files, the config and the history of a connected build's, and nothing more."""
    host.ssh("docker tag ofr-deps-web:1 ofr-deps-offline:1")
    build(host, "ofr-deps-online:1")
    ours, theirs = snapshot(host, "ofr-deps-offline:1"), snapshot(host, "ofr-deps-online:1")
    assert ours["files"].keys() == theirs["files"].keys()
    differing = {path for path in ours["files"] if ours["files"][path] != theirs["files"][path]}
    assert all(path.endswith(".pyc") for path in differing), differing
    assert ours["config"] == theirs["config"]
    texts = [
        json.loads(host.ssh("docker history --no-trunc --format '{{json .CreatedBy}}' " + n).stdout.splitlines()[0])
        for n in ("ofr-deps-offline:1", "ofr-deps-online:1")
    ]
    assert texts[0] == texts[1]
    assert not host.ssh("docker image ls -q '127.0.0.1:9/offline-rebuild/*'").stdout

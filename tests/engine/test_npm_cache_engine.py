"""A changed package-lock.json on an air-gapped host: blocked, then live from npm's cache, then no change.

The packages are made here: no registry is asked.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.supplied import SNAPSHOT, STORES, plan_refused, run, serving, write
from tests.hosts import Host

pytestmark = pytest.mark.engine
BASE = "offline-rebuild/node:20-slim"
COMPOSE = """services:
  web:
    build: {context: ./web}
    image: ofr-npm-web:1
    command: [node, /app/main.js]
    stop_signal: SIGKILL
    healthcheck: {test: [CMD, test, -e, /tmp/ok], interval: 1s, retries: 20}
"""
DOCKERFILE = f"""FROM {BASE}
WORKDIR /app
COPY package*.json ./
RUN --mount=type=secret,id=npmrc,target=/root/.npmrc --mount=type=cache,target=/root/.npm npm ci
COPY main.js .
"""
MAIN = "require('fs').writeFileSync('/tmp/ok', require('{0}').name); setInterval(() => {{}}, 1000)\n"
CACHE = {"npm_cache": "/opt/npm-cache"}


def tarball(name: str) -> bytes:
    """A package as the registry has it."""
    stream = io.BytesIO()
    files = {"package.json": json.dumps({"name": name, "version": "1.0.0"}), "index.js": f"exports.name = '{name}'\n"}
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w|") as tar:
        for path, text in files.items():
            info = tarfile.TarInfo(f"package/{path}")
            info.size, info.mode = len(text), 0o644
            tar.addfile(info, io.BytesIO(text.encode()))
    return stream.getvalue()


def put(cache: Path, *names: str) -> None:
    """Put packages where npm's cache has them, by digest."""
    for name in names:
        text = hashlib.sha512(tarball(name)).hexdigest()
        path = cache / "_cacache/content-v2/sha512" / text[:2] / text[2:4] / text[4:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tarball(name))


def tree(*names: str) -> dict[str, str]:
    """package.json and package-lock.json that ask for these packages."""
    root = {"name": "web", "version": "1.0.0", "dependencies": dict.fromkeys(names, "1.0.0")}
    packages: dict[str, Any] = {"": root}
    for name in names:
        digest = base64.b64encode(hashlib.sha512(tarball(name)).digest()).decode()
        packages[f"node_modules/{name}"] = {
            "version": "1.0.0",
            "resolved": f"https://npm.invalid/{name}/-/{name}-1.0.0.tgz",
            "integrity": f"sha512-{digest}",
        }
    lock = {"name": "web", "version": "1.0.0", "lockfileVersion": 3, "requires": True, "packages": packages}
    return {"package.json": json.dumps(root), "package-lock.json": json.dumps(lock), "main.js": MAIN.format(names[-1])}


@pytest.fixture(scope="module", params=STORES)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("npm")
    put(folder / "index", "ofrone", "ofrtwo")
    files = {"Dockerfile": DOCKERFILE, **tree("ofrone")}
    with serving("npm", request.param, "node", folder, COMPOSE, files, build) as made:
        yield made


def build(host: Host, name: str) -> None:
    """A connected build; what stands for the registry is a folder that only this build is given."""
    host.ssh(
        "cp -a /srv/web/web /opt/build && cd /opt/build"
        " && printf '%s\\n' cache=/dev/index offline=true audit=false fund=false update-notifier=false > /opt/npmrc"
        " && tar -C /opt/index -c . | docker import - ofr-npm-index:1 > /dev/null"
        " && sed -i 's,^RUN ,RUN --mount=type=bind\\,from=ofr-npm-index:1\\,target=/dev/index\\,rw ,' Dockerfile"
        " && DOCKER_BUILDKIT=1 docker build -q --network=none --no-cache --secret id=npmrc,src=/opt/npmrc"
        f" -t {name} . && docker image rm ofr-npm-index:1 > /dev/null && rm -rf /opt/build"
    )


def test_a_package_is_added(host: Host, tmp_path: Path) -> None:
    write(host, tree("ofrone", "ofrtwo"))
    assert "npm ci --ignore-scripts" in plan_refused(host)
    assert "[npm-cache-missing]" in plan_refused(host, **CACHE)
    put(tmp_path / "part", "ofrone")
    host.put(tmp_path / "part", "/opt/npm-cache")
    assert "has no ofrtwo@1.0.0 (package-lock.json: +ofrtwo@1.0.0)" in plan_refused(host, **CACHE)
    write(host, {"package.json": tree("ofrone")["package.json"]})
    assert "package-lock.json disagrees with package.json about ofrtwo" in plan_refused(host, **CACHE)
    write(host, tree("ofrone", "ofrtwo"))
    put(tmp_path / "part", "ofrtwo")
    host.put(tmp_path / "part", "/opt/npm-cache")
    done = run(host, **CACHE)
    assert not done["failed"], done["msg"]
    assert host.ssh("cd /srv/web && docker compose exec -T web cat /tmp/ok").stdout == "ofrtwo"
    assert not run(host, **CACHE)["changed"]
    assert not run(host)["changed"]
    host.ssh("docker tag ofr-npm-web:1 ofr-npm-offline:1")
    build(host, "ofr-npm-online:1")
    ours, theirs = (
        json.loads(host.ssh(["python3", "-c", SNAPSHOT, f"ofr-npm-{name}:1"]).stdout) for name in ("offline", "online")
    )
    assert ours["files"].keys() == theirs["files"].keys()
    assert {path for path in ours["files"] if ours["files"][path] != theirs["files"][path]} == set()
    assert ours["config"] == theirs["config"]

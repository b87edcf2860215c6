"""npm's cache for RUNs that have to install again: judged by the lock file, and mounted with its settings."""

from __future__ import annotations

import base64
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from module_utils.offline_rebuild.derive import blocked_reason, derive
from module_utils.offline_rebuild.dockerfile import parse
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.npmneeds import blobs, npmrc
from module_utils.offline_rebuild.supply import Sources, Supply
from tests.unit.depot import Depot
from tests.unit.test_reuse import write

TEXT = "FROM base\nWORKDIR /app\nCOPY package*.json ./\nRUN npm ci\n"
USERS = "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n"


def integrity(data: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


def lock(*names: str, **more: Any) -> str:
    """A lock file of packages ``NAME@VERSION``."""
    packages: dict[str, Any] = {"": {"dependencies": {name.split("@")[0]: name.split("@")[1] for name in names}}}
    for name in names:
        packages[f"node_modules/{name.split('@')[0]}"] = {
            "version": name.split("@")[1],
            "integrity": integrity(name.encode()),
        }
    return json.dumps({"lockfileVersion": 3, "packages": {**packages, **more}})


def package(*names: str) -> str:
    return json.dumps({"dependencies": {name.split("@")[0]: name.split("@")[1] for name in names}})


def put(cache: Path, *names: str) -> None:
    for name in names:
        write(cache, {blobs(integrity(name.encode()))[0]: name})


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    made = Depot(tmp_path)
    rootfs = {"etc/passwd": USERS, "root": None, "root/.npmrc": "registry=https://x", "home/node": None}
    made.build("base:latest", "FROM scratch\nCOPY rootfs /\n", {2: rootfs})
    old = {"app/package-lock.json": lock("a@1"), "app/package.json": package("a@1")}
    made.build("app:latest", TEXT, {3: old}, base="base:latest")
    write(tmp_path / "context", {"package-lock.json": lock("a@2", "b@1"), "package.json": package("a@2", "b@1")})
    write(tmp_path / "cache/_cacache/content-v2", {"x": ""})
    return made


def judge(depot: Depot, text: str = TEXT, **more: Any) -> tuple[str, str]:
    analyzer = depot.analyzer(text, depot.root / "context", cheapest="graft")
    return blocked_reason(analyzer, Supply(Sources(npm_cache=str(depot.root / "cache")), **more))


def test_what_is_missing_is_named_with_the_remedy(depot: Depot) -> None:
    put(depot.root / "cache", "a@2")
    reason, remedy = judge(depot)
    assert f"the npm cache {depot.root}/cache has no b@1 (package-lock.json: +b@1, a 1 -> 2)" in reason
    assert "npm ci --ignore-scripts --no-audit --os=linux --cpu=x64 --cache npm-cache" in remedy
    put(depot.root / "cache", "b@1")
    assert judge(depot) == ("", "")
    assert "npm-cache" in blocked_reason(depot.analyzer(TEXT, depot.root / "context", cheapest="graft"))[1]


def test_what_npm_does_not_fetch_is_not_missing(depot: Depot) -> None:
    put(depot.root / "cache", "a@2", "b@1")
    other = {"version": "1", "integrity": integrity(b"none"), "optional": True}
    more = {
        "node_modules/win": {**other, "os": ["win32"]},
        "node_modules/arm": {**other, "cpu": ["arm64"]},
        "node_modules/not": {**other, "os": ["!linux"]},
        "node_modules/link": {"link": True, "resolved": "lib"},
        "lib": {"version": "1"},
    }
    write(depot.root / "context", {"package-lock.json": lock("a@2", "b@1", **more)})
    assert judge(depot) == ("", "")
    ours = {"node_modules/ours": {**other, "os": ["linux"], "cpu": "x64"}}
    write(depot.root / "context", {"package-lock.json": lock("a@2", "b@1", **ours)})
    assert "has no ours@1" in judge(depot)[0]


def test_a_lock_file_that_disagrees(depot: Depot) -> None:
    put(depot.root / "cache", "a@2", "b@1")
    write(depot.root / "context", {"package.json": package("a@2", "c@1")})
    reason, remedy = judge(depot)
    assert "disagrees with package.json about c; package-lock.json disagrees with package.json about b" in reason
    assert "npm install --package-lock-only && npm ci" in remedy
    write(depot.root / "context", {"package-lock.json": "no JSON"})
    assert "package-lock.json (version 2 or 3) is not found" in judge(depot)[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("RUN npm ci && pip install x", "the npm cache does not serve pip install"),
        ("RUN npx x", "does not serve npx"),
        ("ENV NPM_CONFIG_CACHE=/c\nRUN npm ci", "NPM_CONFIG_CACHE is set"),
        ("COPY package.json .npmrc\nRUN npm ci", "writes .npmrc"),
        ("USER odd\nRUN npm ci", "the home of its user is not known"),
        ("USER node\nRUN npm ci", ""),
        ("RUN --mount=type=secret,id=npmrc,target=/root/.npmrc npm ci", ""),
        ("RUN --mount=type=secret,id=ours,target=/root/.npmrc npm ci", "mounts /root/.npmrc itself"),
    ],
)
def test_which_runs_are_served(depot: Depot, line: str, said: str) -> None:
    put(depot.root / "cache", "a@2", "b@1")
    reason, _ = judge(depot, TEXT.replace("RUN npm ci", line), secrets=frozenset({"ours"}))
    assert bool(reason) == bool(said)
    assert said in reason


def test_the_mounts(depot: Depot) -> None:
    put(depot.root / "cache", "a@2", "b@1")
    write(depot.root / "cache/_cacache", {"index-v5/aa": "i", "tmp/x": "t"})
    write(depot.root / "cache", {"_logs/x": "log"})
    analyzer = depot.analyzer(TEXT, depot.root / "context", cheapest="graft")
    supply = Supply(Sources(npm_cache=str(depot.root / "cache")))
    made = derive(analyzer, 1, str(depot.root), {}, supply=supply)
    step = parse(made.text.encode()).stages[0].instructions[-1]
    assert [(m.target, m.fields.get("readwrite") == "true") for m in step.mounts] == [
        ("/dev/offline-rebuild/npm", True),
        ("/root/.npmrc", False),
    ]
    with tarfile.open(made.grafts[0].carried[0].path) as layer:
        members = {member.name: member for member in layer}
        (rc,) = [name for name in members if name.startswith("npm-")]
        stream = layer.extractfile(rc)
        assert stream is not None
        text = stream.read().decode()
    assert text.startswith("registry=https://x\ncache=/dev/offline-rebuild/npm\noffline=true\n")
    assert "npm/_cacache/index-v5/aa" in members
    assert not any("tmp" in name or "_logs" in name for name in members)
    assert members["npm/_cacache"].mode == 0o777
    assert npmrc(None).startswith(b"cache=")


def test_a_folder_that_is_no_cache_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OfflineRebuildError, match="npm-cache-missing"):
        Sources(npm_cache=str(tmp_path)).check()

"""Deltas between engines and image stores of every kind: made on each, loaded on each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from tests.equality.bases import busybox
from tests.hosts import Host, Hosts
from tests.unit.figures import record

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
PYZ = "/opt/offline/offline-rebuild.pyz"
#: ``OFR_ENGINE_HOSTS`` (make test-all): between old and new ones, too.
MORE = ("bookworm:classic", "trixie:containerd") if os.environ.get("OFR_ENGINE_HOSTS") else ()
KINDS = (*MORE, "trixie:classic", "testing:containerd")
BASE = "127.0.0.1:9/delta/base:1"
#: Two layers that do not compress, so that a whole image is told from a delta by its size.
FIRST = """FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN head -c 3000000 /dev/urandom > /ballast
CMD ["cat", "/version"]
"""
NEXT = "FROM {base}\nRUN echo {name} > /version\nCOPY data /data\nLABEL name={name}\n"


def pyz(host: Host, *argv: str, code: int = 0) -> str:
    done = host.ssh(["python3", PYZ, *argv], check=False)
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def inspected(host: Host, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(host.docker("image", "inspect", name))
    return found[0]


def slug(kind: str) -> str:
    return kind.replace(":", "-")


def app(kind: str) -> str:
    return f"delta-{slug(kind)}:2"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Host]]:
    """A host of each kind with the same base, loaded; on each an image of its own built on it."""
    dist = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, ROOT / "scripts/make-pyz", dist], check=True, capture_output=True)
    with ExitStack() as stack:
        found: dict[str, Host] = {}
        for kind in KINDS:
            engine, store = kind.split(":")
            found[kind] = stack.enter_context(Hosts.up(f"delta-{slug(kind)}", count=1, engine=engine, store=store))[0]
        first = found[KINDS[0]]
        first.put(busybox(), "/srv/delta/busybox")
        first.ssh("cat > /srv/delta/Dockerfile", input=FIRST)
        first.ssh(f"cd /srv/delta && DOCKER_BUILDKIT=1 docker build -q -t {BASE} . && docker save -o base.tar {BASE}")
        base = first.ssh("base64 -w0 /srv/delta/base.tar").stdout
        for kind, host in found.items():
            host.put(dist, "/opt/offline")
            host.ssh("mkdir -p /srv/delta/next && base64 -d | docker load", input=base)
            host.ssh("cat > /srv/delta/next/Dockerfile", input=NEXT.format(base=BASE, name=slug(kind)))
            host.ssh("cd /srv/delta/next && head -c 20000 /dev/urandom > data")
            build = f"docker build -q --network=none -t {app(kind)} /srv/delta/next"
            host.ssh(f"DOCKER_BUILDKIT=1 BUILDX_NO_DEFAULT_ATTESTATIONS=1 {build}")
        yield found


def bring(sender: Host, receiver: Host, name: str, there: str) -> dict[str, Any]:
    """The delta, made by the sender and put on the receiver as /srv/delta/in.tar. :returns: what the sender said."""
    sender.ssh("cat > /srv/delta/there.json", input=there)
    made = pyz(sender, "delta", name, "--for", "/srv/delta/there.json", "-o", "/srv/delta/out.tar", "--json")
    archive = sender.ssh("base64 -w0 /srv/delta/out.tar").stdout
    receiver.ssh("base64 -d > /srv/delta/in.tar", input=archive)
    delta: dict[str, Any] = json.loads(made)["delta"]
    return delta


@pytest.mark.parametrize(("here", "there"), list(permutations(KINDS, 2)))
def test_a_delta_is_loaded_as_the_same_image(hosts: dict[str, Host], here: str, there: str) -> None:
    sender, receiver = hosts[here], hosts[there]
    name = app(here)
    delta = bring(sender, receiver, name, pyz(receiver, "holdings"))
    (part,) = delta["images"]
    assert (part["left_out"], len(part["carried"])) == (3, 2)
    assert delta["size"] - delta["layer_bytes"] < 64 << 10
    assert delta["layer_bytes"] < 100_000
    assert "loaded" in pyz(receiver, "import", "/srv/delta/in.tar")
    mine, theirs = inspected(sender, name), inspected(receiver, name)
    assert theirs["RootFS"] == mine["RootFS"]
    assert theirs["Config"]["Labels"] == mine["Config"]["Labels"]
    if sender.store == receiver.store:
        assert theirs["Id"] == mine["Id"] == part["image_id"]
    assert receiver.docker("run", "--rm", "--network=none", name).strip() == slug(here)
    assert "all images are there" in pyz(receiver, "import", "/srv/delta/in.tar")
    receiver.docker("image", "rm", name)


@pytest.mark.parametrize("store", ["classic", "containerd"])
def test_who_has_nothing_gets_the_whole_image(hosts: dict[str, Host], store: str) -> None:
    name = app("trixie:classic" if store == "containerd" else "testing:containerd")
    sender = hosts["trixie:classic" if store == "containerd" else "testing:containerd"]
    empty = json.dumps({"schema": 1, "store": store, "platform": "linux/amd64", "images": []})
    receiver = next(host for host in hosts.values() if host.store == store)
    delta = bring(sender, receiver, name, empty)
    assert delta["images"][0]["left_out"] == 0
    assert delta["layer_bytes"] > 3_000_000
    assert "loaded" in pyz(receiver, "import", "/srv/delta/in.tar")
    receiver.docker("image", "rm", name)


#: Runs the archive of the command line in a process whose own memory it then tells (proc(5): VmHWM, in kB).
IN_PROCESS = """
import runpy, sys
sys.argv = [{pyz!r}, *sys.argv[1:]]
try:
    runpy.run_path({pyz!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@pytest.mark.parametrize("kind", ["trixie:classic", "testing:containerd"])
def test_memory_does_not_grow_with_the_image(hosts: dict[str, Host], kind: str) -> None:
    host, other = hosts[kind], next(name for name in KINDS[::-1] if name != kind)
    host.ssh("mkdir -p /srv/delta/big && cat > /srv/delta/big/Dockerfile", input=f"FROM {BASE}\nCOPY big /big\n")
    host.ssh("head -c 400000000 /dev/urandom > /srv/delta/big/big")
    host.ssh("DOCKER_BUILDKIT=1 docker build -q --network=none -t delta-big:1 /srv/delta/big")
    host.ssh("cat > /srv/delta/there.json", input=pyz(hosts[other], "holdings"))
    options = ["delta", "delta-big:1", "--for", "/srv/delta/there.json", "-o", "/srv/delta/big.tar"]
    said = host.ssh(["python3", "-c", IN_PROCESS.format(pyz=PYZ), *options]).stdout
    peak = int(said.split("VmHWM:")[1].split()[0])
    record("delta", **{f"peak_mb_{kind.replace(':', '_')}": round(peak / 1024, 1)})
    size = int(host.ssh("stat -c %s /srv/delta/big.tar").stdout)
    host.ssh("rm -r /srv/delta/big /srv/delta/big.tar; docker image rm delta-big:1; docker builder prune -af")
    assert size > 400_000_000
    assert peak < 64 << 10


def test_a_delta_on_a_host_without_its_base_is_refused(hosts: dict[str, Host]) -> None:
    sender, receiver = hosts["testing:containerd"], hosts["trixie:classic"]
    bring(sender, receiver, app("testing:containerd"), pyz(receiver, "holdings"))
    held = receiver.docker("image", "ls", "-aq", "--no-trunc").split()
    receiver.ssh(f"docker save -o /srv/delta/all.tar {BASE} {app('trixie:classic')}")
    receiver.docker("image", "rm", "-f", *held)
    said = pyz(receiver, "import", "/srv/delta/in.tar", code=1)
    assert "carries no layer" in said
    assert receiver.docker("image", "ls", "-aq") == ""
    receiver.ssh("docker load -i /srv/delta/all.tar")


def test_another_platform_and_an_unknown_image_are_refused(hosts: dict[str, Host]) -> None:
    sender = hosts["trixie:classic"]
    arm = json.dumps({"schema": 1, "store": "classic", "platform": "linux/arm64", "images": []})
    sender.ssh("cat > /srv/delta/there.json", input=arm)
    options = ("--for", "/srv/delta/there.json", "-o", "/srv/delta/none.tar")
    assert "archive-platform" in pyz(sender, "delta", app("trixie:classic"), *options, code=1)
    assert "image-missing" in pyz(sender, "delta", "nothing:1", *options, code=3)
    assert sender.ssh("ls /srv/delta/none.tar*", check=False).returncode != 0

"""A change on a fleet, four ways, and a run with nothing to do: ``make bench-fleet``.

The change is one line that a RUN reads, in an image with 256 MB below it; each host is behind a link of its own of 50
Mbit/s (``BALLAST``, in bytes, and ``LINK``, as tc(8) has it, set others; ``LINK=`` shapes nothing). All hosts share
this machine's processors. On 1, 4 and 16 hosts, one way after the other in each round:

``save``       one host builds; ``docker save`` of the whole image once, ``docker load`` and ``docker compose up`` on
               each host at the same time, over SSH
``each``       ``rebuild.yml``, every host builds
``once``       ``rebuild.yml`` with ``build_once``: one builds, the others get what they lack
``assembled``  ``rebuild.yml``, a change that needs no RUN: each host assembles the image

Then, with nothing changed: ``rebuild.yml`` and the same job as a play of community.docker's ``docker_compose_v2`` with
``build: always``. Medians of :data:`ROUNDS` rounds; written to ``results/bench-fleet.json``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.hosts import Host, Hosts, mixed, sample
from tests.unit.figures import record

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = int(os.environ.get("ROUNDS", "5"))
SIZES = [int(number) for number in os.environ.get("FLEETS", "1 4 16").split()]
BALLAST = int(os.environ.get("BALLAST", str(256 << 20)))
LINK = os.environ.get("LINK", "50mbit")
PEER = f"""- hosts: offline-servers
  gather_facts: false
  tasks:
    - community.docker.docker_compose_v2:
        project_src: {mixed.TARGET}
        build: always
        pull: never
"""
ENV = "DOCKER_BUILDKIT=1 BUILDX_NO_DEFAULT_ATTESTATIONS=1"
Way = Callable[[Hosts], float]


def _ssh(host: Host, command: str, **given: object) -> None:
    subprocess.run(["ssh", *host.ssh_options(), f"root@{host.address}", command], check=True, **given)  # type: ignore[call-overload]


def _save(hosts: Hosts) -> float:
    """:returns: bytes sent to each host."""
    first, *others = list(hosts)
    first.ssh(f"cd {mixed.TARGET} && {ENV} docker compose build -q web && docker compose up -d --wait 2>&1")
    with tempfile.TemporaryDirectory(prefix="bench-fleet-") as folder:
        archive = Path(folder) / "image.tar"
        if others:
            with archive.open("wb") as stream:
                _ssh(first, f"docker save {mixed.IMAGE}", stdout=stream)

        def bring(host: Host) -> None:
            up = f"cd {mixed.TARGET} && docker compose up -d --no-build --pull never --wait 2>&1"
            with archive.open("rb") as stream:
                _ssh(host, f"docker load && {up}", stdin=stream, stdout=subprocess.DEVNULL)

        with ThreadPoolExecutor(max_workers=20) as pool:
            list(pool.map(bring, others))
        return float(archive.stat().st_size) if others else 0.0


def _play(hosts: Hosts, *options: str) -> str:
    done = sample.playbook(hosts, "-v", *options)
    if done.returncode != 0:
        raise SystemExit(f"the playbook failed:\n{done.stdout[-4000:]}")
    return str(done.stdout)


def _each(hosts: Hosts) -> float:
    _play(hosts)
    return 0.0


def _once(hosts: Hosts) -> float:
    """:returns: bytes sent to each host beyond the layers that they lack; they are not compressed for that."""
    said = _play(hosts, "-e", "offline_rebuild_strategy=build_once")
    sent = [int(number) for number in re.findall(r"sent_bytes: (\d+)", said)]
    layers = [int(number) for number in re.findall(r"layer_bytes: (\d+)", said)]
    if len(hosts) > 1 and (not sent or not layers):
        raise SystemExit(f"nothing was sent:\n{said[-4000:]}")
    return float(max(sent) - max(layers)) if sent else 0.0


def _shape(hosts: Hosts) -> None:
    """What is sent to a host goes at the link's rate."""
    if not LINK:
        return
    if shutil.which("tc") is None:
        subprocess.run([str(ROOT / "scripts" / "need"), "iproute2"], check=True)
    links = {file.read_text().strip(): file.parent.name for file in Path("/sys/class/net").glob("*/ifindex")}
    for host in hosts:
        peer = links[host.ssh("cat /sys/class/net/eth0/iflink").stdout.strip()]
        shape = ["tc", "qdisc", "add", "dev", peer, "root", "tbf", "rate", LINK, "burst", "256kb", "latency", "50ms"]
        subprocess.run(shape, check=True)


def _round(hosts: Hosts, number: int) -> dict[str, float]:
    row: dict[str, float] = {}
    ways: list[tuple[str, Way]] = [("save", _save), ("each", _each), ("once", _once)]
    for place, (name, way) in enumerate(ways):
        _write(hosts, f"{number}.{place} good")
        start = time.monotonic()
        row[f"{name}_bytes"] = way(hosts)
        row[name] = time.monotonic() - start
    _write(hosts, f"{number}.{len(ways) - 1} good", page=f"{number}")
    start = time.monotonic()
    _each(hosts)
    row["assembled"] = time.monotonic() - start
    return row


def _write(hosts: Hosts, version: str, page: str = "") -> None:
    _write.page = page or getattr(_write, "page", "1")  # type: ignore[attr-defined]
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda host: mixed.write(host, version, _write.page), hosts))  # type: ignore[attr-defined]


def _collections() -> Path:
    """community.docker, as its users have it: from PyPI's package ``ansible``."""
    target = ROOT / ".cache" / "ansible-collections"
    if not (target / "ansible_collections" / "community" / "docker").is_dir():
        python = Path(sys.base_prefix) / "bin" / "python3"  # the environment's own has no pip
        argv = [str(python), "-m", "pip", "-q", "install", "--no-deps", "--target", str(target), "ansible"]
        subprocess.run(argv, check=True)
    return target


def _unchanged(hosts: Hosts) -> dict[str, float]:
    """Pairs of runs that have nothing to do. The peer's first run makes the images its own, with a warm cache."""
    os.environ["ANSIBLE_COLLECTIONS_PATH"] = str(_collections())
    rows: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="bench-fleet-") as folder:
        peer = Path(folder) / "peer.yml"
        peer.write_text(PEER, encoding="utf-8")
        _peer(hosts, peer)
        _play(hosts)
        for _ in range(ROUNDS):
            start = time.monotonic()
            if "changed=1" in _peer(hosts, peer):
                raise SystemExit("the peer changed something")
            middle = time.monotonic()
            if re.search(r"app\d+ .*changed=[1-9]", _play(hosts)):
                raise SystemExit("the playbook changed something")
            rows.append((middle - start, time.monotonic() - middle))
    return {
        "peer": statistics.median(peer for peer, _ in rows),
        "ours": statistics.median(ours for _, ours in rows),
        "ratio": statistics.median(ours / peer for peer, ours in rows),
    }


def _peer(hosts: Hosts, play: Path) -> str:
    done = sample.playbook(hosts, name=str(play))
    if done.returncode != 0:
        raise SystemExit(f"the peer failed:\n{done.stdout[-4000:]}")
    return str(done.stdout)


def main() -> None:
    """Run the rounds and print the ratios."""
    figures: dict[str, float] = {}
    version = ""
    for size in SIZES:
        with Hosts.up("bench-fleet", count=size, fresh=True) as hosts:
            mixed.install(hosts, BALLAST)
            sample.write_variables(hosts, {**mixed.VARIABLES, "offline_rebuild_strategy": "each_host"})
            version = hosts[0].ssh("docker version --format '{{.Server.Version}}'").stdout.strip()
            _shape(hosts)
            _write(hosts, "0 good")
            _once(hosts)  # fills caches
            rows = []
            for number in range(1, ROUNDS + 1):
                rows.append(_round(hosts, number))
                print(size, json.dumps({key: round(value, 2) for key, value in rows[-1].items()}), flush=True)
            middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            figures.update({f"{key}_{size}": round(value, 2) for key, value in middle.items()})
            for name, key in (("wall", "once"), ("assembled_wall", "assembled"), ("each_wall", "each")):
                ratio = statistics.median(row[key] / row["save"] for row in rows)
                figures[f"{name}_ratio_{size}"] = round(ratio, 3)
            nothing = _unchanged(hosts)
            figures.update({f"unchanged_{key}_{size}": round(value, 3) for key, value in nothing.items()})
            print(size, json.dumps({key: round(value, 2) for key, value in nothing.items()}), flush=True)
    most = max(SIZES)
    figures["delta_overhead_bytes"] = max(figures[f"once_bytes_{size}"] for size in SIZES)
    figures["unchanged_ratio"] = figures[f"unchanged_ratio_{most}"]
    print(json.dumps(figures))
    machine = os.uname().machine
    settings = {"rounds": ROUNDS, "image_bytes": BALLAST, "link": LINK or "none"}
    record("bench-fleet", **figures, **settings, machine=machine, engine=version, store="classic")


if __name__ == "__main__":
    main()

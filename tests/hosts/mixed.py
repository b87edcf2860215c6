"""A fleet of different hosts under one inventory, and a small application on it.

``python -m tests.hosts.mixed up|install|edit|down NAME``: four hosts of different engines and image stores, server1 to
server4; the application came to each as an archive, with its base image.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from .fleet import GROUP, Host, HostError, Hosts, down

#: The builder first; each of the others differs from it in engine, in image store, or in both. The second is like it.
KINDS = ("trixie:classic:2", "testing:classic:1", "testing:containerd:1")
TARGET = "/srv/shop"
BASE = "127.0.0.1:9/shop/base:1"
IMAGE = "shop-web:latest"
PORT = 8080
#: Its RUNs come after the sources and leave something else at each build: hosts that each build get different images.
DOCKERFILE = f"""FROM {BASE}
ARG SITE=none
COPY app /srv
RUN cat /srv/version > /srv/health && echo "$SITE" > /srv/site && head -c 8 /dev/urandom | od -An -tx1 > /srv/build-id
HEALTHCHECK --interval=1s --retries=3 CMD grep -q good /srv/version
CMD ["httpd", "-f", "-p", "{PORT}", "-h", "/srv"]
"""
COMPOSE = f"""services:
  web:
    build: {{context: ., args: {{SITE: "${{SITE:-none}}"}}}}
    image: {IMAGE}
    ports: ["{PORT}:{PORT}"]
    stop_grace_period: 1s
    init: true
"""
VARIABLES: dict[str, Any] = {
    "offline_rebuild_project_src": TARGET,
    "offline_rebuild_strategy": "build_once",
    "offline_rebuild_gate_timeout": 30,
}


class Mixed(Hosts):
    """Hosts of several runs under one name; the inventory is theirs together."""

    def __init__(self, name: str, runs: list[Hosts]) -> None:
        super().__init__(name, [host for run in runs for host in run])
        self.runs = runs

    def write_inventory(self) -> Path:
        """Merges the inventories of the runs; the hosts are called app1, app2, ..."""
        members: dict[str, Any] = {}
        for run in self.runs:
            group = yaml.safe_load(run.inventory.read_text(encoding="utf-8"))["all"]["children"][GROUP]
            for own in group["hosts"].values():
                members[f"app{len(members) + 1}"] = {**group["vars"], **own}
        self.directory.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({"all": {"children": {GROUP: {"hosts": members}}}}, sort_keys=False, width=200)
        self.inventory.write_text(f"---\n{text}", encoding="utf-8")
        return self.inventory

    def down(self) -> None:
        """Removes all of them."""
        for number in range(len(KINDS)):
            down(f"{self.name}-{number}")
        down(self.name)


def up(name: str, kinds: tuple[str, ...] = KINDS) -> Mixed:
    """Brings the hosts up, each kind ``engine:store:count`` as a run of its own."""

    def one(item: tuple[int, str]) -> Hosts:
        engine, store, count = item[1].split(":")
        return Hosts.up(f"{name}-{item[0]}", count=int(count), engine=engine, store=store, fresh=True)

    with ThreadPoolExecutor(max_workers=len(kinds)) as pool:
        fleet = Mixed(name, list(pool.map(one, enumerate(kinds))))
    fleet.write_inventory()
    return fleet


def get(name: str) -> Mixed:
    """The hosts that are up."""
    found = [Hosts.get(f"{name}-{number}") for number in range(len(KINDS))]
    return Mixed(name, found)


def install(fleet: Hosts, ballast: int = 0) -> None:
    """Builds base and application on the first host as on a connected machine, and brings both to every host.

    :param ballast: bytes that do not compress, in a layer of the base.
    """
    from tests.equality.bases import rootfs

    first = fleet[0]
    lines = ["FROM scratch", "ADD root.tar /", 'RUN ["/bin/busybox", "--install", "-s", "/bin"]']
    lines += [f"RUN head -c {ballast} /dev/urandom > /ballast"] if ballast else []
    with tempfile.TemporaryDirectory(prefix="offline-rebuild-shop-") as folder:
        base = Path(folder) / "base"
        base.mkdir()
        (base / "root.tar").write_bytes(rootfs())
        (base / "Dockerfile").write_text("\n".join([*lines, ""]), encoding="utf-8")
        first.put(base, "/srv/base")
        build = "DOCKER_BUILDKIT=1 BUILDX_NO_DEFAULT_ATTESTATIONS=1 docker build -q --network=none"
        first.ssh(f"{build} -t {BASE} /srv/base")
        write(first, "1 good")
        first.ssh(f"{build} -t {IMAGE} {TARGET} && docker save -o /srv/shop.tar {BASE} {IMAGE}")
        archive = Path(folder) / "shop.tar"
        with archive.open("wb") as stream:
            subprocess.run(
                ["ssh", *first.ssh_options(), f"root@{first.address}", "cat /srv/shop.tar"], stdout=stream, check=True
            )

        def one(host: Host) -> None:
            if host is not first:
                host.load(archive)
                write(host, "1 good")
            host.ssh(f"cd {TARGET} && docker compose up -d --no-build --pull never --wait 2>&1")

        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(one, fleet))


def write(host: Host, version: str) -> None:
    """Puts the tree on a host, with that text as its version; ``good`` in it is what the health check looks for."""
    files = {"Dockerfile": DOCKERFILE, "compose.yaml": COMPOSE, "app/version": version + "\n"}
    host.ssh(f"mkdir -p {TARGET}/app")
    for name, text in files.items():
        new = f"{TARGET}/{name}"
        host.ssh(f"cat > /srv/new && {{ cmp -s /srv/new {new} || cp /srv/new {new}; }}", input=text)


def main() -> int:
    """Runs one command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.hosts.mixed", description=__doc__)
    parser.add_argument("command", choices=("up", "install", "edit", "down"))
    parser.add_argument("name")
    options = parser.parse_args()
    try:
        if options.command == "up":
            up(options.name)
        elif options.command == "install":
            from .sample import write_variables

            fleet = get(options.name)
            install(fleet)
            write_variables(fleet, VARIABLES)
        elif options.command == "edit":
            for host in get(options.name):
                write(host, "2 good")
        else:
            Mixed(options.name, []).down()
    except (HostError, subprocess.CalledProcessError, ValueError) as error:
        print(f"hosts: {error} {getattr(error, 'stderr', '') or ''}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

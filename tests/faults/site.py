"""The project of the matrix on a test host: one service that is edited, one that never is, a volume with a marker."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.equality.bases import busybox
from tests.hosts import Host

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "shop"
SRC = "/srv/shop"
STATE = "/var/lib/offline-rebuild"
PORT = 18080
BASE = "ofr-fault-base:1"
APPLETS = "sh sleep cat wget httpd test true false touch kill echo mkdir dd rm date".split()
COMPOSE = f"""\
services:
  web:
    build: ./web
    restart: always
    stop_signal: SIGKILL
    volumes: ["data:/data"]
    ports: ["127.0.0.1:{PORT}:8080"]
  side:
    build: ./side
    command: [sleep, "100000"]
    restart: always
    stop_signal: SIGKILL
volumes:
  data:
"""
HEALTH = "HEALTHCHECK --interval=300s --retries=1 --timeout=2s CMD wget -q -O - http://127.0.0.1:8080/version"
DOCKERFILE = f"FROM {BASE}\n{HEALTH}\nCOPY app /app\nCMD sh /app/run.sh\n"
#: A RUN follows the change: the image is built, and the build takes as long as ``build.sh`` does.
BUILT = DOCKERFILE.replace("\nCMD", "\nRUN sh /app/build.sh\nCMD")
GOOD = "echo {version} > /www/version; echo {version} >> /data/log; exec httpd -f -p 8080 -h /www\n"
SIDE = f"FROM {BASE}\nCOPY app /app\n"
#: Both data folders on one small disk: the engine and containerd are held while it is mounted.
_ENGINE_HELD = """set -e
/usr/local/sbin/host-engine stop
touch /run/host/containerd.hold; pid=$(cat /run/host/containerd.pid); kill $pid
while [ -d /proc/$pid ]; do sleep 0.05; done
{change}
rm /run/host/containerd.hold
/usr/local/sbin/host-engine start
"""
_SMALL_ENGINE = """mkdir -p /mnt/engine && mount -t tmpfs -o size=640m tmpfs /mnt/engine
mkdir /mnt/engine/containerd && mount --bind /mnt/engine /var/lib/docker
mount --bind /mnt/engine/containerd /var/lib/containerd"""
_OWN_ENGINE = "umount -l /var/lib/containerd /var/lib/docker /mnt/engine"


def _small(ground: str, on: bool) -> str:
    if ground == "small engine":
        return _ENGINE_HELD.format(change=_SMALL_ENGINE if on else _OWN_ENGINE)
    small = f"mkdir -p {STATE} && mount -t tmpfs -o size=300m tmpfs {STATE}"
    return small if on else f"umount -l {STATE}"


class Site:
    """A host with the project on it, serving; ``version`` is what the tree says, ``live`` what last served."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.number = 0
        self.version = ""
        self.broken = False
        self.ground = "plain"

    # -- the host

    def to_ground(self, ground: str) -> None:
        """Another ground: where state or the engine's data lie on a small disk, or the host's own again."""
        if ground == self.ground:
            return
        for each in (self.ground, ground):
            if each != "plain":
                on = each == ground
                self.host.ssh(_small(each, on))
        self.ground, self.broken = ground, True

    def call(self, op: str, **given: Any) -> dict[str, Any]:
        """One operation of the host's driver."""
        full = {"op": op, "port": PORT, "request": self.request(), **given}
        done = self.host.ssh(["python3", "/opt/ofr/host_driver.py"], input=json.dumps(full), check=False)
        assert done.returncode == 0, f"{op}: {done.stderr}"
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    @staticmethod
    def request(**changed: Any) -> dict[str, Any]:
        checks = [{"url": f"http://127.0.0.1:{PORT}/version", "timeout": 2}]
        given = {"project_src": SRC, "project_name": PROJECT, "gate_timeout": 30, "operator": "ann", "change_id": "C1"}
        return {**given, "health_checks": checks, **changed}

    def write(self, files: Mapping[str, str]) -> None:
        """Files of the project."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for path, text in files.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(text.encode()), 0o644
                archive.addfile(entry, io.BytesIO(text.encode()))
        argv = ["ssh", *self.host.ssh_options(), f"root@{self.host.address}", f"tar -C {SRC} -xmf -"]
        subprocess.run(argv, input=stream.getvalue(), check=True, capture_output=True)

    # -- the project

    def install(self) -> None:
        """The core and the project, the images built and the services started as an operator would."""
        self.host.put(ROOT / "module_utils" / "offline_rebuild", "/opt/ofr/offline_rebuild", delete=True)
        self.host.put(Path(__file__).parent / "host_driver.py", "/opt/ofr/host_driver.py")
        self.host.ssh(["mkdir", "-p", SRC])
        self.start()

    def restart_engine(self) -> None:
        """As an operator does who was told to."""
        self.host.ssh("/usr/local/sbin/host-engine restart")
        self.host.wait_ready()

    def start(self) -> None:
        """From nothing to the first version, also after a row that went wrong."""
        self.host.ssh(
            f"cd {SRC} && if [ -e compose.yaml ]; then docker compose -p {PROJECT} down -v -t 0 2>/dev/null; fi;"
            f" docker ps -aq | xargs -r docker rm -f; docker images -aq | sort -u | xargs -r docker rmi -f;"
            f" rm -rf {STATE}/* /tmp/offline-rebuild* /var/tmp/watch {SRC}/*; mkdir -p /srv/base/bin"
        )
        self.host.put(busybox(), "/srv/base/bin/busybox")
        links = " ".join(APPLETS)
        self.host.ssh(
            f"cd /srv/base && mkdir -p www data tmp && cd bin && for a in {links}; do ln -sf busybox $a; done"
            f" && tar -C /srv/base -c . | docker import - {BASE} && rm -r /srv/base"
        )
        self.write({"compose.yaml": COMPOSE, "side/Dockerfile": SIDE, "side/app/one": "1\n"})
        self.good()
        self.host.ssh(
            f"cd {SRC} && export DOCKER_BUILDKIT=1 BUILDX_NO_DEFAULT_ATTESTATIONS=1"
            f" && for s in web side; do docker build -q --network=none -t {PROJECT}-$s $s; done"
            f" && docker compose -p {PROJECT} up -d --no-build --pull never"
            f" && docker exec {PROJECT}-web-1 sh -c 'date > /data/marker'"
        )

    def edit(self, script: str, dockerfile: str = DOCKERFILE, **files: str) -> str:
        """The next version of the service. :returns: its name."""
        self.number += 1
        self.version = f"v{self.number:03d}"
        tree = {"web/Dockerfile": dockerfile, "web/app/run.sh": script.format(version=self.version)}
        build = files.pop("build", "true")
        self.write({**tree, "web/app/build.sh": build + "\n", **{f"web/app/{n}": text for n, text in files.items()}})
        return self.version

    def good(self, **files: str) -> str:
        """A next version that serves."""
        return self.edit(GOOD, **files)

    def built(self, build: str = "true") -> str:
        """A next version that serves and needs a build."""
        return self.edit(GOOD, BUILT, build=build)

"""Runs on a test host, where there is neither pytest nor a build: one JSON request on stdin, one JSON answer on stdout.

Images are made by ``docker import`` of a static busybox and a script, ``<src>/<service>/run.sh``; the label ``mark``
holds the script's digest, so planning is: does the image behind the service's name carry the script's digest?
"""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, os.environ.get("OFFLINE_REBUILD_CORE", str(Path(__file__).parents[2] / "module_utils")))

from offline_rebuild import compose, run, swap, transaction
from offline_rebuild.cli import Docker
from offline_rebuild.errors import OfflineRebuildError
from offline_rebuild.plan import Plan, ServicePlan

#: A release of the journal, and none of the files beside it.
RELEASES = "*Z-??????.json"
APPLETS = ("sh", "sleep", "cat", "wget", "httpd", "test", "true", "false", "touch", "kill", "echo", "mkdir", "nc")


def rootfs(script: bytes, busybox: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("bin", "app", "tmp", "www", "data"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(busybox, "bin/busybox")
        for name in APPLETS:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
        entry = tarfile.TarInfo("app/run.sh")
        entry.size = len(script)
        tar.addfile(entry, io.BytesIO(script))
    return out.getvalue()


class Site:
    def __init__(self, request):
        self.request = request
        self.docker = Docker()
        given = {key: request[key] for key in ("compose_files", "env_files", "profiles", "services") if key in request}
        self.project = compose.load(self.docker, request["src"], project_name=request.get("project"), **given)
        options = dict(request.get("options", {}))
        wishes = {key: frozenset(names) for key, names in options.pop("wishes", {}).items()}
        self.options = transaction.Options(**options, wishes=swap.Wishes(**wishes))

    def script(self, service):
        return Path(self.project.src, service, "run.sh").read_bytes()

    def mark(self, service):
        return hashlib.sha256(self.script(service)).hexdigest()[:12]

    def image(self, service_plan):
        if self.request.get("make_delay"):
            time.sleep(self.request["make_delay"])
        done = self.docker.run(
            "import",
            "--change",
            f"LABEL mark={self.mark(service_plan.service)} offline-rebuild=test",
            "-",
            stdin=rootfs(self.script(service_plan.service), self.request["busybox"]),
        )
        return done.text.strip()

    def plan(self):
        images = {}
        for image in self.docker.inspect("image", [s.image for s in self.project.services]):
            images.update(dict.fromkeys(image["RepoTags"], image))
        states = compose.containers(self.docker, self.project)
        hashes = compose.comparable_hashes(self.docker, self.project, states)
        shots = compose.one_shots(self.project)
        plans = []
        for service in self.project.services:
            image = images.get(service.image) or {"Id": "", "Config": {"Labels": {}}}
            args = (image["Id"], states[service.name], hashes.get(service.name, ""), service.name in shots)
            reason = compose.service_state(service, *args)
            stale = service.build and (image["Config"]["Labels"] or {}).get("mark") != self.mark(service.name)
            action = "rebuild" if stale else "restart" if reason else "unchanged"
            plans.append(ServicePlan(service.name, service.image, action, image_before=image["Id"], reasons=(reason,)))
        info = self.docker.info()
        return Plan(self.project.name, info.version, info.store, tuple(plans))

    def status(self):
        states = compose.containers(self.docker, self.project)
        return {
            name: [
                {
                    "name": s.name,
                    "state": s.state,
                    "health": s.health,
                    "image": s.image_id,
                    "id": s.id,
                    "mark": self.docker.inspect("image", [s.image_id])[0]["Config"]["Labels"].get("mark", "")
                    if self.docker.inspect("image", [s.image_id])
                    else "gone",
                }
                for s in found
            ]
            for name, found in states.items()
        }


def op_run(request):
    site = Site(request)
    events = []
    began = time.monotonic()
    release = transaction.run(
        site.docker, site.project, site.plan, site.image, site.options, lambda name, text: events.append([name, text])
    )
    return {"release": release and release.to_dict(), "events": events, "seconds": time.monotonic() - began}


def op_kill(request):
    """Start a run and SIGKILL it when the journal first shows ``state`` and the shell command ``until`` succeeds (60 s
    at most), ``after`` seconds later."""
    child = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    child.stdin.write(json.dumps({**request, "op": "run"}).encode())
    child.stdin.close()
    folder = Path(request["options"]["state_dir"], "releases", request["project"])
    known = {path.name: path.stat().st_ino for path in folder.glob(RELEASES)}
    while child.poll() is None:
        for path in folder.glob(RELEASES):
            try:
                if path.stat().st_ino == known.get(path.name):
                    continue
                state = json.loads(path.read_text())["state"]
            except (OSError, ValueError, KeyError):
                continue
            if state == request["state"]:
                end = time.monotonic() + 60
                quiet = {"shell": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}
                while subprocess.run(request.get("until", "true"), **quiet).returncode and time.monotonic() < end:
                    time.sleep(0.05)
                time.sleep(request.get("after", 0))
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
                left = [json.loads(p.read_text())["state"] for p in folder.glob(RELEASES)]
                return {"killed": True, "left": left}
        time.sleep(0.001)
    return {"killed": False, "rc": child.returncode}


def op_plan(request):
    return {"plan": [[s.service, s.action, s.reasons[0]] for s in Site(request).plan().services]}


def op_status(request):
    return {"status": Site(request).status()}


def op_execute(request):
    """What the module does, with the real planner."""
    return run.execute(run.Request(**request["request"])).to_dict()


def op_services(request):
    return {"services": [asdict(s) for s in Site(request).project.services]}


def op_base(request):
    """Make the base image that Dockerfiles of a test start from."""
    data = rootfs(b"", request["busybox"])
    return {
        "id": Docker().run("import", "--change", "LABEL offline-rebuild=test", "-", request["name"], stdin=data).text
    }


def main():
    request = json.load(sys.stdin)
    try:
        answer = globals()["op_" + request["op"]](request)
    except OfflineRebuildError as error:
        answer = {"error": error.to_dict()}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()

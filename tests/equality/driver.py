"""Runs on a test host (Python and a docker CLI, nothing else): one JSON job on stdin, one JSON answer on stdout.

``build``: ordinary builds, two at a time, and what is in their images. ``rebuild``: plan and make offline, with the
core in the folder that ``CORE`` names, and what is in the images that came of it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

CORE = os.environ.get("OFFLINE_REBUILD_CORE", "/opt/ofr")
#: What an engine puts into every container, and not into an image.
STUBS = ("dev", "proc", "sys", "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab", ".dockerenv")
KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}
CONFIG = "Env Cmd Entrypoint WorkingDir User Labels ExposedPorts Volumes OnBuild Healthcheck StopSignal Shell".split()


def docker(*argv: str, **environment: str) -> str:
    done = subprocess.run(
        ["docker", *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
    )
    if done.returncode:
        raise RuntimeError(f"docker {argv[0]}: {done.stderr.decode('utf-8', 'replace')[-2500:]}")
    return done.stdout.decode("utf-8", "surrogateescape")


class Engine(http.client.HTTPConnection):
    """The engine's API over its socket: a snapshot costs four requests and no process."""

    def __init__(self) -> None:
        super().__init__("localhost", timeout=300)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect("/var/run/docker.sock")

    def ask(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        text = None if body is None else json.dumps(body)
        self.request(method, path, text, {"Content-Type": "application/json"})
        answer = self.getresponse()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.read().decode('utf-8', 'replace')}")
        return answer


def snapshot(image: str) -> dict[str, Any]:
    """``files``: path to [type, mode, uid, gid, content or link, xattrs]; ``config``: what containers get of it."""
    engine = Engine()
    body = {"Image": image, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}
    container = json.loads(engine.ask("POST", "/containers/create", body).read())["Id"]
    try:
        with engine.ask("GET", f"/containers/{container}/export") as stream:
            files = _files(stream)
            stream.read()
    finally:
        engine.close()
        engine.ask("DELETE", f"/containers/{container}?force=1").read()
    found = json.loads(engine.ask("GET", f"/images/{image}/json").read())
    engine.close()
    config = {key: found["Config"].get(key) or None for key in CONFIG}
    labels = {k: v for k, v in (config["Labels"] or {}).items() if not k.startswith("com.docker.compose.")}
    config["Labels"] = labels or None
    config["Platform"] = [found["Os"], found["Architecture"], found.get("Variant") or ""]
    return {"files": files, "config": config, "layers": len(found["RootFS"]["Layers"])}


def _files(stream: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:
        for entry in archive:
            path = entry.name.strip("/")
            if path in STUBS or path.startswith(tuple(stub + "/" for stub in STUBS)):
                continue
            xattrs = sorted((k[13:], v) for k, v in entry.pax_headers.items() if k.startswith("SCHILY.xattr."))
            if entry.islnk():
                target = entry.linkname.strip("/")
                found[path] = found.get(target, ["link", 0, 0, 0, target, []])
                continue
            kind = KINDS.get(entry.type, repr(entry.type))
            value = entry.linkname if kind == "symlink" else f"{entry.devmajor},{entry.devminor}"
            if kind == "file":
                source = archive.extractfile(entry)
                assert source is not None
                value = hashlib.sha256(source.read()).hexdigest()
            elif kind in ("dir", "fifo"):
                value = ""
            found[path] = [kind, oct(entry.mode), entry.uid, entry.gid, value, xattrs]
    return found


# --- ordinary builds


def build_argv(job: dict[str, Any]) -> list[str]:
    argv = ["build", "--progress=plain", "-t", job["tag"], "-f", os.path.join(job["context"], job["dockerfile"])]
    for key, value in job["args"].items():
        argv += ["--build-arg", f"{key}={value}"]
    for key, value in job["labels"].items():
        argv += ["--label", f"{key}={value}"]
    for name, path in job["secrets"].items():
        argv += ["--secret", f"id={name},src={os.path.join(job['context'], path)}"]
    if job["target"]:
        argv += ["--target", job["target"]]
    if job.get("no_cache"):
        argv.append("--no-cache")
    return [*argv, job["context"]]


def build(job: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    try:
        if job.get("compose"):
            docker("compose", "-f", job["compose"], "build", "untouched", DOCKER_BUILDKIT="1")
        else:
            docker(*build_argv(job), DOCKER_BUILDKIT="1")
        answer = snapshot(job["tag"]) if job.get("snapshot") else {}
    except (RuntimeError, tarfile.TarError) as error:
        return {"error": str(error)}
    return {**answer, "seconds": round(time.monotonic() - began, 2)}


def build_all(request: dict[str, Any]) -> dict[str, Any]:
    with ThreadPoolExecutor(max_workers=request.get("workers", 2)) as pool:
        return dict(zip([job["id"] for job in request["jobs"]], pool.map(build, request["jobs"])))


# --- offline


class Offline:
    """Plans and makes one case after the other. What is made is removed before the next plan, as in a real run."""

    def __init__(self, state: str) -> None:
        sys.path.insert(0, CORE)
        sys.dont_write_bytecode = True
        from offline_rebuild import compose, planner
        from offline_rebuild.cli import Docker
        from offline_rebuild.errors import OfflineRebuildError
        from offline_rebuild.image import ImageStore

        self.compose, self.planner, self.docker, self.error = compose, planner, Docker(), OfflineRebuildError
        self.docker.require()
        # Nothing runs on this host, and no service is started: two questions per plan that need not be asked.
        compose.containers = lambda *_: {}
        compose.config_hashes = lambda *_: {}
        self.state = state
        self.images = ImageStore(self.docker)
        self.listed = dict(self.images._load_all())
        self.modes = "exact"

    def case(self, case: dict[str, Any]) -> dict[str, Any]:
        """Per edit and mode (``fresh``: no record; ``primed``: the untouched tree was recorded) what came of it."""
        try:
            self.modes = case["modes"]
            if self.modes == "image":  # as a FAT stick leaves them
                subprocess.run(["chmod", "-R", "0777", case["project"]], check=True)
            project = self.compose.load(self.docker, case["project"], project_name=case["name"])
        except self.error as error:
            return {"prime": {"error": str(error), "code": error.code}}
        primed = os.path.join(self.state, case["name"], "primed")
        answers = {"prime": self.guarded(lambda: self.prime(project, primed))}
        known: dict[str, Any] = {}
        for edit in case["edits"]:
            for mode in edit["modes"]:
                state = os.path.join(self.state, case["name"], f"{edit['name']}-{mode}")
                if mode == "primed":
                    shutil.copytree(primed, state, dirs_exist_ok=True)
                answer = self.guarded(lambda: self.edit(edit, project, state, mode, known))  # noqa: B023
                answers[f"{edit['name']}/{mode}"] = answer
        with open(os.path.join(self.state, case["name"], "answers.json"), "w", encoding="utf-8") as handle:
            json.dump(answers, handle)
        return answers

    def guarded(self, work: Any) -> dict[str, Any]:
        began = time.monotonic()
        try:
            answer: dict[str, Any] = work()
        except self.error as error:
            answer = {"error": str(error), "code": error.code}
        except Exception:  # noqa: BLE001  (a traceback is a defect of the core: it is reported as one)
            answer = {"error": traceback.format_exc(), "code": "traceback"}
        return {**answer, "seconds": round(time.monotonic() - began, 2)}

    def planner_for(self, edit: str, project: Any, state: str, evidence: str, cheapest: str = "assemble") -> Any:
        """A planner for one edit. All share what was read of the images: what is made is gone before the next."""
        settings = self.planner.Settings(
            state_dir=state,
            build_args={},
            evidence=evidence,
            may_write=True,
            cheapest=cheapest,
            modes=self.modes,
        )
        made = self.planner.Planner(self.docker, project, settings, {edit})
        made.store = self.images
        return made

    def prime(self, project: Any, state: str) -> dict[str, Any]:
        os.makedirs(state, exist_ok=True)
        planner = self.planner_for("untouched", project, state, "assumed")
        return {"primed": [list(item) for item in planner.prime()]}

    def edit(self, edit: dict[str, Any], project: Any, state: str, mode: str, known: dict[str, Any]) -> dict[str, Any]:
        planner = self.planner_for(edit["name"], project, state, "recorded" if mode == "refused" else "assumed")
        plan = planner.plan()
        service = plan.services[0]
        answer: dict[str, Any] = {"plan": plan.to_dict()["services"][0]}
        if service.action in ("unchanged", "restart"):
            image = service.image_before
            if image not in known:
                known[image] = snapshot(image)
            answer.update(known[image])
        elif service.action == "rebuild" and mode in edit["make"]:
            answer.update(self.made(planner, service, True))
            answer["ways"] = {service.way: True, **self.other_ways(edit, project, state, service.way)}
        return answer

    def made(self, planner: Any, service: Any, natural: bool) -> dict[str, Any]:
        began = time.monotonic()
        try:
            image = planner.make(service)
            answer = {**snapshot(image), "made_in": round(time.monotonic() - began, 2)}
            # the way that a run would take; it costs a plan that knows nothing yet
            return {**answer, "again": self.again(planner, service, image)} if natural else answer
        finally:
            planner.clean()
            self.images._by_ref = dict(self.listed)  # what was made is gone

    def again(self, planner: Any, service: Any, image: str) -> str:
        """:returns: what the next run does when the service's name stands for what was made, and why."""
        docker("tag", image, service.image)
        try:
            next_one = self.planner.Planner(self.docker, planner.project, planner.settings, {service.service})
            found = next_one.plan().services[0]
        finally:
            if service.image_before:
                docker("tag", service.image_before, service.image)
            else:
                docker("image", "rm", "--no-prune", service.image)
        return found.action if found.action in ("unchanged", "restart") else f"{found.action}: {found.reasons}"

    def other_ways(self, edit: dict[str, Any], project: Any, state: str, natural: str) -> dict[str, Any]:
        """The same image by each dearer way that applies."""
        found: dict[str, Any] = {}
        for way in ("thin graft", "graft"):
            if natural not in ("assemble", "thin graft") or way == natural:
                continue
            planner = self.planner_for(edit["name"], project, state, "assumed", way)
            service = planner.plan().services[0]
            if service.action == "rebuild" and service.way == way:
                found[way] = self.guarded(lambda: self.made(planner, service, False))  # noqa: B023
        return found


def rebuild_all(request: dict[str, Any]) -> dict[str, Any]:
    shutil.rmtree(request["state"], ignore_errors=True)
    offline = Offline(request["state"])
    before = sorted(docker("image", "ls", "-aq", "--no-trunc").split())
    answers = {case["name"]: offline.case(case) for case in request["cases"]}
    left = set(docker("image", "ls", "-aq", "--no-trunc").split()) - set(before)
    return {"cases": answers, "left": sorted(left)}


def main() -> None:
    request = json.load(sys.stdin)
    answer = {"build": build_all, "rebuild": rebuild_all}[request["action"]](request)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()

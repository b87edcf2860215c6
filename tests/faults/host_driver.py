"""Runs on a test host, where there is neither pytest nor Ansible: one JSON request on stdin, one JSON answer on stdout.

The product has no hook for tests. Its journal names each step before it acts, so a fault is timed by following the
journal: when a release shows the state asked for, the run is stopped, killed, or something is done to the host.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
CORE = os.environ.get("OFFLINE_REBUILD_CORE", "/opt/ofr")
sys.path.insert(0, CORE)

STATE = Path("/var/lib/offline-rebuild")
REGISTRY = "127.0.0.1:9/"
WATCH = Path("/var/tmp/watch")
#: Seconds in which a state of the journal must come.
PATIENCE = 90.0
Answer = dict[str, Any]


class Engine(http.client.HTTPConnection):
    """The engine's API over its socket."""

    def __init__(self) -> None:
        super().__init__("localhost", timeout=60)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/run/docker.sock")


def ask(path: str) -> Any:
    engine = Engine()
    engine.request("GET", path)
    return json.load(engine.getresponse())


def releases(given: Answer) -> Path:
    return STATE / "releases" / given["request"]["project_name"]


# -- runs


def op_run(given: Answer) -> Answer:
    """One run of the core, as the module does it."""
    from offline_rebuild.errors import OfflineRebuildError
    from offline_rebuild.run import Request, execute

    try:
        return execute(Request(**given["request"])).to_dict()
    except OfflineRebuildError as error:
        return {"failed": True, "changed": False, "error": error.to_dict(), "msg": str(error)}


def op_fault(given: Answer) -> Answer:
    """A run, and what is done to it when the journal first shows ``state`` (for ``after`` seconds).

    ``do`` lists the steps: ``stop``, ``continue``, ``kill`` (of the run), ``until SHELL`` (waits until that succeeds),
    ``reached PATH`` (makes a file, and waits until it is gone again), anything else is a line for the shell.
    """
    known = _inodes(given)
    answer = Path("/var/tmp/answer")
    with answer.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True
        )
    assert child.stdin is not None
    child.stdin.write(json.dumps({"op": "run", "request": given["request"]}).encode())
    child.stdin.close()
    hit = _follow(given, child, known)
    said = []
    if hit:
        time.sleep(given.get("after", 0))
        for step in given["do"]:
            said.append(_step(step, child))
    rc = child.wait()
    text = answer.read_text()
    result = json.loads(text) if rc == 0 else {"rc": rc, "text": text[-2000:]}
    return {"hit": hit, "said": said, "killed": rc == -signal.SIGKILL, "result": result, "left": _left(given)}


def _inodes(given: Answer) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in releases(given).glob("*Z-??????.json")}


def _follow(given: Answer, child: subprocess.Popen[bytes], known: dict[str, int]) -> bool:
    end = time.monotonic() + PATIENCE
    while child.poll() is None and time.monotonic() < end:
        if _state(given, known) == given["state"]:
            return True
        time.sleep(0.0005)
    return False


def _state(given: Answer, known: dict[str, int]) -> str:
    """The state of the newest release that was written since; ``locked`` when there is none yet, but a lock."""
    for path in sorted(releases(given).glob("*Z-??????.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if path.stat().st_ino != known.get(path.name):
                return str(json.loads(path.read_text())["state"])
    return "locked" if list((STATE / "locks").glob("*.lock/owner.json")) else ""


def _left(given: Answer) -> list[str]:
    found = []
    for path in sorted(releases(given).glob("*Z-??????.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found.append(str(json.loads(path.read_text())["state"]))
    return found


def _step(step: str, child: subprocess.Popen[bytes]) -> str:
    if step == "stop":
        child.send_signal(signal.SIGSTOP)
    elif step == "continue":
        child.send_signal(signal.SIGCONT)
    elif step == "kill":
        child.kill()
    elif step.startswith("until "):
        end = time.monotonic() + PATIENCE
        while subprocess.run(["sh", "-c", step[6:]], capture_output=True).returncode:
            if time.monotonic() > end:
                return f"never: {step}"
            time.sleep(0.01)
    elif step.startswith("reached "):
        path = Path(step[8:])
        path.touch()
        while path.exists():
            time.sleep(0.005)
    else:
        done = subprocess.run(["sh", "-c", step], capture_output=True, text=True)
        return f"{done.returncode} {done.stdout}{done.stderr}"
    return ""


def op_cut(given: Answer) -> Answer:
    """Wait for a state, then end the SSH connection that the run came by: the lock names the run's process."""
    end = time.monotonic() + PATIENCE
    known = given["known"]
    while _state(given, known) != given["state"]:
        if time.monotonic() > end:
            return {"hit": False}
        time.sleep(0.0005)
    (owner,) = (STATE / "locks").glob("*.lock/owner.json")
    pid = int(json.loads(owner.read_text())["pid"])
    line = []
    while pid > 1:
        name, parent = _process(pid)
        line.append(name)
        if name.startswith("sshd") and parent > 1 and _process(parent)[0].startswith("sshd"):
            os.kill(pid, signal.SIGKILL)
            return {"hit": True, "line": line}
        pid = parent
    return {"hit": False, "line": line}


def op_known(given: Answer) -> Answer:
    return {"known": _inodes(given)}


def _process(pid: int) -> tuple[str, int]:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
    return fields[0].split("(", 1)[1], int(fields[1].split()[1])


# -- what is there


def op_watch(given: Answer) -> Answer:
    """Ask the service all the time, in a process of its own that lives until ``op_watched``."""
    WATCH.mkdir(exist_ok=True)
    pid = os.fork()
    if pid:
        (WATCH / "pid").write_text(str(pid))
        return {}
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    with (WATCH / "log").open("a") as log:
        before = None
        while True:
            answer = served(given["port"])
            if answer != before:
                log.write(f"{time.time():.3f} {answer}\n")
                log.flush()
                before = answer
            time.sleep(0.02)


def op_watched(_given: Answer) -> Answer:
    """:returns: what was served from when on, and the longest time in which nothing was."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((WATCH / "pid").read_text()), signal.SIGKILL)
    lines = [line.split(" ", 1) for line in (WATCH / "log").read_text().splitlines()]
    (WATCH / "log").unlink()
    log = [(float(when), what.strip()) for when, what in lines]
    longest, since = 0.0, None
    for when, what in [*log, (time.time(), "end" if log and log[-1][1] else "")]:
        if what and since is not None:
            longest, since = max(longest, when - since), None
        elif not what and since is None:
            since = when
    if since is not None:
        longest = max(longest, time.time() - since)
    return {"outage": round(longest, 2), "served": [what for _, what in log if what]}


def served(port: int, timeout: float = 0.3) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", "/version")
        answer = connection.getresponse()
        return answer.read(100).decode("utf-8", "replace").strip() if answer.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def op_look(given: Answer) -> Answer:
    """What a row is judged by."""
    project = given["request"]["project_name"]
    answer, end = served(given["port"], 2), time.monotonic() + given.get("patience", 0)
    while not answer and time.monotonic() < end:
        time.sleep(0.1)
        answer = served(given["port"], 2)
    images = ask("/images/json?all=1")
    containers = ask("/containers/json?all=1")
    names = [name for image in images for name in image["RepoTags"] or ()]
    mine, strange = {}, []
    for each in containers:
        labels = each["Labels"]
        service = labels.get("com.docker.compose.service", "")
        name = each["Names"][0].lstrip("/")
        if labels.get("com.docker.compose.project") == project and name == f"{project}-{service}-1":
            mine[service] = {"id": each["Id"], "image": each["ImageID"], "state": each["State"]}
        else:
            strange.append(f"container {name} of {each['Image']}")
    strange += [f"graft {name}" for name in names if name.startswith(REGISTRY)]
    strange += [f"image {i['Id'][:19]} without a name" for i in images if not _named(i)]
    strange += [f"file {path}" for path in _files_left()]
    strange += [f"process {line}" for line in _processes_left()]
    volume = ask(f"/volumes/{project}_data")
    marker = Path(volume["Mountpoint"], "marker")
    return {
        "served": answer,
        "services": mine,
        "strange": strange,
        "volume": [volume["CreatedAt"], marker.read_text() if marker.exists() else ""],
        "states": _left(given),
        "audit": op_audit({})["size"],
    }


def _named(image: Answer) -> bool:
    return any("<none>" not in name for name in image["RepoTags"] or ())


def _files_left() -> list[str]:
    left = [str(path) for path in Path("/tmp").glob("offline-rebuild*")]
    patterns = ("*.tmp", ".tmp-*", "reserve", "pregate*", "work/*", "locks/*.lock", "locks/*.lock.*")
    return left + [str(path) for pattern in patterns for path in STATE.rglob(pattern)]


def _processes_left() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode("utf-8", "replace").split("\0")
            program = words[0].rsplit("/", 1)[-1]
            if (
                program in ("docker", "docker-compose", "docker-buildx") and "events" not in words
            ):  # that ends by itself
                found.append(" ".join(words)[:120])
    return found


def op_audit(given: Answer) -> Answer:
    """The lines of the audit log from an offset on, and its size."""
    try:
        data = (STATE / "audit.log").read_bytes()
    except FileNotFoundError:
        data = b""
    lines = data[given.get("offset", 0) :].decode("utf-8", "replace").splitlines()
    return {"size": len(data), "lines": lines}


def op_check(given: Answer) -> Answer:
    """A run in check mode, and what it changed on the host."""
    before = _listing(given)
    answer = op_run({"request": {**given["request"], "check": True}})
    after = _listing(given)
    return {"answer": answer, "touched": sorted(before ^ after)}


def _listing(given: Answer) -> set[str]:
    lines = set()
    for top in (given["request"]["project_src"], STATE):
        for folder, _, files in os.walk(top):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                at = os.lstat(path)
                lines.add(f"{path} {at.st_mode} {at.st_size} {at.st_mtime_ns} {at.st_ctime_ns} {at.st_ino}")
    lines |= {f"/tmp/{name}" for name in os.listdir("/tmp")}
    lines |= {f"{image['Id']} {sorted(image['RepoTags'] or [])}" for image in ask("/images/json?all=1")}
    lines |= {f"{each['Id']} {each['Names']} {each['ImageID']}" for each in ask("/containers/json?all=1")}
    lines |= {volume["Name"] for volume in ask("/volumes")["Volumes"] or []}
    return lines | {network["Id"] for network in ask("/networks")}


def main() -> None:
    given = json.load(sys.stdin)
    json.dump(globals()["op_" + given["op"]](given), sys.stdout)


if __name__ == "__main__":
    main()

"""Thin layers against ``docker build`` with a warm cache, in pairs on one host: ``make bench-thin``.

Trees of 300, 3,000 and 30,000 files (7, 70, 700 MB) under ``COPY . .``; each round changes one file. Ours: a fresh
Python that plans and makes the image as the module does (imports, ``docker info``, ``compose config``, listing, scan,
layer, ``docker load``), without ``compose up``. The other: ``docker build`` of the same edit on the same host, its
cache warm from the round before. Medians of ``ROUNDS`` rounds go to ``results/bench-thin.json``:

``ratio_N``       ours against ``docker build``
``bytes_written`` the archive that is loaded, at 30,000 files
``growth``        ours without the time that it waits for the scan of the context, 30,000 files against 300

``PROFILE=1`` prints where ours spends its time at the largest tree.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SIZES = tuple(int(text) for text in os.environ.get("SIZES", "300 3000 30000").split())
FILE = 23_500  # bytes: 30,000 of these are 700 MB
CORE = "/opt/ofr-bench"
WORK = "/srv/bench-thin"
BASE = "127.0.0.1:9/bench-thin/base:1"
#: Under this address, so that it is no ancestor: on an air-gapped host there would be no such image.
WARM = "127.0.0.1:9/bench-thin/warm:1"
OURS = "127.0.0.1:9/bench-thin/ours:1"
FOLDER = 100  # files in one

# --- on the host ------------------------------------------------------------------------------------------------------


def ours(project: str, state: str, prime: bool) -> dict[str, Any]:
    """What the module does from its start to the loaded image; times in seconds."""
    began = time.monotonic()
    sys.path.insert(0, CORE)
    from offline_rebuild import ahead, compose, context, graft
    from offline_rebuild.cli import Docker
    from offline_rebuild.image import ImageStore
    from offline_rebuild.later import Later
    from offline_rebuild.planner import Planner, Settings

    found: dict[str, Any] = {"scan": 0.0, "bytes": 0}
    scan, archive = context.Context.manifest, graft.write_archive
    take = ahead.Ahead.take

    def timed(self: Any, prefix: str = "") -> Any:
        if threading.current_thread() is not threading.main_thread():
            return scan(self, prefix)  # beside the CLI: what is waited for is counted
        start = time.monotonic()
        try:
            return scan(self, prefix)
        finally:
            found["scan"] += time.monotonic() - start

    def counted(stream: Any, image: Any) -> None:
        archive(stream, image)
        found["bytes"] += stream.tell()

    def waited(*args: Any) -> Any:
        start = time.monotonic()
        try:
            return take(*args)
        finally:
            found["scan"] += time.monotonic() - start

    context.Context.manifest, graft.write_archive = timed, counted  # type: ignore[method-assign]
    ahead.Ahead.take = waited  # type: ignore[method-assign]
    docker = Docker()
    store = Later(lambda: ImageStore(docker))
    info = Later(docker.require)
    loaded = Later(lambda: compose.load(docker, project))
    scanned = ahead.Ahead(state, [project], may_write=True)
    info.result()
    settings = Settings(state, {}, may_write=True)
    planner = Planner(docker, loaded.result(), settings, store=store.result(), ahead=scanned)
    if prime:
        found["primed"] = planner.prime()
        return found
    plan = planner.plan().services[0]
    found.update(plan=time.monotonic() - began, way=plan.way, reasons=list(plan.reasons), reused=plan.reused)
    found["id"] = planner.make(plan) if plan.action == "rebuild" else plan.image_before
    docker.run("tag", found["id"], OURS)  # as the swap does before the working name goes
    planner.clean()
    found["total"] = time.monotonic() - began
    return found


def run(*argv: str) -> float:
    """Runs a command. :returns: the seconds it took."""
    start = time.monotonic()
    done = subprocess.run(argv, capture_output=True, check=False, env={**os.environ, "DOCKER_BUILDKIT": "1"})
    took = time.monotonic() - start
    if done.returncode:
        raise SystemExit(f"{argv}: {done.stderr.decode()[-2000:]}")
    return took


def fresh(folder: Path, *more: str) -> dict[str, Any]:
    """Ours in a process of its own; ``wall`` includes the start of Python."""
    start = time.monotonic()
    argv = [sys.executable, *more, __file__, "ours", str(folder)]
    done = subprocess.run(argv, capture_output=True, check=False, text=True)
    wall = time.monotonic() - start
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return {**json.loads(done.stdout.splitlines()[-1]), "wall": wall}


def make_tree(folder: Path, files: int) -> None:
    chance = random.Random(files)
    for number in range(files):
        path = folder / "tree" / f"part{number // FOLDER // 20}" / f"d{number // FOLDER}" / f"file-{number:05}.py"
        if number % FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(FILE))
    text = f'FROM {BASE}\nWORKDIR /app\nCOPY . .\nCMD ["sh"]\n'
    folder.joinpath("Dockerfile").write_text(text)
    compose = {"services": {"app": {"image": f"bench-thin:{files}", "build": {"context": "tree"}}}}
    compose["services"]["app"]["build"]["dockerfile"] = str(folder / "Dockerfile")  # type: ignore[index]
    folder.joinpath("compose.yaml").write_text(json.dumps({"name": "bench", **compose}))


def content(image: str, path: str) -> bytes:
    """A file of an image, out of ``docker cp``."""
    argv = ["docker", "create", "--network=none", image, "true"]
    name = subprocess.run(argv, capture_output=True, check=True, text=True).stdout.strip()
    archive = subprocess.run(["docker", "cp", f"{name}:{path}", "-"], capture_output=True, check=True).stdout
    run("docker", "rm", name)
    return archive


def drop_dangling() -> None:
    """What an earlier round left without a name would be an ancestor: on an air-gapped host it is not there."""
    listed = subprocess.run(
        ["docker", "images", "-q", "-f", "dangling=true"], capture_output=True, check=True, text=True
    )
    for image in set(listed.stdout.split()):
        subprocess.run(["docker", "image", "rm", image], capture_output=True, check=False)


def measure(files: int, rounds: int, profile: bool) -> dict[str, Any]:
    """The rounds of one size."""
    folder = Path(WORK, str(files))
    shutil.rmtree(folder, ignore_errors=True)
    make_tree(folder, files)
    build = ["docker", "build", "-q", "--network=none", "-f", str(folder / "Dockerfile")]
    run(*build, "-t", f"bench-thin:{files}", str(folder / "tree"))
    primed = json.loads(
        subprocess.run([sys.executable, __file__, "prime", str(folder)], capture_output=True, check=True).stdout
    )
    rows = []
    path = sorted(folder.rglob("file-*.py"))[files // 2]
    for number in range(rounds + 1):
        path.write_bytes(f"# changed in round {number}\n".encode() + bytes(FILE))
        drop_dangling()
        mine = fresh(folder)
        inside = "/app/" + path.relative_to(folder / "tree").as_posix()
        mine["right"] = f"# changed in round {number}\n".encode() in content(mine["id"], inside)
        theirs = run(*build, "-t", WARM, str(folder / "tree"))
        load = os.getloadavg()[0]
        if number:  # the first round warms both sides
            rows.append({"ours": mine, "docker_build": theirs, "load": load})
            print(json.dumps({"files": files, **rows[-1]}), file=sys.stderr, flush=True)
    text = ""
    if profile:
        path.write_bytes(b"# profiled\n")
        file = str(folder / "profile")
        fresh(folder, "-m", "cProfile", "-o", file)
        show = f"import pstats; pstats.Stats({file!r}).sort_stats('cumtime').print_stats(45)"
        text = subprocess.run([sys.executable, "-c", show], capture_output=True, check=True, text=True).stdout
    drop_dangling()
    run("docker", "image", "rm", WARM, OURS, f"bench-thin:{files}")
    shutil.rmtree(folder)
    return {"rows": rows, "primed": primed["primed"], "profile": text}


def on_host() -> None:
    what, where = sys.argv[1], sys.argv[2]
    if what in ("ours", "prime"):
        print(json.dumps(ours(where, str(Path(where, "state")), what == "prime")))
        return
    folder = Path(WORK, "base")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(CORE, "rootfs.tar"), folder)
    folder.joinpath("Dockerfile").write_text("FROM scratch\nADD rootfs.tar /\n")
    run("docker", "build", "-q", "-t", BASE, str(folder))
    print(json.dumps(measure(int(where), ROUNDS, bool(os.environ.get("PROFILE")))))


# --- on the control side ----------------------------------------------------------------------------------------------


def main() -> None:
    """Run the rounds on one host and print the ratios."""
    from tests.equality.bases import rootfs
    from tests.hosts import Hosts
    from tests.unit.figures import record

    root = Path(__file__).resolve().parent.parent
    engine, store = os.environ.get("ENGINE", "trixie"), os.environ.get("STORE", "classic")
    with Hosts.up(os.environ.get("NAME", "bench-thin"), count=1, engine=engine, store=store) as hosts:
        host = hosts[0]
        with tempfile.TemporaryDirectory(prefix="bench-thin-") as folder:
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / "module_utils/offline_rebuild", Path(folder, "offline_rebuild"), ignore=skip)
            shutil.copy(__file__, folder)
            Path(folder, "rootfs.tar").write_bytes(rootfs())
            host.put(folder, CORE, delete=True)
        found = {}
        for files in SIZES:
            profile = "PROFILE=1 " if os.environ.get("PROFILE") and files == max(SIZES) else ""
            argv = f"{profile}ROUNDS={ROUNDS} python3 {CORE}/bench_thin.py measure {files}"
            done = host.ssh(argv, timeout=1800)
            print(done.stderr, end="", flush=True)
            found[files] = json.loads(done.stdout)
            print(found[files]["profile"], end="")
        version = host.docker("version", "--format", "{{.Server.Version}}")

    def median(files: int, key: str) -> float:
        rows = found[files]["rows"]
        return statistics.median(row[key] if key in row else row["ours"][key] for row in rows)

    def without_scan(files: int) -> float:
        return statistics.median(row["ours"]["wall"] - row["ours"]["scan"] for row in found[files]["rows"])

    rows = [row for each in found.values() for row in each["rows"]]
    if any(row["ours"]["way"] != "assemble" or not row["ours"]["right"] for row in rows):
        raise SystemExit(f"not every round was assembled, or with the wrong file: {[row['ours'] for row in rows]}")
    figures: dict[str, float | str] = {}
    for files in SIZES:
        figures[f"ratio_{files}"] = round(median(files, "wall") / median(files, "docker_build"), 4)
        figures[f"ours_{files}"] = round(median(files, "wall"), 3)
        figures[f"docker_build_{files}"] = round(median(files, "docker_build"), 3)
        figures[f"without_scan_{files}"] = round(without_scan(files), 3)
    figures["bytes_written"] = max(row["ours"]["bytes"] for row in found[max(SIZES)]["rows"])
    figures["growth"] = round(without_scan(max(SIZES)) / without_scan(min(SIZES)), 3)
    figures["load"] = round(statistics.median(row["load"] for row in rows), 1)
    record("bench-thin", **figures, rounds=ROUNDS, machine=os.uname().machine, engine=version, store=store)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        on_host()
    else:
        main()

"""Cost of the context digest: ``make bench-context``.

On a made tree of 30,000 files and 700 MB, medians of five, taken in turns so that a busy machine hits all alike:

* cold: digest with no stat index, against ``find -type f | xargs sha256sum`` (both as whole processes, cache warm);
* warm: digest with a stat index, against a bare ``os.scandir`` walk with stat (both inside a fresh process), and
  against ``docker build`` with nothing changed (both as whole processes);
* peak memory (``ru_maxrss``, the interpreter included) of a cold and a warm run over 100,000 files.

Prints a table and writes results/bench-context.json. OFFLINE_REBUILD_BENCH_DIR names the place for the trees (the
temporary directory if not set); needs 1.5 GB there and as much under the engine's root. The engine keeps the layer in
its build cache afterwards: only its owner may prune that.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.unit.figures import record  # noqa: E402

RUNS = 5
FILES, BYTES = 30_000, 700_000_000
MANY = 100_000
IMAGE = "ofr-bench-context"
AIMS = {"cold_ratio": 0.5, "warm_ratio_walk": 2, "warm_ratio_build": 0.2, "peak_mb_100k": 64}
IGNORE = ".git\n**/*.pyc\n**/__pycache__\nnode_modules\n*.md\n!README.md\n.env*\n**/.DS_Store\ndist\nbuild/*\n"

# Runs in a process of its own: argv is mode, tree, index. Prints seconds, peak in MB, and a check value.
CHILD = r"""
import os, resource, sys, time
mode, tree, index = sys.argv[1:]
began = time.perf_counter()
if mode == "walk":
    count, waiting = 0, [tree]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                entry.stat(follow_symlinks=False)
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    value = str(count)
else:
    from module_utils.offline_rebuild.context import Context
    from module_utils.offline_rebuild.ignorefile import load
    from module_utils.offline_rebuild.statindex import StatIndex
    began = time.perf_counter()
    context = Context(tree, load(tree, tree + "/Dockerfile"), StatIndex(index))
    value = context.manifest().digest()
    if mode == "warm" and context.files_read:
        raise SystemExit(f"the warm run read {context.files_read} files")
elapsed = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * min(3, os.cpu_count() - 1)  # the other readers
print(elapsed, peak / 1024, value)
"""


def make_tree(root: Path, files: int, size: int) -> None:
    """Files of an exponential size distribution, 20 to a directory, with the ignore file of a usual project."""
    dice = random.Random(7)
    pool = dice.randbytes(400_000)
    mean = size / files
    for number in range(files):
        if number % 20 == 0:
            directory = root / f"package{number // 1000:03d}" / f"module{number // 20 % 50:02d}"
            directory.mkdir(parents=True, exist_ok=True)
        length = min(300_000, int(dice.expovariate(1 / mean))) if mean else 0
        start = dice.randrange(100_000)
        (directory / f"file_{number}.py").write_bytes(b"%d\n" % number + pool[start : start + length])
    (root / ".dockerignore").write_text(IGNORE)
    (root / "Dockerfile").write_text("FROM scratch\nLABEL offline-rebuild=bench\nCOPY . /app/\n")


def child(mode: str, tree: Path, index: Path) -> tuple[float, float, float, str]:
    """:returns: seconds inside, seconds of the whole process, peak in MB, check value."""
    began = time.perf_counter()
    command = [sys.executable, "-c", CHILD, mode, str(tree), str(index)]
    # Python as it is by default: it keeps what it has compiled
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    inside, peak, value = run.stdout.split()
    return float(inside), time.perf_counter() - began, float(peak), value


def timed(command: list[str], **environment: str) -> float:
    began = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    )
    return time.perf_counter() - began


def docker_build() -> list[str] | None:
    """The command of a docker that builds with BuildKit; None where there is no engine or no such docker."""
    for directory in os.get_exec_path():
        docker = str(Path(directory) / "docker")
        if shutil.which(docker) is None:
            continue
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "Dockerfile").write_text("FROM scratch\nLABEL offline-rebuild=bench\n")
            probe = [docker, "build", "-q", "-o", "type=tar,dest=/dev/null", name]
            if (
                subprocess.run(
                    probe, capture_output=True, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=False
                ).returncode
                == 0
            ):
                return [docker, "build", "-q", "-t", IMAGE]
    return None


def machine() -> dict[str, str]:
    """:returns: what the figures were taken on."""
    out = {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
        "engine": "none",
        "store": "none",
    }
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            out["machine"] += ", " + line.partition(":")[2].strip()
            break
    run = subprocess.run(["docker", "info", "--format", "{{json .}}"], capture_output=True, text=True, check=False)
    if run.returncode == 0:
        info = json.loads(run.stdout)
        out["engine"] = info.get("ServerVersion", "unknown")
        out["store"] = (
            "containerd" if "io.containerd.snapshotter.v1" in json.dumps(info.get("DriverStatus")) else "classic"
        )
    return out


def measure(work: Path) -> dict[str, float]:
    """:returns: the figures of results/bench-context.json."""
    tree, index = work / "tree", work / "index"
    tree.mkdir()
    make_tree(tree, FILES, BYTES)
    sums = ["sh", "-c", 'find "$0" -type f -print0 | xargs -0 sha256sum', str(tree)]
    build = docker_build()
    timed(sums)
    if build:
        timed([*build, str(tree)], DOCKER_BUILDKIT="1")
    time.sleep(2.5)  # the racy rule: younger files would be read once more
    rows: dict[str, list[float]] = {name: [] for name in ("sha256sum", "cold", "walk", "warm", "warm_whole", "build")}
    for _run in range(RUNS):
        rows["sha256sum"].append(timed(sums))
        index.unlink(missing_ok=True)
        _inside, whole, _peak, digest = child("cold", tree, index)
        rows["cold"].append(whole)
        rows["walk"].append(child("walk", tree, index)[0])
        inside, whole, _peak, warm_digest = child("warm", tree, index)
        rows["warm"].append(inside)
        rows["warm_whole"].append(whole)
        if digest != warm_digest:
            raise SystemExit("the warm digest is not the cold one")
        if build:
            rows["build"].append(timed([*build, str(tree)], DOCKER_BUILDKIT="1"))
    shutil.rmtree(tree)
    median = {name: statistics.median(values) for name, values in rows.items() if values}
    figures = {f"{name}_s": round(value, 3) for name, value in median.items()}
    figures["cold_ratio"] = round(median["cold"] / median["sha256sum"], 3)
    figures["warm_ratio_walk"] = round(median["warm"] / median["walk"], 3)
    if build:
        figures["warm_ratio_build"] = round(median["warm_whole"] / median["build"], 3)
    return figures


def peak_memory(work: Path) -> float:
    """:returns: MB at the most, of a cold, a second and a warm run over 100,000 files."""
    tree, index = work / "many", work / "many-index"
    tree.mkdir()
    make_tree(tree, MANY, MANY * 200)
    cold = child("cold", tree, index)[2]
    time.sleep(2.5)
    index.unlink()
    return max(cold, child("cold", tree, index)[2], child("warm", tree, index)[2])


def main() -> int:
    """Measure, print, record. :returns: 1 when an aim is missed."""
    with tempfile.TemporaryDirectory(prefix="ofr-bench-", dir=os.environ.get("OFFLINE_REBUILD_BENCH_DIR")) as name:
        try:
            figures = measure(Path(name))
            print(", ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
            figures["peak_mb_100k"] = round(peak_memory(Path(name)), 1)
        finally:
            subprocess.run(["docker", "rmi", IMAGE], capture_output=True, check=False)
    record("bench-context", **machine(), **figures)
    missed = 0
    for key, aim in AIMS.items():
        value = figures.get(key)
        good = value is not None and value <= aim
        missed += not good
        print(
            f"{key:18} {value if value is not None else 'not measured':>12}  aim {aim:>4}  {'ok' if good else 'MISSED'}"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

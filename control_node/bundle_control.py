"""What a control node without a network is set up from: wheels for its Pythons, and this project itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from module_utils.offline_rebuild.errors import OfflineRebuildError

__all__ = ["LOCK", "PROJECT", "PYTHONS", "put"]

ROOT = Path(__file__).resolve().parents[1]
#: The Pythons that ansible-core runs on; some wheels are made for one of them alone.
PYTHONS = ("3.12", "3.13", "3.14")
LOCK = "requirements-control.txt"
PROJECT = "offline-rebuild.tar"


def put(folder: Path) -> None:
    """Write ``wheels/*.whl``, the lock file and the project's files as one tar.

    :raises OfflineRebuildError: ``wheels-failed``.
    """
    folder.mkdir()
    (folder / LOCK).write_bytes((ROOT / LOCK).read_bytes())
    pip = _pip()
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as everything:
        everything.write(without_markers((ROOT / LOCK).read_text(encoding="utf-8")))
        everything.flush()
        argv = [*pip, "download", "-q", "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", everything.name]
        for version in PYTHONS:
            _run([*argv, "--python-version", version, "-d", str(folder / "wheels")], f"for Python {version}")
    _project(folder / PROJECT)


def without_markers(lock: str) -> str:
    """:returns: the lock file with every package for every Python: pip judges markers by the Python that it runs on."""
    return re.sub(r"^(\S+==\S+) ; .*?( \\)$", r"\1\2", lock, flags=re.MULTILINE)


def _pip() -> list[str]:
    """:returns: a pip that works: a virtual environment made by uv has none, the Python below it does."""
    base = str(getattr(sys, "_base_executable", sys.executable))
    for python in (sys.executable, base, "python3"):
        try:
            if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
                return [python, "-m", "pip", "--disable-pip-version-check"]
        except OSError:
            continue
    raise _failed("there is no pip", "install python3-pip on this machine")


def _run(argv: list[str], what: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise _failed(f"{what}: {' '.join(lines[:3])}", "see that the package index answers: pip download")


def _failed(why: str, remedy: str) -> OfflineRebuildError:
    return OfflineRebuildError("wheels-failed", f"the control node's wheels cannot be had: {why}", remedy)


def _project(target: Path) -> None:
    """This project as it is here; of a clone, the files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    if listed.returncode != 0 or not names:
        raise _failed("this project is no git clone, so that its files are not known", "use a clone of it")
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(names):
            if os.path.lexists(ROOT / name):
                archive.add(ROOT / name, f"offline-rebuild/{name}", recursive=False, filter=_plain)


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info

"""Reading by several processes: the same results as by one, whatever becomes of the others."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from module_utils.offline_rebuild import readers
from module_utils.offline_rebuild.context import Context
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.readers import CHANGED, Numbers, Readers, Result, numbers_of

FILES = 700


class Item(NamedTuple):
    path: str
    numbers: Numbers


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More files than one process reads alone, one of them bigger than a block."""
    root = tmp_path_factory.mktemp("many")
    for number in range(FILES):
        folder = root / f"d{number % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{number}").write_bytes(b"%d" % number * (number % 50))
    (root / "d0" / "big").write_bytes(os.urandom(900_000))
    return root


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that another process is started, whatever the machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})


def items(root: Path) -> list[Item]:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return [Item(str(path.relative_to(root)), numbers_of(path.lstat())) for path in paths]


class Run:
    """Reads a tree in portions; ``between`` is called after each."""

    def __init__(self, root: Path) -> None:
        self.found: dict[str, Result] = {}
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.readers = Readers(self.fd, self.result)

    def result(self, item: Item, result: Result) -> None:
        assert item.path not in self.found
        self.found[item.path] = result

    def read(self, wanted: list[Item], between=lambda: None) -> dict[str, Result]:
        try:
            for start in range(0, len(wanted), 16):
                self.readers.give(wanted[start : start + 16])
                between()
            self.readers.finish()
        finally:
            self.readers.close()
            os.close(self.fd)
        return self.found


def expected(root: Path) -> dict[str, Result]:
    return {i.path: (hashlib.sha256((root / i.path).read_bytes()).hexdigest().encode(), b"") for i in items(root)}


def test_several_processes_find_what_one_finds(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tree)
    used: list[bool] = []
    found = run.read(items(tree), lambda: used.append(any(other.portions for other in run.readers._others)))
    assert found == expected(tree)
    assert any(used)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    assert Run(tree).read(items(tree)) == found
    assert Context(str(tree)).manifest().digest() == Context(str(tree)).manifest().digest()


def test_few_files_start_no_process(tree: Path) -> None:
    run = Run(tree)
    run.read(items(tree)[:100], lambda: pytest.fail("a process was started") if run.readers._others else None)


def test_a_reader_that_is_killed_loses_nothing(tree: Path) -> None:
    run = Run(tree)
    killed: list[int] = []

    def kill() -> None:
        for other in run.readers._others:
            if other.portions and not killed:
                os.kill(other.process.pid, signal.SIGSTOP)  # so that it has not answered yet
                os.kill(other.process.pid, signal.SIGKILL)
                killed.append(other.process.pid)

    assert run.read(items(tree), kill) == expected(tree)
    assert killed
    with pytest.raises(ProcessLookupError):
        os.kill(killed[0], 0)


def test_another_process_tells_what_changed_or_went(tree: Path) -> None:
    wanted = items(tree)
    wrong = {item.path: Item(item.path, (*item.numbers[:4], item.numbers[4] + 1)) for item in wanted[-80::2]}
    gone = [Item(f"gone{number}", wanted[0].numbers) for number in range(40)]
    found = Run(tree).read([wrong.get(item.path, item) for item in wanted] + gone)
    assert {path for path, result in found.items() if result == CHANGED} == set(wrong)
    assert {path for path, result in found.items() if result == errno.ENOENT} == {item.path for item in gone}


def test_no_process_is_left_when_the_walk_fails(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[readers._Other] = []
    start = readers._Other.__init__

    def note(self: readers._Other, root: int) -> None:
        start(self, root)
        started.append(self)

    monkeypatch.setattr(readers._Other, "__init__", note)
    monkeypatch.setattr(readers, "read", lambda *_: errno.EACCES)
    with pytest.raises(OfflineRebuildError, match="cannot be read"):
        Context(str(tree)).manifest()
    monkeypatch.setattr(readers, "MANY_FILES", 1)
    monkeypatch.setattr(readers, "read", lambda *_: CHANGED)
    with pytest.raises(OfflineRebuildError, match="changed while it was read"):
        Context(str(tree)).manifest()
    assert started
    assert all(other.process.poll() is not None for other in started)

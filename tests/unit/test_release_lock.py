"""The lock: one owner, stale ones taken over, left-over children waited for. Real processes throughout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.lock import Lock
from module_utils.offline_rebuild.lock import holder as who_holds

ROOT = Path(__file__).parents[2]
HOLD = """
import subprocess, sys
from module_utils.offline_rebuild.lock import Lock
lock = Lock.acquire(sys.argv[1], "shop", "ann", "rebuild", "C7")
if sys.argv[2] == "child":
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=lock.guard)
    print(child.pid, flush=True)
print("held", flush=True)
sys.stdin.read()
"""


def holder(state: Path, mode: str = "alone") -> tuple[subprocess.Popen[str], list[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    said: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line.strip())
        if line == "held\n":
            break
    return process, said


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_second_run_says_who_holds_it(tmp_path: Path) -> None:
    process, _ = holder(tmp_path)
    try:
        with pytest.raises(OfflineRebuildError) as caught:
            Lock.acquire(str(tmp_path), "shop")
        for word in ("ann", str(process.pid), "C7", "rebuild"):
            assert word in caught.value.message
        Lock.acquire(str(tmp_path), "other").release()
    finally:
        end(process)


def test_a_killed_owner_is_taken_over_and_said_so(tmp_path: Path) -> None:
    process, _ = holder(tmp_path)
    end(process)
    with Lock.acquire(str(tmp_path), "shop", "bob") as lock:
        assert "ann" in lock.note
        assert "process is gone" in lock.note
        owner = json.loads((tmp_path / "locks" / "shop.lock" / "owner.json").read_text())
        assert owner["operator"] == "bob"
    assert not (tmp_path / "locks" / "shop.lock").exists()


@pytest.mark.parametrize(
    ("change", "note"),
    [({"boot_id": "another"}, "restarted"), ({"start": "1"}, "process is gone"), (None, "no readable owner")],
)
def test_an_owner_of_another_boot_or_with_a_reused_pid_is_stale(
    tmp_path: Path, change: dict[str, str] | None, note: str
) -> None:
    process, _ = holder(tmp_path)
    path = tmp_path / "locks" / "shop.lock" / "owner.json"
    owner = json.loads(path.read_text())
    end(process)
    path.write_text("{" if change is None else json.dumps({**owner, **change}))
    with Lock.acquire(str(tmp_path), "shop") as lock:
        assert note in lock.note


def test_the_child_of_a_killed_run_is_waited_for(tmp_path: Path) -> None:
    """The child keeps the guard until its standard input ends, which is when its parent is gone (not yet reaped)."""
    process, said = holder(tmp_path, "child")
    child = int(said[0])
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    got: list[Lock] = []
    thread = threading.Thread(target=lambda: got.append(Lock.acquire(str(tmp_path), "shop", wait=30)))
    thread.start()
    thread.join(30)
    process.communicate()
    assert got
    assert not Path(f"/proc/{child}/exe").exists()
    got[0].release()


def test_a_child_that_does_not_end_is_an_error(tmp_path: Path) -> None:
    lock = Lock.acquire(str(tmp_path), "shop")
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=lock.guard)
    lock.release()
    try:
        with pytest.raises(OfflineRebuildError, match="left behind"):
            Lock.acquire(str(tmp_path), "shop", wait=0)
    finally:
        child.communicate()


def test_who_holds_it_can_be_asked_without_a_trace(tmp_path: Path) -> None:
    assert who_holds(str(tmp_path), "shop") is None
    assert list(tmp_path.iterdir()) == []
    process, _ = holder(tmp_path)
    try:
        before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
        found = who_holds(str(tmp_path), "shop")
        assert found is not None
        assert (found.operator, found.why, found.change_id, found.pid) == ("ann", "rebuild", "C7", process.pid)
        assert (found.state, found.note) == ("running", "")
        assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    finally:
        end(process)
    found = who_holds(str(tmp_path), "shop")
    assert found is not None
    assert (found.state, found.note) == ("stale", "its process is gone")
    Lock.acquire(str(tmp_path), "shop").release()
    assert who_holds(str(tmp_path), "shop") is None


def test_a_child_that_a_run_left_at_work_is_seen(tmp_path: Path) -> None:
    lock = Lock.acquire(str(tmp_path), "shop", "ann")
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=lock.guard)
    owner = tmp_path / "locks" / "shop.lock" / "owner.json"
    owner.write_text(json.dumps({**json.loads(owner.read_text()), "start": "1"}))  # as if the run were gone
    lock.guard.close()
    try:
        found = who_holds(str(tmp_path), "shop")
        assert found is not None
        assert (found.operator, found.state) == ("ann", "left-over")
    finally:
        child.communicate()
    found = who_holds(str(tmp_path), "shop")
    assert found is not None
    assert found.state == "stale"


def test_many_at_once_one_wins(tmp_path: Path) -> None:
    won: list[Lock] = []
    lost: list[OfflineRebuildError] = []
    ready = threading.Barrier(8)

    def attempt() -> None:
        ready.wait()
        try:
            won.append(Lock.acquire(str(tmp_path), "shop"))
        except OfflineRebuildError as error:
            lost.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert {error.code for error in lost} == {"locked"}
    won[0].release()


def test_an_unwritable_state_folder(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("in the way")
    with pytest.raises(OfflineRebuildError, match="state-dir"):
        Lock.acquire(str(tmp_path), "shop")


def test_the_same_run_begun_twice_waits_for_its_first_try(tmp_path: Path) -> None:
    first = Lock.acquire(str(tmp_path), "shop", "ann", "rebuild", "C7", run_time=1790000000)
    assert not first.waited
    for other in ({"run_time": 1790000001}, {"run_time": 0}):
        with pytest.raises(OfflineRebuildError, match="another run holds"):
            Lock.acquire(str(tmp_path), "shop", "ann", "rebuild", "C7", **other)
    got: list[Lock] = []
    again = {"operator": "ann", "change_id": "C7", "wait": 10, "run_time": 1790000000}
    thread = threading.Thread(target=lambda: got.append(Lock.acquire(str(tmp_path), "shop", **again)))  # type: ignore[arg-type]
    thread.start()
    thread.join(0.3)
    assert not got
    first.release()
    thread.join(30)
    assert got[0].waited
    got[0].release()

"""One run at a time per project and host.

The lock is a folder ``<state_dir>/locks/<project>.lock`` that appears in one step with its owner inside
(``owner.json``: who, why, when, pid, the process's start time, boot id). Beside it lies ``<project>.guard``, a file
under ``flock``: whoever looks at the folder or takes it over holds it. The guard stays locked as long as the owner *or
a child that inherited it* lives, so that a run whose predecessor was killed waits for the ``docker compose up`` that
this one left behind, instead of running beside it. A ``docker build``, ``load`` or ``tag`` inherits it in the same way.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import shutil
import time
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Dict, Mapping, Optional, Type

from .errors import OfflineRebuildError

__all__ = ["Holder", "Lock", "holder", "is_guarded"]

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Lock:
    """A held lock; use as a context manager.

    ``note`` says that a stale lock was taken over, and whose; ``""`` otherwise. ``guard`` is the locked file, to be
    inherited by children that must not run beside another run.
    """

    def __init__(self, folder: str, guard: IO[bytes], note: str) -> None:
        self.folder = folder
        self.guard = guard
        self.note = note
        #: Whether it was held by the same run of a playbook, which had been begun twice.
        self.waited = False

    @classmethod
    def acquire(
        cls,
        state_dir: str,
        project: str,
        operator: str = "",
        why: str = "",
        change_id: str = "",
        wait: float = 60.0,
        run_time: int = 0,
    ) -> Lock:
        """Take the lock or say who holds it.

        :param wait: seconds to wait for the left-over child of a run that is gone; a live owner is not waited for.
        :param run_time: the controller's time of the run. An owner of the same time, operator and change is the same
            run: Ansible begins a task again when its connection breaks, and the first try goes on. It is waited for.
        :raises OfflineRebuildError: ``locked``; ``state-dir`` when the folder cannot be written.
        """
        base = os.path.join(state_dir, "locks")
        folder = os.path.join(base, project + ".lock")
        try:
            os.makedirs(base, mode=0o700, exist_ok=True)
            guard = open(os.path.join(base, project + ".guard"), "a+b")  # noqa: SIM115 (held for the whole run)
        except OSError as error:
            raise _unwritable(base, error) from None
        try:
            mine = _owner(operator, why, change_id, run_time)
            waited = _flock(guard, folder, wait, mine)
            note = _take(folder, mine)
        except OSError as error:
            guard.close()
            raise _unwritable(base, error) from None
        except BaseException:
            guard.close()
            raise
        lock = cls(folder, guard, note)
        lock.waited = waited
        return lock

    @staticmethod
    def look(state_dir: str, project: str) -> None:
        """Say whether another run holds the lock; nothing is taken or written.

        :raises OfflineRebuildError: ``locked``.
        """
        folder = os.path.join(state_dir, "locks", project + ".lock")
        owner = _read(folder)
        if owner is not None and _alive(owner):
            raise _locked(folder, owner)

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if not self.guard.closed:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.guard.close()

    def __enter__(self) -> Lock:  # noqa: PYI034 (typing.Self came with Python 3.11)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.release()


def _unwritable(base: str, error: OSError) -> OfflineRebuildError:
    return OfflineRebuildError(
        "state-dir",
        f"the state folder cannot be written: {error.strerror}",
        "free or remount the disk, or set state_dir",
        file=base,
    )


@dataclass(frozen=True)
class Holder:
    """Who holds a project's lock, for somebody who only looks.

    :param time: when it was taken, seconds since 1970; 0 if that cannot be read.
    :param state: ``running``; ``left-over``, when the run is gone and a ``docker compose`` that it started is still at
        work; ``stale``, when nobody is at work and the next run takes the lock over.
    :param note: why it is stale.
    """

    operator: str
    why: str
    change_id: str
    time: int
    pid: int
    state: str
    note: str = ""


def holder(state_dir: str, project: str) -> Optional[Holder]:
    """:returns: who holds the lock, ``None`` if it is free. Nothing is written; a run that starts at the same moment
    waits for a twentieth of a second at most."""
    folder = os.path.join(state_dir, "locks", project + ".lock")
    at_work = is_guarded(os.path.join(state_dir, "locks", project + ".guard"))
    owner = _read(folder)
    if owner is None and not at_work and not os.path.isdir(folder):
        return None
    known = owner or {}
    state, note = "stale", ""
    if owner is not None and _alive(owner):
        state = "running"
    elif at_work:
        state = "left-over"
    else:
        note = _why_stale(known)
    return Holder(
        str(known.get("operator") or ""),
        str(known.get("why") or ""),
        str(known.get("change_id") or ""),
        int(known.get("time") or 0),
        int(known.get("pid") or 0),
        state,
        note,
    )


def is_guarded(path: str, shared: bool = True) -> bool:
    """Whether a process holds a guard. Nothing is written.

    :param shared: those that share it do not count.
    """
    try:
        with open(path, "rb") as guard:
            fcntl.flock(guard, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _flock(guard: IO[bytes], folder: str, wait: float, mine: Mapping[str, Any]) -> bool:
    """:returns: whether a live owner was waited for, which is the same run."""
    end = time.monotonic() + wait
    waited = False
    while True:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        else:
            return waited
        owner = _read(folder)
        if owner is not None and _alive(owner):
            if not mine["run_time"] or any(owner.get(k) != mine[k] for k in ("run_time", "operator", "change_id")):
                raise _locked(folder, owner)
            waited, end = True, time.monotonic() + wait
        if time.monotonic() > end:
            raise OfflineRebuildError(
                "locked",
                f"a docker command that an earlier run ({_who(owner or {})}) left behind is still at work",
                "wait for it, or see `ps -ef | grep 'docker '`",
                file=folder,
            )
        time.sleep(0.05)


def _take(folder: str, owner: Mapping[str, Any]) -> str:
    """Under the guard: look at the folder, take it over if stale, put ours in place by one rename."""
    note = ""
    if os.path.isdir(folder):
        old = _read(folder) or {}
        if old and _alive(old):
            raise _locked(folder, old)
        shutil.rmtree(folder)
        note = f"took over the stale lock of {_who(old)}: {_why_stale(old)}"
    for left in glob.glob(glob.escape(folder) + ".*"):
        shutil.rmtree(left, ignore_errors=True)
    fresh = f"{folder}.{os.getpid()}"
    os.mkdir(fresh, 0o700)
    with open(os.path.join(fresh, "owner.json"), "w", encoding="utf-8") as stream:
        json.dump(owner, stream, indent=1)
    os.rename(fresh, folder)
    return note


def _owner(operator: str, why: str, change_id: str, run_time: int) -> Dict[str, Any]:
    return {
        "operator": operator,
        "why": why,
        "change_id": change_id,
        "run_time": run_time,
        "time": int(time.time()),
        "pid": os.getpid(),
        "start": _start_time(os.getpid()),
        "boot_id": _boot_id(),
    }


def _read(folder: str) -> Optional[Dict[str, Any]]:
    try:
        with open(os.path.join(folder, "owner.json"), encoding="utf-8") as stream:
            return dict(json.load(stream))
    except (OSError, ValueError, TypeError):
        return None


def _alive(owner: Mapping[str, Any]) -> bool:
    same_boot = owner.get("boot_id", "") == _boot_id()
    return same_boot and bool(owner.get("start")) and owner["start"] == _start_time(int(owner.get("pid") or 0))


def _why_stale(owner: Mapping[str, Any]) -> str:
    if not owner:
        return "it has no readable owner"
    return "its process is gone" if owner.get("boot_id") == _boot_id() else "the host was restarted since"


def _who(owner: Mapping[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(int(owner.get("time") or 0)))
    change = f", change {owner['change_id']}" if owner.get("change_id") else ""
    return f"{owner.get('operator') or 'unknown'} (pid {owner.get('pid', '?')}, since {when}{change})"


def _locked(folder: str, owner: Mapping[str, Any]) -> OfflineRebuildError:
    return OfflineRebuildError(
        "locked",
        f"another run holds this project on this host: {_who(owner)}: {owner.get('why') or 'no reason given'}",
        "wait until it has ended; a lock whose process is gone is taken over by itself",
        file=folder,
    )


def _boot_id() -> str:
    try:
        with open(_BOOT_ID, encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """:returns: field 22 of /proc/PID/stat (proc(5): starttime, clock ticks since boot), ``""`` if there is no such
    process or it only waits to be reaped."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            fields = stream.read().rsplit(")", 1)[1].split()
            return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""

"""Releases: what one run changed on one host, written so that a run that was cut off can be finished.

Files, all below ``state_dir`` and readable by root only::

    releases/<project>/<id>.json           the release, schema below; written whole, then renamed into place
    releases/<project>/<id>.compose.json   the project as compose rendered it when the release was done; it is what a
                                           rollback starts from. It holds environment values, as the compose files do.
    releases/<project>/<id>.checks.json    the operator's health checks that the release passed, for a rollback to it;
                                           of headers that a check sends the names alone
    releases/<project>/<id>.<service>.build.log
                                           all that a build which failed said, secrets masked; at most 2 MB of it
    releases/<project>/reserve             space for the journal on a disk that gets full, while a release is made
    releases/<project>/pregate.compose     the compose file of a pre-gate, while it lasts
    audit.log                              one JSON line per event, only ever appended to

Schema of a release, version 1 (times are seconds since 1970 on the host's clock)::

    {"schema": 1, "id": str, "project": str, "src": str, "state": STATES, "step": str, "started": float,
     "finished": float | null, "run_time": int, "change_id": str, "operator": str, "rollback_to": str,
     "services": {name: {"image": str, "action": str, "way": str, "before": id, "after": id, "tag_before": id,
                         "kept_as": name:tag, "imported": bool, "swap": "recreate"|"rolling", "pregate": bool}},
     "swapped": [service], "plan": dict, "gate": dict | null, "rollback_gate": dict | null, "evidence": [dict],
     "note": str, "timings": {phase: seconds}}

``before`` is the image that the service's containers ran (its name's image if it had none), ``tag_before`` the one that
its name stood for, ``after`` the new one; ``""`` where there was none. ``rollback_to`` is the release that an operator
went back to, ``""`` for a rebuild. ``imported`` says that no release made
``before``: it came from outside, and is what later rebuilds start from.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from .errors import OfflineRebuildError

__all__ = [
    "FINISHED", "STATES", "Journal", "Release", "Retention", "ServiceRecord", "is_secret_name", "mask", "masked",
    "retention", "secrets_of",
]  # fmt: skip

SCHEMA = 1
STATES = ("planning", "making", "pregating", "swapping", "gating", "rolling_back", "done", "rolled_back", "failed")
FINISHED = ("done", "rolled_back", "failed")
_PREGATE = "pregate.compose"
_LOG = ".build.log"
#: Bytes of a build's log that are kept.
_MOST_LOG = 2 << 20
#: Characters of one of its lines.
_MOST_LINE = 4000

_SECRET_NAME = re.compile(r"(?i)(pass(word|wd|phrase)?|secret|token|credentials?|auth|api_?key|_key|_pat)(_|$)")
#: The fields of a release that hold text from elsewhere. Names and ids are not masked: a rollback needs them.
_FREE_TEXT = ("plan", "gate", "rollback_gate", "evidence", "note")
#: Bytes that are set aside while a release is made: its last states must be written on a full disk, too.
_RESERVE = 512 << 10
#: Begins at a word's beginning only: a long word would be tried from each of its letters else.
_URL_PASSWORD = re.compile(r"(?<![a-z0-9+.-])([a-z0-9+.-]+://[^/\s:@]+:)[^/\s@]+@", re.IGNORECASE)


@dataclass
class ServiceRecord:
    """One service of a release; see the schema in this file."""

    image: str
    action: str
    way: str = ""
    before: str = ""
    after: str = ""
    tag_before: str = ""
    kept_as: str = ""
    imported: bool = False
    swap: str = "recreate"
    pregate: bool = False


@dataclass
class Release:
    """One run on one host that changed something; see the schema in this file."""

    id: str
    project: str
    src: str = ""
    state: str = "planning"
    step: str = ""
    started: float = 0.0
    finished: Optional[float] = None
    run_time: int = 0
    change_id: str = ""
    operator: str = ""
    rollback_to: str = ""
    services: Dict[str, ServiceRecord] = field(default_factory=dict)
    swapped: List[str] = field(default_factory=list)
    plan: Dict[str, Any] = field(default_factory=dict)
    gate: Optional[Dict[str, Any]] = None
    rollback_gate: Optional[Dict[str, Any]] = None
    evidence: List[Dict[str, Any]] = field(default_factory=list)
    note: str = ""
    timings: Dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> Dict[str, Any]:
        """:returns: the release in the schema of this file, JSON-ready."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Release:
        """:raises ValueError: another schema, or fields missing."""
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema {data.get('schema')!r} is not {SCHEMA}")
        known = {key: value for key, value in data.items() if key in cls.__dataclass_fields__}
        known["services"] = {name: ServiceRecord(**record) for name, record in data["services"].items()}
        if known.get("state") not in STATES:
            raise ValueError(f"unknown state {known.get('state')!r}")
        try:
            return cls(**known)
        except TypeError as error:
            raise ValueError(str(error)) from None


class Journal:
    """The releases of one project on this host, and the audit log.

    :param secrets: values that are never written (see :func:`secrets_of`).
    """

    def __init__(self, state_dir: str, project: str, secrets: Iterable[str] = ()) -> None:
        self.state_dir = state_dir
        self.project = project
        self.folder = os.path.join(state_dir, "releases", project)
        self.secrets = tuple(sorted(set(secrets), key=len, reverse=True))
        self._reserve = os.path.join(self.folder, "reserve")

    def begin(self, run_time: int = 0, change_id: str = "", operator: str = "", src: str = "") -> Release:
        """A new release, not yet written. Its id sorts after all others of the project, whatever the clock says.

        :param run_time: the controller's time of the run: the same run then has the same id on every host.
        """
        wanted = _release_id(run_time or int(time.time()), self.project, change_id if run_time else str(os.getpid()))
        last = max(self.ids(), default="")
        if last >= wanted:
            seconds = _id_seconds(last)
            wanted = _release_id(seconds + 1, self.project, change_id)
        return Release(
            wanted,
            self.project,
            src,
            started=round(time.time(), 3),
            run_time=run_time,
            change_id=change_id,
            operator=operator,
        )

    def write(self, release: Release) -> None:
        """Write the release to the disk, whole or not at all.

        States whose loss in a power failure changes nothing in what recovery does are not waited for: without
        ``making`` there is nothing to recover, a power failure ends a pre-gate's containers and the next one removes
        them, and ``gating`` is recovered as ``swapping`` is.

        :raises OfflineRebuildError: ``journal-write``: no space, read-only, no permission.
        """
        for key in _FREE_TEXT:  # in the release itself, which goes on to the operator
            setattr(release, key, mask(getattr(release, key), self.secrets))
        data = release.to_dict()
        durable = release.state not in ("planning", "making", "pregating", "gating")
        self._replace(release.id + ".json", json.dumps(data, indent=1).encode("utf-8"), durable)

    def write_rendered(self, release: Release, model: bytes) -> None:
        """Keep the rendered project that the release runs with.

        A rollback cannot be finished without it, so there it is on the disk before anything is swapped.
        """
        self._replace(release.id + ".compose.json", model, durable=bool(release.rollback_to))

    def rendered_of(self, release_id: str) -> str:
        """:returns: the path of the rendered project of a release, ``""`` if none is kept."""
        path = os.path.join(self.folder, release_id + ".compose.json")
        return path if os.path.exists(path) else ""

    def write_pregate(self, model: bytes) -> str:
        """:returns: the path of the pre-gate's compose file, written."""
        self._replace(_PREGATE, model, durable=False)
        return os.path.join(self.folder, _PREGATE)

    def has_pregate(self) -> bool:
        """:returns: whether there is a pre-gate's compose file: one is on its way, or could not be cleared away."""
        return os.path.lexists(os.path.join(self.folder, _PREGATE))

    def remove_pregate(self) -> None:
        """Remove the pre-gate's compose file; it need not exist."""
        path = os.path.join(self.folder, _PREGATE)
        if os.path.lexists(path):
            os.unlink(path)

    def rendered(self) -> List[str]:
        """:returns: the kept rendered projects, newest first (paths)."""
        names = sorted(self._names(".compose.json"), reverse=True)
        return [os.path.join(self.folder, name) for name in names]

    def write_log(self, release: Release, service: str, text: str) -> str:
        """Keep the log of a build that failed, secrets masked; of a long one the beginning and the end.

        :returns: its path.
        """
        name = f"{release.id}.{service}{_LOG}"
        for secret in self.secrets:
            text = text.replace(secret, "***")
        lines = (str(mask(line[:_MOST_LINE])) for line in text.split("\n"))  # its time grows with a line's square
        data = "\n".join(lines).encode("utf-8", "surrogateescape")
        if len(data) > _MOST_LOG:
            left_out = b"\n[... %d bytes are left out ...]\n" % (len(data) - _MOST_LOG)
            data = data[: _MOST_LOG // 4] + left_out + data[-(_MOST_LOG - _MOST_LOG // 4) :]
        self._replace(name, data, durable=False)
        return os.path.join(self.folder, name)

    def write_checks(self, release: Release, checks: Sequence[Mapping[str, Any]]) -> None:
        """Keep the operator's checks that the release passed."""
        kept = [{**check, "headers": sorted(check.get("headers") or {})} for check in checks]
        self._replace(release.id + ".checks.json", json.dumps(kept, indent=1).encode("utf-8"), durable=False)

    def checks(self, current: Sequence[Mapping[str, Any]] = (), of: str = "") -> Optional[List[Dict[str, Any]]]:
        """The checks of the newest release that is done: what ran before the present one passed them.

        :param of: those of this release instead.
        :param current: the present checks, which give the values of the headers; a check with a header that none of
            them sends is left out.
        :returns: ``None`` when no release is done or its checks are not kept.
        """
        known = {name: value for check in current for name, value in (check.get("headers") or {}).items()}
        for release in reversed(self.all()):
            if release.id == of or (not of and release.state == "done"):
                break
        else:
            return None
        try:
            with open(os.path.join(self.folder, release.id + ".checks.json"), encoding="utf-8") as stream:
                kept = [dict(check) for check in json.load(stream)]
        except (OSError, ValueError, TypeError):
            return None
        return [
            {**check, "headers": {name: known[name] for name in check["headers"]}}
            for check in kept
            if set(check["headers"]) <= set(known)
        ]

    def audit(self, event: str, release: str = "", **fields: Any) -> None:
        """Append one line; it is on the disk at the latest when a release ends."""
        line = {"time": round(time.time(), 3), "event": event, "project": self.project, "release": release}
        data = (json.dumps({**line, **mask(fields, self.secrets)}) + "\n").encode("utf-8")
        path = os.path.join(self.state_dir, "audit.log")

        def append() -> None:
            os.makedirs(self.state_dir, mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                before = os.fstat(fd).st_size
                if os.write(fd, data) != len(data):
                    os.ftruncate(fd, before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if event in FINISHED:
                    os.fdatasync(fd)
            finally:
                os.close(fd)

        self._written(path, append)

    def reserve(self) -> None:
        """Set space aside, so that what follows can be recorded on a disk that gets full meanwhile.

        :raises OfflineRebuildError: ``journal-write``.
        """

        def allocate() -> None:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(fd, 0, _RESERVE)
            finally:
                os.close(fd)

        self._written(self._reserve, allocate)

    def give_back(self) -> bool:
        """Free what :meth:`reserve` set aside. :returns: whether there was something."""
        try:
            os.unlink(self._reserve)
        except OSError:
            return False
        return True

    def sweep(self) -> None:
        """Remove what a run that was cut off left beside the releases; under the lock."""
        self.give_back()
        for name in self._names(".tmp"):
            os.unlink(os.path.join(self.folder, name))

    def _written(self, path: str, write: Callable[[], None]) -> None:
        """Write; on a full disk once more, with the reserve given back.

        :raises OfflineRebuildError: ``journal-write``.
        """
        try:
            try:
                write()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.give_back():
                    raise
                write()
        except OSError as error:
            raise _write_error(path, error) from None

    def ids(self) -> List[str]:
        """:returns: the ids of all releases, damaged ones too, oldest first."""
        return sorted(n[: -len(".json")] for n in self._names(".json") if n.count(".") == 1)

    def read(self, release_id: str) -> Release:
        """:raises OfflineRebuildError: ``release-missing``, ``journal-damaged``."""
        path = os.path.join(self.folder, release_id + ".json")
        try:
            with open(path, encoding="utf-8") as stream:
                return Release.from_dict(json.load(stream))
        except FileNotFoundError:
            raise OfflineRebuildError(
                "release-missing",
                f"there is no release {release_id} of {self.project} on this host",
                f"kept releases: {', '.join(self.ids()) or 'none'}",
                file=path,
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OfflineRebuildError(
                "journal-damaged", f"the release cannot be read: {error}", "move the file away", file=path
            ) from None

    def all(self) -> List[Release]:
        """:returns: every release that can be read, oldest first."""
        return [release for release in map(self._try, self.ids()) if release is not None]

    def damaged(self) -> List[str]:
        """:returns: the ids of the releases that cannot be read."""
        return [name for name in self.ids() if self._try(name) is None]

    def unfinished(self) -> List[Release]:
        """:returns: the releases that a run left in the middle, oldest first."""
        return [release for release in self.all() if release.state not in FINISHED]

    def remove(self, release_id: str) -> None:
        """Remove the release's files; it need not exist."""
        logs = [name for name in self._names(_LOG) if name.startswith(f"{release_id}.")]
        files = [release_id + suffix for suffix in (".json", ".compose.json", ".checks.json", ".json.damaged")]
        for name in (*files, *logs):
            path = os.path.join(self.folder, name)
            if os.path.lexists(path):
                os.unlink(path)

    def put_aside(self, release_id: str) -> str:
        """Rename a damaged release so that it is no longer read. :returns: its new path."""
        path = os.path.join(self.folder, release_id + ".json")
        os.replace(path, path + ".damaged")
        return path + ".damaged"

    def _try(self, release_id: str) -> Optional[Release]:
        try:
            return self.read(release_id)
        except OfflineRebuildError:
            return None

    def _names(self, suffix: str) -> List[str]:
        try:
            return [name for name in os.listdir(self.folder) if name.endswith(suffix)]
        except FileNotFoundError:
            return []

    def _replace(self, name: str, data: bytes, durable: bool) -> None:
        path = os.path.join(self.folder, name)
        temporary = path + ".tmp"

        def replace() -> None:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                if durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(temporary, path)
            if not durable:
                return
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

        try:
            self._written(path, replace)
        except OfflineRebuildError:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise


@dataclass(frozen=True)
class Retention:
    """What goes: ``releases`` (ids), ``refs`` (names with tags), ``image_ids`` (to be removed if no name is left)."""

    releases: Tuple[str, ...] = ()
    refs: Tuple[str, ...] = ()
    image_ids: Tuple[str, ...] = ()


def retention(releases: Sequence[Release], keep: int, in_use: Set[str]) -> Retention:
    """What is to be removed so that ``keep`` finished releases stay.

    Releases that ended before they touched anything are not counted, and go with the counted one that follows them. A
    release stays beyond ``keep`` as long as the image that it would go back to is in use (``in_use``: ids of images
    that a container uses or a service's name stands for) or is the last that a service was imported with: layers would
    pile up without it. Unfinished ones always stay.
    """
    in_use = in_use | _last_imported(releases)
    old: List[Release] = []
    counted = 0
    for release in sorted((r for r in releases if r.state in FINISHED), key=lambda r: r.id, reverse=True):
        if counted >= max(1, keep):
            old.append(release)
        counted += bool(release.swapped)
    drop = [r for r in old if not any(s.before in in_use and s.kept_as for s in r.services.values())]
    gone = {r.id for r in drop}
    kept_ids = {i for r in releases if r.id not in gone for s in r.services.values() for i in (s.before, s.after)}
    refs = [s.kept_as for r in drop for s in r.services.values() if s.kept_as]
    ids = {i for r in drop for s in r.services.values() for i in (s.before, s.after)} - kept_ids - in_use - {""}
    return Retention(tuple(sorted(gone)), tuple(sorted(set(refs))), tuple(sorted(ids)))


def _last_imported(releases: Sequence[Release]) -> Set[str]:
    last: Dict[str, str] = {}
    for release in sorted(releases, key=lambda r: r.id):
        last.update({name: s.before for name, s in release.services.items() if s.imported and s.kept_as})
    return set(last.values())


def secrets_of(model: Any) -> List[str]:
    """Values in a rendered project that look like secrets by their name (build args, environment, labels).

    :returns: the values, those shorter than four characters left out (they would mask half of every text).
    """
    found: Set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, str) and len(item) >= 4 and _SECRET_NAME.search(str(key)):
                    found.add(item)
                else:
                    walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    for service in (model.get("services") or {}).values():
        walk((service.get("build") or {}).get("args") or {})
        walk(service.get("environment") or {})
        walk(service.get("labels") or {})
    return sorted(found)


def is_secret_name(name: str) -> bool:
    """:returns: whether a variable's name says that its value is secret."""
    return _SECRET_NAME.search(name) is not None


def mask(value: Any, secrets: Iterable[str] = ()) -> Any:
    """:returns: the value with every secret, and every password in a URL, replaced by ``***``."""
    if isinstance(value, str):
        for secret in secrets:
            if secret in value:
                value = value.replace(secret, "***")
        return _URL_PASSWORD.sub(r"\1***@", value) if "://" in value else value
    if isinstance(value, dict):
        return {key: mask(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask(item, secrets) for item in value]
    return value


def masked(document: Mapping[str, Any], secrets: Iterable[str]) -> Dict[str, Any]:
    """:returns: a release's document with its free texts masked; names and ids stay, since a rollback needs them."""
    known = tuple(secrets)
    return {key: mask(value, known) if key in _FREE_TEXT else value for key, value in document.items()}


def _release_id(seconds: int, project: str, salt: str) -> str:
    import hashlib

    digest = hashlib.sha256(f"{seconds}\0{project}\0{salt}".encode("utf-8", "surrogateescape")).hexdigest()
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds)) + "-" + digest[:6]


def _id_seconds(release_id: str) -> int:
    import calendar

    try:
        return calendar.timegm(time.strptime(release_id[:16], "%Y%m%dT%H%M%SZ"))
    except ValueError:
        return int(time.time())


def _write_error(path: str, error: OSError) -> OfflineRebuildError:
    return OfflineRebuildError(
        "journal-write",
        f"the release record cannot be written: {error.strerror}",
        "free disk space under state_dir (or mount it writable) and run again; the run continues where it stopped",
        file=path,
    )

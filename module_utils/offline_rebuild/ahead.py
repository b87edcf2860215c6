"""Scanning what the last run scanned while the CLI is asked what the project is.

Which build contexts a project has is known only when ``docker compose config`` has answered, and until then there is
nothing to do but wait. The contexts of the last run are remembered in the state directory; nearly always they are those
of this run, too. A scan that turns out to be of another context, to have gone by another ignore file, to be old or to
have failed is not used: the planner then scans as if there had been none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from typing import AbstractSet, Dict, List, Mapping, Optional, Sequence, Tuple

from .context import Context
from .errors import OfflineRebuildError
from .files import write_atomic
from .ignorefile import IgnoreFile
from .ignorefile import load as load_ignore
from .later import Later
from .statindex import StatIndex

__all__ = ["Ahead", "indexed"]

#: Seconds after which a finished scan counts as old.
MOST_AGE = 2.0
#: Context, Dockerfile, and whether the ignore file is read as the CLI up to 20.10 does.
Remembered = Tuple[str, str, bool]
#: A context, and when its scan ended (monotonic, seconds).
Scan = Tuple[Context, float]


class Ahead:
    """The scans of one project's contexts, started at once in a thread.

    :param state_dir: the state directory; the contexts are remembered below ``index/``.
    :param what: all that names the project: its folder, compose files, name.
    :param services: those that the run is for; all if empty.
    :param may_write: whether stat indexes, and the contexts of this run, may be written (not in check mode).
    """

    def __init__(
        self, state_dir: str, what: Sequence[str], services: AbstractSet[str] = frozenset(), may_write: bool = False
    ) -> None:
        self._state_dir = state_dir
        self._may_write = may_write
        name = hashlib.sha256("\0".join(what).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._path = os.path.join(state_dir, "index", name + ".contexts")
        self._known = _read(self._path)
        wanted = [entry for service, entry in self._known.items() if not services or service in services]
        self._later: Optional[Later[Dict[Remembered, Scan]]] = Later(lambda: self._scan(wanted)) if wanted else None

    def _scan(self, wanted: Sequence[Remembered]) -> Dict[Remembered, Scan]:
        found: Dict[Remembered, Scan] = {}
        for context, dockerfile, classic in dict.fromkeys(wanted):
            with contextlib.suppress(OfflineRebuildError, OSError):  # said by the planner, if it comes to it
                ignore = load_ignore(context, dockerfile, classic)
                scanned = indexed(self._state_dir, context, ignore, self._may_write)
                scanned.manifest()
                found[(context, dockerfile, classic)] = scanned, time.monotonic()
        return found

    def take(self, context: str, dockerfile: str, classic: bool, ignore: IgnoreFile) -> Optional[Context]:
        """:returns: the context, scanned, if it was scanned by the same rules just now. It is handed out once."""
        if self._later is None:
            return None
        found = self._later.result().pop((context, dockerfile, classic), None)
        if found is None:
            return None
        scanned, ended = found
        current = time.monotonic() - ended <= MOST_AGE
        return scanned if current and _rules(scanned.ignore) == _rules(ignore) else None

    def remember(self, contexts: Mapping[str, Remembered]) -> None:
        """Remember the contexts of this run's services, beside those of services that it was not for."""
        known = {**self._known, **contexts}
        if self._may_write and known != self._known:
            write_atomic(self._path, json.dumps(known, sort_keys=True).encode())


def indexed(state_dir: str, root: str, ignore: IgnoreFile, may_write: bool) -> Context:
    """:returns: a context with its stat index, which is written only if ``may_write``."""
    return Context(root, ignore, StatIndex.for_context(state_dir, root, ignore.file, readonly=not may_write))


def _rules(ignore: IgnoreFile) -> Tuple[object, ...]:
    return (ignore.file, *((pattern.exception, pattern.text) for pattern in ignore.patterns))


def _read(path: str) -> Dict[str, Remembered]:
    try:
        with open(path, "rb") as stream:
            known: Dict[str, List[object]] = json.loads(stream.read())
        found = {name: (str(at), str(dockerfile), bool(classic)) for name, (at, dockerfile, classic) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return found

"""What is kept under the state directory for images that are gone.

Kept for an image: ``records/<id>.json``, ``configs/<id>.json``; by records, ``manifests/<digest>.json``; by its layers,
``layers/<diff_id>.json.gz``. A file goes when no image of the host and no kept release of any project needs it. Files
that are young stay: another project's run may have written them for an image that it has only just made.
"""

from __future__ import annotations

import json
import os
import time
from typing import AbstractSet, Any, Dict, Iterable, List, Mapping, Set, Tuple

__all__ = ["YOUNG", "stale", "sweep"]

#: Seconds that a file stays whoever needs it.
YOUNG = 3600.0


def sweep(state_dir: str, images: Iterable[Mapping[str, Any]], young: float = YOUNG) -> List[str]:
    """Remove what nobody needs. What cannot be removed, or read, stays.

    :param images: ``docker image inspect`` of all local images.
    :returns: the paths removed.
    """
    return [path for path in stale(state_dir, images, young) if _unlinked(path)]


def stale(state_dir: str, images: Iterable[Mapping[str, Any]], young: float = YOUNG) -> List[str]:
    """What :func:`sweep` would remove; nothing is touched. :returns: the paths."""
    before = time.time() - young
    ids = _named(state_dir)
    layers: Set[str] = set()
    for image in images:
        ids.add(_hex(str(image.get("Id"))))
        layers.update(_hex(str(digest)) for digest in (image.get("RootFS") or {}).get("Layers") or ())
    found: List[str] = []
    for folder in ("records", "configs"):
        found += _unneeded(os.path.join(state_dir, folder), ids, before)
    manifests, certain = _manifests(os.path.join(state_dir, "records"), set(found))
    if certain:
        found += _unneeded(os.path.join(state_dir, "manifests"), manifests, before)
    return found + _unneeded(os.path.join(state_dir, "layers"), layers, before)


def _hex(digest: str) -> str:
    return digest.rpartition(":")[2]


def _unneeded(folder: str, needed: Set[str], before: float) -> List[str]:
    """The old files of a folder whose names, up to the first dot, are not needed; an interrupted write's too."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    paths = [os.path.join(folder, name) for name in names if _left_over(name) or name.partition(".")[0] not in needed]
    return [path for path in paths if _is_older(path, before)]


def _left_over(name: str) -> bool:
    return name.startswith(".tmp-") or name.endswith(".tmp")


def _is_older(path: str, before: float) -> bool:
    try:
        return os.lstat(path).st_mtime < before
    except OSError:
        return False


def _unlinked(path: str) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def _named(state_dir: str) -> Set[str]:
    """The images that a release of any project names. A release that cannot be read names none."""
    found: Set[str] = set()
    for document in _documents(os.path.join(state_dir, "releases"), 1)[0]:
        services = document.get("services")
        for record in services.values() if isinstance(services, dict) else ():
            if isinstance(record, dict):
                found.update(_hex(str(record.get(key) or "")) for key in ("before", "after", "tag_before"))
    return found - {""}


def _manifests(folder: str, gone: Set[str]) -> Tuple[Set[str], bool]:
    """:returns: the manifests that a record names, those in ``gone`` left out, and whether all could be read."""
    documents, certain = _documents(folder, 0, gone)
    found: Set[str] = set()
    for document in documents:
        for stage in document.get("stages") or ():
            found.update(_hex(str(digest)) for digest in (stage.get("manifests") or {}).values())
    return found, certain


def _documents(folder: str, depth: int, gone: AbstractSet[str] = frozenset()) -> Tuple[List[Dict[str, Any]], bool]:
    """The JSON objects in a folder, and whether all could be read; rendered compose projects are left out."""
    found: List[Dict[str, Any]] = []
    certain = True
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return [], True
    except OSError:
        return [], False
    for entry in entries:
        if depth and entry.is_dir(follow_symlinks=False):
            inner, sure = _documents(entry.path, depth - 1)
            found, certain = found + inner, certain and sure
        elif entry.name.endswith(".json") and not entry.name.endswith(".compose.json") and entry.path not in gone:
            try:
                with open(entry.path, "rb") as handle:
                    document = json.loads(handle.read())
                if isinstance(document, dict):
                    found.append(document)
            except (OSError, ValueError):
                certain = False
    return found, certain

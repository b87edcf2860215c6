"""Where an image's layers lie as directories on this host, to be read in place.

* Classic store with overlay2: ``docker image inspect`` names them (``GraphDriver.Data``: ``UpperDir`` is the top layer,
  ``LowerDir`` the others from upper to lower).
* Containerd store with the overlayfs snapshotter: nothing names them, but a running container's mount does. Its
  ``lowerdir`` lists the container's own first layer (moby daemon/containerd: the ``-init`` snapshot) and then the
  image's, from upper to lower; tried on 26.1. So the layers of every image that runs, and of every image whose
  layers are the beginning of such a one, need not be unpacked from their blobs.

Ids are shifted under ``userns-remap`` and rootless engines: their directories are not used.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from .cli import Docker

__all__ = ["RunningLayers", "lower_directories", "overlay_directories"]

_CAP_SYS_ADMIN = 21
_CONTAINER = re.compile(r"/rootfs/overlayfs/([0-9a-f]{64})\Z")


def _sees_trusted_xattrs() -> bool:
    """Whether this process may read ``trusted.*`` (capabilities(7): CAP_SYS_ADMIN); without, opaqueness is unseen."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
            for line in stream:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    except (OSError, ValueError, IndexError):
        pass
    return False


def overlay_directories(inspect: Mapping[str, Any], count: int) -> Optional[List[str]]:
    """The layers' directories, bottom first, or ``None`` if they cannot be read in place.

    :param inspect: ``docker image inspect`` of the image.
    :param count: the number of diff_ids; another number of directories is not understood.
    """
    driver = inspect.get("GraphDriver") or {}
    data = driver.get("Data") or {}
    if driver.get("Name") != "overlay2" or not data.get("UpperDir"):
        return None
    found = [data["UpperDir"]] + [d for d in str(data.get("LowerDir") or "").split(":") if d]
    found.reverse()
    if len(found) != count or not _sees_trusted_xattrs():
        return None
    store = os.path.dirname(os.path.dirname(found[0]))
    engine_root = os.path.basename(os.path.dirname(store))
    try:
        if os.stat(store).st_uid != 0 or engine_root.replace(".", "").isdigit():
            return None
        if not all(stat.S_ISDIR(os.lstat(path).st_mode) for path in found):
            return None
    except OSError:
        return None
    return found


class RunningLayers:
    """The layers' directories of the images of the containers that run on a containerd store.

    :param docker: asked once, for the images of the containers that have a mount.
    :param layers_of: the layers of an image by its id, bottom first.
    :param mounts: the text of ``/proc/mounts``; read when it is needed if ``None``.
    """

    def __init__(self, docker: Docker, layers_of: Callable[[str], Sequence[str]], mounts: Optional[str] = None) -> None:
        self._docker = docker
        self._layers_of = layers_of
        self._mounts = mounts
        self._known: Optional[Dict[Tuple[str, ...], str]] = None

    def __call__(self, diff_ids: Sequence[str]) -> Mapping[int, str]:
        """:returns: the directory of each layer that is known, by its index in ``diff_ids``."""
        if self._known is None:
            self._known = self._find()
        found = {index: self._known.get(tuple(diff_ids[: index + 1])) for index in range(len(diff_ids))}
        return {index: path for index, path in found.items() if path is not None}

    def _find(self) -> Dict[Tuple[str, ...], str]:
        known: Dict[Tuple[str, ...], str] = {}
        mounts = lower_directories(self._text())
        if not mounts or not _sees_trusted_xattrs():
            return known
        for container in self._docker.inspect("container", sorted(mounts)):
            lower = mounts[str(container["Id"])][1:]  # the first is the container's own
            diff_ids = tuple(self._layers_of(str(container.get("Image"))))
            if len(lower) != len(diff_ids) or not all(_is_usable(path) for path in lower):
                continue
            for count, path in enumerate(reversed(lower), 1):
                known[diff_ids[:count]] = path
        return known

    def _text(self) -> str:
        if self._mounts is not None:
            return self._mounts
        try:
            with open("/proc/mounts", encoding="utf-8", errors="surrogateescape") as stream:
                return stream.read()
        except OSError:
            return ""


def _is_usable(path: str) -> bool:
    """Whether a snapshot's directory is one of an engine whose ids are not shifted."""
    try:
        info = os.lstat(path)
        return stat.S_ISDIR(info.st_mode) and os.stat(os.path.dirname(os.path.dirname(path))).st_uid == 0
    except OSError:
        return False


def lower_directories(mounts: str) -> Dict[str, List[str]]:
    """The lower directories, upper first, of each container's overlay mount in the text of ``/proc/mounts``.

    Mounts whose directories are not absolute (containerd shortens a long list) or that are listed in a form that is not
    understood are left out.

    :returns: container id to directories.
    """
    found: Dict[str, List[str]] = {}
    for line in mounts.splitlines():
        fields = line.split(" ")
        place = _CONTAINER.search(fields[1]) if len(fields) > 3 and fields[2] == "overlay" else None
        if place is None:
            continue
        lower = _lower(fields[3].split(","))
        if lower and all(path.startswith("/") and "\\" not in path for path in lower):
            found[place.group(1)] = lower
    return found


def _lower(options: Iterable[str]) -> List[str]:
    """``lowerdir=a:b``, or one ``lowerdir+=a`` for each (kernel 6.5, overlayfs: new mount API)."""
    lower: List[str] = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "lowerdir":
            lower += value.split(":")
        elif name == "lowerdir+":
            lower.append(value)
        elif name == "datadir+":
            return []
    return lower

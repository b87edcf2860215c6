"""Loading image archives, and recording the evidence of the images while they are as they came.

All archives are read before the first is loaded: one that is damaged, incomplete or for another platform stops the run
with nothing loaded. An archive whose images are all there already is not loaded again, so a run that was cut off is
simply repeated. ``docker load`` may print an error and end with 0 (DESIGN.md, fact 3): names, configs, layers and
platform are compared afterwards.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from .archive import ArchivedImage, from_dict, read_archive
from .cli import Docker
from .errors import OfflineRebuildError, on_this_host
from .image import Image, ImageStore
from .layers import EvidenceStore, LayerReader
from .places import RunningLayers
from .reuse import same_platform

__all__ = ["ImportRequest", "import_archives", "index", "remember"]


@dataclass(frozen=True)
class ImportRequest:
    """What is asked for; the fields are the options of the module ``image_import``.

    :param archives: paths on this host.
    :param known: what :func:`index` said of archives that are not on this host yet.
    """

    archives: Sequence[str]
    check: bool = False
    known: Sequence[Mapping[str, Any]] = ()
    state_dir: str = "/var/lib/offline-rebuild"
    action: str = "import"


@dataclass
class _Archive:
    path: str
    images: Tuple[ArchivedImage, ...]
    here: bool = True
    status: str = "present"
    loaded: List[str] = field(default_factory=list)


def index(paths: Sequence[str]) -> List[Dict[str, Any]]:
    """:returns: per archive its ``path`` and ``images``; asks no engine.

    :raises OfflineRebuildError: ``archive-missing``, ``archive-invalid``.
    """
    return [{"path": path, "images": [image.to_dict() for image in read_archive(path)]} for path in paths]


def import_archives(request: ImportRequest) -> Dict[str, Any]:
    """Load what is not here yet, and record the evidence of all images of the archives.

    :returns: the module's result: ``changed``, ``msg``, ``archives`` (``path``, ``status`` ``present``, ``loaded`` or
        ``load`` in check mode, ``images``) and ``recorded``, the number of layers that were read.
    :raises OfflineRebuildError: ``archive-missing``, ``archive-invalid``, ``archive-platform``, ``load-failed``.
    """
    with on_this_host():
        return _import(request)


def _import(request: ImportRequest) -> Dict[str, Any]:
    if request.action == "index":
        return {"changed": False, "msg": "read", "archives": index(request.archives)}
    docker = Docker()
    docker.require(compose=None)
    store = ImageStore(docker)
    archives = [_open(path, request.known) for path in request.archives]
    layers = [(data.get("RootFS") or {}).get("Layers") or () for data in store.inspected()]
    held = {begin for each in layers for begin in _beginnings(each)}
    for archive in archives:
        _check(archive, store, held)
        held.update(begin for image in archive.images for begin in _beginnings(image.diff_ids))
    for archive in archives:
        if archive.status == "load" and not request.check:
            _load(archive, store)
    recorded = _record(request, store, [image for a in archives if a.status != "load" for image in a.images])
    loads = [archive for archive in archives if archive.status != "present"]
    words = "would be loaded" if request.check else "loaded"
    told = [f"{words}: {', '.join(_name(i) for i in archive.images)} ({archive.path})" for archive in loads]
    return {
        "changed": bool(loads or recorded),
        "msg": "; ".join(told) or ("evidence recorded" if recorded else "all images are there"),
        "archives": [
            {"path": a.path, "status": a.status, "images": [image.to_dict() for image in a.images]} for a in archives
        ],
        "recorded": recorded,
    }


def _record(request: ImportRequest, store: ImageStore, archived: Sequence[ArchivedImage]) -> int:
    """Record the evidence of images that are here. :returns: the number of layers that were, or would be, read."""
    evidence = EvidenceStore(os.path.join(request.state_dir, "layers"))
    running = RunningLayers(store.docker, store.layers) if store.content_dir is not None else None
    recorded = 0
    found = {have.id: have for image in archived for _, have in _found(image, store) if have is not None}
    for image in found.values():
        reader = LayerReader(
            store.docker,
            image.inspect,
            image.diff_ids,
            image.layer_descriptors,
            store.content_dir,
            evidence,
            not request.check,
            running,
        )
        recorded += remember(image, reader)
    return recorded


def remember(image: Image, reader: LayerReader) -> int:
    """Read and keep the layers of an image that a plan may ask for: those of COPY and ADD; all of them where layers can
    only be read whole, since then the way to a destination is looked for in the lower ones too.

    :returns: the number of layers that were not kept before.
    """
    wanted = range(len(image.diff_ids))
    if reader.in_place and image.history:
        copies = [entry.layer for entry in image.history if entry.layer is not None and _copies(entry.created_by)]
        return sum(reader.remember(layer) for layer in copies)
    return sum(reader.remember(layer) for layer in wanted)


def _copies(text: str) -> bool:
    words = text.replace("/bin/sh -c #(nop)", "", 1).split()
    return bool(words) and words[0] in ("COPY", "ADD")


def _open(path: str, known: Sequence[Mapping[str, Any]]) -> _Archive:
    for item in known:
        if item.get("path") == path and not os.path.exists(path):
            images = [from_dict(data) for data in item.get("images") or ()]
            return _Archive(path, tuple(image for image in images if image is not None), here=False)
    return _Archive(path, read_archive(path))


def _beginnings(layers: Sequence[str]) -> Iterator[Tuple[str, ...]]:
    """An engine knows a layer together with those below it."""
    return (tuple(layers[: count + 1]) for count in range(len(layers)))


def _check(archive: _Archive, store: ImageStore, held: Set[Tuple[str, ...]]) -> None:
    """Whether an archive has to be loaded, and can be.

    :param held: the layers that are there, each with those below it.
    """
    platform = store.info.platform
    fits = {image.refs for image in archive.images if same_platform(image.platform, platform)}
    archive.images = tuple(
        image for image in archive.images if same_platform(image.platform, platform) or image.refs not in fits
    )  # of an image for several platforms, this host's is the one meant
    for image in archive.images:
        if not image.refs:
            raise OfflineRebuildError(
                "archive-invalid",
                f"it holds an image without a name ({_name(image)}), which the next docker image prune would remove",
                "save it by its name: docker save NAME:TAG",
                archive.path,
            )
        if not same_platform(image.platform, platform):
            raise OfflineRebuildError(
                "archive-platform",
                f"{_name(image)} is for {image.platform}, and this host is {platform}",
                f"build or pull it with --platform {platform}, save it and bring it in",
                archive.path,
            )
        lacks = [digest for digest in image.missing if image.diff_ids[: image.diff_ids.index(digest) + 1] not in held]
        if lacks:
            raise OfflineRebuildError(
                "archive-invalid",
                f"it carries no layer {lacks[0]} of {_name(image)}, and no image on this host has it",
                "load the image that it builds on first, or save it whole",
                archive.path,
            )
    if all(_is_here(image, store) for image in archive.images):
        return
    archive.status = "load"


def _is_here(image: ArchivedImage, store: ImageStore) -> bool:
    return all(have is not None and have.config_digest == image.config_digest for _, have in _found(image, store))


def _found(image: ArchivedImage, store: ImageStore) -> List[Tuple[str, Optional[Image]]]:
    """What is on this host under each of an image's names."""
    return [(name, store.find(name)) for name in image.refs]


def _name(image: ArchivedImage) -> str:
    return image.refs[0] if image.refs else image.config_digest


def _load(archive: _Archive, store: ImageStore) -> None:
    if not archive.here:
        raise OfflineRebuildError("archive-missing", "there is no such file", "send it to the host", archive.path)
    names = [name for image in archive.images for name in image.refs]
    before = {str(data["Id"]) for data in map(store.inspect_of, names) if data is not None}
    said = store.docker.run("load", "-i", archive.path)
    store.forget()
    for image in archive.images:
        _compare(archive, image, store, said.text + said.stderr)
    _drop_nameless(before, store)
    archive.status = "loaded"


def _compare(archive: _Archive, image: ArchivedImage, store: ImageStore, said: str) -> None:
    for name, have in _found(image, store):
        why = ""
        if have is None:
            why = f"{name} is not there after docker load"
        elif len(have.diff_ids) != len(image.diff_ids):
            why = f"{name} has another number of layers after docker load"
        elif have.config_digest != image.config_digest or have.diff_ids != image.diff_ids:
            why = f"{name} is another image after docker load than the archive has"
        elif not same_platform(have.platform, image.platform):
            why = f"{name} is for {have.platform} after docker load"
        if why:
            tail = " ".join(said.split())[-200:]
            raise OfflineRebuildError(
                "load-failed", f"{why}; docker said: {tail}", "see the disk's free space, then run again", archive.path
            )


def _drop_nameless(before: Any, store: ImageStore) -> None:
    """Images that the archive's names stood for are removed where nothing holds them: no name and no container."""
    for data in store.docker.inspect("image", sorted(before)):
        if not data.get("RepoTags"):
            store.docker.run("image", "rm", str(data["Id"]), check=False)
    if before:
        store.forget()

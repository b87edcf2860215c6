"""What is in an image archive, told without loading it: names, config digests, layers, platform.

Read are the forms that ``docker save`` writes: ``manifest.json`` (docker image spec v1.2; every version writes it),
else ``index.json`` alone (OCI image-layout). An archive need not carry every layer that it names: those that the engine
has already may be left out. Pure: nothing here asks an engine.
"""

from __future__ import annotations

import json
import os
import posixpath
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from .errors import OfflineRebuildError
from .image import is_sound, normal_ref, sha256

__all__ = ["ArchivedImage", "read_archive"]

#: A config, manifest or index is far smaller; what is bigger is a layer.
_MOST_DOCUMENT = 8 << 20
_MOST_TOGETHER = 256 << 20


@dataclass(frozen=True)
class ArchivedImage:
    """One image of an archive.

    :param refs: its names with tags.
    :param config_digest: digest of its config.
    :param diff_ids: its layers, bottom first; ``missing`` are those that the archive does not carry.
    :param platform: ``os/arch[/variant]``.
    """

    refs: Tuple[str, ...]
    config_digest: str
    diff_ids: Tuple[str, ...]
    platform: str
    missing: Tuple[str, ...] = ()

    def to_dict(self) -> Dict[str, Any]:
        """:returns: the fields, JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class _Content:
    """What a pass over the archive saw: its members' names, and the small ones that look like JSON."""

    names: Set[str]
    documents: Mapping[str, bytes]


def read_archive(path: str) -> Tuple[ArchivedImage, ...]:
    """Read the index of an archive. The whole file is gone over, so that one that was cut short is noticed.

    :param path: a tar, plain or compressed by gzip, bzip2 or xz.
    :returns: its images.
    :raises OfflineRebuildError: ``archive-missing``, ``archive-invalid``.
    """
    content = _scan(path)
    if "manifest.json" in content.documents:
        return tuple(_of_docker(path, content))
    if "index.json" in content.documents:
        return tuple(_of_oci(path, content))
    raise _invalid(path, "it holds neither manifest.json nor index.json, so it is no image archive")


def _invalid(path: str, why: str) -> OfflineRebuildError:
    return OfflineRebuildError(
        "archive-invalid", why, "make it again with docker save, compare its size and checksum, and bring it in", path
    )


def _scan(path: str) -> _Content:
    import lzma
    import tarfile
    import zlib

    try:
        if os.path.getsize(path) == 0:
            raise _invalid(path, "the file is empty")
        with tarfile.open(path, "r:*") as archive:
            return _members(path, archive)
    except FileNotFoundError:
        raise OfflineRebuildError(
            "archive-missing", "there is no such file", "mend the path, or bring the file to the host", path
        ) from None
    except IsADirectoryError:
        raise _invalid(path, "it is a folder and no archive") from None
    except EOFError:
        raise _invalid(path, "it was cut short") from None
    except (tarfile.TarError, zlib.error, lzma.LZMAError, ValueError, OverflowError) as error:
        cut = "unexpected end" in str(error) or "end-of-stream" in str(error)
        raise _invalid(path, "it was cut short" if cut else f"it cannot be read as a tar: {error}") from None
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's own
            raise _invalid(path, f"it cannot be read as a tar: {error}") from None
        raise


def _members(path: str, archive: Any) -> _Content:
    names: Set[str] = set()
    documents: Dict[str, bytes] = {}
    together = 0
    for member in archive:
        archive.members = []  # tarfile keeps every header otherwise
        name = _inside(path, member.name)
        if member.issym() or member.islnk():
            _inside(path, posixpath.join(posixpath.dirname(name) if member.issym() else "", member.linkname))
        elif not (member.isreg() or member.isdir()):
            raise _invalid(path, f"it holds {name}, which is neither file, folder nor link")
        names.add(name)
        if not member.isreg() or member.size > _MOST_DOCUMENT:
            continue
        data = archive.extractfile(member).read()
        if len(data) != member.size:
            raise _invalid(path, "it was cut short")
        if data[:1] in (b"{", b"["):
            together += len(data)
            documents[name] = data
        if together > _MOST_TOGETHER:
            raise _invalid(path, "its documents are bigger than those of any image archive")
    return _Content(names, documents)


def _inside(path: str, name: str) -> str:
    clean = posixpath.normpath(name)
    if name.startswith("/") or clean == ".." or clean.startswith("../"):
        raise _invalid(path, f"it names a path outside of itself: {name!r}")
    return clean


def _parsed(path: str, content: _Content, name: str) -> Any:
    raw = content.documents.get(posixpath.normpath(name))
    if raw is None:
        raise _invalid(path, f"it lacks {name}, which its index names")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise _invalid(path, f"its {name} is no JSON") from None


def _of_docker(path: str, content: _Content) -> List[ArchivedImage]:
    listed = _parsed(path, content, "manifest.json")
    if not isinstance(listed, list) or not listed:
        raise _invalid(path, "its manifest.json lists no image")
    found: List[ArchivedImage] = []
    for item in listed:
        if not isinstance(item, Mapping) or not isinstance(item.get("Config"), str):
            raise _invalid(path, "its manifest.json is not of the known form")
        layers = item.get("Layers") or []
        if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
            raise _invalid(path, "its manifest.json is not of the known form")
        config, digest = _config(path, content, item["Config"])
        diff_ids = tuple(config["rootfs"].get("diff_ids") or ())
        if len(layers) != len(diff_ids):
            raise _invalid(path, f"it lists {len(layers)} layers for an image of {len(diff_ids)}")
        missing = tuple(d for d, layer in zip(diff_ids, layers) if posixpath.normpath(layer) not in content.names)
        found.append(_image(path, item.get("RepoTags"), config, digest, missing))
    return found


def _of_oci(path: str, content: _Content) -> List[ArchivedImage]:
    found: List[ArchivedImage] = []
    todo = [(descriptor, "") for descriptor in _descriptors(path, _parsed(path, content, "index.json"))]
    while todo:
        descriptor, name = todo.pop(0)
        notes = descriptor.get("annotations") or {}
        name = str(notes.get("io.containerd.image.name") or name)
        if notes.get("vnd.docker.reference.type") == "attestation-manifest":
            continue
        blob = _blob(descriptor)
        if blob not in content.names and name == "":
            continue
        document = _parsed(path, content, blob)
        if "manifests" in document:
            todo += [(d, name) for d in _descriptors(path, document) if _blob(d) in content.names]
            continue
        config, digest = _config(path, content, _blob(document.get("config") or {}))
        layers = document.get("layers") or []
        diff_ids = tuple(config["rootfs"].get("diff_ids") or ())
        if len(layers) != len(diff_ids):
            raise _invalid(path, f"it lists {len(layers)} layers for an image of {len(diff_ids)}")
        missing = tuple(d for d, layer in zip(diff_ids, layers) if _blob(layer) not in content.names)
        found.append(_image(path, [name] if name else [], config, digest, missing))
    if not found:
        raise _invalid(path, "its index.json lists no image")
    return found


def _descriptors(path: str, document: Any) -> List[Mapping[str, Any]]:
    listed = document.get("manifests") if isinstance(document, Mapping) else None
    if not isinstance(listed, list) or not all(isinstance(item, Mapping) for item in listed):
        raise _invalid(path, "its index is not of the known form")
    return list(listed)


def _blob(descriptor: Mapping[str, Any]) -> str:
    return "blobs/" + str(descriptor.get("digest") or "").replace(":", "/")


def _config(path: str, content: _Content, name: str) -> Tuple[Mapping[str, Any], str]:
    """A config, and its digest, which has to be the one in its name."""
    config = _parsed(path, content, name)
    digest = sha256(content.documents[posixpath.normpath(name)])
    named = posixpath.basename(name).partition(".")[0]
    if digest.partition(":")[2] != named:
        raise _invalid(path, f"its {name} has another content than its name says")
    if not isinstance(config, Mapping) or not is_sound(config):
        raise _invalid(path, f"its {name} is no image config")
    return config, digest


def _image(
    path: str, refs: Any, config: Mapping[str, Any], digest: str, missing: Sequence[str]
) -> ArchivedImage:  # fmt: skip
    if not (refs is None or (isinstance(refs, list) and all(isinstance(ref, str) for ref in refs))):
        raise _invalid(path, "its index is not of the known form")
    names = tuple(sorted(normal_ref(ref) for ref in refs or ()))
    variant = str(config.get("variant") or "")
    platform = f"{config.get('os') or ''}/{config.get('architecture') or ''}" + (f"/{variant}" if variant else "")
    return ArchivedImage(names, digest, tuple(config["rootfs"].get("diff_ids") or ()), platform, tuple(missing))


def from_dict(data: Mapping[str, Any]) -> Optional[ArchivedImage]:
    """:returns: what :meth:`ArchivedImage.to_dict` gave; ``None`` for anything else."""
    try:
        lists = {key: tuple(str(item) for item in data[key]) for key in ("refs", "diff_ids", "missing")}
        return ArchivedImage(config_digest=str(data["config_digest"]), platform=str(data["platform"]), **lists)
    except (KeyError, TypeError):
        return None

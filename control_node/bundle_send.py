"""What a host lacks of a bundle, as an archive that holds no more (DESIGN.md, "The archive").

Hosts that lack the same get the same file: archives lie in a folder of the control node by what is in them, and the
first process that needs one makes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from module_utils.offline_rebuild.delta import Held, Holdings, longest, read_holdings
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.graft import ImageDocument, add_documents, blob_name, manifest_of
from module_utils.offline_rebuild.image import is_sound, sha256

from .bundle_index import BundleImage, Index, invalid
from .bundle_read import Bundle

__all__ = ["Lack", "check_images", "lacking", "pack", "report", "summary"]

#: Bytes that stay free on the host.
RESERVE = 256 << 20


@dataclass(frozen=True)
class Missing:
    """An image that a host lacks: the number of its layers that the host has, and in which image."""

    image: BundleImage
    left_out: int
    held: Held | None

    @property
    def carried(self) -> list[tuple[str, str, int]]:
        """:returns: diff_id, digest of the blob and bytes of each layer that goes along."""
        layers = zip(self.image.diff_ids[self.left_out :], self.image.layers[self.left_out :])
        return [(diff_id, layer.digest, layer.size) for diff_id, layer in layers]


@dataclass(frozen=True)
class Lack:
    """What a host lacks: images, records (config digests) and lists (diff_ids); ``store`` is its image store."""

    store: str
    missing: tuple[Missing, ...]
    records: tuple[str, ...]
    lists: tuple[str, ...]

    @property
    def blobs(self) -> dict[str, int]:
        """:returns: digest to bytes of the layers that go along, each once."""
        return {digest: size for each in self.missing for _, digest, size in each.carried}

    @property
    def layer_bytes(self) -> int:
        """:returns: the bytes of the layers that go along."""
        return sum(self.blobs.values())


def summary(index: Index) -> dict[str, Any]:
    """:returns: what a host is asked about, JSON-ready."""
    return {
        "id": index.id,
        "created": index.created,
        "project": index.project,
        "platform": index.platform,
        "images": [
            {"refs": list(image.refs), "config_digest": image.config_digest, "platform": image.platform}
            for image in index.images
        ],
        "records": [_digest(path) for path in index.paths("records") if path.count("/") == 1],
        "lists": [_digest(path) for path in index.paths("layers")],
    }


def _digest(path: str) -> str:
    return "sha256:" + path.rpartition("/")[2].partition(".")[0]


def check_images(bundle: Bundle) -> None:
    """The images' documents are those that the index tells of.

    :raises OfflineRebuildError: ``bundle-invalid``.
    """
    for image in bundle.index.images:
        config = _document(bundle, image.config)
        if not is_sound(config) or tuple(config["rootfs"].get("diff_ids") or ()) != image.diff_ids:
            raise invalid(f"the config of {image.name} has other layers than the index says", str(bundle.path))
        variant = str(config.get("variant") or "")
        platform = f"{config.get('os')}/{config.get('architecture')}" + (f"/{variant}" if variant else "")
        if platform != image.platform:
            raise invalid(f"{image.name} is for {platform}, and the index says {image.platform}", str(bundle.path))
        if image.manifest:
            named = [layer.get("digest") for layer in _document(bundle, image.manifest).get("layers") or ()]
            if named != [layer.digest for layer in image.layers]:
                raise invalid(f"the manifest of {image.name} has other layers than the index says", str(bundle.path))


def _document(bundle: Bundle, path: str) -> Mapping[str, Any]:
    try:
        data = json.loads(bundle.read(path))
        if isinstance(data, dict):
            return data
    except (ValueError, RecursionError):
        pass
    raise invalid(f"{path} is no JSON document", str(bundle.path))


def lacking(index: Index, answer: Mapping[str, Any]) -> Lack:
    """What a host lacks.

    :param answer: what the module ``bundle_import`` said there with ``action=ask``.
    :raises OfflineRebuildError: ``bundle-base-missing``, ``disk-full``.
    """
    there = read_holdings(json.dumps(answer["holdings"]))
    missing = [_missing(image, there) for image, here in zip(index.images, answer["present"]) if not here]
    lack = Lack(there.store, tuple(missing), tuple(answer["records"]), tuple(answer["lists"]))
    _check_base(index, lack)
    _check_room(lack, answer["free"])
    return lack


def _missing(image: BundleImage, there: Holdings) -> Missing:
    left_out, held = longest(image.diff_ids, there)
    return Missing(image, left_out, held)


def _check_base(index: Index, lack: Lack) -> None:
    carried = {part.path for part in index.parts}
    for each in lack.missing:
        for diff_id, digest, _ in each.carried:
            if blob_name(digest) not in carried:
                needs = index.needs.bundle if index.needs else "another"
                raise OfflineRebuildError(
                    "bundle-base-missing",
                    f"this host lacks layer {diff_id} of {each.image.name}, which the bundle leaves out since bundle "
                    f"{needs} has it; nothing was loaded",
                    f"import bundle {needs} on this host first, or bring in a whole one (made with no since)",
                )


def _check_room(lack: Lack, free: Mapping[str, Any]) -> None:
    """The archive lies in the state folder until the engine has taken it in."""
    size = lack.layer_bytes
    packed = any(not layer.media_type.endswith("tar") for each in lack.missing for layer in each.image.layers)
    unpacked = size * (4 if packed else 1)
    needed = {
        "engine": unpacked + (size if lack.store == "containerd" else 0),
        "state": size,
    }  # it keeps the blobs, too
    if free["same"]:
        needed = {"engine": needed["engine"] + needed["state"]}
    for place, wanted in needed.items():
        if wanted and int(free[place]) < wanted + RESERVE:
            where = "where the engine keeps images" if place == "engine" else "under the state folder"
            raise OfflineRebuildError(
                "disk-full",
                f"{int(free[place]) >> 20} MiB are free {where}, and the bundle needs {(wanted + RESERVE) >> 20}; "
                "nothing was loaded",
                "free some; docker system df shows what is used",
            )


def pack(bundle: Bundle, lack: Lack, folder: Path) -> dict[str, str]:
    """Make the files that a host is sent, or find them made.

    :returns: paths by ``archive`` and ``evidence``; without those that are not needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    if lack.missing:
        key = [
            [each.image.config_digest, each.left_out, each.held.descriptors if each.held else None]
            for each in lack.missing
        ]
        made["archive"] = _made(
            folder, "images", [bundle.index_sha256, lack.store, key], lambda s: _archive(bundle, lack, s)
        )
    names = _evidence_names(bundle.index, lack)
    if names:
        made["evidence"] = _made(
            folder, "evidence", [bundle.index_sha256, names], lambda s: _evidence(bundle, names, s)
        )
    return made


def _made(folder: Path, what: str, key: Any, write: Any) -> str:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = folder / f"{what}-{name}.tar"
    with (folder / f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            partial = path.with_suffix(".part")
            with partial.open("wb") as stream:
                write(stream)
            partial.replace(path)
    return str(path)


class _Proving(io.RawIOBase):
    """A part as a stream, hashed as it is read: a stick may be changed after it was verified."""

    def __init__(self, bundle: Bundle, path: str) -> None:
        part = bundle.parts[path]
        self._chunks, self._rest, self._left = bundle.chunks(path, part.size), b"", part.size
        self._digest, self._wanted, self._name = hashlib.sha256(), part.sha256, f"{bundle.path}: {path}"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._chunks, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._digest.update(self._rest[:count])
        self._rest = self._rest[count:]
        self._left -= count
        if self._left == 0 and self._digest.hexdigest() != self._wanted:
            raise invalid(f"{self._name} has changed since it was verified")
        return count


def _add(archive: tarfile.TarFile, bundle: Bundle, path: str) -> None:
    info = tarfile.TarInfo(path)
    info.size = bundle.size(path)
    archive.addfile(info, io.BufferedReader(_Proving(bundle, path), 1 << 20))


def _archive(bundle: Bundle, lack: Lack, stream: IO[bytes]) -> None:
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for digest in lack.blobs:
            _add(archive, bundle, blob_name(digest))
        documents = [made for each in lack.missing for made in _documents(bundle, each, lack.store)]
        blobs = {diff_id: digest for each in lack.missing for diff_id, digest, _ in each.carried}
        add_documents(archive, documents, blobs)


def _documents(bundle: Bundle, each: Missing, store: str) -> list[ImageDocument]:
    image = each.image
    config = bundle.read(image.config)
    manifest = None
    if store == "containerd":
        held = list((each.held.descriptors or ())[: each.left_out]) if each.held else []
        layers = [*held, *(layer.descriptor for layer in image.layers[each.left_out :])]
        own = bundle.read(image.manifest) if image.manifest else None
        same = [_key(layer) for layer in layers] == [_key(layer.descriptor) for layer in image.layers]
        like = json.loads(own) if own is not None else None
        manifest = own if own is not None and same else manifest_of(config, layers, like)
    if sha256(config) != image.config_digest:
        raise invalid(f"{image.config} has changed since it was verified", str(bundle.path))
    return [ImageDocument(ref, config, image.diff_ids, manifest) for ref in image.refs]


def _key(descriptor: Mapping[str, Any]) -> tuple[Any, Any]:
    return descriptor["digest"], descriptor["mediaType"]


def _evidence_names(index: Index, lack: Lack) -> list[str]:
    records = {*lack.records, *(each.image.config_digest for each in lack.missing)}
    wanted = {f"records/{digest.partition(':')[2]}.json" for digest in records}
    wanted |= {f"layers/{digest.partition(':')[2]}.json.gz" for digest in lack.lists}
    names = sorted(path for path in (*index.paths("records"), *index.paths("layers")) if path in wanted)
    if any(name.startswith("records/") for name in names):
        names += [path for path in index.paths("records") if path.startswith("records/manifests/")]
    return names


def _evidence(bundle: Bundle, names: Sequence[str], stream: IO[bytes]) -> None:
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            _add(archive, bundle, name)


def report(lack: Lack) -> tuple[list[dict[str, Any]], str]:
    """:returns: per image what is lacking, and one line for the operator."""
    rows = [
        {
            "name": each.image.name,
            "layers": len(each.image.diff_ids),
            "carried": len(each.carried),
            "bytes": sum(size for _, _, size in each.carried),
        }
        for each in lack.missing
    ]
    told = [f"{row['name']} ({row['carried']} of {row['layers']} layers, {row['bytes']} bytes)" for row in rows]
    if len(told) > 1:
        told.append(f"together {lack.layer_bytes} bytes, since images share layers")
    evidence = len(lack.records) + len(lack.lists)
    return rows, "; ".join([*told, *([f"{evidence} file(s) of evidence"] if evidence else [])])

"""A delta: an image archive that leaves out the layers that its receiver has, loaded by plain ``docker load``.

The receiver tells what it holds (:func:`holdings`), the sender leaves that out (:func:`write`). An engine knows a layer
by itself and all below it, so what counts is the longest common beginning of the image's layers and those of one image
there. The form is that of the grafts (DESIGN.md, "The archive"): ``manifest.json`` for the classic store; an OCI index
for the containerd store, where the layers left out are named by the receiver's own descriptors.

Layers come out of one ``docker save`` and go through as they are, never whole in memory. Each is hashed on its way.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import posixpath
import shutil
import subprocess
import tarfile
import zlib
from dataclasses import dataclass, field
from typing import IO, Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from .cli import Docker, parse_version
from .errors import OfflineRebuildError, on_this_host
from .graft import ImageDocument, add_documents, blob_name, manifest_of
from .image import Image, ImageStore, missing_image, normal_ref, sha256
from .reuse import same_platform

__all__ = [
    "Delta",
    "DeltaRequest",
    "Held",
    "Holdings",
    "Part",
    "Receiver",
    "Saved",
    "common",
    "copy_out",
    "holdings",
    "longest",
    "make",
    "make_all",
    "make_for",
    "own_manifest",
    "read_holdings",
]

SCHEMA = 1
#: A config or manifest is far smaller; what is bigger is a layer.
_MOST_DOCUMENT = 8 << 20
_CHUNK = 1 << 20
#: An archive is compressed where samples of it shrink below this: it is made once and sent to many.
_PAYS = 0.8
_SAMPLES, _SAMPLE = 8, 64 << 10
#: Takes a layer: the digest that it is named by, its size in bytes, its content.
Put = Callable[[str, int, IO[bytes]], None]


@dataclass(frozen=True)
class Held:
    """One image of a host: its ``layers`` (diff_ids, bottom first) and, on the containerd store, the descriptors by
    which its manifest names them."""

    layers: Tuple[str, ...]
    descriptors: Optional[Tuple[Mapping[str, Any], ...]] = None


@dataclass(frozen=True)
class Holdings:
    """What a host has.

    :param store: ``classic`` or ``containerd``.
    :param platform: ``os/arch[/variant]`` of the engine.
    """

    store: str
    platform: str
    images: Tuple[Held, ...] = ()

    def to_dict(self) -> Dict[str, Any]:
        """:returns: the fields, JSON-ready, with the number of the schema."""
        images = [
            {"layers": list(held.layers), "descriptors": None if held.descriptors is None else list(held.descriptors)}
            for held in self.images
        ]
        return {"schema": SCHEMA, "store": self.store, "platform": self.platform, "images": images}


@dataclass(frozen=True)
class Part:
    """One image of a delta.

    :param image_id: its id at the sender.
    :param left_out: how many of its layers are not carried; ``carried`` are the diff_ids of the others.
    """

    ref: str
    image_id: str
    config_digest: str
    layers: Tuple[str, ...]
    left_out: int

    @property
    def carried(self) -> Tuple[str, ...]:
        """:returns: the diff_ids of the layers that go along, bottom first."""
        return self.layers[self.left_out :]


@dataclass(frozen=True)
class Delta:
    """What was written: the images, the bytes of the layers that it carries, and of the whole archive."""

    parts: Tuple[Part, ...]
    layer_bytes: int
    size: int

    def to_dict(self) -> Dict[str, Any]:
        """:returns: the fields, JSON-ready."""
        parts = [
            {
                "ref": part.ref,
                "image_id": part.image_id,
                "config_digest": part.config_digest,
                "layers": list(part.layers),
                "left_out": part.left_out,
                "carried": list(part.carried),
            }
            for part in self.parts
        ]
        return {"images": parts, "layer_bytes": self.layer_bytes, "size": self.size}


@dataclass(frozen=True)
class Receiver:
    """Hosts that hold the same, and the names of the images that they are to get."""

    hosts: Tuple[str, ...]
    images: Tuple[str, ...]
    holdings: Holdings


@dataclass(frozen=True)
class DeltaRequest:
    """What is asked for; the fields are the options of the module ``image_delta``."""

    receivers: Sequence[Mapping[str, Any]]
    folder: str
    forget: Sequence[str] = ()
    state_dir: str = "/var/lib/offline-rebuild"


# -- the receiver -----------------------------------------------------------------------------------------------------


def holdings(store: ImageStore) -> Holdings:
    """:returns: the layers that this host has. Images whose layers are the beginning of another's are left out."""
    containerd = store.info.store == "containerd"
    found: Dict[Tuple[str, ...], Held] = {}
    for data in store.inspected():
        layers = tuple(str(digest) for digest in (data.get("RootFS") or {}).get("Layers") or ())
        if not containerd:
            found.setdefault(layers, Held(layers))
            continue
        image = store.find(str(data["Id"]))
        descriptors = image.layer_descriptors if image is not None else None
        if image is not None and descriptors is not None and len(descriptors) == len(image.diff_ids):
            plain = tuple({key: each[key] for key in ("mediaType", "digest", "size")} for each in descriptors)
            key = tuple(str(each["digest"]) for each in plain)  # the same layers may be there in two forms
            found.setdefault((*image.diff_ids, *key), Held(image.diff_ids, plain))
    images = sorted(found.values(), key=lambda held: (-len(held.layers), held.layers))
    kept: List[Held] = []
    for held in images:
        if held.layers and not any(_begins(other, held) for other in kept):
            kept.append(held)
    return Holdings(store.info.store, store.info.platform, tuple(kept))


def _begins(longer: Held, held: Held) -> bool:
    count = len(held.layers)
    same = held.descriptors is None or (longer.descriptors or ())[:count] == held.descriptors
    return same and longer.layers[:count] == held.layers


def read_holdings(text: str, file: str = "") -> Holdings:
    """Read what ``holdings`` printed on another host.

    :raises OfflineRebuildError: ``holdings-invalid``.
    """
    try:
        data = json.loads(text)
        data = data.get("holdings", data)
        if data["schema"] != SCHEMA:
            raise ValueError(f"it has schema {data['schema']!r}, not {SCHEMA}")
        if data["store"] not in ("classic", "containerd"):
            raise ValueError(f"there is no image store {data['store']!r}")
        images = tuple(_held(item, data["store"]) for item in data["images"])
        return Holdings(str(data["store"]), str(data["platform"]), images)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OfflineRebuildError(
            "holdings-invalid",
            f"this is not what a host holds: {error}",
            "on the receiving host: offline-rebuild.pyz holdings > FILE",
            file=file or None,
        ) from None


def _held(item: Mapping[str, Any], store: str) -> Held:
    layers = tuple(_digest(layer) for layer in item["layers"])
    if store == "classic":
        return Held(layers)
    descriptors = tuple(
        {"mediaType": str(each["mediaType"]), "digest": _digest(each["digest"]), "size": int(each["size"])}
        for each in item["descriptors"]
    )
    if len(descriptors) != len(layers):
        raise ValueError("an image has other than one descriptor a layer")
    return Held(layers, descriptors)


def _digest(value: Any) -> str:
    kind, _, number = str(value).partition(":")
    if kind != "sha256" or len(number) != 64 or set(number) - set("0123456789abcdef"):
        raise ValueError(f"{value!r} is no digest")
    return str(value)


# -- the sender -------------------------------------------------------------------------------------------------------


def common(image: Image, there: Holdings) -> Tuple[int, Optional[Held]]:
    """:returns: how many of the image's layers, from the bottom, the receiver has, and in which of its images."""
    return longest(image.diff_ids, there)


def longest(layers: Sequence[str], there: Holdings) -> Tuple[int, Optional[Held]]:
    """:returns: as :func:`common`, of an image that is told by its diff_ids."""
    best: Tuple[int, Optional[Held]] = (0, None)
    for held in there.images:
        count = 0
        for mine, theirs in zip(layers, held.layers):
            if mine != theirs:
                break
            count += 1
        if count > best[0]:
            best = (count, held)
    return best


def make_for(request: DeltaRequest) -> List[Dict[str, Any]]:
    """What the module ``image_delta`` does. :returns: as :func:`make_all`.

    :raises OfflineRebuildError: ``holdings-invalid``, ``host-refused``, and as :func:`make`.
    """
    with on_this_host():
        docker = Docker()
        docker.require(compose=None)
        store = ImageStore(docker, os.path.join(request.state_dir, "configs"), True)
        receivers = [
            Receiver(
                tuple(str(host) for host in item.get("hosts") or ()),
                tuple(str(name) for name in item.get("images") or ()),
                read_holdings(json.dumps(item.get("holdings"))),
            )
            for item in request.receivers
        ]
        made = make_all(store, receivers, request.folder)
        if request.forget:
            docker.run("image", "rm", "--no-prune", *request.forget, check=False)
        return made


def make_all(store: ImageStore, receivers: Sequence[Receiver], folder: str) -> List[Dict[str, Any]]:
    """Write one delta per distinct set of missing layers.

    :param folder: where to; the files get its owner, so that who may read the folder may read them.
    :returns: per archive its ``path``, ``hosts``, the image names ``refs``, and the fields of :class:`Delta`.
    :raises OfflineRebuildError: as :func:`make`.
    """
    made: Dict[Tuple[Any, ...], Dict[str, Any]] = {}
    for receiver in receivers:
        lacks = _lacks(store, receiver)
        if lacks in made:
            made[lacks]["hosts"] += receiver.hosts
            continue
        path = os.path.join(folder, f"delta-{len(made)}.tar")
        delta = make(store, receiver.images, receiver.holdings, path, compress=True)
        owner = os.stat(folder)
        os.chown(path, owner.st_uid, owner.st_gid)
        made[lacks] = {"path": path, "hosts": list(receiver.hosts), "refs": list(receiver.images), **delta.to_dict()}
    return list(made.values())


def _lacks(store: ImageStore, receiver: Receiver) -> Tuple[Any, ...]:
    """:returns: what tells whether two receivers can load the same archive."""
    found: List[Any] = [receiver.holdings.store, receiver.holdings.platform]
    for name in receiver.images:
        image = store.find(name)
        if image is not None:
            left, held = common(image, receiver.holdings)
            descriptors = (held.descriptors or ())[:left] if held is not None else ()
            found.append((name, left, tuple(str(each["digest"]) for each in descriptors)))
    return tuple(found)


def make(store: ImageStore, names: Sequence[str], there: Holdings, path: str, compress: bool = False) -> Delta:
    """Write a delta of the named images to a file, whole or not at all.

    :param compress: by gzip, where that pays.
    :raises OfflineRebuildError: ``image-missing``, ``archive-platform`` (the receiver's is another), ``save-failed``.
    """
    images: List[Tuple[str, Image]] = []
    for name in dict.fromkeys(normal_ref(name) for name in names):
        image = store.find(name)
        if image is None:
            raise missing_image(name, ("the delta",), store.info.platform)
        if not same_platform(image.platform, there.platform):
            raise OfflineRebuildError(
                "archive-platform",
                f"{name} is for {image.platform}, and the receiver is {there.platform}",
                f"build it with --platform {there.platform}",
            )
        images.append((name, image))
    partial = f"{path}.{os.getpid()}.tmp"
    try:
        with open(partial, "wb") as stream:
            parts, carried = _write(store, images, there, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if compress and _shrinks(partial):
            _compress(partial)
        size = os.path.getsize(partial)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)
    return Delta(parts, carried, size)


def _shrinks(path: str) -> bool:
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        parts = []
        for number in range(_SAMPLES):
            stream.seek(size * number // _SAMPLES)
            parts.append(stream.read(_SAMPLE))
    sample = b"".join(parts)
    return len(zlib.compress(sample, 1)) < _PAYS * len(sample)


def _compress(path: str) -> None:
    with open(path, "rb") as source, open(path + ".gz", "wb") as target:
        try:
            with gzip.GzipFile("", "wb", 1, target, 0) as packed:
                shutil.copyfileobj(source, packed, _CHUNK)
            os.replace(path + ".gz", path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path + ".gz")


@dataclass
class Saved:
    """What a pass over ``docker save`` found: layers that were copied (diff_id to name and size), small documents."""

    copied: Dict[str, Tuple[str, int]] = field(default_factory=dict)
    documents: Dict[str, bytes] = field(default_factory=dict)


def _write(
    store: ImageStore, images: Sequence[Tuple[str, Image]], there: Holdings, stream: IO[bytes]
) -> Tuple[Tuple[Part, ...], int]:
    shared = [common(image, there) for _, image in images]
    wanted = {diff_id for (_, image), (left, _) in zip(images, shared) for diff_id in image.diff_ids[left:]}
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        found = copy_out(store, [image for _, image in images], wanted, _into(archive))
        documents = [
            _document(name, image, left, held, there, found) for (name, image), (left, held) in zip(images, shared)
        ]
        add_documents(archive, documents, {diff_id: name for diff_id, (name, _) in found.copied.items()})
    parts = tuple(
        Part(name, image.id, image.config_digest, image.diff_ids, left)
        for (name, image), (left, _) in zip(images, shared)
    )
    return parts, sum(size for _, size in found.copied.values())


def _into(archive: tarfile.TarFile) -> Put:
    def put(digest: str, size: int, source: IO[bytes]) -> None:
        info = tarfile.TarInfo(blob_name(digest))
        info.size = size
        archive.addfile(info, source)

    return put


def copy_out(
    store: ImageStore,
    images: Sequence[Image],
    wanted: Set[str],
    put: Put,
    see: Optional[Callable[[str, IO[bytes]], None]] = None,
) -> Saved:
    """Copy the wanted layers out of ``docker save``, each to its end, and keep the documents.

    :param wanted: diff_ids.
    :param see: shown the other layers, by diff_id; need not read them.
    :raises OfflineRebuildError: ``save-failed``.
    """
    found = Saved()
    ids = list(dict.fromkeys(image.id for image in images))
    places = _places(images)
    if store.info.store == "classic" and parse_version(store.info.version) < (25,):
        # until 25.0 a layer lies under the name of an old image id: manifest.json, the last member, tells which
        for name, member, source in _saved(store.docker, ids):
            _keep(found, name, member, source)
        places = _listed(found.documents)
    for name, member, source in _saved(store.docker, ids):
        diff_id = places.get(name, "")
        if diff_id in wanted and diff_id not in found.copied and member.isreg():
            _copy_layer(put, diff_id, name, member, source, found)
        elif diff_id and see is not None and diff_id not in wanted:
            see(diff_id, source)
        else:
            _keep(found, name, member, source)
    lacking = sorted(wanted - set(found.copied))
    if lacking:
        raise _failed(f"docker save gave no layer {lacking[0]}")
    return found


def _places(images: Sequence[Image]) -> Dict[str, str]:
    """:returns: name of a layer in an archive to its diff_id."""
    places: Dict[str, str] = {}
    for image in images:
        names = [str(each.get("digest")) for each in image.layer_descriptors or ()] or list(image.diff_ids)
        places.update((blob_name(name), diff_id) for name, diff_id in zip(names, image.diff_ids))
    return places


def _listed(documents: Mapping[str, bytes]) -> Dict[str, str]:
    places: Dict[str, str] = {}
    for item in json.loads(documents.get("manifest.json") or b"[]"):
        config = json.loads(documents[posixpath.normpath(item["Config"])])
        places.update((posixpath.normpath(name), d) for name, d in zip(item["Layers"], config["rootfs"]["diff_ids"]))
    return places


def _copy_layer(put: Put, diff_id: str, name: str, member: tarfile.TarInfo, source: IO[bytes], found: Saved) -> None:
    digest = hashlib.sha256()
    kept = "sha256:" + posixpath.basename(name) if name.startswith("blobs/") else diff_id
    hashing: Any = _Hashing(source, digest)
    put(kept, member.size, hashing)
    if "sha256:" + digest.hexdigest() != kept:
        raise _failed(f"docker save gave another content for layer {diff_id}")
    found.copied[diff_id] = (kept, member.size)


class _Hashing:
    """A stream that is hashed as it is read."""

    def __init__(self, source: IO[bytes], digest: Any) -> None:
        self._source, self._digest = source, digest

    def read(self, size: int = _CHUNK) -> bytes:
        data = self._source.read(size)
        self._digest.update(data)
        return data


def _keep(found: Saved, name: str, member: tarfile.TarInfo, source: IO[bytes]) -> None:
    if member.isreg() and member.size <= _MOST_DOCUMENT and name not in found.documents:
        start = source.read(1)
        if start in (b"{", b"["):
            found.documents[name] = start + source.read()


def _saved(docker: Docker, ids: Sequence[str]) -> Iterator[Tuple[str, tarfile.TarInfo, IO[bytes]]]:
    """The members of ``docker save``, as they come.

    :raises OfflineRebuildError: ``save-failed``.
    """
    process = docker.popen("save", *ids, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            headers: Any = archive
            for member in archive:
                headers.members = []  # tarfile keeps every one otherwise
                source = archive.extractfile(member) if member.isreg() else None
                if source is not None:
                    yield posixpath.normpath(member.name), member, source
        while process.stdout.read(_CHUNK):
            pass
        said = process.stderr.read().decode("utf-8", "replace")
        if process.wait() != 0:
            raise _failed(said.strip())
    except tarfile.TarError as error:
        said = process.stderr.read().decode("utf-8", "replace").strip()
        raise _failed(said or f"docker save: {error}") from None
    finally:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.stderr.close()
        process.wait()


def _failed(why: str) -> OfflineRebuildError:
    return OfflineRebuildError("save-failed", why, "see the engine's log (`journalctl -u docker`) and the disk's space")


def _document(ref: str, image: Image, left: int, held: Optional[Held], there: Holdings, found: Saved) -> ImageDocument:
    config = next((raw for raw in found.documents.values() if sha256(raw) == image.config_digest), None)
    if config is None:
        raise _failed(f"docker save gave no config of {ref}")
    manifest = None
    if there.store == "containerd":
        descriptors: List[Mapping[str, Any]] = list((held.descriptors or ())[:left]) if held is not None else []
        own = image.layer_descriptors
        for place, diff_id in enumerate(image.diff_ids[left:], left):
            kept, size = found.copied[diff_id]
            plain = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": kept, "size": size}
            descriptors.append(plain if own is None else own[place])
        manifest = own_manifest(image.config_digest, descriptors, found.documents.values()) or manifest_of(
            config, descriptors, image.manifest
        )
    return ImageDocument(ref, config, image.diff_ids, manifest)


def own_manifest(
    config_digest: str, descriptors: Sequence[Mapping[str, Any]], documents: Iterable[bytes]
) -> Optional[bytes]:
    """:returns: the sender's manifest, to the byte, where the receiver can have the same: then the id is the same."""
    for raw in documents:
        with contextlib.suppress(ValueError):
            data = json.loads(raw)
            config = data.get("config") if isinstance(data, dict) else None
            layers = data.get("layers") if isinstance(data, dict) else None
            if isinstance(config, dict) and config.get("digest") == config_digest and isinstance(layers, list):
                same = [(each.get("digest"), each.get("mediaType")) for each in layers]
                if same == [(each.get("digest"), each.get("mediaType")) for each in descriptors]:
                    return raw
    return None

"""Grafts: images re-created at a reuse point, and the archive that ``docker load`` takes them from.

The archive names layers that the engine has already and does not carry them (DESIGN.md, facts 1 and 3, "The archive").
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import tarfile
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from .cli import Docker
from .errors import OfflineRebuildError
from .image import Image, ImageStore, sha256

__all__ = [
    "REGISTRY",
    "ImageDocument",
    "Making",
    "add_documents",
    "blob_name",
    "load",
    "manifest_of",
    "remove_left_behind",
    "write_archive",
]

#: Names under this are refused at once when an engine asks for them, instead of after a DNS time-out (fact 21).
REGISTRY = "127.0.0.1:9/offline-rebuild"
#: Under it, what one host made for others (once.py): it outlives the run that made it.
SENT = "sent"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"


def encode(document: Mapping[str, Any]) -> bytes:
    """:returns: JSON bytes that are the same for the same document."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # Bytes that are not UTF-8 are kept as lone surrogates; Go's encoder writes U+FFFD for each.
    return re.sub("[\ud800-\udfff]", "\ufffd", text).encode("utf-8")


@dataclass(frozen=True)
class Carried:
    """A layer that the archive carries: ``diff_id`` of the uncompressed tar, its ``size`` and where it lies."""

    diff_id: str
    size: int
    path: str


@dataclass(frozen=True)
class ImageDocument:
    """An image as it is written: config and, for the containerd store, manifest.

    :param ref: full name with tag.
    :param carried: layers that go into the archive; all others must be on the receiver.
    """

    ref: str
    config: bytes
    diff_ids: Tuple[str, ...]
    manifest: Optional[bytes]
    carried: Tuple[Carried, ...] = ()

    @property
    def config_digest(self) -> str:
        """:returns: digest of the config; the image's id on the classic store."""
        return sha256(self.config)

    @property
    def id(self) -> str:
        """:returns: the id that the engine it is made for will give it."""
        return self.config_digest if self.manifest is None else sha256(self.manifest)


def document(
    ref: str, config: Mapping[str, Any], ancestor: Image, kept_layers: int, carried: Sequence[Carried] = ()
) -> ImageDocument:
    """The image that has the ancestor's first ``kept_layers`` layers, then ``carried``, and this config.

    :param config: the whole config document; its ``rootfs`` is set here.
    """
    diff_ids = ancestor.diff_ids[:kept_layers] + tuple(layer.diff_id for layer in carried)
    raw = encode({**config, "rootfs": {"type": "layers", "diff_ids": list(diff_ids)}})
    manifest: Optional[bytes] = None
    if ancestor.manifest is not None:
        manifest = _manifest(raw, ancestor.manifest, kept_layers, carried)
    return ImageDocument(ref, raw, diff_ids, manifest, tuple(carried))


def _manifest(config: bytes, ancestor: Mapping[str, Any], kept: int, carried: Sequence[Carried]) -> bytes:
    docker = ancestor.get("mediaType") == DOCKER_MANIFEST
    layers: List[Mapping[str, Any]] = list(ancestor.get("layers") or [])[:kept]
    kind = "application/vnd.docker.image.rootfs.diff.tar" if docker else "application/vnd.oci.image.layer.v1.tar"
    layers += [{"mediaType": kind, "digest": layer.diff_id, "size": layer.size} for layer in carried]
    return manifest_of(config, layers, ancestor)


def manifest_of(config: bytes, layers: Sequence[Mapping[str, Any]], like: Optional[Mapping[str, Any]] = None) -> bytes:
    """:returns: a manifest with these layer descriptors, of the family (OCI or Docker) of the one that it is like."""
    docker = like is not None and like.get("mediaType") == DOCKER_MANIFEST
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
            "config": {
                "mediaType": _DOCKER_CONFIG if docker else _OCI_CONFIG,
                "digest": sha256(config),
                "size": len(config),
            },
            "layers": list(layers),
        }
    )


def blob_name(digest: str) -> str:
    """:returns: where an archive has what has this digest (OCI image-layout)."""
    return "blobs/sha256/" + digest.split(":")[1]


def write_archive(stream: IO[bytes], image: ImageDocument) -> None:
    """Write the archive to ``stream``; readable by ``docker load`` on either image store."""
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for layer in image.carried:
            info = tarfile.TarInfo(blob_name(layer.diff_id))
            info.size = layer.size
            with open(layer.path, "rb") as handle:
                archive.addfile(info, handle)
        add_documents(archive, [image])


def add_documents(
    archive: tarfile.TarFile, images: Sequence[ImageDocument], blobs: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Add what says which images there are, after the layers that are carried.

    :param blobs: diff_id to the digest that a layer is carried under, where that is another (a compressed one).
    """
    legacy = [
        {
            "Config": blob_name(image.config_digest),
            "RepoTags": [image.ref],
            "Layers": [blob_name(blobs.get(diff_id, diff_id)) for diff_id in image.diff_ids],
        }
        for image in images
    ]
    for config in dict.fromkeys(image.config for image in images):
        _add(archive, blob_name(sha256(config)), config)
    _add(archive, "manifest.json", json.dumps(legacy).encode())
    known = [(image.ref, image.manifest) for image in images if image.manifest is not None]
    if known:
        for manifest in dict.fromkeys(manifest for _, manifest in known):
            _add(archive, blob_name(sha256(manifest)), manifest)
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}
        listed = {"manifests": [_descriptor(ref, manifest) for ref, manifest in known]}
        _add(archive, "index.json", json.dumps({**index, **listed}).encode())


def _full(ref: str) -> str:
    """:returns: the name as containerd has it (distribution/reference, ParseNormalizedNamed)."""
    first, slash, _ = ref.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return ref
    return f"docker.io/{ref}" if slash else f"docker.io/library/{ref}"


def _descriptor(ref: str, manifest: bytes) -> Dict[str, Any]:
    return {
        "mediaType": json.loads(manifest)["mediaType"],
        "digest": sha256(manifest),
        "size": len(manifest),
        "annotations": {
            "io.containerd.image.name": _full(ref),
            "org.opencontainers.image.ref.name": ref.rsplit(":", 1)[-1],
        },
    }


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def load(store: ImageStore, image: ImageDocument) -> str:
    """Load an image document and check that the engine has exactly that image.

    ``docker load`` can print an error and end with 0 (fact 3), so id and layers are compared.

    :returns: the image's id.
    :raises OfflineRebuildError: ``load-failed``.
    """
    buffer = io.BytesIO()
    if image.carried:
        _load_streamed(store.docker, image)
    else:
        write_archive(buffer, image)
        store.docker.run("load", stdin=buffer.getvalue(), guarded=True)
    found = store.docker.inspect("image", [image.ref])
    layers = tuple((found[0].get("RootFS") or {}).get("Layers") or []) if found else ()
    if not found or found[0]["Id"] != image.id or layers != image.diff_ids:
        have = found[0]["Id"] if found else "nothing"
        raise OfflineRebuildError(
            "load-failed",
            f"the engine took {image.ref} as {have} and not as {image.id}",
            "the image store may be damaged: load the imported images again, then run again",
        )
    store.learn(found[0])
    return image.id


def _load_streamed(docker: Docker, image: ImageDocument) -> None:
    import tempfile

    # Written to the end before `docker load` reads it: a layer file that changes or vanishes must not reach the engine.
    with tempfile.TemporaryFile(dir=os.path.dirname(image.carried[0].path)) as handle:
        write_archive(handle, image)
        handle.seek(0)
        docker.run("load", stdin=handle, guarded=True)


class Making:
    """A run that makes images. Names under :data:`REGISTRY` are shared by all projects of a host: a run that ends must
    not take away what another one builds on, so it leaves that to the last one."""

    def __init__(self, state_dir: str) -> None:
        self.path = os.path.join(state_dir, "locks", ".making.guard")  # no project's name begins with a dot
        self._held: Optional[IO[bytes]] = None

    def begin(self) -> None:
        """Others leave the names alone from now on."""
        if self._held is None:
            self._held = self._open()
            fcntl.flock(self._held, fcntl.LOCK_SH)

    def end(self, last: Callable[[], object]) -> None:
        """Call ``last`` unless another run is making."""
        held, self._held = self._held or self._open(), None
        with held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            last()

    def _open(self) -> IO[bytes]:
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        return open(self.path, "a+b")


def remove_left_behind(docker: Docker) -> List[str]:
    """Remove the names under :data:`REGISTRY` that an interrupted run left; not those of :data:`SENT`.

    :returns: the names removed.
    """
    asked = ("--filter", f"reference={REGISTRY}/*", "--format", "{{.Repository}}:{{.Tag}}")
    listed = docker.run("image", "ls", *asked)
    listed_names = [name for name in listed.text.split() if not name.endswith("<none>")]
    names = [name for name in listed_names if not name.startswith(f"{REGISTRY}/{SENT}:")]
    if names:
        docker.run("image", "rm", "--no-prune", *names, check=False)
    return names

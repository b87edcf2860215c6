"""What is in a bundle, as its ``index.json`` says, and reading that with no trust in it.

Schema 1::

    {"schema": 1, "id": str, "created": epoch seconds, "project": str, "platform": "os/arch[/variant]",
     "needs": null or {"bundle": id of an earlier one, "layers": [diff_id]},
     "images": [{"refs": [str], "id": str, "config_digest": digest, "config": path, "manifest": path or "",
                 "diff_ids": [digest], "platform": str,
                 "layers": [{"digest": of the blob, "size": bytes, "media_type": str}]}],
     "parts": [{"path": str, "size": bytes, "sha256": hex, "kind": str}]}

``id`` is made from all the rest. Every file of a bundle but the index and its signature is a part.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.graft import blob_name

__all__ = ["INDEX", "KINDS", "SIGNATURE", "BundleImage", "Index", "Layer", "Needs", "Part", "invalid", "read_index"]

SCHEMA = 1
INDEX, SIGNATURE = "index.json", "index.json.sig"
KINDS = ("blob", "layers", "records", "sbom", "project", "control")
#: Bytes of an index, and of a document (config, manifest) that is read whole.
MOST_INDEX, MOST_DOCUMENT = 64 << 20, 8 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PROJECT = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,383}")


@dataclass(frozen=True)
class Part:
    """A file of the bundle; ``size`` in bytes, ``sha256`` in hex."""

    path: str
    size: int
    sha256: str
    kind: str


@dataclass(frozen=True)
class Layer:
    """How a layer is carried: the digest and the bytes of its blob, and the media type in a manifest."""

    digest: str
    size: int
    media_type: str

    @property
    def descriptor(self) -> Mapping[str, Any]:
        """:returns: it as a manifest names it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class BundleImage:
    """One image. ``layers`` has one entry for each of ``diff_ids``; ``manifest`` may be empty."""

    refs: tuple[str, ...]
    id: str
    config_digest: str
    config: str
    manifest: str
    diff_ids: tuple[str, ...]
    platform: str
    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """:returns: its first name."""
        return self.refs[0]


@dataclass(frozen=True)
class Needs:
    """What a differential bundle leaves out: the layers (diff_ids) that an earlier one has."""

    bundle: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Index:
    """A bundle's index."""

    created: int
    project: str
    platform: str
    images: tuple[BundleImage, ...]
    parts: tuple[Part, ...]
    needs: Needs | None = None

    def _document(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    @property
    def id(self) -> str:
        """:returns: 16 hex digits, from everything that the index says."""
        text = json.dumps(self._document(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def encode(self) -> bytes:
        """:returns: the file ``index.json``."""
        return (json.dumps({"id": self.id, **self._document()}, indent=1, sort_keys=True) + "\n").encode()

    def paths(self, kind: str) -> list[str]:
        """:returns: the paths of the parts of a kind."""
        return [part.path for part in self.parts if part.kind == kind]


def invalid(why: str, file: str = "") -> OfflineRebuildError:
    """:returns: the error of a bundle that is not what it should be."""
    return OfflineRebuildError(
        "bundle-invalid",
        f"{why}; nothing was loaded",
        "copy the bundle again from where it was made and compare the sizes, or make it anew (playbooks/bundle.yml)",
        file or None,
    )


def read_index(raw: bytes, file: str = "") -> Index:
    """Read an index.

    :raises OfflineRebuildError: ``bundle-invalid``.
    """
    try:
        data = json.loads(raw)
        if data["schema"] != SCHEMA:
            raise ValueError(f"it has schema {data['schema']!r}, not {SCHEMA}")
        needs = data["needs"]
        index = Index(
            created=_number(data["created"]),
            project=_match(_PROJECT, data["project"], "project name"),
            platform=_text(data["platform"]),
            images=tuple(_image(item) for item in data["images"]),
            parts=tuple(_part(item) for item in data["parts"]),
            needs=None if needs is None else Needs(_text(needs["bundle"]), tuple(map(_digest, needs["layers"]))),
        )
        if data["id"] != index.id:
            raise ValueError("its id is not that of its content")
        _agree(index)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise invalid(f"the index is not usable: {why}", file) from None
    return index


def _agree(index: Index) -> None:
    """What images name must be parts, or be left out by ``needs``."""
    paths = {part.path for part in index.parts}
    if len(paths) != len(index.parts):
        raise ValueError("it names a part twice")
    left_out = set(index.needs.layers if index.needs else ())
    for image in index.images:
        for path in (image.config, image.manifest):
            if path and path not in paths:
                raise ValueError(f"{image.name} names {path}, which is no part")
        if image.config != blob_name(image.config_digest):
            raise ValueError(f"the config of {image.name} has another digest than its name says")
        for diff_id, layer in zip(image.diff_ids, image.layers):
            if blob_name(layer.digest) not in paths and diff_id not in left_out:
                raise ValueError(f"{image.name} names layer {diff_id}, which is no part")


def _image(item: Mapping[str, Any]) -> BundleImage:
    image = BundleImage(
        refs=tuple(_match(_REF, ref, "image name") for ref in _list(item["refs"])),
        id=_digest(item["id"]),
        config_digest=_digest(item["config_digest"]),
        config=_path(item["config"]),
        manifest=_path(item["manifest"]) if item["manifest"] else "",
        diff_ids=tuple(map(_digest, _list(item["diff_ids"]))),
        platform=_text(item["platform"]),
        layers=tuple(
            Layer(_digest(each["digest"]), _number(each["size"]), _text(each["media_type"]))
            for each in _list(item["layers"])
        ),
    )
    if not image.refs or len(image.layers) != len(image.diff_ids):
        raise ValueError("an image has no name, or another number of layers than of diff_ids")
    return image


def _part(item: Mapping[str, Any]) -> Part:
    part = Part(_path(item["path"]), _number(item["size"]), str(item["sha256"]), str(item["kind"]))
    if part.kind not in KINDS or not _DIGEST.fullmatch("sha256:" + part.sha256):
        raise ValueError(f"{part.path} is of an unknown kind or has no digest")
    if part.path.startswith("blobs/") and part.path != blob_name("sha256:" + part.sha256):
        raise ValueError(f"{part.path} has another digest than its name says")
    return part


def safe_path(path: str) -> bool:
    """:returns: whether a path stays inside of the bundle: relative, no ``..``, in its plain form."""
    pieces = path.split("/")
    plain = all(piece not in ("", ".", "..") for piece in pieces) and "\\" not in path and path.isprintable()
    return plain and len(path) < 1024 and path not in (INDEX, SIGNATURE)


def _path(value: Any) -> str:
    if not isinstance(value, str) or not safe_path(value):
        raise ValueError(f"{value!r} is no path inside of a bundle")
    return value


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError("something is no list")  # noqa: TRY004 - the caller's one kind of error
    return value


def _match(pattern: re.Pattern[str], value: Any, what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{value!r} is no {what}")
    return value


def _digest(value: Any) -> str:
    return _match(_DIGEST, value, "digest")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 256:
        raise ValueError(f"{value!r} is no text")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 60:
        raise ValueError(f"{value!r} is no number")
    return value

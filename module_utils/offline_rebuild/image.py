"""Images as the engine holds them: raw config, manifest, history.

``docker image inspect`` does not give an image's raw config (nor, on the containerd store, its manifest). Both lie
under the engine's root and are content-addressed, so what is read there is checked against its digest; where they
cannot be read, one ``docker save`` gives them (DESIGN.md, fact 2).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from .cli import Docker, EngineInfo
from .errors import OfflineRebuildError
from .files import write_atomic
from .later import Later

__all__ = ["HistoryEntry", "Image", "ImageStore", "normal_ref", "sha256"]

_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


def sha256(data: bytes) -> str:
    """:returns: ``sha256:<hex>`` of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def normal_ref(ref: str) -> str:
    """A reference in the engine's familiar form with a tag: ``python`` -> ``python:latest``.

    ``docker.io/library/`` and ``docker.io/`` are dropped as the engine does (distribution/reference, FamiliarString).
    A digest reference has no tag in this form.
    """
    for prefix in ("docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/"):
        if ref.startswith(prefix):
            ref = ref[len(prefix) :]
            break
    if "@" in ref:  # a tag beside a digest says nothing
        name, _, digest = ref.partition("@")
        head, slash, last = name.rpartition("/")
        return f"{head}{slash}{last.partition(':')[0]}@{digest}"
    return ref if ":" in ref.rsplit("/", 1)[-1] else ref + ":latest"


@dataclass(frozen=True)
class HistoryEntry:
    """One entry of an image's history. ``layer`` is the index of its layer in ``diff_ids``, ``None`` if it has none."""

    created_by: str
    comment: str
    layer: Optional[int]
    created: str = ""


@dataclass(frozen=True)
class Image:
    """A local image.

    :param id: the engine's id: config digest on the classic store, manifest (or index) digest on the containerd store.
    :param refs: its names with tags.
    :param config: the raw config, parsed; ``config_digest`` is the digest of its bytes.
    :param manifest: the manifest of the host's platform (containerd store only).
    :param history: one entry per instruction; empty when the config's history does not add up to its layers.
    :param inspect: what ``docker image inspect`` said.
    """

    id: str
    refs: Tuple[str, ...]
    config: Mapping[str, Any]
    config_digest: str
    diff_ids: Tuple[str, ...]
    history: Tuple[HistoryEntry, ...]
    manifest: Optional[Mapping[str, Any]]
    inspect: Mapping[str, Any]

    @property
    def name(self) -> str:
        """:returns: a name for the operator: the first tag, else the short id."""
        return self.refs[0] if self.refs else self.id.split(":")[-1][:12]

    @property
    def platform(self) -> str:
        """:returns: ``os/arch[/variant]`` as the config has it."""
        variant = self.config.get("variant") or ""
        return f"{self.config.get('os', '')}/{self.config.get('architecture', '')}" + (f"/{variant}" if variant else "")

    @property
    def layer_descriptors(self) -> Optional[Sequence[Mapping[str, Any]]]:
        """:returns: the manifest's layer descriptors, bottom first (containerd store only)."""
        return None if self.manifest is None else list(self.manifest.get("layers") or [])


def parse_history(config: Mapping[str, Any]) -> Tuple[HistoryEntry, ...]:
    """The history with each entry's layer index; ``()`` when it does not account for every layer.

    An image whose history is shorter or longer than its layers (``docker import`` has one entry and one layer, some
    builders write none) cannot be aligned; that is said by an empty result, never guessed.
    """
    entries: List[HistoryEntry] = []
    layer = 0
    listed = config.get("history")
    for raw in listed if isinstance(listed, list) else []:
        if not isinstance(raw, Mapping):
            return ()
        has_layer = not raw.get("empty_layer", False)
        entries.append(
            HistoryEntry(
                str(raw.get("created_by") or ""),
                str(raw.get("comment") or ""),
                layer if has_layer else None,
                str(raw.get("created") or ""),
            )
        )
        layer += 1 if has_layer else 0
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, Mapping) else None
    return tuple(entries) if isinstance(diff_ids or [], list) and layer == len(diff_ids or []) else ()


class ImageStore:
    """Reads images of one engine. Reading changes nothing on the host.

    :param docker: the CLI.
    :param folder: where configs that only ``docker save`` gives out are kept by digest; nowhere if empty.
    :param may_write: whether they may be written there (not in check mode).
    """

    def __init__(self, docker: Docker, folder: str = "", may_write: bool = False) -> None:
        self.docker = docker
        self._folder = folder
        self._may_write = may_write
        self._listing: Optional[Later[Dict[str, Mapping[str, Any]]]] = Later(self._list)
        self.info: EngineInfo = docker.info()
        self._content_dir: Optional[str] = None
        self._images: Dict[str, Image] = {}
        self._by_ref: Optional[Dict[str, Mapping[str, Any]]] = None

    @property
    def content_dir(self) -> Optional[str]:
        """:returns: containerd's content store; ``None`` on the classic store, and as long as it holds nothing."""
        if self._content_dir is None and self.info.store == "containerd":
            self._content_dir = self._find_content_dir()
        return self._content_dir

    def _find_content_dir(self) -> Optional[str]:
        # A daemon-managed containerd keeps its root under the engine's; a system one under /var/lib/containerd.
        for root in (os.path.join(self.info.root, "containerd", "daemon"), "/var/lib/containerd"):
            path = os.path.join(root, "io.containerd.content.v1.content")
            if os.path.isdir(os.path.join(path, "blobs", "sha256")):
                return path
        return None

    def _load_all(self) -> Dict[str, Mapping[str, Any]]:
        """Inspect every local image, once: two calls of the CLI whatever their number."""
        if self._by_ref is None:
            self._by_ref = self._listing.result() if self._listing is not None else self._list()
            self._listing = None
        return self._by_ref

    def _list(self) -> Dict[str, Mapping[str, Any]]:
        ids = self.docker.run("image", "ls", "-q", "-a", "--no-trunc").text.split()
        found: Dict[str, Mapping[str, Any]] = {}
        for data in self.docker.inspect("image", dict.fromkeys(ids)):
            found[data["Id"]] = data
            for ref in (*(data.get("RepoTags") or []), *(data.get("RepoDigests") or [])):
                found[normal_ref(ref)] = data
        return found

    def forget(self) -> None:
        """Drop what was read of names; contents by id stay, they cannot change."""
        self._by_ref = None
        self._listing = None

    def learn(self, data: Mapping[str, Any]) -> None:
        """Take in an image that was inspected after the listing: no second listing is needed to find it.

        :param data: what ``docker image inspect`` says of it.
        """
        known = self._load_all()
        known[str(data["Id"])] = data
        for ref in (*(data.get("RepoTags") or []), *(data.get("RepoDigests") or [])):
            known[normal_ref(ref)] = data

    def inspect_of(self, ref: str) -> Optional[Mapping[str, Any]]:
        """:returns: the inspect data of a name or id, ``None`` if it is not there."""
        known = self._load_all()
        return known.get(ref) or known.get(normal_ref(ref))

    def find(self, ref: str) -> Optional[Image]:
        """:returns: the image that a name or id stands for, ``None`` if it is not there or cannot be read."""
        data = self.inspect_of(ref)
        return None if data is None else self._read(data)

    def inspected(self) -> List[Mapping[str, Any]]:
        """:returns: what ``docker image inspect`` says of every local image, each once."""
        return list({str(data["Id"]): data for data in self._load_all().values()}.values())

    def layers(self, image_id: str) -> Sequence[str]:
        """:returns: the layers of an image by its id, bottom first; nothing if it is not there."""
        data = self.inspect_of(image_id) or {}
        return [str(digest) for digest in (data.get("RootFS") or {}).get("Layers") or []]

    def all(
        self, matters: Callable[[Mapping[str, Any], Sequence[str]], bool] = lambda _data, _texts: True
    ) -> List[Image]:
        """:returns: every local image of this platform that can be read.

        :param matters: asked for an image that would have to be saved whole to be read (the engine's root is closed),
            with its inspect data and the texts of its history; those that do not matter are left out.
        """
        unique = {data["Id"]: data for data in self._load_all().values()}
        images = (
            self._read(data) for data in unique.values() if self._is_open(data) or matters(data, self.texts(data))
        )
        return [image for image in images if image is not None]

    def _is_open(self, data: Mapping[str, Any]) -> bool:
        """Whether an image can be read without saving it."""
        image_id = str(data["Id"])
        if image_id in self._images or self.info.store == "containerd":
            return True
        return any(read_checked(path, image_id) is not None for path in self._config_paths(image_id))

    def texts(self, data: Mapping[str, Any]) -> Sequence[str]:
        """:returns: the texts of an image's history as the engine tells them, the oldest first."""
        listed = self.docker.run("image", "history", "--no-trunc", "--format", "{{json .CreatedBy}}", str(data["Id"]))
        return [str(text) for text in listed.json_lines()][::-1]

    def _read(self, data: Mapping[str, Any]) -> Optional[Image]:
        image_id = str(data["Id"])
        if image_id not in self._images:
            raw, manifest = self._raw(image_id, data)
            if raw is None:
                return None
            config = _document(raw)
            if not is_sound(config):
                return None
            rootfs = config.get("rootfs") or {}
            diff_ids = tuple(str(d) for d in rootfs.get("diff_ids") or [])
            if diff_ids != tuple((data.get("RootFS") or {}).get("Layers") or []):
                return None
            self._images[image_id] = Image(
                id=image_id,
                refs=tuple(sorted(data.get("RepoTags") or [])),
                config=config,
                config_digest=sha256(raw),
                diff_ids=diff_ids,
                history=parse_history(config),
                manifest=manifest,
                inspect=data,
            )
        return self._images[image_id]

    def _raw(self, image_id: str, data: Mapping[str, Any]) -> Tuple[Optional[bytes], Optional[Mapping[str, Any]]]:
        if self.info.store == "containerd":
            return self._raw_containerd(image_id, data)
        for path in self._config_paths(image_id):
            raw = read_checked(path, image_id)
            if raw is not None:
                return raw, None
        raw = self._raw_saved(image_id)
        if raw is not None and self._folder and self._may_write:
            write_atomic(self._config_paths(image_id)[-1], raw)
        return raw, None

    def _config_paths(self, image_id: str) -> List[str]:
        """Where an image's config may lie on the classic store, whose ids are the configs' digests."""
        name = image_id.rsplit(":", maxsplit=1)[-1]
        paths = [os.path.join(self.info.root, "image", self.info.driver, "imagedb", "content", "sha256", name)]
        return paths + ([os.path.join(self._folder, name + ".json")] if self._folder else [])

    def _raw_containerd(
        self, image_id: str, data: Mapping[str, Any]
    ) -> Tuple[Optional[bytes], Optional[Mapping[str, Any]]]:
        manifest = self.blob(image_id)
        document = _document(manifest) if manifest is not None else None
        if document is not None and (document.get("mediaType") in _INDEX_TYPES or "manifests" in document):
            document = self._platform_manifest(document, data)
        if document is None:
            return None, None
        config = self.blob(_config_digest(document))
        return config, document

    def _platform_manifest(self, index: Mapping[str, Any], data: Mapping[str, Any]) -> Optional[Mapping[str, Any]]:
        wanted = tuple((data.get("RootFS") or {}).get("Layers") or [])
        listed = index.get("manifests")
        for descriptor in listed if isinstance(listed, list) else []:
            if not isinstance(descriptor, Mapping):
                continue
            if (descriptor.get("annotations") or {}).get("vnd.docker.reference.type") == "attestation-manifest":
                continue
            raw = self.blob(str(descriptor.get("digest", "")))
            if raw is None:
                continue
            manifest = _document(raw)
            config = self.blob(_config_digest(manifest))
            # The engine shows the layers of the host's platform: the manifest with just these is the one meant.
            document = _document(config) if config is not None else {}
            if is_sound(document) and tuple((document.get("rootfs") or {}).get("diff_ids") or []) == wanted:
                return manifest
        return None

    def blob(self, digest: str) -> Optional[bytes]:
        """:returns: a small blob (config, manifest) of the content store, its digest checked; ``None`` if absent."""
        if self.content_dir is None or not digest.startswith("sha256:"):
            return None
        return read_checked(os.path.join(self.content_dir, "blobs", "sha256", digest.split(":")[1]), digest)

    def _raw_saved(self, image_id: str) -> Optional[bytes]:
        """The config out of ``docker save``: streams the whole image, so only where the engine's root is closed."""
        import subprocess
        import tarfile

        wanted = image_id.rsplit(":", maxsplit=1)[-1]
        process = self.docker.popen("save", image_id, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    hexes = member.name.split("/")[-1].split(".")[0]
                    if member.isfile() and hexes == wanted and member.size < 1 << 24:
                        stream = archive.extractfile(member)
                        data = stream.read() if stream else b""
                        if sha256(data) == image_id:
                            return data
        except tarfile.TarError:
            pass  # it ended early: the image cannot be read
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
        return None


def _document(raw: bytes) -> Mapping[str, Any]:
    """:returns: the JSON object; an empty one for anything else."""
    try:
        made = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return made if isinstance(made, dict) else {}


def _config_digest(manifest: Mapping[str, Any]) -> str:
    config = manifest.get("config")
    return str(config.get("digest") or "") if isinstance(config, Mapping) else ""


_TEXTS = ("User", "WorkingDir", "StopSignal")
_LISTS = ("Env", "Cmd", "Entrypoint", "Shell", "OnBuild")
_MAPPINGS = ("Labels", "ExposedPorts", "Volumes", "Healthcheck")


def is_sound(config: Mapping[str, Any]) -> bool:
    """Whether an image's config has the types of the OCI image spec (config.md); fields may be absent or null."""

    def texts(value: Any) -> bool:
        return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))

    section, rootfs, history = config.get("config"), config.get("rootfs"), config.get("history")
    if not isinstance(section or {}, Mapping) or not isinstance(rootfs, Mapping):
        return False
    if not (history is None or isinstance(history, list)) or not texts(rootfs.get("diff_ids")):
        return False
    if any(not isinstance(config.get(name) or "", str) for name in ("os", "architecture", "variant", "author")):
        return False
    section = section or {}
    labels = section.get("Labels") or {}
    return (
        all(isinstance(section.get(name) or "", str) for name in _TEXTS)
        and all(texts(section.get(name)) for name in _LISTS)
        and all(isinstance(section.get(name) or {}, Mapping) for name in _MAPPINGS)
        and all(isinstance(value, str) for value in labels.values())
    )


def read_checked(path: str, digest: str) -> Optional[bytes]:
    """:returns: the file's bytes if they have this digest; ``None`` if it cannot be read or has another."""
    try:
        with open(path, "rb") as handle:
            data = handle.read()
    except OSError:
        return None
    return data if sha256(data) == digest else None


def missing_image(name: str, needed_by: Iterable[str], platform: str) -> OfflineRebuildError:
    """:returns: the error for an image that is needed and not there, with the command that mends it."""
    who = ", ".join(needed_by)
    return OfflineRebuildError(
        "image-missing",
        f"image {name} is needed by {who} and is not on this host, nor are its layers inside an image that is",
        pull_remedy(name, platform),
    )


def pull_remedy(name: str, platform: str) -> str:
    """:returns: the commands, for a connected machine and for this host, that bring an image in."""
    file = name.replace("/", "_").replace(":", "_").replace("@", "_") + ".tar"
    return (
        f"on a connected machine: docker pull --platform {platform} {name} && docker save -o {file} {name}; "
        f"bring {file} here and: docker load -i {file}"
    )

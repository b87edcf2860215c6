"""Making a bundle on the connected side.

Images go through one ``docker save``, as they are; each layer is written to its file and hashed on its way. The bundle
is made beside its target and moved there when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from module_utils.offline_rebuild.cli import Docker
from module_utils.offline_rebuild.delta import Held, Holdings, Saved, copy_out, longest, own_manifest
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.graft import blob_name
from module_utils.offline_rebuild.image import Image, ImageStore, normal_ref, sha256

from . import bundle_control, bundle_evidence, bundle_stages
from .bundle_index import INDEX, SIGNATURE, BundleImage, Index, Layer, Needs, Part, read_index
from .bundle_read import open_bundle, sign

__all__ = ["MakeRequest", "make"]

CHUNK = 1 << 20
PLAIN = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class MakeRequest:
    """What is asked for: the variables ``offline_rebuild_bundle_*``, and those of the role that name the project.

    :param bundle: where to write: a folder, or one file if it ends in ``.tar``.
    :param images: names of further images.
    :param since: an earlier bundle, or its index.
    :param check: say what it would hold, write nothing.
    """

    bundle: str
    project_src: str
    compose_files: Sequence[str] = ()
    env_files: Sequence[str] = ()
    profiles: Sequence[str] = ()
    project_name: str = ""
    build_args: Mapping[str, Any] = field(default_factory=dict)
    images: Sequence[str] = ()
    build_stages: bool = False
    since: str = ""
    sign_key: str = ""
    unsigned: bool = False
    control_node: bool = False
    check: bool = False


def make(request: MakeRequest) -> dict[str, Any]:
    """Make a bundle.

    :returns: ``changed``, ``msg``, ``id``, ``images`` (names) and ``size`` in bytes.
    :raises OfflineRebuildError: ``variable-invalid``, ``bundle-exists``, ``image-missing``, ``bundle-tree-differs``,
        ``save-failed``, ``sign-failed``, ``wheels-failed`` and those of the project's files.
    """
    target = _target(request)
    since = _since(request.since) if request.since else None
    if request.sign_key:
        sign(b"", request.sign_key)  # a key that cannot sign is said now, not after minutes
    docker = Docker()
    project = bundle_stages.project_of(docker, request)
    if request.build_stages and not request.check:
        bundle_stages.build(docker, project, request)
    store = ImageStore(docker)
    wanted, absent = bundle_stages.names(docker, project, request)
    images = _images(store, [*wanted, *request.images], request.check)
    names = sorted(name for refs, _ in images for name in refs)
    note = _note(absent, request)
    if request.check:
        return {"changed": True, "msg": f"would be put into {target}: {', '.join(names)}{note}", "images": names}
    with _beside(target) as folder:
        index = _fill(folder, request, store, project, images, since)
        raw = index.encode()
        (folder / INDEX).write_bytes(raw)
        if request.sign_key:
            (folder / SIGNATURE).write_bytes(sign(raw, request.sign_key))
        size = _put(folder, target, index)
    told = f"bundle {index.id} with {len(images)} image(s), {size} bytes: {target}{note}"
    return {"changed": True, "msg": told, "id": index.id, "images": names, "size": size}


def _note(absent: Sequence[str], request: MakeRequest) -> str:
    if not absent:
        return ""
    if request.build_stages:
        return f"; built for it: {', '.join(absent)}" if request.check else ""
    return (
        f"; not in it, since no such image is here: {', '.join(absent)} (a stage whose sources are edited in the gap "
        "needs its image: offline_rebuild_bundle_build_stages=true builds it)"
    )


def _target(request: MakeRequest) -> Path:
    if bool(request.sign_key) == request.unsigned:
        raise OfflineRebuildError(
            "variable-invalid",
            "a bundle is either signed or, by an explicit switch, not",
            "set offline_rebuild_bundle_sign_key to a private SSH key, or offline_rebuild_bundle_unsigned=true",
        )
    target = Path(request.bundle).absolute()
    if os.path.lexists(target):
        raise OfflineRebuildError(
            "bundle-exists", "there is something already", "name another place, or remove it", str(target)
        )
    return target


def _since(path: str) -> Index:
    if Path(path).is_dir() or path.endswith(".tar"):
        return open_bundle(path, unsigned=True).index
    try:
        return read_index(Path(path).read_bytes(), path)
    except OSError as error:
        raise OfflineRebuildError(
            "bundle-missing", f"it cannot be read: {error.strerror}", "mend offline_rebuild_bundle_since", path
        ) from None


def _images(store: ImageStore, names: Sequence[str], check: bool) -> list[tuple[tuple[str, ...], Image]]:
    """:returns: each image once, with the names that were asked for."""
    found: dict[str, tuple[list[str], Image]] = {}
    for name in dict.fromkeys(normal_ref(name) for name in names):
        image = store.find(name)
        if image is None and check:
            continue  # a check builds no stage
        if image is None:
            raise OfflineRebuildError(
                "image-missing",
                f"image {name} is not on this machine",
                "first: docker compose build, or docker pull it",
            )
        refs = found.setdefault(image.id, ([], image))[0]
        refs += [ref for ref in _refs(name, image) if ref not in refs]
    return [(tuple(refs), image) for refs, image in found.values()]


def _refs(name: str, image: Image) -> Sequence[str]:
    """:returns: the names that an image is loaded by: ``docker load`` gives none with a digest."""
    if "@" not in name:
        return [name]
    if not image.refs:
        raise OfflineRebuildError(
            "image-missing", f"{name} has no tag on this machine, and docker load gives no name by digest",
            "give it one (docker tag) and name that in the compose file",
        )  # fmt: skip
    return image.refs


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new folder beside the target, gone afterwards."""
    for left in target.parent.glob(f".{target.name}.*.part*"):  # by runs that were killed
        if not Path("/proc", left.name.split(".")[-2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise OfflineRebuildError(
            "bundle-write", f"the bundle cannot be written: {error.strerror}", "see the free space and the rights",
            str(error.filename or target),
        ) from None  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(
    folder: Path,
    request: MakeRequest,
    store: ImageStore,
    project: Any,
    images: Sequence[tuple[tuple[str, ...], Image]],
    since: Index | None,
) -> Index:
    created = max(int(time.time()), since.created + 1 if since else 0)
    bundle_evidence.records(folder, request, store, [image for _, image in images])
    listed, left_out, see = _blobs(folder, store, images, since)
    bundle_evidence.sboms(folder, listed, see, created)
    bundle_stages.put_files(folder, project, request)
    if request.control_node:
        bundle_control.put(folder / "control")
    needs = Needs(since.id, tuple(sorted(left_out))) if since is not None and left_out else None
    return Index(created, project.name, store.info.platform, tuple(listed), tuple(_parts(folder)), needs)


def _blobs(
    folder: Path, store: ImageStore, images: Sequence[tuple[tuple[str, ...], Image]], since: Index | None
) -> tuple[list[BundleImage], set[str], bundle_evidence.Scans]:
    """Write the blobs. :returns: the images, the layers left out, and what the layers hold of packages."""
    (folder / "blobs/sha256").mkdir(parents=True)
    known = Holdings("classic", "", tuple(Held(image.diff_ids) for image in since.images)) if since else None
    wanted: set[str] = set()
    for _, image in images:
        wanted.update(image.diff_ids[longest(image.diff_ids, known)[0] if known else 0 :])
    see = bundle_evidence.Scans()

    def put(digest: str, size: int, source: IO[bytes]) -> None:
        with (folder / blob_name(digest)).open("wb") as stream:
            shutil.copyfileobj(source, stream, CHUNK)
            if stream.tell() != size:
                raise OfflineRebuildError("save-failed", "docker save ended early", "see the disk's free space")

    saved = copy_out(store, [image for _, image in images], wanted, put, see.left_out)
    for diff_id, (digest, _) in saved.copied.items():
        see.carried(diff_id, folder / blob_name(digest))
    known_layers = _known_layers(saved, [image for _, image in images], since)
    listed = [_listed(folder, refs, image, saved, known_layers) for refs, image in images]
    return listed, {diff_id for _, image in images for diff_id in image.diff_ids} - wanted, see


def _known_layers(saved: Saved, images: Sequence[Image], since: Index | None) -> dict[str, Layer]:
    """How each layer is carried, here or in the earlier bundle, by diff_id. One that is there in two forms, plain and
    compressed, is carried in one."""
    found = {d: layer for each in (since.images if since else ()) for d, layer in zip(each.diff_ids, each.layers)}
    own = [each for image in images for each in image.layer_descriptors or ()]
    kinds = {str(each["digest"]): str(each["mediaType"]) for each in own}
    found.update(
        (diff_id, Layer(digest, size, kinds.get(digest, PLAIN))) for diff_id, (digest, size) in saved.copied.items()
    )
    return found


def _listed(folder: Path, refs: tuple[str, ...], image: Image, saved: Saved, known: Mapping[str, Layer]) -> BundleImage:
    layers = [known[diff_id] for diff_id in image.diff_ids]
    documents = saved.documents.values()
    config = next((raw for raw in documents if sha256(raw) == image.config_digest), None)
    if config is None:
        raise OfflineRebuildError("save-failed", f"docker save gave no config of {refs[0]}", "load that image again")
    manifest = own_manifest(image.config_digest, [layer.descriptor for layer in layers], documents)
    for raw in (config, manifest):
        if raw is not None:
            (folder / blob_name(sha256(raw))).write_bytes(raw)
    return BundleImage(
        refs=refs,
        id=image.id,
        config_digest=image.config_digest,
        config=blob_name(image.config_digest),
        manifest=blob_name(sha256(manifest)) if manifest is not None else "",
        diff_ids=image.diff_ids,
        platform=image.platform,
        layers=tuple(layers),
    )


_KINDS = {"blobs": "blob"}


def _parts(folder: Path) -> Iterator[Part]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while data := stream.read(CHUNK):
                digest.update(data)
        kind = name.partition("/")[0]
        yield Part(name, path.stat().st_size, digest.hexdigest(), _KINDS.get(kind, kind))


def _put(folder: Path, target: Path, index: Index) -> int:
    """Move the bundle to its place, as a folder or as one file. :returns: its size in bytes."""
    names = [name for name in (INDEX, SIGNATURE) if (folder / name).exists()] + [part.path for part in index.parts]
    if target.suffix != ".tar":
        for path in sorted(folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        folder.rename(target)
        return sum((target / name).stat().st_size for name in names)
    partial = folder / "bundle.tar"  # no name of a part
    try:
        with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size, info.mtime = (folder / name).stat().st_size, index.created
                with (folder / name).open("rb") as stream:
                    archive.addfile(info, stream)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target.stat().st_size

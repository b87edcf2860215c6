"""What a bundle says of its images: records of how they were made, lists of their layers' files, SBOMs."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from module_utils.offline_rebuild.bundled import pack_records
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.image import Image, ImageStore
from module_utils.offline_rebuild.layers import EvidenceStore, LayerReader
from module_utils.offline_rebuild.places import RunningLayers
from module_utils.offline_rebuild.run import execute

from .bundle_index import BundleImage
from .bundle_stages import run_request
from .sbom import LayerFiles, document, packages, scan

__all__ = ["Scans", "records", "sboms"]


def records(folder: Path, request: Any, store: ImageStore, images: Sequence[Image]) -> None:
    """Record the tree as it is for the images, and list the files of every layer of theirs.

    :raises OfflineRebuildError: ``bundle-tree-differs``: the tree is not what the images hold.
    """
    with tempfile.TemporaryDirectory(dir=folder) as state:
        done = execute(run_request(request, action="prime", state_dir=state))
        if done.failed:
            raise OfflineRebuildError(
                "bundle-tree-differs",
                f"a bundle's records must be of the tree that the images were built from: {done.msg}",
                "build the images of this tree first (docker compose build); stages that have no image of their own "
                "are built by offline_rebuild_bundle_build_stages=true",
                request.project_src,
            )
        _lists(Path(state) / "layers", store, images)
        for name, content in pack_records(state, store, images).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        wanted = {diff_id.rpartition(":")[2] for image in images for diff_id in image.diff_ids}
        (folder / "layers").mkdir()
        for path in (Path(state) / "layers").glob("*.json.gz"):
            if path.name.partition(".")[0] in wanted:
                shutil.move(path, folder / "layers" / path.name)


def _lists(directory: Path, store: ImageStore, images: Sequence[Image]) -> None:
    """All layers' lists, not those of COPY alone: where a host cannot read layers in place it needs the lower ones."""
    evidence = EvidenceStore(str(directory))
    running = RunningLayers(store.docker, store.layers) if store.content_dir is not None else None
    for image in images:
        given = (image.inspect, image.diff_ids, image.layer_descriptors, store.content_dir, evidence, True, running)
        reader = LayerReader(store.docker, *given)
        for index in range(len(image.diff_ids)):
            reader.remember(index)


class Scans:
    """What each layer says of packages; ``None`` for one that cannot be read."""

    def __init__(self) -> None:
        self._found: dict[str, LayerFiles | None] = {}

    def left_out(self, diff_id: str, stream: IO[bytes]) -> None:
        """See a layer that goes by and is not carried."""
        try:
            self._found[diff_id] = scan(stream)
        except (tarfile.TarError, EOFError, OSError):
            self._found[diff_id] = None  # compressed in a way that this Python does not know

    def carried(self, diff_id: str, path: Path) -> None:
        """See a layer that lies in the bundle."""
        with path.open("rb") as stream:
            self.left_out(diff_id, stream)

    def of(self, image: BundleImage) -> tuple[Any, list[str], str]:
        """:returns: as :func:`sbom.packages`."""
        layers = [self._found.get(diff_id) for diff_id in image.diff_ids]
        listed, unread, distribution = packages(layer for layer in layers if layer is not None)
        closed = [f"layer {d}" for d, layer in zip(image.diff_ids, layers) if layer is None]
        return listed, [*unread, *closed], distribution


def sboms(folder: Path, images: Sequence[BundleImage], scans: Scans, created: int) -> None:
    """Write one document per image, ``sbom/<hex of the config digest>.cdx.json``."""
    (folder / "sbom").mkdir()
    for image in images:
        made = document(image.name, image.config_digest, scans.of(image), created)
        path = folder / "sbom" / f"{image.config_digest.rpartition(':')[2]}.cdx.json"
        path.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")

"""Images for unit tests: from recorded configs, from Dockerfiles, and on disk as in containerd's content store.

What is on disk is read by the real :class:`ImageStore` and :class:`LayerReader`; only the docker CLI is stood in for,
by an object that lists what was put there.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from module_utils.offline_rebuild.cli import EngineInfo, Result
from module_utils.offline_rebuild.context import Context
from module_utils.offline_rebuild.dockerfile import parse
from module_utils.offline_rebuild.image import Image, ImageStore, parse_history, sha256
from module_utils.offline_rebuild.layers import EvidenceStore, LayerReader
from module_utils.offline_rebuild.records import RecordStore
from module_utils.offline_rebuild.reuse import Analyzer
from module_utils.offline_rebuild.stage import (
    BuildInput,
    Timeline,
    dispatch,
    global_args,
    scratch_config,
    start_state,
    target_index,
    timelines,
    with_base_triggers,
)

PLATFORM = "linux/amd64"
CREATED = "2026-01-02T03:04:05Z"


def build_input(text: str, args: Mapping[str, str] | None = None, target: str = "") -> BuildInput:
    """A build for linux/amd64."""
    return BuildInput(parse(text.encode("utf-8", "surrogateescape")), dict(args or {}), PLATFORM, PLATFORM, target)


def image_of(config: Mapping[str, Any], refs: Sequence[str] = (), image_id: str = "") -> Image:
    """An image with this raw config, as the store would give it."""
    raw = json.dumps(config, sort_keys=True).encode()
    diff_ids = tuple(config["rootfs"]["diff_ids"])
    digest = sha256(raw)
    return Image(image_id or digest, tuple(refs), config, digest, diff_ids, parse_history(config), None, {})


def timeline_of(build: BuildInput, triggers: Sequence[str] = ()) -> Timeline:
    """The timeline of the target."""
    return with_base_triggers(build, timelines(build)[target_index(build)], triggers)


def made_config(
    text: str, args: Mapping[str, str] | None = None, base: Mapping[str, Any] | None = None, target: str = ""
) -> dict[str, Any]:
    """The config that a build gives, by our own reading of the Dockerfile: one made-up layer per entry that has one."""
    build = build_input(text, args, target)
    outer = global_args(build)
    start = dict(base) if base is not None else scratch_config(PLATFORM)
    timeline = timeline_of(build, (start.get("config") or {}).get("OnBuild") or [])
    state = start_state(start)
    history = list(start.get("history") or [])
    diff_ids = list((start.get("rootfs") or {}).get("diff_ids") or [])
    for step in timeline.steps:
        outcome = dispatch(state, step, build, outer)
        if outcome.created_by:
            entry = {"created_by": outcome.created_by[0], "comment": "buildkit.dockerfile.v0", "created": CREATED}
            history.append(entry if outcome.layer else {**entry, "empty_layer": True})
            diff_ids += [sha256(f"{len(diff_ids)} {outcome.created_by[0]}".encode())] if outcome.layer else []
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": state.config,
        "history": history,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }


def tar_of(files: Mapping[str, str | tuple[int, str] | None]) -> bytes:
    """A layer: path to content, to (mode, content), or to None for a directory."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, value in files.items():
            info = tarfile.TarInfo(path)
            mode, content = value if isinstance(value, tuple) else (0o644, value)
            info.mode = mode
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            else:
                data = content.encode()
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


class Depot:
    """One host's images, under a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "engine/containerd/daemon/io.containerd.content.v1.content/blobs/sha256"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.inspects: dict[str, dict[str, Any]] = {}

    # -- what the docker CLI would say --------------------------------------------------------------------------------

    def info(self) -> EngineInfo:
        root = str(self.root / "engine")
        return EngineInfo("28.5.2", "linux", "x86_64", "containerd", "overlayfs", root, "test", {})

    def run(self, *argv: str, **_: Any) -> Result:
        assert argv[:2] == ("image", "ls"), argv
        return Result(argv, 0, "\n".join(self.inspects).encode(), "")

    def inspect(self, kind: str, refs: Iterable[str]) -> list[Mapping[str, Any]]:
        assert kind == "image"
        return [self.inspects[ref] for ref in refs if ref in self.inspects]

    def popen(self, *argv: str, **_: Any) -> subprocess.Popen[bytes]:
        raise AssertionError(f"a unit test read a whole image: {argv}")

    # -- images -------------------------------------------------------------------------------------------------------

    def blob(self, data: bytes) -> str:
        digest = sha256(data)
        (self.blobs / digest.split(":")[1]).write_bytes(data)
        return digest

    def add(self, ref: str, config: Mapping[str, Any], layers: Sequence[bytes]) -> str:
        """Put an image there; a name that another image had moves. Returns the id."""
        diff_ids = [self.blob(layer) for layer in layers]
        document = {**config, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        raw = json.dumps(document, sort_keys=True).encode()
        kind = "application/vnd.oci.image"
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": {"mediaType": f"{kind}.config.v1+json", "digest": self.blob(raw), "size": len(raw)},
            "layers": [
                {"mediaType": f"{kind}.layer.v1.tar", "digest": d, "size": len(data)}
                for d, data in zip(diff_ids, layers, strict=True)
            ],
        }
        image_id = self.blob(json.dumps(manifest).encode())
        for data in self.inspects.values():
            data["RepoTags"] = [tag for tag in data["RepoTags"] if tag != ref]
        known = self.inspects.get(image_id, {}).get("RepoTags", [])
        self.inspects[image_id] = {
            "Id": image_id,
            "RepoTags": [*known, ref] if ref else known,
            "RootFS": {"Layers": diff_ids},
        }
        return image_id

    def remove(self, ref: str) -> None:
        for image_id in [i for i, data in self.inspects.items() if ref in data["RepoTags"]]:
            del self.inspects[image_id]

    def build(
        self,
        ref: str,
        text: str,
        layers: Mapping[int, Mapping[str, Any]] | None = None,
        args: Mapping[str, str] | None = None,
        base: str = "",
        target: str = "",
    ) -> str:
        """An image as a build of this Dockerfile would give it.

        :param layers: line of an instruction to the files that it wrote; the others wrote a file that names them.
        """
        base_image = ImageStore(self).find(base) if base else None  # type: ignore[arg-type]
        base_config = base_image.config if base_image else None
        config = made_config(text, args, base_config, target)
        build = build_input(text, args, target)
        outer = global_args(build)
        timeline = timeline_of(build, ((base_config or {}).get("config") or {}).get("OnBuild") or [])
        state = start_state(base_config if base_config is not None else scratch_config(PLATFORM))
        written = [self.read(d) for d in base_image.diff_ids] if base_image else []
        for step in timeline.steps:
            outcome = dispatch(state, step, build, outer)
            if outcome.created_by and outcome.layer:
                files = (layers or {}).get(step.instruction.line, {f"made-by-{step.instruction.line}": ref})
                written.append(tar_of(files))
        return self.add(ref, config, written)

    def read(self, digest: str) -> bytes:
        return (self.blobs / digest.split(":")[1]).read_bytes()

    def analyzer(self, text: str, context: Path, args: Mapping[str, str] | None = None, **options: Any) -> Analyzer:
        """The analysis of a build on this host, of a service whose image is ``app:latest``."""
        options.setdefault("preferred", ("app:latest",))
        store = ImageStore(self)  # type: ignore[arg-type]
        evidence = EvidenceStore(str(self.root / "state/layers"))

        def reader(image: Image) -> LayerReader:
            return LayerReader(
                self,
                image.inspect,
                image.diff_ids,
                image.layer_descriptors,
                store.content_dir,
                evidence,
                False,  # type: ignore[arg-type]
            )

        build = build_input(text, args, options.pop("target", ""))
        return Analyzer(build, Context(str(context)), store, self.records, reader, **options)

    @property
    def records(self) -> RecordStore:
        return RecordStore(str(self.root / "state"))

"""Records: what is known for certain about how an image was made, bound to the image's id.

A record is written when a run makes an image, when ``prime`` finds an untouched tree to be what an image holds, and
when a bundle brings it. It holds one key per instruction, chained: two stages with the same key at a place have the
same instructions, the same ARG values and the same input files up to there. What history cannot hold (FROM's name,
``--from``, ``--mount``, ``--network``, heredocs) is in the keys.

Schema of ``<state_dir>/records/<image id>.json``, version 1::

    {"schema": 1, "image": id, "config_digest": digest, "checksum": sha256 of the rest,
     "stages": [{"base": name, "base_id": id or "", "boundary": int, "positions": [int], "keys": [str],
                 "texts": [str], "manifests": {"<instruction index>": manifest digest},
                 "triggers": [str] of the base's ONBUILD, "images": {"<name>": config digest, "" if it was not there},
                 "modes": "exact" or "image", "labels": [str]}]}

With ``modes: image`` keys and manifests have the modes that the image holds, not those of the tree: the record says
what the image is, and a later run with ``exact`` compares its tree with that.

An image made by overlay has no such record, since it is no ancestor that anything is proven by. What it was made from
is in ``<state_dir>/overlays/<image id>.json``, so that the same again is seen to be no change::

    {"schema": 1, "image": id, "config_digest": digest, "key": str, "ancestor": id, "not_run": [str],
     "run_again": [str], "checksum": sha256 of the rest}
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .context import Manifest
from .errors import OfflineRebuildError
from .files import write_atomic

__all__ = ["RecordStore", "StageRecord", "stage_record"]

SCHEMA = 1


@dataclass(frozen=True)
class StageRecord:
    """How one stage lies inside one image.

    :param keys: chained key after each instruction, in the order of the timeline.
    :param positions: number of history entries after the first ``j`` instructions (one more than ``keys``).
    :param manifests: instruction index to digest of the manifest of what it took from the context.
    :param triggers: the base's ONBUILD triggers, which ran first.
    :param images: name to config digest of every other image that went in: ``--from``, mounts, bases of other stages.
    :param modes: ``image``: some modes of the manifests were taken from the image, the tree had others.
    :param labels: the keys of the labels that the compose file gave the image: they are in no history.
    """

    base: str
    base_id: str
    boundary: int
    positions: Tuple[int, ...]
    keys: Tuple[str, ...]
    texts: Tuple[str, ...]
    manifests: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    triggers: Tuple[str, ...] = ()
    modes: str = "exact"
    labels: Tuple[str, ...] = ()


def stage_record(stage: Mapping[str, Any]) -> StageRecord:
    """:returns: the record that ``asdict`` made a document of.

    :raises KeyError, TypeError: it is not of the form.
    """
    return StageRecord(
        base=stage["base"],
        base_id=stage["base_id"],
        boundary=stage["boundary"],
        positions=tuple(stage["positions"]),
        keys=tuple(stage["keys"]),
        texts=tuple(stage["texts"]),
        manifests=dict(stage["manifests"]),
        images=dict(stage.get("images") or {}),
        triggers=tuple(stage.get("triggers") or ()),
        modes=str(stage.get("modes") or "exact"),
        labels=tuple(stage.get("labels") or ()),
    )


def _checksum(document: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class RecordStore:
    """Records and manifests under ``state_dir``. Reading never writes; a broken file counts as absent."""

    def __init__(self, state_dir: str) -> None:
        self.directory = state_dir
        self._cache: Dict[str, Tuple[StageRecord, ...]] = {}
        self._manifests: Dict[str, Manifest] = {}

    def _path(self, image_id: str) -> str:
        return os.path.join(self.directory, "records", image_id.rsplit(":", maxsplit=1)[-1] + ".json")

    def of(self, image_id: str, config_digest: str) -> Tuple[StageRecord, ...]:
        """:returns: the stage records of an image, ``()`` if there are none that are sound."""
        if image_id not in self._cache:
            self._cache[image_id] = self._read(image_id, config_digest)
        return self._cache[image_id]

    def has(self, image_id: str) -> bool:
        """:returns: whether there is a record of an image, sound or not."""
        return os.path.exists(self._path(image_id))

    def _read(self, image_id: str, config_digest: str) -> Tuple[StageRecord, ...]:
        try:
            with open(self._path(image_id), "rb") as handle:
                document = json.loads(handle.read())
            if document["schema"] != SCHEMA or document["checksum"] != _checksum(document):
                return ()
            if document["image"] != image_id or document["config_digest"] != config_digest:
                return ()
            return tuple(stage_record(stage) for stage in document["stages"])
        except (OSError, ValueError, KeyError, TypeError):
            return ()

    def write(self, image_id: str, config_digest: str, record: StageRecord) -> bool:
        """Add a record to those of an image.

        :returns: whether something was written (``False``: it was there already).
        """
        known = self.of(image_id, config_digest)
        if any(
            old.keys == record.keys
            and old.base == record.base
            and old.base_id == record.base_id
            and dict(old.images) == dict(record.images)
            for old in known
        ):
            return False
        stages: List[StageRecord] = [record, *known][:8]
        document: Dict[str, Any] = {
            "schema": SCHEMA,
            "image": image_id,
            "config_digest": config_digest,
            "stages": [asdict(stage) for stage in stages],
        }
        document["checksum"] = _checksum(json.loads(json.dumps(document)))
        write_atomic(self._path(image_id), json.dumps(document).encode())
        self._cache[image_id] = tuple(stages)
        return True

    def overlay_key(self, image_id: str, config_digest: str) -> str:
        """:returns: what an image was made from by overlay; ``""`` if that is not recorded."""
        try:
            with open(self._overlay_path(image_id), "rb") as handle:
                document = json.loads(handle.read())
            same = (document["schema"], document["image"], document["config_digest"]) == (
                SCHEMA,
                image_id,
                config_digest,
            )
            return str(document["key"]) if same and document["checksum"] == _checksum(document) else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def write_overlay(self, image_id: str, config_digest: str, key: str, about: Mapping[str, Any]) -> None:
        """Record that an image was made by overlay."""
        document = {"schema": SCHEMA, "image": image_id, "config_digest": config_digest, "key": key, **about}
        document["checksum"] = _checksum(json.loads(json.dumps(document)))
        write_atomic(self._overlay_path(image_id), json.dumps(document).encode())

    def _overlay_path(self, image_id: str) -> str:
        return os.path.join(self.directory, "overlays", image_id.rsplit(":", maxsplit=1)[-1] + ".json")

    def manifest_path(self, digest: str) -> str:
        """:returns: where the manifest with this digest lies."""
        return os.path.join(self.directory, "manifests", digest.rsplit(":", maxsplit=1)[-1] + ".json")

    def manifest(self, digest: Optional[str]) -> Optional[Manifest]:
        """:returns: the stored manifest with this digest, ``None`` if it is not there or is not what its name says."""
        if not digest:
            return None
        if digest not in self._manifests:
            try:
                with open(self.manifest_path(digest), encoding="ascii") as handle:
                    self._manifests[digest] = Manifest.from_json(handle.read(), expected=digest)
            except (OSError, ValueError, OfflineRebuildError):
                return None
        return self._manifests[digest]

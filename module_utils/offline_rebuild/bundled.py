"""What a bundle brings to a host: images, records of how they were made, lists of what their layers hold.

The control node has read and verified the bundle; a host tells what it has (:func:`ask`), gets what it lacks, and takes
it in (:func:`take`). Records go by config digest, since the same image has another id on another image store.

``<state_dir>/bundles/<project>.json`` says which bundle was imported last, so that an older one is noticed::

    {"schema": 1, "id": str, "created": epoch seconds, "project": str}
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tarfile
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, Iterable, List, Mapping, Tuple

from .cli import Docker
from .delta import holdings
from .errors import OfflineRebuildError, on_this_host
from .files import existing_parent, write_atomic
from .image import Image, ImageStore
from .importer import ImportRequest, import_archives
from .layers import EvidenceStore
from .records import RecordStore, stage_record
from .reuse import same_platform

__all__ = ["BundleRequest", "execute", "pack_records"]

SCHEMA = 1
_RECORD = re.compile(r"records/([0-9a-f]{64})\.json")
_MANIFEST = re.compile(r"records/manifests/[0-9a-f]{64}\.json")
_LIST = re.compile(r"layers/([0-9a-f]{64})\.json\.gz")


@dataclass(frozen=True)
class BundleRequest:
    """What is asked for; the fields are the options of the module ``bundle_import``.

    :param bundle: ``id``, ``created``, ``project``, and for :func:`ask` its ``images`` (``refs``, ``config_digest``,
        ``platform``), ``records`` (config digests) and ``lists`` (diff_ids).
    :param archive: with :func:`take`, the image archive on this host, if there is one.
    :param evidence: the same of records and lists.
    """

    bundle: Mapping[str, Any]
    check: bool = False
    archive: str = ""
    evidence: str = ""
    allow_older: bool = False
    state_dir: str = "/var/lib/offline-rebuild"
    action: str = "ask"

    @property
    def folder(self) -> str:
        """:returns: where what is sent lies until it is taken in."""
        return os.path.join(self.state_dir, "incoming")

    @property
    def marker(self) -> str:
        """:returns: the file that names the last bundle of this project."""
        project = os.path.basename(str(self.bundle["project"]))
        return os.path.join(self.state_dir, "bundles", project + ".json")


# -- on the connected side --------------------------------------------------------------------------------------------


def pack_records(state_dir: str, store: ImageStore, images: Iterable[Image]) -> Dict[str, bytes]:
    """The records of these images under a state folder in the form that travels, with the manifests that they name.

    :returns: path in the bundle to content.
    """
    records = RecordStore(state_dir)
    found: Dict[str, bytes] = {}
    for image in images:
        stages = records.of(image.id, image.config_digest)
        if not stages:
            continue
        listed = []
        for stage in stages:
            base = store.find(stage.base_id) if stage.base_id else None
            listed.append({**asdict(stage), "base_id": base.config_digest if base is not None else stage.base_id})
            for digest in stage.manifests.values():
                with open(records.manifest_path(digest), "rb") as handle:
                    found[f"records/manifests/{_hex(digest)}.json"] = handle.read()
        document = {"schema": SCHEMA, "config_digest": image.config_digest, "stages": listed}
        found[f"records/{_hex(image.config_digest)}.json"] = json.dumps(document, sort_keys=True).encode()
    return found


def _hex(digest: str) -> str:
    return digest.rpartition(":")[2]


# -- on the host ------------------------------------------------------------------------------------------------------


def ask(request: BundleRequest) -> Dict[str, Any]:
    """What this host has of a bundle. Unless it is a check, what an interrupted import left is removed.

    :returns: ``holdings`` (delta.py), ``present`` (one truth value per image), ``records`` and ``lists`` that it lacks,
        ``imported`` (the id of the last bundle, or ``""``), ``free`` (bytes: ``state``, ``engine``, and whether it is
        the ``same`` disk), ``msg``, ``changed`` (``False``).
    :raises OfflineRebuildError: ``archive-platform``, ``bundle-older``, and those of an engine that is not there.
    """
    with on_this_host():
        docker = Docker()
        docker.require(compose=None)
        store = ImageStore(docker)
        last = _last(request)
        _check_age(request, last)
        _check_platform(request, store)
        if not request.check:
            shutil.rmtree(request.folder, ignore_errors=True)
        again = last.get("id") == request.bundle["id"]
        present = [_is_here(image, store, again) for image in request.bundle["images"]]
        return {
            "changed": False,
            "msg": "asked",
            "holdings": holdings(store).to_dict(),
            "present": present,
            "records": _lacking_records(request, store),
            "lists": _lacking_lists(request),
            "imported": str(last.get("id") or ""),
            "free": _free(request, store),
        }


def _last(request: BundleRequest) -> Mapping[str, Any]:
    try:
        with open(request.marker, "rb") as handle:
            data = json.loads(handle.read())
        return data if isinstance(data, dict) and data.get("schema") == SCHEMA else {}
    except (OSError, ValueError):
        return {}


def _check_age(request: BundleRequest, last: Mapping[str, Any]) -> None:
    created = last.get("created")
    if isinstance(created, int) and int(request.bundle["created"]) < created and not request.allow_older:
        raise OfflineRebuildError(
            "bundle-older",
            f"bundle {request.bundle['id']} of project {request.bundle['project']} was made before bundle "
            f"{last.get('id')}, which this host has; nothing was loaded",
            "bring in the newer one, or go back on purpose: -e offline_rebuild_bundle_allow_older=true",
        )


def _check_platform(request: BundleRequest, store: ImageStore) -> None:
    for image in request.bundle["images"]:
        if not same_platform(str(image["platform"]), store.info.platform):
            raise OfflineRebuildError(
                "archive-platform",
                f"{image['refs'][0]} of the bundle is for {image['platform']}, and this host is "
                f"{store.info.platform}; nothing was loaded",
                f"make a bundle on a connected machine that is {store.info.platform}",
            )


def _is_here(image: Mapping[str, Any], store: ImageStore, again: bool) -> bool:
    """
    :param again: this very bundle was the last one to be imported: a name that stands for a rebuilt image since then is
        not taken from it, as long as the bundle's image is there under any name.
    """
    found = [store.find(str(name)) for name in image["refs"]]
    if all(have is not None and have.config_digest == image["config_digest"] for have in found):
        return True
    return again and any(have.config_digest == image["config_digest"] for have in store.all())


def _lacking_records(request: BundleRequest, store: ImageStore) -> List[str]:
    records = RecordStore(request.state_dir)
    wanted = set(request.bundle["records"])
    here = [image for image in store.all() if image.config_digest in wanted]  # under whatever name
    known = {image.config_digest for image in here if records.of(image.id, image.config_digest)}
    return [digest for digest in request.bundle["records"] if digest not in known]


def _lacking_lists(request: BundleRequest) -> List[str]:
    evidence = EvidenceStore(os.path.join(request.state_dir, "layers"))
    return [diff_id for diff_id in request.bundle["lists"] if not os.path.exists(evidence.path(str(diff_id)))]


def _free(request: BundleRequest, store: ImageStore) -> Dict[str, Any]:
    places = [existing_parent(path) for path in (request.state_dir, store.info.root)]
    state, engine = (os.statvfs(path) for path in places)
    return {
        "state": state.f_bavail * state.f_frsize,
        "engine": engine.f_bavail * engine.f_frsize,
        "same": os.stat(places[0]).st_dev == os.stat(places[1]).st_dev,
    }


def take(request: BundleRequest) -> Dict[str, Any]:
    """Load the archive that was sent, and keep the records and lists that came along. What was sent is removed.

    :returns: the module's result: ``changed``, ``msg``, ``archives`` (importer.py), ``records`` and ``lists``, numbers.
    :raises OfflineRebuildError: those of importer.py; ``bundle-invalid``. The lists are taken back then.
    """
    with on_this_host():
        try:
            return _take(request)
        finally:
            shutil.rmtree(request.folder, ignore_errors=True)


def _take(request: BundleRequest) -> Dict[str, Any]:
    new, records = _unpack(request) if request.evidence else ([], [])
    loaded: Dict[str, Any] = {"archives": [], "msg": "no image was lacking"}
    try:
        if request.archive:
            loaded = import_archives(ImportRequest([request.archive], state_dir=request.state_dir))
    except OfflineRebuildError:
        for path in new:
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise
    store = ImageStore(Docker())
    written = sum(_write_record(document, request, store) for document in records)
    marker = {"schema": SCHEMA, **{key: request.bundle[key] for key in ("id", "created", "project")}}
    write_atomic(request.marker, json.dumps(marker).encode())
    names = [name for archive in loaded["archives"] for image in archive["images"] for name in image["refs"]]
    told = f"loaded: {', '.join(names)}" if names else "all images were there"
    return {
        "changed": True,
        "msg": f"bundle {marker['id']}: {told}; {written} record(s) and {len(new)} file(s) of evidence kept",
        "archives": loaded["archives"],
        "records": written,
        "lists": len(new),
    }


def _unpack(request: BundleRequest) -> Tuple[List[str], List[Mapping[str, Any]]]:
    """:returns: the files that are new in the state folder, and the records."""
    evidence = EvidenceStore(os.path.join(request.state_dir, "layers"))
    store = RecordStore(request.state_dir)
    new: List[str] = []
    records: List[Mapping[str, Any]] = []
    with tarfile.open(request.evidence, "r:") as archive:
        for member in archive:
            source = archive.extractfile(member) if member.isreg() else None
            content = source.read() if source is not None else b""
            listed = _LIST.fullmatch(member.name)
            if _RECORD.fullmatch(member.name):
                records.append(json.loads(content))
                continue
            if listed:
                path = evidence.path(listed.group(1))
            elif _MANIFEST.fullmatch(member.name):
                path = store.manifest_path(os.path.basename(member.name)[: -len(".json")])
            else:
                raise OfflineRebuildError("bundle-invalid", f"{member.name} is no evidence", "run again")
            if not os.path.exists(path):
                write_atomic(path, content)
                new.append(path)
    return new, records


def _write_record(document: Mapping[str, Any], request: BundleRequest, store: ImageStore) -> bool:
    """Keep the record of every image here that has its config.

    :returns: whether something was written.
    """
    if document["schema"] != SCHEMA:
        return False
    digest = str(document["config_digest"])
    images = store.all()
    by_digest = {image.config_digest: image.id for image in images}
    records = RecordStore(request.state_dir)
    written = False
    for image_id in [image.id for image in images if image.config_digest == digest]:
        for data in reversed(document["stages"]):  # the first of a record is the newest
            stage = stage_record(data)
            # a base that is not here keeps its digest: whatever has that name here is seen to be another
            stage = replace(stage, base_id=by_digest.get(stage.base_id, stage.base_id))
            written = records.write(image_id, digest, stage) or written
    return written


def execute(request: BundleRequest) -> Dict[str, Any]:
    """:returns: what :func:`ask` or :func:`take` gives, by ``action``."""
    return ask(request) if request.action == "ask" else take(request)

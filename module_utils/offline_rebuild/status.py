"""What is on a host: services, images, releases, lock, disk; layers of the images; contexts; logs. Reads only.

Schema of a status (``Status.to_dict``), version 1 (times are seconds since 1970 on the host's clock, sizes bytes)::

    {"schema": 1, "host": str, "project": str, "src": str, "engine": str, "store": str, "compose": str,
     "services": [{"service", "image", "image_id", "known": bool, "origin", "made_by", "image_note",
                   "containers": [{"name", "state", "health", "image_id", "restarts"}]}],
     "kept": [{"name", "image_id", "size", "release"}],
     "releases": [{"id", "state", "started", "finished", "operator", "change_id", "services": [str], "note"}],
     "unfinished": [release id], "damaged": [release id],
     "lock": {"operator", "why", "change_id", "time", "pid", "state", "note"} | null,
     "disk": {"state_dir", "state_bytes", "state_parts": {folder: bytes}, "state_free", "images", "images_bytes",
              "images_root", "images_free"}}
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from . import compose
from .cli import Docker
from .compose import ContainerState, Project
from .errors import OfflineRebuildError
from .image import normal_ref
from .later import Later
from .lock import Holder, holder
from .release import FINISHED, Journal, Release, mask, secrets_of
from .run import Request, open_project, settings_of

__all__ = [
    "ContainerLine",
    "ContextLine",
    "Disk",
    "KeptImage",
    "LayerLine",
    "LogText",
    "ReleaseLine",
    "ServiceLayers",
    "ServiceStatus",
    "Status",
    "contexts",
    "histories",
    "layers",
    "logs",
    "release",
    "releases",
    "status",
]

SCHEMA = 1
#: ``docker history`` calls at the same time.
_AT_ONCE = 4
#: Tags that a run gives to the images that a rollback goes back to (transaction.py).
_KEPT_TAG = re.compile(r"^offline-rebuild-(\d{8}T\d{6}Z-[0-9a-f]{6})")
#: Characters of one line of a log, and lines of one log, that are handed on.
MOST_LINE = 4000
MOST_LINES = 10_000


@dataclass(frozen=True)
class ContainerLine:
    """A container of a service. ``restarts`` counts those by its restart policy."""

    name: str
    state: str
    health: str
    image_id: str
    restarts: int


@dataclass(frozen=True)
class ServiceStatus:
    """One service.

    :param image: its image's name; ``""`` when it is no longer in the project and has containers only.
    :param image_id: what runs, or what the name stands for when nothing does; ``""`` if there is neither.
    :param known: whether the project still has it.
    :param origin: where that image comes from: ``release`` (``made_by`` names it), ``imported``, or ``unknown`` (the
        journal does not go back that far).
    :param image_note: what is odd, for the operator.
    """

    service: str
    image: str
    image_id: str
    known: bool
    origin: str
    made_by: str
    image_note: str
    containers: Tuple[ContainerLine, ...]


@dataclass(frozen=True)
class KeptImage:
    """An image that a release keeps to go back to. ``size`` is that of all its layers, shared ones included."""

    name: str
    image_id: str
    size: int
    release: str


@dataclass(frozen=True)
class ReleaseLine:
    """A release in one line."""

    id: str
    state: str
    started: float
    finished: Optional[float]
    operator: str
    change_id: str
    services: Tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Disk:
    """Space that is used and free.

    :param state_bytes: blocks used under ``state_dir``, by all projects of this host; ``state_parts`` by folder.
    :param images: number of images that belong to the project; ``images_bytes`` counts a layer that several of them
        share once (base images included; what images of other projects share with them is not taken off).
    """

    state_dir: str
    state_bytes: int
    state_parts: Mapping[str, int]
    state_free: int
    images: int
    images_bytes: int
    images_root: str
    images_free: int


@dataclass(frozen=True)
class Status:
    """What is on one host of one project; see the schema in this file."""

    host: str
    project: str
    src: str
    engine: str
    store: str
    compose: str
    services: Tuple[ServiceStatus, ...]
    kept: Tuple[KeptImage, ...]
    releases: Tuple[ReleaseLine, ...]
    unfinished: Tuple[str, ...]
    damaged: Tuple[str, ...]
    lock: Optional[Holder]
    disk: Disk

    def to_dict(self) -> Dict[str, Any]:
        """:returns: the status in the schema of this file, JSON-ready."""
        return {"schema": SCHEMA, **asdict(self)}


@dataclass(frozen=True)
class LayerLine:
    """One instruction of a stage.

    :param line: 1-based line in the Dockerfile; 0 for an ONBUILD trigger of the base.
    :param size: bytes of its layer in the ancestor as the engine counts them (the containerd store in blocks), 0
        without a layer there, ``None`` when the ancestor lacks it.
    :param use: what a run would do now: ``reused``; ``thin`` (its files go into the thin layer); ``config`` (only the
        image's configuration is written); ``build`` (it has to run).
    """

    line: int
    text: str
    size: Optional[int]
    use: str


@dataclass(frozen=True)
class ServiceLayers:
    """The target stage of a service's build against the image that holds its beginning.

    :param ancestor: that image's name, ``""`` if there is none.
    :param base: FROM's name; ``base_size`` the bytes of its layers inside the ancestor.
    :param thin_size: bytes of the thin layer that an earlier run put on the ancestor: what COPY and ADD wrote then lies
        in it as far as it differs from their own layers. ``None`` if there is none.
    :param reason: why the first instruction that is not reused is not.
    """

    service: str
    image: str
    dockerfile: str
    stage: str
    ancestor: str
    evidence: str
    base: str
    base_line: int
    base_size: Optional[int]
    thin_size: Optional[int]
    reason: str
    lines: Tuple[LayerLine, ...] = ()

    def to_dict(self) -> Dict[str, Any]:
        """:returns: the fields, JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class ContextLine:
    """A service's build context: digest, number of regular files and their bytes."""

    service: str
    path: str
    dockerfile: str
    ignore_file: str
    digest: str
    files: int
    bytes: int


@dataclass(frozen=True)
class LogText:
    """The end of one container's log, its secrets masked."""

    service: str
    container: str
    state: str
    lines: Tuple[str, ...] = field(default_factory=tuple)


# -- status -----------------------------------------------------------------------------------------------------------


def status(request: Request) -> Status:
    """:returns: what is on this host of the project.

    :raises OfflineRebuildError: for bad input, and when the engine does not answer.
    """
    docker = Docker()
    later_listing = Later(lambda: _listing(docker))
    later_info = Later(docker.require)
    project = open_project(docker, request)
    info = later_info.result()
    states = compose.containers(docker, project)
    journal = Journal(request.state_dir, project.name)
    known = journal.all()
    listing = later_listing.result()
    ids = _project_images(project, states, known, listing)
    inspected = {str(data["Id"]): data for data in docker.inspect("image", sorted(ids))}
    return Status(
        host=socket.gethostname(),
        project=project.name,
        src=project.src,
        engine=info.version,
        store=info.store,
        compose=info.plugins.get("compose", ""),
        services=tuple(_service_lines(project, states, known, listing, set(inspected), request.services)),
        kept=tuple(_kept(project, listing, inspected)),
        releases=tuple(_release_line(item) for item in reversed(known)),
        unfinished=tuple(item.id for item in known if item.state not in FINISHED),
        damaged=tuple(journal.damaged()),
        lock=holder(request.state_dir, project.name),
        disk=_disk(docker, request.state_dir, info.root, sorted(inspected)),
    )


def _listing(docker: Docker) -> Dict[str, str]:
    """:returns: name with tag to id of all images."""
    listed = docker.run("image", "ls", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}")
    pairs = (line.rsplit(" ", 1) for line in listed.text.splitlines() if " " in line)
    return {normal_ref(name): image_id for name, image_id in pairs if "<none>" not in name}


def _repository(image: str) -> str:
    """:returns: a normal reference without tag and digest."""
    head, slash, last = image.partition("@")[0].rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def _project_images(
    project: Project,
    states: Mapping[str, Sequence[ContainerState]],
    known: Sequence[Release],
    listing: Mapping[str, str],
) -> Set[str]:
    """:returns: the ids of the images that the project's services, containers and releases name."""
    found = {listing[service.image] for service in project.services if service.image in listing}
    found |= {state.image_id for own in states.values() for state in own}
    found |= {i for item in known for record in item.services.values() for i in (record.before, record.after)}
    found |= {listing[name] for name, _ in _kept_names(project, listing)}
    return found - {""}


def _kept_names(project: Project, listing: Mapping[str, str]) -> List[Tuple[str, str]]:
    """:returns: the names of kept images, each with its release."""
    repositories = {_repository(service.image) for service in project.services}
    found = []
    for name in sorted(listing):
        match = _KEPT_TAG.match(name.rpartition(":")[2])
        if match and _repository(name) in repositories:
            found.append((name, match.group(1)))
    return found


def _kept(
    project: Project, listing: Mapping[str, str], inspected: Mapping[str, Mapping[str, Any]]
) -> Iterable[KeptImage]:
    for name, release_id in _kept_names(project, listing):
        data = inspected.get(listing[name], {})
        yield KeptImage(name, listing[name], int(data.get("Size") or 0), release_id)


def _service_lines(
    project: Project,
    states: Mapping[str, Sequence[ContainerState]],
    known: Sequence[Release],
    listing: Mapping[str, str],
    there: Set[str],
    wanted: Sequence[str],
) -> Iterable[ServiceStatus]:
    images = {service.name: service.image for service in project.services}
    for name in [*images, *sorted(set(states) - set(images))]:
        if wanted and name not in wanted:
            continue
        own = list(states.get(name, ()))
        image = images.get(name, "")
        named = listing.get(image, "")
        image_id = own[-1].image_id if own else named
        origin, made_by = origin_of(image_id, known)
        yield ServiceStatus(
            name,
            image,
            image_id,
            name in images,
            origin,
            made_by,
            _image_note(image, named, own, there) if name in images else "the project has no such service any more",
            tuple(ContainerLine(s.name, s.state, s.health, s.image_id, s.restart_count) for s in own),
        )


def _image_note(image: str, named: str, own: Sequence[ContainerState], there: Set[str]) -> str:
    if not named:
        return f"{image} is not on this host"
    running = {state.image_id for state in own}
    if running - there:
        return "the image that runs has been removed"
    if len(running) > 1:
        return "its containers run different images"
    return f"{image} is another image" if running and named not in running else ""


def origin_of(image_id: str, known: Sequence[Release]) -> Tuple[str, str]:
    """:returns: ``release``, ``imported`` or ``unknown``, and the id of the release; both ``""`` for no image."""
    if not image_id:
        return "", ""
    for item in reversed(known):
        for record in item.services.values():
            if record.after == image_id and record.before != image_id:
                return "release", item.id
    imported = any(r.before == image_id and r.imported for item in known for r in item.services.values())
    return ("imported", "") if imported else ("unknown", "")


def _release_line(item: Release) -> ReleaseLine:
    names = tuple(item.swapped) or tuple(item.services)
    return ReleaseLine(
        item.id, item.state, item.started, item.finished, item.operator, item.change_id, names, item.note
    )


def _disk(docker: Docker, state_dir: str, root: str, ids: Sequence[str]) -> Disk:
    total, parts = _used(state_dir)
    existing = os.path.abspath(state_dir)
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    sizes = shared_once(histories(docker, ids).values())
    return Disk(state_dir, total, parts, _free(existing), len(ids), sizes, root, _free(root))


def _used(folder: str) -> Tuple[int, Dict[str, int]]:
    """:returns: bytes in blocks under a folder, in all and by its entries; hard links count once."""
    seen: Set[Tuple[int, int]] = set()
    parts: Dict[str, int] = {}
    for path, names, files in os.walk(folder):
        part = os.path.relpath(path, folder).split(os.sep)[0]
        for name in files + names:
            try:
                info = os.lstat(os.path.join(path, name))
            except OSError:
                continue
            if (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                key = name if part == "." else part
                parts[key] = parts.get(key, 0) + info.st_blocks * 512
    return sum(parts.values()), parts


def _free(folder: str) -> int:
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


#: One entry of ``docker history``: time, text and bytes.
_Entry = Tuple[str, str, int]


def histories(docker: Docker, ids: Sequence[str]) -> Dict[str, List[_Entry]]:
    """:returns: per image the entries of its history, oldest first; images that are gone are left out."""
    found: Dict[str, List[_Entry]] = {}
    for start in range(0, len(ids), _AT_ONCE):
        argv = ("history", "--no-trunc", "--human=false", "--format", "{{json .}}")
        part = ids[start : start + _AT_ONCE]
        work = [(i, docker.popen(*argv, i, stderr=subprocess.DEVNULL)) for i in part]
        for image_id, process in work:
            said = process.communicate()[0]
            if process.returncode == 0:
                found[image_id] = parse_docker_history(said)
    return found


def parse_docker_history(said: bytes) -> List[_Entry]:
    """:returns: what ``docker history --human=false --format '{{json .}}'`` prints, oldest first."""
    import json

    entries: List[_Entry] = []
    for line in said.splitlines():
        data = json.loads(line)
        size = str(data.get("Size", ""))
        entries.append(
            (str(data.get("CreatedAt", "")), str(data.get("CreatedBy", "")), int(size) if size.isdigit() else 0)
        )
    return entries[::-1]


def shared_once(histories: Iterable[Sequence[_Entry]]) -> int:
    """:returns: bytes of all layers, those counted once that several images have at their beginning."""
    seen: Set[Tuple[_Entry, ...]] = set()
    total = 0
    for history in histories:
        path: Tuple[_Entry, ...] = ()
        for entry in history:
            path = (*path, entry)
            if entry[2] and path not in seen:
                seen.add(path)
                total += entry[2]
    return total


# -- releases ---------------------------------------------------------------------------------------------------------


def _journal(request: Request) -> Journal:
    """The journal of the project; compose is asked only where the project's name is not given."""
    if request.project_name:
        return Journal(request.state_dir, request.project_name)
    project = open_project(Docker(), request)
    return Journal(request.state_dir, project.name, secrets_of(project.raw))


def releases(request: Request) -> List[ReleaseLine]:
    """:returns: the releases of the project on this host, newest first."""
    return [_release_line(item) for item in reversed(_journal(request).all())]


def release(request: Request, release_id: str) -> Release:
    """:returns: one release.

    :raises OfflineRebuildError: ``release-missing``, ``journal-damaged``.
    """
    return _journal(request).read(release_id)


# -- layers, contexts -------------------------------------------------------------------------------------------------


def _planner(request: Request) -> Any:
    from .planner import Planner

    docker = Docker()
    docker.require()
    return Planner(docker, open_project(docker, request), settings_of(request), set(request.services))


def layers(request: Request) -> List[ServiceLayers]:
    """:returns: per service that is built, each instruction of its target stage and whether it would be reused now.

    :raises OfflineRebuildError: for input that cannot be planned for.
    """
    planner = _planner(request)
    secrets = secrets_of(planner.project.raw)
    found = [_layers_of(planner, service) for service in planner.services if service.build is not None]
    return [_masked(item, secrets) for item in found]


def _masked(item: ServiceLayers, secrets: Sequence[str]) -> ServiceLayers:
    from dataclasses import replace

    lines = tuple(replace(line, text=mask(line.text, secrets)) for line in item.lines)
    return replace(item, reason=mask(item.reason, secrets), lines=lines)


def _layers_of(planner: Any, service: Any) -> ServiceLayers:
    from .derive import reuse_point
    from .history import THIN_COMMENT

    analyzer = planner.analyzer(service)
    stage = analyzer.stage(analyzer.target)
    timeline, alignment = stage.timeline, stage.alignment
    layer, _ = analyzer.thin(analyzer.target)
    sizes: List[Optional[int]] = [None] * len(timeline.steps)
    base_size: Optional[int] = None
    thin_size: Optional[int] = None
    if alignment is not None:
        entries = alignment.image.history
        history = histories(planner.docker, [alignment.image.id]).get(alignment.image.id, [])
        if len(history) == len(entries):
            thin = [entry.comment == THIN_COMMENT for entry in entries]
            thin_size = sum(entry[2] for entry, is_thin in zip(history, thin) if is_thin) if any(thin) else None
            base_size = sum(entry[2] for entry in history[: alignment.boundary])
            places = settled(alignment.positions)
            for place in range(min(alignment.matched, len(sizes))):
                span = range(places[place], places[place + 1])
                sizes[place] = sum(history[at][2] for at in span if not thin[at])
    cut = layer.start if layer is not None else reuse_point(stage)
    end = layer.end if layer is not None else cut
    lines = []
    for place, step in enumerate(timeline.steps):
        use = "reused" if place < cut else "build"
        if cut <= place < end:
            use = "config" if step.kind == "meta" else "thin"
        line = 0 if step.onbuild else step.instruction.line
        lines.append(LayerLine(line, step.title, sizes[place], use))
    return ServiceLayers(
        service=service.name,
        image=service.image,
        dockerfile=os.path.relpath(analyzer.build.dockerfile.file, planner.project.src),
        stage=timeline.name or str(timeline.index),
        ancestor=alignment.image.name if alignment else "",
        evidence=stage.evidence,
        base=timeline.base,
        base_line=timeline.from_line,
        base_size=base_size,
        thin_size=thin_size,
        reason=stage.reason,
        lines=tuple(lines),
    )


def settled(positions: Sequence[int]) -> List[int]:
    """Positions in a history with those that a record leaves out (-1, inside a thin layer) filled in: an instruction
    leaves one entry, and none lies beyond the next position that is known."""
    found: List[int] = []
    for at, position in enumerate(positions):
        after = next((p for p in positions[at:] if p >= 0), found[-1] + 1 if found else 0)
        found.append(position if position >= 0 else min(found[-1] + 1 if found else 0, after))
    return found


def contexts(request: Request) -> List[ContextLine]:
    """:returns: the build context of each service that is built. Nothing is written, not even the stat index.

    :raises OfflineRebuildError: for a context or an ignore file that cannot be read.
    """
    planner = _planner(request)
    found: List[ContextLine] = []
    for service in planner.services:
        if service.build is None:
            continue
        context = planner.context(service.build)
        manifest = context.manifest()
        found.append(
            ContextLine(
                service.name,
                context.given_root,
                os.path.relpath(service.build.dockerfile, planner.project.src) if service.build.dockerfile else "",
                context.ignore.file or "",
                manifest.digest(),
                manifest.files,
                manifest.bytes,
            )
        )
    return found


# -- logs -------------------------------------------------------------------------------------------------------------


def logs(request: Request, lines: int = 100, since: str = "") -> List[LogText]:
    """The end of the logs of the services' containers, secrets of the project masked.

    :param lines: of each container, 1 to :data:`MOST_LINES`.
    :param since: as ``docker logs --since`` takes it: ``10m``, ``2026-01-02T03:04:05Z``; ``""``: no limit.
    :raises OfflineRebuildError: ``option-invalid`` for a number or a time that is not one.
    """
    if not 1 <= lines <= MOST_LINES:
        raise OfflineRebuildError("option-invalid", f"{lines} is no number of lines", f"give 1 to {MOST_LINES}")
    if since and not re.match(r"^[0-9][0-9A-Za-z.:+-]*$", since):
        raise OfflineRebuildError(
            "option-invalid", f"{since!r} is no time", "give a span such as 10m or a time such as 2026-01-02T03:04:05Z"
        )
    docker = Docker()
    docker.require()
    project = open_project(docker, request)
    secrets = sorted(secrets_of(project.raw), key=len, reverse=True)
    argv = ["logs", "--tail", str(lines), *(["--since", since] if since else [])]
    found: List[LogText] = []
    for name, states in compose.containers(docker, project).items():
        if request.services and name not in request.services:
            continue
        for state in states:
            with docker.popen(*argv, state.id, stderr=subprocess.STDOUT) as process:
                said = process.communicate()[0].decode("utf-8", "backslashreplace")
            if process.returncode != 0 and "invalid value for" in said:
                raise OfflineRebuildError("option-invalid", said.strip(), "give a span such as 10m, or a time")
            kept = mask(said, secrets).splitlines()[-lines:]  # masked first: a secret may have several lines
            found.append(LogText(name, state.name, state.state, tuple(line[:MOST_LINE] for line in kept)))
    return found

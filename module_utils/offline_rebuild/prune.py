"""Taking away what runs left on a host: :func:`decide` says what goes, from values alone; :func:`prune` looks and acts.

What goes, and nothing else:

========= ============================================================================================================
graft     names under :data:`graft.REGISTRY` that a run which was cut off left, while no run makes images. The names are
          those of making, whatever the project; what one host made for others goes a day after it got its name
kept      ``<repository>:offline-rebuild-<release>`` of this project's repositories, where no project has that release
debug     ``<project>-<service>:offline-rebuild-debug``, made by debug.yml
dangling  images without a name that a release of this project made and that failed or went back
cache     build cache that nothing used for so many days; it belongs to the engine, not to a project
file      what the state folder keeps for images that are gone, and what a run that was cut off left there
========= ============================================================================================================

An image stays when a container uses it, running or not, or when a release of any project keeps it: what a release that
is done made, what one would go back to, and all that an unfinished one names. Where a journal cannot be read, images
stay. Volumes and containers are never touched.
"""

from __future__ import annotations

import calendar
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, Sequence, Set, Tuple

from . import debug, status, sweep, transaction
from .cli import Docker
from .compose import Project
from .errors import OfflineRebuildError
from .graft import REGISTRY, SENT, Making
from .image import ImageStore
from .lock import Lock, is_guarded
from .planner import image_store
from .release import FINISHED, Journal, Release
from .run import Request, open_project, options_of, settings_of

__all__ = ["CACHE_DAYS", "CacheEntry", "Found", "Item", "LocalImage", "Pruned", "decide", "freed_by", "prune"]

DAY = 86400.0
#: Days, where nothing is said.
CACHE_DAYS = 30
_KEPT = re.compile(r"^offline-rebuild-(\d{8}T\d{6}Z-[0-9a-f]{6})(-.+)?$")
#: Kinds of build cache that ``docker builder prune`` takes without ``--all``.
_CACHE_KINDS = frozenset(("regular", "source.local", "source.git.checkout", "exec.cachemount"))
_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class LocalImage:
    """An image as the engine lists it.

    :param names: with tags; ``nameless``: it has neither a tag nor a digest that somebody pulled it by.
    :param layers: diff_ids, bottom first.
    :param tagged: when it last got a name here, seconds since 1970; 0 if unknown.
    """

    id: str
    names: Tuple[str, ...]
    layers: Tuple[str, ...] = ()
    nameless: bool = False
    tagged: float = 0.0


@dataclass(frozen=True)
class CacheEntry:
    """One entry of the engine's build cache; ``free`` when nothing uses or shares it and its kind is pruned."""

    id: str
    parents: Tuple[str, ...]
    size: int
    used: float
    free: bool


@dataclass(frozen=True)
class Found:
    """What was found on the host.

    :param used: ids of images of containers; ``needed``, of those that releases keep.
    :param made: ids that releases of this project made and that did not stay.
    :param releases: ids of the releases of all projects.
    :param certain: every journal could be read.
    :param busy: a run makes images now.
    :param cache_days: 0 leaves the build cache alone.
    """

    project: str
    repositories: FrozenSet[str]
    services: Tuple[str, ...]
    images: Tuple[LocalImage, ...] = ()
    used: FrozenSet[str] = frozenset()
    needed: FrozenSet[str] = frozenset()
    made: FrozenSet[str] = frozenset()
    releases: FrozenSet[str] = frozenset()
    certain: bool = True
    busy: bool = False
    cache: Tuple[CacheEntry, ...] = ()
    cache_days: float = 0.0
    now: float = 0.0


@dataclass(frozen=True)
class Item:
    """One thing that goes.

    :param kind: see this file. ``name``: a name with tag, an image's id, a path, or what of the cache.
    :param image_id: of the image that has the name.
    :param size: bytes that it frees; those of an image are at its first name, and count no layer that stays.
    """

    kind: str
    name: str
    image_id: str = ""
    size: int = 0


@dataclass(frozen=True)
class Pruned:
    """What went, or would go: ``freed`` bytes in all; ``left`` says what was left alone, and why."""

    changed: bool
    msg: str
    items: Tuple[Item, ...] = ()
    freed: int = 0
    left: Tuple[str, ...] = field(default_factory=tuple)

    def to_dict(self) -> Dict[str, Any]:
        """:returns: the module's result, JSON-ready."""
        return asdict(self)

    def lines(self) -> List[str]:
        """:returns: the same for an operator: what goes with its bytes, what is left alone, and the sum."""
        from .render import size, table

        rows = [[item.kind, size(item.size), item.name] for item in self.items]
        return [*table(rows), *(f"left: {text}" for text in self.left), self.msg]


# -- what goes ---------------------------------------------------------------------------------------------------------


def decide(found: Found) -> Tuple[List[Item], List[str]]:
    """:returns: what goes of images and cache, without the bytes of images; and what is left alone, with the reason."""
    items: List[Item] = []
    left: List[str] = []
    for image in sorted(found.images, key=lambda one: (one.names, one.id)):
        going = {name: kind for name in image.names for kind in [_kind(name, image, found)] if kind}
        last = image.nameless or (bool(going) and len(going) == len(image.names))
        if image.nameless and not (found.certain and image.id in found.made):
            continue
        if last and image.id in found.used | found.needed:
            who = "a container uses" if image.id in found.used else "a release keeps"
            left += [f"{name}: {who} its image" for name in going]
            continue
        items += [Item(kind, name, image.id) for name, kind in going.items()]
        if image.nameless:
            items.append(Item("dangling", image.id, image.id))
    if found.busy:
        left.append("the names of making: a run makes images now")
    if not found.certain:
        left.append("images without a name: a journal under the state folder cannot be read")
    return items + _cache_items(found), left


def _kind(name: str, image: LocalImage, found: Found) -> str:
    """:returns: why a name goes, ``""`` where it stays."""
    repository, _, tag = name.rpartition(":")
    if name.startswith(REGISTRY + "/"):
        if found.busy:
            return ""
        sent = name.startswith(f"{REGISTRY}/{SENT}:")
        return "graft" if not sent or 0 < image.tagged < found.now - DAY else ""
    if name in {debug.image_name(found.project, service) for service in found.services}:
        return "debug"
    kept = _KEPT.match(tag)
    if kept and repository in found.repositories and kept.group(1) not in found.releases:
        return "kept"
    return ""


def _cache_items(found: Found) -> List[Item]:
    """An entry stays while one that was made on it stays."""
    if not found.cache_days:
        return []
    before = found.now - found.cache_days * DAY
    parents = {entry.id: entry.parents for entry in found.cache}
    stay: Set[str] = set()
    todo = [entry.id for entry in found.cache if not (entry.free and entry.used < before)]
    while todo:
        one = todo.pop()
        if one not in stay:
            stay.add(one)
            todo += parents.get(one, ())
    going = [entry for entry in found.cache if entry.id not in stay]
    name = f"{len(going)} entries unused for {found.cache_days:g} days"
    return [Item("cache", name, size=sum(entry.size for entry in going))] if going else []


def freed_by(
    going: Sequence[LocalImage], staying: Iterable[LocalImage], sizes: Mapping[str, Sequence[int]]
) -> Dict[str, int]:
    """The bytes that images free: those of layers that no image which stays has, each counted once.

    :param sizes: image id to the bytes of its layers, bottom first; an image that is not there frees none.
    """
    kept: Set[Tuple[str, ...]] = {image.layers[: n + 1] for image in staying for n in range(len(image.layers))}
    found: Dict[str, int] = {}
    for image in going:
        found[image.id] = 0
        for place, size in enumerate(sizes.get(image.id, ())):
            chain = image.layers[: place + 1]
            if chain not in kept:
                kept.add(chain)
                found[image.id] += size
    return found


# -- looking and acting ------------------------------------------------------------------------------------------------


def prune(request: Request, cache_days: float) -> Pruned:
    """Remove what runs left, under the project's lock; with ``request.check`` only say it.

    :param cache_days: days for which build cache has to have been unused; 0 leaves it alone.
    :raises OfflineRebuildError: ``locked``, ``option-invalid``, for bad input, and when the engine does not answer.
    """
    if cache_days < 0:
        raise OfflineRebuildError("option-invalid", f"prune_cache_days is {cache_days:g}", "give a number from 0 on")
    docker = Docker()
    docker.require()
    project = open_project(docker, request)
    if request.check:
        Lock.look(request.state_dir, project.name)
        return _Pruning(request, docker, project, cache_days).look()
    with transaction.locked(project, replace(options_of(request), why="prune")) as lock:
        docker.guard = lock.guard
        return _Pruning(request, docker, project, cache_days).act()


class _Pruning:
    """One look at a host, and what follows."""

    def __init__(self, request: Request, docker: Docker, project: Project, cache_days: float) -> None:
        self.request, self.docker, self.project = request, docker, project
        self.store: ImageStore = image_store(docker, settings_of(replace(request, check=True)))
        self.journal = Journal(request.state_dir, project.name)
        self.making = Making(request.state_dir)
        self.inspected = self.store.inspected()
        self.found = self._find(cache_days)
        items, self.left = decide(self.found)
        self.items = self._with_sizes(items) + self._files(items)

    def look(self) -> Pruned:
        return self._told("would remove" if self.items else "nothing to remove", bool(self.items))

    def act(self) -> Pruned:
        if not self.items:
            return self.look()
        grafts = [item for item in self.items if item.kind == "graft"]
        gone: List[Item] = []
        if grafts:
            self.making.end(lambda: gone.extend(self._untag(grafts)))
        gone += self._untag([item for item in self.items if item.kind in ("kept", "debug", "dangling")])
        gone += self._prune_cache([item for item in self.items if item.kind == "cache"])
        gone += [item for item in self.items if item.kind == "file" and _removed(item.name)]
        known = {(item.kind, item.name): item for item in gone}
        stayed = [item.name for item in self.items if (item.kind, item.name) not in known and item.kind != "cache"]
        self.left += [f"{name}: it could not be removed" for name in stayed]
        self.items = [known[key] for key in ((item.kind, item.name) for item in self.items) if key in known]
        told = self._told("removed" if gone else "nothing could be removed", bool(gone))
        if gone:
            self.journal.audit("pruned", text=told.msg, operator=self.request.operator)
        return told

    def _told(self, word: str, changed: bool) -> Pruned:
        from .render import size

        freed = sum(item.size for item in self.items)
        counts: Dict[str, int] = {}
        for item in self.items:
            counts[item.kind] = counts.get(item.kind, 0) + 1
        what = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        return Pruned(
            changed, f"{word} {what}: {size(freed)}" if what else word, tuple(self.items), freed, tuple(self.left)
        )

    def _untag(self, items: Sequence[Item]) -> List[Item]:
        """Remove names and nameless images. :returns: those that are gone."""
        if items:
            self.docker.run("image", "rm", "--no-prune", *(item.name for item in items), check=False, guarded=True)
        there = {str(one["Id"]): set(one.get("RepoTags") or ()) for one in self._again(items)}
        return [
            item
            for item in items
            if item.image_id not in there or (item.kind != "dangling" and item.name not in there[item.image_id])
        ]

    def _again(self, items: Sequence[Item]) -> List[Mapping[str, Any]]:
        return self.docker.inspect("image", sorted({item.image_id for item in items}))

    def _prune_cache(self, items: Sequence[Item]) -> List[Item]:
        if not items:
            return []
        until = f"until={int(self.found.cache_days * DAY)}s"
        said = self.docker.run("builder", "prune", "--force", "--filter", until, guarded=True).text
        total = re.search(r"^Total(?: reclaimed space)?:\s*([0-9.]+ ?[kKMGT]?B)\s*$", said, re.MULTILINE)
        freed = _bytes(total.group(1)) if total else 0
        return [replace(items[0], size=freed)] if freed else []

    # -- finding

    def _find(self, cache_days: float) -> Found:
        known = self.journal.all()
        everyone, ids, certain = _journals(self.request.state_dir)
        listed = self.docker.run("ps", "-aq", "--no-trunc").text.split()
        images = {service.image for service in self.project.services}
        images |= {record.image for release in known for record in release.services.values()}
        needed = {one for release in everyone for one in _needed(release)}
        return Found(
            project=self.project.name,
            repositories=frozenset(_repository(image) for image in images),
            services=tuple(service.name for service in self.project.services),
            images=tuple(_local(data) for data in self.inspected),
            used=frozenset(str(data.get("Image")) for data in self.docker.inspect("container", listed)),
            needed=frozenset(needed),
            made=frozenset(_made(known)),
            releases=frozenset(ids),
            certain=certain,
            busy=is_guarded(self.making.path, shared=False),
            cache=_cache(self.docker) if cache_days else (),
            cache_days=cache_days,
            now=time.time(),
        )

    def _with_sizes(self, items: Sequence[Item]) -> List[Item]:
        """The items with the bytes that they free, at the first name of each image that goes."""
        gone = self._gone(items)
        going = [image for image in self.found.images if image.id in gone]
        staying = [image for image in self.found.images if image.id not in gone]
        sizes = freed_by(going, staying, self._layer_sizes([image.id for image in going]))
        return [replace(item, size=sizes.pop(item.image_id, item.size)) for item in items]

    def _gone(self, items: Sequence[Item]) -> Set[str]:
        """:returns: the ids of the images that no name is left of."""
        names = {item.name for item in items}
        return {
            image.id
            for image in self.found.images
            if image.id in names or (image.names and names.issuperset(image.names))
        }

    def _layer_sizes(self, ids: Sequence[str]) -> Dict[str, List[int]]:
        sizes: Dict[str, List[int]] = {}
        for image_id, entries in status.histories(self.docker, ids).items():
            image = self.store.find(image_id)
            if image is not None and len(image.history) == len(entries):
                pairs = zip(image.history, entries)
                sizes[image_id] = [entry[2] for known, entry in pairs if known.layer is not None]
        return sizes

    def _files(self, items: Sequence[Item]) -> List[Item]:
        gone = self._gone(items)
        remain = [data for data in self.inspected if str(data["Id"]) not in gone]
        paths = sweep.stale(self.request.state_dir, remain)
        paths += _left_beside(self.journal.folder, set(self.journal.ids()), time.time() - sweep.YOUNG)
        work = os.path.join(self.request.state_dir, "work", self.project.name)
        paths += [work] if os.path.isdir(work) else []
        return [Item("file", path, size=_used(path)) for path in sorted(paths)]


def _journals(state_dir: str) -> Tuple[List[Release], Set[str], bool]:
    """:returns: the releases of all projects, their ids (damaged ones too), and whether all could be read."""
    found: List[Release] = []
    ids: Set[str] = set()
    try:
        projects = os.listdir(os.path.join(state_dir, "releases"))
    except FileNotFoundError:
        return [], set(), True
    certain = True
    for project in projects:
        journal = Journal(state_dir, project)
        releases = journal.all()
        found += releases
        ids.update(journal.ids())
        certain = certain and len(releases) == len(journal.ids())
    return found, ids, certain


def _needed(release: Release) -> Set[str]:
    needed: Set[str] = set()
    for record in release.services.values():
        needed |= {record.before, record.tag_before}
        if release.state == "done" or release.state not in FINISHED:
            needed.add(record.after)
    return needed - {""}


def _made(known: Sequence[Release]) -> Set[str]:
    """:returns: the images that rebuilds made; none that was imported, or only gone back to."""
    made = {r.after for release in known if not release.rollback_to for r in release.services.values()}
    return made - {r.before for release in known for r in release.services.values() if r.imported} - {""}


def _local(data: Mapping[str, Any]) -> LocalImage:
    names = tuple(name for name in data.get("RepoTags") or () if not name.startswith("<none>"))
    digests = [name for name in data.get("RepoDigests") or () if not name.startswith("<none>")]
    layers = tuple(str(digest) for digest in (data.get("RootFS") or {}).get("Layers") or ())
    tagged = _seconds(str((data.get("Metadata") or {}).get("LastTagTime") or ""))
    return LocalImage(str(data["Id"]), names, layers, not names and not digests, tagged)


def _repository(image: str) -> str:
    """:returns: a name without tag and digest, as the engine lists it."""
    head, slash, last = image.partition("@")[0].rpartition("/")
    name = f"{head}{slash}{last.partition(':')[0]}"
    for prefix in ("docker.io/library/", "docker.io/"):
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _cache(docker: Docker) -> Tuple[CacheEntry, ...]:
    said = docker.run("system", "df", "-v", "--format", "{{json .BuildCache}}", check=False)
    entries = said.json() if said.rc == 0 and said.stdout.strip() else []
    return tuple(_cache_entry(entry) for entry in entries or ())


def _cache_entry(data: Mapping[str, Any]) -> CacheEntry:
    """:param data: as ``docker system df -v`` tells it; its sizes have three digits."""
    free = data.get("InUse") == "false" and data.get("Shared") == "false" and data.get("CacheType") in _CACHE_KINDS
    used = _seconds(str(data.get("LastUsedAt") or "")) or _seconds(str(data.get("CreatedAt") or ""))
    parents = tuple(part.strip() for part in str(data.get("Parent") or "").split(",") if part.strip())
    return CacheEntry(str(data.get("ID")), parents, _bytes(str(data.get("Size") or "")), used, free)


def _seconds(text: str) -> float:
    """:returns: a time as the engine writes it, ``2026-11-25 09:22:19.6 +0000 UTC`` or RFC 3339; 0 for none."""
    found = re.match(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.\d+)?\s*(Z|[+-]\d\d:?\d\d)", text)
    if found is None or found.group(1) == "0001":
        return 0.0
    *parts, zone = found.groups()
    year, month, day, hour, minute, second = map(int, parts)
    offset = 0 if zone == "Z" else int(zone[0] + "1") * (int(zone[1:3]) * 3600 + int(zone[-2:]) * 60)
    return float(calendar.timegm((year, month, day, hour, minute, second)) - offset)


def _bytes(text: str) -> int:
    """:returns: bytes of a size as docker writes it, ``12.3kB``; 0 for what is none."""
    found = re.match(r"^([0-9.]+) ?([kKMGT]?B)$", text.strip())
    return round(float(found.group(1)) * _UNITS[found.group(2)]) if found else 0


def _left_beside(folder: str, ids: Set[str], before: float) -> List[str]:
    """:returns: what lies beside the releases and belongs to none of them, or was never written to its end."""
    found: List[str] = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        of = re.match(r"^(\d{8}T\d{6}Z-[0-9a-f]{6})\.", name)
        path = os.path.join(folder, name)
        orphan = of is not None and of.group(1) not in ids and not name.endswith(".damaged")
        if (orphan or name.endswith(".tmp")) and os.lstat(path).st_mtime < before:
            found.append(path)
    return found


def _used(path: str) -> int:
    """:returns: bytes in blocks of a file or a folder."""
    total = os.lstat(path).st_blocks * 512
    for folder, names, files in os.walk(path):
        total += sum(os.lstat(os.path.join(folder, name)).st_blocks * 512 for name in (*names, *files))
    return total


def _removed(path: str) -> bool:
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        try:
            os.unlink(path)
        except OSError:
            return False
    return True

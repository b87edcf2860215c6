"""Thin layers: what COPY and ADD would write now, less what the ancestor holds already.

The ancestor's layers stay as they are, the old COPY's too; one layer on top carries the changed and added files,
whiteouts for what must go, and the parents of both with the metadata that they have (DESIGN.md, facts 14 to 16). Where
that cannot be proven to give the same files as a build, the answer is a reason and the graft is used.

Times: a file in a thin layer carries the time of the run, which is the same on every host, and not that of the
context's file: so hosts whose trees differ in times alone make the same image, and a ``.pyc`` that was compiled from
an earlier version never passes for current, since Python compares it with its source's time.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import tarfile
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from .ancestry import Alignment
from .context import Entry, Manifest, diff
from .copyset import CopyEntry, copy_set
from .dockerfile import Instruction
from .errors import OfflineRebuildError
from .history import STEP_COMMENT, THIN_COMMENT
from .layers import LayerEntry, LayerReader
from .stage import State, Step

__all__ = ["ThinLayer", "Unsuited", "plan_layer", "write_layer"]

_BLOCK = 1 << 20
_MAX_NAME = 255


class Unsuited(Exception):
    """No thin layer can be proven exact here; the text is the reason."""


@dataclass(frozen=True)
class Item:
    """One member of the layer: a path without leading slash, with what stands there."""

    path: str
    entry: LayerEntry
    wanted: Optional[CopyEntry] = None


@dataclass(frozen=True)
class ThinLayer:
    """A thin layer as planned.

    :param start: the first instruction whose files it carries; those before are proven.
    :param end: the instruction that it ends before (the number of instructions, or a RUN).
    :param kept: number of the ancestor's history entries that stay; ``kept_layers`` of its layers.
    :param items: what the layer holds, parents included, in order.
    :param whiteouts: paths that go.
    :param state: the stage's state after the last instruction that it covers.
    :param created_by: history texts of the covered instructions that the ancestor does not have.
    :param comment: of its own history entry; says whether it is exact.
    """

    start: int
    end: int
    kept: int
    kept_layers: int
    items: Tuple[Item, ...]
    whiteouts: Tuple[str, ...]
    state: State
    created_by: Tuple[str, ...] = ()
    comment: str = THIN_COMMENT

    def history(self, ancestor: Sequence[Mapping[str, Any]], created: str) -> List[Dict[str, Any]]:
        """:returns: the image's history entries, given those of its ancestor as they are in its config."""
        entries = [dict(entry) for entry in ancestor[: self.kept]]
        for text in self.created_by:
            entries.append({"created": created, "created_by": text, "comment": STEP_COMMENT, "empty_layer": True})
        if not self.empty:
            entries.append({"created": created, "created_by": "offline-rebuild thin layer", "comment": self.comment})
        return entries

    @property
    def empty(self) -> bool:
        """:returns: whether only metadata differ."""
        return not self.items and not self.whiteouts


@dataclass
class _Wanted:
    """The files after the covered instructions: what they write, over the image at the reuse point."""

    before: Callable[[str], Optional[LayerEntry]]
    entries: Dict[str, CopyEntry] = field(default_factory=dict)

    def get(self, path: str) -> Optional[LayerEntry]:
        made = self.entries.get(path)
        return self.before(path) if made is None else as_layer_entry(made)

    def put(self, path: str, entry: CopyEntry) -> None:
        if len(set(entry.modes)) > 1:
            raise Unsuited(f"BuildKit's versions disagree about the mode of /{path}")
        if entry.type not in ("file", "dir", "symlink"):
            raise Unsuited(f"/{path} is a {entry.type}")
        there = self.get(path)
        if there is not None and (there.type == "dir") != (entry.type == "dir"):
            raise Unsuited(f"/{path} changes between directory and file")
        self.entries[path] = entry


def as_layer_entry(entry: CopyEntry) -> LayerEntry:
    """:returns: what the image will hold at the path; a file's digest is left to be asked for."""
    return LayerEntry(entry.type, entry.mode, entry.uid, entry.gid, entry.size, 0, None, entry.link, entry.xattrs)


def plan_layer(
    alignment: Alignment,
    steps: Sequence[Step],
    start: int,
    reader: LayerReader,
    tree_of: Callable[[int, Optional[Instruction]], Any],
    redo: Callable[[State, Step], Any],
    file: str,
    manifests_of: Callable[[int], Optional[Tuple[Manifest, Manifest]]] = lambda _: None,
) -> ThinLayer:
    """Plan the thin layer for the instructions from ``start`` up to the first RUN.

    :param tree_of: the source of a COPY's files (context, or another image's), given its place and its expanded
        instruction; raises :class:`Unsuited` where there is none.
    :param redo: dispatches a step on a state and returns its outcome.
    :param manifests_of: what a COPY took from the context for the ancestor, by its record, and what it takes now.
        With it only what differs between the two is looked at: the cost follows the change, not the tree.
    :raises Unsuited: with the reason, where the graft has to be used.
    """
    end = next((i for i in range(start, len(steps)) if steps[i].kind in ("run", "remote")), len(steps))
    if end == start:
        raise Unsuited(f"line {steps[start].instruction.line} has to run" if start < len(steps) else "nothing differs")
    matched = min(alignment.matched, end)
    kept = alignment.positions[matched]
    while kept > 0 and alignment.image.history[kept - 1].comment == THIN_COMMENT:
        kept -= 1  # there is never more than one: the new one is the difference to what lies below
    cut = alignment.positions[start]
    if kept < 0 or cut < 0:
        raise Unsuited("the image is one made by a thin layer, and its ancestor is gone")
    layers = [e.layer for e in alignment.image.history[:kept] if e.layer is not None]
    below = sum(1 for e in alignment.image.history[:cut] if e.layer is not None)
    stripped = kept < alignment.positions[matched]
    # What a record says of such an image is in the thin layer that was just taken off: it tells nothing of the others.
    pair = None if stripped else _only_copy(steps, start, end, matched, manifests_of)
    left_over: Optional[List[str]] = None
    wanted = _Wanted(lambda path: reader.lookup(path, below - 1))
    state = alignment.states[start].copy()
    texts: List[str] = []
    for place in range(start, end):
        workdir = str(state.config.get("WorkingDir") or "/")
        user = str(state.config.get("User") or "")
        outcome = redo(state, steps[place])
        if place >= matched and outcome.created_by:
            texts.append(outcome.created_by[0])
        if pair is not None and steps[place].kind == "context":
            left_over = _apply_changes(wanted, outcome, workdir, reader, below, tree_of(place, None), pair, file)
            wanted.before = _after_copy(reader, below, len(layers), left_over)
        else:
            source = partial(tree_of, place)
            _apply(wanted, steps[place], outcome, state, workdir, user, reader, below, source, file)
    items, whiteouts = _difference(wanted, reader, below, len(layers), left_over)
    return ThinLayer(start, end, kept, len(layers), items, whiteouts, state, tuple(texts))


def _only_copy(
    steps: Sequence[Step],
    start: int,
    end: int,
    matched: int,
    manifests_of: Callable[[int], Optional[Tuple[Manifest, Manifest]]],
) -> Optional[Tuple[Manifest, Manifest]]:
    """The manifests of the only COPY among the covered instructions, if looking at what differs is enough.

    One source without patterns and no flag that chooses among files: then each path of the context stands for one path
    of the image, and nothing else that is covered writes to it.
    """
    copies = [place for place in range(start, end) if steps[place].kind not in ("meta", "workdir")]
    if copies != [start] or start >= matched:
        return None  # with anything changed before it, its words may mean something else than then
    instruction = steps[copies[0]].instruction
    plain = (
        steps[copies[0]].kind == "context"
        and instruction.keyword == "COPY"
        and len(instruction.sources) == 1
        and not instruction.files
        and not any(char in instruction.sources[0] for char in "*?[\\$")
        and all(flag.startswith(("--chown=", "--chmod=")) for flag in instruction.flags)
    )
    pair = manifests_of(copies[0]) if plain else None
    return pair if pair is not None and _stays(instruction.sources[0], *pair) else None


def _stays(source: str, old: Manifest, new: Manifest) -> bool:
    """Whether a source is a file or directory then and now, with no link on the way to it."""
    path = posixpath.normpath("/" + source).strip("/")
    for place in [path, *parents_of(path)] if path else []:
        types = {entry.type if entry is not None else "" for entry in (old.get(place), new.get(place))}
        if types != {"dir"} and (place != path or types != {"file"}):
            return False
    return True


def _after_copy(
    reader: LayerReader, below: int, kept: int, left_over: Iterable[str]
) -> Callable[[str], Optional[LayerEntry]]:
    """The image after a COPY of which only the changes are looked at: what has not changed is in it already."""
    gone = set(left_over)

    def lookup(path: str) -> Optional[LayerEntry]:
        without = path in gone or any(up in gone for up in parents_of(path))
        return reader.lookup(path, (below if without else kept) - 1)

    return lookup


class _Part:
    """Some paths of a context with their parents, as a source of COPY."""

    def __init__(self, context: Any, manifest: Manifest, paths: Iterable[str]) -> None:
        self.context = context
        self.manifest = manifest
        self.paths: Set[str] = set()
        for path in paths:
            self.paths.add(path)
            self.paths.update(parents_of(path))

    def stat_entries(self) -> Iterator[Tuple[str, Entry]]:
        for path in sorted(self.paths):
            entry = self.manifest.get(path)
            if entry is not None:
                yield path, entry

    def digest_of(self, path: str) -> Optional[str]:
        return self.manifest[path].digest

    def read(self, path: str) -> bytes:
        content: bytes = self.context.read(path)
        return content

    def full(self, path: str) -> str:
        name: str = self.context.full(path)
        return name

    def fail(self, path: str, error: OSError) -> None:
        self.context.fail(path, error)


def _apply_changes(
    wanted: _Wanted, outcome: Any, workdir: str, reader: LayerReader, below: int, context: Any,
    pair: Tuple[Manifest, Manifest], file: str,
) -> List[str]:  # fmt: skip
    """Put what differs between two manifests. :returns: paths of the image that the instruction no longer writes."""
    old, new = pair
    changes = diff(old, new)
    source = posixpath.normpath("/" + outcome.expanded.sources[0]).lstrip("/")
    roots = [source] if source not in ("", ".") else []

    def play(manifest: Manifest, paths: Iterable[str]) -> Dict[str, CopyEntry]:
        found = copy_set(
            outcome.expanded, _Part(context, manifest, [*roots, *paths]), workdir, wanted.get,
            owner_lookup=lambda path: reader.content(path, below - 1), file=file,
        )  # fmt: skip
        if found.unsupported:
            raise Unsuited(found.unsupported)
        return {**found.parents, **found.entries}

    deleted = {change.path for change in changes if change.kind == "deleted"}
    gone = {path: entry for path, entry in play(old, deleted).items() if entry.source in deleted}
    made = play(new, [change.path for change in changes if change.kind != "deleted"])
    for path, entry in made.items():
        wanted.put(path, entry)
    return [path for path in gone if path not in made]


def _apply(
    wanted: _Wanted, step: Step, outcome: Any, state: State, workdir: str, user: str,
    reader: LayerReader, below: int, tree_of: Callable[[Optional[Instruction]], Any], file: str,
) -> None:  # fmt: skip
    if step.kind == "meta":
        return
    if step.kind == "workdir":
        _make_workdir(wanted, str(state.config["WorkingDir"]), user)
        return
    if step.kind == "remote":
        raise Unsuited("it fetches from a network")

    def content(path: str) -> Optional[bytes]:
        made = wanted.entries.get(path)
        return made.read() if made is not None and made.type == "file" else reader.content(path, below - 1)

    found = copy_set(outcome.expanded, tree_of(outcome.expanded), workdir, wanted.get, owner_lookup=content, file=file)
    if found.unsupported:
        raise Unsuited(found.unsupported)
    for path, entry in (*found.parents.items(), *found.entries.items()):
        wanted.put(path, entry)


def _make_workdir(wanted: _Wanted, path: str, user: str) -> None:
    """WORKDIR makes what is missing of its path, 0755, with the user's owner (dispatchWorkdir)."""
    parts = [part for part in posixpath.normpath(path).split("/") if part]
    for count in range(1, len(parts) + 1):
        folder = "/".join(parts[:count])
        there = wanted.get(folder)
        if there is None:
            if user not in ("", "0", "root", "0:0", "root:root"):
                raise Unsuited(f"WORKDIR makes a directory for the user {user}")
            wanted.put(folder, CopyEntry("dir", (0o755,), 0, 0))
        elif there.type != "dir":
            raise Unsuited(f"/{folder} on the way of WORKDIR is no directory")


def _difference(
    wanted: _Wanted, reader: LayerReader, below: int, kept: int, left_over: Optional[Sequence[str]]
) -> Tuple[Tuple[Item, ...], Tuple[str, ...]]:
    """What must be written over the kept layers, and what must go.

    :param left_over: the paths that are no longer written, where they are known; else the layers are searched.
    """
    changed: Dict[str, Item] = {}
    gone: Set[str] = set()
    for path, entry in wanted.entries.items():
        have = reader.lookup(path, kept - 1)
        if not same_entry(entry, have):
            if have is not None and (have.type == "dir") != (entry.type == "dir"):
                raise Unsuited(f"/{path} was a {have.type} in the image and becomes a {entry.type}")
            changed[path] = Item(path, as_layer_entry(entry), entry)
    for path in _left_over(reader, below, kept) if left_over is None else left_over:
        if path not in wanted.entries:
            _judge_left_over(path, reader, below, kept, gone)
    tops = {path for path in gone if not any(up in gone for up in parents_of(path))}
    items = dict(changed)
    for path in (*changed, *tops):
        for parent in parents_of(path):
            if parent not in items:
                items[parent] = _parent(parent, wanted, reader, kept)
    check_names(items, tops)
    return tuple(items[path] for path in sorted(items, key=by_bytes)), tuple(sorted(tops, key=by_bytes))


def _left_over(reader: LayerReader, below: int, kept: int) -> Iterator[str]:
    """The paths of the old layers that the covered instructions would not write now."""
    for index in range(below, kept):
        layer = reader.layer(index)
        for path in layer.whiteouts | layer.opaques:
            if reader.lookup(path, below - 1) is not None:
                raise Unsuited(f"the image hides /{path}, which an earlier layer has")
        for path in layer.entries:
            if path:
                yield path


def _judge_left_over(path: str, reader: LayerReader, below: int, kept: int, gone: Set[str]) -> None:
    """A path that a covered instruction wrote then and would not write now."""
    have = reader.lookup(path, kept - 1)
    was = reader.lookup(path, below - 1)
    if have is None:
        return
    if was is None:
        gone.add(path)
    elif not alike(was, have):
        # The earlier file would have to come back, and its content would have to be carried (fact 16).
        raise Unsuited(f"/{path} is no longer copied and an earlier layer has another one")


def alike(a: LayerEntry, b: LayerEntry) -> bool:
    if (a.type, a.mode, a.uid, a.gid, a.link, a.xattrs, a.rdev) != (
        b.type,
        b.mode,
        b.uid,
        b.gid,
        b.link,
        b.xattrs,
        b.rdev,
    ):
        return False
    if a.type != "file":
        return a.type != "unknown"
    return a.size == b.size and a.content_digest() is not None and a.content_digest() == b.content_digest()


def same_entry(entry: CopyEntry, have: Optional[LayerEntry]) -> bool:
    if have is None or (have.type, have.uid, have.gid, have.xattrs) != (entry.type, entry.uid, entry.gid, entry.xattrs):
        return False
    if entry.type == "symlink":
        return have.link == entry.link
    if have.mode != entry.mode:
        return False
    if entry.type == "dir":
        return True
    return (
        have.size == entry.size
        and have.content_digest() is not None
        and (have.content_digest() == entry.content_digest())
    )


def _parent(path: str, wanted: _Wanted, reader: LayerReader, kept: int) -> Item:
    """A directory on the way, as it is: one that is left out would become root's and 0755 (fact 15)."""
    have = reader.lookup(path, kept - 1) or wanted.get(path)
    if have is None or have.type != "dir":
        raise Unsuited(f"/{path} on the way of a change is no directory in the image")
    return Item(path, have)


def parents_of(path: str) -> Iterator[str]:
    """:returns: the parents of a path, nearest first, the root left out."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def by_bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def check_names(items: Mapping[str, Item], gone: Set[str]) -> None:
    for path in (*items, *gone):
        name = path.rpartition("/")[2]
        if name.startswith(".wh."):
            raise OfflineRebuildError(
                "name-whiteout", "no layer can hold a name that begins with .wh.", "rename the file or ignore it", path
            )
        if len(by_bytes(name)) > _MAX_NAME - 4:
            raise Unsuited(f"the name of /{path[:40]}... is too long for a whiteout")


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def write_layer(thin: ThinLayer, stream: IO[bytes], run_time: int) -> Tuple[str, int]:
    """Write the layer as a tar.

    :param run_time: seconds since the epoch for what the layer changes.
    :returns: its diff_id and its size in bytes.
    :raises OfflineRebuildError: ``context-changed`` when a file is not any more what the plan saw.
    """
    sink = _Sink(stream)
    gone = dict.fromkeys(thin.whiteouts)
    for path in sorted([*gone, *(item.path for item in thin.items)], key=by_bytes):
        if path in gone:
            folder, _, name = path.rpartition("/")
            _member(
                sink, _info(f"{folder}/.wh.{name}" if folder else f".wh.{name}", LayerEntry("file", 0o644), run_time)
            )
    for item in thin.items:
        _write_item(sink, item, run_time)
    sink.write(b"\0" * 1024)
    return "sha256:" + sink.digest.hexdigest(), sink.size


class _Sink:
    """Counts and digests what is written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        self.stream.write(data)
        self.digest.update(data)
        self.size += len(data)


def _info(path: str, entry: LayerEntry, mtime: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, mtime
    info.type = {"dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE}.get(entry.type, tarfile.REGTYPE)
    if entry.type == "symlink":
        info.linkname = entry.link
    if entry.type == "file":
        info.size = entry.size
    info.pax_headers = {
        "SCHILY.xattr." + name: bytes.fromhex(value).decode("utf-8", "surrogateescape") for name, value in entry.xattrs
    }
    return info


def _member(sink: _Sink, info: tarfile.TarInfo) -> None:
    # GNU headers keep names that are not UTF-8 as they are; only attributes need the PAX form. A size of 8 GiB and more
    # is written as a number of base 256 in the one and as a record in the other: Go's archive/tar reads both.
    form = tarfile.PAX_FORMAT if info.pax_headers else tarfile.GNU_FORMAT
    sink.write(info.tobuf(form, "utf-8", "surrogateescape"))  # type: ignore[arg-type]


def _write_item(sink: _Sink, item: Item, run_time: int) -> None:
    if item.wanted is None or item.entry.type != "file":
        _member(sink, _info(item.path, item.entry, run_time))
        return
    _member(sink, _info(item.path, item.entry, run_time))
    expected = item.wanted.content_digest()
    digest, size = hashlib.sha256(), 0
    for block in _content(item.wanted):
        sink.write(block)
        digest.update(block)
        size += len(block)
    if size != item.entry.size or "sha256:" + digest.hexdigest() != expected:
        raise OfflineRebuildError(
            "context-changed", "the file changed while it was read", "run again when the files are at rest", item.path
        )
    sink.write(b"\0" * (-size % 512))


def _content(entry: CopyEntry) -> Iterator[bytes]:
    """A file's content in blocks; a large file of the context is not held in memory."""
    full = getattr(getattr(entry.tree, "context", None), "full", None)
    if entry.data is not None or full is None or entry.size <= _BLOCK:
        yield entry.read()
        return
    try:
        descriptor = os.open(full(entry.source), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        entry.tree.context.fail(entry.source, error)
    with open(descriptor, "rb") as handle:
        left = entry.size
        while left > 0:
            block = handle.read(min(left, _BLOCK))
            if not block:
                return
            left -= len(block)
            yield block

"""Overlay: new sources over an image whose RUNs are not run again. Not exact, switched on by the operator, and said so.

For Dockerfiles that copy the sources ahead of the install: there every edit makes the install run again, which cannot
work with no network. If nothing but sources differs from what the image was made of (no dependency file, no RUN, base
or build argument), the sources are laid over *all* of the image's layers: what COPY would write now and did not write
then. What a RUN did to other files stays, and so does what a RUN removed, unless its source has changed.

The layer's history entry has a comment of its own: nothing above it is ever taken for what a build gives.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from .ancestry import Alignment, align
from .context import Manifest
from .copyset import CopyEntry, CopySet, compare
from .derive import unsettled
from .errors import OfflineRebuildError
from .history import OVERLAY_COMMENT, THIN_COMMENT
from .layers import LayerEntry, LayerReader
from .plan import FileChange
from .reuse import EVIDENCE, Analyzer, StageReuse
from .stage import Step, dispatch
from .supply import needs_network
from .thin import Item, ThinLayer, Unsuited, alike, as_layer_entry, by_bytes, check_names, parents_of, same_entry

__all__ = ["Overlay", "Refused", "plan_overlay"]

#: Files that say what a RUN installs, by name, in whatever folder.
DEPENDENCY_FILES = (
    "requirements*.txt", "requirements*.in", "constraints*.txt", "pyproject.toml", "setup.py", "setup.cfg", "Pipfile",
    "Pipfile.lock", "poetry.lock", "pdm.lock", "uv.lock", "environment.yml", "environment.yaml", "package*.json",
    "npm-shrinkwrap.json", "pnpm-lock.yaml", "pnpm-workspace.yaml", "yarn.lock", ".npmrc", ".yarnrc*", "bun.lock*",
    "go.mod", "go.sum", "go.work", "go.work.sum", "Cargo.toml", "Cargo.lock", "Gemfile", "Gemfile.lock", "*.gemspec",
    "composer.json", "composer.lock", "pom.xml", "build.gradle*", "gradle.lockfile", "settings.gradle*", "mix.exs",
    "mix.lock", "*.csproj", "packages.lock.json", "Directory.Packages.props", "apt-packages*.txt",
    "Makefile", "makefile", "GNUmakefile", "CMakeLists.txt",
)  # fmt: skip
#: All that is in such a folder says it.
DEPENDENCY_FOLDERS = ("requirements*", "constraints*")
_WORD = re.compile(r"[^\s\"'`;&|()<>=,]+")


class Refused(Exception):
    """No overlay here; the text is the reason."""


@dataclass(frozen=True)
class Overlay:
    """An overlay as planned.

    :param stage: the target, beside the ancestor that the overlay stands on.
    :param layer: the new sources, on all of the ancestor's layers.
    :param again: the places of the RUNs that run again on top.
    :param not_run: the RUNs that do not, and would have to for an exact result.
    :param said: sentences for the operator about files that RUNs have changed.
    :param key: stands for all that the result depends on.
    """

    stage: StageReuse
    layer: ThinLayer
    again: Tuple[int, ...]
    not_run: Tuple[Step, ...]
    said: Tuple[str, ...]
    changes: Tuple[FileChange, ...]
    assumed: Tuple[str, ...]
    key: str

    @property
    def alignment(self) -> Alignment:
        """:returns: the target's instructions along the ancestor's history."""
        assert self.stage.alignment is not None
        return self.stage.alignment


def plan_overlay(
    analyzer: Analyzer, dependency_files: Sequence[str], run_again: Sequence[str], labels: Mapping[str, Any]
) -> Overlay:
    """Plan the overlay for the target of a build that cannot be exact.

    :param dependency_files: patterns of paths in the context, beside those that are known by name.
    :param run_again: parts of the texts of RUNs, or their line numbers.
    :param labels: all that else goes into the image, for the key.
    :raises Refused: with the reason.
    """
    stage = analyzer.stage(analyzer.target)
    steps = stage.timeline.steps
    last = 1 + max((place for place, step in enumerate(steps) if step.kind != "meta"), default=-1)
    if stage.alignment is None:
        raise Refused(stage.reason)
    alignment = _alignment(analyzer, stage, last)
    stage = replace(stage, alignment=alignment)
    assumed = _unchanged_but_for_files(analyzer, stage, last)
    copies = [place for place in range(last) if steps[place].kind == "context"]
    if not copies:
        raise Refused("no instruction copies from the context")
    sets = {place: _copy_set(analyzer, stage, place) for place in copies}
    found = {place: _changes(analyzer, stage, place, sets[place]) for place in copies}
    again = tuple(place for place in range(last) if steps[place].kind == "run" and _listed(steps[place], run_again))
    not_run = tuple(
        step
        for place, step in enumerate(steps[:last])
        if place > copies[0] and step.kind == "run" and place not in again
    )
    _check_again(analyzer, [steps[place] for place in again])
    _check_dependencies(steps, found, dependency_files, again)
    layer, said = _Layer(analyzer, stage, sets).plan()
    changes = {change.path: change for place in copies for change in found[place]}
    keys = analyzer.chain(stage.timeline.index, stage.manifests, lambda index: analyzer.stage(index).keys)
    kept = alignment.image.diff_ids[: layer.kept_layers]
    config = dict(layer.state.config)
    named = {**(config.pop("Labels", None) or {}), **labels}
    final = {name: value for name, value in named.items() if value is not None}
    key = json.dumps([keys[-1], kept, final, again, alignment.boundary, config], sort_keys=True)
    return Overlay(
        stage=stage,
        layer=layer,
        again=again,
        not_run=not_run,
        said=tuple(said),
        changes=tuple(changes[path] for path in sorted(changes)),
        assumed=tuple(dict.fromkeys((*stage.assumed, *assumed))),
        key=hashlib.sha256(key.encode()).hexdigest(),
    )


def _place(step: Step) -> str:
    return f"line {step.instruction.line} {step.title}"


def _alignment(analyzer: Analyzer, stage: StageReuse, last: int) -> Alignment:
    """The ancestor's own history, up to what was made here: all instructions that make a layer must be in it."""
    was = stage.alignment
    assert was is not None
    found = align(was.image, stage.timeline, analyzer.build, analyzer.outer, stage.base, was.boundary)
    if found is None:
        raise Refused(f"where the base ends in {was.image.name} cannot be told")
    if found.matched < last:
        reason = analyzer.text_reason(found, stage.timeline)
        raise Refused(f"{_place(stage.timeline.steps[found.matched])}: {reason}")
    for entry in found.image.history[found.positions[-1] :]:
        if entry.comment in (OVERLAY_COMMENT, THIN_COMMENT):
            break
        if entry.layer is not None:
            raise Refused(f"the image has an instruction more: {' '.join(entry.created_by.split())[:80]}")
    lacking = unsettled(replace(stage, alignment=found), found.matched)
    if lacking:
        raise Refused(f"{lacking} of the base image is not in the image's history")
    return found


def _unchanged_but_for_files(analyzer: Analyzer, stage: StageReuse, last: int) -> List[str]:
    """All that went in must be as it was, but for the files that are copied from the context.

    :returns: what is assumed.
    """
    record, timeline = stage.record, stage.timeline
    if record is not None:
        then: Dict[int, Manifest] = dict(stage.manifests)
        for place, step in enumerate(timeline.steps[:last]):
            if step.kind == "context" and place in then:
                recorded = analyzer.records.manifest(record.manifests.get(str(place)))
                if recorded is None:
                    raise Refused(f"what {_place(step)} took is not recorded")
                then[place] = recorded
        keys = analyzer.chain(timeline.index, then, lambda index: analyzer.stage(index).keys)
        for place in range(last):
            if place >= len(record.keys) or record.keys[place] != keys[place]:
                raise Refused(f"{_place(timeline.steps[place])}: it, a build argument or what it reads has changed")
        same, another = analyzer.same_images(record, timeline)
        if same < last:
            raise Refused(f"the image {another} that {_place(timeline.steps[same])} reads is another than then")
        return []
    assumed: List[str] = []
    assert stage.alignment is not None
    for place, step in enumerate(timeline.steps[:last]):
        if step.kind == "context":
            continue
        verdict = analyzer.verdict(stage.alignment, timeline, place)
        if verdict.reason:
            raise Refused(f"{_place(step)}: {verdict.reason}")
        if EVIDENCE.index(verdict.evidence) > EVIDENCE.index(analyzer.least):
            raise Refused(f"{_place(step)}: its evidence is only {verdict.evidence}")
        assumed.extend(verdict.assumed)
    return assumed


def _layer_of(stage: StageReuse, place: int) -> int:
    assert stage.alignment is not None
    entry = stage.alignment.entry(place)
    if entry is None or entry.layer is None:
        raise Refused(f"{_place(stage.timeline.steps[place])}: the image has no layer of it")
    return entry.layer


def _copy_set(analyzer: Analyzer, stage: StageReuse, place: int) -> CopySet:
    assert stage.alignment is not None
    tree = analyzer.context_with(stage.modes.get(place, {}))
    try:
        found = analyzer.copy_set(stage.alignment, stage.timeline.index, place, tree, _layer_of(stage, place) - 1)
    except OfflineRebuildError as error:
        raise Refused(f"{_place(stage.timeline.steps[place])}: {error.message}") from None
    if found.unsupported:
        raise Refused(f"{_place(stage.timeline.steps[place])}: {found.unsupported}")
    return found


def _changes(analyzer: Analyzer, stage: StageReuse, place: int, wanted: CopySet) -> List[FileChange]:
    assert stage.alignment is not None
    reader, layer = analyzer.reader(stage.alignment.image), _layer_of(stage, place)
    return compare(wanted, reader.layer(layer), lambda path: reader.lookup(path, layer - 1))


def _text(step: Step) -> str:
    return " ".join(" ".join([step.instruction.text, *(d.content for d in step.instruction.heredocs)]).split())


def _listed(step: Step, wanted: Sequence[str]) -> bool:
    for text in wanted:
        plain = " ".join(str(text).split())
        if plain.isdigit():
            if step.instruction.line <= int(plain) <= step.instruction.end_line:
                return True
        elif plain and plain in _text(step):
            return True
    return False


def _check_again(analyzer: Analyzer, steps: Sequence[Step]) -> None:
    for step in steps:
        if needs_network(step):
            raise Refused(f"{_place(step)} is listed to run again and needs a network")
        for kind, value in step.mounts:
            if kind == "stage":
                raise Refused(f"{_place(step)} is listed to run again and reads another stage")
            if kind == "image" and analyzer.store.find(value) is None:
                raise Refused(f"{_place(step)} is listed to run again and the image {value} is not on this host")


def is_dependency(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path of the context is a dependency file. ``*`` goes over folders too: rather too many than none."""
    *folders, name = path.split("/")
    if any(fnmatch.fnmatchcase(name, known) for known in DEPENDENCY_FILES):
        return True
    if any(fnmatch.fnmatchcase(folder, known) for folder in folders for known in DEPENDENCY_FOLDERS):
        return True
    for pattern in patterns:
        plain = re.sub(r"\A(?:\./|/)+|/+\Z", "", pattern)
        if plain and (fnmatch.fnmatchcase(path, plain) or fnmatch.fnmatchcase(path, plain + "/*")):
            return True
    return False


def _check_dependencies(
    steps: Sequence[Step], found: Mapping[int, Sequence[FileChange]], patterns: Sequence[str], again: Sequence[int]
) -> None:
    """No file that says what is installed may have changed, and none that a RUN names which is not run again."""
    for place, changes in found.items():
        for change in changes:
            if is_dependency(change.path, patterns):
                raise Refused(f"the dependency file {change.path} is {change.kind}: the install has to run again")
        for later in range(place + 1, len(steps)):
            if steps[later].kind != "run" or later in again:
                continue
            words = {word.rstrip("/").rpartition("/")[2] for word in _WORD.findall(_text(steps[later]))}
            for change in changes:
                if change.path.rpartition("/")[2] in words:
                    raise Refused(f"{change.path} is {change.kind}, and {_place(steps[later])} names it")


@dataclass(frozen=True)
class _Written:
    """What the last COPY that writes a path would leave there; ``was`` is what the COPYs left then, in ``layer``."""

    entry: CopyEntry
    layer: int
    was: Optional[LayerEntry]


class _Layer:
    """The overlay's layer: sources that changed, over the image as its RUNs have left it."""

    def __init__(self, analyzer: Analyzer, stage: StageReuse, sets: Mapping[int, CopySet]) -> None:
        assert stage.alignment is not None
        self.analyzer, self.stage, self.sets, self.alignment = analyzer, stage, sets, stage.alignment
        self.reader: LayerReader = analyzer.reader(self.alignment.image)
        self.kept = self.alignment.positions[-1]
        self.top = sum(1 for entry in self.alignment.image.history[: self.kept] if entry.layer is not None) - 1
        self.written: Dict[str, _Written] = {}
        self.folders: Set[str] = set()
        for place, found in sets.items():
            layer = _layer_of(stage, place)
            self.folders.update(found.parents)
            for path, entry in found.entries.items():
                self.written[path] = _Written(entry, layer, self.reader.lookup(path, layer))
        for layer in sorted(_layer_of(stage, place) for place in sets):
            # one that wrote the path then and does not now: what it left is the old state all the same
            for path in self.reader.layer(layer).entries:
                if path in self.written and layer > self.written[path].layer:
                    entry = self.written[path].entry
                    self.written[path] = _Written(entry, layer, self.reader.lookup(path, layer))
        others = [
            p for p in range(self.alignment.matched) if stage.timeline.steps[p].kind in ("stage", "image", "remote")
        ]
        self.others = [_layer_of(stage, place) for place in others]
        self.items: Dict[str, Item] = {}
        self.notes: Dict[str, List[str]] = {}

    def final(self, path: str) -> Optional[LayerEntry]:
        """What the image has at a path after all its instructions."""
        return self.reader.lookup(path, self.top)

    def plan(self) -> Tuple[ThinLayer, List[str]]:
        """:returns: the layer, and what has to be said about it."""
        for path, written in self.written.items():
            self._write(path, written)
        gone = self._gone()
        tops = {path for path in gone if not any(up in gone for up in parents_of(path))}
        for path in (*list(self.items), *tops):
            for parent in parents_of(path):
                if parent not in self.items:
                    self.items[parent] = self._parent(parent)
        try:
            check_names(self.items, tops)
        except Unsuited as reason:
            raise Refused(str(reason)) from None
        state = self.alignment.states[-1].copy()
        texts: List[str] = []
        for step in self.stage.timeline.steps[self.alignment.matched :]:
            outcome = dispatch(state, step, self.analyzer.build, self.analyzer.outer)
            texts += outcome.created_by[:1]
        layer = ThinLayer(
            start=0,
            end=len(self.stage.timeline.steps),
            kept=self.kept,
            kept_layers=self.top + 1,
            items=tuple(self.items[path] for path in sorted(self.items, key=by_bytes)),
            whiteouts=tuple(sorted(tops, key=by_bytes)),
            state=state,
            created_by=tuple(texts),
            comment=OVERLAY_COMMENT,
        )
        if layer.empty:
            raise Refused("no source differs that the image holds")
        return layer, [f"{what}: {', '.join(sorted(paths)[:3])}{_more(paths)}" for what, paths in self.notes.items()]

    def _note(self, what: str, path: str) -> None:
        self.notes.setdefault(what, []).append("/" + path)

    def _write(self, path: str, written: _Written) -> None:
        entry, was, have = written.entry, written.was, self.final(path)
        if len(set(entry.modes)) > 1:  # BuildKit's versions disagree: what the image's own did is right
            if was is None or was.mode not in entry.modes:
                raise Refused(f"BuildKit's versions disagree about the mode of /{path}")
            entry = replace(entry, modes=(was.mode,))
        if was is not None and same_entry(entry, was):
            return  # its source has not changed: what a RUN has made of it, or that it is gone, stays
        if entry.type != "dir" and any(
            layer > written.layer and path in self.reader.layer(layer).entries for layer in self.others
        ):
            return  # what is copied later from elsewhere stands there, then and now
        if entry.type not in ("file", "dir", "symlink"):
            raise Refused(f"/{path} is a {entry.type}")
        if have is not None and (have.type == "dir") != (entry.type == "dir"):
            raise Refused(f"/{path} was a {have.type} in the image and becomes a {entry.type}")
        made = as_layer_entry(entry)
        if was is not None and have is None:
            self._note("a RUN removed it, and its source has changed: it is there again", path)
        elif was is not None and have is not None:
            if was.type != have.type or not _same_content(was, have):
                self._note("a RUN changed it, and its source has changed: the source replaces it", path)
            elif (was.mode, was.uid, was.gid) != (have.mode, have.uid, have.gid):
                self._note("a RUN gave it another mode or owner, which it keeps", path)
        if was is not None and have is not None and was.type == have.type == entry.type:
            made = replace(
                made,
                mode=have.mode if entry.mode == was.mode else entry.mode,
                uid=have.uid if entry.uid == was.uid else entry.uid,
                gid=have.gid if entry.gid == was.gid else entry.gid,
            )
        self.items[path] = Item(path, made, entry)

    def _parent(self, path: str) -> Item:
        have = self.final(path)
        if have is None:
            written = self.written.get(path)
            if written is None:
                raise Refused(f"/{path} on the way of a change is not in the image")
            return Item(path, as_layer_entry(written.entry))
        if have.type != "dir":
            raise Refused(f"/{path} on the way of a change is no directory in the image")
        return Item(path, have)

    def _gone(self) -> Set[str]:
        """What COPY wrote then, would not write now, and is still as COPY left it."""
        gone: Set[str] = set()
        folders: List[str] = []
        for place in self.sets:
            layer = _layer_of(self.stage, place)
            for path in self.reader.layer(layer).whiteouts | self.reader.layer(layer).opaques:
                if self.reader.lookup(path, layer - 1) is not None:
                    raise Refused(f"the image hides /{path}, which an earlier layer has")
            for path in self.reader.layer(layer).entries:
                if path and path not in self.written and path not in self.folders:
                    self._judge(path, layer, gone, folders)
        for path in sorted(folders, key=by_bytes, reverse=True):
            inside = [name for name in self.reader.listing(path, self.top) if name.startswith(path + "/")]
            if all(name in gone for name in inside):
                gone.add(path)
            else:
                self._note("the source is gone and the folder stays, since something else put files there", path)
        return gone

    def _judge(self, path: str, layer: int, gone: Set[str], folders: List[str]) -> None:
        was, before, have = self.reader.lookup(path, layer), self.reader.lookup(path, layer - 1), self.final(path)
        if was is None or have is None:
            return
        if before is not None:
            if was.type != "dir" and not alike(before, was):
                raise Refused(f"/{path} is no longer copied and an earlier layer has another one")
            return
        if was.type == have.type == "dir":
            folders.append(path)
        elif was.type != have.type or not _same_content(was, have):
            self._note("the source is gone and it stays, since a RUN changed it", path)
        else:
            gone.add(path)


def _more(paths: Sequence[str]) -> str:
    return f" and {len(paths) - 3} more" if len(paths) > 3 else ""


def _same_content(a: LayerEntry, b: LayerEntry) -> bool:
    if a.type == "file":
        return a.size == b.size and a.content_digest() is not None and a.content_digest() == b.content_digest()
    return a.link == b.link

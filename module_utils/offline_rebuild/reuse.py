"""Reuse: how far a stage is proven to be inside an image of this host.

The rule (DESIGN.md, "What makes a reuse point valid"): instruction *i* is reusable when all before it are, its text
equals the ancestor's history, and what it took in then equals what it would take in now. No evidence means not
reusable. A wrong "reusable" ships old code and calls it new; when in doubt, the answer is no, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple, Union

from .ancestry import Alignment, align
from .context import Context, Manifest, WithModes, diff
from .copyset import CopySet, compare, copy_set
from .dockerfile import Instruction, parse_trigger
from .errors import OfflineRebuildError
from .history import BUILDKIT_SUFFIX, NOP, OVERLAY_COMMENT, STEP_COMMENT, THIN_COMMENT, config_at
from .image import Image, ImageStore
from .inputs import select, sources_of
from .layers import LayerReader
from .plan import FileChange, StagePlan, Start
from .records import RecordStore, StageRecord
from .stage import (
    BuildInput,
    Step,
    Timeline,
    canonical,
    dispatch,
    global_args,
    target_index,
    timelines,
    with_base_triggers,
)
from .thin import ThinLayer, Unsuited, plan_layer
from .trees import ImageTree

__all__ = ["Analyzer", "StageReuse", "weakest"]

#: Strongest first.
EVIDENCE = ("recorded", "observed", "assumed")
#: Stages that may read one another in a row.
DEEPEST = 100


def weakest(*levels: str) -> str:
    """:returns: the weakest of evidence levels; empty ones do not count."""
    present = [level for level in levels if level]
    return max(present, key=EVIDENCE.index) if present else ""


@dataclass(frozen=True)
class Verdict:
    """Whether one instruction is reusable: ``reason`` is empty if it is.

    :param unprovable: nothing speaks against it, but the image cannot show it: only a record could.
    """

    reason: str = ""
    evidence: str = "observed"
    assumed: Tuple[str, ...] = ()
    changes: Tuple[FileChange, ...] = ()
    unprovable: bool = False


@dataclass(frozen=True)
class StageReuse:
    """How far a stage is inside an image.

    :param proven: number of instructions proven; 0 with an alignment means that the base is inside.
    :param alignment: where they lie, ``None`` if there is no ancestor.
    :param base: the base image, if it is present.
    :param manifests: what each instruction takes from the context, by its place; in ``keys`` as well.
    :param differs: with a record, the first instruction whose key is another, where the reason is still to be found.
    :param modes: by place, the paths of the context whose mode is taken from the image, with that mode.
    """

    timeline: Timeline
    alignment: Optional[Alignment]
    proven: int
    reason: str
    evidence: str
    assumed: Tuple[str, ...]
    changes: Tuple[FileChange, ...]
    base: Optional[Image]
    keys: Tuple[str, ...] = ()
    manifests: Mapping[int, Manifest] = field(default_factory=dict)
    record: Optional[StageRecord] = None
    differs: Optional[int] = None
    modes: Mapping[int, Mapping[str, int]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """:returns: whether every instruction is proven."""
        return self.alignment is not None and self.proven == len(self.timeline.steps)

    @property
    def start(self) -> Optional[Step]:
        """:returns: the first instruction that is not proven."""
        return None if self.proven >= len(self.timeline.steps) else self.timeline.steps[self.proven]

    def to_plan(self) -> StagePlan:
        """:returns: what the plan says of this stage."""
        step = self.start
        return StagePlan(
            stage=self.timeline.name or str(self.timeline.index),
            ancestor=self.alignment.image.name if self.alignment else "",
            reused=self.proven,
            total=len(self.timeline.steps),
            start=Start(step.instruction.line, step.title) if step else None,
            reason=self.reason,
            evidence=self.evidence,
        )


class Analyzer:
    """Judges the stages of one build against the images of one host. Reads only.

    :param reader: makes a :class:`LayerReader` for an image.
    :param preferred: ids or names of images to prefer among equals (the one that the service's name stands for).
    :param least: the least evidence that is accepted.
    :param cheapest: the cheapest way that may be taken: ``assemble``, ``thin graft`` (the last instruction is left to
        BuildKit) or ``graft`` (no thin layer).
    :param trusting: the operator says that the tree is untouched: what an image cannot show is taken for granted.
    :param modes: ``image``: what a COPY wrote then keeps its mode, whatever the tree's is (else ``exact``).
    """

    def __init__(
        self,
        build: BuildInput,
        context: Context,
        store: ImageStore,
        records: RecordStore,
        reader: Callable[[Image], LayerReader],
        preferred: Sequence[str] = (),
        least: str = "assumed",
        cheapest: str = "assemble",
        trusting: bool = False,
        modes: str = "exact",
    ) -> None:
        self.build = build
        self.context = context
        self.store = store
        self.records = records
        self.reader = reader
        self.preferred = tuple(preferred)
        self.least = least
        self.cheapest = cheapest
        self.trusting = trusting
        self.modes = modes
        self.outer = global_args(build)
        self.timelines: Tuple[Timeline, ...] = tuple(self._complete(t) for t in timelines(build))
        self.target = target_index(build)
        self._check_depth()
        self._stages: Dict[int, StageReuse] = {}
        self._inputs: Dict[int, Dict[int, Manifest]] = {}
        self._keys: Dict[int, Tuple[str, ...]] = {}
        self._modes: Dict[Tuple[Any, ...], Mapping[str, int]] = {}
        self._verdicts: Dict[Tuple[Any, ...], Verdict] = {}
        self._manifests: Dict[Tuple[str, ...], Manifest] = {}
        self._images: Dict[int, FrozenSet[str]] = {}
        self._thin: Dict[int, Tuple[Optional[ThinLayer], str]] = {}

    def _check_depth(self) -> None:
        """:raises OfflineRebuildError: ``dockerfile-unsupported`` for stages that stand on each other too deep."""
        depth: List[int] = []
        for timeline in self.timelines:
            below = {stage for step in timeline.steps for stage in step.stages}
            depth.append(1 + max((depth[stage] for stage in below), default=0))
            if depth[-1] > DEEPEST:
                raise OfflineRebuildError(
                    "dockerfile-unsupported",
                    f"more than {DEEPEST} stages read one another in a row",
                    "join some of the stages",
                    file=self.build.dockerfile.file,
                    line=self.build.dockerfile.stages[timeline.index].from_instruction.line,
                )

    def _complete(self, timeline: Timeline) -> Timeline:
        base = self.base_of(timeline)
        if base is not None:
            triggers: Sequence[str] = (base.config.get("config") or {}).get("OnBuild") or []
        else:
            triggers = self._recorded_triggers(timeline.base)
        return with_base_triggers(self.build, timeline, triggers)

    def _recorded_triggers(self, base: str) -> Sequence[str]:
        """The ONBUILD triggers of a base that is not here, as a record has them from when it was."""
        for image in self.store.all(lambda data, _: self.records.has(str(data["Id"]))):
            for record in self.records.of(image.id, image.config_digest):
                if record.base == base and record.triggers:
                    return record.triggers
        return ()

    def _hidden_trigger(self, alignment: Alignment) -> str:
        """Why an entry before the boundary may be an ONBUILD trigger that took other files than the context has now.

        A base that is not on the host hides its triggers: their entries look like its own. One that copied from this
        context wrote paths that the same COPY would write now; if these differ, nobody can tell whose they are.
        """
        for place in range(alignment.boundary - 1, -1, -1):
            entry = alignment.image.history[place]
            text = entry.created_by
            if text.startswith(("CMD ", "ENTRYPOINT ")) or NOP.match(text):
                return ""  # the base's own end; triggers follow it
            if entry.layer is None or not text.startswith(("COPY ", "ADD ")) or not text.endswith(BUILDKIT_SUFFIX):
                continue
            if self._is_hidden_trigger(alignment, place, text[: -len(BUILDKIT_SUFFIX)]):
                return (
                    f"`{text[:80]}` may be an ONBUILD trigger of the base, which is not on this host; the files that "
                    "it took are not those of the context now"
                )
        return ""

    def _is_hidden_trigger(self, alignment: Alignment, place: int, text: str) -> bool:
        entry = alignment.image.history[place]
        assert entry.layer is not None
        reader, below = self.reader(alignment.image), entry.layer - 1
        document, _ = config_at(alignment.image, place)
        workdir = str((document.get("config") or {}).get("WorkingDir") or "/")
        try:
            wanted = copy_set(
                parse_trigger(text),
                self.context,
                workdir,
                lambda path: reader.lookup(path, below),
                owner_lookup=lambda path: reader.content(path, below),
            )
        except OfflineRebuildError:
            return False  # the context has no such source: a build with that trigger would fail as well
        if wanted.unsupported:
            return True
        layer = reader.layer(entry.layer)
        if not any(path in wanted.entries for path, found in layer.entries.items() if found.type != "dir"):
            return False
        return bool(compare(wanted, layer, lambda path: reader.lookup(path, below)))

    def images(self) -> List[Image]:
        """:returns: the images of this host that may be an ancestor."""
        return self.store.all(self._matters)

    def _matters(self, data: Mapping[str, Any], texts: Sequence[str]) -> bool:
        """Whether an image that has to be saved whole to be read may be an ancestor: it is the service's own, or has a
        record, or shows a text of one of the stages."""
        if self._is_own(str(data["Id"]), data.get("RepoTags") or ()) or self.records.has(str(data["Id"])):
            return True
        shown = [" ".join(text.split()) for text in texts]
        for timeline in self.timelines:
            sure = [text for text in map(_sure_text, timeline.steps) if text]
            if not sure or any(text in entry for text in sure for entry in shown):
                return True
        return False

    def base_of(self, timeline: Timeline) -> Optional[Image]:
        """:returns: the base image of a stage if it is on the host, in the right platform."""
        if timeline.base == "scratch":
            return None
        image = self.store.find(timeline.base)
        if image is not None and not same_platform(image.platform, timeline.platform):
            return None
        return image

    # -- keys ---------------------------------------------------------------------------------------------------------

    def keys(self, index: int) -> Tuple[Tuple[str, ...], Dict[int, Manifest]]:
        """The chained keys of a stage's instructions, and the manifests of what they take from the context."""
        if index not in self._keys:
            self._keys[index] = self.chain(index, self.inputs(index), lambda stage: self.keys(stage)[0])
        return self._keys[index], self.inputs(index)

    def inputs(self, index: int) -> Dict[int, Manifest]:
        """:returns: by place, the manifest of what an instruction takes from the context, as the tree is."""
        if index not in self._inputs:
            manifests: Dict[int, Manifest] = {}
            env: Dict[str, str] = {}
            for place, step in enumerate(self.timelines[index].steps):
                self._follow(env, step)
                sources = sources_of(step, self.build.lexer, env)
                if sources:
                    manifests[place] = self._manifest(sources)
            self._inputs[index] = manifests
        return self._inputs[index]

    def chain(
        self, index: int, manifests: Mapping[int, Manifest], keys_of: Callable[[int], Tuple[str, ...]]
    ) -> Tuple[str, ...]:
        """:returns: the chained keys with these manifests, and these keys of the stages that are read."""
        timeline = self.timelines[index]
        chain = hashlib.sha256(json.dumps(["FROM", timeline.base, timeline.platform]).encode()).hexdigest()
        keys: List[str] = []
        for place, step in enumerate(timeline.steps):
            parts: List[Any] = [chain, canonical(step.instruction), self._arg_values(step)]
            if place in manifests:
                parts.append(manifests[place].digest())
            for stage in sorted(step.stages):
                own = keys_of(stage)
                parts.append(own[-1] if own else self.timelines[stage].base)
            chain = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
            keys.append(chain)
        return tuple(keys)

    def _keys_beside(
        self, index: int, alignment: Optional[Alignment], record: Optional[StageRecord], judged: bool = True
    ) -> Tuple[Tuple[str, ...], Dict[int, Manifest], Dict[int, Mapping[str, int]]]:
        """Keys, manifests and modes of a stage beside one ancestor: with ``modes: image`` its modes are in them.

        :param judged: whether the stages that are read may be judged for it; not while candidates are ranked.
        """
        if self.modes == "exact":
            return (*self.keys(index), {})
        modes: Dict[int, Mapping[str, int]] = {}
        manifests = dict(self.inputs(index))
        for place, manifest in self.inputs(index).items():
            found = self._modes_of(index, alignment, record, place)
            if found:
                modes[place] = found
                manifests[place] = manifest.with_modes(found)

        def keys_of(stage: int) -> Tuple[str, ...]:
            return self.stage(stage).keys if judged else self.keys(stage)[0]

        return self.chain(index, manifests, keys_of), manifests, modes

    # -- what a COPY wrote then ---------------------------------------------------------------------------------------

    def _then(
        self, index: int, alignment: Optional[Alignment], record: Optional[StageRecord], place: int
    ) -> Union[Manifest, int, None]:
        """What is known of the files that a COPY of the context wrote into the ancestor.

        :returns: the manifest of what it took, by the record; else the number of the layer that it made; ``None`` if
            nothing in the ancestor stands for it.
        """
        step = self.timelines[index].steps[place]
        if record is not None:
            text = canonical(step.instruction)
            there = place if place < len(record.texts) and record.texts[place] == text else -1
            if there < 0 and record.texts.count(text) == 1:
                there = record.texts.index(text)
            return self.records.manifest(record.manifests.get(str(there)))
        if alignment is None:
            return None
        if place < alignment.matched:
            entry = alignment.entry(place)
            return entry.layer if entry is not None else None
        texts = alignment.outcomes[place].created_by
        later = [e.layer for e in alignment.image.history[alignment.positions[-1] :] if e.created_by in texts]
        return later[0] if len(later) == 1 else None

    def _modes_of(
        self, index: int, alignment: Optional[Alignment], record: Optional[StageRecord], place: int
    ) -> Mapping[str, int]:
        """The paths of the context whose mode is another in the ancestor, as a COPY wrote it, and that mode."""
        image = alignment.image.id if alignment is not None else ""
        key = (index, place, image, alignment.positions if alignment else (), record.keys if record else ())
        if key not in self._modes:
            self._modes[key] = self._find_modes(index, alignment, record, place)
        return self._modes[key]

    def _find_modes(
        self, index: int, alignment: Optional[Alignment], record: Optional[StageRecord], place: int
    ) -> Mapping[str, int]:
        step = self.timelines[index].steps[place]
        if step.kind != "context":
            return {}
        then = self._then(index, alignment, record, place)
        if isinstance(then, Manifest):
            changes = diff(then, self.inputs(index)[place])
            return {c.path: then[c.path].mode for c in changes if "mode" in c.what and then[c.path].type != "symlink"}
        if then is None or alignment is None or step.instruction.flag("chmod"):
            return {}  # a --chmod says what the modes are
        reader = self.reader(alignment.image)
        try:
            wanted = self.copy_set(alignment, index, place, self.context, then - 1)
        except OfflineRebuildError:
            return {}  # a source is missing: said where the instruction is judged or built
        found: Dict[str, int] = {}
        doubtful = set()
        for path, entry in wanted.entries.items():
            have = reader.lookup(path, then)
            if not entry.source or entry.type == "symlink" or have is None or have.type != entry.type:
                continue
            if found.setdefault(entry.source, have.mode) != have.mode:
                doubtful.add(entry.source)
        at = {e.source: e.mode for e in wanted.entries.values()}
        return {path: mode for path, mode in found.items() if mode != at[path] and path not in doubtful}

    def copy_set(self, alignment: Alignment, index: int, place: int, tree: Any, below: int) -> CopySet:
        """What a COPY writes now, over the ancestor's layers up to ``below``."""
        reader = self.reader(alignment.image)
        if place < len(alignment.states):
            state = alignment.states[place]
        else:
            state = alignment.states[-1].copy()
            for step in self.timelines[index].steps[len(alignment.states) - 1 : place]:
                dispatch(state, step, self.build, self.outer)
        return copy_set(
            alignment.outcomes[place].expanded,
            tree,
            str(state.config.get("WorkingDir") or "/"),
            lambda path: reader.lookup(path, below),
            owner_lookup=lambda path: reader.content(path, below),
            file=self.build.dockerfile.file,
        )

    def context_with(self, modes: Mapping[str, int]) -> Any:
        """:returns: the context with these modes."""
        return WithModes(self.context, modes) if modes else self.context

    def without_counterpart(self, stage: StageReuse) -> List[Step]:
        """:returns: the COPYs of the context, after the reuse point, that nothing in the ancestor stands for."""
        index, steps = stage.timeline.index, stage.timeline.steps
        return [
            steps[place]
            for place in range(stage.proven, len(steps))
            if steps[place].kind == "context"
            and steps[place].instruction.sources
            and self._then(index, stage.alignment, stage.record, place) is None
        ]

    def differences(self, stage: StageReuse) -> List[FileChange]:
        """:returns: what differs from the ancestor, of all COPYs of the context and not of the first alone."""
        index, found = stage.timeline.index, {}
        for place, step in enumerate(stage.timeline.steps):
            if stage.alignment is None or step.kind != "context" or place not in stage.manifests:
                continue
            then = self._then(index, stage.alignment, stage.record, place)
            if isinstance(then, Manifest):
                changes = self._between(then, stage.manifests[place])
            elif then is None:
                continue
            else:
                changes = self._with_layer(stage, place, then)
            found.update({change.path: change for change in changes})
        return [found[path] for path in sorted(found)]

    def _with_layer(self, stage: StageReuse, place: int, layer: int) -> Tuple[FileChange, ...]:
        assert stage.alignment is not None
        index, reader = stage.timeline.index, self.reader(stage.alignment.image)
        tree = self.context_with(stage.modes.get(place, {}))
        try:
            wanted = self.copy_set(stage.alignment, index, place, tree, layer - 1)
        except OfflineRebuildError:
            return ()
        found = compare(wanted, reader.layer(layer), lambda path: reader.lookup(path, layer - 1))
        chmod = stage.timeline.steps[place].instruction.flag("chmod")
        return () if wanted.unsupported else tuple(replace(c, mend="") if chmod else c for c in found)

    def _between(self, old: Manifest, new: Manifest) -> Tuple[FileChange, ...]:
        changes = diff(old, new, self.context.only_line_ends)
        return tuple(FileChange(c.path, c.kind, c.what, c.note, self.context.mend_of(c, old)) for c in changes)

    def _follow(self, env: Dict[str, str], step: Step) -> None:
        """Keep ``env`` at what the Dockerfile itself says for certain: no value that the base's could be in."""
        if step.instruction.keyword not in ("ARG", "ENV"):
            return
        known = dict(env)
        for key, text in step.instruction.pairs:
            env.pop(key, None)
            if step.instruction.keyword == "ARG" and (key in self.build.args or text is None):
                value = self.build.args.get(key, self.outer.get(key))
                if value is not None:
                    env[key] = value
            elif text is not None:
                found = self.build.lexer.process_word_with_matches(text, known)
                if not found.unmatched:
                    env[key] = found.result

    def _manifest(self, sources: Sequence[str]) -> Manifest:
        if sources not in self._manifests:
            self._manifests[tuple(sources)] = selection(self.context.manifest(), sources)
        return self._manifests[tuple(sources)]

    def unchanged_in(self, whole: Manifest) -> bool:
        """:returns: whether every instruction would take the same from this manifest of the context as it took."""
        return all(
            selection(whole, sources).digest() == manifest.digest() for sources, manifest in self._manifests.items()
        )

    def _arg_values(self, step: Step) -> List[List[Optional[str]]]:
        if step.instruction.keyword != "ARG":
            return []
        return [
            [key, self.build.args.get(key), self.outer.get(key) if default is None else None]
            for key, default in step.instruction.pairs
        ]

    # -- stages -------------------------------------------------------------------------------------------------------

    def needed(self) -> List[int]:
        """:returns: the stages that the target needs, in the order of the file."""
        found: List[int] = []
        todo = [self.target]
        while todo:
            index = todo.pop()
            if index not in found:
                found.append(index)
                todo.extend(stage for step in self.timelines[index].steps for stage in step.stages)
        return sorted(found)

    def stage(self, index: int) -> StageReuse:
        """:returns: the best that an image of this host offers for a stage."""
        if index not in self._stages:
            self._stages[index] = self._judge(index)
        return self._stages[index]

    def _judge(self, index: int) -> StageReuse:
        timeline = self.timelines[index]
        base = self.base_of(timeline)
        best = StageReuse(timeline, None, 0, "no image on this host holds its beginning", "", (), (), base)
        for candidate in self._candidates(timeline, base):
            if best.alignment is not None and self._at_best(candidate) <= self._worth(best):
                continue  # its layers need not be read
            judged = self._prove(candidate)
            if judged.alignment is None:
                best = judged if best.alignment is None else best
            elif best.alignment is None or self._worth(judged) > self._worth(best):
                best = judged
        keys, manifests, modes = self._keys_beside(index, best.alignment, best.record)
        if best.record is not None and best.differs is not None and best.alignment is not None:
            reason, changes = self._recorded_reason(best.record, timeline, manifests, best.differs, best.alignment)
            best = replace(best, reason=reason, changes=changes)
        return replace(best, keys=keys, manifests=manifests, modes=modes)

    def _worth(self, judged: StageReuse) -> Tuple[int, bool, bool, int, bool]:
        """The more is proven the better; then an image that is just this; then the current one; then the longer
        beginning, so that a base is no better than an image on top of it; then an imported one.

        An imported ancestor is better than what was made here, so that layers do not pile up (DESIGN.md, fact 10).
        """
        alignment = judged.alignment
        assert alignment is not None
        exact = judged.whole and alignment.whole
        preferred = exact and self._is_preferred(alignment.image)
        return (judged.proven, exact, preferred, alignment.matched, not made_here(alignment.image))

    def _at_best(self, candidate: StageReuse) -> Tuple[int, bool, bool, int, bool]:
        """:returns: the worth of a candidate if all of its text were proven."""
        assert candidate.alignment is not None
        return self._worth(replace(candidate, proven=candidate.alignment.matched))

    def _is_preferred(self, image: Image) -> bool:
        return bool((set(image.refs) | {image.id}) & set(self.preferred))

    def _candidates(self, timeline: Timeline, base: Optional[Image]) -> List[StageReuse]:
        found: List[StageReuse] = []
        for image in self.images():
            if image.refs and all(ref.startswith("127.0.0.1:9/") for ref in image.refs):
                continue
            if not same_platform(image.platform, timeline.platform):
                continue
            record = self._record(image, timeline)
            boundary = record.boundary if record else None
            alignment = align(image, timeline, self.build, self.outer, base, boundary, record is not None)
            if alignment is not None:
                found.append(StageReuse(timeline, alignment, 0, "", "", (), (), base))
        if base is None and timeline.base != "scratch":
            found = self._related(found, timeline)
        found = self._nearest(found, timeline)
        found.sort(key=self._rank)
        return found

    def _nearest(self, found: Sequence[StageReuse], timeline: Timeline) -> List[StageReuse]:
        """Without the images of other names that have no record and no more of the stage's text than the service's own.

        Images of one kind have the same Dockerfile and the same base, so each of them would be read whole at each plan,
        in the hope that it holds just this tree.
        """
        near = [c for c in found if self._is_near(c, timeline)]
        most = max((c.alignment.matched for c in near if c.alignment), default=-1)
        return [c for c in found if c in near or (c.alignment is not None and c.alignment.matched > most)]

    def _is_near(self, candidate: StageReuse, timeline: Timeline) -> bool:
        image = candidate.alignment.image if candidate.alignment else None
        return image is not None and (self._is_own(image.id, image.refs) or self._record(image, timeline) is not None)

    def _related(self, found: Sequence[StageReuse], timeline: Timeline) -> List[StageReuse]:
        """With the base not here, the candidates that are known to stand on it.

        Two images may have the same instructions on different bases. So an image that has no record must be the
        service's own, or stand on the same layers as that, or (a stage that was exported under another name) hold the
        stage's text from its first instruction to the image's end. Where the service's own image has a record, that
        speaks, and no assumption is made about others.
        """
        recorded = [c for c in found if self._record(c.alignment.image, timeline) is not None]  # type: ignore[union-attr]
        own = [
            c for c in found if c.alignment is not None and self._is_own(c.alignment.image.id, c.alignment.image.refs)
        ]
        anchor = self._base_layers(own)
        if anchor is None and timeline.index != self.target and timeline.base == self.timelines[self.target].base:
            anchor = self._base_layers(
                [
                    c
                    for c in self._candidates_of_target()
                    if c.alignment and self._is_own(c.alignment.image.id, c.alignment.image.refs)
                ]
            )
        mine = (
            [image for image in self.images() if self._is_own(image.id, image.refs)]
            if timeline.index == self.target
            else []
        )
        # An own image that has a record, or whose base is not certain, forbids to assume anything of others.
        speaks = any(self.records.of(image.id, image.config_digest) for image in mine) or (
            anchor is None and bool(mine)
        )
        kept = []
        for candidate in found:
            alignment = candidate.alignment
            assert alignment is not None
            whole = alignment.matched == len(timeline.steps) and alignment.positions[-1] == len(alignment.image.history)
            layers = alignment.image.diff_ids[: alignment.layers_before(0)]
            related = layers == anchor if anchor is not None else whole
            if candidate in recorded or candidate in own or (related and not speaks):
                kept.append(candidate)
        return kept

    def _candidates_of_target(self) -> List[StageReuse]:
        timeline = self.timelines[self.target]
        return self._candidates(timeline, self.base_of(timeline))

    @staticmethod
    def _base_layers(candidates: Sequence[StageReuse]) -> Optional[Tuple[str, ...]]:
        """The base's layers, by the candidate that matches most."""
        alignments = [c.alignment for c in candidates if c.alignment is not None and not c.alignment.doubt]
        if not alignments:
            return None
        best = max(alignments, key=lambda a: a.matched)
        return best.image.diff_ids[: best.layers_before(0)]

    def _is_own(self, image_id: str, refs: Sequence[str]) -> bool:
        """Whether an image has a name of the service's repository, whatever its tag."""
        names = {name.rsplit(":", 1)[0] for name in self.preferred}
        return bool(names & {ref.rsplit(":", 1)[0] for ref in refs}) or image_id in self.preferred

    def possible(self) -> List[Image]:
        """:returns: the images that may be the ancestor of a needed stage, each once."""
        found: Dict[str, Image] = {}
        for index in self.needed():
            timeline = self.timelines[index]
            for candidate in self._candidates(timeline, self.base_of(timeline)):
                if candidate.alignment is not None:
                    found[candidate.alignment.image.id] = candidate.alignment.image
        return list(found.values())

    def _rank(self, candidate: StageReuse) -> Tuple[bool, int, bool, bool, str]:
        """Those with a record first: they are proven without reading a layer, and often none has to be read then."""
        alignment = candidate.alignment
        assert alignment is not None
        image = alignment.image
        unrecorded = self._record(image, candidate.timeline) is None
        return (unrecorded, -alignment.matched, made_here(image), not self._is_preferred(image), image.id)

    def _record(self, image: Image, timeline: Timeline) -> Optional[StageRecord]:
        """The record that fits a stage best: same base name, most keys in common."""
        best: Optional[StageRecord] = None
        most = (-1, -1)
        for record in self.records.of(image.id, image.config_digest):
            common = _common(record.keys, self._keys_beside(timeline.index, None, record, judged=False)[0])
            texts = _common(record.texts, [canonical(s.instruction) for s in timeline.steps])
            if (common, texts) > most:
                best, most = record, (common, texts)
        return best if best is not None and (max(most) > 0 or best.base == timeline.base) else None

    def thin(self, index: int) -> Tuple[Optional[ThinLayer], str]:
        """:returns: the thin layer for what follows a stage's reuse point, or why there is none."""
        if index not in self._thin:
            self._thin[index] = self._plan_thin(self.stage(index))
        return self._thin[index]

    def _plan_thin(self, stage: StageReuse) -> Tuple[Optional[ThinLayer], str]:
        alignment, steps = stage.alignment, stage.timeline.steps
        covered = steps[:-1] if self.cheapest == "thin graft" else steps
        if alignment is None or stage.proven >= len(covered) or self.cheapest == "graft":
            return None, ""
        try:
            layer = plan_layer(
                alignment,
                covered,
                stage.proven,
                self.reader(alignment.image),
                lambda place, expanded: self._source_of(stage, place, expanded),
                lambda state, step: dispatch(state, step, self.build, self.outer),
                self.build.dockerfile.file,
                lambda place: self._manifests_of(stage, place),
            )
            rest = {step.instruction.keyword for step in steps[layer.end :]}
            if "ENTRYPOINT" in rest and layer.state.cmd_set:
                raise Unsuited("an ENTRYPOINT after a RUN would reset the CMD before it")
        except Unsuited as reason:
            return None, str(reason)
        return layer, ""

    def _manifests_of(self, stage: StageReuse, place: int) -> Optional[Tuple[Manifest, Manifest]]:
        """What a COPY took for the ancestor, by its record, and what it takes now."""
        record = stage.record
        taken = self.records.manifest(record.manifests.get(str(place))) if record is not None else None
        if record is None or taken is None or place not in stage.manifests or place >= len(record.texts):
            return None
        if record.texts[place] != canonical(stage.timeline.steps[place].instruction):
            return None
        return taken, stage.manifests[place]

    def _source_of(self, reuse: StageReuse, place: int, expanded: Optional[Instruction]) -> Any:
        """Where a COPY takes its files from, for a thin layer."""
        step = reuse.timeline.steps[place]
        if step.kind == "context":
            return self.context_with(reuse.modes.get(place, {}))
        if step.kind == "stage":
            source = self.stage(step.source)
            if not source.whole or source.alignment is None or min(source.alignment.positions) < 0:
                raise Unsuited(f"stage {self.timelines[step.source].name or step.source} has to be built")
            image: Optional[Image] = source.alignment.image
        else:
            image = self.store.find(step.source)
        if image is None:
            raise Unsuited(f"the image {step.source} is not on this host")
        upto = len(image.diff_ids) if step.kind == "image" else self._layers_of(self.stage(step.source))
        return ImageTree(self.reader(image), upto - 1, expanded.sources if expanded is not None else ())

    @staticmethod
    def _layers_of(stage: StageReuse) -> int:
        assert stage.alignment is not None
        history = stage.alignment.image.history[: stage.alignment.positions[-1]]
        return sum(1 for entry in history if entry.layer is not None)

    # -- evidence -----------------------------------------------------------------------------------------------------

    def _prove(self, candidate: StageReuse) -> StageReuse:
        alignment, timeline = candidate.alignment, candidate.timeline
        assert alignment is not None
        record = self._record(alignment.image, timeline)
        if record is not None:
            return self._prove_recorded(candidate, record)
        if alignment.doubt and not self.trusting:
            return replace(candidate, alignment=None, reason=alignment.doubt)
        evidence, assumed = "observed", []
        if alignment.unknown & {("Env", key) for _, key in alignment.unknown}:
            return replace(candidate, alignment=None, reason="the base's environment is not in the image's history")
        if not alignment.base_present:
            trigger = self._hidden_trigger(alignment)
            if trigger:
                return replace(candidate, alignment=None, reason=trigger)
            evidence = "assumed"
            assumed.append(f"FROM {timeline.base}: the image does not say what it was built from (no ONBUILD in it)")
        changes: Tuple[FileChange, ...] = ()
        reason = ""
        proven = 0
        if EVIDENCE.index(evidence) > EVIDENCE.index(self.least):
            return self._refused(candidate, evidence, assumed)
        for place in range(alignment.matched):
            verdict = self.verdict(alignment, timeline, place)
            if not verdict.reason and EVIDENCE.index(verdict.evidence) > EVIDENCE.index(self.least):
                verdict = replace(verdict, reason=f"its evidence is only {verdict.evidence}")
            if verdict.unprovable and self.trusting:
                said = f"line {timeline.steps[place].instruction.line}: the tree is untouched"
                verdict = Verdict(evidence="assumed", assumed=(said,))
            if verdict.reason:
                reason, changes = verdict.reason, verdict.changes
                break
            evidence = weakest(evidence, verdict.evidence)
            assumed.extend(verdict.assumed)
            proven = place + 1
        else:
            reason = self.text_reason(alignment, timeline)
        return replace(
            candidate,
            proven=proven,
            reason=reason,
            evidence=evidence,
            assumed=tuple(dict.fromkeys(assumed)),
            changes=changes,
        )

    def _refused(self, candidate: StageReuse, evidence: str, assumed: Sequence[str]) -> StageReuse:
        alignment = candidate.alignment
        assert alignment is not None
        reason = (
            f"{alignment.image.name} came with no record, its evidence is only {evidence} ({'; '.join(assumed)}), and "
            f"offline_rebuild_evidence is {self.least}: record the untouched tree first (playbooks/prime.yml)"
        )
        return replace(candidate, alignment=None, reason=reason, evidence=evidence, assumed=tuple(assumed))

    def text_reason(self, alignment: Alignment, timeline: Timeline) -> str:
        """:returns: why the first instruction that is not in the image's history is not."""
        if alignment.matched == len(timeline.steps):
            return ""
        position = alignment.positions[-1]
        if position >= len(alignment.image.history):
            return f"{alignment.image.name} ends before it"
        was = " ".join(alignment.image.history[position].created_by.split())
        return f"the instruction is new or changed (the image has: {was[:80]})"

    def _prove_recorded(self, candidate: StageReuse, record: StageRecord) -> StageReuse:
        alignment, timeline = candidate.alignment, candidate.timeline
        assert alignment is not None
        if candidate.base is not None and record.base_id and candidate.base.id != record.base_id:
            return replace(candidate, alignment=None, reason=f"the base image {timeline.base} is another than then")
        if record.base != timeline.base:
            return replace(candidate, alignment=None, reason=f"FROM was {record.base} and is {timeline.base}")
        if not record.base_id and not alignment.base_present:
            trigger = self._hidden_trigger(alignment)
            if trigger:
                return replace(candidate, alignment=None, reason=trigger)
        keys, _, _ = self._keys_beside(timeline.index, alignment, record)
        same_images, another = self.same_images(record, timeline)
        proven = min(_common(record.keys, keys), alignment.matched, len(record.positions) - 1, same_images)
        pairs = list(zip(alignment.positions, record.positions))
        if any(b not in (a, -1) for a, b in pairs[: proven + 1]):
            return replace(candidate, alignment=None, reason="the record does not fit the image's history")
        # Inside a thin layer the image cannot be cut: -1 there.
        alignment = replace(alignment, positions=tuple(b if b < 0 else a for a, b in pairs))
        differs = proven
        while alignment.positions[proven] < 0:
            proven -= 1
        other_image = proven < len(timeline.steps) and differs == same_images
        return replace(
            candidate,
            alignment=alignment,
            proven=proven,
            reason=f"the image {another} that it reads is another than then" if other_image else "",
            evidence="recorded",
            record=record,
            # manifests are big: what differs in them is looked up for the best candidate alone
            differs=differs if proven < len(timeline.steps) and not other_image else None,
        )

    def images_of(self, index: int) -> Dict[str, str]:
        """The other images that go into a stage (``--from``, mounts, bases of its source stages), for a record.

        :returns: name to config digest, ``""`` for one that is not on the host.
        """
        names = {name for step in self.timelines[index].steps for name in self._images_of_step(step)}
        found = {name: self.store.find(name) for name in names}
        return {name: image.config_digest if image is not None else "" for name, image in found.items()}

    def _images_of_step(self, step: Step) -> FrozenSet[str]:
        names = {value for kind, value in (*step.mounts, (step.kind, step.source)) if kind == "image"}
        for stage in step.stages:
            if stage not in self._images:
                timeline = self.timelines[stage]
                own = set() if timeline.base == "scratch" else {timeline.base}
                self._images[stage] = frozenset(own.union(*(self._images_of_step(s) for s in timeline.steps)))
            names |= self._images[stage]
        return frozenset(names)

    def same_images(self, record: StageRecord, timeline: Timeline) -> Tuple[int, str]:
        """How many instructions read the images that they read then, and the first that is another.

        An image that is not here now is taken for the one of then, as the base is.
        """
        for place, step in enumerate(timeline.steps):
            for name in sorted(self._images_of_step(step)):
                now = self.store.find(name)
                if now is not None and record.images.get(name) != now.config_digest:
                    return place, name
        return len(timeline.steps), ""

    def _recorded_reason(
        self, record: StageRecord, timeline: Timeline, manifests: Mapping[int, Manifest], place: int, found: Alignment
    ) -> Tuple[str, Tuple[FileChange, ...]]:
        step = timeline.steps[place]
        if place >= len(record.texts) or record.texts[place] != canonical(step.instruction):
            return "the instruction is new or changed", ()
        taken = self.records.manifest(record.manifests.get(str(place)))
        if place in manifests and taken is not None:
            changes = self._between(taken, manifests[place])
            if changes:
                return _files_reason(changes), changes
        if step.stages:
            names = ", ".join(self.timelines[s].name or str(s) for s in sorted(step.stages))
            return f"stage {names} has changed", ()
        if step.instruction.keyword == "ARG":
            return "a build argument has another value", ()
        return self.text_reason(found, timeline) or "what it takes in has changed", ()

    def verdict(self, alignment: Alignment, timeline: Timeline, place: int) -> Verdict:
        """:returns: whether one instruction is proven to be in an image, seen by itself."""
        entry = alignment.entry(place)
        layers = alignment.image.diff_ids[: alignment.layers_before(place) + 1]
        workdir = str(alignment.states[place].config.get("WorkingDir") or "/")
        key = (timeline.index, place, layers, entry.created_by if entry else "", workdir)
        if key not in self._verdicts:
            self._verdicts[key] = self._weigh(alignment, timeline, place)
        return self._verdicts[key]

    def _weigh(self, alignment: Alignment, timeline: Timeline, place: int) -> Verdict:
        step = timeline.steps[place]
        if step.kind in ("meta", "workdir"):
            return Verdict()
        if step.kind == "run":
            return self._weigh_run(alignment, step, place)
        if step.kind == "remote":
            if sources_of(step):
                said = "it copies addresses and files of the context at once, and there is no record of it"
                return Verdict(said, unprovable=True)
            return Verdict(evidence="assumed", assumed=(f"line {step.instruction.line}: what the address gives",))
        if step.kind == "context":
            modes = self._modes_of(timeline.index, alignment, None, place) if self.modes == "image" else {}
            return self._compare(alignment, timeline.index, place, self.context_with(modes), "")
        name = self.timelines[step.source].name or str(step.source) if step.kind == "stage" else step.source
        if step.kind == "stage":
            source = self.stage(step.source)
            if not source.whole or source.alignment is None:
                return Verdict(f"stage {name} is not wholly inside an image of this host: {self._why_not(source)}")
            tree = self._tree(source.alignment.image, self._layers_of(source) - 1, alignment, place)
            verdict = self._compare(alignment, timeline.index, place, tree, name)
            return replace(
                verdict, evidence=weakest(verdict.evidence, source.evidence), assumed=verdict.assumed + source.assumed
            )
        image = self.store.find(step.source)
        if image is None:
            return Verdict(
                evidence="assumed", assumed=(f"line {step.instruction.line}: --from={step.source} and its content",)
            )
        tree = self._tree(image, len(image.diff_ids) - 1, alignment, place)
        return self._compare(alignment, timeline.index, place, tree, step.source)

    def _tree(self, image: Image, upto: int, alignment: Alignment, place: int) -> ImageTree:
        return ImageTree(self.reader(image), upto, alignment.outcomes[place].expanded.sources)

    def _why_not(self, source: StageReuse) -> str:
        step = source.start
        place = f"{self.build.dockerfile.file}:{step.instruction.line} {step.title}: " if step else ""
        return place + source.reason

    def _weigh_run(self, alignment: Alignment, step: Step, place: int) -> Verdict:
        assumed: List[str] = []
        entry = alignment.entry(place)
        if entry is not None and entry.created_by in alignment.outcomes[place].partial:
            assumed.append(f"line {step.instruction.line}: the values of the ARGs that its stage inherits")
        for hidden in alignment.outcomes[place].hidden:
            if hidden == "the heredoc's content":
                said = "the image does not hold the content of its heredoc, and there is no record of it"
                return Verdict(said, unprovable=True)
            assumed.append(f"line {step.instruction.line}: {hidden}")
        for kind, value in step.mounts:
            if kind == "context":
                said = f"it reads {value} of the context through a mount, and there is no record of it"
                return Verdict(said, unprovable=True)
            if kind == "stage":
                name = self.timelines[value].name or value
                return Verdict(f"it reads stage {name} through a mount, and there is no record of it", unprovable=True)
        return Verdict(evidence="assumed" if assumed else "observed", assumed=tuple(assumed))

    def _compare(self, alignment: Alignment, index: int, place: int, tree: Any, origin: str) -> Verdict:
        """Compare what COPY would write now with what the layer of then holds.

        :param origin: the stage or image that the files are from; ``""`` for the context.
        """
        entry = alignment.entry(place)
        if entry is None or entry.layer is None:
            return Verdict("the image has no layer of it")
        reader = self.reader(alignment.image)
        below = entry.layer - 1
        try:
            wanted = self.copy_set(alignment, index, place, tree, below)
        except OfflineRebuildError as error:
            if not origin:
                raise  # the build would fail as well: said before anything is touched
            return Verdict(f"{origin} does not hold what it copies: {error.message}")
        if wanted.unsupported:
            return Verdict(f"it cannot be told what it would write: {wanted.unsupported}", unprovable=True)
        changes = tuple(compare(wanted, reader.layer(entry.layer), lambda path: reader.lookup(path, below)))
        reader.remember(entry.layer)
        if origin or self.timelines[index].steps[place].instruction.flag("chmod"):
            changes = tuple(replace(c, mend="") for c in changes)  # nothing in the tree would mend it
        if not changes:
            return Verdict()
        return Verdict(_files_reason(changes, origin), changes=changes)


def made_here(image: Image) -> bool:
    """:returns: whether a thin layer or our own history entries are in the image."""
    return any(entry.comment in (STEP_COMMENT, THIN_COMMENT, OVERLAY_COMMENT) for entry in image.history)


def _sure_text(step: Step) -> str:
    """A text that an image with this instruction has in its history, whoever built it; empty if none is sure."""
    instruction = step.instruction
    if instruction.keyword not in ("RUN", "ENV", "WORKDIR", "COPY", "ADD") or "$" in instruction.text:
        return ""
    if instruction.is_json or instruction.heredocs or any(char in instruction.text for char in "\"'\\"):
        return ""
    words = [word for word in instruction.text.split()[1:] if not word.startswith("--")]
    return " ".join(words[-1:] if instruction.keyword in ("COPY", "ADD", "WORKDIR") else words)


def selection(whole: Manifest, sources: Sequence[str]) -> Manifest:
    """:returns: the part of a context's manifest that the sources reach."""
    if any(posixpath.normpath("/" + source) == "/" for source in sources):
        return whole
    chosen = select({path: entry.type for path, entry in whole.entries()}, sources)
    return whole if len(chosen) == len(whole) else Manifest.from_entries({path: whole[path] for path in chosen})


def _files_reason(changes: Sequence[FileChange], origin: str = "") -> str:
    where = f" of {origin}" if origin else ""
    shown = ", ".join(change.path for change in changes[:3]) + (", ..." if len(changes) > 3 else "")
    count = f"{len(changes)} file{where} differs" if len(changes) == 1 else f"{len(changes)} files{where} differ"
    return f"{count} from the image: {shown}"


def _common(old: Sequence[str], new: Sequence[str]) -> int:
    count = 0
    for a, b in zip(old, new):
        if a != b:
            break
        count += 1
    return count


def same_platform(have: str, want: str) -> bool:
    """``linux/amd64`` fits ``linux/amd64``; a missing variant fits any (containerd/platforms normalisation)."""
    a, b = (have.split("/") + ["", ""])[:3], (want.split("/") + ["", ""])[:3]
    return a[:2] == b[:2] and (a[2] == b[2] or not a[2] or not b[2])

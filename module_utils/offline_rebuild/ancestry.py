"""Aligning a stage with an image's history: how far the image's text says that the stage is inside it.

The history of an application image is the base's entries followed by one entry per instruction. Where the base ends is
not written there. If the base image is present it is known; otherwise every place is tried, and one is taken only if it
explains the rest of the history clearly better than any other: found, not guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, FrozenSet, List, Mapping, Optional, Tuple

from .history import (
    EXPORTER_COMMENT,
    NOP,
    OVERLAY_COMMENT,
    THIN_COMMENT,
    config_at,
    is_certain,
    is_onbuild,
    is_redundant_arg,
    matches,
    names_label,
)
from .image import HistoryEntry, Image
from .stage import BuildInput, Outcome, State, Timeline, dispatch, scratch_config, start_state

__all__ = ["Alignment", "align", "is_base_of"]

#: Entries that a history may have for its base to be searched for; real ones have a few dozen.
MOST_ENTRIES = 400


@dataclass(frozen=True)
class Alignment:
    """A stage's instructions laid along an image's history.

    :param boundary: number of history entries that are the base's.
    :param positions: ``positions[j]`` is the number of history entries after the first ``j`` instructions;
        its length is the number of matching instructions + 1.
    :param states: the stage's state after the first ``j`` instructions, for the same ``j``.
    :param outcomes: of every instruction of the timeline, those that do not match included.
    :param base_present: whether the base image is here and is the beginning of this image.
    :param unknown: ``(field, key)`` of the base's config that the history does not tell.
    :param doubt: why the boundary, which was searched for, is not certain.
    """

    image: Image
    boundary: int
    positions: Tuple[int, ...]
    states: Tuple[State, ...]
    outcomes: Tuple[Outcome, ...]
    base_present: bool
    unknown: FrozenSet[Tuple[str, str]]
    doubt: str = ""

    @property
    def matched(self) -> int:
        """:returns: the number of instructions whose text is in the history."""
        return len(self.positions) - 1

    def entry(self, index: int) -> Optional[HistoryEntry]:
        """:returns: the history entry of instruction ``index``; ``None`` if it leaves none (ONBUILD)."""
        last = self.positions[index + 1]
        return None if last == self.positions[index] else self.image.history[last - 1]

    def layers_before(self, index: int) -> int:
        """:returns: the number of layers below instruction ``index``."""
        return sum(1 for e in self.image.history[: self.positions[index]] if e.layer is not None)

    @property
    def whole(self) -> bool:
        """:returns: whether the image is what the matching instructions give: nothing after them, the same config."""
        return self.positions[-1] == len(self.image.history) and self._same_config

    @property
    def _same_config(self) -> bool:
        """Labels may be more than the instructions say (``--label`` leaves no history), and of other values."""
        have, want = self.image.config.get("config") or {}, self.states[-1].config
        skipped = {field for field, _ in self.unknown}
        return all(_plain(field, have) == _plain(field, want) for field in _FIELDS if field not in skipped) and set(
            want.get("Labels") or {}
        ) <= set(have.get("Labels") or {})


_FIELDS = (
    "Env", "Cmd", "Entrypoint", "WorkingDir", "User", "Shell", "StopSignal", "Healthcheck", "ExposedPorts", "Volumes",
    "OnBuild",
)  # fmt: skip


def _plain(field: str, config: Mapping[str, Any]) -> Any:
    """A field of a config in a form that can be compared: engines write nothing, null, an empty list or "" alike."""
    value = config.get(field) or None
    if value is None:
        return None
    if field == "Env":
        return {item.partition("=")[0]: item for item in value}
    if field in ("ExposedPorts", "Volumes"):
        return set(value)
    if field == "Healthcheck":
        return {key: part for key, part in value.items() if part}
    if field == "WorkingDir":
        return None if value == "/" else value
    return value


def is_base_of(base: Image, image: Image) -> bool:
    """Whether ``image`` was made on top of ``base``: its layers and its history begin with the base's."""
    return (
        image.diff_ids[: len(base.diff_ids)] == base.diff_ids
        and len(image.history) >= len(base.history)
        and all(a.created_by == b.created_by for a, b in zip(base.history, image.history))
        # a base whose history does not account for its layers: where it ends here is not known
        and sum(1 for e in image.history[: len(base.history)] if e.layer is not None) == len(base.diff_ids)
    )


def align(
    image: Image,
    timeline: Timeline,
    build: BuildInput,
    outer: Mapping[str, str],
    base: Optional[Image],
    boundary: Optional[int] = None,
    through_thin: bool = False,
) -> Optional[Alignment]:
    """Lay a stage along an image's history.

    :param base: the stage's base image if it is present on the host.
    :param boundary: the recorded end of the base's entries, if there is a record.
    :param through_thin: whether to go on after a thin layer, or one that BuildKit's exporter accounts for; only a
        record tells what is in one.
    :returns: the alignment, or ``None`` if the image is no ancestor or it cannot be told where the base ends.
    """
    if not image.history:
        return None
    if timeline.base == "scratch":
        return _at(image, timeline, build, outer, 0, True, None, through_thin)
    if base is not None:
        if not is_base_of(base, image):
            return None
        return _at(image, timeline, build, outer, len(base.history), True, base, through_thin)
    if boundary is not None:
        return _at(image, timeline, build, outer, boundary, False, None, through_thin)
    return _search(image, timeline, build, outer)


def _search(image: Image, timeline: Timeline, build: BuildInput, outer: Mapping[str, str]) -> Optional[Alignment]:
    if not timeline.steps or len(image.history) > MOST_ENTRIES:
        return None
    best: List[Tuple[int, Alignment]] = []
    overlaid = (place for place, entry in enumerate(image.history) if entry.comment == OVERLAY_COMMENT)
    for boundary in range(1, next(overlaid, len(image.history))):
        if not _starts(image, timeline, boundary):
            continue
        found = _at(image, timeline, build, outer, boundary, False)
        if found.matched:
            best.append((_distance(found, timeline), found))
    best.sort(key=lambda pair: pair[0])
    if not best or best[0][0] > max(1, len(timeline.steps) // 2):
        return None
    if len(best) > 1 and best[1][0] == best[0][0]:
        return None
    return replace(best[0][1], doubt=_doubt(image, best[0][1].boundary))


def _doubt(image: Image, boundary: int) -> str:
    """Whether the entry before the boundary is one that bases end with.

    If it is not, it may be an instruction of the stage that the Dockerfile no longer has: it would count as the base's.
    """
    entry = image.history[boundary - 1]
    text = NOP.sub("", entry.created_by)
    if text.startswith(("CMD ", "ENTRYPOINT ")) or entry.comment.startswith(("Imported from", "debuerreotype")):
        return ""
    shown = " ".join(text.split())[:60]
    return (
        f"where the base ends in {image.name} cannot be told: `{shown}` may be the base's, or an instruction that the "
        "Dockerfile no longer has (record the untouched tree first: playbooks/prime.yml; or bring the base image)"
    )


def _stands_for_nothing(entry: HistoryEntry) -> bool:
    """:returns: whether no instruction is behind the entry."""
    return entry.comment == THIN_COMMENT or entry.comment.startswith(EXPORTER_COMMENT)


def _starts(image: Image, timeline: Timeline, boundary: int) -> bool:
    """A cheap look: does the entry at ``boundary`` begin with the keyword of the first instruction?"""
    first = next((s for s in timeline.steps if s.instruction.keyword != "ONBUILD"), None)
    if first is None:
        return False
    keyword = first.instruction.keyword
    text = image.history[boundary].created_by
    return keyword in text or (keyword == "RUN" and image.history[boundary].layer is not None)


def _at(
    image: Image,
    timeline: Timeline,
    build: BuildInput,
    outer: Mapping[str, str],
    boundary: int,
    base_present: bool,
    base: Optional[Image] = None,
    through_thin: bool = False,
) -> Alignment:
    unknown: FrozenSet[Tuple[str, str]] = frozenset()
    if timeline.base == "scratch":
        state = start_state(scratch_config(timeline.platform))
    elif base is not None:
        state = _with_build_labels(start_state(base.config), image)
    else:
        document, unknown = config_at(image, boundary)
        state = start_state(document)
        state.config.pop("OnBuild", None)  # triggers in the final config are this image's own, not its base's
    positions, states = [boundary], [state.copy()]
    outcomes: List[Outcome] = []
    position, matching = boundary, True
    for step in timeline.steps:
        workdir = str(state.config.get("WorkingDir") or "/")
        args = [(key, value) for key, value in state.args if state.env.get(key) == value]
        outcome = dispatch(state, step, build, outer)
        outcomes.append(outcome)
        if not matching:
            continue
        if outcome.created_by:
            while (
                position < len(image.history)
                and not matches(image.history[position], outcome, step, workdir)
                and is_redundant_arg(image.history[position], args)
            ):
                position += 1
            if position >= len(image.history) or not (
                matches(image.history[position], outcome, step, workdir)
                and is_certain(image, position, outcome, build.labels)
            ):
                matching = False
                continue
            position += 1
            while through_thin and position < len(image.history) and _stands_for_nothing(image.history[position]):
                position += 1
        elif step.stage == timeline.index and not _onbuild_matches(image, state):
            matching = False
            continue
        elif position < len(image.history) and is_onbuild(image.history[position], step):
            position += 1
        positions.append(position)
        states.append(state.copy())
    return Alignment(image, boundary, tuple(positions), tuple(states), tuple(outcomes), base_present, unknown)


def _with_build_labels(state: State, image: Image) -> State:
    """Labels that ``--label`` or compose gave the image are in no history entry: they stay."""
    final = (image.config.get("config") or {}).get("Labels") or {}
    have = state.config.get("Labels") or {}
    extra = {k: v for k, v in final.items() if k not in have and not names_label(image.history, k)}
    if extra:
        state.config["Labels"] = {**(state.config.get("Labels") or {}), **extra}
    return state


def _onbuild_matches(image: Image, state: State) -> bool:
    """ONBUILD leaves no history: the triggers declared so far must be the first of those in the image's config."""
    have = list((image.config.get("config") or {}).get("OnBuild") or [])
    want = list(state.config.get("OnBuild") or [])
    return have[: len(want)] == want


def _distance(found: Alignment, timeline: Timeline) -> int:
    """Edits that turn the history after the boundary into the stage's instructions (Levenshtein, one per entry)."""
    rest = found.image.history[found.positions[-1] :]
    todo = [
        (step, outcome)
        for step, outcome in list(zip(timeline.steps, found.outcomes))[found.matched :]
        if outcome.created_by
    ]
    previous = list(range(len(rest) + 1))
    for row, (step, outcome) in enumerate(todo, 1):
        current = [row]
        for column, entry in enumerate(rest, 1):
            same = entry.created_by in outcome.created_by or matches(entry, outcome, step, "/")
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (0 if same else 1)))
        previous = current
    return previous[-1]

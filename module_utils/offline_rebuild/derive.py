"""The derived Dockerfile: the instructions that remain after each stage's reuse point, on top of grafts.

Nothing in it asks a registry: every name is one under :data:`graft.REGISTRY` (DESIGN.md, facts 5 and 21).
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from .context import mend_mode
from .dockerfile import parse
from .errors import OfflineRebuildError
from .graft import REGISTRY, Carried, ImageDocument, document
from .history import touches
from .image import HistoryEntry, Image, missing_image, pull_remedy, sha256
from .pipneeds import Place
from .plan import mend_command
from .reuse import Analyzer, StageReuse
from .stage import BuildInput, Outcome, State, Step, hidden_by_env
from .supply import Supply, needs_network, offer, with_flags
from .thin import ThinLayer, write_layer

__all__ = ["Derived", "blocked_reason", "derive", "remaining", "way_of", "with_triggers"]


@dataclass(frozen=True)
class Derived:
    """All that a build by graft needs.

    :param grafts: images to load first.
    :param tags: name under :data:`graft.REGISTRY` to id of a present image.
    :param target: the stage to build.
    :param final: the graft that *is* the result, when no instruction remains.
    :param onbuild: triggers that the target has from before the cut. A graft has none, since ``FROM`` would run them;
        the result gets them back (:func:`with_triggers`).
    """

    text: str
    grafts: Tuple[ImageDocument, ...]
    tags: Mapping[str, str]
    target: str
    final: Optional[ImageDocument] = None
    onbuild: Tuple[str, ...] = ()


def remaining(analyzer: Analyzer) -> List[Tuple[StageReuse, int]]:
    """The stages that the build needs, in the order of the file, each with the instruction where the build starts.

    A stage that nothing after the reuse points reads is left out.
    """
    todo, cuts = [analyzer.target], {}
    while todo:
        index = todo.pop()
        if index in cuts:
            continue
        stage = analyzer.stage(index)
        cuts[index] = start_of(analyzer, stage)
        for step in stage.timeline.steps[cuts[index] :]:
            todo.extend(step.stages)
    return [(analyzer.stage(index), cuts[index]) for index in sorted(cuts)]


def start_of(analyzer: Analyzer, stage: StageReuse) -> int:
    """:returns: the first instruction of a stage that BuildKit has to run: after the thin layer, if there is one."""
    layer, _ = analyzer.thin(stage.timeline.index)
    return layer.end if layer is not None else reuse_point(stage)


def way_of(analyzer: Analyzer) -> str:
    """:returns: ``assemble``, ``thin graft``, ``graft`` or ``build``: how the image of the target is made."""
    stages = remaining(analyzer)
    thin = [analyzer.thin(stage.timeline.index)[0] is not None for stage, _ in stages]
    if all(start == len(stage.timeline.steps) for stage, start in stages) and any(thin):
        return "assemble"
    if any(thin):
        return "thin graft"
    return "graft" if analyzer.stage(analyzer.target).alignment is not None else "build"


def reuse_point(stage: StageReuse) -> int:
    """The last place where the stage may be cut.

    An ENTRYPOINT resets CMD unless the CMD was given in the same build, so a cut between the two is moved before CMD.
    """
    cut = stage.proven
    steps = stage.timeline.steps
    if stage.alignment is None or cut >= len(steps):
        return cut
    state = stage.alignment.states[cut]
    if state.cmd_set and any(s.instruction.keyword == "ENTRYPOINT" and s.stage == state.stage for s in steps[cut:]):
        return next(i for i, s in enumerate(steps) if s.instruction.keyword == "CMD" and s.stage == state.stage)
    return cut


def unsettled(stage: StageReuse, cut: int) -> str:
    """A field of the base's config that the history does not tell and that the stage does not set anew.

    What a RUN or COPY sees (user, directory, shell) must be set before the cut.
    """
    alignment = stage.alignment
    if alignment is None or not alignment.unknown:
        return ""
    before, anywhere = _set_by(alignment.outcomes[:cut]), _set_by(alignment.outcomes)
    for field, key in sorted(alignment.unknown):
        settled = before if field in ("Env", "User", "WorkingDir", "Shell") else anywhere
        if (field, key) not in settled:
            return f"{field} {key}".strip()
    return ""


def _set_by(outcomes: Sequence[Outcome]) -> Set[Tuple[str, str]]:
    entries = [HistoryEntry(outcome.created_by[0], "", None) for outcome in outcomes if outcome.created_by]
    found = {(field, key) for entry in entries for field, key, _ in touches(entry)}
    return found | {("Cmd", "")} if ("Entrypoint", "") in found else found


def blocked_reason(analyzer: Analyzer, supply: Optional[Supply] = None) -> Tuple[str, str]:
    """Why the build cannot be done on this host, and the remedy; ``("", "")`` if it can.

    Known before anything is touched: a stage with neither ancestor nor base, or a RUN that is known to need a network.

    :param supply: what such RUNs can have without one.
    """
    for stage, cut in remaining(analyzer):
        timeline = stage.timeline
        name = timeline.name or str(timeline.index)
        if stage.alignment is None and stage.base is None and timeline.base != "scratch":
            return _no_ancestor(analyzer, stage)
        lacking = unsettled(stage, cut)
        if lacking:
            return (
                f"{lacking} of the base image {timeline.base} is not in its children's history",
                pull_remedy(timeline.base, timeline.platform),
            )
        if stage.alignment is not None and cut < len(stage.alignment.states):
            _carried_args(stage.alignment.states[cut], analyzer.build)  # raises for what cannot be carried
        for number, step in enumerate(timeline.steps[cut:], cut):
            place = f"{analyzer.build.dockerfile.file}:{step.instruction.line}"
            if needs_network(step):
                said = (
                    f"{place} {step.title} would have to run again and needs a network, because stage {name} is "
                    f"reusable only up to there: {_because(stage)}"
                )
                found = _unsupplied(Place(analyzer, stage, cut, number), supply, said)
                if found is not None:
                    return found
            if stage.modes.get(number):
                return _tree_modes(analyzer, f"{place} {step.title}", stage.modes[number])
            if step.kind == "remote":
                return (
                    f"{place} {step.title} needs a network",
                    "fetch the file on a connected machine, put it into the context and COPY it",
                )
            for kind, value in [*step.mounts, (step.kind, step.source)]:
                if kind == "image" and analyzer.store.find(value) is None:
                    return (
                        f"{place} needs the image {value}, which is not on this host",
                        pull_remedy(value, timeline.platform),
                    )
    return "", ""


def _unsupplied(place: Place, supply: Optional[Supply], said: str) -> Optional[Tuple[str, str]]:
    """:returns: why a RUN that needs a network cannot do without, and the remedy; ``None`` if it can."""
    elsewhere = "build the image on a connected machine and bring it in with docker save and docker load"
    if supply is None:
        changed, remedy = offer(place)
        return f"{said} ({changed})" if changed else said, f"{remedy}; or {elsewhere}" if remedy else elsewhere
    reason, remedy = supply.refusal(place)
    return (f"{said}; {reason}", remedy or elsewhere) if reason else None


def _tree_modes(analyzer: Analyzer, said: str, modes: Mapping[str, int]) -> Tuple[str, str]:
    """A COPY whose files have their modes from the image cannot be left to BuildKit, which would copy the tree's."""
    shown = ", ".join(sorted(modes)[:3]) + (", ..." if len(modes) > 3 else "")
    command = mend_command(analyzer.context.given_root, ((mend_mode(mode), path) for path, mode in modes.items()))
    return (
        f"not with modes: image, because {said} has to be built, and a build copies the modes of the tree: "
        f"{len(modes)} of its files have others in the image ({shown})",
        f"give the files on a file system with modes those of the image: {command}",
    )


def _because(stage: StageReuse) -> str:
    step = stage.start
    return f"line {step.instruction.line} {step.title}: {stage.reason}" if step else stage.reason


def _no_ancestor(analyzer: Analyzer, stage: StageReuse) -> Tuple[str, str]:
    timeline = stage.timeline
    name = timeline.name or str(timeline.index)
    error = missing_image(timeline.base, [f"{analyzer.build.dockerfile.file}:{timeline.from_line}"], timeline.platform)
    if timeline.index == analyzer.target:
        return f"{error.message}: {stage.reason}", error.remedy
    if not timeline.name:
        return (
            f"stage {timeline.index} (line {timeline.from_line}) must be built again and no image here holds its "
            f"beginning ({stage.reason})",
            f"give it a name (FROM {timeline.base} AS NAME) on a connected machine too, build it there with --target "
            "NAME, and bring that image in with docker save and docker load",
        )
    return (
        f"stage {timeline.name or timeline.index} must be built again and no image on this host holds its beginning "
        f"({stage.reason}); an application image holds the layers of its last stage only",
        f"on a connected machine: docker build --target {name} -t NAME:{name} ... && docker save -o {name}.tar "
        f"NAME:{name}; bring {name}.tar here and: docker load -i {name}.tar",
    )


# ---------------------------------------------------------------------------------------------------------------------


def derive(
    analyzer: Analyzer, run_time: int, folder: str, labels: Mapping[str, str], gone: Iterable[str] = (),
    supply: Optional[Supply] = None,
) -> Derived:  # fmt: skip
    """The derived Dockerfile and the grafts it stands on.

    :param run_time: seconds since the epoch that grafts and thin layers carry.
    :param folder: where thin layers are written.
    :param labels: the compose file's ``build.labels``, for a result that is made without a build.
    :param gone: labels that the compose file gave the ancestor and no longer gives.
    :param supply: what the RUNs that need a network can have without one.
    """
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run_time))
    stages = remaining(analyzer)
    flags: Mapping[Tuple[int, int], Sequence[str]] = {}
    grafts: List[ImageDocument] = []
    if supply is not None:
        flags, grafts = _supplied(analyzer, stages, supply, folder)
    tags: Dict[str, str] = {}
    alias = _aliases(stage for stage, _ in stages)
    blocks: List[str] = []
    for stage, cut in stages:
        layer, _ = analyzer.thin(stage.timeline.index)
        final = stage.timeline.index == analyzer.target and cut == len(stage.timeline.steps)
        extra: Dict[str, Optional[str]] = dict(labels) if final else {}
        if stage.timeline.index == analyzer.target:
            extra.update(dict.fromkeys(droppable(stage, gone)))
        if layer is not None:
            grafts.append(thin_document(stage, layer, created, run_time, folder, extra, final))
            origin = grafts[-1].ref
        else:
            origin = _origin(stage, cut, created, grafts, tags, extra, final)
        lines: List[str] = []
        if stage.alignment is not None:
            state = layer.state if layer is not None else stage.alignment.states[cut]
            if _reads_args(stage.timeline.steps[cut:]):
                lines += _carried_args(state, analyzer.build)
        parts = _parts(stage, cut)
        for number, steps in enumerate(parts):
            name = f"offline-rebuild-part-{stage.timeline.index}-{number}"
            name = alias[stage.timeline.index] if number == len(parts) - 1 else name
            lines = [f"FROM {origin} AS {name}", *lines]
            for step in steps:
                more = flags.get((stage.timeline.index, stage.timeline.steps.index(step, cut)), ())
                lines.append(with_flags(_rewritten(step, alias, analyzer, tags), more))
            blocks.append("\n".join(lines))
            origin, lines = name, []
    target, cut = next((s, c) for s, c in stages if s.timeline.index == analyzer.target)
    result = grafts[-1] if cut == len(target.timeline.steps) and target.alignment is not None else None
    header = _directives(analyzer)
    metas = [i.raw.rstrip("\n") for i in analyzer.build.dockerfile.meta_args]
    text = "\n".join([*header, *metas, *blocks]) + "\n"
    return Derived(text, tuple(grafts), tags, alias[analyzer.target], result, _triggers_before(analyzer, target, cut))


def _supplied(
    analyzer: Analyzer, stages: Sequence[Tuple[StageReuse, int]], supply: Supply, folder: str
) -> Tuple[Dict[Tuple[int, int], Sequence[str]], List[ImageDocument]]:
    """:returns: more flags for the RUNs that need packages, by stage and place; and the image that holds these."""
    places = [
        Place(analyzer, stage, cut, number)
        for stage, cut in stages
        for number in range(cut, len(stage.timeline.steps))
        if needs_network(stage.timeline.steps[number])
    ]
    if not places:
        return {}, []
    made = supply.document(places, folder)
    return {(place.stage.timeline.index, place.number): supply.flags(place, made.ref) for place in places}, [made]


def _triggers_before(analyzer: Analyzer, stage: StageReuse, cut: int) -> Tuple[str, ...]:
    """The triggers that the last stage of the chain has set before the cut; those of a parent have run by then."""
    layer, _ = analyzer.thin(stage.timeline.index)
    if stage.alignment is None:
        return ()
    return _own_triggers(stage, layer.state if layer is not None else stage.alignment.states[cut], cut)


def _own_triggers(stage: StageReuse, state: State, cut: int) -> Tuple[str, ...]:
    """The triggers in a state at a cut that lies in the last stage of the chain; none at any other."""
    own = cut > 0 and stage.timeline.steps[cut - 1].stage == stage.timeline.chain[-1]
    return tuple(state.config.get("OnBuild") or ()) if own else ()


def with_triggers(image: Image, triggers: Sequence[str]) -> ImageDocument:
    """A built image with these triggers before those that it has. Its history has them already."""
    section = dict(image.config.get("config") or {})
    section["OnBuild"] = [*triggers, *(section.get("OnBuild") or ())]
    config = {**image.config, "config": section}
    digest = sha256(json.dumps([image.id, section["OnBuild"]]).encode()).split(":")[1][:32]
    return document(f"{REGISTRY}/graft:{digest}", config, image, len(image.diff_ids))


def droppable(stage: StageReuse, gone: Iterable[str]) -> List[str]:
    """:returns: those of the labels that neither the Dockerfile nor a base that is here sets."""
    kept = set((stage.base.config.get("config") or {}).get("Labels") or {}) if stage.base is not None else set()
    for outcome in stage.alignment.outcomes if stage.alignment is not None else ():
        if outcome.expanded.keyword == "LABEL":
            kept.update(key for key, _ in outcome.expanded.pairs)
    return sorted(set(gone) - kept)


def derive_overlay(
    analyzer: Analyzer, stage: StageReuse, layer: ThinLayer, again: Sequence[int], run_time: int, folder: str,
    labels: Mapping[str, Optional[str]],
) -> Derived:  # fmt: skip
    """The image with an overlay, and a Dockerfile for the RUNs that run again on it, if there are any.

    Each of them runs in the state that it has in the whole file: metadata are given again from the first of them on.

    :param stage: the target, beside the ancestor that the overlay stands on.
    :param labels: as they are to be; without a value for those that go.
    """
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run_time))
    steps, alignment = stage.timeline.steps, stage.alignment
    assert alignment is not None
    if not again:
        made = thin_document(stage, layer, created, run_time, folder, labels, final=True)
        return Derived("", (made,), {}, "", made)
    start = reuse_point(replace(stage, proven=again[0]))
    state = alignment.states[start]
    layer = replace(layer, state=state, created_by=())
    made = thin_document(stage, layer, created, run_time, folder, {k: v for k, v in labels.items() if v is None})
    tags: Dict[str, str] = {}
    blocks: List[str] = []
    origin, lines = made.ref, _carried_args(state, analyzer.build)
    for number, part in enumerate(_parts(stage, start)):
        name = f"offline-rebuild-overlay-{number}"
        lines = [f"FROM {origin} AS {name}", *lines]
        for step in part:
            if step.kind in ("meta", "workdir") or any(step is steps[place] for place in again):
                lines.append(_rewritten(step, {}, analyzer, tags))
        blocks.append("\n".join(lines))
        origin, lines = name, []
    text = "\n".join([*_directives(analyzer), *blocks]) + "\n"
    return Derived(text, (made,), tags, origin, onbuild=_own_triggers(stage, state, start))


def _directives(analyzer: Analyzer) -> List[str]:
    dockerfile = analyzer.build.dockerfile
    lines = [f"# escape={dockerfile.escape}"] if "escape" in dockerfile.directives else []
    if "check" in dockerfile.directives:
        lines.append(f"# check={dockerfile.directives['check']}")
    return lines


def _aliases(stages: Iterable[StageReuse]) -> Dict[int, str]:
    """A name for each stage: its own, unless it has none or another stage has the same."""
    found: Dict[int, str] = {}
    for stage in stages:
        index, name = stage.timeline.index, stage.timeline.name
        found[index] = name if name and name not in found.values() else f"offline-rebuild-stage-{index}"
    return found


def _parts(stage: StageReuse, cut: int) -> List[List[Step]]:
    """The steps to build, by the stage that they are written in: ``FROM stage`` starts anew what CMD and ONBUILD set.

    Triggers are steps of their own here; so the ONBUILD that they stem from is left out, and so are those of a base
    image that is used as it is, which BuildKit runs by itself.
    """
    chain = stage.timeline.chain
    parts: List[List[Step]] = [[]]
    place = None
    for step in stage.timeline.steps[cut:]:
        if stage.alignment is None and step.onbuild and step.stage == chain[0]:
            continue
        if step.instruction.keyword == "ONBUILD" and step.stage != chain[-1]:
            continue
        if place not in (None, step.stage):
            parts.append([])
        place = step.stage
        parts[-1].append(step)
    return parts


def _origin(
    stage: StageReuse, cut: int, created: str, grafts: List[ImageDocument], tags: Dict[str, str],
    labels: Mapping[str, Optional[str]], final: bool,
) -> str:  # fmt: skip
    if stage.alignment is not None:
        made = graft_document(stage, cut, created, labels, final)
        grafts.append(made)
        return made.ref
    if stage.timeline.base == "scratch":
        return "scratch"
    assert stage.base is not None
    return _tagged(stage.base, tags)


def _tagged(image: Image, tags: Dict[str, str]) -> str:
    name = f"{REGISTRY}/image:{image.id.split(':')[-1][:32]}"
    tags[name] = image.id
    return name


def graft_document(
    stage: StageReuse, cut: int, created: str, labels: Mapping[str, Optional[str]], final: bool = False
) -> ImageDocument:
    """The image at the reuse point: the ancestor's layers up to there and the config as BuildKit has it there.

    :param final: it is the result; otherwise it has no triggers, which a ``FROM`` would run.
    """
    alignment = stage.alignment
    assert alignment is not None
    image = alignment.image
    position = alignment.positions[cut]
    layers = sum(1 for entry in image.history[:position] if entry.layer is not None)
    config = _config_of(image, alignment.states[cut], created, labels, final)
    config["history"] = list(image.config.get("history") or [])[:position]
    digest = sha256(json.dumps([image.id, position, config], sort_keys=True).encode()).split(":")[1][:32]
    return document(f"{REGISTRY}/graft:{digest}", config, image, layers)


def thin_document(
    stage: StageReuse, layer: ThinLayer, created: str, run_time: int, folder: str,
    labels: Mapping[str, Optional[str]], final: bool = False,
) -> ImageDocument:  # fmt: skip
    """The image with a thin layer on the ancestor's layers: the same bytes for the same ancestor, tree and time."""
    alignment = stage.alignment
    assert alignment is not None
    carried: List[Carried] = []
    if not layer.empty:
        path = os.path.join(folder, f"layer-{stage.timeline.index}.tar")
        with open(path, "wb") as stream:
            diff_id, size = write_layer(layer, stream, run_time)
        carried.append(Carried(diff_id, size, path))
    config = _config_of(alignment.image, layer.state, created, labels, final)
    config["history"] = layer.history(list(alignment.image.config.get("history") or []), created)
    digest = sha256(json.dumps([alignment.image.id, config, [c.diff_id for c in carried]], sort_keys=True).encode())
    return document(
        f"{REGISTRY}/graft:{digest.split(':')[1][:32]}", config, alignment.image, layer.kept_layers, carried
    )


def _config_of(
    image: Image, state: State, created: str, labels: Mapping[str, Optional[str]], final: bool
) -> Dict[str, Any]:
    """The config of an image that is written here; a label without a value is taken out."""
    config: Dict[str, Any] = {
        key: image.config[key] for key in ("architecture", "os", "variant", "os.version") if key in image.config
    }
    if state.author:
        config["author"] = state.author
    config["config"] = {k: v for k, v in state.config.items() if v is not None or k in ("Cmd", "Entrypoint", "OnBuild")}
    if not final:
        config["config"].pop("OnBuild", None)
    if labels:
        all_labels = {**(config["config"].get("Labels") or {}), **labels}
        config["config"]["Labels"] = {key: value for key, value in all_labels.items() if value is not None}
    config["created"] = created
    return config


def _reads_args(steps: Sequence[Step]) -> bool:
    """Whether an ARG in scope can matter: a RUN sees all of them, anything else only through a ``$``."""
    return any(step.kind == "run" or "$" in step.instruction.raw for step in steps)


def _carried_args(state: State, build: BuildInput) -> List[str]:
    """ARGs in scope at the cut.

    One that an ENV hides is not declared again: a build arg of that name would override the ENV (dispatchArg, AddEnv).
    """
    lines: List[str] = []
    escape = build.dockerfile.escape
    for key in dict.fromkeys(key for key, _ in state.args):
        if hidden_by_env(state, key):
            continue
        value = state.env.get(key)
        if value is None or build.args.get(key) == value:  # the build gets it again as a build arg
            lines.append(f"ARG {key}")
            continue
        if "\n" in value:
            raise OfflineRebuildError(
                "arg-newline",
                f"the build argument {key} has a line break and cannot be carried",
                "give it without a line break",
                file=build.dockerfile.file,
            )
        quoted = "".join(escape + char if char in ('"', "$", escape) else char for char in value)
        lines.append(f'ARG {key}="{quoted}"')
    return lines


def _rewritten(step: Step, alias: Mapping[int, str], analyzer: Analyzer, tags: Dict[str, str]) -> str:
    """The instruction verbatim, its references to stages and images by names that hold in the derived Dockerfile."""
    raw = step.instruction.raw.rstrip("\n")
    escape = analyzer.build.dockerfile.escape
    if step.onbuild:  # written with the default escape character
        raw = step.instruction.text + "".join(f"\n{doc.content}{doc.name}" for doc in step.instruction.heredocs)
    wanted: List[str] = []
    for kind, value in [*step.mounts, (step.kind, step.source)]:
        if kind == "stage":
            raw = _renamed(raw, _names_of(value, analyzer), alias[value], escape)
            wanted.append(alias[value])
        elif kind == "image":
            image = analyzer.store.find(value)
            if image is not None:
                raw = _renamed(raw, [value], _tagged(image, tags), escape)
                wanted.append(_tagged(image, tags))
    if wanted:
        _check_names(raw, wanted, analyzer.build.dockerfile.file, step.instruction.line, escape)
    return raw


def _check_names(raw: str, wanted: Sequence[str], file: str, line: int, escape: str) -> None:
    """A name left as it was might mean another stage or image in the derived Dockerfile."""
    text = f"# escape={escape}\nFROM scratch\n{raw}\n".encode("utf-8", "surrogateescape")
    try:
        made = parse(text, file).stages[0].instructions[0]
        names = [made.flag("from") or "", *(mount.from_ for mount in made.mounts)]
    except OfflineRebuildError:  # an old name may mean the stage itself here
        names = []
    if any(name not in names for name in wanted):
        raise OfflineRebuildError(
            "dockerfile-unsupported",
            "the name of the stage or image that it reads is written in a form that is not understood",
            "write it as --from=NAME, or from=NAME in a mount",
            file=file,
            line=line,
        )


def _names_of(index: int, analyzer: Analyzer) -> Sequence[str]:
    name = analyzer.timelines[index].name
    return [str(index)] + ([name] if name else [])


def _renamed(raw: str, old: Sequence[str], new: str, escape: str) -> str:
    pattern = "|".join(re.escape(name) for name in old)
    end = _flags_end(raw, escape)
    return (
        re.sub(
            rf'(?i)(\bfrom=)(["\']?)(?:{pattern})(?=["\']*(?:[\s,]|$))',
            lambda m: m.group(1) + m.group(2) + new,
            raw[:end],
        )
        + raw[end:]
    )


def _flags_end(raw: str, escape: str) -> int:
    """Where an instruction's flags end: what follows is its own text, in which nothing is renamed."""
    gap = rf"(?:[^\S\n]|{re.escape(escape)}[^\S\n]*\n(?:[^\S\n]*(?:#[^\n]*)?\n)*)+"
    quoted = r'"[^"]*"' + r"|'[^']*'"
    flag = rf"--(?:{quoted}|{re.escape(escape)}[^\n]|[^\s\"'{re.escape(escape)}])*"
    found = re.match(rf"\s*[A-Za-z]+(?:{gap}{flag})*", raw)
    return found.end() if found else 0

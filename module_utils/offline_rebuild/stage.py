"""Stages as BuildKit dispatches them: what each instruction does to the config and what it leaves in the history.

The rules are those of moby/buildkit, ``frontend/dockerfile/dockerfile2llb`` (convert.go, convert_copy.go,
convert_expose.go). Nothing here reads a file or an image: a stage is followed from the config of its base.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, Optional, Sequence, Tuple

from .dockerfile import Dockerfile, Instruction, Stage, expand, parse_trigger
from .errors import OfflineRebuildError
from .gofmt import go_duration, go_list, go_quote, go_rune
from .instructions import parse_heredoc
from .shellword import Lexer

__all__ = ["BuildInput", "Outcome", "State", "Step", "Timeline", "dispatch", "start_state", "timelines"]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: ARGs that BuildKit knows without a declaration (frontend/dockerfile docs, "Predefined ARGs"); they leave no trace.
PROXY_ARGS = frozenset(
    name for n in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY") for name in (n, n.lower())
)


@dataclass(frozen=True)
class Step:
    """One instruction of a stage's timeline.

    :param kind: ``context`` (COPY/ADD of local files or heredocs), ``stage`` or ``image`` (COPY --from), ``remote``
        (ADD of URLs and git), ``run``, ``workdir`` or ``meta``.
    :param source: stage index for ``stage``, image name for ``image``.
    :param mounts: per ``--mount`` that reads something, ``("context", path)``, ``("stage", index)`` or
        ``("image", name)``.
    :param stage: the index of the stage that the instruction is written in.
    """

    instruction: Instruction
    kind: str
    stage: int
    source: Any = None
    mounts: Tuple[Tuple[str, Any], ...] = ()
    onbuild: bool = False

    @property
    def title(self) -> str:
        """:returns: the instruction's text in one line, shortened for an operator."""
        text = " ".join(self.instruction.text.split())
        return text if len(text) <= 100 else text[:97] + "..."

    @property
    def stages(self) -> FrozenSet[int]:
        """:returns: the indices of the stages that this instruction reads."""
        found = {value for kind, value in self.mounts if kind == "stage"}
        if self.kind == "stage":
            found.add(self.source)
        return frozenset(found)


@dataclass(frozen=True)
class Timeline:
    """All steps from an external base to the end of one stage.

    :param base: the base image's name, expanded; ``scratch`` for none.
    :param chain: the stage indices that the steps come from, first to last (``FROM stage`` continues a stage).
    """

    index: int
    name: str
    base: str
    platform: str
    from_line: int
    chain: Tuple[int, ...]
    steps: Tuple[Step, ...]


@dataclass(frozen=True)
class BuildInput:
    """What a build is told besides its files.

    :param args: build args with their values.
    :param platform: ``os/arch[/variant]`` of the target.
    :param host_platform: the same of the machine that builds.
    :param target: stage name or number, ``""`` for the last one.
    :param target_stage: whether the engine's BuildKit predefines TARGETSTAGE (28.5 does, 26.1 does not).
    :param labels: keys of the labels that the result is given besides the Dockerfile's.
    """

    dockerfile: Dockerfile
    args: Mapping[str, str]
    platform: str
    host_platform: str
    target: str = ""
    target_stage: bool = True
    labels: FrozenSet[str] = frozenset()

    @property
    def lexer(self) -> Lexer:
        """:returns: the shell lexer with this file's escape character."""
        return Lexer(self.dockerfile.escape)


def _platform_args(build: BuildInput) -> Dict[str, str]:
    values: Dict[str, str] = {}
    for prefix, platform in (("BUILD", build.host_platform), ("TARGET", build.platform)):
        parts = (platform.split("/") + ["", ""])[:3]
        values[prefix + "PLATFORM"] = platform
        values[prefix + "OS"], values[prefix + "ARCH"], values[prefix + "VARIANT"] = parts
        values[prefix + "OSVERSION"] = ""
    target = build.target
    if not target and build.dockerfile.stages:
        target = build.dockerfile.stages[-1].name
    if build.target_stage:
        values["TARGETSTAGE"] = target or "default"
    return {key: build.args.get(key, value) for key, value in values.items()}


def global_args(build: BuildInput) -> Dict[str, str]:
    """The ARGs before the first FROM, with the predefined platform ARGs (buildMetaArgs, defaultArgs)."""
    values = _platform_args(build)
    for instruction in build.dockerfile.meta_args:
        for key, default in instruction.pairs:
            if key in build.args:
                values[key] = build.args[key]
            elif default is not None:
                values[key] = build.lexer.process_word(default, values)
    return values


def _error(build: BuildInput, line: int, message: str, code: str = "dockerfile-syntax", remedy: str = "") -> Exception:
    return OfflineRebuildError(code, message, remedy, file=build.dockerfile.file, line=line)


def is_remote(source: str) -> bool:
    """:returns: whether ADD takes the source for an address (isHTTPSource, ParseGitRef)."""
    return source.startswith(("http://", "https://", "git://", "git@", "ssh://"))


def _step(build: BuildInput, stage: Stage, instruction: Instruction, onbuild: bool = False) -> Step:
    keyword = instruction.keyword
    kind = "meta"
    source: Any = None
    mounts: List[Tuple[str, Any]] = []
    if keyword in ("COPY", "ADD"):
        origin = instruction.flag("from")
        if keyword == "COPY" and origin:
            found = build.dockerfile.find_stage(origin)
            kind, source = ("image", origin) if found is None else ("stage", found.index)
        elif keyword == "ADD" and any(is_remote(text) for text in instruction.sources):
            kind = "remote"
        else:
            kind = "context"
    elif keyword == "RUN":
        kind = "run"
        for mount in instruction.mounts:
            if mount.type not in ("bind", "cache") and "$" not in mount.type:
                continue
            if not mount.from_:
                if mount.type == "bind":
                    mounts.append(("context", mount.source or "/"))
                elif mount.type != "cache":  # which type it is, a variable says: it may read all of the context
                    mounts.append(("context", "/"))
                continue
            found = build.dockerfile.find_named(mount.from_)
            mounts.append(("image", mount.from_) if found is None else ("stage", found.index))
    elif keyword == "WORKDIR":
        kind = "workdir"
    return Step(instruction, kind, stage.index, source, tuple(mounts), onbuild)


def timelines(build: BuildInput) -> Tuple[Timeline, ...]:
    """Every stage's timeline, by stage index.

    :raises OfflineRebuildError: ``dockerfile-syntax`` for a blank base name.
    """
    outer = global_args(build)
    made: List[Timeline] = []
    for stage in build.dockerfile.stages:
        line = stage.from_instruction.line
        base = build.lexer.process_word(stage.base, outer)
        if not base:
            raise _error(build, line, f"base name ({stage.base}) should not be blank")
        platform = build.lexer.process_word(stage.platform, outer) if stage.platform else ""
        own = tuple(_step(build, stage, i) for i in stage.instructions)
        found = build.dockerfile.find_base(base, stage.index)
        if found is not None:
            parent = made[found.index]
            declared = (s.instruction for s in parent.steps if s.instruction.keyword == "ONBUILD")
            triggers = tuple(_trigger(build, stage, i.args[0]) for i in declared)
            made.append(
                Timeline(
                    stage.index,
                    stage.name,
                    parent.base,
                    parent.platform,
                    parent.from_line,
                    parent.chain + (stage.index,),
                    parent.steps + triggers + own,
                )
            )
        else:
            made.append(Timeline(stage.index, stage.name, base, platform or build.platform, line, (stage.index,), own))
    return tuple(made)


def with_base_triggers(build: BuildInput, timeline: Timeline, triggers: Sequence[str]) -> Timeline:
    """The timeline with the base image's ONBUILD triggers run first (initOnBuildTriggers)."""
    if not triggers:
        return timeline
    stage = build.dockerfile.stages[timeline.chain[0]]
    steps = tuple(_trigger(build, stage, trigger) for trigger in triggers)
    return replace(timeline, steps=steps + timeline.steps)


def _trigger(build: BuildInput, stage: Stage, expression: str) -> Step:
    line = stage.from_instruction.line
    return _step(build, stage, parse_trigger(expression, build.dockerfile.file, line), True)


def target_index(build: BuildInput) -> int:
    """:returns: the index of the stage to build.

    :raises OfflineRebuildError: ``no-such-stage``.
    """
    stages = build.dockerfile.stages
    if not stages:
        raise OfflineRebuildError("dockerfile-syntax", "there is no FROM", file=build.dockerfile.file)
    if not build.target:
        return len(stages) - 1
    found = build.dockerfile.find_named(build.target)
    if found is None:
        names = ", ".join(s.name for s in stages if s.name) or "none with a name"
        raise OfflineRebuildError(
            "no-such-stage", f"there is no stage {build.target}; there are: {names}", file=build.dockerfile.file
        )
    return found.index


# ---------------------------------------------------------------------------------------------------------------------
# Dispatch


@dataclass
class State:
    """The state of a stage at one instruction.

    :param config: the ``config`` section of the image, as in the OCI image spec with Docker's additions.
    :param env: what expansion and RUN see: the config's Env and the ARGs in scope.
    :param args: ARGs declared so far, in order, with their values.
    :param cmd_set: whether CMD was given in this stage (an ENTRYPOINT then keeps it).
    :param stage: the stage of the last instruction; -1 before the first.
    :param inherited: how many of the ARGs are of a stage that this one goes on from (``FROM stage``).
    """

    config: Dict[str, Any]
    env: Dict[str, str] = field(default_factory=dict)
    args: List[Tuple[str, Optional[str]]] = field(default_factory=list)
    cmd_set: bool = False
    author: str = ""
    stage: int = -1
    inherited: int = 0

    def copy(self) -> "State":
        """:returns: an independent copy."""
        return replace(self, config=copy.deepcopy(self.config), env=dict(self.env), args=list(self.args))

    def enter(self, stage: int) -> None:
        """``FROM stage`` (dispatchState.init): ARGs and config go on, triggers and whether CMD was given do not."""
        if self.stage not in (-1, stage):
            self.cmd_set = False
            self.inherited = len(self.args)
            if self.config.get("OnBuild"):
                self.config["OnBuild"] = None
        self.stage = stage


@dataclass(frozen=True)
class Outcome:
    """What an instruction would leave.

    :param expanded: the instruction with its variables expanded.
    :param created_by: the texts that BuildKit's versions would write into the history; empty where it writes none.
    :param layer: whether the history entry has a layer.
    :param hidden: what matters and is not in the text (``heredoc``, ``--mount``, ...), in the operator's words.
    :param partial: of ``created_by``, those that do not show the values of ARGs inherited from another stage.
    """

    expanded: Instruction
    created_by: Tuple[str, ...]
    layer: bool
    hidden: Tuple[str, ...] = ()
    partial: Tuple[str, ...] = ()


def start_state(config: Mapping[str, Any]) -> State:
    """The state right after FROM (dispatchStages: PATH is always set, triggers are taken out)."""
    section = copy.deepcopy(dict(config.get("config") or {}))
    env_list = list(section.get("Env") or [])
    env = dict(split_env(item) for item in env_list)
    if "PATH" not in env:
        env_list.append("PATH=" + DEFAULT_PATH)
        env["PATH"] = DEFAULT_PATH
    section["Env"] = env_list
    if section.get("OnBuild"):
        section["OnBuild"] = None
    if str(section.get("WorkingDir") or "").startswith("/"):
        section["WorkingDir"] = join_workdir("/", section["WorkingDir"])
    return State(section, env, author=str(config.get("author") or ""))


def scratch_config(platform: str) -> Dict[str, Any]:
    """The config of ``FROM scratch`` (emptyImage)."""
    parts = (platform.split("/") + ["", ""])[:3]
    config: Dict[str, Any] = {"architecture": parts[1], "os": parts[0], "config": {"WorkingDir": "/"}}
    if parts[2]:
        config["variant"] = parts[2]
    return config


def split_env(item: str) -> Tuple[str, str]:
    """``K=V`` -> ``(K, V)``."""
    key, _, value = item.partition("=")
    return key, value


def dispatch(state: State, step: Step, build: BuildInput, outer: Mapping[str, str]) -> Outcome:
    """Apply one instruction to ``state`` (changed in place) and say what it leaves.

    :param outer: :func:`global_args`.
    """
    state.enter(step.stage)
    instruction = (
        expand(step.instruction, state.env, build.lexer) if step.instruction.keyword != "ARG" else (step.instruction)
    )
    handler = _HANDLERS.get(instruction.keyword)
    if handler is None:
        raise _error(build, instruction.line, f"unknown instruction: {instruction.keyword}")
    return handler(state, instruction, step, build, outer)  # type: ignore[no-any-return]


def _env(state: State, ins: Instruction, *_: Any) -> Outcome:
    for key, value in ins.pairs:
        set_env(state.config, key, value or "")
        state.env[key] = value or ""
    return Outcome(ins, ("ENV " + " ".join(f"{k}={v or ''}" for k, v in ins.pairs),), False)


def set_env(config: Dict[str, Any], key: str, value: str) -> None:
    """Set a key of ``Env`` in its place, or at the end (addEnv)."""
    env: List[str] = list(config.get("Env") or [])
    for index, item in enumerate(env):
        if split_env(item)[0] == key:
            env[index] = f"{key}={value}"
            break
    else:
        env.append(f"{key}={value}")
    config["Env"] = env


def _label(state: State, ins: Instruction, *_: Any) -> Outcome:
    labels = dict(state.config.get("Labels") or {})
    labels.update({k: v or "" for k, v in ins.pairs})
    state.config["Labels"] = labels
    return Outcome(ins, ("LABEL " + " ".join(f"{k}={v or ''}" for k, v in ins.pairs),), False)


def _arg(state: State, ins: Instruction, _step: Step, build: BuildInput, outer: Mapping[str, str]) -> Outcome:
    texts: List[str] = []
    declared: List[str] = []
    for key, default in ins.pairs:
        value: Optional[str] = None
        own = None if default is None else _default(default, key, state, ins, build)
        if key in build.args:
            value = build.args[key]
        elif own is not None:
            value = own
        else:
            value = outer.get(key)
        if value is not None:
            state.env[key] = value
        state.args.append((key, value))
        texts.append(key if value is None else f"{key}={value}")
        declared.append(key if own is None else f"{key}={own}")
    # Up to BuildKit 0.13 the entry has the default, later the value. What the value does shows in ENV and RUN.
    return Outcome(ins, tuple(dict.fromkeys(("ARG " + " ".join(texts), "ARG " + " ".join(declared)))), False)


def _default(default: str, key: str, state: State, ins: Instruction, build: BuildInput) -> Optional[str]:
    """An ARG's default, expanded. An error in it counts only where no build arg overrides it (dispatchArg)."""
    try:
        return build.lexer.process_word(default, state.env)
    except OfflineRebuildError as error:
        if key in build.args:
            return None
        raise OfflineRebuildError(
            error.code, error.message, "Give the variable a value (build arg or ENV), or correct the expression.",
            build.dockerfile.file, ins.line,
        ) from None  # fmt: skip


def shell_of(state: State) -> List[str]:
    """:returns: the shell that shell forms are given to."""
    return list(state.config.get("Shell") or ["/bin/sh", "-c"])


def _argv(state: State, ins: Instruction) -> List[str]:
    return list(ins.args) if ins.is_json else shell_of(state) + [" ".join(ins.args)]


def run_prefixes(state: State, own: bool = False) -> Tuple[str, ...]:
    """The ``|n K=V ...`` before a RUN: with the values as RUN sees them (newer), or as declared (older)."""
    seen: Dict[str, str] = {}
    declared: Dict[str, str] = {}
    args = state.args[state.inherited :] if own else state.args
    for key, value in args:
        seen[key] = state.env.get(key, value or "")
        declared[key] = value or ""
    forms = []
    for values in (seen, declared):
        forms.append(f"|{len(values)} " + "".join(f"{k}={v} " for k, v in values.items()) if values else "")
    # A derived Dockerfile does not declare an ARG again that an ENV hides: RUN sees the same with and without it.
    kept = {key: value for key, value in seen.items() if not hidden_by_env(state, key)}
    forms.append(f"|{len(kept)} " + "".join(f"{k}={v} " for k, v in kept.items()) if kept else "")
    # The classic builder: by name, and neither those that an ENV hides nor those without a value.
    named = sorted((key, value) for key, value in kept.items() if dict(args)[key] is not None)
    forms.append(f"|{len(named)} " + "".join(f"{k}={v} " for k, v in named) if named else "")
    if len(declared) != len(args):
        forms.append(f"|{len(args)} " + "".join(f"{k}={v or ''} " for k, v in args))
    return tuple(dict.fromkeys(forms))


def hidden_by_env(state: State, key: str) -> bool:
    """:returns: whether what RUN sees under an ARG's name is the value that ENV gave it."""
    return f"{key}={state.env.get(key, '')}" in (state.config.get("Env") or [])


def _run(state: State, ins: Instruction, *_: Any) -> Outcome:
    hidden: List[str] = []
    if ins.heredocs:
        first = ins.heredocs[0]
        data = first.chomped() if first.chomp else first.content
        alone = bool(ins.args) and parse_heredoc(ins.args[0]) is not None
        if alone and data.startswith("#!"):
            hidden.append("the heredoc's content")
            argv = shell_of(state) + ["/dev/pipes/" + first.name]
        elif alone:
            argv = shell_of(state) + [data]
        else:
            text = " ".join(ins.args)
            for doc in ins.heredocs:
                text += "\n" + doc.content + doc.name
            argv = shell_of(state) + [text]
    else:
        argv = _argv(state, ins)
        if ins.is_json and len(argv) > 1:
            hidden.append("where the words of its exec form end")
    if ins.is_json and len(ins.args) > 1:
        hidden.append("how its words are divided")
    for flag in ("mount", "network", "security", "device"):
        if ins.flag(flag) is not None:
            hidden.append(f"--{flag}")
    command = " ".join(argv)
    texts = tuple("RUN " + prefix + command + " # buildkit" for prefix in run_prefixes(state))
    partial: Tuple[str, ...] = ()
    if state.inherited:  # engines up to 26.1 at least show the ARGs of the stage itself only
        own = ("RUN " + prefix + command + " # buildkit" for prefix in run_prefixes(state, own=True))
        partial = tuple(text for text in own if text not in texts)
    return Outcome(ins, texts + partial, True, tuple(hidden), partial)


def _copy(_state: State, ins: Instruction, step: Step, *_: Any) -> Outcome:
    flags = " --parents" if ins.flag_bool("parents") else ""
    for name in ("chown", "chmod"):
        if ins.flag(name):
            flags += f" --{name}={ins.flag(name)}"
    words = "".join(f" {source}" for source in ins.sources) + "".join(f" <<{doc.name}" for doc in ins.files)
    hidden = tuple(f"--{name}" for name in ("from", "exclude", "checksum", "keep-git-dir") if ins.flag(name))
    forms = [f"{ins.keyword}{flags}{words} {ins.dest} # buildkit"]
    if flags and step.kind in ("context", "stage"):
        # BuildKit up to 0.12 left the flags out; owners and modes show in the files, where these are compared.
        forms.append(f"{ins.keyword}{words} {ins.dest} # buildkit")
    return Outcome(ins, tuple(forms), True, hidden)


def join_workdir(current: str, path: str) -> str:
    """:returns: the path of a WORKDIR: an absolute one as it is written, a relative one joined (system.NormalizePath).

    Tried on 26.1: ``WORKDIR /app/`` is ``/app/`` in config and history, ``/a/../b`` stays, ``x//y`` becomes ``/x/y``.
    """
    import posixpath

    if path.startswith("/"):
        return path
    return posixpath.normpath(posixpath.join("/", current or "/", path)).replace("//", "/")


def _workdir(state: State, ins: Instruction, *_: Any) -> Outcome:
    path = join_workdir(str(state.config.get("WorkingDir") or "/"), ins.args[0])
    state.config["WorkingDir"] = path
    return Outcome(ins, ("WORKDIR " + path,), path != "/")


def _cmd(state: State, ins: Instruction, *_: Any) -> Outcome:
    argv = _argv(state, ins)
    state.config["Cmd"] = argv
    state.config["ArgsEscaped"] = True
    state.cmd_set = True
    return Outcome(ins, ("CMD " + go_quote(argv),), False)


def _entrypoint(state: State, ins: Instruction, *_: Any) -> Outcome:
    argv = _argv(state, ins)
    state.config["Entrypoint"] = argv
    if not state.cmd_set:
        state.config["Cmd"] = None
    return Outcome(ins, ("ENTRYPOINT " + go_quote(argv),), False)


def _healthcheck(state: State, ins: Instruction, *_: Any) -> Outcome:
    spec = ins.healthcheck
    value: Dict[str, Any] = {"Test": list(spec.test)}
    times = (
        ("Interval", spec.interval),
        ("Timeout", spec.timeout),
        ("StartPeriod", spec.start_period),
        ("StartInterval", spec.start_interval),
    )
    value.update({key: number for key, number in times if number})
    if spec.retries:
        value["Retries"] = spec.retries
    state.config["Healthcheck"] = value
    test = go_quote(list(spec.test))
    spoken = [f'"{go_duration(number)}"' for _, number in times]
    retries = go_rune(spec.retries)
    named = " ".join(f"{key}:{go_duration(number)}" for key, number in times)
    texts = (
        f"HEALTHCHECK &{{{test} {' '.join(spoken)} {retries}}}",
        f"HEALTHCHECK &{{{test} {' '.join(spoken[:3])} {retries}}}",
        f"HEALTHCHECK {{Test:{go_list(spec.test)} {named} Retries:{spec.retries}}}",
    )
    return Outcome(ins, texts[:1] + texts[2:] if spec.start_interval else texts, False)


def _expose(state: State, ins: Instruction, _step: Step, build: BuildInput, *_: Any) -> Outcome:
    ports: List[str] = []
    for text in ins.args:
        ports.extend(_ports(text, build, ins.line))
    exposed = dict(state.config.get("ExposedPorts") or {})
    exposed.update({port: {} for port in ports})
    state.config["ExposedPorts"] = exposed
    unique = list(dict.fromkeys(ports))
    texts = (
        "EXPOSE map[" + " ".join(f"{p}:{{}}" for p in sorted(unique)) + "]",
        "EXPOSE " + go_list(ports),
        "EXPOSE " + go_list(sorted(unique)),
    )
    return Outcome(ins, tuple(dict.fromkeys(texts)), False)


def _ports(text: str, build: BuildInput, line: int) -> Iterator[str]:
    spec, _, proto = text.partition("/")
    spec = spec.rsplit(":", 1)[-1]
    first, _, last = spec.partition("-")
    try:
        low, high = int(first), int(last or first)
    except ValueError:
        raise _error(build, line, f"invalid port {text}") from None
    if not 0 <= low <= high <= 65535:
        raise _error(build, line, f"invalid port {text}")
    for number in range(low, high + 1):
        yield f"{number}/{(proto or 'tcp').lower()}"


def _user(state: State, ins: Instruction, *_: Any) -> Outcome:
    state.config["User"] = ins.args[0]
    return Outcome(ins, (f"USER {ins.args[0]}",), False)


def _volume(state: State, ins: Instruction, *_: Any) -> Outcome:
    volumes = dict(state.config.get("Volumes") or {})
    volumes.update({path: {} for path in ins.args})
    state.config["Volumes"] = volumes
    return Outcome(ins, ("VOLUME " + go_list(ins.args),), False)


def _stopsignal(state: State, ins: Instruction, *_: Any) -> Outcome:
    state.config["StopSignal"] = ins.args[0]
    return Outcome(ins, (f"STOPSIGNAL {ins.args[0]}",), False)


def _shell(state: State, ins: Instruction, *_: Any) -> Outcome:
    state.config["Shell"] = list(ins.args)
    return Outcome(ins, ("SHELL " + go_list(ins.args),), False)


def _maintainer(state: State, ins: Instruction, *_: Any) -> Outcome:
    state.author = " ".join(ins.args)
    return Outcome(ins, ("MAINTAINER " + state.author,), False)


def _onbuild(state: State, ins: Instruction, *_: Any) -> Outcome:
    state.config["OnBuild"] = list(state.config.get("OnBuild") or []) + [ins.args[0]]
    return Outcome(ins, (), False)


_HANDLERS: Mapping[str, Any] = {
    "ENV": _env, "LABEL": _label, "ARG": _arg, "RUN": _run, "COPY": _copy, "ADD": _copy, "WORKDIR": _workdir,
    "CMD": _cmd, "ENTRYPOINT": _entrypoint, "HEALTHCHECK": _healthcheck, "EXPOSE": _expose, "USER": _user,
    "VOLUME": _volume, "STOPSIGNAL": _stopsignal, "SHELL": _shell, "MAINTAINER": _maintainer, "ONBUILD": _onbuild,
}  # fmt: skip


def canonical(instruction: Instruction) -> str:
    """The instruction's meaning as text, for records: keyword, flags, words and heredocs, unexpanded."""
    return json.dumps(
        [
            instruction.keyword,
            list(instruction.flags),
            list(instruction.args),
            instruction.is_json,
            [[d.name, d.content, d.expand, d.chomp] for d in instruction.heredocs],
        ],
        ensure_ascii=True,
    )

"""What one Dockerfile instruction says: BuildKit's checks, its reading of flags and words, and variable expansion.

The rules are those of moby/buildkit, ``frontend/dockerfile/instructions`` (parse.go, commands.go, bflag.go,
commands_run*.go) and, for what is expanded, ``frontend/dockerfile/dockerfile2llb/convert.go``. The reader that makes
the nodes is :mod:`.dockerfile`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Callable, Dict, Iterable, Iterator, List, Mapping, NoReturn, Optional, Sequence, Tuple

from .errors import OfflineRebuildError
from .shellword import Lexer, lower, shown, trim_space, upper

__all__ = [
    "HealthcheckSpec", "Heredoc", "Instruction", "Mount", "Node", "expand", "expandable", "instruction_of",
    "parse_heredoc", "syntax_error",
]  # fmt: skip

Pairs = Tuple[Tuple[str, Optional[str]], ...]

_BOOL, _ONE, _MANY = "bool", "one", "many"
#: The flags of each instruction with their kind; an instruction that is not here takes none.
FLAGS: Mapping[str, Mapping[str, str]] = {
    "ADD": {
        "chown": _ONE, "chmod": _ONE, "link": _BOOL, "keep-git-dir": _BOOL, "checksum": _ONE, "unpack": _BOOL,
        "exclude": _MANY,
    },
    "COPY": {"chown": _ONE, "from": _ONE, "chmod": _ONE, "link": _BOOL, "exclude": _MANY, "parents": _BOOL},
    "FROM": {"platform": _ONE},
    "HEALTHCHECK": {
        "interval": _ONE, "timeout": _ONE, "start-period": _ONE, "start-interval": _ONE, "retries": _ONE,
    },
    "RUN": {"mount": _MANY, "network": _ONE, "security": _ONE, "device": _MANY},
}  # fmt: skip
#: Instructions whose flags BuildKit never looks at (parseArg, parseStopSignal).
_FLAGS_IGNORED = frozenset({"ARG", "STOPSIGNAL"})
_RUN_VALUES = {"network": ("default", "none", "host"), "security": ("insecure", "sandbox")}
#: Which parts BuildKit expands (the Expand methods of commands.go, dispatchArg, dispatchExpose, buildDispatchStates).
_EXPANDED: Mapping[str, Tuple[str, ...]] = {
    "ADD": ("--chown", "--chmod", "--checksum", "sources", "dest", "files"),
    "ARG": ("values",),
    "COPY": ("--chown", "--chmod", "sources", "dest", "files"),
    "ENV": ("keys", "values"),
    "EXPOSE": ("args",),
    "FROM": ("base", "--platform"),
    "LABEL": ("keys", "values"),
    "RUN": ("--mount",),
    "STOPSIGNAL": ("args",),
    "USER": ("args",),
    "VOLUME": ("args",),
    "WORKDIR": ("args",),
}
_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")
_HEREDOC = re.compile(r"([0-9]*)<<(-?)")
_MAX_UINT = 2**64 - 1


@dataclass(frozen=True)
class Heredoc:
    """One heredoc.

    :param name: the word that ends it.
    :param content: its lines, with their line ends, as they are in the file.
    :param expand: whether its name was not quoted (COPY and ADD then expand the content).
    :param chomp: whether it began with ``<<-``.
    :param fd: the file descriptor before ``<<``; 0 if there is none.
    """

    name: str
    content: str = ""
    expand: bool = True
    chomp: bool = False
    fd: int = 0

    def chomped(self) -> str:
        """:returns: the content that is used: without the tabs at line starts, if it began with ``<<-``."""
        return re.sub(r"(?m)^\t+", "", self.content) if self.chomp else self.content


@dataclass(frozen=True)
class Node:
    """What the reader makes of one instruction before it is checked (parser.go, type Node).

    :param value: the keyword as written.
    :param text: the line with its continuations joined.
    :param words: the arguments as the keyword's own grammar splits them; name, value, separator for ENV and LABEL.
    :param sub: the node of an ONBUILD trigger.
    """

    value: str
    text: str
    flags: Tuple[str, ...]
    words: Tuple[str, ...]
    is_json: bool = False
    sub: Optional["Node"] = None
    heredocs: Tuple[Heredoc, ...] = ()
    line: int = 0
    end_line: int = 0

    def all_words(self) -> Tuple[str, ...]:
        """:returns: the words, those of a trigger after its keyword (nodeArgs)."""
        return self.words if self.sub is None else (self.sub.value, *self.sub.all_words())


@dataclass(frozen=True)
class Mount:
    """A ``RUN --mount``, not checked further than BuildKit checks it when it reads the file.

    :param type: ``bind`` (the default), ``cache``, ``tmpfs``, ``secret`` or ``ssh``; or text with variables.
    :param fields: all keys in lower case with their values; a key without a value has ``"true"``.
    """

    type: str
    source: str
    target: str
    from_: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HealthcheckSpec:
    """A HEALTHCHECK as the image config holds it.

    :param test: ``("NONE",)``, ``("CMD", word, ...)`` or ``("CMD-SHELL", text)``.
    :param interval: nanoseconds, as the other times; 0 where the flag is not given.
    """

    test: Tuple[str, ...]
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True)
class Instruction:
    """One checked instruction.

    :param keyword: in upper case.
    :param line: first line, 1-based.
    :param end_line: last line, heredocs included.
    :param text: the line with its continuations joined and the comments inside it left out.
    :param raw: the source lines as they are, heredocs included.
    :param flags: as BuildKit reads them (quotes and escapes gone), e.g. ``--from=x``.
    :param args: RUN, CMD, ENTRYPOINT, SHELL: the array of the JSON form, else one string (or none). COPY, ADD: all
        words. ENV, LABEL: name, value, separator (``=`` or ``""``) in turn. EXPOSE: sorted, as BuildKit does. VOLUME:
        trimmed. ONBUILD: one string, the trigger with its heredocs as the image config holds it. Others: the words.
    :param is_json: whether the JSON form was used.
    :param heredocs: those that the reader took lines for.
    :param pairs: ENV, LABEL, ARG: names and values as written; ``None`` for an ARG without a value.
    :param sources: COPY, ADD: the paths, without heredocs.
    :param dest: COPY, ADD: the destination.
    :param files: COPY, ADD: the files made from heredocs (content already chomped). They differ from ``heredocs``
        only in odd cases: a name used twice, ``<<`` in the JSON form, a quoted name with a space.
    :param file: the Dockerfile, for errors.
    """

    keyword: str
    line: int
    end_line: int
    text: str
    raw: str
    flags: Tuple[str, ...] = ()
    args: Tuple[str, ...] = ()
    is_json: bool = False
    heredocs: Tuple[Heredoc, ...] = ()
    pairs: Pairs = ()
    sources: Tuple[str, ...] = ()
    dest: str = ""
    files: Tuple[Heredoc, ...] = ()
    file: str = "Dockerfile"

    def flag_values(self, name: str) -> Tuple[str, ...]:
        """:returns: the values of every ``--name=value``, in order."""
        split = (flag[2:].partition("=") for flag in self.flags)
        return tuple(value for key, _, value in split if key == name)

    def flag(self, name: str) -> Optional[str]:
        """:returns: the last value of ``--name``; ``""`` if it has none; ``None`` if it is not given."""
        values = self.flag_values(name)
        return values[-1] if values else None

    def flag_bool(self, name: str) -> bool:
        """:returns: whether the boolean flag ``--name`` is given and not ``false``."""
        value = self.flag(name)
        return value is not None and lower(value) in ("", "true")

    @property
    def mounts(self) -> Tuple[Mount, ...]:
        """:returns: the mounts of a RUN, in order."""
        return tuple(_mount(text) for text in self.flag_values("mount")) if self.keyword == "RUN" else ()

    @property
    def onbuild(self) -> Optional["Instruction"]:
        """The trigger of an ONBUILD, read as BuildKit reads it when the image is used as a base.

        :raises OfflineRebuildError: ``dockerfile-syntax``: BuildKit checks a trigger only there, and so do we.
        """
        if self.keyword != "ONBUILD":
            return None
        from .dockerfile import parse_trigger

        return parse_trigger(self.args[0], self.file, self.line, self.end_line)

    @property
    def healthcheck(self) -> HealthcheckSpec:
        """:returns: the spec of a HEALTHCHECK."""
        return _healthcheck(self)


def syntax_error(message: str, file: str, line: int) -> OfflineRebuildError:
    """:returns: the error for a Dockerfile that BuildKit would refuse."""
    return OfflineRebuildError("dockerfile-syntax", shown(message), "Correct the Dockerfile at this line.", file, line)


def parse_heredoc(word: str) -> Optional[Heredoc]:
    """The heredoc that ``word`` opens, without its content (ParseHeredoc).

    :raises OfflineRebuildError: ``dockerfile-expansion`` for a name with a quote that is not closed.
    """
    found = _HEREDOC.match(word)
    name = word[found.end() :].lstrip("\t\n\f\r ") if found else ""
    if found is None or not name or "<" in name:
        return None
    words = Lexer(skip_unset=True).process_words(name, {})
    if len(words) != 1:
        return None
    raw = Lexer(skip_unset=True, raw_quotes=True).process_words(name, {})
    if len(raw) != 1:
        raise OfflineRebuildError("dockerfile-expansion", f"unclear name of a heredoc: {shown(name)}")
    digits = found.group(1).lstrip("0")
    fd = _MAX_UINT if len(digits) > 20 else min(int(digits or "0"), _MAX_UINT)
    return Heredoc(words[0], expand=_quotes(words[0]) == _quotes(raw[0]), chomp=bool(found.group(2)), fd=fd)


def _quotes(text: str) -> int:
    return text.count("'") + text.count('"')


# ---------------------------------------------------------------------------------------------------------------------
# From node to instruction


class _Draft:
    """An instruction in the making: its node, and errors that name its place."""

    def __init__(self, node: Node, raw: str, file: str, escape: str) -> None:
        self.node = node
        self.file = file
        self.escape = escape
        self.keyword = upper(lower(node.value))
        self.words = node.all_words()
        self.made = Instruction(
            self.keyword, node.line, node.end_line, node.text, raw, node.flags, self.words, node.is_json,
            node.heredocs, file=file,
        )  # fmt: skip

    def fail(self, message: str) -> NoReturn:
        raise syntax_error(message, self.file, self.node.line)

    def need_one(self) -> None:
        if len(self.words) != 1:
            self.fail(f"{self.keyword} requires exactly one argument")

    def need_some(self) -> None:
        if not self.words:
            self.fail(f"{self.keyword} requires at least one argument")

    def check_flags(self) -> None:
        """BFlags.Parse: known flags, each with a value that fits its kind, once unless it may repeat."""
        known = FLAGS.get(self.keyword, {})
        seen = set()
        for flag in self.node.flags:
            name, equals, value = flag[2:].partition("=")
            kind = known.get(name)
            if kind is None:
                self.fail(f"unknown flag: --{name}")
            if name in seen and kind != _MANY:
                self.fail(f"duplicate flag specified: --{name}")
            seen.add(name)
            if (kind != _BOOL and not equals) or (kind == _BOOL and equals and not value):
                self.fail(f"missing a value on flag: --{name}")
            if kind == _BOOL and lower(value) not in ("", "true", "false"):
                self.fail(f"expecting boolean value for flag --{name}, not: {value}")


def instruction_of(node: Node, raw: str, file: str, escape: str = "\\") -> Instruction:
    """The checked instruction (ParseInstruction).

    :param raw: the source lines of the node.
    :param escape: the file's escape character.
    :raises OfflineRebuildError: ``dockerfile-syntax``.
    """
    draft = _Draft(node, raw, file, escape)
    check = _CHECKS.get(draft.keyword)
    if check is None:
        draft.fail(f"unknown instruction: {node.value}")
    return check(draft)


def _one_word(draft: _Draft) -> Instruction:
    draft.need_one()
    if draft.keyword not in _FLAGS_IGNORED:
        draft.check_flags()
    return draft.made


def _shell_form(draft: _Draft) -> Instruction:
    draft.check_flags()
    return draft.made


def _run(draft: _Draft) -> Instruction:
    draft.check_flags()
    made = draft.made
    for name, allowed in _RUN_VALUES.items():
        value = made.flag(name)
        if value is not None and value not in allowed:
            draft.fail(f"invalid --{name}: {value!r}")
    try:
        for text in made.flag_values("device"):
            _check_device(text)
        for text in made.flag_values("mount"):
            _check_mount_from(text)
    except ValueError as error:
        draft.fail(str(error))
    return made


def _shell(draft: _Draft) -> Instruction:
    draft.check_flags()
    draft.need_some()
    if not draft.node.is_json:
        draft.fail("SHELL requires the arguments to be in JSON form")
    return draft.made


def _pairs(draft: _Draft) -> Instruction:
    draft.check_flags()
    draft.need_some()
    names, values = draft.words[0::3], draft.words[1::3]
    if "" in names:
        draft.fail(f"{draft.keyword} names can not be blank")
    return replace(draft.made, pairs=tuple(zip(names, values)))


def _arg(draft: _Draft) -> Instruction:
    draft.need_some()
    pairs: List[Tuple[str, Optional[str]]] = []
    for word in draft.words:
        name, equals, value = word.partition("=")
        if equals and not name:
            draft.fail("ARG names can not be blank")
        pairs.append((name, value if equals else None))
    return replace(draft.made, pairs=tuple(pairs))


def _copy(draft: _Draft) -> Instruction:
    if len(draft.words) < 2:
        draft.fail(
            f"{draft.keyword} requires at least two arguments, but only one was provided. "
            "Destination could not be determined"
        )
    draft.check_flags()
    _check_from(draft)
    *words, dest = draft.words
    if _opened(dest) is not None:
        draft.fail(f"{draft.keyword} cannot accept a heredoc as a destination")
    content = {heredoc.name: heredoc.content for heredoc in draft.node.heredocs}
    sources: List[str] = []
    files: List[Heredoc] = []
    for word in words:
        opened = _opened(word)
        if opened is None:
            sources.append(word)
        else:
            text = replace(opened, content=content.get(opened.name, "")).chomped()
            files.append(replace(opened, content=text, chomp=False))
    return replace(draft.made, sources=tuple(sources), dest=dest, files=tuple(files))


def _check_from(draft: _Draft) -> None:
    """convert.go, toCommand: ``--from`` must mean itself."""
    origin = draft.made.flag("from") or ""
    try:
        same = Lexer(draft.escape).process_word(origin, {}) == origin
    except OfflineRebuildError as error:
        draft.fail(error.message)
    if not same:
        draft.fail("variable expansion is not supported for --from, define a new stage with FROM instead")


def _opened(word: str) -> Optional[Heredoc]:
    if "<<" not in word:
        return None
    try:
        return parse_heredoc(word)
    except OfflineRebuildError:
        return None


def _from(draft: _Draft) -> Instruction:
    words = draft.words
    if len(words) == 3 and len(words[1]) == 2 and words[1].casefold() == "as":
        if not _STAGE_NAME.fullmatch(lower(words[2])):
            draft.fail(f"invalid name for build stage: {words[2]!r}, name can't start with a number or contain symbols")
    elif len(words) != 1:
        draft.fail("FROM requires either one or three arguments")
    draft.check_flags()
    return draft.made


def _onbuild(draft: _Draft) -> Instruction:
    draft.need_some()
    draft.check_flags()
    trigger = upper(trim_space(draft.words[0]))
    if trigger == "ONBUILD":
        draft.fail("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        draft.fail(f"{trigger} isn't allowed as an ONBUILD trigger")
    text = re.sub(r"(?ai)\A[\t\n\f\r ]*ONBUILD[\t\n\f\r ]*", "", draft.node.text)
    text += "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in draft.node.heredocs)
    return replace(draft.made, args=(text,))


def _expose(draft: _Draft) -> Instruction:
    draft.need_some()
    draft.check_flags()
    return replace(draft.made, args=tuple(sorted(draft.words, key=lambda w: w.encode("utf-8", "surrogateescape"))))


def _volume(draft: _Draft) -> Instruction:
    draft.need_some()
    draft.check_flags()
    words = tuple(trim_space(word) for word in draft.words)
    if "" in words:
        draft.fail("VOLUME specified can not be an empty string")
    return replace(draft.made, args=words)


def _health(draft: _Draft) -> Instruction:
    draft.need_some()
    kind, words = upper(draft.words[0]), draft.words[1:]
    if kind == "NONE":
        if words:
            draft.fail("HEALTHCHECK NONE takes no arguments")
        return draft.made
    draft.check_flags()
    if kind != "CMD":
        draft.fail(f"Unknown type {kind!r} in HEALTHCHECK (try CMD)")
    if not words:
        draft.fail("Missing command after HEALTHCHECK CMD")
    try:
        _healthcheck(draft.made)
    except ValueError as error:
        draft.fail(str(error))
    return draft.made


_CHECKS: Mapping[str, Callable[[_Draft], Instruction]] = {
    "ADD": _copy, "ARG": _arg, "CMD": _shell_form, "COPY": _copy, "ENTRYPOINT": _shell_form, "ENV": _pairs,
    "EXPOSE": _expose, "FROM": _from, "HEALTHCHECK": _health, "LABEL": _pairs, "MAINTAINER": _one_word,
    "ONBUILD": _onbuild, "RUN": _run, "SHELL": _shell, "STOPSIGNAL": _one_word, "USER": _one_word, "VOLUME": _volume,
    "WORKDIR": _one_word,
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# HEALTHCHECK

_UNITS = {
    "ns": 1, "us": 10**3, "\xb5s": 10**3, "\u03bcs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9,
    "h": 3600 * 10**9,
}  # fmt: skip
_DURATION_PART = re.compile(r"([0-9]*)(?:(\.)([0-9]*))?([^.0-9]+)")


def _healthcheck(made: Instruction) -> HealthcheckSpec:
    kind, words = upper(made.args[0]), made.args[1:]
    if kind == "NONE":
        return HealthcheckSpec(("NONE",))
    test = ("CMD", *words) if made.is_json else ("CMD-SHELL", " ".join(words))
    return HealthcheckSpec(
        test,
        interval=_interval(made, "interval"),
        timeout=_interval(made, "timeout"),
        start_period=_interval(made, "start-period"),
        start_interval=_interval(made, "start-interval"),
        retries=_retries(made.flag("retries") or ""),
    )


def _retries(text: str) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text) or not -(2**31) <= int(text) < 2**31:
        raise ValueError(f"invalid --retries: {text!r}")
    if int(text) < 0:
        raise ValueError(f"--retries cannot be negative ({int(text)})")
    return int(text)


def _interval(made: Instruction, name: str) -> int:
    """parseOptInterval: nothing, zero, or at least one millisecond."""
    text = made.flag(name) or ""
    value = parse_duration(text) if text else 0
    if value and value < 10**6:
        raise ValueError(f"Interval {name!r} cannot be less than 1ms")
    return value


def parse_duration(text: str) -> int:
    """Go's time.ParseDuration.

    :returns: nanoseconds.
    :raises ValueError: for what Go refuses.
    """
    sign, rest = (-1 if text[:1] == "-" else 1), (text[1:] if text[:1] in ("-", "+") else text)
    if rest == "0":
        return 0
    total, pos = 0, 0
    while pos < len(rest):
        part = _DURATION_PART.match(rest, pos)
        if part is None or not (part.group(1) or part.group(3)) or part.group(4) not in _UNITS:
            raise ValueError(f"invalid duration {text!r}")
        pos = part.end()
        if len(part.group(1).lstrip("0")) > 19:
            raise ValueError(f"invalid duration {text!r}")
        unit = _UNITS[part.group(4)]
        total += int(part.group(1).lstrip("0") or "0") * unit + _fraction(part.group(3) or "", unit)
        if total > 2**63:
            raise ValueError(f"invalid duration {text!r}")
    if not rest or (total == 2**63 and sign > 0):
        raise ValueError(f"invalid duration {text!r}")
    return sign * total


def _fraction(digits: str, unit: int) -> int:
    value, scale = 0, 1.0
    for digit in digits:
        if value > (2**63 - 1) // 10 or value * 10 + int(digit) > 2**63:
            break
        value, scale = value * 10 + int(digit), scale * 10
    return int(float(value) * (float(unit) / scale))


# ---------------------------------------------------------------------------------------------------------------------
# RUN --mount and --device

_MOUNT_KEYS = frozenset(
    "type from source src target dst destination readonly ro readwrite rw required size id sharing mode uid gid env"
    .split()
)  # fmt: skip
#: docker/go-units, RAMInBytes.
_SIZE = re.compile(r"\+?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)? ?(?:[bB]|[kKmMgGtTpP](?:[iI]?[bB])?)?")
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def _csv(line: str) -> List[str]:
    """The fields of one line (vendored tonistiigi/go-csvvalue, Fields).

    :raises ValueError: nothing at all, or a quote out of place.
    """
    for end in ("\r\n", "\n"):
        if line.endswith(end):
            line = line[: -len(end)]
            break
    if not line:
        raise ValueError("failed to parse csv mounts: EOF")
    fields: List[str] = []
    pos = 0
    while True:
        if line[pos : pos + 1] == '"':
            found = re.compile(r'"((?:[^"]|"")*)"(?=,|\Z)').match(line, pos)
            if found is None:
                raise ValueError(f"failed to parse csv: a quote out of place in {line!r}")
            fields.append(found.group(1).replace('""', '"'))
            pos = found.end()
        else:
            end_pos = line.find(",", pos)
            text = line[pos:] if end_pos < 0 else line[pos:end_pos]
            if '"' in text:
                raise ValueError(f"failed to parse csv: a quote out of place in {line!r}")
            fields.append(text)
            pos += len(text)
        if pos >= len(line):
            return fields
        pos += 1


def _csv_text(fields: Iterable[str]) -> str:
    return ",".join('"' + f.replace('"', '""') + '"' if '"' in f or "," in f else f for f in fields)


def _mount_fields(text: str) -> Iterator[Tuple[str, Optional[str]]]:
    for item in _csv(text):
        key, equals, value = item.partition("=")
        yield lower(key), value if equals else None


def _mount(text: str) -> Mount:
    fields: Dict[str, str] = {}
    for key, value in _mount_fields(text):
        fields[_ALIASES.get(key, key)] = "true" if value is None else value
    kind = fields.get("type", "bind")
    return Mount(
        kind if "$" in kind else lower(kind), fields.get("source", ""), fields.get("target", ""),
        fields.get("from", ""), fields,
    )  # fmt: skip


def _check_mount_from(text: str) -> None:
    """What BuildKit checks of a mount when it reads the file: a ``$`` in ``from``, unless it is the last character."""
    for key, value in _mount_fields(text):
        if key == "from" and value is not None and "$" in value[:-1]:
            raise ValueError("'from' doesn't support variable expansion, define alias stage instead")


_ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}


def _expanded_mount(text: str, word: Callable[[str], str]) -> str:
    """The mount with its values expanded, checked as BuildKit does it then (parseMount with an expander).

    :raises ValueError: for what BuildKit refuses.
    """
    fields = [(key, None if value is None else word(value)) for key, value in _mount_fields(text)]
    kind = "bind"
    for key, value in fields:
        kind = _checked_field(kind, key, value)
    _check_mount(kind, {_ALIASES.get(key, key): value or "" for key, value in fields})
    return _csv_text(key if value is None else f"{key}={value}" for key, value in fields)


def _checked_field(kind: str, key: str, value: Optional[str]) -> str:
    """One field; it returns the mount's type as it is known after it."""
    if value is None and key not in ("readonly", "ro", "readwrite", "rw", "required"):
        raise ValueError(f"invalid field {key!r} must be a key=value pair")
    if key not in _MOUNT_KEYS:
        raise ValueError(f"unexpected key {key!r} in a mount")
    if (key == "required" and kind not in ("secret", "ssh")) or (key == "size" and kind != "tmpfs"):
        raise ValueError(f"unexpected key {key!r} for mount type {kind!r}")
    if value is None:
        return kind
    if key == "type":
        if lower(value) not in ("bind", "cache", "tmpfs", "secret", "ssh"):
            raise ValueError(f"unsupported mount type {value!r}")
        return lower(value)
    if not _fits(key, value):
        raise ValueError(f"invalid value for {key}: {value}")
    return kind


def _fits(key: str, value: str) -> bool:
    if key in ("readonly", "ro", "readwrite", "rw", "required"):
        return value in _TRUE or value in _FALSE
    if key == "sharing":
        return lower(value) in ("shared", "private", "locked")
    if key == "mode":
        return bool(re.fullmatch(r"[0-7]{1,30}", value)) and int(value, 8) < 2**32
    if key in ("uid", "gid"):
        return bool(re.fullmatch(r"[0-9]{1,30}", value)) and int(value) < 2**32
    if key == "size":
        return bool(_SIZE.fullmatch(value))
    return True


def _check_mount(kind: str, fields: Mapping[str, str]) -> None:
    if kind not in ("secret", "ssh", "cache"):
        for key in ("mode", "uid", "gid"):
            if key in fields:
                raise ValueError(f"{key} not allowed for {kind!r} type mounts")
    if kind == "secret":
        if fields.get("from"):
            raise ValueError("secret mount should not have a from")
        if not (fields.get("source") or fields.get("target") or fields.get("id")):
            raise ValueError("invalid secret mount. one of source, target required")
        if fields.get("source") and fields.get("id"):
            raise ValueError("both source and id can't be set")
    if fields.get("sharing") and kind != "cache":
        raise ValueError(f"invalid cache sharing set for {kind} mount")


def _check_device(text: str) -> None:
    """ParseDevice: a name, and ``required``."""
    name = ""
    for item in _csv(text):
        key, equals, value = item.partition("=")
        key = lower(key)
        if key == "required":
            if equals and value not in _TRUE and value not in _FALSE:
                raise ValueError(f"invalid value for {key}: {value}")
        elif key == "name" and equals:
            if name:
                raise ValueError(f"device name already set to {name}")
            name = value
        elif name:
            raise ValueError(f"unexpected field {item!r} in a device")
        else:
            name = item


# ---------------------------------------------------------------------------------------------------------------------
# Expansion


def expandable(keyword: str) -> Tuple[str, ...]:
    """Which parts of an instruction BuildKit expands.

    :returns: of ``keys``, ``values`` (of :attr:`Instruction.pairs`), ``sources``, ``dest``, ``files`` (content, where
        the heredoc's name is not quoted), ``args``, ``base`` and flags; nothing for RUN's command, CMD, ENTRYPOINT,
        HEALTHCHECK, SHELL, MAINTAINER, ONBUILD, ``COPY --from`` and ``--exclude``.
    """
    return _EXPANDED.get(keyword, ())


def expand(instruction: Instruction, env: Mapping[str, str], lexer: Lexer) -> Instruction:
    """A copy with the parts expanded that BuildKit expands (:func:`expandable`).

    ``text``, ``raw``, and the heredocs of RUN stay. The heredocs of COPY and ADD, and ``files``, hold what is written
    to the image: chomped, expanded, with ``chomp`` and ``expand`` off. FROM expects the ARGs before the first FROM.

    :param env: what is set at this point: the image's environment and the ARGs in scope.
    :param lexer: with the file's escape character.
    :raises OfflineRebuildError: ``dockerfile-expansion``; ``dockerfile-syntax`` for a mount that is not valid.
    """
    if instruction.keyword not in _EXPANDED:
        return instruction
    try:
        return _expand(instruction, env, lexer)
    except OfflineRebuildError as error:
        raise OfflineRebuildError(
            error.code, error.message, "Give the variable a value (build arg or ENV), or correct the expression.",
            instruction.file, instruction.line,
        ) from None  # fmt: skip
    except ValueError as error:
        raise syntax_error(str(error), instruction.file, instruction.line) from None


def _expand(ins: Instruction, env: Mapping[str, str], lexer: Lexer) -> Instruction:
    parts = _EXPANDED[ins.keyword]

    def word(text: str) -> str:
        return lexer.process_word(text, env)

    made = replace(ins, flags=tuple(_expanded_flag(flag, parts, word) for flag in ins.flags))
    if ins.keyword in ("ENV", "LABEL"):
        pairs = tuple((word(name), word(value or "")) for name, value in ins.pairs)
        words = [text for (name, value), sep in zip(pairs, ins.args[2::3]) for text in (name, value, sep)]
        return replace(made, pairs=pairs, args=tuple(words))
    if ins.keyword == "ARG":
        args = tuple((name, None if value is None else word(value)) for name, value in ins.pairs)
        return replace(made, pairs=args, args=tuple(n if v is None else f"{n}={v}" for n, v in args))
    if ins.keyword in ("COPY", "ADD"):
        return _expanded_copy(made, env, word)
    if ins.keyword == "EXPOSE":
        ports: Sequence[str] = [port for text in ins.args for port in lexer.process_words(text, env)]
        return replace(made, args=tuple(ports))
    if ins.keyword == "FROM":
        return replace(made, args=(word(ins.args[0]), *ins.args[1:]))
    return made if ins.keyword == "RUN" else replace(made, args=tuple(word(text) for text in ins.args))


def _expanded_flag(flag: str, parts: Tuple[str, ...], word: Callable[[str], str]) -> str:
    name, equals, value = flag.partition("=")
    if name not in parts or not equals:
        return flag
    return f"{name}={_expanded_mount(value, word) if name == '--mount' else word(value)}"


def _expanded_copy(made: Instruction, env: Mapping[str, str], word: Callable[[str], str]) -> Instruction:
    plain = Lexer(skip_quotes=True)

    def finished(heredoc: Heredoc) -> Heredoc:
        text = heredoc.chomped()
        text = plain.process_word(text, env) if heredoc.expand else text
        return replace(heredoc, content=text, chomp=False, expand=False)

    sources, dest = tuple(word(text) for text in made.sources), word(made.dest)
    left = iter(sources)
    args = [text if _opened(text) is not None else next(left) for text in made.args[:-1]]
    return replace(
        made, sources=sources, dest=dest, args=(*args, dest),
        files=tuple(map(finished, made.files)), heredocs=tuple(map(finished, made.heredocs)),
    )  # fmt: skip

"""Dockerfiles as BuildKit reads them: directives, continued lines, heredocs, each keyword's own grammar, stages.

The rules are those of moby/buildkit, ``frontend/dockerfile/parser`` (parser.go, line_parsers.go, split_command.go,
directives.go), oddities included. A file is bytes; text here is decoded from UTF-8 with ``surrogateescape``, so nothing
is lost. What is refused is refused with file and line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from .errors import OfflineRebuildError
from .instructions import (
    HealthcheckSpec,
    Heredoc,
    Instruction,
    Mount,
    Node,
    expand,
    expandable,
    instruction_of,
    parse_heredoc,
    syntax_error,
)
from .shellword import SPACE, Lexer, is_space, lower, runes, trim_space

__all__ = [
    "Directive", "Dockerfile", "HealthcheckSpec", "Heredoc", "Instruction", "Mount", "Node", "Stage", "detect_syntax",
    "expand", "expandable", "parse", "parse_trigger", "read_nodes",
]  # fmt: skip

#: The longest line, its line end included (bufio.MaxScanTokenSize); a last line without an end has one byte less.
MAX_LINE = 65536
#: A bound of ours: levels of ONBUILD in ONBUILD. (BuildKit refuses the second one, after it has read them all.)
MAX_TRIGGERS = 50

_DIRECTIVE = re.compile(r"([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=")
_BLANKS = re.compile(r"[\t\v\f\r ]+")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_BOM = "\ufeff"
_WITH_HEREDOC = frozenset({"add", "copy", "run"})


class Directive(NamedTuple):
    """A parser directive.

    :param name: ``syntax``, ``escape`` or ``check``.
    :param value: all of it, e.g. ``docker/dockerfile:1``.
    :param line: 1-based.
    """

    name: str
    value: str
    line: int


@dataclass(frozen=True)
class Stage:
    """A build stage.

    :param name: in lower case; ``""`` if it has none.
    :param base: what follows FROM, not expanded.
    :param platform: the value of ``--platform``, not expanded.
    :param instructions: those after FROM.
    """

    index: int
    name: str
    base: str
    platform: Optional[str]
    from_instruction: Instruction
    instructions: Tuple[Instruction, ...] = ()


@dataclass(frozen=True)
class Dockerfile:
    """A Dockerfile that BuildKit would accept.

    :param escape: the escape character.
    :param directives: by name, the values whole: ``syntax`` as BuildKit's gateway detects it, ``escape``, ``check``.
    :param directive_lines: by name, the 1-based line.
    :param meta_args: the ARGs before the first FROM.
    :param instructions: all of them, FROM included, in the order of the file.
    """

    file: str
    escape: str
    directives: Mapping[str, str] = field(default_factory=dict)
    directive_lines: Mapping[str, int] = field(default_factory=dict)
    meta_args: Tuple[Instruction, ...] = ()
    stages: Tuple[Stage, ...] = ()
    instructions: Tuple[Instruction, ...] = ()

    @property
    def syntax(self) -> str:
        """:returns: the frontend image that ``# syntax`` names; ``""`` for none."""
        return self.directives.get("syntax", "").partition(" ")[0]

    def find_stage(self, name_or_number: str) -> Optional[Stage]:
        """The stage that ``COPY --from`` means: by number, else by name in any case, the last of that name.

        It may stand later in the file than the COPY. ``RUN --mount=from`` and ``--target`` know names only:
        :meth:`find_named`.
        """
        if not _NUMBER.fullmatch(name_or_number):
            return self.find_named(name_or_number)
        index = int(name_or_number)
        return self.stages[index] if 0 <= index < len(self.stages) else None

    def find_named(self, name: str) -> Optional[Stage]:
        """:returns: the last stage of this name, in any case (findStateByName)."""
        wanted = lower(name)
        return next((s for s in reversed(self.stages) if s.name and s.name == wanted), None)

    def find_base(self, base: str, before: int) -> Optional[Stage]:
        """The stage that ``FROM base`` of stage ``before`` continues (addState): an earlier one, its case exact.

        :param base: expanded.
        """
        return next((s for s in reversed(self.stages[:before]) if s.name and s.name == base), None)


def parse(source: bytes, file: str = "Dockerfile") -> Dockerfile:
    """Read and check a Dockerfile.

    :param source: the file's bytes.
    :param file: its name for errors.
    :raises OfflineRebuildError: ``dockerfile-syntax`` for all that BuildKit refuses without having to expand anything.
    """
    syntax = detect_syntax(source)
    try:
        reader = _Reader(source, file)
        nodes = list(reader.nodes())
        instructions = tuple(instruction_of(node, reader.raw(node), file, reader.escape) for node in nodes)
        meta_args, stages = _stages(instructions, file)
    except OfflineRebuildError as error:
        if syntax is None or syntax in _leading_directives(source, "#"):
            raise
        raise syntax_error(f"this is a file for the frontend {syntax.value}: {error.message}", file, 1) from None
    found = [d for d in reader.directives if d.name == "escape"]
    found += [d for d in _leading_directives(source, "#") if d.name != "escape"]
    directives = {d.name: d for d in found}
    made = Dockerfile(
        file, reader.escape, {name: d.value for name, d in directives.items()},
        {name: d.line for name, d in directives.items()}, meta_args, stages, instructions,
    )  # fmt: skip
    _check_references(made)
    return made


def parse_trigger(expression: str, file: str = "Dockerfile", line: int = 1, end_line: int = 0) -> Instruction:
    """An ONBUILD trigger as the image config holds it (initOnBuildTriggers): one instruction, the default escape.

    :param line: the line to give it, e.g. that of the FROM whose base has the trigger.
    :raises OfflineRebuildError: ``dockerfile-syntax``.
    """
    try:
        reader = _Reader(expression.encode("utf-8", "surrogateescape"), file)
        nodes = list(reader.nodes())
        if len(nodes) != 1:
            raise syntax_error("an ONBUILD trigger must be a single instruction", file, line)
        made = instruction_of(nodes[0], reader.raw(nodes[0]), file)
    except OfflineRebuildError as error:
        raise syntax_error(f"in the ONBUILD trigger: {error.message}", file, line) from None
    if made.keyword == "FROM":
        raise syntax_error("FROM isn't allowed as an ONBUILD trigger", file, line)
    return replace(made, line=line, end_line=end_line or line)


def read_nodes(source: bytes, file: str = "Dockerfile") -> Tuple[Node, ...]:
    """The instructions before they are checked, as BuildKit's parser package gives them.

    :raises OfflineRebuildError: ``dockerfile-syntax``.
    """
    return tuple(_Reader(source, file).nodes())


# ---------------------------------------------------------------------------------------------------------------------
# Stages


def _stages(instructions: Sequence[Instruction], file: str) -> Tuple[Tuple[Instruction, ...], Tuple[Stage, ...]]:
    """The ARGs before the first FROM, and the stages (instructions.Parse)."""
    starts = [index for index, made in enumerate(instructions) if made.keyword == "FROM"]
    head = instructions[: starts[0]] if starts else instructions
    for made in head:
        if made.keyword != "ARG":
            raise syntax_error("no build stage in current context", file, made.line)
    if not starts:
        raise syntax_error("dockerfile contains no stages to build", file, instructions[-1].line)
    stages: List[Stage] = []
    for begin, end in zip(starts, [*starts[1:], len(instructions)]):
        made, body = instructions[begin], tuple(instructions[begin + 1 : end])
        name = lower(made.args[2]) if len(made.args) == 3 else ""
        stages.append(Stage(len(stages), name, made.args[0], made.flag("platform") or None, made, body))
    return tuple(head), tuple(stages)


def _check_references(made: Dockerfile) -> None:
    """Stage numbers that do not exist, and stages that need each other (validateCircularDependency)."""
    named = {stage.name: stage.index for stage in made.stages if stage.name}
    earlier: Dict[str, int] = {}
    needs: List[List[Tuple[int, int]]] = []
    for stage in made.stages:
        edges = [(earlier[stage.base], stage.from_instruction.line)] if stage.base in earlier else []
        for instruction in stage.instructions:
            edges.extend((index, instruction.line) for index in _needed(made, named, instruction))
        needs.append(edges)
        if stage.name:
            earlier[stage.name] = stage.index
    _check_cycles(made, needs)


def _needed(made: Dockerfile, named: Mapping[str, int], instruction: Instruction) -> Iterator[int]:
    """The stages that an instruction reads, by index."""
    origin = instruction.flag("from") if instruction.keyword == "COPY" else None
    if origin and _NUMBER.fullmatch(origin):
        if not 0 <= int(origin) < len(made.stages):
            raise syntax_error(f"invalid stage index {int(origin)}", made.file, instruction.line)
        yield int(origin)
    for name in (origin, *(mount.from_ for mount in instruction.mounts)):
        if name and lower(name) in named:
            yield named[lower(name)]


def _check_cycles(made: Dockerfile, needs: Sequence[Sequence[Tuple[int, int]]]) -> None:
    done: Set[int] = set()
    for start in range(len(needs)):
        path, on_path = [start], {start}
        edges = [iter(needs[start])]
        while path and start not in done:
            target, line = next(edges[-1], (-1, 0))
            if target < 0:
                edges.pop()
                on_path.discard(path[-1])
                done.add(path.pop())
            elif target in on_path:
                name = made.stages[target].name or f"stage-{target}"
                raise syntax_error(f"circular dependency detected on stage: {name}", made.file, line)
            elif target not in done:
                path.append(target)
                on_path.add(target)
                edges.append(iter(needs[target]))


# ---------------------------------------------------------------------------------------------------------------------
# Directives


class _DirectiveParser:
    """Directives stand before all else; an unknown one, or any other line, ends them (type DirectiveParser)."""

    def __init__(self, comment: str = "#", line: int = 0) -> None:
        self.comment = comment
        self.line = line
        self.done = False
        self.seen: Set[str] = set()

    def feed(self, text: str) -> Optional[Directive]:
        """Take the next line, without its line end.

        :raises ValueError: a directive that was there before.
        """
        self.line += 1
        if self.done:
            return None
        name, value = _directive(text[len(self.comment) :]) if text.startswith(self.comment) else ("", "")
        if name not in ("syntax", "escape", "check"):
            self.done = True
            return None
        if name in self.seen:
            raise ValueError(f"only one {name} parser directive can be used")
        self.seen.add(name)
        return Directive(name, value, self.line)


def _directive(text: str) -> Tuple[str, str]:
    """Name and value of ``name = value``; no name if it is not that. Of a blank value one character is left."""
    text = text.lstrip(SPACE)
    found = _DIRECTIVE.match(text)
    if found is None or found.end() == len(text):
        return "", ""
    blanks = "\t\n\f\r "
    return lower(found.group(1)), text[found.end() :].strip(blanks) or text[-1]


def _leading_directives(source: bytes, comment: str) -> Iterator[Directive]:
    """The directives as ParseAll finds them: a ``#!`` line may come first, and no blank before the comment sign."""
    source = source[3:] if source.startswith(b"\xef\xbb\xbf") else source
    parser = _DirectiveParser(comment)
    for number, line in enumerate(source[: 16 * MAX_LINE].split(b"\n")):
        if number == 0 and line.startswith(b"#!"):
            parser.line = 1
            continue
        text = line[:-1] if line.endswith(b"\r") else line
        try:
            found = parser.feed(text[:MAX_LINE].decode("utf-8", "surrogateescape"))
        except ValueError:
            return
        if parser.done:
            return
        if found is not None:
            yield found


def detect_syntax(source: bytes) -> Optional[Directive]:
    """The frontend that a file names (DetectSyntax): ``# syntax=``, ``// syntax=``, or JSON with a key ``syntax``.

    :returns: the directive; its line is 0 for the JSON form.
    """
    for comment in ("#", "//"):
        for found in _leading_directives(source, comment):
            if found.name == "syntax":
                return found
    if not source.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") or len(source) > 16 * MAX_LINE:
        return None
    import json

    try:
        value = json.loads(source.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    found_value = value.get("syntax") if isinstance(value, dict) else None
    return Directive("syntax", found_value, 0) if isinstance(found_value, str) else None


# ---------------------------------------------------------------------------------------------------------------------
# Lines and heredocs


class _Reader:
    """Goes through the lines of one file (parser.go, Parse)."""

    def __init__(self, source: bytes, file: str) -> None:
        self.file = file
        self.escape = "\\"
        self.directives: List[Directive] = []
        self._parser = _DirectiveParser()
        self._lines = source.split(b"\n")
        self._count = len(self._lines) - (0 if self._lines[-1] else 1)
        self._at = 0

    def fail(self, message: str, line: int) -> OfflineRebuildError:
        return syntax_error(message, self.file, line)

    def raw(self, node: Node) -> str:
        """:returns: the source lines of a node as they are, without a byte order mark."""
        text = "".join(self._line(index) for index in range(node.line - 1, node.end_line))
        return text[1:] if node.line == 1 and text.startswith(_BOM) else text

    def _line(self, index: int) -> str:
        ended = index + 1 < len(self._lines)
        return self._lines[index].decode("utf-8", "surrogateescape") + ("\n" if ended else "")

    def _next(self) -> Optional[str]:
        """The next line with its line end; ``None`` at the end of the file."""
        if self._at >= self._count:
            return None
        longest = MAX_LINE - 1
        if len(self._lines[self._at]) > longest:
            raise self.fail(f"dockerfile line greater than max allowed size of {longest}", self._at + 1)
        self._at += 1
        return self._line(self._at - 1)

    def nodes(self) -> Iterator[Node]:
        """The nodes, in order.

        :raises OfflineRebuildError: ``dockerfile-syntax``.
        """
        empty = True
        while True:
            line = self._next()
            if line is None:
                break
            if self._at == 1 and line.startswith(_BOM):
                line = line[1:]
            first = self._processed(line.rstrip("\r\n").lstrip(SPACE))
            text, ended = self._continued(first)
            if ended and not text:
                continue
            empty = False
            yield self._node(text, ended)
        if empty:
            raise self.fail("file with no instructions", max(self._at, 1))

    def _node(self, text: str, ended: bool) -> Node:
        start = self._at
        joined = self._joined(text, ended)
        try:
            node = _node_from_line(joined, self.escape)
            heredocs = self._heredocs(node, joined) if "<<" in joined else ()
        except ValueError as error:
            raise self.fail(str(error), start) from None
        return replace(node, heredocs=heredocs, line=start, end_line=self._at)

    def _joined(self, text: str, ended: bool) -> str:
        """The first line with those that continue it; comments and empty lines among them are left out."""
        parts = [text]
        while not ended:
            line = self._next()
            if line is None:
                break
            if line.lstrip(SPACE).startswith("#"):
                continue
            line = line.rstrip("\r\n")
            if not line.strip(SPACE):
                continue
            text, ended = self._continued(self._processed(line))
            parts.append(text)
        return "".join(parts)

    def _processed(self, text: str) -> str:
        """The line, or nothing if it is a comment; directives take effect."""
        if not self._parser.done:
            self._parser.line = self._at - 1
            try:
                found = self._parser.feed(text)
            except ValueError as error:
                raise self.fail(str(error), self._at) from None
            if found is not None:
                self._directive(found)
        return "" if text.lstrip(SPACE).startswith("#") else text

    def _directive(self, found: Directive) -> None:
        self.directives.append(found)
        if found.name == "escape":
            if found.value not in ("\\", "`"):
                raise self.fail(f"invalid escape token {found.value!r} does not match ` or \\", found.line)
            self.escape = found.value

    def _continued(self, text: str) -> Tuple[str, bool]:
        """The line without its continuation character, and whether the instruction ends with it."""
        head = text.rstrip(" \t")
        if not head.endswith(self.escape) or head[-2:-1] == self.escape:
            return text, True
        return head[:-1], False

    def _heredocs(self, node: Node, line: str) -> Tuple[Heredoc, ...]:
        inner = node.sub if lower(node.value) == "onbuild" and node.sub is not None else node
        if lower(inner.value) not in _WITH_HEREDOC or inner.is_json:
            return ()
        try:
            words = Lexer(raw_quotes=True, raw_escapes=True, skip_unset=True).process_words(line, {})
        except OfflineRebuildError:
            return ()
        try:
            opened = [parse_heredoc(word) for word in words if "<<" in word]
        except OfflineRebuildError as error:
            raise ValueError(error.message) from None
        return tuple(self._filled(heredoc) for heredoc in opened if heredoc is not None)

    def _filled(self, heredoc: Heredoc) -> Heredoc:
        content: List[str] = []
        while True:
            line = self._next()
            if line is None:
                raise ValueError(f"unterminated heredoc {heredoc.name}")
            end = line.rstrip("\r\n")
            if (end.lstrip("\t") if heredoc.chomp else end) == heredoc.name:
                return replace(heredoc, content="".join(content))
            content.append(line)


# ---------------------------------------------------------------------------------------------------------------------
# One line


def _node_from_line(line: str, escape: str, depth: int = 0) -> Node:
    """newNodeFromLine.

    :raises ValueError: what BuildKit's parser refuses.
    """
    value, flags, rest = _split_command(line, escape)
    keyword = lower(value)
    if keyword == "onbuild":
        if depth >= MAX_TRIGGERS:
            raise ValueError(f"more than {MAX_TRIGGERS} levels of ONBUILD")
        return Node(value, line, flags, (), sub=_node_from_line(rest, escape, depth + 1) if rest else None)
    words, is_json = _words(keyword, rest, escape)
    return Node(value, line, flags, words, is_json)


def _words(keyword: str, rest: str, escape: str) -> Tuple[Tuple[str, ...], bool]:
    """The words of an instruction by its keyword's grammar, and whether it is JSON (parser.go, dispatch table)."""
    if keyword in ("add", "copy", "volume"):
        array = _json_array(rest)
        return (_blank_delimited(rest), False) if array is None else (array, True)
    if keyword in ("cmd", "entrypoint", "run", "shell"):
        return _maybe_json(rest)
    if keyword in ("env", "label"):
        return _name_values(rest, keyword.upper(), escape), False
    if keyword == "arg":
        return tuple(_quoted_words(rest, escape)), False
    if keyword in ("expose", "from"):
        return _blank_delimited(rest), False
    if keyword == "healthcheck":
        return _health_words(rest)
    if keyword in ("maintainer", "stopsignal", "user", "workdir"):
        return ((rest,) if rest else ()), False
    return ("",), False


def _split_command(line: str, escape: str) -> Tuple[str, Tuple[str, ...], str]:
    """Keyword, flags, and the rest (splitCommand)."""
    parts = _BLANKS.split(trim_space(line), maxsplit=1)
    if len(parts) < 2:
        return parts[0], (), ""
    rest = parts[1]
    flags: List[str] = []
    if rest.lstrip(SPACE).startswith("--"):
        rest, flags = _extract_flags(rest, escape)
    return parts[0], tuple(flags), trim_space(rest)


def _extract_flags(line: str, escape: str) -> Tuple[str, List[str]]:
    """The leading words that begin with ``--`` (extractBuilderFlags).

    BuildKit goes byte by byte here and writes each byte as a rune: beyond ASCII, a flag comes out as if its bytes were
    Latin-1. So it does here.
    """
    text = line.encode("utf-8", "surrogateescape").decode("latin-1")
    flags: List[str] = []
    pos = 0
    while True:
        while pos < len(text) and is_space(text[pos]):
            pos += 1
        if not text.startswith("--", pos):
            break
        word, pos = _flag_word(text, pos, escape)
        if word == "--":
            break
        if word:
            flags.append(word)
    return text[pos:].encode("latin-1").decode("utf-8", "surrogateescape"), flags


def _flag_word(text: str, pos: int, escape: str) -> Tuple[str, int]:
    """One flag from ``pos``: its text without quotes and escapes, and where it ends."""
    chars: List[str] = []
    quote = ""
    while pos < len(text):
        char = text[pos]
        if not quote and is_space(char):
            break
        pos += 1
        if quote and char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        elif char != escape:
            chars.append(char)
        elif pos < len(text):
            chars.append(text[pos])
            pos += 1
    return "".join(chars), pos


def _quoted_words(rest: str, escape: str) -> Iterator[str]:
    """Words with their quotes and escapes kept (parseWords)."""
    text = runes(rest)
    chars: List[str] = []
    quote, pos = "", 0
    while pos < len(text):
        char = text[pos]
        pos += 1
        if not quote and is_space(char):
            if chars:
                yield "".join(chars)
            chars = []
            continue
        if char == escape and quote != "'":
            if pos == len(text):
                break
            chars.append(char)
            char = text[pos]
            pos += 1
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        chars.append(char)
    if chars:
        yield "".join(chars)


def _name_values(rest: str, keyword: str, escape: str) -> Tuple[str, ...]:
    """Name, value, separator in turn (parseNameVal); the separator is empty for the old form ``ENV name value``."""
    words = list(_quoted_words(rest, escape))
    if not words:
        return ()
    if "=" not in words[0]:
        parts = _BLANKS.split(rest, maxsplit=1)
        if len(parts) < 2:
            raise ValueError(f"{keyword} must have two arguments")
        return (parts[0], parts[1], "")
    found: List[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"can't find = in {word!r}. Must be of the form: name=value")
        found += [name, value, equals]
    return tuple(found)


def _blank_delimited(rest: str) -> Tuple[str, ...]:
    return tuple(_BLANKS.split(rest)) if rest else ()


def _maybe_json(rest: str) -> Tuple[Tuple[str, ...], bool]:
    array = _json_array(rest)
    if array is not None:
        return array, True
    return ((rest,) if rest else ()), False


def _json_array(rest: str) -> Optional[Tuple[str, ...]]:
    """The strings of a JSON array; ``None`` if it is not valid JSON (parseJSON).

    :raises ValueError: valid JSON with anything but strings in it.
    """
    text = rest.lstrip(SPACE)
    if not text.startswith("["):
        return None
    import json

    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_number, parse_int=_number)
    except RecursionError:
        raise ValueError("the JSON array is nested too deep") from None
    except ValueError:
        return None
    if not all(isinstance(item, str) for item in value):
        raise ValueError("when using JSON array syntax, arrays must be comprised of strings only")
    return tuple(runes(item) for item in value)


def _number(text: str) -> float:
    """A number as Go reads it: one beyond float64 is an error."""
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value


def _no_number(text: str) -> float:
    raise ValueError(text)


def _health_words(rest: str) -> Tuple[Tuple[str, ...], bool]:
    """The type and the command (parseHealthConfig). BuildKit looks for the blank byte by byte."""
    text = rest.encode("utf-8", "surrogateescape").decode("latin-1")
    end = next((pos for pos, char in enumerate(text) if is_space(char)), len(text))
    if not end:
        return (), False
    kind, command = (
        part.encode("latin-1").decode("utf-8", "surrogateescape") for part in (text[:end], text[end:].lstrip(SPACE))
    )
    words, is_json = _maybe_json(command)
    return (kind, *words), is_json

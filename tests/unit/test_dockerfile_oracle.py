"""The reader against BuildKit's own Go parser (the ``dockerfile`` package), over our cases and random files.

The package holds an older release of the parser, and C strings. What it cannot answer is left out here and tested in
test_dockerfile.py: text after a JSON array (a shell form since), blanks after ``<<``, ``${`` in a heredoc's name, a
backtick as the escape character of flags (a backslash was, whatever the directive), NULs, bytes that are not UTF-8.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dockerfile as oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild.dockerfile import Node, read_nodes
from module_utils.offline_rebuild.errors import OfflineRebuildError
from tests.unit.figures import record

DATA = Path(__file__).parent.parent / "data" / "dockerfile"
RANDOM_FILES = 1000

Row = tuple[Any, ...]


def theirs(text: str) -> list[Row] | str | None:
    """The oracle's view: (cmd, sub, json, original, start, end, flags, values, heredocs) each, or ``"error"``.

    ``None`` where it has no view: BuildKit cuts HEALTHCHECK's type off byte by byte, so inside a character too.
    """
    try:
        commands = oracle.parse_string(text)
    except oracle.GoParseError:
        return "error"
    except UnicodeDecodeError:
        return None
    return [
        (
            c.cmd or "", c.sub_cmd, c.json, c.original or "", c.start_line, c.end_line, c.flags, c.value,
            tuple((h.name, h.file_descriptor, h.content) for h in c.heredocs),
        )
        for c in commands
    ]  # fmt: skip


def row(node: Node) -> Row:
    """A node of ours as the oracle would show it: no separators, no heredocs of a trigger, heredocs in the text."""
    inner = node.sub or node
    words: Sequence[str] = inner.words if inner.sub is None else ("",)
    if inner.value.lower() in ("env", "label"):
        words = [word for index, word in enumerate(words) if index % 3 != 2]
    text, heredocs = node.text, node.heredocs if node.sub is None else ()
    if heredocs:
        text += "\n" + "".join(f"{h.content}{h.name}\n" for h in heredocs)
    return (
        node.value, node.sub.value if node.sub else None, inner.is_json, text, node.line, node.end_line, node.flags,
        tuple(words), tuple((h.name, h.fd, h.content) for h in heredocs),
    )  # fmt: skip


def ours(text: str) -> list[Row] | str:
    try:
        return [row(node) for node in read_nodes(text.encode())]
    except OfflineRebuildError:
        return "error"


def joined_lines(text: str) -> list[str]:
    """The instructions in one line each; roughly, where we refuse the file."""
    try:
        return [node.text for node in read_nodes(text.encode())]
    except OfflineRebuildError:
        return re.sub(r"[\\`][ \t]*\r?\n(\s*#[^\n]*\n|\s*\n)*", "", text).split("\n")


def newer(text: str) -> bool:
    """Whether the file has what the oracle's release reads by an older rule."""
    if re.search(r"(?im)^\s*#\s*escape\s*=\s*`", text) and re.search(r"--[^\n]*[\\`]", text):
        return True
    lines = joined_lines(text)
    return any(re.search(r"<<-?[ \t\r]|<<\S*\$\{", line) or text_after_json(line) for line in lines)


def text_after_json(line: str) -> bool:
    for found in re.finditer(r"\[", line):
        rest = line[found.start() :]
        try:
            _, end = json.JSONDecoder().raw_decode(rest)
        except ValueError:
            continue
        if rest[end:].strip():
            return True
    return False


KEYWORDS = (
    "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL MAINTAINER ONBUILD RUN SHELL STOPSIGNAL USER VOLUME "
    "WORKDIR run copy Env onBuild FOO ONBUILD\tRUN ONBUILD\tCOPY HEALTHCHECK\tCMD".split(" ")
)
PIECES = (
    'a b x=y k="v w" \'q r\' "d\\"e" \\ \\\\ ` `" \\\' $V ${V:-x} # #c = == --from=b --chown=\'a b\' --link -- '
    '--x=\\\\ [] ["a"] ["a","b c"] [\'a\'] ["a" [1] ["\\u00e9"] <<E <<-E <<\'E\' 3<<E <<"F" <<E<<F <<\\E < << é 日本 '
    "--é=ü \u00a0 \u2003 CMD NONE none AS /p/q a\\ b && | ; \" ' \\t".split(" ")
)
# fmt: off
GAPS = [
    "", " ", " ", " ", "  ", "\t", " \\\n", " \\\n  ", "\\\n# c\n", " `\n", "\\ \n", "\\\n\n", " \\\r\n", "\v",
    "\x85",
]
ENDS = ["\n"] * 8 + ["\n\n", "\r\n", "\\\n", " \n", "\\", "`\n", ""]
BETWEEN = [
    "", "", "", "# comment\n", "  # c\n", "E\n", "\tE\n", "F\n", "text\nE\n", "\n", "\\\n", "\t\n", "E\nF\n",
    "x\ny\nE\n",
]
HEADS = [
    "", "", "FROM a\n", "# escape=`\n", "# escape=\\\n", "# syntax=a/b\n# escape=`\n", "#escape = `\n",
    "# Escape=`\n", "\ufeffFROM b\n", "# escape=`\n# escape=`\n", "# x=y\n# escape=`\n", "#\n# escape=`\n",
    " # escape=`\n", "# check=a\n",
]
# fmt: on


def random_file(seed: int) -> str:
    """A file of pieces that matter to the parser, put together at random."""
    pick = random.Random(seed)
    parts = [pick.choice(HEADS)]
    for _ in range(pick.randint(1, 5)):
        parts += [pick.choice(KEYWORDS), pick.choice(["", *GAPS]) if pick.random() < 0.2 else " "]
        for _ in range(pick.randint(0, 6)):
            parts += [pick.choice(PIECES), pick.choice(GAPS)]
        parts += [pick.choice(ENDS), pick.choice(BETWEEN)]
    return "".join(parts)


def test_agreement() -> None:
    cases = [path.read_bytes().decode() for path in sorted(DATA.glob("*.Dockerfile"))]
    assert not any(newer(text) for text in cases)
    seen: set[str] = set()

    @settings(
        max_examples=RANDOM_FILES * 3, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.integers(0, 2**64))
    def collect(seed: int) -> None:
        text = random_file(seed)
        if not newer(text):
            seen.add(text)

    collect()
    cases += sorted(seen)
    verdicts = [(text, their, ours(text)) for text in cases if (their := theirs(text)) is not None]
    wrong = [verdict for verdict in verdicts if verdict[1] != verdict[2]]
    for text, their, our in wrong[:5]:
        print(f"{text!r}\n  BuildKit: {their}\n  ours:     {our}")
    record("exactness", parser_agree=len(verdicts) - len(wrong), parser_total=len(verdicts))
    assert not wrong
    assert len(verdicts) >= RANDOM_FILES
    assert sum(their != "error" for _, their, _ in verdicts) >= RANDOM_FILES // 2


def test_the_comparison_can_fail() -> None:
    assert theirs("FROM a\nRUN x\n") != ours("FROM a\nRUN y\n")
    assert theirs("FROM a\nENV x\n") == ours("FROM a\nENV x\n") == "error"

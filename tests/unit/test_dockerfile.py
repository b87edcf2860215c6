"""The Dockerfile reader: own cases for each feature, BuildKit's checks, stages, expansion, bad input."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild.dockerfile import (
    Heredoc,
    Instruction,
    Node,
    detect_syntax,
    expand,
    expandable,
    parse,
    parse_trigger,
    read_nodes,
)
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.instructions import parse_duration, parse_heredoc
from module_utils.offline_rebuild.shellword import Lexer

DATA = Path(__file__).parent.parent / "data" / "dockerfile"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text("utf-8"))


def row(node: Node) -> dict[str, Any]:
    """A node in the form of expected.json."""
    inner = node.sub or node
    made: dict[str, Any] = {
        "keyword": node.value,
        "lines": [node.line, node.end_line],
        "words": list(node.all_words()),
        "flags": list(node.flags),
        "trigger_flags": list(node.sub.flags) if node.sub else [],
        "json": inner.is_json,
        "heredocs": [[h.name, h.content, h.expand, h.chomp, h.fd] for h in node.heredocs],
        "text": node.text,
    }
    return {key: value for key, value in made.items() if value or key == "words"}


def one(line: str, head: str = "FROM a\n") -> Instruction:
    """The last instruction of a file."""
    return parse((head + line).encode("utf-8", "surrogateescape")).instructions[-1]


def refused(source: str | bytes) -> OfflineRebuildError:
    with pytest.raises(OfflineRebuildError) as caught:
        parse(source if isinstance(source, bytes) else source.encode(), "sub/Dockerfile")
    assert caught.value.code == "dockerfile-syntax"
    assert caught.value.file == "sub/Dockerfile"
    assert caught.value.remedy
    return caught.value


def test_every_case_has_its_expectation() -> None:
    assert sorted(path.stem for path in DATA.glob("*.Dockerfile")) == sorted(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_own_cases(name: str) -> None:
    source = (DATA / f"{name}.Dockerfile").read_bytes()
    assert [row(node) for node in read_nodes(source)] == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_raw_lines_are_those_of_the_file(name: str) -> None:
    source = (DATA / f"{name}.Dockerfile").read_bytes().decode().removeprefix("\ufeff")
    lines = source.splitlines(keepends=True) if "\u2028" not in source else source.split("\n")
    for instruction in parse(source.encode()).instructions:
        assert instruction.raw == "".join(lines[instruction.line - 1 : instruction.end_line])


# ---------------------------------------------------------------------------------------------------------------------
# Newer rules than those of the oracle's release (test_dockerfile_oracle.py), read off parser.go and line_parsers.go


@pytest.mark.parametrize("keyword", ["RUN", "CMD", "ENTRYPOINT", "HEALTHCHECK CMD"])
def test_text_after_a_json_array_makes_it_a_shell_form(keyword: str) -> None:
    made = one(f'{keyword} ["a"] b')
    assert (made.is_json, made.args[-1]) == (False, '["a"] b')


def test_blanks_may_stand_between_the_sign_and_the_name_of_a_heredoc() -> None:
    assert one("RUN <<  EOF  > foo\nx\nEOF\n").heredocs == (Heredoc("EOF", "x\n"),)
    assert one("RUN << -EOF\nx\n-EOF\n").heredocs == (Heredoc("-EOF", "x\n"),)
    assert one("RUN <<- EOF\n").heredocs == ()


def test_a_default_in_the_name_of_a_heredoc_makes_it_none() -> None:
    """The level below clears the words' buffer (lex.go, wordsBuffer), so the reader never sees the ``<<``."""
    assert one("RUN cat <<E${V:-x}\n").heredocs == ()
    assert one("RUN cat <<E$V\nE$V\n").heredocs == (Heredoc("E$V"),)


def test_the_escape_character_of_flags_is_that_of_the_file() -> None:
    head = "# escape=`\nFROM a\n"
    assert one('COPY --chown=a`"b --exclude=c:\\d x y', head).flags == ('--chown=a"b', "--exclude=c:\\d")


def test_nul_in_json() -> None:
    assert one('CMD ["a\\u0000b"]').args == ("a\0b",)


@pytest.mark.parametrize(
    "word", ["<<EOF", "<<'EOF'", '<<"EOF"', "<<-EOF", "<<-'EOF'", '<<EO"F"', "<< EOF", "<<- EOF", "12<<EOF"]
)
def test_heredoc_words(word: str) -> None:
    found = parse_heredoc(word)
    assert found is not None
    assert found.name == "EOF"
    assert found.expand == ("'" not in word and '"' not in word)
    assert found.chomp == ("-" in word)
    assert found.fd == (12 if word[0] == "1" else 0)


@pytest.mark.parametrize("word", ["", "EOF", "<<", "<<-", "<EOF", "<<<EOF", "<<EOF sh", '<<""', "a<<EOF", "x <<EOF"])
def test_words_that_open_no_heredoc(word: str) -> None:
    assert parse_heredoc(word) is None


@pytest.mark.parametrize("word", ["<<'EOF", '<<"EOF', "<<EOF'", '<<EOF"'])
def test_heredoc_words_with_an_open_quote(word: str) -> None:
    with pytest.raises(OfflineRebuildError):
        parse_heredoc(word)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


BAD = [
    ("", 1, "no instructions"),
    ("# only\n\n# comments\n", 3, "no instructions"),
    ("FROM a\nENV x\n", 2, "two arguments"),
    ("FROM a\nENV a=b c\n", 2, "can't find ="),
    ("FROM a\nENV =x\n", 2, "blank"),
    ("FROM a\nLABEL =x\n", 2, "blank"),
    ("FROM a\nARG =x\n", 2, "blank"),
    ('FROM a\nCMD [ "a", [ "b" ] ]\n', 2, "strings only"),
    ('FROM a\nCOPY ["a", 1]\n', 2, "strings only"),
    ('FROM a\nCMD ["a",42,"b"]\n', 2, "strings only"),
    ('FROM a\nCMD ["a",{"c": "d"}]\n', 2, "strings only"),
    ('FROM a\nCMD ["a",true]\n', 2, "strings only"),
    ('FROM a\nCMD ["a",null]\n', 2, "strings only"),
    ("FROM a\nFOO bar\n", 2, "unknown instruction: FOO"),
    ("FROM a\n\\\n\n", 2, "unknown instruction"),
    ("RUN x\n", 1, "no build stage"),
    ("ARG a\nENV b=c\nFROM x\n", 2, "no build stage"),
    ("ARG a\n", 1, "no stages"),
    ("FROM\n", 1, "one or three"),
    ("FROM a b\n", 1, "one or three"),
    ("FROM a IS b\n", 1, "one or three"),
    ("FROM a AS b c\n", 1, "one or three"),
    ("FROM a AS 1b\n", 1, "invalid name"),
    ("FROM a AS -b\n", 1, "invalid name"),
    ("FROM a AS b$\n", 1, "invalid name"),
    ("FROM --as=b a\n", 1, "unknown flag: --as"),
    ("FROM --platform a\n", 1, "missing a value"),
    *((f"FROM a\n{k}\n", 2, "exactly one") for k in ("MAINTAINER", "WORKDIR", "USER", "STOPSIGNAL")),
    *((f"FROM a\n{k}\n", 2, "at least one") for k in (
        "ENV", "LABEL", "ONBUILD", "HEALTHCHECK", "EXPOSE", "VOLUME", "ARG", "SHELL")),
    *((f"FROM a\n{k} x\n", 2, "at least two") for k in ("ADD", "COPY")),
    ("FROM a\nCOPY\t\n\tquux \\\n  bar\n", 2, "at least two"),
    ("FROM a\nCOPY --chown=a --chown=b x y\n", 2, "duplicate flag"),
    ("FROM a\nCOPY --frm=a x y\n", 2, "unknown flag: --frm"),
    ("FROM a\nCOPY --link= x y\n", 2, "missing a value"),
    ("FROM a\nCOPY --link=1 x y\n", 2, "boolean"),
    ("FROM a\nCOPY --chown x y\n", 2, "missing a value"),
    ("FROM a\nCOPY --exclude x y\n", 2, "missing a value"),
    ("FROM a\nADD --from=a x y\n", 2, "unknown flag"),
    ("FROM a\nENV --x a=b\n", 2, "unknown flag"),
    ("FROM a\nMAINTAINER --boo joe\n", 2, "unknown flag"),
    ("FROM a\nCOPY --from=$x a b\n", 2, "not supported for --from"),
    ("FROM a\nCOPY --from=1 a b\n", 2, "invalid stage index 1"),
    ("FROM a\nCOPY --from=-1 a b\n", 2, "invalid stage index -1"),
    ("FROM a\nCOPY a <<E\nE\n", 2, "heredoc as a destination"),
    ("FROM a\nRUN <<E\nx\n", 2, "unterminated heredoc"),
    ("FROM a\nRUN <<E <<F\nE\nG\n", 2, "unterminated heredoc F"),
    ("FROM a\nRUN --network=nat x\n", 2, "invalid --network"),
    ("FROM a\nRUN --security=x x\n", 2, "invalid --security"),
    ("FROM a\nRUN --mount=from=$x y\n", 2, "variable expansion"),
    ("FROM a\nRUN --mount= y\n", 2, "csv"),
    ('FROM a\nRUN --mount=a\\"b y\n', 2, "quote"),
    ("FROM a\nRUN --mont=target=/x y\n", 2, "unknown flag: --mont"),
    ("FROM a\nRUN --device=a,name=b y\n", 2, "already set"),
    ("FROM a\nRUN --device=a,b y\n", 2, "in a device"),
    ("FROM a\nRUN --device=a,required=maybe y\n", 2, "invalid value"),
    ("FROM a\nONBUILD ONBUILD RUN x\n", 2, "Chaining"),
    ("FROM a\nONBUILD FROM x\n", 2, "isn't allowed as an ONBUILD trigger"),
    ("FROM a\nONBUILD maintainer x\n", 2, "isn't allowed as an ONBUILD trigger"),
    ("FROM a\nONBUILD --x RUN x\n", 2, "unknown flag"),
    ("FROM a\nONBUILD ENV x\n", 2, "two arguments"),
    ("FROM a\nHEALTHCHECK NONE x\n", 2, "takes no arguments"),
    ("FROM a\nHEALTHCHECK x\n", 2, "Unknown type"),
    ("FROM a\nHEALTHCHECK CMD\n", 2, "Missing command"),
    ("FROM a\nHEALTHCHECK CMD []\n", 2, "Missing command"),
    ("FROM a\nHEALTHCHECK --interval=50ns CMD x\n", 2, "less than 1ms"),
    ("FROM a\nHEALTHCHECK --interval=-5s CMD x\n", 2, "less than 1ms"),
    ("FROM a\nHEALTHCHECK --timeout=5 CMD x\n", 2, "invalid duration"),
    ("FROM a\nHEALTHCHECK --timeout=1y CMD x\n", 2, "invalid duration"),
    ("FROM a\nHEALTHCHECK --retries=-1 CMD x\n", 2, "negative"),
    ("FROM a\nHEALTHCHECK --retries=2147483648 CMD x\n", 2, "invalid --retries"),
    ("FROM a\nHEALTHCHECK --retries=1.5 CMD x\n", 2, "invalid --retries"),
    ("FROM a\nSHELL /bin/sh -c\n", 2, "JSON form"),
    ("FROM a\nSHELL []\n", 2, "at least one"),
    ('FROM a\nVOLUME ["/a", " "]\n', 2, "empty string"),
    ("# escape=x\nFROM a\n", 1, "invalid escape token"),
    ("# syntax=a\n# Syntax=b\nFROM a\n", 2, "only one syntax"),
    ("FROM a AS x\nCOPY --from=x a b\n", 2, "circular dependency detected on stage: x"),
    ("FROM a AS x\nCOPY --from=y a b\nFROM b AS y\nRUN --mount=from=X,target=/x c\n", 4, "circular dependency"),
    ("FROM a AS x\nCOPY --from=2 a b\nFROM x AS y\nFROM y\n", 3, "circular dependency"),
    ("FROM a\nUSER " + "x" * 65536 + "\n", 2, "greater than max allowed size of 65535"),
    ("FROM a\nUSER " + "x" * (65536 - 5), 2, "greater than max"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "line", "message"), BAD, ids=range(len(BAD)))
def test_refused(source: str, line: int, message: str) -> None:
    error = refused(source)
    assert message in error.message
    assert error.line == line


@pytest.mark.parametrize(
    "source",
    [
        "FROM a\nUSER " + "x" * (65535 - 5) + "\n",
        "FROM a\nUSER " + "x" * (65535 - 5),
        "FROM a\nRUN\n",
        "FROM a\nCMD\nENTRYPOINT []\n",
        "FROM a\nONBUILD nonsense here\n",
        "FROM a\nONBUILD COPY --bogus x\n",
        "FROM a\nARG --bogus x\nSTOPSIGNAL --bogus x\n",
        "FROM a\nHEALTHCHECK --bogus NONE\n",
        "FROM a AS a\nFROM b AS c\nCOPY --from=a x y\nFROM a AS a\n",
        "FROM x\nCOPY --from=later a b\nFROM y AS later\n",
        "FROM a aS b-1_2.C\n",
        "FROM a\nRUN --mount=from=x$,target=/y z\n",
        "FROM a\nRUN --mount=type=nonsense,bogus=1 z\n",
        "FROM a\nCOPY <<'a b' /x\na b\n",
        "FROM a\nRUN '<<E\n",
    ],
)
def test_accepted_as_buildkit_accepts_it(source: str) -> None:
    assert parse(source.encode()).stages


def test_lines_are_counted_in_continued_files() -> None:
    assert refused("\n\nFROM a\nRUN x \\\n  # c\n  y\n\nBAD z \\\n q\n").line == 8


# ---------------------------------------------------------------------------------------------------------------------
# Directives


def test_directives() -> None:
    made = parse(b"# Syntax = docker/dockerfile:1 // opts  \n# escape=`\n#check=skip=all\n# other=1\nFROM a\n")
    assert dict(made.directives) == {"syntax": "docker/dockerfile:1 // opts", "escape": "`", "check": "skip=all"}
    assert dict(made.directive_lines) == {"syntax": 1, "escape": 2, "check": 3}
    assert (made.syntax, made.escape) == ("docker/dockerfile:1", "`")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (b"# syntax = dockerfile:experimental // opts\nFROM b\n", "dockerfile:experimental // opts"),
        (b"#!/bin/sh\n# syntax=a\n", "a"),
        (b"#!/bin/sh\n\n# syntax=a\n", None),
        (b"FROM a\n# syntax=a\n", None),
        (b"# a comment\n# syntax=a\n", None),
        (b"# key=value\n# syntax=a\n", None),
        (b"# escape=`\n# syntax=a\n", "a"),
        (b"//syntax=foo\n//key=value", "foo"),
        (b"#!/bin/sh\n//syntax=x", "x"),
        (b'{"syntax": "foo", "bar": ["abc"]}', "foo"),
        (b'{"syntax": "foo"', None),
        (b'{"syntax": "foo"}\n# syntax=bar', None),
        (b'{"syntax": 1}', None),
        (b"\xef\xbb\xbf# syntax = x\nFROM a\n", "x"),
        (b"# syntax=a\r\nFROM a\r\n", "a"),
        (b" # syntax=a\nFROM a\n", None),
        (b"# syntax=\nFROM a\n", None),
        (b"# syntax= \nFROM a\n", " "),
        (b"# syntax=\xff\nFROM a\n", "\udcff"),
    ],
)
def test_syntax_detection(source: bytes, name: str | None) -> None:
    found = detect_syntax(source)
    assert (found.value if found else None) == name


def test_a_shebang_hides_the_escape_directive() -> None:
    made = parse(b"#!/x\n# escape=`\n# syntax=s\nFROM a\n")
    assert (made.escape, made.syntax, made.directive_lines) == ("\\", "s", {"syntax": 3})


@pytest.mark.parametrize("source", ["// syntax=me/mine\nbuild: x\n", '{"syntax": "me/mine", "a": 1}'])
def test_files_of_other_frontends_are_named(source: str) -> None:
    assert "me/mine" in refused(source).message


# ---------------------------------------------------------------------------------------------------------------------
# Instructions and stages


def test_stages() -> None:
    made = parse((DATA / "stages.Dockerfile").read_bytes())
    assert [(s.index, s.name, s.base, s.platform) for s in made.stages] == [
        (0, "one", "${BASE}", None),
        (1, "two", "one", None),
        (2, "", "scratch", "linux/arm64"),
        (3, "one", "two", None),
    ]  # fmt: skip
    assert [i.keyword for i in made.stages[2].instructions] == ["COPY", "COPY"]
    assert [i.args for i in made.meta_args] == [("BASE=alpine",)]
    found = {name: made.find_stage(name) for name in ("one", "ONE", "two", "0", "+1", "02", "4", "-1", "", "x")}
    assert {n: s.index for n, s in found.items() if s} == {"one": 3, "ONE": 3, "two": 1, "0": 0, "+1": 1, "02": 2}
    assert made.find_named("0") is None
    earlier, later = made.find_base("one", 3), made.find_base("one", 0)
    assert earlier is not None
    assert (earlier.index, later, made.find_base("Two", 3)) == (0, None, None)


def test_flags() -> None:
    made = one("COPY --link --parents=FALSE --exclude=a --exclude=b=c --chown= x y")
    assert made.flag_values("exclude") == ("a", "b=c")
    assert (made.flag("exclude"), made.flag("chown"), made.flag("chmod"), made.flag("link")) == ("b=c", "", None, "")
    assert (made.flag_bool("link"), made.flag_bool("parents"), made.flag_bool("other")) == (True, False, False)


@pytest.mark.parametrize(
    ("line", "pairs"),
    [
        ("ENV a=1 b='2 3'", (("a", "1"), ("b", "'2 3'"))),
        ("ENV k v  w", (("k", "v  w"),)),
        ("LABEL a b=c", (("a", "b=c"),)),
        ("ARG a b=1 c=", (("a", None), ("b", "1"), ("c", ""))),
    ],
)
def test_pairs(line: str, pairs: tuple[tuple[str, str | None], ...]) -> None:
    assert one(line).pairs == pairs


def test_copy_files() -> None:
    made = one("COPY a <<-E b <<'F' /d/\n\t\tx\n\ty\tz\n\tE\n$F\nF\n")
    assert (made.sources, made.dest) == (("a", "b"), "/d/")
    assert made.files == (Heredoc("E", "x\ny\tz\n"), Heredoc("F", "$F\n", expand=False))
    assert made.heredocs[0] == Heredoc("E", "\t\tx\n\ty\tz\n", chomp=True)
    assert made.heredocs[0].chomped() == "x\ny\tz\n"
    twice = one("COPY <<A <<A /d\n1\nA\n2\nA\n")
    assert [f.content for f in twice.files] == ["2\n", "2\n"]
    assert one('COPY ["<<A", "b", "/d"]').files == (Heredoc("A"),)
    spaced = one("COPY <<'a b' /d\nx\na b\n")
    assert (spaced.files, spaced.sources) == ((), ("<<'a", "b'"))


def test_mounts() -> None:
    first, second = one('RUN --mount=type=CACHE,ID=x,dst=/c --mount="from=b,src=/s,\\"target=/a,b\\",ro" make').mounts
    assert (first.type, first.target, first.fields["id"]) == ("cache", "/c", "x")
    assert (second.type, second.from_, second.source, second.target) == ("bind", "b", "/s", "/a,b")
    assert second.fields["readonly"] == "true"
    assert one("COPY --from=a b c").mounts == ()


@pytest.mark.parametrize(
    ("line", "test", "times"),
    [
        ("HEALTHCHECK CMD a  b", ("CMD-SHELL", "a  b"), (0, 0, 0, 0, 0)),
        ('HEALTHCHECK --interval=1.5s --timeout=2m3us --start-period=1h --start-interval=0s --retries=+3 CMD ["a","b"]',
         ("CMD", "a", "b"), (1_500_000_000, 120_000_003_000, 3600 * 10**9, 0, 3)),
        ("HEALTHCHECK none", ("NONE",), (0, 0, 0, 0, 0)),
    ],
)  # fmt: skip
def test_healthcheck(line: str, test: tuple[str, ...], times: tuple[int, ...]) -> None:
    spec = one(line).healthcheck
    assert spec.test == test
    assert (spec.interval, spec.timeout, spec.start_period, spec.start_interval, spec.retries) == times


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("-0", 0), ("5s", 5 * 10**9), ("1m30s", 90 * 10**9), (".5h", 1800 * 10**9), ("1.s", 10**9),
        ("1\xb5s1\u03bcs", 2000), ("-2ms", -2 * 10**6), ("2562047h47m16.854775807s", 2**63 - 1),
        ("-9223372036854775808ns", -(2**63)), ("0.3333333333333333333h", 1200 * 10**9),
    ],
)  # fmt: skip
def test_durations(text: str, value: int) -> None:
    assert parse_duration(text) == value


@pytest.mark.parametrize(
    "text", ["", "-", "3", "s", ".s", "+.s", "1x", "1 s", "9223372036854775808ns", "3000000h", "1" * 5000 + "s", "1.2"]
)
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_onbuild() -> None:
    made = one("ONBUILD   COPY --from=x <<E b /c\ny\nE\n")
    assert made.args == ("COPY --from=x <<E b /c\ny\nE",)
    trigger = made.onbuild
    assert trigger is not None
    assert (trigger.keyword, trigger.flag("from"), trigger.sources, trigger.line) == ("COPY", "x", ("b",), 2)
    assert trigger.files == (Heredoc("E", "y\n"),)
    assert one("RUN x").onbuild is None
    bad = one("ONBUILD nonsense")
    with pytest.raises(OfflineRebuildError, match="unknown instruction") as caught:
        _ = bad.onbuild
    assert caught.value.line == 2


@pytest.mark.parametrize("text", ["", "FROM a", "RUN a\nRUN b", "COPY a"])
def test_bad_triggers(text: str) -> None:
    with pytest.raises(OfflineRebuildError, match="ONBUILD") as caught:
        parse_trigger(text, "Dockerfile", 7)
    assert caught.value.line == 7


def test_expose_is_sorted_and_volume_trimmed() -> None:
    assert one("EXPOSE 90 80/tcp 100").args == ("100", "80/tcp", "90")
    assert one('VOLUME [" /a ", "/b"]').args == ("/a", "/b")


# ---------------------------------------------------------------------------------------------------------------------
# Expansion


ENV = {"V": "1.2", "D": "/d", "U": "me", "P": "80 90", "T": "cache", "Q": 'it\'s "q"', "B": "python"}


@pytest.mark.parametrize(
    ("line", "part", "value"),
    [
        ("ENV a=$V $B='$V' c=\"$V\"", "pairs", (("a", "1.2"), ("python", "$V"), ("c", "1.2"))),
        ("ENV a $V  x", "pairs", (("a", "1.2  x"),)),
        ("LABEL a.$V=\\$V", "pairs", (("a.1.2", "$V"),)),
        ("ARG $B=${V%.*} x", "pairs", (("$B", "1"), ("x", None))),
        ("COPY a$V ${D}x $D/", "sources", ("a1.2", "/dx")),
        ("COPY a$V ${D}x $D/", "dest", "/d/"),
        ("COPY --chown=$U:$U --chmod=$V --exclude=$V --from=a b c", "flags",
         ("--chown=me:me", "--chmod=1.2", "--exclude=$V", "--from=a")),
        ("ADD --checksum=$V --chown=$U a b", "flags", ("--checksum=1.2", "--chown=me")),
        ("WORKDIR $D/x", "args", ("/d/x",)),
        ("USER $U", "args", ("me",)),
        ("VOLUME $D /e", "args", ("/d", "/e")),
        ("STOPSIGNAL ${S:-SIGTERM}", "args", ("SIGTERM",)),
        ("EXPOSE $P 70", "args", ("80", "90", "70")),
        ('RUN --mount=type=$T,target=$D,id="a$V" echo $V', "flags", ("--mount=type=cache,target=/d,id=a1.2",)),
        ("RUN echo $V", "args", ("echo $V",)),
        ("CMD $V", "args", ("$V",)),
        ('ENTRYPOINT ["$V"]', "args", ("$V",)),
        ("HEALTHCHECK --interval=1s CMD $V", "args", ("CMD", "$V")),
        ("ONBUILD ENV a=$V", "args", ("ENV a=$V",)),
        ('SHELL ["$V"]', "args", ("$V",)),
        ("MAINTAINER $V", "args", ("$V",)),
        ("FROM --platform=$V $B:${V#1.} AS x", "flags", ("--platform=1.2",)),
        ("FROM --platform=$V $B:${V#1.} AS x", "args", ("python:2", "AS", "x")),
    ],
)  # fmt: skip
def test_expansion(line: str, part: str, value: object) -> None:
    made = one(line)
    found = expand(made, ENV, Lexer())
    assert getattr(found, part) == value
    assert (found.text, found.raw, found.line) == (made.text, made.raw, made.line)
    if not expandable(made.keyword):
        assert found == made


def test_expanded_heredocs_are_finished() -> None:
    made = one("COPY <<-E <<'F' $D\n\t\"$Q\" \\$V $V\n\tE\n$V\nF\n")
    found = expand(made, {**ENV, "Q": "\tq"}, Lexer("`"))
    assert [f.content for f in found.files] == ['"\tq" $V 1.2\n', "$V\n"]
    assert [h.content for h in found.heredocs] == [f.content for f in found.files]
    assert all(not h.chomp and not h.expand and h.chomped() == h.content for h in found.heredocs)
    assert (found.args, found.dest) == (("<<-E", "<<'F'", "/d"), "/d")
    run = one("RUN <<E\n$V\nE\n")
    assert expand(run, ENV, Lexer()) == run


def test_a_source_that_expands_to_a_heredoc_sign_is_a_path() -> None:
    found = expand(one("COPY $X b c"), {"X": "<<E"}, Lexer())
    assert (found.sources, found.files) == (("<<E", "b"), ())


def test_expansion_errors_have_a_place() -> None:
    with pytest.raises(OfflineRebuildError, match="need it") as caught:
        expand(one('ENV a="${X:?need it}"'), {}, Lexer())
    assert (caught.value.code, caught.value.file, caught.value.line) == ("dockerfile-expansion", "Dockerfile", 2)


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ("type=nfs", "unsupported mount type"), ("bogus=1", "unexpected key"), ("target", "key=value"),
        ("type=bind,size=1g", "unexpected key 'size'"), ("type=bind,required", "unexpected key 'required'"),
        ("type=bind,uid=1", "uid not allowed"), ("type=tmpfs,mode=0755", "mode not allowed"),
        ("type=secret", "source, target required"), ("type=secret,source=a,id=b", "both source and id"),
        ("type=secret,id=a,from=b", "should not have a from"), ("type=bind,sharing=locked", "sharing"),
        ("type=cache,sharing=odd", "invalid value for sharing"), ("type=cache,mode=9", "invalid value for mode"),
        ("type=cache,ro=maybe", "invalid value for ro"), ("type=tmpfs,size=x", "invalid value for size"),
        ("type=cache,uid=-1", "invalid value for uid"),
    ],
)  # fmt: skip
def test_mounts_are_checked_when_they_are_expanded(mount: str, message: str) -> None:
    made = one(f"RUN --mount={mount} x")
    with pytest.raises(OfflineRebuildError, match=message) as caught:
        expand(made, {}, Lexer())
    assert (caught.value.code, caught.value.line) == ("dockerfile-syntax", 2)


@pytest.mark.parametrize(
    "mount",
    [
        "type=cache,target=/x,uid=0,gid=0,mode=0755,sharing=locked,id=a", "type=tmpfs,target=/x,size=1.5GiB",
        "type=secret,id=a,required=true,env=A", "type=ssh,required", "target=/x,source=.,rw=true,from=b",
        "type=secret,target=/x,mode=0400,uid=1", 'type=bind,"target=/a,b"',
    ],
)  # fmt: skip
def test_good_mounts(mount: str) -> None:
    escaped = mount.replace('"', '\\"')
    made = one(f"RUN --mount={escaped} x")
    assert expand(made, {}, Lexer()).mounts == made.mounts


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def test_what_is_not_utf8_is_kept() -> None:
    made = parse(b"FROM a\nRUN \xff\xfe <<E\n\xff\x00\nE\nENV a=\xff\n")
    assert made.instructions[1].args == ("\udcff\udcfe <<E",)
    assert made.instructions[1].heredocs[0].content.encode("utf-8", "surrogateescape") == b"\xff\x00\n"
    assert made.instructions[2].pairs == (("a", "\ufffd"),)  # BuildKit reads ENV rune by rune
    assert made.instructions[2].raw.encode("utf-8", "surrogateescape") == b"ENV a=\xff\n"


HOSTILE = {
    "long line": b"FROM a\nRUN " + b"x" * 10_000_000,
    "long first line": b"# syntax=" + b"x " * 5_000_000,
    "long directive": b"# syntax=x" + b" " * 60_000 + b"y\nFROM a\nBAD\n",
    "nuls": b"\0" * 200_000,
    "nul lines": b"\0\n" * 100_000,
    "spaces in a heredoc": b"FROM a\nRUN <<" + b" " * 60_000 + b"<x\nBAD\n",
    "json": b"FROM a\nCMD " + b"[" * 60_000 + b"\n",
    "onbuild": b"FROM a\n" + b"ONBUILD " * 8_000 + b"RUN x\n",
    "braces": b"FROM a\nRUN <<E " + b"${a:-" * 12_000 + b"\nBAD\n",
    "continuations": b"FROM a\n" + b"RUN \\\n" * 100_000 + b"x\nBAD\n",
    "quotes": b"FROM a\nENV a='" + b"\\" * 60_000 + b"\nBAD\n",
    "stages": b"".join(b"FROM x AS s%d\nCOPY --from=s%d a b\n" % (n, n + 1) for n in range(4_000)) + b"FROM s0\nBAD\n",
    "cycle": b"".join(b"FROM x AS s%d\nCOPY --from=s%d a b\n" % (n, (n + 1) % 2_000) for n in range(2_000)),
    "csv": b"FROM a\nRUN --mount='\"" + b'""' * 30_000 + b"' x\n",
    "heredocs": b"FROM a\nRUN " + b"<<A " * 15_000 + b"\n" + b"A\n" * 10_000,
    "digits": b"FROM a\nHEALTHCHECK --interval=" + b"9" * 60_000 + b"s CMD x\n",
    "retries": b"FROM a\nHEALTHCHECK --retries=" + b"9" * 60_000 + b" CMD x\n",
    "stage number": b"FROM a\nCOPY --from=" + b"9" * 18 + b" a b\n",
    "number in json": b"FROM a\nCMD [" + b"9" * 60_000 + b"]\nBAD\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_quickly_with_a_place(name: str) -> None:
    started = time.monotonic()
    error = refused(HOSTILE[name])
    assert error.line
    assert time.monotonic() - started < 10
    assert len(str(error)) < 600


PIECES = st.sampled_from(
    [b"FROM a\n", b"FROM a AS b\n", b"RUN ", b"COPY ", b"ENV ", b"ONBUILD ", b"HEALTHCHECK ", b"CMD ", b"<<E", b"E\n"]
    + [b"--from=", b"--mount=", b"\\\n", b"# escape=`\n", b"# syntax=", b'["', b'"]', b"=", b"'", b"$", b"${", b"}"]
    + [b"\n", b" ", b"\t", b"\xff", b"\0", b"\xef\xbb\xbf", b"\r\n", b"`", b"\xc2\xa0", b"\xe2\x80\x83", b"a", b"1"]
)


@settings(max_examples=600, derandomize=True, deadline=None)
@given(st.lists(PIECES, max_size=30).map(b"".join) | st.binary(max_size=200))
@example(b"\xef\xbb\xbf")
@example(b"\\")
def test_any_bytes_give_a_dockerfile_or_our_error(source: bytes) -> None:
    try:
        made = parse(source)
    except OfflineRebuildError as error:
        assert error.code == "dockerfile-syntax"
        assert str(error).isprintable()
        assert error.line
        assert error.line <= source.count(b"\n") + 1
        return
    assert made.stages
    for instruction in made.instructions:
        assert instruction.raw.encode("utf-8", "surrogateescape") in source
        assert instruction.mounts is not None
        for use in (lambda i: expand(i, {"a": "b c", "E": "\udcff"}, Lexer(made.escape)), lambda i: i.onbuild):
            try:
                use(instruction)
            except OfflineRebuildError as error:
                assert error.code in ("dockerfile-expansion", "dockerfile-syntax")
                assert error.line == instruction.line
                assert str(error).isprintable()

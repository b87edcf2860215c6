"""The shell lexer against the facts of BuildKit's own tables, and its bounds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild import shellword
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.shellword import Lexer
from tests.unit.figures import record

TABLE: dict[str, Any] = json.loads((Path(__file__).parent.parent / "data" / "shellword.json").read_text("utf-8"))


def word_or_error(word: str, env: Mapping[str, str]) -> str | None:
    try:
        return Lexer().process_word(word, env)
    except OfflineRebuildError:
        return None


def words_or_error(word: str, env: Mapping[str, str]) -> list[str] | None:
    try:
        return Lexer().process_words(word, env)
    except OfflineRebuildError:
        return None


def holds(group: str, row: list[Any]) -> bool:
    """Whether one row of the table holds for our lexer."""
    if group == "environment":
        return word_or_error(row[0], TABLE[group]["env"]) == row[1]
    if group == "words":
        return words_or_error(row[0], row[1]) == row[2]
    if group == "reversed patterns":
        return shellword._reversed(row[0]) == row[1]
    if group == "patterns":
        try:
            rest = shellword._trim_prefix(row[0], row[1], greedy=True)
        except ValueError:
            return row[2] is None
        return row[2] is not None and row[2] + rest == row[1]
    if group == "matches" and row[2] is not None:
        found = Lexer().process_word_with_matches(row[0], row[1])
        return found == (row[2], frozenset(row[3]), frozenset(row[4]))
    if group == "mandatory" and row[2] is None:
        with pytest.raises(OfflineRebuildError, match=row[3]):
            Lexer().process_word(row[0], row[1])
    return word_or_error(row[0], row[1]) == row[2]


def test_table() -> None:
    rows = [(group, row) for group, part in TABLE.items() for row in part["rows"]]
    wrong = [(group, row) for group, row in rows if not holds(group, row)]
    record("exactness", lexer_agree=len(rows) - len(wrong), lexer_total=len(rows))
    assert not wrong
    assert len(rows) > 300


def test_the_table_can_fail() -> None:
    assert not holds("environment", ["he$PWD", "he/elsewhere"])
    assert not holds("words", ["hello there", {}, ["hello there"]])
    assert not holds("matches", ["x ${FOO}", {"FOO": "y"}, "x y", [], []])


@pytest.mark.parametrize(
    ("word", "options", "words"),
    [
        ("COPY <<'a b' <<-\"x\"y /d", {"raw_quotes": True, "raw_escapes": True}, ["COPY", "<<'a b'", '<<-"x"y', "/d"]),
        ("RUN <<  EOF x", {}, ["RUN", "<<  EOF", "x"]),
        ("RUN <<\\$x", {"raw_escapes": True}, ["RUN", "<<\\$x"]),
        ("a$X-${Y} b${Z", {"skip_unset": True, "skip_quotes": True}, None),
        ("a$X-${Y} b", {"skip_unset": True}, ["a$X-${Y}", "b"]),
        ("a ''b '' c", {}, ["a", "b", "c"]),
        ("'a b", {"skip_quotes": True}, ["'a", "b"]),
    ],
)
def test_options(word: str, options: dict[str, bool], words: list[str] | None) -> None:
    lexer = Lexer(**options)
    if words is None:
        with pytest.raises(OfflineRebuildError):
            lexer.process_words(word, {})
    else:
        assert lexer.process_words(word, {}) == words


def test_what_is_not_set_can_stay() -> None:
    lexer = Lexer(skip_unset=True)
    word = "$X ${X} ${X:-a} ${X%b} ${X/c/d}"
    assert lexer.process_word(word, {}) == word
    assert lexer.process_word(word, {"X": "cab"}) == "cab cab cab ca dab"
    assert lexer.process_word("${X//c/d}", {}) == "${X/c/d}"  # as BuildKit writes it


def test_a_default_in_words_drops_what_stood_before_it() -> None:
    """BuildKit shares one buffer between the levels (lex.go, wordsBuffer): only ProcessWords, so EXPOSE, shows it."""
    assert Lexer().process_words("80${X:-90}", {}) == ["90"]
    assert Lexer().process_word("80${X:-90}", {}) == "8090"


def test_backtick_escapes() -> None:
    assert Lexer("`").process_word("C:\\`$X`x\\", {"X": "1"}) == "C:\\$Xx\\"
    assert Lexer("\\").process_word("`$X", {"X": "1"}) == "`1"


@pytest.mark.parametrize(
    "word",
    ["${a:-" * 5000 + "}" * 5000, "${X#" + "*a" * 30000 + "b}", "${X//" + "*a" * 60 + "b/c}", "$X" * 3000, "'" * 9999],
    ids=["nesting", "pattern", "replace", "size", "quotes"],
)
def test_hostile_words_end_quickly(word: str) -> None:
    started = time.monotonic()
    with pytest.raises(OfflineRebuildError) as caught:
        Lexer().process_word(word, {"X": "a" * 20000})
    assert caught.value.code == "dockerfile-expansion"
    assert time.monotonic() - started < 20
    assert len(str(caught.value)) < 600


@settings(max_examples=400, derandomize=True, deadline=None)
@given(
    st.text(st.sampled_from("ab$${}{}:-+?#%/\\'\"<* \t`@1_é\udc80\ufeff\0"), max_size=40),
    st.dictionaries(st.sampled_from(["a", "b", "ab", "1", ""]), st.text(st.sampled_from("ab*/\udc80é "), max_size=6)),
    st.builds(Lexer, st.sampled_from("\\`"), st.booleans(), st.booleans(), st.booleans(), st.booleans()),
)
def test_any_word_gives_a_word_or_our_error(word: str, env: dict[str, str], lexer: Lexer) -> None:
    try:
        result = lexer.process_word_with_matches(word, env)
    except OfflineRebuildError as error:
        assert error.code == "dockerfile-expansion"
        return
    assert result.matched <= set(env)
    assert not result.unmatched & set(env)
    assert isinstance(lexer.process_words(word, env), list)

"""Go's way of printing, as BuildKit's history texts have it: %q, %v and time.Duration."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild.gofmt import go_duration, go_list, go_quote, go_rune, quote


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1100, "1.1µs"),
        (2200000, "2.2ms"),
        (3300000000, "3.3s"),
        (10**9, "1s"),
        (30 * 10**9, "30s"),
        (90 * 10**9, "1m30s"),
        (3600 * 10**9, "1h0m0s"),
        (245 * 10**9, "4m5s"),
        (4 * 10**9 * 3600 + 5 * 60 * 10**9 + 6 * 10**9, "4h5m6s"),
        (-(10**6), "-1ms"),
        (1500 * 10**6, "1.5s"),
        (86400 * 10**9, "24h0m0s"),
        (999999999, "999.999999ms"),
    ],
)
def test_durations(nanoseconds: int, text: str) -> None:
    assert go_duration(nanoseconds) == text


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ("a b", '"a b"'),
        ('a"b\\', '"a\\"b\\\\"'),
        ("\a\b\f\n\r\t\v", '"\\a\\b\\f\\n\\r\\t\\v"'),
        ("\x00\x1f\x7f", '"\\x00\\x1f\\x7f"'),
        ("é日", '"é日"'),
        ("\x85\xa0", '"\\u0085\\u00a0"'),
        ("\u2028", '"\\u2028"'),
        ("\U0001f600", '"\U0001f600"'),
        ("\udcff", '"\\xff"'),
        ("\ue000", '"\\ue000"'),
        ("\U000e0001", '"\\U000e0001"'),
        ("'", '"\'"'),
    ],
)
def test_quoted_strings(text: str, quoted: str) -> None:
    assert quote(text) == quoted


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, r"'\x00'"),
        (3, r"'\x03'"),
        (7, r"'\a'"),
        (9, r"'\t'"),
        (10, r"'\n'"),
        (13, r"'\r'"),
        (30, r"'\x1e'"),
        (34, "'\"'"),
        (39, r"'\''"),
        (65, "'A'"),
        (92, r"'\\'"),
        (127, r"'\x7f'"),
        (128, r"'\u0080'"),
        (0x110000, "'\ufffd'"),
        (0xD800, "'\ufffd'"),
    ],
)
def test_runes(code: int, text: str) -> None:
    assert go_rune(code) == text


def test_lists() -> None:
    assert go_quote([]) == "[]"
    assert go_quote(["a", "b c"]) == '["a" "b c"]'
    assert go_list(["a", "b"]) == "[a b]"


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_different_lists_are_written_differently(one: list[str], other: list[str]) -> None:
    """A match of CMD or ENTRYPOINT rests on it."""
    assert (go_quote(one) == go_quote(other)) == (one == other)

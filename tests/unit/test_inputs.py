"""What an instruction takes from the context: never too little."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild.gomatch import go_match
from module_utils.offline_rebuild.inputs import select, sources_of
from module_utils.offline_rebuild.stage import timelines
from tests.unit.depot import build_input

TREE = {
    "a": "dir",
    "a/x.py": "file",
    "a/y.txt": "file",
    "a/deep": "dir",
    "a/deep/x.py": "file",
    "link": "symlink",
    "b": "dir",
    "b/link": "symlink",
    "b/x.py": "file",
    "top.py": "file",
    "r\\x": "file",
    "[z]": "file",
}
ALL = sorted(TREE)


@pytest.mark.parametrize(
    ("sources", "chosen"),
    [
        (["."], ALL),
        (["/"], ALL),
        ([""], ALL),
        (["a/../.."], ALL),
        (["../a/x.py"], ["a/x.py"]),
        (["a"], ["a", "a/deep", "a/deep/x.py", "a/x.py", "a/y.txt"]),
        (["a/"], ["a", "a/deep", "a/deep/x.py", "a/x.py", "a/y.txt"]),
        (["//top.py", "./b/x.py"], ["b/x.py", "top.py"]),
        (["missing"], []),
        (["*.py"], ["top.py"]),
        (["link"], ALL),
        (["link/x"], ALL),
        (["b/link/x"], ALL),
        (["l*"], ALL),
        (["b/*"], ALL),
        (["a/*.py"], ["a/x.py"]),
        (["a/dee[p]"], ["a/deep", "a/deep/x.py"]),
        (["?/x.py"], ["a/x.py", "b/x.py"]),
        (["*/x.py"], ALL),
        (["*/*/x.py"], ALL),
        (["r\\x"], ["r\\x"]),
        (["\\[z]"], ["[z]"]),
        (["[z"], ALL),
        (["a\\"], ALL),
        (["[]a]"], ALL),
        (["[a-]"], ALL),
    ],
)
def test_selection(sources: list[str], chosen: list[str]) -> None:
    assert select(TREE, sources) == chosen


@pytest.mark.parametrize(
    ("line", "sources"),
    [
        ("COPY a b /d/", ("a", "b")),
        ("COPY $A /d/", ("/",)),
        ("COPY --from=x a /d/", ()),
        ("ADD a https://x/y /d/", ("a",)),
        ("ADD git@github.com:x/y /d/", ("git@github.com:x/y",)),
        ("COPY git@x /d/", ("git@x",)),
        ("COPY <<E /d\nE", ()),
        ("COPY --parents a/./b/c /d/", ("a/b/c",)),
        ("COPY --parents a/**/c /d/", ("/",)),
        ("COPY --parents=false a* /d/", ("a*",)),
        ("RUN --mount=type=bind,target=/x y", ("/",)),
        ("RUN --mount=source=a,target=/x y", ("a",)),
        ("RUN --mount=type=cache,target=/x y", ()),
        ("RUN --mount=type=$T,target=/x y", ("/",)),
        ("RUN --mount=type=bind,source=$S,target=/x y", ("/",)),
        ("RUN --mount=type=secret,id=a y", ()),
        ("RUN y", ()),
        ("RUN --mount=type=$T,from=x,target=/x y", ()),
    ],
)
def test_sources(line: str, sources: tuple[str, ...]) -> None:
    step = timelines(build_input(f"FROM base\n{line}\n"))[0].steps[0]
    assert sources_of(step) == sources
    if "type=$T,from" in line:
        assert step.mounts == (("image", "x"),)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.text(max_size=12), st.text(max_size=6))
def test_any_pattern_is_a_regular_expression_or_nothing(pattern: str, name: str) -> None:
    made = go_match(pattern)
    assert made is None or made.match(name) is None or "/" not in name or "/" in pattern or "[" in pattern
    assert select({"a": "file"}, [pattern]) in (["a"], [])

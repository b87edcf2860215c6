"""Dispatch: the config and the history that engines of three generations gave, and BuildKit's rules one by one."""

from __future__ import annotations

from typing import Any

import pytest

from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.stage import (
    canonical,
    dispatch,
    global_args,
    join_workdir,
    scratch_config,
    start_state,
    target_index,
    timelines,
)
from tests.unit.depot import PLATFORM, build_input, timeline_of
from tests.unit.recorded import RECORDED, Recorded, plain


def ran(text: str, args: dict[str, str] | None = None, base: dict[str, Any] | None = None, target: str = "") -> Any:
    """State and outcomes after a whole Dockerfile."""
    build = build_input(text, args, target)
    outer = global_args(build)
    start = base if base is not None else scratch_config(PLATFORM)
    timeline = timeline_of(build, (start.get("config") or {}).get("OnBuild") or [])
    state = start_state(start)
    return state, [dispatch(state, step, build, outer) for step in timeline.steps]


@pytest.mark.parametrize("case", RECORDED, ids=str)
def test_the_config_after_every_instruction(case: Recorded) -> None:
    """Each prefix of the file was built for real."""
    for text, prefix in case.prefixes():
        state, outcomes = ran(text, case.args, case.base)
        assert plain(state.config) == plain(prefix["config"]), text
        entries = len(case.base["history"]) + sum(1 for outcome in outcomes if outcome.created_by)
        if not case.classic:  # there ONBUILD leaves an entry
            assert entries == prefix["history"], text


@pytest.mark.parametrize("case", [c for c in RECORDED if not c.classic], ids=str)
def test_the_history_that_every_instruction_leaves(case: Recorded) -> None:
    _, outcomes = ran(case.dockerfile, case.args, case.base)
    texts = [outcome for outcome in outcomes if outcome.created_by]
    entries = case.image["history"][len(case.base["history"]) :][: len(texts)]
    for outcome, entry in zip(texts, entries, strict=True):
        assert entry["created_by"] in outcome.created_by
        assert outcome.layer == (not entry.get("empty_layer", False))


def test_arg_scope() -> None:
    text = "ARG G=g\nARG H=$G-h\nFROM scratch\nARG G\nARG H=own\nARG N\nARG B=b\nARG TARGETARCH\n"
    text += "ENV R=$G,$H,$N,$B,$TARGETARCH"
    state, outcomes = ran(text, {"B": "given", "unused": "x"})
    assert state.env["R"] == "g,own,,given,amd64"
    assert outcomes[0].created_by == ("ARG G=g", "ARG G")
    assert outcomes[3].created_by == ("ARG B=given", "ARG B=b")
    assert global_args(build_input(text))["H"] == "g-h"
    assert global_args(build_input(text, {"G": "x"}))["H"] == "x-h"


def test_a_wrong_default_counts_only_where_it_is_used() -> None:
    text = "FROM scratch\nARG A=${B:?is missing}\n"
    assert ran(text, {"A": "1"})[0].env["A"] == "1"
    with pytest.raises(OfflineRebuildError) as caught:
        ran(text)
    assert (caught.value.file, caught.value.line) == ("Dockerfile", 2)


@pytest.mark.parametrize(
    ("text", "args", "prefixes"),
    [
        ("RUN x", {}, ("",)),
        ("ARG A=1\nRUN x", {}, ("|1 A=1 ",)),
        ("ARG A\nRUN x", {}, ("|1 A= ", "")),
        ("ARG A=1\nARG A=2\nRUN x", {}, ("|1 A=2 ", "|2 A=1 A=2 ")),
        ("ARG A=1\nENV A=2\nRUN x", {}, ("|1 A=2 ", "|1 A=1 ", "")),
        ("ENV A=2\nARG A=1\nRUN x", {}, ("|1 A=1 ",)),
        ("ARG B=1\nARG A=2\nRUN x", {}, ("|2 B=1 A=2 ", "|2 A=2 B=1 ")),
        ("ARG A=1\nARG B=2\nENV A=3\nRUN x", {"B": "4"}, ("|2 A=3 B=4 ", "|2 A=1 B=4 ", "|1 B=4 ")),
    ],
)
def test_the_arguments_before_a_run(text: str, args: dict[str, str], prefixes: tuple[str, ...]) -> None:
    _, outcomes = ran(f"FROM scratch\n{text}\n", args)
    assert set(outcomes[-1].created_by) == {f"RUN {prefix}/bin/sh -c x # buildkit" for prefix in prefixes}


def test_arguments_that_a_stage_inherits_may_not_be_shown() -> None:
    text = "FROM scratch AS a\nARG A=1\nRUN x\nFROM a\nARG B=2\nRUN y\n"
    _, outcomes = ran(text)
    assert outcomes[1].partial == ()
    assert outcomes[3].created_by == ("RUN |2 A=1 B=2 /bin/sh -c y # buildkit", "RUN |1 B=2 /bin/sh -c y # buildkit")
    assert outcomes[3].partial == outcomes[3].created_by[1:]


def test_from_stage_starts_anew_what_cmd_and_onbuild_set() -> None:
    text = "FROM scratch AS a\nARG A=1\nCMD x\nONBUILD ENV T=t\nFROM a\nENTRYPOINT y\n"
    state, _ = ran(text)
    assert state.config["Cmd"] is None
    assert not state.config["OnBuild"]
    assert state.env["A"] == "1"
    assert state.env["T"] == "t"
    state, _ = ran(text, target="a")
    assert state.config["Cmd"] == ["/bin/sh", "-c", "x"]
    assert state.config["OnBuild"] == ["ENV T=t"]
    assert ran("FROM scratch\nCMD x\nENTRYPOINT y\n")[0].config["Cmd"] == ["/bin/sh", "-c", "x"]


def test_the_triggers_of_a_base() -> None:
    base = {"config": {"OnBuild": ["RUN a", "COPY <<E /x\n1\nE"], "WorkingDir": "/w/", "Env": ["A=1"]}}
    state, outcomes = ran("FROM base\nRUN b\n", base=base)
    assert [outcome.created_by[0] for outcome in outcomes] == [
        "RUN /bin/sh -c a # buildkit",
        "COPY <<E /x # buildkit",
        "RUN /bin/sh -c b # buildkit",
    ]
    assert not state.config["OnBuild"]
    assert state.config["WorkingDir"] == "/w/"
    assert state.config["Env"][-1].startswith("PATH=/usr/local/sbin")
    assert base["config"]["OnBuild"]  # the base's own config stays as it is


def test_what_reads_what() -> None:
    text = """FROM a AS One
FROM b
FROM c AS three
COPY --from=ONE x /
COPY --from=1 x /
COPY --from=img:1 x /
COPY x /
ADD https://x/y /
COPY git@x /
RUN --mount=from=one,target=/a --mount=type=cache,target=/b x
RUN --mount=type=cache,from=img:2,target=/b --mount=type=tmpfs,target=/t x
COPY <<E /x
1
E
"""
    steps = timelines(build_input(text))[2].steps
    assert [(step.kind, step.source) for step in steps] == [
        ("stage", 0),
        ("stage", 1),
        ("image", "img:1"),
        ("context", None),
        ("remote", None),
        ("context", None),
        ("run", None),
        ("run", None),
        ("context", None),
    ]
    assert [step.mounts for step in steps[6:8]] == [(("stage", 0),), (("image", "img:2"),)]
    assert steps[0].stages == frozenset({0})
    assert steps[6].stages == frozenset({0})


def test_targets() -> None:
    text = "FROM scratch AS a\nFROM scratch\n"
    assert target_index(build_input(text)) == 1
    assert target_index(build_input(text, target="A")) == 0
    with pytest.raises(OfflineRebuildError, match="there are: a"):
        target_index(build_input(text, target="1"))  # findStateByName: a number is no name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM $X\n", "should not be blank"),
        ("FROM a AS b\nCOPY --from=b x /\n", "circular dependency"),
        ("FROM scratch\nEXPOSE 99999\n", "invalid port"),
        ("FROM scratch\nEXPOSE b-a\n", "invalid port"),
        ("FROM scratch\nENV A=${B:?no}\n", "no"),
    ],
)
def test_errors_have_a_place(text: str, message: str) -> None:
    with pytest.raises(OfflineRebuildError, match=message) as caught:
        ran(text)
    assert caught.value.file == "Dockerfile"
    assert caught.value.line


@pytest.mark.parametrize(
    ("current", "path", "joined"),
    [
        ("/", "a", "/a"),
        ("/a", "b/../c/", "/a/c"),
        ("/a", "/x//y", "/x//y"),
        ("/a", "/app/", "/app/"),
        ("", "a", "/a"),
        ("/a", "../../..", "/"),
        ("/", "//x", "//x"),
    ],
)
def test_workdirs(current: str, path: str, joined: str) -> None:
    assert join_workdir(current, path) == joined


def test_the_text_of_a_record_tells_instructions_apart() -> None:
    lines = [
        "RUN a",
        'RUN ["a"]',
        "RUN --network=none a",
        "RUN a b",
        "RUN <<E\na\nE",
        "RUN <<E\nb\nE",
        "RUN <<-E\na\nE",
        "RUN <<'E'\na\nE",
        "COPY a b",
        "COPY --from=x a b",
        "COPY --link a b",
        "ENV a=1 b=2",
        'ENV a="1 b=2"',
    ]
    texts = {canonical(timelines(build_input(f"FROM x\n{line}\n"))[0].steps[0].instruction) for line in lines}
    assert len(texts) == len(lines)

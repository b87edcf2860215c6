"""The derived Dockerfile: what is left to build, on grafts, meaning the same as the whole file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from module_utils.offline_rebuild.derive import (
    Derived,
    _flags_end,
    _renamed,
    _set_by,
    blocked_reason,
    derive,
    remaining,
    way_of,
)
from module_utils.offline_rebuild.dockerfile import parse
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.graft import REGISTRY
from module_utils.offline_rebuild.stage import dispatch, global_args, start_state
from tests.unit.depot import Depot, build_input, tar_of, timeline_of
from tests.unit.test_reuse import BASE, write


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    made = Depot(tmp_path)
    made.build("base:latest", BASE)
    (tmp_path / "context").mkdir()
    return made


def derived(
    depot: Depot, old: str, new: str, args: Mapping[str, str] | None = None, **options: Any
) -> tuple[Derived, list[str]]:
    """Build ``old``, change the file to ``new``; what is derived then, and its lines after the first FROM's graft."""
    options.setdefault("cheapest", "graft")
    depot.build("app:latest", old, args=args, base="base:latest")
    made = derive(depot.analyzer(new, depot.root / "context", args, **options), 1, str(depot.root), {})
    parse(made.text.encode())
    return made, made.text.splitlines()


def config(made: Derived) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(made.grafts[-1].config)
    return document


def meant(text: str, graft: Mapping[str, Any], args: Mapping[str, str] | None = None) -> Any:
    """What BuildKit would make of the derived Dockerfile: state at its end, started from the graft."""
    build = build_input(text, args)
    outer = global_args(build)
    state = start_state(graft)
    for step in timeline_of(build).steps:
        dispatch(state, step, build, outer)
    return state


CASES = [
    # ARGs in scope at the cut, with quotes, and with none
    ("ARG A=1\nARG Q='a \"b\" $c \\\\ d'\nARG N\nRUN x", "RUN y $A $Q", {}),
    ("ARG A=1\nRUN x", "RUN y $A", {"A": "2"}),
    # a build argument must not come out again under an ENV that hides it
    ("ARG H=1\nENV H=/srv/$H\nRUN x", "RUN y $H", {"H": "2"}),
    ("ENV H=x\nARG H=1\nRUN x", "RUN y $H", {"H": "2"}),
    ("ARG H=1\nENV H=/srv/$H\nRUN x", "ARG H\nRUN y $H", {"H": "2"}),
    # a value with a line break comes back as a build argument
    ("ARG PEM\nRUN x", "RUN y", {"PEM": "a\nb"}),
    # what an ENTRYPOINT resets
    ("CMD a\nRUN x", "RUN y\nENTRYPOINT e", {}),
    ("CMD a\nRUN x", "RUN y\nENTRYPOINT e\nCMD c", {}),
    ('USER 7\nWORKDIR /w\nSHELL ["/bin/ash", "-c"]\nRUN x', "RUN y\nCMD z", {}),
    ("LABEL a=1\nEXPOSE 80\nVOLUME /v\nSTOPSIGNAL 9\nHEALTHCHECK CMD t\nMAINTAINER me\nRUN x", "RUN y\nLABEL b=2", {}),
]


@pytest.mark.parametrize(("head", "tail", "args"), CASES)
def test_the_cut_file_means_what_the_whole_file_means(depot: Depot, head: str, tail: str, args: dict[str, str]) -> None:
    old, new = f"FROM base\n{head}\nRUN old\n", f"FROM base\n{head}\n{tail}\n"
    made, lines = derived(depot, old, new, args)
    assert lines[0].startswith(f"FROM {REGISTRY}/graft:")
    base = depot.analyzer("FROM base\n", depot.root / "context").store.find("base")
    assert base is not None
    want, have = meant(new, base.config, args), meant(made.text, config(made), args)
    assert have.config == want.config
    assert have.env == {**want.env, **{k: v for k, v in have.env.items() if want.env.get(k) == v}}
    assert all(have.env.get(key, want.env[key]) == want.env[key] for key in want.env)
    assert have.author == want.author or "MAINTAINER" in head


def test_the_graft_has_the_layers_up_to_the_cut(depot: Depot) -> None:
    made, _ = derived(depot, "FROM base\nRUN a\nENV A=1\nRUN b\nRUN c\n", "FROM base\nRUN a\nENV A=1\nRUN b\nRUN d\n")
    (graft,) = made.grafts
    assert len(graft.diff_ids) == 3
    assert [e["created_by"] for e in config(made)["history"]][-1] == "RUN /bin/sh -c b # buildkit"
    assert "A=1" in config(made)["config"]["Env"]


def test_from_stage(depot: Depot) -> None:
    """CMD and ONBUILD of the stage that is gone on from do not work as those of the stage itself."""
    old = "FROM base AS a\nRUN x\nCMD c\nONBUILD RUN t\nFROM a AS b\nRUN y\nENTRYPOINT e\n"
    new = old.replace("RUN x", "RUN z")
    made, lines = derived(depot, old, new)
    assert not any(line.startswith("ONBUILD") for line in lines)
    state = meant(made.text, config(made))
    assert state.config["Cmd"] is None
    assert [line for line in lines if not line.startswith("FROM")] == [
        "RUN z",
        "CMD c",
        "RUN t",
        "RUN y",
        "ENTRYPOINT e",
    ]
    assert [line.split()[1] for line in lines if line.startswith("FROM")][1] == "offline-rebuild-part-1-0"


@pytest.mark.parametrize("reusable", [True, False])
def test_the_triggers_of_a_base_run_once(depot: Depot, reusable: bool) -> None:
    depot.build("on:latest", "FROM base\nONBUILD RUN t\n", base="base:latest")
    text = "FROM on\nRUN a\n"
    if reusable:
        depot.build("app:latest", text, base="on:latest")
    analyzer = depot.analyzer("FROM on\nRUN b\n", depot.root / "context", cheapest="graft")
    if not reusable:
        depot.inspects = {k: v for k, v in depot.inspects.items() if v["RepoTags"] == ["on:latest"]}
    made = derive(analyzer, 1, str(depot.root), {})
    ran = [line for line in made.text.splitlines() if line.startswith("RUN")]
    onbuild = json.loads(made.grafts[0].config)["config"].get("OnBuild") if made.grafts else ["RUN t"]
    assert ran.count("RUN t") + len(onbuild or []) <= 1 if reusable else ran in (["RUN b"], ["RUN t", "RUN b"])


def test_stages_are_named_apart(depot: Depot) -> None:
    depot.build("tool:1", BASE)
    text = (
        "FROM base AS x\nRUN a\nFROM base AS x\nRUN b\nFROM base\nCOPY --from=0 /f /f\n"
        "RUN --mount=from=tool:1,target=/t \\\n  --mount=type=bind,from=x,target=/u echo from=0 --from=x\n"
    )
    made = derive(depot.analyzer(text, depot.root / "context", cheapest="graft"), 1, str(depot.root), {})
    stages = parse(made.text.encode()).stages
    assert [s.name for s in stages] == ["x", "offline-rebuild-stage-1", "offline-rebuild-stage-2"]
    copy, run = stages[2].instructions
    assert copy.flag("from") == "x"
    image, stage = run.mounts
    assert image.from_.startswith(f"{REGISTRY}/image:")
    assert stage.from_ == "offline-rebuild-stage-1"
    assert run.args == ("echo from=0 --from=x",)
    assert made.target == "offline-rebuild-stage-2"


@pytest.mark.parametrize(
    ("raw", "renamed"),
    [
        ("COPY --from=a from=a /x", "COPY --from=NEW from=a /x"),
        ("copy --from='a' a /x", "copy --from='NEW' a /x"),
        ("RUN --mount=from=a,target=/x cat --from=a", "RUN --mount=from=NEW,target=/x cat --from=a"),
        ('RUN --mount="type=bind,from=a" x from=a', 'RUN --mount="type=bind,from=NEW" x from=a'),
        (
            "RUN --network=none --mount=target=/x,from=A \\\n# a comment\n --security=sandbox \\\n from=a",
            "RUN --network=none --mount=target=/x,from=NEW \\\n# a comment\n --security=sandbox \\\n from=a",
        ),
        ("RUN echo --mount=from=a", "RUN echo --mount=from=a"),
        ("COPY --from=ab a /x", "COPY --from=ab a /x"),
        ("", ""),
    ],
)
def test_names_are_replaced_in_flags_only(raw: str, renamed: str) -> None:
    assert _renamed(raw, ["a"], "NEW", "\\") == renamed
    assert _flags_end(raw, "\\") <= len(raw)


def test_a_name_in_a_form_that_is_not_understood_is_refused(depot: Depot) -> None:
    text = "FROM base AS a\nRUN x\nFROM base\nCOPY --fr\\\nom=0 /f /f\n"
    with pytest.raises(OfflineRebuildError, match="not understood") as caught:
        derive(depot.analyzer(text, depot.root / "context", cheapest="graft"), 1, str(depot.root), {})
    assert caught.value.line == 4


def test_an_argument_that_cannot_be_carried_is_an_error_of_the_plan(depot: Depot) -> None:
    text = "ARG G\nFROM base\nARG G\nARG X=$G\nRUN a\n"
    depot.build("app:latest", text, args={"G": "a\nb"}, base="base:latest")
    analyzer = depot.analyzer(text + "RUN b\n", depot.root / "context", {"G": "a\nb"}, cheapest="graft")
    with pytest.raises(OfflineRebuildError, match="arg-newline"):
        blocked_reason(analyzer)


def test_directives_and_first_arguments_are_kept(depot: Depot) -> None:
    head = "# escape=`\n# check=skip=all\n# syntax=docker/dockerfile:1\nARG V=1\nFROM base\n"
    made, lines = derived(depot, head + "ARG W=a`$b\nRUN x\n", head + "ARG W=a`$b\nRUN y `\n  z $W\n")
    assert lines[0] == "# escape=`"
    assert not any("syntax" in line for line in lines)
    assert "ARG V=1" in lines
    assert 'ARG W="a`$b"' in lines
    assert meant(made.text, config(made)).env["W"] == "a$b"


def test_nothing_left_to_run_is_no_build(depot: Depot) -> None:
    made, _ = derived(depot, "FROM base\nRUN a\nRUN b\n", "FROM base\nRUN a\n")
    assert made.final is not None
    assert len(made.final.diff_ids) == 2


def test_what_a_silent_base_set_must_be_known_before_the_cut(depot: Depot) -> None:
    """A base without a history of instructions had a user that the image's own USER hides."""
    section = {"User": "nonroot", "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
    bazel = {"os": "linux", "architecture": "amd64", "config": section, "history": [{"created_by": "bazel build ..."}]}
    depot.add("silent:1", bazel, [tar_of({"x": "1"})])
    text = "FROM silent:1\nCOPY a /a\nRUN x\nUSER app\nRUN y\n"
    depot.build("app:latest", text, {2: {"a": "1"}}, base="silent:1")
    depot.remove("silent:1")
    context = write(depot.root / "context", {"a": "2"})
    reason, remedy = blocked_reason(depot.analyzer(text, context, cheapest="graft", trusting=True))
    assert "User of the base image silent:1" in reason
    assert "docker pull" in remedy
    write(context, {"a": "1"})
    late = depot.analyzer(text.replace("RUN y", "RUN z"), context, cheapest="graft", trusting=True)
    assert blocked_reason(late) == ("", "")
    assert _set_by(late.stage(0).alignment.outcomes[:3]) >= {("User", "")}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("line", "blocked"),
    [
        ("RUN pip install x", True),
        ("RUN pip install --no-index x", False),
        ("RUN echo pip", False),
        ("RUN apt-get update", True),
        ("RUN <<E\nnpm ci\nE", True),
        ("ADD https://x/y /y", True),
        ("COPY --from=gone:1 /a /a", True),
        ("RUN make", False),
        ("RUN --mount=from=gone:1,target=/t make", True),
    ],
)
def test_what_needs_a_network_is_blocked_before_anything_is_touched(depot: Depot, line: str, blocked: bool) -> None:
    depot.build("app:latest", "FROM base\nRUN a\n", base="base:latest")
    analyzer = depot.analyzer(f"FROM base\nRUN a\n{line}\n", depot.root / "context", cheapest="graft")
    reason, remedy = blocked_reason(analyzer)
    assert bool(reason) == bool(remedy) == blocked
    assert not blocked or "Dockerfile:3" in reason


def test_stages_that_nothing_reads_are_left_out(depot: Depot) -> None:
    text = "FROM base AS a\nRUN x\nFROM base AS b\nRUN y\nFROM base\nCOPY --from=b /f /f\nRUN z\n"
    analyzer = depot.analyzer(text, depot.root / "context", cheapest="graft")
    assert [stage.timeline.index for stage, _ in remaining(analyzer)] == [1, 2]
    assert way_of(analyzer) == "graft"


@pytest.mark.parametrize("present", [True, False])
def test_a_label_goes_unless_dockerfile_or_base_sets_it(depot: Depot, present: bool) -> None:
    depot.build("base:latest", BASE + "LABEL of-base=1\n")
    text = "FROM base\nLABEL own=1\nRUN x\nCMD a\n"
    depot.build("app:latest", text, base="base:latest")
    config = depot.analyzer(text, depot.root / "context").store.find("app:latest")
    assert config is not None
    document: dict[str, Any] = json.loads(json.dumps(config.config))
    document["config"]["Labels"].update({"gone": "1", "kept": "1"})
    depot.add("app:latest", document, [depot.read(layer) for layer in config.diff_ids])
    if not present:
        depot.remove("base:latest")
    analyzer = depot.analyzer(text.replace("CMD a", "CMD b"), depot.root / "context", trusting=True)
    made = derive(analyzer, 1, str(depot.root), {"new": "1"}, ["gone", "own", *(["of-base"] if present else [])])
    assert made.final is not None
    labels = json.loads(made.final.config)["config"]["Labels"]
    assert labels == {"own": "1", "of-base": "1", "kept": "1", "new": "1"}

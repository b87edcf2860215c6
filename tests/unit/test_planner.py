"""The planner's own small decisions."""

from __future__ import annotations

from pathlib import Path

import pytest

from module_utils.offline_rebuild.dockerfile import parse
from module_utils.offline_rebuild.planner import (
    _asks_target_stage,
    _knows_target_stage,
    _rename_remedy,
    _target_stage,
)
from tests.unit.depot import Depot

TEXT = "FROM scratch AS a\nARG TARGETSTAGE\nRUN x $TARGETSTAGE\nFROM a\nRUN y\n"


@pytest.mark.parametrize(
    ("text", "args", "target", "value"),
    [
        (TEXT, {}, "a", "a"),
        (TEXT, {}, "", "default"),
        (TEXT, {"TARGETSTAGE": "mine"}, "a", ""),
        (TEXT.replace("ARG TARGETSTAGE", "ARG TARGETSTAGE=b"), {}, "a", ""),
        ("ARG TARGETSTAGE=b\n" + TEXT, {}, "a", ""),
        (TEXT.replace("TARGETSTAGE", "STAGE"), {}, "a", ""),
    ],
)
def test_the_target_s_name_is_that_of_the_whole_dockerfile(
    tmp_path: Path, text: str, args: dict[str, str], target: str, value: str
) -> None:
    analyzer = Depot(tmp_path).analyzer(text, tmp_path, args, target=target)
    assert _target_stage(analyzer, text) == (["--build-arg", f"TARGETSTAGE={value}"] if value else [])


@pytest.mark.parametrize(
    ("version", "knows"),
    [("20.10.24+dfsg1", False), ("26.1.5", False), ("27.5.1", None), ("28.5.2", True), ("29.0.0", True), ("", None)],
)
def test_engines_that_predefine_the_target_s_name(version: str, knows: bool | None) -> None:
    assert _knows_target_stage(version) is knows


@pytest.mark.parametrize(
    ("text", "args", "asks"),
    [
        (TEXT, {}, True),
        (TEXT, {"TARGETSTAGE": "mine"}, False),
        (TEXT.replace("ARG TARGETSTAGE", "ARG TARGETSTAGE=b"), {}, False),
        ("FROM scratch AS a\nRUN x $TARGETSTAGE\nFROM a\nRUN y\n", {}, False),
        ("FROM scratch AS default\nFROM ${TARGETSTAGE}\n", {}, True),
    ],
)
def test_who_asks_for_the_target_s_name(text: str, args: dict[str, str], asks: bool) -> None:
    assert _asks_target_stage(parse(text.encode()), args) is asks


def test_a_name_that_an_engine_cannot_send_is_told() -> None:
    assert r"rename 'gr\xf6\xdfe/a'," in _rename_remedy(["ok", "größe/a", "gr\udcf6\udcdfe/a"])
    assert _rename_remedy(["ok", "größe/a"]) == ""

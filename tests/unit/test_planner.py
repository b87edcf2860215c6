"""The planner's own small decisions."""

from __future__ import annotations

from pathlib import Path

import pytest

from module_utils.offline_rebuild.planner import _target_stage
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

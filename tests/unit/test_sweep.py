"""What is removed from the state directory, and what stays."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from module_utils.offline_rebuild.sweep import YOUNG, sweep

IMAGE = {"Id": "sha256:here", "RootFS": {"Layers": ["sha256:l1"]}}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    def put(path: str, document: object = None) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document))

    for name, manifest in (("here", "m1"), ("named", "m2"), ("gone", "m3")):
        put(f"records/{name}.json", {"stages": [{"manifests": {"0": f"sha256:{manifest}"}}]})
        put(f"configs/{name}.json")
        put(f"manifests/{manifest}.json")
    put("manifests/nobody.json")
    put("manifests/x.json.77.tmp")
    put("layers/l1.json.gz")
    put("layers/l2.json.gz")
    put("layers/.tmp-abc")
    put("releases/web/r.json", {"services": {"web": {"before": "sha256:named", "after": "sha256:here"}}})
    put("releases/web/r.compose.json", {"services": {"web": {"before": "sha256:gone"}}})
    put("locks/web.lock")
    old = time.time() - YOUNG - 60
    for file in tmp_path.rglob("*"):
        os.utime(file, (old, old))
    return tmp_path


def left(state: Path) -> set[str]:
    return {str(path.relative_to(state)) for path in state.rglob("*") if path.is_file()}


GONE = {
    "records/gone.json", "configs/gone.json", "manifests/m3.json", "manifests/nobody.json", "manifests/x.json.77.tmp",
    "layers/l2.json.gz", "layers/.tmp-abc",
}  # fmt: skip


def test_what_nobody_needs_goes(state: Path) -> None:
    before = left(state)
    removed = sweep(str(state), [IMAGE])
    assert {os.path.relpath(path, state) for path in removed} == before - left(state) == GONE
    assert sweep(str(state), [IMAGE]) == []


def test_what_is_young_stays(state: Path) -> None:
    for path in GONE:
        os.utime(state / path)
    assert sweep(str(state), [IMAGE]) == []


def test_with_a_record_that_cannot_be_read_no_manifest_goes(state: Path) -> None:
    (state / "records/here.json").write_text("{")
    sweep(str(state), [IMAGE])
    assert {path for path in left(state) if path.startswith("manifests/")} == {
        "manifests/m1.json", "manifests/m2.json", "manifests/m3.json", "manifests/nobody.json",
        "manifests/x.json.77.tmp",
    }  # fmt: skip


def test_nothing_is_there(tmp_path: Path) -> None:
    assert sweep(str(tmp_path / "absent"), []) == []

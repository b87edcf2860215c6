"""The module context_hash, run as Ansible runs it: arguments on standard input, JSON on standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from module_utils.offline_rebuild.context import Context

ROOT = Path(__file__).parent.parent.parent
# What Ansible's loader does: module_utils/ of the project appears below ansible.module_utils.
RUN = f"""
import runpy
import ansible.module_utils
import ansible.module_utils.basic as basic
ansible.module_utils.__path__.append({str(ROOT / "module_utils")!r})
basic._ANSIBLE_PROFILE = "legacy"
runpy.run_path({str(ROOT / "library" / "context_hash.py")!r}, run_name="__main__")
"""


def run_module(check: bool = False, **options: Any) -> dict[str, Any]:
    arguments = {"ANSIBLE_MODULE_ARGS": {**options, "_ansible_check_mode": check}}
    run = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(arguments), capture_output=True, text=True, check=False
    )
    assert "Traceback" not in run.stderr, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "ctx"
    (root / "build").mkdir(parents=True)
    (root / "app.py").write_bytes(b"print()\n")
    (root / "run.sh").write_bytes(b"exit\n")
    (root / os.fsdecode(b"caf\xe9")).write_bytes(b"x")
    (root / "build" / "Dockerfile").write_text("FROM scratch\n")
    (root / "build" / "Dockerfile.dockerignore").write_text("build\n")
    return root


def test_digest_and_changes(tree, tmp_path):
    state, recorded = tmp_path / "state", tmp_path / "manifest.json"
    spec = {"path": str(tree), "dockerfile": "build/Dockerfile", "name": "app"}
    checked = run_module(check=True, contexts=[spec], state_dir=str(state))
    assert not state.exists()
    result = run_module(contexts=[spec, {"path": str(tree)}], state_dir=str(state), files=True)
    assert len(list((state / "index").iterdir())) == 2
    first, second = result["contexts"]
    assert (result["changed"], checked["changed"]) == (False, False)
    assert first["digest"] == checked["contexts"][0]["digest"] != second["digest"]
    assert (first["name"], first["files"], first["bytes"]) == ("app", 3, 14)
    assert first["ignore_file"] == str(tree / "build" / "Dockerfile.dockerignore")
    assert [entry["path"] for entry in first["entries"]] == ["app.py", r"caf\xe9", "run.sh"]
    assert second["files"] == 5

    recorded.write_text(Context(str(tree)).manifest().to_json(), "utf-8")
    (tree / "app.py").write_bytes(b"print()\r\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "build" / "Dockerfile").unlink()
    found = run_module(contexts=[{"path": str(tree), "manifest": str(recorded)}], state_dir=str(state))
    assert found["contexts"][0]["changes"] == [
        {"path": "app.py", "kind": "changed", "what": ["content"], "note": "only the line ends differ"},
        {"path": "build/Dockerfile", "kind": "deleted", "what": [], "note": ""},
        {"path": "run.sh", "kind": "changed", "what": ["mode"], "note": "only the mode differs"},
    ]
    assert "entries" not in found["contexts"][0]


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        (lambda tree: (tree / ".dockerignore").write_text("ok\n[\n"), "ignorefile-syntax"),
        (lambda tree: tree.rename(tree.parent / "gone"), "context-missing"),
        (lambda tree: (tree.parent / "manifest.json").write_text("{}"), "manifest-invalid"),
        (lambda tree: (tree.parent / "manifest.json").write_bytes(b"\xff"), "manifest-unreadable"),
    ],
)
def test_errors_have_code_and_remedy(tree, tmp_path, prepare, code):
    prepare(tree)
    spec = {"path": str(tree)}
    if code.startswith("manifest"):
        spec["manifest"] = str(tmp_path / "manifest.json")
    failed = run_module(contexts=[spec], state_dir=str(tmp_path / "state"))
    assert failed["failed"] is True
    assert failed["error"]["code"] == code
    assert failed["error"]["remedy"]
    assert failed["error"]["line"] == (2 if code == "ignorefile-syntax" else None)
    assert code in failed["msg"]

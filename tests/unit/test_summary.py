"""The rebuild's summary: hosts with the same line are named together, through the role's own template."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from control_node.confirm import grouped

ROOT = Path(__file__).resolve().parents[2]
SAME = "backend: rebuild by assemble"


def test_hosts_with_the_same_line_are_named_together() -> None:
    assert grouped({}) == []
    assert grouped({"a": "x"}) == ["a: x"]
    assert grouped({"a": "x", "b": "y", "c": "x"}) == ["2 hosts (a, c): x", "b: y"]
    assert grouped({f"app{n}": SAME for n in range(1, 41)}) == [f"40 hosts (app1 ... app40): {SAME}"]


def test_the_roles_summary_groups_forty_hosts(tmp_path: Path) -> None:
    hosts = {f"app{n}": {"__offline_rebuild_result": {"msg": SAME, "changed": True}} for n in range(1, 41)}
    hosts["odd"] = {"__offline_rebuild_result": {"msg": "nothing changed", "advice": [{"says": "a"}, {"says": "a"}]}}
    inventory = {"all": {"hosts": hosts, "vars": {"ansible_connection": "local"}}}
    play = [
        {
            "hosts": "all",
            "gather_facts": False,
            "tasks": [
                {"ansible.builtin.import_role": {"name": "offline_rebuild", "tasks_from": "status"}, "when": "false"},
                {"ansible.builtin.debug": {"msg": "{{ __offline_rebuild_summary | to_json }}"}, "run_once": True},
            ],
        }
    ]
    (tmp_path / "inventory.json").write_text(json.dumps(inventory), encoding="utf-8")
    (tmp_path / "play.yml").write_text(json.dumps(play), encoding="utf-8")
    argv = [Path(sys.executable).parent / "ansible-playbook", "-i", tmp_path / "inventory.json", tmp_path / "play.yml"]
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    done = subprocess.run([*argv, "--check"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"40 hosts (app1 ... app40): {SAME}" in done.stdout
    assert "odd: nothing changed" in done.stdout
    assert done.stdout.count("advice: a") == 1

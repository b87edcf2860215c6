"""The comparison of hosts after a run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

PLUGIN = Path(__file__).resolve().parents[2] / "roles/offline_rebuild/filter_plugins/fleet.py"
_spec = importlib.util.spec_from_file_location("fleet", PLUGIN)
assert _spec is not None
assert _spec.loader is not None
fleet = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fleet)


def result(inputs: str = "i", config: str = "sha256:" + "c" * 64, way: str = "assemble", ancestor: str = "a") -> Any:
    made = {"service": "web", "way": way, "inputs": inputs, "ancestor_digest": ancestor, "config_digest": config}
    return {"plan": {"services": [{"service": "web", "inputs": inputs}]}, "images": [{**made, "layers": ["l"]}]}


def unchanged(inputs: str) -> Any:
    return {"plan": {"services": [{"service": "web", "inputs": inputs}, {"service": "db", "inputs": ""}]}}


def test_hosts_that_agree() -> None:
    hosts = {"a": result(), "b": result(), "c": {}, "d": {"failed": True, "msg": "x"}, "e": unchanged("i")}
    assert fleet.compare(hosts) == {"images": [], "trees": []}
    assert fleet.compare({}) == {"images": [], "trees": []}


def test_the_same_tree_and_another_image() -> None:
    other = result(config="sha256:" + "d" * 64)
    found = fleet.compare({"a": result(), "b": other, "c": result()})
    assert found["images"] == [
        f"web: the same tree and ancestor gave different images: {'c' * 12} on a, c and {'d' * 12} on b"
    ]
    for allowed in (result(config="d", way="graft"), result(config="d", ancestor="b"), result("j", config="d")):
        assert fleet.compare({"a": result(), "b": allowed})["images"] == []


def test_other_layers_under_one_config_are_another_image() -> None:
    other = result()
    other["images"][0]["layers"] = ["m"]
    assert len(fleet.compare({"a": result(), "b": other})["images"]) == 1


def test_trees_that_are_not_those_of_most() -> None:
    hosts = {"a": unchanged("i"), "b": result("j"), "c": unchanged("i"), "d": result("k"), "e": unchanged("i")}
    assert fleet.compare(hosts)["trees"] == ["web: the tree on b, d is not most hosts'"]
    assert fleet.compare({"a": unchanged("i"), "b": unchanged("j")})["trees"] == [
        "web: the tree on b is not the one on a"
    ]

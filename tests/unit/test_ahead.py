"""Scans ahead: used for the same context by the same rules, and for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from module_utils.offline_rebuild import ahead as ahead_module
from module_utils.offline_rebuild.ahead import Ahead
from module_utils.offline_rebuild.context import Context
from module_utils.offline_rebuild.ignorefile import load


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "Dockerfile").write_text("FROM scratch\n")
    (tree / "a.txt").write_text("a")
    return tree


def taken(made: Ahead, tree: Path, classic: bool = False) -> Context | None:
    dockerfile = str(tree / "Dockerfile")
    return made.take(str(tree), dockerfile, classic, load(str(tree), dockerfile, classic))


def remembered(state: Path, tree: Path, services: frozenset[str] = frozenset()) -> Ahead:
    Ahead(str(state), ["project"], may_write=True).remember({"web": (str(tree), str(tree / "Dockerfile"), False)})
    return Ahead(str(state), ["project"], services, may_write=True)


def test_nothing_is_known_before_the_first_run(tmp_path: Path, tree: Path) -> None:
    assert taken(Ahead(str(tmp_path / "state"), ["project"]), tree) is None


def test_the_context_of_the_last_run_is_scanned_as_it_is_now(tmp_path: Path, tree: Path) -> None:
    remembered(tmp_path / "state", tree)
    (tree / "b.txt").write_text("b")
    context = taken(Ahead(str(tmp_path / "state"), ["project"]), tree)
    assert context is not None
    assert set(context.manifest()) == {"Dockerfile", "a.txt", "b.txt"}


def test_it_is_handed_out_once(tmp_path: Path, tree: Path) -> None:
    made = remembered(tmp_path / "state", tree)
    assert taken(made, tree) is not None
    assert taken(made, tree) is None


@pytest.mark.parametrize("what", ["another project", "another service", "other rules", "classic", "old", "gone"])
def test_another_scan_is_not_used(tmp_path: Path, tree: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    made = remembered(state, tree, frozenset(["db"]) if what == "another service" else frozenset())
    if what == "another project":
        made = Ahead(str(state), ["other"])
    if what == "other rules":
        assert made._later is not None
        made._later.result()
        (tree / ".dockerignore").write_text("a.txt\n")
    if what == "old":
        monkeypatch.setattr(ahead_module, "MOST_AGE", -1.0)
    if what == "gone":
        elsewhere = tree.rename(tmp_path / "elsewhere")
        made = Ahead(str(state), ["project"])
        assert made._later is not None
        assert made._later.result() == {}
        elsewhere.rename(tree)
    assert taken(made, tree, classic=what == "classic") is None


def test_check_mode_writes_nothing(tmp_path: Path, tree: Path) -> None:
    state = tmp_path / "state"
    made = Ahead(str(state), ["project"])
    made.remember({"web": (str(tree), str(tree / "Dockerfile"), False)})
    assert not state.exists()


def test_services_that_a_run_is_not_for_are_remembered_too(tmp_path: Path, tree: Path) -> None:
    made = remembered(tmp_path / "state", tree, frozenset(["db"]))
    made.remember({"db": (str(tree), str(tree / "Other"), False)})
    assert taken(Ahead(str(tmp_path / "state"), ["project"], frozenset(["web"])), tree) is not None


@pytest.mark.parametrize("text", ["", "[]", '{"web": 1}', '{"web": ["a"]}', "\0"])
def test_a_broken_file_counts_as_none(tmp_path: Path, tree: Path, text: str) -> None:
    remembered(tmp_path / "state", tree)
    (file,) = (tmp_path / "state/index").glob("*.contexts")
    file.write_text(text)
    assert taken(Ahead(str(tmp_path / "state"), ["project"]), tree) is None

"""Overlay: what is laid over an image, what is not, and above all when there is none. Images on disk, no engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from module_utils.offline_rebuild.derive import blocked_reason, derive_overlay
from module_utils.offline_rebuild.dockerfile import parse
from module_utils.offline_rebuild.history import OVERLAY_COMMENT
from module_utils.offline_rebuild.overlay import Overlay, Refused, is_dependency, plan_overlay
from module_utils.offline_rebuild.reuse import Analyzer
from module_utils.offline_rebuild.thin import write_layer
from tests.unit.depot import CREATED
from tests.unit.test_modes import recorded
from tests.unit.test_thin import TIME, Files, Site

TEXT = """WORKDIR /app
COPY . .
RUN pip install -r requirements.txt
RUN compile-messages && rm -rf tests
USER app
CMD ["python", "main.py"]
"""
TREE: Files = {
    "app": ("dir", 0o755, 0, ""),
    "app/requirements.txt": ("file", 0o644, 0, "fastapi\n"),
    "app/main.py": ("file", 0o644, 0, "print(1)\n"),
    "app/util.py": ("file", 0o644, 0, "pass\n"),
    "app/generated.cfg": ("file", 0o644, 0, "empty\n"),
    "app/old.cfg": ("file", 0o644, 0, "empty\n"),
    "app/pkg": ("dir", 0o755, 0, ""),
    "app/pkg/a.py": ("file", 0o644, 0, "a\n"),
    "app/lone": ("dir", 0o755, 0, ""),
    "app/lone/only.txt": ("file", 0o644, 0, "x\n"),
    "app/tests": ("dir", 0o755, 0, ""),
    "app/tests/t.py": ("file", 0o644, 0, "t\n"),
}
#: The install gives everything another owner in util.py's case; the second RUN changes, adds and removes files.
INSTALL: Files = {"app": TREE["app"], "app/util.py": ("file", 0o750, 1000, "pass\n")}
COMPILE: Files = {
    "app": TREE["app"],
    "app/.wh.tests": ("file", 0o644, 0, ""),
    "app/generated.cfg": ("file", 0o644, 0, "made\n"),
    "app/old.cfg": ("file", 0o644, 0, "made\n"),
    "app/pkg": TREE["app/pkg"],
    "app/pkg/a.pyc": ("file", 0o644, 0, "compiled\n"),
}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.write({path[4:]: text for path, (kind, _, _, text) in TREE.items() if kind == "file"})
    made.build(TEXT, {"app": TREE["app"]}, TREE, INSTALL, COMPILE)
    return made


def analyzer(site: Site, **options: Any) -> Analyzer:
    args = options.pop("args", None)
    return site.depot.analyzer(site.text, site.tree, args, **options)


def overlay(site: Site, files: tuple[str, ...] = (), again: tuple[str, ...] = (), **options: Any) -> Overlay:
    found = analyzer(site, **options)
    assert blocked_reason(found)[0]
    return plan_overlay(found, files, again, {})


def members(made: Overlay) -> dict[str, tuple[int, int]]:
    return {item.path: (item.entry.mode, item.entry.uid) for item in made.layer.items if item.entry.type == "file"}


@pytest.mark.parametrize("record", [False, True])
def test_sources_that_changed_and_nothing_else(site: Site, record: bool) -> None:
    if record:
        recorded(site, "exact")
    site.write({"main.py": "print(2)\n", "util.py": "return\n", "new/n.py": "n\n"})
    (site.tree / "lone/only.txt").unlink()
    (site.tree / "lone").rmdir()
    made = overlay(site)
    # a RUN gave util.py another mode and owner: these stay
    assert members(made) == {"app/main.py": (0o644, 0), "app/util.py": (0o750, 1000), "app/new/n.py": (0o644, 0)}
    assert made.layer.whiteouts == ("app/lone",)
    assert made.layer.kept_layers == 5
    assert made.layer.comment == OVERLAY_COMMENT
    assert [step.instruction.line for step in made.not_run] == [4, 5]
    assert made.said == ("a RUN gave it another mode or owner, which it keeps: /app/util.py",)
    assert made.layer.state.config["User"] == "app"
    with (site.tree.parent / "layer").open("wb") as stream:
        write_layer(made.layer, stream, TIME)
    history = made.layer.history([{"created_by": "x"}] * made.layer.kept, CREATED)
    assert [entry.get("comment") for entry in history][-1] == OVERLAY_COMMENT


def test_what_a_run_changed_or_removed(site: Site) -> None:
    site.write({"main.py": "print(2)\n"})
    made = overlay(site)
    assert members(made) == {"app/main.py": (0o644, 0)}  # neither tests/ nor generated.cfg: their sources are as before
    assert made.said == ()
    site.write({"tests/t.py": "T\n", "generated.cfg": "other\n"})
    (site.tree / "old.cfg").unlink()
    (site.tree / "pkg/a.py").unlink()
    (site.tree / "pkg").rmdir()
    made = overlay(site)
    assert set(members(made)) == {"app/main.py", "app/tests/t.py", "app/generated.cfg"}
    assert {item.path for item in made.layer.items if item.entry.type == "dir"} == {"app", "app/pkg", "app/tests"}
    assert made.layer.whiteouts == ("app/pkg/a.py",)
    assert made.said == (
        "a RUN changed it, and its source has changed: the source replaces it: /app/generated.cfg",
        "a RUN removed it, and its source has changed: it is there again: /app/tests/t.py",
        "the source is gone and it stays, since a RUN changed it: /app/old.cfg",
        "the source is gone and the folder stays, since something else put files there: /app/pkg",
    )


def edit(files: Mapping[str, str] | None = None, text: tuple[str, str] = ("", "")) -> Callable[[Site], None]:
    def apply(site: Site) -> None:
        site.write({"main.py": "print(2)\n", **(files or {})})
        assert text[0] in site.text
        site.text = site.text.replace(*text) if text[0] else site.text

    return apply


REFUSED = {
    "a requirement": (edit({"requirements.txt": "fastapi==2\n"}), "dependency file requirements.txt is changed"),
    "a requirement elsewhere": (edit({"pkg/package.json": "{}"}), "dependency file pkg/package.json is added"),
    "a named file": (edit({"pkg/a.py": "b\n"}), "dependency file pkg/a.py is changed"),
    "a RUN": (edit(text=("RUN pip install", "RUN pip install -U")), "line 4 RUN pip install -U"),
    "a RUN's flag": (edit(text=("RUN pip", "RUN --network=host pip")), "line 4 RUN"),
    "a RUN in between": (edit(text=("RUN compile", "RUN new\nRUN compile")), "line 5 RUN new"),
    "a RUN taken out": (edit(text=("RUN compile-messages && rm -rf tests\n", "")), "line 5 USER app|instruction more"),
    "the base": (edit(text=("FROM base", "FROM other")), ""),
    "an ARG": (edit(text=("WORKDIR /app\n", "ARG A=1\nWORKDIR /app\n")), ""),
    "an ENV ahead of a RUN": (edit(text=("RUN pip", "ENV A=1\nRUN pip")), "line 4 ENV A=1"),
    "the COPY": (edit(text=("COPY . .", "COPY . ./x")), "line 3 COPY . ./x"),
    "another COPY": (edit(text=("USER app", "COPY main.py /m\nUSER app")), "line 6 COPY main.py /m"),
    "a file that a RUN names": (edit({"compile-messages": "x"}), "compile-messages is added, and line 5"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("record", [False, True])
def test_anything_but_sources_changed(site: Site, name: str, record: bool) -> None:
    if record:
        recorded(site, "exact")
    apply, said = REFUSED[name]
    apply(site)
    if name in ("a RUN's flag", "the base") and not record:  # in no image: assumed and said, as without an overlay
        assert ("--network" if "flag" in name else "FROM other") in " ".join(overlay(site).assumed)
        return
    with pytest.raises(Refused) as caught:
        plan_overlay(analyzer(site), ("pkg/*.py",), (), {})
    assert any(text in str(caught.value) for text in said.split("|")), str(caught.value)


def test_a_build_argument_changed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write({"main.py": "1"})
    layer: Files = {"app": TREE["app"], "app/main.py": ("file", 0o644, 0, "1")}
    site.build("ARG V=1\nCOPY . /app/\nRUN pip install x\n", layer, {})
    site.write({"main.py": "2"})
    assert overlay(site).layer.items
    with pytest.raises(Refused, match="line 4 RUN pip install x: the instruction is new or changed"):
        plan_overlay(analyzer(site, args={"V": "2"}), (), (), {})


def test_metadata_at_the_end_are_as_the_dockerfile_has_them(site: Site) -> None:
    site.write({"main.py": "print(2)\n"})
    site.text = site.text.replace("USER app\n", "ENV B=2\nUSER www\n").replace("main.py", "-u")
    made = overlay(site)
    assert made.layer.state.config["User"] == "www"
    assert made.layer.state.config["Cmd"] == ["python", "-u"]
    assert "B=2" in made.layer.state.config["Env"]
    entries = made.layer.history([{}] * made.layer.kept, CREATED)[made.layer.kept :]
    assert [entry["created_by"].split()[0] for entry in entries] == ["ENV", "USER", "CMD", "offline-rebuild"]


def test_where_nothing_is_blocked_nothing_is_asked(site: Site) -> None:
    site.text = site.text.replace("main.py", "-u")
    assert blocked_reason(analyzer(site)) == ("", "")


@pytest.mark.parametrize("wanted", ["compile-messages", "RUN  compile-messages && rm", "5"])
def test_a_run_that_runs_again(site: Site, wanted: str) -> None:
    site.write({"main.py": "print(2)\n", "compile-messages": "x"})
    made = overlay(site, again=(wanted,))
    assert made.again == (3,)
    assert [step.instruction.line for step in made.not_run] == [4]
    found = derive_overlay(analyzer(site), made.stage, made.layer, made.again, TIME, str(site.tree.parent), {"l": None})
    (graft,) = found.grafts
    config = json.loads(graft.config)
    assert config["history"][-1]["comment"] == OVERLAY_COMMENT
    assert config["config"].get("User", "") == ""  # that of the RUN, not of the end
    assert len(graft.diff_ids) == 6
    (stage,) = parse(found.text.encode()).stages
    assert [i.keyword for i in stage.instructions] == ["RUN", "USER", "CMD"]
    assert stage.from_instruction.text.split()[1] == graft.ref
    assert found.target == stage.name


@pytest.mark.parametrize(("wanted", "said"), [("pip install", "needs a network"), ("RUN 1", "")])
def test_a_run_that_cannot_run_again(site: Site, wanted: str, said: str) -> None:
    site.write({"main.py": "print(2)\n"})
    if said:
        with pytest.raises(Refused, match=said):
            plan_overlay(analyzer(site), (), (wanted,), {})
    else:
        assert overlay(site, again=(wanted,)).again == ()


def test_the_key_stands_for_all_that_the_result_depends_on(site: Site) -> None:
    site.write({"main.py": "print(2)\n"})
    first = overlay(site)
    assert overlay(site).key == first.key
    assert overlay(site, again=("5",)).key != first.key
    assert plan_overlay(analyzer(site), (), (), {"a": "1"}).key != first.key
    site.write({"main.py": "print(3)\n"})
    assert overlay(site).key != first.key
    site.write({"main.py": "print(2)\n"})
    site.text = site.text.replace("USER app", "USER www")
    assert overlay(site).key != first.key


def add_overlay(site: Site, keep: bool) -> Overlay:
    """Put the image with an overlay on the host as ``app:latest``; the imported one as ``app:imported`` or not."""
    made = overlay(site)
    found = derive_overlay(analyzer(site), made.stage, made.layer, (), TIME, str(site.tree.parent), {})
    (document,) = found.grafts
    for carried in document.carried:
        site.depot.blob(Path(carried.path).read_bytes())
    site.depot.blob(document.config)
    assert document.manifest is not None
    image_id = site.depot.blob(document.manifest)
    old = site.image("app:latest").id
    site.depot.inspects[old]["RepoTags"] = ["app:imported"]
    if not keep:
        site.depot.inspects.pop(old)
    inspect = {"Id": image_id, "RepoTags": ["app:latest"], "RootFS": {"Layers": list(document.diff_ids)}}
    site.depot.inspects = {k: v for k, v in site.depot.inspects.items() if k != "app:latest"}
    site.depot.inspects[image_id] = inspect
    return made


@pytest.mark.parametrize("keep", [True, False])
def test_an_image_with_an_overlay_proves_nothing(site: Site, keep: bool) -> None:
    site.write({"main.py": "print(2)\n"})
    first = add_overlay(site, keep)
    again = overlay(site, preferred=("app:latest",))
    assert again.key == first.key  # whether the imported image is still there or not
    assert again.layer.kept_layers == first.layer.kept_layers
    stage = analyzer(site, preferred=("app:latest",)).stage(0)
    assert stage.proven == 1
    assert stage.alignment is not None
    assert (OVERLAY_COMMENT in {e.comment for e in stage.alignment.image.history}) != keep
    site.write({"main.py": "print(1)\n"})  # as it was
    back = analyzer(site, preferred=("app:latest",)).stage(0)
    assert back.whole
    assert back.alignment is not None
    assert back.alignment.whole == keep  # never the overlay's image itself
    assert not back.record


@pytest.mark.parametrize(
    ("path", "patterns", "known"),
    [
        ("requirements-dev.txt", (), True),
        ("a/b/poetry.lock", (), True),
        ("package-lock.json", (), True),
        ("app/requirements/base.txt", (), True),
        ("main.py", (), False),
        ("deps/list", ("deps",), True),
        ("deps/list", ("./deps/",), True),
        ("deps/a/list", ("deps/*",), True),
        ("deps.d", ("deps",), False),
        ("x", ("", "/", "./"), False),
    ],
)
def test_dependency_files(path: str, patterns: tuple[str, ...], known: bool) -> None:
    assert is_dependency(path, patterns) == known


def test_a_later_copy_of_another_stage_stays(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write({"main.py": "1", "web/index.html": "old"})
    first: Files = {
        "app": TREE["app"],
        "app/main.py": ("file", 0o644, 0, "1"),
        "app/web": TREE["app"],
        "app/web/index.html": ("file", 0o644, 0, "old"),
    }
    built: Files = {"app": TREE["app"], "app/web": TREE["app"], "app/web/index.html": ("file", 0o644, 0, "built")}
    site.depot.build("web:1", "FROM scratch\nCOPY index.html /\n", {2: {"index.html": "built"}})
    site.build("COPY . /app/\nRUN pip install x\nCOPY --from=web:1 /index.html /app/web/\n", first, {}, built)
    site.write({"main.py": "2", "web/index.html": "new"})
    assert set(members(overlay(site))) == {"app/main.py"}


def test_a_file_that_one_copy_no_longer_writes_and_another_does(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write({"a/f": "1", "b/f": "2", "b/g": "g"})
    one: Files = {"app": TREE["app"], "app/f": ("file", 0o644, 0, "1")}
    two: Files = {"app": TREE["app"], "app/f": ("file", 0o644, 0, "2"), "app/g": ("file", 0o644, 0, "g")}
    site.build("COPY a /app/\nCOPY b /app/\nRUN pip install x\n", one, two, {})
    (site.tree / "b/f").unlink()
    made = overlay(site)
    assert members(made) == {"app/f": (0o644, 0)}
    assert made.layer.whiteouts == ()
    (item,) = [item for item in made.layer.items if item.path == "app/f"]
    assert item.wanted is not None
    assert item.wanted.read() == b"1"


def test_a_base_s_file_that_would_come_back_is_refused(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write({"kept": "ours\n", "x": "1"})
    layer: Files = {
        "srv": ("dir", 0o755, 0, ""),
        "srv/kept": ("file", 0o644, 0, "ours\n"),
        "srv/x": ("file", 0o644, 0, "1"),
    }
    site.build("COPY . /srv/\nRUN pip install x\n", layer, {})
    (site.tree / "kept").unlink()
    with pytest.raises(Refused, match="no longer copied and an earlier layer has another one"):
        overlay(site)


def test_an_unchanged_tree_has_no_overlay(site: Site) -> None:
    made = analyzer(site)
    assert made.stage(0).whole
    with pytest.raises(Refused, match="no source differs"):
        plan_overlay(made, (), (), {})
    assert replace(made.stage(0), alignment=None).whole is False


def test_other_metadata_on_the_same_layers_is_another_result(site: Site) -> None:
    site.write({"main.py": "print(2)\n"})
    first = overlay(site).key
    image = site.image("app:latest")
    document = json.loads(json.dumps(image.config))
    document["config"]["Labels"] = {"x": "1"}
    site.depot.add("app:latest", document, [site.depot.read(layer) for layer in image.diff_ids])
    assert overlay(site).key != first

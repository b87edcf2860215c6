"""``modes: image``, and the command that mends modes and line ends. Images on disk, the real readers, no engine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from module_utils.offline_rebuild.context import Context, Manifest, diff
from module_utils.offline_rebuild.derive import blocked_reason, derive
from module_utils.offline_rebuild.plan import mend_command
from module_utils.offline_rebuild.records import StageRecord
from module_utils.offline_rebuild.reuse import Analyzer
from module_utils.offline_rebuild.stage import canonical
from tests.unit.test_thin import Files, Site

#: What the image holds; in the tree, everything has the mode that a FAT stick gives.
APP: Files = {
    "app": ("dir", 0o755, 0, ""),
    "app/main.py": ("file", 0o644, 0, "print(1)\n"),
    "app/run.sh": ("file", 0o755, 0, "exec python main.py\n"),
    "app/data": ("dir", 0o700, 0, ""),
    "app/data/key": ("file", 0o600, 0, "k\n"),
}
LOST = 0o777


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.write({path[4:]: text for path, (kind, _, _, text) in APP.items() if kind == "file"}, LOST)
    (made.tree / "data").chmod(LOST)
    made.build("COPY . /app/\n", APP)
    return made


def analyzed(site: Site, modes: str = "image", text: str = "") -> Analyzer:
    return site.depot.analyzer(text or site.text, site.tree, modes=modes)


def recorded(site: Site, modes: str) -> StageRecord:
    """As the planner records what an analysis has proven to be in the image."""
    analyzer = analyzed(site, modes)
    stage = analyzer.stage(0)
    assert stage.whole, stage.reason
    assert stage.alignment is not None
    stored = {}
    for place, manifest in stage.manifests.items():
        path = Path(analyzer.records.manifest_path(manifest.digest()))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(manifest.to_json())
        stored[str(place)] = manifest.digest()
    texts = tuple(canonical(step.instruction) for step in stage.timeline.steps)
    base = stage.base.id if stage.base else ""
    image, alignment = stage.alignment.image, stage.alignment
    record = StageRecord("base", base, alignment.boundary, alignment.positions, stage.keys, texts, stored, modes=modes)
    assert analyzer.records.write(image.id, image.config_digest, record)
    return record


def layer_of(analyzer: Analyzer) -> dict[str, tuple[str, int]]:
    layer, why_not = analyzer.thin(0)
    assert layer is not None, why_not
    return {item.path: (item.entry.type, item.entry.mode) for item in layer.items}


def test_a_tree_that_lost_its_modes(site: Site) -> None:
    exact, image = analyzed(site, "exact").stage(0), analyzed(site).stage(0)
    assert exact.proven == 0
    assert {change.what for change in exact.changes} == {("mode",)}
    assert image.whole, image.reason
    assert image.modes == {0: {"main.py": 0o644, "run.sh": 0o755, "data": 0o700, "data/key": 0o600}}


@pytest.mark.parametrize("record", [False, True])
def test_new_content_gets_the_mode_of_the_image_and_new_files_that_of_the_tree(site: Site, record: bool) -> None:
    if record:
        recorded(site, "image")
    site.write({"data/key": "other\n", "new.py": "n\n"}, LOST)
    analyzer = analyzed(site)
    assert {(c.path, c.kind, c.what) for c in analyzer.stage(0).changes} == {
        ("data/key", "changed", ("content",)),
        ("new.py", "added", ()),
    }
    assert layer_of(analyzer) == {
        "app": ("dir", 0o755),
        "app/data": ("dir", 0o700),
        "app/data/key": ("file", 0o600),
        "app/new.py": ("file", LOST),
    }
    assert analyzer.stage(0).evidence == ("recorded" if record else "observed")
    assert blocked_reason(analyzer) == ("", "")


def test_another_type_does_not_take_a_mode(site: Site) -> None:
    (site.tree / "run.sh").unlink()
    (site.tree / "run.sh").symlink_to("main.py")
    analyzer = analyzed(site)
    assert "run.sh" not in analyzer.stage(0).modes[0]
    assert ("run.sh", ("type",)) in {(c.path, c.what) for c in analyzer.stage(0).changes}


def test_a_record_of_modes_from_the_image_does_not_fool_an_exact_run(site: Site) -> None:
    record = recorded(site, "image")
    assert record.modes == "image"
    (kept,) = analyzed(site).records.of(*ids(site))
    assert kept.modes == "image"
    again = analyzed(site)
    assert again.stage(0).whole
    assert again.stage(0).evidence == "recorded"
    exact = analyzed(site, "exact")
    assert exact.stage(0).proven == 0
    assert {change.note for change in exact.stage(0).changes} == {"only the mode differs"}
    assert layer_of(exact)["app/main.py"] == ("file", LOST)
    for path, (kind, mode, _, _) in APP.items():
        if path != "app":
            (site.tree / path[4:]).chmod(mode)
            assert kind in ("file", "dir")
    mended = analyzed(site, "exact").stage(0)
    assert mended.whole, mended.reason
    assert mended.evidence == "recorded"


def ids(site: Site) -> tuple[str, str]:
    image = site.image("app:latest")
    return image.id, image.config_digest


def test_a_tree_that_was_recorded_with_its_modes_and_lost_them(site: Site) -> None:
    modes(site)
    recorded(site, "exact")
    lose(site)
    assert analyzed(site, "exact").stage(0).proven == 0
    stage = analyzed(site).stage(0)
    assert stage.whole, stage.reason
    assert stage.evidence == "recorded"
    assert set(stage.modes[0]) == {"main.py", "run.sh", "data", "data/key"}


def modes(site: Site) -> None:
    for path, (_, mode, _, _) in APP.items():
        if path != "app":
            (site.tree / path[4:]).chmod(mode)


def lose(site: Site) -> None:
    for path in APP:
        if path != "app":
            (site.tree / path[4:]).chmod(LOST)


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("edit", ["", "a RUN before it", "the COPY itself is new"])
def test_a_copy_that_has_to_be_built_is_blocked(site: Site, record: bool, edit: str) -> None:
    """BuildKit would copy the modes of the tree."""
    site.build("RUN x\nCOPY . /app/\nRUN y\n", {}, APP)
    if record:
        recorded(site, "image")
    text = site.text.replace("RUN x", "RUN z") if edit else site.text
    text = text.replace("/app/", "/srv/app/") if "new" in edit else text
    analyzer = analyzed(site, text=text)
    reason, remedy = blocked_reason(analyzer)
    if edit != "a RUN before it":
        assert reason == remedy == ""
        assert [s.instruction.line for s in analyzer.without_counterpart(analyzer.stage(0))] == ([3] if edit else [])
        return
    assert "not with modes: image, because Dockerfile:3 COPY . /app/ has to be built" in reason
    assert "4 of its files" in reason
    subprocess.run(["sh", "-ec", remedy.partition(": ")[2]], check=True)
    mended = analyzed(site, text=text)
    assert blocked_reason(mended) == ("", "")
    assert "COPY . /app/" in derive(mended, 1, str(site.tree.parent), {}).text


def test_modes_that_a_flag_gives_are_not_taken(site: Site) -> None:
    flagged: Files = {path: (kind, 0o755, owner, text) for path, (kind, _, owner, text) in APP.items()}
    site.build("COPY --chmod=755 . /app/\n", flagged)
    stage = analyzed(site).stage(0)
    assert stage.whole, stage.reason
    assert stage.modes == {}


def test_manifests_with_other_modes(site: Site) -> None:
    site.write({"odd\\\tname": "x", "deep/er/x": "x"})
    whole = Context(str(site.tree)).manifest()
    part = Manifest.from_entries({"deep/er/x": whole["deep/er/x"]})  # its folders are not in it
    modes = {"deep/er/x": 0o600, "odd\\\tname": 0o601, "not/there": 0o1}
    for manifest, changed in ((whole, ["deep/er/x", "odd\\\tname"]), (part, ["deep/er/x"])):
        made = manifest.with_modes(modes)
        assert [(c.path, c.what) for c in diff(manifest, made)] == [(path, ("mode",)) for path in changed]
        assert made["deep/er/x"].mode == 0o600
        assert made.with_modes({"deep/er/x": 0o644, "odd\\\tname": 0o644}).digest() == manifest.digest()


# -- the command that mends


def mend(site: Site, **options: Any) -> str:
    analyzer = analyzed(site, "exact", **options)
    found = analyzer.differences(analyzer.stage(0))
    return mend_command(str(site.tree), ((change.mend, change.path) for change in found))


def break_tree(site: Site, count: int) -> None:
    """Modes and line ends of ``count`` files that the image has in good order."""
    texts = {f"pkg/it's {number}.txt": f"{number}\nline\n" for number in range(count)}
    crlf = {"-dos.bat": "a\r\nb\r\n"}
    both = {**texts, **crlf}
    mode = {path: 0o755 if len(path) % 2 else 0o644 for path in both}
    rest: Files = {
        "app": ("dir", 0o755, 0, ""),
        "app/pkg": ("dir", 0o755, 0, ""),
        **{f"app/{path}": ("file", mode[path], 0, text) for path, text in texts.items()},
    }
    dos: Files = {f"app/{path}": ("file", mode[path], 0, text) for path, text in crlf.items()}
    first: Files = {"first": ("file", 0o640, 0, "1\n")}
    site.build("COPY first /first\nRUN x\nCOPY pkg /app/pkg/\nCOPY -dos.bat /app/\n", first, {}, rest, dos)
    site.write({"first": "1\n"}, LOST)
    for number, (path, text) in enumerate(both.items()):
        (site.tree / path).parent.mkdir(exist_ok=True)
        other = text.replace("\r\n", "\n") if path in crlf else text.replace("\n", "\r\n")
        ends = path in crlf or number % 3 == 0
        (site.tree / path).write_bytes((other if ends else text).encode())
        (site.tree / path).chmod(mode[path] if ends else LOST)
    (site.tree / "pkg").chmod(0o755)


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("record", [False, True])
def test_one_command_mends_modes_and_line_ends(site: Site, count: int, record: bool) -> None:
    break_tree(site, count)
    command = mend(site)
    assert command.startswith("cd ")
    if record:  # beside the manifests of a record, too
        subprocess.run(["sh", "-ec", command], check=True)
        recorded(site, "exact")
        break_tree(site, count)
        assert mend(site) == command
    assert analyzed(site, "exact").stage(0).proven == 0
    subprocess.run(["sh", "-ec", command], check=True)
    stage = analyzed(site, "exact").stage(0)
    assert stage.whole, (stage.reason, command)
    assert mend(site) == ""


def test_nothing_is_said_where_no_command_would_mend(site: Site) -> None:
    modes(site)
    for old, new in ((b"a\r\nb", b"a\nb"), (b"a\n\r", b"a\r\n\r"), (b"one\n", b"two\n")):
        (site.tree / "main.py").write_bytes(new)
        site.build("COPY . /app/\n", {**APP, "app/main.py": ("file", 0o755, 0, old.decode())})
        (site.tree / "main.py").chmod(0o755)
        assert analyzed(site, "exact").stage(0).changes
        assert mend(site) == ""


def test_a_mode_that_a_flag_gave_is_not_mended_in_the_tree(site: Site) -> None:
    site.build("COPY --chmod=700 main.py /app/main.py\n", APP)
    assert analyzed(site, "exact").stage(0).changes
    assert mend(site) == ""

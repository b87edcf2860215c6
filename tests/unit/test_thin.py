"""Thin layers: what is in them, that both ways to plan one agree, and what is refused. Images on disk, no engine."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from module_utils.offline_rebuild.context import Context
from module_utils.offline_rebuild.derive import thin_document
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.image import ImageStore
from module_utils.offline_rebuild.layers import LayerEntry
from module_utils.offline_rebuild.records import StageRecord
from module_utils.offline_rebuild.reuse import Analyzer
from module_utils.offline_rebuild.stage import canonical
from module_utils.offline_rebuild.thin import ThinLayer, Unsuited, _info, _member, _Sink, check_names, write_layer
from tests.unit.depot import CREATED, Depot, made_config

BASE = "FROM scratch\nADD root.tar /\nCMD base\n"
TIME = 1767323045
#: path to (kind, mode, owner, content or link)
Files = Mapping[str, tuple[str, int, int, str]]
ROOT: Files = {
    "etc": ("dir", 0o755, 0, ""),
    "etc/passwd": ("file", 0o644, 0, "app:x:1000:1000::/:/bin/sh\n"),
    "opt": ("dir", 0o750, 7, ""),
    "opt/real": ("dir", 0o1777, 0, ""),
    "opt/link": ("symlink", 0o777, 0, "/opt/real"),
    "srv": ("dir", 0o755, 0, ""),
    "srv/kept": ("file", 0o600, 5, "of the base\n"),
}


def tar_of(files: Files) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, (kind, mode, owner, text) in files.items():
            info = tarfile.TarInfo(path)
            info.mode, info.uid, info.gid = mode, owner, owner
            info.type = {"dir": tarfile.DIRTYPE, "file": tarfile.REGTYPE, "symlink": tarfile.SYMTYPE}[kind]
            data = text.encode() if kind == "file" else b""
            info.size, info.linkname = len(data), text if kind == "symlink" else ""
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


class Site:
    """A host with the base, an image of a tree, and the tree."""

    def __init__(self, root: Path) -> None:
        self.depot = Depot(root / "host")
        self.tree = root / "tree"
        self.tree.mkdir()
        self.text = ""
        base = made_config(BASE)
        self.depot.add("base:latest", base, [tar_of(ROOT)])
        self.base = self.image("base:latest").config

    def image(self, ref: str) -> Any:
        return ImageStore(self.depot).find(ref)  # type: ignore[arg-type]

    def write(self, files: Mapping[str, str], mode: int = 0o644) -> None:
        for name, text in files.items():
            path = self.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(mode)

    def build(self, text: str, *layers: Files) -> None:
        """The image ``app:latest`` of this Dockerfile (after ``FROM base``); ``layers`` are those of its own."""
        self.text = "FROM base\n" + text
        config = made_config(self.text, base=self.base)
        own = [*layers, *[{}] * (len(config["rootfs"]["diff_ids"]) - 1 - len(layers))]  # WORKDIR makes one, too
        self.depot.add("app:latest", config, [tar_of(ROOT), *map(tar_of, own)])

    def analyzer(self) -> Analyzer:
        return self.depot.analyzer(self.text, self.tree)

    def record(self) -> None:
        """As ``prime`` does: the tree is what the image holds."""
        analyzer = self.analyzer()
        stage = analyzer.stage(analyzer.target)
        assert stage.whole, stage.reason
        assert stage.alignment is not None
        self.keep(analyzer, stage.alignment.image, stage.alignment.positions, stage.alignment.boundary)

    def keep(self, analyzer: Analyzer, image: Any, positions: tuple[int, ...], boundary: int) -> None:
        keys, manifests = analyzer.keys(analyzer.target)
        stored = {}
        for place, manifest in manifests.items():
            path = Path(analyzer.records.manifest_path(manifest.digest()))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(manifest.to_json())
            stored[str(place)] = manifest.digest()
        timeline = analyzer.timelines[analyzer.target]
        base = analyzer.base_of(timeline)
        assert base is not None
        texts = tuple(canonical(step.instruction) for step in timeline.steps)
        record = StageRecord("base", base.id, boundary, positions, keys, texts, stored)
        assert analyzer.records.write(image.id, image.config_digest, record)

    def plan(self, record: bool = True) -> tuple[ThinLayer | None, str]:
        analyzer = self.analyzer()
        if not record:
            analyzer._manifests_of = lambda *_: None  # type: ignore[method-assign]
        return analyzer.thin(analyzer.target)

    def layer(self) -> tuple[dict[str, tarfile.TarInfo], bytes]:
        """The layer by both ways, which must agree: its members and its bytes."""
        made = []
        for record in (True, False):
            layer, why_not = self.plan(record)
            assert layer is not None, why_not
            stream = io.BytesIO()
            diff_id, size = write_layer(layer, stream, TIME)
            assert size == len(stream.getvalue())
            assert diff_id == "sha256:" + hashlib.sha256(stream.getvalue()).hexdigest()
            made.append(stream.getvalue())
        assert made[0] == made[1]
        with tarfile.open(fileobj=io.BytesIO(made[0])) as archive:
            return {member.name: member for member in archive}, made[0]

    def make(self) -> None:
        """Put the image with the thin layer on the host, as ``app:latest``, with its record."""
        analyzer = self.analyzer()
        stage, (layer, why_not) = analyzer.stage(analyzer.target), analyzer.thin(analyzer.target)
        assert layer is not None, why_not
        assert stage.alignment is not None
        document = thin_document(stage, layer, CREATED, TIME, str(self.tree.parent), {})
        for carried in document.carried:
            self.depot.blob(Path(carried.path).read_bytes())
        self.depot.blob(document.config)
        assert document.manifest is not None
        image_id = self.depot.blob(document.manifest)
        self.depot.remove("app:latest")
        self.depot.inspects[image_id] = {
            "Id": image_id,
            "RepoTags": ["app:latest"],
            "RootFS": {"Layers": list(document.diff_ids)},
        }
        positions = list(stage.alignment.positions)
        positions[-1] = len(json.loads(document.config)["history"])
        positions[layer.start + 1 : layer.end] = [-1] * (layer.end - layer.start - 1)
        self.keep(analyzer, self.image("app:latest"), tuple(positions), stage.alignment.boundary)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def simple(site: Site, more: str = "") -> None:
    """COPY . /app of three files in two folders."""
    site.write({"a.txt": "one\n", "sub/b.txt": "two\n", "sub/c.txt": "three\n"})
    (site.tree / "sub").chmod(0o700)
    site.build(
        f"COPY . /app/\n{more}CMD app\n",
        {
            "app": ("dir", 0o755, 0, ""),
            "app/a.txt": ("file", 0o644, 0, "one\n"),
            "app/sub": ("dir", 0o700, 0, ""),
            "app/sub/b.txt": ("file", 0o644, 0, "two\n"),
            "app/sub/c.txt": ("file", 0o644, 0, "three\n"),
        },
    )
    site.record()


def test_a_changed_file_and_its_parents(site: Site) -> None:
    simple(site)
    site.write({"sub/b.txt": "TWO\n"})
    members, data = site.layer()
    assert {name: (m.mode, m.mtime) for name, m in members.items()} == {
        "app": (0o755, TIME),
        "app/sub": (0o700, TIME),
        "app/sub/b.txt": (0o644, TIME),
    }
    assert b"TWO\n" in data
    assert b"three" not in data


def test_deleted_added_and_changed_in_mode(site: Site) -> None:
    simple(site)
    (site.tree / "sub/c.txt").unlink()
    (site.tree / "sub/b.txt").chmod(0o4755)
    site.write({"new/deep/x": "new\n"}, 0o600)
    members, _ = site.layer()
    assert set(members) == {
        "app/sub/.wh.c.txt", "app", "app/new", "app/new/deep", "app/new/deep/x", "app/sub", "app/sub/b.txt",
    }  # fmt: skip
    assert members["app/sub/b.txt"].mode == 0o4755
    assert members["app/new/deep/x"].mode == 0o600


def test_a_deleted_folder_is_one_whiteout(site: Site) -> None:
    simple(site)
    for name in ("b.txt", "c.txt"):
        (site.tree / "sub" / name).unlink()
    (site.tree / "sub").rmdir()
    members, _ = site.layer()
    assert set(members) == {"app/.wh.sub", "app"}


def test_times_make_no_difference(site: Site) -> None:
    simple(site)
    site.write({"a.txt": "ONE\n"})
    _, one = site.layer()
    os.utime(site.tree / "a.txt", (5, 5))
    os.utime(site.tree / "sub", (6, 6))
    assert site.layer()[1] == one


def test_workdir_into_a_copied_folder_leaves_it_as_copied(site: Site) -> None:
    simple(site, "WORKDIR /app/sub\n")
    site.write({"a.txt": "ONE\n"})
    members, _ = site.layer()
    assert set(members) == {"app", "app/a.txt"}


def test_workdir_makes_a_folder_that_is_copied_no_more(site: Site) -> None:
    simple(site, "WORKDIR /app/sub\n")
    for name in ("b.txt", "c.txt"):
        (site.tree / "sub" / name).unlink()
    (site.tree / "sub").rmdir()
    members, _ = site.layer()
    assert set(members) == {"app/sub/.wh.b.txt", "app/sub/.wh.c.txt", "app", "app/sub"}
    assert members["app/sub"].mode == 0o755


def test_a_thin_layer_on_an_image_that_has_one(site: Site) -> None:
    """The imported ancestor is gone: the new layer is still the difference to what lies below the first one."""
    simple(site)
    site.write({"a.txt": "ONE\n"})
    site.make()
    site.depot.remove("base:latest")
    site.write({"sub/b.txt": "TWO\n"})
    members, data = site.layer()
    assert set(members) == {"app", "app/a.txt", "app/sub", "app/sub/b.txt"}
    assert b"ONE\n" in data
    layer, _ = site.plan()
    assert layer is not None
    assert layer.kept_layers == 2


@pytest.mark.parametrize("source", ["link", "link/.", "way/real"])
def test_a_source_behind_a_link(site: Site, source: str) -> None:
    """What differs elsewhere in the tree, or only goes, must not make the source seem absent."""
    site.write({"real/x": "1\n", "real/y": "2\n", "other": "3\n"})
    (site.tree / "link").symlink_to("real")
    (site.tree / "way").symlink_to(".")
    files: Files = {
        "app": ("dir", 0o755, 0, ""),
        "app/x": ("file", 0o644, 0, "1\n"),
        "app/y": ("file", 0o644, 0, "2\n"),
    }
    site.build(f"COPY {source} /app/\n", files)
    site.record()
    (site.tree / "real/y").unlink()
    members, _ = site.layer()
    assert set(members) == {"app/.wh.y", "app"}


def test_destination_through_a_link_of_the_image(site: Site) -> None:
    site.write({"x": "1\n"})
    site.build("COPY . /opt/link/\n", {**ROOT, "opt/real/x": ("file", 0o644, 0, "1\n")})
    site.record()
    site.write({"x": "2\n"})
    members, _ = site.layer()
    assert {name: (m.mode, m.uid) for name, m in members.items()} == {
        "opt": (0o750, 7), "opt/real": (0o1777, 0), "opt/real/x": (0o644, 0),
    }  # fmt: skip


def test_a_link_that_leads_out_of_the_image_stays_inside(site: Site) -> None:
    site.write({"x": "1\n"})
    link: Files = {"srv/out": ("symlink", 0o777, 0, "../../../../opt/real")}
    site.depot.add("base:latest", made_config(BASE), [tar_of({**ROOT, **link})])
    site.base = site.image("base:latest").config
    site.text = "FROM base\nCOPY . /srv/out/\n"
    config = made_config(site.text, base=site.base)
    site.depot.add("app:latest", config, [tar_of({**ROOT, **link}), tar_of({"opt/real/x": ("file", 0o644, 0, "1\n")})])
    site.record()
    site.write({"x": "2\n"})
    members, _ = site.layer()
    assert set(members) == {"opt", "opt/real", "opt/real/x"}


def test_owner_by_name(site: Site) -> None:
    site.write({"x": "1\n", "y": "2\n"})
    files: Files = {
        "app": ("dir", 0o755, 1000, ""),
        "app/x": ("file", 0o644, 1000, "1\n"),
        "app/y": ("file", 0o644, 1000, "2\n"),
    }
    site.build("COPY --chown=app . /app/\nWORKDIR /app\n", files)
    site.record()
    site.write({"x": "changed\n"})
    members, _ = site.layer()
    assert {m.uid for m in members.values()} == {1000}


def test_an_earlier_layer_has_another_file_there(site: Site) -> None:
    site.write({"kept": "of the context\n", "x": "1\n"})
    files: Files = {"srv/kept": ("file", 0o644, 0, "of the context\n"), "srv/x": ("file", 0o644, 0, "1\n")}
    site.build("COPY . /srv/\n", files)
    site.record()
    (site.tree / "kept").unlink()
    for record in (True, False):
        layer, why_not = site.plan(record)
        assert layer is None
        assert "an earlier layer has another one" in why_not


@pytest.mark.parametrize("record", [True, False])
def test_file_and_folder_change_places(site: Site, record: bool) -> None:
    simple(site)
    (site.tree / "a.txt").unlink()
    site.write({"a.txt/inside": "x\n"})
    layer, why_not = site.plan(record)
    assert layer is None
    assert "was a file in the image and becomes a dir" in why_not


def test_two_copies_of_one_place(site: Site) -> None:
    """The later one stands; and what it no longer covers comes back from the earlier one."""
    site.write({"one/f": "1\n", "one/g": "1\n", "two/f": "2\n"})
    site.build(
        "COPY one /app/\nCOPY two /app/\n",
        {
            "app": ("dir", 0o755, 0, ""),
            "app/f": ("file", 0o644, 0, "1\n"),
            "app/g": ("file", 0o644, 0, "1\n"),
        },
        {"app": ("dir", 0o755, 0, ""), "app/f": ("file", 0o644, 0, "2\n")},
    )
    site.record()
    site.write({"one/f": "changed below\n", "one/g": "G\n"})
    members, data = site.layer()
    assert set(members) == {"app", "app/g"}
    assert b"G\n" in data
    site.write({"one/f": "1\n", "one/g": "1\n"})
    (site.tree / "two/f").rename(site.tree / "two/h")
    layer, why_not = site.plan()
    assert layer is None
    assert "an earlier layer has another one" in why_not


# -- bad input ---------------------------------------------------------------------------------------------------------


def stale(site: Site, change: Callable[[Path], object], size: int) -> str:
    """The error's code when a file changes after the plan; nothing is returned to load."""
    simple(site)
    site.write({"a.txt": "x" * size})
    layer, why_not = site.plan()
    assert layer is not None, why_not
    change(site.tree / "a.txt")
    with pytest.raises(OfflineRebuildError) as caught:
        write_layer(layer, io.BytesIO(), TIME)
    assert "a.txt" in str(caught.value)
    return caught.value.code


def swap(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"x", b"y"))


def to_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("size", [100, (1 << 20) + 7])
@pytest.mark.parametrize("change", [swap, Path.unlink, to_link, lambda path: path.write_text("short")])
def test_a_file_that_changes_or_goes_after_the_plan(site: Site, change: Callable[[Path], object], size: int) -> None:
    assert stale(site, change, size) == "context-changed"


@pytest.mark.parametrize("name", [".wh.a.txt", "sub/.wh..wh..opq"])
def test_a_name_that_no_layer_can_hold(site: Site, name: str) -> None:
    simple(site)
    site.write({name: "x"})
    for record in (True, False):
        with pytest.raises(OfflineRebuildError) as caught:
            site.plan(record)
        assert caught.value.code == "name-whiteout"
        assert name in str(caught.value)


@pytest.mark.parametrize(("length", "fits"), [(251, True), (252, False), (255, False)])
def test_long_names(site: Site, length: int, fits: bool) -> None:
    """A whiteout of the name needs four bytes more, and no file system has names of more than 255."""
    simple(site)
    site.write({"n" * length: "x"})
    if fits:
        members, _ = site.layer()
        assert "app/" + "n" * length in members
        return
    layer, why_not = site.plan()
    assert layer is None
    assert "too long" in why_not


def test_a_name_of_300_bytes() -> None:
    """None can be on a disk here; one that a manifest names is refused all the same."""
    with pytest.raises(Unsuited, match="too long"):
        check_names({}, {"app/" + "n" * 300})


def test_names_that_are_not_utf8_and_deep_paths(site: Site) -> None:
    simple(site)
    deep = "/".join(["d" * 90] * 4)
    site.write({"bad-\udcff": "x", f"{deep}/\udcfe": "y"})
    _, data = site.layer()
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        assert {"app/bad-\udcff", f"app/{deep}/\udcfe"} <= set(archive.getnames())


@pytest.mark.parametrize("xattrs", [(), (("security.capability", "0100000200000000"),)])
@pytest.mark.parametrize("size", [(8 << 30) - 1, 8 << 30, (8 << 30) + 1, 1 << 40])
def test_the_header_of_a_file_of_more_than_8_gib(size: int, xattrs: tuple[tuple[str, str], ...]) -> None:
    """GNU's base 256 and PAX's record, which Go's archive/tar reads as tarfile does."""
    stream = io.BytesIO()
    _member(_Sink(stream), _info("app/huge", LayerEntry("file", 0o644, size=size, xattrs=xattrs), TIME))
    stream.seek(0)
    with tarfile.open(fileobj=stream, errors="surrogateescape") as archive:
        member = archive.next()
    assert member is not None
    assert (member.name, member.size, bool(member.pax_headers)) == ("app/huge", size, bool(xattrs))


def test_a_large_file_is_never_whole_in_memory(site: Site) -> None:
    size = 96 << 20
    simple(site)
    with (site.tree / "a.txt").open("r+b") as handle:
        handle.truncate(size)  # sparse
    layer, why_not = site.plan()
    assert layer is not None, why_not
    digest = hashlib.sha256()

    class Sink(io.RawIOBase):
        def write(self, data: Any) -> int:
            digest.update(data)
            return len(data)

    tracemalloc.start()
    try:
        diff_id, written = write_layer(layer, Sink(), TIME)  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert size < written < size + 8192
    assert diff_id == "sha256:" + digest.hexdigest()


@pytest.mark.parametrize("kind", ["another's", "edited", "cut", "gone"])
def test_a_manifest_that_is_not_the_recorded_one_is_not_used(site: Site, kind: str) -> None:
    """A stored manifest of the edited tree, under the name of the recorded one, must not make the change disappear."""
    simple(site)
    analyzer = site.analyzer()
    analyzer.keys(analyzer.target)
    (recorded,) = (site.depot.root / "state/manifests").iterdir()
    text = recorded.read_text()
    site.write({"a.txt": "ONE\n"})
    edited = Context(str(site.tree)).manifest().to_json()
    assert edited != text
    forged = {"another's": edited, "edited": text.replace("a.txt", "b.txt"), "cut": text[:-9], "gone": ""}[kind]
    recorded.write_text(forged)
    members, data = site.layer()
    assert set(members) == {"app", "app/a.txt"}
    assert b"ONE\n" in data


@pytest.mark.parametrize("kind", ["checksum", "another layer", "cut", "no list"])
def test_evidence_that_is_not_of_this_layer_is_ignored(site: Site, kind: str) -> None:
    """A kept list that says what the edited tree says must not make the change disappear."""
    simple(site)
    site.write({"a.txt": "ONE\n"})
    image = site.image("app:latest")
    told = hashlib.sha256(b"ONE\n").hexdigest()
    lie = {
        "schema": 1,
        "diff_id": image.diff_ids[1] if kind != "another layer" else image.diff_ids[0],
        "entries": {"app/a.txt": ["file", 0o644, 0, 0, 4, 0, "sha256:" + told, "", [], 0]},
        "whiteouts": [],
        "opaques": [],
    }  # fmt: skip
    body = json.dumps(lie).encode() if kind != "no list" else b"[]"
    checksum = hashlib.sha256(body).hexdigest() if kind != "checksum" else "0" * 64
    data = gzip.compress(checksum.encode() + b"\n" + body)
    path = site.depot.root / "state/layers" / (image.diff_ids[1].split(":")[1] + ".json.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[:-9] if kind == "cut" else data)
    members, _ = site.layer()
    assert set(members) == {"app", "app/a.txt"}

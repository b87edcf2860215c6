"""Layers: tar streams, overlay2 directories, lookups, links, and the evidence that is kept."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild import places
from module_utils.offline_rebuild.cli import Docker
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.layers import (
    EvidenceStore,
    Layer,
    LayerEntry,
    LayerReader,
    TooManyLinks,
    read_tar_layer,
    resolve_in_root,
)

Item = Tuple[str, str, int, str]  # path, kind (d f l h w), mode, content or target


def tar_of(items: Sequence[Item], xattr: str = "") -> bytes:
    """An uncompressed layer."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for path, kind, mode, value in items:
            info = tarfile.TarInfo(path)
            info.mode, info.uid, info.gid, info.mtime = mode, 3, 4, 1_600_000_000
            info.type = {"d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE}.get(kind, tarfile.REGTYPE)
            info.linkname = value if kind in "lh" else ""
            info.size = len(value.encode()) if kind == "f" else 0
            if kind == "f" and xattr:
                info.pax_headers = {"SCHILY.xattr." + xattr: "v", "mtime": "1600000000.5"}
            tar.addfile(info, io.BytesIO(value.encode()))
    return stream.getvalue()


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def store_of(folder: Path, contents: Sequence[Sequence[Item]], compress: bool = True) -> LayerReader:
    """A reader over a content store that holds these layers."""
    blobs = folder / "content/blobs/sha256"
    blobs.mkdir(parents=True)
    diff_ids: List[str] = []
    descriptors: List[Dict[str, Any]] = []
    for items in contents:
        plain = tar_of(items)
        blob = gzip.compress(plain, mtime=0) if compress else plain
        (blobs / sha(blob)[7:]).write_bytes(blob)
        diff_ids.append(sha(plain))
        descriptors.append({"digest": sha(blob)})
    return LayerReader(Docker("false"), {"Id": "x"}, diff_ids, descriptors, str(folder / "content"))


# -- tar ----------------------------------------------------------------------------------------------------


def test_tar_layer() -> None:
    data = tar_of([
        ("./", "d", 0o755, ""), ("./a/", "d", 0o1777, ""), ("a/f", "f", 0o4755, "hello"), ("a/h", "h", 0, "a/f"),
        ("a/l", "l", 0o777, "../x"), ("a/.wh.gone", "f", 0, ""), ("b/.wh..wh..opq", "f", 0, ""),
        ("b/.wh..wh.plnk", "f", 0, ""), ("/c/n\udcff", "f", 0o600, ""),
    ])  # fmt: skip
    layer, contents = read_tar_layer(io.BytesIO(data), lambda path: path == "a/f")
    assert layer.diff_id == sha(data)
    assert contents == {"a/f": b"hello", "a/h": b"hello"}
    assert set(layer.entries) == {"", "a", "a/f", "a/h", "a/l", "c/n\udcff"}
    assert layer.whiteouts == {"a/gone"}
    assert layer.opaques == {"b"}
    file = layer.entries["a/f"]
    assert (file.type, file.mode, file.uid, file.gid, file.size) == ("file", 0o4755, 3, 4, 5)
    assert file.digest == sha(b"hello") == layer.entries["a/h"].digest
    assert layer.entries["a"].mode == 0o1777
    assert layer.entries["a/l"].link == "../x"


@pytest.mark.parametrize(("name", "kept"), [("security.capability", 1), ("user.x", 0), ("security.selinux", 0)])
def test_tar_attributes(name: str, kept: int) -> None:
    layer, _ = read_tar_layer(io.BytesIO(tar_of([("f", "f", 0o644, "x")], name)))
    assert layer.entries["f"].xattrs == ((name, b"v".hex()),) * kept
    assert layer.entries["f"].mtime == 1_600_000_000_500_000_000


def test_hard_link_to_nothing_equals_nothing() -> None:
    layer, _ = read_tar_layer(io.BytesIO(tar_of([("h", "h", 0, "other/layer")])))
    assert layer.entries["h"].type == "unknown"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/.."])
def test_tar_that_leads_out(name: str) -> None:
    with pytest.raises(OfflineRebuildError) as problem:
        read_tar_layer(io.BytesIO(tar_of([(name, "f", 0o644, "x")])))
    assert problem.value.code == "layer-invalid"


@pytest.mark.parametrize("data", [b"no tar at all" * 100, tar_of([("f", "f", 0o644, "x" * 5000)])[:2000]])
def test_tar_that_is_none(data: bytes) -> None:
    with pytest.raises(OfflineRebuildError) as problem:
        read_tar_layer(io.BytesIO(data))
    assert problem.value.code == "layer-invalid"


@given(st.binary(max_size=2048))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_layer_or_an_error(data: bytes) -> None:
    try:
        read_tar_layer(io.BytesIO(data))
    except OfflineRebuildError as problem:
        assert problem.code == "layer-invalid"


# -- content store --------------------------------------------------------------------------------------------

BOTTOM: Sequence[Item] = [
    ("a", "d", 0o755, ""), ("a/x", "f", 0o644, "1"), ("a/y", "f", 0o644, "2"), ("b", "d", 0o700, ""),
    ("b/z", "f", 0o644, "3"), ("l", "l", 0o777, "a"), ("k", "f", 0o644, "k"), ("o/deep/f", "f", 0o644, "o"),
]  # fmt: skip
MIDDLE: Sequence[Item] = [
    ("a", "d", 0o711, ""),
    ("a/.wh.x", "f", 0, ""),
    ("b/.wh..wh..opq", "f", 0, ""),
    ("b/n", "f", 0o600, "n"),
]
TOP: Sequence[Item] = [(".wh.k", "f", 0, ""), ("a", "f", 0o644, "now a file"), ("o/deep", "l", 0o777, "/b")]
PATHS = ("", "a", "a/x", "a/y", "b", "b/z", "b/n", "l", "k", "o", "o/deep", "o/deep/f", "gone", "gone/x", "k/x")


def model(contents: Sequence[Sequence[Item]], path: str) -> Optional[str]:
    """What the layers leave at a path, by laying one over the other in a dictionary."""
    state: Dict[str, str] = {"": "d"}

    def drop(name: str, itself: bool) -> None:
        for known in list(state):
            if known.startswith(name + "/") or (itself and known == name):
                del state[known]

    for items in contents:
        for name, _, _, _ in items:
            folder, _, last = name.rpartition("/")
            if last == ".wh..wh..opq":
                drop(folder, False)
            elif last.startswith(".wh."):
                drop((folder + "/" if folder else "") + last[4:], True)
        for name, kind, mode, _ in items:
            if name.rpartition("/")[2].startswith(".wh."):
                continue
            if kind != "d":
                drop(name, True)
            parts = name.split("/")
            for count in range(1, len(parts)):
                state.setdefault("/".join(parts[:count]), "d")
            state[name] = kind + oct(mode)
    found = state.get(path)
    return None if found is None else found[0]


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("upto", [-1, 0, 1, 2])
def test_lookup_and_listing(tmp_path: Path, upto: int, compress: bool) -> None:
    contents = [BOTTOM, MIDDLE, TOP]
    reader = store_of(tmp_path, contents, compress)
    words = {"dir": "d", "file": "f", "symlink": "l"}
    for path in PATHS:
        entry = reader.lookup(path, upto)
        assert (words[entry.type] if entry else None) == model(contents[: upto + 1], path), path
    everything = reader.listing("", upto)
    for path in PATHS:
        assert (path in everything) == (reader.lookup(path, upto) is not None), path
    assert set(reader.listing("b", upto)) == {p for p in everything if p == "b" or p.startswith("b/")}


def test_lookup_takes_the_upper(tmp_path: Path) -> None:
    reader = store_of(tmp_path, [BOTTOM, MIDDLE])
    upper, lower = reader.lookup("a", 1), reader.lookup("a", 0)
    assert upper is not None
    assert lower is not None
    assert (upper.mode, lower.mode) == (0o711, 0o755)


def test_resolve_and_content(tmp_path: Path) -> None:
    reader = store_of(tmp_path, [BOTTOM, MIDDLE, TOP])
    assert reader.resolve("l/x", 0) == "a/x"
    assert reader.resolve("o/deep/n", 2) == "b/n"
    assert reader.resolve("not/there", 2) == "not/there"
    assert reader.content("l/x", 0) == b"1"
    assert reader.content("b/n", 2) == b"n"
    assert reader.content("b/z", 2) is None
    assert reader.content("a", 0) is None
    assert reader.content("l/x", 0, limit=0) is None


def test_damaged_blob(tmp_path: Path) -> None:
    reader = store_of(tmp_path, [BOTTOM], compress=False)
    blob = next((tmp_path / "content/blobs/sha256").iterdir())
    data = bytearray(blob.read_bytes())
    data[600] ^= 1
    blob.write_bytes(bytes(data))
    with pytest.raises(OfflineRebuildError) as problem:
        reader.layer(0)
    assert problem.value.code == "layer-invalid"


def test_truncated_gzip(tmp_path: Path) -> None:
    reader = store_of(tmp_path, [BOTTOM])
    blob = next((tmp_path / "content/blobs/sha256").iterdir())
    blob.write_bytes(blob.read_bytes()[:-12])
    with pytest.raises(OfflineRebuildError) as problem:
        reader.layer(0)
    assert problem.value.code == "layer-invalid"


def test_blob_of_another_layer(tmp_path: Path) -> None:
    reader = store_of(tmp_path, [BOTTOM, TOP])
    swapped = LayerReader(
        Docker("false"),
        {"Id": "x"},
        reader.diff_ids,
        list(reversed(reader._descriptors or [])),
        str(tmp_path / "content"),
    )
    with pytest.raises(OfflineRebuildError) as problem:
        swapped.layer(0)
    assert problem.value.code == "layer-invalid"


# -- links ----------------------------------------------------------------------------------------------------

LINKS = {
    "a": "b",
    "b": "/c",
    "c": "",
    "up": "../../..",
    "abs": "/c/d/../e",
    "loop": "loop",
    "l1": "l2",
    "l2": "l1/x",
    "c/rel": "../b/f",
    "dot": "./c/.",
    "deep": "nowhere/at/all",
}


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("", ""), ("/", ""), ("a", "c"), ("a/x", "c/x"), ("up", ""), ("up/c", "c"), ("abs", "c/e"), ("c/rel", "c/f"),
        ("c/../../../c", "c"), ("dot/y", "c/y"), ("deep/x", "nowhere/at/all/x"), ("x/../a", "c"), ("./a/.", "c"),
        ("a/../a", "c"),
    ],
)  # fmt: skip
def test_resolve(path: str, want: str) -> None:
    def lookup(name: str) -> Optional[LayerEntry]:
        link = LINKS.get(name)
        if link is None:
            return None
        return LayerEntry("symlink", 0o777, link=link) if link else LayerEntry("dir", 0o755)

    assert resolve_in_root(path, lookup) == want


@pytest.mark.parametrize("path", ["loop", "loop/x", "l1"])
def test_links_without_end(path: str) -> None:
    with pytest.raises(TooManyLinks):
        resolve_in_root(path, lambda p: LayerEntry("symlink", 0o777, link=LINKS[p]) if p in LINKS else None)


# -- overlay2 directories --------------------------------------------------------------------------------------


def overlay(root: Path, count: int) -> Tuple[List[Path], Dict[str, Any]]:
    """Layer directories as the engine has them, and what ``docker image inspect`` says of them."""
    folders = [root / "docker/overlay2" / f"id{n}" / "diff" for n in range(count)]
    for folder in folders:
        folder.mkdir(parents=True)
    lower = ":".join(str(folder) for folder in reversed(folders[:-1]))
    return folders, {
        "Id": "x",
        "GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": str(folders[-1]), "LowerDir": lower}},
    }


def overlay_reader(inspect: Dict[str, Any], count: int) -> LayerReader:
    reader = LayerReader(Docker("false"), inspect, [f"sha256:{n:064x}" for n in range(count)])
    if not reader.in_place:
        pytest.skip("this process may not read trusted.* attributes")
    return reader


def whiteout(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
    except PermissionError:
        pytest.skip("this process may not make device files")


def test_overlay_directories(tmp_path: Path) -> None:
    (bottom, top), inspect = overlay(tmp_path, 2)
    (bottom / "a").mkdir()
    (bottom / "a/x").write_text("1")
    (bottom / "b").mkdir()
    (bottom / "b/y").write_text("2")
    (bottom / "l").symlink_to("a/x")
    os.link(bottom / "a/x", bottom / "hard")
    (bottom / "a/x").chmod(0o4750)
    os.mkfifo(bottom / "pipe")
    (top / "a").mkdir()
    whiteout(top / "a/x")
    (top / "b").mkdir()
    os.setxattr(top / "b", "trusted.overlay.opaque", b"y")
    (top / "b/z").write_text("3")
    reader = overlay_reader(inspect, 2)
    assert reader.lookup("a/x", 1) is None
    assert reader.lookup("b/y", 1) is None
    one = reader.lookup("a/x", 0)
    assert one is not None
    assert (one.mode, one.size, one.digest) == (0o4750, 1, None)
    assert one.content_digest() == sha(b"1")
    hard, pipe = reader.lookup("hard", 1), reader.lookup("pipe", 1)
    assert hard is not None
    assert hard.content_digest() == sha(b"1")
    assert pipe is not None
    assert pipe.type == "fifo"
    assert reader.resolve("l", 0) == "a/x"
    layer = reader.layer(1)
    assert layer.whiteouts == {"a/x"}
    assert layer.opaques == {"b"}
    assert set(layer.entries) == {"", "a", "b", "b/z"}
    assert set(reader.listing("", 1)) == {"", "a", "b", "b/z", "l", "hard", "pipe"}
    assert set(reader.listing("b", 1)) == {"b", "b/z"}


@pytest.mark.parametrize("name", ["trusted.overlay.redirect", "trusted.overlay.metacopy"])
def test_what_cannot_be_read_in_place_is_not(tmp_path: Path, name: str) -> None:
    """The directory of a renamed folder does not hold its files: the layer must come from elsewhere."""
    (folder,), inspect = overlay(tmp_path, 1)
    (folder / "a").mkdir()
    reader = overlay_reader(inspect, 1)
    os.setxattr(folder / "a", name, b"/old")
    with pytest.raises(OfflineRebuildError):  # `false save` gives nothing
        reader.layer(0)
    assert not reader.in_place


def test_directories_that_are_not_used(tmp_path: Path) -> None:
    _, inspect = overlay(tmp_path, 2)
    assert places.overlay_directories(inspect, 3) is None
    assert places.overlay_directories({**inspect, "GraphDriver": {"Name": "btrfs", "Data": {}}}, 2) is None
    assert places.overlay_directories({"GraphDriver": None}, 2) is None
    _, shifted = overlay(tmp_path / "100000.100000", 1)
    data = shifted["GraphDriver"]["Data"]
    data["UpperDir"] = data["UpperDir"].replace("/docker/overlay2", "/overlay2")
    Path(data["UpperDir"]).mkdir(parents=True)
    assert places.overlay_directories(shifted, 1) is None  # ids are shifted under userns-remap


def test_no_trusted_attributes_no_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, inspect = overlay(tmp_path, 1)
    monkeypatch.setattr(places, "_sees_trusted_xattrs", lambda: False)
    assert places.overlay_directories(inspect, 1) is None


# -- evidence ---------------------------------------------------------------------------------------------------

NAME = "sha256:" + "ab" * 32
LAYER = Layer(
    NAME,
    {
        "": LayerEntry("dir", 0o755),
        "n\udcff/é": LayerEntry("file", 0o4755, 1, 2, 3, 1_600_000_000_123_456_789, sha(b"x"), "", (("a.b", "00ff"),)),
        "l": LayerEntry("symlink", 0o777, link="\udc80"),
        "c": LayerEntry("char", 0o600, rdev=259),
    },
    frozenset({"gone"}),
    frozenset({"o"}),
)


def test_evidence_comes_back(tmp_path: Path) -> None:
    store = EvidenceStore(str(tmp_path / "layers"))
    assert store.load(NAME) is None
    store.save(LAYER)
    assert store.load(NAME) == LAYER
    assert [p.name for p in (tmp_path / "layers").iterdir()] == ["ab" * 32 + ".json.gz"]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_evidence_that_was_damaged_is_ignored(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    store = EvidenceStore(str(tmp_path_factory.getbasetemp() / "damaged"))
    store.save(LAYER)
    path = Path(store.path(NAME))
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[place] ^= data.draw(st.integers(1, 255))
    else:
        raw = raw[:place]
    path.write_bytes(bytes(raw))
    assert store.load(NAME) in (None, LAYER)  # a bit of gzip's header may not matter


def test_evidence_with_another_checksum_is_ignored(tmp_path: Path) -> None:
    """An edit that gzip itself does not notice."""
    store = EvidenceStore(str(tmp_path))
    store.save(LAYER)
    text = gzip.decompress(Path(store.path(NAME)).read_bytes())
    Path(store.path(NAME)).write_bytes(gzip.compress(text.replace(b"gone", b"here")))
    assert store.load(NAME) is None


def test_evidence_of_another_layer_is_ignored(tmp_path: Path) -> None:
    store = EvidenceStore(str(tmp_path))
    store.save(LAYER)
    other = "sha256:" + "cd" * 32
    os.rename(store.path(NAME), store.path(other))
    assert store.load(other) is None


def test_evidence_name_is_checked(tmp_path: Path) -> None:
    with pytest.raises(OfflineRebuildError):
        EvidenceStore(str(tmp_path)).path("sha256:../../etc/passwd")


def test_evidence_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OfflineRebuildError) as problem:
        EvidenceStore(str(tmp_path / "file")).save(LAYER)
    assert problem.value.code == "state-write"


def test_evidence_spares_the_reading(tmp_path: Path) -> None:
    reader = store_of(tmp_path, [BOTTOM])
    store = EvidenceStore(str(tmp_path / "kept"))
    first = LayerReader(
        Docker("false"), {"Id": "x"}, reader.diff_ids, reader._descriptors, str(tmp_path / "content"), store, True
    )
    layer = first.record(0)
    second = LayerReader(Docker("false"), {"Id": "x"}, reader.diff_ids, None, None, store, False)
    assert second.layer(0) == layer
    third = LayerReader(
        Docker("false"), {"Id": "x"}, reader.diff_ids, None, None, EvidenceStore(str(tmp_path / "no")), True
    )
    with pytest.raises(OfflineRebuildError):
        third.layer(0)


def test_a_layer_below_the_answer_is_not_read(tmp_path: Path) -> None:
    below: Sequence[Item] = [("app", "d", 0o700, ""), ("app/old", "f", 0o644, "1")]
    reader = store_of(tmp_path, [below, [("app", "d", 0o755, ""), ("app/new", "f", 0o644, "2")]])
    os.unlink(reader._blob(0)[0])  # type: ignore[index]
    found = reader.lookup("app", 1), reader.lookup("app/new", 1)
    assert [entry and (entry.type, entry.mode) for entry in found] == [("dir", 0o755), ("file", 0o644)]
    for _ in range(2):  # and a failure is not forgotten: the lower layer never counts as having nothing
        with pytest.raises(OfflineRebuildError):
            reader.lookup("app/old", 1)


def test_a_read_layer_is_remembered_unless_it_is_a_check(tmp_path: Path) -> None:
    folders, inspect = overlay(tmp_path, 1)
    (folders[0] / "file").write_text("content")
    diff_ids = [f"sha256:{0:064x}"]
    store = EvidenceStore(str(tmp_path / "kept"))
    for may_write in (False, True):
        reader = LayerReader(Docker("false"), inspect, diff_ids, evidence=store, may_write=may_write)
        reader.remember(0)
        kept = store.load(diff_ids[0])
        assert (kept is not None) == may_write
    assert kept is not None
    assert kept.entries["file"].digest == sha(b"content")


ID = "e29b54673665ea376b92452e1435d6a0012ef269b3d76e1502ba58454295a943"
SNAPSHOTS = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"


@pytest.mark.parametrize(
    ("kind", "options", "want"),
    [
        ("overlay", f"rw,lowerdir={SNAPSHOTS}/3/fs:{SNAPSHOTS}/1/fs,upperdir=/u,workdir=/w", ["3", "1"]),
        ("overlay", f"rw,lowerdir+={SNAPSHOTS}/3/fs,lowerdir+={SNAPSHOTS}/1/fs,upperdir=/u", ["3", "1"]),
        ("overlay", f"rw,lowerdir+={SNAPSHOTS}/3/fs,datadir+={SNAPSHOTS}/1/fs", None),
        ("overlay", "rw,lowerdir=3/fs:1/fs,upperdir=/u", None),
        ("overlay", "rw,lowerdir=/a\\040b,upperdir=/u", None),
        ("overlay", "rw,upperdir=/u", None),
        ("tmpfs", f"rw,lowerdir={SNAPSHOTS}/1/fs", None),
    ],
)
def test_directories_of_a_running_container(kind: str, options: str, want: Optional[List[str]]) -> None:
    text = (
        f"overlay /var/lib/docker/rootfs/overlayfs/{ID} {kind} {options} 0 0\n"
        f"overlay /merged overlay rw,lowerdir=/a:/b 0 0\nproc /proc proc rw 0 0\n\n"
    )
    expected = {} if want is None else {ID: [f"{SNAPSHOTS}/{number}/fs" for number in want]}
    assert places.lower_directories(text) == expected


@pytest.mark.parametrize("image_layers", [["a", "b"], ["a"], []])
def test_a_containers_layers_are_its_images_only_if_their_number_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_layers: List[str]
) -> None:
    monkeypatch.setattr(places, "_sees_trusted_xattrs", lambda: True)
    folders = [tmp_path / name / "fs" for name in ("1", "2", "init")]
    for folder in folders:
        folder.mkdir(parents=True)
    cli = tmp_path / "docker"
    cli.write_text(f'#!/bin/sh\necho \'[{{"Id": "{ID}", "Image": "i"}}]\'\n')
    cli.chmod(0o755)
    lower = ":".join(str(folder) for folder in reversed(folders))
    running = places.RunningLayers(
        Docker(str(cli)),
        {"i": image_layers}.__getitem__,
        f"overlay /rootfs/overlayfs/{ID} overlay lowerdir={lower} 0 0",
    )
    fits = len(image_layers) == 2 and os.getuid() == 0
    assert running(["a", "b", "c"]) == ({0: str(folders[0]), 1: str(folders[1])} if fits else {})
    assert running(["a", "other"]) == ({0: str(folders[0])} if fits else {})
    assert running(["b"]) == {}

"""Bundles without an engine: what is read of them, what is refused, what is made for a host that lacks something."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_node import bundle_control
from control_node.bundle_control import LOCK, without_markers
from control_node.bundle_index import BundleImage, Index, Layer, Needs, Part, read_index
from control_node.bundle_make import MakeRequest, _beside, _known_layers, _note, _put, _refs, make
from control_node.bundle_read import Bundle, open_bundle, sign
from control_node.bundle_send import check_images, lacking, pack, report, summary
from module_utils.offline_rebuild import bundled
from module_utils.offline_rebuild.archive import read_archive
from module_utils.offline_rebuild.bundled import BundleRequest
from module_utils.offline_rebuild.delta import Held, Holdings, Saved
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.graft import blob_name
from module_utils.offline_rebuild.image import sha256
from tests.unit.depot import image_of

LAYERS = [b"first" * 3000, b"second" * 5000]
DIFF_IDS = tuple(sha256(layer) for layer in LAYERS)
TAR = "application/vnd.oci.image.layer.v1.tar"
CONFIG = json.dumps(
    {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": list(DIFF_IDS)}}
).encode()
CONFIG_HEX = sha256(CONFIG).split(":")[1]
ROOM = {"state": 1 << 40, "engine": 1 << 40, "same": False}


def image(**changes: Any) -> BundleImage:
    made = BundleImage(
        refs=("app:1",),
        id=sha256(CONFIG),
        config_digest=sha256(CONFIG),
        config=blob_name(sha256(CONFIG)),
        manifest="",
        diff_ids=DIFF_IDS,
        platform="linux/amd64",
        layers=tuple(Layer(sha256(data), len(data), TAR) for data in LAYERS),
    )
    return replace(made, **changes)


def contents() -> dict[str, tuple[str, bytes]]:
    """Path to kind and content."""
    blobs = {blob_name(sha256(data)): ("blob", data) for data in (CONFIG, *LAYERS)}
    record = json.dumps({"schema": 1, "config_digest": sha256(CONFIG), "stages": []}).encode()
    return {
        **blobs,
        f"records/{CONFIG_HEX}.json": ("records", record),
        f"layers/{DIFF_IDS[1][7:]}.json.gz": ("layers", b"list"),
        "project/compose.yml": ("project", b"services: {}\n"),
    }


def index_of(files: Mapping[str, tuple[str, bytes]], **changes: Any) -> Index:
    parts = tuple(
        Part(path, len(data), hashlib.sha256(data).hexdigest(), kind) for path, (kind, data) in sorted(files.items())
    )
    return replace(Index(1000, "tiny", "linux/amd64", (image(),), parts), **changes)


def folder_of(root: Path, index: Index | None = None, leave: Callable[[str], bool] = lambda _: False) -> Path:
    """A bundle as a folder, unsigned."""
    files = contents()
    index = index or index_of(files)
    for path, (_, data) in files.items():
        if not leave(path):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
    root.mkdir(exist_ok=True)
    (root / "index.json").write_bytes(index.encode())
    return root


def tar_of(root: Path) -> Path:
    """The same as one file."""
    folder = folder_of(root / "content")
    _put(folder, root / "b.tar", index_of(contents()))
    return root / "b.tar"


def proven(path: Path, **options: Any) -> Bundle:
    bundle = open_bundle(path, **{"unsigned": True, **options})
    for part in bundle.index.parts:
        bundle.prove(part.path)
    check_images(bundle)
    return bundle


def refused(path: Path, code: str = "bundle-invalid", **options: Any) -> str:
    with pytest.raises(OfflineRebuildError) as caught:
        proven(path, **options)
    assert caught.value.code == code
    assert caught.value.remedy
    return caught.value.message


@pytest.mark.parametrize("form", [lambda root: folder_of(root / "b"), tar_of])
def test_a_whole_bundle_is_read(tmp_path: Path, form: Callable[[Path], Path]) -> None:
    bundle = proven(form(tmp_path))
    assert bundle.index == index_of(contents())
    assert bundle.read("project/compose.yml") == b"services: {}\n"
    assert summary(bundle.index)["records"] == [sha256(CONFIG)]
    assert summary(bundle.index)["lists"] == [DIFF_IDS[1]]


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.9, 1.0])
def test_a_file_that_was_cut_short(tmp_path: Path, share: float) -> None:
    path = tar_of(tmp_path)
    content = len(path.read_bytes().rstrip(b"\0"))  # the end of a tar is zeros
    os.truncate(path, int(content * share))
    refused(path)


def test_a_folder_that_was_cut_short(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "b")
    blob = root / blob_name(DIFF_IDS[0])
    os.truncate(blob, 100)
    assert "has 100 bytes and the index says 15000" in refused(root)
    blob.unlink()
    assert "are not there" in refused(root)
    (root / "index.json").unlink()
    assert "no index.json" in refused(root)


def test_a_flipped_byte_in_any_part(tmp_path: Path) -> None:
    for number, path in enumerate(contents()):
        root = folder_of(tmp_path / str(number))
        data = bytearray((root / path).read_bytes())
        data[-1] ^= 1
        (root / path).write_bytes(data)
        assert f"{path} has another content" in refused(root)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.data())
def test_any_damage_of_a_file_is_seen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tar_of(tmp_path_factory.mktemp("b"))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        assert proven(path).index == index_of(contents())  # a byte that means nothing, as a time
    except OfflineRebuildError as error:
        assert error.code == "bundle-invalid"


def key(folder: Path, name: str) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    return folder / name


def signers(folder: Path, who: str, private: Path) -> str:
    public = " ".join(private.with_suffix(".pub").read_text().split()[:2])
    (folder / "signers").write_text(f"{who} {public}\n")
    return str(folder / "signers")


def test_signatures(tmp_path: Path) -> None:
    root, mine, other = folder_of(tmp_path / "b"), key(tmp_path, "mine"), key(tmp_path, "other")
    allowed = signers(tmp_path, "release@example.org", mine)
    assert "no signature" in refused(root, "bundle-unsigned", unsigned=False, allowed_signers=allowed)
    raw = (root / "index.json").read_bytes()
    (root / "index.json.sig").write_bytes(sign(raw, str(mine)))
    assert proven(root, unsigned=False, allowed_signers=allowed).signer == "release@example.org"
    assert "is not set" in refused(root, "bundle-signature", unsigned=False)
    gone = str(tmp_path / "absent")
    refused(root, "bundle-signature", unsigned=False, allowed_signers=gone)
    (root / "index.json.sig").write_bytes(sign(raw, str(other)))
    said = refused(root, "bundle-signature", unsigned=False, allowed_signers=allowed)
    assert "nobody of the allowed signers" in said
    (root / "index.json.sig").write_bytes(sign(raw + b" ", str(mine)))
    # one that is there and wrong is refused even where none is asked for
    for unsigned in (False, True):
        said = refused(root, "bundle-signature", unsigned=unsigned, allowed_signers=allowed)
        assert "does not fit" in said
    (root / "index.json.sig").write_bytes(b"x")
    refused(root, "bundle-signature", unsigned=False, allowed_signers=allowed)


def test_a_signature_for_another_purpose_does_not_count(tmp_path: Path) -> None:
    root, mine = folder_of(tmp_path / "b"), key(tmp_path, "mine")
    allowed = signers(tmp_path, "release@example.org", mine)
    argv = ["ssh-keygen", "-Y", "sign", "-q", "-f", mine, "-n", "file"]
    done = subprocess.run(argv, input=(root / "index.json").read_bytes(), capture_output=True, check=True)
    (root / "index.json.sig").write_bytes(done.stdout)
    refused(root, "bundle-signature", unsigned=False, allowed_signers=allowed)


def test_a_key_that_cannot_sign(tmp_path: Path) -> None:
    with pytest.raises(OfflineRebuildError) as caught:
        sign(b"x", str(tmp_path / "absent"))
    assert caught.value.code == "sign-failed"


def test_links_and_strange_files_in_a_folder(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "b")
    blob = root / blob_name(DIFF_IDS[0])
    shutil.move(blob, tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    assert "is a link" in refused(root)
    blob.unlink()
    shutil.move(tmp_path / "elsewhere", blob)
    (root / "more").symlink_to(tmp_path)
    assert "more is a link" in refused(root)
    (root / "more").unlink()
    (root / "more").write_text("x")
    assert "which the index does not name" in refused(root)
    (root / "more").unlink()
    os.mkfifo(root / "more")
    assert "no plain file" in refused(root)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("../x", tarfile.REGTYPE, "leads outside"),
        ("/etc/x", tarfile.REGTYPE, "leads outside"),
        ("a/../../x", tarfile.REGTYPE, "leads outside"),
        ("a" * 200 + "/../../../x", tarfile.REGTYPE, "leads outside"),
        ("x", tarfile.SYMTYPE, "is a link"),
        ("x", tarfile.LNKTYPE, "is a link"),
        ("x", tarfile.CHRTYPE, "no plain file"),
        ("x", tarfile.FIFOTYPE, "no plain file"),
        ("x", tarfile.REGTYPE, "does not name"),
        ("project/compose.yml", tarfile.REGTYPE, "twice"),
    ],
)
def test_members_of_a_file_that_are_refused(tmp_path: Path, name: str, kind: bytes, said: str) -> None:
    path = tar_of(tmp_path)
    with tarfile.open(path, "a", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        archive.addfile(info)
    assert said in refused(path)


@pytest.mark.parametrize("declared", [10, 1 << 40])
def test_a_bomb_whose_declared_and_real_sizes_differ(tmp_path: Path, declared: int) -> None:
    files = contents()
    index = index_of(files)
    parts = tuple(replace(p, size=declared) if p.path == blob_name(DIFF_IDS[0]) else p for p in index.parts)
    root = folder_of(tmp_path / "b", replace(index, parts=parts))
    assert f"the index says {declared}" in refused(root)
    # the same in a file, whose header tells of far more than there is
    path = tar_of(tmp_path / "c")
    raw = bytearray(path.read_bytes())
    at = raw.rindex(blob_name(DIFF_IDS[0]).encode())
    info = tarfile.TarInfo.frombuf(bytes(raw[at : at + 512]), "utf-8", "strict")
    info.size = declared
    raw[at : at + 512] = info.tobuf(tarfile.GNU_FORMAT)[:512]
    path.write_bytes(raw)
    refused(path)


def test_paths_that_climb_in_the_index(tmp_path: Path) -> None:
    for name in ("../x", "/x", "a//b", "a/./b", "a\\b", "", "index.json", "a\nb"):
        index = index_of(contents())
        bad = replace(index, parts=(*index.parts, Part(name, 0, hashlib.sha256(b"").hexdigest(), "project")))
        assert "no path inside" in refused(folder_of(tmp_path / "b", bad))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": (image(config=blob_name(DIFF_IDS[0])),)}, "another digest"),
        ({"images": (image(layers=(Layer("sha256:" + "0" * 64, 1, TAR), image().layers[1])),)}, "which is no part"),
        ({"images": (image(manifest="blobs/sha256/" + "0" * 64),)}, "which is no part"),
        ({"images": (image(refs=()),)}, "has no name"),
        ({"images": (image(refs=("--privileged",)),)}, "no image name"),
        ({"images": (image(layers=image().layers[:1]),)}, "another number of layers"),
        ({"images": (image(platform="linux/arm64"),)}, "the index says linux/arm64"),
        ({"project": "../x"}, "no project name"),
        ({"created": -1}, "no number"),
    ],
)
def test_an_index_that_does_not_agree(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert said in refused(folder_of(tmp_path / "b", index_of(contents(), **change)))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"{}", b'{"schema": 2}', b"\xff"])
def test_what_is_no_index(raw: bytes) -> None:
    with pytest.raises(OfflineRebuildError) as caught:
        read_index(raw, "index.json")
    assert (caught.value.code, caught.value.file) == ("bundle-invalid", "index.json")


def test_an_index_that_was_edited_has_another_id() -> None:
    raw = index_of(contents()).encode().replace(b'"created": 1000', b'"created": 2000')
    with pytest.raises(OfflineRebuildError, match="its id is not that"):
        read_index(raw)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "bundle-missing")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty")
    (tmp_path / "text").write_bytes(b"#!/bin/sh\n" * 500)
    refused(tmp_path / "text")


# -- the host's side --------------------------------------------------------------------------------------------------


def request(tmp_path: Path, created: int, **more: Any) -> BundleRequest:
    about = {**summary(index_of(contents())), "created": created}
    return BundleRequest(about, state_dir=str(tmp_path), **more)


def test_an_older_bundle_than_the_one_imported(tmp_path: Path) -> None:
    marker = Path(request(tmp_path, 1).marker)
    marker.parent.mkdir()
    marker.write_text(json.dumps({"schema": 1, "id": "newer", "created": 500, "project": "tiny"}))
    for created, allow in ((500, False), (501, False), (499, True)):
        asked = request(tmp_path, created, allow_older=allow)
        bundled._check_age(asked, bundled._last(asked))
    asked = request(tmp_path, 499)
    with pytest.raises(OfflineRebuildError) as caught:
        bundled._check_age(asked, bundled._last(asked))
    assert caught.value.code == "bundle-older"
    marker.write_text("{")
    assert bundled._last(asked) == {}


def test_another_platform(tmp_path: Path) -> None:
    store: Any = type("Store", (), {"info": type("Info", (), {"platform": "linux/arm64"})})
    with pytest.raises(OfflineRebuildError) as caught:
        bundled._check_platform(request(tmp_path, 1), store)
    assert caught.value.code == "archive-platform"


# -- what is sent -----------------------------------------------------------------------------------------------------


def answer(there: Holdings, present: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "holdings": there.to_dict(),
        "present": [present],
        "records": [] if present else [sha256(CONFIG)],
        "lists": [] if present else [DIFF_IDS[1]],
        "free": ROOM,
        **more,
    }


def holds(*layers: str, store: str = "classic", kind: str = TAR) -> Holdings:
    descriptors = tuple({"mediaType": kind, "digest": layer, "size": 1} for layer in layers)
    held = (Held(layers, descriptors if store == "containerd" else None),) if layers else ()
    return Holdings(store, "linux/amd64", held)


@pytest.mark.parametrize("store", ["classic", "containerd"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_only_missing_layers_are_sent(tmp_path: Path, store: str, count: int) -> None:
    bundle = proven(tar_of(tmp_path))
    lack = lacking(bundle.index, answer(holds(*DIFF_IDS[:count], store=store)))
    assert lack.layer_bytes == sum(len(layer) for layer in LAYERS[count:])
    made = pack(bundle, lack, tmp_path / "out")
    (archived,) = read_archive(made["archive"])
    assert (archived.refs, archived.diff_ids, archived.missing) == (("app:1",), DIFF_IDS, DIFF_IDS[:count])
    with tarfile.open(made["archive"]) as archive:
        assert ("index.json" in archive.getnames()) == (store == "containerd")
    with tarfile.open(made["evidence"]) as archive:
        assert archive.getnames() == [f"layers/{DIFF_IDS[1][7:]}.json.gz", f"records/{CONFIG_HEX}.json"]
    assert pack(bundle, lack, tmp_path / "out") == made
    rows, told = report(lack)
    assert rows[0]["carried"] == 2 - count
    assert "app:1" in told


def test_nothing_is_sent_to_who_has_it(tmp_path: Path) -> None:
    bundle = proven(tar_of(tmp_path))
    lack = lacking(bundle.index, answer(holds(*DIFF_IDS), present=True))
    assert pack(bundle, lack, tmp_path / "out") == {}
    assert report(lack) == ([], "")


def test_a_differential_bundle_for_a_host_that_lacks_its_base(tmp_path: Path) -> None:
    files = contents()
    del files[blob_name(DIFF_IDS[0])]
    index = index_of(files, needs=Needs("earlier", (DIFF_IDS[0],)))
    bundle = proven(folder_of(tmp_path / "b", index, lambda path: path == blob_name(DIFF_IDS[0])))
    assert lacking(bundle.index, answer(holds(DIFF_IDS[0]))).layer_bytes == len(LAYERS[1])
    # the layer on another one is another to an engine
    for there in (holds(), holds(DIFF_IDS[1], DIFF_IDS[0])):
        with pytest.raises(OfflineRebuildError) as caught:
            lacking(bundle.index, answer(there))
        assert caught.value.code == "bundle-base-missing"
        assert "earlier" in caught.value.message


def test_a_full_disk_is_said_before_anything_is_sent() -> None:
    index = index_of(contents())
    for free in ({**ROOM, "state": 256 << 20}, {**ROOM, "engine": 0}):
        with pytest.raises(OfflineRebuildError) as caught:
            lacking(index, answer(holds(), free=free))
        assert caught.value.code == "disk-full"
    lacking(index, answer(holds(), present=True, free={**ROOM, "engine": 0}))


def test_a_bundle_that_changes_after_it_was_verified(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "b")
    bundle = proven(root)
    blob = root / blob_name(DIFF_IDS[1])
    blob.write_bytes(blob.read_bytes()[:-1] + b"X")
    with pytest.raises(OfflineRebuildError, match="has changed since"):
        pack(bundle, lacking(bundle.index, answer(holds())), tmp_path / "out")
    assert [path.suffix for path in (tmp_path / "out").iterdir() if path.suffix == ".tar"] == []


# -- what is asked of the connected side ------------------------------------------------------------------------------


def test_signed_or_not_must_be_said(tmp_path: Path) -> None:
    for more in ({}, {"sign_key": "key", "unsigned": True}):
        with pytest.raises(OfflineRebuildError) as caught:
            make(MakeRequest(str(tmp_path / "b"), str(tmp_path), **more))
        assert caught.value.code == "variable-invalid"
    (tmp_path / "b").mkdir()
    with pytest.raises(OfflineRebuildError) as caught:
        make(MakeRequest(str(tmp_path / "b"), str(tmp_path), unsigned=True))
    assert caught.value.code == "bundle-exists"
    with pytest.raises(OfflineRebuildError) as caught:
        make(MakeRequest(str(tmp_path / "c"), str(tmp_path), unsigned=True, since=str(tmp_path / "absent")))
    assert caught.value.code == "bundle-missing"
    with pytest.raises(OfflineRebuildError) as caught:
        make(MakeRequest(str(tmp_path / "c"), str(tmp_path), sign_key=str(tmp_path / "absent")))
    assert caught.value.code == "sign-failed"


def test_what_a_killed_run_left_beside_a_bundle_is_removed(tmp_path: Path) -> None:
    left, ours = tmp_path / ".b.tar.999999999.part", tmp_path / f".b.tar.{os.getppid()}.part"
    for folder in (left, ours):
        folder.mkdir()
    with _beside(tmp_path / "b.tar") as made:
        assert made.is_dir()
        assert (left.exists(), ours.exists()) == (False, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [ours.name]


def test_a_control_node_gets_the_wheels_of_every_python() -> None:
    text = "a==1 ; python_full_version < '3.13' \\\n    --hash=sha256:1\nb==2 \\\n    --hash=sha256:2\n"
    assert without_markers(text) == "a==1 \\\n    --hash=sha256:1\nb==2 \\\n    --hash=sha256:2\n"
    lock = (bundle_control.ROOT / LOCK).read_text(encoding="utf-8")
    assert " ; " in lock
    assert " ; " not in without_markers(lock)


def test_names_that_images_are_loaded_by() -> None:
    made = image_of({"rootfs": {"type": "layers", "diff_ids": []}}, refs=["app:1", "app:2"])
    assert _refs("app:2", made) == ["app:2"]
    assert _refs("app@sha256:" + "a" * 64, made) == ("app:1", "app:2")
    with pytest.raises(OfflineRebuildError, match="no tag"):
        _refs("app@sha256:" + "a" * 64, replace(made, refs=()))


def test_a_layer_in_two_forms_is_carried_in_one() -> None:
    rootfs = {"rootfs": {"type": "layers", "diff_ids": [DIFF_IDS[0]]}}
    packed, plain = sha256(b"packed"), DIFF_IDS[0]
    images = [
        replace(image_of(rootfs), manifest={"layers": [{"digest": digest, "size": 5, "mediaType": kind}]})
        for digest, kind in ((packed, TAR + "+gzip"), (plain, TAR))
    ]
    known = _known_layers(Saved(copied={DIFF_IDS[0]: (packed, 5)}), images, None)
    assert known == {DIFF_IDS[0]: Layer(packed, 5, TAR + "+gzip")}
    earlier = index_of(contents())
    assert _known_layers(Saved(), [], earlier)[DIFF_IDS[1]] == image().layers[1]


def test_a_stage_that_is_not_there_is_said() -> None:
    asked = MakeRequest("b", "src", unsigned=True)
    assert _note([], asked) == ""
    assert "app:builder" in _note(["app:builder"], asked)
    assert _note(["app:builder"], replace(asked, build_stages=True)) == ""
    assert "built for it" in _note(["app:builder"], replace(asked, build_stages=True, check=True))


def test_evidence_with_another_name_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "evidence.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("layers/../../x.json.gz")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(OfflineRebuildError) as caught:
        bundled._unpack(request(tmp_path / "state", 1, evidence=str(path)))
    assert caught.value.code == "bundle-invalid"
    assert not (tmp_path / "state").exists()

"""Image archives: what is told of them without an engine, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild.archive import from_dict, read_archive
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.image import sha256

DIFF = "sha256:" + "d" * 64
CONFIG = json.dumps(
    {"os": "linux", "architecture": "arm64", "variant": "v8", "rootfs": {"type": "layers", "diff_ids": [DIFF]}}
).encode()
NAME = sha256(CONFIG).split(":")[1]
LAYER = b"layer" * 40000


def tar(members: Mapping[str, bytes | tuple[bytes, str]]) -> bytes:
    """A member is its content, or a type with a link's target."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, value in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(value, tuple):
                info.type, info.linkname = value
                archive.addfile(info)
            else:
                info.size = len(value)
                archive.addfile(info, io.BytesIO(value))
    return stream.getvalue()


def docker_form(**changes: Any) -> dict[str, Any]:
    item = {
        "Config": f"{NAME}.json",
        "RepoTags": ["app:1", "docker.io/library/b"],
        "Layers": ["l/layer.tar"],
        **changes,
    }
    return {"l/layer.tar": LAYER, f"{NAME}.json": CONFIG, "manifest.json": json.dumps([{**item, **changes}]).encode()}


def oci_form() -> dict[str, Any]:
    def blob(data: bytes) -> tuple[str, dict[str, Any]]:
        digest = sha256(data)
        return "blobs/sha256/" + digest.split(":")[1], {"digest": digest, "size": len(data)}

    layer, layer_descriptor = blob(LAYER)
    config, config_descriptor = blob(CONFIG)
    raw = json.dumps({"config": config_descriptor, "layers": [layer_descriptor]}).encode()
    manifest, descriptor = blob(raw)
    attestation = {**descriptor, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    inner_raw = json.dumps({"manifests": [descriptor, attestation, {"digest": "sha256:" + "0" * 64}]}).encode()
    inner, inner_descriptor = blob(inner_raw)
    notes = {"annotations": {"io.containerd.image.name": "docker.io/library/app:1"}}
    top = json.dumps({"manifests": [{**inner_descriptor, **notes}]}).encode()
    return {layer: LAYER, config: CONFIG, manifest: raw, inner: inner_raw, "index.json": top}


def write(folder: Path, data: bytes) -> str:
    path = folder / "images.tar"
    path.write_bytes(data)
    return str(path)


def refused(folder: Path, data: bytes) -> str:
    with pytest.raises(OfflineRebuildError) as caught:
        read_archive(write(folder, data))
    assert caught.value.code == "archive-invalid"
    assert caught.value.file == str(folder / "images.tar")
    assert caught.value.remedy
    return caught.value.message


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_the_form_of_docker_save(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (image,) = read_archive(write(tmp_path, pack(tar(docker_form()))))
    assert image.refs == ("app:1", "b:latest")
    assert (image.config_digest, image.diff_ids, image.missing) == ("sha256:" + NAME, (DIFF,), ())
    assert image.platform == "linux/arm64/v8"
    assert from_dict(json.loads(json.dumps(image.to_dict()))) == image


def test_an_oci_layout_with_an_index_inside(tmp_path: Path) -> None:
    (image,) = read_archive(write(tmp_path, tar(oci_form())))
    assert (image.refs, image.config_digest, image.missing) == (("app:1",), "sha256:" + NAME, ())


def test_a_layer_that_is_left_out_is_named(tmp_path: Path) -> None:
    members = docker_form()
    del members["l/layer.tar"]
    assert read_archive(write(tmp_path, tar(members)))[0].missing == (DIFF,)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_one_that_was_cut_short(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    data = pack(tar(docker_form()))
    for share in (0.1, 0.5, 0.8):
        refused(tmp_path, data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"../x": b"1", **docker_form()}, "outside of itself"),
        ({"/etc/x": b"1", **docker_form()}, "outside of itself"),
        ({"a/../../x": b"1", **docker_form()}, "outside of itself"),
        ({"a": (tarfile.SYMTYPE, "../x"), **docker_form()}, "outside of itself"),
        ({"a/b": (tarfile.SYMTYPE, "/etc/passwd"), **docker_form()}, "outside of itself"),
        ({"a": (tarfile.CHRTYPE, ""), **docker_form()}, "neither file, folder nor link"),
        ({"a": b"1"}, "neither manifest.json nor index.json"),
        ({"manifest.json": b"[]"}, "lists no image"),
        ({"manifest.json": b"{"}, "no JSON"),
        ({"manifest.json": b"[1]"}, "not of the known form"),
        (docker_form(Layers=[]), "0 layers for an image of 1"),
        (docker_form(Config="gone.json"), "lacks gone.json"),
        (docker_form(RepoTags="app"), "not of the known form"),
        ({**docker_form(), f"{NAME}.json": CONFIG + b" "}, "another content"),
        ({"index.json": b"{}"}, "not of the known form"),
        ({"index.json": b'{"manifests": []}'}, "lists no image"),
    ],
)
def test_what_is_refused(tmp_path: Path, members: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, tar(members))


def test_links_inside_are_those_of_old_versions(tmp_path: Path) -> None:
    assert read_archive(write(tmp_path, tar({"m/layer.tar": (tarfile.SYMTYPE, "../l/layer.tar"), **docker_form()})))


def test_no_archive_at_all(tmp_path: Path) -> None:
    assert refused(tmp_path, b"") == "the file is empty"
    refused(tmp_path, b"#!/bin/sh\n" * 200)
    (tmp_path / "folder").mkdir()
    for name, code in (("absent", "archive-missing"), ("folder", "archive-invalid")):
        with pytest.raises(OfflineRebuildError) as caught:
            read_archive(str(tmp_path / name))
        assert caught.value.code == code


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.data())
def test_any_damage_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    raw = bytearray(tar(data.draw(st.sampled_from([docker_form(), oci_form()]))))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_archive(write(tmp_path_factory.mktemp("a"), bytes(raw)))
    except OfflineRebuildError as error:
        assert error.code == "archive-invalid"

"""The archive that `docker load` takes: what is in it for which store, byte for byte the same each time."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from module_utils.offline_rebuild.cli import Docker
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.graft import (
    DOCKER_MANIFEST,
    REGISTRY,
    Carried,
    Making,
    document,
    encode,
    load,
    remove_left_behind,
    write_archive,
)
from module_utils.offline_rebuild.image import Image, ImageStore, sha256
from tests.unit.depot import Depot, image_of, made_config, tar_of

CONFIG = made_config("FROM scratch\nCOPY a /a\nCOPY b /b\nCMD x\n")


def stored(tmp_path: Path) -> Image:
    depot = Depot(tmp_path)
    depot.add("a:1", CONFIG, [tar_of({"a": "1"}), tar_of({"b": "1"})])
    image = ImageStore(depot).find("a:1")  # type: ignore[arg-type]
    assert image is not None
    return image


def archive(image: object) -> dict[str, bytes]:
    stream = io.BytesIO()
    write_archive(stream, image)  # type: ignore[arg-type]
    again = io.BytesIO()
    write_archive(again, image)  # type: ignore[arg-type]
    assert stream.getvalue() == again.getvalue()
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_the_classic_store_gets_config_and_names_of_layers() -> None:
    ancestor = image_of(CONFIG)
    made = document(f"{REGISTRY}/graft:x", {"os": "linux", "config": {}}, ancestor, 1)
    assert made.manifest is None
    assert made.diff_ids == ancestor.diff_ids[:1]
    files = archive(made)
    (legacy,) = json.loads(files["manifest.json"])
    assert legacy["RepoTags"] == [f"{REGISTRY}/graft:x"]
    assert legacy["Layers"] == ["blobs/sha256/" + made.diff_ids[0].split(":")[1]]
    assert sha256(files[legacy["Config"]]) == made.id == made.config_digest
    assert json.loads(files[legacy["Config"]])["rootfs"] == {"type": "layers", "diff_ids": list(made.diff_ids)}
    assert set(files) == {"manifest.json", legacy["Config"]}


def test_the_containerd_store_gets_a_layout_with_the_ancestors_descriptors(tmp_path: Path) -> None:
    ancestor = stored(tmp_path)
    made = document(f"{REGISTRY}/graft:x", {"config": {}}, ancestor, 1)
    files = archive(made)
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (descriptor,) = json.loads(files["index.json"])["manifests"]
    assert descriptor["annotations"] == {
        "io.containerd.image.name": f"{REGISTRY}/graft:x",
        "org.opencontainers.image.ref.name": "x",
    }
    raw = files["blobs/sha256/" + descriptor["digest"].split(":")[1]]
    assert made.id == descriptor["digest"] == sha256(raw)
    assert descriptor["size"] == len(raw)
    manifest = json.loads(raw)
    assert ancestor.manifest is not None
    assert manifest["layers"] == ancestor.manifest["layers"][:1]
    assert manifest["config"]["digest"] == made.config_digest
    assert manifest["mediaType"] == descriptor["mediaType"] == ancestor.manifest["mediaType"]


@pytest.mark.parametrize("docker", [True, False])
def test_a_carried_layer(tmp_path: Path, docker: bool) -> None:
    ancestor = stored(tmp_path)
    if docker:
        ancestor = replace(ancestor, manifest={**(ancestor.manifest or {}), "mediaType": DOCKER_MANIFEST})
    layer = tar_of({"c": "1"})
    (tmp_path / "layer.tar").write_bytes(layer)
    made = document(
        "r/x:1", {"config": {}}, ancestor, 2, [Carried(sha256(layer), len(layer), str(tmp_path / "layer.tar"))]
    )
    files = archive(made)
    assert files["blobs/sha256/" + sha256(layer).split(":")[1]] == layer
    assert made.diff_ids == (*ancestor.diff_ids, sha256(layer))
    assert made.manifest is not None
    last = json.loads(made.manifest)["layers"][-1]
    kind = "docker.image.rootfs.diff.tar" if docker else "oci.image.layer.v1.tar"
    assert last == {"mediaType": f"application/vnd.{kind}", "digest": sha256(layer), "size": len(layer)}


def test_bytes_that_are_not_utf8_are_written_as_go_writes_them() -> None:
    assert json.loads(encode({"Env": ["A=\udcff\udcfe", "B=é"]})) == {"Env": ["A=\ufffd\ufffd", "B=é"]}
    assert encode({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()


def fake_docker(tmp_path: Path, inspect: str, names: str = "") -> Docker:
    cli = tmp_path / "docker"
    cli.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\ncase "$1 $2" in\n'
        f"'image inspect') echo '{inspect}';; 'image ls') echo '{names}';; 'load ') cat > {tmp_path}/loaded;; esac\n"
    )
    cli.chmod(0o755)
    return Docker(str(cli))


@pytest.mark.parametrize("wrong", ["", "id", "layers", "gone"])
def test_what_the_engine_took_is_checked(tmp_path: Path, wrong: str) -> None:
    made = document("r/x:1", {"config": {}}, image_of(CONFIG), 1)
    found = {
        "Id": "sha256:0" if wrong == "id" else made.id,
        "RootFS": {"Layers": [] if wrong == "layers" else made.diff_ids},
    }

    class Store:
        docker = fake_docker(tmp_path, json.dumps([] if wrong == "gone" else [found]))
        learnt: ClassVar[list[str]] = []

        def learn(self, data: dict[str, str]) -> None:
            self.learnt.append(data["Id"])

    if not wrong:
        assert load(Store(), made) == made.id  # type: ignore[arg-type]
        assert (tmp_path / "loaded").stat().st_size > 0
        assert Store.learnt == [made.id]
    else:
        with pytest.raises(OfflineRebuildError, match="load-failed"):
            load(Store(), made)  # type: ignore[arg-type]


def test_only_our_own_names_are_removed(tmp_path: Path) -> None:
    docker = fake_docker(tmp_path, "[]", f"{REGISTRY}/graft:x\n{REGISTRY}/build:<none>")
    assert remove_left_behind(docker) == [f"{REGISTRY}/graft:x"]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert f"reference={REGISTRY}/*" in calls[0]
    assert calls[1] == f"image rm --no-prune {REGISTRY}/graft:x"


def test_the_last_run_that_makes_images_takes_the_names_away(tmp_path: Path) -> None:
    first, second, removed = Making(str(tmp_path)), Making(str(tmp_path)), []
    first.begin()
    second.begin()
    second.begin()
    first.end(lambda: removed.append("first"))
    assert removed == []
    second.end(lambda: removed.append("second"))
    assert removed == ["second"]
    first.end(lambda: removed.append("first, with nothing made"))
    assert len(removed) == 2

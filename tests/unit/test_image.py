"""Images as the engine's files hold them: found, checked, and never trusted further than their digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild.cli import Docker, EngineInfo
from module_utils.offline_rebuild.image import (
    ImageStore,
    is_sound,
    missing_image,
    normal_ref,
    parse_history,
    pull_remedy,
    read_checked,
    sha256,
)
from tests.unit.depot import Depot, made_config, tar_of

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("history", "rootfs", "config", "os", "architecture", "variant", "author")
SECTION = ("Env", "Cmd", "Labels", "Healthcheck", "WorkingDir", "OnBuild", "ExposedPorts")


def store_of(depot: Depot) -> ImageStore:
    return ImageStore(depot)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ref", "normal"),
    [
        ("python", "python:latest"),
        ("python:3", "python:3"),
        ("docker.io/library/python:3", "python:3"),
        ("docker.io/a/b", "a/b:latest"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        ("a/b:1", "a/b:1"),
        ("index.docker.io/library/python", "python:latest"),
        ("python@sha256:1", "python@sha256:1"),
        ("python:3@sha256:1", "python@sha256:1"),
        ("localhost:5000/a:1@sha256:1", "localhost:5000/a@sha256:1"),
    ],
)
def test_names(ref: str, normal: str) -> None:
    assert normal_ref(ref) == normal


def test_an_image_is_found_by_name_and_id(tmp_path: Path) -> None:
    depot = Depot(tmp_path)
    image_id = depot.add("a/b:1", made_config("FROM scratch\nCOPY a /a\nCMD x\n"), [tar_of({"a": "1"})])
    store = store_of(depot)
    for ref in ("a/b:1", "docker.io/a/b:1", image_id):
        found = store.find(ref)
        assert found is not None
        assert found.id == image_id
    assert found.platform == "linux/amd64"
    assert [entry.layer for entry in found.history] == [0, None]
    assert found.layer_descriptors is not None
    assert found.layer_descriptors[0]["digest"] == found.diff_ids[0]
    assert store.find("a/b") is None
    assert [image.id for image in store.all()] == [image_id]


def test_what_does_not_have_its_digest_is_not_read(tmp_path: Path) -> None:
    depot = Depot(tmp_path)
    image_id = depot.add("a:1", made_config("FROM scratch\nCOPY a /a\n"), [tar_of({"a": "1"})])
    manifest = depot.blobs / image_id.split(":")[1]
    manifest.write_bytes(manifest.read_bytes() + b" ")
    assert store_of(depot).find("a:1") is None
    assert read_checked(str(tmp_path / "absent"), "sha256:1") is None
    assert read_checked(str(tmp_path), sha256(b"")) is None


def test_layers_that_the_engine_does_not_show_are_not_believed(tmp_path: Path) -> None:
    depot = Depot(tmp_path)
    image_id = depot.add("a:1", made_config("FROM scratch\nCOPY a /a\n"), [tar_of({"a": "1"})])
    depot.inspects[image_id]["RootFS"]["Layers"] = [sha256(b"other")]
    assert store_of(depot).find("a:1") is None


def test_an_index_stands_for_the_platform_that_the_engine_shows(tmp_path: Path) -> None:
    """With attestations the id is that of an index (DESIGN.md, fact 2)."""
    depot = Depot(tmp_path)
    one = depot.add("one:1", made_config("FROM scratch\nCOPY a /a\n"), [tar_of({"a": "1"})])
    two = depot.add("two:1", made_config("FROM scratch\nCOPY a /a\n"), [tar_of({"a": "2"})])
    index = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {"digest": "sha256:gone"},
            5,
            {"digest": two, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
            {"digest": one},
            {"digest": two},
        ],
    }
    for found in (one, two):
        image_id = depot.blob(json.dumps(index).encode())
        depot.inspects = {image_id: {**depot.inspects.get(found, {}), "Id": image_id, "RepoTags": ["x:1"]}}
        layers = [sha256(tar_of({"a": "1" if found == one else "2"}))]
        depot.inspects[image_id]["RootFS"] = {"Layers": layers}
        image = store_of(depot).find("x:1")
        if found == one:
            assert image is not None
            assert list(image.diff_ids) == layers
        index["manifests"] = index["manifests"][:2] + index["manifests"][3:]
    assert image is not None
    assert image.id != two


def test_the_classic_store_is_read_by_id(tmp_path: Path) -> None:
    raw = json.dumps(made_config("FROM scratch\nCMD x\n")).encode()
    folder = tmp_path / "image/overlay2/imagedb/content/sha256"
    folder.mkdir(parents=True)
    (folder / sha256(raw).split(":")[1]).write_bytes(raw)

    class Classic(Depot):
        def info(self) -> EngineInfo:
            return EngineInfo("20.10.24", "linux", "x86_64", "classic", "overlay2", str(tmp_path), "test", {})

    depot = Classic(tmp_path / "unused")
    depot.inspects[sha256(raw)] = {"Id": sha256(raw), "RepoTags": ["a:1"], "RootFS": {}}
    image = store_of(depot).find("a:1")
    assert image is not None
    assert (image.config_digest, image.manifest, image.layer_descriptors) == (sha256(raw), None, None)


@pytest.mark.parametrize(
    ("script", "readable"),
    [("exit 1", False), ("printf half", False), ('cat "$OFR_TEST_TAR"', True), ('cat "$OFR_TEST_TAR"; yes', True)],
)
def test_a_closed_engine_root_and_docker_save(tmp_path: Path, script: str, readable: bool) -> None:
    """Where the root cannot be read `docker save` gives the config; when that fails, the image is not read."""
    raw = json.dumps(made_config("FROM scratch\nCMD x\n")).encode()
    image_id = sha256(raw)
    (tmp_path / "saved.tar").write_bytes(tar_of({image_id.split(":")[1] + ".json": raw.decode()}))
    cli = tmp_path / "docker"
    info = json.dumps({"ServerVersion": "20.10.24", "Driver": "overlay2", "DockerRootDir": str(tmp_path / "closed")})
    inspect = json.dumps([{"Id": image_id, "RepoTags": ["a:1"], "RootFS": {}}])
    cli.write_text(
        f"#!/bin/sh\ncase \"$1 $2\" in\ninfo*) echo '{info}';; 'image ls') echo {image_id};;\n"
        f"'image inspect') echo '{inspect}';; save*) {script};; *) exit 9;; esac\n"
    )
    cli.chmod(0o755)
    store = ImageStore(Docker(str(cli), {"OFR_TEST_TAR": str(tmp_path / "saved.tar")}))
    assert (store.find("a:1") is not None) == readable


def test_only_what_matters_is_saved(tmp_path: Path) -> None:
    """With the engine's root closed: which images are streamed whole, and that one is so once."""
    raws = {name: json.dumps(made_config(f"FROM scratch\nENV A={name}\n")).encode() for name in ("a", "b")}
    saved = tmp_path / "saved"
    inspect, history, save = "", "", ""
    for name, raw in raws.items():
        (tmp_path / name).write_bytes(tar_of({sha256(raw).split(":")[1] + ".json": raw.decode()}))
        inspect += ("," if inspect else "") + json.dumps({"Id": sha256(raw), "RepoTags": [name + ":1"], "RootFS": {}})
        history += f"*{sha256(raw)}) echo '\"ENV A={name}\"';; "
        save += f"*{sha256(raw)}) echo {name} >> {saved}; cat {tmp_path}/{name};; "
    info = json.dumps({"ServerVersion": "20.10.24", "Driver": "overlay2", "DockerRootDir": str(tmp_path / "closed")})
    cli = tmp_path / "docker"
    ids = " ".join(map(sha256, raws.values()))
    cli.write_text(
        f"#!/bin/sh\ncase \"$*\" in\ninfo*) echo '{info}';; 'image ls'*) echo {ids};;\n"
        f"'image inspect'*) echo '[{inspect}]';; 'image history'*) case \"$*\" in {history} esac;;\n"
        f'save*) case "$*" in {save} esac;; *) exit 9;; esac\n'
    )
    cli.chmod(0o755)
    for may_write in (False, True, True):
        store = ImageStore(Docker(str(cli)), str(tmp_path / "configs"), may_write)
        found = store.all(lambda data, texts: texts == ["ENV A=b"] and data["RepoTags"] == ["b:1"])
        assert [image.name for image in found] == ["b:1"]
    assert saved.read_text().split() == ["b", "b"]  # in check mode nothing is kept


def test_history_that_does_not_add_up_is_none() -> None:
    config = made_config("FROM scratch\nCOPY a /a\nCMD x\nCOPY b /b\n")
    assert [entry.layer for entry in parse_history(config)] == [0, None, 1]
    for cut in range(3):
        assert parse_history({**config, "history": config["history"][:cut]}) == ()
    assert parse_history({**config, "history": config["history"] * 2}) == ()
    assert parse_history({}) == ()


@settings(max_examples=500, derandomize=True, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), ANY_JSON), st.dictionaries(st.sampled_from(SECTION), ANY_JSON))
def test_any_config_is_read_or_refused(document: dict[str, Any], section: dict[str, Any]) -> None:
    for config in (document, {**document, "config": section, "rootfs": {"diff_ids": []}}):
        parse_history(config)
        assert is_sound(config) in (True, False)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.binary(max_size=60) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_any_manifest_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    depot = Depot(tmp_path_factory.mktemp("depot"))
    image_id = depot.blob(raw)
    depot.inspects[image_id] = {"Id": image_id, "RepoTags": ["a:1"], "RootFS": {"Layers": []}}
    assert store_of(depot).find("a:1") is None


def test_the_remedy_is_a_command_to_type() -> None:
    error = missing_image("a/b:1", ["web"], "linux/arm64")
    assert error.code == "image-missing"
    assert "web" in error.message
    assert "docker pull --platform linux/arm64 a/b:1 && docker save -o a_b_1.tar a/b:1" in error.remedy
    assert pull_remedy("x@sha256:1", "linux/amd64").endswith("docker load -i x_sha256_1.tar")

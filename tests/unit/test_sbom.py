"""Packages as they are found in layers, and the document made of them."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from control_node.sbom import LayerFiles, Package, document, packages, scan
from tests.unit.depot import tar_of

DPKG = """Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2-1
Description: a shell
 continued: not a key

Package: gone
Status: deinstall ok config-files
Version: 1

Package: libc6
Status: install ok installed
Version: 2.41-12+deb13u3
"""
APK = "C:Q1\nP:musl\nV:1.2.5-r0\nA:x86_64\n\nP:busybox\nV:1.36\nA:x86_64\n"
METADATA = "Metadata-Version: 2.1\nName: Typing_Extensions\nVersion: 4.16.0\n\nName: not-this\nVersion: 0\n"


def layer(files: dict[str, str | tuple[int, str] | None]) -> LayerFiles:
    return scan(io.BytesIO(tar_of(files)))


def test_what_the_managers_left_is_found() -> None:
    found, unread, distribution = packages(
        [
            layer({"var/lib/dpkg/status": DPKG, "etc/os-release": 'NAME="x"\nID="ubuntu"\n', "bin/sh": "x"}),
            layer({"lib/apk/db/installed": APK}),
            layer({"usr/lib/python3/site-packages/typing_extensions-4.16.0.dist-info/METADATA": METADATA}),
            layer({"app/node_modules/@next/env/package.json": '{"name": "@next/env", "version": "16.0.0"}'}),
            layer({"app/node_modules/next/dist/compiled/x/package.json": '{"name": "x", "version": "1"}'}),
            layer({"app/node_modules/broken/package.json": "{", "app/node_modules/odd/package.json": '{"name": 1}'}),
            layer({"var/lib/rpm/rpmdb.sqlite": "x"}),
        ]
    )
    assert found == [
        Package("apk", "busybox", "1.36", "x86_64"),
        Package("apk", "musl", "1.2.5-r0", "x86_64"),
        Package("deb", "bash", "5.2-1", "amd64"),
        Package("deb", "libc6", "2.41-12+deb13u3"),
        Package("npm", "@next/env", "16.0.0"),
        Package("pypi", "typing-extensions", "4.16.0"),
    ]
    assert (unread, distribution) == (["the rpm database"], "ubuntu")


def test_what_an_upper_layer_takes_away_or_replaces() -> None:
    base = layer({"node_modules/a/package.json": '{"name": "a", "version": "1"}', "lib/apk/db/installed": APK})
    for upper in ({"node_modules/.wh.a": ""}, {".wh.node_modules": ""}, {"node_modules/.wh..wh..opq": ""}):
        assert [package.kind for package in packages([base, layer({**upper})])[0]] == ["apk", "apk"]
    newer = layer({"node_modules/a/package.json": '{"name": "a", "version": "2"}'})
    assert [p.version for p in packages([base, newer])[0] if p.kind == "npm"] == ["2"]


def test_compressed_layers_and_what_is_none() -> None:
    packed = gzip.compress(tar_of({"lib/apk/db/installed": APK}))
    assert list(scan(io.BytesIO(packed)).files) == ["lib/apk/db/installed"]
    with pytest.raises(tarfile.TarError):
        scan(io.BytesIO(b"\x28\xb5\x2f\xfd" + b"x" * 2000))


def test_the_document_is_the_same_for_the_same_image() -> None:
    found = packages([layer({"var/lib/dpkg/status": DPKG, "var/lib/rpm/Packages": ""})])
    made = document("app:1", "sha256:" + "a" * 64, found, 1_700_000_000)
    assert made == document("app:1", "sha256:" + "a" * 64, found, 1_700_000_000)
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert {component["purl"] for component in made["components"]} == {
        "pkg:deb/debian/bash@5.2-1?arch=amd64",
        "pkg:deb/debian/libc6@2.41-12%2Bdeb13u3",
    }
    assert made["metadata"]["component"]["properties"] == [
        {"name": "offline-rebuild:not-read", "value": "the rpm database"}
    ]

"""Wheelhouses judged by names, versions, tags, hashes and metadata; PyPA's own library is the oracle."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from packaging.tags import cpython_tags
from packaging.utils import parse_wheel_filename
from packaging.version import Version

from module_utils.offline_rebuild.wheels import (
    Install,
    Python,
    admits,
    applies,
    changes,
    installs,
    lacking,
    libc_of,
    read_requirements,
)

IMAGE = Python(13, "x86_64", "glibc", 36)
VERSIONS = (
    "1.0 1.0.0 1.1 1.0a1 1.0b2 1.0rc1 1.0.post1 1.0.dev3 2 0.9.9 1.0+cpu 1.10 1!1.0 1.0a1.dev2 1.4.5 1.5 2.2.0".split()
)


@pytest.mark.parametrize("operator", ["==", "!=", "<=", ">=", "~=", "<", ">"])
def test_versions_are_as_packaging_has_them(operator: str) -> None:
    for wanted in [*VERSIONS, *(["1.*", "1.0.*"] if operator in ("==", "!=") else [])]:
        if ("+" in wanted and operator not in ("==", "!=")) or (operator == "~=" and "." not in wanted):
            continue
        for version in VERSIONS:
            right = Version(version) in SpecifierSet(operator + wanted, prereleases=True)
            ours = admits(((operator, wanted),), version)
            # < and > leave some neighbours to pip: nothing is refused wrongly
            assert ours == right or (operator in "<>" and ours), (operator, wanted, version)


@pytest.mark.parametrize(
    "marker",
    [
        "python_version < '3.13'",
        "python_version >= '3.9' and sys_platform == 'linux'",
        "sys_platform == 'win32' or (python_version > '3.8' and platform_machine != 'arm64')",
        "(extra == 'fast-IO') and implementation_name == 'cpython'",
        "extra == 'other'",
        "'linux' == sys_platform",
    ],
)
def test_markers_are_as_packaging_has_them(marker: str) -> None:
    values = {
        "python_version": "3.13",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "extra": "fast-io",
    }
    assert applies(marker, IMAGE, ["fast-io"]) == Marker(marker).evaluate(values)


@pytest.mark.parametrize(
    "marker", ["python_full_version < '3.9'", "sys_platform not in 'a'", "((", "x == 'y'", "os_name"]
)
def test_a_marker_that_is_not_understood_says_nothing(marker: str) -> None:
    assert applies(marker, IMAGE) is None


@pytest.mark.parametrize(
    "tags",
    [
        "py3-none-any",
        "py2.py3-none-any",
        "py2-none-any",
        "py313-none-any",
        "py314-none-any",
        "cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64",
        "cp313-cp313-manylinux_2_36_x86_64",
        "cp313-cp313-manylinux_2_39_x86_64",
        "cp312-cp312-manylinux_2_17_x86_64",
        "cp38-abi3-manylinux2014_x86_64",
        "cp314-abi3-manylinux2014_x86_64",
        "cp313-cp313t-manylinux_2_17_x86_64",
        "cp313-cp313-musllinux_1_2_x86_64",
        "cp313-cp313-manylinux2014_aarch64",
        "cp313-none-linux_x86_64",
        "cp313-cp313-win_amd64",
    ],
)
def test_tags_are_as_packaging_has_them(tags: str) -> None:
    platforms = [f"manylinux_2_{n}_x86_64" for n in range(36, 4, -1)]
    platforms += [f"manylinux{n}_x86_64" for n in ("2014", "2010", "1")] + ["linux_x86_64"]
    from packaging.tags import compatible_tags

    known = {
        *cpython_tags((3, 13), ["cp313"], platforms),
        *compatible_tags((3, 13), "cp313", platforms),
    }
    name = f"x-1-{tags}.whl"
    right = bool(parse_wheel_filename(name)[3] & known)
    assert IMAGE.fits(tuple(tags.split("-"))) == right  # type: ignore[arg-type]


def test_the_images_libc() -> None:
    assert libc_of('ID=debian\nVERSION_ID="12"\n', False) == ("glibc", 36)
    assert libc_of("ID=ubuntu\nVERSION_ID='22.04'\n", False) == ("glibc", 35)
    assert libc_of("ID=odd\n", False) == libc_of("", False) == ("", 0)
    assert libc_of("ID=alpine\n", True) == ("musl", 2)
    assert Python(12, "x86_64", "", 0).fits(("cp312", "cp312", "musllinux_1_2_x86_64"))
    assert "--platform manylinux2014_aarch64" in " ".join(Python(12, "aarch64").download_flags())
    assert "musllinux_1_2_x86_64" in Python(12, "x86_64", "musl", 2).download_flags()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pip install -r a.txt", [Install("pip", ("a.txt",))]),
        ("pip install --no-cache-dir -ra.txt 'b>=1' c", [Install("pip", ("a.txt",), ("b>=1", "c"))]),
        ("x && /opt/v/bin/pip install --requirement=a.txt; y", [Install("/opt/v/bin/pip", ("a.txt",))]),
        ("python3.13 -m pip install -U pip -c c.txt", [Install("python3.13", (), ("pip",))]),
        ("(pip install a) || pip3 install b", [Install("pip", (), ("a",)), Install("pip3", (), ("b",))]),
        ("pip install a\npip install b", [Install("pip", (), ("a",)), Install("pip", (), ("b",))]),
        ("pip install .", [Install("pip", (), (), True)]),
        ("pip install -e .", [Install("pip", (), (), True)]),
        ("pip install -r $FILE", [Install("pip", ("$FILE",), (), True)]),
        ("pip install git+https://x/y", [Install("pip", (), (), True)]),
        ("echo pip", []),
    ],
)
def test_commands(text: str, found: list[Install]) -> None:
    assert installs(None, text) == found


def test_commands_of_other_forms() -> None:
    assert installs(["pip", "install", "a b"], "") == [Install("pip", (), ("a b",))]
    assert installs(None, "pip install 'a") is None


def test_requirements_files() -> None:
    text = (
        "# all\n--index-url https://x\nA_b.c[x,Y]>=1,<2 ; python_version > '3'  # why\n-r more.txt\n./local\n-e .\n"
        "d==1 \\\n  --hash=sha256:AB \\\n  --hash=sha256:cd\ne @ https://x/e.whl\nf==1 --hash=sha512:ef\n"
    )
    found, nested = read_requirements(text, "r.txt")
    assert nested == ["more.txt"]
    assert [(str(one), one.marker, sorted(one.extras), sorted(one.hashes)) for one in found] == [
        ("a-b-c[x,y]>=1,<2", "python_version > '3'", ["x", "y"], []),
        ("d==1", "", [], ["ab", "cd"]),
        ("f==1", "", [], []),
    ]
    assert found[2].other_hashes


def test_what_has_changed() -> None:
    old, _ = read_requirements("httpx==0.27.0\nsix\nsame==1\nloose>=1\nmore==1\n")
    new, _ = read_requirements("httpx==0.28.1\nsame==1\nloose>=2\nnumpy==2.1.0\nmore[x]==1\n")
    assert changes(old, new) == [
        "+numpy==2.1.0",
        "httpx 0.27.0 -> 0.28.1",
        "loose >=1 -> >=2",
        "more==1 -> more[x]==1",
        "-six",
    ]


def wheel(folder: Path, name: str, requires: str = "") -> Path:
    stem = "-".join(name.split("-")[:2])
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", f"Name: x\n{requires}\nbody")
    return folder / name


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("one==1", []),
        ("one", []),
        ("One==1.0", []),
        ("one==2", ["one==2: the wheelhouse has it only in version 1.0"]),
        ("four", ["four: the wheelhouse has no four"]),
        ("four; sys_platform == 'win32'", []),
        ("old", ["old: the wheelhouse has it only for another Python or platform"]),
        ("source==1", ["source==1: the wheelhouse has it only as source (source-1.tar.gz)"]),
        ("two", ["gone>=1 (needed by two 1): the wheelhouse has no gone"]),
        ("two[more]", ["gone>=1 (needed by", "extra (needed by two 1): the wheelhouse has no extra"]),
        ("twice", []),
        ("broken", []),
        ("one --hash=sha256:00", ["one-1.0-py3-none-any.whl in the wheelhouse has another sha256 than r.txt asks for"]),
    ],
)
def test_what_a_wheelhouse_lacks(tmp_path: Path, wanted: str, said: list[str]) -> None:
    one = wheel(tmp_path, "one-1.0-py3-none-any.whl")
    wheel(
        tmp_path,
        "two-1-py3-none-any.whl",
        "Requires-Dist: one\nRequires-Dist: gone>=1\nRequires-Dist: extra; extra == 'more'",
    )
    wheel(tmp_path, "twice-1-py3-none-any.whl", "Requires-Dist: gone")
    wheel(tmp_path, "twice-2-py3-none-any.whl", "Requires-Dist: gone")  # of several, pip chooses
    wheel(tmp_path, "old-1-cp312-cp312-manylinux2014_x86_64.whl")
    (tmp_path / "broken-1-py3-none-any.whl").write_bytes(b"no zip")
    (tmp_path / "source-1.tar.gz").write_bytes(b"")
    (tmp_path / "odd.whl").write_bytes(b"")
    names = sorted(path.name for path in tmp_path.iterdir())
    requirements, _ = read_requirements(wanted, "r.txt")
    found = lacking(requirements, str(tmp_path), names, IMAGE)
    assert len(found) == len(said)
    assert all(text in line for text, line in zip(said, found, strict=True)), found
    right = hashlib.sha256(one.read_bytes()).hexdigest()
    assert not lacking(read_requirements(f"one --hash=sha256:{right}")[0], str(tmp_path), names, IMAGE)

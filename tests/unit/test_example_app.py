"""The sample application, the script that builds it and the demo say the same things."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.script import load

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "examples" / "llm-chat"


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", True)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("NEXT_PUBLIC_API_URL", "PIP_INDEX_URL", "NPM_CONFIG_REGISTRY", "DEBIAN_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    return load("connected-build")


@pytest.fixture
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((SAMPLE / "deployment/docker/docker-compose.yml").read_text()))


def with_defaults(value: str) -> str:
    """``${NAME:-default}`` as compose reads it where the variable is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def instructions(dockerfile: Path) -> list[str]:
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


def test_script_builds_what_compose_would_build(script: ModuleType, compose: dict[str, Any]) -> None:
    builds = {build.image: build for build in script.BUILDS}
    for name, service in compose["services"].items():
        build = builds[service["image"]]
        given = {key: with_defaults(value) for key, value in service["build"]["args"].items()}
        assert build.build_args(script.REGISTRY_BASES) == given, name
        assert build.target == service["build"].get("target"), name
        context = (SAMPLE / "deployment/docker" / service["build"]["context"]).resolve()
        assert SAMPLE / build.context == context, name


def test_archive_holds_an_image_of_every_stage(script: ModuleType) -> None:
    stages = [re.findall(r" AS (\w+)", line) for line in instructions(SAMPLE / "frontend/Dockerfile")]
    targets = {build.target for build in script.BUILDS if build.context == "frontend"}
    assert targets == {name for found in stages for name in found} == {"builder", "runner"}


@pytest.mark.parametrize(
    ("context", "first", "then", "last"),
    [
        ("backend", "COPY requirements.txt .", "pip install --no-cache-dir -r requirements.txt", "COPY . ."),
        ("frontend", "COPY package*.json ./", "npm ci", "COPY . ."),
    ],
)
def test_packages_come_before_the_source(context: str, first: str, then: str, last: str) -> None:
    lines = instructions(SAMPLE / context / "Dockerfile")
    install = next(number for number, line in enumerate(lines) if line.startswith("RUN") and line.endswith(then))
    assert lines.index(first) < install < lines.index(last)


@pytest.mark.parametrize("context", ["backend", "frontend"])
def test_dockerfile_needs_nothing_that_is_not_there(context: str) -> None:
    dockerfile = SAMPLE / context / "Dockerfile"
    assert "syntax=" not in dockerfile.read_text()
    bases = [line.split()[1] for line in instructions(dockerfile) if line.startswith("FROM")]
    assert len(set(bases)) == 1
    assert re.fullmatch(r"\$\{(PYTHON|NODE)_IMAGE\}", bases[0])
    assert all("required" not in line for line in instructions(dockerfile))


def test_ignore_files_leave_out_what_the_key_leaves_out(script: ModuleType) -> None:
    ignored = {
        line.removeprefix("**/")
        for context in ("backend", "frontend")
        for line in (SAMPLE / context / ".dockerignore").read_text().splitlines()
    }
    assert ignored >= script.NOT_SOURCES


def test_lock_file_names_no_registry() -> None:
    text = (SAMPLE / "frontend/package-lock.json").read_text()
    packages = json.loads(text)["packages"]
    assert not [name for name, package in packages.items() if "resolved" in package]
    assert all(package.get("integrity") for name, package in packages.items() if name)
    wanted = json.loads((SAMPLE / "frontend/package.json").read_text())["dependencies"]
    assert packages[""]["dependencies"] == wanted
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted


def test_both_services_have_a_health_check(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["frontend"]["depends_on"] == {"backend": {"condition": "service_healthy"}}
    assert services["backend"]["healthcheck"]["test"][:2] == ["CMD", "python"]
    assert services["frontend"]["healthcheck"]["test"][:2] == ["CMD", "node"]


def test_demo_edits_a_line_that_is_there(script: ModuleType) -> None:
    demo = load("demo")
    source = (SAMPLE / "backend/main.py").read_text()
    assert source.splitlines().count(f'VERSION = "{demo.IMPORTED}"') == 1
    assert demo.EDITED not in source
    assert (SAMPLE / "frontend/app/page.js").read_text().count(demo.HEADING) == 1
    assert (SAMPLE / demo.COMPOSE).is_file()
    assert script.OUTPUT / "images.tar" == demo.ARCHIVE


RECAP = """PLAY RECAP ****
server1                    : ok=4    changed=1    unreachable=0    failed=0    skipped=2    rescued=0    ignored=0
server2                    : ok=2    changed=0    unreachable=0    failed=0    skipped=2    rescued=0    ignored=0
"""


def test_demo_reads_the_recap() -> None:
    demo = load("demo")
    assert demo.changed_in("server1 : changed=7\n" + RECAP, ["server1", "server2"]) == {"server1": 1, "server2": 0}
    with pytest.raises(SystemExit, match=r"not in the recap.*server3"):
        demo.changed_in(RECAP, ["server1", "server3"])


@pytest.fixture
def copied(script: ModuleType, tmp_path: Path) -> ModuleType:
    """The script over a copy of the sample."""
    skip = shutil.ignore_patterns("node_modules", ".next", "__pycache__")
    script.ROOT, script.SAMPLE = tmp_path, tmp_path / "llm-chat"
    shutil.copytree(SAMPLE, script.SAMPLE, ignore=skip)
    script.BASES = script.SAMPLE / "deployment/bases/Dockerfile"
    return script


@pytest.mark.parametrize("path", ["backend/main.py", "frontend/app/page.js", "backend/.dockerignore"])
def test_key_follows_the_sources(copied: ModuleType, path: str) -> None:
    before = copied.archive_key(copied.DEBIAN_BASES)
    with (copied.SAMPLE / path).open("a") as stream:
        stream.write("\n")
    assert copied.archive_key(copied.DEBIAN_BASES) != before


def test_key_follows_modes_names_and_bases(copied: ModuleType) -> None:
    keys = [copied.archive_key(copied.DEBIAN_BASES), copied.archive_key(copied.REGISTRY_BASES)]
    (copied.SAMPLE / "backend/main.py").chmod(0o755)
    keys.append(copied.archive_key(copied.DEBIAN_BASES))
    (copied.SAMPLE / "backend/new.py").touch()
    keys.append(copied.archive_key(copied.DEBIAN_BASES))
    copied.BASES.write_text("FROM scratch\n")
    keys.append(copied.archive_key(copied.DEBIAN_BASES))
    copied.SUITE = "forky"
    keys.append(copied.archive_key(copied.DEBIAN_BASES))
    assert len(set(keys)) == len(keys)


def test_key_leaves_out_what_tools_leave_behind(copied: ModuleType) -> None:
    before = copied.archive_key(copied.DEBIAN_BASES)
    for folder in ("frontend/node_modules/next", "frontend/.next", "backend/__pycache__"):
        (copied.SAMPLE / folder).mkdir(parents=True)
        (copied.SAMPLE / folder / "file").write_text("x")
    assert copied.archive_key(copied.DEBIAN_BASES) == before


def test_archive_is_current_only_if_whole(copied: ModuleType, tmp_path: Path) -> None:
    copied.OUTPUT = tmp_path
    record = {"key": copied.archive_key(copied.DEBIAN_BASES), "bases": copied.DEBIAN_BASES, "archive_bytes": 3}
    (tmp_path / "build.json").write_text(json.dumps(record))
    assert not copied.is_current(copied.recorded(), "auto")
    (tmp_path / "images.tar").write_bytes(b"tar")
    assert copied.is_current(copied.recorded(), "auto")
    assert copied.is_current(copied.recorded(), "debian")
    assert not copied.is_current(copied.recorded(), "registry")
    (tmp_path / "images.tar").write_bytes(b"ta")
    assert not copied.is_current(copied.recorded(), "auto")
    (tmp_path / "build.json").write_text("{")
    assert copied.recorded() == {}


def test_npm_settings_are_those_that_a_build_needs(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".npmrc").write_text("registry=https://npm.example\n//npm.example/:_authToken=t\nnodedir=/usr\n")
    lines = script.npm_settings(with_ca=True).splitlines()
    assert lines[:3] == ["registry=https://npm.example", "//npm.example/:_authToken=t", "cafile=/run/secrets/ca"]
    assert "nodedir=/usr" not in lines
    assert not any("cafile" in line for line in script.npm_settings(with_ca=False).splitlines())


def test_pip_settings_name_no_index_on_this_disk(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.example/simple")
    assert script.pip_settings(with_ca=True) == (
        "[global]\nindex-url = https://pip.example/simple\ncert = /run/secrets/ca\n"
    )
    monkeypatch.setenv("PIP_INDEX_URL", "file:///opt/simple")
    assert "index-url" not in script.pip_settings(with_ca=False)


def test_secrets_are_gone_after_the_build(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    monkeypatch.setenv("BUILD_CA", str(bundle))
    with script.secrets() as options:
        files = [Path(option.partition("src=")[2]) for option in options]
        assert all(file.is_file() for file in files)
        assert options[-1] == f"--secret=id=ca,src={bundle}"
        assert files[0].parent.stat().st_mode & 0o077 == 0
    assert [file for file in files if file.exists()] == [bundle]


def client(folder: Path, version: str, buildx: bool) -> str:
    """A stand-in for a docker client: what it says of itself and whether its buildx plugin is there."""
    folder.mkdir()
    command = folder / "docker"
    command.write_text(f'#!/bin/sh\n[ "$1" = buildx ] && exit {0 if buildx else 1}\necho {version}\nexit 1\n')
    command.chmod(0o755)
    return str(command)


def test_a_client_that_cannot_build_is_passed_over(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(tmp_path / "new", "28.2.2", buildx=False)
    old = client(tmp_path / "old", "20.10.24", buildx=False)
    whole = client(tmp_path / "whole", "28.5.2", buildx=True)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "new"), str(tmp_path / "old"), str(tmp_path / "whole")]))
    assert script.find_docker() == old
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "new"), str(tmp_path / "whole")]))
    assert script.find_docker() == whole
    monkeypatch.setenv("PATH", str(tmp_path / "new"))
    with pytest.raises(SystemExit, match="cannot build with BuildKit"):
        script.find_docker()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="no docker command"):
        script.find_docker()

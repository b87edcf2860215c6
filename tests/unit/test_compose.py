"""Reading a project: the CLI is a script that gives recorded answers; all the rest is pure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from module_utils.offline_rebuild import compose
from module_utils.offline_rebuild.cli import Docker
from module_utils.offline_rebuild.compose import ContainerState, Dependency, Service, service_state
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.image import normal_ref

MODEL: dict[str, Any] = {
    "name": "shop",
    "services": {
        "web": {
            "build": {
                "context": "/srv/shop/app",
                "dockerfile": "../docker/web.Dockerfile",
                "args": {"A": "1", "PRICE": "5$$", "NONE": None},
                "target": "runner",
                "additional_contexts": {"lib": "/srv/lib"},
                "extra_hosts": ["h=1.2.3.4"],
                "shm_size": "67108864",
                "privileged": True,
                "ulimits": {"nofile": 10},
                "cache_to": ["x"],
            },
            "depends_on": {
                "db": {"condition": "service_healthy", "required": True, "restart": True},
                "job": {"condition": "service_completed_successfully", "required": False},
            },
            "healthcheck": {"test": ["CMD", "true"]},
            "ports": [{"target": 80, "published": "8080"}],
            "deploy": {"replicas": 2},
        },
        "db": {"image": "docker.io/library/postgres", "healthcheck": {"disable": True}},
        "job": {"build": {"context": "https://example.org/job.git#main", "dockerfile": "Dockerfile"}, "scale": 0},
        "aaa": {
            "image": "reg:5000/x/y@sha256:00",
            "network_mode": "service:web",
            "depends_on": {"web": {"condition": "service_started", "required": True}},
        },
        "text": {"build": {"context": "/srv/shop", "dockerfile_inline": "FROM a\nRUN echo $$X\n"}},
    },
}


def stub(folder: Path, answers: str) -> Docker:
    """A CLI that runs the shell text ``answers`` with the docker arguments in ``$*``."""
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\n{answers}\n")
    path.chmod(0o755)
    return Docker(str(path))


def load(tmp_path: Path, model: dict[str, Any] | None = None, **options: Any) -> compose.Project:
    source = tmp_path / "src"
    source.mkdir(exist_ok=True)
    (source / "compose.yaml").touch()
    (tmp_path / "model.json").write_text(json.dumps(model or MODEL))
    answer = f'echo "$PWD $*" >> {tmp_path}/calls; cat {tmp_path}/model.json'
    return compose.load(stub(tmp_path, answer), str(source), **options)


def test_services_come_in_dependency_order_and_fully_read(tmp_path: Path) -> None:
    project = load(tmp_path)
    assert [s.name for s in project.services] == ["db", "job", "web", "aaa", "text"]
    web = project.service("web")
    assert web.image == "shop-web:latest"
    assert web.replicas == 2
    assert web.has_healthcheck
    assert web.depends_on == (
        Dependency("db", "service_healthy", restart=True),
        Dependency("job", "service_completed_successfully", required=False),
    )
    assert web.build is not None
    assert web.build.dockerfile == "/srv/shop/docker/web.Dockerfile"
    assert web.build.args == {"A": "1", "PRICE": "5$", "NONE": None}
    assert web.build.shm_size == 64 << 20
    assert web.build.unknown == ("privileged", "ulimits")
    assert not web.build.remote
    assert project.service("db").image == "postgres:latest"
    assert not project.service("db").has_healthcheck
    assert project.service("aaa").image == "reg:5000/x/y@sha256:00"
    text = project.service("text").build
    assert text is not None
    assert (text.inline, text.dockerfile) == ("FROM a\nRUN echo $X\n", "")
    job = project.service("job")
    assert job.build is not None
    assert (job.build.remote, job.build.dockerfile, job.replicas) == (True, "", 0)


def test_later_calls_are_made_as_the_operator_would(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "more.yml").touch()
    (tmp_path / "src" / "prod.env").touch()
    project = load(tmp_path, compose_files=["compose.yaml", "more.yml"], env_files=["prod.env"], profiles=["p"])
    source = str(tmp_path / "src")
    files = ["-f", f"{source}/compose.yaml", "-f", f"{source}/more.yml"]
    prefix = ["compose", "-p", "shop", "--env-file", f"{source}/prod.env", "--profile", "p", *files]
    assert project.command("up", "-d", files=["/over.yml"]) == [*prefix, "-f", "/over.yml", "up", "-d"]
    assert (tmp_path / "calls").read_text().split()[0] == source


@pytest.mark.parametrize(
    ("present", "env", "expected"),
    [
        (["docker-compose.yml", "compose.yml"], "", ["compose.yml"]),
        (
            ["docker-compose.yaml", "docker-compose.override.yml"],
            "",
            ["docker-compose.yaml", "docker-compose.override.yml"],
        ),
        (["compose.yaml", "a.yml", "b.yml"], "COMPOSE_FILE=a.yml:b.yml\n", ["a.yml", "b.yml"]),
        (["a.yml", "b.yml"], "# x\nexport COMPOSE_FILE='a.yml,b.yml'\nCOMPOSE_PATH_SEPARATOR=,\n", ["a.yml", "b.yml"]),
    ],
)
def test_default_files_are_those_of_compose(tmp_path: Path, present: list[str], env: str, expected: list[str]) -> None:
    for name in present:
        (tmp_path / name).touch()
    if env:
        (tmp_path / ".env").write_text(env)
    project = compose.load(stub(tmp_path, """echo '{"name": "p", "services": {}}'"""), str(tmp_path))
    assert [Path(path).name for path in project.files] == expected


@pytest.mark.parametrize(
    ("said", "where", "line"),
    [  # as 2.26.1 and 2.40.3 say it
        ("yaml: line 3: did not find expected key", "compose.yaml", 3),
        ("validating /srv/x/b.yml: services.a Additional property imagex is not allowed", "/srv/x/b.yml", None),
        ('yaml: unmarshal errors:\n  line 2: mapping key "a" already defined at line 2', "compose.yaml", 2),
        ("failed to parse /srv/x/j.yml: line 3: mapping key", "compose.yaml", 3),
        ("open /srv/x/zz.yml: no such file or directory", "/srv/x/zz.yml", None),
        ("env file /srv/x/nope.env not found: stat /srv/x/nope.env: no such file", "/srv/x/nope.env", None),
        ('time="x" level=warning msg="obsolete"\nservice "b" depends on undefined service "zz"', "compose.yaml", None),
    ],
)
def test_compose_errors_keep_file_line_and_words(tmp_path: Path, said: str, where: str, line: int | None) -> None:
    (tmp_path / "compose.yaml").write_text("a\nb\nc\n")
    (tmp_path / "said").write_text(said)
    with pytest.raises(OfflineRebuildError) as caught:
        compose.load(stub(tmp_path, f"cat {tmp_path}/said >&2; exit 15"), str(tmp_path))
    assert caught.value.code == "compose-invalid"
    assert said.splitlines()[-1] in caught.value.message
    assert "level=warning" not in caught.value.message
    assert str(caught.value.file).endswith(where)
    assert caught.value.line == line


def test_bad_input_is_named_before_compose_is_called(tmp_path: Path) -> None:
    docker = stub(tmp_path, f"touch {tmp_path}/called")
    source = tmp_path / "src"
    cases: list[tuple[str, dict[str, Any]]] = [("project-missing", {})]
    for code, options in cases:
        with pytest.raises(OfflineRebuildError) as caught:
            compose.load(docker, str(source), **options)
        assert (caught.value.code, caught.value.file) == (code, str(source))
    source.mkdir()
    for code, options in [
        ("compose-file-missing", {}),
        ("compose-file-missing", {"compose_files": ["x.yml"]}),
        ("env-file-missing", {"compose_files": ["../docker"], "env_files": ["no.env"]}),
    ]:
        with pytest.raises(OfflineRebuildError) as caught:
            compose.load(docker, str(source), **options)
        assert caught.value.code == code
        assert caught.value.remedy
    assert not (tmp_path / "called").exists()


def test_an_unknown_service_names_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").touch()
    docker = stub(
        tmp_path, 'case "$*" in *--services*) echo web; echo db;; *) echo \'{"name":"p","services":{}}\';; esac'
    )
    with pytest.raises(OfflineRebuildError, match="no service 'wbe'") as caught:
        compose.load(docker, str(tmp_path), services=["wbe"])
    assert caught.value.code == "no-such-service"
    assert "db, web" in caught.value.remedy


def test_dependencies_and_dependants(tmp_path: Path) -> None:
    project = load(tmp_path)
    assert project.dependencies(["aaa"]) == ["db", "job", "web"]
    assert project.dependencies(["db"]) == []
    assert project.restarted_with(["db"]) == ["web"]
    assert compose.one_shots(project) == ["job"]


WEB = Service("web", "web:latest", ports=({"target": 80},))
RUNNING = ContainerState("id", "p-web-1", "sha256:aa", "running", "healthy", 0, "hash", "2026", 1, "web")


@pytest.mark.parametrize(
    ("service", "states", "image", "config", "reason"),
    [
        (WEB, [RUNNING], "sha256:aa", "hash", ""),
        (WEB, [], "sha256:aa", "hash", "no container"),
        (replace(WEB, replicas=0), [], "sha256:aa", "hash", ""),
        (replace(WEB, replicas=2), [RUNNING], "sha256:aa", "hash", "1 of 2"),
        (WEB, [RUNNING], "sha256:bb", "hash", "runs image aa"),
        (WEB, [replace(RUNNING, engine_image_id="sha256:bb")], "sha256:bb", "hash", ""),
        (WEB, [RUNNING], "sha256:aa", "other", "configuration changed"),
        (replace(WEB, raw={"network_mode": "service:db"}), [RUNNING], "sha256:aa", "", ""),
        (WEB, [replace(RUNNING, state="exited")], "sha256:aa", "hash", "exited (code 0)"),
        (replace(WEB, ports=()), [replace(RUNNING, state="exited")], "sha256:aa", "hash", ""),
        (replace(WEB, ports=()), [replace(RUNNING, state="exited", exit_code=1)], "sha256:aa", "hash", "(code 1)"),
        (
            replace(WEB, ports=()),
            [replace(RUNNING, state="exited", restart_policy="always")],
            "sha256:aa",
            "hash",
            "exited",
        ),
        (WEB, [replace(RUNNING, state="created")], "sha256:aa", "hash", "is created"),
        (WEB, [replace(RUNNING, state="paused")], "sha256:aa", "hash", "is paused"),
    ],
)
def test_service_state(service: Service, states: list[ContainerState], image: str, config: str, reason: str) -> None:
    found = service_state(service, image, states, config)
    assert (reason in found) if reason else found == ""


def test_a_completed_job_is_left_alone_even_with_a_port() -> None:
    ended = replace(RUNNING, state="exited")
    assert service_state(WEB, "sha256:aa", [ended], "hash", one_shot=True) == ""


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("nginx", "nginx:latest"),
        ("docker.io/library/nginx:1", "nginx:1"),
        ("docker.io/a/b", "a/b:latest"),
        ("reg:5000/a", "reg:5000/a:latest"),
        ("a@sha256:00", "a@sha256:00"),
    ],
)
def test_image_names(ref: str, expected: str) -> None:
    assert normal_ref(ref) == expected

"""The gate's checks against real servers, processes and container states."""

from __future__ import annotations

import http.server
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from module_utils.offline_rebuild import health
from module_utils.offline_rebuild.cli import Docker
from module_utils.offline_rebuild.compose import ContainerState, Dependency, Project, Service
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.health import gate, parse_checks

WEB = Service("web", "web:latest", ports=({"target": 80},))
PROJECT = Project("shop", "/", ("compose",), (), (WEB, Service("job", "job:latest")))
STATE = ContainerState("id1", "shop-web-1", "sha256:aa", "running", "", 0, "h", "", 1, "web")


class Handler(http.server.BaseHTTPRequestHandler):
    answers = 0

    def do_GET(self) -> None:
        type(self).answers += 1
        status = {"/ok": 200, "/moved": 302, "/late": 200 if type(self).answers > 2 else 503}.get(self.path, 404)
        self.send_response(status)
        self.send_header("X-Version", "v7")
        if status == 302:
            self.send_header("Location", "/ok")
        self.end_headers()
        self.wfile.write(b"hello " + self.headers.get("X-Key", "nobody").encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.answers = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join()


@pytest.fixture
def docker(tmp_path: Path) -> Docker:
    path = tmp_path / "docker"
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    return Docker(str(path))


def passed(docker: Docker, check: dict[str, Any], seconds: float = 0.0) -> health.GateResult:
    return gate(docker, PROJECT, [], parse_checks([check], PROJECT), time.monotonic() + seconds)


@pytest.mark.parametrize(
    ("check", "ok", "detail"),
    [
        ({"url": "/ok"}, True, "status 200"),
        ({"url": "/moved"}, True, "status 200"),
        ({"url": "/none"}, False, "status 404"),
        ({"url": "/none", "status": 404}, True, "status 404"),
        ({"url": "/ok", "status": [201, 202]}, False, "status 200"),
        ({"url": "/ok", "body": "^hello"}, True, ""),
        ({"url": "/ok", "body": "bye"}, False, "does not match 'bye': hello nobody"),
        ({"url": "/ok", "headers": {"X-Key": "me"}, "body": "hello me"}, True, ""),
        ({"url": "/ok", "header": {"x-version": "^v7$"}}, True, ""),
        ({"url": "/ok", "header": {"X-Version": "^v8$"}}, False, "header X-Version is 'v7'"),
    ],
)
def test_http(docker: Docker, server: str, check: dict[str, Any], ok: bool, detail: str) -> None:
    result = passed(docker, {**check, "url": server + check["url"]})
    assert result.ok is ok
    assert detail in result.checks[0].detail
    assert ok or detail in result.reason


def test_http_is_tried_until_it_passes_and_ignores_proxies(
    docker: Docker, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    result = passed(docker, {"url": server + "/late"}, 20)
    assert result.ok
    assert result.checks[0].tries == 3
    assert result.seconds < 10


def test_no_server_and_a_silent_server(docker: Docker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        result = passed(docker, {"url": f"http://127.0.0.1:{port}/", "timeout": 0.2}, 0.3)
        assert "no answer" in result.reason
        assert "deadline over" in result.reason
        assert result.seconds < 5
        assert passed(docker, {"tcp": f"127.0.0.1:{port}"}).ok
    result = passed(docker, {"tcp": f"127.0.0.1:{port}"})
    assert "does not accept" in result.reason


def test_command(docker: Docker) -> None:
    assert passed(docker, {"command": [sys.executable, "-c", "print(41 + 1)"], "body": "42"}, 30).ok
    assert passed(docker, {"command": f"{sys.executable} -c 'print(1)'"}, 30).ok
    assert (
        "ended with 3: why"
        in passed(docker, {"command": ["sh", "-c", "echo why >&2; exit 3"], "timeout": 0.5}, 0.5).reason
    )
    assert "no end after" in passed(docker, {"command": ["sleep", "100"], "timeout": 0.1}).reason
    assert "cannot be run" in passed(docker, {"command": ["/no/such"]}).reason


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        ({}, "exactly one of"),
        ({"url": "http://x", "tcp": "a:1"}, "exactly one of"),
        ({"url": "ftp://x"}, "http://"),
        ({"url": "http://x", "bdoy": "y"}, "'bdoy'"),
        ({"url": "http://x", "service": "wbe"}, "there are: web, job"),
        ({"url": "http://x", "inside": True}, "needs a service"),
        ({"tcp": "nohost"}, "host:port"),
        ({"tcp": "a:1", "inside": True, "service": "web"}, "url or command"),
        ({"url": "http://x", "body": "("}, "unterminated"),
        ({"url": "http://x", "status": "many"}, "many"),
        ({"command": "true", "timeout": "soon"}, "soon"),
    ],
)
def test_a_wrong_check_is_refused(check: dict[str, Any], wrong: str) -> None:
    with pytest.raises(OfflineRebuildError) as caught:
        parse_checks([check], PROJECT)
    assert caught.value.code == "health-check-invalid"
    assert wrong in caught.value.message


def test_headers_to_send_are_never_shown() -> None:
    (check,) = parse_checks([{"url": "http://x", "headers": {"Authorization": "s3cret"}}], PROJECT)
    assert "s3cret" not in repr(check)


def judge(docker: Docker, state: ContainerState, restarts: int = 0, jobs: tuple[str, ...] = ()) -> tuple[str, str]:
    loop = health._Gate(docker, PROJECT, ["web"], [], 1.0, {state.id: restarts}, probe=False)
    loop.one_shots = set(jobs)
    loop.states = {"web": [state]}
    found = loop._judge(WEB)
    return found.verdict, found.detail


def ago(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime(time.time() - seconds))


@pytest.mark.parametrize(
    ("state", "verdict", "detail"),
    [
        (replace(STATE, health="healthy", started=ago(30)), "ok", "healthy"),
        (replace(STATE, health="healthy", started=ago(-60)), "pending", "of 1 s"),
        (replace(STATE, health="starting"), "pending", "starting"),
        (replace(STATE, health="unhealthy"), "failed", "unhealthy"),
        (replace(STATE, started=ago(30)), "ok", "without a restart"),
        (replace(STATE, started=ago(-7200)), "pending", "of 1 s"),
        (replace(STATE, started=ago(-3600)), "pending", "of 1 s"),
        (replace(STATE, state="exited", exit_code=3), "failed", "code 3"),
        (replace(STATE, state="exited", exit_code=0), "failed", "code 0"),
        (replace(STATE, state="restarting", restart_count=1), "pending", "restarting"),
        (replace(STATE, state="restarting", restart_count=3, exit_code=2), "failed", "restarted 3 times"),
        (replace(STATE, state="paused"), "failed", "paused"),
        (replace(STATE, state="created"), "pending", "created"),
    ],
)
def test_verdicts(docker: Docker, state: ContainerState, verdict: str, detail: str) -> None:
    found = judge(docker, state)
    assert found[0] == verdict
    assert detail in found[1]


def test_restarts_from_before_the_swap_do_not_count(docker: Docker) -> None:
    assert judge(docker, replace(STATE, restart_count=9, started=ago(9)), restarts=9)[0] == "ok"


def test_a_job_has_to_complete(docker: Docker) -> None:
    assert judge(docker, replace(STATE, health="healthy"), jobs=("web",))[0] == "pending"
    assert judge(docker, replace(STATE, state="exited"), jobs=("web",)) == ("ok", "completed")


def test_a_missing_container_is_waited_for_to_the_deadline(docker: Docker) -> None:
    result = gate(docker, PROJECT, ["web"], [], time.monotonic() + 0.2)
    assert not result.ok
    assert "0 of 1 containers" in result.reason
    assert 0.1 < result.seconds < 5


def test_dependency_conditions_make_jobs() -> None:
    service = Service("app", "a", depends_on=(Dependency("job", "service_completed_successfully"),))
    project = replace(PROJECT, services=(*PROJECT.services, service))
    loop = health._Gate(Docker(), project, [], [], 1.0, {}, probe=True)
    assert loop.one_shots == {"job"}

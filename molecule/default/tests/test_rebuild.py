"""After the main job: the edit is live, nothing else moved, and check mode had said so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

PROJECT = "/srv/llm-chat"
NEW = "1.1.0"


def inspect(host: Any, service: str) -> dict[str, Any]:
    compose = f"docker compose -f {PROJECT}/deployment/docker/docker-compose.yml"
    container = host.check_output(f"{compose} ps -q {service}")
    return dict(json.loads(host.check_output(f"docker inspect {container}"))[0])


@pytest.fixture(scope="module")
def check_mode() -> dict[str, Any]:
    file = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "check.json"
    return dict(json.loads(file.read_text(encoding="utf-8")))


def test_new_version_answers(host: Any) -> None:
    assert json.loads(host.check_output("curl -sf http://127.0.0.1:8000/api/health"))["version"] == NEW


def test_the_edit_is_in_the_image_and_not_only_in_the_container(host: Any) -> None:
    image = inspect(host, "backend")["Image"]
    assert f'VERSION = "{NEW}"' in host.check_output(f"docker run --rm --network none {image} cat /app/main.py")
    assert not host.check_output(f"docker diff {inspect(host, 'backend')['Id']} | grep main.py || true")


def test_the_other_service_was_left_alone(host: Any) -> None:
    backend, frontend = inspect(host, "backend"), inspect(host, "frontend")
    assert frontend["State"]["StartedAt"] < backend["Created"]
    assert frontend["RestartCount"] == 0
    assert frontend["State"]["Running"]


def test_no_base_image_and_no_way_out(host: Any) -> None:
    assert host.run("docker image inspect python:3.13-slim").rc != 0
    assert host.run("curl -s -m 2 http://1.1.1.1").rc != 0


def test_check_mode_names_service_file_and_instruction(check_mode: dict[str, Any]) -> None:
    assert check_mode["status"] == 0, check_mode["output"]
    for word in ("backend", "main.py", "COPY . ."):
        assert word in check_mode["output"]


def test_check_mode_changes_nothing(check_mode: dict[str, Any]) -> None:
    assert check_mode["before"] == check_mode["after"]

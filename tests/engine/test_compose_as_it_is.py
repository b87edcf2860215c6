"""A project that uses what compose has to offer, rebuilt and rolled back on a real engine by what the module calls.

Profiles, ``extends``, ``include``, several files, ``env_file`` and ``--env-file``, secrets, configs, external networks
and volumes, ``depends_on`` with its conditions, replicas, ``container_name``, ``network_mode: service:``,
``volumes_from``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.test_transaction_engine import ROOT, Site
from tests.equality.bases import busybox
from tests.hosts import Hosts

BASE = "127.0.0.1:9/every/base:1"
COMPOSE = """
name: every
include: [more/compose.yaml]
services:
  web:
    extends: {file: common.yaml, service: base}
    build: ./web
    image: "every-web:${TAG}"
    container_name: every-front
    env_file: [web.env]
    ports: ["127.0.0.1:18084:8080"]
    secrets: [from-file, from-variable]
    configs: [{source: written, target: /etc/written}]
    volumes: ["data:/data", "shared:/shared", "./tree:/tree:ro"]
    networks: {default: {aliases: [www]}, corp: {}}
    healthcheck: {test: [CMD, wget, -q, -O, "-", "http://127.0.0.1:8080/health"], interval: 300s, retries: 1}
    depends_on:
      db: {condition: service_healthy}
      migrate: {condition: service_completed_successfully}
  db:
    extends: {file: common.yaml, service: base}
    build: ./db
    volumes: ["data:/data"]
    healthcheck: {test: [CMD, test, -e, /tmp/up], interval: 0.5s, retries: 20}
  migrate:
    build: ./migrate
    volumes: ["data:/data"]
  worker:
    extends: {file: common.yaml, service: base}
    build: ./worker
    deploy: {replicas: 2}
  side:
    extends: {file: common.yaml, service: base}
    image: "every-web:${TAG}"
    command: [sleep, "10000"]
    network_mode: "service:web"
  reader:
    extends: {file: common.yaml, service: base}
    build: ./worker
    volumes_from: [db]
  debug:
    profiles: [debug]
    build: ./worker
  asked:
    extends: {file: common.yaml, service: base}
    profiles: [asked]
    build: ./worker
volumes:
  data:
  shared: {external: true, name: every-shared}
networks:
  corp: {external: true, name: every-corp}
secrets:
  from-file: {file: ./secret.txt}
  from-variable: {environment: SHOP_SECRET}
configs:
  written: {content: "a $$ sign"}
"""
SLEEPER = "touch /tmp/up; exec sleep 10000 # {0}\n"
WEB = """
{{ echo {0}; cat /run/secrets/from-file /run/secrets/from-variable /etc/written /tree/file; echo; echo "$PRICE $NAME"
}} > /www/health
echo {0} >> /data/log; exec httpd -f -p 8080 -h /www
"""
FILES = {
    "compose.yaml": COMPOSE,
    "second.yaml": 'services: {web: {environment: {PRICE: "5$$"}}}\n',
    "common.yaml": "services: {base: {stop_signal: SIGKILL, restart: unless-stopped, labels: {team: shop}}}\n",
    "more/compose.yaml": "services: {extra: {build: ./extra, stop_signal: SIGKILL}}\n",
    "stage.env": "TAG=7\nSHOP_SECRET=hidden-in-a-variable\n",
    "web.env": "NAME=first\n",
    "secret.txt": "hidden-in-a-file\n",
    "tree/file": "read only\n",
    "web/run.sh": WEB.format("v1"),
    "db/run.sh": SLEEPER.format(1),
    "worker/run.sh": SLEEPER.format(1),
    "more/extra/run.sh": SLEEPER.format(1),
    "migrate/run.sh": "echo migrated >> /data/log\n",
}
SERVICES = {"web": 1, "db": 1, "migrate": 1, "worker": 2, "side": 1, "reader": 1, "extra": 1, "asked": 1}


class Every(Site):
    def __init__(self, host: Any) -> None:
        super().__init__("/srv/every", host)
        self.project = "every"

    def execute(self, check: bool = False, **given: Any) -> dict[str, Any]:
        request = {
            "project_src": f"{self.folder}/src",
            "check": check,
            "compose_files": ["compose.yaml", "second.yaml"],
            "env_files": ["stage.env"],
            "profiles": ["asked"],
            "state_dir": f"{self.folder}/state",
            "gate_timeout": 60,
            **given,
        }
        return self.call("execute", request=request)

    def compose(self, *args: str) -> str:
        files = "--env-file stage.env --profile asked -f compose.yaml -f second.yaml"
        return self.run(["sh", "-c", f"cd {self.folder}/src && docker compose {files} {' '.join(args)}"])

    def containers(self) -> dict[str, set[str]]:
        """Service to ``id image`` of each of its containers, of those that still run or should."""
        lines = self.compose("ps", "-a", "--format", "'{{.Service}} {{.ID}}'").split("\n")
        found: dict[str, set[str]] = {}
        for service, number in (line.split() for line in lines if line):
            found.setdefault(service, set()).add(number)
        return found

    def answer(self) -> str:
        return self.run(["docker", "exec", "every-front", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/health"])

    def log(self) -> list[str]:
        """Versions in the order in which they started; before 2.29.3 compose runs the finished job again at an ``up``
        of what depends on it."""
        lines = self.run(["docker", "exec", "every-front", "cat", "/data/log"]).split()
        assert lines[0] == "migrated"
        return [line for line in lines if line != "migrated"]


@pytest.fixture(scope="module")
def every() -> Iterator[Every]:
    engine, store = os.environ.get("OFR_ENGINE", "trixie"), os.environ.get("OFR_STORE", "classic")
    with Hosts.up("every", count=1, engine=engine, store=store) as hosts:
        made = Every(hosts[0])
        hosts[0].put(ROOT / "module_utils", "/srv/every/module_utils")
        hosts[0].put(ROOT / "tests/engine/transaction_driver.py", "/srv/every/tests/engine/transaction_driver.py")
        hosts[0].put(busybox(), "/srv/every/busybox")
        made.call("base", name=BASE)
        for path, text in FILES.items():
            made.write(f"src/{path}", text)
            if path.endswith("run.sh"):
                dockerfile = f'FROM {BASE}\nCOPY run.sh /app/run.sh\nCMD ["sh", "/app/run.sh"]\n'
                made.write(f"src/{os.path.dirname(path)}/Dockerfile", dockerfile)
        made.run(["docker", "network", "create", "every-corp"])
        made.run(["docker", "volume", "create", "every-shared"])
        made.compose("up", "-d", "--build", "--quiet-pull")
        yield made


def settings(container: dict[str, Any]) -> dict[str, Any]:
    """What a container was made with, as far as it comes from the project and not from the call that made it."""
    config = container["Config"]
    ours = ("com.docker.compose.project.config_files", "com.docker.compose.replace", "com.docker.compose.depends_on")
    labels = {name: value for name, value in config["Labels"].items() if name not in ours}
    return {"env": sorted(config["Env"]), "command": config["Cmd"], "labels": labels}


def planned(answer: dict[str, Any]) -> dict[str, str]:
    assert "plan" in answer, answer
    return {s["service"]: s["action"] for s in answer["plan"]["services"] if s["action"] != "unchanged"}


def test_what_the_operator_started_is_unchanged(every: Every) -> None:
    answer = every.execute(check=True)
    assert planned(answer) == {}, answer["msg"]
    assert {name: len(found) for name, found in every.containers().items()} == SERVICES


def test_it_is_rebuilt_and_compose_agrees(every: Every) -> None:
    before = every.containers()
    every.write("src/web/run.sh", WEB.format("v2"))
    every.write("src/worker/run.sh", SLEEPER.format(2))
    checked = every.execute(check=True)
    # the side container's image is the rebuilt one, and it lives in web's namespace; the run takes it along
    expected = {"web": "rebuild", "worker": "rebuild", "reader": "rebuild", "asked": "rebuild"}
    assert planned(checked) == expected
    manners = {s["service"]: (s["swap"], s["pregate"]) for s in checked["plan"]["services"] if s["swap"]}
    assert manners["web"] == ("recreate", False)
    assert manners["worker"][1]
    assert every.containers() == before
    answer = every.execute()
    assert answer["changed"], answer
    assert answer["release"]["state"] == "done"
    assert set(answer["release"]["swapped"]) == {"web", "worker", "reader", "asked", "side"}
    after = every.containers()
    assert {name: len(found) for name, found in after.items()} == SERVICES
    assert {name for name in after if after[name] != before[name]} == set(answer["release"]["swapped"])
    assert len(after["worker"] - before["worker"]) == 2
    assert every.answer().split("\n")[:2] == ["v2", "hidden-in-a-file"]
    assert "hidden-in-a-variable" in every.answer()
    assert "a $ sign" in every.answer()
    assert "5$ first" in every.answer()
    assert every.log() == ["v1", "v2"]
    assert planned(every.execute(check=True)) == {}
    every.compose("up", "-d", "--no-build", "--pull", "never")
    again = every.containers()
    assert {name for name in again if again[name] != after[name]} <= {"migrate"}


def test_it_goes_back_with_the_configuration_of_then(every: Every) -> None:
    first = json.loads(every.run(["docker", "inspect", "every-front"]))[0]
    every.write("src/web/run.sh", WEB.format("v3"))
    every.write("src/web.env", "NAME=second\n")
    assert every.execute()["release"]["state"] == "done"
    assert every.answer().startswith("v3")
    assert "5$ second" in every.answer()
    before = every.containers()

    checked = every.execute(check=True, action="rollback")
    assert checked["changed"], checked
    assert "back to release" in checked["msg"]
    assert "rolls forward again" in checked["msg"]
    assert every.containers() == before

    answer = every.execute(action="rollback")
    assert "error" not in answer, answer
    assert answer["release"]["state"] == "done"
    assert answer["release"]["rollback_to"] in checked["msg"]
    assert every.answer().startswith("v2")
    assert "5$ first" in every.answer()
    after = json.loads(every.run(["docker", "inspect", "every-front"]))[0]
    assert after["Image"] == first["Image"]
    assert settings(after) == settings(first)
    assert every.log()[-3:] == ["v2", "v3", "v2"]
    assert {name: len(found) for name, found in every.containers().items()} == SERVICES
    assert planned(every.execute(check=True)) == {"web": "rebuild"}  # the tree is newer, as the message said
    audit = [json.loads(line) for line in every.run(["cat", f"{every.folder}/state/audit.log"]).splitlines()]
    assert audit[-1]["event"] == "done"
    assert audit[-1]["release"] == answer["release"]["id"]


def test_it_goes_back_twice_and_then_there_is_nothing_more(every: Every) -> None:
    answer = every.execute(action="rollback")
    assert answer["release"]["rollback_to"] == "initial", answer
    assert every.answer().startswith("v1")
    assert "left as they are" not in answer["msg"]
    again = every.execute(action="rollback", check=True)
    assert again["error"]["code"] == "rollback-nothing"


def test_it_goes_forward_again_to_a_release_that_is_named(every: Every) -> None:
    releases = sorted(every.run(["sh", "-c", f"ls {every.folder}/state/releases/every | grep compose.json"]).split())
    wanted = releases[1].split(".")[0]
    every.write("src/compose.yaml", "services: [broken\n")
    checked = every.execute(action="rollback", release=wanted, check=True)
    assert checked["changed"], checked
    answer = every.execute(action="rollback", release=wanted)
    assert answer["release"]["state"] == "done", answer
    every.write("src/compose.yaml", COMPOSE)
    assert every.answer().startswith("v3")
    assert planned(every.execute(check=True)) == {}
    assert not every.execute(action="rollback", release=answer["release"]["id"])["changed"]


def test_a_variable_that_a_secret_needs_is_missed_before_anything_is_touched(every: Every) -> None:
    before = every.containers()
    every.write("src/stage.env", "TAG=7\n")
    error = every.execute(check=True)["error"]
    assert error["code"] == "variable-unset"
    assert every.execute(action="rollback")["error"]["code"] == "variable-unset"
    every.write("src/stage.env", FILES["stage.env"])
    assert every.containers() == before


def test_what_cannot_be_gone_back_to_is_an_error(every: Every) -> None:
    assert every.execute(action="rollback", release="20200101T000000Z-abcdef")["error"]["code"] == "release-missing"
    every.write("src/web/run.sh", "exit 3\n")
    bad = every.execute(gate_timeout=5)
    assert bad["release"]["state"] == "rolled_back"
    assert every.execute(action="rollback", release=bad["release"]["id"])["error"]["code"] == "rollback-nothing"
    every.write("src/web/run.sh", WEB.format("v4"))
    release = every.execute()["release"]["id"]
    kept = every.run(["docker", "image", "ls", "-q", f"every-web:offline-rebuild-{release}"]).split()
    every.run(["docker", "image", "rm", "-f", *kept])
    error = every.execute(action="rollback", check=True)["error"]
    assert error["code"] == "rollback-image-gone"
    assert every.answer().startswith("v4")

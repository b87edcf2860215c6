"""The transaction on a real engine: swap, gate, rollback, second run. What interrupts it is in tests/faults.

``OFR_ENGINE`` and ``OFR_STORE`` choose the test host, as everywhere; ``OFR_LOCAL=1`` uses this machine's own engine
instead (it needs the compose plugin).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.equality.bases import busybox
from tests.hosts import Hosts

ROOT = Path(__file__).parents[2]
PORT = 18080
COMPOSE = f"""
services:
  web:
    build: ./web
    command: [sh, /app/run.sh]
    stop_signal: SIGKILL
    volumes: ["data:/data"]
    ports: ["127.0.0.1:{PORT}:8080"]
    environment: {{DB_PASSWORD: correct-horse}}
    healthcheck: {{test: [CMD, wget, -q, -O, "-", "http://127.0.0.1:8080/health"], interval: 300s, retries: 1}}
    depends_on:
      db: {{condition: service_started, restart: true}}
      job: {{condition: service_completed_successfully}}
  worker:
    build: ./worker
    command: [sh, /app/run.sh]
    stop_signal: SIGKILL
  job:
    build: ./job
    command: [sh, /app/run.sh]
  db:
    build: ./db
    command: [sh, /app/run.sh]
    stop_signal: SIGKILL
volumes:
  data:
"""
GOOD = "echo {0} > /www/health; echo {0} >> /data/log; exec httpd -f -p 8080 -h /www\n"


class Site:
    """Where the driver runs: a test host, or this machine. ``folder`` holds everything there."""

    def __init__(self, folder: str, host: Any = None) -> None:
        self.folder = folder
        self.host = host
        self.project = "ofr-tx"

    def run(self, command: list[str], text: str = "") -> str:
        if self.host is None:
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        else:
            done = self.host.ssh(command, input=text, check=False)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def write(self, path: str, text: str) -> None:
        self.run(["sh", "-c", f'mkdir -p "$(dirname "{self.folder}/{path}")"; cat > "{self.folder}/{path}"'], text)

    def call(self, op: str, **request: Any) -> dict[str, Any]:
        options = {"state_dir": f"{self.folder}/state", "gate_timeout": 60, "operator": "ann", "change_id": "C1"}
        options.update(request.pop("options", {}))
        request = {"src": f"{self.folder}/src", "project": self.project, "busybox": f"{self.folder}/busybox", **request}
        driver = f"{self.folder}/tests/engine/transaction_driver.py"
        python = sys.executable if self.host is None else "python3"
        answer: dict[str, Any] = json.loads(
            self.run([python, driver], json.dumps({"op": op, "options": options, **request}))
        )
        return answer

    def release(self, **request: Any) -> dict[str, Any]:
        answer = self.call("run", **request)
        assert "error" not in answer, answer
        found: dict[str, Any] = answer["release"]
        return found

    def good(self, version: str) -> None:
        self.write("src/web/run.sh", GOOD.format(version))

    def served(self) -> str:
        return self.run(
            ["sh", "-c", f"docker exec {self.project}-web-1 wget -q -O - http://127.0.0.1:8080/health || :"]
        ).strip()

    def actions(self) -> dict[str, str]:
        return {name: action for name, action, _ in self.call("plan")["plan"] if action != "unchanged"}

    def data(self) -> list[str]:
        return self.run(["docker", "exec", f"{self.project}-web-1", "cat", "/data/log"]).split()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if os.environ.get("OFR_LOCAL"):
        made = Site(str(tmp_path_factory.mktemp("site")))
        run = subprocess.run
        run(["mkdir", "-p", f"{made.folder}/tests/engine"], check=True)
        run(["cp", "-r", ROOT / "module_utils", made.folder], check=True)
        run(["cp", ROOT / "tests/engine/transaction_driver.py", f"{made.folder}/tests/engine"], check=True)
        run(["cp", busybox(), f"{made.folder}/busybox"], check=True)
        try:
            yield made
        finally:
            project = ["docker", "compose", "-p", made.project, "-f", f"{made.folder}/src/compose.yaml"]
            run([*project, "down", "-v", "--rmi", "all", "-t", "0"], check=False, capture_output=True)
        return
    engine, store = os.environ.get("OFR_ENGINE", "trixie"), os.environ.get("OFR_STORE", "classic")
    with Hosts.up(os.environ.get("OFR_NAME", "tx"), count=1, engine=engine, store=store) as hosts:
        made = Site("/srv/tx", hosts[0])
        made.run(["mkdir", "-p", "/srv/tx/tests/engine"])
        hosts[0].put(ROOT / "module_utils", "/srv/tx/module_utils")
        hosts[0].put(ROOT / "tests/engine/transaction_driver.py", "/srv/tx/tests/engine/transaction_driver.py")
        hosts[0].put(busybox(), "/srv/tx/busybox")
        yield made


@pytest.fixture(scope="module")
def installed(site: Site) -> Site:
    """The first install, with no container and no image there."""
    site.write("src/compose.yaml", COMPOSE)
    site.good("v0")
    site.write("src/worker/run.sh", "exec sleep 10000\n")
    site.write("src/db/run.sh", "exec sleep 10000\n")
    site.write("src/job/run.sh", "echo migrated\n")
    release = site.release()
    assert release["state"] == "done", release["note"]
    assert set(release["swapped"]) == {"web", "worker", "db", "job"}
    return site


@pytest.fixture
def app(installed: Site) -> Site:
    """The project, serving, with nothing to do."""
    installed.good("base")
    installed.write("src/compose.yaml", COMPOSE)
    installed.write("src/worker/run.sh", "exec sleep 10000\n")
    installed.call("run")
    assert installed.actions() == {}
    assert installed.served() == "base"
    return installed


def ids(site: Site) -> dict[str, str]:
    return {name: found[0]["id"] for name, found in site.call("status")["status"].items()}


def test_a_second_run_changes_nothing(app: Site) -> None:
    before = ids(app)
    listing = app.run(["sh", "-c", f"find {app.folder}/state -printf '%p %T@\\n' | grep -v locks | sort"])
    assert app.release() is None
    assert ids(app) == before
    assert app.run(["sh", "-c", f"find {app.folder}/state -printf '%p %T@\\n' | grep -v locks | sort"]) == listing


def test_only_what_changed_is_swapped_and_compose_agrees(app: Site) -> None:
    before = ids(app)
    app.good("v1")
    release = app.release()
    assert (release["state"], release["swapped"]) == ("done", ["web"])
    assert release["gate"]["services"]["web"]["detail"] == "its own healthcheck passed"
    assert release["gate"]["seconds"] < 30
    assert app.served() == "v1"
    after = ids(app)
    assert {name for name in after if after[name] != before[name]} == {"web"}
    assert app.actions() == {}
    kept = release["services"]["web"]["kept_as"]
    assert (
        app.run(["docker", "image", "inspect", "-f", "{{.Id}}", kept]).strip() == release["services"]["web"]["before"]
    )
    # and the operator's own `up` finds nothing to recreate either
    app.run(["sh", "-c", f"cd {app.folder}/src && docker compose -p {app.project} up -d --no-build --pull never"])
    assert {name: value for name, value in ids(app).items() if name != "job"} == {
        name: value for name, value in after.items() if name != "job"
    }


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo boom; exit 3\n", "exited with code 3"),
        ("sleep 10000\n", "health is starting"),
        ("echo up > /www/health; (sleep 0.5; kill -9 1) & exec httpd -f -p 8081 -h /www\n", "web"),
    ],
)
def test_a_bad_image_is_rolled_back_by_the_same_gate(app: Site, script: str, why: str) -> None:
    before = app.call("status")["status"]["web"][0]["image"]
    app.write("src/web/run.sh", script)
    release = app.release(options={"gate_timeout": 3})
    assert release["state"] == "rolled_back"
    assert why in release["note"]
    assert release["rollback_gate"]["ok"]
    assert app.served() == "base"
    assert app.call("status")["status"]["web"][0]["image"] == before
    assert app.data()[-1] == "base"
    evidence = [entry for entry in release["evidence"] if entry.get("service") == "web"]
    assert evidence
    if "boom" in script:
        assert evidence[0]["logs"] == ["boom"]
        assert evidence[0]["state"]["ExitCode"] == 3
    assert app.actions() == {"web": "rebuild"}


def test_an_operators_check_can_fail_the_gate(app: Site) -> None:
    app.good("v2")
    inside = {"service": "web", "inside": True, "url": "http://127.0.0.1:8080/health"}
    wrong = [{**inside, "body": "^v3", "name": "version"}]
    release = app.release(options={"health_checks": wrong, "gate_timeout": 5})
    # the rollback goes through the checks that the old version had passed: it does not answer v3 either
    assert release["state"] == "rolled_back"
    assert "check version: the answer does not match '^v3': v2" in release["note"]
    assert app.served() == "base"
    right = [
        {**inside, "body": "^v2"},
        {"tcp": f"127.0.0.1:{PORT}"},
        {"url": f"http://127.0.0.1:{PORT}/health", "body": "v2"},
        {"command": ["docker", "version"]},
    ]
    release = app.release(options={"health_checks": right})
    assert release["state"] == "done"
    assert [check["ok"] for check in release["gate"]["checks"]] == [True] * 4


def test_a_bad_configuration_goes_back_to_the_recorded_one(app: Site) -> None:
    app.write("src/compose.yaml", COMPOSE.replace("command: [sh, /app/run.sh]", "command: [sh, -c, exit 9]", 1))
    assert app.actions() == {"web": "restart"}
    release = app.release(options={"gate_timeout": 5})
    assert release["state"] == "rolled_back", release["note"]
    assert app.served() == "base"
    assert app.actions() == {"web": "restart"}


def test_a_service_that_another_restarts_along_is_gated_too(app: Site) -> None:
    app.write("src/db/run.sh", f"echo {os.getpid()}; exec sleep 10000\n")
    release = app.release()
    assert release["state"] == "done"
    assert release["swapped"] == ["db", "web"]
    assert app.actions() == {}


def test_no_secret_is_written(app: Site) -> None:
    app.write("src/web/run.sh", "echo password $DB_PASSWORD; exit 4\n")
    release = app.release()
    assert release["state"] == "rolled_back"
    texts = app.run(["sh", "-c", f"cat {app.folder}/state/releases/*/*Z-??????.json {app.folder}/state/audit.log"])
    assert "password ***" in texts
    assert "correct-horse" not in texts


def test_retention_leaves_what_is_in_use(app: Site) -> None:
    for number in range(3):
        app.good(f"r{number}")
        assert app.release(options={"keep_releases": 1})["state"] == "done"
    repository = f"{app.project}-web"
    tags = app.run(["docker", "image", "ls", "--format", "{{.Tag}}", repository]).split()
    kept = [tag for tag in tags if tag.startswith("offline-rebuild-")]
    releases = app.run(["sh", "-c", f"ls {app.folder}/state/releases/{app.project} | grep -c 'Z-......\\.json'"])
    assert "latest" in tags
    assert len(kept) == 1, tags  # the one to go back to; all images here were made by releases, none was imported
    assert int(releases) <= 4
    assert app.served() == "r2"

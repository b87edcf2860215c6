"""What the compose file's build section says besides the files, on a real engine: labels and the target's name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.equality.bases import busybox
from tests.hosts import Host, Hosts

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
COMPOSE = """services:
  web:
    build: {{context: ./web, labels: {labels}}}
    image: ofr-section-web:1
    command: [sleep, "100000"]
    stop_signal: SIGKILL
"""
DOCKERFILE = """FROM ofr-section-base:1
LABEL own=1
COPY app.sh /app.sh
ARG TARGETSTAGE
RUN echo "$TARGETSTAGE" > /stage && cat /app.sh > /copy
"""
DRIVER = r"""
import json, sys
sys.dont_write_bytecode = True
sys.path.insert(0, "/opt/ofr")
import driver
from offline_rebuild.run import Request, execute
answer = execute(Request(project_src="/srv/web", gate_timeout=20, **json.load(sys.stdin))).to_dict()
print(json.dumps({**answer, "image": driver.snapshot("ofr-section-web:1")}))
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    engine, store = os.environ.get("OFR_ENGINE", "trixie"), os.environ.get("OFR_STORE", "classic")
    with Hosts.up("build-section", count=1, engine=engine, store=store) as hosts:
        made: Host = hosts[0]
        made.put(ROOT / "module_utils" / "offline_rebuild", "/opt/ofr/offline_rebuild")
        made.put(ROOT / "tests" / "equality" / "driver.py", "/opt/ofr/driver.py")
        made.put(busybox(), "/srv/base/bin/busybox")
        made.ssh(
            "cd /srv/base/bin && for a in sh sleep cat echo; do ln -sf busybox $a; done"
            " && tar -C /srv/base -c . | docker import - ofr-section-base:1 > /dev/null && rm -r /srv/base"
        )
        write(made, "web/Dockerfile", DOCKERFILE)
        write(made, "web/app.sh", "one\n")
        labelled(made, {"release": "1", "team": "a"})
        made.ssh(
            "cd /srv/web && DOCKER_BUILDKIT=1 docker compose build -q && docker compose up -d"
            " && docker image rm ofr-section-base:1 && docker builder prune -af"
        )
        yield made


def write(host: Host, path: str, text: str) -> None:
    host.ssh(f"mkdir -p /srv/web/web && cat > /srv/web/{path}", input=text)


def labelled(host: Host, labels: dict[str, str]) -> None:
    write(host, "compose.yaml", COMPOSE.format(labels=json.dumps(labels)))


def run(host: Host, **request: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(host.ssh(["python3", "-c", DRIVER], input=json.dumps(request)).stdout)
    return answer


def test_a_label_that_was_taken_out(host: Host) -> None:
    assert run(host, action="prime")["changed"]
    assert not run(host)["changed"]
    before = run(host, check=True)["image"]
    assert before["config"]["Labels"] == {"own": "1", "release": "1", "team": "a"}
    labelled(host, {"release": "2"})
    made = run(host)
    assert made["plan"]["services"][0]["reasons"] == ["labels changed: release, team"]
    assert made["image"]["config"]["Labels"] == {"own": "1", "release": "2"}
    assert made["image"]["files"] == before["files"]
    assert not run(host)["changed"]
    labelled(host, {})
    assert run(host)["image"]["config"]["Labels"] == {"own": "1"}
    assert not run(host)["changed"]
    # with a change of a file, by a build: the label that the imported image still has does not come back
    write(host, "web/app.sh", "two\n")
    built = run(host)
    assert built["plan"]["services"][0]["way"] == "thin graft"
    assert built["image"]["config"]["Labels"] == {"own": "1"}
    # the target has no name of its own, and another in the Dockerfile that was built
    assert built["image"]["files"]["stage"] == before["files"]["stage"]
    assert built["image"]["files"]["copy"] != before["files"]["copy"]
    assert not run(host)["changed"]

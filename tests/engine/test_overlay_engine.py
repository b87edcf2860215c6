"""Overlay on real engines: the image is the imported one but for the sources that were edited, and nothing else.

Sources are copied ahead of an install; the install here is a script called ``pip``. Both image stores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.equality.bases import busybox
from tests.hosts import Host, Hosts

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
COMPOSE = """services:
  web:
    build: {context: ./web, labels: {release: "1", team: a}}
    image: ofr-overlay-web:1
    command: [sleep, "100000"]
    stop_signal: SIGKILL
"""
DOCKERFILE = """FROM ofr-overlay-base:1
WORKDIR /app
COPY . .
RUN pip install -r requirements.txt
RUN cat *.txt > all.lst && rm -rf tests && chown -R 7:7 static && echo made > settings.ini
USER 7
ENV A=1
CMD ["sh", "main.sh"]
"""
TREE = {
    "requirements.txt": "fastapi\n",
    "main.sh": "echo one\n",
    "old.sh": "echo old\n",
    "settings.ini": "empty\n",
    "static/page.html": "<p>one\n",
    "static/style.css": "p {}\n",
    "tests/test.sh": "true\n",
    "lone/only.txt": "lone\n",
}
DRIVER = r"""
import json, sys
sys.dont_write_bytecode = True
sys.path.insert(0, "/opt/ofr")
import driver
from offline_rebuild.run import Request, execute
given = json.load(sys.stdin)
outcome = execute(Request(project_src="/srv/web", gate_timeout=20, **given))
answer = {"failed": outcome.failed, **outcome.to_dict()}
found = json.loads(driver.Engine().ask("GET", "/images/ofr-overlay-web:1/json").read())
print(json.dumps({**answer, "id": found["Id"], "image": driver.snapshot("ofr-overlay-web:1")}))
"""
OVERLAY = {"reuse": "overlay"}


@pytest.fixture(scope="module", params=["classic", "containerd"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    engine = os.environ.get("OFR_ENGINE", "trixie")
    with Hosts.up(f"overlay-{request.param}", count=1, engine=engine, store=request.param) as hosts:
        made: Host = hosts[0]
        made.put(ROOT / "module_utils" / "offline_rebuild", "/opt/ofr/offline_rebuild")
        made.put(ROOT / "tests" / "equality" / "driver.py", "/opt/ofr/driver.py")
        made.put(busybox(), "/srv/base/bin/busybox")
        made.ssh(
            "cd /srv/base/bin && for a in sh touch sleep cat rm chown echo mkdir; do ln -sf busybox $a; done"
            " && printf '#!/bin/sh\\nmkdir -p /lib && cat $3 > /lib/installed\\n' > pip && chmod 755 pip"
            " && tar -C /srv/base -c . | docker import - ofr-overlay-base:1 > /dev/null && rm -r /srv/base"
        )
        write(made, {"Dockerfile": DOCKERFILE, **TREE})
        made.ssh("cat > /srv/web/compose.yaml", input=COMPOSE)
        made.ssh(  # built, saved, and brought in: no cache and no base
            "cd /srv/web && DOCKER_BUILDKIT=1 docker build -q --network=none -t ofr-overlay-web:1 --label release=1"
            " --label team=a web && docker save ofr-overlay-web:1 -o /srv/web.tar"
            " && docker image rm ofr-overlay-web:1 ofr-overlay-base:1 && docker builder prune -af"
            " && docker load -i /srv/web.tar && docker compose up -d"
        )
        yield made


def write(host: Host, files: Mapping[str, str | None]) -> None:
    script = "umask 022; mkdir -p /srv/web/web && cd /srv/web/web\n"
    for path, text in files.items():
        folder = os.path.dirname(path) or "."
        script += (
            f"rm -rf {path}\n" if text is None else f"mkdir -p {folder}; cat > {path} <<'--end--'\n{text}--end--\n"
        )
    host.ssh(script)


def run(host: Host, **request: Any) -> dict[str, Any]:
    done = host.ssh(["python3", "-c", DRIVER], input=json.dumps(request))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def plan(host: Host, **request: Any) -> dict[str, Any]:
    """Check mode, which must leave the host as it is."""
    before = host.docker("image", "ls", "-aq", "--no-trunc")
    answer = run(host, check=True, **request)
    assert host.docker("image", "ls", "-aq", "--no-trunc") == before
    return answer


def differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> set[str]:
    files = (one["files"], two["files"])
    return {path for path in files[0].keys() | files[1].keys() if files[0].get(path) != files[1].get(path)}


def test_overlay(host: Host) -> None:
    imported = plan(host)
    assert (imported["changed"], imported["image"]["layers"]) == (False, 5)
    assert "app/tests" not in imported["image"]["files"]
    assert imported["image"]["files"]["app/static/page.html"][2] == 7
    edited = check_first(host, imported)
    check_record(host)
    check_next(host, imported, edited)
    check_run_again(host)
    check_what_must_not_change(host)
    # the tree as it was: the imported image, exactly
    host.ssh("docker load -i /srv/web.tar")
    write(host, {"Dockerfile": DOCKERFILE, **TREE, "new": None, "notes.txt": None})
    back = run(host, **OVERLAY)
    assert back["image"] == imported["image"]
    assert back["plan"]["services"][0]["way"] != "overlay"


def check_first(host: Host, imported: dict[str, Any]) -> set[str]:
    """Nothing differs but what was edited. Returns the paths."""
    write(
        host,
        {"main.sh": "echo two\n", "new/new.sh": "new\n", "old.sh": None, "lone": None, "static/page.html": "<p>two\n"},
    )
    exact = plan(host)
    assert exact["failed"]
    assert "needs a network" in exact["msg"]
    planned = plan(host, **OVERLAY)
    assert planned["changed"]
    service = planned["plan"]["services"][0]
    assert (service["way"], service["evidence"]) == ("overlay", "overlay")
    assert [text[:11] for text in service["not_run"]] == ["line 4 RUN ", "line 5 RUN "]
    first = run(host, **OVERLAY)
    assert first["msg"].startswith("web: rebuild by overlay (not exact)")
    assert first["release"]["state"] == "done"
    assert first["release"]["services"]["web"]["way"] == "overlay"
    gone = {"app/old.sh", "app/lone", "app/lone/only.txt"}
    edited = {"app/main.sh", "app/new", "app/new/new.sh", "app/static/page.html", *gone}
    assert differing(imported["image"], first["image"]) == edited
    assert not gone & set(first["image"]["files"])
    assert first["image"]["files"]["app/static/page.html"][2] == 7  # the owner that the RUN gave it
    assert first["image"]["config"] == imported["image"]["config"]
    assert first["image"]["layers"] == 6
    return edited


def check_record(host: Host) -> None:
    """The same again is no change, by the record; without it, that is not taken for granted."""
    assert not run(host, **OVERLAY)["changed"]
    host.ssh("mv /var/lib/offline-rebuild/overlays /srv/overlays")
    assert plan(host, **OVERLAY)["changed"]
    host.ssh("mv /srv/overlays /var/lib/offline-rebuild/overlays")
    assert plan(host)["failed"]  # no exact run is fooled by it


def check_next(host: Host, imported: dict[str, Any], edited: set[str]) -> None:
    """The next one stands on the imported image's layers, also where the overlay's image alone is left to hold them."""
    write(host, {"main.sh": "echo three\n", "Dockerfile": DOCKERFILE.replace("A=1", "A=2")})
    second = run(host, **OVERLAY)
    assert differing(imported["image"], second["image"]) == edited | {"app/Dockerfile"}
    assert second["image"]["layers"] == 6
    assert "A=2" in second["image"]["config"]["Env"]
    host.ssh(f"docker image ls -q --no-trunc | grep -v {second['id']} | xargs -r docker image rm -f")
    assert not plan(host, **OVERLAY)["changed"]
    write(host, {"main.sh": "echo four\n"})
    third = run(host, **OVERLAY)
    assert differing(second["image"], third["image"]) == {"app/main.sh"}
    assert third["image"]["layers"] == 6


def check_run_again(host: Host) -> None:
    """A RUN that needs no network runs again on top, as the user that it has in the Dockerfile."""
    before = plan(host, **OVERLAY)
    write(host, {"notes.txt": "note\n"})
    listed = run(host, **OVERLAY, overlay_run=["cat *.txt"])
    assert listed["plan"]["services"][0]["run_again"][0].startswith("line 5 RUN cat")
    assert differing(before["image"], listed["image"]) == {"app/notes.txt", "app/all.lst"}
    assert listed["image"]["config"] == before["image"]["config"]
    assert not run(host, **OVERLAY, overlay_run=["cat *.txt"])["changed"]


def check_what_must_not_change(host: Host) -> None:
    """Files that say what is installed."""
    write(host, {"requirements.txt": "fastapi==2\n"})
    assert "the dependency file requirements.txt is changed" in plan(host, **OVERLAY)["msg"]
    write(host, {"requirements.txt": TREE["requirements.txt"]})
    changed = plan(host, **OVERLAY, dependency_files=["notes.txt"])
    assert "the dependency file notes.txt is added" in changed["msg"]

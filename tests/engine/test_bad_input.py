"""Bad input on a real host: one clear error with place and remedy, and nothing on the host is touched.

``OFR_ENGINE`` and ``OFR_STORE`` choose the host. What the real thing cannot be made to be (an engine that is too old, a
plugin that is not there) is a ``docker`` in PATH that changes the answer to ``docker info`` and passes the rest on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.equality.bases import busybox
from tests.hosts import Host, Hosts

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
COMPOSE = """services:
  web:
    build: ./web
    image: ofr-bad-web:1
    command: [sleep, "100000"]
    stop_signal: SIGKILL
"""
DOCKERFILE = "FROM ofr-bad-base:1\nRUN touch /made\nCOPY app.sh /app.sh\nENV A=1\n"
#: Runs the core on the host, in check mode and not, and says what came of it and what is there before and after.
DRIVER = r"""
import http.client, json, os, socket, sys
sys.dont_write_bytecode = True
sys.path.insert(0, "/opt/ofr")
from offline_rebuild.errors import OfflineRebuildError
from offline_rebuild.run import Request, execute, survey

class Engine(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/run/docker.sock")

def ask(path):
    engine = Engine("localhost")
    engine.request("GET", path)
    return json.load(engine.getresponse())

def state():
    lines = []
    for top in ("/srv", "/var/lib/offline-rebuild", "/mnt"):
        for folder, names, files in os.walk(top):
            for path in [folder] + [os.path.join(folder, name) for name in files]:
                at = os.lstat(path)
                lines.append(f"{path} {at.st_mode} {at.st_size} {at.st_mtime_ns} {at.st_ctime_ns} {at.st_ino}")
    lines += sorted(os.listdir("/tmp")) + sorted(os.listdir("/run"))
    lines += [f"{i['Id']} {sorted(i['RepoTags'] or [])}" for i in ask("/images/json?all=1")]
    lines += [f"{c['Id']} {c['Names']} {c['ImageID']} {c['State']}" for c in ask("/containers/json?all=1")]
    lines += [v["Name"] for v in ask("/volumes")["Volumes"] or []] + [n["Id"] for n in ask("/networks")]
    return sorted(lines)

given = json.load(sys.stdin)
environment = dict(os.environ)
states, answers = [state()], []
for check in (True, False):
    os.environ.update(given["env"])
    try:
        request = Request(check=check, **given["request"])
        if given["survey"]:
            answers.append({"images": [need.to_dict() for need in survey(request)]})
        else:
            answers.append(execute(request).to_dict())
    except OfflineRebuildError as error:
        answers.append({"error": error.to_dict(), "text": str(error)})
    os.environ.clear()
    os.environ.update(environment)
    states.append(state())
# A run that is no check plans under its lock: caches of file times and layers, and the lock's empty guard, may be new.
own = given["request"].get("state_dir", "/var/lib/offline-rebuild")

def cache(line):
    words = line.split()
    known = words[0] in (own, own + "/locks", own + "/index", own + "/layers")
    return known or words[0].startswith((own + "/index/", own + "/layers/")) or (
        words[0].startswith(own + "/locks/") and words[0].endswith(".guard") and words[2] == "0"
    )

for place in (1, 2):
    pair = [{line for line in states[at] if place == 1 or not cache(line)} for at in (0, place)]
    answers[place - 1]["touched"] = sorted(pair[0] ^ pair[1])
print(json.dumps(answers))
"""
#: A docker that changes what `docker info` says.
STUB = """#!/usr/bin/python3
import json, os, subprocess, sys
if sys.argv[1:2] != ["info"]:
    os.execv("/usr/bin/docker", sys.argv)
data = json.loads(subprocess.run(["/usr/bin/docker", *sys.argv[1:]], capture_output=True).stdout)
plugins = data["ClientInfo"]["Plugins"]
{change}
print(json.dumps(data))
"""
STUBS = {
    "old-engine": 'data["ServerVersion"] = "19.03.15"',
    "no-compose": 'data["ClientInfo"]["Plugins"] = [p for p in plugins if p["Name"] != "compose"]',
    "old-compose": 'plugins[:] = [dict(p, Version="v2.10.1") if p["Name"] == "compose" else p for p in plugins]',
    "no-buildx": 'plugins[:] = [p for p in plugins if p["Name"] != "buildx"]; data["ClientInfo"]["Version"] = "26.1.5"',
}


@dataclass(frozen=True)
class Bad:
    """One kind of bad input.

    :param files: files of the project that differ from the good one; ``None``: not there.
    :param said: what the message must hold, besides the host.
    """

    name: str
    code: str
    said: Sequence[str]
    files: Mapping[str, str | None] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


SRC = "/srv/{name}"
BAD = (
    Bad("no-cli", "docker-missing", ["`docker`", "install Docker Engine >= 20.10"], env={"PATH": "/opt/empty"}),
    Bad("cli-not-executable", "docker-missing", ["`docker`"], env={"PATH": "/opt/not-executable"}),
    Bad(
        "engine-down",
        "engine-down",
        ["does not answer", "systemctl start docker"],
        env={"DOCKER_HOST": "unix:///nowhere.sock"},
    ),
    Bad("old-engine", "engine-too-old", ["19.03.15", "20.10", "install a newer"], env={"PATH": "/opt/old-engine"}),
    Bad("no-compose", "compose-missing", ["Compose", "cli-plugins"], env={"PATH": "/opt/no-compose"}),
    Bad("old-compose", "compose-too-old", ["v2.10.1", "2.20", "cli-plugins"], env={"PATH": "/opt/old-compose"}),
    Bad(
        "no-buildx",
        "buildx-missing",
        ["buildx", "cli-plugins"],
        env={"PATH": "/opt/no-buildx"},
        files={"web/Dockerfile": DOCKERFILE + "RUN touch /more\n"},
    ),
    Bad(
        "no-project",
        "project-missing",
        ["/srv/absent", "offline_rebuild_project_src"],
        request={"project_src": "/srv/absent"},
    ),
    Bad("no-compose-file", "compose-file-missing", ["/srv/no-compose-file", "compose_files"], {"compose.yaml": None}),
    Bad(
        "other-compose-file",
        "compose-file-missing",
        ["/srv/other-compose-file/gone.yml"],
        request={"compose_files": ["gone.yml"]},
    ),
    Bad(
        "compose-yaml", "compose-invalid", ["/srv/compose-yaml/compose.yaml"], {"compose.yaml": "services:\n  web: [\n"}
    ),
    Bad(
        "compose-schema",
        "compose-invalid",
        ["/srv/compose-schema/compose.yaml", "biuld"],
        {"compose.yaml": "services:\n  web:\n    biuld: .\n"},
    ),
    Bad("no-service", "no-such-service", ["nope", "web"], request={"services": ["nope"]}),
    Bad(
        "no-dockerfile",
        "dockerfile-missing",
        ["/srv/no-dockerfile/web/Dockerfile", "build.dockerfile"],
        {"web/Dockerfile": None},
    ),
    Bad(
        "syntax",
        "dockerfile-syntax",
        ["/srv/syntax/web/Dockerfile:3", "Correct"],
        {"web/Dockerfile": "FROM ofr-bad-base:1\nRUN touch /made\nCOPPY app.sh /app.sh\n"},
    ),
    Bad(
        "no-source",
        "",
        ["/srv/no-source/web/Dockerfile:4", "gone.txt"],
        {"web/Dockerfile": "FROM ofr-bad-base:1\nRUN touch /made\n\nCOPY gone.txt /app.sh\n"},
    ),
    Bad(
        "no-base",
        "blocked",
        [
            "web is blocked",
            "example.org/gone:1",
            "web/Dockerfile:1",
            "docker pull",
            "&& docker save -o example.org_gone_1.tar example.org/gone:1",
        ],
        {"web/Dockerfile": "FROM example.org/gone:1\nWORKDIR /other\n"},
    ),
    Bad(
        "network",
        "blocked",
        ["web is blocked", "web/Dockerfile:3", "pip install", "needs a network", "docker save"],
        {"web/Dockerfile": "FROM ofr-bad-base:1\nRUN touch /made\nRUN pip install x\n"},
    ),
    Bad(
        "no-image",
        "image-missing",
        ["example.org/gone:1", "docker pull", "docker save"],
        {"compose.yaml": "services:\n  db:\n    image: example.org/gone:1\n"},
    ),
    Bad(
        "no-context",
        "",
        ["/srv/no-context/gone", "build.context"],
        {"compose.yaml": COMPOSE.replace("./web", "./gone")},
    ),
    Bad(
        "disk",
        "disk-full",
        ["/mnt/small", "MB are free", "docker image prune"],
        {"web/app.sh": "2"},
        {"state_dir": "/mnt/small"},
    ),
    Bad("check", "health-check-invalid", ["bogus"], {"web/app.sh": "2"}, {"health_checks": [{"bogus": 1}]}),
)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    engine, store = os.environ.get("OFR_ENGINE", "trixie"), os.environ.get("OFR_STORE", "classic")
    with Hosts.up("bad-input", count=1, engine=engine, store=store) as hosts:
        made: Host = hosts[0]
        made.put(ROOT / "module_utils" / "offline_rebuild", "/opt/ofr/offline_rebuild")
        made.put(busybox(), "/srv/base/bin/busybox")
        for name, change in STUBS.items():
            made.ssh(f"mkdir -p /opt/{name} && cat > /opt/{name}/docker", input=STUB.format(change=change))
        made.ssh(
            "mkdir -p /opt/empty /opt/not-executable /mnt/small && touch /opt/not-executable/docker"
            " && chmod 755 /opt/*/docker"
            " && chmod 644 /opt/not-executable/docker && mount -t tmpfs -o size=1m tmpfs /mnt/small"
            " && cd /srv/base/bin && for a in sh touch sleep; do ln -sf busybox $a; done"
            " && tar -C /srv/base -c . | docker import - ofr-bad-base:1 > /dev/null && rm -r /srv/base"
        )
        write(made, "good", {})
        made.ssh(
            "cd /srv/good && DOCKER_BUILDKIT=1 docker build -q --network=none -t ofr-bad-web:1 web"
            " && docker compose up -d"
        )
        for bad in BAD:
            write(made, bad.name, bad.files)
        yield made


def write(host: Host, name: str, files: Mapping[str, str | None]) -> None:
    tree = {"compose.yaml": COMPOSE, "web/Dockerfile": DOCKERFILE, "web/app.sh": "1", **files}
    script = f"mkdir -p /srv/{name}/web && cd /srv/{name}\n"
    for path, text in tree.items():
        script += f"rm -f {path}\n" if text is None else f"cat > {path} <<'--end--'\n{text}--end--\n"
    host.ssh(script.replace("1--end--", "1\n--end--").replace("2--end--", "2\n--end--"))


def ran(host: Host, request: Mapping[str, Any], env: Mapping[str, str], survey: bool = False) -> list[dict[str, Any]]:
    """What came of it in check mode, and of a real run; ``touched`` lists what is not as it was."""
    given = json.dumps({"request": request, "env": env, "survey": survey})
    done = host.ssh(["python3", "-c", DRIVER], input=given, check=False)
    assert done.returncode == 0, done.stderr  # a traceback would be seen here
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def request_of(bad: Bad) -> dict[str, Any]:
    return {"project_src": f"/srv/{bad.name}", "project_name": "good", **bad.request}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_one_clear_error_and_nothing_touched(host: Host, bad: Bad) -> None:
    checked, real = ran(host, request_of(bad), bad.env)
    name = host.ssh("hostname").stdout.strip()
    assert checked["touched"] == real["touched"] == []
    for found in (checked, real) if bad.name != "check" else (real,):
        if bad.code == "blocked":
            assert found["failed"] is True if "failed" in found else not found["changed"]
            text = found["msg"]
        else:
            assert "error" in found, found
            assert found["error"]["host"] == name
            assert not bad.code or found["error"]["code"] == bad.code
            text = found["text"]
            assert text.startswith(f"{name}: ")
            assert found["error"]["remedy"]
        for part in bad.said:
            assert part in text
        assert "Traceback" not in text


def test_the_good_project_is_unchanged(host: Host) -> None:
    """So that what the others differ in is what is refused."""
    for found in ran(host, {"project_src": "/srv/good", "project_name": "good"}, {}):
        assert (found["changed"], found["touched"]) == (False, [])


def test_the_image_check_says_which_image_is_missing(host: Host) -> None:
    images = ran(host, {"project_src": "/srv/no-base"}, {}, survey=True)[0]["images"]
    assert [(image["name"], image["status"]) for image in images] == [("example.org/gone:1", "missing")]
    assert images[0]["needed_by"] == ["web (web/Dockerfile:1)"]
    assert "docker pull --platform linux/amd64 example.org/gone:1 && docker save" in images[0]["remedy"]


def test_the_module_fails_with_the_same_message(host: Host) -> None:
    program = Path(sys.executable).parent / "ansible"
    arguments = "project_src=/srv/syntax project_name=good"
    done = subprocess.run(
        [str(program), "all", "-i", str(host.directory / "inventory.yml"), "-m", "compose_rebuild", "-a", arguments],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "/srv/syntax/web/Dockerfile:3: unknown instruction: COPPY [dockerfile-syntax]" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr

"""A host without a control node: the one file, its exit codes, and one journal with the playbooks.

``OFR_ENGINE`` and ``OFR_STORE`` choose the host.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.equality.bases import busybox
from tests.hosts import Host, Hosts

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
SRC = "/srv/shop"
STATE = "/srv/state"
PYZ = "/opt/offline/offline-rebuild.pyz"
COMPOSE = """name: shop
services:
  web:
    build: ./web
    init: true
    environment: {DB_PASSWORD: correct-horse}
  job:
    build: ./job
    init: true
"""
DOCKERFILE = """FROM shop-base:1
RUN echo made > /made
COPY . /app/
CMD ["sh", "/app/run.sh"]
"""
RUN = "echo version {0}; echo password $DB_PASSWORD; exec sleep 100000\n"


def base() -> bytes:
    """A root file system of busybox alone."""
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(busybox(), "bin/busybox")
        for name in ("sh", "sleep", "echo", "cat"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return out.getvalue()


def write(host: Host, path: str, text: str) -> None:
    host.ssh(f"mkdir -p $(dirname {SRC}/{path}) && cat > {SRC}/{path}", input=text)


def pyz(host: Host, *argv: str, code: int | None = 0, env: str = "") -> subprocess.CompletedProcess[str]:
    """Run the file as an operator does, in the project's folder."""
    words = " ".join(f"'{word}'" for word in argv)
    done = host.ssh(f"cd {SRC} && {env} python3 {PYZ} {words}", check=False)
    assert "Traceback" not in done.stdout + done.stderr
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def document(host: Host, *argv: str, code: int | None = 0) -> Any:
    return json.loads(pyz(host, *argv, "--state-dir", STATE, "--json", code=code).stdout)


def played(host: Host, playbook: str, *more: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "ansible-playbook"
    argv = [str(program), "-i", str(host.directory / "inventory.yml"), playbook, *more]
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def counted(host: Host, size: int, written: int) -> bool:
    """Whether it is the size of a layer with so many bytes: the containerd store counts blocks, folders included."""
    return size == written if host.store == "classic" or not written else size >= written and size % 4096 == 0


def check_sizes(host: Host, item: Any) -> None:
    """Of the layers of RUN, COPY and CMD, as the images were brought in."""
    written = [len("made\n"), len(RUN.format(f"one of {item['service']}") + DOCKERFILE), 0]
    found = [line["size"] for line in item["lines"]]
    assert all(counted(host, *pair) for pair in zip(found, written)), (found, written)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The project, built and running as if it had been imported; the file beside rebuild.sh in a folder of its own."""
    dist = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, ROOT / "scripts/make-pyz", dist], check=True, capture_output=True)
    engine, store = os.environ.get("OFR_ENGINE", "trixie"), os.environ.get("OFR_STORE", "classic")
    with Hosts.up(os.environ.get("OFR_NAME", "pyz"), count=1, engine=engine, store=store) as hosts:
        made: Host = hosts[0]
        made.put(dist, "/opt/offline")
        image = dist / "base.tar"
        image.write_bytes(base())
        made.put(image, "/tmp/base.tar")
        write(made, "compose.yaml", COMPOSE)
        for name in ("web", "job"):
            write(made, f"{name}/Dockerfile", DOCKERFILE)
            write(made, f"{name}/run.sh", RUN.format(f"one of {name}"))
        made.ssh(
            "docker import /tmp/base.tar shop-base:1 > /dev/null && cd /srv/shop && for s in web job; do"
            " DOCKER_BUILDKIT=1 docker build -q --network=none -t shop-$s $s; done"
            " && docker compose up -d --no-build && docker image rm shop-base:1 && rm /tmp/base.tar"
        )
        group = made.directory / "group_vars" / "offline-servers.yml"
        group.parent.mkdir(exist_ok=True)
        group.write_text(yaml.safe_dump({"offline_rebuild_project_src": SRC, "offline_rebuild_state_dir": STATE}))
        yield made


def test_the_plan_changes_nothing_and_its_exit_code_tells(host: Host) -> None:
    assert "a rebuild would change nothing" in pyz(host, "plan", "--exit-code", "--state-dir", STATE).stdout
    write(host, "web/run.sh", RUN.format("two"))
    done = pyz(host, "plan", "--exit-code", "--state-dir", STATE, code=2)
    assert "web: rebuild by assemble: web/Dockerfile:3 COPY . /app/: " in done.stdout
    assert "job: unchanged" in done.stdout
    assert done.stdout.endswith("a rebuild would change web\n")
    assert "file: run.sh (changed, content)" in pyz(host, "plan", "--diff", "--state-dir", STATE).stdout
    assert host.ssh(f"ls -A {STATE} 2>/dev/null || :").stdout == ""


def test_layers_say_what_would_be_reused(host: Host) -> None:
    found = {item["service"]: item for item in document(host, "layers")["layers"]}
    uses = {name: [line["use"] for line in item["lines"]] for name, item in found.items()}
    assert uses == {"web": ["reused", "thin", "config"], "job": ["reused"] * 3}
    check_sizes(host, found["job"])
    assert found["web"]["ancestor"] == "shop-web:latest"
    assert found["web"]["base_size"] > 100_000
    assert found["web"]["reason"] == "1 file differs from the image: run.sh"


def test_contexts_and_images_are_told(host: Host) -> None:
    found = document(host, "context")["contexts"]
    assert [(c["service"], c["files"]) for c in found] == [("job", 2), ("web", 2)]
    assert found[0]["digest"].startswith("sha256:")
    assert found[0]["digest"] != found[1]["digest"]
    images = document(host, "images")["images"]
    assert [(i["name"], i["status"]) for i in images] == [("shop-base:1", "recoverable")]


def test_a_rebuild_is_released_and_a_second_one_has_nothing_to_do(host: Host) -> None:
    made = document(host, "rebuild", "--change-id", "C1", "--operator", "ann")
    assert (made["exit"], made["changed"], made["release"]["state"]) == (0, True, "done")
    assert "version two" in host.ssh("docker logs shop-web-1").stdout
    assert pyz(host, "rebuild", "--state-dir", STATE).stdout == "nothing to do\n"
    status = document(host, "status")["status"]
    web, job = (next(s for s in status["services"] if s["service"] == name) for name in ("web", "job"))
    assert (web["origin"], web["made_by"]) == ("release", made["release"]["id"])
    assert job["origin"] == "unknown"
    assert [c["state"] for c in web["containers"]] == ["running"]
    layers = {item["service"]: item for item in document(host, "layers")["layers"]}
    assert [line["use"] for line in layers["web"]["lines"]] == ["reused"] * 3
    check_sizes(host, layers["web"])
    assert counted(host, layers["web"]["thin_size"], len(RUN.format("two")))
    assert layers["job"]["thin_size"] is None
    assert status["releases"][0]["operator"] == "ann"
    assert status["lock"] is None
    assert [k["release"] for k in status["kept"]] == [made["release"]["id"]]
    # two images share their layers with the thin layer's, which is small
    size = int(host.ssh("docker image inspect -f '{{.Size}}' shop-job").stdout)
    assert size // 2 < status["disk"]["images_bytes"] < 2 * size
    assert status["disk"]["state_parts"]["releases"] > 0


def test_rebuild_sh_and_the_playbook_share_lock_journal_and_state(host: Host) -> None:
    write(host, "job/run.sh", RUN.format("three"))
    host.ssh(f"echo '--state-dir {STATE} --change-id C2' > /opt/offline/rebuild.options")
    done = host.ssh(f"cd {SRC} && bash /opt/offline/rebuild.sh job")
    assert "job: rebuild by assemble" in done.stdout
    assert ": done in " in done.stdout
    assert "swapping job" in done.stderr
    write(host, "web/run.sh", RUN.format("four"))
    played(host, "rebuild.yml", "-e", "offline_rebuild_change_id=C3", "-e", "offline_rebuild_operator=bob")
    found = document(host, "releases")["releases"]
    assert [(r["change_id"], r["services"], r["state"]) for r in found] == [
        ("C3", ["web"], "done"),
        ("C2", ["job"], "done"),
        ("C1", ["web"], "done"),
    ]
    assert "a rebuild would change nothing" in pyz(host, "plan", "--state-dir", STATE).stdout
    assert "changed=0" in played(host, "rebuild.yml").stdout
    full = pyz(host, "releases", found[0]["id"], "--state-dir", STATE, "-p", "shop").stdout
    assert "operator: bob, change: C3" in full


def test_a_rollback_is_a_release_too_and_the_tree_can_be_brought_back(host: Host) -> None:
    before = document(host, "releases")["releases"]
    checked = document(host, "rollback", "--check")
    assert (checked["exit"], checked["changed"]) == (0, True)
    assert document(host, "releases")["releases"] == before
    made = document(host, "rollback", "--change-id", "C4")
    assert (made["release"]["state"], made["release"]["swapped"]) == ("done", ["web"])
    assert "version two" in host.ssh("docker logs shop-web-1").stdout
    assert "a rebuild would change web" in pyz(host, "plan", "--state-dir", STATE).stdout
    assert document(host, "rebuild")["release"]["state"] == "done"
    assert "version four" in host.ssh("docker logs shop-web-1").stdout
    done = pyz(host, "rollback", "20200101T000000Z-000000", "--state-dir", STATE, code=1)
    assert "[release-missing]" in done.stderr


def test_a_release_that_is_not_healthy_ends_with_4_and_shows_the_log_without_secrets(host: Host) -> None:
    write(host, "web/run.sh", "echo password $DB_PASSWORD; exit 3\n")
    done = pyz(host, "rebuild", "--state-dir", STATE, "--gate-timeout", "20", code=4)
    assert "nothing was swapped" in done.stdout
    assert "password ***" in done.stdout
    done = pyz(host, "rebuild", "--state-dir", STATE, "--gate-timeout", "20", "--no-pregate", "web", code=4)
    assert "rolled_back" in done.stdout
    assert "password ***" in done.stdout
    assert "correct-horse" not in done.stdout + done.stderr
    assert "rolling back web" in done.stderr
    write(host, "web/run.sh", RUN.format("four"))
    assert pyz(host, "rebuild", "--state-dir", STATE).stdout == "nothing to do\n"


def test_what_is_blocked_ends_with_3_and_a_held_lock_with_75(host: Host) -> None:
    write(host, "job/Dockerfile", DOCKERFILE.replace("echo made > /made", "pip install x"))
    done = pyz(host, "rebuild", "--state-dir", STATE, code=3)
    assert "needs a network" in done.stdout
    assert "nothing was touched" in done.stdout
    write(host, "job/Dockerfile", DOCKERFILE)
    hold = (
        f"import sys; sys.path.insert(0, '{PYZ}')\n"
        "from offline_rebuild.lock import Lock\n"
        f"with Lock.acquire('{STATE}', 'shop', 'eve', 'a test', 'C9'): print('held', flush=True); sys.stdin.read()\n"
    )
    argv = ["ssh", *host.ssh_options(), f"root@{host.address}", shlex.join(["python3", "-c", hold])]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        done = pyz(host, "rebuild", "--state-dir", STATE, code=75)
        assert "eve" in done.stderr
        assert "[locked]" in done.stderr
        lock = document(host, "status")["status"]["lock"]
        assert (lock["operator"], lock["change_id"], lock["state"]) == ("eve", "C9", "running")
        process.communicate()
    assert document(host, "status")["status"]["lock"] is None


def test_an_archive_is_imported_once(host: Host) -> None:
    host.ssh("docker tag shop-web other:1 && docker save other:1 | gzip > /srv/other.tar.gz && docker image rm other:1")
    assert document_of_import(host, "--check")["changed"]
    assert host.ssh("docker image ls -q other").stdout == ""
    assert [a["status"] for a in document_of_import(host)["archives"]] == ["loaded"]
    assert document_of_import(host)["changed"] is False
    assert "present  /srv/other.tar.gz  other:1" in pyz(host, "import", "../other.tar.gz", "--state-dir", STATE).stdout
    assert "no archive is named" in pyz(host, "import", code=64).stderr
    assert "[archive-missing]" in pyz(host, "import", "gone.tar", "--state-dir", STATE, code=1).stderr
    host.ssh("docker image rm other:1")


def document_of_import(host: Host, *more: str) -> Any:
    return document(host, "import", "/srv/other.tar.gz", *more)


def test_bad_input_is_one_line_with_a_remedy(host: Host) -> None:
    done = pyz(host, "plan", "-f", "gone.yml", code=1)
    assert "[compose-file-missing]" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    done = pyz(host, "plan", "nope", code=1)
    assert "[no-such-service]" in done.stderr
    assert "用法" in pyz(host, "--help", env="LANG=zh_CN.UTF-8").stdout


def test_the_playbooks_show_status_and_logs_and_change_nothing(host: Host) -> None:
    done = played(host, "playbooks/status.yml")
    assert "changed=0" in done.stdout
    assert "shop on " in done.stdout
    assert "web: web/Dockerfile" not in done.stdout
    assert "C3" in done.stdout
    assert "rolled_back" in done.stdout
    done = played(host, "playbooks/status.yml", "--check", "-e", "offline_rebuild_layers=true")
    assert "COPY . /app/" in done.stdout
    done = played(host, "playbooks/logs.yml", "-e", "offline_rebuild_log_lines=1", "-e", "offline_rebuild_services=web")
    assert "password ***" in done.stdout
    assert "version four" not in done.stdout
    assert "job" not in done.stdout.split("PLAY RECAP")[0].replace("job:", "")
    assert "correct-horse" not in done.stdout


def test_the_rollback_playbook_goes_back_and_reports(host: Host, tmp_path: Path) -> None:
    variables = ("-e", f"offline_rebuild_report_dir={tmp_path}", "-e", "offline_rebuild_change_id=C5")
    before = document(host, "releases")["releases"]
    assert "changed=1" in played(host, "playbooks/rollback.yml", "--check", *variables).stdout
    assert document(host, "releases")["releases"] == before
    assert "changed=1" in played(host, "playbooks/rollback.yml", *variables).stdout
    assert "version four" not in host.ssh("docker logs shop-web-1").stdout
    (file,) = [path for path in tmp_path.glob("*/report.json") if json.loads(path.read_text())["kind"] == "run"]
    said = file.with_name("report.md").read_text("utf-8")
    assert "C5" in said
    assert document(host, "releases")["releases"][0]["id"] in said
    assert document(host, "rebuild")["release"]["state"] == "done"

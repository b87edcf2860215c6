"""A fleet with one bad host: said before the first host is touched. By the playbook, as an operator runs it."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from tests.engine.test_transaction_engine import ROOT
from tests.equality.bases import busybox
from tests.hosts import Hosts
from tests.hosts.sample import playbook, write_variables

BASE = "127.0.0.1:9/fleet/base:1"
SRC = "/srv/fleet/src"
FILES = {
    "compose.yaml": "name: fleet\nservices: {web: {build: ., stop_signal: SIGKILL}}\n",
    "Dockerfile": f'FROM {BASE}\nCOPY run.sh /app/run.sh\nCMD ["sh", "/app/run.sh"]\n',
    "run.sh": "exec sleep 10000\n",
}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Hosts]:
    engine, store = os.environ.get("OFR_ENGINE", "trixie"), os.environ.get("OFR_STORE", "classic")
    with Hosts.up("fleet", count=2, engine=engine, store=store) as hosts:
        for host in hosts:
            host.put(ROOT / "module_utils", "/srv/fleet/module_utils")
            host.put(ROOT / "tests/engine/transaction_driver.py", "/srv/fleet/tests/engine/transaction_driver.py")
            host.put(busybox(), "/srv/fleet/busybox")
            request = f'{{"op": "base", "name": "{BASE}", "busybox": "/srv/fleet/busybox"}}'
            host.ssh(["python3", "/srv/fleet/tests/engine/transaction_driver.py"], input=request)
            host.ssh(f"mkdir -p {SRC}")
            for name, text in FILES.items():
                host.ssh(f"cat > {SRC}/{name}", input=text)
            host.ssh(f"cd {SRC} && docker compose up -d --build")
        write_variables(hosts, {"offline_rebuild_project_src": SRC})
        yield hosts


def state(hosts: Hosts) -> list[str]:
    listing = "docker ps -aq --no-trunc; docker image ls -aq --no-trunc; find /var/lib/offline-rebuild -type f"
    return [host.ssh(f"{{ {listing}; }} | sort").stdout for host in hosts]


def edit(hosts: Hosts, text: str) -> None:
    for host in hosts:
        host.ssh(f"cat > {SRC}/run.sh", input=text)


def test_a_bad_host_is_said_before_the_first_is_touched(fleet: Hosts) -> None:
    edit(fleet, "exec sleep 20000\n")
    fleet[1].ssh(f"cat > {SRC}/compose.yaml", input="services: [broken\n")
    before = state(fleet)
    done = playbook(fleet, "-e", "offline_rebuild_serial=1")
    assert done.returncode != 0
    assert "[compose-invalid]" in done.stdout
    assert "PLAY [Rebuild what changed]" not in done.stdout
    assert state(fleet) == before

    fleet[1].ssh(f"cat > {SRC}/compose.yaml", input=FILES["compose.yaml"])
    done = playbook(fleet, "-e", "offline_rebuild_serial=1")
    assert done.returncode == 0, done.stdout
    assert all(first != second for first, second in zip(state(fleet), before, strict=True))


def test_a_run_of_the_other_host_is_seen_and_one_host_alone_is_not_looked_at_twice(fleet: Hosts) -> None:
    edit(fleet, "exec sleep 30000\n")
    script = (
        "import sys; sys.path.insert(0, '/srv/fleet/module_utils'); from offline_rebuild.lock import Lock; "
        "lock = Lock.acquire('/var/lib/offline-rebuild', 'fleet', 'ann', 'maintenance'); "
        "print('held', flush=True); sys.stdin.read()"
    )
    login = ["ssh", *fleet[1].ssh_options(), f"root@{fleet[1].address}", shlex.join(["python3", "-c", script])]
    with subprocess.Popen(login, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        before = state(fleet)
        done = playbook(fleet, "-e", "offline_rebuild_serial=1")
        assert done.returncode != 0
        assert "maintenance" in done.stdout
        assert state(fleet) == before
        done = playbook(fleet, "-l", fleet[0].name)
        assert done.returncode == 0, done.stdout
        assert "TASK [Look]" not in done.stdout
        assert state(fleet)[0] != before[0]


def test_a_rollback_by_its_playbook(fleet: Hosts) -> None:
    before = state(fleet)
    image = fleet[0].docker("inspect", "-f", "{{.Image}}", "fleet-web-1")
    checked = playbook(fleet, "--check", "-l", fleet[0].name, name="playbooks/rollback.yml")
    assert checked.returncode == 0, checked.stdout
    assert "back to release" in checked.stdout
    assert state(fleet) == before
    done = playbook(fleet, "-l", fleet[0].name, name="playbooks/rollback.yml")
    assert done.returncode == 0, done.stdout
    assert "rolls forward again" in done.stdout
    assert fleet[0].docker("inspect", "-f", "{{.Image}}", "fleet-web-1") != image

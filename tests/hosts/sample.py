"""The sample application on test hosts: ``python -m tests.hosts.sample NAME`` loads and starts it there."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from .fleet import GROUP, Host, HostError, Hosts
from .images import ROOT

SOURCE = ROOT / "examples" / "llm-chat"
ARCHIVE = ROOT / ".cache" / "llm-chat" / "images.tar"
TARGET = "/srv/llm-chat"
COMPOSE = "deployment/docker/docker-compose.yml"
HEALTH = {"url": "http://127.0.0.1:8000/api/health", "status": 200}
VARIABLES: dict[str, Any] = {
    "offline_rebuild_project_src": TARGET,
    "offline_rebuild_compose_files": [COMPOSE],
    "offline_rebuild_health_checks": [HEALTH],
}
#: What a run may change on a host: sources, state, locks, images, containers; not access times, nor what
#: the engine itself writes (logs, a file in /tmp while a container's health check runs).
_STATE = (
    "find /srv /var/lib/offline-rebuild -printf '%p %y %m %s %T@ %C@\\n' 2>/dev/null | sort; "
    "find /run/lock /tmp ! -name 'runc-process*' -printf '%p %y\\n' 2>/dev/null | sort; "
    "docker image ls -aq --no-trunc | sort; docker container ls -aq --no-trunc | sort; docker volume ls -q | sort; "
    "docker network ls -q --no-trunc | sort; docker ps -a --format '{{.Names}} {{.Image}} {{.State}}' | sort"
)


def install(hosts: Hosts, variables: dict[str, Any] | None = None) -> None:
    """Loads the archive of ``scripts/connected-build``, copies the tree, starts the services, writes variables."""
    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        list(pool.map(_install, hosts))
    write_variables(hosts, {**VARIABLES, **(variables or {})})


def _install(host: Host) -> None:
    host.load(ARCHIVE)
    host.put(SOURCE, TARGET, delete=True)
    host.ssh(f"cd {TARGET} && docker compose -f {COMPOSE} up -d --no-build --pull never --wait")


def write_variables(hosts: Hosts, variables: dict[str, Any]) -> Path:
    """Writes the variables of the group next to the inventory."""
    file = hosts.directory / "group_vars" / f"{GROUP}.yml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(variables, explicit_start=True), encoding="utf-8")
    return file


def health(host: Host) -> dict[str, Any]:
    """The answer of the backend's health URL."""
    with urllib.request.urlopen(f"http://{host.address}:8000/api/health", timeout=10) as answer:
        return dict(json.load(answer))


def state(host: Host) -> list[str]:
    """All that a run could change on the host, a line for each thing."""
    return host.ssh(_STATE).stdout.splitlines()


def playbook(hosts: Hosts, *options: str, name: str = "rebuild.yml") -> subprocess.CompletedProcess[str]:
    """Runs a playbook of this project on the hosts as an operator would; standard output holds all it printed."""
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_FORCE_COLOR": "0",
        "NO_COLOR": "1",
    }
    program = Path(sys.executable).parent / "ansible-playbook"
    return subprocess.run(
        [str(program), name, "-i", str(hosts.inventory), "-l", GROUP, *options],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def check_mode(hosts: Hosts, folder: Path) -> None:
    """Runs ``--check --diff``; writes what it said and the state before and after into ``check.json`` in the folder."""
    before = {host.name: state(host) for host in hosts}
    done = playbook(hosts, "--check", "--diff")
    after = {host.name: state(host) for host in hosts}
    record = {"status": done.returncode, "output": done.stdout, "before": before, "after": after}
    (folder / "check.json").write_text(json.dumps(record, indent=2), encoding="utf-8")


def main() -> int:
    """Installs the sample, or records check mode."""
    parser = argparse.ArgumentParser(prog="python -m tests.hosts.sample", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--check-mode", type=Path, metavar="FOLDER", help="record check mode instead")
    options = parser.parse_args()
    try:
        hosts = Hosts.get(options.name)
        if options.check_mode:
            check_mode(hosts, options.check_mode)
        else:
            install(hosts)
    except (HostError, OSError) as error:
        print(f"sample: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

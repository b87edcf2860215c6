"""A service that installs packages, on an air-gapped host: what the tests of wheelhouse and npm cache share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.hosts import Host, Hosts
from tests.hosts.connected import save_debian_base

ROOT = Path(__file__).resolve().parents[2]
STORES = os.environ.get("OFR_STORES", "classic containerd").split()
DRIVER = r"""
import json, sys
sys.dont_write_bytecode = True
sys.path.insert(0, "/opt/ofr")
import driver
from offline_rebuild.errors import OfflineRebuildError
from offline_rebuild.run import Request, execute
given = json.load(sys.stdin)
try:
    outcome = execute(Request(project_src="/srv/web", gate_timeout=30, **given))
    answer = {"failed": outcome.failed, **outcome.to_dict()}
except OfflineRebuildError as error:
    answer = {"failed": True, "error": error.to_dict(), "msg": str(error)}
print(json.dumps(answer))
"""
SNAPSHOT = r"""
import json, sys
sys.path.insert(0, "/opt/ofr")
import driver
print(json.dumps(driver.snapshot(sys.argv[1])))
"""
#: What a host must have as it was after a plan, and after a run that was blocked.
STATE = (
    "find /srv /var/lib/offline-rebuild -printf '%p %y %m %s %T@\\n' 2>/dev/null | sort;"
    " docker image ls -aq --no-trunc | sort; docker ps -aq --no-trunc; docker volume ls -q"
)


@contextmanager
def serving(
    name: str,
    store: str,
    base: str,
    folder: Path,
    compose: str,
    files: Mapping[str, str],
    build: Callable[[Host, str], None],
) -> Iterator[Host]:
    """A host on which the service runs: built there, saved, and brought in, so that no cache and no base is left.

    :param base: ``python`` or ``node``.
    :param folder: its ``index`` goes to the host: what an index or a registry would have.
    """
    save_debian_base(base, folder / "base.tar")
    engine = os.environ.get("OFR_ENGINE", "trixie")
    with Hosts.up(f"{name}-{store}", count=1, engine=engine, store=store) as hosts:
        host: Host = hosts[0]
        host.put(ROOT / "module_utils" / "offline_rebuild", "/opt/ofr/offline_rebuild")
        host.put(ROOT / "tests" / "equality" / "driver.py", "/opt/ofr/driver.py")
        host.put(folder / "index", "/opt/index")
        host.load(folder / "base.tar")
        host.ssh("mkdir -p /srv/web/web && cat > /srv/web/compose.yaml", input=compose)
        write(host, files)
        build(host, f"ofr-{name}-web:1")
        host.ssh(
            f"cd /srv/web && docker save ofr-{name}-web:1 -o /opt/web.tar && docker image rm ofr-{name}-web:1"
            " && docker builder prune -af && docker load -i /opt/web.tar && docker compose up -d --wait"
        )
        yield host


def write(host: Host, files: Mapping[str, str]) -> None:
    """Puts files into the build context."""
    for path, text in files.items():
        host.ssh(f"cat > /srv/web/web/{path} && chmod 644 /srv/web/web/{path}", input=text)


def run(host: Host, **request: Any) -> dict[str, Any]:
    """A run on the host. :returns: what came of it."""
    answer: dict[str, Any] = json.loads(host.ssh(["python3", "-c", DRIVER], input=json.dumps(request)).stdout)
    return answer


def plan_refused(host: Host, **request: Any) -> str:
    """A plan that is refused leaves the host as it is. :returns: the one line for the operator."""
    before = host.ssh(STATE).stdout
    planned = run(host, check=True, **request)
    assert planned["failed"]
    assert host.ssh(STATE).stdout == before
    return str(planned["msg"])

"""A swap with no moment in which nobody serves: the new containers beside the old ones, then the old ones out.

Facts (tried with engine 26.1): a container that is disconnected from a network of the default address
pool and connected again at once gets the address that it had, since that is the lowest free one; its open connections
live on, packets of the moment between are sent again. So a container can be taken into the network's names, or out of
them, while it runs:

1. compose creates the new containers (``up --no-start --no-recreate --scale``), so that their labels are its own;
2. before they start they are taken out of the service's names, so that nobody is sent to one that does not serve yet;
3. they start and pass the gate; 4. they are taken into the names;
5. the old ones are taken out of the names, and stopped when nobody is connected to them any more, or after a while;
6. the old ones are removed.

Cut off anywhere, the service is recreated by compose in the next run: see :func:`is_whole`.
"""

from __future__ import annotations

import time
from typing import Any, Dict, List, Mapping, Sequence, Set

from .cli import Docker
from .compose import ContainerState, Service

__all__ = ["DRAIN", "addresses", "connected", "drain", "enter", "is_whole", "leave", "names_of"]

#: Seconds to wait until nobody is connected to an old container, before it is stopped in any case.
DRAIN = 10.0
#: Seconds to wait in any case. Who asked for a connection in the moment between the two is not heard, and asks again
#: after a second (RFC 6298, 2.1): the old container has to be there to answer.
LEAST = 1.2
_ESTABLISHED = "01"
_LISTEN = "0A"


def names_of(state: ContainerState) -> Dict[str, List[str]]:
    """:returns: network to the names by which others find the container there, as compose gave them when it created
    the container (its own, the service's, the aliases of the compose file)."""
    networks: Mapping[str, Any] = (state.raw.get("NetworkSettings") or {}).get("Networks") or {}
    return {
        network: [name for name in map(str, settings.get("Aliases") or ()) if not state.id.startswith(name)]
        for network, settings in networks.items()
    }


def addresses(docker: Docker, ids: Sequence[str]) -> Dict[str, List[str]]:
    """:returns: container to its addresses."""
    found = {}
    for data in docker.inspect("container", ids):
        networks = (data.get("NetworkSettings") or {}).get("Networks") or {}
        found[str(data["Id"])] = sorted(str(settings.get("IPAddress")) for settings in networks.values())
    return found


def is_whole(service: Service, states: Sequence[ContainerState], image_id: str) -> bool:
    """:returns: whether the service has as many containers as it should, all of them running the image and to be found
    by the service's name."""
    ids = [(state.image_id, state.engine_image_id) for state in states if state.state == "running"]
    found = all(_is_found(service, state) for state in states)
    return found and len(states) == len(ids) == service.replicas and all(image_id in pair for pair in ids)


def _is_found(service: Service, state: ContainerState) -> bool:
    networks = ((state.raw.get("NetworkSettings") or {}).get("Networks") or {}).values()
    return all(service.name in (network.get("Aliases") or ()) for network in networks)


def leave(docker: Docker, state: ContainerState, names: Mapping[str, Sequence[str]]) -> None:
    """Take a container out of the service's names in every network; its own name stays."""
    for network in names:
        _reconnect(docker, state.id, network, [state.name])


def enter(docker: Docker, state: ContainerState, names: Mapping[str, Sequence[str]]) -> None:
    """Take a container into the service's names."""
    for network, aliases in names.items():
        _reconnect(docker, state.id, network, aliases)


def _reconnect(docker: Docker, container: str, network: str, aliases: Sequence[str]) -> None:
    named = [part for name in aliases for part in ("--alias", name)]
    docker.run("network", "disconnect", network, container, guarded=True)
    docker.run("network", "connect", *named, network, container, guarded=True)


def drain(pids: Sequence[int], seconds: float = DRAIN, least: float = LEAST) -> bool:
    """Wait until nobody is connected to the containers any more.

    :param pids: a process of each container.
    :param least: seconds to wait although nobody is.
    :returns: whether that came about in time.
    """
    began = time.monotonic()
    end = began + seconds
    quiet = 0
    while quiet < 3 or time.monotonic() < began + least:
        quiet = 0 if any(connected(pid) for pid in pids) else quiet + 1
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def connected(pid: int) -> int:
    """:returns: how many connections others have to what listens in the network namespace of a process (proc(5):
    /proc/PID/net/tcp); 0 where that cannot be read."""
    listening: Set[str] = set()
    open_ports: List[str] = []
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{name}", encoding="ascii") as stream:
                rows = [line.split()[1:4] for line in stream.readlines()[1:]]
        except OSError:
            continue
        listening.update(local.rsplit(":", 1)[1] for local, _, state in rows if state == _LISTEN)
        open_ports += [local.rsplit(":", 1)[1] for local, _, state in rows if state == _ESTABLISHED]
    return sum(port in listening for port in open_ports)

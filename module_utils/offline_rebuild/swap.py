"""How each service is swapped, and why: pure decisions, made for the plan and again when a run has its images.

``rolling`` starts the new containers beside the old ones and needs no moment without either. ``recreate`` is compose's
own way: it creates the new container, stops the old one and starts the new one; the time between is what the engine
takes to end a container, to start one, and what the application takes until it serves. A *pre-gate* starts the new
image once beside the old container before anything is swapped (pregate.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import AbstractSet, Any, FrozenSet, List, Mapping, Sequence

from .compose import ContainerState, Project, Service, one_shots, shares_another
from .errors import OfflineRebuildError

__all__ = ["Manner", "Wishes", "check_wishes", "judge"]

#: Labels and variables by which proxies find containers by themselves (Traefik can be told by a label not to).
_FOUND_BY_LABEL = ("caddy",)
_FOUND_BY_VARIABLE = ("VIRTUAL_HOST", "LETSENCRYPT_HOST")
#: Keys of a service's network that do not stand in the way of a second container.
_PLAIN_NETWORK = frozenset(("aliases",))


@dataclass(frozen=True)
class Wishes:
    """What the operator set.

    :param pregate: services that are pre-gated although they write to a volume or have devices.
    :param no_pregate: services that are never pre-gated.
    :param rolling: services whose clients look their name up anew for each connection.
    """

    pregate: FrozenSet[str] = field(default_factory=frozenset)
    no_pregate: FrozenSet[str] = field(default_factory=frozenset)
    rolling: FrozenSet[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Manner:
    """How one service is swapped. ``why`` says why not ``rolling``, ``pregate_why`` why there is no pre-gate."""

    swap: str
    why: str
    pregate: bool
    pregate_why: str


def check_wishes(wishes: Wishes, project: Project) -> None:
    """:raises OfflineRebuildError: ``no-such-service``: a list names a service that the project does not have."""
    known = {service.name for service in project.services}
    for name in sorted((wishes.pregate | wishes.no_pregate | wishes.rolling) - known):
        raise OfflineRebuildError(
            "no-such-service",
            f"{name!r} of offline_rebuild_pregate_services, offline_rebuild_no_pregate_services or "
            "offline_rebuild_rolling_services is not a service of the project",
            f"name one of: {', '.join(sorted(known))}",
            file=project.files[0] if project.files else None,
        )


def judge(
    project: Project,
    service: Service,
    states: Mapping[str, Sequence[ContainerState]],
    image_volumes: Sequence[str],
    wishes: Wishes,
    swapped: AbstractSet[str],
) -> Manner:
    """:returns: how the service is to be swapped.

    :param states: the project's containers by service.
    :param image_volumes: paths that the service's image declares as volumes.
    :param swapped: the services that change in the same run.
    """
    why_not = _no_rolling(project, service, states, image_volumes, wishes)
    pregate_why = _no_pregate(project, service, states, image_volumes, wishes, swapped)
    return Manner("recreate" if why_not else "rolling", why_not, not pregate_why, pregate_why)


def _no_pregate(
    project: Project,
    service: Service,
    states: Mapping[str, Sequence[ContainerState]],
    image_volumes: Sequence[str],
    wishes: Wishes,
    swapped: AbstractSet[str],
) -> str:
    if service.name in wishes.no_pregate:
        return "offline_rebuild_no_pregate_services names it"
    if not _running(states, service.name):
        return "no old container runs beside which it could be tried"
    jobs = set(one_shots(project))
    if service.name in jobs:
        return "it is a job, which must not run twice"
    tied = _tied(service)
    if tied:
        return tied
    for name in project.dependencies([service.name]):
        if name in jobs and name in swapped:
            return f"the job {name}, for which it waits, runs anew in the same release"
        if name not in jobs and not _running(states, name):
            return f"{name}, on which it depends, does not run yet"
    if service.name in wishes.pregate:
        return ""
    return _found_by_itself(service) or _devices(service) or _writes(service, image_volumes)


def _no_rolling(
    project: Project,
    service: Service,
    states: Mapping[str, Sequence[ContainerState]],
    image_volumes: Sequence[str],
    wishes: Wishes,
) -> str:
    running = _running(states, service.name)
    if not running or len(running) != len(states.get(service.name, ())) or len(running) != service.replicas:
        return "not all of its containers run"
    if service.container_name:
        return f"the compose file fixes its container's name, {service.container_name}"
    for port in service.ports:
        if str(port.get("published") or "0") != "0":
            return f"it holds port {port['published']} of the host"
    if service.name in one_shots(project):
        return "it is a job"
    mode = str(service.raw.get("network_mode") or "")
    reason = (
        (f"its network_mode is {mode}" if mode else "")
        or _tied(service)
        or _writes(service, image_volumes)
        or _devices(service)
        or _found_by_itself(service)
        or _fixed_network(service)
        or _needed_in_place(project, service)
    )
    if reason:
        return reason
    if not (service.has_healthcheck or all(state.health_test for state in running)):
        return "it has no health check that could tell when it serves"
    others = _neighbours(project, service)
    if others and service.name not in wishes.rolling:
        return f"{others[0]} may have looked up its address once for all; see offline_rebuild_rolling_services"
    return ""


def _running(states: Mapping[str, Sequence[ContainerState]], name: str) -> List[ContainerState]:
    return [state for state in states.get(name, ()) if state.state == "running"]


def _tied(service: Service) -> str:
    mode = str(service.raw.get("network_mode") or "")
    if mode == "host" or mode.startswith("container:"):
        return f"its network_mode is {mode}"
    if shares_another(service):
        return "it shares a namespace or the volumes of another service"
    return "it has links to other services" if service.raw.get("links") else ""


def _fixed_network(service: Service) -> str:
    for name, settings in sorted((service.raw.get("networks") or {}).items()):
        fixed = sorted(set(settings or {}) - _PLAIN_NETWORK - {k for k, v in (settings or {}).items() if not v})
        if fixed:
            return f"it has {fixed[0]} in network {name}"
    return "it has mac_address" if service.raw.get("mac_address") else ""


def _found_by_itself(service: Service) -> str:
    labels = service.raw.get("labels") or {}
    variables = service.raw.get("environment") or {}
    found = [n for n in labels if n.split(".")[0].split("_")[0] in _FOUND_BY_LABEL]
    found += [name for name in _FOUND_BY_VARIABLE if name in variables]
    return f"a proxy would find the second container by {found[0]}" if found else ""


def _devices(service: Service) -> str:
    raw = service.raw
    reserved = ((raw.get("deploy") or {}).get("resources") or {}).get("reservations") or {}
    if raw.get("devices") or raw.get("gpus") or reserved.get("devices") or raw.get("privileged"):
        return "it uses devices of the host"
    return ""


def _writes(service: Service, image_volumes: Sequence[str]) -> str:
    for volume in service.volumes:
        if volume.get("type") in ("tmpfs", "image") or volume.get("read_only"):
            continue
        return f"it may write to {volume.get('source') or 'a volume'} (its {volume.get('target')})"
    mounted = {str(volume.get("target")) for volume in service.volumes} | _tmpfs(service.raw)
    declared = [path for path in sorted(image_volumes) if path not in mounted]
    return f"it may write to the volume {declared[0]} that its image declares" if declared else ""


def _tmpfs(raw: Mapping[str, Any]) -> FrozenSet[str]:
    given = raw.get("tmpfs") or ()
    return frozenset(str(item).split(":")[0] for item in ([given] if isinstance(given, str) else given))


def _needed_in_place(project: Project, service: Service) -> str:
    """Others that hang on the very container."""
    modes = ("network_mode", "ipc", "pid")
    for other in project.services:
        shares = any(str(other.raw.get(key) or "") == f"service:{service.name}" for key in modes)
        lends = any(str(item).split(":")[0] == service.name for item in other.raw.get("volumes_from") or ())
        if shares or lends:
            return f"{other.name} shares its namespace or its volumes"
    along = project.restarted_with([service.name])
    return f"{along[0]} has to be restarted with it" if along else ""


def _neighbours(project: Project, service: Service) -> List[str]:
    """Services that can look the service up: they are in one of its networks."""
    mine = set(service.raw.get("networks") or {})
    return [
        other.name
        for other in project.services
        if other.name != service.name and mine & set(other.raw.get("networks") or {})
    ]

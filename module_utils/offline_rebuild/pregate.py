"""The pre-gate: a new image is started once beside the old container, and must get healthy there.

The containers are those of a compose project of their own, ``<project>-pregate``, from a compose file that is made of
the rendered project: environment, command, user, mounts, secrets and configs are the service's own, and compose itself
puts them in (``docker compose run`` leaves out secrets and configs that come from a variable or from the file's text).
Taken out is all by which others would find or be hindered by a second container: published ports, network aliases,
fixed addresses, container and host name. The networks and volumes are the project's, declared external: nothing is
created but the containers, so nothing but the containers has to be removed.

Each of them carries :data:`LABEL`; recovery finds them by it.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, Set

from .cli import CommandFailed, Docker
from .compose import Project, Service
from .graft import REGISTRY

__all__ = ["LABEL", "container_name", "forget_images", "image_name", "missing", "model", "project_name", "remove"]

#: Label of a pre-gate's containers; its value is the project.
LABEL = "offline-rebuild.pregate"
GRACE = 3
_IMAGES = f"{REGISTRY}/pregate/image"
_LEFT_OUT = frozenset(
    ("build", "ports", "container_name", "hostname", "domainname", "depends_on", "restart", "scale", "profiles")
    + ("develop", "pull_policy", "networks", "mac_address", "env_file", "pre_stop", "label_file")
)


def project_name(project: Project) -> str:
    """:returns: the name of the compose project that the containers belong to."""
    return f"{project.name}-pregate"


def container_name(project: Project, service: str) -> str:
    """:returns: the name of the container in which a service's new image is tried."""
    return f"{project.name}-{service}-pregate"


def image_name(project: Project, image_id: str) -> str:
    """:returns: the name of an image while it is tried: of this project alone, and below what making takes away."""
    return f"{_IMAGES}:{project.name}.{image_id.rsplit(':', 1)[-1][:12]}"


def forget_images(docker: Docker, project: Project) -> None:
    """Remove the names of :func:`image_name`, whichever run left them."""
    asked = ("--filter", f"reference={_IMAGES}:{project.name}.*", "--format", "{{.Repository}}:{{.Tag}}")
    names = docker.run("image", "ls", *asked).text.split()
    if names:
        docker.run("image", "rm", "--no-prune", *names, check=False, guarded=True)


def model(project: Project, images: Mapping[str, str]) -> Dict[str, Any]:
    """:returns: the compose model in which each of the services has one container.

    :param images: service to the image that it is tried with.
    """
    services = {name: project.service(name) for name in images}
    made: Dict[str, Any] = {"name": project_name(project), "services": {}}
    for name, service in services.items():
        made["services"][f"{name}-pregate"] = _service(project, service, images[name])
    for kind in ("networks", "volumes"):
        used = _used(services.values(), kind)
        made[kind] = {key: {"external": True, "name": name} for key, name in _names(project, kind, used).items()}
    for kind in ("secrets", "configs"):
        made[kind] = dict(project.raw.get(kind) or {})
    return made


def missing(docker: Docker, project: Project, names: Sequence[str]) -> Dict[str, str]:
    """Networks and volumes that a service needs and that only ``up`` will create.

    :returns: service to one of them that does not exist yet; the other services are left out.
    """
    found: Dict[str, str] = {}
    for kind in ("networks", "volumes"):
        wanted = {name: _names(project, kind, _used([project.service(name)], kind)).values() for name in names}
        every = sorted({ref for refs in wanted.values() for ref in refs})
        there = {str(item.get("Name")) for item in docker.inspect(kind[:-1], every)}
        for name, refs in wanted.items():
            absent = sorted(set(refs) - there)
            if absent:
                found[name] = f"{kind[:-1]} {absent[0]}"
    return found


def remove(docker: Docker, project: Project, graceful: bool = False) -> None:
    """Remove the pre-gate's containers, whichever run left them, with the anonymous volumes that were made for them.

    :param graceful: let them end by themselves, for at most :data:`GRACE` seconds: they have served nobody.
    :raises OfflineRebuildError: ``docker-failed``: some are left.
    """
    ids = _containers(docker, project)
    if ids and graceful:
        docker.run("stop", "-t", str(GRACE), *ids, check=False, guarded=True)
    if ids:
        removed = docker.run("rm", "-f", "-v", *ids, check=False, guarded=True)
        if removed.rc != 0 and _containers(docker, project):
            raise CommandFailed(removed)


def _containers(docker: Docker, project: Project) -> List[str]:
    return docker.run("ps", "-aq", "--no-trunc", "--filter", f"label={LABEL}={project.name}").text.split()


def _service(project: Project, service: Service, image: str) -> Dict[str, Any]:
    made = {key: value for key, value in service.raw.items() if key not in _LEFT_OUT}
    labels = {**(made.get("labels") or {}), LABEL: project.name}
    if any(name.startswith("traefik.") for name in labels):
        labels["traefik.enable"] = "false"
    deploy = {k: v for k, v in (made.get("deploy") or {}).items() if k not in ("replicas", "restart_policy", "labels")}
    made.update(image=image, pull_policy="never", container_name=container_name(project, service.name), labels=labels)
    made["restart"] = "no"
    if not made.get("network_mode"):
        made["networks"] = dict.fromkeys(service.raw.get("networks") or {})
    made.pop("deploy", None)
    if deploy:
        made["deploy"] = deploy
    return made


def _used(services: Any, kind: str) -> Set[str]:
    used: Set[str] = set()
    for service in services:
        if kind == "networks":
            used.update(service.raw.get("networks") or {})
        else:
            used.update(str(v["source"]) for v in service.volumes if v.get("type") == "volume" and v.get("source"))
    return used


def _names(project: Project, kind: str, used: Set[str]) -> Dict[str, str]:
    """:returns: key in the compose file to the name that the engine knows."""
    declared: Mapping[str, Any] = project.raw.get(kind) or {}
    names: List[str] = sorted(used)
    return {key: str((declared.get(key) or {}).get("name") or f"{project.name}_{key}") for key in names}

"""Back to a kept release: which images ran after it, and what that means for the services now.

What a service ran after a release follows from the later ones, each of which holds the image *before* it. The compose
configuration is the rendered project that the release left. Images of kept releases have names of their own
(``<repository>:offline-rebuild-<release>``), so they are there unless somebody removed them.

:data:`INITIAL` stands for the state before the oldest kept release. No rendered project was kept of it, so the compose
configuration stays as it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import AbstractSet, Dict, List, Mapping, Optional, Sequence, Tuple

from . import compose
from .cli import Docker
from .compose import Project
from .errors import OfflineRebuildError
from .image import normal_ref
from .plan import Plan, ServicePlan, short
from .release import Journal, Release

__all__ = ["INITIAL", "Target", "base_project", "find", "left", "message", "plan", "target_project"]

INITIAL = "initial"


@dataclass(frozen=True)
class Target:
    """Where to go back to.

    :param release: id of the release whose result is wanted again, or :data:`INITIAL`.
    :param images: service to the image that it ran then; ``""``: it had none.
    :param services: the services that later releases swapped, whether their image changed or not.
    :param rendered: path of the compose configuration of then, ``""`` if none was kept.
    """

    release: str
    images: Mapping[str, str]
    services: AbstractSet[str]
    rendered: str = ""


def find(journal: Journal, wanted: str = "") -> Target:
    """Look the target up in the journal.

    :param wanted: a release's id or :data:`INITIAL`; empty: the release before the one that runs now.
    :raises OfflineRebuildError: ``release-missing``, ``journal-damaged``, ``rollback-nothing``.
    """
    touched = [r for r in journal.all() if r.swapped and r.state in ("done", "failed")]
    target = _wanted(journal, wanted) if wanted else _one_before(touched)
    undone = [r for r in touched if target == INITIAL or r.id > target]
    images: Dict[str, str] = {}
    services = {name for release in undone for name in release.services}
    for release in reversed(undone):
        images.update({name: record.before for name, record in release.services.items()})
    return Target(target, images, services, journal.rendered_of(target))


def _wanted(journal: Journal, wanted: str) -> str:
    if wanted == INITIAL:
        if not any(release.state == "done" for release in journal.all()):
            raise _nothing("there is no release on this host")
        return INITIAL
    release = journal.read(wanted)
    if release.state != "done":
        raise _nothing(f"release {wanted} ended as {release.state}, so nothing ran with it")
    return wanted


def _one_before(touched: List[Release]) -> str:
    """The release before the newest one. After a rollback, the one before that which it went back to: going back twice
    goes back two steps. After a release that failed and could not be taken back, the last good one."""
    done = [release for release in touched if release.state == "done"]
    if not done:
        raise _nothing("no release on this host has changed anything")
    if touched[-1].state == "failed":
        return done[-1].id
    now = done[-1].id
    went_back = {release.id: release.rollback_to for release in done if release.rollback_to}
    while now in went_back:
        now = went_back[now]
    if now == INITIAL:
        raise _nothing("what runs now is what ran before the oldest kept release")
    older = [release.id for release in done if release.id < now]
    return older[-1] if older else INITIAL


def _nothing(why: str) -> OfflineRebuildError:
    return OfflineRebuildError(
        "rollback-nothing", f"there is nothing to go back to: {why}", "name a kept release in offline_rebuild_release"
    )


def target_project(project: Project, target: Target) -> Project:
    """:returns: the project as it was then; as it is now where that was not kept."""
    return compose.read_dumped(project, target.rendered) if target.rendered else project


def plan(docker: Docker, project: Project, target: Target, wanted: AbstractSet[str] = frozenset()) -> Plan:
    """What going back would do.

    :param project: of :func:`target_project`.
    :param wanted: only these services; empty: all that later releases swapped.
    :raises OfflineRebuildError: ``rollback-image-gone``.
    """
    states = compose.containers(docker, project)
    hashes = compose.comparable_hashes(docker, project, states)
    jobs = compose.one_shots(project)
    services = [s for s in project.services if s.name in target.services and (not wanted or s.name in wanted)]
    refs = {ref for s in services for ref in (s.image, target.images.get(s.name, "")) if ref}
    found = docker.inspect("image", sorted(refs))
    there = {str(image["Id"]) for image in found}
    tags = {normal_ref(tag): str(image["Id"]) for image in found for tag in image.get("RepoTags") or ()}
    planned: List[ServicePlan] = []
    for service in services:
        image = target.images.get(service.name, "")
        if not image:
            continue
        if image not in there:
            raise _gone(service.name, image, target.release)
        reason = _reason(service, image, states.get(service.name, []), hashes.get(service.name, ""), jobs, target)
        before = tags.get(service.image, "")
        if not reason and before != image:
            reason = f"the name {service.image} goes back to image {short(image)}"
        action, way, reasons = ("restart", "rollback", (reason,)) if reason else ("unchanged", "", ())
        planned.append(ServicePlan(service.name, service.image, action, way, reasons, image_before=before))
    info = docker.info()
    return Plan(project.name, info.version, info.store, tuple(planned))


def message(target: Target, made: Plan, later: Sequence[str]) -> str:
    """:returns: one line for the operator: what goes back, what does not, and what the next rebuild would do."""
    where = f"release {target.release}" if target.release != INITIAL else "the state before the oldest kept release"
    services = [f"{s.service}: {' '.join(s.reasons)}" for s in made.services if s.changed]
    said = f"back to {where}: " + ("; ".join(services) or "that is what runs, nothing to do")
    if later:
        said += f"; left as they are, since they came later: {', '.join(later)}"
    if services and not target.rendered:
        said += "; the compose configuration stays the present one, none is kept of then"
    if services:
        said += "; the source tree is as it was, so the next rebuild rolls forward again unless the tree goes back too"
    return said


def left(project: Project, target: Target) -> Tuple[str, ...]:
    """:returns: services that came later than the target; they are left as they are."""
    known = {service.name for service in project.services}
    return tuple(sorted(n for n in target.services if n not in known or not target.images.get(n, "")))


def _reason(
    service: compose.Service,
    image: str,
    states: List[compose.ContainerState],
    config_hash: str,
    jobs: List[str],
    target: Target,
) -> str:
    running = sorted({state.image_id for state in states})
    if running != [image]:
        now = ", ".join(short(one) for one in running) or "none"
        return f"image {now} -> {short(image)}, that of release {target.release}"
    if target.rendered and config_hash and any(state.config_hash != config_hash for state in states):
        return f"its compose configuration goes back to that of release {target.release}"
    return compose.service_state(service, image, states, "", service.name in jobs)


def _gone(service: str, image: str, release: str) -> OfflineRebuildError:
    return OfflineRebuildError(
        "rollback-image-gone",
        f"image {short(image)}, which {service} ran after release {release}, is no longer on this host",
        "name another release in offline_rebuild_release, or `docker load` that image again",
    )


def base_project(
    state_dir: str, project_src: str, name: Optional[str], env_files: Sequence[str] = ()
) -> Optional[Project]:
    """The project as its newest release left it, for a tree whose compose files cannot be read any more.

    :param env_files: as for :func:`compose.load`; secrets and configs may come from variables that stand there.
    :returns: ``None`` unless exactly one project of that tree (and name) has a rendered configuration.
    """
    src = os.path.abspath(project_src)
    given = [part for path in env_files for part in ("--env-file", os.path.join(src, path))]
    found: List[Project] = []
    folder = os.path.join(state_dir, "releases")
    for project in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        journal = Journal(state_dir, project)
        if (name and project != name) or not any(release.src == src for release in journal.all()):
            continue
        base = Project(project, src, ("compose", *given), (), ())
        found += [compose.read_dumped(base, path) for path in journal.rendered()[:1]]
    return found[0] if len(found) == 1 else None

"""One run on one host: what the modules and the command line call.

Everything up to the plan reads only; check mode stops there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence

from . import compose, health, once, rollback, swap, transaction
from .ahead import Ahead
from .cli import Docker, EngineInfo, parse_version
from .compose import Project
from .errors import OfflineRebuildError, of_system, on_this_host
from .estimate import estimated
from .files import existing_parent
from .later import Later
from .lock import Lock
from .plan import Plan, ServicePlan
from .planner import Planner, Settings, image_store
from .presence import Need, needs
from .release import Journal, is_secret_name, mask, masked, secrets_of
from .supply import Sources
from .sweep import sweep

__all__ = ["Outcome", "Request", "execute", "open_project", "settings_of", "survey"]

#: Bytes that must be free where images are kept before anything is started.
LEAST_FREE = 256 << 20
_NOT_EXACT = {"overlay": " (not exact)"}


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the options of the module ``compose_rebuild``."""

    project_src: str
    check: bool = False
    compose_files: Sequence[str] = ()
    env_files: Sequence[str] = ()
    profiles: Sequence[str] = ()
    project_name: Optional[str] = None
    services: Sequence[str] = ()
    build_args: Mapping[str, Any] = field(default_factory=dict)
    health_checks: Sequence[Mapping[str, Any]] = ()
    gate_timeout: int = 120
    evidence: str = "assumed"
    modes: str = "exact"
    reuse: str = "exact"
    dependency_files: Sequence[str] = ()
    overlay_run: Sequence[str] = ()
    wheelhouse: str = ""
    npm_cache: str = ""
    state_dir: str = "/var/lib/offline-rebuild"
    keep_releases: int = 3
    change_id: str = ""
    operator: str = ""
    run_time: int = 0
    pregate_services: Sequence[str] = ()
    no_pregate_services: Sequence[str] = ()
    rolling_services: Sequence[str] = ()
    release: str = ""
    project_pushed: bool = False
    action: str = "rebuild"
    advise: bool = False
    strategy: str = "each_host"
    sent: Sequence[Mapping[str, Any]] = ()
    make_services: Sequence[str] = ()

    @property
    def secrets(self) -> List[str]:
        """:returns: the values of build arguments whose names say that they are secret."""
        texts = {key: str(value) for key, value in self.build_args.items()}
        return [value for key, value in texts.items() if is_secret_name(key) and len(value) >= 4]

    @property
    def wishes(self) -> swap.Wishes:
        """:returns: what is set of the services' swap."""
        return swap.Wishes(
            frozenset(self.pregate_services), frozenset(self.no_pregate_services), frozenset(self.rolling_services)
        )


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    :param images: what was made, see :meth:`planner.Planner.made`.
    :param timings: seconds per phase.
    :param advice: what could be better in Dockerfiles and build contexts, where it was asked for (advice.py).
    :param idle: a preflight found nothing to do: neither by the plan nor left by an earlier run.
    :param holdings: with ``build_once``, what a preflight found that the host holds (delta.py).
    :param dockerfiles: with the advice, the Dockerfiles' texts by name, secrets masked.
    :param secrets: values that no result may show (release.py, ``secrets_of``).
    """

    changed: bool
    msg: str
    failed: bool = False
    plan: Optional[Plan] = None
    release: Optional[Mapping[str, Any]] = None
    images: Optional[Sequence[Mapping[str, Any]]] = None
    primed: Optional[Sequence[Mapping[str, Any]]] = None
    error: Optional[Mapping[str, Any]] = None
    timings: Mapping[str, float] = field(default_factory=dict)
    advice: Optional[Sequence[Mapping[str, Any]]] = None
    dockerfiles: Optional[Mapping[str, str]] = None
    secrets: Sequence[str] = ()
    holdings: Optional[Mapping[str, Any]] = None
    idle: bool = False

    @property
    def diff(self) -> Optional[Mapping[str, str]]:
        """:returns: Ansible's diff, ``None`` where nothing differs."""
        if self.plan is None or all(s.action == "unchanged" for s in self.plan.services):
            return None
        found: Mapping[str, str] = mask(self.plan.diff(), self.secrets)
        return found

    def to_dict(self) -> Dict[str, Any]:
        """The module's result, JSON-ready, secrets masked.

        Ansible prints all of a failed result, and the message must not drown in it. So what only the report needs is
        under ``details`` there; the action plugin keeps that off the screen.
        """
        result: Dict[str, Any] = {"changed": self.changed, "msg": self.msg, "timings": dict(self.timings)}
        for name in ("images", "primed", "error", "advice", "dockerfiles", "holdings"):
            value = getattr(self, name)
            if value is not None:
                result[name] = value
        if self.plan is not None:
            result["plan"] = self.plan.to_dict()
        if self.idle:
            result["idle"] = True
        if self.release is not None:
            result["release"] = masked(self.release, self.secrets)
        if self.failed:
            result.pop("dockerfiles", None)
            result.pop("images", None)
            result["details"] = {name: result.pop(name) for name in ("plan", "release", "timings") if name in result}
            if self.release is not None:
                shown = masked(self.release, self.secrets)
                result["release"] = {key: shown[key] for key in ("id", "state", "note")}
        return {key: value if key == "release" else mask(value, self.secrets) for key, value in result.items()}


def execute(request: Request, on_event: transaction.OnEvent = transaction.unheard) -> Outcome:
    """Plan, and unless it is a check, carry the plan out.

    :param on_event: called with the name and the text of each step.
    :raises OfflineRebuildError: for bad input, before anything is touched; and for what fails later.
    """
    secrets: List[str] = []
    try:
        outcome = _execute(request, on_event, secrets)
        return replace(outcome, secrets=tuple(sorted(secrets, key=len, reverse=True)))
    except OfflineRebuildError as error:
        error.message = mask(error.message, secrets)
        error.host = socket.gethostname()
        raise
    except OSError as error:
        raise of_system(error) from error


def _execute(request: Request, on_event: transaction.OnEvent, secrets: List[str]) -> Outcome:
    clock = time.monotonic()
    docker = Docker()
    if not os.path.isdir(request.project_src) and not (request.action == "preflight" and request.project_pushed):
        raise OfflineRebuildError(
            "project-missing",
            "the project folder does not exist",
            "set offline_rebuild_project_src to the tree on this host, or offline_rebuild_project_push to send one",
            file=request.project_src,
        )
    if request.action == "rollback":
        return _rollback(request, docker, clock, on_event)
    if request.action == "preflight" and request.project_pushed:
        _room(docker.require(), request)
        return Outcome(False, "ready, as far as can be said before the project is sent")
    settings = settings_of(request)
    settings.sources.check()
    store = Later(lambda: image_store(docker, settings))
    later_info = Later(docker.require)
    project = Later(lambda: open_project(docker, request))
    ahead = ahead_of(request)
    info = later_info.result()
    planner = Planner(docker, project.result(), settings, set(request.services), store.result(), ahead)
    secrets += secrets_of(planner.project.raw)
    secrets += request.secrets
    swap.check_wishes(request.wishes, planner.project)
    health.parse_checks(request.health_checks, planner.project)
    if request.action != "prime":
        compose.require_variables(docker, planner.project)
    if request.action == "prime":
        return _prime(planner)
    if request.action == "preflight":
        return _ready(planner, info, request, clock)
    if request.action == "build":
        return _build(request, docker, planner, clock, on_event)
    if request.check:
        journal = Journal(request.state_dir, planner.project.name)
        plan = estimated(planner.plan(), journal.all())
        if plan.changed and not plan.blocked:
            _preflight(info, plan, request)
        timings = {"plan": round(time.monotonic() - clock, 3)}
        return _advised(request, planner, _with_unfinished(_planned(plan, timings), journal))
    return _advised(request, planner, _carry_out(request, docker, planner, clock, on_event))


def _advised(request: Request, planner: Planner, outcome: Outcome) -> Outcome:
    """The outcome with the advice, where it was asked for. The swap is over by then, so that nothing waits for it."""
    if not request.advise:
        return outcome
    from . import lint

    advice = [one.to_dict() for one in lint.collect(planner, run_check=not request.check)]
    return replace(outcome, advice=advice, dockerfiles=lint.dockerfiles(planner))


def _planned(plan: Plan, timings: Mapping[str, float]) -> Outcome:
    if plan.blocked:
        return Outcome(False, _blocked_message(plan), True, plan, timings=timings)
    return Outcome(plan.changed, _summary(plan), plan=plan, timings=timings)


def _with_unfinished(outcome: Outcome, journal: Journal) -> Outcome:
    """A check's outcome, with the release that a run would have to finish first."""
    cut_off = [release for release in journal.unfinished() if release.swapped]
    if not cut_off:
        return outcome
    text = "; ".join(f"release {r.id} was cut off in state {r.state}" for r in cut_off)
    return replace(outcome, changed=True, msg=f"{text}: a run finishes it first, or rolls it back; {outcome.msg}")


def _ready(planner: Planner, info: EngineInfo, request: Request, clock: float) -> Outcome:
    """What would stop this host's run is said now, while no host of the run has been touched."""
    Lock.look(request.state_dir, planner.project.name)
    plan = planner.plan()
    if plan.changed and not plan.blocked:
        _preflight(info, plan, request)
    found = _planned(plan, {"plan": round(time.monotonic() - clock, 3)})
    cut_off = any(release.swapped for release in Journal(request.state_dir, planner.project.name).unfinished())
    idle = not (plan.changed or plan.blocked or cut_off)
    ready = replace(found, changed=False, msg=found.msg if found.failed else f"ready: {found.msg}", idle=idle)
    if request.strategy != "build_once" or not (plan.changed or plan.blocked):
        return ready
    from .delta import holdings

    # what is blocked here may be made elsewhere: that is for the controller to say
    return replace(ready, failed=False, holdings=holdings(planner.store).to_dict())


def _build(request: Request, docker: Docker, planner: Planner, clock: float, on_event: transaction.OnEvent) -> Outcome:
    """Make images for other hosts, or take those that are here. No service is swapped, no name of the project moves."""
    options = replace(options_of(request), why="build")
    transaction.recover(docker, planner.project, options, on_event)
    images: List[Mapping[str, Any]] = []
    with transaction.locked(planner.project, options) as lock:
        docker.guard = lock.guard
        try:
            planner.clean()
            plan = planner.plan()
            wanted = replace(plan, services=tuple(s for s in plan.services if s.service in request.make_services))
            if wanted.blocked:
                return _planned(wanted, {})
            _preflight(docker.info(), wanted, request)
            for service in wanted.services:
                on_event("making", f"making the image of {service.service}")
                image_id = planner.make(service) if service.action == "rebuild" else service.image_before
                ref = once.name_of(plan.project, service.service)
                once.hold(planner.store, image_id, ref)
                images.append({**planner.made(service, image_id), "ref": ref})
        finally:
            planner.clean()
    timings = {"total": round(time.monotonic() - clock, 3)}
    made = ", ".join(str(image["service"]) for image in images)
    return Outcome(bool(images), f"made for other hosts: {made}", plan=wanted, images=images, timings=timings)


def _rollback(request: Request, docker: Docker, clock: float, on_event: transaction.OnEvent) -> Outcome:
    """Back to a kept release, through the same transaction. Its images and its compose configuration are kept; the
    tree is not touched, and need not even be one that compose accepts."""
    docker.require()
    try:
        now = open_project(docker, request)
    except OfflineRebuildError as error:
        base = rollback.base_project(request.state_dir, request.project_src, request.project_name, request.env_files)
        if base is None or error.code not in ("compose-invalid", "compose-file-missing"):
            raise
        now = base
    options = options_of(request)
    if not request.check:
        transaction.recover(docker, now, options, on_event)
    journal = Journal(request.state_dir, now.name, secrets_of(now.raw))
    target = rollback.find(journal, request.release)
    then = rollback.target_project(now, target)
    compose.require_variables(docker, then)

    def plan() -> Plan:
        return rollback.plan(docker, then, target, set(request.services))

    checks = _checks_of(journal, target.release, request, then)
    options = replace(options, rollback_to=target.release, why="rollback", health_checks=checks)
    made = plan()
    left = rollback.left(then, target)
    message = rollback.message(target, made, left)
    if request.check or not made.changed:
        return Outcome(made.changed, message, plan=made, timings={"plan": round(time.monotonic() - clock, 3)})
    swap.check_wishes(request.wishes, now)
    release = transaction.run(docker, then, plan, lambda s: target.images[s.service], options, on_event)
    if release is None:
        return Outcome(False, message, plan=made)
    if release.state != "done":
        return Outcome(bool(release.swapped), f"{release.state}: {release.note}", True, made, release.to_dict())
    timings = {"total": round(time.monotonic() - clock, 3)}
    message = f"{message}; release {release.id}"
    return Outcome(True, message, plan=made, release=release.to_dict(), timings=timings)


def _checks_of(journal: Journal, release: str, request: Request, then: Project) -> List[Mapping[str, Any]]:
    """The checks that a release had passed, and so has to pass again; without a record of them, the present ones.
    Those that concern a service that was not there are left out."""
    found: List[Mapping[str, Any]] = []
    kept = journal.checks(request.health_checks, release)
    for entry in request.health_checks if kept is None else kept:
        with contextlib.suppress(OfflineRebuildError):
            health.parse_checks([entry], then)
            found.append(entry)
    return found


def _carry_out(
    request: Request, docker: Docker, planner: Planner, clock: float, on_event: transaction.OnEvent
) -> Outcome:
    plans: List[Plan] = []
    images: List[Mapping[str, Any]] = []
    listed: List[Mapping[str, Any]] = []
    timings: Dict[str, float] = {"make": 0.0}

    def plan() -> Plan:
        if planner.left_behind:
            planner.clean()
        made = planner.plan()
        if made.changed:
            made = estimated(made, Journal(request.state_dir, planner.project.name).all())
        timings["plan"] = round(time.monotonic() - clock, 3)
        plans.append(made)
        if made.changed and not made.blocked:
            _preflight(docker.info(), made, request)
        return made

    def make(service: ServicePlan) -> str:
        began = time.monotonic()
        try:
            image_id = planner.make(service)
            images.append(planner.made(service, image_id))
            listed[:] = planner.store.inspected()
            return image_id
        finally:
            timings["make"] = round(timings["make"] + time.monotonic() - began, 3)

    try:
        release = transaction.run(
            docker, planner.project, plan, make, options_of(request), on_event, tidy=planner.clean
        )
    except OfflineRebuildError as error:
        if error.code != "plan-blocked":
            raise
        return _planned(plans[-1], timings)
    finally:
        once.forget(docker, planner.settings.sent)
    timings["total"] = round(time.monotonic() - clock, 3)
    if release is None:
        return _planned(plans[-1], timings)
    document = release.to_dict()
    if not plans[-1].changed:  # an earlier run's, finished or rolled back now; the host is what the tree asks for
        note = f": {release.note}" if release.note else ""
        message = f"release {release.id}, begun earlier, is now {release.state}{note}; nothing else is to be done"
        return Outcome(True, message, release.state == "failed", plans[-1], document, timings=timings)
    if release.state != "done":
        message = f"{release.state}: {release.note}"
        return Outcome(bool(release.swapped), message, True, plans[-1], document, timings=timings)
    if listed:  # with what was made, and not asked for once more
        sweep(request.state_dir, listed)
    message = f"{_summary(plans[-1])}; release {release.id}"
    return Outcome(True, message, plan=plans[-1], release=document, images=images, timings=timings)


def survey(request: Request) -> List[Need]:
    """:returns: the images that the project needs, and whether they are here.

    :raises OfflineRebuildError: for bad input.
    """
    with on_this_host():
        docker = Docker()
        docker.require()
        return needs(Planner(docker, open_project(docker, request), settings_of(request), set(request.services)))


def open_project(docker: Docker, request: Any) -> Project:
    """:returns: the compose project that a request names."""
    return compose.load(
        docker,
        request.project_src,
        request.compose_files,
        request.env_files,
        request.profiles,
        request.project_name,
        request.services,
    )


def options_of(request: Request) -> transaction.Options:
    """:returns: what the transaction needs of a request."""
    return transaction.Options(
        state_dir=request.state_dir,
        gate_timeout=request.gate_timeout,
        health_checks=tuple(request.health_checks),
        change_id=request.change_id,
        operator=request.operator,
        keep_releases=request.keep_releases,
        run_time=request.run_time,
        wishes=request.wishes,
        secrets=tuple(request.secrets),
    )


def settings_of(request: Request) -> Settings:
    """:returns: what the planner needs of a request."""
    return Settings(
        state_dir=request.state_dir,
        build_args={key: str(value) for key, value in request.build_args.items()},
        evidence=request.evidence,
        modes=request.modes,
        reuse=request.reuse,
        dependency_files=tuple(request.dependency_files),
        overlay_run=tuple(str(text) for text in request.overlay_run),
        may_write=not request.check and request.action != "preflight",
        run_time=request.run_time,
        wishes=request.wishes,
        sent=once.read_sent(request.sent),
        sources=Sources(request.wheelhouse, request.npm_cache),
    )


def ahead_of(request: Request) -> Ahead:
    """:returns: the scans of what the last run of this project scanned."""
    files = [*request.compose_files, "", *request.env_files, "", *request.profiles, "", request.project_name or ""]
    writes = settings_of(request).may_write
    return Ahead(request.state_dir, [request.project_src, *files], set(request.services), writes)


def _prime(planner: Planner) -> Outcome:
    primed = [{"service": name, "recorded": written, "reason": why} for name, written, why in planner.prime()]
    changed = any(item["recorded"] for item in primed)
    differ = [f"{item['service']} ({item['reason']})" for item in primed if item["reason"]]
    msg = "recorded" if changed else "already recorded"
    if differ:
        msg = f"not recorded, the tree is not what the image holds: {'; '.join(differ)}"
    return Outcome(changed, msg, bool(differ), primed=primed)


def _preflight(info: EngineInfo, plan: Plan, request: Request) -> None:
    """What can be known to fail is said before anything is touched."""
    builds = any(service.way in ("graft", "thin graft", "build") for service in plan.services)
    builds = builds or any(service.run_again and service.changed for service in plan.services)
    if builds and parse_version(info.client_version) >= (23,) and "buildx" not in info.plugins:
        raise OfflineRebuildError(
            "buildx-missing",
            f"something has to be built and the docker CLI {info.client_version} has no buildx plugin",
            "put the docker-buildx binary into /usr/libexec/docker/cli-plugins/",
        )
    _room(info, request)


def _room(info: EngineInfo, request: Request) -> None:
    """:raises OfflineRebuildError: ``disk-full``."""
    for path in dict.fromkeys((info.root, existing_parent(request.state_dir))):
        try:
            stat = os.statvfs(path)
        except OSError:
            continue
        free = stat.f_bavail * stat.f_frsize
        if free < LEAST_FREE:
            raise OfflineRebuildError(
                "disk-full",
                f"only {free >> 20} MB are free there, {LEAST_FREE >> 20} MB are needed",
                "free some: docker image prune removes images without a name; see docker system df",
                file=path,
            )


def _summary(plan: Plan) -> str:
    done = [
        f"{s.service}: {s.action}" + (f" by {s.way}{_NOT_EXACT.get(s.way, '')}" if s.way else "")
        for s in plan.services
        if s.action != "unchanged"
    ]
    return "; ".join(done) or "nothing changed"


def _blocked_message(plan: Plan) -> str:
    return "; ".join(f"{s.service} is blocked: {' '.join(s.reasons)}" for s in plan.blocked)

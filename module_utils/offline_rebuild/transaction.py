"""The transaction: images first, then the swap, then the gate; back again when the gate says no.

Order: lock, finish what an earlier run left, make *all* images, pre-gate (pregate.py), name what runs now
``<repository>:offline-rebuild-<release>``, move the services' names, ``docker compose up`` of what changed, gate,
record. Nothing is stopped before every image exists; ``down`` is never called and no volume is ever removed.

The journal names each step before it acts. A run that was killed is finished by the next one, according to its state:

============ ===================================================================================================
planning,    nothing was touched: closed as ``rolled_back``; what a pre-gate left is removed
making,
pregating
swapping,    forward: names moved, ``up`` and gate again (both do nothing where they had been done); back, if an
gating       image of it is gone
rolling_back back: names put back, ``up`` and gate again
============ ===================================================================================================

``docker compose up`` runs with its output in a file and with the lock's guard as its standard input: it lives on when
the run is killed, and the next run waits for it (see lock.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple, Union

from . import compose, health, pregate, rolling, swap
from .cli import Docker, parse_version
from .compose import ContainerState, Project
from .debug import BuildFailed
from .errors import OfflineRebuildError
from .graft import Making, remove_left_behind
from .image import normal_ref
from .lock import Lock
from .plan import Plan, ServicePlan
from .release import Journal, Release, ServiceRecord, mask, retention, secrets_of

__all__ = ["Options", "locked", "recover", "run", "unheard"]

OnEvent = Callable[[str, str], None]
MakeImage = Callable[[ServicePlan], str]
States = Dict[str, List[ContainerState]]


def unheard(_name: str, _text: str) -> None:
    """Nobody listens to the events."""


#: Seconds that ``docker compose up`` may take on top of the gate's: stopping the old containers counts in.
_UP_EXTRA = 120.0
#: From here on ``--no-deps`` does not change the config hash (docker/compose, commit d658fecc6).
_NO_DEPS_SINCE = (2, 29, 3)
_HELD = re.compile(r"Bind for \S*:(\d+) failed: port is already allocated")
#: In place of a return code: a service could not be swapped in the rolling way.
_NOT_ROLLED = -1


@dataclass(frozen=True)
class Options:
    """How a run behaves.

    :param gate_timeout: seconds for the gate, counted from the end of ``up``.
    :param health_checks: the operator's checks, see health.py.
    :param keep_releases: how many finished releases, with their images, stay.
    :param run_time: epoch seconds, given once by the controller; 0: the host's clock.
    :param recover: finish an unfinished release first; without it such a release is an error.
    :param stable: seconds that a container has to have run to pass.
    :param why: for the lock and the audit log.
    :param wishes: what the operator set of the services' swap.
    :param secrets: values that no journal may show, beside those of the compose files.
    :param rollback_to: for a rollback, the release that is gone back to.
    """

    state_dir: str = "/var/lib/offline-rebuild"
    gate_timeout: float = 120.0
    health_checks: Sequence[Mapping[str, Any]] = ()
    change_id: str = ""
    operator: str = ""
    keep_releases: int = 3
    run_time: int = 0
    recover: bool = True
    stable: float = 1.0
    why: str = "rebuild"
    wishes: swap.Wishes = field(default_factory=swap.Wishes)
    secrets: Sequence[str] = ()
    rollback_to: str = ""


def run(
    docker: Docker,
    project: Project,
    plan: Union[Plan, Callable[[], Plan]],
    make_image: MakeImage,
    options: Options,
    on_event: OnEvent = unheard,
    tidy: Callable[[], None] = lambda: None,
) -> Optional[Release]:
    """Carry out a plan.

    :param plan: the plan, or a function that makes it: it is called under the lock and after recovery, so that it sees
        the host as it then is. A plan made earlier is refused when the images have moved since.
    :param make_image: makes a service's new image and returns its id; it moves no name.
    :param tidy: takes away what making leaves, and forgets what was known of the host before the lock was there; called
        before the plan when another run had the lock, and at the end.
    :returns: the release, in state ``done``, ``rolled_back`` or ``failed``; that of the first try when the same run is
        begun twice. When the plan changes nothing: the release that was recovered, if one was that had begun its swap,
        else ``None``.
    :raises OfflineRebuildError: ``locked``, ``plan-blocked``, ``plan-stale``, ``release-unfinished``,
        ``health-check-invalid``, ``journal-write``, and what ``make_image`` raises: nothing has been touched then.
    """
    health.parse_checks(options.health_checks, project)
    swap.check_wishes(options.wishes, project)
    with locked(project, options) as lock:
        work = _Transaction(docker, project, options, on_event, lock)
        every = work.recover_all()
        if every or lock.note or lock.waited:
            tidy()
        recovered = [release for release in every if release.swapped]
        made = plan() if callable(plan) else plan
        if made.blocked:
            raise _blocked(made)
        if lock.waited:  # the same run, begun twice since its connection broke: what came of the first try
            recovered += [r for r in work.journal.all() if r.run_time == options.run_time and r.swapped]
            if recovered:
                return recovered[-1]
        if not made.changed:
            return recovered[-1] if recovered else None
        try:
            return work.carry_out(made, make_image)
        finally:
            tidy()


def recover(docker: Docker, project: Project, options: Options, on_event: OnEvent = unheard) -> List[Release]:
    """Finish what earlier runs left in the middle. Costs two file look-ups when there is nothing.

    :returns: the releases that were finished or rolled back, oldest first.
    """
    journal = Journal(options.state_dir, project.name)
    if not journal.unfinished() and not journal.damaged():
        return []
    with locked(project, options) as lock:
        recovered = _Transaction(docker, project, options, on_event, lock).recover_all()
        Making(options.state_dir).end(lambda: remove_left_behind(docker))
        return recovered


def locked(project: Project, options: Options) -> Lock:
    """:returns: the project's lock on this host, taken."""
    who = (options.operator, options.why, options.change_id)
    return Lock.acquire(options.state_dir, project.name, *who, run_time=options.run_time)


def _blocked(plan: Plan) -> OfflineRebuildError:
    reasons = "; ".join(f"{service.service}: {' '.join(service.reasons)}" for service in plan.blocked)
    return OfflineRebuildError("plan-blocked", f"nothing was touched, since the plan is blocked: {reasons}")


class _Transaction:
    """One locked run on one project."""

    def __init__(self, docker: Docker, project: Project, options: Options, on_event: OnEvent, lock: Lock) -> None:
        self.docker = docker
        self.given = self.project = project
        self.options = options
        self.on_event = on_event
        self.lock = lock
        secrets = sorted({*secrets_of(project.raw), *options.secrets}, key=len, reverse=True)  # one may hold another
        self.journal = Journal(options.state_dir, project.name, secrets)
        self.checks = health.parse_checks(options.health_checks, project)
        self.before: States = {}
        self.after: States = {}
        self.up_ok = True
        self.touched = False
        self.interrupted = False
        self.unwritten: Optional[OfflineRebuildError] = None
        docker.guard = lock.guard
        self.to_swap: List[str] = []
        self.forced: Set[str] = set()
        self.pregated = False
        if lock.note:
            self._say("lock", lock.note)

    # -- the way forward

    def carry_out(self, plan: Plan, make_image: MakeImage) -> Release:
        release = self.journal.begin(
            self.options.run_time, self.options.change_id, self.options.operator, self.project.src
        )
        release.plan = plan.to_dict()
        release.rollback_to = self.options.rollback_to
        release.services = {s.service: ServiceRecord(s.image, s.action, s.way) for s in plan.services if s.changed}
        self.touched = self.interrupted = False
        self.journal.reserve()
        self._state(release, "making", f"making the images of {', '.join(release.services)}")
        began = time.monotonic()
        try:
            for service in plan.services:
                if service.action == "rebuild" or service.way == "rollback":
                    making = time.monotonic()
                    release.services[service.service].after = make_image(service)
                    _took(release, f"make {service.service}", making)
            _took(release, "making", began)
            self._prepare(release, plan)
            tried = self._pregate(release)
            if release.rollback_to and not tried:
                self.journal.write_rendered(release, compose.dump(self.project.raw))
        except BaseException as error:
            if isinstance(error, BuildFailed):
                self._keep_log(release, error)
            release.note = f"nothing was touched: {error}"
            with contextlib.suppress(OfflineRebuildError):  # the first error is the one to be read
                self._finish(release, "failed")
            raise
        if tried:
            release.note = tried
            return self._finish(release, "failed")
        return self._forward(release)

    def _keep_log(self, release: Release, error: BuildFailed) -> None:
        """All that the build said stays with the release, and the error tells where."""
        with contextlib.suppress(OfflineRebuildError):  # a full disk: the error itself has the last lines
            path = self.journal.write_log(release, str(error.about["service"]), error.log)
            error.about["log"] = path
            error.remedy += f"; the whole log: {path}; what ran before it can be entered: playbooks/debug.yml"
        release.evidence.append(error.about)

    def _prepare(self, release: Release, plan: Plan) -> None:
        """Fill in what runs now and which services are swapped. Nothing has been touched yet.

        :raises OfflineRebuildError: ``plan-stale``: a name stands for another image than the plan was made from.
        """
        names = {s.image: s.image_before for s in plan.services if s.changed}
        made = {record.after for record in release.services.values() if record.after}
        with self.docker.popen("image", "inspect", *names, *made, stderr=subprocess.DEVNULL) as inspecting:
            states = compose.containers(self.docker, self.project)
            images = json.loads(inspecting.communicate()[0] or b"[]")
        tags, there = _names_and_ids(images, names)
        volumes = {str(i["Id"]): tuple((i.get("Config") or {}).get("Volumes") or ()) for i in images}
        running_ids = {s.image_id for name in release.services for s in states.get(name, [])}
        there |= self._images(running_ids - there)
        for image, before in names.items():
            if tags.get(image, "") != before:
                raise OfflineRebuildError(
                    "plan-stale", f"{image} has changed since the plan was made; nothing was touched", "run again"
                )
        moved = {record.image for record in release.services.values() if record.after}
        for service in self.project.services:  # those that use a rebuilt image without building it
            if service.image in moved and service.name not in release.services and states[service.name]:
                record = next(r for r in release.services.values() if r.image == service.image and r.after)
                release.services[service.name] = ServiceRecord(service.image, "restart", "", after=record.after)
        for name, record in release.services.items():
            record.tag_before = tags.get(record.image, "")
            known = [state for state in states.get(name, []) if state.image_id in there]
            running = [state for state in known if state.state in ("running", "restarting", "paused")]
            newest = max(running or known, key=lambda state: state.created, default=None)
            record.before = newest.image_id if newest else record.tag_before
            record.imported = self._is_imported(record.before)
        _name_kept(release)
        for name, record in release.services.items():
            declared = volumes.get(record.after or record.tag_before, ())
            service = self.project.service(name)
            manner = swap.judge(self.project, service, states, declared, self.options.wishes, set(release.services))
            record.swap, record.pregate = manner.swap, manner.pregate
        self.before = states
        self.to_swap = self._swap_set(list(release.services), states)

    def _pregate(self, release: Release) -> str:
        """Try the new images beside the running containers.

        :returns: why one of them did not get healthy there; ``""`` when all did. Nothing has been swapped then.
        """
        names = [name for name, record in release.services.items() if record.pregate]
        absent = pregate.missing(self.docker, self.project, names) if names else {}
        for name, what in absent.items():
            release.services[name].pregate = False
            self._say("no-pregate", f"{name}: {what} does not exist yet", release.id)
        names = [name for name in names if name not in absent]
        if not names:
            return ""
        self._state(release, "pregating", f"trying {', '.join(names)} beside the old containers")
        began = time.monotonic()
        images = {name: release.services[name].after or release.services[name].tag_before for name in names}
        tried = {name: pregate.image_name(self.project, image) for name, image in images.items()}
        self.pregated = True
        try:
            result, said = self._try_beside({tried[name]: images[name] for name in names}, tried)
            if not result.ok:
                release.evidence += self._pregate_evidence(result, names, said)
        except BaseException:
            pregate.remove(self.docker, self.project)
            raise
        _took(release, "pregate", began)
        if result.ok:  # its containers go at the end: to end them now would take time from the swap
            return ""
        return f"the new image did not get healthy beside the old container, nothing was swapped: {result.reason}"

    def _pregate_evidence(self, result: health.GateResult, names: Sequence[str], said: str) -> List[Dict[str, Any]]:
        bad = [name for name, found in result.services.items() if found.verdict != "ok"] or names
        services = {pregate.container_name(self.project, name): name for name in bad}
        states = [replace(s, service=services[s.name]) for s in compose.inspect_containers(self.docker, list(services))]
        found = [*health.evidence(self.docker, states), {"compose": said.splitlines()}]
        return [{"phase": "pregate", **entry} for entry in found]

    def _try_beside(self, tags: Mapping[str, str], images: Mapping[str, str]) -> Tuple[health.GateResult, str]:
        path = self.journal.write_pregate(compose.dump(pregate.model(self.project, images)))
        self._tag(tags)
        name = pregate.project_name(self.project)
        argv = ("compose", "-p", name, *self.project.head[3:], "--project-directory", self.project.src, "-f", path)
        beside = Project(name, self.project.src, argv, (path,), ())
        only = {service: [pregate.container_name(self.project, service)] for service in images}
        checks = [check for check in self.checks if check.inside and check.service in images]
        with health.Events(self.docker, name) as events:
            rc, said = self._compose(beside, "up", "-d", "--no-build", "--pull", "never")
            deadline = time.monotonic() + (self.options.gate_timeout if rc == 0 else 0.0)
            stable = self.options.stable
            result = health.gate(
                self.docker, self.project, list(images), checks, deadline, stable, events=events, only=only
            )
        if rc != 0:
            result.ok = False
            result.reason = f"`docker compose up` ended with {rc}: {said}"
        return result, said

    def _forget_pregate(self) -> None:
        """Remove the names and the compose file of a pre-gate. The names go last: one may be an image's only one."""
        pregate.forget_images(self.docker, self.project)
        self.journal.remove_pregate()

    def _is_imported(self, image_id: str) -> bool:
        """Whether no release made the image, as far as the journal goes back (records of it are carried on)."""
        for release in reversed(self.journal.all()):
            for record in release.services.values():
                if record.after == image_id:
                    return False
                if record.before == image_id:
                    return record.imported
        return bool(image_id)

    def _swap_set(self, names: List[str], states: States) -> List[str]:
        """What ``up`` is told: what changed, dependencies that do not run, and what compose restarts along."""
        jobs = set(compose.one_shots(self.project))
        wanted = set(names)
        for name in self.project.dependencies(names):
            service = self.project.service(name)
            found = states.get(name, [])
            runs = len([s for s in found if s.state == "running"]) >= service.replicas
            done = name in jobs and any(s.state == "exited" and s.exit_code == 0 for s in found)
            if not runs and not done:
                wanted.add(name)
        wanted.update(n for n in self.project.restarted_with(wanted) if states.get(n))
        return [service.name for service in self.project.services if service.name in wanted]

    def _forward(self, release: Release) -> Release:
        release.swapped = self.to_swap
        self._state(release, "swapping", f"swapping {', '.join(release.swapped)}")
        began = time.monotonic()
        try:
            kept = {record.kept_as: record.before for record in release.services.values() if record.kept_as}
            self._tag({**kept, **{r.image: r.after for r in release.services.values() if r.after}})
        except OfflineRebuildError as error:
            return self._back(release, str(error))
        result = self._up_and_gate(release, (), began)
        release.gate = result.to_dict()
        if result.ok:
            try:
                self.journal.write_rendered(release, compose.dump(self.project.raw))
                self.journal.write_checks(release, self.options.health_checks)
            except OfflineRebuildError as error:
                self.unwritten = error
            return self._finish(release, "done")
        return self._back(release, result.reason)

    # -- the way back

    def _back(self, release: Release, reason: str) -> Release:
        """Names back to what ran before, ``up``, the gate that it had passed. A failure is not rolled back again."""
        release.note = reason
        names = [n for n in release.swapped if n not in release.services or release.services[n].before]
        if not any(name in release.services for name in names):
            release.note = f"{reason}; there is no earlier version to go back to, what was started is left as it is"
            return self._finish(release, "failed")
        self._state(release, "rolling_back", f"rolling back {', '.join(names)}: {reason}")
        began = time.monotonic()
        try:
            self._tag({r.image: r.before for r in release.services.values() if r.kept_as})
            files = self._earlier_files(names)
            if files is None and not any(r.kept_as for r in release.services.values()):
                failure = "no record is kept of the earlier compose configuration"
            else:
                result = self._up_and_gate(release, names, began, files or (), self._former_checks())
                release.rollback_gate = result.to_dict()
                failure = "" if result.ok else result.reason
        except OfflineRebuildError as error:
            failure = str(error)
        if not failure:
            return self._finish(release, "rolled_back")
        release.note = f"{reason}; the rollback failed too: {failure}; now: {self._what_runs(names)}"
        return self._finish(release, "failed")

    def _former_checks(self) -> List[health.Check]:
        """The checks that what ran before had passed: one of the present checks may name the new version.

        Without a record of them, as on a first run, the present ones; those that concern a service that is no longer
        there are left out.
        """
        found: List[health.Check] = []
        raw = self.journal.checks(self.options.health_checks)
        for entry in self.options.health_checks if raw is None else raw:
            with contextlib.suppress(OfflineRebuildError):
                found += health.parse_checks([entry], self.project)
        return found

    def _earlier_files(self, names: Sequence[str]) -> Optional[Tuple[str, ...]]:
        """The newest kept rendered project whose hashes are those that the replaced containers had.

        :returns: its path; nothing when the compose files still give those hashes; ``None`` when no record does.
        """
        wanted = _hashes(self.before, names)
        made = _hashes(self.after, names)
        if not wanted or (self.up_ok and made and _agrees(made, wanted)):
            return ()
        if _agrees(compose.comparable_hashes(self.docker, self.project, self.before), wanted):
            return ()
        for path in self.journal.rendered():
            earlier = compose.read_dumped(self.project, path)
            if not set(names) <= {service.name for service in earlier.services}:
                continue
            try:
                if _agrees(compose.comparable_hashes(self.docker, earlier, self.before), wanted):
                    return (path,)
            except OfflineRebuildError:
                continue
        return None

    def _what_runs(self, names: Iterable[str]) -> str:
        try:
            states = compose.containers(self.docker, self.project)
        except OfflineRebuildError as error:
            return str(error)
        return "; ".join(
            f"{name}: "
            + (
                ", ".join(f"{s.name} {s.state} {s.health} image {s.image_id[7:19]}" for s in states[name])
                or "no container"
            )
            for name in names
        )

    # -- what both ways share

    def _up_and_gate(
        self,
        release: Release,
        only: Sequence[str],
        began: float,
        files: Sequence[str] = (),
        checks: Optional[Sequence[health.Check]] = None,
    ) -> health.GateResult:
        names = list(only) or release.swapped
        project = compose.read_dumped(self.project, files[0]) if files else self.project
        restarts = {state.id: state.restart_count for states in self.before.values() for state in states}
        back = "rollback " if release.state == "rolling_back" else ""
        with health.Events(self.docker, self.project.name, 2 * (self.options.gate_timeout + _UP_EXTRA)) as events:
            swap_all = self._up if back else self._swap
            rc, said = swap_all(release, project, names)
            if rc != 0 and self._engine_was_away():
                rc, said = self._up(release, project, names)
                self.interrupted = True
            if self.interrupted:
                self._mend_names(names)
            _took(release, back + "swap", began)
            if release.state == "swapping":
                self._state(release, "gating", f"waiting for {', '.join(names)} to be healthy")
            gated = time.monotonic()
            deadline = gated + (self.options.gate_timeout if rc == 0 else 0.0)
            result = health.gate(
                self.docker,
                self.project,
                names,
                self.checks if checks is None else checks,
                deadline,
                self.options.stable,
                restarts,
                events,
                names=self._container_names(names),
            )
            _took(release, back + "gate", gated)
        if rc != 0:
            result.ok = self.up_ok = False
            up = f"`docker compose up` ended with {rc}: {said}; {result.reason}".rstrip("; ") + self._held_port(said)
            result.reason = said if rc == _NOT_ROLLED else up
        if not result.ok:
            release.evidence += self._evidence(result, said, back)
        return result

    def _swap(self, release: Release, project: Project, names: Sequence[str]) -> Tuple[int, str]:
        """Each service in its manner, in dependency order; those that are recreated next to one another by one ``up``.

        :returns: as :meth:`_up`; the code is :data:`_NOT_ROLLED` where the old containers of a service serve on.
        """
        together: List[str] = []
        for name in names:
            if name not in release.services or release.services[name].swap != "rolling":
                together.append(name)
                continue
            rc, said = self._up(release, project, together) if together else (0, "")
            together = []
            if rc != 0:
                return rc, said
            why_not = self._roll(release, name)
            if why_not:
                return _NOT_ROLLED, why_not
        return self._up(release, project, together) if together else (0, "")

    def _roll(self, release: Release, name: str) -> str:
        """Swap one service as rolling.py tells.

        :returns: why it could not be done; the new containers are gone then, and the old ones serve as before.
        """
        began = time.monotonic()
        service = self.project.service(name)
        old = self.before[name]
        new: List[ContainerState] = []
        try:
            more = ("--scale", f"{name}={len(old) + service.replicas}")
            args = ("up", "--no-start", "--no-recreate", "--no-build", "--pull", "never", *more, *self._alone(), name)
            rc, said = self._compose(self.project, *args)
            known = {state.id for state in old}
            found = compose.containers(self.docker, self.project)[name]
            new = [state for state in found if state.id not in known and state.state == "created"]
            if rc != 0 or len(new) != service.replicas:
                why_not = f"{name}: the new containers were not created: {said}"
            else:
                why_not = self._start_beside(release, name, new)
        except OfflineRebuildError as error:
            why_not = str(error)
        if why_not:
            self.docker.run("rm", "-f", *(state.id for state in new), check=False, guarded=True)
            return why_not
        for state in old:
            with contextlib.suppress(OfflineRebuildError):  # it goes in any case
                rolling.leave(self.docker, state, rolling.names_of(state))
        rolling.drain([int((state.raw.get("State") or {}).get("Pid") or 0) for state in old])
        self.docker.run("stop", *(state.id for state in old), check=False, guarded=True)
        self.docker.run("rm", "-f", *(state.id for state in old), check=False, guarded=True)
        _took(release, f"roll {name}", began)
        return ""

    def _start_beside(self, release: Release, name: str, new: Sequence[ContainerState]) -> str:
        """Start a service's new containers out of its names, and take them in when they are healthy.

        :returns: why they did not get healthy.
        """
        names = {state.id: rolling.names_of(state) for state in new}
        for state in new:
            rolling.leave(self.docker, state, names[state.id])
        self.docker.run("start", *names, guarded=True)
        why_not = self._gate_beside(release, name, new)
        if why_not:
            return why_not
        before = rolling.addresses(self.docker, list(names))
        for state in new:
            rolling.enter(self.docker, state, names[state.id])
        moved = [i for i, found in rolling.addresses(self.docker, list(names)).items() if found != before.get(i)]
        if not moved:
            return ""
        self.docker.run("restart", *moved, guarded=True)  # what it had connected to would hang
        return self._gate_beside(release, name, new)

    def _gate_beside(self, release: Release, name: str, new: Sequence[ContainerState]) -> str:
        checks = [check for check in self.checks if check.inside and check.service == name]
        deadline = time.monotonic() + self.options.gate_timeout
        only = {name: [state.id for state in new]}
        result = health.gate(self.docker, self.project, [name], checks, deadline, self.options.stable, only=only)
        if not result.ok:
            states = compose.inspect_containers(self.docker, only[name])
            release.evidence += [{"phase": "swap", **entry} for entry in health.evidence(self.docker, states)]
        return "" if result.ok else f"{result.reason}; the old containers serve on"

    def _alone(self) -> List[str]:
        compose_version = parse_version(self.docker.info().plugins.get("compose", ""))
        return ["--no-deps"] if compose_version >= _NO_DEPS_SINCE else []

    def _up(self, release: Release, project: Project, names: Sequence[str]) -> Tuple[int, str]:
        """``docker compose up`` of the named services, with nothing else where compose can do that.

        :returns: its return code and the end of what it said.
        """
        began = time.monotonic()
        args = ("up", "-d", "--no-build", "--pull", "never", *self._alone())
        forced = [name for name in names if name in self.forced]
        ended = self._compose(project, *args, "--force-recreate", *forced) if forced else (0, "")
        self.forced.difference_update(forced)
        if ended[0] == 0:
            ended = self._compose(project, *args, *names)
        _took(release, "rollback up" if release.state == "rolling_back" else "up", began)
        return ended

    def _compose(self, project: Project, *args: str) -> Tuple[int, str]:
        """A compose command that changes containers; the next run waits for it when this one is killed.

        :returns: its return code and the end of what it said.
        """
        with os.fdopen(os.memfd_create("compose-up"), "w+b") as log:  # no file to be left, no disk to be full
            process = subprocess.Popen(
                (self.docker.binary, *project.command(*args)),
                stdin=self.lock.guard,
                stdout=log,
                stderr=log,
                env=self.docker.env,
                cwd=project.src,
                start_new_session=True,
            )
            try:
                rc = process.wait(self.options.gate_timeout + _UP_EXTRA)
            except subprocess.TimeoutExpired:
                rc = _end(process)
            log.seek(0)
            text = "\n".join(log.read().decode("utf-8", "replace").splitlines()[-10:])
        return rc, text

    def _mend_names(self, names: Iterable[str]) -> None:
        """``<old id>_<name>`` is what compose calls a new container until the old one is gone (pkg/compose,
        convergence.go: recreateContainer). Where it was cut off before it gave the name back, it never does."""
        states = compose.containers(self.docker, self.project)
        for state in (state for name in names for state in states.get(name, [])):
            given = re.fullmatch(r"[0-9a-f]{12}_(.+)", state.name)
            if given:
                self.docker.run("rename", state.id, given.group(1), check=False, guarded=True)

    def _container_names(self, names: Iterable[str]) -> List[str]:
        """The names that the services' containers have after ``up``: as before, or as compose would form them."""
        found: List[str] = []
        for name in names:
            service = self.project.service(name)
            old = [state.name for state in self.before.get(name, [])]
            made = [f"{self.project.name}-{name}-{number}" for number in range(1, service.replicas + 1)]
            if len(old) == service.replicas:
                found += old
            else:
                found += [service.container_name] if service.container_name else made
        return found

    def _engine_was_away(self) -> bool:
        """Wait for an engine that does not answer. :returns: whether it was away and is back."""
        end = time.monotonic() + self.options.gate_timeout
        away = False
        while self.docker.run("version", "--format", "{{.Server.Version}}", check=False).rc != 0:
            away = True
            if time.monotonic() > end:
                return False
            time.sleep(0.2)
        return away

    def _held_port(self, said: str) -> str:
        """An engine that was killed while it gave a port to a container may keep it when it is back, for a container
        that is gone (seen with 26.1): nothing but its restart frees the port.

        :returns: what to do about it, ``""`` where that is not so.
        """
        found = _HELD.search(said)
        if found is None or self.docker.run("ps", "-q", "--filter", f"publish={found.group(1)}", check=False).text:
            return ""
        return (
            f"; the engine holds port {found.group(1)} for a container that is gone: restart the engine, then run again"
        )

    def _evidence(self, result: health.GateResult, said: str, back: str) -> List[Dict[str, Any]]:
        bad = [name for name, found in result.services.items() if found.verdict != "ok"] or list(result.services)
        states = self.after = compose.containers(self.docker, self.project)
        found = health.evidence(self.docker, [state for name in bad for state in states.get(name, [])])
        phase = "rollback" if back else "swap"
        return [{"phase": phase, **entry} for entry in found] + [{"phase": phase, "compose": said.splitlines()}]

    def _tag(self, names: Mapping[str, str]) -> None:
        """``docker tag ID NAME`` for all of them; once more when the engine was away meanwhile.

        :raises OfflineRebuildError: ``tag-failed``.
        """
        error = self._tag_once(names)
        if error is not None and self._engine_was_away():
            error = self._tag_once(names)
        if error is not None:
            raise error

    def _tag_once(self, names: Mapping[str, str]) -> Optional[OfflineRebuildError]:
        """All at the same time. :returns: what went wrong with the first that failed."""
        work = [
            (name, self.docker.popen("tag", image_id, name, stdout=subprocess.DEVNULL, guarded=True))
            for name, image_id in names.items()
        ]
        ended = [(name, process.communicate()[1], process.returncode) for name, process in work]
        for name, said, rc in ended:
            if rc != 0:
                return OfflineRebuildError(
                    "tag-failed",
                    f"{name} cannot be put on {names[name]}: {said.decode('utf-8', 'replace').strip()}",
                    "see `docker images` and the disk's free space",
                )
        return None

    def _images(self, refs: Iterable[str]) -> Set[str]:
        """:returns: the ids of those of the images that exist."""
        return {image["Id"] for image in self.docker.inspect("image", sorted(set(refs)))}

    # -- recovery

    def recover_all(self) -> List[Release]:
        """Finish or roll back what earlier runs left, oldest first; put aside what cannot be read."""
        self.journal.sweep()
        for release_id in self.journal.damaged():
            path = self.journal.put_aside(release_id)
            self._say("journal-damaged", f"the record of release {release_id} could not be read; it is now {path}")
        unfinished = self.journal.unfinished()
        if unfinished and not self.options.recover:
            raise OfflineRebuildError(
                "release-unfinished",
                f"release {unfinished[0].id} was cut off in state {unfinished[0].state}",
                "run without recover: false, which finishes it or rolls it back",
            )
        if unfinished or self.journal.has_pregate():  # the file need not have outlived a power cut
            pregate.remove(self.docker, self.project)
            self._forget_pregate()
        recovered = []
        for release in unfinished:
            recovered.append(self._recover(release))
            self.project = self.given
        return recovered

    def _recover(self, release: Release) -> Release:
        self.touched = self.interrupted = release.state not in ("planning", "making", "pregating")
        self._say("recover", f"release {release.id} was cut off in state {release.state}", release.id)
        if release.rollback_to and self.journal.rendered_of(release.id):
            self.project = compose.read_dumped(self.given, self.journal.rendered_of(release.id))
        if release.state in ("planning", "making", "pregating"):
            release.note = "cut off before anything was touched"
            return self._finish(release, "rolled_back")
        release.swapped = self.to_swap = [s.name for s in self.project.services if s.name in release.swapped]
        release.services = {n: r for n, r in release.services.items() if n in release.swapped}
        self.before = compose.containers(self.docker, self.project)
        self._forget_rolling(release)
        after = {record.after for record in release.services.values() if record.after}
        there = self._images(after)
        if release.state == "rolling_back":
            return self._back(release, release.note or "a rollback was cut off")
        if after - there:
            return self._back(release, f"its image {min(after - there)} is gone")
        return self._forward(release)

    def _forget_rolling(self, release: Release) -> None:
        """A rolling swap that was cut off is not gone on with: compose recreates the service."""
        for name, record in release.services.items():
            if record.swap == "rolling":
                wanted = record.before if release.state == "rolling_back" else record.after or record.tag_before
                if not rolling.is_whole(self.project.service(name), self.before[name], wanted):
                    self.forced.add(name)
                record.swap = "recreate"

    # -- the record

    def _state(self, release: Release, state: str, step: str) -> None:
        """Write the state before it is acted on.

        Once something was touched, an error of the disk does not stop the way to a version that serves: the journal
        then holds an earlier state, from which the next run does the same again. It is raised when the release ended.
        """
        release.state, release.step = state, step
        try:
            self.journal.write(release)
        except OfflineRebuildError as error:
            if not self.touched:
                raise
            self.unwritten = error
        self.touched = self.touched or state == "swapping"
        self._say(state, step or release.note, release.id)

    def _finish(self, release: Release, state: str) -> Release:
        if self.pregated:
            self.pregated = False
            with contextlib.suppress(OfflineRebuildError):  # the next run removes what is left
                pregate.remove(self.docker, self.project, graceful=True)
                self._forget_pregate()
        release.finished = round(time.time(), 3)
        release.timings["total"] = round(release.finished - release.started, 3)
        self._state(release, state, "")
        self.journal.give_back()
        if self.unwritten is not None:
            self.unwritten.message = f"release {release.id} has ended as {state}: {self.unwritten.message}"
            raise self.unwritten
        if state == "done":
            try:
                self._retire()
            except OfflineRebuildError as error:  # the next release takes them along
                self._say("not-retired", str(error), release.id)
        return release

    def _retire(self) -> None:
        """Remove the releases beyond ``keep_releases``; nothing is asked of the engine when there is none."""
        releases = self.journal.all()
        if not retention(releases, self.options.keep_releases, set()).releases:
            return
        listed = self.docker.run("ps", "-aq", "--no-trunc").text.split()
        in_use = {str(container.get("Image")) for container in self.docker.inspect("container", listed)}
        in_use |= self._images(service.image for service in self.project.services)
        old = retention(releases, self.options.keep_releases, in_use)
        if old.refs:
            self.docker.run("image", "rm", *old.refs, check=False)
        nameless = [i["Id"] for i in self.docker.inspect("image", old.image_ids) if not i.get("RepoTags")]
        if nameless:
            self.docker.run("image", "rm", *nameless, check=False)
        for release_id in old.releases:
            self.journal.remove(release_id)
            self._say("retired", f"release {release_id} and its images were removed", release_id)

    def _say(self, event: str, text: str, release: str = "") -> None:
        said = {"text": text, "operator": self.options.operator, "change_id": self.options.change_id}
        try:
            self.journal.audit(event, release, **said)
        except OfflineRebuildError as error:
            if not self.touched:
                raise
            self.unwritten = error
        self.on_event(event, mask(text, self.journal.secrets))


def _end(process: subprocess.Popen[bytes]) -> int:
    """End a process and its children, which are a group of their own. :returns: a code that is not 0."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            return process.wait(15.0) or 1
        except (subprocess.TimeoutExpired, ProcessLookupError):
            continue
    return process.wait() or 1


def _names_and_ids(images: Iterable[Mapping[str, Any]], wanted: Iterable[str]) -> Tuple[Dict[str, str], Set[str]]:
    """:returns: name to image id for the wanted names, and the ids of all the images."""
    tags = {normal_ref(tag): str(image["Id"]) for image in images for tag in image.get("RepoTags") or ()}
    return {name: tags[name] for name in wanted if name in tags}, {str(image["Id"]) for image in images}


def _name_kept(release: Release) -> None:
    """``<repository>:offline-rebuild-<release>`` for each service whose image changes; with the service's name where
    two would collide."""
    taken: Dict[str, str] = {}
    for name, record in release.services.items():
        if not record.before or record.before == (record.after or record.tag_before):
            continue
        folder, _, last = record.image.split("@")[0].rpartition("/")
        repository = f"{folder}/{last.split(':')[0]}" if folder else last.split(":")[0]
        kept = f"{repository}:offline-rebuild-{release.id}"
        if taken.setdefault(kept, record.before) != record.before:
            kept += f"-{name}"
        record.kept_as = kept


def _hashes(states: States, names: Sequence[str]) -> Dict[str, str]:
    return {n: found[-1].config_hash for n, found in states.items() if n in names and found and found[-1].config_hash}


def _agrees(hashes: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """A service whose hash cannot be told (see compose.comparable_hashes) does not speak against it."""
    return all(hashes.get(name, value) == value for name, value in wanted.items())


def _took(release: Release, phase: str, began: float) -> None:
    release.timings[phase] = round(time.monotonic() - began, 3)

"""The gate: what a release must pass, and a rollback too.

A container with a healthcheck passes when it is healthy. While the engine still waits for the first interval, the gate
runs the container's own test itself (``docker exec``, the same command, user and environment): the engine's rule is
that one good probe ends ``starting`` (moby, daemon/health.go), so the verdict is the engine's own, only earlier. Every
container, with a healthcheck or without, has to have run for ``stable`` seconds without a restart, too: one that
answers and dies has not passed. The operator's checks are tried at the same time.

``docker events`` wakes the loop, so nothing is polled more often than once a second while nothing happens.

An operator's check is a mapping with exactly one of ``url``, ``tcp`` and ``command``:

======== ==============================================================================================
url      fetched with GET, redirects followed; no proxy is used
status   int or list of int; by default 200 to 299
body     regular expression that must be found in the answer (for ``command``: in its output)
header   mapping of header name to regular expression
headers  mapping of headers to send (never written anywhere)
validate_certs  default true
tcp      ``host:port``, which must accept a connection
command  list, or a string split as a shell would (no shell runs); must end with 0
inside   true: from inside the service's container, by its curl, wget or python; the default is from the host
service  the service that it concerns; needed for ``inside``
timeout  seconds per try, default 5
name     for reports
======== ==============================================================================================
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .cli import Docker
from .compose import LABEL_PROJECT, ContainerState, Project, Service, containers, inspect_containers, one_shots
from .errors import OfflineRebuildError

__all__ = ["Check", "CheckResult", "Events", "GateResult", "ServiceHealth", "evidence", "gate", "parse_checks"]

#: Restarts within one gate after which a container counts as failed (the engine waits 0.1, 0.2, 0.4 s in between).
MAX_RESTARTS = 3
LOG_LINES = 100
_TEXT = 4000


@dataclass(frozen=True)
class Check:
    """An operator's check; see this file's head. ``kind`` is ``url``, ``tcp`` or ``command``."""

    name: str
    kind: str
    target: str
    argv: Tuple[str, ...] = ()
    service: str = ""
    inside: bool = False
    status: Tuple[int, ...] = ()
    body: str = ""
    header: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 5.0
    validate_certs: bool = True


@dataclass
class ServiceHealth:
    """What the gate found of one service: ``verdict`` is ``ok``, ``pending`` (at the deadline) or ``failed``."""

    verdict: str
    detail: str
    containers: List[str] = field(default_factory=list)


@dataclass
class CheckResult:
    """What an operator's check found last."""

    name: str
    ok: bool = False
    detail: str = "not tried"
    tries: int = 0


@dataclass
class GateResult:
    """The gate's verdict. ``reason`` says in one sentence why it failed."""

    ok: bool
    reason: str
    seconds: float
    services: Dict[str, ServiceHealth]
    checks: List[CheckResult]

    def to_dict(self) -> Dict[str, Any]:
        """:returns: JSON-ready mapping with the same keys."""
        return asdict(self)


class Events:
    """Wakes a waiting loop when something happens to a project's containers.

    Start it before the containers are touched. Where the stream ends (engine restart), waiting is plain sleeping.

    :param seconds: after which the stream ends by itself, for a run that was killed and cannot end it.
    """

    _ACTIONS = ("start", "die", "destroy", "health_status", "pause", "oom")

    def __init__(self, docker: Docker, project: str, seconds: float = 3600.0) -> None:
        filters = [f"--filter=event={action}" for action in self._ACTIONS]
        self._process: Optional[subprocess.Popen[bytes]] = docker.popen(
            "events",
            "--filter=type=container",
            f"--filter=label={LABEL_PROJECT}={project}",
            *filters,
            "--format",
            "{{.Action}}",
            f"--until={int(time.time() + seconds) + 1}",
            stderr=subprocess.DEVNULL,
        )

    def wait(self, seconds: float) -> None:
        """Return when an event came or the time is over."""
        stream = self._process.stdout if self._process else None
        if stream is None:
            time.sleep(seconds)
            return
        end = time.monotonic() + seconds
        ready, _, _ = select.select([stream], [], [], seconds)
        if ready and not os.read(stream.fileno(), 65536):
            self.close()
            time.sleep(max(0.0, min(0.2, end - time.monotonic())))

    def close(self) -> None:
        """End the stream; a second call does nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()

    def __enter__(self) -> Events:  # noqa: PYI034 (typing.Self came with Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse_checks(raw: Sequence[Mapping[str, Any]], project: Project) -> List[Check]:
    """Check the operator's checks.

    :raises OfflineRebuildError: ``health-check-invalid``, naming the check and what is wrong with it.
    """
    return [_parse(index, dict(entry), project) for index, entry in enumerate(raw, 1)]


def gate(
    docker: Docker,
    project: Project,
    services: Sequence[str],
    checks: Sequence[Check],
    deadline: float,
    stable: float = 1.0,
    restarts: Optional[Mapping[str, int]] = None,
    events: Optional[Events] = None,
    probe: bool = True,
    names: Sequence[str] = (),
    only: Optional[Mapping[str, Sequence[str]]] = None,
) -> GateResult:
    """Wait until the services are healthy and the checks pass, one has failed for good, or the deadline is over.

    :param deadline: as :func:`time.monotonic` counts.
    :param stable: seconds that a container must have run without a restart.
    :param restarts: container id to its restart count before the swap; a container that is not in it starts from 0.
    :param probe: run a container's own healthcheck while the engine still waits for its first interval.
    :param names: names that the containers probably have; spares the call that lists them.
    :param only: service to the names or ids of the containers that are looked at in place of all that it has.
    """
    loop = _Gate(docker, project, services, checks, stable, dict(restarts or {}), probe)
    loop.ids = list(names)
    loop.only = {ref: name for name, refs in (only or {}).items() for ref in refs}
    own = Events(docker, project.name) if events is None else None
    try:
        return loop.run(deadline, events or own)  # type: ignore[arg-type]
    finally:
        if own is not None:
            own.close()


def evidence(docker: Docker, states: Sequence[ContainerState], lines: int = LOG_LINES) -> List[Dict[str, Any]]:
    """What is kept of containers before they are removed: last log lines, health log, exit state.

    :returns: one JSON-ready mapping per container; environment and command are left out.
    """
    return [_container_evidence(docker, state, lines) for state in states]


class _Gate:
    """The gate's loop and what it remembers between two looks."""

    def __init__(
        self,
        docker: Docker,
        project: Project,
        services: Sequence[str],
        checks: Sequence[Check],
        stable: float,
        restarts: Dict[str, int],
        probe: bool,
    ) -> None:
        self.docker = docker
        self.project = project
        self.services = [project.service(name) for name in services]
        self.checks = list(checks)
        self.results = [CheckResult(check.name) for check in checks]
        self.stable = stable
        self.restarts = restarts
        self.probe = probe
        self.one_shots = set(one_shots(project))
        self.ids: List[str] = []
        self.only: Dict[str, str] = {}
        self.states: Dict[str, List[ContainerState]] = {}
        self.looked = (time.time(), time.monotonic())
        self.running_since: Dict[Tuple[str, str], float] = {}
        self.probed: Dict[Tuple[str, str], bool] = {}
        self.next_probe: Dict[str, Tuple[float, float]] = {}
        self.probe_output: Dict[str, str] = {}

    def run(self, deadline: float, events: Events) -> GateResult:
        begin = time.monotonic()
        pause = 0.1
        while True:
            healths = self._look_and_judge()
            tried = False
            failed = [name for name, health in healths.items() if health.verdict == "failed"]
            if not failed:
                tried = self._try_checks(deadline)
            ready = all(h.verdict == "ok" for h in healths.values()) and all(r.ok for r in self.results)
            over = time.monotonic() >= deadline
            if failed or over or (ready and not tried):
                return self._result(ready and not failed, healths, over, time.monotonic() - begin)
            if not (ready and tried):
                events.wait(max(0.0, min(self._next_look(pause), deadline - time.monotonic())))
                pause = min(1.0, pause * 1.5)

    def _look_and_judge(self) -> Dict[str, ServiceHealth]:
        try:
            self._look()
        except OfflineRebuildError as error:  # an engine that restarts is waited for, to the deadline
            self.ids = []
            return {service.name: ServiceHealth("pending", str(error)) for service in self.services}
        return {service.name: self._judge(service) for service in self.services}

    def _look(self) -> None:
        """One inspect of the known containers; they are listed again when one of them is gone."""
        self.looked = (time.time(), time.monotonic())  # before the engine answers: a container may die meanwhile
        wanted = {service.name for service in self.services}
        if self.only:
            self.states = self._only_these()
            return
        states = inspect_containers(self.docker, self.ids) if self.ids else []
        if not states or len(states) != len(self.ids):
            found = containers(self.docker, self.project)
            states = [state for name in wanted for state in found.get(name, [])]
            self.ids = [state.id for state in states]
        self.states = {name: [s for s in states if s.service == name] for name in wanted}
        if any(len(self.states[s.name]) < s.replicas for s in self.services):
            self.ids = []

    def _only_these(self) -> Dict[str, List[ContainerState]]:
        """The containers of :attr:`only`, which may be of another project: each counts as one of its service's."""
        found: Dict[str, List[ContainerState]] = {service.name: [] for service in self.services}
        for state in inspect_containers(self.docker, list(self.only)):
            name = self.only.get(state.id) or self.only.get(state.name)
            if name in found:
                policy = str(self.project.service(name).raw.get("restart") or "")
                found[name].append(replace(state, service=name, restart_policy=policy))
        return found

    def _judge(self, service: Service) -> ServiceHealth:
        states = self.states[service.name]
        names = [state.name for state in states]
        expected = list(self.only.values()).count(service.name) if self.only else service.replicas
        if len(states) < expected:
            return ServiceHealth("pending", f"{len(states)} of {expected} containers exist", names)
        found = [(*self._container(service, state), state.name) for state in states]
        for verdict in ("failed", "pending"):
            for seen, detail, name in found:
                if seen == verdict:
                    return ServiceHealth(verdict, f"{name}: {detail}", names)
        return ServiceHealth("ok", "; ".join(sorted({detail for _, detail, _ in found})), names)

    def _container(self, service: Service, state: ContainerState) -> Tuple[str, str]:
        restarts = state.restart_count - self.restarts.setdefault(state.id, 0)
        if state.state in ("exited", "dead"):
            if state.exit_code == 0 and self._is_job(service, state):
                return "ok", "completed"
            return "failed", f"exited with code {state.exit_code}"
        if restarts >= MAX_RESTARTS:
            return "failed", f"restarted {restarts} times, last exit code {state.exit_code}"
        if state.health == "unhealthy":
            return "failed", "the container reports unhealthy"
        if state.state == "paused":
            return "failed", "the container is paused"
        if state.state != "running":
            return "pending", f"the container is {state.state}"
        if service.name in self.one_shots:
            return "pending", "the job has not completed"
        stable = self._has_been_stable(state)
        found = stable
        if state.health == "healthy":
            found = "ok", "healthy"
        elif state.health == "starting":
            found = self._probe(state)
        return found if found[0] != "ok" else (stable if stable[0] != "ok" else found)

    def _is_job(self, service: Service, state: ContainerState) -> bool:
        serves = service.ports or state.health_test
        return service.name in self.one_shots or (not serves and state.restart_policy in ("", "no", "on-failure"))

    def _has_been_stable(self, state: ContainerState) -> Tuple[str, str]:
        """Time is counted from the container's own start (same host, same clock), or from when it was first seen."""
        wall, now = self.looked
        since = self.running_since.setdefault((state.id, state.started), now - _age(state.started, wall))
        if now - since >= self.stable:
            return "ok", f"running without a restart for {self.stable:g} s"
        return "pending", f"running for {now - since:.1f} of {self.stable:g} s"

    def _probe(self, state: ContainerState) -> Tuple[str, str]:
        key = (state.id, state.started)
        now = time.monotonic()
        when, pause = self.next_probe.get(state.id, (now, 0.1))
        if self.probe and not self.probed.get(key) and now >= when:
            self.probed[key], self.probe_output[state.id] = _own_test(self.docker, state)
            self.next_probe[state.id] = (time.monotonic() + pause, min(1.0, pause * 1.5))
        if self.probed.get(key):
            return "ok", "its own healthcheck passed"
        output = self.probe_output.get(state.id, "")
        return "pending", "health is starting" + (f"; its test says: {output}" if output else "")

    def _next_look(self, pause: float) -> float:
        """Seconds until the next look when no event comes: a probe or a stable time that falls due shortens it."""
        now = time.monotonic()
        due = [when for when, _ in self.next_probe.values()]
        due += [since + self.stable for since in self.running_since.values()]
        if not all(result.ok for result in self.results):
            due.append(now + min(pause, 0.25))
        coming = [moment - now for moment in due if moment > now]
        return max(0.01, min([1.0, *coming]))

    def _try_checks(self, deadline: float) -> bool:
        """Try what has not passed yet. :returns: whether anything was tried."""
        tried = False
        for check, result in zip(self.checks, self.results):
            left = deadline - time.monotonic()
            if result.ok or (left <= 0 and result.tries):
                continue
            tried = True
            result.tries += 1
            container = next((s.id for s in self.states.get(check.service, []) if s.state == "running"), "")
            timeout = min(check.timeout, max(left, 0.1))
            result.ok, result.detail = _try(self.docker, self.project, check, container, timeout)
        return tried

    def _result(self, ok: bool, healths: Dict[str, ServiceHealth], over: bool, seconds: float) -> GateResult:
        reason = ""
        if not ok:
            bad = [f"{n}: {h.detail}" for n, h in healths.items() if h.verdict == "failed"]
            bad = bad or [f"{n}: {h.detail}" for n, h in healths.items() if h.verdict != "ok"]
            bad += [f"check {r.name}: {r.detail}" for r in self.results if not r.ok and (over or not bad)]
            reason = "; ".join(bad) + (f" (deadline over after {seconds:.0f} s)" if over else "")
        return GateResult(ok, reason, round(seconds, 3), healths, self.results)


def _age(started: str, wall: float) -> float:
    """:returns: seconds from ``started`` (RFC 3339, UTC) to ``wall``, 0 when it lies in the future or is not a time."""
    import calendar

    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?Z$", started)
    if not match:
        return 0.0
    moment = calendar.timegm(time.strptime(match.group(1), "%Y-%m-%dT%H:%M:%S")) + float(match.group(2) or 0)
    return max(0.0, wall - moment)


def _own_test(docker: Docker, state: ContainerState) -> Tuple[bool, str]:
    """Run the container's healthcheck as the engine would (moby, daemon/health.go: cmdProbe)."""
    test = state.health_test
    if test[:1] == ("CMD-SHELL",):
        shell = tuple((state.raw.get("Config") or {}).get("Shell") or ("/bin/sh", "-c"))
        argv = (*shell, *test[1:2])
    elif test[:1] == ("CMD",):
        argv = test[1:]
    else:
        return False, ""
    nanoseconds = int(((state.raw.get("Config") or {}).get("Healthcheck") or {}).get("Timeout") or 0)
    try:
        result = docker.run("exec", state.id, *argv, check=False, timeout=nanoseconds / 1e9 or 30.0)
    except OfflineRebuildError:
        return False, "timeout"
    return result.rc == 0, _short(result.text + result.stderr, 300)


def _try(docker: Docker, project: Project, check: Check, container: str, timeout: float) -> Tuple[bool, str]:
    if check.inside and not container:
        return False, f"service {check.service} has no running container"
    if check.kind == "tcp":
        return _tcp(check, timeout)
    if check.kind == "command":
        return _command(docker, project, check, container, timeout)
    if check.inside:
        return _inside(docker, check, container, timeout)
    return _http(check, timeout)


def _tcp(check: Check, timeout: float) -> Tuple[bool, str]:
    import socket

    host, _, port = check.target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except OSError as error:
        return False, f"{check.target} does not accept a connection: {error}"
    return True, "accepts connections"


def _command(docker: Docker, project: Project, check: Check, container: str, timeout: float) -> Tuple[bool, str]:
    argv = [docker.binary, "exec", container, *check.argv] if check.inside else list(check.argv)
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            env=docker.env,
            cwd=project.src,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no end after {timeout:g} s"
    except OSError as error:
        return False, f"cannot be run: {error.strerror}"
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        return False, f"ended with {done.returncode}: {_short(output, 500)}"
    return _matches(check, 0, {}, output)


def _http(check: Check, timeout: float) -> Tuple[bool, str]:
    import http.client
    import urllib.error
    import urllib.request

    handlers: List[Any] = [urllib.request.ProxyHandler({})]
    if not check.validate_certs:
        import ssl

        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        handlers.append(urllib.request.HTTPSHandler(context=context))
    request = urllib.request.Request(check.target, headers=dict(check.headers))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as answer:
            return _matches(check, answer.status, dict(answer.headers.items()), _text(answer.read(1 << 20)))
    except urllib.error.HTTPError as error:
        with error:
            return _matches(check, error.code, dict(error.headers.items()), _text(error.read(1 << 20)))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return False, f"no answer: {getattr(error, 'reason', None) or error}"


#: Clients to be tried inside a container: each writes the answer's head to stderr and its body to stdout.
_PYTHON = (
    "import sys,urllib.request,urllib.error\n"
    "r=urllib.request.Request(sys.argv[1],headers=dict(h.split(': ',1) for h in sys.argv[3:]))\n"
    "try: a=urllib.request.build_opener(urllib.request.ProxyHandler({})).open(r,timeout=float(sys.argv[2]))\n"
    "except urllib.error.HTTPError as e: a=e\n"
    "sys.stderr.write('HTTP/1.1 %d\\n%s\\n'%(a.code,a.headers)); sys.stderr.flush()\n"
    "sys.stdout.buffer.write(a.read(1048576))\n"
)


def _inside(docker: Docker, check: Check, container: str, timeout: float) -> Tuple[bool, str]:
    heads = [f"{name}: {value}" for name, value in check.headers.items()]
    seconds = str(max(1, int(timeout)))
    curl = ["curl", "-sSL", "--noproxy", "*", "-m", seconds, "-D", "/dev/stderr", "-o", "-"]
    curl += [*(["-k"] if not check.validate_certs else []), *(part for head in heads for part in ("-H", head))]
    # no -T: Debian's static busybox 1.35 dies of it; the call as a whole has its timeout
    wget = ["wget", "-q", "-S", "-O", "-", *(part for head in heads for part in ("--header", head))]
    python = ["-c", _PYTHON, check.target, seconds, *heads]
    for argv in ([*curl, check.target], [*wget, check.target], ["python3", *python], ["python", *python]):
        try:
            result = docker.run("exec", container, *argv, check=False, timeout=timeout + 2)
        except OfflineRebuildError:
            return False, f"no answer within {timeout:g} s"
        if result.rc in (126, 127):
            continue
        found = re.findall(r"^\s*HTTP/\S+ (\d{3})(.*(?:\n.+)*)", result.stderr, re.MULTILINE)
        if not found:
            return False, f"no answer: {_short(result.stderr, 300)}"
        lines = (line.partition(":") for line in found[-1][1].splitlines())
        return _matches(check, int(found[-1][0]), {n.strip(): v.strip() for n, _, v in lines if v}, result.text)
    return False, "the container has neither curl nor wget nor python; check from the host instead"


def _matches(check: Check, status: int, headers: Mapping[str, str], body: str) -> Tuple[bool, str]:
    if check.kind == "url":
        good = status in check.status if check.status else 200 <= status < 300
        if not good:
            return False, f"status {status}: {_short(body, 300)}"
    lower = {name.lower(): value for name, value in headers.items()}
    for name, pattern in check.header.items():
        if not re.search(pattern, lower.get(name.lower(), "")):
            return False, f"header {name} is {lower.get(name.lower(), '')!r}, which does not match {pattern!r}"
    if check.body and not re.search(check.body, body):
        return False, f"the answer does not match {check.body!r}: {_short(body, 300)}"
    return True, f"status {status}" if check.kind == "url" else "ended with 0"


def _container_evidence(docker: Docker, state: ContainerState, lines: int) -> Dict[str, Any]:
    with docker.popen("logs", "--tail", str(lines), state.id, stderr=subprocess.STDOUT) as process:
        logs = process.communicate()[0]
    inspected = state.raw.get("State") or {}
    health = (inspected.get("Health") or {}).get("Log") or []
    return {
        "service": state.service,
        "container": state.name,
        "id": state.id,
        "image": state.image_id,
        "state": {
            key: inspected.get(key) for key in ("Status", "ExitCode", "OOMKilled", "Error", "StartedAt", "FinishedAt")
        },
        "restart_count": state.restart_count,
        "health": state.health,
        "health_log": [
            {"exit": e.get("ExitCode"), "start": e.get("Start"), "output": _short(e.get("Output") or "", 1000)}
            for e in health[-3:]
        ],
        "logs": _text(logs)[-200 * lines :].splitlines()[-lines:],
    }


_KEYS = (
    "name",
    "service",
    "url",
    "status",
    "body",
    "header",
    "headers",
    "timeout",
    "inside",
    "tcp",
    "command",
    "validate_certs",
)


def _parse(index: int, entry: Dict[str, Any], project: Project) -> Check:
    import shlex

    entry = {key: value for key, value in entry.items() if value is not None}
    kinds = [kind for kind in ("url", "tcp", "command") if entry.get(kind)]
    name = str(entry.get("name") or (entry[kinds[0]] if kinds else f"#{index}"))
    unknown = sorted(set(entry) - set(_KEYS))
    service = str(entry.get("service") or "")
    known = [s.name for s in project.services]
    inside = bool(entry.get("inside"))
    wrong = ""
    if unknown:
        wrong = f"unknown key {unknown[0]!r} (known: {', '.join(_KEYS)})"
    elif len(kinds) != 1:
        wrong = "it needs exactly one of url, tcp and command"
    elif service and service not in known:
        wrong = f"there is no service {service!r} (there are: {', '.join(known)})"
    elif inside and (not service or kinds[0] == "tcp"):
        wrong = "inside needs a service, and url or command"
    elif kinds[0] == "tcp" and not re.match(r"^(\[[^\]]+\]|[^:]+):\d+$", str(entry["tcp"])):
        wrong = "tcp is host:port"
    elif kinds[0] == "url" and not re.match(r"^https?://", str(entry["url"])):
        wrong = "url begins with http:// or https://"
    try:
        for pattern in (entry.get("body") or "", *(entry.get("header") or {}).values()):
            re.compile(str(pattern))
        status = entry.get("status") or ()
        codes = tuple(int(code) for code in (status if isinstance(status, (list, tuple)) else [status]))
        timeout = float(entry.get("timeout") or 5)
    except (re.error, ValueError, TypeError, AttributeError) as error:
        wrong = wrong or str(error)
        codes, timeout = (), 5.0
    if wrong:
        raise OfflineRebuildError(
            "health-check-invalid", f"health check {name}: {wrong}", "see health_checks in the role's README"
        )
    target = str(entry[kinds[0]])
    argv: Tuple[str, ...] = ()
    if kinds[0] == "command":
        raw = entry["command"]
        argv = tuple(map(str, raw)) if isinstance(raw, (list, tuple)) else tuple(shlex.split(str(raw)))
        name = str(entry.get("name") or shlex.join(argv))
    return Check(
        name,
        kinds[0],
        target,
        argv,
        service,
        inside,
        codes,
        str(entry.get("body") or ""),
        {str(k): str(v) for k, v in (entry.get("header") or {}).items()},
        {str(k): str(v) for k, v in (entry.get("headers") or {}).items()},
        timeout,
        bool(entry.get("validate_certs", True)),
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _short(text: str, limit: int = _TEXT) -> str:
    text = text.strip()
    return text if len(text) <= limit else "..." + text[-limit:]

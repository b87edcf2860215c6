"""The compose project as compose itself reads it, and its containers.

Nothing here parses compose files: ``docker compose config --format json`` does (profiles, ``extends``, ``include``,
``.env``, interpolation). Every later call uses the same ``argv`` and the same working directory, so that compose
computes the same config hash as it does for the operator.

Facts (tried with compose 2.26.1 and 2.40.3): the JSON has every ``$`` doubled, as the YAML has; build arguments
without a value are resolved from the environment, and left out when it has none; disabled profiles' services are left
out; a service named on the command line is there whatever its profile. The config hash does not cover ``build``,
``pull_policy`` and the number of replicas, and since 2.29.3 neither ``depends_on`` nor ``profiles`` (docker/compose,
pkg/compose/hash.go): before that, ``up --no-deps`` writes another hash than ``up`` does.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from .cli import Docker, Result
from .errors import OfflineRebuildError
from .image import normal_ref

__all__ = [
    "Build",
    "ContainerState",
    "Dependency",
    "Project",
    "Service",
    "comparable_hashes",
    "config_hashes",
    "containers",
    "dump",
    "load",
    "service_state",
    "shares_another",
]

#: The names that compose looks for, in its order (compose-go, cli/options.go: DefaultFileNames).
DEFAULT_FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
#: Its override names (the same file: DefaultOverrideFileNames).
DEFAULT_OVERRIDES = (
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
)
LABEL_PROJECT = "com.docker.compose.project"
LABEL_SERVICE = "com.docker.compose.service"
LABEL_HASH = "com.docker.compose.config-hash"
LABEL_IMAGE = "com.docker.compose.image"
LABEL_NUMBER = "com.docker.compose.container-number"
LABEL_ONEOFF = "com.docker.compose.oneoff"

#: Keys of ``build:`` that are read into a field of :class:`Build`.
_BUILD_KEYS = frozenset(
    ("context", "dockerfile", "dockerfile_inline", "args", "target", "platforms", "additional_contexts", "secrets")
    + ("ssh", "labels", "cache_from", "network", "extra_hosts", "shm_size", "tags", "no_cache")
)
#: Keys that say where a result or a cache goes or what is fetched, and change nothing in an image that is made here.
_BUILD_KEYS_IDLE = frozenset(("cache_to", "pull", "provenance", "sbom"))
#: A context that is not a folder (BuildKit, frontend/dockerui and util/urlutil: git and HTTP references).
_REMOTE = re.compile(r"^(https?://|git://|git@|ssh://|github\.com/|[\w.-]+@[\w.-]+:)")


@dataclass(frozen=True)
class Dependency:
    """One entry of ``depends_on`` (those that compose infers from ``network_mode: service:`` and the like included).

    :param condition: ``service_started``, ``service_healthy`` or ``service_completed_successfully``.
    :param restart: the dependant is restarted when the dependency is recreated.
    :param required: without it compose goes on when the dependency is not there.
    """

    service: str
    condition: str = "service_started"
    restart: bool = False
    required: bool = True


@dataclass(frozen=True)
class Build:
    """``build:`` of a service.

    :param context: absolute path, or the reference as written when :attr:`remote`.
    :param dockerfile: absolute path; ``""`` when ``inline`` or remote.
    :param inline: the text of ``dockerfile_inline``.
    :param args: name to value, as compose resolved them.
    :param additional_contexts: name to absolute path or reference.
    :param shm_size: bytes, 0 for the default.
    """

    context: str
    dockerfile: str
    inline: Optional[str] = None
    args: Mapping[str, Optional[str]] = field(default_factory=dict)
    target: str = ""
    platforms: Tuple[str, ...] = ()
    additional_contexts: Mapping[str, str] = field(default_factory=dict)
    secrets: Tuple[Mapping[str, Any], ...] = ()
    ssh: Tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    cache_from: Tuple[str, ...] = ()
    network: str = ""
    extra_hosts: Tuple[str, ...] = ()
    shm_size: int = 0
    tags: Tuple[str, ...] = ()
    no_cache: bool = False
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def remote(self) -> bool:
        """:returns: whether the context is a URL: it cannot be read on a host without a network."""
        return bool(_REMOTE.match(self.context))

    @property
    def unknown(self) -> Tuple[str, ...]:
        """:returns: the keys that are set and that no field covers (``privileged``, ``ulimits``, ...), sorted."""
        return tuple(sorted(k for k, v in self.raw.items() if v and k not in _BUILD_KEYS | _BUILD_KEYS_IDLE))


@dataclass(frozen=True)
class Service:
    """One service of a project.

    :param image: its image with a tag: ``image:``, or ``<project>-<service>`` when it is only built.
    :param has_healthcheck: the compose file gives one (the image may give one too; only a container tells).
    :param replicas: how many containers are wanted.
    :param raw: the service as compose rendered it. It holds environment values: never write it anywhere.
    """

    name: str
    image: str
    build: Optional[Build] = None
    depends_on: Tuple[Dependency, ...] = ()
    has_healthcheck: bool = False
    ports: Tuple[Mapping[str, Any], ...] = ()
    container_name: str = ""
    replicas: int = 1
    volumes: Tuple[Mapping[str, Any], ...] = ()
    pull_policy: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Project:
    """A compose project.

    :param name: its name.
    :param src: absolute path of the tree; every call of compose has it as working directory.
    :param argv: ``("compose", "-p", NAME, "-f", FILE, ...)``, to be followed by a compose command or by further
        ``-f FILE``.
    :param files: the compose files, absolute, in order.
    :param services: in dependency order, those of enabled profiles and those that were asked for by name.
    :param raw: the whole rendered project (secrets inside, see :class:`Service`).
    """

    name: str
    src: str
    argv: Tuple[str, ...]
    files: Tuple[str, ...]
    services: Tuple[Service, ...]
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def service(self, name: str) -> Service:
        """:raises KeyError: when there is no such service."""
        for service in self.services:
            if service.name == name:
                return service
        raise KeyError(name)

    def run(self, docker: Docker, *args: str, files: Sequence[str] = (), check: bool = True) -> Result:
        """Run ``docker compose ... ARGS``, with further compose files after the project's own."""
        return docker.run(*self.command(*args, files=files), check=check, cwd=self.src)

    def command(self, *args: str, files: Sequence[str] = ()) -> List[str]:
        """:returns: the arguments after ``docker`` for a compose command; to be run with ``src`` as folder."""
        more = [part for path in files for part in ("-f", path)]
        return [*self.argv, *more, *args]

    @property
    def head(self) -> List[str]:
        """:returns: ``compose -p NAME`` with the env files, for another compose file of the same project."""
        given = [part for i, part in enumerate(self.argv) if "--env-file" in self.argv[max(0, i - 1) : i + 1]]
        return ["compose", "-p", self.name, *given]

    def dependencies(self, names: Iterable[str]) -> List[str]:
        """:returns: what the named services depend on, directly or not, in dependency order, themselves left out."""
        start = set(names)
        seen = set(start)
        todo = list(start)
        known = {service.name: service for service in self.services}
        while todo:
            for dependency in known[todo.pop()].depends_on:
                if dependency.service in known and dependency.service not in seen:
                    seen.add(dependency.service)
                    todo.append(dependency.service)
        return [service.name for service in self.services if service.name in seen - start]

    def restarted_with(self, names: Iterable[str]) -> List[str]:
        """:returns: the services that compose restarts when ``names`` are recreated (``restart: true``), in order."""
        start = set(names)
        seen = set(start)
        for service in self.services:  # in dependency order, so one pass is enough
            if any(d.restart and d.service in seen for d in service.depends_on):
                seen.add(service.name)
        return [service.name for service in self.services if service.name in seen - start]


@dataclass(frozen=True)
class ContainerState:
    """A container of a project, as ``docker inspect`` tells it.

    :param image_id: id of its image: what compose noted when it created it, else what the engine says.
    :param state: ``created``, ``running``, ``restarting``, ``paused``, ``exited`` or ``dead``.
    :param health: ``starting``, ``healthy``, ``unhealthy``, or ``""`` without a healthcheck.
    :param created: as the engine writes it, RFC 3339.
    :param started: the same, of the last start.
    """

    id: str
    name: str
    image_id: str
    state: str
    health: str
    restart_count: int
    config_hash: str
    created: str
    number: int
    service: str = ""
    exit_code: int = 0
    started: str = ""
    restart_policy: str = ""
    engine_image_id: str = ""
    health_test: Tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


def load(
    docker: Docker,
    project_src: str,
    compose_files: Sequence[str] = (),
    env_files: Sequence[str] = (),
    profiles: Sequence[str] = (),
    project_name: Optional[str] = None,
    services: Sequence[str] = (),
) -> Project:
    """Read a project.

    :param project_src: the tree; ``compose_files`` and ``env_files`` are relative to it.
    :param services: services that must exist; one whose profile is not enabled is added, as ``up SERVICE`` would.
    :raises OfflineRebuildError: ``project-missing``, ``compose-file-missing``, ``env-file-missing``,
        ``compose-invalid``, ``compose-missing``, ``no-such-service``. The engine is not asked.
    """
    src = os.path.abspath(project_src)
    if not os.path.isdir(src):
        raise OfflineRebuildError(
            "project-missing",
            "the project folder does not exist" if not os.path.exists(src) else "the project path is not a folder",
            "set project_src to the source tree on this host, or push it there first",
            file=src,
        )
    files = _files(src, compose_files, docker.env)
    head: List[str] = ["compose"]
    for path in env_files:
        head += ["--env-file", _existing(src, path, "env-file-missing", "the env file does not exist")]
    for profile in profiles:
        head += ["--profile", profile]
    if project_name:
        head += ["-p", project_name]
    head += [part for path in files for part in ("-f", path)]
    model = _config(docker, src, head, files, ())
    wanted = [name for name in services if name not in (model.get("services") or {})]
    if wanted:
        model = _with_services(docker, src, head, files, model, wanted)
    name = str(model.get("name") or "")
    argv = head if project_name else [head[0], "-p", name, *head[1:]]
    return Project(name, src, tuple(argv), files, _services(name, model), model)


def dump(model: Mapping[str, Any]) -> bytes:
    """:returns: a rendered project as a compose file: JSON, every ``$`` doubled again, to be read by compose once
    more."""

    def double(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("$", "$$")
        if isinstance(value, list):
            return [double(item) for item in value]
        if isinstance(value, dict):
            return {key: double(item) for key, item in value.items()}
        return value

    return json.dumps(double(model), indent=1).encode("utf-8", "surrogateescape")


def read_dumped(project: Project, path: str) -> Project:
    """:returns: the project as a compose file that :func:`dump` wrote has it; name, tree and env files stay.

    Its profiles are all enabled: what is in the file was active when it was written.
    """
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        model = dict(_undouble(json.load(stream)))
    services = _services(str(model.get("name") or project.name), model)
    profiles = sorted({str(profile) for service in services for profile in service.raw.get("profiles") or ()})
    argv = [*project.head, *(part for name in profiles for part in ("--profile", name))]
    argv += ["--project-directory", project.src, "-f", path]
    return Project(project.name, project.src, tuple(argv), (path,), services, model)


def config_hashes(docker: Docker, project: Project) -> Dict[str, str]:
    """:returns: service name to the hash that compose tells of its files (about 0.1 s)."""
    profiles = sorted({str(name) for service in project.services for name in service.raw.get("profiles") or ()})
    enabled = [part for name in profiles for part in ("--profile", name)]
    names = ",".join(service.name for service in project.services)
    result = project.run(docker, *enabled, "config", "--hash", names or "*")
    return _parse_hashes(result)


def comparable_hashes(
    docker: Docker,
    project: Project,
    states: Mapping[str, Sequence["ContainerState"]],
    plain: Optional[Mapping[str, str]] = None,
) -> Dict[str, str]:
    """The hashes as they stand on containers whose configuration is the same.

    What ``config --hash`` tells is another one in two cases, where compose is asked again (one call):

    - a service with ``env_file``: there compose hashes the file's name, and its values when it makes the container;
    - a service that shares another one's namespace: compose puts the id of that one's container into the
      configuration first (docker/compose, pkg/compose/convergence.go: resolveServiceReferences).

    :param plain: what :func:`config_hashes` gave, if it has been asked already.
    :returns: service to its hash; services are left out that have ``volumes_from``, which no compose file can name as
        compose hashes it, and those whose other container is not there.
    """
    hashes = dict(config_hashes(docker, project) if plain is None else plain)
    differ = [n for n, found in states.items() if n in hashes and any(s.config_hash != hashes[n] for s in found)]
    if differ:
        rendered = _parse_hashes(_ask_rendered(docker, project, states))
        hashes.update({name: rendered[name] for name in differ if name in rendered})
    for service in project.services:
        others = [other for _, other in _references(service)]
        if service.raw.get("volumes_from") or not all(states.get(other) for other in others):
            hashes.pop(service.name, None)
    return hashes


def _ask_rendered(docker: Docker, project: Project, states: Mapping[str, Sequence["ContainerState"]]) -> Result:
    """``config --hash`` of the rendered project, with the containers that services refer to."""
    services = {}
    for service in project.services:
        given = {key: f"container:{states[other][0].id}" for key, other in _references(service) if states.get(other)}
        services[service.name] = {**service.raw, **given}
    profiles = sorted({str(name) for service in project.services for name in service.raw.get("profiles") or ()})
    enabled = [part for name in profiles for part in ("--profile", name)]
    argv = [*project.head, *enabled, "--project-directory", project.src, "-f", "-", "config", "--hash", "*"]
    return docker.run(*argv, stdin=dump({**project.raw, "services": services}), cwd=project.src, check=False)


def _parse_hashes(result: Result) -> Dict[str, str]:
    return dict(line.split(" ", 1) for line in result.text.splitlines() if " " in line)


def _references(service: Service) -> List[Tuple[str, str]]:
    """:returns: keys that name another service's container, with that service."""
    pairs = ((key, str(service.raw.get(key) or "").partition(":")) for key in ("network_mode", "ipc", "pid"))
    return [(key, other) for key, (kind, _, other) in pairs if kind == "service"]


def containers(docker: Docker, project: Project) -> Dict[str, List[ContainerState]]:
    """The project's containers, one-off ones (``compose run``) left out.

    :returns: service name to its containers by number; every service of the project is a key, and so are services
        that are no longer in it but still have containers. Two calls of the CLI, one if there is none.
    """
    found: Dict[str, List[ContainerState]] = {service.name: [] for service in project.services}
    listed = docker.run("ps", "-aq", "--no-trunc", "--filter", f"label={LABEL_PROJECT}={project.name}")
    for state in inspect_containers(docker, listed.text.split()):
        found.setdefault(state.service, []).append(state)
    for states in found.values():
        states.sort(key=lambda state: (state.number, state.created))
    return found


def inspect_containers(docker: Docker, ids: Sequence[str]) -> List[ContainerState]:
    """:returns: the state of those of the containers that (still) exist and belong to a service."""
    states = [_container(data) for data in docker.inspect("container", ids)]
    return [state for state in states if state is not None]


def service_state(
    service: Service,
    image_id: str,
    states: Sequence[ContainerState],
    config_hash: str,
    one_shot: bool = False,
) -> str:
    """Why ``docker compose up`` would recreate or start the service.

    The rule is compose's own (pkg/compose/convergence.go, mustRecreate and ensureService), but for two things: a
    one-shot job that ended well is left alone, and one that serves nothing (no port, no healthcheck, no restart
    policy) and exited with 0 is taken for one. Compose would run it again at each ``up``.

    :param image_id: id of the image that the service's name stands for now, ``""`` if there is none.
    :param config_hash: of :func:`comparable_hashes`; not compared where it is ``""``.
    :param one_shot: another service waits for this one's completion.
    :returns: a reason for the operator, ``""`` if nothing is to be done.
    """
    if service.replicas == 0 and not states:
        return ""
    if not states:
        return "it has no container yet"
    if len(states) != service.replicas:
        return f"it has {len(states)} of {service.replicas} containers"
    for state in states:
        if config_hash and state.config_hash != config_hash:
            return f"its compose configuration changed since {state.name} was created"
        if image_id and image_id not in (state.image_id, state.engine_image_id):
            return f"{state.name} runs image {_short(state.image_id)}, and {service.image} is {_short(image_id)}"
        if state.state == "running" or _ended_well(service, state, one_shot):
            continue
        detail = f" (code {state.exit_code})" if state.state == "exited" else ""
        return f"{state.name} is {state.state}{detail}"
    return ""


def one_shots(project: Project) -> List[str]:
    """:returns: the services that another one waits for to complete."""
    return sorted(
        {d.service for s in project.services for d in s.depends_on if d.condition == "service_completed_successfully"}
    )


def require_variables(docker: Docker, project: Project) -> None:
    """Secrets and configs that come from a variable: compose looks for it when it starts a container, and by then it
    has removed the old one. Compose is asked only where there are such, and tells no value.

    :raises OfflineRebuildError: ``variable-unset``.
    """
    needed: Dict[str, str] = {}
    for kind in ("secrets", "configs"):
        declared: Mapping[str, Any] = project.raw.get(kind) or {}
        for service in project.services:
            for entry in service.raw.get(kind) or ():
                name = str(entry.get("source")) if isinstance(entry, dict) else str(entry)
                variable = (declared.get(name) or {}).get("environment")
                if variable:
                    needed[str(variable)] = f"{kind[:-1]} {name} of service {service.name}"
    if not needed:
        return
    asked = {"services": {"ask": {"image": "ask", "labels": {name: f"${{{name}+set}}" for name in needed}}}}
    argv = [*project.head, "--project-directory", project.src, "-f", "-", "config", "--format", "json"]
    result = docker.run(*argv, stdin=json.dumps(asked).encode(), cwd=project.src)
    said = result.json()["services"]["ask"]["labels"]
    for name, what in sorted(needed.items()):
        if said.get(name) != "set":
            raise OfflineRebuildError(
                "variable-unset",
                f"{what} comes from the variable {name}, which is not set for this run",
                "put it into .env or a file of offline_rebuild_env_files",
                file=project.files[0],
            )


def shares_another(service: Service) -> bool:
    """:returns: whether it uses a namespace or the volumes of another service's container (docker/compose,
    pkg/compose/convergence.go: resolveServiceReferences)."""
    return bool(service.raw.get("volumes_from")) or bool(_references(service))


def _ended_well(service: Service, state: ContainerState, one_shot: bool) -> bool:
    if state.state != "exited" or state.exit_code != 0:
        return False
    serves = service.ports or service.has_healthcheck or state.health_test
    return one_shot or (not serves and state.restart_policy in ("", "no", "on-failure"))


def _short(image_id: str) -> str:
    return image_id.rsplit(":", 1)[-1][:12] if image_id else "none"


def _files(src: str, compose_files: Sequence[str], env: Mapping[str, str]) -> Tuple[str, ...]:
    """The compose files as compose itself would choose them in ``src`` (its parents are not searched)."""
    chosen = list(compose_files) or _compose_file_variable(src, env)
    if chosen:
        return tuple(_existing(src, path, "compose-file-missing", "the compose file does not exist") for path in chosen)
    present = set(os.listdir(src))
    main = next((name for name in DEFAULT_FILES if name in present), None)
    if main is None:
        raise OfflineRebuildError(
            "compose-file-missing",
            f"no compose file here (none of {', '.join(DEFAULT_FILES)})",
            "set compose_files to its path below project_src",
            file=src,
        )
    override = next((name for name in DEFAULT_OVERRIDES if name in present), None)
    return tuple(os.path.join(src, name) for name in (main, override) if name)


def _compose_file_variable(src: str, env: Mapping[str, str]) -> List[str]:
    """``COMPOSE_FILE`` of the environment, else of ``.env`` (a plain assignment), split as compose does."""
    values = {key: env[key] for key in ("COMPOSE_FILE", "COMPOSE_PATH_SEPARATOR") if env.get(key)}
    try:
        with open(os.path.join(src, ".env"), encoding="utf-8", errors="replace") as stream:
            for line in stream:
                match = re.match(r"\s*(?:export\s+)?(COMPOSE_FILE|COMPOSE_PATH_SEPARATOR)\s*=\s*(.*?)\s*$", line)
                if match:
                    values.setdefault(match.group(1), match.group(2).strip("'\""))
    except OSError:
        pass
    text = values.get("COMPOSE_FILE", "")
    return text.split(values.get("COMPOSE_PATH_SEPARATOR", os.pathsep)) if text else []


def _existing(src: str, path: str, code: str, message: str) -> str:
    full = os.path.normpath(os.path.join(src, path))
    if not os.path.isfile(full):
        raise OfflineRebuildError(code, message, "check the path; it is relative to project_src", file=full)
    return full


def _config(
    docker: Docker, src: str, head: Sequence[str], files: Sequence[str], services: Sequence[str]
) -> Dict[str, Any]:
    result = docker.run(*head, "config", "--format", "json", *services, check=False, cwd=src)
    if result.rc != 0:
        raise _invalid(result, files)
    model = json.loads(result.stdout)
    return dict(_undouble(model))


def _with_services(
    docker: Docker,
    src: str,
    head: Sequence[str],
    files: Sequence[str],
    model: Dict[str, Any],
    wanted: Sequence[str],
) -> Dict[str, Any]:
    """Add services whose profile is not enabled: compose enables it for a service that is named."""
    known = docker.run(*head, "--profile", "*", "config", "--services", check=False, cwd=src).text.split()
    missing = [name for name in wanted if name not in known]
    if missing:
        raise OfflineRebuildError(
            "no-such-service",
            f"the project has no service {', '.join(map(repr, missing))}",
            f"name one of: {', '.join(sorted(known)) or '(none)'}",
            file=files[0],
        )
    return _config(docker, src, head, files, [*(model.get("services") or {}), *wanted])


def _invalid(result: Result, files: Sequence[str]) -> OfflineRebuildError:
    """Compose's own words, with the file and the line where it tells them."""
    lines = [line for line in result.stderr.splitlines() if line.strip() and "level=warning" not in line]
    text = "\n".join(lines).strip()
    if "is not a docker command" in text or "unknown docker command" in text or "unknown flag" in text:
        return OfflineRebuildError(
            "compose-missing",
            f"the Compose plugin is missing or too old: {text}",
            "put the docker-compose binary (>= 2.20) into /usr/libexec/docker/cli-plugins/",
        )
    named = re.search(r"(?:validating |open |parsing |file )(/[^:\n]+?)(?: not found)?(?::|$)", text, re.MULTILINE)
    line = re.search(r"\bline (\d+)", text)
    where = named.group(1) if named else _culprit(files, line)
    return OfflineRebuildError(
        "compose-invalid",
        f"compose does not accept the project: {text}",
        "mend the file; `docker compose config --quiet` checks it",
        file=where,
        line=int(line.group(1)) if line else None,
    )


def _culprit(files: Sequence[str], line: Optional[re.Match[str]]) -> str:
    """Compose does not name the file of a YAML syntax error; it is the only one that is long enough, or the first."""
    if line is None or len(files) == 1:
        return files[0]
    return next((path for path in files if _line_count(path) >= int(line.group(1))), files[0])


def _line_count(path: str) -> int:
    try:
        with open(path, "rb") as stream:
            return sum(1 for _ in stream)
    except OSError:
        return 0


def _undouble(value: Any) -> Any:
    """``$$`` -> ``$`` in every string."""
    if isinstance(value, str):
        return value.replace("$$", "$") if "$$" in value else value
    if isinstance(value, list):
        return [_undouble(item) for item in value]
    if isinstance(value, dict):
        return {key: _undouble(item) for key, item in value.items()}
    return value


def _services(project: str, model: Mapping[str, Any]) -> Tuple[Service, ...]:
    services = {name: _service(project, name, raw or {}) for name, raw in (model.get("services") or {}).items()}
    return tuple(_ordered(services))


def _ordered(services: Mapping[str, Service]) -> Iterator[Service]:
    """Dependencies first, names in alphabetical order otherwise. Compose has refused cycles already."""
    done: Dict[str, bool] = {}

    def visit(name: str) -> Iterator[Service]:
        if name in done or name not in services:
            return
        done[name] = True
        for dependency in sorted(services[name].depends_on, key=lambda d: d.service):
            yield from visit(dependency.service)
        yield services[name]

    for name in sorted(services):
        yield from visit(name)


def _service(project: str, name: str, raw: Mapping[str, Any]) -> Service:
    check = raw.get("healthcheck") or {}
    test = check.get("test")
    replicas = (raw.get("deploy") or {}).get("replicas", raw.get("scale"))
    return Service(
        name=name,
        image=normal_ref(str(raw.get("image") or f"{project}-{name}")),
        build=_build(raw["build"]) if raw.get("build") else None,
        depends_on=_depends_on(raw.get("depends_on") or {}),
        has_healthcheck=bool(test) and not check.get("disable") and test not in ("NONE", ["NONE"]),
        ports=tuple(raw.get("ports") or ()),
        container_name=str(raw.get("container_name") or ""),
        replicas=1 if replicas is None else int(replicas),
        volumes=tuple(raw.get("volumes") or ()),
        pull_policy=str(raw.get("pull_policy") or ""),
        raw=raw,
    )


def _depends_on(raw: Mapping[str, Mapping[str, Any]]) -> Tuple[Dependency, ...]:
    return tuple(
        Dependency(
            name,
            str(entry.get("condition") or "service_started"),
            bool(entry.get("restart")),
            bool(entry.get("required", True)),
        )
        for name, entry in sorted(raw.items())
    )


def _build(raw: Mapping[str, Any]) -> Build:
    context = str(raw.get("context") or "")
    inline = raw.get("dockerfile_inline")
    remote = bool(_REMOTE.match(context))
    dockerfile = ""
    if inline is None and not remote:
        dockerfile = os.path.normpath(os.path.join(context, str(raw.get("dockerfile") or "Dockerfile")))
    return Build(
        context=context,
        dockerfile=dockerfile,
        inline=inline,
        args={str(k): None if v is None else str(v) for k, v in (raw.get("args") or {}).items()},
        target=str(raw.get("target") or ""),
        platforms=_strings(raw.get("platforms")),
        additional_contexts=_mapping(raw.get("additional_contexts")),
        secrets=tuple(raw.get("secrets") or ()),
        ssh=_strings(raw.get("ssh")),
        labels=_mapping(raw.get("labels")),
        cache_from=_strings(raw.get("cache_from")),
        network=str(raw.get("network") or ""),
        extra_hosts=_strings(raw.get("extra_hosts")),
        shm_size=int(raw.get("shm_size") or 0),
        tags=_strings(raw.get("tags")),
        no_cache=bool(raw.get("no_cache")),
        raw=raw,
    )


def _strings(value: Any) -> Tuple[str, ...]:
    if isinstance(value, dict):
        return tuple(f"{k}={v}" for k, v in value.items())
    return tuple(str(item) for item in value or ())


def _mapping(value: Any) -> Dict[str, str]:
    if isinstance(value, list):
        return {name: text for name, _, text in (str(item).partition("=") for item in value)}
    return {str(k): "" if v is None else str(v) for k, v in (value or {}).items()}


def _container(data: Mapping[str, Any]) -> Optional[ContainerState]:
    config = data.get("Config") or {}
    labels = config.get("Labels") or {}
    if LABEL_SERVICE not in labels or labels.get(LABEL_ONEOFF, "False") == "True":
        return None
    state = data.get("State") or {}
    number = str(labels.get(LABEL_NUMBER, ""))
    return ContainerState(
        id=data["Id"],
        name=str(data.get("Name", "")).lstrip("/"),
        image_id=labels.get(LABEL_IMAGE) or data.get("Image", ""),
        state=str(state.get("Status", "")),
        health=str((state.get("Health") or {}).get("Status", "")).replace("none", ""),
        restart_count=int(data.get("RestartCount") or 0),
        config_hash=labels.get(LABEL_HASH, ""),
        created=str(data.get("Created", "")),
        number=int(number) if number.isdigit() else 0,
        service=labels[LABEL_SERVICE],
        exit_code=int(state.get("ExitCode") or 0),
        started=str(state.get("StartedAt", "")),
        restart_policy=str(((data.get("HostConfig") or {}).get("RestartPolicy") or {}).get("Name", "")),
        engine_image_id=data.get("Image", ""),
        health_test=tuple((config.get("Healthcheck") or {}).get("Test") or ()),
        raw=data,
    )

"""The one place that runs the docker CLI.

A target host gets nothing installed, so the engine is driven by its own CLI: argv lists, JSON output, never a shell.
``--format '{{json .}}'`` is used throughout, since 20.10 and 24 do not know ``--format json`` everywhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import dataclass
from typing import IO, Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from .errors import OfflineRebuildError

__all__ = ["CommandFailed", "Docker", "EngineInfo", "Result", "parse_version"]

#: Oldest versions that are supported (docs/DESIGN: "A target host needs").
MIN_ENGINE = (20, 10)
MIN_COMPOSE = (2, 20)
#: Seconds for an engine to say what it is; one that hangs would never answer.
INFO_TIMEOUT = 60.0


@dataclass(frozen=True)
class Result:
    """What a command left: ``argv`` as run, ``rc``, ``stdout`` (bytes) and ``stderr`` (text)."""

    argv: Tuple[str, ...]
    rc: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """:returns: stdout as text, undecodable bytes kept as surrogates."""
        return self.stdout.decode("utf-8", "surrogateescape")

    def json(self) -> Any:
        """:returns: stdout parsed as one JSON document."""
        return json.loads(self.stdout)

    def json_lines(self) -> List[Any]:
        """:returns: one parsed document per non-empty line of stdout."""
        return [json.loads(line) for line in self.stdout.splitlines() if line.strip()]


class CommandFailed(OfflineRebuildError):
    """A docker command ended with a return code that was not expected. ``result`` holds all that it said."""

    def __init__(self, result: Result, code: str = "docker-failed", remedy: str = "") -> None:
        self.result = result
        tail = "\n".join((result.stderr or result.text).strip().splitlines()[-20:])
        super().__init__(code, f"`{' '.join(result.argv)}` ended with {result.rc}: {tail}", remedy)


@dataclass(frozen=True)
class EngineInfo:
    """What ``docker info`` says of engine, store and plugins.

    ``store`` is ``classic`` (image store with graph drivers) or ``containerd``; ``driver`` the graph driver or
    snapshotter; ``root`` the engine's data root; ``plugins`` maps CLI plugin names to versions.
    """

    version: str
    api_os: str
    arch: str
    store: str
    driver: str
    root: str
    name: str
    plugins: Mapping[str, str]
    client_version: str = ""

    @property
    def platform(self) -> str:
        """:returns: the engine's platform as in ``linux/amd64``."""
        return f"{self.api_os}/{_ARCH.get(self.arch, self.arch)}"


_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "armv6l": "arm/v6", "i686": "386", "i386": "386"}


def parse_version(text: str) -> Tuple[int, ...]:
    """``v2.26.1-4`` or ``20.10.24+dfsg1`` -> ``(2, 26, 1)``, ``(20, 10, 24)``. An unknown form gives ``()``."""
    parts: List[int] = []
    for piece in text.lstrip("v").split("."):
        digits = ""
        for char in piece:
            if not char.isdigit():
                break
            digits += char
        if not digits:
            break
        parts.append(int(digits))
        if digits != piece:
            break
    return tuple(parts)


class Docker:
    """Runs ``docker`` with a fixed environment.

    :param binary: name or path of the CLI.
    :param env: variables on top of the process's own.
    """

    def __init__(self, binary: str = "docker", env: Optional[Mapping[str, str]] = None) -> None:
        self.binary = binary
        self.env: Dict[str, str] = dict(os.environ)
        # LC_ALL: messages are read in a few places; DOCKER_CLI_HINTS: no advertisement after `docker build`.
        self.env.update({"LC_ALL": "C.UTF-8", "DOCKER_CLI_HINTS": "false", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"})
        if env:
            self.env.update(env)
        #: While a lock is held, its guard: commands that change the engine inherit it (see lock.py).
        self.guard: Optional[IO[bytes]] = None
        self._info: Optional[EngineInfo] = None
        self._asking = threading.Lock()

    def run(
        self,
        *args: str,
        check: bool = True,
        stdin: Union[bytes, IO[bytes], None] = None,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        timeout: Optional[float] = None,
        guarded: bool = False,
    ) -> Result:
        """Run ``docker ARGS`` to its end.

        :param check: raise :class:`CommandFailed` when it ends with another code than 0.
        :param stdin: bytes or an open file that the command reads; nothing by default.
        :param timeout: seconds after which it is killed and ``docker-timeout`` raised.
        :param guarded: it changes the engine: when this run is killed, the next one waits for it.
        :raises OfflineRebuildError: ``docker-missing`` when there is no CLI.
        """
        argv = (self.binary, *args)
        full_env = dict(self.env, **env) if env else self.env
        feed: Dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin or subprocess.DEVNULL}
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                env=full_env,
                cwd=cwd,
                timeout=timeout,
                check=False,
                pass_fds=self._held(guarded),
                **feed,
            )
        except FileNotFoundError:
            if cwd is not None and not os.path.isdir(cwd):
                raise OfflineRebuildError("path-missing", "the folder does not exist", file=cwd) from None
            raise _missing(self.binary) from None
        except OSError as error:
            raise _missing(self.binary, error.strerror or "") from None
        except subprocess.TimeoutExpired:
            raise OfflineRebuildError(
                "docker-timeout",
                f"`{' '.join(argv)}` did not end within {timeout} s",
                "see whether the engine answers: docker info",
            ) from None
        result = Result(argv, done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))
        if check and result.rc != 0:
            raise CommandFailed(result)
        return result

    def popen(
        self,
        *args: str,
        stdin: Any = subprocess.DEVNULL,
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
        guarded: bool = False,
    ) -> "subprocess.Popen[bytes]":
        """Start ``docker ARGS`` for streaming; the caller waits for it. ``guarded`` as in :meth:`run`."""
        argv, held = (self.binary, *args), self._held(guarded)
        try:
            return subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=stderr, env=self.env, pass_fds=held)
        except OSError as error:
            raise _missing(self.binary, error.strerror or "") from None

    def _held(self, guarded: bool) -> Tuple[int, ...]:
        return (self.guard.fileno(),) if guarded and self.guard is not None and not self.guard.closed else ()

    def info(self) -> EngineInfo:
        """:returns: engine, store and plugins, asked once.

        :raises OfflineRebuildError: ``docker-missing`` (no CLI), ``engine-down`` (no answer).
        """
        with self._asking:  # several threads want it first, and it is one of the dearest questions
            if self._info is None:
                result = self.run("info", "--format", "{{json .}}", check=False, timeout=INFO_TIMEOUT)
                try:
                    data = result.json() if result.stdout.strip() else {}
                except ValueError:
                    data = {"ServerErrors": ["`docker info` does not answer in JSON"]}
                if result.rc != 0 or not data.get("ServerVersion"):
                    why = "; ".join(data.get("ServerErrors") or []) or result.stderr.strip()
                    raise OfflineRebuildError(
                        "engine-down",
                        f"the Docker engine does not answer: {why}",
                        "start it (`systemctl start docker`) and see `journalctl -u docker`",
                    )
                self._info = _engine_info(data)
            return self._info

    def require(self, engine: Sequence[int] = MIN_ENGINE, compose: Optional[Sequence[int]] = MIN_COMPOSE) -> EngineInfo:
        """Check the versions that the run needs.

        :raises OfflineRebuildError: ``engine-too-old``, ``compose-missing``, ``compose-too-old``.
        """
        info = self.info()
        if parse_version(info.version) < tuple(engine):
            raise OfflineRebuildError(
                "engine-too-old",
                f"Docker Engine {info.version} is older than {'.'.join(map(str, engine))}",
                "install a newer engine on this host (its packages can be brought in as files)",
            )
        if compose is not None:
            have = info.plugins.get("compose", "")
            if not have:
                raise OfflineRebuildError(
                    "compose-missing",
                    "the Compose plugin is not installed (`docker compose version` fails)",
                    "put the docker-compose binary into /usr/libexec/docker/cli-plugins/",
                )
            if parse_version(have) < tuple(compose):
                raise OfflineRebuildError(
                    "compose-too-old",
                    f"Docker Compose {have} is older than {'.'.join(map(str, compose))}",
                    "put a newer docker-compose binary into /usr/libexec/docker/cli-plugins/",
                )
        return info

    def inspect(self, kind: str, refs: Iterable[str]) -> List[Mapping[str, Any]]:
        """Inspect several objects in one call; those that do not exist are left out.

        :param kind: ``image``, ``container``, ``volume`` or ``network``.
        """
        wanted = list(refs)
        if not wanted:
            return []
        result = self.run(kind, "inspect", *wanted, check=False)
        found = result.json() if result.stdout.strip() else []
        if result.rc != 0 and len(found) == len(wanted):
            raise CommandFailed(result)
        if result.rc != 0 and "o such" not in result.stderr and "not found" not in result.stderr:
            raise CommandFailed(result)
        return list(found)


def _missing(binary: str, why: str = "") -> OfflineRebuildError:
    return OfflineRebuildError(
        "docker-missing",
        f"the `{binary}` command cannot be run: {why}" if why else f"there is no `{binary}` command on this host",
        "install Docker Engine >= 20.10 with its CLI",
    )


def _engine_info(data: Mapping[str, Any]) -> EngineInfo:
    status = {pair[0]: pair[1] for pair in data.get("DriverStatus") or [] if len(pair) == 2}
    snapshotter = status.get("driver-type", "").startswith("io.containerd.snapshotter")
    client = data.get("ClientInfo") or {}
    plugins = {p.get("Name", ""): p.get("Version", "") for p in client.get("Plugins") or [] if not p.get("Err")}
    return EngineInfo(
        version=data["ServerVersion"],
        api_os=data.get("OSType", "linux"),
        arch=data.get("Architecture", ""),
        store="containerd" if snapshotter else "classic",
        driver=data.get("Driver", ""),
        root=data.get("DockerRootDir", "/var/lib/docker"),
        name=data.get("Name", ""),
        plugins=plugins,
        client_version=client.get("Version", ""),
    )

"""The images that test hosts run from: one per engine, made from Debian packages, cached by what they are made of.

Two ways to make one give the same contents:

* ``mmdebstrap`` and ``docker import`` (the default): needs a Debian mirror and no registry;
* ``HOST_BASE=debian`` (any repository with Debian's suites as tags): a ``docker build`` on the official image.

The mirror is the one of this machine's own apt sources, or ``HOST_MIRROR``, or mmdebstrap's default.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
import docker.errors

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "hosts"
LABEL = "offline-rebuild"
STORES = ("classic", "containerd")

PACKAGES = (
    "ca-certificates",
    "curl",
    "docker.io",
    "iproute2",
    "iptables",
    "mount",
    "openssh-server",
    "procps",
    "python3",
    "rsync",
)
COMPOSE_PLUGIN = "usr/libexec/docker/cli-plugins/docker-compose"
#: What an image does not need and what must not be the same on two hosts.
REMOVED = (
    "/etc/apt/apt.conf.d/99mmdebstrap",
    "/etc/hostname",
    "/etc/machine-id",
    "/etc/resolv.conf",
    "/etc/ssh/ssh_host_*",
    "/var/cache/apt/*.bin",
    "/var/cache/apt/archives/*.deb",
    "/var/lib/apt/lists/*_*",
    "/var/log/*.log",
)
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


@dataclass(frozen=True)
class Engine:
    """An engine generation: Debian's suite, the packages beside the common ones, the image stores it can have."""

    suite: str
    packages: tuple[str, ...] = ()
    stores: tuple[str, ...] = STORES
    #: the suite whose docker-compose package gives the compose plugin's file, where the own suite has none
    compose_from: str = ""
    #: Debian testing's Release file may be past its date on a mirror that lags
    check_valid_until: bool = True


_SPLIT_PACKAGES = ("docker-buildx", "docker-cli", "docker-compose")
ENGINES = {
    "bookworm": Engine("bookworm", stores=("classic",), compose_from="trixie"),
    "trixie": Engine("trixie", _SPLIT_PACKAGES),
    "testing": Engine("testing", _SPLIT_PACKAGES, check_valid_until=False),
}
COMBINATIONS = tuple((name, store) for name, engine in ENGINES.items() for store in engine.stores)


class HostImageError(RuntimeError):
    """A host image cannot be made; the message says what to do."""


def host_base() -> str:
    """The repository whose suite tags are Debian's official images, or an empty string for mmdebstrap."""
    return os.environ.get("HOST_BASE", "")


def image_name(engine: str) -> str:
    """``offline-rebuild/host:<engine>-<digest of what it is made of>``."""
    spec = ENGINES[engine]
    recipe = [_dockerfile(spec)] if host_base() else _mmdebstrap(spec, Path("archive"), Path("scratch"))
    digest = hashlib.sha256(json.dumps([os.uname().machine, recipe]).encode())
    return f"{LABEL}/host:{engine}-{digest.hexdigest()[:12]}"


def ensure_image(engine: str, say: Callable[[str], None] = print) -> str:
    """Makes the host image of ``engine`` unless it is there, and returns its name."""
    name = image_name(engine)
    client = docker.from_env(timeout=900)
    with _lock(engine):
        if _has(client, name):
            return name
        say(f"making {name} (once; it is kept)")
        if host_base():
            _build_on_debian(client, engine, name)
        else:
            _import_bootstrapped(client, engine, name)
    return name


def program(engine: str, path: str) -> Path:
    """A program out of a host image, for tests that need just this version of it on this machine.

    :param path: its absolute path in the image.
    """
    name = ensure_image(engine)
    kept = CACHE / "programs" / name.rsplit(":", 1)[-1] / path.rsplit("/", 1)[-1]
    if not kept.exists():
        client = docker.from_env(timeout=900)
        container = client.containers.create(name, ["true"], labels={LABEL: "test"})
        try:
            stream, _ = container.get_archive(path)
            with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
                content = archive.extractfile(archive.next())
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.with_suffix(".part").write_bytes(content.read())
        finally:
            container.remove()
        kept.with_suffix(".part").chmod(0o755)
        kept.with_suffix(".part").rename(kept)
    return kept


def _has(client: docker.DockerClient, name: str) -> bool:
    try:
        client.images.get(name)
    except docker.errors.ImageNotFound:
        return False
    return True


@contextmanager
def _lock(name: str) -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# --- from packages alone


def _import_bootstrapped(client: docker.DockerClient, engine: str, name: str) -> None:
    if not shutil.which("mmdebstrap"):
        raise HostImageError("mmdebstrap is missing: apt-get install mmdebstrap (or set HOST_BASE=debian)")
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        archive = Path(scratch) / "rootfs.tar"
        mirror = apt_mirror()
        command = _mmdebstrap(ENGINES[engine], archive, Path(scratch))
        command[1:1] = [f"--aptopt={line}" for line in apt_options()]
        if mirror:
            command.append(mirror)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise HostImageError(f"mmdebstrap failed for {engine}:\n{done.stderr[-3000:]}")
        repository, tag = name.split(":")
        with archive.open("rb") as stream:
            client.api.import_image(src=stream, repository=repository, tag=tag, changes=[f"LABEL {LABEL}=host-image"])
    if not _has(client, name):
        raise HostImageError(f"docker import of {name} gave no image")


def _mmdebstrap(spec: Engine, archive: Path, scratch: Path) -> list[str]:
    """The command, without what belongs to this machine (mirror and apt options)."""
    command = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join((*PACKAGES, *spec.packages))}"]
    if not spec.check_valid_until:
        command.append('--aptopt=Acquire::Check-Valid-Until "false"')
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    if spec.compose_from:
        command.append(f"--customize-hook={_compose_hook(spec, scratch)}")
    command.append('--customize-hook=cd "$1" && rm -rf ' + " ".join("." + path for path in REMOVED))
    return [*command, "--format=tar", spec.suite, str(archive)]


def _compose_hook(spec: Engine, scratch: Path) -> str:
    """A hook that takes one file out of another suite's package; apt runs outside, so proxies and CAs work."""
    apt = (
        f"apt-get -o Dir::Etc::SourceList={scratch}/compose.list -o Dir::Etc::SourceParts=/dev/null "
        f"-o Dir::State::Lists={scratch}/lists -qq"
    )
    return (
        f'export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" && mkdir -p {scratch}/lists/partial && '
        f'sed -n "s/ {spec.suite} / {spec.compose_from} /p" "$1/etc/apt/sources.list" > {scratch}/compose.list && '
        f"{apt} update && "
        f"cd {scratch} && {apt} download docker-compose && "
        f'dpkg-deb --fsys-tarfile docker-compose_*.deb | tar -C "$1" -x ./{COMPOSE_PLUGIN}'
    )


def apt_mirror() -> str:
    """The Debian mirror of this machine's apt sources; empty when there is none (mmdebstrap then has its default)."""
    if os.environ.get("HOST_MIRROR"):
        return os.environ["HOST_MIRROR"]
    if not shutil.which("apt-get"):
        return ""
    form = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    done = subprocess.run(["apt-get", "indextargets", "--format", form], capture_output=True, text=True, check=False)
    known = [line.split("|", 2) for line in done.stdout.splitlines()]
    exact = [uri for origin, label, uri in known if origin == "Debian" and label == "Debian"]
    alike = [uri for _, _, uri in known if uri.rstrip("/").endswith("/debian")]
    return (exact or alike or [""])[0].rstrip("/")


def apt_options() -> list[str]:
    """The lines of this machine's apt configuration that a download may need: proxies, their CA, retries."""
    if not shutil.which("apt-config"):
        return []
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    wanted = re.compile(r"Acquire::(https?::\S*(Proxy|CAInfo|CAPath|Verify|SslCert|SslKey)|Retries)", re.IGNORECASE)
    return [line for line in done.stdout.splitlines() if wanted.match(line) and not line.endswith(' "";')]


# --- on Debian's official image


def _build_on_debian(client: docker.DockerClient, engine: str, name: str) -> None:
    recipe = io.BytesIO(_dockerfile(ENGINES[engine]).encode())
    proxies = {key: value for key, value in os.environ.items() if key.lower() in ("http_proxy", "https_proxy")}
    try:
        client.images.build(fileobj=recipe, tag=name, buildargs=proxies, labels={LABEL: "host-image"}, rm=True)
    except docker.errors.BuildError as error:
        log = "".join(str(line.get("stream", line.get("error", ""))) for line in error.build_log)
        raise HostImageError(f"building {name} failed: {error}\n{log[-3000:]}") from error
    except docker.errors.APIError as error:
        raise HostImageError(f"building {name} failed: {error}") from error


def _dockerfile(spec: Engine) -> str:
    base = host_base()
    valid = "" if spec.check_valid_until else "-o Acquire::Check-Valid-Until=false "
    lines = []
    if spec.compose_from:
        fetch = (
            "apt-get update && cd /tmp && apt-get download docker-compose && dpkg-deb -x docker-compose_*.deb /compose"
        )
        lines += [f"FROM {base}:{spec.compose_from} AS compose", f"RUN {fetch}"]
    install = "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends"
    packages = " ".join((*PACKAGES, *spec.packages))
    # Names that the engine mounts during a build cannot be removed then; they are not in the image anyway.
    tidy = f"{{ rm -rf {' '.join(REMOVED)} 2>/dev/null || true; }}"
    lines += [f"FROM {base}:{spec.suite}", f"RUN apt-get {valid}update && {install} {packages} && {tidy}"]
    if spec.compose_from:
        lines.append(f"COPY --from=compose /compose/{COMPOSE_PLUGIN} /{COMPOSE_PLUGIN}")
    return "\n".join(lines) + "\n"

"""Hosts that run from the host images: made in parallel, waited for on conditions, described by an inventory.

Everything lies under ``.hosts/<name>/``: the key pair of the run, ``known_hosts`` and ``inventory.yml``. Containers,
volumes and the network are called ``ofr-<name>...`` and carry the label ``offline-rebuild``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import ipaddress
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import docker
import docker.errors
import docker.types
import yaml
from docker.models.containers import Container

from .images import ENGINES, LABEL, ROOT, STORES, ensure_image

RUNS = Path(os.environ.get("OFR_HOSTS_DIR", ROOT / ".hosts"))
GROUP = "offline-servers"
READY_TIMEOUT = 120.0
VOLUMES = {"docker": "/var/lib/docker", "containerd": "/var/lib/containerd"}
#: What makes a container of packages a host, put in when it is created: source in rootfs/, target, mode.
ROOTFS = Path(__file__).resolve().parent / "rootfs"
FILES = (
    ("host-init", "usr/local/sbin/host-init", 0o755),
    ("host-engine", "usr/local/sbin/host-engine", 0o755),
    ("sshd.conf", "etc/ssh/sshd_config.d/10-test-host.conf", 0o644),
)
_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class HostError(RuntimeError):
    """A host cannot be made or used; the message holds its last log lines."""


@dataclass
class Host:
    """One test host. ``container`` is the Docker SDK's object on the control side."""

    name: str
    address: str
    engine: str
    store: str
    directory: Path
    container: Container = field(repr=False)

    def ssh_options(self) -> list[str]:
        """The options that ``ssh`` and ``rsync -e`` need to reach this run's hosts and nothing else."""
        return ssh_options(self.directory)

    def ssh(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002  (the name that subprocess.run uses)
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as root: a string goes to the host's shell, a list is quoted."""
        line = command if isinstance(command, str) else shlex.join(command)
        argv = ["ssh", *self.ssh_options(), f"root@{self.address}", line]
        given = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, **given)
        if check and done.returncode:
            raise HostError(f"{self.name}: {line!r} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def docker(self, *arguments: str, check: bool = True) -> str:
        """Output of ``docker ...`` on the host, without the last newline."""
        return str(self.ssh(["docker", *arguments], check=check).stdout).rstrip("\n")

    def put(self, local: Path | str, remote: str, *, delete: bool = False) -> None:
        """Copies a file, or what is in a folder, to ``remote`` (a path; for a folder, the folder itself)."""
        source = Path(local)
        self.ssh(["mkdir", "-p", remote if source.is_dir() else str(Path(remote).parent)])
        shell = shlex.join(["ssh", *self.ssh_options()])
        origin = f"{source}/" if source.is_dir() else str(source)
        argv = ["rsync", "-a", "--no-owner", "--no-group", *(["--delete"] if delete else []), "-e", shell]
        done = subprocess.run(
            [*argv, origin, f"root@{self.address}:{remote}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise HostError(f"{self.name}: rsync of {local} failed\n{done.stderr}")

    def load(self, archive: Path | str) -> str:
        """``docker load`` of an archive on the control side; its output is returned."""
        with Path(archive).open("rb") as stream:
            done = subprocess.run(
                ["ssh", *self.ssh_options(), f"root@{self.address}", "docker load"],
                stdin=stream,
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise HostError(f"{self.name}: docker load of {archive} failed\n{done.stderr}")
        return str(done.stdout)

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> dict[str, Any]:
        """Waits until SSH answers and the engine has the store asked for; returns ``docker info``."""
        deadline = time.monotonic() + timeout
        seen = "nothing"
        while time.monotonic() < deadline:
            done = self.ssh("docker info --format '{{json .}}'", check=False, timeout=60)
            if done.returncode == 0 and done.stdout.startswith("{"):
                info: dict[str, Any] = json.loads(done.stdout)
                if not info.get("ServerErrors") and info.get("ServerVersion"):
                    self._check_store(info)
                    return info
            seen = (done.stderr or done.stdout).strip()[-300:]
            self.container.reload()
            if self.container.status not in ("running", "created"):
                break
            time.sleep(0.1)
        tail = self.container.logs(tail=25).decode(errors="replace")
        raise HostError(f"{self.name} ({self.engine}, {self.store}) is not ready: {seen}\n{tail}")

    def _check_store(self, info: dict[str, Any]) -> None:
        status = dict(tuple(pair) for pair in info.get("DriverStatus") or [])
        found = "containerd" if status.get("driver-type", "").startswith("io.containerd.") else "classic"
        if found != self.store:
            raise HostError(f"{self.name}: image store is {found}, not {self.store}")
        if info["Driver"] not in ("overlay2", "overlayfs"):
            raise HostError(f"{self.name}: storage driver is {info['Driver']}, not overlay")

    def restart(self) -> None:
        """Reboots the host (``docker restart``) and waits until it is ready again."""
        self.container.restart(timeout=30)
        self.wait_ready()


def ssh_options(directory: Path) -> list[str]:
    """SSH options for the hosts whose run lies in ``directory``."""
    values = {
        "IdentityFile": directory / "id_ed25519",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": directory / "known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": "10",
        "LogLevel": "ERROR",
    }
    return ["-F", "/dev/null", *(part for key, value in values.items() for part in ("-o", f"{key}={value}"))]


@dataclass
class Hosts:
    """The hosts of one run. ``with Hosts.up("name", count=2) as hosts:`` removes them at the end."""

    name: str
    hosts: list[Host]

    @property
    def directory(self) -> Path:
        return RUNS / self.name

    @property
    def inventory(self) -> Path:
        return self.directory / "inventory.yml"

    def __iter__(self) -> Any:
        return iter(self.hosts)

    def __len__(self) -> int:
        return len(self.hosts)

    def __getitem__(self, index: int) -> Host:
        return self.hosts[index]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @classmethod
    def up(
        cls,
        name: str = "hosts",
        *,
        count: int = 2,
        engine: str = "trixie",
        store: str = "classic",
        connected: bool = False,
        fresh: bool = False,
        say: Callable[[str], None] = print,
    ) -> Hosts:
        """Brings exactly ``count`` hosts up and waits until they are ready.

        Hosts of that name which run and are as asked for stay as they are, unless ``fresh``; others are made anew.

        :param connected: also on the ordinary bridge network, with this machine's resolver and CA bundle
        :raises HostError: a host does not come up; ValueError: no such engine or store
        """
        _check(name, count, engine, store)
        wanted = {
            LABEL: "host",
            f"{LABEL}.run": name,
            f"{LABEL}.engine": engine,
            f"{LABEL}.store": store,
            f"{LABEL}.connected": str(connected).lower(),
            f"{LABEL}.image": ensure_image(engine, say),
            f"{LABEL}.files": _files_digest(),
        }
        maker = _Maker(name, wanted)
        maker.prepare(count, fresh)
        with ThreadPoolExecutor(max_workers=min(count, 8)) as pool:
            hosts = list(pool.map(maker.host, range(1, count + 1)))
        run = cls(name, hosts)
        run.write_inventory()
        return run

    @classmethod
    def get(cls, name: str = "hosts") -> Hosts:
        """The hosts of a run that is up."""
        client = docker.from_env()
        found = client.containers.list(all=True, filters={"label": f"{LABEL}.run={name}"})
        if not found:
            raise HostError(f"no hosts named {name!r}: make hosts NAME={name}")
        return cls(name, sorted((_known(each) for each in found), key=_order))

    def down(self) -> None:
        """Removes containers, volumes, network and the run's folder."""
        down(self.name)

    def write_inventory(self) -> Path:
        """Writes ``inventory.yml`` with the group ``offline-servers`` and returns its path."""
        common = shlex.join(ssh_options(self.directory))
        marker = (self.directory / "id").read_text(encoding="utf-8").strip()
        members = {host.name: {"ansible_host": host.address} for host in self.hosts}
        group = {
            "hosts": members,
            "vars": {
                "ansible_user": "root",
                "ansible_ssh_private_key_file": str(self.directory / "id_ed25519"),
                "ansible_ssh_common_args": common,
                # A run's own control sockets: an address may belong to another host by the next run.
                "ansible_control_path": f"%(directory)s/{marker}-%%h",
                "ansible_ssh_pipelining": True,
                "ansible_python_interpreter": "/usr/bin/python3",
            },
        }
        text = yaml.safe_dump({"all": {"children": {GROUP: group}}}, sort_keys=False, width=200)
        self.inventory.write_text(f"---\n{text}", encoding="utf-8")
        return self.inventory


def down(name: str) -> None:
    """Removes all that a run made, also when it was made only in part."""
    client = docker.from_env(timeout=120)
    label = {"label": f"{LABEL}.run={name}"}
    _remove(client.containers.list(all=True, filters=label))
    for volume in client.volumes.list(filters=label):
        volume.remove(force=True)
    for network in client.networks.list(filters=label):
        network.remove()
    shutil.rmtree(RUNS / name, ignore_errors=True)


def clean() -> None:
    """Removes every run and every host image."""
    for name in run_names():
        down(name)
    client = docker.from_env(timeout=120)
    for image in client.images.list(filters={"label": f"{LABEL}=host-image"}):
        client.images.remove(image.id, force=True)


def run_names() -> list[str]:
    """Names of the runs that are up."""
    found = docker.from_env().containers.list(all=True, filters={"label": f"{LABEL}.run"})
    return sorted({each.labels[f"{LABEL}.run"] for each in found})


def _files_digest() -> str:
    digest = hashlib.sha256()
    for source, _, _ in FILES:
        digest.update((ROOTFS / source).read_bytes())
    return digest.hexdigest()[:12]


def _check(name: str, count: int, engine: str, store: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
        raise ValueError(f"name {name!r}: small letters, digits and hyphens")
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r}: one of {', '.join(ENGINES)}")
    if store not in STORES:
        raise ValueError(f"store {store!r}: one of {', '.join(STORES)}")
    if store not in ENGINES[engine].stores:
        raise ValueError(f"engine {engine} has no {store} image store")
    if count < 1:
        raise ValueError("at least one host")


def _remove(containers: Iterable[Container]) -> None:
    def remove(container: Container) -> None:
        with contextlib.suppress(docker.errors.NotFound):
            container.remove(force=True, v=True)

    every = list(containers)
    if every:
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(remove, every))


def _known(container: Container) -> Host:
    labels = container.labels
    run = labels[f"{LABEL}.run"]
    return Host(
        name=labels[f"{LABEL}.host"],
        address=labels[f"{LABEL}.address"],
        engine=labels[f"{LABEL}.engine"],
        store=labels[f"{LABEL}.store"],
        directory=RUNS / run,
        container=container,
    )


def _order(host: Host) -> int:
    return int(re.sub(r"\D", "", host.name))


class _Maker:
    """Makes the containers of one run."""

    def __init__(self, name: str, labels: dict[str, str]) -> None:
        self.name = name
        self.labels = labels
        self.directory = RUNS / name
        self.client = docker.from_env(timeout=120)
        self.subnet = ipaddress.IPv4Network("0.0.0.0/0")

    def prepare(self, count: int, fresh: bool) -> None:
        """Keys and network; removes hosts that are too many or not as asked for."""
        present = self.client.containers.list(all=True, filters={"label": f"{LABEL}.run={self.name}"})
        keyed = (self.directory / "known_hosts").exists()
        if fresh or not keyed or any(self._differs(each) for each in present):
            down(self.name)
            present = []
        _remove(each for each in present if _order(_known(each)) > count)
        self._keys()
        self._network()

    def _differs(self, container: Container) -> bool:
        return container.status != "running" or any(container.labels.get(k) != v for k, v in self.labels.items())

    def _keys(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for key in ("id_ed25519", "host_key"):
            if not (self.directory / key).exists():
                argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{LABEL} test", "-f", key]
                subprocess.run(argv, cwd=self.directory, check=True, stdin=subprocess.DEVNULL)
        if not (self.directory / "id").exists():
            (self.directory / "id").write_text(os.urandom(4).hex(), encoding="utf-8")

    def _network(self) -> None:
        """An internal network whose subnet is named, for only such a one gives its members a fixed address."""
        name = f"ofr-{self.name}"
        networks = self.client.networks.list(names=[f"^{name}$"])
        if not networks:
            for _ in range(5):
                probe = self.client.networks.create(f"{name}-probe", internal=True, labels=self._small_labels())
                probe.reload()
                pool = docker.types.IPAMPool(subnet=probe.attrs["IPAM"]["Config"][0]["Subnet"])
                probe.remove()
                ipam = docker.types.IPAMConfig(pool_configs=[pool])
                try:
                    self.client.networks.create(name, internal=True, ipam=ipam, labels=self._small_labels())
                    break
                except docker.errors.APIError as error:  # another run took the subnet in between
                    if "overlap" not in str(error):
                        raise
            networks = self.client.networks.list(names=[f"^{name}$"])
        if not networks:
            raise HostError(f"no free subnet for the network {name}")
        networks[0].reload()
        self.subnet = ipaddress.IPv4Network(networks[0].attrs["IPAM"]["Config"][0]["Subnet"])
        key = " ".join((self.directory / "host_key.pub").read_text(encoding="utf-8").split()[:2])
        first = int(self.subnet.network_address)
        lines = [f"{ipaddress.IPv4Address(first + n)} {key}" for n in range(2, min(self.subnet.num_addresses, 256))]
        (self.directory / "known_hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _small_labels(self) -> dict[str, str]:
        return {LABEL: "host", f"{LABEL}.run": self.name}

    def host(self, number: int) -> Host:
        """The host of that number, ready."""
        client = docker.from_env(timeout=120)
        name = f"ofr-{self.name}-{number}"
        try:
            container = client.containers.get(name)
        except docker.errors.NotFound:
            container = self._create(client, name, number)
            _start(container)
        host = _known(container)
        host.wait_ready()
        return host

    def _create(self, client: docker.DockerClient, name: str, number: int) -> Container:
        address = str(ipaddress.IPv4Address(int(self.subnet.network_address) + 9 + number))
        labels = {**self.labels, f"{LABEL}.host": f"server{number}", f"{LABEL}.address": address}
        mounts = {}
        for kind, target in VOLUMES.items():
            client.volumes.create(f"{name}-{kind}", labels=self._small_labels())
            mounts[f"{name}-{kind}"] = {"bind": target, "mode": "rw"}
        network = f"ofr-{self.name}"
        connected = self.labels[f"{LABEL}.connected"] == "true"
        ends = client.api.create_networking_config({network: client.api.create_endpoint_config(ipv4_address=address)})
        settings = client.api.create_host_config(
            cap_drop=["ALL"],
            cap_add=capabilities(),
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            cgroupns="private",
            tmpfs={"/run": "exec,mode=755"},
            binds=mounts,
            network_mode=network,
        )
        settings["MaskedPaths"] = settings["ReadonlyPaths"] = []  # the CLI's systempaths=unconfined
        container = _create_with_known_capabilities(
            client,
            {
                "image": self.labels[f"{LABEL}.image"],
                "command": ["/usr/local/sbin/host-init"],
                "name": name,
                "hostname": f"server{number}",
                "labels": labels,
                "volumes": list(VOLUMES.values()),
                "host_config": settings,
                "networking_config": ends,
            },
        )
        if connected:
            client.networks.get("bridge").connect(container)
        container.put_archive("/", self._files(connected))
        container.reload()
        return container

    def _files(self, connected: bool) -> bytes:
        """What makes this host itself: keys and the engine's configuration (with no registry mirror)."""
        settings: dict[str, Any] = {"log-level": "warn"}
        if len(ENGINES[self.labels[f"{LABEL}.engine"]].stores) > 1:
            settings["features"] = {"containerd-snapshotter": self.labels[f"{LABEL}.store"] == "containerd"}
        if connected and resolvers():
            settings["dns"] = resolvers()
        files = {
            "root/.ssh/authorized_keys": ((self.directory / "id_ed25519.pub").read_bytes(), 0o600),
            "etc/ssh/ssh_host_ed25519_key": ((self.directory / "host_key").read_bytes(), 0o600),
            "etc/docker/daemon.json": (json.dumps(settings, indent=2).encode(), 0o644),
        }
        files.update((target, ((ROOTFS / source).read_bytes(), mode)) for source, target, mode in FILES)
        bundle = Path(os.environ.get("SSL_CERT_FILE", _CA_BUNDLE))
        if connected and bundle.is_file():
            files[_CA_BUNDLE.lstrip("/")] = (bundle.read_bytes(), 0o644)
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for folder, mode in (("root/.ssh", 0o700), ("etc/docker", 0o755), ("srv", 0o755)):
                info = tarfile.TarInfo(folder)
                info.type, info.mode = tarfile.DIRTYPE, mode
                archive.addfile(info)
            for path, (content, mode) in files.items():
                info = tarfile.TarInfo(path)
                info.size, info.mode = len(content), mode
                archive.addfile(info, io.BytesIO(content))
        return stream.getvalue()


def _create_with_known_capabilities(client: docker.DockerClient, arguments: dict[str, Any]) -> Container:
    """Creates a container without the capabilities that this machine's engine has no name for (it tells them)."""
    while True:
        try:
            return client.containers.get(client.api.create_container(**arguments)["Id"])
        except docker.errors.APIError as error:
            unknown = re.search(r'unknown capability: "?(?:CAP_)?([A-Z_]+)', str(error))
            if not unknown or unknown.group(1) not in arguments["host_config"]["CapAdd"]:
                raise HostError(f"{arguments['name']} cannot be made: {error}") from error
            arguments["host_config"]["CapAdd"].remove(unknown.group(1))


def _start(container: Container) -> None:
    try:
        container.start()
    except docker.errors.APIError as error:
        raise HostError(f"{container.name} does not start: {error}") from error


def resolvers() -> list[str]:
    """This machine's name servers that another network namespace can use (no loopback ones)."""
    found: list[str] = []
    for file in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        servers = [line.split()[1] for line in lines if line.startswith("nameserver ") and len(line.split()) > 1]
        found += [server for server in servers if not server.startswith("127.") and ":" not in server]
    return list(dict.fromkeys(found))


#: Names by number, from linux/capability.h.
_CAPABILITIES = tuple(
    (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
        "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
        "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
        "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)


def capabilities() -> list[str]:
    """The capabilities of this machine's bounding set, by name: ``--privileged`` asks for those it lacks, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    bounding = int(re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE).group(1), 16)  # type: ignore[union-attr]
    return [name for bit, name in enumerate(_CAPABILITIES) if bounding >> bit & 1]

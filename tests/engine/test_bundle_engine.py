"""A bundle, made by the playbook on the engine here, and imported by the playbook on a real air-gapped host.

``OFR_ENGINE`` and ``OFR_STORE`` choose the host. The engine here may lack the plugins that a connected machine has:
they are taken from a host's image then.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.equality.bases import busybox
from tests.hosts import Host, Hosts, ensure_image

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
BASE = "127.0.0.1:9/bundle/base:1"
APP, STAGE, BALLAST = "bundle-tiny-web:1", "bundle-tiny-web:builder", "bundle-ballast:1"
PYZ = "/opt/offline/offline-rebuild.pyz"
STATE = "/var/lib/offline-rebuild"
COMPOSE = """name: bundletiny
services:
  web:
    build: ./web
    image: bundle-tiny-web:1
    stop_signal: SIGKILL
"""
BASE_FILE = 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
DOCKERFILE = f"""FROM {BASE} AS builder
COPY src /src
RUN mkdir /out && cat /src/a /src/b > /out/page
FROM {BASE}
RUN head -c 300000 /dev/urandom > /ballast
COPY --from=builder /out /www
COPY run.sh /run.sh
CMD ["sh", "/run.sh"]
"""
#: A plan with the ways to read a layer closed.
DRIVER = f"""
import json, sys
sys.path.insert(0, {PYZ!r})
from offline_rebuild import layers
from offline_rebuild.run import Request, execute
read = []
def closed(*args, **kwargs):
    read.append(str(args))
    raise AssertionError("a layer was read")
layers._read_directory = layers.LayerReader._read_blob = layers.LayerReader._read_saved = closed
plan = execute(Request("/srv/tiny", check=True, evidence="recorded")).plan.to_dict()
print(json.dumps({{"read": read, "services": plan["services"]}}))
"""


@dataclass
class Site:
    """The connected side's folder and environment, and the host."""

    folder: Path
    hosts: Hosts
    env: dict[str, str]

    @property
    def host(self) -> Host:
        return self.hosts[0]

    def play(self, name: str, code: int = 0, check: bool = False, **variables: Any) -> str:
        argv = [
            "ansible-playbook",
            "-i",
            self.hosts.inventory,
            ROOT / f"playbooks/{name}.yml",
            "-e",
            json.dumps(variables),
        ]
        done = subprocess.run(
            [*argv, *(["--check"] if check else [])], cwd=ROOT, env=self.env, capture_output=True, text=True
        )
        assert "Traceback" not in done.stdout + done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def make(self, name: str, **more: Any) -> Path:
        given = {"offline_rebuild_bundle": str(self.folder / name), "offline_rebuild_project_src": str(self.tree)}
        key = {"offline_rebuild_bundle_sign_key": str(self.folder / "key")}
        self.play("bundle", **given, **key, offline_rebuild_bundle_build_stages=True, **more)
        return self.folder / name

    def take(self, bundle: Path, code: int = 0, check: bool = False, **more: Any) -> str:
        signers = str(self.folder / "signers")
        given = {"offline_rebuild_bundle": str(bundle), "offline_rebuild_bundle_allowed_signers": signers}
        return self.play("import", code, check, **{**given, **more})

    @property
    def tree(self) -> Path:
        return self.folder / "tiny"

    def build(self) -> None:
        subprocess.run(["docker", "compose", "build", "-q"], cwd=self.tree, env=self.env, check=True)

    def state(self) -> list[str]:
        """What is on the host: images, and files of the state folder."""
        images = self.host.docker("image", "ls", "-a", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}")
        files = self.host.ssh(f"find {STATE} -type f -printf '%p %s %T@\\n' 2>/dev/null || true").stdout
        return sorted(images.splitlines() + files.splitlines())


def plugins(folder: Path) -> dict[str, str]:
    """An environment in which ``docker compose`` and ``docker buildx`` are there."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return dict(os.environ)
    (folder / "cli-plugins").mkdir(parents=True)
    made = subprocess.run(
        ["docker", "create", ensure_image("trixie"), "true"], check=True, capture_output=True, text=True
    )
    for name in ("docker-compose", "docker-buildx"):
        source = f"{made.stdout.strip()}:/usr/libexec/docker/cli-plugins/{name}"
        subprocess.run(["docker", "cp", source, folder / "cli-plugins"], check=True, capture_output=True)
    subprocess.run(["docker", "rm", made.stdout.strip()], check=True, capture_output=True)
    return {**os.environ, "DOCKER_CONFIG": str(folder)}


def signer(folder: Path, name: str) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    return " ".join((folder / f"{name}.pub").read_text().split()[:2])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("bundle")
    engine, store = os.environ.get("OFR_ENGINE", "trixie"), os.environ.get("OFR_STORE", "classic")
    with Hosts.up("bundle", count=1, engine=engine, store=store) as hosts:
        env = {**plugins(folder / "docker"), "DOCKER_BUILDKIT": "1"}
        made = Site(folder, hosts, {**env, "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"})
        (folder / "signers").write_text(f"release@example.org {signer(folder, 'key')}\n")
        (folder / "base").mkdir()
        shutil.copy(busybox(), folder / "base/busybox")
        (folder / "base/Dockerfile").write_text(BASE_FILE)
        files = {"docker-compose.yml": COMPOSE, "web/Dockerfile": DOCKERFILE, "web/run.sh": "sleep 100000\n"}
        for name, text in {**files, "web/src/a": "a\n", "web/src/b": "b\n"}.items():
            (made.tree / name).parent.mkdir(parents=True, exist_ok=True)
            (made.tree / name).write_text(text)
        subprocess.run(["docker", "build", "-q", "-t", BASE, folder / "base"], env=made.env, check=True)
        made.build()
        subprocess.run([sys.executable, ROOT / "scripts/make-pyz", folder / "dist"], check=True, capture_output=True)
        hosts[0].put(folder / "dist", "/opt/offline")
        hosts[0].put(made.tree, "/srv/tiny")
        yield made
    subprocess.run(["docker", "image", "rm", "-f", APP, STAGE, BALLAST, BASE], capture_output=True, check=False)


def damage(bundle: Path, target: Path, how: str) -> Path:
    """A copy of a bundle's file with a fault in a layer's bytes, or at its end."""
    data = bytearray(bundle.read_bytes())
    if how == "cut":
        data = data[: len(data) - 300_000]
    else:
        data[len(data) // 2] ^= 1
    target.write_bytes(data)
    return target


def test_a_damaged_bundle_is_refused_before_anything_is_loaded(site: Site) -> None:
    bundle = site.make("first.tar")
    before = site.state()
    for how in ("cut", "flip"):
        said = site.take(damage(bundle, site.folder / f"{how}.tar", how), code=2)
        assert "bundle-invalid" in said
    stranger = site.folder / "strangers"
    stranger.write_text(f"other@example.org {signer(site.folder, 'other')}\n")
    said = site.take(bundle, code=2, offline_rebuild_bundle_allowed_signers=str(stranger))
    assert "bundle-signature" in said
    assert site.state() == before


def test_check_mode_changes_nothing_and_says_what_it_would_load(site: Site) -> None:
    before = site.state()
    said = site.take(site.folder / "first.tar", check=True)
    assert "would take" in said
    assert f"{APP} (5 of 5 layers" in said
    assert "changed=1" in said
    assert site.state() == before


def test_the_first_edit_has_recorded_evidence_and_no_layer_is_read(site: Site) -> None:
    host = site.host
    host.ssh(f"mkdir -p {STATE}/incoming && echo cut > {STATE}/incoming/archive.tar")  # a run that was cut off
    said = site.take(site.folder / "first.tar")
    assert "signed by release@example.org" in said
    held = host.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
    assert {APP, STAGE, BASE} <= set(held)
    assert not [name for name in held if "<none>" in name]
    assert host.ssh(f"ls {STATE}/incoming", check=False).returncode != 0
    host.ssh("echo changed > /srv/tiny/web/src/a && echo 'sleep 200000' > /srv/tiny/web/run.sh")
    plan = json.loads(host.ssh("python3 -", input=DRIVER).stdout)
    (service,) = plan["services"]
    assert plan["read"] == []
    assert (service["action"], service["evidence"]) == ("rebuild", "recorded"), service


def test_a_second_import_changes_nothing(site: Site) -> None:
    before = site.state()
    said = site.take(site.folder / "first.tar")
    assert "changed=0" in said
    assert "all of the bundle is there" in said
    assert site.state() == before
    # a service was rebuilt since: its name stands for another image, and goes on to
    site.host.docker("tag", APP, "kept:1")
    site.host.docker("tag", BASE, APP)
    rebuilt = site.state()
    assert "changed=0" in site.take(site.folder / "first.tar")
    assert site.state() == rebuilt
    site.host.docker("tag", "kept:1", APP)
    site.host.docker("image", "rm", "kept:1")


def test_a_differential_bundle_carries_only_the_new_layer(site: Site) -> None:
    (site.tree / "web/run.sh").write_text("sleep 300000\n")
    site.build()
    bundle = site.make("second", offline_rebuild_bundle_since=str(site.folder / "first.tar"))
    index = json.loads((bundle / "index.json").read_text())
    (image,) = (image for image in index["images"] if APP in image["refs"])
    carried = {part["path"] for part in index["parts"]}
    blobs = [layer["size"] for layer in image["layers"] if f"blobs/sha256/{layer['digest'][7:]}" in carried]
    assert len(blobs) == 1
    assert blobs[0] < 20_000
    assert len(index["needs"]["layers"]) == 6
    said = site.take(bundle)
    assert f"{APP}" in said
    digest = site.host.ssh(["docker", "image", "inspect", "-f", "{{json .RootFS.Layers}}", APP]).stdout
    assert json.loads(digest) == image["diff_ids"]
    assert "<none>" not in site.host.docker("image", "ls")
    assert "bundle-older" in site.take(site.folder / "first.tar", code=2)


def test_a_host_without_the_base_refuses_a_differential_bundle(site: Site) -> None:
    site.host.docker("image", "rm", "-f", *site.host.docker("image", "ls", "-aq").split())
    before = site.state()
    assert "bundle-base-missing" in site.take(site.folder / "second", code=2)
    assert site.state() == before
    assert "bundle-older" in site.take(site.folder / "first.tar", code=2)
    said = site.take(site.folder / "first.tar", offline_rebuild_bundle_allow_older=True)
    assert "loaded:" in said


def test_an_import_that_is_killed_is_simply_repeated(site: Site) -> None:
    (site.folder / "ballast").mkdir()
    (site.folder / "ballast/Dockerfile").write_text(f"FROM {BASE}\nRUN head -c 80000000 /dev/urandom > /ballast\n")
    subprocess.run(["docker", "build", "-q", "-t", BALLAST, site.folder / "ballast"], env=site.env, check=True)
    bundle = site.make("third", offline_rebuild_bundle_images=[BALLAST])
    given = {"offline_rebuild_bundle": str(bundle), "offline_rebuild_bundle_unsigned": True}
    argv = ["ansible-playbook", "-i", site.hosts.inventory, ROOT / "playbooks/import.yml", "-e", json.dumps(given)]
    run = subprocess.Popen(argv, cwd=ROOT, env=site.env, stdout=subprocess.DEVNULL, start_new_session=True)
    while run.poll() is None and site.host.ssh(f"test -s {STATE}/incoming/archive.tar", check=False).returncode != 0:
        continue
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    site.host.ssh("pkill -KILL -f '[A]nsiballZ_'; pkill -KILL -f '[d]ocker load'", check=False)
    assert "<none>" not in site.host.docker("image", "ls")
    site.take(bundle)
    held = site.host.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
    assert BALLAST in held
    assert not [name for name in held if "<none>" in name]
    assert site.host.ssh(f"ls {STATE}/incoming", check=False).returncode != 0
    assert "changed=0" in site.take(bundle)


def test_a_bundle_sets_up_a_control_node_with_no_network(site: Site) -> None:
    bundle = site.make("control.tar", offline_rebuild_bundle_control_node=True)
    with tarfile.open(bundle) as archive:
        wheels = {name.split("/")[-1].split("-")[0].lower() for name in archive.getnames() if name.endswith(".whl")}
        inner = archive.extractfile("control/offline-rebuild.tar")
        assert inner is not None
        with tarfile.open(fileobj=inner) as project:
            project.extractall(site.folder / "gap", filter="data")
    root = site.folder / "gap/offline-rebuild"
    locked = re.findall(r"^([a-z0-9_.-]+)==", (root / "requirements-control.txt").read_text(), re.MULTILINE)
    assert {re.sub(r"[-.]", "_", name) for name in locked} == wheels  # those for other Pythons than this one, too
    quiet = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_", "VIRTUAL_ENV"))}
    offline = ["unshare", "-n"] if os.geteuid() == 0 else []
    make = [*offline, "make", "setup", f"BUNDLE={bundle}", f"SIGNERS={site.folder / 'signers'}"]
    done = subprocess.run(make, cwd=root, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "signed by release@example.org" in done.stdout
    version = [*offline, root / ".venv/bin/ansible-playbook", "--version"]
    assert "core 2." in subprocess.run(version, cwd=root, env=quiet, capture_output=True, text=True, check=True).stdout
    damaged = damage(bundle, site.folder / "damaged.tar", "flip")
    done = subprocess.run(
        [*offline, "make", "setup", f"BUNDLE={damaged}"], cwd=root, env=quiet, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "bundle-invalid" in done.stderr

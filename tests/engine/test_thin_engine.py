"""Thin layers on two hosts of different image stores: import, the same image, a pruned ancestor, what is removed.

``OFR_ENGINE`` names the engine of both; ``OFR_THIN_NAME`` the hosts.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from module_utils.offline_rebuild.image import sha256
from tests.equality.bases import busybox
from tests.hosts import Host, Hosts

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
NAME = os.environ.get("OFR_THIN_NAME", "stores")
ENGINE = os.environ.get("OFR_ENGINE", "trixie")
SRC = "/srv/project"
STATE = "/var/lib/offline-rebuild"
TIME = 1767323045
COMPOSE = """services:
  web:
    build: ./web
    image: ofr-thin-web:1
    command: [sleep, "100000"]
    stop_signal: SIGKILL
"""
DOCKERFILE = "FROM ofr-thin-base:1\nWORKDIR /app\nRUN touch /made\nCOPY . .\nENV A=1\n"
DRIVER = """
import json, sys
sys.dont_write_bytecode = True
sys.path.insert(0, "/opt/ofr")
from offline_rebuild.errors import OfflineRebuildError
from offline_rebuild.importer import ImportRequest, import_archives
from offline_rebuild.run import Request, execute
given = json.load(sys.stdin)
try:
    if "archives" in given:
        answer = import_archives(ImportRequest(**given))
    else:
        answer = execute(Request(**given)).to_dict()
except OfflineRebuildError as error:
    answer = {"error": error.to_dict()}
print(json.dumps(answer))
"""


class Pair:
    """A host of each store, with the project's sources and, to begin with, no image."""

    def __init__(self, hosts: list[Host], folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder
        self.archive = folder / "images.tar"
        self.inventory = folder / "inventory.yml"
        self._write_inventory()

    def _write_inventory(self) -> None:
        members: dict[str, Any] = {}
        for host in self.hosts:
            group = yaml.safe_load((host.directory / "inventory.yml").read_text())["all"]["children"]["offline-servers"]
            members[host.store] = {**group["hosts"][host.name], **group["vars"]}
        variables = {"offline_rebuild_project_src": SRC, "offline_rebuild_gate_timeout": 30}
        group = {"offline-servers": {"hosts": members, "vars": variables}}
        self.inventory.write_text(yaml.safe_dump({"all": {"children": group}}))

    def playbook(self, name: str, *options: str) -> str:
        program = Path(sys.executable).parent / "ansible-playbook"
        done = subprocess.run(
            [str(program), name, "-i", str(self.inventory), *options],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "NO_COLOR": "1",
                "ANSIBLE_FORCE_COLOR": "0",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def call(host: Host, **request: Any) -> dict[str, Any]:
    if "archives" not in request:
        request = {"project_src": SRC, "gate_timeout": 30, "run_time": TIME, **request}
    answer: dict[str, Any] = json.loads(host.ssh(["python3", "-c", DRIVER], input=json.dumps(request)).stdout)
    return answer


def write(host: Host, files: dict[str, str | None], time: int) -> None:
    script = f"mkdir -p {SRC}/web && cd {SRC}\n"
    for path, text in files.items():
        script += f"rm -f {path}\n" if text is None else f"printf %s '{text}' > {path}; chmod 644 {path}\n"
    host.ssh(script + f"find . -exec touch -h -d @{time} {{}} +")


def images(host: Host) -> set[str]:
    return set(host.docker("image", "ls", "-aq", "--no-trunc").split())


def layers(host: Host) -> list[str]:
    found: list[str] = json.loads(
        host.docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", "ofr-thin-web:1")
    )
    return found


def served(host: Host, path: str) -> str:
    return str(host.ssh(f"cd {SRC} && docker compose exec -T web cat /app/{path}", check=False).stdout)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with (
        Hosts.up(f"{NAME}-classic", count=1, engine=ENGINE, store="classic") as one,
        Hosts.up(f"{NAME}-containerd", count=1, engine=ENGINE, store="containerd") as two,
    ):
        made = Pair([one[0], two[0]], tmp_path_factory.mktemp("pair"))
        for place, host in enumerate(made.hosts):
            host.put(ROOT / "module_utils" / "offline_rebuild", "/opt/ofr/offline_rebuild")
            tree = {"compose.yaml": COMPOSE, "web/Dockerfile": DOCKERFILE, "web/a.txt": "one", "web/b.txt": "two"}
            write(host, tree, TIME + place)  # type: ignore[arg-type]
        build(made)
        yield made


def build(pair: Pair) -> None:
    """The connected side: the first host builds the image, which is saved; then nothing of it is left there."""
    host = pair.hosts[0]
    host.put(busybox(), "/srv/base/bin/busybox")
    host.ssh(
        "cd /srv/base/bin && for a in sh touch sleep cat; do ln -sf busybox $a; done"
        " && tar -C /srv/base -c . | docker import - ofr-thin-base:1 > /dev/null && rm -r /srv/base"
        f" && cd {SRC} && DOCKER_BUILDKIT=1 docker build -q --network=none -t ofr-thin-web:1 web"
    )
    argv = ["ssh", *host.ssh_options(), f"root@{host.address}", "docker save ofr-thin-web:1"]
    with pair.archive.open("wb") as stream:
        subprocess.run(argv, stdout=stream, stdin=subprocess.DEVNULL, check=True)
    host.ssh("docker image rm -f $(docker image ls -aq | sort -u) && docker builder prune -af")
    assert images(host) == set()


@pytest.fixture(scope="module")
def imported(pair: Pair) -> Pair:
    """The playbook's import from the control node: what check mode says, the import, and a second one."""
    given = json.dumps({"offline_rebuild_archives": [str(pair.archive)], "offline_rebuild_archives_push": True})
    said = pair.playbook("playbooks/import.yml", "-e", given, "--check")
    assert said.count("would be loaded: ofr-thin-web:1") == 2, said
    for host in pair.hosts:
        assert images(host) == set()
        assert host.ssh(f"ls {STATE}", check=False).stdout == ""
    said = pair.playbook("playbooks/import.yml", "-e", given)
    assert said.count("loaded: ofr-thin-web:1") == 2, said
    for host in pair.hosts:
        assert len(images(host)) == 1
        assert host.ssh(f"ls {STATE}").stdout.split() == ["layers"]
    said = pair.playbook("playbooks/import.yml", "-e", given)
    assert said.count("changed=0") == 2, said
    assert said.count("all images are there") == 2, said
    pair.playbook("playbooks/import.yml", "--tags", "prime")
    for host in pair.hosts:
        answer = call(host)
        assert answer["release"]["state"] == "done", answer
        assert answer["plan"]["services"][0]["evidence"] == "recorded"
    return pair


def test_an_archive_that_is_bad_stops_the_import_with_nothing_loaded(imported: Pair) -> None:
    host = imported.hosts[0]
    host.put(imported.archive, "/srv/in/good.tar")
    host.ssh("docker tag ofr-thin-web:1 ofr-thin-new:1 && docker save ofr-thin-new:1 -o /srv/in/new.tar")
    host.docker("image", "rm", "ofr-thin-new:1")
    host.ssh("docker save $(docker image ls -q ofr-thin-web:1) -o /srv/in/nameless.tar")
    with tarfile.open(imported.archive) as archive:
        stream = archive.extractfile("manifest.json")
        assert stream is not None
        item = json.load(stream)[0]
        stream = archive.extractfile(item["Config"])
        assert stream is not None
        config = json.dumps({**json.load(stream), "architecture": "s390x"}).encode()
    name = f"blobs/sha256/{sha256(config).split(':')[1]}"
    other = imported.folder / "other.tar"
    with tarfile.open(other, "w") as archive:
        for path, data in ((name, config), ("manifest.json", json.dumps([{**item, "Config": name}]).encode())):
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    host.put(other, "/srv/in/other.tar")
    host.ssh("cd /srv/in && head -c 100000 good.tar > cut.tar && echo no > text.tar")
    before = images(host)
    for bad, code in (
        ("cut.tar", "archive-invalid"),
        ("text.tar", "archive-invalid"),
        ("other.tar", "archive-platform"),
        ("absent.tar", "archive-missing"),
        ("nameless.tar", "archive-invalid"),
    ):
        for check in (True, False):
            answer = call(host, archives=["/srv/in/new.tar", f"/srv/in/{bad}"], check=check)
            assert answer["error"]["code"] == code, answer
            assert answer["error"]["file"] == f"/srv/in/{bad}"
            assert answer["error"]["remedy"]
    assert images(host) == before
    assert "ofr-thin-new:1" not in host.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")


def test_the_same_image_on_both_stores_whatever_the_times(imported: Pair) -> None:
    made = []
    for place, host in enumerate(imported.hosts):
        write(host, {"web/a.txt": "1.1", "web/b.txt": None, "web/c.txt": "new"}, TIME + 1000 * place)
        answer = call(host)
        assert answer["release"]["state"] == "done", answer
        made += answer["images"]
    assert made[0]["way"] == "assemble"
    assert made[0] == made[1]
    assert len(made[0]["layers"]) == len(set(made[0]["layers"]))
    for host in imported.hosts:
        assert layers(host) == made[0]["layers"]
        assert (served(host, "a.txt"), served(host, "b.txt"), served(host, "c.txt")) == ("1.1", "", "new")


def test_the_run_compares_the_hosts(imported: Pair) -> None:
    for place, host in enumerate(imported.hosts):
        write(host, {"web/a.txt": "1.2"}, TIME + 77 * place)
    said = imported.playbook("rebuild.yml")
    assert "The tree" not in said
    assert "the tree on" not in said
    assert layers(imported.hosts[0]) == layers(imported.hosts[1])
    write(imported.hosts[1], {"web/a.txt": "another"}, TIME)
    assert "web: the tree on containerd is not the one on classic" in imported.playbook("rebuild.yml", "--check")


def test_layers_do_not_pile_up_where_the_ancestor_was_pruned(imported: Pair) -> None:
    for host in imported.hosts:
        write(host, {"web/a.txt": "before", "web/c.txt": None, "web/d.txt": "d"}, TIME)
        assert call(host)["release"]["state"] == "done"
        count = len(layers(host))
        host.docker("image", "prune", "-af")
        assert len(images(host)) == 1  # the one that runs
        for number in range(2):
            write(host, {"web/a.txt": f"after {number}", "web/d.txt": None, f"web/e{number}": "e"}, TIME)
            answer = call(host)
            assert answer["plan"]["services"][0]["way"] == "assemble", answer
            assert answer["release"]["state"] == "done"
            assert len(layers(host)) == count
            assert (served(host, "a.txt"), served(host, f"e{number}")) == (f"after {number}", "e")
            assert served(host, "d.txt") == served(host, "b.txt") == served(host, "c.txt") == ""
            if not number:
                host.docker("image", "prune", "-af")


def named_by_releases(host: Any) -> set[str]:
    """The images that the kept releases name."""
    found: set[str] = set()
    for path in host.ssh(f"ls {STATE}/releases/*/*Z-??????.json").stdout.split():
        for record in json.loads(host.ssh(["cat", path]).stdout)["services"].values():
            found.update(record[key] for key in ("before", "after", "tag_before"))
    return found


def test_what_is_kept_does_not_grow(imported: Pair) -> None:
    for host in imported.hosts:
        host.docker("tag", "ofr-thin-web:1", "kept-by-others:1")
        foreign = host.docker("image", "inspect", "--format", "{{.Id}}", "kept-by-others:1")
        sizes = []
        for number in range(4):
            host.ssh(f"find {STATE} -type f -exec touch -d '2 hours ago' {{}} +")
            write(host, {"web/a.txt": f"kept {number}"}, TIME)
            before = images(host) | named_by_releases(host)
            assert call(host, keep_releases=1)["release"]["state"] == "done"
            kept = {name: host.ssh(f"ls {STATE}/{name}").stdout.split() for name in ("records", "manifests", "layers")}
            sizes.append((len(images(host)), *(len(found) for found in kept.values())))
        assert sizes[-1] == sizes[-2], sizes
        # what an image has that goes with a release goes a run later
        known = {name.split(":")[-1] for name in images(host) | named_by_releases(host) | before}
        assert {name.split(".")[0] for name in kept["records"]} <= known
        assert foreign in images(host)
        assert served(host, "a.txt") == "kept 3"


def test_a_graft_that_was_left_is_removed(imported: Pair) -> None:
    host = imported.hosts[0]
    left = "127.0.0.1:9/offline-rebuild/graft:left"
    host.docker("tag", "ofr-thin-web:1", left)
    write(host, {"web/a.txt": "last"}, TIME)
    assert call(host)["release"]["state"] == "done"
    assert left not in host.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")


PLACES = """
import json, sys
sys.dont_write_bytecode = True
sys.path.insert(0, "/opt/ofr")
from offline_rebuild.cli import Docker
from offline_rebuild.image import ImageStore
from offline_rebuild.layers import LayerReader
from offline_rebuild.places import RunningLayers
docker = Docker()
store = ImageStore(docker)
image = store.find("ofr-thin-web:1")
readers = []
for places in (RunningLayers(docker, store.layers), None):
    readers.append(
        LayerReader(docker, image.inspect, image.diff_ids, image.layer_descriptors, store.content_dir, places=places)
    )
def plain(layer):
    return {
        path: [e.type, e.mode, e.uid, e.gid, e.size, e.link, e.xattrs, e.content_digest()]
        for path, e in layer.entries.items()
    }
found = []
for index in range(len(image.diff_ids)):
    placed, read = readers[0].layer(index), readers[1].layer(index)
    more = {path: e for path, e in plain(placed).items() if path not in read.entries}
    found.append({
        "same": {p: e for p, e in plain(placed).items() if p in read.entries} == plain(read)
        and (placed.whiteouts, placed.opaques) == (read.whiteouts, read.opaques),
        "more": sorted({e[0] for e in more.values()}),
    })
print(json.dumps({"in place": [r.in_place for r in readers], "layers": found}))
"""


def test_a_running_containers_layers_are_read_in_place(imported: Pair) -> None:
    """On the containerd store they are what the blobs hold; a folder on the way that a blob leaves out is shown too."""
    report = json.loads(imported.hosts[1].ssh(["python3", "-c", PLACES]).stdout)
    assert report["in place"] == [True, False]
    assert len(report["layers"]) > 4
    for found in report["layers"]:
        assert found["same"], report
        assert found["more"] in ([], ["dir"]), report

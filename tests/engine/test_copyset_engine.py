"""COPY and ADD as real engines write them, against ``copy_set`` and ``compare``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict

import pytest

from module_utils.offline_rebuild.cli import Docker
from module_utils.offline_rebuild.layers import EvidenceStore, LayerReader
from tests.engine import copy_round

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def docker() -> Docker:
    """The engine of this machine."""
    found = copy_round.find_docker()
    if found is None:
        pytest.skip("no docker command here can build with BuildKit")
    return found


def check_fixed(result: Dict[str, Any]) -> None:
    """All fixed cases equal, none untold, and nothing told that must not be."""
    assert "error" not in result, result["error"]
    assert result["cases"] >= 100
    assert result["different"] == []
    assert result["untold"] == []
    assert result["false_told"] == []
    assert result["not_refused"] == []


def check_random(result: Dict[str, Any]) -> None:
    """What was written is what was told, and a changed tree is seen where, and only where, it changes the layer."""
    assert result["different"] == [], result
    assert result["false_reuse"] == [], result
    assert result["false_change"] == [], result


def test_fixed_forms(docker: Docker) -> None:
    check_fixed(copy_round.run_fixed(docker))


@pytest.mark.parametrize("seed", [101, 102, 103])
def test_random_trees(docker: Docker, seed: int) -> None:
    check_random(copy_round.run_random(docker, seed))


def test_every_way_of_reading_agrees(docker: Docker, tmp_path: Path) -> None:
    """In place, out of ``docker save`` and out of the evidence store: the same layers."""
    copy_round.make_base(docker)
    context = tmp_path / "c"
    context.mkdir()
    copy_round.fixed_context(context)
    tag = copy_round.PREFIX + "ways:1"
    texts = ["COPY d /srv/", "COPY --chown=app . /x/", "COPY --from=source /bin/ping /y/"]
    _, error = copy_round.build(docker, context, texts, tag)
    assert not error, error
    try:
        direct = copy_round.reader_of(docker, tag)
        saved = LayerReader(docker, docker.inspect("image", [tag])[0], direct.diff_ids)
        saved._directories = {}  # as on a host whose directories cannot be read
        store = str(tmp_path / "evidence")
        keeping = copy_round.reader_of(docker, tag, store)
        for index in range(len(direct.diff_ids)):
            keeping.record(index)
        kept = EvidenceStore(store)
        for index, diff_id in enumerate(direct.diff_ids):
            # The root of an overlay2 layer is there without being in its archive.
            states = [dict(copy_round._state(layer)) for layer in (direct.layer(index), saved.layer(index))]
            assert states[0] == states[1]
            again = kept.load(diff_id)
            assert again is not None
            assert dict(copy_round._state(again)) == states[0]
        top = len(direct.diff_ids) - 1
        for path in ("srv", "srv/data/old.txt", "opt/app", "x/d/f1", "bin/ping", "gone/x", "opt/app/target.txt"):
            one, two = direct.lookup(path, top), saved.lookup(path, top)
            assert (one is None) == (two is None)
            if one is not None and two is not None:
                assert (one.type, one.mode, one.uid, one.gid, one.size, one.link, one.xattrs) == (
                    two.type,
                    two.mode,
                    two.uid,
                    two.gid,
                    two.size,
                    two.link,
                    two.xattrs,
                )
        assert direct.resolve("opt/abs/x", top) == saved.resolve("opt/abs/x", top) == "opt/real/deep/x"
        assert direct.content("opt/file", top) == saved.content("opt/file", top) == b"target"
        ways = [{p: (e.type, e.mode, e.uid) for p, e in r.listing("srv", top).items()} for r in (direct, saved)]
        assert ways[0] == ways[1]
        assert "srv/data/old.txt" in ways[0]
        assert [x[0] for x in direct.layer(top).entries["y/ping"].xattrs] == ["security.capability"]
    finally:
        docker.run("image", "rm", tag, copy_round.BASE, check=False)


def test_check_mode_writes_nothing(docker: Docker, tmp_path: Path) -> None:
    copy_round.make_base(docker)
    image = docker.inspect("image", [copy_round.BASE])[0]
    store = tmp_path / "evidence"
    reader = LayerReader(docker, image, image["RootFS"]["Layers"], evidence=EvidenceStore(str(store)), may_write=False)
    reader.record(0)
    docker.run("image", "rm", copy_round.BASE, check=False)
    assert not store.exists()


@pytest.mark.parametrize(
    ("engine", "image_store"), [("trixie", "containerd"), ("testing", "containerd"), ("trixie", "classic")]
)
def test_on_other_engines(engine: str, image_store: str) -> None:
    """The same rounds on hosts with other engines and stores."""
    if os.environ.get("OFR_ENGINE_HOSTS") != "1":
        pytest.skip("OFR_ENGINE_HOSTS=1 runs this; it brings hosts up")
    from tests.hosts import Hosts

    with Hosts.up(f"copyset-{engine}-{image_store}", count=1, engine=engine, store=image_store) as hosts:
        host = hosts[0]
        host.ssh("mkdir -p /root/copyset/module_utils")
        host.put(ROOT / "module_utils/offline_rebuild", "/root/copyset/module_utils/offline_rebuild")
        host.put(ROOT / "tests/engine/copy_round.py", "/root/copyset/copy_round.py")
        for what, seed in (("fixed", 0), ("random", 104), ("random", 105)):
            said = host.ssh(f"python3 /root/copyset/copy_round.py /root/copyset {what} {seed}").stdout
            (check_fixed if what == "fixed" else check_random)(json.loads(said))

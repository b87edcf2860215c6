"""What is pruned and what stays: the decision, the bytes, the parsers. What needs an engine is in tests/engine."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from module_utils.offline_rebuild import prune
from module_utils.offline_rebuild.graft import REGISTRY
from module_utils.offline_rebuild.prune import CacheEntry, Found, LocalImage, decide, freed_by
from module_utils.offline_rebuild.release import Journal, Release, ServiceRecord

OLD, NEW = "20260101T000000Z-aaaaaa", "20260102T000000Z-bbbbbb"
FOUND = Found("shop", frozenset({"shop-web"}), ("web",), releases=frozenset({NEW}), now=100 * prune.DAY)


def going(*images: LocalImage, **more: object) -> set[tuple[str, str]]:
    return {(i.kind, i.name) for i in decide(replace(FOUND, images=images, **more))[0]}  # type: ignore[arg-type]


def image(*names: str, **more: object) -> LocalImage:
    return LocalImage("sha256:1", names, nameless=not names, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{REGISTRY}/build:shop-web", "graft"),
        (f"{REGISTRY}/build:other-web", "graft"),
        (f"{REGISTRY}/sent:shop-web", ""),
        ("127.0.0.1:9/bundle/base:1", ""),
        (f"shop-web:offline-rebuild-{OLD}", "kept"),
        (f"shop-web:offline-rebuild-{OLD}-web", "kept"),
        (f"shop-web:offline-rebuild-{NEW}", ""),
        (f"other-web:offline-rebuild-{OLD}", ""),
        ("shop-web:offline-rebuild-mine", ""),
        ("shop-web:offline-rebuild-debug", "debug"),
        ("shop-db:offline-rebuild-debug", ""),
        ("shop-web:latest", ""),
    ],
)
def test_a_name_goes_for_a_reason(name: str, kind: str) -> None:
    assert going(image(name)) == ({(kind, name)} if kind else set())


def test_what_was_made_for_others_goes_a_day_later() -> None:
    name = f"{REGISTRY}/sent:shop-web"
    assert going(image(name, tagged=99.5 * prune.DAY)) == set()
    assert going(image(name, tagged=98.5 * prune.DAY)) == {("graft", name)}


@pytest.mark.parametrize("keeps", ["used", "needed"])
def test_the_last_name_of_an_image_in_use_stays(keeps: str) -> None:
    name, kept = f"shop-web:offline-rebuild-{OLD}", frozenset({"sha256:1"})
    found = replace(FOUND, images=(image(name),), **{keeps: kept})
    items, left = decide(found)
    assert items == []
    assert len(left) == 1
    assert name in left[0]
    assert going(image(name, "shop-web:latest"), **{keeps: kept}) == {("kept", name)}
    assert going(image(), made=kept, **{keeps: kept}) == set()


def test_a_nameless_image_goes_only_if_this_project_made_it_and_all_is_known() -> None:
    one = image()
    assert going(one) == set()
    assert going(one, made=frozenset({"sha256:1"})) == {("dangling", "sha256:1")}
    assert going(one, made=frozenset({"sha256:1"}), certain=False) == set()
    pulled = replace(one, nameless=False)  # by its digest
    assert going(pulled, made=frozenset({"sha256:1"})) == set()


def test_nothing_of_making_goes_while_a_run_makes() -> None:
    items, left = decide(replace(FOUND, images=(image(f"{REGISTRY}/build:x"),), busy=True))
    assert items == []
    assert left == ["the names of making: a run makes images now"]


def test_cache_that_another_entry_stands_on_stays() -> None:
    def entry(name: str, *parents: str, used: float = 1.0, free: bool = True) -> CacheEntry:
        return CacheEntry(name, parents, 10, used * prune.DAY, free)

    young = (entry("a"), entry("b", "a"), entry("c", "b", used=99), entry("d"), entry("e", "d"), entry("f", free=False))
    (item,) = decide(replace(FOUND, cache=young, cache_days=30))[0]
    assert (item.kind, item.size, item.name) == ("cache", 20, "2 entries unused for 30 days")
    assert decide(replace(FOUND, cache=young))[0] == []


def test_a_layer_is_freed_once_and_only_if_no_image_has_it() -> None:
    a = LocalImage("a", ("a",), ("base", "x", "y"))
    b = LocalImage("b", ("b",), ("base", "x", "z"))
    stays = LocalImage("s", ("s",), ("base",))
    sizes = {"a": [1000, 100, 10], "b": [1000, 100, 1]}
    assert freed_by([a, b], [stays], sizes) == {"a": 110, "b": 1}
    assert freed_by([a, b], [], sizes) == {"a": 1110, "b": 1}
    assert freed_by([a], [stays, b], {}) == {"a": 0}


def test_what_releases_keep(tmp_path: Path) -> None:
    def release(state: str, to: str = "") -> Release:
        record = ServiceRecord("shop-web", "rebuild", "assemble", before="b", after="a", tag_before="t")
        return Release(NEW, "shop", state=state, services={"web": record}, rollback_to=to)

    assert prune._needed(release("done")) == {"a", "b", "t"}
    assert prune._needed(release("gating")) == {"a", "b", "t"}
    assert prune._needed(release("rolled_back")) == prune._needed(release("failed")) == {"b", "t"}
    assert prune._made([release("done")]) == {"a"}
    assert prune._made([release("done", OLD)]) == set()
    imported = release("done")
    imported.services["web"] = replace(imported.services["web"], before="a", imported=True)
    assert prune._made([release("failed"), imported]) == set()
    assert prune._journals(str(tmp_path)) == ([], set(), True)
    journal = Journal(str(tmp_path), "shop")
    journal.write(release("done"))
    assert prune._journals(str(tmp_path))[1:] == ({NEW}, True)
    Path(journal.folder, OLD + ".json").write_text("{", encoding="utf-8")
    assert prune._journals(str(tmp_path))[1:] == ({NEW, OLD}, False)


def test_what_lies_beside_the_releases(tmp_path: Path) -> None:
    for name in (
        f"{NEW}.json",
        f"{NEW}.compose.json",
        f"{OLD}.compose.json",
        "x.tmp",
        f"{OLD}.json.damaged",
        "reserve",
    ):
        (tmp_path / name).write_text("", encoding="utf-8")
        os.utime(tmp_path / name, (1, 1))
    found = prune._left_beside(str(tmp_path), {NEW}, 10.0)
    assert [os.path.basename(path) for path in found] == [f"{OLD}.compose.json", "x.tmp"]
    assert prune._left_beside(str(tmp_path), {NEW}, 0.5) == prune._left_beside(str(tmp_path / "no"), set(), 9.0) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("9B", 9), ("12.3kB", 12300), ("1.05 MB", 1050000), ("2GB", 2 * 10**9), ("", 0), ("N/A", 0)],
)
def test_sizes_as_docker_writes_them(text: str, size: int) -> None:
    assert prune._bytes(text) == size


def test_times_as_the_engine_writes_them() -> None:
    assert prune._seconds("1970-01-02 00:00:01.605656135 +0000 UTC") == 86401.0
    assert prune._seconds("1970-01-02T01:00:01.6+01:00") == prune._seconds("1970-01-02T00:00:01Z") == 86401.0
    assert prune._seconds("0001-01-01T00:00:00Z") == prune._seconds("") == 0.0


def test_cache_as_docker_lists_it() -> None:
    """As 20.10 and 28 do."""
    data = json.loads(
        '{"CacheType":"regular","CreatedAt":"1970-01-02 00:00:00 +0000 UTC","Description":"mount / from exec",'
        '"ID":"q8","InUse":"false","LastUsedAt":"","Parent":"p1, p2","Shared":"false","Size":"1.5kB"}'
    )
    assert prune._cache_entry(data) == CacheEntry("q8", ("p1", "p2"), 1500, 86400.0, True)
    assert not prune._cache_entry({**data, "Shared": "true"}).free
    assert not prune._cache_entry({**data, "CacheType": "internal"}).free


@pytest.mark.parametrize(
    ("image_name", "listed"),
    [
        ("docker.io/library/shop-web:latest", "shop-web"),
        ("docker.io/me/web:1@sha256:ff", "me/web"),
        ("registry.example:5000/web", "registry.example:5000/web"),
    ],
)
def test_a_repository_is_named_as_the_engine_lists_it(image_name: str, listed: str) -> None:
    assert prune._repository(image_name) == listed

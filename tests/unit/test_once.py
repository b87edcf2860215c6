"""Who makes which image for whom, and when a rollout stops."""

from __future__ import annotations

from typing import Any

import pytest

from control_node.once import batches, expected, plan_once, receivers_of, rollout_sizes, sent_to, stopped
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.once import Sent, name_of, read_sent


def looked(action: str = "rebuild", way: str = "thin graft", inputs: str = "i", **more: Any) -> dict[str, Any]:
    """What a preflight says of a host with one service."""
    service = {"service": "web", "action": action, "way": way, "inputs": inputs, "ancestor_digest": "a", "reasons": []}
    return {"plan": {"services": [{**service, **more}]}, "holdings": {"store": "classic"}}


def builders(results: dict[str, Any], builder: str = "") -> dict[str, str]:
    """:returns: host to the builder of its image."""
    return {host: take["web"]["builder"] for host, take in plan_once(results, builder)["takes"].items()}


def test_the_first_host_builds_for_those_with_the_same_inputs() -> None:
    results = {"a": looked(), "b": looked(inputs="j"), "c": looked(), "d": looked(inputs="j")}
    assert builders(results) == {"a": "a", "c": "a", "b": "b", "d": "b"}


def test_the_named_builder_builds_where_it_can() -> None:
    assert builders({"a": looked(), "b": looked()}, "b") == {"a": "b", "b": "b"}
    assert builders({"a": looked(), "b": looked("blocked", "")}, "b") == {"a": "a", "b": "a"}
    assert builders({"a": looked(), "c": looked(), "b": looked(inputs="j")}, "b") == {"a": "a", "c": "a"}


def test_who_has_the_image_already_gives_it_away() -> None:
    assert builders({"a": looked(), "b": looked("unchanged", "")}) == {"a": "b"}


def test_a_host_alone_makes_its_own_image() -> None:
    assert builders({"a": looked(), "b": looked(inputs="j"), "c": looked("unchanged", "", "k")}) == {}


@pytest.mark.parametrize(
    ("other", "sends"),
    [(looked(way="assemble"), False), (looked(way="assemble", ancestor_digest="b"), True), (looked(way="graft"), True)],
)
def test_what_all_assemble_from_one_ancestor_is_not_sent(other: dict[str, Any], sends: bool) -> None:
    assert bool(builders({"a": looked(way="assemble"), "b": other})) is sends


def test_overlays_are_not_sent() -> None:
    assert builders({"a": looked(way="overlay"), "b": looked(way="overlay")}) == {}


def test_what_nobody_can_make_is_a_problem_of_each_host() -> None:
    blocked = looked("blocked", "", reasons=["no wheel.", "remedy: bring it"])
    problems = plan_once({"a": blocked, "b": blocked, "c": {}})["problems"]
    assert problems == dict.fromkeys(("a", "b"), "web is blocked: no wheel. remedy: bring it")
    assert plan_once({"a": blocked, "b": looked()})["problems"] == {}


def test_hosts_that_hold_the_same_are_one_receiver() -> None:
    other = {**looked(), "holdings": {"store": "containerd"}}
    once = plan_once({"a": looked(), "b": looked(), "c": looked(), "d": other})
    built = {"images": [{"service": "web", "ref": "r", "config_digest": "c", "layers": ["l"], "boundary": 2}]}
    made = receivers_of("a", once, built)
    assert [(r["hosts"], r["images"], r["holdings"]["store"]) for r in made] == [
        (["b", "c"], ["r"], "classic"),
        (["d"], ["r"], "containerd"),
    ]
    deltas = {"a": {"archives": [{"hosts": ["b", "c"], "refs": ["r"], "path": "/x"}]}}
    sent = sent_to("b", once, {"a": built}, deltas)
    assert sent["missing"] == []
    assert read_sent(sent["sent"])["web"] == Sent("web", "i", "a", "r", "c", ("l",), boundary=2, archive="/x")
    assert sent_to("a", once, {"a": built}, deltas)["sent"][0]["archive"] == ""
    assert sent_to("b", once, {"a": {}}, {})["missing"] == ["a"]
    assert expected("b", once) == [{"service": "web", "inputs": "i", "builder": "a"}]


@pytest.mark.parametrize("given", [[{}], [{"service": "web", "inputs": "i"}], [{"builder": "a", "inputs": "i"}]])
def test_what_was_sent_must_be_told_whole(given: list[dict[str, str]]) -> None:
    with pytest.raises(OfflineRebuildError, match="option-invalid"):
        read_sent(given)


def test_a_name_on_its_way_is_one_that_an_engine_takes() -> None:
    assert name_of("shop", "web/é") == "127.0.0.1:9/offline-rebuild/sent:shop-web__"


HOSTS = [f"h{number}" for number in range(10)]


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ([1, "30%"], [1, 3, 3, 3]), (["100%"], [10]), ([4], [4, 4, 2]), ([1, 2, 0], [1, 2, 7]), (["5%"], [1] * 10),
        ([0], [10]), (["33%"], [3, 3, 3, 1]),
    ],
)  # fmt: skip
def test_batches(sizes: list[int | str], counts: list[int]) -> None:
    assert [len(batch) for batch in batches(HOSTS, sizes)] == counts


@pytest.mark.parametrize(
    ("failed", "most", "stops"),
    [((), 0, False), (("h0",), 0, True), (("h0",), 99, True), (("h3",), 33, True), (("h3",), 34, False)],
)
def test_a_rollout_stops_at_the_batch_with_too_many_failures(failed: tuple[str, ...], most: float, stops: bool) -> None:
    assert stopped(HOSTS, failed, [1, 3], most) is stops


@pytest.mark.parametrize(
    ("serial", "canary", "sizes"),
    [("100%", 0, ["100%"]), (4, 1, [1, 4]), ("1, 25%", 0, [1, "25%"]), ([2, "50%"], 1, [1, 2, "50%"]), ("3", 0, [3])],
)
def test_the_canaries_are_a_batch_of_their_own(serial: Any, canary: int, sizes: list[int | str]) -> None:
    assert rollout_sizes(serial, canary) == sizes

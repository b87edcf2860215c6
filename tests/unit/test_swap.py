"""How services are swapped, and what a pre-gate's compose file holds."""

from __future__ import annotations

from typing import Any

import pytest

from module_utils.offline_rebuild import pregate
from module_utils.offline_rebuild.compose import ContainerState, Dependency, Project, Service
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.swap import Wishes, check_wishes, judge

NET = {"networks": {"default": None}}
DATA = {"type": "volume", "source": "data", "target": "/data"}


def service(name: str = "web", **given: Any) -> Service:
    raw = {**NET, **given.pop("raw", {})}
    return Service(name, f"shop-{name}:latest", raw=raw, has_healthcheck=given.pop("checked", True), **given)


def state(name: str, status: str = "running") -> ContainerState:
    return ContainerState(name, f"shop-{name}-1", "sha256:aa", status, "", 0, "h", "", 1, name)


def judged(web: Service, *others: Service, **given: Any) -> Any:
    project = Project("shop", "/srv", (), (), (*others, web))
    states = {s.name: [state(s.name)] for s in project.services}
    states.update(given.pop("states", {}))
    wishes = Wishes(**{key: frozenset(names) for key, names in given.pop("wishes", {}).items()})
    return judge(project, web, states, given.pop("volumes", ()), wishes, given.pop("swapped", {"web"}))


def test_a_service_that_writes_nothing_is_tried_first_and_may_roll() -> None:
    found = judged(service())
    assert (found.swap, found.pregate) == ("rolling", True)


@pytest.mark.parametrize(
    ("web", "why"),
    [
        (service(volumes=(DATA,)), "data"),
        (service(volumes=({"type": "bind", "source": "/etc", "target": "/etc"},)), "/etc"),
        (service(volumes=({"type": "volume", "target": "/data"},)), "a volume"),
        (service(raw={"devices": ["/dev/fuse"]}), "devices"),
        (service(raw={"deploy": {"resources": {"reservations": {"devices": [{}]}}}}), "devices"),
        (service(raw={"labels": {"caddy": "shop"}}), "by caddy"),
        (service(raw={"environment": {"VIRTUAL_HOST": "shop"}}), "VIRTUAL_HOST"),
    ],
)
def test_what_could_do_harm_is_not_tried_unless_the_operator_says_so(web: Service, why: str) -> None:
    found = judged(web)
    assert (found.pregate, found.swap) == (False, "recreate")
    assert why in found.pregate_why
    assert judged(web, wishes={"pregate": ["web"]}).pregate


@pytest.mark.parametrize(
    "web",
    [
        service(volumes=({**DATA, "read_only": True},)),
        service(volumes=({"type": "tmpfs", "target": "/run"},)),
        service(raw={"secrets": [{"source": "key"}]}),
    ],
)
def test_what_is_only_read_does_no_harm(web: Service) -> None:
    assert judged(web).pregate
    assert judged(web).swap == "rolling"


def test_a_volume_that_the_image_declares_counts_unless_something_else_lies_there() -> None:
    assert "/data" in judged(service(), volumes=["/data"]).pregate_why
    assert judged(service(raw={"tmpfs": ["/data:size=1m"]}), volumes=["/data"]).pregate


@pytest.mark.parametrize(
    ("web", "given", "why"),
    [
        (service(), {"wishes": {"no_pregate": ["web"], "pregate": ["web"]}}, "no_pregate"),
        (service(), {"states": {"web": [state("web", "exited")]}}, "no old container"),
        (service(raw={"network_mode": "host"}), {}, "network_mode is host"),
        (service(raw={"network_mode": "service:db"}), {}, "shares"),
        (service(raw={"volumes_from": ["db"]}), {}, "shares"),
        (service(raw={"links": ["db"]}), {}, "links"),
        (service(depends_on=(Dependency("db"),)), {"states": {"db": []}}, "db, on which it depends"),
        (
            service(depends_on=(Dependency("db", "service_completed_successfully"),)),
            {"swapped": {"db", "web"}},
            "the job db",
        ),
    ],
)
def test_what_cannot_be_tried_is_not_even_on_the_operators_word(web: Service, given: Any, why: str) -> None:
    assert why in judged(web, service("db"), **given).pregate_why


@pytest.mark.parametrize(
    ("web", "why"),
    [
        (service(container_name="shop"), "name"),
        (service(ports=({"target": 80, "published": "8080"},)), "port 8080"),
        (service(checked=False), "health check"),
        (service(replicas=2), "not all"),
        (service(raw={"networks": {"default": {"ipv4_address": "10.0.0.5"}}}), "ipv4_address"),
    ],
)
def test_what_cannot_be_there_twice_is_recreated(web: Service, why: str) -> None:
    found = judged(web)
    assert found.swap == "recreate"
    assert why in found.why


def test_a_port_that_the_engine_chooses_does_not_hinder() -> None:
    assert judged(service(ports=({"target": 80},))).swap == "rolling"


def test_a_service_that_others_look_up_rolls_on_the_operators_word() -> None:
    other = service("proxy")
    assert "proxy may have looked up" in judged(service(), other).why
    assert judged(service(), other, wishes={"rolling": ["web"]}).swap == "rolling"
    elsewhere = service("proxy", raw={"networks": {"front": None}})
    assert judged(service(), elsewhere).swap == "rolling"


@pytest.mark.parametrize(
    "other",
    [
        service("side", raw={"network_mode": "service:web", "networks": {}}),
        service("side", raw={"volumes_from": ["web:ro"]}),
        service("side", depends_on=(Dependency("web", restart=True),)),
    ],
)
def test_what_others_hang_on_is_recreated(other: Service) -> None:
    assert judged(service(), other, wishes={"rolling": ["web"]}).swap == "recreate"


def test_a_list_that_names_nothing_is_an_error() -> None:
    project = Project("shop", "/srv", (), ("/srv/compose.yaml",), (service(),))
    with pytest.raises(OfflineRebuildError, match="'wbe'"):
        check_wishes(Wishes(no_pregate=frozenset(["wbe"])), project)


def test_a_pregate_has_nothing_by_which_it_could_be_found() -> None:
    raw = {
        "build": {"context": "."},
        "command": ["serve", "--price", "5$"],
        "container_name": "shop",
        "hostname": "shop",
        "depends_on": {"db": {"condition": "service_started"}},
        "deploy": {"replicas": 3, "resources": {"limits": {"memory": "1073741824"}}},
        "environment": {"A": "b"},
        "labels": {"traefik.enable": "true", "team": "a"},
        "networks": {"default": {"aliases": ["www"], "ipv4_address": "10.0.0.5"}, "back": None},
        "ports": [{"target": 80, "published": "80"}],
        "restart": "always",
        "secrets": [{"source": "key"}],
        "user": "1000",
    }
    model = {
        "networks": {"default": {"name": "shop_default", "ipam": {}}, "back": {"name": "corp", "external": True}},
        "volumes": {"data": {"name": "shop_data"}},
        "secrets": {"key": {"file": "/srv/key"}},
    }
    web = Service("web", "shop-web", raw=raw, volumes=({**DATA, "read_only": True},))
    made = pregate.model(Project("shop", "/srv", (), (), (web,), model), {"web": "new"})
    assert made["services"] == {
        "web-pregate": {
            "command": ["serve", "--price", "5$"],
            "container_name": "shop-web-pregate",
            "deploy": {"resources": {"limits": {"memory": "1073741824"}}},
            "environment": {"A": "b"},
            "image": "new",
            "labels": {"traefik.enable": "false", "team": "a", "offline-rebuild.pregate": "shop"},
            "networks": {"default": None, "back": None},
            "pull_policy": "never",
            "restart": "no",
            "secrets": [{"source": "key"}],
            "user": "1000",
        }
    }
    assert made["networks"] == {
        "default": {"external": True, "name": "shop_default"},
        "back": {"external": True, "name": "corp"},
    }
    assert made["volumes"] == {"data": {"external": True, "name": "shop_data"}}
    assert made["secrets"] == {"key": {"file": "/srv/key"}}

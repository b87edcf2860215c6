"""The pre-gate on a real engine: a bad image never takes the port, and what was tried leaves nothing behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.test_transaction_engine import ROOT, Site
from tests.equality.bases import busybox
from tests.hosts import Hosts

PORT = 18082
COMPOSE = f"""
name: ofr-pg
services:
  web:
    build: ./web
    command: [sh, /app/run.sh]
    container_name: ofr-pg-fixed
    hostname: shop
    stop_signal: SIGKILL
    ports: ["127.0.0.1:{PORT}:8080"]
    user: "1000"
    environment: {{DB_PASSWORD: correct-horse, PRICE: "5$$"}}
    secrets: [from-file, from-variable]
    configs: [{{source: written, target: /etc/written}}]
    volumes: ["./readonly:/readonly:ro", "kept:/kept:ro"]
    tmpfs: ["/www:mode=1777"]
    networks: {{default: {{aliases: [www]}}, fixed: {{ipv4_address: 10.97.0.5}}}}
    healthcheck: {{test: [CMD, wget, -q, -O, "-", "http://127.0.0.1:8080/health"], interval: 300s, retries: 1}}
    labels: {{traefik.enable: "true", traefik.http.routers.web.rule: "Host(`shop`)"}}
    restart: always
  worker:
    build: ./worker
    command: [sh, /app/run.sh]
    stop_signal: SIGKILL
    restart: always
  writer:
    build: ./writer
    command: [sh, /app/run.sh]
    stop_signal: SIGKILL
    volumes: ["kept:/kept"]
networks:
  fixed: {{ipam: {{config: [{{subnet: 10.97.0.0/24}}]}}}}
volumes:
  kept:
secrets:
  from-file: {{file: ./secret.txt}}
  from-variable: {{environment: SHOP_SECRET}}
configs:
  written: {{content: "a $$ sign"}}
"""
#: Serves what a service of this project must have from compose, beside its version.
GOOD = """
{{ echo {0}; id -u; hostname; cat /run/secrets/from-file /run/secrets/from-variable /etc/written /readonly/file
   echo "$PRICE"; }} > /www/health
exec httpd -f -p 8080 -h /www
"""
SLEEPER = "exec sleep 10000 # {0}\n"


class Shop(Site):
    def __init__(self, host: Any) -> None:
        super().__init__("/srv/pg", host)
        self.project = "ofr-pg"

    def call(self, op: str, **request: Any) -> dict[str, Any]:
        return super().call(op, **request)

    def good(self, version: str) -> None:
        self.write("src/web/run.sh", GOOD.format(version))

    def served(self) -> str:
        return self.run(["docker", "exec", "ofr-pg-fixed", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/health"])

    def leftovers(self) -> str:
        return self.run(
            [
                "sh",
                "-c",
                "docker ps -aq --filter label=offline-rebuild.pregate; "
                "docker image ls -q 127.0.0.1:9/offline-rebuild/pregate/image; "
                f"ls {self.folder}/state/releases/{self.project} | grep pregate || :",
            ]
        )

    def ids(self) -> dict[str, str]:
        return {name: found[0]["id"] for name, found in self.call("status")["status"].items()}


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    engine, store = os.environ.get("OFR_ENGINE", "trixie"), os.environ.get("OFR_STORE", "classic")
    with Hosts.up("pregate", count=1, engine=engine, store=store) as hosts:
        made = Shop(hosts[0])
        hosts[0].put(ROOT / "module_utils", "/srv/pg/module_utils")
        hosts[0].put(ROOT / "tests/engine/transaction_driver.py", "/srv/pg/tests/engine/transaction_driver.py")
        hosts[0].put(busybox(), "/srv/pg/busybox")
        made.write("src/compose.yaml", COMPOSE)
        made.write("src/.env", "SHOP_SECRET=hidden-in-a-variable\n")
        made.write("src/secret.txt", "hidden-in-a-file\n")
        made.write("src/readonly/file", "read only\n")
        made.good("v1")
        for name in ("worker", "writer"):
            made.write(f"src/{name}/run.sh", SLEEPER.format(1))
        release = made.release()
        assert release["state"] == "done", release["note"]
        assert not any(record["pregate"] for record in release["services"].values())  # nothing ran beside which to try
        yield made


def test_a_good_image_is_tried_with_all_that_compose_gives_it(shop: Shop) -> None:
    shop.good("v2")
    release = shop.release()
    assert release["state"] == "done", release["note"]
    assert release["services"]["web"]["pregate"]
    assert release["timings"]["pregate"] > 0
    assert shop.served().split("\n")[:4] == ["v2", "1000", "shop", "hidden-in-a-file"]
    assert "hidden-in-a-variable" in shop.served()
    assert "a $ sign" in shop.served()
    assert shop.leftovers() == ""
    assert shop.actions() == {}


BAD = {
    "it ends": ("echo password $DB_PASSWORD; exit 3\n", "exited with code 3"),
    "it is never healthy": ("sleep 10000\n", "health is starting"),
    "it lacks a secret": ("grep -q other /run/secrets/from-variable || exit 7\n", "exited with code 7"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_image_costs_no_request_and_swaps_nothing(shop: Shop, case: str) -> None:
    before = shop.ids()
    images = shop.run(["docker", "image", "inspect", "-f", "{{.Id}}", "ofr-pg-web"])
    script, why = BAD[case]
    shop.write("src/web/run.sh", script)
    release = shop.release(options={"gate_timeout": 3})
    assert release["state"] == "failed"
    assert "nothing was swapped" in release["note"]
    assert why in release["note"]
    assert release["swapped"] == []
    assert shop.ids() == before
    assert shop.run(["docker", "image", "inspect", "-f", "{{.Id}}", "ofr-pg-web"]) == images
    assert {entry["phase"] for entry in release["evidence"]} == {"pregate"}
    assert release["evidence"][0]["service"] == "web"
    if "password" in script:
        assert release["evidence"][0]["logs"] == ["password ***"]
    assert shop.leftovers() == ""


def test_nothing_finds_the_container_that_is_tried(shop: Shop) -> None:
    """While it runs it has no port, no alias, no fixed address, and compose does not count it."""
    shop.write("src/web/run.sh", "sleep 10000\n")
    runs = "docker inspect -f '{{.State.Running}}' ofr-pg-web-pregate | grep -q true"
    answer = shop.call("kill", state="pregating", until=runs)
    assert answer["killed"]
    found = json.loads(shop.run(["docker", "inspect", "ofr-pg-web-pregate"]))[0]
    assert found["HostConfig"]["PortBindings"] in ({}, None)
    assert found["Config"]["Labels"]["traefik.enable"] == "false"
    for network in found["NetworkSettings"]["Networks"].values():
        assert not {"web", "www", "shop"} & set(network["Aliases"])
        assert network["IPAddress"] != "10.97.0.5"
    listed = shop.run(["sh", "-c", f"cd {shop.folder}/src && docker compose ps -a --format '{{{{.Name}}}}'"])
    assert "pregate" not in listed
    # and a run that comes after the crash removes it
    shop.good("v2")
    assert shop.release() is None
    assert shop.leftovers() == ""
    assert shop.served().startswith("v2")


def test_what_writes_is_tried_only_on_the_operators_word(shop: Shop) -> None:
    for version, wishes, tried in ((2, {}, False), (3, {"pregate": ["writer"]}, True)):
        shop.write("src/writer/run.sh", SLEEPER.format(version))
        release = shop.release(options={"wishes": wishes})
        assert (release["state"], release["services"]["writer"]["pregate"]) == ("done", tried)
    shop.write("src/worker/run.sh", SLEEPER.format(2))
    release = shop.release(options={"wishes": {"no_pregate": ["worker"]}})
    assert (release["state"], release["services"]["worker"]["pregate"]) == ("done", False)
    answer = shop.call("run", options={"wishes": {"no_pregate": ["nobody"]}})
    assert answer["error"]["code"] == "no-such-service"


def test_no_secret_stays(shop: Shop) -> None:
    texts = shop.run(["sh", "-c", f"cat {shop.folder}/state/releases/*/*Z-??????.json {shop.folder}/state/audit.log"])
    for secret in ("correct-horse", "hidden-in-a-file", "hidden-in-a-variable"):
        assert secret not in texts

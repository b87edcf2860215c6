"""The rolling swap on a real engine: a client that looks the name up for each request sees no failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.test_transaction_engine import ROOT, Site
from tests.equality.bases import busybox
from tests.hosts import Hosts

COMPOSE = """
services:
  web:
    build: ./web
    command: [sh, /app/run.sh]
    init: true
    networks: {default: {aliases: [www]}}
    healthcheck: {test: [CMD, wget, -q, -O, "-", "http://127.0.0.1:8080/health"], interval: 300s, retries: 1}
    deploy: {replicas: 2}
  asker:
    build: ./asker
    command: [sh, /app/run.sh]
    stop_signal: SIGKILL
"""
GOOD = "sleep 0.5; echo {0} > /www/health; exec httpd -f -p 8080 -h /www\n"
ASK = """
while :; do
  for name in web www; do
    wget -q -O /tmp/answer http://$name:8080/health && cat /tmp/answer >> /tmp/log || echo failed >> /tmp/log
  done
done
"""
ROLLING = {"wishes": {"rolling": ["web"], "no_pregate": ["web"]}}


class Street(Site):
    def __init__(self, host: Any) -> None:
        super().__init__("/srv/roll", host)
        self.project = "ofr-roll"

    def good(self, version: str) -> None:
        self.write("src/web/run.sh", GOOD.format(version))

    def asked(self) -> list[str]:
        """What the client was answered since the last call."""
        read = "mv /tmp/log /tmp/read; cat /tmp/read"
        return self.run(["docker", "exec", f"{self.project}-asker-1", "sh", "-c", read]).split()

    def web(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("status")["status"]["web"]
        return found


@pytest.fixture(scope="module")
def street() -> Iterator[Street]:
    engine, store = os.environ.get("OFR_ENGINE", "trixie"), os.environ.get("OFR_STORE", "classic")
    with Hosts.up("rolling", count=1, engine=engine, store=store) as hosts:
        made = Street(hosts[0])
        hosts[0].put(ROOT / "module_utils", "/srv/roll/module_utils")
        hosts[0].put(ROOT / "tests/engine/transaction_driver.py", "/srv/roll/tests/engine/transaction_driver.py")
        hosts[0].put(busybox(), "/srv/roll/busybox")
        made.write("src/compose.yaml", COMPOSE)
        made.write("src/asker/run.sh", ASK)
        made.good("v1")
        assert made.release()["state"] == "done"
        yield made


def test_nobody_is_refused_while_it_is_swapped(street: Street) -> None:
    street.good("v2")
    street.asked()
    before = street.web()
    release = street.release(options=ROLLING)
    assert release["state"] == "done", release["note"]
    assert release["services"]["web"]["swap"] == "rolling"
    answers = street.asked()
    assert set(answers) <= {"v1", "v2"}, [a for a in answers if a == "failed"]
    assert answers[-1] == "v2"
    after = street.web()
    assert len(after) == 2
    assert not {one["id"] for one in after} & {one["id"] for one in before}
    assert street.actions() == {}
    street.run(
        ["sh", "-c", f"cd {street.folder}/src && docker compose -p {street.project} up -d --no-build --pull never"]
    )
    assert {one["id"] for one in street.web()} == {one["id"] for one in after}


def test_a_bad_image_leaves_the_old_containers_serving(street: Street) -> None:
    before = {one["id"] for one in street.web()}
    street.asked()
    street.write("src/web/run.sh", "echo boom; exit 3\n")
    release = street.release(options={**ROLLING, "gate_timeout": 5})
    assert release["state"] == "rolled_back", release["note"]
    assert "exited with code 3; the old containers serve on" in release["note"]
    assert any(entry.get("logs") == ["boom"] for entry in release["evidence"])
    assert {one["id"] for one in street.web()} == before
    assert "failed" not in street.asked()
    assert street.actions() == {"web": "rebuild"}


@pytest.mark.parametrize("after", [0.5, 1.2, 2.0, 3.0])
def test_sigkill_then_a_plain_rerun_converges(street: Street, after: float) -> None:
    street.good(f"k{after}")
    assert street.call("kill", state="swapping", after=after, options=ROLLING)["killed"]
    answer = street.call("run", options=ROLLING)
    assert "error" not in answer, answer
    assert street.actions() == {}
    found = street.web()
    assert [one["state"] for one in found] == ["running", "running"]
    street.asked()
    for name in ("web", "www"):
        ask = ["docker", "exec", f"{street.project}-asker-1", "wget", "-q", "-O", "-", f"http://{name}:8080/health"]
        assert street.run(ask).strip() == f"k{after}"

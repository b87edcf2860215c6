"""Status, layers and logs: what is worked out of values, and how it is told. The rest is in tests/engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from module_utils.offline_rebuild import render, status
from module_utils.offline_rebuild.compose import ContainerState, Project, Service
from module_utils.offline_rebuild.lock import Holder
from module_utils.offline_rebuild.plan import FileChange, Plan, ServicePlan, Start
from module_utils.offline_rebuild.presence import Need
from module_utils.offline_rebuild.release import Release, ServiceRecord

A, B, C = ("sha256:" + letter * 64 for letter in "abc")
WEB = Service("web", "reg:5000/shop/web:1")
PROJECT = Project("shop", "/srv", (), (), (WEB,))
R1 = Release("20260101T000000Z-aaaaaa", "shop", state="done", started=1767225600.0, swapped=["web"], operator="ann")
R1.services = {"web": ServiceRecord(WEB.image, "rebuild", "assemble", A, B, A, "reg:5000/shop/web:kept", True)}
R2 = Release("20260102T000000Z-bbbbbb", "shop", state="rolled_back", note="not\nhealthy", change_id="C1")
R2.services = {"web": ServiceRecord(WEB.image, "rebuild", "graft", B, C, B)}


def container(image_id: str, state: str = "running", number: int = 1) -> ContainerState:
    return ContainerState("web", f"shop-web-{number}", image_id, state, "healthy", 0, "", "", number, "web")


def test_where_an_image_comes_from() -> None:
    known = [R1, R2]
    assert status.origin_of(B, known) == ("release", R1.id)
    assert status.origin_of(A, known) == ("imported", "")
    assert status.origin_of("sha256:other", known) == ("unknown", "")
    assert status.origin_of("", known) == ("", "")


def test_a_restart_makes_no_image() -> None:
    restart = Release("20260103T000000Z-cccccc", "shop")
    restart.services = {"web": ServiceRecord(WEB.image, "restart", "", B, B, B)}
    assert status.origin_of(B, [R1, restart]) == ("release", R1.id)


def test_images_of_a_project_are_known_by_service_container_release_and_kept_name() -> None:
    listing = {
        WEB.image: A,
        f"reg:5000/shop/web:offline-rebuild-{R1.id}": "kept",
        f"reg:5000/shop/web:offline-rebuild-{R2.id}-web": "kept2",
        f"reg:5000/other:offline-rebuild-{R1.id}": "another project's",
        "reg:5000/shop/web:offline-rebuild-x": "no release",
    }
    assert [release for _, release in status._kept_names(PROJECT, listing)] == [R1.id, R2.id]
    found = status._project_images(PROJECT, {"web": [container(C)]}, [R1], listing)
    assert found == {A, B, C, "kept", "kept2"}
    kept = list(status._kept(PROJECT, listing, {"kept": {"Size": 7}}))
    assert [(k.image_id, k.size, k.release) for k in kept] == [("kept", 7, R1.id), ("kept2", 0, R2.id)]


@pytest.mark.parametrize(
    ("named", "own", "note"),
    [
        (A, [container(A)], ""),
        (A, [], ""),
        ("", [], "is not on this host"),
        (B, [container(A)], "is another image"),
        (A, [container(C)], "has been removed"),
        (A, [container(A), container(B, number=2)], "run different images"),
    ],
)
def test_what_is_odd_about_an_image_is_said(named: str, own: list[ContainerState], note: str) -> None:
    found = status._image_note(WEB.image, named, own, {A, B})
    assert (note in found) if note else found == ""


def test_a_layer_that_several_images_begin_with_counts_once() -> None:
    base, copy = ("t0", "base", 100), ("t1", "COPY . .", 5)
    meta = ("t1", "CMD", 0)
    assert status.shared_once([[base, copy, meta], [base, copy], [base, ("t2", "COPY . .", 7)]]) == 112
    assert status.shared_once([[copy], [base, copy]]) == 110
    assert status.shared_once([]) == 0


@pytest.mark.parametrize(
    ("positions", "filled"),
    [
        ((2, 3, 4), [2, 3, 4]),
        ((2, 3, -1, 6), [2, 3, 4, 6]),
        ((2, -1, -1, 3), [2, 3, 3, 3]),
        ((2, -1, -1), [2, 3, 4]),
        ((2,), [2]),
    ],
)
def test_places_inside_a_thin_layer_are_filled_in(positions: tuple[int, ...], filled: list[int]) -> None:
    assert status.settled(positions) == filled


def test_docker_history_is_read_oldest_first() -> None:
    said = b'{"CreatedAt":"t1","CreatedBy":"CMD","Size":"0"}\n{"CreatedAt":"t0","CreatedBy":"ADD","Size":"4261550"}\n'
    assert status.parse_docker_history(said) == [("t0", "ADD", 4261550), ("t1", "CMD", 0)]
    assert status.parse_docker_history(b"") == []


def test_space_is_counted_in_blocks_and_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "a").write_bytes(b"x" * 5000)
    (tmp_path / "releases" / "b").hardlink_to(tmp_path / "releases" / "a")
    (tmp_path / "audit.log").write_bytes(b"y")
    total, parts = status._used(str(tmp_path))
    assert set(parts) == {"releases", "audit.log"}
    blocks = [(tmp_path / p).lstat().st_blocks * 512 for p in ("releases", "releases/a", "audit.log")]
    assert total == sum(parts.values()) == sum(blocks)
    assert status._used(str(tmp_path / "nowhere")) == (0, {})


# -- how it is told


@pytest.mark.parametrize(
    ("count", "said"),
    [(None, "-"), (0, "0B"), (999, "999B"), (1000, "1kB"), (1234567, "1.23MB"), (999_999, "1MB"), (5 * 10**12, "5TB")],
)
def test_sizes(count: int | None, said: str) -> None:
    assert render.size(count) == said


def test_a_line_can_do_no_harm_on_a_terminal() -> None:
    assert render.printable("\x1b[1;31mred\x1b[0m \x1b]0;title\x07x\r\n\x00\x9b") == "red x\\x0d\\x0a\\x00\\x9b"
    assert render.printable("tab\there 中文") == "tab\there 中文"
    assert render.printable("a\udcff") == "a\\xff"


PLAN = Plan(
    "shop",
    "28",
    "classic",
    (
        ServicePlan("db", "db:1", "unchanged"),
        ServicePlan(
            "web",
            "web:1",
            "rebuild",
            "assemble",
            ("Dockerfile:4 COPY . .: app.py differs",),
            (FileChange("app.py", "changed", ("content",)),),
            "Dockerfile",
            3,
            5,
            Start(4, "COPY . ."),
            "assumed",
            ("FROM base",),
        ),
        ServicePlan("job", "job:1", "blocked", reasons=("no base", "remedy: bring it")),
    ),
)


def test_a_plan_is_one_line_a_service_and_all_of_it_for_what_is_blocked() -> None:
    assert render.plan_lines(PLAN) == [
        "db: unchanged",
        "web: rebuild by assemble: Dockerfile:4 COPY . .: app.py differs (evidence: assumed)",
        "job: blocked",
        "  reason: no base",
        "  reason: remedy: bring it",
    ]
    assert "  file: app.py (changed, content)" in render.plan_lines(PLAN, detail=True)


STATUS = status.Status(
    "host1",
    "shop",
    "/srv",
    "28.5.2",
    "classic",
    "2.40.3",
    (
        status.ServiceStatus(
            "web",
            WEB.image,
            B,
            True,
            "release",
            R1.id,
            "odd",
            (status.ContainerLine("shop-web-1", "running", "", B, 2),),
        ),
        status.ServiceStatus("db", "db:1", "", True, "", "", "", ()),
    ),
    (status.KeptImage("web:offline-rebuild-x", A, 1500, R1.id),),
    (status._release_line(R2), status._release_line(R1)),
    (R2.id,),
    ("broken",),
    Holder("bob", "rebuild", "C9", 1767225600, 77, "stale", "its process is gone"),
    status.Disk("/s", 3000, {"releases": 1000, "layers": 2000}, 5 * 10**9, 2, 10**8, "/d", 10**9),
)


def test_a_status_is_json_and_text() -> None:
    document = json.loads(json.dumps(STATUS.to_dict()))
    assert document["schema"] == 1
    assert document["services"][0]["containers"][0]["restarts"] == 2
    assert document["lock"]["state"] == "stale"
    text = "\n".join(render.status_lines(STATUS))
    for part in (
        "shop on host1: /srv (Docker 28.5.2, classic store, Compose 2.40.3)",
        f"web  shop-web-1: running, 2 restarts  bbbbbbbbbbbb  {R1.id}",
        "db   no container                     none",
        "web: odd",
        f"{R2.id}  rolled_back  -                     -    C1  web (not healthy)",
        f"{R1.id}  done         2026-01-01 00:00:00Z  ann  -   web",
        "web:offline-rebuild-x  aaaaaaaaaaaa  1.5kB",
        "lock: stale (its process is gone); the next run takes it over: bob (pid 77, since 2026-01-01 00:00:00Z, "
        "change C9): rebuild",
        f"unfinished: {R2.id}; the next run finishes it or takes it back",
        "damaged: broken cannot be read",
        "disk: /s 3kB (layers 2kB, releases 1kB), 5GB free",
        "disk: 2 images of the project 100MB, 1GB free under /d",
    ):
        assert part in text


def test_a_quiet_host_is_told_briefly() -> None:
    text = render.status_lines(replace(STATUS, services=(), kept=(), releases=(), unfinished=(), damaged=(), lock=None))
    assert "  none on this host" in text
    assert not any(line.startswith(("lock", "unfinished", "damaged", "kept")) for line in text)


def test_a_release_in_full() -> None:
    item = replace(R1, timings={"total": 1.5}, evidence=[{"service": "web", "phase": "swap", "logs": ["boom"]}])
    lines = render.release_lines(item)
    assert f"{R1.id}: done" in lines
    assert "  web: rebuild by assemble: aaaaaaaaaaaa -> bbbbbbbbbbbb, kept as reg:5000/shop/web:kept" in lines
    assert lines[-2:] == ["  log of web in the swap:", "    boom"]
    assert "  note: not healthy" in render.release_lines(R2)


def test_layers_images_contexts_logs() -> None:
    lines = (
        status.LayerLine(2, "RUN make", 10**6, "reused"),
        status.LayerLine(3, "COPY . .", 5000, "thin"),
        status.LayerLine(4, 'CMD ["x"]', 0, "config"),
        status.LayerLine(0, "RUN more", None, "build"),
    )
    layers = status.ServiceLayers(
        "web", "web:1", "Dockerfile", "0", "web:1", "observed", "base:1", 1, 10**8, 64, "app.py differs", lines
    )
    assert render.layer_lines([layers]) == [
        "web: Dockerfile, stage 0: in web:1, evidence: observed",
        "  :1       base         100MB  FROM base:1",
        "  :2       reused       1MB    RUN make",
        "  :3       thin layer   5kB    COPY . .",
        '  :4       config only  0B     CMD ["x"]',
        "  ONBUILD  runs         -      RUN more",
        "                        64B    (thin layer of an earlier run: what COPY and ADD wrote then)",
        "  reason: app.py differs",
    ]
    assert "no image holds its beginning" in render.layer_lines([replace(layers, ancestor="")])[0]
    needs = [
        Need("a:1", "linux/amd64", "missing", ("web",), "load it"),
        Need("b", "linux/amd64", "present", ("x",), ""),
    ]
    assert render.image_lines(needs) == [
        "missing  a:1  linux/amd64  web",
        "  remedy: load it",
        "present  b    linux/amd64  x",
    ]
    context = status.ContextLine("web", "/srv/web", "web/Dockerfile", "", "sha256:1", 3, 2000)
    assert render.context_lines([context]) == ["web  sha256:1  3 files  2kB  /srv/web"]
    log = status.LogText("web", "shop-web-1", "running", ("one", "two"))
    assert render.log_lines([log]) == ["== web: shop-web-1 (running)", "one", "two"]
    assert [f([]) for f in (render.layer_lines, render.image_lines, render.context_lines, render.log_lines)] == [
        ["no service is built"],
        ["no image is needed"],
        ["no service is built"],
        ["no container"],
    ]

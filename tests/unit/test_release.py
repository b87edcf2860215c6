"""The journal, what is masked in it, and retention."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.release import (
    FINISHED,
    STATES,
    Journal,
    Release,
    ServiceRecord,
    mask,
    retention,
    secrets_of,
)


def release(number: int, state: str = "done", before: str = "", swapped: bool = True) -> Release:
    name = f"2026010{number}T000000Z-aaaaaa"
    record = ServiceRecord(
        "app:latest", "rebuild", before=before, after=f"new{number}", kept_as=before and f"app:{name}"
    )
    return Release(name, "shop", state=state, services={"app": record}, swapped=["app"] if swapped else [])


def test_a_release_is_read_back_as_written(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "shop")
    made = journal.begin(run_time=1_800_000_000, change_id="C1", operator="me", src="/srv")
    made.services["app"] = ServiceRecord("app:latest", "rebuild", "graft", "sha256:a", "sha256:b", "sha256:a", "app:k")
    made.timings = {"up": 1.5}
    journal.write(made)
    assert journal.read(made.id) == made
    assert os.stat(tmp_path / "releases" / "shop" / f"{made.id}.json").st_mode & 0o077 == 0
    assert not [name for name in os.listdir(journal.folder) if name.endswith(".tmp")]


def test_the_same_run_has_the_same_id_on_every_host(tmp_path: Path) -> None:
    first = Journal(str(tmp_path / "a"), "shop").begin(1_800_000_000, "C1")
    second = Journal(str(tmp_path / "b"), "shop").begin(1_800_000_000, "C1")
    assert first.id == second.id == "20270115T080000Z-" + first.id[-6:]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 2_000_000_000), min_size=2, max_size=6))
def test_ids_sort_in_the_order_of_the_runs_whatever_the_clock_says(times: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(folder, "shop")
        ids = []
        for moment in times:
            made = journal.begin(run_time=moment)
            journal.write(made)
            ids.append(made.id)
        assert ids == sorted(ids)
        assert len(set(ids)) == len(ids)


def test_unfinished_and_damaged(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "shop")
    for number, state in enumerate(STATES, 1):
        journal.write(release(number, state))
    assert [r.state for r in journal.unfinished()] == [s for s in STATES if s not in FINISHED]
    victim = journal.ids()[2]
    path = Path(journal.folder, victim + ".json")
    for text in ("", "{", "[]", '{"schema": 99}', '{"schema": 1, "services": {"a": 1}}', path.read_text()[:-20]):
        path.write_text(text)
        assert journal.damaged() == [victim]
        assert victim not in [r.id for r in journal.all()]
        with pytest.raises(OfflineRebuildError, match="journal-damaged"):
            journal.read(victim)
    assert Path(journal.put_aside(victim)).exists()
    assert victim not in journal.ids()
    with pytest.raises(OfflineRebuildError, match="release-missing") as caught:
        journal.read(victim)
    assert journal.ids()[0] in caught.value.remedy


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "releases").write_text("a file is in the way")
    with pytest.raises(OfflineRebuildError, match="journal-write"):
        Journal(str(tmp_path), "shop").write(release(1))


def test_the_audit_log_only_grows(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "shop", secrets=["hunter22"])
    journal.audit("making", "id", text="password is hunter22")
    before = (tmp_path / "audit.log").read_text()
    journal.audit("done", "id", text="x")
    text = (tmp_path / "audit.log").read_text()
    assert text.startswith(before)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["event"] for line in lines] == ["making", "done"]
    assert lines[0]["text"] == "password is ***"
    assert abs(lines[1]["time"] - time.time()) < 60


def test_secrets_are_masked_in_texts_but_never_in_names_and_ids(tmp_path: Path) -> None:
    model = {
        "services": {
            "a": {
                "build": {"args": {"PIP_TOKEN": "tok-123456", "VERSION": "1.2.3", "X_PASSWORD": "abc"}},
                "environment": {"DB_PASSWORD": "postgres", "MONKEY": "banana"},
                "labels": {"api_key": "kkkk"},
            }
        }
    }
    assert secrets_of(model) == ["kkkk", "postgres", "tok-123456"]
    journal = Journal(str(tmp_path), "shop", secrets_of(model))
    made = release(1, before="postgres-id")
    made.services["app"].image = "postgres:15"
    made.note = "tok-123456 at https://user:pa55@host/x"
    made.plan = {"services": [{"reasons": ["RUN |1 PIP_TOKEN=tok-123456"]}]}
    journal.write(made)
    text = Path(journal.folder, made.id + ".json").read_text()
    assert "tok-123456" not in text
    assert "pa55" not in text
    assert journal.read(made.id).services == made.services


def test_mask_keeps_other_values() -> None:
    assert mask({"a": [1, None, "x"], "b": ("y",)}, ["z"]) == {"a": [1, None, "x"], "b": ["y"]}


def test_retention_keeps_the_newest_and_what_is_in_use() -> None:
    releases = [release(n, before=f"new{n - 1}") for n in range(1, 6)]
    old = retention(releases, 2, set())
    assert old.releases == (releases[0].id, releases[1].id, releases[2].id)
    assert old.refs == tuple(sorted(f"app:{r.id}" for r in releases[:3]))
    assert set(old.image_ids) == {"new0", "new1", "new2"}  # new3 is what releases[3] made
    old = retention(releases, 2, {"new1"})
    assert old.releases == (releases[0].id, releases[2].id)
    assert "new1" not in old.image_ids


def test_retention_keeps_what_a_service_was_imported_with_last() -> None:
    releases = [release(n, before=f"old{n}") for n in range(1, 6)]
    releases[0].services["app"].imported = True
    assert retention(releases, 1, set()).releases == tuple(r.id for r in releases[1:4])
    releases[2].services["app"].imported = True
    assert retention(releases, 1, set()).releases == (releases[0].id, releases[1].id, releases[3].id)


def test_retention_neither_counts_nor_keeps_what_touched_nothing() -> None:
    releases = [release(1), release(2), release(3, "rolled_back", swapped=False), release(4, "failed", swapped=False)]
    assert retention(releases, 2, set()).releases == ()
    assert retention(releases, 1, set()).releases == (releases[0].id,)
    assert retention([*releases, release(5)], 1, set()).releases == tuple(r.id for r in releases)
    unfinished = release(1, "swapping")
    assert unfinished.id not in retention([unfinished, *releases[1:]], 1, set()).releases


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(STATES), st.integers(0, 4), st.booleans()), max_size=9),
    st.integers(0, 4),
    st.sets(st.integers(0, 4)),
)
def test_retention_never_names_an_image_in_use_or_of_a_kept_release(
    rows: list[tuple[str, int, bool]], keep: int, used: set[int]
) -> None:
    releases = [release(n, state, f"new{before}", swapped) for n, (state, before, swapped) in enumerate(rows, 1)]
    in_use = {f"new{number}" for number in used}
    old = retention(releases, keep, in_use)
    kept = [r for r in releases if r.id not in old.releases]
    needed = in_use | {i for r in kept for s in r.services.values() for i in (s.before, s.after)}
    assert not needed & set(old.image_ids)
    assert not {s.kept_as for r in kept for s in r.services.values()} & set(old.refs)
    assert all(r in kept for r in releases if r.state not in FINISHED)


def test_on_a_full_disk_the_reserve_is_given_back_and_the_write_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(str(tmp_path), "shop")
    journal.reserve()
    reserve = tmp_path / "releases" / "shop" / "reserve"
    assert reserve.stat().st_size >= 1 << 19
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if reserve.exists():
            raise OSError(errno.ENOSPC, "full")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    release = Release("ID", "shop", state="swapping")
    journal.write(release)
    assert journal.read("ID").state == "swapping"
    assert not journal.give_back()
    monkeypatch.setattr(os, "write", lambda _fd, _data: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OfflineRebuildError) as caught:
        journal.write(release)
    assert caught.value.code == "journal-write"
    assert sorted(path.name for path in reserve.parent.iterdir()) == ["ID.json"]


def test_what_a_run_that_was_cut_off_left_beside_the_releases_is_removed(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "shop")
    journal.reserve()
    (tmp_path / "releases" / "shop" / "ID.json.tmp").write_text("{")
    journal.sweep()
    assert list((tmp_path / "releases" / "shop").iterdir()) == []


def test_the_checks_of_the_newest_done_release_come_back_with_the_present_headers(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "shop")
    assert journal.checks() is None
    url = {"url": "http://127.0.0.1/", "body": "v1"}
    one = release(1)
    journal.write(one)
    journal.write_checks(one, [url, {**url, "headers": {"X-Key": "correct-horse"}}])
    journal.write(release(2, "rolled_back"))
    assert journal.ids() == [one.id, release(2).id]
    assert journal.checks() == [{**url, "headers": {}}]
    sent = {"tcp": "127.0.0.1:1", "headers": {"X-Key": "new-horse"}}
    assert journal.checks([sent]) == [{**url, "headers": {}}, {**url, "headers": {"X-Key": "new-horse"}}]
    written = tmp_path / "releases" / "shop" / f"{one.id}.checks.json"
    assert "horse" not in written.read_text()
    assert written.stat().st_mode & 0o777 == 0o600
    written.write_text("[")
    assert journal.checks() is None
    journal.remove(one.id)
    assert not written.exists()


def test_a_password_in_a_url_is_masked_and_a_long_word_costs_no_time() -> None:
    for url in ("https://u:pw@h/x", "1http://u:pw@h", "x (postgres+ssl://u:pw@h)"):
        assert "pw" not in mask(url, ())
    began = time.process_time()
    assert mask("a" * 500_000 + "://", ()) == "a" * 500_000 + "://"
    assert time.process_time() - began < 2

"""Which release is gone back to, and which images ran then."""

from __future__ import annotations

from pathlib import Path

import pytest

from module_utils.offline_rebuild import rollback
from module_utils.offline_rebuild.compose import Project, Service
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.release import Journal, Release, ServiceRecord

R = [f"2026010{day}T000000Z-aaaaaa" for day in range(6)]


def write(journal: Journal, number: int, state: str = "done", back: str = "", **images: tuple[str, str]) -> None:
    services = {n: ServiceRecord(n, "rebuild", before=before, after=after) for n, (before, after) in images.items()}
    release = Release(R[number], "shop", state=state, services=services, swapped=list(services), rollback_to=back)
    journal.write(release)
    if state == "done":
        journal.write_rendered(release, b"{}")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path), "shop")


@pytest.fixture
def three(journal: Journal) -> Journal:
    write(journal, 1, web=("w0", "w1"))
    write(journal, 2, web=("w1", "w2"), db=("d0", "d1"))
    write(journal, 3, web=("w2", "w3"))
    return journal


def test_the_release_before_is_the_default(three: Journal) -> None:
    found = rollback.find(three)
    assert (found.release, found.images, found.services) == (R[2], {"web": "w2"}, {"web"})
    assert found.rendered.endswith(f"{R[2]}.compose.json")


def test_later_releases_are_undone_in_order(three: Journal) -> None:
    assert rollback.find(three, R[1]).images == {"web": "w1", "db": "d0"}
    found = rollback.find(three, rollback.INITIAL)
    assert found.images == {"web": "w0", "db": "d0"}
    assert found.rendered == ""
    assert rollback.find(three, R[3]).services == set()


def test_going_back_twice_goes_back_two_steps(three: Journal) -> None:
    write(three, 4, back=R[2], web=("w3", "w2"))
    found = rollback.find(three)
    assert (found.release, found.images) == (R[1], {"web": "w1", "db": "d0"})
    assert rollback.find(three, R[3]).images == {"web": "w3"}
    write(three, 5, back=rollback.INITIAL, web=("w2", "w0"))
    with pytest.raises(OfflineRebuildError, match="before the oldest"):
        rollback.find(three)


def test_the_release_before_may_be_a_rollback(three: Journal) -> None:
    write(three, 4, back=R[2], web=("w3", "w2"))
    write(three, 5, web=("w2", "w5"))
    found = rollback.find(three)
    assert (found.release, found.images) == (R[4], {"web": "w2"})


def test_a_rollback_to_a_rollback_stands_where_that_one_stood(three: Journal) -> None:
    write(three, 4, back=R[2], web=("w3", "w2"))
    write(three, 5, back=R[4], web=("w5", "w2"))
    assert rollback.find(three).release == R[1]


def test_what_was_rolled_back_by_itself_does_not_count(three: Journal) -> None:
    write(three, 4, "rolled_back", web=("w3", "w4"))
    assert rollback.find(three).release == R[2]
    with pytest.raises(OfflineRebuildError, match="ended as rolled_back"):
        rollback.find(three, R[4])


def test_after_a_release_that_could_not_be_taken_back_the_last_good_one_is_the_default(three: Journal) -> None:
    write(three, 4, "failed", web=("w3", "w4"))
    found = rollback.find(three)
    assert (found.release, found.images) == (R[3], {"web": "w3"})


@pytest.mark.parametrize(
    ("wanted", "code"), [("", "rollback-nothing"), ("initial", "rollback-nothing"), (R[1], "release-missing")]
)
def test_an_empty_journal_has_nothing_to_go_back_to(journal: Journal, wanted: str, code: str) -> None:
    with pytest.raises(OfflineRebuildError) as caught:
        rollback.find(journal, wanted)
    assert caught.value.code == code


def test_services_that_came_later_are_named(journal: Journal) -> None:
    write(journal, 1, web=("w0", "w1"))
    write(journal, 2, web=("w1", "w2"), cache=("", "c1"), gone=("g0", "g1"))
    target = rollback.find(journal)
    project = Project("shop", "/srv", (), (), (Service("web", "web"), Service("cache", "cache")))
    assert rollback.left(project, target) == ("cache", "gone")

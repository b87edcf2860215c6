"""Records: bound to an image, checked, and never read half."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from module_utils.offline_rebuild.files import write_atomic
from module_utils.offline_rebuild.records import RecordStore, StageRecord

RECORD = StageRecord("base", "sha256:b", 1, (1, 2), ("k",), ("t",), {"0": "sha256:m"}, {"x:1": "sha256:x"})


def test_round_trip(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    assert store.write("sha256:i", "sha256:c", RECORD)
    assert not store.write("sha256:i", "sha256:c", RECORD)
    assert RecordStore(str(tmp_path)).of("sha256:i", "sha256:c") == (RECORD,)


@pytest.mark.parametrize(
    "other",
    [replace(RECORD, images={"x:1": "sha256:y"}), replace(RECORD, base_id=""), replace(RECORD, keys=("l",))],
)
def test_another_record_is_added(tmp_path: Path, other: StageRecord) -> None:
    store = RecordStore(str(tmp_path))
    store.write("sha256:i", "sha256:c", RECORD)
    assert store.write("sha256:i", "sha256:c", other)
    assert store.of("sha256:i", "sha256:c") == (other, RECORD)


def test_no_more_than_eight_are_kept(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    for number in range(12):
        store.write("sha256:i", "sha256:c", replace(RECORD, base=str(number)))
    assert [record.base for record in store.of("sha256:i", "sha256:c")] == [str(n) for n in range(11, 3, -1)]


def test_a_record_is_for_its_image_only(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    store.write("sha256:i", "sha256:c", RECORD)
    fresh = RecordStore(str(tmp_path))
    assert fresh.of("sha256:i", "sha256:other") == ()
    (tmp_path / "records/j.json").write_bytes((tmp_path / "records/i.json").read_bytes())
    assert fresh.of("sha256:j", "sha256:c") == ()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"schema": 1}', '"x"', "\x00", '{"schema": 1, "checksum": 5}']
)
def test_a_broken_file_counts_as_absent(tmp_path: Path, text: str) -> None:
    write_atomic(str(tmp_path / "records/i.json"), text.encode())
    assert RecordStore(str(tmp_path)).of("sha256:i", "sha256:c") == ()


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    RecordStore(str(tmp_path)).write("sha256:i", "sha256:c", RECORD)
    path = tmp_path / "records/i.json"
    raw = path.read_bytes()
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        assert RecordStore(str(tmp_path)).of("sha256:i", "sha256:c") in ((), (RECORD,))
        if RecordStore(str(tmp_path)).of("sha256:i", "sha256:c"):
            assert json.loads(path.read_bytes()) == json.loads(raw)


def test_reading_writes_nothing(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path / "absent"))
    assert store.of("sha256:i", "sha256:c") == ()
    assert store.manifest("sha256:m") is None
    assert store.manifest(None) is None
    assert not (tmp_path / "absent").exists()


def test_an_interrupted_write_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "d/f"
    write_atomic(str(path), b"old")
    (tmp_path / "d/f.1.tmp").write_bytes(b"half")
    assert path.read_bytes() == b"old"
    write_atomic(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700

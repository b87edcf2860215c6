"""The build context: entries, manifest, digest, differences, the stat index."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild import context as context_module
from module_utils.offline_rebuild import readers
from module_utils.offline_rebuild.context import Change, Context, Entry, Manifest, diff
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.ignorefile import parse
from module_utils.offline_rebuild.statindex import Record, StatIndex

ROOT = Path(__file__).parent.parent.parent
ODD = os.fsdecode(b"caf\xe9\n\\t\t")


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def make(root: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make(tmp_path / "ctx", {"b.txt": b"two\n", "a/x": b"one", "a/y/z": b"", "a-b": b"dash"})


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan begins ten seconds after the files were made, so that the index may trust them."""
    now = time.time_ns
    monkeypatch.setattr(context_module.time, "time_ns", lambda: now() + 10_000_000_000)


def index_of(tmp_path: Path, root: Path, **options: bool) -> StatIndex:
    return StatIndex.for_context(str(tmp_path / "state"), str(root), **options)


def test_entries_in_order(tree):
    manifest = Context(str(tree)).manifest()
    assert list(manifest) == ["a", "a/x", "a/y", "a/y/z", "a-b", "b.txt"]
    assert manifest["a/x"] == Entry("file", 0o644, 3, digest=sha(b"one"))
    assert manifest["a"].type == "dir"
    assert (len(manifest), manifest.files, manifest.bytes) == (6, 4, 11)
    assert "a/nothing" not in manifest
    assert "nothing/x" not in manifest
    with pytest.raises(KeyError, match="nothing/x"):
        manifest["nothing/x"]


def test_prefix(tree):
    whole = Context(str(tree))
    assert [path for path, _ in Context(str(tree)).entries("a")] == ["a", "a/x", "a/y", "a/y/z"]
    assert list(Context(str(tree)).entries("a/y")) == [(p, e) for p, e in whole.entries() if p.startswith("a/y")]
    assert list(Context(str(tree)).stat_entries("a/x")) == [("a/x", Entry("file", 0o644, 3))]
    assert list(Context(str(tree)).entries("nothing/at/all")) == []
    assert list(Context(str(tree)).entries("b.txt/x")) == []


@pytest.mark.parametrize("path", ["..", "../outside", "a/../../outside", "/etc/passwd", "./b.txt", "a//x"])
def test_nothing_outside_is_reached(tree, path, monkeypatch):
    (tree.parent / "outside").write_bytes(b"secret")
    monkeypatch.setattr(Context, "_open_root", lambda _self: pytest.fail("it was looked at"))
    assert list(Context(str(tree)).entries(path)) == []
    assert list(Context(str(tree)).stat_entries(path)) == []
    with pytest.raises(OfflineRebuildError, match="context-changed"):
        Context(str(tree)).read(path)
    with pytest.raises(OfflineRebuildError, match="context-changed"):
        Context(str(tree)).digest_of(path)


def test_stat_entries_read_nothing(tree):
    context = Context(str(tree))
    stats = dict(context.stat_entries())
    full = context.manifest()
    assert list(stats) == list(full)
    assert all(entry.digest is None for entry in stats.values())
    assert [(e.type, e.mode, e.size, e.link) for e in stats.values()] == [
        (e.type, e.mode, e.size, e.link) for e in full.values()
    ]
    assert stats["a/x"].mtime_ns == (tree / "a/x").stat().st_mtime_ns
    assert Context(str(tree)).digest_of("a/x") == sha(b"one")
    with pytest.raises(OfflineRebuildError, match="context-changed"):
        Context(str(tree)).digest_of("a")


def test_digest_sees_what_counts_and_nothing_else(tree):
    def digest() -> str:
        return Context(str(tree)).manifest().digest()

    first = digest()
    os.utime(tree / "a/x", (1, 1))
    os.utime(tree / "a", (1, 1))
    assert digest() == first
    if os.geteuid() == 0:
        os.chown(tree / "a/x", 12, 34)
        assert digest() == first
    seen = {first}
    for change in (
        lambda: (tree / "a/x").write_bytes(b"One"),
        lambda: (tree / "a/x").chmod(0o600),
        lambda: (tree / "a/x").chmod(0o4755),
        lambda: (tree / "a").chmod(0o700),
        lambda: (tree / "a/x").rename(tree / "a/w"),
        (tree / "new").mkdir,
        lambda: (tree / "link").symlink_to("a"),
        lambda: ((tree / "link").unlink(), (tree / "link").symlink_to("b")),
        lambda: ((tree / "new").rmdir(), (tree / "new").write_bytes(b"")),
    ):
        change()
        assert digest() not in seen
        seen.add(digest())


def test_ignored_directories_come_back_with_what_is_in_them(tree):
    context = Context(str(tree), parse(b"*\n!a/y/z\n", ".dockerignore"))
    assert list(context.manifest()) == ["a", "a/y", "a/y/z"]
    assert [path for path, _ in context.stat_entries()] == ["a", "a/y", "a/y/z"]
    context = Context(str(tree), parse(b"*\n!a/y/nothing\n", ".dockerignore"))
    assert list(context.manifest()) == []
    assert list(context.stat_entries()) == []


def test_a_file_that_arrives_empty(tree):
    """fsutil sends the entry but no content (see IgnoreFile.hides); seen with buildx 0.13."""
    context = Context(str(tree), parse(b"a\n!a/*\na\n", ".dockerignore"))
    assert context.manifest()["a/x"] == Entry("file", 0o644, 0, digest=sha(b""))
    assert dict(context.stat_entries())["a/x"].size == 0


def test_special_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o640)
    (tmp_path / "up").symlink_to("../../etc/passwd")
    (tmp_path / "dir").symlink_to("/etc")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(tmp_path, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
        manifest = Context(str(tmp_path)).manifest()
    umask = os.umask(0)
    os.umask(umask)
    assert dict(manifest) == {
        "dir": Entry("symlink", 0o777, 0, link="/etc"),
        "fifo": Entry("fifo", 0o640 & ~umask, 0),
        "socket": Entry("socket", 0o777 & ~umask, 0),
        "up": Entry("symlink", 0o777, 0, link="../../etc/passwd"),
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_devices_have_numbers(tmp_path):
    try:
        os.mknod(tmp_path / "null", 0o20666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this machine allows no devices")
    assert Context(str(tmp_path)).manifest()["null"].link == "1:3"


def test_names_that_are_not_utf8(tmp_path):
    (tmp_path / ODD).mkdir()
    (tmp_path / ODD / ODD).write_bytes(b"x")
    (tmp_path / "link").symlink_to(ODD)
    manifest = Context(str(tmp_path)).manifest()
    assert list(manifest) == [ODD, f"{ODD}/{ODD}", "link"]
    assert manifest["link"].link == ODD
    text = manifest.to_json()
    assert text.isascii()
    again = Manifest.from_json(text)
    assert dict(again) == dict(manifest)
    assert again.digest() == manifest.digest()
    assert Context(str(tmp_path)).read(f"{ODD}/{ODD}") == b"x"


def test_extended_attributes(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    before = Context(str(tmp_path)).manifest()
    try:
        os.setxattr(tmp_path / "f", "user.b", b"\x00\xff")
        os.setxattr(tmp_path / "f", "user.a", b"")
    except OSError:
        pytest.skip("no extended attributes here")
    after = Context(str(tmp_path)).manifest()
    assert after["f"].xattrs == (("user.a", ""), ("user.b", "00ff"))
    assert diff(before, after) == [Change("f", "changed", ("xattrs",))]
    assert Manifest.from_json(after.to_json())["f"] == after["f"]
    assert readers.xattr_counts("security.capability")
    assert not any(map(readers.xattr_counts, ("security.selinux", "system.posix_acl_access", "com.apple.x")))


def test_a_file_that_changes_while_it_is_read(tree, monkeypatch):
    real = os.read

    def writes_meanwhile(fd: int, count: int) -> bytes:
        with (tree / "a-b").open("ab") as stream:
            stream.write(b"more")
        return real(fd, count)

    monkeypatch.setattr(context_module.os, "read", writes_meanwhile)
    with pytest.raises(OfflineRebuildError) as caught:
        Context(str(tree)).manifest()
    assert caught.value.code == "context-changed"
    assert caught.value.file in {str(tree / "a-b"), str(tree / "a/x")} or caught.value.file.startswith(str(tree))


def test_a_file_that_is_written_all_the_time(tmp_path):
    """The real thing: a writer in another process while a big file is read."""
    log = tmp_path / "ctx" / "app.log"
    log.parent.mkdir()
    log.write_bytes(b"x" * 30_000_000)
    script = f"import sys\nf = open({str(log)!r}, 'ab', 0)\nprint('on', flush=True)\nwhile True: f.write(b'y')"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            with pytest.raises(OfflineRebuildError) as caught:
                Context(str(log.parent)).manifest()
        finally:
            writer.kill()
    assert (caught.value.code, caught.value.file) == ("context-changed", str(log))


@pytest.mark.parametrize("what", ["gone", "a link", "a directory"])
def test_a_file_that_vanishes_or_is_replaced(tree, monkeypatch, what):
    outside = tree.parent / "outside"
    outside.write_bytes(b"dash")
    real = Context.list_directory

    def lists_then_changes(self, fd, path, state, only):
        listing = real(self, fd, path, state, only)
        if not path:
            (tree / "a-b").unlink(missing_ok=True)
            if what == "a link":
                (tree / "a-b").symlink_to(outside)
            if what == "a directory":
                (tree / "a-b").mkdir()
        return listing

    monkeypatch.setattr(Context, "list_directory", lists_then_changes)
    with pytest.raises(OfflineRebuildError) as caught:
        Context(str(tree)).manifest()
    assert (caught.value.code, caught.value.file) == ("context-changed", str(tree / "a-b"))


def test_a_directory_swapped_for_a_link_is_not_followed(tree, monkeypatch):
    outside = make(tree.parent / "outside", {"x": b"one", "secret": b"s"})
    real = Context.list_directory

    def lists_then_swaps(self, fd, path, state, only):
        listing = real(self, fd, path, state, only)
        if not path:
            (tree / "a").rename(tree.parent / "moved")
            (tree / "a").symlink_to(outside)
        return listing

    monkeypatch.setattr(Context, "list_directory", lists_then_swaps)
    with pytest.raises(OfflineRebuildError, match="context-changed"):
        Context(str(tree)).manifest()


def unreadable(root: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """Digest a tree as a user without rights (root may read everything)."""
    script = (
        "import os\n"
        "from module_utils.offline_rebuild.context import Context, OfflineRebuildError\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"try: print(len(Context({str(root)!r}).manifest()))\n"
        "except OfflineRebuildError as e: print(e.code, e.file)\n"
    )
    path.chmod(0)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)


@pytest.mark.parametrize("path", ["a/x", "a"])
def test_unreadable_is_named(path, tmp_path_factory):
    base = tmp_path_factory.mktemp("unreadable")
    for directory in [base, *list(base.parents)[:2]]:
        directory.chmod(0o755)
    tree = make(base / "ctx", {"a/x": b"one"})
    run = unreadable(tree, tree / path)
    (tree / path).chmod(0o755)
    assert run.stdout.split() == ["context-unreadable", str(tree / path)], run.stderr


def test_no_such_context(tmp_path):
    with pytest.raises(OfflineRebuildError, match="context-missing"):
        Context(str(tmp_path / "nothing"))


def test_too_deep(tmp_path):
    here = tmp_path
    for _level in range(context_module.MAX_DEPTH + 1):
        here /= "d"
        here.mkdir()
    with pytest.raises(OfflineRebuildError, match="context-too-deep"):
        Context(str(tmp_path)).manifest()
    with pytest.raises(OfflineRebuildError, match="context-too-deep"):
        list(Context(str(tmp_path)).stat_entries())


# --- differences ------------------------------------------------------------------------------------------------------


def test_diff(tree):
    old = Context(str(tree)).manifest()
    (tree / "a/x").write_bytes(b"1ne")
    (tree / "b.txt").chmod(0o755)
    (tree / "a-b").unlink()
    (tree / "a-b").symlink_to("b.txt")
    (tree / "a/y/z").unlink()
    (tree / "n").mkdir()
    (tree / "n/m").write_bytes(b"")
    new = Context(str(tree)).manifest()
    assert diff(old, new) == [
        Change("a-b", "changed", ("type",)),
        Change("a/x", "changed", ("content",)),
        Change("a/y/z", "deleted"),
        Change("b.txt", "changed", ("mode",), "only the mode differs"),
        Change("n", "added"),
        Change("n/m", "added"),
    ]
    assert diff(new, new) == []


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        (b"a\nb\n", b"a\r\nb\r\n", "only the line ends differ"),
        (b"a\r\nb\r\n", b"a\nb\n", "only the line ends differ"),
        (b"a\nb\n", b"a\r\nB\r\n", ""),
        (b"a\nb\n", b"a\nc\n", ""),
    ],
)
def test_line_ends(tmp_path, before, after, note):
    make(tmp_path, {"d/f": before})
    old = Context(str(tmp_path)).manifest()
    make(tmp_path, {"d/f": after})
    context = Context(str(tmp_path))
    assert diff(old, context.manifest(), context.only_line_ends) == [Change("d/f", "changed", ("content",), note)]


CONTENTS = st.sampled_from([sha(b""), sha(b"x")])
FILE = st.tuples(st.integers(0, 0o7777), st.integers(0, 9), CONTENTS).map(
    lambda drawn: Entry("file", drawn[0], drawn[1], digest=drawn[2])
)
LINK = st.text("ab/\t\n\\", max_size=4).map(lambda to: Entry("symlink", 0o777, 0, link=to))
ENTRIES = st.dictionaries(
    st.lists(st.text("ab\udc80\n\\\t=", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join),
    FILE | LINK,
    max_size=6,
)


@given(ENTRIES, ENTRIES)
@settings(max_examples=300, deadline=None)
def test_manifests_survive_json_and_compare(one, two):
    old, new = Manifest.from_entries(one), Manifest.from_entries(two)
    again = Manifest.from_json(old.to_json())
    assert all(again[path] == entry for path, entry in one.items())
    changed = {change.path for change in diff(again, new)}
    assert changed == {path for path in {**one, **two} if one.get(path) != two.get(path)}
    assert (old.digest() == new.digest()) is (one == two)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "{}", '{"format":2}', '{"format":1,"directories":[],"files":0,"bytes":0}',
        '{"format":1,"files":1,"bytes":1,"directories":{"":"f\\t644\\tx\\t\\t\\tname\\n"}}',
        '{"format":1,"files":0,"bytes":0,"digest":"sha256:00","directories":{}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_broken_manifest_is_refused(text):
    with pytest.raises(OfflineRebuildError) as caught:
        Manifest.from_json(text, "m.json")
    assert (caught.value.code, caught.value.file) == ("manifest-invalid", "m.json")


def test_an_edited_manifest_is_refused(tree):
    data = json.loads(Context(str(tree)).manifest().to_json())
    data["directories"]["a"] = data["directories"]["a"].replace("644", "755")
    with pytest.raises(OfflineRebuildError, match="manifest-invalid"):
        Manifest.from_json(json.dumps(data))


# --- the stat index ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("later")
def test_a_warm_run_reads_nothing(tmp_path, tree):
    first = Context(str(tree), index=index_of(tmp_path, tree))
    digest = first.manifest().digest()
    again = Context(str(tree), index=index_of(tmp_path, tree))
    assert again.manifest().digest() == digest
    assert (first.files_read, again.files_read) == (4, 0)
    assert (again.manifest().files, again.manifest().bytes) == (4, 11)
    written = Path(index_of(tmp_path, tree).path).stat().st_mtime_ns
    Context(str(tree), index=index_of(tmp_path, tree)).manifest()
    assert Path(index_of(tmp_path, tree).path).stat().st_mtime_ns == written  # nothing changed: not written


@pytest.mark.usefixtures("later")
def test_only_what_changed_is_read(tmp_path, tree):
    Context(str(tree), index=index_of(tmp_path, tree)).manifest()
    stamp = (tree / "b.txt").stat()
    (tree / "b.txt").write_bytes(b"TWO\n")
    os.utime(tree / "b.txt", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size and mtime: the ctime tells
    (tree / "a/new").write_bytes(b"n")
    context = Context(str(tree), index=index_of(tmp_path, tree))
    assert context.manifest().digest() == Context(str(tree)).manifest().digest()
    assert context.files_read == 2
    (tree / "a/y/z").unlink()
    context = Context(str(tree), index=index_of(tmp_path, tree))
    assert "a/y/z" not in context.manifest()
    assert context.files_read == 0
    assert Context(str(tree), index=index_of(tmp_path, tree)).manifest().digest() == context.manifest().digest()


def test_young_entries_are_not_trusted(tmp_path, tree):
    """Git's racy rule: a file that is as young as the scan may have changed after it within one tick of the clock."""
    Context(str(tree), index=index_of(tmp_path, tree)).manifest()
    index = index_of(tmp_path, tree)
    forged = {}
    for directory in (b"", b"a", b"a/y"):
        record = bound(index, tree).get(directory)
        assert record is not None
        # What the index would hold had the file changed after it was read, with the very same numbers.
        forged[directory] = record._replace(lines=record.lines.replace(sha(b"one")[7:].encode(), b"0" * 64))
    index.save(forged, bound(index, tree).trusted_below)
    context = Context(str(tree), index=index_of(tmp_path, tree))
    assert context.manifest()["a/x"].digest == sha(b"one")
    assert context.files_read == 4
    # The same with an index that began later than the files: now it is believed, which shows that the forgery works.
    index.save(forged, time.time_ns() + 10**10)
    assert Context(str(tree), index=index_of(tmp_path, tree)).manifest()["a/x"].digest == "sha256:" + "0" * 64


def bound(index: StatIndex, tree: Path) -> StatIndex:
    Context(str(tree), index=index)
    return index


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "other root"])
def test_a_broken_index_counts_as_none(tmp_path, tree, damage):
    digest = Context(str(tree), index=index_of(tmp_path, tree)).manifest().digest()
    path = Path(index_of(tmp_path, tree).path)
    data = path.read_bytes()
    if damage == "other root":
        other = make(tmp_path / "other", {"b.txt": b"2wo\n", "a/x": b"1ne", "a/y/z": b"", "a-b": b"dash"})
        path.rename(index_of(tmp_path, other).path)
        path = Path(index_of(tmp_path, other).path)
        context = Context(str(other), index=index_of(tmp_path, other))
        assert context.manifest().digest() != digest
    else:
        bad = {
            "cut": data[:-5],
            "flipped": data[:90] + bytes([data[90] ^ 1]) + data[91:],
            "empty": b"",
            "text": b"hello",
        }
        path.write_bytes(bad[damage])
        context = Context(str(tree), index=index_of(tmp_path, tree))
        assert context.manifest().digest() == digest
    assert context.files_read == 4
    assert path.read_bytes() != b"hello"


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_an_index_of_any_bytes(tmp_path_factory, body):
    """Even one whose checksum is right."""
    path = tmp_path_factory.mktemp("index") / "i.stat"
    path.write_bytes(b"OFRSTAT1" + hashlib.sha256(body).digest() + body)
    assert StatIndex(str(path), "/").get(b"") is None


def test_check_mode_writes_no_index(tmp_path, tree):
    Context(str(tree), index=index_of(tmp_path, tree, readonly=True)).manifest()
    assert not (tmp_path / "state").exists()


def test_an_index_that_cannot_be_written(tmp_path, tree):
    (tmp_path / "state").write_bytes(b"a file")
    with pytest.raises(OfflineRebuildError, match="state-unwritable"):
        Context(str(tree), index=index_of(tmp_path, tree)).manifest()


@pytest.mark.usefixtures("later")
def test_one_index_for_two_sets_of_patterns(tmp_path, tree):
    """The index is not bound to the ignore file's content, except where that decides what a file holds."""
    for source in (b"a\n", b"", b"a\n!a/*\na\n", b"", b"*\n!a/x\n"):
        ignore = parse(source, "f")
        with_index = Context(str(tree), ignore, index_of(tmp_path, tree)).manifest()
        assert with_index.digest() == Context(str(tree), ignore).manifest().digest()


@pytest.mark.usefixtures("later")
def test_random_edits_never_fool_the_index(tmp_path, tree):
    dice = random.Random(5)
    for _round in range(40):
        path = tree / dice.choice(["a/x", "b.txt", "a/y/z", "new", "a/y"])
        action = dice.choice(["write", "chmod", "remove", "replace"])
        if path.is_dir():
            path.chmod(dice.choice([0o755, 0o700]))
        elif action in ("write", "replace"):
            if action == "replace":
                path.unlink(missing_ok=True)
            path.write_bytes(dice.choice([b"one", b"two", b"three"]))
        elif path.exists():
            path.chmod(dice.choice([0o600, 0o644])) if action == "chmod" else path.unlink()
        found = Context(str(tree), index=index_of(tmp_path, tree)).manifest().digest()
        assert found == Context(str(tree)).manifest().digest()


def test_concurrent_writers_leave_a_whole_index(tmp_path):
    path = str(tmp_path / "i.stat")
    records = {b"d%d" % n: Record(b"x", b"\0" * 40, b"line\n", 1, 1, 0) for n in range(500)}
    threads = [threading.Thread(target=lambda: [StatIndex(path, "k").save(records, 1) for _ in range(5)]) for _ in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(StatIndex(path, "k")) == 500
    assert list(tmp_path.iterdir()) == [tmp_path / "i.stat"]


def test_memory_is_bounded_for_a_flat_directory(tmp_path):
    """20,000 files in one directory: a fifth of the 64 MB that 100,000 may take, and what Python itself takes."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(20_000):
        os.close(os.open(flat / f"some_longer_name_{number:06d}.py", os.O_CREAT | os.O_WRONLY, 0o644))
    script = (
        "import resource\n"
        "from module_utils.offline_rebuild.context import Context\n"
        "from module_utils.offline_rebuild.statindex import StatIndex\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"manifest = Context({str(flat)!r}, index=StatIndex({str(tmp_path / 'i')!r})).manifest()\n"
        "manifest.digest()\n"
        "print(len(manifest), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    count, kilobytes = map(int, run.stdout.split())
    assert count == 20_000
    assert kilobytes < 16 * resource.getpagesize() // 4096 * 1024

"""What COPY writes, and whether a layer holds it: the rules without an engine (tests/engine has the engines)."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild import copyset
from module_utils.offline_rebuild.context import Context
from module_utils.offline_rebuild.copyset import CopySet, compare, copy_set
from module_utils.offline_rebuild.dockerfile import parse
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.layers import Layer, LayerEntry

DIR = LayerEntry("dir", 0o755)
Before = Mapping[str, LayerEntry]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A context."""
    for path, content, mode in (
        ("a.txt", "a\n", 0o644),
        ("d/x", "x", 0o755),
        ("d/s/y", "y", 0o600),
        ("d/s/z.log", "z", 0o644),
    ):
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        target.chmod(mode)
    (tmp_path / "d/s").chmod(0o1777)
    (tmp_path / "d").chmod(0o755)
    (tmp_path / "l").symlink_to("d")
    return tmp_path


def play(tree: Path, text: str, before: Optional[Before] = None, **more: Any) -> CopySet:
    """The copy set of one instruction, in /wd."""
    line = parse(f"FROM scratch\n{text}\n".encode()).instructions[-1]
    state = {"": DIR, **(before or {})}
    return copy_set(line, Context(str(tree)), "/wd", state.get, file="Dockerfile", **more)


def layer_of(wanted: CopySet, behaviour: int = 0) -> Layer:
    """The layer that the instruction writes."""
    entries: Dict[str, LayerEntry] = {"": DIR}
    for path, e in {**wanted.entries, **wanted.parents}.items():
        entries[path] = LayerEntry(
            e.type, e.modes[behaviour], e.uid, e.gid, e.size, 0, e.content_digest(), e.link, e.xattrs
        )
    return Layer("sha256:1", entries)


def paths(wanted: CopySet) -> Tuple[List[str], List[str]]:
    assert not wanted.unsupported
    return sorted(wanted.entries), sorted(wanted.parents)


# -- where files go ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("COPY st*r /n/", "st*r, found by st*r, has a wildcard in its name"),
        ("COPY l* /n/", "a symbolic link is found by l*"),
        ("COPY d/q* /n/", "nothing is found by d/q*"),
        ("COPY [[*]r /n/", "a wildcard in a class"),
    ],
)
def test_a_pattern_that_is_left_to_buildkit(tree: Path, text: str, why: str) -> None:
    """What the client sends for these is decided by what other instructions ask for."""
    (tree / "st*r").mkdir()
    assert why in play(tree, text).unsupported


@pytest.mark.parametrize(
    ("text", "entries", "parents"),
    [
        ("COPY a.txt /n/", ["n/a.txt"], ["n"]),
        ("COPY a.txt /n", ["n"], []),
        ("COPY a.txt n", ["wd/n"], ["wd"]),
        ("COPY a.txt .", ["wd/a.txt"], ["wd"]),
        ("COPY a.txt ..", ["a.txt"], []),
        ("COPY a.txt /", ["a.txt"], []),
        ("COPY d /n", ["n/s", "n/s/y", "n/s/z.log", "n/x"], ["n"]),
        ("COPY d/s/ n/m", ["wd/n/m/y", "wd/n/m/z.log"], ["wd", "wd/n", "wd/n/m"]),
        ("COPY l /n/", ["n/s", "n/s/y", "n/s/z.log", "n/x"], ["n"]),
        ("COPY l/x /n/", ["n/x"], ["n"]),
        ("COPY d/* /n/", ["n/x", "n/y", "n/z.log"], ["n"]),
        ("COPY */s/?.log /n/", ["n/z.log"], ["n"]),
        ("COPY no* /n/", [], []),
        ("COPY ../a.txt /n/", ["n/a.txt"], ["n"]),
        ("COPY a.txt d/x /n", ["n"], []),
        ("COPY <<a <<b /n/\n1\na\n2\nb", ["n/a", "n/b"], ["n"]),
        ("COPY --exclude=*.log --exclude=x d /n/", ["n/s", "n/s/y", "n/s/z.log"], ["n"]),
        ("COPY --exclude=s --exclude=!s/y d /n/", ["n/s", "n/s/y", "n/x"], ["n"]),
    ],
)
def test_where_files_go(tree: Path, text: str, entries: List[str], parents: List[str]) -> None:
    assert paths(play(tree, text)) == (entries, parents)


def test_links_of_the_image_are_followed_at_the_destination_only(tree: Path) -> None:
    before = {
        "wd": DIR,
        "app": LayerEntry("symlink", 0o777, link="/real"),
        "real": LayerEntry("dir", 0o700, 5, 6),
        "real/x": LayerEntry("symlink", 0o777, link="/etc/passwd"),
        "etc": DIR,
        "etc/passwd": LayerEntry("file", 0o644),
    }
    wanted = play(tree, "COPY d /app/", before)
    assert paths(wanted) == (["real/s", "real/s/y", "real/s/z.log", "real/x"], [])
    assert wanted.entries["real/x"].type == "file"
    assert paths(play(tree, "COPY a.txt /real/x", before)) == (["etc/passwd"], [])


def test_metadata(tree: Path) -> None:
    wanted = play(tree, "COPY d /n/", {"n": LayerEntry("dir", 0o700, 5, 6), "n/s": LayerEntry("dir", 0o711, 7, 8)})
    assert wanted.parents == {}
    assert "n" not in wanted.entries
    folder = wanted.entries["n/s"]
    assert (folder.mode, folder.uid, folder.gid) == (0o1777, 0, 0)
    owned = play(tree, "COPY --chown=5:6 --chmod=4711 d /n/")
    assert {(e.mode, e.uid, e.gid) for e in owned.entries.values()} == {(0o4711, 5, 6)}
    assert {(e.modes, e.uid) for e in owned.parents.values()} == {((0o711, 0o711, 0o755, 0o755, 0o755), 5)}
    assert owned.entries["n/s"].modes[4] == 0o1711


PASSWD = b"root:x:0:0:::\napp:x:1000:1001:::\nbad:x:x:1:::\n"
GROUP = b"root:x:0:\nweb:x:33:app\n"


@pytest.mark.parametrize(
    ("chown", "owner"),
    [
        ("app", (1000, 1001)), ("app:web", (1000, 33)), ("app:no", (1000, 1001)), ("no", (0, 0)), ("no:web", (0, 33)),
        ("5", (5, 5)), ("5:6", (5, 6)), ("5:web", (5, 33)), ("5:no", (5, 5)), (":7", (0, 7)), ("5:", (5, 0)),
        ("root", (0, 0)), ("5:root", (5, 0)), ("bad", None), ("-1", None), ("99999999999", None), ("5:+1", None),
    ],
)  # fmt: skip
def test_owner(tree: Path, chown: str, owner: Optional[Tuple[int, int]]) -> None:
    files = {"etc/passwd": PASSWD, "etc/group": GROUP}
    wanted = play(tree, f"COPY --chown={chown} a.txt /n", owner_lookup=files.get)
    if owner is None:
        assert wanted.unsupported
    else:
        assert (wanted.entries["n"].uid, wanted.entries["n"].gid) == owner


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", "u", "g", "o", "a", "ug", "go"]), st.sampled_from("+-="),
                  st.sampled_from(["", "r", "w", "x", "rw", "rx", "rwx"])),
        min_size=1, max_size=3,
    ),
    st.integers(0, 0o777),
)  # fmt: skip
def test_symbolic_modes_as_chmod_does_them(
    tmp_path_factory: pytest.TempPathFactory, clauses: List[Tuple[str, str, str]], mode: int
) -> None:
    text = ",".join("".join(clause) for clause in clauses)
    file = tmp_path_factory.getbasetemp() / "moded"
    file.write_text("")
    file.chmod(mode)
    subprocess.run(["sh", "-c", 'umask 0; chmod -- "$1" "$2"', "sh", text, str(file)], check=True)
    assert copyset._symbolic(text)(mode, False) == file.stat().st_mode & 0o7777


# -- what is not told ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "COPY --parents d/x /n/", "ADD http://x/y /n/", "ADD https://github.com/a/b.git /n/", "ADD git@x.y:z /n/",
        "COPY --chmod=g+s d /n/", "COPY --chmod=a=rX d /n/", "COPY --chmod=99 d /n/", "COPY --chmod=17777 d /n/",
        "COPY a.txt /n/.", "COPY d /file", "COPY a.txt /file/x", "COPY a.txt /dir/sub", "COPY d /dir2",
        "COPY a.txt /sg/new/", "COPY a.txt /loop/x", "COPY --exclude=/x d /n/", "COPY --exclude=#x d /n/",
        "COPY --link a.txt /odd/", "COPY --link a.txt /dir", "COPY --link --chown=app a.txt /n/",
        "COPY no/*.txt /n/", "COPY a[ /n/", "ADD --unpack=true a.txt /n/",
    ],
)  # fmt: skip
def test_untold(tree: Path, text: str) -> None:
    before = {
        "file": LayerEntry("file", 0o644),
        "dir": DIR,
        "dir/sub": DIR,
        "dir/sub/a.txt": DIR,
        "dir2": DIR,
        "dir2/s": LayerEntry("file", 0o644),
        "sg": LayerEntry("dir", 0o2755),
        "odd": LayerEntry("dir", 0o700),
        "loop": LayerEntry("symlink", 0o777, link="loop"),
    }
    assert play(tree, text, before).unsupported


def archive(tree: Path, name: str, data: bytes) -> None:
    (tree / name).write_bytes(data)


def a_tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("f"))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", True),
        (b"text" * 300, True),
        (b"\0" * 4096, True),
        (a_tar(), False),
        (a_tar()[:300], True),
        (b"\x1f\x8b\x08rest", False),
        (b"BZh9rest", False),
        (b"\xfd7zXZ\0rest", False),
        (b"\x28\xb5\x2f\xfdrest", False),
    ],
)
def test_add_of_what_may_be_an_archive(tree: Path, data: bytes, told: bool) -> None:
    archive(tree, "arch", data)
    assert bool(play(tree, "ADD arch /n/").unsupported) is not told
    assert not play(tree, "COPY arch /n/").unsupported


def test_special_files(tree: Path) -> None:
    os.mkfifo(tree / "d/pipe")
    assert play(tree, "COPY d /n/").unsupported
    assert not play(tree, "COPY d/s /n/").unsupported


@pytest.mark.parametrize("source", ["gone", "d/gone", "../gone", "dangling", "dang*", "d/x/y", "cycle"])
def test_a_source_that_is_not_there(tree: Path, source: str) -> None:
    (tree / "dangling").symlink_to("../../etc/hostname")
    (tree / "cycle").symlink_to("cycle")
    with pytest.raises(OfflineRebuildError) as problem:
        play(tree, f"COPY a.txt \\\n  {source} /n/")
    assert (problem.value.code, problem.value.file, problem.value.line) == ("copy-source", "Dockerfile", 2)


def test_the_ignore_file_counts(tree: Path) -> None:
    from module_utils.offline_rebuild import ignorefile

    line = parse(b"FROM scratch\nCOPY d /n\nCOPY a.txt /m\n").instructions
    context = Context(str(tree), ignorefile.parse(b"**/*.log\na.txt\n", ".dockerignore"))
    assert sorted(copy_set(line[1], context, "/", {"": DIR}.get).entries) == ["n/s", "n/s/y", "n/x"]
    with pytest.raises(OfflineRebuildError):
        copy_set(line[2], context, "/", {"": DIR}.get)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*", "abc", True), ("*", "a/c", False), ("a*b*c", "axxbyyc", True), ("a?c", "a/c", False),
        ("a?c", "abc", True),
        ("[a-c]x", "bx", True), ("[^a-c]x", "bx", False), ("[^a]x", "/x", True), ("[a/]x", "/x", True),
        ("a\\*", "a*", True), ("a\\*", "ab", False), ("[\\]]", "]", True), ("[\\-a]", "-", True),
        ("*.txt", ".txt", True),
        ("**", "ab", True), ("a**/b", "axx/b", True), ("[z-a]", "m", False), ("\u00e9?", "\u00e9\u00e8", True),
        ("a\n*", "a\nb", True), ("x", "x\n", False),
    ],
)  # fmt: skip
def test_go_match(pattern: str, name: str, matches: bool) -> None:
    found = copyset.go_match(pattern)
    assert found is not None
    assert bool(found.match(name)) is matches


@pytest.mark.parametrize("pattern", ["[", "[a", "[]a]", "[a-]", "[-a]", "a\\", "[^]", "[a-"])
def test_go_match_malformed(pattern: str) -> None:
    assert copyset.go_match(pattern) is None


# -- comparing ---------------------------------------------------------------------------------------------------


def test_the_same_is_proven(tree: Path) -> None:
    for text in ("COPY d /n/", "COPY --chmod=4700 d /n/m/", "COPY . /", "COPY <<E /h\nx\nE"):
        wanted = play(tree, text)
        for behaviour in range(copyset.BEHAVIOURS):
            assert compare(wanted, layer_of(wanted, behaviour), {"": DIR}.get) == [], (text, behaviour)


def test_behaviours_are_not_mixed(tree: Path) -> None:
    wanted = play(tree, "COPY --chmod=4700 d /n/")
    layer = layer_of(wanted, 0)
    mixed = {**layer.entries, "n/x": layer_of(wanted, 4).entries["n/x"]}
    found = compare(wanted, Layer("x", mixed), {"": DIR}.get)
    assert [(c.path, c.what) for c in found] == [("d/x", ("mode",))]


def sha(text: bytes) -> str:
    return "sha256:" + hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    ("path", "change", "want"),
    [
        ("n/x", {"mode": 0o700}, ("d/x", "changed", ("mode",), "only the mode differs")),
        ("n/x", {"uid": 1}, ("d/x", "changed", ("owner",), "")),
        ("n/x", {"gid": 1}, ("d/x", "changed", ("owner",), "")),
        ("n/x", {"size": 2, "digest": sha(b"zz")}, ("d/x", "changed", ("content",), "")),
        ("n/x", {"digest": sha(b"z")}, ("d/x", "changed", ("content",), "")),
        ("n/x", {"digest": None}, ("d/x", "changed", ("content",), "")),
        ("n/x", {"type": "unknown"}, ("d/x", "changed", ("type",), "")),
        ("n/x", {"xattrs": (("security.capability", "00"),)}, ("d/x", "changed", ("xattrs",), "")),
        ("n/x", {"type": "symlink", "link": "y"}, ("d/x", "changed", ("type",), "")),
        ("n/s", {"mode": 0o755}, ("d/s", "changed", ("mode",), "only the mode differs")),
        ("n", {"mode": 0o700}, ("/n", "changed", ("mode",), "only the mode differs")),
        ("n/x", {"mode": 0o700, "uid": 3}, ("d/x", "changed", ("mode", "owner"), "")),
    ],
)
def test_each_difference_is_seen(tree: Path, path: str, change: Dict[str, Any], want: Tuple[Any, ...]) -> None:
    wanted = play(tree, "COPY d /n/")
    entries = dict(layer_of(wanted).entries)
    entries[path] = replace(entries[path], **change)
    found = compare(wanted, Layer("x", entries), {"": DIR}.get)
    assert [(c.path, c.kind, c.what, c.note) for c in found] == [want]


def edited(tree: Path, edit: Callable[[Path], Any], before: Optional[Before] = None) -> List[Tuple[Any, ...]]:
    """Differences of ``COPY d /n/`` after an edit of the tree."""
    layer = layer_of(play(tree, "COPY d /n/", before))
    edit(tree)
    found = compare(play(tree, "COPY d /n/", before), layer, {"": DIR, **(before or {})}.get)
    return [(c.path, c.kind, c.what, c.note) for c in found]


def test_edits(tree: Path) -> None:
    assert edited(tree, lambda t: (t / "d/new").write_text("n")) == [("d/new", "added", (), "")]
    assert edited(tree, lambda t: (t / "d/new").unlink()) == [("d/new", "deleted", (), "")]
    assert edited(tree, lambda t: (t / "d/s/y").write_text("Y")) == [("d/s/y", "changed", ("content",), "")]
    assert edited(tree, lambda t: (t / "a.txt").unlink()) == []
    os.utime(tree / "d/x", (1, 1))
    assert edited(tree, lambda t: os.utime(t / "d/x", (2, 2))) == []


def test_line_ends(tree: Path) -> None:
    (tree / "d/x").write_bytes(b"one\ntwo\n")
    note = [("d/x", "changed", ("content",), "only the line ends differ")]
    assert edited(tree, lambda t: (t / "d/x").write_bytes(b"one\r\ntwo\r\n")) == note
    assert edited(tree, lambda t: (t / "d/x").write_bytes(b"one\ntwo\n")) == note
    assert edited(tree, lambda t: (t / "d/x").write_bytes(b"one\r\nTwo\r\n"))[0][3] == ""


def test_what_else_is_in_the_layer(tree: Path) -> None:
    before = {"n": LayerEntry("dir", 0o700), "n/kept": LayerEntry("file", 0o644, size=1, digest=sha(b"k")), "q": DIR}
    wanted = play(tree, "COPY d /n/", before)
    layer = layer_of(wanted)
    state = {"": DIR, **before}.get

    def found(
        entries: Dict[str, LayerEntry], gone: Tuple[str, ...] = (), hidden: Tuple[str, ...] = ()
    ) -> List[Tuple[Any, ...]]:
        made = Layer("x", {**layer.entries, **entries}, frozenset(gone), frozenset(hidden))
        return [(c.path, c.kind) for c in compare(wanted, made, state)]

    assert found({"n": before["n"], "n/kept": before["n/kept"]}) == []
    assert found({"n": LayerEntry("dir", 0o755)}) == [("/n", "changed")]
    assert found({"n/kept": LayerEntry("file", 0o644, size=1, digest=sha(b"z"))}) == [("d/kept", "changed")]
    assert found({"n/more": LayerEntry("file", 0o644)}) == [("d/more", "deleted")]
    assert found({}, gone=("n/kept",)) == [("d/kept", "deleted")]
    assert found({}, gone=("n/never",)) == []
    assert found({}, hidden=("q",)) == [("/q", "changed")]
    assert found({}, hidden=("n/s",)) == []


def test_what_the_layer_leaves_out_must_have_been_there(tree: Path) -> None:
    wanted = play(tree, "COPY a.txt /n")
    same = LayerEntry("file", 0o644, size=2, digest=sha(b"a\n"))
    assert compare(wanted, Layer("x", {}), {"": DIR, "n": same}.get) == []
    assert compare(wanted, Layer("x", {}), {"": DIR, "n": replace(same, mode=0o600)}.get) != []
    assert compare(wanted, Layer("x", {}), {"": DIR}.get)[0].kind == "added"
    assert compare(wanted, Layer("x", {}, frozenset({"n"})), {"": DIR, "n": same}.get) != []


def test_untold_is_never_proven(tree: Path) -> None:
    wanted = play(tree, "COPY --parents d /n/")
    assert compare(wanted, Layer("x", {}), {"": DIR}.get) != []

"""The ignore file: patternmatcher's own facts, the engine's quirks, bad input, and a real engine on random trees."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from module_utils.offline_rebuild import ignorefile
from module_utils.offline_rebuild.context import Context
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.ignorefile import EMPTY, IgnoreFile, load, parse
from tests.hosts.images import program
from tests.unit.figures import record

FACTS = json.loads((Path(__file__).parent.parent / "data" / "ignorefile.json").read_text("utf-8"))


def compiled(patterns: list[str]) -> IgnoreFile:
    """Patterns as ``patternmatcher.New`` takes them (not as lines of a file)."""
    found = [ignorefile._compile(text, line) for line, text in enumerate(patterns, start=1)]
    return IgnoreFile([pattern for pattern in found if pattern is not None])


def outcome(patterns: list[str], path: str) -> bool | str:
    try:
        ignore = compiled(patterns)
    except ValueError:
        return "error"
    return path != "." and ignore.ignores(path)


def walked(ignore: IgnoreFile, path: str) -> bool:
    """Whether a walk from the context down to the path would call it ignored."""
    state, parts = ignore.root_state, path.split("/")
    for depth in range(1, len(parts) + 1):
        state = ignore.step(state, "/".join(parts[:depth]))
    return state.ignored


def cases(name: str) -> list[list]:
    return FACTS[name]["cases"]


def test_facts_of_patternmatcher():
    """Every fact of its tables; the counts go to results/exactness.json."""
    wrong, total = [], 0
    for name in ("matches", "match", "multi", "single"):
        for pattern, path, expected in cases(name):
            total += 1
            found = outcome(pattern if isinstance(pattern, list) else [pattern], path)
            if found != expected:
                wrong.append((name, pattern, path, found))
    for text, kind, expression in cases("compile"):
        total += 1
        (pattern,) = compiled([text]).patterns
        if (pattern.kind, pattern.expression) != (kind, expression):
            wrong.append(("compile", text, pattern.kind, pattern.expression))
    for source, expected in cases("read"):
        total += 1
        found = [p for p in map(ignorefile._read_pattern, source.split("\n")) if p is not None]
        if found != expected:
            wrong.append(("read", source, found))
    for patterns, count, exceptions in cases("clean"):
        total += 1
        ignore = compiled(patterns)
        if (len(ignore.patterns), ignore.has_exceptions) != (count, exceptions):
            wrong.append(("clean", patterns))
    record("exactness", ignore_agree=total - len(wrong), ignore_total=total)
    print(f"ignore file: {total - len(wrong)} of {total} facts agree")
    assert wrong == []
    assert total == 166


@pytest.mark.parametrize("name", ["matches", "multi"])
def test_walk_agrees_with_the_facts(name):
    """TestMatches holds the three matchers to the same table; the walk's is MatchesUsingParentResults."""
    for pattern, path, expected in cases(name):
        if path.endswith("/"):
            continue  # a walk meets no such path
        assert walked(compiled(pattern if isinstance(pattern, list) else [pattern]), path) is expected, (pattern, path)


@pytest.mark.parametrize(
    ("source", "path", "ignored"),
    [
        (b"\xef\xbb\xbfsecret\n", "secret", True),  # byte order mark
        (b"secret\r\n", "secret", True),
        (b"  secret\t\n", "secret", True),
        (b"#secret\n", "#secret", False),
        (b" #secret\n", "#secret", True),  # a comment begins in the first column
        (b"/a/../secret/\n", "secret/x", True),
        (b"*\n! /keep\n", "keep/x", False),
        (b"a\n!a/b\na/b/c\n", "a/b/c", True),
        (b"*.log\n", "dir/x.log", False),  # anchored, unlike in .gitignore
        (b"**/*.log\n", "dir/x.log", True),
        (b"\\w\n", "x", True),  # an escaped letter goes to Go's regexp as it is
        (b"\\d\n", "7", True),
        (b"[[:alpha:]]x\n", "bx", True),
        (b"x\\x41\n", "xA", True),
        (b"\\Qa*\\E\n", "a[^/]*", True),
        (b"[*]\n", "[]", True),  # becomes the class of "[", "^" and "/", any number, then "]"
        (b"caf\xe9\n", os.fsdecode(b"caf\xe9"), True),
        (b"caf?\n", os.fsdecode(b"caf\xe9"), True),
        (b"a**b/*\n", "a/x/b/c", True),
        (b"**/x*\n", "a\n/xy", False),  # "." of Go's regexp stops at a line end
        (b"**/x\n", "a\n/x", True),  # a suffix does not
    ],
)
def test_lines_and_patterns(source, path, ignored):
    assert parse(source, "f").ignores(path) is ignored
    assert walked(parse(source, "f"), path) is ignored


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (b"a\n!\n", 2),
        (b"[\n", 1),
        (b"\n\nx[]a]\n", 3),
        (b"[z-a]*\n", 1),
        (b"a\\\n", 1),
        (b"\\y\n", 1),
        (b"\\pL\n", 1),
        (b"[[:nope:]]\n", 1),
        (b"x" * 65536 + b"\n", 1),
        (b"[\xff]\n", 1),
    ],
)
def test_bad_pattern_names_file_and_line(source, line):
    with pytest.raises(OfflineRebuildError) as caught:
        parse(source, "ctx/.dockerignore")
    assert (caught.value.code, caught.value.file, caught.value.line) == ("ignorefile-syntax", "ctx/.dockerignore", line)


def test_the_old_clients_rules():
    """What differs from today's: fsutil's walker and moby's fileutils of 2020."""
    ignore = parse(b"*\n!**/keep.py\n!src/app\n", "f", classic=True)
    assert ignore.enter(ignore.root_state, "lib") is None  # today: entered, an exception has a wildcard
    assert ignore.enter(ignore.root_state, "src") == ignore.root_state  # today: sent only with something in it
    assert ignore.ignores("src/other")
    assert not ignore.ignores("src/app")
    assert not parse(b"**b\n", "f", classic=True).ignores("ab")  # today: a suffix
    with pytest.raises(OfflineRebuildError, match="ignorefile-syntax"):
        parse(b"c++\n", "f", classic=True)


def test_longest_line_is_read():
    assert len(parse(b"x" * 65535 + b"\n", "f").patterns) == 1


def test_many_wildcards_take_linear_time():
    ignore = parse(b"*a*a*a*a*a*a*a*a*a*a*a*b\n**/a**/a**/a**/a**/a**/b\n", "f")
    began = time.process_time()
    assert not ignore.ignores("a" * 4000)
    assert not ignore.ignores("a/" * 1000 + "c")
    assert ignore.ignores("a" * 12 + "b")
    assert ignore.ignores("a/x/a/a/a/a/b")
    assert time.process_time() - began < 10


BYTES = st.binary(max_size=60) | st.text("ab*?[]^-\\!/.#{}()|$+ \n", max_size=40).map(str.encode)


@given(BYTES, st.text("ab/.[", max_size=12))
@settings(max_examples=400, deadline=None)
def test_any_file_gives_an_answer_or_an_error(source, path):
    try:
        parse(source, "f").ignores(path)
    except OfflineRebuildError as exc:
        refused = (exc.code, exc.line is None)
    else:
        return
    assert refused == ("ignorefile-syntax", False)


SEGMENTS = st.sampled_from("a b ab * ** a* *b ? [ab] **b a** [^a] .x \\a .. c.txt *.txt".split())
PATTERNS = st.tuples(
    st.sampled_from(["", "", "", "!", "!", "/", "!/"]),
    st.lists(SEGMENTS, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["", "", "", "/", "/**", "/*"]),
).map("".join)
NAMES = st.sampled_from(["a", "b", "ab", "c.txt", ".x", "d.md"])


@given(st.lists(PATTERNS, min_size=1, max_size=6), st.lists(NAMES, min_size=1, max_size=4))
@settings(max_examples=400, deadline=None)
def test_groups_and_short_cuts_change_nothing(patterns, parts):
    """The grouped matchers against the rules pattern by pattern, as patternmatcher has them."""
    try:
        ignore = parse("\n".join(patterns).encode(), "f")
    except OfflineRebuildError:
        return
    paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    assert ignore.ignores(paths[-1]) is plain_matches(ignore, paths)
    inherited = [False] * len(ignore.patterns)
    state = ignore.root_state
    for i, path in enumerate(paths):
        expected, inherited = plain_step(ignore, path, inherited)
        assert ignore.checker(state, "/".join(parts[:i]))(parts[i]) is expected
        assert (parts[i] in ignore.ignored_names(state, "/".join(parts[:i]), parts)) is expected
        state = ignore.step(state, path)
        assert state.ignored is expected


def plain_matches(ignore: IgnoreFile, paths: list[str]) -> bool:
    matched = False
    for pattern in ignore.patterns:
        if pattern.exception == matched and any(map(pattern.matches, paths)):
            matched = not matched
    return matched


def plain_step(ignore: IgnoreFile, path: str, inherited: list[bool]) -> tuple[bool, list[bool]]:
    ignored, matched = False, [False] * len(inherited)
    for i, pattern in enumerate(ignore.patterns):
        matched[i] = inherited[i] or (pattern.exception == ignored and pattern.matches(path))
        if matched[i]:
            ignored = not pattern.exception
    return ignored, matched


# --- which file counts ------------------------------------------------------------------------------------------------


def test_no_ignore_file(tmp_path):
    assert load(str(tmp_path), str(tmp_path / "Dockerfile")) is EMPTY
    assert not EMPTY.ignores("a")


def test_the_dockerfiles_own_replaces_the_contexts(tmp_path):
    (tmp_path / ".dockerignore").write_text("a\n")
    (tmp_path / "build").mkdir()
    dockerfile = tmp_path / "build" / "app.Dockerfile"
    assert load(str(tmp_path), str(dockerfile)).ignores("a")
    (tmp_path / "build" / "app.Dockerfile.dockerignore").write_text("b\n")
    ignore = load(str(tmp_path), str(dockerfile))
    assert (ignore.ignores("a"), ignore.ignores("b")) == (False, True)
    assert ignore.file == str(dockerfile) + ".dockerignore"
    (tmp_path / "build" / "app.Dockerfile.dockerignore").write_text("")
    assert not load(str(tmp_path), str(dockerfile)).ignores("a")


def test_links_stay_inside(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("a\n")
    context = tmp_path / "context"
    (context / "etc").mkdir(parents=True)
    (context / "etc" / "ignore").write_text("b\n")
    link = context / ".dockerignore"
    for target, expected in [
        (str(outside), False),
        ("../outside", False),
        ("/etc/ignore", True),
        ("../../etc/ignore", True),
        (".dockerignore", False),
    ]:
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        ignore = load(str(context), str(context / "Dockerfile"))
        assert not ignore.ignores("a")
        assert ignore.ignores("b") is expected, target


def test_many_paths_are_fast():
    """Far below a second for 30,000 paths; the bound leaves room for a busy machine."""
    source = b".git\n**/*.pyc\n**/__pycache__\nnode_modules\n*.md\n!README.md\n.env*\n**/.DS_Store\ndist\nbuild/*\n"
    ignore = parse(source, "f")
    began = time.process_time()
    count = 0
    for top, directory in itertools.product(range(30), range(50)):
        state = ignore.step(ignore.step(ignore.root_state, f"p{top}"), f"p{top}/d{directory}")
        ignored = ignore.checker(state, f"p{top}/d{directory}")
        count += sum(ignored(f"f{number}.{'pyc' if number % 4 == 0 else 'py'}") for number in range(20))
    assert count == 30 * 50 * 5
    assert time.process_time() - began < 1


# --- a real engine ----------------------------------------------------------------------------------------------------


def client(name: str) -> list[str]:
    """The command of a BuildKit client: the rules of the walk are the client's, not the engine's.

    ``buildx``: Debian 13's plugin; ``classic``: Debian 12's CLI, which builds with BuildKit by itself.
    """
    if name == "buildx":
        return [str(program("trixie", "/usr/libexec/docker/cli-plugins/docker-buildx")), "build"]
    return [str(program("bookworm", "/usr/bin/docker")), "build"]


def copied(command: list[str], root: Path) -> dict[str, tuple] | str:
    """What ``COPY . /out/`` puts into an image: path to (type, mode, size, link, digest); or the error's text."""
    command = [*command, "-q", "-o", "type=tar,dest=-", str(root)]
    run = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "DOCKER_BUILDKIT": "1"})
    if run.returncode:
        return run.stderr.decode(errors="replace")
    out: dict[str, tuple] = {}
    with tarfile.open(fileobj=io.BytesIO(run.stdout)) as tar:
        for member in tar:
            name = member.name.rstrip("/")
            if not name.startswith("out/"):
                continue
            kind = {tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink"}.get(member.type, "file")
            stream = tar.extractfile(member) if kind == "file" else None
            digest = "sha256:" + hashlib.sha256(stream.read()).hexdigest() if stream else None
            link = member.linkname if kind == "symlink" else None
            out[name[4:]] = (kind, member.mode, member.size, link, digest)
    return out


def ours(root: Path, classic: bool) -> dict[str, tuple] | str:
    try:
        entries = Context(str(root), load(str(root), str(root / "Dockerfile"), classic)).entries()
        return {path: (e.type, e.mode, e.size, e.link, e.digest) for path, e in entries}
    except OfflineRebuildError as exc:
        return str(exc)


def plant(root: Path, tree: list[tuple[list[str], str]], patterns: list[str]) -> None:
    (root / "Dockerfile").write_text("FROM scratch\nLABEL offline-rebuild=test\nCOPY . /out/\n")
    (root / ".dockerignore").write_text("\n".join(patterns) + "\n")
    for parts, kind in tree:
        path = root.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "dir":
                path.mkdir(exist_ok=True)
            elif kind == "link":
                path.symlink_to("/etc/nothing")
            elif not path.is_symlink():
                path.write_text("/".join(parts))
        except OSError:
            continue  # a file where a directory is wanted: the tree is what it became


TREES = st.lists(
    st.tuples(st.lists(NAMES, min_size=1, max_size=4), st.sampled_from(["file"] * 6 + ["dir", "link"])),
    min_size=3,
    max_size=14,
)
NESTED = [(["a", "b", "c.txt"], "file"), (["a", "d.md"], "file"), (["b", "a", ".x"], "file"), (["ab"], "dir")]


@pytest.mark.engine
@given(TREES, st.lists(PATTERNS, min_size=1, max_size=5))
@example(NESTED, ["a", "!a/*", "a"])  # sent, but empty: fsutil asks twice, with two answers
@example(NESTED, ["*", "!a/b/c.txt", "!.x"])
@example(NESTED, ["**", "!**/c.txt"])
@example(NESTED, ["Dockerfile", ".dockerignore"])
@example(NESTED, ["!"])
@pytest.mark.parametrize("rules", ["buildx", "classic"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_copy_into_an_image_equals_ours(rules, tree, patterns):
    command = client(rules)
    with tempfile.TemporaryDirectory(prefix="ofr-ignore-") as name:
        plant(Path(name), tree, patterns)
        theirs, mine = copied(command, Path(name)), ours(Path(name), rules == "classic")
        if isinstance(theirs, str) or isinstance(mine, str):
            assert isinstance(theirs, str), f"only we refuse it: {mine}"
            assert isinstance(mine, str), f"only the engine refuses it: {theirs}"
            return
        assert mine == theirs

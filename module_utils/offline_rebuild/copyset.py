"""What a COPY or ADD of local files writes, and whether a layer holds exactly that.

:func:`copy_set` plays the instruction against the state of the image before it, as BuildKit does. Its rules are
those of (read, not copied): ``frontend/dockerfile/dockerfile2llb/convert_copy.go``,
``solver/llbsolver/file/backend.go`` and ``solver/llbsolver/ops/user_linux.go`` of moby/buildkit, ``copy/copy.go``,
``copy/copy_linux.go`` and ``copy/mkdir.go`` of tonistiigi/fsutil, ``fs/path.go`` of containerd/continuity, ``mode.go``
of tonistiigi/dchapes-mode, Go's ``filepath.Match``. tests/engine holds them against real engines.

BuildKit's versions differ in few places, all about ``--chmod``; :data:`BEHAVIOURS` numbers them, and a layer must agree
with one of them throughout:

0. since fsutil b227bab (2026): parents that COPY creates get the mode of an octal ``--chmod``;
1. since fsutil 183e7fb (2025): the same, but cut by the daemon's umask 022;
2. since fsutil 3a8c87e (2024): created parents are 0755;
3. since fsutil 8bcf9db (2024): as 2, but a symbolic ``--chmod`` is ignored;
4. before (Docker 20.10 to 25): as 3, but ``--chmod`` sets the lower nine bits only, the source's others stay.

Whatever cannot be told exactly is said in ``CopySet.unsupported`` and must be left to BuildKit.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from .context import line_ends, mend_line_ends, mend_mode
from .errors import OfflineRebuildError
from .gomatch import go_match
from .layers import Layer, LayerEntry, TooManyLinks, keep_xattr, resolve_in_root
from .plan import FileChange

__all__ = ["BEHAVIOURS", "CopyEntry", "CopySet", "compare", "copy_set"]

#: Number of behaviours that BuildKit's versions have (see the module's text).
BEHAVIOURS = 5

Lookup = Callable[[str], Optional[LayerEntry]]
Reader = Callable[[str], Optional[bytes]]
#: More files than this are not digested one by one: the context's whole manifest is asked for.
_FEW = 64
_KNOWN_FLAGS = frozenset(["from", "chown", "chmod", "link", "parents", "exclude", "checksum", "keep-git-dir"])
_CAPABILITY = "security.capability"
_ARCHIVES = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x5d\x00\x00")


class _Unsupported(Exception):
    """The result cannot be told exactly; the text is the reason."""


@dataclass(frozen=True)
class CopyEntry:
    """One path as the instruction leaves it.

    :param modes: the mode by each of BuildKit's behaviours (see :data:`BEHAVIOURS`); ``mode`` is the newest.
    :param source: the path in the context, or ``""`` (a heredoc, a directory that COPY made).
    :param mtime: nanoseconds; ``None`` for the time of the build.
    :param data: content of a heredoc.
    """

    type: str
    modes: Tuple[int, ...]
    uid: int = 0
    gid: int = 0
    size: int = 0
    link: str = ""
    xattrs: Tuple[Tuple[str, str], ...] = ()
    source: str = ""
    mtime: Optional[int] = None
    data: Optional[bytes] = None
    tree: Any = field(default=None, compare=False, repr=False)

    @property
    def mode(self) -> int:
        """:returns: permission bits with setuid, setgid and sticky, as the newest BuildKit sets them."""
        return self.modes[0]

    def content_digest(self) -> Optional[str]:
        """:returns: ``sha256:...`` of a file's content, read when it is asked for."""
        if self.type != "file":
            return None
        if self.data is not None:
            import hashlib

            return "sha256:" + hashlib.sha256(self.data).hexdigest()
        digest: Optional[str] = self.tree.digest(self.source)
        return digest

    def read(self) -> bytes:
        """:returns: a file's content."""
        if self.data is not None:
            return self.data
        content: bytes = self.tree.read(self.source)
        return content


@dataclass(frozen=True)
class CopySet:
    """What an instruction writes.

    :param entries: by path in the image, without leading slash; files, links, and directories of the context.
    :param parents: directories that COPY makes on its way to the destination.
    :param roots: destination directory and the context directory whose contents went there, for messages.
    :param unsupported: why the result cannot be told exactly; ``""`` if it can.
    """

    entries: Mapping[str, CopyEntry] = field(default_factory=dict)
    parents: Mapping[str, CopyEntry] = field(default_factory=dict)
    roots: Tuple[Tuple[str, str], ...] = ()
    unsupported: str = ""

    def context_path(self, path: str) -> str:
        """:returns: the context path that stands behind an image path; ``/path`` of the image if none does."""
        roots = dict(self.roots)
        tail: List[str] = []
        here = path
        while True:
            entry = self.entries.get(here)
            if entry is not None and entry.source and (not tail or entry.type == "dir"):
                return "/".join([entry.source] + tail[::-1])
            if here in roots and tail:
                return "/".join(([roots[here]] if roots[here] else []) + tail[::-1])
            if not here:
                return "/" + path
            here, _, name = here.rpartition("/")
            tail.append(name)


# ---------------------------------------------------------------------------------------------------------------------
# The source tree
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    link: str
    xattrs: Tuple[Tuple[str, str], ...]
    mtime: int


_ROOT = _Source("dir", 0o755, 0, 0, 0, "", (), 0)


class _Tree:
    """A context (or another image's files, an ``ImageTree``) with children by directory."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.entries: Dict[str, _Source] = {"": _ROOT}
        self._children: Optional[Dict[str, List[str]]] = None
        self._asked = 0
        self._image = getattr(context, "reader", None)
        self.is_context = self._image is None
        for path, entry in context.stat_entries():
            if path:
                self.entries[path] = self._source(entry)

    @staticmethod
    def _source(entry: Any) -> _Source:
        kind, size = entry.type, entry.size
        # The client sends 0:0 for every owner. The receiver sets attributes first and the owner then, at which the
        # kernel takes file capabilities away (fsutil, diskwriter_unix.go): a context never brings them into an image.
        has_owner = hasattr(entry, "uid")
        if kind == "socket":  # copyDevice makes a regular, empty file of it
            kind, size = "special", 0
        elif kind in ("fifo", "char", "block", "unknown"):
            kind = "special"
        return _Source(
            kind,
            entry.mode,
            getattr(entry, "uid", 0),
            getattr(entry, "gid", 0),
            size if kind == "file" else 0,
            entry.link or "" if kind == "symlink" else "",
            tuple(pair for pair in entry.xattrs if keep_xattr(pair[0]) and (has_owner or pair[0] != _CAPABILITY)),
            int(getattr(entry, "mtime_ns", getattr(entry, "mtime", 0))),
        )

    def children(self, folder: str) -> List[str]:
        """:returns: names in a directory, sorted by their bytes as ``os.ReadDir`` does."""
        if self._children is None:
            self._children = {}
            for path in self.entries:
                if path:
                    parent, _, name = path.rpartition("/")
                    self._children.setdefault(parent, []).append(name)
            for names in self._children.values():
                names.sort(key=lambda name: name.encode("utf-8", "surrogateescape"))
        return self._children.get(folder, [])

    def lookup(self, path: str) -> Optional[LayerEntry]:
        """For :func:`resolve_in_root`: type and link of a path."""
        entry = self.entries.get(path)
        if entry is None and self._image is not None and path:
            return self._image.lookup(path, self.context.upto)  # type: ignore[no-any-return]
        return None if entry is None else LayerEntry(entry.type, entry.mode, link=entry.link)

    def has(self, path: str, followed: bool) -> bool:
        """Whether the path exists; an image's tree lists it now if a link may have led out of what it had listed."""
        if self._image is None or (path in self.entries and not followed):
            return path in self.entries
        found = self._image.listing(path, self.context.upto)
        self.entries.update((name, self._source(entry)) for name, entry in found.items() if name)
        self._children = None
        return path in self.entries

    def digest(self, path: str) -> Optional[str]:
        """:returns: the digest of a file's content."""
        if self._image is not None:
            entry = self._image.lookup(path, self.context.upto)
            return None if entry is None else entry.content_digest()
        self._asked += 1
        if self._asked == _FEW and hasattr(self.context, "manifest"):
            self.context.manifest()
        found: Optional[str] = self.context.digest_of(path)
        return found

    def read(self, path: str) -> bytes:
        """:returns: a file's content."""
        content: bytes = self.context.read(path)
        return content


def _tree_of(context: Any) -> _Tree:
    """The tree of a context, made once per context object."""
    tree = vars(context).get("_copyset_tree")
    if not isinstance(tree, _Tree):
        tree = _Tree(context)
        vars(context)["_copyset_tree"] = tree
    return tree


def _has_wildcards(text: str) -> bool:
    """BuildKit's containsWildcards: ``\\`` takes the meaning from the character after it."""
    index = 0
    while index < len(text):
        if text[index] == "\\":
            index += 1
        elif text[index] in "*?[":
            return True
        index += 1
    return False


# ---------------------------------------------------------------------------------------------------------------------
# Modes and owners
# ---------------------------------------------------------------------------------------------------------------------

_STANDARD = 0o6777
_SYMBOLIC = re.compile(r"[ugoa]*(?:[+=-][rwxXst]*)+(?:,[ugoa]*(?:[+=-][rwxXst]*)+)*\Z")
_CLAUSE = re.compile(r"([ugoa]*)((?:[+=-][rwxXst]*)+)")
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111}
_WHO = {"a": _STANDARD, "u": 0o4700, "g": 0o2070, "o": 0o0007}


def _clause(whom: str, changes: str) -> Iterator[Tuple[int, int, bool]]:
    """Bits to clear, bits to set, and whether only where something is executable, for each change of a clause."""
    who = 0
    for char in whom:
        who |= _WHO[char]
    for operator, letters in re.findall(r"([+=-])([rwxX]*)", changes):
        bits = 0
        for char in letters:
            bits |= _BITS.get(char, 0)
        masked = bits & who if who else bits
        if operator == "=":
            yield who or _STANDARD, masked, False
        elif operator == "-":
            yield masked, 0, False
        else:
            yield 0, masked, False
            if "X" in letters:
                yield 0, 0o111 & who if who else 0o111, True


def _symbolic(text: str) -> Callable[[int, bool], int]:
    """A symbolic mode as a function of (mode, is a directory), umask 0 (tonistiigi/dchapes-mode, mode.go).

    ``X`` looks at the mode before the change. Not told: ``X`` together with other changes, or after another sign than
    ``+`` (28.5.2 and the newest source disagree), ``s``, ``t``, and copies between classes (``g=u``).
    """
    if not _SYMBOLIC.match(text):
        raise _Unsupported(f"--chmod={text}")
    if "s" in text or "t" in text:
        raise _Unsupported(f"--chmod={text}: s and t")
    if "X" in text and re.findall(r"[+=-]", text) != ["+"]:
        raise _Unsupported(f"--chmod={text}: X together with other changes")
    steps = [step for clause in _CLAUSE.finditer(text) for step in _clause(clause.group(1), clause.group(2))]

    def apply(mode: int, is_dir: bool) -> int:
        new = mode
        for clear, put, conditional in steps:
            if not conditional or is_dir or mode & 0o111:
                new = (new & ~clear) | put
        return new

    return apply


class _Chmod:
    """``--chmod``: the mode of copied paths and of created parents, by behaviour."""

    def __init__(self, text: Optional[str]) -> None:
        self.octal: Optional[int] = None
        self.symbolic: Optional[Callable[[int, bool], int]] = None
        if not text:
            return
        if re.fullmatch(r"[0-7]+", text):
            self.octal = int(text, 8)
            if self.octal > 0o7777:
                raise _Unsupported(f"--chmod={text} is out of range")
        else:
            self.symbolic = _symbolic(text)

    def of(self, mode: int, is_dir: bool) -> Tuple[int, ...]:
        """:returns: the modes of a path that is copied with ``mode``."""
        if self.symbolic is not None:
            return (self.symbolic(mode, is_dir),) * 3 + (mode,) * 2
        if self.octal is None:
            return (mode,) * BEHAVIOURS
        return (self.octal,) * (BEHAVIOURS - 1) + ((mode & 0o7000) | (self.octal & 0o777),)

    def parent(self) -> Tuple[int, ...]:
        """:returns: the modes of a directory made on the way."""
        if self.octal is None:
            return (0o755,) * BEHAVIOURS
        return (self.octal & 0o777, self.octal & 0o755, 0o755, 0o755, 0o755)


def _number(text: str) -> Optional[int]:
    if text == "root":
        return 0
    if re.fullmatch(r"[0-9]{1,10}", text) and int(text) < 1 << 31:
        return int(text)
    return None


def _fields(content: Optional[bytes], name: str, count: int) -> Optional[List[str]]:
    """The first line of a passwd or group file whose first field is ``name``."""
    for line in (content or b"").split(b"\n"):
        parts = line.strip().split(b":")
        if parts[0] == name.encode("utf-8", "surrogateescape") and len(parts) >= count:
            return [part.decode("utf-8", "replace") for part in parts]
    return None


def _identity(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,10}", text) and int(text) < 1 << 31:
        return int(text)
    raise _Unsupported("the image's user or group file holds an odd number")


def _owner(text: Optional[str], read: Optional[Reader], link: bool) -> Optional[Tuple[int, int]]:
    """``--chown``: uid and gid (llb.WithUser; readUser in solver/llbsolver/ops/user_linux.go).

    A user that the image does not know becomes 0:0, without an error; a number stands for user and group.
    """
    if not text:
        return None
    user, colon, group = text.partition(":")
    if re.match(r"[+-]", user) or re.match(r"[+-]", group):
        raise _Unsupported(f"--chown={text}")
    names = [part for part in (user, group) if part and _number(part) is None]
    if names and (read is None or link):
        raise _Unsupported(f"--chown={text}: the names cannot be looked up")
    if any(part.isdigit() and _number(part) is None for part in names):
        raise _Unsupported(f"--chown={text} is out of range")
    uid = gid = 0
    if user:
        number = _number(user)
        if number is not None:
            uid = gid = number
        else:
            assert read is not None
            found = _fields(read("etc/passwd"), user, 4)
            if found:
                uid, gid = _identity(found[2]), _identity(found[3])
    if colon:
        number = _number(group) if group else 0
        if number is not None:
            return uid, number
        assert read is not None
        found = _fields(read("etc/group"), group, 3)
        gid = _identity(found[2]) if found else gid
    return uid, gid


# ---------------------------------------------------------------------------------------------------------------------
# Playing the instruction
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rules:
    """What the flags say."""

    owner: Optional[Tuple[int, int]]
    chmod: _Chmod
    exclude: Any  # an IgnoreFile, or None
    link: bool


class _Play:
    """The state of the image while the instruction runs: what was there, and what has been written over it."""

    def __init__(self, before: Lookup, rules: _Rules) -> None:
        self._before = before
        self.rules = rules
        self.entries: Dict[str, CopyEntry] = {}
        self.parents: Dict[str, CopyEntry] = {}
        self.roots: List[Tuple[str, str]] = []
        self._fresh: Set[str] = set()

    # -- the image --

    def get(self, path: str) -> Optional[LayerEntry]:
        """What is at a path now, links not followed."""
        made = self.entries.get(path) or self.parents.get(path)
        if made is not None:
            return LayerEntry(made.type, made.mode, made.uid, made.gid, made.size, 0, None, made.link, made.xattrs)
        if path and path.rpartition("/")[0] in self._fresh:
            return None
        return self._before(path)

    def resolve(self, path: str) -> str:
        try:
            return resolve_in_root(path, self.get)
        except TooManyLinks:
            raise _Unsupported(f"the links of /{path} in the image do not end") from None

    def make_folders(self, path: str) -> None:
        """fsutil's MkdirAll: what is missing on the way is made, with ``--chown``'s owner."""
        parts = path.split("/") if path else []
        for count in range(1, len(parts) + 1):
            folder = "/".join(parts[:count])
            entry = self.get(folder)
            if entry is None:
                self._make_folder(folder)
            elif entry.type != "dir":
                raise _Unsupported(f"/{folder} is no directory in the image")

    def _make_folder(self, path: str) -> None:
        above = self.get(path.rpartition("/")[0])
        if above is not None and above.mode & 0o2000:
            raise _Unsupported(f"a directory is made under one with the setgid bit (/{path})")
        uid, gid = self.rules.owner or (0, 0)
        self.parents[path] = CopyEntry("dir", self.rules.chmod.parent(), uid, gid)
        self._fresh.add(path)

    # -- a copy --

    def copy(self, tree: Any, source: str, dest: str, contents: bool, name: str = "") -> None:
        """fsutil's Copy of one source.

        :param source: path in the tree, links resolved.
        :param dest: absolute; may end in ``/`` or ``/.``.
        :param contents: a directory's contents are copied, not itself.
        :param name: the last component of the source as it was written.
        """
        folder, _, last = dest.rpartition("/")
        before_dot = last == "."
        self.make_folders(self.resolve(dest if last in ("", ".") else folder))
        target = self.resolve(posixpath.normpath(dest))
        item = tree.entries[source]
        there = self.get(target)
        if self.rules.link and item.type != "dir" and last not in ("", ".") and there is not None:
            was = self._before(target)
            if was is not None and was.type == "dir":
                raise _Unsupported(f"--link to /{target}, which is a directory in the image")
        if before_dot and item.type != "dir" and there is not None and target in self._fresh:
            raise _Unsupported("BuildKit's versions disagree about a destination that ends in /.")
        is_dir = item.type == "dir"
        if there is not None and ((not contents and is_dir) or (not is_dir and there.type == "dir")):
            target = (target + "/" if target else "") + name
            there = self.get(target)
        self.make_folders(target if contents and is_dir and there is None else target.rpartition("/")[0])
        if is_dir:
            self.roots.append((target, source))
            self._folder(tree, source, target)
        else:
            self._file(tree, source, item, target)

    def _folder(self, tree: _Tree, source: str, target: str) -> None:
        """The contents of a directory; its own metadata is not carried over to a destination that is there."""
        there = self.get(target)
        if there is None:
            raise _Unsupported("a directory is copied as itself")
        if there.type != "dir":
            raise _Unsupported(f"/{target} is no directory in the image")
        state = self.rules.exclude.root_state if self.rules.exclude is not None else None
        self._inside(tree, source, target, "", state, [])

    def _inside(
        self, tree: _Tree, source: str, target: str, relative: str, state: Any, pending: List[Tuple[str, str]]
    ) -> None:
        exclude = self.rules.exclude
        for name in tree.children(source):
            path = source + "/" + name if source else name
            goal = target + "/" + name if target else name
            inner = relative + "/" + name if relative else name
            item = tree.entries[path]
            below, excluded = None, False
            if exclude is not None:
                below = exclude.step(state, inner)
                excluded = below.ignored
            if item.type != "dir":
                if not excluded:
                    self._late_folders(tree, pending)
                    self._file(tree, path, item, goal)
                continue
            if not excluded:
                self._late_folders(tree, pending)
                self._put_folder(item, path, goal)
                self._inside(tree, path, goal, inner, below, [])
            elif exclude.has_exceptions:
                # It is made only when something inside is taken back by an exception.
                mine = pending + [(path, goal)]
                self._inside(tree, path, goal, inner, below, mine)
                if not mine:
                    del pending[:]

    def _late_folders(self, tree: _Tree, pending: List[Tuple[str, str]]) -> None:
        """createParentDirs: excluded directories that turn out to be needed. One that is there gets its mode only."""
        for source, target in pending:
            item = tree.entries[source]
            there = self.get(target)
            if there is None:
                self._put_folder(item, source, target)
            elif there.type != "dir":
                raise _Unsupported(f"/{target} is no directory in the image")
            else:
                self._store(
                    target,
                    CopyEntry(
                        "dir", (item.mode,) * BEHAVIOURS, there.uid, there.gid, 0, "", there.xattrs, source, item.mtime
                    ),
                )
        del pending[:]

    def _put_folder(self, item: _Source, source: str, target: str) -> None:
        """A directory of the context: made, or its metadata laid over the one that is there."""
        there = self.get(target)
        if there is not None and there.type != "dir":
            raise _Unsupported(f"/{target} is no directory in the image, and a directory goes there")
        if there is None:
            self._fresh.add(target)
        uid, gid = self.rules.owner or (item.uid, item.gid)
        kept = dict(there.xattrs) if there is not None else {}
        kept.update(item.xattrs)
        if self.rules.link and there is not None and there.xattrs:
            raise _Unsupported(f"--link over /{target}, which has extended attributes")
        self._store(
            target,
            CopyEntry(
                "dir",
                self.rules.chmod.of(item.mode, True),
                uid,
                gid,
                0,
                "",
                tuple(sorted(kept.items())),
                source,
                item.mtime,
            ),
        )

    def _file(self, tree: _Tree, source: str, item: _Source, target: str) -> None:
        """A file or link: what is there is removed first; a directory cannot be."""
        if item.type == "special":
            raise _Unsupported(f"{source} is a device, a socket or a fifo")
        there = self.get(target)
        if there is not None and there.type == "dir":
            raise _Unsupported(f"/{target} is a directory in the image, and a file goes there")
        uid, gid = self.rules.owner or (item.uid, item.gid)
        modes = (0o777,) * BEHAVIOURS if item.type == "symlink" else self.rules.chmod.of(item.mode, False)
        self._store(
            target,
            CopyEntry(item.type, modes, uid, gid, item.size, item.link, item.xattrs, source, item.mtime, None, tree),
        )

    def heredoc(self, name: str, data: bytes, dest: str) -> None:
        """A heredoc's content, as a file 0644 in a tree of its own."""
        tree = _HereTree(name, data)
        self.copy(tree, name, dest, False, name)

    def _store(self, path: str, entry: CopyEntry) -> None:
        if isinstance(entry.tree, _HereTree):
            entry = CopyEntry(entry.type, entry.modes, entry.uid, entry.gid, entry.size, data=entry.tree.data)
        self.parents.pop(path, None)
        self.entries[path] = entry


class _HereTree:
    """The tree in which BuildKit puts a heredoc before it is copied."""

    def __init__(self, name: str, data: bytes) -> None:
        self.data = data
        self.entries = {name: _Source("file", 0o644, 0, 0, len(data), "", (), 0)}


def _destination(workdir: str, dest: str) -> str:
    """Where to, absolute; a trailing ``/`` or ``/.`` stays (pathRelativeToWorkingDir, system.NormalizePath)."""
    if dest in ("", "."):
        dest = "./"
    full = posixpath.join("/", workdir or "/", dest)
    clean = "/" + posixpath.normpath(full).lstrip("/")
    if dest.endswith("/") and clean != "/":
        return clean + "/"
    if dest.endswith("/.") and clean != "/":
        return clean + "/."
    return clean


def _matches(tree: _Tree, source: str, fail: Callable[[str], Exception]) -> List[Tuple[str, str]]:
    """The paths that a source stands for: (path with links followed, last component as written).

    Wildcards are searched without following links below the first component that has one (ResolveWildcards).
    """
    clean = posixpath.normpath("/" + source).lstrip("/")
    parts = clean.split("/") if clean else []
    fixed: List[str] = []
    while len(fixed) < len(parts) and not _has_wildcards(parts[len(fixed)]):
        fixed.append(parts[len(fixed)])
    try:
        base = resolve_in_root("/".join(fixed), tree.lookup)
    except TooManyLinks:
        raise fail(f"the symbolic links of {source} do not end") from None
    if len(fixed) == len(parts):
        if not tree.has(base, base != clean):
            raise fail(_missing(source, clean, tree))
        return [(base, parts[-1] if parts else "")]
    tree.has(base, base != "/".join(fixed))
    found = _walk(tree, base, "/".join(parts[len(fixed) :]))
    if tree.is_context:
        _check_pattern(source, bool(found), bool(fixed))
        odd = [path for path in found if _has_wildcards(path) and tree.entries[path].type != "file"]
        if odd:  # a directory that is found is sent by its name, which is read as a pattern again
            raise _Unsupported(f"{odd[0]}, found by {source}, has a wildcard in its name")
    followed = [_follow(tree, path, source, fail) for path in found]
    if tree.is_context and any(real != path for path, (real, _) in zip(found, followed)):
        # Only another instruction's wish brings the target along (the same followlinks.go).
        raise _Unsupported(f"a symbolic link is found by {source}")
    return followed


def _check_pattern(source: str, found: bool, below: bool) -> None:
    """What BuildKit's client does not send for a pattern, it cannot copy (fsutil followlinks.go; tried on 26.1).

    A class with a wildcard in it (``[*]``) finds nothing there; and where nothing is found, the directory of the
    pattern is not sent either, so that the build fails unless another instruction asks for it.
    """
    if re.search(r"\[[^\]]*[*?]", source):
        raise _Unsupported(f"the pattern {source}: a wildcard in a class")
    if below and not found:
        raise _Unsupported(f"nothing is found by {source}")


def _missing(source: str, clean: str, tree: _Tree) -> str:
    if ".." in source.split("/"):
        return f"{source} leads out of the build context and is not in it"
    entry = tree.entries.get(clean)
    if entry is not None and entry.type == "symlink":
        return f"{source} is a symbolic link to {entry.link}, which is not in the build context"
    return f"{source} is not in the build context (or the ignore file leaves it out)"


def _follow(tree: _Tree, path: str, source: str, fail: Callable[[str], Exception]) -> Tuple[str, str]:
    try:
        real = resolve_in_root(path, tree.lookup)
    except TooManyLinks:
        real = path + "/"
    if not tree.has(real, real != path):
        raise fail(f"{path}, found by {source}, is a symbolic link that leads nowhere in the build context")
    return real, path.rpartition("/")[2]


def _walk(tree: _Tree, base: str, pattern: str) -> List[str]:
    """Paths under ``base`` that match, in walking order; a directory that matches is not entered."""
    regex = go_match(pattern)
    top = tree.entries.get(base)
    if regex is None or top is None or top.type != "dir":
        if regex is None:
            raise _Unsupported(f"the pattern {pattern} is malformed")
        if top is None:
            raise _Unsupported(f"the directory of the pattern {pattern} is not in the build context")
        return []
    depth = pattern.count("/") + 1
    if "[" in pattern or "\\" in pattern:
        depth = 1 << 30  # a class may match "/"
    found: List[str] = []

    def visit(folder: str, relative: str, level: int) -> None:
        for name in tree.children(folder):
            path = folder + "/" + name if folder else name
            inner = relative + "/" + name if relative else name
            if regex is not None and regex.match(inner):
                found.append(path)
            elif level < depth and tree.entries[path].type == "dir":
                visit(path, inner, level + 1)

    visit(base, "", 1)
    return found


def copy_set(
    instruction: Any,
    context: Any,
    workdir: str,
    lookup: Lookup,
    resolve: Optional[Callable[[str], str]] = None,  # noqa: ARG001
    owner_lookup: Optional[Reader] = None,
    file: str = "",
) -> CopySet:
    """What a COPY, or an ADD of local files, would write now.

    :param instruction: an ``Instruction`` of dockerfile.py, its variables expanded.
    :param context: where sources are taken from: ``stat_entries()``, ``digest_of(path)`` and ``read(path)``.
    :param workdir: the working directory at the instruction.
    :param lookup: the image before the instruction: the entry at a path without leading slash.
    :param resolve: not needed; links are resolved against the state that the instruction itself has changed.
    :param owner_lookup: the content of a file of the image before the instruction (``etc/passwd``, ``etc/group``).
    :param file: the Dockerfile's name, for errors.
    :raises OfflineRebuildError: ``copy-source``: a source that is not in the context.
    """
    try:
        return _play(instruction, context, workdir, lookup, owner_lookup, file)
    except _Unsupported as reason:
        return CopySet(unsupported=str(reason))


def _play(
    instruction: Any,
    context: Any,
    workdir: str,
    lookup: Lookup,
    owner_lookup: Optional[Reader],
    file: str,
) -> CopySet:
    def fail(message: str) -> Exception:
        return OfflineRebuildError(
            "copy-source",
            f"{instruction.keyword}: {message}",
            "put the file there, or mend the instruction",
            file or None,
            instruction.line,
        )

    rules = _rules(instruction, owner_lookup)
    sources = [str(source) for source in instruction.sources]
    for source in sources:
        _check_source(instruction.keyword, source)
    if instruction.flag_bool("parents"):
        raise _Unsupported("--parents")
    dest = _destination(workdir, str(instruction.dest))
    play = _Play(lookup, rules)
    if rules.link:
        _check_link(play, dest)
    tree = _tree_of(context) if sources else None
    for source in sources:
        assert tree is not None
        for path, name in _matches(tree, source, fail):
            if instruction.keyword == "ADD":
                _check_archive(tree, path)
            play.copy(tree, path, dest, True, name)
    for document in instruction.files:
        play.heredoc(document.name, document.content.encode("utf-8", "surrogateescape"), dest)
    return CopySet(play.entries, play.parents, tuple(play.roots))


def _rules(instruction: Any, owner_lookup: Optional[Reader]) -> _Rules:
    for flag in getattr(instruction, "flags", ()):
        name = getattr(flag, "name", flag)
        if isinstance(name, str) and name.lstrip("-").split("=")[0] not in _KNOWN_FLAGS:
            raise _Unsupported(f"the flag --{name}")
    link = bool(instruction.flag_bool("link"))
    patterns = [str(text) for text in instruction.flag_values("exclude")]
    return _Rules(
        _owner(instruction.flag("chown"), owner_lookup, link),
        _Chmod(instruction.flag("chmod")),
        _exclusions(patterns) if patterns else None,
        link,
    )


def _exclusions(patterns: Sequence[str]) -> Any:
    """``--exclude`` patterns: patternmatcher.New, without the changes that an ignore file's lines get."""
    from . import ignorefile

    for pattern in patterns:
        if not pattern.strip() or re.search(r"\A\s*!?\s*[/#]|[\n\r]|\A!\s|\s\Z|\A\s|\.\.|\A!?\.?\Z", pattern):
            raise _Unsupported(f"--exclude={pattern}")
    text = "\n".join(patterns).encode("utf-8", "surrogateescape")
    try:
        return ignorefile.parse(text, "--exclude")
    except OfflineRebuildError:
        raise _Unsupported(f"--exclude={' '.join(patterns)}") from None


def _check_source(keyword: str, source: str) -> None:
    """Refuse what is no local path (isHTTPSource, dfgitutil.ParseGitRef)."""
    if (
        re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|git@|github\.com/", source)
        or (keyword == "ADD" and re.search(r"\.git(?:#|\Z)", source))
        or re.match(r"[^/\s]+@[^/\s]+:", source)
    ):
        raise _Unsupported(f"{source} is no local path")


def _check_archive(tree: _Tree, path: str) -> None:
    """ADD unpacks a local archive: what might be one is left to BuildKit (isArchivePath in unpack.go)."""
    if tree.entries[path].type != "file" or tree.entries[path].size < 2:
        return
    head = tree.read(path)[:512]
    if head.startswith(_ARCHIVES) or re.match(rb"[\x50-\x5f]\x2a\x4d\x18", head):
        raise _Unsupported(f"ADD of {path}, which looks like an archive")
    if len(head) == 512:
        import struct

        stored = head[148:156].strip(b" \0")
        plain = sum(head[:148]) + 8 * 32 + sum(head[156:])
        signed = sum(struct.unpack("148b", head[:148])) + 8 * 32 + sum(struct.unpack("356b", head[156:]))
        try:
            if int(stored or b"0", 8) in (plain, signed):
                raise _Unsupported(f"ADD of {path}, which is a tar archive")
        except ValueError:
            pass


def _check_link(play: _Play, dest: str) -> None:
    """``--link`` writes into an empty tree that is then merged over the image, or not, by the engine's store.

    Both give the same only where the way to the destination needs nothing of the image: no links in it, and directories
    as COPY would have made them.
    """
    if play.rules.chmod.octal is not None or play.rules.chmod.symbolic is not None:
        return  # BuildKit makes no merge then
    path = posixpath.normpath(dest).strip("/")
    parts = path.split("/") if path and path != "." else []
    uid, gid = play.rules.owner or (0, 0)
    for count in range(1, len(parts) + 1):
        entry = play.get("/".join(parts[:count]))
        if entry is None or (count == len(parts) and entry.type == "file"):
            return
        if (entry.type, entry.mode, entry.uid, entry.gid, entry.xattrs) != ("dir", 0o755, uid, gid, ()):
            raise _Unsupported("--link to a place that the image has in another form than COPY would make it")


# ---------------------------------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------------------------------

_TEXT_LIMIT = 4 << 20
_MANY = 200


def compare(copyset: CopySet, layer: Layer, lookup_before: Lookup) -> List[FileChange]:
    """Whether a layer is exactly what the instruction would write; what differs, if not.

    The rule is equality of the final state: each path of the set has in the image, after the layer, the type, mode,
    owner, content, link and attributes that it would get now; whatever else is in the layer equals what was there
    before; nothing is removed. Modification times do not count.

    :param lookup_before: the image before the layer.
    :returns: the differences in order of path; none means that the instruction is proven.
    """
    if copyset.unsupported:
        return [FileChange("/", "changed", (), copyset.unsupported)]
    best: Optional[Dict[str, FileChange]] = None
    known: Dict[str, Tuple[Tuple[str, ...], str, str]] = {}
    for behaviour in _behaviours(copyset):
        found = _Comparison(copyset, layer, lookup_before, behaviour, known).run()
        if best is None or len(found) < len(best):
            best = found
        if not best:
            return []
    assert best is not None
    return [best[path] for path in sorted(best)]


def _behaviours(copyset: CopySet) -> List[int]:
    """The behaviours that differ for this set."""
    entries = list(copyset.entries.values()) + list(copyset.parents.values())
    kept: List[int] = []
    for number in range(BEHAVIOURS):
        if not any(all(e.modes[number] == e.modes[other] for e in entries) for other in kept):
            kept.append(number)
    return kept


class _Comparison:
    def __init__(
        self,
        copyset: CopySet,
        layer: Layer,
        before: Lookup,
        behaviour: int,
        known: Dict[str, Tuple[Tuple[str, ...], str, str]],
    ) -> None:
        self.set = copyset
        self.layer = layer
        self.before = before
        self.behaviour = behaviour
        self.known = known
        self.found: Dict[str, FileChange] = {}

    def run(self) -> Dict[str, FileChange]:
        """:returns: the differences by path in the image."""
        for path, entry in (*self.set.entries.items(), *self.set.parents.items()):
            self._wanted(path, entry)
        for path, found in self.layer.entries.items():
            if path and path not in self.set.entries and path not in self.set.parents:
                self._extra(path, found)
        for path in self.layer.whiteouts:
            if self.before(path) is not None:
                self._report(path, "changed" if path in self.set.entries else "deleted", ())
        for path in self.layer.opaques:
            was = self.before(path) if path else LayerEntry("dir", 0o755)
            if was is not None and was.type == "dir":
                self._report(path, "changed", ("type",), "the layer hides what was there")
        return self.found

    def _report(self, path: str, kind: str, what: Tuple[str, ...], note: str = "", mend: str = "") -> None:
        self.found[path] = FileChange(self.set.context_path(path), kind, what, note, mend)

    def _wanted(self, path: str, entry: CopyEntry) -> None:
        after = self.layer.entries.get(path)
        if after is None:
            after = None if path in self.layer.whiteouts else self.before(path)
        if after is None:
            self._report(path, "added", ())
            return
        what: List[str] = []
        if after.type != entry.type:
            self._report(path, "changed", ("type",))
            return
        content, note, mend = self._content(path, entry, after)
        what.extend(content)
        if entry.type != "symlink" and after.mode != entry.modes[self.behaviour]:
            what.append("mode")
            mend = mend_mode(after.mode) if entry.source else ""
        if (after.uid, after.gid) != (entry.uid, entry.gid):
            what.append("owner")
        if entry.type == "symlink" and after.link != entry.link:
            what.append("link")
        if after.xattrs != entry.xattrs:
            what.append("xattrs")
        if what:
            if what == ["mode"]:
                note = "only the mode differs"
            elif what != ["content"]:
                note = ""
            self._report(path, "changed", tuple(what), note, mend)

    def _content(self, path: str, entry: CopyEntry, after: LayerEntry) -> Tuple[Tuple[str, ...], str, str]:
        """Whether the content differs; digests are taken only where the sizes agree."""
        if entry.type != "file":
            return (), "", ""
        if path not in self.known:
            same = after.size == entry.size
            if same:
                old = after.content_digest()
                same = old is not None and old == entry.content_digest()
            only, mend = (False, "") if same or len(self.known) >= _MANY else _only_line_ends(entry, after)
            note = "only the line ends differ" if only else ""
            self.known[path] = ((), "", "") if same else (("content",), note, mend)
        return self.known[path]

    def _extra(self, path: str, found: LayerEntry) -> None:
        """A path that the instruction would not write now: it must be as it was before."""
        was = self.before(path)
        if was is None:
            self._report(path, "deleted", ())
            return
        what: List[str] = []
        if was.type != found.type or found.type == "unknown":
            what.append("type")
        else:
            if found.type != "symlink" and was.mode != found.mode:
                what.append("mode")
            if (was.uid, was.gid) != (found.uid, found.gid):
                what.append("owner")
            if was.link != found.link:
                what.append("link")
            if was.xattrs != found.xattrs:
                what.append("xattrs")
            if was.rdev != found.rdev:
                what.append("type")
            if found.type == "file":
                digest = found.content_digest() if was.size == found.size else None
                if digest is None or digest != was.content_digest():
                    what.append("content")
        if what:
            self._report(path, "changed", tuple(what))


def _only_line_ends(entry: CopyEntry, after: LayerEntry) -> Tuple[bool, str]:
    """Whether the contents agree when all line ends are LF or all are CRLF; text up to 4 MiB. And what mends it."""
    if after.size == entry.size or max(after.size, entry.size) > _TEXT_LIMIT:
        return False, ""
    old = after.content_digest()
    if old is None:
        return False, ""
    try:
        data = entry.read()
    except OfflineRebuildError:
        return False, ""
    wanted = "" if b"\0" in data else line_ends(data, old)
    return bool(wanted), mend_line_ends(data, wanted) if entry.source else ""

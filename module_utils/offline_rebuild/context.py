"""The build context: its entries as BuildKit sees them, their manifest and digest, and what changed between two.

What counts is what BuildKit's content hash sees (moby/buildkit ``cache/contenthash``: ``filehash.go``, ``tarsum.go``)
of what the client sends (tonistiigi/fsutil ``fs.go``, ``stat.go``, ``filter.go``): path, type, permission bits, content
or link target, device number and extended attributes. Times and owners do not count: the client sends 0:0.

A manifest holds a text a directory and no object a file, so 100,000 files take some 10 MB. The tree is walked by
directory descriptors and never by following a link; a file is read by the descriptor of the very inode that the walk
has met, or not at all.
"""

from __future__ import annotations

import array
import errno
import hashlib
import os
import re
import stat
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, NoReturn, Optional, Set, Tuple

from .errors import OfflineRebuildError
from .ignorefile import EMPTY, IgnoreFile, WalkState
from .readers import CHANGED, PORTION_BYTES, PORTION_FILES, Readers, Result, numbers_of, xattrs
from .statindex import GRANULARITY_NS, Record, StatIndex

__all__ = ["Change", "Context", "Entry", "Manifest", "WithModes", "diff", "line_ends", "mend_line_ends", "mend_mode"]

EMPTY_DIGEST = "sha256:" + hashlib.sha256().hexdigest()
MODE_ONLY = "only the mode differs"
LINE_ENDS_ONLY = "only the line ends differ"
# Descriptors that a walk holds open: one a level.
MAX_DEPTH = 200
# Files bigger than this are not compared for their line ends.
MAX_TEXT = 16 * 1024 * 1024
_FORMAT = 1
_TYPES = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}
_WORDS = {
    "f": "file", "d": "dir", "l": "symlink", "p": "fifo", "s": "socket", "c": "char", "b": "block",
}  # fmt: skip
_LINES = re.compile(r"(?:[fdlpscb]\t[0-7]{1,4}\t\d{1,19}\t[^\t\n]*\t(?:[0-9a-f]+=[0-9a-f]*,?)*\t[^\n/\0]+\n)*")
_STAT_SIZE = 40
_FORMAT_BITS = 0o170000
_UTF8 = sys.getfilesystemencoding().lower().replace("-", "") == "utf8"


class Entry(NamedTuple):
    """One path of a context.

    :ivar type: ``file``, ``dir``, ``symlink``, ``fifo``, ``socket``, ``char`` or ``block``. (COPY makes an empty
        regular file of a socket.)
    :ivar mode: permission bits, with setuid, setgid and sticky; 0o777 for a symbolic link.
    :ivar size: bytes of a regular file, else 0.
    :ivar link: target of a symbolic link; ``major:minor`` of a device; else None.
    :ivar digest: ``sha256:...`` of a regular file's content, None where it was not read.
    :ivar xattrs: (name, value in hexadecimal), sorted; those that count.
    :ivar mtime_ns: modification time; no part of equality or of any digest; 0 in a manifest.
    """

    type: str
    mode: int
    size: int
    link: Optional[str] = None
    digest: Optional[str] = None
    xattrs: Tuple[Tuple[str, str], ...] = ()
    mtime_ns: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and self[:-1] == other[:-1]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:-1])


class Change(NamedTuple):
    """What became of a path.

    :ivar kind: ``added``, ``deleted`` or ``changed``.
    :ivar what: of a changed path: some of ``type``, ``content``, ``link``, ``mode``, ``xattrs``, in this order.
    :ivar note: empty, ``only the mode differs`` or ``only the line ends differ``.
    """

    path: str
    kind: str
    what: Tuple[str, ...] = ()
    note: str = ""


# --- lines of a manifest --------------------------------------------------------------------------------------------
# type TAB mode (octal) TAB size TAB value TAB xattrs TAB name NL. The value is the hexadecimal SHA-256 of a file, the
# target of a link or a device number. In name and value "\" stands for itself doubled, "\n" and "\t" for the two.


def _escape(text: bytes) -> bytes:
    if b"\\" in text or b"\n" in text or b"\t" in text:
        text = text.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\t", b"\\t")
    return text


def _unescape(text: bytes) -> bytes:
    if b"\\" not in text:
        return text
    return re.sub(rb"\\(.)", lambda found: {b"n": b"\n", b"t": b"\t"}.get(found[1], found[1]), text)


def _line(kind: str, mode: int, size: int, value: bytes, xattrs: bytes, name: bytes) -> bytes:
    return b"%s\t%o\t%d\t%s\t%s\t%s\n" % (kind.encode(), mode, size, value, xattrs, name)


def _read_line(line: bytes) -> Tuple[str, Entry]:
    """:returns: the name and the entry of a line without its line end."""
    kind, mode, size, value, xattrs, name = line.split(b"\t", 5)
    letter = kind.decode()
    entry = Entry(
        _WORDS[letter],
        int(mode, 8),
        int(size),
        _text(_unescape(value)) if letter in "lcb" else None,
        "sha256:" + value.decode() if letter == "f" and value else None,
        _read_xattrs(xattrs) if xattrs else (),
    )
    return _text(_unescape(name)), entry


def _read_xattrs(text: bytes) -> Tuple[Tuple[str, str], ...]:
    pairs = (pair.split(b"=") for pair in text.split(b","))
    return tuple((_text(bytes.fromhex(name.decode())), value.decode()) for name, value in pairs)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class Manifest(Mapping[str, Entry]):
    """A mapping of path to :class:`Entry`, in the order of the tree (a directory, then what is in it; names sorted).

    :param directories: path of a directory (empty for the context) to its lines.
    :param files: number of regular files. :param size: their bytes.
    """

    def __init__(self, directories: Optional[Dict[bytes, bytes]] = None, files: int = 0, size: int = 0) -> None:
        self._directories: Dict[bytes, bytes] = directories if directories is not None else {}
        self.files = files
        self.bytes = size
        self._digest: Optional[str] = None
        self._cached: Tuple[Optional[bytes], Dict[str, Entry]] = (None, {})

    @classmethod
    def from_entries(cls, entries: Mapping[str, Entry]) -> Manifest:
        """Make a manifest of entries from elsewhere (an image's files). Parents that are missing are not added."""
        lines: Dict[bytes, Dict[bytes, bytes]] = {}
        files = size = 0
        for path, entry in entries.items():
            parent, _, name = path.rpartition("/")
            lines.setdefault(_raw(parent), {})[_raw(name)] = _entry_line(name, entry)
            if entry.type == "dir":
                lines.setdefault(_raw(path), {})
            if entry.type == "file":
                files, size = files + 1, size + entry.size
        return cls({at: b"".join(one[name] for name in sorted(one)) for at, one in lines.items() if one}, files, size)

    def directories(self) -> Set[bytes]:
        """:returns: the directories that hold something (the context itself is empty)."""
        return set(self._directories)

    def lines(self, path: bytes) -> bytes:
        """:returns: the lines of a directory; equal lines, equal entries."""
        return self._directories.get(path, b"")

    def _directory(self, path: bytes) -> Dict[str, Entry]:
        if self._cached[0] != path:
            self._cached = (path, dict(map(_read_line, self.lines(path).split(b"\n")[:-1])))
        return self._cached[1]

    def __getitem__(self, path: str) -> Entry:
        parent, _, name = path.rpartition("/")
        try:
            return self._directory(_raw(parent))[name]
        except KeyError:
            raise KeyError(path) from None

    def __iter__(self) -> Iterator[str]:
        for path, _entry in self.entries():
            yield path

    def __len__(self) -> int:
        return sum(lines.count(b"\n") for lines in self._directories.values())

    def entries(self, prefix: str = "") -> Iterator[Tuple[str, Entry]]:
        """:returns: path and entry of ``prefix`` (when it is not empty) and of everything below it, in order."""
        if prefix:
            entry = self.get(prefix)
            if entry is None:
                return
            yield prefix, entry
            prefix += "/"
        for line in self.lines(_raw(prefix.rstrip("/"))).split(b"\n")[:-1]:
            name, entry = _read_line(line)
            if entry.type == "dir":
                yield from self._below(prefix + name, entry)
            else:
                yield prefix + name, entry

    def _below(self, path: str, entry: Entry) -> Iterator[Tuple[str, Entry]]:
        yield path, entry
        for line in self.lines(_raw(path)).split(b"\n")[:-1]:
            name, child = _read_line(line)
            if child.type == "dir":
                yield from self._below(path + "/" + name, child)
            else:
                yield path + "/" + name, child

    def with_modes(self, modes: Mapping[str, int]) -> Manifest:
        """:returns: the manifest with these modes for the paths named; a path that it does not have is left out."""
        if not modes:
            return self
        wanted: Dict[bytes, Dict[bytes, int]] = {}
        for path, mode in modes.items():
            parent, _, name = path.rpartition("/")
            wanted.setdefault(_raw(parent), {})[_escape(_raw(name))] = mode
        directories = dict(self._directories)
        for at, names in wanted.items():
            lines = [line.split(b"\t", 5) for line in self.lines(at).split(b"\n")[:-1]]
            for fields in lines:
                if fields[5] in names:
                    fields[1] = b"%o" % names[fields[5]]
            if lines:
                directories[at] = b"".join(b"\t".join(fields) + b"\n" for fields in lines)
        return Manifest(directories, self.files, self.bytes)

    def digest(self) -> str:
        """:returns: ``sha256:...`` over path, type, mode, size, content or link, xattrs of every entry."""
        if self._digest is None:
            total = hashlib.sha256(b"offline-rebuild context %d\n" % _FORMAT)
            for path in sorted(self._directories):
                lines = self._directories[path]
                total.update(b"%d %d\n%s\n" % (len(path), len(lines), path))
                total.update(lines)
            self._digest = "sha256:" + total.hexdigest()
        return self._digest

    def to_json(self) -> str:
        """:returns: JSON, ASCII only; names that are not UTF-8 come back from it as they were."""
        import json

        directories = {_text(path): _text(lines) for path, lines in self._directories.items()}
        head = {"format": _FORMAT, "digest": self.digest(), "files": self.files, "bytes": self.bytes}
        return json.dumps({**head, "directories": directories}, separators=(",", ":"))

    @classmethod
    def from_json(cls, source: str, file: str = "", expected: str = "") -> Manifest:
        """Read what :meth:`to_json` wrote.

        :param file: where it came from, for errors.
        :param expected: the digest that it must have; one that has it needs no look at its lines.
        :raises OfflineRebuildError: ``manifest-invalid``: no manifest, of another format, or changed since.
        """
        import json

        try:
            data = json.loads(source)
            _check_format(data["format"])
            look = str if expected else _checked
            directories = {_raw(path): _raw(look(lines)) for path, lines in data["directories"].items()}
            manifest = cls(directories, int(data["files"]), int(data["bytes"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise _invalid(f"This is not a manifest of a context: {exc}.", file) from exc
        if manifest.digest() != (expected or data.get("digest")):
            raise _invalid("The manifest's digest is not that of its entries: it was changed.", file)
        return manifest


def _check_format(number: Any) -> None:
    if number != _FORMAT:
        raise ValueError(f"it has format {number!r}, not {_FORMAT}")


def _checked(lines: str) -> str:
    if not _LINES.fullmatch(lines):
        raise ValueError("a directory's lines are not well-formed")
    return lines


def _invalid(message: str, file: str) -> OfflineRebuildError:
    return OfflineRebuildError("manifest-invalid", message, remedy="Record it anew.", file=file or None)


def _entry_line(name: str, entry: Entry) -> bytes:
    letter = next(letter for letter, word in _WORDS.items() if word == entry.type)
    value = (entry.digest or "").replace("sha256:", "").encode() if letter == "f" else _escape(_raw(entry.link or ""))
    pairs = (_raw(key).hex() + "=" + value for key, value in entry.xattrs)
    return _line(letter, entry.mode, entry.size, value, ",".join(pairs).encode(), _escape(_raw(name)))


# --- differences ------------------------------------------------------------------------------------------------------


def diff(
    old: Manifest,
    new: Manifest,
    only_line_ends: Optional[Callable[[str, Entry, Entry], bool]] = None,
) -> List[Change]:
    """What changed between two manifests, sorted by path.

    :param only_line_ends: asked for each file whose content changed and nothing else: (path, old, new) to whether only
        its line ends differ; :meth:`Context.only_line_ends` is one. Without it that note is not given.
    """
    changes: List[Change] = []
    for path in old.directories() | new.directories():
        before, after = old.lines(path), new.lines(path)
        if before != after:
            changes.extend(_diff_directory(path, before, after, only_line_ends))
    return sorted(changes)


def _diff_directory(
    path: bytes, before: bytes, after: bytes, only_line_ends: Optional[Callable[[str, Entry, Entry], bool]]
) -> Iterator[Change]:
    old_lines, new_lines = set(before.split(b"\n")), set(after.split(b"\n"))
    old = dict(map(_read_line, old_lines - new_lines - {b""}))
    new = dict(map(_read_line, new_lines - old_lines - {b""}))
    prefix = _text(path) + "/" if path else ""
    for name in {**old, **new}:
        if name not in old:
            yield Change(prefix + name, "added")
        elif name not in new:
            yield Change(prefix + name, "deleted")
        else:
            what = _what(old[name], new[name])
            note = MODE_ONLY if what == ("mode",) else ""
            if what == ("content",) and only_line_ends and only_line_ends(prefix + name, old[name], new[name]):
                note = LINE_ENDS_ONLY
            yield Change(prefix + name, "changed", what, note)


def _what(old: Entry, new: Entry) -> Tuple[str, ...]:
    if old.type != new.type:
        return ("type",)
    pairs = {
        "content": (old.digest, old.size) != (new.digest, new.size),
        "link": old.link != new.link,
        "mode": old.mode != new.mode,
        "xattrs": old.xattrs != new.xattrs,
    }
    return tuple(word for word, differs in pairs.items() if differs)


def line_ends(data: bytes, digest: str) -> str:
    """Which line ends a content would need to have this digest.

    :returns: ``lf`` or ``crlf`` for all of them, ``""`` if neither gives it.
    """
    unix = data.replace(b"\r\n", b"\n")
    for name, text in (("lf", unix), ("crlf", unix.replace(b"\n", b"\r\n"))):
        if "sha256:" + hashlib.sha256(text).hexdigest() == digest:
            return name
    return ""


def mend_mode(mode: int) -> str:
    """:returns: the command that gives a file this mode, less the file's name."""
    return f"chmod {mode:04o} --"


def mend_line_ends(data: bytes, wanted: str) -> str:
    """:returns: the command that gives a file these line ends, less its name; nothing where sed would give others."""
    if wanted == "lf" and not data.endswith(b"\r"):
        return "sed -i 's/\\r$//' --"
    if wanted == "crlf" and data.endswith(b"\n"):
        return "sed -i 's/\\r$//;s/$/\\r/' --"
    return ""


# --- the walk ---------------------------------------------------------------------------------------------------------


class _Listing(NamedTuple):
    """A directory as the walk met it: names, five numbers an entry, and the directories to enter with their state."""

    names: List[str]
    stats: array.array[int]
    enter: List[Tuple[str, WalkState]]


class _Directory:
    """A directory whose lines are being made; those of files that must be read are filled in by the readers."""

    __slots__ = ("files", "lines", "names", "newest", "path", "size", "stats", "waiting")

    def __init__(self, path: bytes, names: bytes, stats: bytes) -> None:
        self.path = path
        self.names = names
        self.stats = stats
        self.lines: List[bytes] = []
        self.files = 0
        self.size = 0
        self.newest = 0
        #: files that are still to be read, and the directory's own listing
        self.waiting = 1

    def record(self) -> Record:
        return Record(self.names, self.stats, b"".join(self.lines), self.files, self.size, self.newest)


class _Read(NamedTuple):
    """A file to read: where its line goes, and what the walk saw of it."""

    directory: _Directory
    place: int
    path: str
    name: bytes
    numbers: Tuple[int, ...]


class Context:
    """A build context on disk.

    :param root: its directory (a symbolic link to one is followed, as by ``docker build``).
    :param ignore: its ignore file.
    :param index: the stat index that spares the reading of files that did not change.
    :raises OfflineRebuildError: ``context-missing``: there is no such directory.
    """

    def __init__(self, root: str, ignore: IgnoreFile = EMPTY, index: Optional[StatIndex] = None) -> None:
        self.root = os.path.realpath(root)
        self.given_root = root
        self.ignore = ignore
        self.index = index
        self.files_read = 0
        self._manifest: Optional[Manifest] = None
        if not os.path.isdir(self.root):
            raise OfflineRebuildError(
                "context-missing", "There is no such directory.", remedy="Name the build context.", file=root
            )
        if index is not None:
            # Where a file may arrive empty, its line depends on the patterns and not on the file alone.
            texts = [("!" if p.exception else "") + p.text for p in ignore.patterns if ignore.may_hide]
            index.bind("\0".join([self.root, *texts]))

    def manifest(self, prefix: str = "") -> Manifest:
        """The manifest of the context, or of ``prefix`` and what is below it (paths stay relative to the context).

        The whole manifest is made once, and the stat index is written when anything in it changed.

        :raises OfflineRebuildError: ``context-changed`` (a file changed or went while it was read),
            ``context-unreadable``, ``context-too-deep``, ``state-unwritable``.
        """
        if prefix:
            parts = _parts(prefix)
            return self._build(parts, save=False) if parts else Manifest()
        if self._manifest is None:
            self._manifest = self._build([], save=True)
        return self._manifest

    def _build(self, only: List[str], save: bool) -> Manifest:
        started = time.time_ns()
        root = self._open_root()
        builder = _Builder(self, root)
        try:
            builder.visit(root, "", self.ignore.root_state, only, 0)
            builder.finish()
        finally:
            builder.readers.close()
            os.close(root)
        self.files_read += builder.files_read
        if save and self.index is not None and builder.changed():
            self.index.save(builder.records, started - GRANULARITY_NS)
        return Manifest(builder.lines, builder.files, builder.size)

    def entries(self, prefix: str = "") -> Iterator[Tuple[str, Entry]]:
        """:returns: path and entry, digest included, of the context or of ``prefix`` and what is below it, in order."""
        manifest = self._manifest if self._manifest is not None else self.manifest(prefix)
        return manifest.entries(prefix)

    def stat_entries(self, prefix: str = "") -> Iterator[Tuple[str, Entry]]:
        """Like :meth:`entries` with no content read: a file's ``digest`` is None."""
        only = _parts(prefix) if prefix else []
        if prefix and not only:
            return
        root = self._open_root()
        try:
            for path, entry, _ignored in self._stat_walk(root, "", self.ignore.root_state, only, 0):
                if path == prefix or not prefix or path.startswith(prefix + "/"):
                    yield path, entry
        finally:
            os.close(root)

    def _stat_walk(
        self, fd: int, path: str, state: WalkState, only: List[str], depth: int
    ) -> Iterator[Tuple[str, Entry, bool]]:
        listing = self.list_directory(fd, path, state, only)
        enter = dict(listing.enter)
        base = path + "/" if path else ""
        for place, name in enumerate(listing.names):
            numbers = tuple(listing.stats[place * 5 : place * 5 + 5])
            entry = self._stat_entry(base + name, numbers)
            below = enter.get(name)
            if below is None or not below.ignored:
                yield base + name, entry, False
            if below is None:
                continue
            child = self.open_child(fd, base + name, name, below, depth)
            if child is None:
                continue
            pending = below.ignored
            try:
                for item in self._stat_walk(child, base + name, below, only[1:], depth + 1):
                    if pending:
                        pending = False
                        yield base + name, entry, True
                    yield item
            finally:
                os.close(child)

    def _stat_entry(self, path: str, numbers: Tuple[int, ...]) -> Entry:
        letter = _TYPES[stat.S_IFMT(numbers[0])]
        value = self.special_value(path, letter)
        pairs = xattrs(self.full(path))
        attributes = _read_xattrs(pairs) if pairs else ()
        size = numbers[1] if letter == "f" and not self.ignore.hides(path) else 0
        link = _text(_unescape(value)) if letter in "lcb" else None
        return Entry(_WORDS[letter], stat.S_IMODE(numbers[0]), size, link, None, attributes, numbers[2])

    def digest_of(self, path: str) -> str:
        """:returns: ``sha256:...`` of a regular file of the context; taken from the stat index where that is current.

        :raises OfflineRebuildError: as :meth:`manifest`; ``context-changed`` when there is no such file (any more).
        """
        entry = (self._manifest if self._manifest is not None else self.manifest(path)).get(path)
        if entry is None or entry.digest is None:
            raise _changed(os.path.join(self.given_root, path), "is not there as a file (any more)")
        return entry.digest

    def only_line_ends(self, path: str, old: Entry, new: Entry) -> bool:
        """Whether a file differs from what it was by its line ends alone; needs the old digest only.

        The file is read and its digest taken with all line ends LF and with all of them CRLF. Best effort: False for a
        file that had both kinds, that is bigger than 16 MiB, or that cannot be read.
        """
        if old.digest is None or new.size > MAX_TEXT or old.size == new.size:
            return False
        try:
            data = self.read(path)
        except OfflineRebuildError:
            return False
        return bool(line_ends(data, old.digest))

    def mend_of(self, change: Change, old: Manifest) -> str:
        """What undoes a change to a file's mode or line ends: a command that takes the file's name, or nothing."""
        was = old.get(change.path)
        if was is None:
            return ""
        if "mode" in change.what:
            return mend_mode(was.mode)
        if change.note != LINE_ENDS_ONLY or was.digest is None:
            return ""
        data = self.read(change.path)
        return mend_line_ends(data, line_ends(data, was.digest))

    def read(self, path: str) -> bytes:
        """:returns: the content of a regular file of the context (no link is followed, not even in its parents).

        :raises OfflineRebuildError: ``context-unreadable``, ``context-changed``.
        """
        parts = _parts(path)
        if not parts:
            raise _changed(os.path.join(self.given_root, path), "is not in the build context")
        fd = self._open_root()
        try:
            for part in parts[:-1]:
                child = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = child
            target = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
            with open(target, "rb") as stream:
                if not stat.S_ISREG(os.fstat(target).st_mode):
                    raise _changed(os.path.join(self.given_root, path), "is no regular file")
                return stream.read()
        except OSError as exc:
            self.fail(path, exc)
        finally:
            os.close(fd)

    # -- what the walks share

    def _open_root(self) -> int:
        try:
            return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as exc:
            self.fail("", exc)

    def open_child(self, fd: int, path: str, name: str, state: WalkState, depth: int) -> Optional[int]:
        """:returns: a descriptor of a directory; None for an ignored one that must not be read (filter.go skips it)."""
        if depth >= MAX_DEPTH:
            raise OfflineRebuildError(
                "context-too-deep",
                f"The tree is more than {MAX_DEPTH} directories deep.",
                remedy="Leave this directory out with the ignore file.",
                file=os.path.join(self.given_root, path),
            )
        try:
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        except PermissionError as exc:
            if state.ignored:
                return None
            self.fail(path, exc)
        except OSError as exc:
            self.fail(path, exc)

    def list_directory(self, fd: int, path: str, state: WalkState, only: List[str]) -> _Listing:
        """List a directory: what is not ignored, and ignored directories that must be entered.

        :param only: when not empty, just the first of these names.
        """
        names = only[:1] or self._names(fd, path)
        base = path + "/" if path else ""
        kept: List[str] = []
        stats = array.array("q")
        enter: List[Tuple[str, WalkState]] = []
        skip = self.ignore.ignored_names(state, path, names) if self.ignore else ()
        keep, extend, lstat = kept.append, stats.extend, os.lstat
        for name in names:
            ignored = name in skip
            try:
                info = lstat(name if _UTF8 else os.fsdecode(_raw(name)), dir_fd=fd)
            except OSError as exc:
                if ignored or only:
                    continue
                self.fail(base + name, exc)
            mode = info.st_mode
            if mode & _FORMAT_BITS == stat.S_IFDIR:
                below = self.ignore.enter(state, base + name)
                if below is None:
                    continue
                enter.append((name, below))
            elif ignored:
                continue
            keep(name)
            try:
                extend((mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino))
            except OverflowError:
                del stats[len(kept) * 5 - 5 :]
                extend(numbers_of(info))
        return _Listing(kept, stats, enter)

    def _names(self, fd: int, path: str) -> List[str]:
        try:
            names = os.listdir(fd)
        except OSError as exc:
            self.fail(path, exc)
        if not _UTF8:
            names = [_text(os.fsencode(name)) for name in names]
        names.sort()
        return names

    def full(self, path: str) -> str:
        """:returns: a path of the context as the operating system takes it."""
        return os.path.join(self.root, path if _UTF8 else os.fsdecode(_raw(path)))

    def special_value(self, path: str, letter: str) -> bytes:
        """:returns: the target of a link or the number of a device, escaped; empty for anything else."""
        try:
            if letter == "l":
                return _escape(os.readlink(os.fsencode(self.full(path))))
            if letter in "cb":
                number = os.lstat(self.full(path)).st_rdev
                return b"%d:%d" % (os.major(number), os.minor(number))
        except OSError as exc:
            self.fail(path, exc)
        return b""

    def fail(self, path: str, exc: OSError) -> NoReturn:
        """Raise what an operator can act on."""
        place = os.path.join(self.given_root, path) if path else self.given_root
        if isinstance(exc, (FileNotFoundError, NotADirectoryError, IsADirectoryError)) or exc.errno == errno.ELOOP:
            raise _changed(place, "went, or became something else, while the context was read") from exc
        raise OfflineRebuildError(
            "context-unreadable",
            f"This part of the build context cannot be read: {exc.strerror}.",
            remedy="Give the user that runs the build the right to read it, or leave it out with the ignore file.",
            file=place,
        ) from exc


def _parts(path: str) -> List[str]:
    """:returns: the parts of a path inside the context; none for a path that is not ("..", an absolute one)."""
    parts = path.split("/")
    return [] if {"", ".", ".."} & set(parts) else parts


def _changed(place: str, how: str) -> OfflineRebuildError:
    return OfflineRebuildError(
        "context-changed",
        f"The file {how}.",
        remedy="Run again when nothing writes to the build context; leave logs and the like out with the ignore file.",
        file=place,
    )


class _Builder:
    """Makes the lines of every directory of one walk; files are read by several processes (readers.py)."""

    def __init__(self, context: Context, root: int) -> None:
        self.context = context
        self.root = root
        self.index = context.index
        self.trusted_below = 0
        if self.index is not None:
            len(self.index)
            self.trusted_below = self.index.trusted_below
        self.lines: Dict[bytes, bytes] = {}
        self.records: Dict[bytes, Record] = {}
        self.files = 0
        self.size = 0
        self.files_read = 0
        self._kept = 0
        self.readers = Readers(root, self._was_read)
        self._reads: List[_Read] = []
        self._pending = 0

    def changed(self) -> bool:
        """:returns: whether the stat index must be written."""
        return self.index is not None and not self._kept == len(self.records) == len(self.index)

    def visit(self, fd: int, path: str, state: WalkState, only: List[str], depth: int) -> bool:
        """Walk a directory. :returns: whether it holds anything that is sent."""
        context = self.context
        names, stats, enter = context.list_directory(fd, path, state, only)
        base = path + "/" if path else ""
        for name, below in enter:
            child = context.open_child(fd, base + name, name, below, depth)
            sent = False
            if child is not None:
                try:
                    sent = self.visit(child, base + name, below, only[1:], depth + 1)
                finally:
                    os.close(child)
            if below.ignored and not sent:
                place = names.index(name)
                del names[place]
                del stats[place * 5 : place * 5 + 5]
        if names:
            self._finish(path, names, stats)
        return bool(names)

    def _finish(self, path: str, names: List[str], stats: array.array[int]) -> None:
        raw, joined, packed = _raw(path), _raw("\0".join(names)), stats.tobytes()
        known = self.index.get(raw) if self.index is not None else None
        if known is not None and known.stats == packed and known.names == joined and known.newest < self.trusted_below:
            self._kept += 1
            self._keep(raw, known)
            return
        directory = _Directory(raw, joined, packed)
        old = _by_name(known) if known is not None else {}
        base = path + "/" if path else ""
        for place, name in enumerate(names):
            self._add(directory, place, base + name, _raw(name), old, tuple(stats[place * 5 : place * 5 + 5]))
        self._done_with(directory)

    def _add(
        self, directory: _Directory, place: int, path: str, name: bytes, old: Dict[bytes, Tuple[bytes, bytes]],
        numbers: Tuple[int, ...],
    ) -> None:  # fmt: skip
        mode, size, newest = numbers[0], numbers[1], max(numbers[2], numbers[3])
        letter = _TYPES[stat.S_IFMT(mode)]
        directory.newest = max(directory.newest, newest)
        hidden = letter == "f" and self.context.ignore.hides(path)
        if letter == "f":
            directory.files += 1
            directory.size += 0 if hidden else size
        known = old.get(name) if old and newest < self.trusted_below else None
        if known is not None and known[0] == directory.stats[place * _STAT_SIZE : (place + 1) * _STAT_SIZE]:
            directory.lines.append(known[1])
        elif letter == "f" and not hidden:
            directory.lines.append(b"")
            directory.waiting += 1
            where = path if _UTF8 else os.fsdecode(_raw(path))
            self._reads.append(_Read(directory, place, where, name, numbers))
            self._pending += size
            if len(self._reads) >= PORTION_FILES or self._pending >= PORTION_BYTES:
                self._give()
        else:
            value = EMPTY_DIGEST[7:].encode() if hidden else self.context.special_value(path, letter)
            pairs = xattrs(self.context.full(path))
            directory.lines.append(_line(letter, stat.S_IMODE(mode), 0, value, pairs, _escape(name)))

    def _keep(self, path: bytes, record: Record) -> None:
        self.lines[path] = record.lines
        self.files += record.files
        self.size += record.size
        if self.index is not None:
            self.records[path] = record

    def _give(self) -> None:
        portion, self._reads, self._pending = self._reads, [], 0
        self.files_read += len(portion)
        self.readers.give(portion)

    def finish(self) -> None:
        """Have the rest read, and wait for it."""
        self._give()
        self.readers.finish()

    def _was_read(self, item: _Read, result: Result) -> None:
        if isinstance(result, int):
            if result != CHANGED:
                self.context.fail(_text(os.fsencode(item.path)), OSError(result, os.strerror(result)))
            raise _changed(os.path.join(self.context.given_root, item.path), "changed while it was read")
        mode, size = item.numbers[0], item.numbers[1]
        item.directory.lines[item.place] = _line("f", stat.S_IMODE(mode), size, *result, _escape(item.name))
        self._done_with(item.directory)

    def _done_with(self, directory: _Directory) -> None:
        directory.waiting -= 1
        if not directory.waiting:
            self._keep(directory.path, directory.record())


def _by_name(record: Record) -> Dict[bytes, Tuple[bytes, bytes]]:
    """:returns: name to (five numbers, line) of a record of the stat index."""
    names = record.names.split(b"\0")
    lines = record.lines.split(b"\n")
    size = _STAT_SIZE
    return {
        name: (record.stats[place * size : (place + 1) * size], lines[place] + b"\n")
        for place, name in enumerate(names)
    }


class WithModes:
    """A context some of whose paths count with other modes than they have on the disk.

    :param modes: path to mode.
    """

    def __init__(self, context: Context, modes: Mapping[str, int]) -> None:
        self.context = context
        self.modes = modes

    def stat_entries(self, prefix: str = "") -> Iterator[Tuple[str, Entry]]:
        """As :meth:`Context.stat_entries`."""
        for path, entry in self.context.stat_entries(prefix):
            yield path, entry._replace(mode=self.modes[path]) if path in self.modes else entry

    def manifest(self) -> Manifest:
        """The context's manifest with these modes."""
        return self.context.manifest().with_modes(self.modes)

    def digest_of(self, path: str) -> Optional[str]:
        """As :meth:`Context.digest_of`."""
        return self.context.digest_of(path)

    def read(self, path: str) -> bytes:
        """As :meth:`Context.read`."""
        return self.context.read(path)

    def full(self, path: str) -> str:
        """As :meth:`Context.full`."""
        return self.context.full(path)

    def fail(self, path: str, error: OSError) -> NoReturn:
        """As :meth:`Context.fail`."""
        self.context.fail(path, error)

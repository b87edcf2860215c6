"""The stat index: what a context looked like when its files were last read, so that they need not be read again.

It holds one record a directory: the names, five numbers an entry as ``lstat`` gives them (mode, size, mtime_ns,
ctime_ns, inode), and the lines of the manifest (context.py). A directory whose names and numbers are the same byte for
byte keeps its lines; so a warm run costs a walk and two comparisons a directory.

The racy rule is git's (Documentation/technical/racy-git.txt), a bit stricter: git does not trust an entry that is not
older than the index file; here it must be older than the *start* of the scan that read it, less two seconds, the
coarsest clock of a file system in use (FAT). A change made later than that has a newer ctime, and shows.

The file: magic, SHA-256 of all that follows, the number below which times are trusted, the key of the context, the
records. It is written to a temporary file and renamed. A file that is broken, cut or of another context counts as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from typing import Dict, NamedTuple, Optional

from .errors import OfflineRebuildError

__all__ = ["GRANULARITY_NS", "Record", "StatIndex"]

GRANULARITY_NS = 2_000_000_000
_MAGIC = b"OFRSTAT1"
_HEAD = struct.Struct("<qII")  # trusted below (ns), length of the key, number of records
_RECORD = struct.Struct("<IIIIQQq")  # lengths of path, names, stats, lines; files; bytes; newest time (ns)


class Record(NamedTuple):
    """One directory.

    :ivar names: the names, joined by NUL.
    :ivar stats: five signed 64-bit numbers an entry, in the order of the names: mode, size, mtime_ns, ctime_ns, inode.
    :ivar lines: the directory's lines of the manifest.
    :ivar files: number of regular files.
    :ivar size: their bytes.
    :ivar newest: the latest mtime or ctime of an entry, in ns.
    """

    names: bytes
    stats: bytes
    lines: bytes
    files: int
    size: int
    newest: int


class StatIndex:
    """A stat index in a file.

    :param path: the index file; it is read at the first use.
    :param key: what it belongs to; an index with another key is ignored.
    :param readonly: never write (check mode).
    """

    def __init__(self, path: str, key: str = "", readonly: bool = False) -> None:
        self.path = path
        self.readonly = readonly
        self.trusted_below = 0
        self._key = os.fsencode(key)
        self._data = b""
        self._places: Optional[Dict[bytes, int]] = None

    @classmethod
    def for_context(cls, state_dir: str, root: str, ignore_file: str = "", readonly: bool = False) -> StatIndex:
        """The index of a context below the state directory; one for each pair of context and ignore file.

        :param state_dir: the project's state directory; ``index/`` is made in it when the index is saved.
        """
        name = hashlib.sha256(os.fsencode(os.path.realpath(root) + "\0" + ignore_file)).hexdigest()[:32]
        return cls(os.path.join(state_dir, "index", name + ".stat"), readonly=readonly)

    def bind(self, key: str) -> None:
        """Say what the index belongs to. :param key: the context's root and whatever else its lines depend on."""
        if os.fsencode(key) != self._key:
            self._key = os.fsencode(key)
            self._places = None

    def __len__(self) -> int:
        return len(self._load())

    def get(self, path: bytes) -> Optional[Record]:
        """:returns: the record of a directory (its path relative to the context, empty for the context), or None."""
        place = self._load().get(path)
        if place is None:
            return None
        data = self._data
        n_path, n_names, n_stats, n_lines, files, size, newest = _RECORD.unpack_from(data, place)
        names = place + _RECORD.size + n_path
        stats = names + n_names
        lines = stats + n_stats
        return Record(data[names:stats], data[stats:lines], data[lines : lines + n_lines], files, size, newest)

    def _load(self) -> Dict[bytes, int]:
        if self._places is None:
            self._places = self._parse()
        return self._places

    def _parse(self) -> Dict[bytes, int]:
        self._data, self.trusted_below = b"", 0
        try:
            with open(self.path, "rb") as stream:
                data = stream.read()
        except OSError:
            return {}
        body = len(_MAGIC) + 32
        if not data.startswith(_MAGIC) or hashlib.sha256(memoryview(data)[body:]).digest() != data[len(_MAGIC) : body]:
            return {}
        try:
            return self._parse_body(data, body)
        except (struct.error, ValueError):
            return {}

    def _parse_body(self, data: bytes, at: int) -> Dict[bytes, int]:
        trusted_below, key_length, count = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if data[at : at + key_length] != self._key:
            return {}
        at += key_length
        places = {}
        head, size = _RECORD.unpack_from, _RECORD.size
        for _number in range(count):
            n_path, n_names, n_stats, n_lines, _files, _bytes, _newest = head(data, at)
            places[data[at + size : at + size + n_path]] = at
            at += size + n_path + n_names + n_stats + n_lines
        if at != len(data):
            raise ValueError("the index is cut")
        self._data, self.trusted_below = data, trusted_below
        return places

    def save(self, records: Dict[bytes, Record], trusted_below: int) -> None:
        """Replace the index.

        :param records: directory to record.
        :param trusted_below: an entry with a time at or after this (ns) will be read again.
        :raises OfflineRebuildError: ``state-unwritable``.
        """
        if self.readonly:
            return
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            self._write(records, trusted_below)
        except OSError as exc:
            raise OfflineRebuildError(
                "state-unwritable",
                f"The stat index cannot be written: {exc.strerror}.",
                remedy="Make the state directory writable, or name another with state_dir.",
                file=self.path,
            ) from exc
        self._places = None

    def _write(self, records: Dict[bytes, Record], trusted_below: int) -> None:
        temporary = f"{self.path}.{os.urandom(6).hex()}.tmp"
        digest = hashlib.sha256()
        try:
            with open(temporary, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
                stream.write(_MAGIC + bytes(32))
                head = _HEAD.pack(trusted_below, len(self._key), len(records)) + self._key
                digest.update(head)
                stream.write(head)
                for path, rec in records.items():
                    sizes = (len(path), len(rec.names), len(rec.stats), len(rec.lines))
                    head = _RECORD.pack(*sizes, rec.files, rec.size, rec.newest) + path
                    for part in (head, rec.names, rec.stats, rec.lines):
                        digest.update(part)
                        stream.write(part)
                stream.seek(len(_MAGIC))
                stream.write(digest.digest())
            os.replace(temporary, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

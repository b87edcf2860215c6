"""What an image's layers hold, read without changing anything on the host.

Four sources, in this order:

* the list that was kept by diff_id when the layer was read before (:class:`EvidenceStore`);
* the layer's directory, read in place (places.py tells where it is). Whiteouts are character devices 0/0, an opaque
  directory carries ``trusted.overlay.opaque=y`` (kernel: Documentation/filesystems/overlayfs);
* containerd store: the layer blobs of the content store, which the manifest's descriptors name, read as tar streams
  (OCI image-spec, layer.md: ``.wh.`` whiteouts and ``.wh..wh..opq``); both digests are checked while reading;
* anything else: one ``docker save``, streamed; layers are known by the digest of their bytes.

A layer is read only when a decision needs it: of a path, the upper layers are asked first, and those below one that
has it are not asked at all.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import posixpath
import stat
from dataclasses import dataclass, field
from typing import IO, Any, Callable, Dict, FrozenSet, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from .cli import Docker
from .errors import OfflineRebuildError
from .places import overlay_directories

__all__ = [
    "EvidenceStore",
    "Layer",
    "LayerEntry",
    "LayerReader",
    "TooManyLinks",
    "keep_xattr",
    "read_tar_layer",
    "resolve_in_root",
]

_CHUNK = 1 << 20
#: continuity's fs.RootPath gives up after this many links (fs/path.go).
_MAX_LINKS = 255
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
#: A directory with one of these does not tell its contents in place (redirect_dir, metacopy, xattr whiteouts).
_NOT_IN_PLACE = ("redirect", "metacopy", "whiteout")


class _NotInPlace(Exception):
    """The layer's directory cannot be read exactly; another source must be used."""


class TooManyLinks(Exception):
    """A path's symbolic links do not end (more than 255)."""


def keep_xattr(name: str) -> bool:
    """Whether an extended attribute is part of an image: only ``security.capability`` is.

    The writers of layer archives (containerd archive/tar.go, moby pkg/archive) put no other one into them. ``user.*``
    stays in the directory of a layer that overlay2 built in place, and is in no diff_id and in no ``docker save``:
    tried on 20.10.24 (there in place, gone after save and load) and on 26.1 with the containerd store (never there).
    """
    return name == "security.capability"


@dataclass(frozen=True)
class LayerEntry:
    """One path of a layer or of a file system.

    :param type: ``file``, ``dir``, ``symlink``, ``fifo``, ``char``, ``block`` or ``socket`` (``unknown`` for a hard
        link whose target is not in the layer: it equals nothing).
    :param mode: permission bits with setuid, setgid and sticky (0 to 0o7777).
    :param size: bytes; 0 for what is no file.
    :param mtime: nanoseconds since the epoch.
    :param digest: ``sha256:...`` of a file's content if it is known; :meth:`content_digest` reads it when it is not.
    :param link: target of a symbolic link.
    :param xattrs: ``(name, hex value)`` in order of name.
    :param source: where the content can be read on this host, ``""`` if nowhere.
    """

    type: str
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    digest: Optional[str] = None
    link: str = ""
    xattrs: Tuple[Tuple[str, str], ...] = ()
    rdev: int = 0
    source: str = field(default="", compare=False, repr=False)

    def content_digest(self) -> Optional[str]:
        """:returns: the digest of a file's content, read once if it has to be; ``None`` if it cannot be told."""
        if self.type != "file":
            return None
        if self.digest is None and self.source:
            object.__setattr__(self, "digest", _hash_file(self.source))
        return self.digest


@dataclass(frozen=True)
class Layer:
    """One layer: its entries by path without leading slash (``""`` is the root), what it removes and what it hides."""

    diff_id: str
    entries: Mapping[str, LayerEntry]
    whiteouts: FrozenSet[str] = frozenset()
    opaques: FrozenSet[str] = frozenset()


def _hash_file(path: str) -> Optional[str]:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(_CHUNK), b""):
                digest.update(block)
    except OSError:
        return None
    return "sha256:" + digest.hexdigest()


def resolve_in_root(path: str, lookup: Callable[[str], Optional[LayerEntry]]) -> str:
    """Resolve every symbolic link of ``path``, the last component's too, never leaving the root.

    What does not exist is left as it is. This is the rule of continuity's ``fs.RootPath``, which BuildKit applies to
    the source and to the destination of a copy.

    :param path: any path; it is taken from the root.
    :param lookup: the entry at a path without leading slash, links not followed; ``None`` if there is none.
    :returns: the path without leading slash.
    :raises TooManyLinks: after 255 links.
    """
    links = 0
    done: List[str] = []
    todo = path.split("/")[::-1]
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            del done[-1:]
            continue
        here = "/".join(done + [part])
        entry = lookup(here)
        if entry is None or entry.type != "symlink":
            done.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise TooManyLinks(path)
        if entry.link.startswith("/"):
            done = []
        todo.extend(reversed(entry.link.split("/")))
    return "/".join(done)


# ---------------------------------------------------------------------------------------------------------------------
# Evidence that is kept
# ---------------------------------------------------------------------------------------------------------------------


class EvidenceStore:
    """Layers' lists, kept by diff_id: ``<directory>/<hex>.json.gz``.

    The first line is the sha256 of the rest; a file that does not agree with it, or that cannot be read, counts as
    absent. :meth:`save` writes atomically.

    :param directory: made on the first write.
    """

    SCHEMA = 1

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def path(self, diff_id: str) -> str:
        """:returns: the file of a layer."""
        name = diff_id.rpartition(":")[2]
        if not name.isalnum():
            raise OfflineRebuildError("layer-invalid", f"{diff_id!r} is no layer digest")
        return os.path.join(self.directory, name + ".json.gz")

    def load(self, diff_id: str) -> Optional[Layer]:
        """:returns: the layer as it was kept, or ``None``."""
        import gzip
        import zlib

        try:
            with gzip.open(self.path(diff_id), "rb") as stream:
                checksum = stream.readline().strip().decode("ascii", "replace")
                body = stream.read()
            if hashlib.sha256(body).hexdigest() != checksum:
                return None
            return self._decode(json.loads(body), diff_id)
        except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, IndexError, AttributeError):
            return None

    def _decode(self, data: Mapping[str, Any], diff_id: str) -> Optional[Layer]:
        if data["schema"] != self.SCHEMA or data["diff_id"] != diff_id:
            return None
        entries = {
            path: LayerEntry(
                str(raw[0]),
                int(raw[1]),
                int(raw[2]),
                int(raw[3]),
                int(raw[4]),
                int(raw[5]),
                raw[6],
                str(raw[7]),
                tuple((str(name), str(value)) for name, value in raw[8]),
                int(raw[9]),
            )
            for path, raw in data["entries"].items()
        }
        return Layer(diff_id, entries, frozenset(data["whiteouts"]), frozenset(data["opaques"]))

    def save(self, layer: Layer) -> None:
        """Keep a layer.

        :raises OfflineRebuildError: ``state-write`` when the directory cannot be written.
        """
        import gzip
        import tempfile

        body = json.dumps(
            {
                "schema": self.SCHEMA,
                "diff_id": layer.diff_id,
                "entries": {
                    path: [e.type, e.mode, e.uid, e.gid, e.size, e.mtime, e.digest, e.link, e.xattrs, e.rdev]
                    for path, e in layer.entries.items()
                },
                "whiteouts": sorted(layer.whiteouts),
                "opaques": sorted(layer.opaques),
            },
            separators=(",", ":"),
        ).encode("ascii")
        target = self.path(layer.diff_id)
        temporary = ""
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.directory, prefix=".tmp-")
            with os.fdopen(handle, "wb") as raw:
                with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0) as stream:
                    stream.write(hashlib.sha256(body).hexdigest().encode("ascii") + b"\n" + body)
                raw.flush()
                os.fsync(raw.fileno())
            os.replace(temporary, target)
        except OSError as error:
            if temporary and os.path.exists(temporary):
                os.unlink(temporary)
            raise OfflineRebuildError(
                "state-write",
                f"the evidence cannot be written: {error.strerror or error}",
                "see the free space and the rights of the state directory",
                file=target,
            ) from None


# ---------------------------------------------------------------------------------------------------------------------
# Reading a layer's directory in place (overlay2)
# ---------------------------------------------------------------------------------------------------------------------

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFSOCK: "socket",
}


def _xattrs(path: str) -> Tuple[Tuple[Tuple[str, str], ...], bool]:
    """:returns: the file's own attributes, and whether overlayfs marks it opaque."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP):
            return (), False
        raise
    if not names:
        return (), False
    opaque = False
    kept: List[Tuple[str, str]] = []
    for name in sorted(names):
        if name in _OPAQUE:
            value = os.getxattr(path, name, follow_symlinks=False)
            if value != b"y":
                raise _NotInPlace(path)
            opaque = True
        elif ".overlay." in name and name.rsplit(".", 1)[-1] in _NOT_IN_PLACE:
            raise _NotInPlace(path)
        elif keep_xattr(name):
            kept.append((name, os.getxattr(path, name, follow_symlinks=False).hex()))
    return tuple(kept), opaque


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _entry_of(path: str, info: os.stat_result) -> Tuple[LayerEntry, bool]:
    kind = _TYPES.get(stat.S_IFMT(info.st_mode), "unknown")
    xattrs, opaque = _xattrs(path)
    entry = LayerEntry(
        kind,
        stat.S_IMODE(info.st_mode),
        info.st_uid,
        info.st_gid,
        info.st_size if kind == "file" else 0,
        info.st_mtime_ns,
        None,
        os.readlink(path) if kind == "symlink" else "",
        xattrs,
        info.st_rdev if kind in ("char", "block") else 0,
        path if kind == "file" else "",
    )
    return entry, opaque


def _read_directory(root: str, diff_id: str, prefix: str = "") -> Layer:
    """The layer whose files lie under ``root``, from ``prefix`` on."""
    entries: Dict[str, LayerEntry] = {}
    whiteouts: Set[str] = set()
    opaques: Set[str] = set()
    stack = [prefix]
    top = os.path.join(root, prefix) if prefix else root
    info = os.lstat(top)
    if _is_whiteout(info):
        return Layer(diff_id, {}, frozenset([prefix]))
    entries[prefix], opaque = _entry_of(top, info)
    if opaque:
        opaques.add(prefix)
    if entries[prefix].type != "dir":
        return Layer(diff_id, entries)
    while stack:
        relative = stack.pop()
        with os.scandir(os.path.join(root, relative) if relative else root) as found:
            for item in found:
                path = relative + "/" + item.name if relative else item.name
                info = item.stat(follow_symlinks=False)
                if _is_whiteout(info):
                    whiteouts.add(path)
                    continue
                entry, opaque = _entry_of(item.path, info)
                entries[path] = entry
                if entry.type == "dir":
                    stack.append(path)
                    if opaque:
                        opaques.add(path)
    return Layer(diff_id, entries, frozenset(whiteouts), frozenset(opaques))


# ---------------------------------------------------------------------------------------------------------------------
# Reading a layer's tar stream
# ---------------------------------------------------------------------------------------------------------------------


class _Hashing(io.RawIOBase):
    """A stream that digests what is read from it; ``head`` is put before it."""

    def __init__(self, stream: Any, head: bytes = b"") -> None:
        self._stream = stream
        self._head = head
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._head:
            take = len(self._head) if size is None or size < 0 else size
            data, self._head = self._head[:take], self._head[take:]
            if size is None or size < 0:
                data += self._stream.read()
        else:
            data = self._stream.read() if size is None or size < 0 else self._stream.read(size)
        self.sha256.update(data)
        return bytes(data)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def drain(self) -> None:
        """Read to the end."""
        while self.read(_CHUNK):
            pass

    @property
    def digest(self) -> str:
        """:returns: the digest of what has been read."""
        return "sha256:" + self.sha256.hexdigest()


def _decompressed(stream: Any, head: bytes) -> Optional[IO[bytes]]:
    """:returns: the plain stream, by the first bytes; ``None`` where Python cannot read the compression."""
    if head.startswith(b"\x1f\x8b"):
        import gzip

        return gzip.GzipFile(fileobj=stream, mode="rb")  # type: ignore[return-value]
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            from compression import zstd  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            return None
        return zstd.ZstdFile(stream, mode="rb")  # type: ignore[no-any-return,unused-ignore]
    return stream  # type: ignore[no-any-return]


def _invalid(what: str) -> OfflineRebuildError:
    return OfflineRebuildError("layer-invalid", what, "load the image again from its archive")


def _clean_name(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _invalid(f"a layer names a path outside of the image: {name!r}")
    return "/".join(parts)


def _tar_xattrs(headers: Mapping[str, str]) -> Tuple[Tuple[str, str], ...]:
    prefix = "SCHILY.xattr."
    return tuple(
        sorted(
            (key[len(prefix) :], value.encode("utf-8", "surrogateescape").hex())
            for key, value in headers.items()
            if key.startswith(prefix) and keep_xattr(key[len(prefix) :])
        )
    )


def _tar_mtime(member: Any) -> int:
    text = member.pax_headers.get("mtime")
    if isinstance(text, str):
        whole, _, part = text.partition(".")
        try:
            sign = -1 if whole.startswith("-") else 1
            return int(whole or 0) * 10**9 + sign * int((part + "000000000")[:9])
        except ValueError:
            pass
    return int(member.mtime) * 10**9


def _tar_entry(tar: Any, member: Any) -> LayerEntry:
    kind, digest, size = "unknown", None, 0
    if member.isreg():
        kind, size = "file", member.size
        sha = hashlib.sha256()
        stream = tar.extractfile(member)
        for block in iter(lambda: stream.read(_CHUNK), b""):
            sha.update(block)
        digest = "sha256:" + sha.hexdigest()
    else:
        for test, name in (
            ("isdir", "dir"),
            ("issym", "symlink"),
            ("isfifo", "fifo"),
            ("ischr", "char"),
            ("isblk", "block"),
        ):
            if getattr(member, test)():
                kind = name
    return LayerEntry(
        kind,
        member.mode & 0o7777,
        member.uid,
        member.gid,
        size,
        _tar_mtime(member),
        digest,
        member.linkname if kind == "symlink" else "",
        _tar_xattrs(member.pax_headers),
        os.makedev(member.devmajor, member.devminor) if kind in ("char", "block") else 0,
    )


def _place(entries: Dict[str, LayerEntry], path: str, entry: LayerEntry) -> None:
    """Put an entry; what lay below a path that is no directory any more goes."""
    old = entries.get(path)
    if entry.type != "dir" and old is not None and old.type == "dir":
        for below in [p for p in entries if p.startswith(path + "/")]:
            del entries[below]
    entries[path] = entry


def read_tar_layer(stream: Any, want: Optional[Callable[[str], bool]] = None) -> Tuple[Layer, Dict[str, bytes]]:
    """Read one uncompressed layer; the whole stream is read and digested.

    :param stream: an object with ``read(size)``.
    :param want: tells of which files the content is to be kept too (small ones).
    :returns: the layer, its ``diff_id`` being the digest of the bytes read, and the contents that were wanted.
    :raises OfflineRebuildError: ``layer-invalid`` for what is no tar or leads out of the image.
    """
    import tarfile

    plain = _Hashing(stream)
    entries: Dict[str, LayerEntry] = {}
    whiteouts: Set[str] = set()
    opaques: Set[str] = set()
    contents: Dict[str, bytes] = {}
    try:
        # The context manager would seek; a stream is read once, in order.
        with tarfile.open(fileobj=plain, mode="r|", encoding="utf-8", errors="surrogateescape", bufsize=1 << 18) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                path = _clean_name(member.name)
                folder, _, name = path.rpartition("/")
                if name == ".wh..wh..opq":
                    opaques.add(folder)
                elif name.startswith(".wh..wh."):
                    continue
                elif name.startswith(".wh."):
                    whiteouts.add((folder + "/" if folder else "") + name[4:])
                elif member.islnk():
                    target = entries.get(_clean_name(member.linkname))
                    _place(entries, path, target or LayerEntry("unknown", 0))
                    if _clean_name(member.linkname) in contents:
                        contents[path] = contents[_clean_name(member.linkname)]
                elif want is not None and member.isreg() and want(path):
                    contents[path] = tar.extractfile(member).read()  # type: ignore[union-attr]
                    _place(entries, path, _with_content(member, contents[path]))
                else:
                    _place(entries, path, _tar_entry(tar, member))
    except tarfile.TarError as error:
        raise _invalid(f"a layer is no tar archive: {error}") from None
    plain.drain()
    layer = Layer(plain.digest, entries, frozenset(whiteouts), frozenset(opaques))
    return layer, contents


def _with_content(member: Any, content: bytes) -> LayerEntry:
    return LayerEntry(
        "file",
        member.mode & 0o7777,
        member.uid,
        member.gid,
        len(content),
        _tar_mtime(member),
        "sha256:" + hashlib.sha256(content).hexdigest(),
        "",
        _tar_xattrs(member.pax_headers),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The reader
# ---------------------------------------------------------------------------------------------------------------------


class LayerReader:
    """Reads the layers of one image.

    :param docker: the CLI, for the last resort.
    :param image_inspect: ``docker image inspect`` of the image.
    :param diff_ids: the image's layers, bottom first.
    :param layer_descriptors: the manifest's layer descriptors, in the same order (containerd store).
    :param content_dir: ``<containerd root>/io.containerd.content.v1.content``.
    :param evidence: where lists are kept.
    :param may_write: whether they may be written there (never in check mode: what a check reads, the next one reads
        again).
    :param places: asked once, when a layer's own directory is not known: further directories by index of the layer.
    """

    def __init__(
        self,
        docker: Docker,
        image_inspect: Mapping[str, Any],
        diff_ids: Sequence[str],
        layer_descriptors: Optional[Sequence[Mapping[str, Any]]] = None,
        content_dir: Optional[str] = None,
        evidence: Optional[EvidenceStore] = None,
        may_write: bool = False,
        places: Optional[Callable[[Sequence[str]], Mapping[int, str]]] = None,
    ) -> None:
        self._docker = docker
        self._inspect = image_inspect
        self.diff_ids = tuple(diff_ids)
        self._descriptors = layer_descriptors
        self._content_dir = content_dir
        self._evidence = evidence
        self._may_write = may_write
        self._directories = dict(enumerate(overlay_directories(image_inspect, len(self.diff_ids)) or ()))
        self._places = places
        self._layers: Dict[int, Layer] = {}
        self._implied: Dict[int, FrozenSet[str]] = {}
        self._stacks: Dict[Tuple[str, int], _Lazily] = {}
        self._looked: Dict[Tuple[str, int], Optional[LayerEntry]] = {}
        self._saved: Dict[str, Layer] = {}
        self._contents: Dict[str, bytes] = {}
        self._kept: Set[str] = set()

    @property
    def in_place(self) -> bool:
        """:returns: whether layers are read from the engine's own directories."""
        return all(self._directory(index) for index in range(len(self.diff_ids)))

    def _directory(self, index: int) -> Optional[str]:
        if index not in self._directories and self._places is not None:
            self._directories.update(self._places(self.diff_ids))
            self._places = None
        return self._directories.get(index)

    # -- layers --------------------------------------------------------------------------------------------------

    def layer(self, index: int) -> Layer:
        """One whole layer. In place, contents are not read: see :meth:`LayerEntry.content_digest`.

        :raises OfflineRebuildError: ``layer-invalid`` (what is stored is not what the digests say), ``layer-missing``.
        """
        if index not in self._layers:
            self._layers[index] = self._read(index)
        return self._layers[index]

    def remember(self, index: int) -> bool:
        """Keep a layer's list, so that no later plan reads it again; nothing in check mode.

        :returns: whether it was not kept before.
        """
        if self._evidence is None:
            return False
        was_there = os.path.exists(self._evidence.path(self.diff_ids[index]))
        if self._may_write:
            self.record(index)  # one that cannot be read is written anew
        return not was_there

    def record(self, index: int) -> Layer:
        """The layer with every content digest, kept in the evidence store if that is allowed."""
        layer = self.layer(index)
        missing = any(e.type == "file" and e.digest is None for e in layer.entries.values())
        for entry in layer.entries.values():
            entry.content_digest()
        if missing or layer.diff_id not in self._kept:
            self._keep(layer)
        return layer

    def _keep(self, layer: Layer) -> None:
        if self._evidence is not None and self._may_write:
            self._evidence.save(layer)
            self._kept.add(layer.diff_id)

    def _read(self, index: int) -> Layer:
        diff_id = self.diff_ids[index]
        kept = self._evidence.load(diff_id) if self._evidence is not None else None
        if kept is not None:
            self._kept.add(diff_id)
            return self._with_sources(kept, index)
        directory = self._directory(index)
        if directory is not None:
            try:
                return _read_directory(directory, diff_id)
            except (_NotInPlace, OSError):
                self._leave_directories()
        layer = self._read_blob(index)
        if layer is None:
            layer = self._read_saved(diff_id)
        self._keep(layer)
        return layer

    def _leave_directories(self) -> None:
        """In place reading turned out not to be exact: forget what was learnt by it."""
        self._directories, self._places = {}, None
        self._layers.clear()
        self._stacks.clear()
        self._looked.clear()

    def _with_sources(self, layer: Layer, index: int) -> Layer:
        """Kept lists may lack digests: give the entries the place where the content is."""
        if all(e.type != "file" or e.digest is not None for e in layer.entries.values()):
            return layer
        root = self._directory(index)
        if root is None:
            return layer
        for path, entry in layer.entries.items():
            if entry.type == "file" and not entry.source:
                object.__setattr__(entry, "source", os.path.join(root, path))
        return layer

    def _blob(self, index: int) -> Optional[Tuple[str, str]]:
        """:returns: path and digest of the layer's blob, if it is there."""
        if self._content_dir is None or not self._descriptors or len(self._descriptors) != len(self.diff_ids):
            return None
        digest = str(self._descriptors[index].get("digest") or "")
        algorithm, _, name = digest.partition(":")
        if algorithm != "sha256" or not name.isalnum():
            return None
        path = os.path.join(self._content_dir, "blobs", "sha256", name)
        return (path, digest) if os.path.isfile(path) else None

    def _read_blob(self, index: int, want: Optional[Callable[[str], bool]] = None) -> Optional[Layer]:
        blob = self._blob(index)
        if blob is None:
            return None
        path, digest = blob
        try:
            with open(path, "rb") as raw:
                head = raw.read(4)
                outer = _Hashing(raw, head)
                plain = _decompressed(outer, head)
                if plain is None:
                    return None
                layer, self._contents = read_tar_layer(plain, want)
                outer.drain()
        except (OSError, EOFError) as error:
            raise _invalid(f"the layer blob {digest} cannot be read: {error}") from None
        if outer.digest != digest or layer.diff_id != self.diff_ids[index]:
            raise _invalid(f"the layer blob {digest} is damaged: its content has another digest")
        return layer

    def _read_saved(self, diff_id: str) -> Layer:
        if not self._saved:
            self._saved = {layer.diff_id: layer for layer, _ in self._stream_saved(None)}
        if diff_id not in self._saved:
            raise OfflineRebuildError(
                "layer-missing",
                f"the engine does not give out the layer {diff_id} of {self._name()}",
                "load the image again from its archive",
            )
        return self._saved[diff_id]

    def _name(self) -> str:
        tags = self._inspect.get("RepoTags") or []
        return str(tags[0] if tags else self._inspect.get("Id", ""))

    def _stream_saved(self, want: Optional[Callable[[str], bool]]) -> Iterator[Tuple[Layer, Dict[str, bytes]]]:
        """Every layer out of one ``docker save`` of the image (docker's and OCI's archive forms alike)."""
        import tarfile

        process = self._docker.popen("save", str(self._inspect.get("Id") or self._name()))
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|", bufsize=1 << 18) as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]
                    stream = tar.extractfile(member) if member.isreg() else None
                    if stream is None or not (member.name.endswith("/layer.tar") or "blobs/sha256/" in member.name):
                        continue
                    head = stream.read(4)
                    if head[:1] in (b"{", b"[", b""):
                        continue
                    plain = _decompressed(_Hashing(stream, head), head)
                    if plain is None:
                        raise OfflineRebuildError(
                            "layer-compression",
                            f"a layer of {self._name()} is compressed with zstd, and this Python cannot read it",
                            "save the image with gzip layers, or use Python 3.14 on the host",
                        )
                    yield read_tar_layer(plain, want)
        except tarfile.TarError as error:
            raise _invalid(f"`docker save {self._name()}` gave no whole archive: {error}") from None
        finally:
            process.stdout.close()
            message = process.stderr.read().decode("utf-8", "replace").strip()
            process.stderr.close()
            code = process.wait()
        if code != 0:
            raise OfflineRebuildError("docker-failed", f"`docker save {self._name()}` ended with {code}: {message}")

    # -- single paths ---------------------------------------------------------------------------------------------

    def lookup(self, path: str, upto: int) -> Optional[LayerEntry]:
        """What is at ``path`` (links not followed) after the layers ``0..upto``; ``None`` if nothing is.

        :param path: without leading slash; ``""`` is the root.
        :param upto: -1 is the state before the first layer.
        """
        key = (path, upto)
        if key not in self._looked:
            self._looked[key] = self._lookup(path, upto)
        return self._looked[key]

    def _lookup(self, path: str, upto: int) -> Optional[LayerEntry]:
        if path == "":
            return self._root(upto)
        folder = path.rpartition("/")[0]
        implied = False
        for index in self._stack(folder, upto):
            state, entry = self._peek(index, path)
            if state == "gone":
                break
            if state == "here":
                return entry
            implied = implied or state == "implied"
        return LayerEntry("dir", 0o755) if implied else None

    def _root(self, upto: int) -> LayerEntry:
        for index in range(upto, -1, -1):
            state, entry = self._peek(index, "")
            if state == "here" and entry is not None:
                return entry
        return LayerEntry("dir", 0o755)

    def _stack(self, folder: str, upto: int) -> Iterable[int]:
        """The layers, upper first, whose directory ``folder`` shows after ``upto``."""
        key = (folder, upto)
        if key not in self._stacks:
            self._stacks[key] = _Lazily(self._find_stack(folder, upto))
        return self._stacks[key]

    def _find_stack(self, folder: str, upto: int) -> Iterator[int]:
        above: Iterable[int] = range(upto, -1, -1) if folder == "" else self._stack(folder.rpartition("/")[0], upto)
        for index in above:
            state, entry = self._peek(index, folder)
            if state == "gone" or (state == "here" and entry is not None and entry.type != "dir"):
                return
            if state == "absent":
                continue
            yield index
            if self._is_opaque(index, folder):
                return

    def _peek(self, index: int, path: str) -> Tuple[str, Optional[LayerEntry]]:
        """One layer's word on a path: ``here``, ``gone`` (whiteout), ``implied`` (a parent not listed), ``absent``."""
        directory = None if index in self._layers else self._directory(index)
        if directory is not None:
            try:
                return self._peek_directory(directory, path)
            except _NotInPlace:
                self._leave_directories()
        layer = self.layer(index)
        entry = layer.entries.get(path)
        if entry is not None:
            return "here", entry
        if path in layer.whiteouts:
            return "gone", None
        if not path or path in self._implied_folders(index):
            return "implied", None
        return "absent", None

    @staticmethod
    def _peek_directory(root: str, path: str) -> Tuple[str, Optional[LayerEntry]]:
        full = os.path.join(root, path) if path else root
        try:
            info = os.lstat(full)
        except (FileNotFoundError, NotADirectoryError):
            return "absent", None
        if _is_whiteout(info):
            return "gone", None
        return "here", _entry_of(full, info)[0]

    def _is_opaque(self, index: int, path: str) -> bool:
        directory = None if index in self._layers else self._directory(index)
        if directory is not None:
            return _xattrs(os.path.join(directory, path) if path else directory)[1]
        return path in self.layer(index).opaques

    def _implied_folders(self, index: int) -> FrozenSet[str]:
        if index not in self._implied:
            layer = self.layer(index)
            found: Set[str] = set()
            for path in list(layer.entries) + list(layer.whiteouts):
                folder = path.rpartition("/")[0]
                while folder and folder not in layer.entries and folder not in found:
                    found.add(folder)
                    folder = folder.rpartition("/")[0]
            found.update(p for p in layer.opaques if p not in layer.entries)
            self._implied[index] = frozenset(found)
        return self._implied[index]

    def resolve(self, path: str, upto: int) -> str:
        """The path with every symbolic link followed inside the image, as BuildKit does for COPY's destination.

        :returns: without leading slash.
        :raises OfflineRebuildError: ``image-links`` when the links do not end.
        """
        try:
            return resolve_in_root(path, lambda p: self.lookup(p, upto))
        except TooManyLinks:
            raise OfflineRebuildError(
                "image-links", f"the symbolic links of {path} in {self._name()} do not end"
            ) from None

    def content(self, path: str, upto: int, limit: int = 4 << 20) -> Optional[bytes]:
        """The content of a file of the image, links followed.

        :param limit: a bigger file is not read.
        :returns: ``None`` if there is no such file, or it is bigger.
        """
        real = self.resolve(path, upto)
        entry = self.lookup(real, upto)
        if entry is None or entry.type != "file" or entry.size > limit:
            return None
        if entry.source:
            try:
                with open(entry.source, "rb") as stream:
                    return stream.read(limit + 1)
            except OSError:
                return None
        digest = entry.content_digest()
        for index in self._stack(real.rpartition("/")[0], upto):
            if real in self.layer(index).entries:
                return self._content(index, real, digest)
        return None

    def _content(self, index: int, path: str, digest: Optional[str]) -> Optional[bytes]:
        def want(name: str) -> bool:
            return name == path

        content: Optional[bytes] = None
        if self._blob(index) is not None and self._read_blob(index, want) is not None:
            content = self._contents.get(path)
        else:
            for layer, contents in self._stream_saved(want):
                if layer.diff_id == self.diff_ids[index]:
                    content = contents.get(path)
        if content is not None and "sha256:" + hashlib.sha256(content).hexdigest() != digest:
            return None
        return content

    # -- whole views ----------------------------------------------------------------------------------------------

    def listing(self, prefix: str, upto: int) -> Dict[str, LayerEntry]:
        """Everything under ``prefix`` (itself included) after the layers ``0..upto``.

        :returns: entries by path, in order of path; empty if there is nothing.
        """
        top = self.lookup(prefix, upto)
        if top is None:
            return {}
        merged: Dict[str, LayerEntry] = {}
        if top.type == "dir":
            for index in reversed(tuple(self._stack(prefix, upto))):
                _lay(merged, self._part(index, prefix))
        merged[prefix] = top
        return dict(sorted(merged.items()))

    def _part(self, index: int, prefix: str) -> Layer:
        directory = None if index in self._layers else self._directory(index)
        if directory is not None:
            try:
                return _read_directory(directory, self.diff_ids[index], prefix)
            except _NotInPlace:
                self._leave_directories()
        layer = self.layer(index)
        if not prefix:
            return layer
        start = prefix + "/"
        return Layer(
            layer.diff_id,
            {p: e for p, e in layer.entries.items() if p == prefix or p.startswith(start)},
            frozenset(p for p in layer.whiteouts if p.startswith(start)),
            frozenset(p for p in layer.opaques if p == prefix or p.startswith(start)),
        )


class _Lazily:
    """The values of an iterator, asked for once and only as far as somebody looks; its error is raised each time."""

    def __init__(self, values: Iterator[int]) -> None:
        self._values = values
        self._known: List[int] = []
        self._error: Optional[Exception] = None
        self._done = False

    def __iter__(self) -> Iterator[int]:
        place = 0
        while True:
            if place == len(self._known):
                if self._error is not None:
                    raise self._error
                if self._done:
                    return
                try:
                    self._known.append(next(self._values))
                except StopIteration:
                    self._done = True
                    return
                except Exception as error:
                    self._error = error
                    raise
            yield self._known[place]
            place += 1


def _lay(merged: Dict[str, LayerEntry], layer: Layer) -> None:
    """Lay one layer over what is there."""
    gone = set(layer.whiteouts)
    hidden = set(layer.opaques)
    hidden.update(p for p, e in layer.entries.items() if e.type != "dir" and p in merged and merged[p].type == "dir")
    if gone or hidden:
        for path in list(merged):
            if path in gone or any(up in gone or up in hidden for up in _folders(path)):
                del merged[path]
    for path, entry in layer.entries.items():
        merged[path] = entry
        for folder in _folders(path):
            if folder and folder not in merged:
                merged[folder] = LayerEntry("dir", 0o755)


def _folders(path: str) -> Iterator[str]:
    """The parents of a path, nearest first, the root (``""``) last."""
    while path:
        path = posixpath.dirname(path)
        yield path

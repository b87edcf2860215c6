"""Reading a bundle, a folder or one tar file, and proving that it is what was signed, before anything of it is used.

The index is read first, its signature checked, and only then is the rest looked at. A tar is read by its 512-byte
headers (POSIX ustar) with no library: a file, a folder or GNU's long name; everything else, links too, is refused, and
nothing is ever unpacked. Each file is read up to the size that the index says and no further.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from module_utils.offline_rebuild.errors import OfflineRebuildError

from .bundle_index import INDEX, MOST_DOCUMENT, MOST_INDEX, SIGNATURE, Index, Part, invalid, read_index, safe_path

__all__ = ["NAMESPACE", "Bundle", "open_bundle", "sign"]

NAMESPACE = "offline-rebuild"
CHUNK = 1 << 20
_MOST_SIGNATURE = 64 << 10
_MOST_NAME = 4096


@dataclass(frozen=True)
class _Where:
    """Where a file lies: from ``offset``, ``size`` bytes, of the file ``path``."""

    path: Path
    offset: int
    size: int


@dataclass
class Bundle:
    """A bundle that is open for reading.

    :param signer: whose signature it has; empty where none was checked.
    """

    path: Path
    index: Index
    index_sha256: str
    signer: str = ""
    files: dict[str, _Where] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts: dict[str, Part] = {part.path: part for part in self.index.parts}

    def chunks(self, path: str, most: int) -> Iterator[bytes]:
        """A file's content, up to ``most`` bytes.

        :raises OfflineRebuildError: ``bundle-invalid`` if it is shorter than it was.
        """
        where = self.files[path]
        left = min(where.size, most)
        with where.path.open("rb") as stream:
            stream.seek(where.offset)
            while left:
                data = stream.read(min(CHUNK, left))
                if not data:
                    raise invalid(f"{path} was cut short", str(self.path))
                left -= len(data)
                yield data

    def read(self, path: str, most: int = MOST_DOCUMENT) -> bytes:
        """:returns: a small file's content."""
        return b"".join(self.chunks(path, most))

    def size(self, path: str) -> int:
        """:returns: a file's size in bytes."""
        return self.files[path].size

    def prove(self, path: str, target: IO[bytes] | None = None) -> None:
        """Compare a part with the index, and copy it where a target is given.

        :raises OfflineRebuildError: ``bundle-invalid``.
        """
        part = self.parts[path]
        digest = hashlib.sha256()
        for data in self.chunks(path, part.size):
            digest.update(data)
            if target is not None:
                target.write(data)
        if digest.hexdigest() != part.sha256:
            raise invalid(f"{path} has another content than the index says", str(self.path))


# -- opening ----------------------------------------------------------------------------------------------------------


def open_bundle(path: str | Path, allowed_signers: str = "", unsigned: bool = False) -> Bundle:
    """Open a bundle: signature and index are checked, and that its files are those of the index, with their sizes.

    :param allowed_signers: a file as in ssh-keygen(1), ALLOWED SIGNERS.
    :param unsigned: take one that has no signature, or whose signature cannot be checked for want of that file.
    :raises OfflineRebuildError: ``bundle-missing``, ``bundle-invalid``, ``bundle-unsigned``, ``bundle-signature``.
    """
    path = Path(path)
    try:
        files = _opened(path)
        raw, signature = (
            _small(files, name, most) for name, most in ((INDEX, MOST_INDEX), (SIGNATURE, _MOST_SIGNATURE))
        )
        if not raw:
            raise invalid(f"it has no {INDEX} at its beginning, so it is no bundle, or was cut short", str(path))
        signer = _signer(path, raw, signature, allowed_signers, unsigned)
        index = read_index(raw, str(path / INDEX if path.is_dir() else path))
        bundle = Bundle(path, index, hashlib.sha256(raw).hexdigest(), signer)
        _take_files(bundle)
    except FileNotFoundError as error:
        raise OfflineRebuildError(
            "bundle-missing", "there is no such bundle", "mend the path in offline_rebuild_bundle", str(error.filename)
        ) from None
    except OSError as error:
        raise invalid(f"it cannot be read: {error.strerror}", str(path)) from None
    return bundle


def _take_files(bundle: Bundle) -> None:
    """The files there are those that the index names, with the same sizes."""
    path = bundle.path
    for name, where in _folder_members(path) if path.is_dir() else _tar_members(path):
        part = bundle.parts.get(name)
        if part is not None:
            bundle.files[name] = where
            if where.size != part.size:
                raise invalid(f"{name} has {where.size} bytes and the index says {part.size}", str(path))
        elif name not in (INDEX, SIGNATURE):
            raise invalid(f"it holds {name}, which the index does not name", str(path))
    absent = sorted(set(bundle.parts) - set(bundle.files))
    if absent:
        raise invalid(f"{len(absent)} file(s) that the index names are not there, as {absent[0]}", str(path))


def _opened(path: Path) -> dict[str, _Where]:
    """Index and signature alone."""
    found: dict[str, _Where] = {}
    if path.is_dir():
        for name in (INDEX, SIGNATURE):
            file = path / name
            if os.path.lexists(file):
                found[name] = _Where(file, 0, _plain(path, file).st_size)
        return found
    for name, where in _tar_members(path):
        if name not in (INDEX, SIGNATURE):
            break
        found[name] = where
    return found


def _small(files: dict[str, _Where], name: str, most: int) -> bytes:
    where = files.get(name)
    if where is None:
        return b""
    if where.size > most:
        raise invalid(f"{name} has {where.size} bytes", str(where.path))
    with where.path.open("rb") as stream:
        stream.seek(where.offset)
        return stream.read(where.size)


def _plain(root: Path, file: Path) -> os.stat_result:
    info = file.lstat()
    if not stat.S_ISREG(info.st_mode):
        what = "a link" if stat.S_ISLNK(info.st_mode) else "no plain file"
        raise invalid(f"{file.relative_to(root)} is {what}", str(root))
    return info


def _folder_members(root: Path) -> Iterator[tuple[str, _Where]]:
    for folder, folders, names in os.walk(root, followlinks=False):
        for name in folders:
            if (Path(folder) / name).is_symlink():
                raise invalid(f"{(Path(folder) / name).relative_to(root)} is a link", str(root))
        for name in names:
            file = Path(folder) / name
            yield str(file.relative_to(root)), _Where(file, 0, _plain(root, file).st_size)


# -- a tar, by its headers --------------------------------------------------------------------------------------------


def _tar_members(path: Path) -> Iterator[tuple[str, _Where]]:
    end = path.stat().st_size
    seen: set[str] = set()
    long_name = ""
    with path.open("rb") as stream:
        offset = 0
        while offset + 512 <= end:
            stream.seek(offset)
            header = stream.read(512)
            if not header.strip(b"\0"):
                return
            info = _header(path, header)
            offset += 512
            if info.size < 0 or offset + info.size > end:
                raise invalid("it was cut short", str(path))
            if info.type == tarfile.GNUTYPE_LONGNAME and info.size <= _MOST_NAME:
                long_name = stream.read(info.size).rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                name, long_name = long_name or info.name, ""
                if _is_file(path, info, name, seen):
                    yield name, _Where(path, offset, info.size)
            offset += (info.size + 511) // 512 * 512
    raise invalid("it was cut short: it has no end", str(path))


def _header(path: Path, header: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise invalid(f"it is no tar, or is damaged: {error}", str(path)) from None


def _is_file(path: Path, info: tarfile.TarInfo, name: str, seen: set[str]) -> bool:
    if name in seen:
        raise invalid(f"it holds {name!r} twice", str(path))
    seen.add(name)
    if not (name in (INDEX, SIGNATURE) or safe_path(name.rstrip("/"))):
        raise invalid(f"the path {name!r} leads outside of it", str(path))
    if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return True
    if info.type != tarfile.DIRTYPE:
        what = "a link" if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "no plain file"
        raise invalid(f"{name} is {what}", str(path))
    return False


# -- signatures -------------------------------------------------------------------------------------------------------


def _signer(path: Path, raw: bytes, signature: bytes, allowed_signers: str, unsigned: bool) -> str:
    if not signature:
        if unsigned:
            return ""
        raise OfflineRebuildError(
            "bundle-unsigned",
            "the bundle has no signature; nothing was loaded",
            "sign it where it is made (offline_rebuild_bundle_sign_key), or allow it: "
            "-e offline_rebuild_bundle_unsigned=true",
            str(path),
        )
    if not allowed_signers:
        if unsigned:
            return ""
        raise OfflineRebuildError(
            "bundle-signature",
            "offline_rebuild_bundle_allowed_signers is not set, so that nobody's signature counts; nothing was loaded",
            "name a file with lines such as: release@example.org ssh-ed25519 AAAA...",
            str(path),
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "signature"
        file.write_bytes(signature)
        common = ("-f", allowed_signers, "-s", str(file))
        found = _ssh_keygen(("-Y", "find-principals", *common))
        names = found.stdout.decode("utf-8", "replace").split("\n")[0].strip()
        if found.returncode != 0 or not names:
            raise _refused(path, "its signature is by nobody of the allowed signers", found)
        for name in names.split(","):
            done = _ssh_keygen(("-Y", "verify", "-I", name, "-n", NAMESPACE, *common), raw)
            if done.returncode == 0:
                return name
    raise _refused(path, "its signature does not fit its index", done)


def _refused(path: Path, why: str, done: subprocess.CompletedProcess[bytes]) -> OfflineRebuildError:
    said = " ".join((done.stderr or done.stdout).decode("utf-8", "replace").split())[:200]
    return OfflineRebuildError(
        "bundle-signature",
        f"{why} ({said}); nothing was loaded",
        "ask who made it, and see the file offline_rebuild_bundle_allowed_signers; do not use the bundle until then",
        str(path),
    )


def _ssh_keygen(argv: tuple[str, ...], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(("ssh-keygen", *argv), input=stdin, capture_output=True, check=False)
    except OSError as error:
        raise OfflineRebuildError(
            "ssh-keygen-missing",
            f"ssh-keygen cannot be run: {error.strerror}",
            "install OpenSSH's client (openssh-client) on the control node",
        ) from None


def sign(raw: bytes, key: str) -> bytes:
    """:returns: the signature of an index by a private SSH key.

    :raises OfflineRebuildError: ``sign-failed``.
    """
    argv: tuple[Any, ...] = ("-Y", "sign", "-q", "-f", key, "-n", NAMESPACE)
    done = _ssh_keygen(argv, raw)
    if done.returncode != 0 or not done.stdout:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())
        raise OfflineRebuildError(
            "sign-failed",
            f"ssh-keygen did not sign: {said}",
            "name a private key without a passphrase, or one that ssh-agent holds, in offline_rebuild_bundle_sign_key",
            key,
        )
    return done.stdout

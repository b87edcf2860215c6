"""Reading many files: their digests and extended attributes, by as many processes as there are CPUs.

A digest of a small file costs the interpreter more than the hash does, so threads would wait for each other. The others
are started only when there is much to read; they get the directory's descriptor and the numbers that the walk has seen,
and a file that is another one by then is no result but a word. The walk goes on meanwhile.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import struct
import sys
from typing import Any, Callable, Dict, List, Tuple, Union

__all__ = ["CHANGED", "Numbers", "Readers", "Result", "numbers_of", "read", "xattrs"]

#: mode, size, mtime_ns, ctime_ns, inode, each fit for a signed 64-bit field
Numbers = Tuple[int, ...]
#: digest in hexadecimal and the extended attributes; or the number of the system's error; or :data:`CHANGED`
Result = Union[Tuple[bytes, bytes], int]
CHANGED = -1
_BLOCK = 256 * 1024
#: Files and bytes of one portion of work.
PORTION_FILES, PORTION_BYTES = 64, 4 << 20
#: Files or bytes met before other processes are started: they take some 20 ms to begin.
MANY_FILES, MANY_BYTES = 512, 32 << 20
_AT_ONCE = 2
_HEAD = struct.Struct("<I")
_PROGRAM = "import sys; from importlib import import_module as m; n, s, *sys.path[:] = sys.argv[1:]; m(n).serve(int(s))"

Portion = List[Any]  # anything with .path and .numbers
OnResult = Callable[[Any, Result], None]


def numbers_of(info: os.stat_result) -> Tuple[int, int, int, int, int]:
    """:returns: mode, size, mtime_ns, ctime_ns, inode."""
    inode = info.st_ino
    if inode >= 1 << 63:
        inode -= 1 << 64
    return info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, inode


def xattr_counts(name: str) -> bool:
    """fsutil ``stat_unix.go`` and contenthash ``tarsum.go``: which names are sent and hashed."""
    if name.startswith("security."):
        return name == "security.capability"
    return not name.startswith(("system.", "com.apple."))


def xattrs(target: Union[int, str]) -> bytes:
    """:returns: the extended attributes of a descriptor or a path (no link is followed) that count, as a line of a
    manifest holds them. None where the file system has none or the user may not read them: then the client does not
    send them either."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
        if not names:
            return b""
        pairs = []
        for name in sorted(filter(xattr_counts, names)):
            value = os.getxattr(target, name, follow_symlinks=follow)
            pairs.append(os.fsencode(name).hex().encode() + b"=" + value.hex().encode())
        return b",".join(pairs)
    except (OSError, AttributeError):
        return b""


def read(root: int, path: str, numbers: Numbers) -> Result:
    """Read one file.

    :param root: descriptor of the directory that ``path`` is relative to.
    :param numbers: what the walk saw of it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
        try:
            left = numbers[1]
            block = os.read(fd, min(left, _BLOCK)) if left else b""
            digest = hashlib.sha256(block)
            left -= len(block)
            while left > 0 and block:
                block = os.read(fd, min(left, _BLOCK))
                digest.update(block)
                left -= len(block)
            attributes = xattrs(fd)
            after = os.fstat(fd)
        finally:
            os.close(fd)
    except OSError as exc:
        return exc.errno or 5
    if numbers_of(after) != numbers:
        return CHANGED
    return digest.hexdigest().encode(), attributes


def serve(root: int) -> None:
    """What another process does: portions from its standard input, results to its standard output, until it ends."""
    while True:
        head = _exactly(0, _HEAD.size)
        if not head:
            return
        work = marshal.loads(_exactly(0, _HEAD.unpack(head)[0]))  # noqa: S302 - from the process that started this one
        _send(1, [read(root, path, numbers) for path, numbers in work])


class Readers:
    """The processes that read. To be closed.

    :param root: descriptor of the directory that paths are relative to.
    :param on_result: called with each item and its result, in any order, in the caller's process.
    """

    def __init__(self, root: int, on_result: OnResult) -> None:
        self.root = root
        self.on_result = on_result
        self._files = 0
        self._bytes = 0
        self._others: List[_Other] = []
        self._started = False

    def give(self, portion: Portion) -> None:
        """Have a portion read: by another process if one is free, else by this one, at once."""
        if not portion:
            return
        self._files += len(portion)
        self._bytes += sum(item.numbers[1] for item in portion)
        if not self._started and (self._files >= MANY_FILES or self._bytes >= MANY_BYTES):
            self._start()
        self._collect(wait=False)
        for other in self._others:
            if len(other.portions) < _AT_ONCE and other.send(portion):
                return
        self._read_here(portion)

    def finish(self) -> None:
        """Wait for all results."""
        while any(other.portions for other in self._others):
            self._collect(wait=True)

    def close(self) -> None:
        """End the processes."""
        for other in self._others:
            other.close()
        self._others = []

    def _read_here(self, portion: Portion) -> None:
        for item in portion:
            self.on_result(item, read(self.root, item.path, item.numbers))

    def _start(self) -> None:
        self._started = True
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for _number in range(min(4, cpus) - 1):
            try:
                self._others.append(_Other(self.root))
            except OSError:  # no more processes are allowed: this one does it
                return

    def _collect(self, wait: bool) -> None:
        busy: Dict[int, _Other] = {other.out: other for other in self._others if other.portions}
        if not busy:
            return
        import select

        poll = select.poll()
        for fd in busy:
            poll.register(fd, select.POLLIN)
        for fd, _event in poll.poll(None if wait else 0):
            other = busy[fd]
            results = other.receive()
            if results is None:  # it was killed: what it had is read here
                self._others.remove(other)
                other.close()
                for portion in other.portions:
                    self._read_here(portion)
                continue
            for item, result in zip(other.portions.pop(0), results):
                self.on_result(item, result)


class _Other:
    """One other process, and the portions that it has."""

    def __init__(self, root: int) -> None:
        import subprocess  # where few files are to be read it is not needed

        self.portions: List[Portion] = []
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, __name__, str(root), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(root,),
            bufsize=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.out = self.process.stdout.fileno()
        self._in = self.process.stdin.fileno()

    def send(self, portion: Portion) -> bool:
        """:returns: whether it could be sent."""
        try:
            _send(self._in, [(item.path, tuple(item.numbers)) for item in portion])
        except OSError:
            return False
        self.portions.append(portion)
        return True

    def receive(self) -> Any:
        """:returns: the results of the oldest portion, ``None`` if the process has ended."""
        head = _exactly(self.out, _HEAD.size)
        body = _exactly(self.out, _HEAD.unpack(head)[0]) if head else b""
        return marshal.loads(body) if body else None  # noqa: S302 - from a process of ours

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process.kill()
        self.process.wait()


def _send(fd: int, data: Any) -> None:
    body = marshal.dumps(data)
    message = memoryview(_HEAD.pack(len(body)) + body)
    while message:
        message = message[os.write(fd, message) :]


def _exactly(fd: int, size: int) -> bytes:
    """:returns: that many bytes; nothing if the other side has ended before."""
    parts = []
    while size:
        part = os.read(fd, size)
        if not part:
            return b""
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

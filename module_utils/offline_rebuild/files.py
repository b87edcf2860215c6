"""Files and folders of the state directory."""

from __future__ import annotations

import os

__all__ = ["existing_parent", "write_atomic"]


def write_atomic(path: str, data: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, also after a crash."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    partial = f"{path}.{os.getpid()}.tmp"
    with open(partial, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, path)


def existing_parent(path: str) -> str:
    """:returns: the path, or the nearest folder above it that is there."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path

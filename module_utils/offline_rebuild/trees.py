"""An image's files as the source of a COPY: what ``COPY --from`` takes from."""

from __future__ import annotations

import posixpath
from typing import Dict, Iterable, Iterator, List, Optional, Tuple

from .errors import OfflineRebuildError
from .layers import LayerEntry, LayerReader

__all__ = ["ImageTree"]


class ImageTree:
    """The files of an image after one of its layers, with the reading methods of :class:`context.Context`.

    Only what lies under the sources is listed; the whole image where a link stands on the way to one.

    :param upto: index of the last layer that counts; -1 for none.
    :param sources: the sources that will be read.
    """

    def __init__(self, reader: LayerReader, upto: int, sources: Iterable[str]) -> None:
        self.reader = reader
        self.upto = upto
        self._entries: Dict[str, LayerEntry] = {}
        for source in sources:
            self._take(_fixed_part(source))

    def _take(self, prefix: str) -> None:
        parts = prefix.split("/") if prefix else []
        for count in range(1, len(parts)):
            parent = "/".join(parts[:count])
            entry = self.reader.lookup(parent, self.upto)
            if entry is not None and entry.type == "symlink":
                prefix = ""
                break
            if entry is not None:
                self._entries[parent] = entry
        top = self.reader.lookup(prefix, self.upto)
        if top is not None and top.type == "symlink":
            prefix = ""
        self._entries.update(self.reader.listing(prefix, self.upto))

    def stat_entries(self, prefix: str = "") -> Iterator[Tuple[str, LayerEntry]]:
        """:returns: path and entry of everything listed, in order."""
        for path in sorted(self._entries):
            if path and (not prefix or path == prefix or path.startswith(prefix + "/")):
                yield path, self._entries[path]

    def digest_of(self, path: str) -> Optional[str]:
        """:returns: the digest of a file's content."""
        return self._entries[path].content_digest()

    def read(self, path: str) -> bytes:
        """:returns: a file's content."""
        content = self.reader.content(path, self.upto, self._entries[path].size)
        if content is None:
            raise OfflineRebuildError("image-file-unreadable", f"/{path} of an image cannot be read")
        return content


def _fixed_part(source: str) -> str:
    """The part of a source before its first pattern, without slashes at the ends."""
    parts: List[str] = []
    for part in posixpath.normpath("/" + source).strip("/").split("/"):
        if any(char in part for char in "*?[\\"):
            break
        parts.append(part)
    return "/".join(part for part in parts if part)

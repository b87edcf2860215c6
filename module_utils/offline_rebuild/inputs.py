"""What an instruction takes from the build context.

Used for records: the selected paths, types, modes and contents go into the instruction's key. A selection may be too
large (that costs a rebuild), never too small (that would ship old code).
"""

from __future__ import annotations

import posixpath
import re
from typing import Dict, Iterable, List, Optional, Pattern, Set, Tuple

from .stage import Step

__all__ = ["go_match", "select", "sources_of"]

EVERYTHING = "/"


def go_match(pattern: str) -> Optional[Pattern[str]]:
    """Go's ``filepath.Match`` as a regular expression; ``None`` for a malformed pattern.

    ``*`` and ``?`` do not match ``/``; ``[...]`` may be negated by ``^``; ``\\`` escapes (path/filepath docs).
    """
    out: List[str] = []
    index = 0
    while index < len(pattern):
        char = pattern[index]
        index += 1
        if char == "*":
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "\\":
            if index == len(pattern):
                return None
            out.append(re.escape(pattern[index]))
            index += 1
        elif char == "[":
            end = pattern.find("]", index + (2 if pattern[index : index + 1] == "^" else 1))
            if end < 0:
                return None
            body = pattern[index:end]
            negate = body.startswith("^")
            body = body[1:] if negate else body
            out.append("(?!/)[" + ("^" if negate else "") + body.replace("[", r"\[") + "]")
            index = end + 1
        else:
            out.append(re.escape(char))
    try:
        return re.compile("".join(out) + r"\Z", re.DOTALL)
    except re.error:
        return None


def sources_of(step: Step) -> Tuple[str, ...]:
    """The context paths or patterns that an instruction reads; :data:`EVERYTHING` where that is not certain.

    A ``$`` may stand for a variable of the base image, which is not known without it: everything, then.
    """
    found: List[str] = []
    if step.kind == "context":
        pivot = step.instruction.flag_bool("parents")
        found += [s.replace("/./", "/") if pivot else s for s in step.instruction.sources]
    found += [str(value) for kind, value in step.mounts if kind == "context"]
    return tuple(EVERYTHING if "$" in source else source for source in found)


def select(paths: Dict[str, str], sources: Iterable[str]) -> List[str]:
    """The paths of a context that the sources reach, with all below them, sorted.

    :param paths: path to type (``file``, ``dir``, ``symlink``, ...) of the whole context.
    """
    chosen: Set[str] = set()
    for source in sources:
        clean = posixpath.normpath("/" + source).lstrip("/")
        if clean in ("", "."):
            return sorted(paths)
        if _through_link(clean, paths):
            return sorted(paths)
        if any(char in clean for char in "*?[\\"):
            if not _select_pattern(clean, paths, chosen):
                return sorted(paths)
        else:
            prefix = clean + "/"
            chosen.update(path for path in paths if path == clean or path.startswith(prefix))
    return sorted(chosen)


def _through_link(clean: str, paths: Dict[str, str]) -> bool:
    """Whether a link stands on the way to a source: what it leads to is elsewhere in the tree."""
    parts = clean.split("/")
    return any(paths.get("/".join(parts[:n])) == "symlink" for n in range(1, len(parts) + 1))


def _select_pattern(clean: str, paths: Dict[str, str], chosen: Set[str]) -> bool:
    regex = go_match(clean)
    if regex is None:
        return False
    depth = clean.count("/") + 1
    for path, kind in paths.items():
        head = "/".join(path.split("/")[:depth])
        if path.count("/") + 1 >= depth and regex.match(head):
            if kind == "symlink" and head == path:
                return False  # followed at the top level: its target counts as well
            chosen.add(path)
    return True

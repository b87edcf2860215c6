"""What an instruction takes from the build context.

Used for records: the selected paths, types, modes and contents go into the instruction's key. A selection may be too
large (that costs a rebuild), never too small (that would ship old code).
"""

from __future__ import annotations

import posixpath
from typing import Dict, Iterable, List, Mapping, Optional, Set, Tuple

from .errors import OfflineRebuildError
from .gomatch import go_match
from .shellword import Lexer
from .stage import Step, is_remote

__all__ = ["select", "sources_of"]

EVERYTHING = "/"


def sources_of(step: Step, lexer: Optional[Lexer] = None, env: Optional[Mapping[str, str]] = None) -> Tuple[str, ...]:
    """The context paths or patterns that an instruction reads; :data:`EVERYTHING` where that is not certain.

    A ``$`` may stand for a variable of the base image, which is not known without it: everything, then.

    :param env: the variables whose values are known for certain.
    """
    found: List[str] = []
    if step.kind in ("context", "remote"):
        parents = step.instruction.flag_bool("parents")
        for source in step.instruction.sources:
            if step.kind == "remote" and is_remote(source) and not source.startswith("git@"):
                continue
            # --parents matches as an ignore file does: ** and parents count
            wild = parents and any(char in source for char in "*?[\\")
            found.append(EVERYTHING if wild else source.replace("/./", "/") if parents else source)
    found += [str(value) for kind, value in step.mounts if kind == "context"]
    return tuple(_certain(source, lexer, env or {}) for source in found)


def _certain(source: str, lexer: Optional[Lexer], env: Mapping[str, str]) -> str:
    if "$" not in source:
        return source
    if lexer is None:
        return EVERYTHING
    try:
        made = lexer.process_word_with_matches(source, env)
    except OfflineRebuildError:
        return EVERYTHING
    return EVERYTHING if made.unmatched or not made.result else made.result


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
        # also for a pattern: a lone backslash is a plain character to BuildKit (containsWildcards)
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
    heads = [go_match("/".join(clean.split("/")[:count])) for count in range(1, depth)]
    for path, kind in paths.items():
        level = path.count("/") + 1
        if kind == "symlink" and level < depth:
            head_pattern = heads[level - 1]
            if head_pattern is None or head_pattern.match(path):
                return False  # on the way to a match: what it leads to may count as well
        head = "/".join(path.split("/")[:depth])
        if path.count("/") + 1 >= depth and regex.match(head):
            if kind == "symlink" and head == path:
                return False  # followed at the top level: its target counts as well
            chosen.add(path)
    return True

"""Go's ``filepath.Match``, by which BuildKit reads the patterns in COPY's sources."""

from __future__ import annotations

import re
from typing import List, Optional, Pattern, Tuple

__all__ = ["go_match"]


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
            found = _bracket(pattern, index)
            if found is None:
                return None
            text, index = found
            out.append(text)
        else:
            out.append(re.escape(char))
    try:
        return re.compile("".join(out) + r"\Z", re.DOTALL)
    except re.error:
        return None


def _bracket(pattern: str, index: int) -> Optional[Tuple[str, int]]:
    """The class that begins after ``[``, as a regular expression, and where it ends; ``None`` if it is malformed."""
    negate = pattern[index : index + 1] == "^"
    index += 1 if negate else 0
    ranges: List[str] = []
    while pattern[index : index + 1] != "]" or not ranges:
        ends: List[str] = []
        while len(ends) < 2:
            char = pattern[index : index + 1]
            if char == "\\":
                index += 1
                char = pattern[index : index + 1]
            elif char in ("-", "]"):
                return None
            if not char:
                return None
            ends.append(char)
            index += 1
            if len(ends) == 1 and pattern[index : index + 1] != "-":
                ends.append(char)
            elif len(ends) == 1:
                index += 1
        if ends[0] <= ends[1]:
            ranges.append(f"{re.escape(ends[0])}-{re.escape(ends[1])}")
        else:
            ranges.append("")  # an empty range: nothing is in it
    body = "".join(ranges)
    if not body:
        return ("." if negate else "(?!)"), index + 1
    return f"[{'^' if negate else ''}{body}]", index + 1

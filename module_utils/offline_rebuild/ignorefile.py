"""The ignore file of a build context (``.dockerignore``), read and applied as BuildKit does.

Where the rules come from:

* lines, comments, byte order mark, ``!``: ``ignorefile.ReadAll`` of moby/patternmatcher;
* patterns and their meaning: ``patternmatcher.New``, ``Pattern.compile`` and ``MatchesOrParentMatches`` of the same;
* what a walk of the tree sends, which directories it does not enter, and the files that arrive empty:
  ``filter.go`` and ``send.go`` of tonistiigi/fsutil;
* which file counts (``<Dockerfile>.dockerignore`` before ``.dockerignore``): ``frontend/dockerui/config.go`` of
  moby/buildkit.

A pattern is compiled to one of four kinds, as there: an exact path, a prefix, a suffix, or an expression of Go's
``regexp`` package, which is translated to Python's. Consecutive patterns of the same sign are matched in one go.
"""

from __future__ import annotations

import os
import re
from typing import Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from .errors import OfflineRebuildError

__all__ = ["EMPTY", "ClassicIgnoreFile", "IgnoreFile", "IgnorePattern", "WalkState", "clean", "load", "parse"]

IGNORE_NAME = ".dockerignore"
IGNORE_SUFFIX = ".dockerignore"
# bufio.Scanner's default limit, which ignorefile.ReadAll does not raise.
MAX_LINE = 64 * 1024
# Symbolic links that are followed inside the context for the ignore file itself.
MAX_LINKS = 40
# What Go's strings.TrimSpace removes (unicode.IsSpace). Python's str.strip() would take U+001C to U+001F too.
_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_BOM = b"\xef\xbb\xbf"
# Characters that filter.go takes for the sign of a wildcard in an exception.
_WILDCARDS = frozenset("*[]?^\\")
# Go's regexp is linear; Python's goes back. More wildcards than this in one pattern go to a linear matcher.
_MAX_BACKTRACK = 3

EXACT, PREFIX, SUFFIX, REGEXP = "exact", "prefix", "suffix", "regexp"


class _BadPatternError(ValueError):
    """A pattern that the engine would refuse, too."""


def clean(path: str) -> str:
    """Go's ``path.Clean``.

    :param path: a slash separated path.
    :returns: the shortest path of the same meaning, ``.`` for an empty one.
    """
    rooted = path.startswith("/")
    out: List[str] = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            out.append(part)
        elif out and out[-1] != "..":
            out.pop()
        elif not rooted:
            out.append(part)
    text = "/".join(out)
    return "/" + text if rooted else text or "."


# --- syntax of a pattern (filepath.Match's error state) ---------------------------------------------------------------


def _next_chunk(pattern: str, start: int) -> Tuple[str, int]:
    """:returns: the next part without a star (``scanChunk`` of Go's path/filepath) and where the rest begins."""
    while start < len(pattern) and pattern[start] == "*":
        start += 1
    i, in_class = start, False
    while i < len(pattern):
        char = pattern[i]
        if char == "\\":
            i += 1
        elif char == "[":
            in_class = True
        elif char == "]":
            in_class = False
        elif char == "*" and not in_class:
            break
        i += 1
    i = min(i, len(pattern))
    return pattern[start:i], i


def _class_char(chunk: str, i: int) -> int:
    """One character of a class (``getEsc``). :returns: the place after it."""
    if i < len(chunk) and chunk[i] not in "-]":
        if chunk[i] == "\\":
            i += 1
        if i + 1 < len(chunk) and not "\udc80" <= chunk[i] <= "\udcff":
            return i + 1
    raise _BadPatternError("the character class is not closed, is empty or has a '-' or ']' that is not escaped")


def _check_class(chunk: str, i: int) -> int:
    """A class, from after its ``[``. :returns: the place after its ``]``."""
    if chunk[i : i + 1] == "^":
        i += 1
    count = 0
    while not (count and chunk[i : i + 1] == "]"):
        i = _class_char(chunk, i)
        if chunk[i] == "-":
            i = _class_char(chunk, i + 1)
        count += 1
    return i + 1


def _check_chunk(chunk: str) -> None:
    i = 0
    while i < len(chunk):
        if chunk[i] == "[":
            i = _check_class(chunk, i + 1)
            continue
        if chunk[i] == "\\":
            i += 1
            if i == len(chunk):
                raise _BadPatternError("nothing follows the last '\\'")
        i += 1


def _check_syntax(pattern: str) -> None:
    """Raise :class:`_BadPatternError` where Go's ``filepath.Match`` returns ``ErrBadPattern``."""
    start = 0
    while start < len(pattern):
        chunk, start = _next_chunk(pattern, start)
        _check_chunk(chunk)


# --- Go's expression of a pattern, and its translation ----------------------------------------------------------------


def _classic_expression(pattern: str) -> str:
    """Go's expression of a cleaned pattern as moby 20.10 made it: always one, and only ``.`` and ``$`` are escaped."""
    out, i = ["^"], 1 if pattern.startswith("\ufeff") else 0
    while i < len(pattern):
        char, i = pattern[i], i + 1
        if char == "*" and pattern[i : i + 1] == "*":
            i += 2 if pattern[i + 1 : i + 2] == "/" else 1
            out.append("(.*/)?" if i < len(pattern) else ".*")
        elif char in "*?":
            out.append("[^/]*" if char == "*" else "[^/]")
        elif char in ".$":
            out.append("\\" + char)
        elif char == "\\":
            out.append("\\" + pattern[i : i + 1])
            i += 1
        else:
            if char in "+()|{}":
                raise _BadPatternError(f"'{char}' is an operator to the client of Docker 20.10, which is not supported")
            out.append(char)
    return "".join(out) + "$"


def _go_expression(pattern: str) -> Tuple[str, str]:
    """What ``Pattern.compile`` makes of a cleaned pattern.

    :returns: the kind (``exact``, ``prefix``, ``suffix``, ``regexp``) and Go's expression (empty unless ``regexp``).
    """
    kind, out = EXACT, ["^"]
    # text/scanner skips a byte order mark at the start of its input.
    i = 1 if pattern.startswith("\ufeff") else 0
    first = True
    while i < len(pattern):
        char, i = pattern[i], i + 1
        if char == "*" and pattern[i : i + 1] == "*":
            i += 1
            if pattern[i : i + 1] == "/":
                i += 1
            if i < len(pattern):
                out.append("(.*/)?")
                kind = REGEXP
            elif kind == EXACT:
                kind = PREFIX
            else:
                out.append(".*")
                kind = REGEXP
            if first:
                kind = SUFFIX
        elif char in "*?":
            out.append("[^/]*" if char == "*" else "[^/]")
            kind = REGEXP
        elif char in ".+()|{}$":
            out.append("\\" + char)
        elif char == "\\" and i < len(pattern):
            out.append("\\" + pattern[i])
            i += 1
            kind = REGEXP
        else:
            out.append(char)
            if char in "[]":
                kind = REGEXP
        first = False
    return kind, "".join(out) + "$" if kind == REGEXP else ""


class _Atom(NamedTuple):
    """A piece of a translated expression: Python's text of it, and what it does."""

    text: str
    kind: str  # 'char', 'star', 'dir' (an optional "any/"), 'assert' (takes no character)


_PERL = {"d": "0-9", "s": "\\t\\n\\f\\r ", "w": "0-9A-Za-z_"}
_POSIX = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": "\\x00-\\x7f", "blank": "\\t ", "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": " -~", "punct": "!-/:-@\\[-`{-~",
    "space": "\\t\\n\\v\\f\\r ", "upper": "A-Z", "word": "0-9A-Za-z_", "xdigit": "0-9A-Fa-f",
}  # fmt: skip
_CONTROL = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ASSERT = {"A": r"\A", "b": r"(?a:\b)", "B": r"(?a:\B)", "z": r"\Z"}


class _GoRegexp:
    """Reads an expression of Go's ``regexp/syntax`` (as far as a pattern can bring one about) into atoms."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0

    def atoms(self) -> List[_Atom]:
        """:returns: the whole expression. :raises _BadPatternError: where Go would refuse it."""
        out: List[_Atom] = []
        while self.at < len(self.source):
            if self.source.startswith("(.*/)?", self.at):
                out.append(_Atom("(?:.*/)?", "dir"))
                self.at += 6
                continue
            if self.source.startswith("\\Q", self.at):
                out.extend(self._quoted())
                continue
            atom = self._one()
            if self.source[self.at : self.at + 1] == "*" and atom.kind == "char":
                self.at += 1
                atom = _Atom(atom.text + "*", "star")
            out.append(atom)
        return out

    def _one(self) -> _Atom:
        char = self.source[self.at]
        if char == "[":
            return _Atom(self._class(), "char")
        if char == "\\":
            return self._escape()
        self.at += 1
        if char == ".":
            return _Atom(".", "char")
        if char in "^$":
            return _Atom(r"\A" if char == "^" else r"\Z", "assert")
        if char in "*?+(){}|":
            raise _BadPatternError(f"'{char}' has nothing to repeat or to group")
        return _Atom(_literal(char), "char")

    def _quoted(self) -> List[_Atom]:
        end = self.source.find("\\E", self.at + 2)
        text = self.source[self.at + 2 : end if end >= 0 else len(self.source)]
        self.at = end + 2 if end >= 0 else len(self.source)
        return [_Atom(_literal(char), "char") for char in text]

    def _escape(self) -> _Atom:
        char = self.source[self.at + 1 : self.at + 2]
        if char and char in _ASSERT:
            self.at += 2
            return _Atom(_ASSERT[char], "assert")
        group = self._perl()
        if group is not None:
            return _Atom("[" + ("^" if char.isupper() else "") + group + "]", "char")
        return _Atom(_literal(self._escaped_char()), "char")

    def _perl(self) -> Optional[str]:
        """A Perl class at this place (``\\d``): its members; None where there is another escape."""
        char = self.source[self.at + 1 : self.at + 2]
        if char in ("p", "P"):
            raise _BadPatternError(f"'\\{char}' names a Unicode class, which is not supported")
        if char.lower() not in _PERL or not char:
            return None
        self.at += 2
        return _PERL[char.lower()]

    def _escaped_char(self) -> str:
        char = self.source[self.at + 1 : self.at + 2]
        rest = self.source[self.at + 2 :]
        if char in _CONTROL:
            self.at += 2
            return _CONTROL[char]
        number = re.match(r"0[0-7]{0,2}|[1-7][0-7]{1,2}", char + rest)
        if number:
            self.at += 1 + number.end()
            return chr(int(number.group(), 8))
        number = re.match(r"x([0-9A-Fa-f]{2})", char + rest)
        if number:
            self.at += 4
            return chr(int(number.group(1), 16))
        if char and char < "\x80" and not char.isalnum():
            self.at += 2
            return char
        raise _BadPatternError(f"'\\{char}' is not an escape that is known")

    def _class(self) -> str:
        self.at += 1
        sign = ""
        if self.source[self.at : self.at + 1] == "^":
            sign, self.at = "^", self.at + 1
        parts: List[str] = []
        first = True
        while first or self.source[self.at : self.at + 1] != "]":
            first = False
            parts.append(self._class_item())
        self.at += 1
        return "[" + sign + "".join(parts) + "]"

    def _class_item(self) -> str:
        named = re.match(r"\[:(\^?)(.*?):\]", self.source[self.at :])
        if named:
            return self._named_class(named.group(1), named.group(2), named.end())
        char = self.source[self.at + 1 : self.at + 2]
        if self.source[self.at : self.at + 1] == "\\":
            group = self._perl()
            if group is not None:
                return group if char.islower() else _negated(group)
        low = high = self._class_char()
        if self.source[self.at : self.at + 1] == "-" and self.source[self.at + 1 : self.at + 2] not in ("", "]"):
            self.at += 1
            high = self._class_char()
            if high < low:
                raise _BadPatternError(f"the range '{low}-{high}' ends before it begins")
        return _member(low) if low == high else f"{_member(low)}-{_member(high)}"

    def _named_class(self, negated: str, name: str, length: int) -> str:
        if name not in _POSIX:
            raise _BadPatternError(f"'[:{negated}{name}:]' is not a class that is known")
        self.at += length
        return _negated(_POSIX[name]) if negated else _POSIX[name]

    def _class_char(self) -> str:
        if self.at >= len(self.source):
            raise _BadPatternError("the character class is not closed")
        if self.source[self.at] == "\\":
            return self._escaped_char()
        char = self.source[self.at]
        self.at += 1
        return char


def _negated(members: str) -> str:
    """The members of the complement of a class, as ranges (a class inside a class cannot be negated in Python)."""
    inside = re.compile(f"[{members}]")
    out, start = [], 0
    for point in range(0x100):
        if inside.match(chr(point)):
            if start < point:
                out.append(f"\\x{start:02x}-\\x{point - 1:02x}")
            start = point + 1
    return "".join(out) + f"\\u{start:04x}-\\U0010ffff"


def _member(char: str) -> str:
    """A character as a member of a Python class. A byte that is no UTF-8 is U+FFFD to Go, on both sides."""
    if char == "\ufffd" or "\udc80" <= char <= "\udcff":
        return "\ufffd\udc80-\udcff"
    return f"\\x{ord(char):02x}" if char < "\x80" and not char.isalnum() else char


def _literal(char: str) -> str:
    if char == "\ufffd" or "\udc80" <= char <= "\udcff":
        return "[" + _member(char) + "]"
    return re.escape(char)


def _linear(atoms: List[_Atom]) -> Callable[[str], bool]:
    """A matcher whose time is linear in the path, for patterns with many wildcards (a set of states, as bits)."""
    body = [atom for atom in atoms if atom.kind != "assert"]
    if [atom.text for atom in atoms if atom.kind == "assert"] != [r"\A", r"\Z"] or len(body) + 2 != len(atoms):
        raise _BadPatternError("the pattern has too many wildcards beside an anchor")
    singles = [re.compile({"dir": ".", "star": atom.text[:-1]}.get(atom.kind, atom.text)) for atom in body]
    bits = {kind: sum(1 << i for i, atom in enumerate(body) if atom.kind == kind) for kind in ("char", "star", "dir")}
    optional, final = bits["star"] | bits["dir"], 1 << len(body)
    takes: Dict[str, int] = {}  # character to the atoms that take it

    def skip(states: int) -> int:
        # What may be empty can be skipped.
        while states != states | (states & optional) << 1:
            states |= (states & optional) << 1
        return states

    def match(path: str) -> bool:
        # states, bit i: the first i atoms are done. inside, bit i: inside the optional directory that is atom i.
        states, inside = skip(1), 0
        for char in path:
            mask = takes.get(char)
            if mask is None:
                mask = takes[char] = sum(1 << i for i, single in enumerate(singles) if single.match(char))
            # A directory is optional as a whole: only its start can be skipped, not its middle.
            inside = (states | inside) & mask & bits["dir"]
            states &= mask
            states = (states & bits["char"]) << 1 | states & bits["star"]
            if char == "/":
                states |= inside << 1
            states = skip(states)
            if not states and not inside:
                return False
        return states & final != 0

    return match


class IgnorePattern:
    """One pattern of an ignore file.

    :ivar text: the cleaned pattern, without ``!``.
    :ivar exception: it began with ``!``.
    :ivar kind: ``exact``, ``prefix``, ``suffix`` or ``regexp``.
    :ivar expression: Go's expression, for the kind ``regexp``.
    :ivar line: the 1-based line in the ignore file.
    """

    __slots__ = ("_match", "exception", "expression", "kind", "line", "python", "text")

    def __init__(self, text: str, exception: bool, line: int, classic: bool = False) -> None:
        self.text = text
        self.exception = exception
        self.line = line
        self.kind, self.expression = (REGEXP, _classic_expression(text)) if classic else _go_expression(text)
        self.python: Optional[str] = None
        self._match: Optional[Callable[[str], bool]] = None
        if self.kind == REGEXP:
            atoms = _GoRegexp(self.expression).atoms()
            if sum(1 for atom in atoms if atom.kind in ("star", "dir")) > _MAX_BACKTRACK:
                self._match = _linear(atoms)
            else:
                self.python = "".join(atom.text for atom in atoms)
                compiled = re.compile(self.python)
                self._match = lambda path: compiled.match(path) is not None

    def matches(self, path: str) -> bool:
        """:returns: whether the pattern matches this very path (not one of its parents)."""
        if self.kind == EXACT:
            return path == self.text
        if self.kind == PREFIX:
            return path.startswith(self.text[:-2])
        if self.kind == SUFFIX:
            suffix = self.text[2:]
            return path.endswith(suffix) or (suffix[:1] == "/" and path == suffix[1:])
        return self._match is not None and self._match(path)


class _Names(Dict[str, bool]):
    """Base name to whether a group's patterns of the form ``**/name`` match it; filled on demand, bounded."""

    LIMIT = 20_000

    def __init__(self, group: _Group) -> None:
        super().__init__()
        self._group = group

    def __missing__(self, name: str) -> bool:
        if len(self) >= self.LIMIT:
            self.clear()
        self[name] = result = self._group.name_matches(name)
        return result


# A pattern that looks at the base name alone, and one that can match at one depth only.
_NAME_GLOB = re.compile(r"\*\*/((?:[^*/\[\]\\]|\*(?!\*))+)")
_FIXED_DEPTH = re.compile(r"(?:[^*\[\]\\]|\*(?!\*))+")


class _Group:
    """Consecutive patterns of one sign, matched together and sorted by what they need to look at."""

    __slots__ = (
        "_any", "_endings", "_fixed", "_name_regexp", "_named", "_patterns", "_prefixes", "exception", "name_lines",
        "names",
    )  # fmt: skip

    def __init__(self, patterns: List[IgnorePattern]) -> None:
        self.exception = patterns[0].exception
        self.names = _Names(self)
        self._patterns = patterns
        self._named = frozenset(p.text[3:] for p in patterns if p.kind == SUFFIX and re.fullmatch("/[^/]+", p.text[2:]))
        self._endings = tuple(p.text[2:] for p in patterns if p.kind == SUFFIX and "/" not in p.text[2:])
        self._prefixes = tuple(p.text[:-2] for p in patterns if p.kind == PREFIX)
        globs: List[str] = []
        #: the patterns of ``names`` as regular expressions for one line of a list of names
        self.name_lines = [re.escape(name) for name in sorted(self._named)]
        self.name_lines += [r"[^\n]*" + re.escape(ending) for ending in self._endings]
        self._fixed: Dict[int, List[Tuple[str, IgnorePattern]]] = {}
        self._any: List[IgnorePattern] = []
        for pattern in patterns:
            if pattern.kind == EXACT or (pattern.kind == REGEXP and _FIXED_DEPTH.fullmatch(pattern.text)):
                self._fixed.setdefault(pattern.text.count("/"), []).append((_literal_directory(pattern.text), pattern))
            elif pattern.kind == REGEXP and pattern.python is not None and _NAME_GLOB.fullmatch(pattern.text):
                globs.append(pattern.python)
                self.name_lines.append(_name_line(pattern.text[3:]))
            elif pattern.kind == REGEXP or (pattern.kind == SUFFIX and "/" in pattern.text[3:]):
                self._any.append(pattern)
        self._name_regexp = re.compile("|".join(globs)).match if globs else None

    def matches(self, path: str) -> bool:
        """:returns: whether a pattern matches this very path."""
        if "\n" in path:
            # "**/" does not go over a line end ("." of Go's regexp): the short cuts below would not hold.
            return any(p.matches(path) for p in self._patterns)
        local = self.local(path[: path.rfind("/") + 1])
        return self.names[path[path.rfind("/") + 1 :]] or (local is not None and local(path))

    def name_matches(self, name: str) -> bool:
        """:returns: whether a pattern that looks at base names alone matches."""
        return (
            name in self._named
            or name.endswith(self._endings)
            or (self._name_regexp is not None and self._name_regexp(name) is not None)
        )

    def local(self, base: str) -> Optional[Callable[[str], bool]]:
        """A test by the patterns that look at more than the base name.

        :param base: the directory that the test is for: empty, or ends with ``/``.
        :returns: a function of a path right in it; None when there is nothing to test.
        """
        prefixes = tuple(p for p in self._prefixes if p.startswith(base) or base.startswith(p))
        fixed = self._fixed.get(base.count("/"), ())
        patterns = self._any + [pattern for directory, pattern in fixed if base.startswith(directory)]
        if not patterns:
            return (lambda path: path.startswith(prefixes)) if prefixes else None
        tests = [p.matches for p in patterns]
        return lambda path: path.startswith(prefixes) or any(test(path) for test in tests)


def _literal_directory(text: str) -> str:
    """:returns: what every path that a pattern of a fixed depth matches begins with, up to a ``/``."""
    literal = re.split(r"[*?]", text, maxsplit=1)[0]
    return literal[: literal.rfind("/") + 1]


def _name_line(glob: str) -> str:
    """:returns: a base name with ``*`` and ``?`` as a regular expression for one line of a list of names."""
    parts = {"*": r"[^/\n]*", "?": r"[^/\n]"}
    return "".join(parts.get(char) or re.escape(char) for char in glob)


class WalkState(NamedTuple):
    """What a walk knows about a directory: whether it is ignored, and which groups matched it or a parent.

    fsutil keeps this for each pattern; a group of patterns of one sign gives the same results.
    """

    ignored: bool
    matched: Tuple[bool, ...]


class IgnoreFile:
    """An ignore file, compiled.

    :ivar file: the file that it was read from, as given; empty for none.
    :ivar patterns: its patterns, in order.
    :ivar has_exceptions: there is a pattern with ``!``.
    """

    def __init__(self, patterns: List[IgnorePattern], file: str = "") -> None:
        self.file = file
        self.patterns: Tuple[IgnorePattern, ...] = tuple(patterns)
        self.has_exceptions = any(p.exception for p in patterns)
        self._groups = _grouped(patterns)
        self._exceptions = tuple(_without_glob(p.text) for p in patterns if p.exception)
        self._plain_exceptions = not any(_WILDCARDS & set(text) for text in self._exceptions)
        # A walk may disagree with ignores() only when an ignore pattern follows an exception.
        self.may_hide = len(self._groups) > 2
        lines = [line for group in self._groups if not group.exception for line in group.name_lines]
        self._names_search = re.compile(f"^(?:{'|'.join(lines)})$", re.MULTILINE).search if lines else None
        self.root_state = WalkState(False, (False,) * len(self._groups))

    def ignores(self, path: str) -> bool:
        """Whether the path or one of its parents is ignored (``MatchesOrParentMatches``).

        :param path: slash separated, relative to the context, cleaned.
        """
        matched = False
        parents: Optional[List[str]] = None
        for group in self._groups:
            if group.exception != matched:
                continue
            if parents is None:
                parents = _parents(path)
            if any(map(group.matches, parents)):
                matched = not group.exception
        return matched

    def step(self, parent: WalkState, path: str) -> WalkState:
        """The state of a path that the walk meets (``MatchesUsingParentResults``).

        :param parent: the state of the directory that holds it; ``root_state`` for the context itself.
        """
        ignored = False
        matched = []
        for group, inherited in zip(self._groups, parent.matched):
            match = inherited or (group.exception == ignored and group.matches(path))
            matched.append(match)
            if match:
                ignored = not group.exception
        return WalkState(ignored, tuple(matched))

    def checker(self, state: WalkState, directory: str) -> Callable[[str], bool]:
        """The fast form of :meth:`step` for all that is in one directory.

        :param state: the directory's state. :param directory: its path, empty for the context.
        :returns: a function of a base name to whether that is ignored.
        """
        base = directory + "/" if directory else ""
        odd = "\n" in base
        tests = []
        for group, inherited in zip(self._groups, state.matched):
            local = group.matches if odd else group.local(base)
            tests.append((group.exception, inherited, {} if odd else group.names, local))

        def ignored(name: str) -> bool:
            result = False
            for exception, inherited, names, local in tests:
                if inherited or (
                    exception is result and ((not odd and names[name]) or (local is not None and local(base + name)))
                ):
                    result = not exception
            return result

        return ignored

    def ignored_names(self, state: WalkState, directory: str, names: List[str]) -> Set[str]:
        """:returns: those of a directory's names that are ignored; parameters as for :meth:`checker`."""
        base = directory + "/" if directory else ""
        joined = "\n".join(names)
        if (
            "\n" not in base
            and joined.count("\n") == len(names) - 1
            and not any(state.matched)
            and not any(group.local(base) for group in self._groups if not group.exception)
            and (self._names_search is None or not self._names_search(joined))
        ):
            return set()  # only base names matter here, and one look at all of them found none
        return set(filter(self.checker(state, directory), names))

    def enters(self, state: WalkState, path: str) -> bool:
        """Whether the walk enters the directory ``path``, whose state is given.

        An ignored directory is entered when an exception may match inside. Exceptions that are plain paths say so by
        their text; as soon as one has a wildcard, every directory is entered.
        """
        if not state.ignored or not self._plain_exceptions:
            return True
        return any((text + "/").startswith(path + "/") for text in self._exceptions)

    def enter(self, parent: WalkState, path: str) -> Optional[WalkState]:
        """The state of a directory that the walk enters (``ignored``: sent only with what is in it), or None."""
        state = self.step(parent, path)
        return state if self.enters(state, path) else None

    def hides(self, path: str) -> bool:
        """Whether a file that the walk has sent arrives empty.

        The sender asks ``MatchesOrParentMatches`` once more when it opens the file, and sends no content where that
        says that the file is ignored (``filterFS.Open``, ``sender.sendFile``). The two differ when a directory is
        ignored, its content taken back by an exception, and the directory ignored by a later pattern again.
        """
        return self.may_hide and self.ignores(path)

    def __bool__(self) -> bool:
        return bool(self.patterns)


class ClassicIgnoreFile(IgnoreFile):
    """The rules of the client that is built into the docker CLI up to 20.10 (used where there is no buildx).

    From fsutil ``walker.go`` before 2021 and ``pkg/fileutils`` of moby 20.10: a pattern is held against the path and
    one parent, that of as many parts as the pattern; an ignored directory that is the beginning of an exception's text
    is sent as if it were not ignored, and no other is entered; no file arrives empty.
    """

    def __init__(self, patterns: List[IgnorePattern], file: str = "") -> None:
        super().__init__(patterns, file)
        self._sized = [(p.matches, p.exception, p.text.count("/") + 1) for p in patterns]
        self._exceptions = tuple(p.text + "/" for p in patterns if p.exception)
        self.may_hide = False

    def ignores(self, path: str) -> bool:
        """Whether the path is ignored (``Matches``)."""
        matched = False
        parts = path.split("/")[:-1]
        for matches, exception, size in self._sized:
            if matches(path) or (size <= len(parts) and matches("/".join(parts[:size]))):
                matched = not exception
        return matched

    def step(self, parent: WalkState, path: str) -> WalkState:
        """The state of a path; nothing is inherited."""
        return WalkState(self.ignores(path), parent.matched)

    def checker(self, state: WalkState, directory: str) -> Callable[[str], bool]:  # noqa: ARG002
        """:returns: a function of a base name to whether that is ignored."""
        base = directory + "/" if directory else ""
        return lambda name: self.ignores(base + name)

    def ignored_names(self, state: WalkState, directory: str, names: List[str]) -> Set[str]:
        """:returns: those of a directory's names that are ignored."""
        return set(filter(self.checker(state, directory), names))

    def enter(self, parent: WalkState, path: str) -> Optional[WalkState]:
        """:returns: the state of a directory that the walk enters and sends, or None."""
        if self.ignores(path) and not any(text.startswith(path + "/") for text in self._exceptions):
            return None
        return WalkState(False, parent.matched)


def _grouped(patterns: List[IgnorePattern]) -> Tuple[_Group, ...]:
    groups: List[List[IgnorePattern]] = []
    for pattern in patterns:
        if groups and groups[-1][0].exception == pattern.exception:
            groups[-1].append(pattern)
        else:
            groups.append([pattern])
    return tuple(_Group(group) for group in groups)


def _parents(path: str) -> List[str]:
    """:returns: the path and each of its parents, as ``MatchesOrParentMatches`` goes through them."""
    out = [path]
    parent = clean(path[: path.rfind("/") + 1])
    if parent != ".":
        parts = parent.split("/")
        out.extend("/".join(parts[: i + 1]) for i in range(len(parts)))
    return out


def _without_glob(text: str) -> str:
    """A pattern without a trailing ``/**`` and then without a trailing ``/*`` (``patternWithoutTrailingGlob``)."""
    for ending in ("/**", "/*"):
        text = text.removesuffix(ending)
    return text


EMPTY = IgnoreFile([])


def _read_pattern(line: str) -> Optional[str]:
    """One line as ``ignorefile.ReadAll`` returns it; None for a comment or an empty line."""
    if line.startswith("#"):
        return None
    text = line.strip(_SPACE)
    if not text:
        return None
    sign = ""
    if text[0] == "!":
        sign, text = "!", text[1:].strip(_SPACE)
    if text:
        text = clean(text)
        if len(text) > 1 and text[0] == "/":
            text = text[1:]
    return sign + text


def _compile(text: str, line: int, classic: bool = False) -> Optional[IgnorePattern]:
    """What ``patternmatcher.New`` makes of one pattern of ``ReadAll``.

    :raises _BadPatternError: where New, or a match with the pattern, fails.
    """
    text = text.strip(_SPACE)
    if not text:
        return None
    text = clean(text)
    exception = text[0] == "!"
    if exception:
        text = text[1:]
        if not text:
            raise _BadPatternError("'!' stands alone: it names nothing to take back")
    _check_syntax(text)
    return IgnorePattern(text, exception, line, classic)


def parse(source: bytes, file: str, classic: bool = False) -> IgnoreFile:
    """Read an ignore file.

    :param source: its content.
    :param file: its name, for errors.
    :param classic: apply it as the docker CLI up to 20.10 does by itself, without buildx.
    :raises OfflineRebuildError: ``ignorefile-syntax``, for a pattern that BuildKit refuses. It refuses some of them
        only when a path is held against them; here the pattern is refused at once.
    """
    patterns: List[IgnorePattern] = []
    lines = source[len(_BOM) if source.startswith(_BOM) else 0 :].split(b"\n")
    for number, raw in enumerate(lines, start=1):
        if len(raw) >= MAX_LINE:
            raise _error(f"The line is {len(raw)} bytes long; BuildKit reads {MAX_LINE - 1} at most.", file, number)
        text = _read_pattern(raw.decode("utf-8", "surrogateescape"))
        if text is None:
            continue
        try:
            pattern = _compile(text, number, classic)
        except (_BadPatternError, re.error, OverflowError) as exc:
            raise _error(f"The pattern {_shown(text)} is not valid: {exc}.", file, number) from exc
        if pattern is not None:
            patterns.append(pattern)
    return ClassicIgnoreFile(patterns, file) if classic else IgnoreFile(patterns, file)


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def _error(message: str, file: str, line: Optional[int]) -> OfflineRebuildError:
    return OfflineRebuildError(
        "ignorefile-syntax", message, remedy="Correct the line; docker build stops at it, too.", file=file, line=line
    )


def load(context_dir: str, dockerfile: str, classic: bool = False) -> IgnoreFile:
    """Read the ignore file that a build of this context with this Dockerfile uses.

    ``<Dockerfile>.dockerignore`` beside the Dockerfile replaces ``.dockerignore`` of the context, even when it is
    empty. A symbolic link is followed inside the directory that holds it, never out of it; one that leads nowhere
    counts as no file.

    :param context_dir: the context's directory.
    :param dockerfile: the Dockerfile's path on disk.
    :param classic: as for :func:`parse`.
    :raises OfflineRebuildError: ``ignorefile-syntax``; ``ignorefile-unreadable``.
    """
    directory, name = os.path.split(os.path.abspath(dockerfile))
    for root, relative in ((directory, name + IGNORE_SUFFIX), (context_dir, IGNORE_NAME)):
        source = _read_inside(root, relative)
        if source is not None:
            return parse(source, os.path.join(root, relative), classic)
    return EMPTY


def _read_inside(root: str, name: str) -> Optional[bytes]:
    """Read a file; links are resolved as if ``root`` were the root directory. None when there is no such file."""
    parts, done = [name], ""
    links = 0
    while parts:
        part = parts.pop(0)
        if part in ("", ".", ".."):
            done = os.path.dirname(done) if part == ".." else done
            continue
        path = os.path.join(root, done, part)
        if not os.path.islink(path):
            done = os.path.join(done, part)
            continue
        links += 1
        if links > MAX_LINKS:
            return None
        target = os.readlink(path)
        parts = target.split("/") + parts
        done = "" if target.startswith("/") else done
    return _read_file(os.path.join(root, done))


def _read_file(path: str) -> Optional[bytes]:
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise OfflineRebuildError(
            "ignorefile-unreadable",
            f"The ignore file cannot be read: {exc.strerror}.",
            remedy="Give the user that runs the build the right to read it.",
            file=path,
        ) from exc

"""BuildKit's shell lexer: quotes, escapes and variables in the words of a Dockerfile.

The rules are those of moby/buildkit, ``frontend/dockerfile/shell/lex.go``, its oddities included: what an instruction
means is what BuildKit makes of it. Text is ``str`` decoded from UTF-8 with ``surrogateescape``; where BuildKit reads
runes, a byte that is not UTF-8 becomes U+FFFD, as it does there.
"""

from __future__ import annotations

from typing import Callable, Dict, FrozenSet, Iterator, List, Mapping, NamedTuple, Optional, Set, Tuple

from .errors import OfflineRebuildError

__all__ = ["SPACE", "Lexer", "WordResult", "is_space", "lower", "runes", "shown", "trim_space", "upper"]

#: What Go's unicode.IsSpace accepts (str.isspace also takes U+001C to U+001F).
SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_SPACES = frozenset(SPACE)
#: POSIX special parameters, a name of their own after ``$`` (lex.go, isSpecialParam).
_SPECIAL = frozenset("@*#?-$!0")
#: Bounds of ours, far above any real file: nesting of ``${``, characters of one result, steps of one pattern search.
MAX_DEPTH = 100
MAX_RESULT = 8 * 1024 * 1024
MAX_STEPS = 500_000

_SURROGATES: Dict[int, str] = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def is_space(char: str) -> bool:
    """:returns: whether Go's unicode.IsSpace holds for the one character."""
    return char in _SPACES


def trim_space(text: str) -> str:
    """:returns: ``text`` as Go's strings.TrimSpace gives it."""
    return text.strip(SPACE)


def runes(text: str) -> str:
    """:returns: ``text`` as Go sees it rune by rune: what is not UTF-8 is U+FFFD."""
    return text if text.isascii() else text.translate(_SURROGATES)


def shown(text: str, longest: int = 300) -> str:
    """:returns: ``text`` fit for a message: one line, short, valid UTF-8."""
    text = runes(text if len(text) <= longest else text[: longest - 3] + "...")
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def lower(text: str) -> str:
    """:returns: ``text`` as Go's strings.ToLower gives it (one character for one character)."""
    return text.lower() if text.isascii() else "".join(c.lower()[0] for c in text)


def upper(text: str) -> str:
    """:returns: ``text`` as Go's strings.ToUpper gives it (one character for one character)."""
    return text.upper() if text.isascii() else "".join(c.upper() if len(c.upper()) == 1 else c for c in text)


class WordResult(NamedTuple):
    """A processed word.

    :param result: the text after quotes, escapes and variables.
    :param matched: the variables that were looked up and are set.
    :param unmatched: those that were looked up and are not.
    """

    result: str
    matched: FrozenSet[str]
    unmatched: FrozenSet[str]


class Lexer:
    """Word processing with one set of options (lex.go, type Lex).

    :param escape: the escape character, ``\\`` or a backtick.
    :param raw_quotes: keep the quotes.
    :param raw_escapes: keep the escape characters.
    :param skip_unset: leave variables that are not set as they are written.
    :param skip_quotes: quotes mean nothing (heredoc content).
    """

    def __init__(
        self,
        escape: str = "\\",
        raw_quotes: bool = False,
        raw_escapes: bool = False,
        skip_unset: bool = False,
        skip_quotes: bool = False,
    ) -> None:
        self.escape = escape
        self.raw_quotes = raw_quotes
        self.raw_escapes = raw_escapes
        self.skip_unset = skip_unset
        self.skip_quotes = skip_quotes

    def process_word(self, word: str, env: Mapping[str, str]) -> str:
        """The word with quotes removed and variables replaced; spaces stay.

        :raises OfflineRebuildError: ``dockerfile-expansion``.
        """
        return _Run(self, word, env).word().result

    def process_words(self, word: str, env: Mapping[str, str]) -> List[str]:
        """The words that ``word`` gives when it is split at spaces after its variables are replaced.

        :raises OfflineRebuildError: ``dockerfile-expansion``.
        """
        return _Run(self, word, env).words()

    def process_word_with_matches(self, word: str, env: Mapping[str, str]) -> WordResult:
        """As :meth:`process_word`, with the names of the variables that it looked up.

        :raises OfflineRebuildError: ``dockerfile-expansion``.
        """
        return _Run(self, word, env).word()


class _Words:
    """Collects words (lex.go, wordsStruct). ``buffer`` is shared by all levels of one run, as it is in BuildKit."""

    def __init__(self, buffer: List[str], wanted: bool) -> None:
        self.buffer = buffer
        self.wanted = wanted
        self.done: List[str] = []
        self.inside = False

    def add_all(self, text: str) -> None:
        """Add what a variable gave; its blanks split."""
        if self.wanted:
            for char in runes(text):
                self.add(char)

    def add(self, char: str) -> None:
        if not is_space(char):
            self.add_raw(char)
        elif self.inside and self.buffer:
            self._flush()

    def add_raw(self, text: str) -> None:
        if text:
            self.buffer.append(text)
        self.inside = True

    def finish(self) -> List[str]:
        if self.buffer:
            self._flush()
        return self.done

    def _flush(self) -> None:
        self.done.append("".join(self.buffer))
        self.buffer.clear()
        self.inside = False


class _Run:
    """One pass over one word (lex.go, type shellWord)."""

    def __init__(self, lexer: Lexer, source: str, env: Mapping[str, str]) -> None:
        self.lexer = lexer
        self.source = source
        self.text = _scannable(source)
        self.pos = 0
        self.env = env
        self.raw_escapes = lexer.raw_escapes
        self.buffer: List[str] = []
        self.matched: Set[str] = set()
        self.unmatched: Set[str] = set()
        self.depth = 0
        self.size = 0
        self.splitting = False

    def word(self) -> WordResult:
        result, _ = self.until("", self.raw_escapes)
        return WordResult(result, frozenset(self.matched), frozenset(self.unmatched))

    def words(self) -> List[str]:
        self.splitting = True
        return self.until("", self.raw_escapes)[1]

    def fail(self, message: str) -> OfflineRebuildError:
        return OfflineRebuildError("dockerfile-expansion", f"cannot expand {shown(self.source, 120)}: {shown(message)}")

    def peek(self) -> str:
        """The next character, ``""`` at the end."""
        return self.text[self.pos] if self.pos < len(self.text) else ""

    def next(self) -> str:
        char = self.peek()
        self.pos += 1 if char else 0
        return char

    def grown(self, text: str) -> str:
        """``text``, counted against the bound of one result."""
        self.size += len(text)
        if self.size > MAX_RESULT:
            raise self.fail(f"the result is longer than {MAX_RESULT} characters")
        return text

    def until(self, stop: str, raw_escapes: bool) -> Tuple[str, List[str]]:
        """Process up to ``stop`` (``""``: the end) and step over it (processStopOn)."""
        if self.depth >= MAX_DEPTH:
            raise self.fail(f"more than {MAX_DEPTH} levels of nesting")
        saved, self.raw_escapes = self.raw_escapes, raw_escapes
        self.depth += 1
        try:
            return self._until(stop)
        finally:
            self.depth -= 1
            self.raw_escapes = saved

    def _until(self, stop: str) -> Tuple[str, List[str]]:
        result: List[str] = []
        self.buffer.clear()
        words = _Words(self.buffer, self.splitting)
        while True:
            char = self.peek()
            if not char:
                break
            if char == stop:
                self.next()
                return "".join(result), words.finish()
            self._one(char, result, words)
        if stop:
            raise self.fail(f"the statement ends before the matching {stop}")
        return "".join(result), words.finish()

    def _one(self, char: str, result: List[str], words: _Words) -> None:
        if char == "$":
            text = self.dollar()
            words.add_all(text)
        elif char == "<":
            text = self.heredoc_start()
            words.add_raw(text)
        elif char == "'" and not self.lexer.skip_quotes:
            text = self.single_quote()
            words.add_raw(text)
        elif char == '"' and not self.lexer.skip_quotes:
            text = self.double_quote()
            words.add_raw(text)
        else:
            text = self._plain(words)
        result.append(text)

    def _plain(self, words: _Words) -> str:
        char = self.next()
        if char != self.lexer.escape:
            words.add(char)
            return char
        kept = char if self.raw_escapes else ""
        words_text = self.next()
        if kept or words_text:
            words.add_raw(kept + words_text)
        return kept + words_text

    def single_quote(self) -> str:
        self.next()
        end = self.text.find("'", self.pos)
        if end < 0:
            self.pos = len(self.text)
            raise self.fail("a single quote is not closed")
        inner = self.text[self.pos : end]
        self.pos = end + 1
        return f"'{inner}'" if self.lexer.raw_quotes else inner

    def double_quote(self) -> str:
        quote = '"' if self.lexer.raw_quotes else ""
        self.next()
        result = [quote]
        while True:
            char = self.peek()
            if not char:
                raise self.fail("a double quote is not closed")
            if char == "$":
                result.append(self.dollar())
                continue
            self.next()
            if char == '"':
                result.append(quote)
                return "".join(result)
            if char == self.lexer.escape:
                if self.raw_escapes:
                    result.append(char)
                following = self.peek()
                if not following:
                    continue
                if following in ('"', "$", self.lexer.escape):
                    char = self.next()
            result.append(char)

    def heredoc_start(self) -> str:
        """``<<`` with the blanks after it, as one piece (processPossibleHeredoc)."""
        self.next()
        if self.peek() != "<":
            return "<"
        self.next()
        start = self.pos
        while self.peek() in ("\t", "\r", " "):
            self.next()
        return "<<" + self.text[start : self.pos]

    def name(self) -> str:
        """A variable's name: digits, one special parameter, or letters, digits and ``_`` (processName)."""
        char = self.peek()
        start = self.pos
        if char.isdecimal():
            while self.peek().isdecimal():
                self.next()
        elif char in _SPECIAL:
            self.next()
        else:
            while self.peek().isalpha() or self.peek().isdecimal() or self.peek() == "_":
                self.next()
        return self.text[start : self.pos]

    def lookup(self, name: str) -> Optional[str]:
        value = self.env.get(name)
        (self.unmatched if value is None else self.matched).add(name)
        return value

    def dollar(self) -> str:
        """``$name`` and ``${...}`` (processDollar)."""
        self.next()
        if self.peek() == "{":
            self.next()
            return self.grown(self._braces())
        name = self.name()
        if not name:
            return "$"
        value = self.lookup(name)
        if value is None:
            return "$" + name if self.lexer.skip_unset else ""
        return self.grown(value)

    def _braces(self) -> str:
        if not self.peek():
            raise self.fail("missing }")
        if self.peek() in "{}:":
            raise self.fail("bad substitution")
        name = self.name()
        char = self.next()
        if char == "}":
            value = self.lookup(name)
            if value is None:
                return "${" + name + "}" if self.lexer.skip_unset else ""
            return value
        if char == ":":
            return self._modified(name, self.next(), ":")
        if char and char in "+-?#%":
            return self._modified(name, char, "")
        if char == "/":
            return self._replaced(name)
        raise self.fail(f"unsupported modifier {char}")

    def _part(self, stop: str, raw_escapes: bool) -> str:
        try:
            return self.until(stop, raw_escapes)[0]
        except OfflineRebuildError:
            if not self.peek():
                raise self.fail(f"missing {stop}") from None
            raise

    def _modified(self, name: str, char: str, colon: str) -> str:
        if colon and char and char in "#%":
            raise self.fail(f"unsupported modifier :{char}")
        word = self._part("}", char in ("#", "%"))
        value = self.lookup(name)
        if value is None and self.lexer.skip_unset:
            return "${" + name + colon + char + word + "}"
        missing = value is None or (colon != "" and value == "")
        if char == "-":
            return word if missing else value or ""
        if char == "+":
            return "" if missing else word
        if char == "?":
            return self._required(name, word, value, missing)
        if char == "#":
            return self._trimmed(word, value or "", char, _trim_prefix)
        if char == "%":
            return self._trimmed(word, value or "", char, _trim_suffix)
        raise self.fail(f"unsupported modifier {colon}{char}")

    def _required(self, name: str, word: str, value: Optional[str], missing: bool) -> str:
        if missing:
            what = "unset" if value is None else "empty"
            raise self.fail(f"{name}: {word or 'is not allowed to be ' + what}")
        return value or ""

    def _trimmed(self, word: str, value: str, char: str, cut: Callable[[str, str, bool], str]) -> str:
        greedy = word.startswith(char)
        try:
            return cut(word[1:] if greedy else word, value, greedy)
        except ValueError as error:
            raise self.fail(f"invalid pattern {word}: {error}") from None

    def _replaced(self, name: str) -> str:
        every = self.peek() == "/"
        if every:
            self.next()
        pattern = self._part("/", True)
        replacement = self._part("}", True)
        value = self.lookup(name)
        if value is None and self.lexer.skip_unset:
            return "${" + f"{name}/{pattern}/{replacement}" + "}"
        try:
            matcher = _Matcher(pattern, value or "", greedy=True)
            if every:
                return "".join(self.grown(piece) for piece in _replace_all(matcher, value or "", replacement))
            found = matcher.search(0)
        except ValueError as error:
            raise self.fail(f"invalid pattern {pattern}: {error}") from None
        if found is None:
            return value or ""
        return (value or "")[: found[0]] + replacement + (value or "")[found[1] :]


# ---------------------------------------------------------------------------------------------------------------------
# Shell patterns. BuildKit makes regular expressions of them; the matcher below finds the same in bounded time.

_ANY, _STAR = "any", "star"
_Token = Tuple[str, str]


def _scannable(text: str) -> str:
    """The runes that Go's text/scanner gives: a byte order mark at the start is dropped."""
    return runes(text).removeprefix("\ufeff")


def _pattern(pattern: str) -> List[_Token]:
    """The tokens of a shell pattern (convertShellPatternToRegex).

    :raises ValueError: an escape of anything but ``* ? \\ } /``.
    """
    tokens: List[_Token] = []
    text = _scannable(pattern)
    pos = 0
    while pos < len(text):
        char = text[pos]
        pos += 1
        if char == "*":
            tokens.append((_STAR, ""))
        elif char == "?":
            tokens.append((_ANY, ""))
        elif char != "\\":
            tokens.append(("", char))
        elif text[pos : pos + 1] not in ("}", "/"):
            if text[pos : pos + 1] not in ("*", "?", "\\"):
                raise ValueError(f"invalid escape \\{text[pos : pos + 1]}")
            tokens.append(("", text[pos]))
            pos += 1
    return tokens


class _Matcher:
    """Finds matches of one pattern in one text, alternatives tried in a regular expression's order.

    States that failed once are not tried again in one search, and all searches together have :data:`MAX_STEPS`.
    """

    def __init__(self, pattern: str, text: str, greedy: bool) -> None:
        self.tokens = _pattern(pattern)
        self.text = runes(text)
        self.greedy = greedy
        self.steps = 0

    def search(self, start: int, anchored: bool = False) -> Optional[Tuple[int, int]]:
        """The leftmost match at or after ``start``, as ``(start, end)``.

        :raises ValueError: more than :data:`MAX_STEPS` steps.
        """
        failed: Set[Tuple[int, int]] = set()
        for begin in range(start, start + 1 if anchored else len(self.text) + 1):
            end = self._match(begin, failed)
            if end is not None:
                return begin, end
        return None

    def _match(self, begin: int, failed: Set[Tuple[int, int]]) -> Optional[int]:
        stack = [(0, begin)]
        while stack:
            state = stack.pop()
            if state in failed:
                continue
            failed.add(state)
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise ValueError("it takes too many steps to match")
            index, pos = state
            if index == len(self.tokens):
                return pos
            stack.extend(self._choices(index, pos))
        return None

    def _choices(self, index: int, pos: int) -> List[Tuple[int, int]]:
        """The states that may follow, the one to try first last."""
        kind, char = self.tokens[index]
        following = self.text[pos : pos + 1]
        if kind != _STAR:
            fits = following == char if not kind else following not in ("", "\n")
            return [(index + 1, pos + 1)] if fits else []
        if following in ("", "\n"):
            return [(index + 1, pos)]
        choices = [(index + 1, pos), (index, pos + 1)]
        return choices if self.greedy else choices[::-1]


def _trim_prefix(pattern: str, value: str, greedy: bool) -> str:
    found = _Matcher(pattern, value, greedy).search(0, anchored=True)
    return value if found is None else value[found[1] :]


def _trim_suffix(pattern: str, value: str, greedy: bool) -> str:
    """Trim at the end, by trimming the reversed value at its start (trimSuffix)."""
    return _trim_prefix(_reversed(runes(pattern)), runes(value)[::-1], greedy)[::-1]


def _reversed(pattern: str) -> str:
    """The pattern from its end to its start, each escape kept before its character (reversePattern)."""
    pieces: List[str] = []
    pos = 0
    while pos < len(pattern):
        size = 2 if pattern[pos] == "\\" and pos + 1 < len(pattern) else 1
        pieces.append(pattern[pos : pos + size])
        pos += size
    return "".join(reversed(pieces))


def _replace_all(matcher: _Matcher, value: str, replacement: str) -> Iterator[str]:
    """The pieces of ``value`` with every match replaced (Go's regexp.ReplaceAllString)."""
    pos = last = 0
    while pos <= len(value):
        found = matcher.search(pos)
        if found is None:
            break
        begin, end = found
        yield value[last:begin]
        if end > last or begin == 0:
            yield _expand_template(replacement, value[begin:end])
        last = end
        pos = end if end > pos else pos + 1
    yield value[last:]


def _expand_template(template: str, match: str) -> str:
    """Go's regexp.Expand: ``$0`` is the match, other ``$name`` and ``${name}`` are empty, ``$$`` is one ``$``."""
    if "$" not in template:
        return template
    import re

    def one(found: "re.Match[str]") -> str:
        name = found.group(1) or found.group(2)
        if name is None:
            return "$"
        return match if name == "0" else ""

    return re.sub(r"\$\$|\$\{(\w+)\}|\$(\w+)|\$", one, template)

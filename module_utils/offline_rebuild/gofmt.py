"""Go's way of printing values, as far as BuildKit's history texts use it (package fmt and strconv)."""

from __future__ import annotations

from typing import Sequence

__all__ = ["go_duration", "go_list", "go_quote", "go_rune"]

_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def quote(text: str) -> str:
    """``strconv.Quote``: double quotes, Go's escapes, printable characters as they are."""
    out = ['"']
    for char in text:
        code = ord(char)
        if char in ('"', "\\"):
            out.append("\\" + char)
        elif char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, kept by surrogateescape
            out.append(f"\\x{code - 0xDC00:02x}")
        elif char == " " or (char.isprintable() and not char.isspace()):
            out.append(char)
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        elif code < 0x10000:
            out.append(f"\\u{code:04x}")
        else:
            out.append(f"\\U{code:08x}")
    out.append('"')
    return "".join(out)


def go_rune(code: int) -> str:
    """``%q`` of an integer: a quoted character, U+FFFD where the number is none."""
    char = chr(code) if 0 <= code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"
    inner = {"'": "\\'", '"': '"'}.get(char) or quote(char)[1:-1]
    return f"'{inner}'"


def go_quote(items: Sequence[str]) -> str:
    """``%q`` of a list of strings: ``["a" "b"]``."""
    return "[" + " ".join(quote(item) for item in items) + "]"


def go_list(items: Sequence[str]) -> str:
    """``%v`` of a list of strings: ``[a b]``."""
    return "[" + " ".join(items) + "]"


def _number(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    digits = len(str(unit)) - 1
    fraction = f"{rest:0{digits}d}".rstrip("0") if rest else ""
    return f"{whole}.{fraction}" if fraction else str(whole)


def go_duration(nanoseconds: int) -> str:
    """``time.Duration.String``: ``30s``, ``1m30s``, ``1h0m0s``, ``1.5ms``, ``0s``."""
    if nanoseconds == 0:
        return "0s"
    sign, value = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    for name, unit in (("ns", 1), ("µs", 1000), ("ms", 1000000)):
        if value < unit * 1000:
            return sign + _number(value, unit) + name
    minutes, seconds = divmod(value, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    text = _number(seconds, 10**9) + "s"
    if hours or minutes:
        text = f"{minutes}m" + text
    if hours:
        text = f"{hours}h" + text
    return sign + text

"""The one exception that reaches an operator.

Every error that the core raises on purpose is an :class:`OfflineRebuildError`: it carries a stable code, the file and
line that are at fault where there are such, and the remedy. The modules turn it into a failed task; anything else that
escapes is a defect and is reported as one (without a traceback, which goes to the run's log).
"""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional

__all__ = ["OfflineRebuildError", "of_system", "on_this_host"]


class OfflineRebuildError(Exception):
    """An error with a code, a place and a remedy.

    :param code: stable, kebab-case, e.g. ``dockerfile-syntax``; documented in docs/errors.md.
    :param message: one or two sentences that say what is wrong, without the remedy.
    :param remedy: what the operator can do; a command to type where there is one.
    :param file: the file at fault (as the operator knows it), if there is one.
    :param line: the 1-based line in ``file``, if known.

    ``host`` is filled in where the error leaves the core.
    """

    def __init__(
        self,
        code: str,
        message: str,
        remedy: str = "",
        file: Optional[str] = None,
        line: Optional[int] = None,
    ) -> None:
        self.code = code
        self.message = message
        self.remedy = remedy
        self.file = file
        self.line = line
        self.host = ""
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.host}: " if self.host else ""
        if self.file:
            place += self.file if self.line is None else f"{self.file}:{self.line}"
            place += ": "
        text = f"{place}{self.message} [{self.code}]"
        if self.remedy:
            text += f" Remedy: {self.remedy}"
        return text

    def to_dict(self) -> Dict[str, Any]:
        """:returns: the fields as a JSON-ready mapping (keys host, code, message, remedy, file, line)."""
        return {
            "host": self.host,
            "code": self.code,
            "message": self.message,
            "remedy": self.remedy,
            "file": self.file,
            "line": self.line,
        }


def of_system(error: OSError) -> OfflineRebuildError:
    """:returns: what the host refused, as an error that an operator can read."""
    made = OfflineRebuildError(
        "host-refused",
        f"the host refused it: {error.strerror or error}",
        "see permissions and free space there; the run needs root",
        file=os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None,
    )
    made.host = socket.gethostname()
    return made


@contextmanager
def on_this_host() -> Iterator[None]:
    """Whatever fails inside leaves as an error that names the host.

    :raises OfflineRebuildError: what was raised; ``host-refused`` for what the system refuses.
    """
    try:
        yield
    except OfflineRebuildError as error:
        error.host = error.host or socket.gethostname()
        raise
    except OSError as error:
        raise of_system(error) from error

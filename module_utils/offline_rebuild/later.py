"""Results that are worked out while something else is done: most of a plan's time is spent waiting for the CLI."""

from __future__ import annotations

import threading
from typing import Callable, Generic, List, Optional, TypeVar

__all__ = ["Later"]

T = TypeVar("T")


class Later(Generic[T]):
    """Calls ``function`` in a thread of its own, at once.

    :param function: called without arguments; what it raises is raised by :meth:`result`.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._values: List[T] = []
        self._error: Optional[BaseException] = None
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._values.append(self._function())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            self._error = error

    def result(self) -> T:
        """:returns: the function's value, when it is there."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._values[0]

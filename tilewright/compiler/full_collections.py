"""Python's full garbage collections put off: while a model is compiled, each would walk every object of torch anew."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_NEVER: Final = 1 << 30


class _Waiting:
    """Who is within, and what the thresholds were before the first one came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = (0, 0, 0)

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = gc.get_threshold()
                gc.set_threshold(*self._before[:2], _NEVER)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            # whoever chose other thresholds meanwhile keeps them
            if not self._inside and gc.get_threshold() == (*self._before[:2], _NEVER):
                gc.set_threshold(*self._before)


_WAITING: Final = _Waiting()


@contextmanager
def put_off() -> Iterator[None]:
    """Within it, whole-heap collections do not start by themselves; those of young objects do. Process-wide.

    A compilation makes a million objects and keeps most of them, and Python takes that for a sign that the heap should
    be walked; a process that has imported torch has a heap that takes a tenth of a second and has nothing to free.
    """
    _WAITING.enter()
    try:
        yield
    finally:
        _WAITING.leave()

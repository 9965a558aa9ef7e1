"""Python's full garbage collections put off: while a model is compiled, each would walk every object of torch anew."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_NEVER: Final = 1 << 30

_lock = threading.Lock()
_inside = 0
_before = (0, 0, 0)


@contextmanager
def put_off() -> Iterator[None]:
    """Within it, whole-heap collections do not start by themselves; those of young objects do. Process-wide.

    A compilation makes a million objects and keeps most of them, and Python takes that for a sign that the heap should
    be walked; a process that has imported torch has a heap that takes a tenth of a second and has nothing to free.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = gc.get_threshold()
            gc.set_threshold(_before[0], _before[1], _NEVER)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            # whoever chose other thresholds meanwhile keeps them
            if not _inside and gc.get_threshold() == (_before[0], _before[1], _NEVER):
                gc.set_threshold(*_before)

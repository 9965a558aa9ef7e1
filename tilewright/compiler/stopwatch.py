"""Seconds of each stage of a compilation, and news of it to whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told a stage's name, how much of it is done and of how much in all (0 where that is not known)."""


@dataclass
class Stopwatch:
    """Seconds by stage, in the order stages ran; `progress` is told what runs.

    A stage inside another is not part of that one's time, so that seconds add up to what all of it took.

    parts: seconds of what a stage is made of, by kind ("passes") and name. Parts may run at the same time.
    """

    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    _inner: float = 0.0

    def tell(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Passes news on to whoever watches."""
        if self.progress is not None:
            self.progress(stage, done, total)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of a block to a stage."""
        self.tell(name)
        begin, outer, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            took = time.perf_counter() - begin
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inner
            self._inner = outer + took

    def part(self, kind: str, name: str) -> AbstractContextManager[None]:
        """Adds the time of a block to a part."""
        return _added(self.parts.setdefault(kind, {}), name)

    def note(self, kind: str, name: str, seconds: float) -> None:
        """Adds the time of a part that was measured elsewhere."""
        found = self.parts.setdefault(kind, {})
        found[name] = found.get(name, 0.0) + seconds


@contextmanager
def _added(to: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    finally:
        to[name] = to.get(name, 0.0) + time.perf_counter() - begin

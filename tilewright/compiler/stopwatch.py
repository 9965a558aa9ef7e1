"""Seconds of each stage of a compilation, and news of it to whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told a stage's name, how much of it is done and of how much in all (0 where that is not known)."""


@dataclass
class Stopwatch:
    """Seconds by stage, in the order stages ran; `progress` is told what runs."""

    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def tell(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Passes news on to whoever watches."""
        if self.progress is not None:
            self.progress(stage, done, total)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of a block to a stage."""
        self.tell(name)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

"""How fast tokens come, for people who watch them come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


class Speed:
    """Counts tokens from now on. The first one carries the prompt, so it is told apart from the rest."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begin = clock()
        self._first = self._last = self._begin
        self.tokens = 0

    def count(self, tokens: int) -> None:
        """So many tokens are there by now, in all."""
        if tokens > self.tokens:
            self._last = self._clock()
            if not self.tokens:
                self._first = self._last
            self.tokens = tokens

    @property
    def to_first(self) -> float:
        """Seconds until the first token."""
        return self._first - self._begin

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first one; None for fewer than two."""
        seconds = self._last - self._first
        return (self.tokens - 1) / seconds if self.tokens > 1 and seconds > 0 else None

    def __str__(self) -> str:
        said = f"{self.tokens} token{'' if self.tokens == 1 else 's'}"
        if self.tokens:
            said += f", the first after {self.to_first:.2f} s"
        return said + (f", then {self.rate:.1f} tokens/s" if self.rate is not None else "")

    def show(self) -> None:
        """The line on stderr, dimmed where that is a terminal."""
        from rich.console import Console
        from rich.text import Text

        width = None if sys.stderr.isatty() else 10_000
        Console(file=sys.stderr, width=width, highlight=False).print(Text(str(self), style="dim"))

"""Texts of printed source that every language of expressions shares: fresh names, and parentheses that say nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Names:
    """Hands out the identifiers of one function, none twice; `reserved` are never given."""

    def __init__(self, reserved: Iterable[str]) -> None:
        self._taken: set[str] = set(reserved)
        self._numbers: Counter[str] = Counter()

    def take(self, name: str) -> bool:
        """Whether the name was free; it is taken now."""
        free = name not in self._taken
        self._taken.add(name)
        return free

    def fresh(self, hint: str) -> str:
        """The next of a series: v0, v1, ..."""
        while True:
            name = f"{hint}{self._numbers[hint]}"
            self._numbers[hint] += 1
            if self.take(name):
                return name


def bare(text: str) -> str:
    """An expression without parentheses around the whole."""
    if not text.startswith("(") or not text.endswith(")"):
        return text
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and place < len(text) - 1:
            return text
    return text[1:-1]

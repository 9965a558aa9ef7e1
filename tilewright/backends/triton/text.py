"""Lines of a kernel in the making: names, indentation, and names that a block's end forgets."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tilewright.backends.source_names import Names, bare
from tilewright.backends.triton.prelude import FUNCTIONS

_RESERVED: Final = frozenset(
    {*keyword.kwlist, *FUNCTIONS, "tl", "triton", "pid", "min", "max", "range", "float", "abs", "launch", "main"}
    | {"DTYPES", "torch", "os", "device", "interpreted", "programs", "num_warps", "num_stages"}
)


class Text:
    """Collects statements. `shared` gives equal expressions of one block (or an enclosing one) one name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.indent = 1
        self._names = Names(_RESERVED)
        self._known: list[dict[str, str]] = [{}]

    def given(self, wanted: str) -> str:
        """A name that somebody chose, numbered where it is taken or no identifier."""
        name = re.sub(r"\W", "_", wanted, flags=re.ASCII)
        if not name.isidentifier():
            return self.fresh(f"d_{name}_")
        return name if self._names.take(name) else self.fresh(f"{name}_")

    def fresh(self, hint: str) -> str:
        """The next of a series: x0, x1, ..."""
        return self._names.fresh(hint)

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def name(self, hint: str, text: str) -> str:
        """Defines a new name."""
        name = self.fresh(hint)
        self.line(f"{name} = {bare(text)}")
        return name

    def shared(self, hint: str, text: str) -> str:
        """A name for a pure expression, the one it has already if it has one here."""
        if re.fullmatch(r"\w+", text):
            return text
        for known in reversed(self._known):
            if text in known:
                return known[text]
        self._known[-1][text] = self.name(hint, text)
        return self._known[-1][text]

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """An indented block under a line."""
        self.line(head)
        self.indent += 1
        self._known.append({})
        before = len(self.lines)
        yield
        if len(self.lines) == before:
            self.line("pass")
        self._known.pop()
        self.indent -= 1

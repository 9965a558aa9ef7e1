"""Lines of a kernel in the making: names, indentation, and names that a block's end forgets."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tilewright.backends.source_names import Names, bare
from tilewright.backends.triton.prelude import FUNCTIONS

_RESERVED: Final = frozenset(
    {*keyword.kwlist, *FUNCTIONS, "tl", "triton", "pid", "min", "max", "range", "float", "abs", "launch", "main"}
    | {"DTYPES", "torch", "os", "device", "interpreted", "programs", "num_warps", "num_stages"}
)


class Text:
    """Collects statements. `shared` gives equal expressions of one block (or an enclosing one) one name.

    An expression is defined in the outermost block that knows all its names, so before loops that do not change it.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.indent = 1
        self._names = Names(_RESERVED)
        self._known: list[dict[str, str]] = [{}]
        self._heads = [0]  # where in `lines` each open block begins
        self._depths: dict[str, int] = {}  # of the block that defines a name, or changes it

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
        self._depths[name] = len(self._heads) - 1
        self.line(f"{name} = {bare(text)}")
        return name

    def shared(self, hint: str, text: str) -> str:
        """A name for a pure expression, the one it has already if it has one here."""
        if re.fullmatch(r"\w+", text):
            return text
        for known in reversed(self._known):
            if text in known:
                return known[text]
        here = len(self._heads) - 1
        level = (
            here if "tl.load(" in text else max((self._depths.get(n, 0) for n in re.findall(r"\w+", text)), default=0)
        )
        if level >= here:
            name = self.name(hint, text)
        else:
            name = self.fresh(hint)
            self._depths[name] = level
            at = self._heads[level + 1]
            self.lines.insert(at, "    " * (level + 1) + f"{name} = {bare(text)}")
            self._heads[level + 1 :] = [head + 1 for head in self._heads[level + 1 :]]
        self._known[min(level, here)][text] = name
        return name

    @contextmanager
    def block(self, head: str, changing: Sequence[str] = ()) -> Iterator[None]:
        """An indented block under a line. changing: names that it defines in its head or assigns again."""
        before = {name: self._depths.get(name, 0) for name in changing}
        self._heads.append(len(self.lines))
        self._depths.update(dict.fromkeys(changing, len(self._heads) - 1))
        self.line(head)
        self.indent += 1
        self._known.append({})
        yield
        if len(self.lines) == self._heads[-1] + 1:
            self.line("pass")
        self._known.pop()
        self._heads.pop()
        self._depths.update(before)
        self.indent -= 1

    def used(self) -> list[str]:
        """The lines without definitions that nothing reads."""
        lines = self.lines
        while True:
            counts = Counter(name for line in lines for name in re.findall(r"\w+", line))
            kept = [x for x in lines if not (m := re.match(r"\s*(\w+) = ", x)) or counts[m[1]] > 1]
            if len(kept) == len(lines):
                return kept
            lines = kept

"""Names for what a C function declares: readable hints, never a keyword, never twice."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

_RESERVED: Final = frozenset(
    {
        "auto", "bool", "break", "case", "char", "const", "continue", "default", "do", "double", "else",
        "enum", "extern", "false", "float", "for", "goto", "if", "inline", "int", "l", "long", "register",
        "restrict", "return", "short", "signed", "sizeof", "static", "struct", "switch", "true", "typedef",
        "union", "unsigned", "void", "volatile", "while", "buffers", "dims", "tid", "nthreads", "asm",
        "typeof",
    }
)  # fmt: skip


class Names:
    """Hands out identifiers of one function."""

    def __init__(self) -> None:
        self._taken: set[str] = set(_RESERVED)
        self._count: Counter[str] = Counter()

    def given(self, wanted: str) -> str:
        """The name that somebody chose, made a C identifier; numbered where it is taken."""
        name = re.sub(r"\W", "_", wanted, flags=re.ASCII)
        name = f"_{name}" if not name or name[0].isdigit() else name
        if name in self._taken or name.endswith(("_t", "_f32", "_f64")):
            return self.fresh(f"{name}_")
        self._taken.add(name)
        return name

    def fresh(self, hint: str) -> str:
        """The next of a series: v0, v1, ..."""
        while True:
            name = f"{hint}{self._count[hint]}"
            self._count[hint] += 1
            if name not in self._taken:
                self._taken.add(name)
                return name

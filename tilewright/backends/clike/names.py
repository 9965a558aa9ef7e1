"""Names for what a C function declares: readable hints, never a keyword, never twice."""

from __future__ import annotations

import re
from typing import Final

from tilewright.backends.source_names import Names

_RESERVED: Final = frozenset(
    {
        "auto", "bool", "break", "case", "char", "const", "continue", "default", "do", "double", "else",
        "enum", "extern", "false", "float", "for", "goto", "if", "inline", "int", "l", "long", "register",
        "restrict", "return", "short", "signed", "sizeof", "static", "struct", "switch", "true", "typedef",
        "union", "unsigned", "void", "volatile", "while", "buffers", "dims", "tid", "nthreads", "asm",
        "typeof",
    }
)  # fmt: skip


class CNames(Names):
    """Hands out the identifiers of one C function."""

    def __init__(self) -> None:
        super().__init__(_RESERVED)

    def given(self, wanted: str) -> str:
        """The name that somebody chose, made a C identifier; numbered where it is taken."""
        name = re.sub(r"\W", "_", wanted, flags=re.ASCII)
        name = f"_{name}" if not name or name[0].isdigit() else name
        if name.endswith(("_t", "_f32", "_f64")) or not self.take(name):
            return self.fresh(f"{name}_")
        return name

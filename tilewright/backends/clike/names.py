"""Names for what a C function declares: readable hints, never a keyword or a function it calls, never twice."""

from __future__ import annotations

import re
from typing import Final

from tilewright.backends.clike.prelude import TYPES
from tilewright.backends.source_names import Names

_RESERVED: Final = frozenset(
    {
        "auto", "bool", "break", "case", "char", "const", "continue", "default", "do", "double", "else",
        "enum", "extern", "false", "float", "for", "goto", "if", "inline", "int", "l", "long", "register",
        "restrict", "return", "short", "signed", "sizeof", "static", "struct", "switch", "true", "typedef",
        "union", "unsigned", "void", "volatile", "while", "buffers", "dims", "tid", "nthreads", "asm",
        "typeof",
        # what printed expressions call
        "memcpy", "NAN", "INFINITY", "INT64_MIN", "fabs", "fabsf", "sqrt", "sqrtf", "floor", "floorf", "ceil", "ceilf",
        "trunc", "truncf", "rint", "rintf",
    }
)  # fmt: skip
# Types of the C library and functions of the prelude end so.
_RESERVED_ENDS: Final = ("_t", "_bits", *(f"_{name}" for name in TYPES))


class CNames(Names):
    """Hands out the identifiers of one C function."""

    def __init__(self) -> None:
        super().__init__(_RESERVED)

    def given(self, wanted: str) -> str:
        """The name that somebody chose, made a C identifier; numbered where it is taken."""
        name = re.sub(r"\W", "_", wanted, flags=re.ASCII)
        name = f"_{name}" if not name or name[0].isdigit() else name
        if name.endswith(_RESERVED_ENDS) or not self.take(name):
            return self.fresh(f"{name}_")
        return name

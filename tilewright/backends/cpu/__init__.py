"""The CPU backend: tile -> loops -> MLIR text -> object code, for classes of x86 and the generic rung of others.

The manifest is imported on use: compile workers import modules of this package and need none of it.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "backend":
        from tilewright.backends.cpu.manifest import backend

        return backend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""How torch states windows, for pools and convolutions alike: one number an axis, or one number for all axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewright.frontend.registry import Unsupported
from tilewright.ir.dims import Expr


def per_axis(value: Any, spatial: int, default: int | Sequence[int] = 0) -> list[int]:
    """A number for each of `spatial` axes. default: what an empty list stands for, torch's way to leave it out.

    Unsupported where a number depends on the sizes of a call.
    """
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    if not listed:
        listed = list(default) if isinstance(default, Sequence) else [default]
    plain: list[int] = []
    for number in listed:
        fixed = number.constant if isinstance(number, Expr) else number
        if fixed is None:
            raise Unsupported("a window whose size depends on the input")
        plain.append(int(fixed))
    return plain * spatial if len(plain) == 1 else plain

"""Operators that torch computes in f32 and rounds once, whatever narrow float they are given."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from xdsl.ir import SSAValue

from tilewright.frontend.builder import Builder
from tilewright.ir.dtypes import BF16, F16, F32
from tilewright.ir.graph.base import tensor

_Lowering = TypeVar("_Lowering", bound=Callable[..., Any])


def rounded_once(lowering: _Lowering) -> _Lowering:
    """A composition of scalar functions whose steps are in f32 where its result is bf16 or f16.

    Rounded after every step, a difference of near numbers loses all digits and a quotient may reach the next whole one.
    """

    @functools.wraps(lowering)
    def lower(c: Builder, *args: Any, **kwargs: Any) -> Any:
        wanted = c.result.dtype
        if wanted not in (BF16, F16):
            return lowering(c, *args, **kwargs)
        with c.computing_in(F32):
            found = lowering(c, *map(_widened(c), args), **{n: _widened(c)(v) for n, v in kwargs.items()})
        return c.cast(found, wanted)

    return lower  # type: ignore[return-value]  # called as the lowering is


def _widened(c: Builder) -> Callable[[Any], Any]:
    def wide(value: Any) -> Any:
        narrow = isinstance(value, SSAValue) and tensor(value).dtype in (BF16, F16)
        return c.cast(value, F32) if narrow else value

    return wide

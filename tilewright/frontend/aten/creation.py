"""Tensors made from nothing: constants, counting, triangles."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.builder import Builder, Weak
from tilewright.frontend.registry import lowers
from tilewright.ir.dims import Expr, floordiv, maximum
from tilewright.ir.dtypes import F32, F64, I1, I64
from tilewright.ir.graph.base import tensor


def _filled(value: float) -> Any:
    def lower(c: Builder, *_: Any, **__: Any) -> SSAValue:
        return c.full(value, c.result.dims, c.result.dtype)

    return lower


# uninitialised memory reads as zeros: any value is allowed there
for _name in ("zeros.default", "zeros_like.default", "new_zeros.default", "empty.memory_format", "empty_like.default",
              "new_empty.default", "empty_strided.default", "new_empty_strided.default", "zero.default"):  # fmt: skip
    lowers(f"aten.{_name}")(_filled(0))
for _name in ("ones.default", "ones_like.default", "new_ones.default"):
    lowers(f"aten.{_name}")(_filled(1))


@lowers("aten.full.default")
def full(c: Builder, size: Any, fill_value: Any, **_: Any) -> SSAValue:
    return c.full(fill_value, c.result.dims, c.result.dtype)


@lowers("aten.full_like.default", "aten.fill.Scalar", "aten.fill.Tensor")
def full_like(c: Builder, self: SSAValue, fill_value: Any, **_: Any) -> SSAValue:
    return c.full(fill_value, c.result.dims, c.result.dtype)


@lowers("aten.new_full.default")
def new_full(c: Builder, self: SSAValue, size: Any, fill_value: Any, **_: Any) -> SSAValue:
    return c.full(fill_value, c.result.dims, c.result.dtype)


@lowers("aten.scalar_tensor.default", "prims.scalar_tensor.default")
def scalar_tensor(c: Builder, s: Any, **_: Any) -> SSAValue:
    return c.operand(s, c.result.dtype)


@lowers("aten.arange.default")
def arange(c: Builder, end: Any, **_: Any) -> SSAValue:
    return arange_step(c, 0, end, 1)


@lowers("aten.arange.start")
def arange_start(c: Builder, start: Any, end: Any, **_: Any) -> SSAValue:
    return arange_step(c, start, end, 1)


@lowers("aten.arange.start_step")
def arange_step(c: Builder, start: Any, end: Any, step: Any = 1, **_: Any) -> SSAValue:
    """Counting in integers where that is exact, else in f64 as torch does."""
    (length,), dtype = c.result.dims, c.result.dtype
    if isinstance(step, Expr) and step.constant is not None:
        step = step.constant
    whole = not isinstance(start, Weak) and isinstance(step, (int, float)) and step == int(step)
    if whole and (isinstance(start, Expr) or start == int(start)):
        exact = start if isinstance(start, Expr) else int(start)
        counted = c.count(length, exact, int(step), dtype if dtype.is_integer else I64)
        return c.cast(counted, dtype)
    steps = c.cast(c.iota([length], 0), F64)
    return c.cast(c.map("add", start, c.map("mul", step, steps, dtype=F64), dtype=F64), dtype)


@lowers("aten.linspace.default", "tilewright.linspace.default")
def linspace(c: Builder, start: Any, end: Any, steps: Any, **_: Any) -> SSAValue:
    """start + gap * i in the first half and end - gap * (steps - 1 - i) in the other, so that both ends are exact."""
    (length,), dtype = c.result.dims, c.result.dtype
    # integers are cut from what f64 gives, narrow floats rounded from f32
    wide = dtype if dtype in (F32, F64) else F32 if dtype.is_float else F64
    first, last = c.operand(start, wide), c.operand(end, wide)
    gap = c.map("div", c.map("sub", last, first, dtype=wide), maximum(length - 1, Expr.of(1)), dtype=wide)
    from_start = c.map("mul", gap, c.iota([length], 0), dtype=wide)
    to_end = c.map("mul", gap, c.iota([length], 0, start=length - 1, step=-1), dtype=wide)
    begins = c.map("lt", c.iota([length], 0), maximum(floordiv(length, Expr.of(2)), Expr.of(1)), dtype=I64)
    found = c.select(begins, c.map("add", first, from_start, dtype=wide), c.map("sub", last, to_end, dtype=wide), wide)
    return c.cast(found, dtype)


@lowers("aten.eye.default", "aten.eye.m")
def eye(c: Builder, *_: Any, **__: Any) -> SSAValue:
    rows, columns = c.iota(c.result.dims, 0), c.iota(c.result.dims, 1)
    return c.cast(c.map("eq", rows, columns, dtype=I64), c.result.dtype)


def triangle(c: Builder, dims: tuple[Expr, ...], diagonal: Any, *, lower: bool) -> SSAValue:
    """i1 [rows, columns]: true on and below (or above) a diagonal of the last two axes."""
    rows, columns = c.iota([dims[-2], Expr.of(1)], 0), c.iota([Expr.of(1), dims[-1]], 1)
    shifted = rows if diagonal == 0 else c.map("add", rows, diagonal, dtype=I64)
    return c.map("le" if lower else "ge", columns, shifted, dtype=I64)


@lowers("aten.tril.default")
def tril(c: Builder, self: SSAValue, diagonal: Any = 0) -> SSAValue:
    return _kept(c, self, triangle(c, tensor(self).dims, diagonal, lower=True))


@lowers("aten.triu.default")
def triu(c: Builder, self: SSAValue, diagonal: Any = 0) -> SSAValue:
    return _kept(c, self, triangle(c, tensor(self).dims, diagonal, lower=False))


def _kept(c: Builder, x: SSAValue, inside: SSAValue) -> SSAValue:
    """x where inside, zero elsewhere; a tensor of ones is the triangle itself."""
    dtype = tensor(x).dtype
    if c.splat(x) == 1:
        return c.broadcast(c.cast(inside, dtype), tensor(x).dims)
    if dtype == I1:
        return c.map("and", x, inside, dtype=I1)
    return c.select(inside, x, 0, dtype)

"""Operators that put tensors together: concatenation, stacking, padding."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.builder import Builder, axis_of
from tilewright.frontend.proving import at_most
from tilewright.frontend.registry import Unsupported, lowers
from tilewright.ir.dims import Expr, maximum
from tilewright.ir.dtypes import I64
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.indexing import GatherOp
from tilewright.ir.graph.shape import ConcatOp, PadOp


def concat(c: Builder, parts: list[SSAValue], axis: int) -> SSAValue:
    """Tensors of one dtype one after another; those known to be empty are left out."""
    kept = [x for x in parts if tensor(x).dims[axis].constant != 0] or parts[:1]
    return kept[0] if len(kept) == 1 else c.emit(ConcatOp, c.alike(kept, apart=axis), axis=axis)


@lowers("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(c: Builder, tensors: list[SSAValue], dim: int = 0) -> SSAValue:
    rank = c.result.rank
    # torch still accepts empty vectors among tensors of any rank
    parts = [x for x in tensors if tensor(x).rank == rank] or tensors
    return concat(c, [c.cast(x, c.result.dtype) for x in parts], axis_of(dim, rank))


@lowers("aten.stack.default")
def stack(c: Builder, tensors: list[SSAValue], dim: int = 0) -> SSAValue:
    axis = axis_of(dim, c.result.rank)
    one = [Expr.of(1) if i == axis else d for i, d in enumerate(c.result.dims)]
    return concat(c, [c.reshape(c.cast(x, c.result.dtype), one) for x in tensors], axis)


@lowers("aten.hstack.default", "aten.vstack.default", "aten.column_stack.default")
def hstack(c: Builder, tensors: list[SSAValue]) -> SSAValue:
    name = str(c.node.target)
    if "vstack" in name:
        rows = [c.reshape(x, [1, *tensor(x).dims]) if tensor(x).rank < 2 else x for x in tensors]
        return concat(c, [c.cast(x, c.result.dtype) for x in rows], 0)
    if "column" in name:
        tensors = [c.reshape(x, [*tensor(x).dims, 1]) if tensor(x).rank == 1 else x for x in tensors]
    axis = 0 if tensor(tensors[0]).rank == 1 else 1
    return concat(c, [c.cast(x, c.result.dtype) for x in tensors], axis)


@lowers("aten.constant_pad_nd.default")
def constant_pad(c: Builder, self: SSAValue, pad: list[Any], value: float = 0) -> SSAValue:
    """Amounts come in pairs from the last axis backwards; negative ones cut off."""
    rank = tensor(self).rank
    low, high = [Expr.of(0)] * rank, [Expr.of(0)] * rank
    for i in range(len(pad) // 2):
        axis = rank - 1 - i
        low[axis], high[axis] = Expr.of(pad[2 * i]), Expr.of(pad[2 * i + 1])
    for axis in range(rank):
        size = tensor(self).dims[axis]
        cut_low, cut_high = _amount_below_zero(c, low[axis]), _amount_below_zero(c, high[axis])
        self = c.slice(self, axis, cut_low, size - cut_high)
        low[axis], high[axis] = low[axis] + cut_low, high[axis] + cut_high
    if not any((*low, *high)) or all(n.constant == 0 for n in (*low, *high)):
        return self
    if not tensor(self).dtype.is_float and value != int(value):
        raise Unsupported(f"padding {tensor(self).dtype} with {value}")
    return c.emit(PadOp, self, low=low, high=high, value=float(value))


def _amount_below_zero(c: Builder, amount: Expr) -> Expr:
    negative = c.symbols.space.compare(amount, "<", 0)
    if negative is None and amount.constant is None:
        negative = all(coefficient < 0 for _, coefficient in amount.terms)
    return -amount if negative else Expr.of(0)


@lowers("aten.pad.default")
def pad_mode(
    c: Builder, self: SSAValue, pad: list[Any], mode: str = "constant", value: float | None = None
) -> SSAValue:
    if mode == "constant":
        return constant_pad(c, self, pad, value or 0)
    rank = tensor(self).rank
    for i in range(len(pad) // 2):
        axis, low, high = rank - 1 - i, Expr.of(pad[2 * i]), Expr.of(pad[2 * i + 1])
        size = tensor(self).dims[axis]
        places = c.iota([low + size + high], 0, start=-low)
        self = c.emit(GatherOp, self, _folded_back(c, places, size, mode), axis=axis)
    return self


def _folded_back(c: Builder, places: SSAValue, size: Expr, mode: str) -> SSAValue:
    """The element of an axis that stands at places before, in and behind it."""
    match mode:
        case "replicate":
            return c.map("max", c.map("min", places, size - 1, dtype=I64), 0, dtype=I64)
        case "reflect":
            last = size - 1
            from_end = c.map("sub", last, c.map("abs", places, dtype=I64), dtype=I64)
            return c.map("sub", last, c.map("abs", from_end, dtype=I64), dtype=I64)
        case "circular":
            return c.map("remainder", places, size, dtype=I64)
        case _:
            raise Unsupported(f"padding by {mode}")


@lowers("aten.copy.default")
def copy(c: Builder, self: SSAValue, src: SSAValue, non_blocking: bool = False) -> SSAValue:
    return c.broadcast(c.cast(src, c.result.dtype), c.result.dims)


@lowers("aten.roll.default")
def roll(c: Builder, self: SSAValue, shifts: list[int], dims: list[int] | None = None) -> SSAValue:
    if not dims:
        flat = c.reshape(self, [tensor(self).elements])
        return c.reshape(_rolled(c, flat, 0, Expr.of(shifts[0])), c.result.dims)
    for shift, dim in zip(shifts, dims, strict=True):
        self = _rolled(c, self, axis_of(dim, tensor(self).rank), Expr.of(shift))
    return self


def _rolled(c: Builder, x: SSAValue, axis: int, shift: Expr) -> SSAValue:
    size = tensor(x).dims[axis]
    if size.constant == 0:
        return x
    # an axis of size 0 has nothing to roll
    cut = -shift % (size if at_most(c.symbols.space, Expr.of(1), size) else maximum(size, 1))
    return concat(c, [c.slice(x, axis, cut, size), c.slice(x, axis, 0, cut)], axis)

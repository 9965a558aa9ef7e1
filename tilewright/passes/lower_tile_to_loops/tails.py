"""Tails of tiles: where an axis runs past the end of the data, and what the elements beyond are known to be.

A `Limit` is `extent - at` along an axis that starts at a loop's or program's coordinate. Loads that fill, and
comparisons of coordinates with a size, have constants beyond such a limit, and arithmetic hands them on: a masked score
is -inf there and its weight 0, so neither needs to be computed, and a sum over weights ends at the limit.

A shift of a whole row may be NaN, and then the row's tail is NaN, too, and not its constant. A sum or product over the
row is NaN either way, as long as the row has an element before the limit and only functions that hand NaN on lie
between. Such constants are kept as `sure=False`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from xdsl.ir import BlockArgument, SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import BF16, DTYPES, I1
from tilewright.ir.scalars import SCALARS
from tilewright.ir.tile import compute
from tilewright.ir.tile.base import element, tile, view
from tilewright.ir.tile.memory import POISON, LoadOp, StageOp
from tilewright.ir.tile.structure import ExprOp, ForOp, KernelOp
from tilewright.passes.lower_tile_to_loops.operands import unit_axis, unit_reshape
from tilewright.passes.lower_tile_to_loops.sites import lane_axis

_KEEPS_NAN: Final = frozenset({"sum", "add", "sub", "mul", "div", "neg", "exp", "exp2", "exp2_coarse"})
_LEAST: Final = -float("inf")
_NEUTRAL: Final = {
    "sum": 0.0, "max": _LEAST, "maxnum": _LEAST, "min": -_LEAST, "any": 0.0, "all": 1.0, "prod": 1.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limit:
    """`extent - at` elements along an axis; `at` is a coordinate of the grid or of a loop, or follows from some."""

    extent: Expr
    at: SSAValue


@dataclass(frozen=True, slots=True)
class Constant:
    """What every element at or beyond a limit is. Not sure: or all of the row is NaN, before the limit, too."""

    value: float
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Tail:
    """What every element at or beyond the limit is."""

    limit: Limit
    constant: Constant


def tail(value: SSAValue, axis: int) -> Tail | None:
    """The tail of a tile along an axis, where one is known."""
    for limit in _candidates(value, axis):
        constant = beyond(value, axis, limit)
        if constant is not None:
            return Tail(limit, constant)
    return None


def folded_limit(op: compute.ReduceOp | compute.AccumulateOp) -> Limit | None:
    """Where a fold of rows may end, because what follows joins to nothing. Whoever folds stops there."""
    source = op.args[0] if isinstance(op, compute.ReduceOp) else op.source
    axis = op.axis.data if isinstance(op, compute.ReduceOp) else tile(source).rank - 1
    if axis != lane_axis(tile(source).extents) or op.fn.data not in _NEUTRAL or not tile(source).dtype.is_float:
        return None
    found = tail(source, axis)
    if found is None or found.constant.value != _NEUTRAL[op.fn.data]:
        return None
    return found.limit if found.constant.sure or op.fn.data in _KEEPS_NAN else None


def depth_limit(op: compute.DotOp | compute.DotScaledOp) -> Limit | None:
    """Where a dot's k may end: one side's elements are 0 from there on, and the other's a finite constant.

    Every dot stops there.
    """
    if not isinstance(op, compute.DotOp):
        return None
    for (side, axis), (other, across) in (((op.a, 1), (op.b, 0)), ((op.b, 0), (op.a, 1))):
        found = tail(side, axis)
        if found is not None and found.constant.value == 0:
            facing = beyond(other, across, found.limit)
            if facing is not None and facing.sure and np.isfinite(facing.value):
                return found.limit
    return None


def beyond(value: SSAValue, axis: int, limit: Limit) -> Constant | None:
    """The constant that a tile's elements are at and beyond the limit along an axis, if they are one."""
    op = value.owner
    match op:
        case compute.ConstantOp():
            return Constant(op.value.data)
        case LoadOp():
            filled = op.fill.data != POISON and _limit_of(op, axis) == limit
            return Constant(op.value.data) if filled else None
        case StageOp() | compute.BroadcastOp():
            return beyond(op.source, axis, limit)
        case compute.CastOp():
            known = beyond(op.source, axis, limit)
            if known is None or not (known.sure or DTYPES[op.dtype.data].is_float):
                return None
            return Constant(float(element(known.value, DTYPES[op.dtype.data])), known.sure)
        case compute.TransposeOp():
            return beyond(op.source, op.permutation.data[axis], limit)
        case compute.ReshapeOp() if unit_reshape(op):
            source = unit_axis(op, axis)
            return None if source is None else beyond(op.source, source, limit)
        case compute.MapOp():
            if _compared(op, axis) == limit:
                return Constant(0.0)
            args = [beyond(a, axis, limit) if _follows(a, axis) else _uniform(a) for a in op.args]
            return _shifted(op, args, axis, limit) or _mapped(op, args)
        case _:
            return None


def _follows(value: SSAValue, axis: int) -> bool:
    return tile(value).extents[axis] > 1


def _uniform(value: SSAValue) -> Constant | None:
    op = value.owner
    return Constant(op.value.data) if isinstance(op, compute.ConstantOp) else None


def _mapped(op: compute.MapOp, args: Sequence[Constant | None]) -> Constant | None:
    """An elementwise function where some operands are constants."""
    values = [None if a is None else a.value for a in args]
    dtypes = [tile(a).dtype for a in op.args]
    match op.fn.data, args:
        case "select", [Constant(value, True), first, second]:
            chosen = first if value else second
            return chosen if chosen is not None and chosen.sure else None
        case "and", _ if 0.0 in values:
            return Constant(0.0)
        case "or", _ if 1.0 in values and dtypes[0] is I1:
            return Constant(1.0)
    known = [a for a in args if a is not None]
    if len(known) < len(args) or any(d is BF16 for d in dtypes):
        return None
    sure = all(a.sure for a in known)
    if not sure and op.fn.data not in _KEEPS_NAN:
        return None
    operands = [np.asarray(element(a.value, d)) for a, d in zip(known, dtypes, strict=True)]
    with np.errstate(all="ignore"):
        result = float(SCALARS[op.fn.data].numpy(*operands))
    return None if np.isnan(result) else Constant(result, sure)


def _shifted(op: compute.MapOp, args: Sequence[Constant | None], axis: int, limit: Limit) -> Constant | None:
    """-inf minus a number that is one for the row and never -inf: -inf, unless the row is NaN."""
    if op.fn.data != "sub" or args[0] is None or args[0].value != -np.inf or args[1] is not None:
        return None
    shift = op.args[1]
    if _follows(shift, axis) or not _never(shift, -np.inf) or not _starts_before(limit):
        return None
    return Constant(-np.inf, sure=False)


def _never(value: SSAValue, excluded: float) -> bool:
    """Whether a tile is `y == excluded ? other : y`."""
    op = value.owner
    while isinstance(op, compute.BroadcastOp):
        op = op.source.owner
    if not isinstance(op, compute.MapOp) or op.fn.data != "select":
        return False
    condition, instead, kept = op.args
    test = condition.owner
    if not isinstance(test, compute.MapOp) or test.fn.data != "eq" or test.args[0] is not kept:
        return False
    against, other = _uniform(test.args[1]), _uniform(instead)
    return against is not None and against.value == excluded and other is not None and other.value != excluded


def _starts_before(limit: Limit) -> bool:
    """Whether the coordinate lies below the extent wherever code runs: a loop or the grid over that extent gives it."""
    at = limit.at
    if not isinstance(at, BlockArgument):
        return False
    match at.owner.parent_op():
        case ForOp() as loop:
            end = loop.hi.owner
            return at.index == 0 and isinstance(end, ExprOp) and not end.args and end.expr == limit.extent
        case KernelOp() as kernel:
            axis = at.index - (len(kernel.block.args) - len(kernel.extents.data))
            return axis >= 0 and kernel.extents.data[axis] == limit.extent
        case _:
            return False


def _limit_of(op: LoadOp, axis: int) -> Limit | None:
    at = op.at[axis]
    return Limit(view(op.source).dims[axis], at) if isinstance(at, BlockArgument) else None


def _compared(op: compute.MapOp, axis: int) -> Limit | None:
    """The limit of `coordinate < size` along an axis."""
    if op.fn.data != "lt":
        return None
    left, right = (a.owner for a in op.args)
    while isinstance(left, compute.BroadcastOp):
        left = left.source.owner
    while isinstance(right, compute.BroadcastOp):
        right = right.source.owner
    if not isinstance(left, compute.IndexTileOp) or left.axis.data != axis or not isinstance(right, compute.SplatOp):
        return None
    size = right.source.owner
    if not isinstance(size, ExprOp) or size.args or not isinstance(left.base, BlockArgument):
        return None
    return Limit(size.expr, left.base)


def _candidates(value: SSAValue, axis: int) -> list[Limit]:
    """The limits that loads and comparisons behind a tile have along an axis."""
    op = value.owner
    match op:
        case LoadOp():
            found = _limit_of(op, axis)
            return [found] if found is not None else []
        case StageOp() | compute.BroadcastOp() | compute.CastOp():
            return _candidates(op.source, axis)
        case compute.TransposeOp():
            return _candidates(op.source, op.permutation.data[axis])
        case compute.ReshapeOp() if unit_reshape(op):
            source = unit_axis(op, axis)
            return [] if source is None else _candidates(op.source, source)
        case compute.MapOp():
            compared = _compared(op, axis)
            below = [limit for a in op.args if _follows(a, axis) for limit in _candidates(a, axis)]
            return list(dict.fromkeys([*([compared] if compared is not None else []), *below]))
        case _:
            return []

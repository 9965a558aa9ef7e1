"""The named combines of reductions and scans on loop values: what joins two partial results, and what joins to nothing.

A partial result is a tuple of values (one for "sum", three for "attention"), scalars or vectors of equal lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tilewright.ir import loop_math
from tilewright.ir.dtypes import F32, I1, DType
from tilewright.ir.loops import LoopBuilder, ReduceKind, Value
from tilewright.ir.tile.compute import LANES
from tilewright.passes.lower_tile_to_loops.scalar_functions import NARROW, apply

Parts = Sequence[Value]

# Combines for which any order gives the same bits, so that one accumulator is enough.
UNORDERED: Final = frozenset({"max", "maxnum", "min", "any", "all", "argmax", "argmin"})
_FUNCTION: Final = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and"}
_TREE: Final[dict[str, ReduceKind]] = {"sum": "add", "prod": "mul", "any": "or", "all": "and"}


def combine(b: LoopBuilder, fn: str, left: Parts, right: Parts) -> list[Value]:
    """The two partial results joined, `left` before `right`."""
    match fn:
        case "argmax" | "argmin":
            return _best(b, fn, left, right)
        case "attention":
            return _attention(b, left, right)
        case "welford":
            return _welford(b, left, right)
        case "maxnum" if left[0].type.dtype in NARROW:
            return [apply(b, "max", [left[0], right[0]])]
        case "maxnum":
            return [b.max(right[0], left[0])]  # the plain form gives its second operand where unordered
        case _:
            return [apply(b, _FUNCTION[fn], [left[0], right[0]])]


def identity(fn: str, dtypes: Sequence[DType]) -> list[int | float]:
    """The partial result that changes nothing it is joined to, bit for bit."""
    first = dtypes[0]
    match fn:
        case "sum":
            return [-0.0 if first.is_float else 0]  # 0.0 + -0.0 is 0.0, so -0.0 is the neutral one
        case "prod":
            return [1.0 if first.is_float else 1]
        case "max" | "maxnum" | "min":
            return [_extreme(first, lowest=fn != "min")]
        case "any" | "all":
            return [0 if fn == "any" else 1]
        case "argmax" | "argmin":
            return [_extreme(first, lowest=fn == "argmax"), _extreme(dtypes[1], lowest=False)]
        case "attention":
            return [-float("inf"), 0.0, 0.0]
        case _:
            return [0.0, 0.0, 0.0]  # a count of 0 makes welford take the other side


def across(b: LoopBuilder, fn: str, parts: Parts, present: int = LANES) -> list[Value]:
    """All lanes of a partial result joined: l and l + n/2, then n/4, ... the lower lane on the left.

    present: how many lanes hold something; the others take no part.
    """
    dtype = parts[0].type.dtype
    if len(parts) == 1 and dtype not in NARROW:
        return [b.reduce(_kind(fn, dtype), parts[0])]
    while parts[0].type.lanes > 1:
        half = parts[0].type.lanes // 2
        lower = [b.shuffle(p, range(half)) for p in parts]
        upper = [b.shuffle(p, range(half, 2 * half)) for p in parts]
        joined = combine(b, fn, lower, upper)
        if present < 2 * half:
            both = b.tail_mask(max(present - half, 0), half)
            joined = [b.select(both, j, p) for j, p in zip(joined, lower, strict=True)]
        parts, present = joined, min(present, half)
    return list(parts)


def _kind(fn: str, dtype: DType) -> ReduceKind:
    if fn == "maxnum":
        return "or" if dtype is I1 else "max"
    if fn in ("max", "min"):
        if dtype is I1:
            return "or" if fn == "max" else "and"
        if dtype.is_float:
            return "maximum" if fn == "max" else "minimum"
        return "max" if fn == "max" else "min"
    if dtype is I1:
        return "or" if fn in ("sum", "any") else "and"
    return _TREE[fn]


def _extreme(dtype: DType, *, lowest: bool) -> int | float:
    if dtype.is_float:
        return -float("inf") if lowest else float("inf")
    if dtype.kind == "int":
        return -(1 << (dtype.bits - 1)) if lowest else (1 << (dtype.bits - 1)) - 1
    return 0 if lowest else (1 << dtype.bits) - 1


def _best(b: LoopBuilder, fn: str, left: Parts, right: Parts) -> list[Value]:
    """(key, index): NaN before everything, then the better key, then the lower index."""
    (first, at), (second, other) = left, right
    x, y = (b.cast(k, F32) if k.type.dtype in NARROW else k for k in (first, second))
    better = b.compare("gt" if fn == "argmax" else "lt", x, y)
    equal, lower = b.compare("eq", x, y), b.compare("le", at, other)
    if x.type.dtype.is_float:
        nan, other_nan = b.is_nan(x), b.is_nan(y)
        equal = b.or_(equal, b.and_(nan, other_nan))
        better = b.or_(nan, b.and_(better, b.not_(other_nan)))
    take = b.select(equal, lower, better)
    return [b.select(take, first, second), b.select(take, at, other)]


def _attention(b: LoopBuilder, left: Parts, right: Parts) -> list[Value]:
    """(m, l, O): running maximum, denominator and weighted sum; a side at m = -inf weighs nothing."""
    most = b.maximum(left[0], right[0])
    weights = []
    for m in (left[0], right[0]):
        weight = loop_math.exp(b, b.sub(m, most))
        weights.append(b.select(b.compare("eq", m, -float("inf")), b.const(0.0, F32, m.type.lanes), weight))
    joined = [b.add(b.mul(x, weights[0]), b.mul(y, weights[1])) for x, y in zip(left[1:], right[1:], strict=True)]
    return [most, *joined]


def _welford(b: LoopBuilder, left: Parts, right: Parts) -> list[Value]:
    """(mean, M2, count) of two sets, after Chan, Golub and LeVeque (1979)."""
    (mean1, squares1, n1), (mean2, squares2, n2) = left, right
    n, gap = b.add(n1, n2), b.sub(mean2, mean1)
    share = b.div(n2, b.select(b.compare("eq", n, 0.0), b.const(1.0, n.type.dtype, n.type.lanes), n))
    nothing = b.compare("eq", n2, 0.0)
    mean = b.select(nothing, mean1, b.add(mean1, b.mul(gap, share)))
    cross = b.mul(b.mul(b.mul(gap, gap), n1), share)
    squares = b.select(nothing, squares1, b.add(b.add(squares1, squares2), cross))
    empty = b.compare("eq", n1, 0.0)
    return [b.select(empty, mean2, mean), b.select(empty, squares2, squares), n]

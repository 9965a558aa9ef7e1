"""Reductions and scans of tiles, with their order spelled out: an order fixed here is the same on every machine.

Canonical lanes: elements l, l + 16, l + 32, ... of the reduced axis combine in that order in lane l of 16, each lane
beginning with its first element. Then lanes l and l + 8 combine, then l and l + 4, l + 2, l + 1, the lower lane
always on the left. Lanes that have no element take no part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any, Final, TypeAlias

import numpy as np
from xdsl.ir import Attribute
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def, var_operand_def, var_result_def

from tilewright.ir.attributes import Int, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dtypes import I1
from tilewright.ir.loops.elementwise import fma
from tilewright.ir.scalars import SCALARS
from tilewright.ir.tile.base import Array, TileOp, check_axis, tile
from tilewright.ir.types import TileType

LANES = 16  # the canonical lanes of an ordered reduction, whatever the machine's vectors are

Parts: TypeAlias = tuple[Array, ...]
Combine: TypeAlias = Callable[[Parts, Parts], Parts]


def _single(function: Callable[[Array, Array], Array]) -> Combine:
    # the result keeps the operands' dtype: NumPy would widen small integers in some functions
    return lambda a, b: (np.asarray(function(a[0], b[0])).astype(a[0].dtype, copy=False),)


def _best(better: Callable[[Array, Array], Array]) -> Combine:
    """Keys with the index they belong to: NaN before everything, then the better key, then the lower index."""

    def combine(a: Parts, b: Parts) -> Parts:
        (first, at), (second, other) = a, b
        nan, other_nan = _isnan(first), _isnan(second)
        equal = (nan & other_nan) | (first == second)
        take_first = np.where(equal, at <= other, nan | (~other_nan & better(first, second)))
        return np.where(take_first, first, second), np.where(take_first, at, other)

    return combine


def _isnan(values: Array) -> Array:
    return np.isnan(values) if values.dtype.kind in "fV" else np.zeros(values.shape, bool)


def merge_attention(a: Parts, b: Parts) -> Parts:
    """The softmax merge of (m, l, O): running maximum, denominator and weighted sum; a side at m = -inf weighs
    nothing."""
    (m1, l1, o1), (m2, l2, o2) = a, b
    exp, least = SCALARS["exp"].numpy, -np.inf
    m = np.maximum(m1, m2)
    w1 = np.where(m1 == least, m.dtype.type(0), exp(m1 - m)).astype(m.dtype)
    w2 = np.where(m2 == least, m.dtype.type(0), exp(m2 - m)).astype(m.dtype)
    return m, l1 * w1 + l2 * w2, o1 * w1 + o2 * w2


def _merge_welford(a: Parts, b: Parts) -> Parts:
    """(mean, M2, count) of two sets, after Chan, Golub and LeVeque (1979)."""
    (mean1, squares1, n1), (mean2, squares2, n2) = a, b
    n, gap, one = n1 + n2, mean2 - mean1, n1.dtype.type(1)
    share = n2 / np.where(n == 0, one, n)
    mean = np.where(n2 == 0, mean1, mean1 + gap * share)
    squares = np.where(n2 == 0, squares1, squares1 + squares2 + gap * gap * n1 * share)
    return np.where(n1 == 0, mean2, mean), np.where(n1 == 0, squares2, squares), n


COMBINES: Final[dict[str, Combine]] = {
    "sum": _single(np.add),
    "prod": _single(np.multiply),
    "max": _single(np.maximum),
    "maxnum": _single(np.fmax),  # any of the operands where one is NaN
    "min": _single(np.minimum),
    "any": _single(np.logical_or),
    "all": _single(np.logical_and),
    "argmax": _best(np.greater),
    "argmin": _best(np.less),
    "attention": merge_attention,
    "welford": _merge_welford,
}

ARITY: Final = {"argmax": 2, "argmin": 2, "attention": 3, "welford": 3}

# FLOPs of combining one element of each operand, counted as the scalar table counts
_TUPLE_FLOPS: Final = {"argmax": (2, 1), "argmin": (2, 1), "attention": (19, 3, 3), "welford": (4, 6, 2)}


def _along(values: Array, axis: int, lo: int, hi: int) -> Array:
    return values[(slice(None),) * axis + (slice(lo, hi),)]


def fold_in_lanes(parts: Parts, axis: int, combine: Combine) -> Parts:
    """Reduces an axis to extent 1 in the order of the canonical lanes."""
    extent = parts[0].shape[axis]
    lanes = tuple(_along(p, axis, 0, LANES) for p in parts)
    for start in range(LANES, extent, LANES):
        chunk = tuple(_along(p, axis, start, start + LANES) for p in parts)
        lanes = _join(lanes, chunk, axis, combine)
    width = LANES
    while width > 1:
        width //= 2
        upper = tuple(_along(p, axis, width, 2 * width) for p in lanes)
        lanes = _join(tuple(_along(p, axis, 0, width) for p in lanes), upper, axis, combine)
    return lanes


def _join(left: Parts, right: Parts, axis: int, combine: Combine) -> Parts:
    """Combines the lanes that both sides have; the others of the left stay as they are."""
    both = min(left[0].shape[axis], right[0].shape[axis])
    if not both:
        return left
    joined = combine(tuple(_along(p, axis, 0, both) for p in left), tuple(_along(p, axis, 0, both) for p in right))
    rest = tuple(_along(p, axis, both, p.shape[axis]) for p in left)
    return tuple(
        np.concatenate([j, r], axis) if r.shape[axis] else np.asarray(j) for j, r in zip(joined, rest, strict=True)
    )


def fold_in_order(parts: Parts, axis: int, combine: Combine) -> Parts:
    """Reduces an axis to extent 1 from left to right."""
    total = tuple(_along(p, axis, 0, 1) for p in parts)
    for at in range(1, parts[0].shape[axis]):
        total = combine(total, tuple(_along(p, axis, at, at + 1) for p in parts))
    return total


@irdl_op_definition
class AccumulateOp(TileOp):
    """Folds the last axis of x into acc's 16 canonical lanes: lane l takes elements l, l + 16, ... in order."""

    name = "tile.accumulate"
    source = operand_def(TileType)
    acc = operand_def(TileType)
    fn = prop_def(Str)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source, acc = tile(self.source), tile(self.acc)
        if not source.rank or acc.extents != (*source.extents[:-1], LANES) or source.extents[-1] % LANES:
            raise self.malformed(
                f"{source} does not fold into {acc}: last extents must be a multiple of {LANES} and {LANES}"
            )
        if acc.dtype != source.dtype:
            raise self.malformed(f"{source} does not fold into {acc}: the dtypes differ")
        if self.fn.data not in ("sum", "max", "min", "prod"):
            raise self.malformed(f"cannot accumulate by {self.fn.data!r}")
        return [acc]

    def evaluate(self, source: Array, acc: Array) -> Array:
        combine = COMBINES[self.fn.data]
        with np.errstate(all="ignore"):
            for start in range(0, source.shape[-1], LANES):
                (acc,) = combine((acc,), (source[..., start : start + LANES],))
        return acc

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> Array:
        source, acc = poisoned
        return np.asarray(acc | source.reshape(*source.shape[:-1], -1, LANES).any(axis=-2))

    def cost(self) -> Cost:
        return Cost.of(vector=prod(tile(self.source).extents))


@irdl_op_definition
class ReduceOp(TileOp):
    """Reduces an axis to extent 1 by a named combine; tuples travel together ("argmax", "attention", "welford").

    Order: the canonical lanes (see the file's head; "sum" and "prod" round in the tile's dtype at every step), but
    for "attention", which merges (m, l, O) left to right. "argmax"/"argmin" take (keys, indices): NaN wins, then the
    best key, then the lowest index. "welford" takes (mean, M2, count). O may have more extent than m and l on the
    other axes.
    """

    name = "tile.reduce"
    args = var_operand_def(TileType)
    fn = prop_def(Str)
    axis = prop_def(Int)
    out = var_result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        fn = self.fn.data
        if fn not in COMBINES:
            raise self.malformed(f"no combine is called {fn!r}")
        arity = ARITY.get(fn, 1)
        if len(self.args) != arity:
            raise self.malformed(f"{fn} combines {arity} tiles, got {len(self.args)}")
        tiles = [tile(a) for a in self.args]
        axis = check_axis(self, self.axis.data, tiles[0].rank)
        if tiles[0].extents[axis] < 1:
            raise self.malformed(f"{tiles[0]} has nothing to reduce along axis {axis}")
        for first, other in pairwise(tiles):
            fits = first.extents == other.extents or (
                fn == "attention"
                and first.rank == other.rank
                and all(a in (b, 1) for a, b in zip(first.extents, other.extents, strict=True))
                and first.extents[axis] == other.extents[axis]
            )
            if not fits:
                raise self.malformed(f"{fn} combines tiles of equal extents, got {', '.join(map(str, tiles))}")
        dtypes = [t.dtype for t in tiles]
        if fn in ("attention", "welford") and not (dtypes[0].is_float and len(set(dtypes)) == 1):
            raise self.malformed(f"{fn} combines floats of one dtype, got {', '.join(map(str, dtypes))}")
        if fn in ("argmax", "argmin") and not dtypes[1].is_integer:
            raise self.malformed(f"{fn} takes (keys, integer indices), got {', '.join(map(str, dtypes))}")
        if (fn in ("any", "all")) != (dtypes[0] == I1):
            raise self.malformed(f"{fn} does not reduce {dtypes[0]}")
        return [TileType.of([1 if a == axis else n for a, n in enumerate(t.extents)], t.dtype) for t in tiles]

    def evaluate(self, *args: Array) -> Array | tuple[Array, ...]:
        fold = fold_in_order if self.fn.data == "attention" else fold_in_lanes
        with np.errstate(all="ignore"):
            return fold(args, self.axis.data, COMBINES[self.fn.data])

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> Array | tuple[Array, ...]:
        axis = self.axis.data
        if self.fn.data == "welford":
            lanes = poisoned[0] | poisoned[1] | poisoned[2]
            return (np.asarray(lanes.any(axis=axis, keepdims=True)),) * 3
        # the first of a tuple (keys, m) decides how the others combine; it depends on nothing but itself
        own = [mask.any(axis=axis, keepdims=True) for mask in poisoned]
        return tuple(np.asarray(mask | own[0]) for mask in own)

    def cost(self) -> Cost:
        flops = _TUPLE_FLOPS.get(self.fn.data, (1,))
        return Cost.of(vector=sum(f * prod(tile(a).extents) for f, a in zip(flops, self.args, strict=True)))


@irdl_op_definition
class ScanOp(TileOp):
    """Inclusive scan along an axis: "sum", "prod", "max", "min", or "linear" on pairs (a, b) for h = a * h_before + b.

    In order from the first element, rounding in the tile's dtype at every step. "linear" gives (the product of the
    a's so far, h) with h_before = 0 at the start, so that h + product * h0 continues from h0; a * h_before + b rounds
    once.
    """

    name = "tile.scan"
    args = var_operand_def(TileType)
    fn = prop_def(Str)
    axis = prop_def(Int)
    out = var_result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        if self.fn.data not in ("sum", "prod", "max", "min", "linear"):
            raise self.malformed(f"no scan is called {self.fn.data!r}")
        if len(self.args) != (2 if self.fn.data == "linear" else 1):
            raise self.malformed(f"{self.fn.data} does not take {len(self.args)} tiles")
        check_axis(self, self.axis.data, tile(self.args[0]).rank)
        if len({a.type for a in self.args}) > 1:
            raise self.malformed(f"a scan takes tiles of one type, got {', '.join(str(a.type) for a in self.args)}")
        if self.fn.data == "linear" and tile(self.args[0]).dtype.name not in ("f32", "f64"):
            raise self.malformed(f"a linear scan takes f32 or f64, got {self.args[0].type}")
        return [a.type for a in self.args]

    def evaluate(self, *args: Array) -> tuple[Array, ...]:
        combine: Combine = _linear if self.fn.data == "linear" else COMBINES[self.fn.data]
        axis = self.axis.data
        total = tuple(_along(a, axis, 0, 1) for a in args)
        steps = [total]
        with np.errstate(all="ignore"):
            for at in range(1, args[0].shape[axis]):
                total = combine(total, tuple(_along(a, axis, at, at + 1) for a in args))
                steps.append(total)
        return tuple(np.concatenate(parts, axis) for parts in zip(*steps, strict=True))

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> tuple[Array, ...]:
        masks = [np.logical_or.accumulate(mask, axis=self.axis.data) for mask in poisoned]
        return (masks[0], masks[0] | masks[1]) if self.fn.data == "linear" else (masks[0],)

    def cost(self) -> Cost:
        flops = 3 if self.fn.data == "linear" else 1
        return Cost.of(vector=flops * prod(tile(self.args[0]).extents))


def _linear(before: Parts, step: Parts) -> Parts:
    (decay, h), (a, b) = before, step
    flat = fma(a.ravel(), h.ravel(), b.ravel(), fused=True)
    return decay * a, flat.reshape(b.shape)


REDUCTION: list[type[Any]] = [AccumulateOp, ReduceOp, ScanOp]

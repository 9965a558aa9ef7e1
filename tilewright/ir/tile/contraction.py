"""Dots: products of tiles, with the rounding of every step fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from xdsl.ir import Attribute
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def

from tilewright.ir.attributes import Int
from tilewright.ir.cost import Cost
from tilewright.ir.dtypes import F32, F64, I32
from tilewright.ir.loops.elementwise import fma
from tilewright.ir.tile.base import Array, TileOp, tile
from tilewright.ir.types import TileType

# The 29 bits that f64 has beyond f32, and the pattern of an f64 halfway between two f32.
_BEYOND: Final = np.int64((1 << 29) - 1)
_HALFWAY: Final = np.int64(1 << 28)


def _dot_f32(a: Array, b: Array, acc: Array) -> Array:
    """acc + a b, k in increasing order, one rounding a step (fused multiply-add): exact, whatever the operands are.

    A product of two f32 (or narrower) is exact in f64. Rounding acc + product to f64 and then to f32 differs from one
    rounding only where the f64 lies halfway between two f32, or among subnormals; those steps take the slow exact form.
    """
    with np.errstate(all="ignore"):
        narrow = a.astype(np.float32), b.astype(np.float32)
        wide_a, wide_b = (x.astype(np.float64) for x in narrow)
        careful = _smallest(wide_a) * _smallest(wide_b) < 2.0**-124
        total = acc
        for k in range(a.shape[1]):
            sums = wide_a[:, k, None] * wide_b[None, k] + total
            if careful or ((sums.view(np.int64) & _BEYOND) == _HALFWAY).any():
                column, row = np.broadcast_arrays(narrow[0][:, k, None], narrow[1][None, k])
                total = fma(column, row, total, fused=True)
            else:
                total = sums.astype(np.float32)
        return total


def _smallest(values: Array) -> float:
    """The smallest nonzero magnitude."""
    sizes = np.abs(values[(values != 0) & np.isfinite(values)])
    return float(sizes.min()) if sizes.size else np.inf


def _dot_f64(a: Array, b: Array, acc: Array) -> Array:
    total = acc
    for k in range(a.shape[1]):
        column, row = np.broadcast_arrays(a[:, k, None], b[None, k])
        total = fma(column.ravel(), row.ravel(), total.ravel(), fused=True).reshape(acc.shape)
    return total


@irdl_op_definition
class DotOp(TileOp):
    """acc [M, N] + a [M, K] times b [K, N], products and sums in acc's dtype, k in increasing order.

    chain: how many k make one chain of multiply-adds; 0 where all do. The first chain continues acc, those after it
    start from 0, and their sums are added to it one after the other. Rounding grows with the length of a chain.

    Floats: every step is one fused multiply-add in acc's dtype, f32 (operands f32, bf16, f16: the product of the narrow
    ones is exact) or f64 (operands f64). Integers of 8 or 16 bits, which may differ in sign, add into i32 and wrap.
    """

    name = "tile.dot"
    a = operand_def(TileType)
    b = operand_def(TileType)
    acc = operand_def(TileType)
    chain = prop_def(Int, default_value=Int(0))
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        a, b, acc = tile(self.a), tile(self.b), tile(self.acc)
        if self.chain.data < 0:
            raise self.malformed(f"a chain has 0 (all) or more elements of k, got {self.chain.data}")
        if a.rank != 2 or b.rank != 2 or a.extents[1] != b.extents[0] or acc.extents != (a.extents[0], b.extents[1]):
            raise self.malformed(f"{a} times {b} does not fit the accumulator {acc}")
        integers = all(t.dtype.is_integer and t.dtype.bits <= 16 for t in (a, b))
        if a.dtype != b.dtype and not integers:
            raise self.malformed(f"operand dtypes differ: {a.dtype} and {b.dtype}")
        wanted = I32 if integers else F64 if a.dtype == F64 else F32
        if not (integers or a.dtype.is_float) or acc.dtype != wanted:
            raise self.malformed(f"{a.dtype} times {b.dtype} accumulates in {wanted}, got {acc.dtype}")
        return [acc]

    @property
    def chains(self) -> list[tuple[int, int]]:
        """The first k and the one past the last of every chain."""
        depth = tile(self.a).extents[1]
        step = self.chain.data or max(depth, 1)
        return [(first, min(first + step, depth)) for first in range(0, max(depth, 1), step)]

    def evaluate(self, a: Array, b: Array, acc: Array) -> Array:
        if tile(self.acc).dtype.name == "i32":
            return np.asarray(acc + a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)
        dot = _dot_f64 if tile(self.acc).dtype.name == "f64" else _dot_f32
        (first, last), *others = self.chains
        total = dot(a[:, first:last], b[first:last], acc)
        with np.errstate(all="ignore"):
            for first, last in others:
                total = total + dot(a[:, first:last], b[first:last], np.zeros_like(acc))
        return total

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> Array:
        a, b, acc = poisoned
        return np.asarray(acc | a.any(axis=1, keepdims=True) | b.any(axis=0, keepdims=True))

    def cost(self) -> Cost:
        (m, k), (_, n) = tile(self.a).extents, tile(self.b).extents
        return Cost.of(matrix=2 * m * n * k)


@irdl_op_definition
class DotScaledOp(TileOp):
    """acc + the sum over groups of `group` along K of exact_dot(a, b) * sa[M, K/group] * sb[K/group, N], in f32.

    Groups in increasing order; each adds fma(f32(dot), sa * sb, acc), sa * sb rounded to f32. The dot of a group is
    exact before it is rounded to f32: operands are integers of at most 8 bits, or bf16 or f16 whose products are
    summed in f64.
    """

    name = "tile.dot_scaled"
    a = operand_def(TileType)
    a_scale = operand_def(TileType)
    b = operand_def(TileType)
    b_scale = operand_def(TileType)
    acc = operand_def(TileType)
    group = prop_def(Int)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        a, b, acc, group = tile(self.a), tile(self.b), tile(self.acc), self.group.data
        if a.rank != 2 or b.rank != 2:
            raise self.malformed(f"operands must have rank 2, got {a} and {b}")
        m, k = a.extents
        n = b.extents[1]
        if group < 1 or k % group or b.extents[0] != k or acc.extents != (m, n) or acc.dtype != F32:
            raise self.malformed(f"{a} times {b} in groups of {group} does not fit the accumulator {acc}")
        for operand in (a, b):
            if operand.dtype.name not in ("i8", "u8", "bf16", "f16"):
                raise self.malformed(f"operands are i8, u8, bf16 or f16, got {operand.dtype}")
        if a.dtype.is_float != b.dtype.is_float:
            raise self.malformed(f"operands are both integers or both floats, got {a.dtype} and {b.dtype}")
        if tile(self.a_scale).extents != (m, k // group) or tile(self.b_scale).extents != (k // group, n):
            raise self.malformed(f"scales must be [{m}, {k // group}] and [{k // group}, {n}]")
        if not all(tile(s).dtype.is_float for s in (self.a_scale, self.b_scale)):
            raise self.malformed("scales must be floats")
        return [acc]

    def evaluate(self, a: Array, a_scale: Array, b: Array, b_scale: Array, acc: Array) -> Array:
        group = self.group.data
        wide = np.int64 if tile(self.a).dtype.is_integer else np.float64
        left, right = a.astype(wide), b.astype(wide)
        sa, sb = a_scale.astype(np.float32), b_scale.astype(np.float32)
        with np.errstate(all="ignore"):
            for g in range(a.shape[1] // group):
                inside = slice(g * group, (g + 1) * group)
                exact = (left[:, inside] @ right[inside]).astype(np.float32)
                acc = fma(exact, sa[:, g, None] * sb[None, g], acc, fused=True)
        return acc

    def spread(self, operands: Sequence[Array], poisoned: Sequence[Array]) -> Array:
        a, a_scale, b, b_scale, acc = poisoned
        rows = a.any(axis=1, keepdims=True) | a_scale.any(axis=1, keepdims=True)
        columns = b.any(axis=0, keepdims=True) | b_scale.any(axis=0, keepdims=True)
        return np.asarray(acc | rows | columns)

    def cost(self) -> Cost:
        (m, k), (_, n) = tile(self.a).extents, tile(self.b).extents
        # per group and element: the scales' product, and a multiply-add
        return Cost.of(matrix=2 * m * n * k, vector=3 * m * n * (k // self.group.data))


CONTRACTION: list[type[Any]] = [DotOp, DotScaledOp]

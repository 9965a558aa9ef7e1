"""Gated linear attention in chunks: products inside a chunk, and a scan of states from chunk to chunk.

Inside a chunk of Q steps, with c the running sum of the decays, step i reads step j <= i with the weight
exp(c[i] - c[j]) (the masked product of a chunk's queries and keys), and the state before the chunk with exp(c[i]). The
states at the ends of chunks follow a linear recurrence, which is `graph.scan` (Dao and Gu 2024, section 6; Yang et al.
2024). Nothing grows with the length but the number of chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from tilewright.frontend.builder import Builder
from tilewright.frontend.recurrences import LINEAR_ATTENTION
from tilewright.frontend.registry import Unsupported, lowers
from tilewright.ir.dims import Expr, ceildiv
from tilewright.ir.dtypes import F32, I1
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.recurrence import ScanOp
from tilewright.ir.graph.reduction import CumulativeOp
from tilewright.ir.graph.shape import PadOp

CHUNK = 64  # steps; their weights take CHUNK^2 numbers a head, the state between them N * P


@lowers(LINEAR_ATTENTION)
def linear_attention(c: Builder, queries: SSAValue, keys: SSAValue, values: SSAValue, decay: SSAValue) -> SSAValue:
    batch, length, groups, _ = tensor(queries).dims
    heads, width = tensor(values).dims[2:]
    if groups.constant is None or heads.constant is None or not groups.constant or heads.constant % groups.constant:
        raise Unsupported(f"{heads} heads that are no fixed multiple of {groups} groups")
    each = Expr.of(heads.constant // groups.constant)
    q, k = (_chunks(c, x, groups, Expr.of(1)) for x in (queries, keys))
    v = _chunks(c, values, groups, each)
    # [B, C, G, R, Q, 1]: the decay from the chunk's start up to and with each step
    d = _chunks(c, c.reshape(decay, [*tensor(decay).dims, 1]), groups, each)
    so_far = c.emit(CumulativeOp, d, fn="sum", axis=4)
    total = c.slice(so_far, 4, CHUNK - 1, CHUNK)

    weights = c.map("mul", _product(c, q, k, transpose_b=True), _reach(c, so_far), dtype=F32)
    inside = _product(c, weights, v)
    left = c.map("mul", v, c.map("exp", c.map("sub", total, so_far, dtype=F32), dtype=F32), dtype=F32)
    added = _product(c, c.swap(k, 4, 5), left)
    ends = c.emit(ScanOp, c.map("exp", total, dtype=F32), added, None, axis=1)
    # the state before each chunk: 0, then the ends of all chunks but the last
    lows = [1 if axis == 1 else 0 for axis in range(6)]
    before = c.slice(c.emit(PadOp, ends, low=lows, high=[0] * 6), 1, 0, tensor(ends).dims[1])
    outside = c.map("mul", _product(c, q, before), c.map("exp", so_far, dtype=F32), dtype=F32)

    found = c.transpose(c.map("add", inside, outside, dtype=F32), (0, 1, 4, 2, 3, 5))
    steps = tensor(ends).dims[1] * CHUNK
    return c.slice(c.reshape(found, [batch, steps, heads, width]), 1, 0, length)


def _chunks(c: Builder, x: SSAValue, groups: Expr, each: Expr) -> SSAValue:
    """[B, T, G * R, N] as [B, C, G, R, Q, N]; steps past the end are zero, which changes no state."""
    batch, length, _, width = tensor(x).dims
    count = ceildiv(length, CHUNK)
    missing = count * CHUNK - length
    if missing != Expr.of(0):
        x = c.emit(PadOp, x, low=[0] * 4, high=[0, missing, 0, 0])
    split: Sequence[Expr] = [batch, count, Expr.of(CHUNK), groups, each, width]
    return c.transpose(c.reshape(x, split), (0, 1, 3, 4, 2, 5))


def _product(c: Builder, a: SSAValue, b: SSAValue, *, transpose_b: bool = False) -> SSAValue:
    return c.emit(MatmulOp, a, b, transpose_b=transpose_b)


def _reach(c: Builder, so_far: SSAValue) -> SSAValue:
    """[..., Q, Q]: the decay from step j to step i, 0 where j comes after i."""
    apart = c.map("sub", so_far, c.swap(so_far, 4, 5), dtype=F32)
    at, from_ = (c.iota([Expr.of(CHUNK)] * 2, axis) for axis in (0, 1))
    earlier = c.map("le", from_, at, dtype=tensor(at).dtype)
    assert tensor(earlier).dtype == I1
    # masked before the exponential: a difference above 0 may overflow it
    return c.map("exp", c.select(earlier, apart, float("-inf"), F32), dtype=F32)

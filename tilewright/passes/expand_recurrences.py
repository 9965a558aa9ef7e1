"""expand-recurrences: graph.linear_attention becomes products inside chunks, and a scan of states from chunk to chunk.

Inside a chunk of Q steps, with c the running sum of the decays, step i reads step j <= i with the weight
exp(c[i] - c[j]) (the masked product of a chunk's queries and keys), and the state before the chunk with exp(c[i]). The
states at the ends of chunks follow a linear recurrence, which is `graph.scan` (Dao and Gu 2024, section 6; Yang et al.
2024). Nothing grows with the length but the number of chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from xdsl.ir import Operation, SSAValue

from tilewright.ir.dims import Expr, ceildiv
from tilewright.ir.dtypes import F32, I64, DType, promote
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.linear_attention import LinearAttentionOp
from tilewright.ir.graph.recurrence import ScanOp
from tilewright.ir.graph.reduction import CumulativeOp
from tilewright.ir.graph.shape import PadOp, ReshapeOp, TransposeOp
from tilewright.ir.graph.structure import IotaOp
from tilewright.ir.types import TensorType
from tilewright.passes.rewriting import Rules, RulesPass, Site

CHUNK = 64  # steps; their weights take CHUNK^2 numbers a head, the state between them N * P


_RULES = Rules()


@dataclass(frozen=True)
class ExpandRecurrences(RulesPass):
    """Gated linear attention over whole sequences as products and a scan over chunks."""

    name: ClassVar[str] = "expand-recurrences"
    needed: ClassVar[bool] = True
    tables: ClassVar[tuple[Rules, ...]] = (_RULES,)
    looks_for: ClassVar[tuple[type[Operation], ...]] = (LinearAttentionOp,)


@_RULES.on(LinearAttentionOp)
def linear_attention(op: LinearAttentionOp, site: Site) -> SSAValue | None:
    """The whole of one graph.linear_attention."""
    batch, length, groups, _ = tensor(op.queries).dims
    heads, width = tensor(op.values).dims[2:]
    kind = tensor(op.out).dtype
    wide, each = promote(kind, F32), Expr.of(op.each)
    operands = [site.cast(x, wide) for x in (op.queries, op.keys, op.values, op.decay)]
    q, k = (_chunks(site, x, groups, Expr.of(1)) for x in operands[:2])
    v = _chunks(site, operands[2], groups, each)
    # [B, C, G, R, Q, 1]: the decay from the chunk's start up to and with each step
    d = _chunks(site, site.make(ReshapeOp, operands[3], dims=[*tensor(op.decay).dims, 1]), groups, each)
    so_far = site.make(CumulativeOp, d, fn="sum", axis=4)
    total = site.slice(so_far, 4, CHUNK - 1, CHUNK)

    weights = site.map("mul", _product(site, q, k, transpose_b=True), _reach(site, so_far, wide))
    inside = _product(site, weights, v)
    left = site.map("mul", v, site.map("exp", site.map("sub", total, so_far)))
    added = _product(site, _swapped(site, k), left)
    ends = site.make(ScanOp, site.map("exp", total), added, None, axis=1)
    # the state before each chunk: 0, then the ends of all chunks but the last
    lows = [1 if axis == 1 else 0 for axis in range(6)]
    before = site.slice(site.make(PadOp, ends, low=lows, high=[0] * 6), 1, 0, tensor(ends).dims[1])
    outside = site.map("mul", _product(site, q, before), site.map("exp", so_far))

    found = site.make(TransposeOp, site.map("add", inside, outside), permutation=(0, 1, 4, 2, 3, 5))
    steps = tensor(ends).dims[1] * CHUNK
    whole = site.make(ReshapeOp, found, dims=[batch, steps, heads, width])
    return site.cast(site.slice(whole, 1, 0, length), kind)


def _chunks(site: Site, x: SSAValue, groups: Expr, each: Expr) -> SSAValue:
    """[B, T, G * R, N] as [B, C, G, R, Q, N]; steps past the end are zero, which changes no state."""
    batch, length, _, width = tensor(x).dims
    count = ceildiv(length, CHUNK)
    missing = count * CHUNK - length
    if missing != Expr.of(0):
        x = site.make(PadOp, x, low=[0] * 4, high=[0, missing, 0, 0])
    split: Sequence[Expr] = [batch, count, Expr.of(CHUNK), groups, each, width]
    return site.make(TransposeOp, site.make(ReshapeOp, x, dims=split), permutation=(0, 1, 3, 4, 2, 5))


def _product(site: Site, a: SSAValue, b: SSAValue, *, transpose_b: bool = False) -> SSAValue:
    return site.make(MatmulOp, a, b, transpose_b=transpose_b)


def _swapped(site: Site, x: SSAValue) -> SSAValue:
    """The last two axes in the other order."""
    return site.make(TransposeOp, x, permutation=(0, 1, 2, 3, 5, 4))


def _reach(site: Site, so_far: SSAValue, wide: DType) -> SSAValue:
    """[..., Q, Q]: the decay from step j to step i, 0 where j comes after i."""
    apart = site.map("sub", so_far, _swapped(site, so_far))
    square = [TensorType.of([CHUNK, CHUNK], I64)]
    at, from_ = (site.make(IotaOp, axis=axis, start=[0], step=1, result_types=square) for axis in (0, 1))
    earlier = site.map("le", from_, at)
    # masked before the exponential: a difference above 0 may overflow it
    return site.map("exp", site.map("select", earlier, apart, site.constant(float("-inf"), wide)))

"""Attention as products and a softmax, where the size of a head varies: graph.attention is for sizes that are fixed."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.frontend.builder import Builder
from tilewright.ir.dims import Expr, exact_div
from tilewright.ir.dtypes import F32, F64, I1, I64
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.reduction import SoftmaxOp


def written_attention(
    c: Builder,
    query: SSAValue,
    key: SSAValue,
    value: SSAValue,
    mask: SSAValue | None,
    *,
    causal: bool,
    scale: float | None,
    grouped: bool,
) -> SSAValue:
    """softmax(q k^T * scale, masked) v of q [..., Tq, E], k [..., Tk, E] and v [..., Tk, Ev], with what leads broadcast
    as torch does; grouped: key heads [..., Hkv, Tk, E] each serve as many query heads. mask: i1 of what is seen, or
    floats that are added. Logits and weights are f32, or f64 where the operands are; a query that sees no key gives 0.
    """
    dims, dtype = tensor(query).dims, tensor(query).dtype
    inside = F64 if dtype is F64 else F32
    key, value = c.cast(key, dtype), c.cast(value, dtype)
    if grouped and dims[-3] != tensor(key).dims[-3]:
        heads = tensor(key).dims[-3]
        each = exact_div(dims[-3], heads)
        assert each is not None  # torch has refused the call where it is none
        query = c.reshape(query, [*dims[:-3], heads, each, *dims[-2:]])
        key, value = (_with_axis(c, x, -2) for x in (key, value))
        if mask is not None and tensor(mask).rank > 2:
            wanted = tensor(mask).dims
            split = [heads, each] if wanted[-3] == dims[-3] else [Expr.of(1), Expr.of(1)]
            mask = c.reshape(mask, [*wanted[:-3], *split, *wanted[-2:]])
    logits = c.emit(MatmulOp, query, key, transpose_b=True, result=inside.name if dtype is not inside else "")
    logits = c.map("mul", logits, _factor(c, dims[-1], scale), dtype=inside)
    if mask is not None and tensor(mask).dtype != I1:
        logits = c.map("add", logits, mask, dtype=inside)
    elif mask is not None:
        logits = c.select(mask, logits, float("-inf"), inside)
    if causal:
        places = tensor(logits).dims[-2:]
        seen = c.map("le", c.iota(list(places), 1), c.iota(list(places), 0), dtype=I64)
        logits = c.select(seen, logits, float("-inf"), inside)
    weights = c.emit(SoftmaxOp, logits, axis=tensor(logits).rank - 1)
    if mask is not None:
        largest = c.reduce("max", logits, [tensor(logits).rank - 1], keepdims=True)
        hidden = c.map("eq", largest, float("-inf"), dtype=inside)
        weights = c.select(hidden, 0.0, weights, inside)
    return c.reshape(c.emit(MatmulOp, c.cast(weights, dtype), value), c.result.dims)


def _factor(c: Builder, width: Expr, scale: float | None) -> SSAValue | float:
    return scale if scale is not None else c.map("div", 1.0, c.map("sqrt", width, dtype=F64), dtype=F64)


def _with_axis(c: Builder, x: SSAValue, before: int) -> SSAValue:
    """x with an axis of size 1 before one of its axes."""
    dims = tensor(x).dims
    return c.reshape(x, [*dims[:before], 1, *dims[before:]])

"""A bias that is a number a head times the keys' places: it needs no pairs of tokens, so a step can have it (ALiBi).

What is added to all logits of a query alike changes no weight. So it does not matter from where a model counts keys,
and a step counts them from the query.
"""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.shape import BroadcastOp, ReshapeOp
from tilewright.passes.recognize.masks import count_of
from tilewright.passes.rewriting import defined, wide_dims


def slopes_of(op: AttentionOp) -> SSAValue | None:
    """The value with the bias's slope of every query head, as many elements as heads; None where the bias is no such
    thing, or a sink stands beside it, whose weight the counting would change.
    """
    if op.bias is None or op.sinks is not None:
        return None
    given = tensor(op.bias).dims
    heads, (*_, queries, keys) = tensor(op.q).dims[1], (Expr.of(1), Expr.of(1), *given)
    product = _unstretched(op.bias)
    if queries.constant != 1 or keys != tensor(op.k).dims[-2] or product is None or product.fn.data != "mul":
        return None
    for counted, slopes in (tuple(product.args), tuple(reversed(product.args))):
        count = count_of(counted)
        if count is not None and count.axis == -1 and wide_dims(tensor(counted).dims) == [keys]:
            fits = wide_dims(tensor(slopes).dims) == wide_dims([heads]) and not keys.symbols & _symbols(slopes)
            return slopes if fits and wide_dims(tensor(product.out).dims) == wide_dims([heads, keys]) else None
    return None


def _unstretched(bias: SSAValue) -> MapOp | None:
    """The op that computes the bias, whose elements the bias has in the same order, once or again and again."""
    value = bias
    while (op := defined(value, MapOp)) is None:
        if isinstance(value.owner, BroadcastOp):
            inner, dims = value.owner.x, tensor(value).dims
            before = (Expr.of(1),) * (len(dims) - tensor(inner).rank) + tensor(inner).dims
            first = next((i for i, size in enumerate(before) if size.constant != 1), len(dims))
            if before[first:] != dims[first:]:
                return None
        elif not isinstance(value.owner, (ReshapeOp, CastOp)):
            return None
        value = value.owner.x
    return op


def _symbols(value: SSAValue) -> set[str]:
    return {symbol for size in tensor(value).dims for symbol in size.symbols}

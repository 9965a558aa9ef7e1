"""Products as what they need to be: of integers by multiplying and adding up, of rows that nobody reads not at all."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.shape import ReshapeOp, SliceOp, TransposeOp
from tilewright.passes.rewriting import Rules, Site, defined, mapped, sole_user

PRODUCTS = Rules()

ONE = Expr.of(1)


@PRODUCTS.on(MatmulOp)
def integer_product(op: MatmulOp, site: Site) -> SSAValue | None:
    """a [..., M, K, 1] times b [..., 1, K, N], added up over K: integers wrap, so no order is better than another."""
    a, b = tensor(op.a), tensor(op.b)
    if not a.dtype.is_integer:
        return None
    lead, _, n, k = op.sizes()
    columns = op.b
    if op.transpose_b.data:
        order = [*range(b.rank - 2), b.rank - 1, b.rank - 2]
        columns = site.make(TransposeOp, op.b, permutation=order)
    left = site.make(ReshapeOp, op.a, dims=(*a.dims, ONE))
    right = site.make(ReshapeOp, columns, dims=(*b.dims[:-2], ONE, k, n))
    return site.make(ReduceOp, site.map("mul", left, right), fn="sum", axes=[len(lead) + 1])


@PRODUCTS.on(SliceOp)
def rows_before_product(op: SliceOp, site: Site) -> SSAValue | None:
    """Some rows of a product (plus a row of biases) that nothing else reads: only those are multiplied.

    A head over a vocabulary computes the last token's logits, however a model asks for them.
    """
    starts, stops, steps, dims = op.starts.data, op.stops.data, op.strides, tensor(op.x).dims
    if starts[-1] != Expr.of(0) or stops[-1] != dims[-1] or steps[-1] != 1:
        return None
    bias, value = None, op.x
    total = mapped(value, "add")
    if total is not None:
        sides = list(total.args)
        row = next((v for v in sides if tensor(v).rank <= 1), None)
        if row is None or sole_user(value) is not op:
            return None
        bias, value = row, sides[1] if row is sides[0] else sides[0]
    product = defined(value, MatmulOp)
    if product is None or sole_user(value) is not (op if total is None else total):
        return None
    a, b = tensor(product.a), tensor(product.b)
    if tensor(value).dims != dims or b.rank != 2:
        return None
    k = a.dims[-1]
    rows = site.make(SliceOp, product.a, starts=(*starts[:-1], 0), stops=(*stops[:-1], k), steps=steps)
    stated: dict[str, Any] = dict(product.properties)
    out = site.make(MatmulOp, rows, product.b, **stated)
    return out if bias is None else site.map("add", out, bias)

"""Products of integers as what they are: no matrix unit multiplies them, so they are multiplied and added up."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.shape import ReshapeOp, TransposeOp
from tilewright.passes.rewriting import Rules, Site

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

"""expand-experts: graph.experts becomes routing, two grouped products with the activation between, and the slots' sum.

    places, offsets = route(indices)            histogram and prefix offsets: where each slot stands, sorted by expert
    slots, rows     = slots(places)             the permutation's inverse; the activations themselves never move
    gate, up        = grouped products of x     read the rows of an expert's segment, write each slot's own row
    answer          = grouped product of activation(gate) * up
    out             = sum over a token's slots, in order, of weight * answer

Before hoist-weights, because the halves of gate_up are cut there, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xdsl.ir import Operation, SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32, I1, I32, I64, promote
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.experts import ExpertsOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.routing import GroupedMatmulOp, RouteOp, SlotsOp
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.passes.rewriting import Rules, RulesPass, Site

_RULES = Rules()


@dataclass(frozen=True)
class ExpandExperts(RulesPass):
    """Routed feed-forwards as products over segments of slots."""

    name: ClassVar[str] = "expand-experts"
    needed: ClassVar[bool] = True
    tables: ClassVar[tuple[Rules, ...]] = (_RULES,)
    looks_for: ClassVar[tuple[type[Operation], ...]] = (ExpertsOp,)


@_RULES.on(ExpertsOp)
def experts(op: ExpertsOp, site: Site) -> SSAValue | None:
    """The whole of one graph.experts; refused where the number of experts or of slots a token varies."""
    x, indices = tensor(op.x), tensor(op.indices)
    count, each = tensor(op.gate_up).dims[0].constant, indices.dims[1].constant
    if count is None or each is None or not count or not each:
        site.refuse(f"{tensor(op.gate_up).dims[0]} experts and {indices.dims[1]} slots a token are not fixed numbers")
        return None
    wide = promote(x.dtype, F32)
    total = x.dims[0] * each
    flat = site.make(ReshapeOp, op.indices, dims=[total])
    if tensor(flat).dtype not in (I32, I64):
        flat = site.cast(flat, I64)
    routed = site.make(RouteOp, flat, experts=count).owner
    assert isinstance(routed, RouteOp)
    inverse = site.make(SlotsOp, routed.places, each=each).owner
    assert isinstance(inverse, SlotsOp)

    def product(a: SSAValue, b: SSAValue, rows: SSAValue, bias: SSAValue | None) -> SSAValue:
        return site.make(
            GroupedMatmulOp, a, b, rows, inverse.order, routed.offsets, bias, transpose_b=True, result=wide.name
        )

    hidden = tensor(op.down).dims[2]
    parts = []
    for half in [(Expr.of(0), hidden), (hidden, hidden * 2)][: 2 if op.gated.data else 1]:
        bias = None if op.gate_up_bias is None else site.slice(op.gate_up_bias, 1, *half)
        parts.append(product(op.x, site.slice(op.gate_up, 1, *half), inverse.rows, bias))
    inner = site.map(op.activation.data, parts[0])
    if len(parts) > 1:
        inner = site.map("mul", inner, parts[1])
    answer = product(site.cast(inner, x.dtype), op.down, inverse.order, op.down_bias)

    weighted = [x.dims[0], each, 1]
    answer = site.make(ReshapeOp, answer, dims=[x.dims[0], each, x.dims[1]])
    share = site.make(ReshapeOp, site.cast(op.weights, wide), dims=weighted)
    answer = site.map("mul", answer, share)
    kind = tensor(flat).dtype
    chosen = site.make(ReshapeOp, flat, dims=weighted)
    known = site.map(
        "and",
        site.map("ge", chosen, site.constant(0, kind)),
        site.map("lt", chosen, site.constant(count, kind)),
    )
    assert tensor(known).dtype == I1
    # routing gives a slot without an expert to some expert; it adds nothing all the same
    answer = site.map("select", known, answer, site.constant(0.0, wide))
    if each > 1:
        summed = site.make(ReduceOp, answer, fn="sum", axes=(1,), keepdims=False)
    else:
        summed = site.make(ReshapeOp, answer, dims=x.dims)
    return site.cast(summed, x.dtype)

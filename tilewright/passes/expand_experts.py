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

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32, I1, I32, I64, DType, promote
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp
from tilewright.ir.graph.experts import ExpertsOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.routing import GroupedMatmulOp, RouteOp, SlotsOp
from tilewright.ir.graph.shape import ReshapeOp, SliceOp
from tilewright.ir.module import functions
from tilewright.ir.passing import Context, Pass
from tilewright.passes.rewriting import Rules, Site, erase_dead, run_rules


@dataclass(frozen=True)
class ExpandExperts(Pass):
    """Routed feed-forwards as products over segments of slots."""

    name: ClassVar[str] = "expand-experts"
    needed: ClassVar[bool] = True

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in functions(module).values():
            run_rules(function.block, _RULES, ctx)
            erase_dead(function.block)


_RULES = Rules()


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
        flat = site.make(CastOp, flat, dtype="i64")
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
        bias = None if op.gate_up_bias is None else _rows(site, op.gate_up_bias, *half)
        parts.append(product(op.x, _rows(site, op.gate_up, *half), inverse.rows, bias))
    inner = site.map(op.activation.data, parts[0])
    if len(parts) > 1:
        inner = site.map("mul", inner, parts[1])
    answer = product(_cast(site, inner, x.dtype), op.down, inverse.order, op.down_bias)

    weighted = [x.dims[0], each, 1]
    answer = site.make(ReshapeOp, answer, dims=[x.dims[0], each, x.dims[1]])
    share = site.make(ReshapeOp, _cast(site, op.weights, wide), dims=weighted)
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
    return _cast(site, summed, x.dtype)


def _cast(site: Site, value: SSAValue, dtype: DType) -> SSAValue:
    return value if tensor(value).dtype == dtype else site.make(CastOp, value, dtype=dtype.name)


def _rows(site: Site, value: SSAValue, start: Expr, stop: Expr) -> SSAValue:
    """Part of the second axis, itself where that is all of it."""
    dims = tensor(value).dims
    if start == Expr.of(0) and stop == dims[1]:
        return value
    starts, stops = [Expr.of(0)] * len(dims), list(dims)
    starts[1], stops[1] = start, stop
    return site.make(SliceOp, value, starts=starts, stops=stops)

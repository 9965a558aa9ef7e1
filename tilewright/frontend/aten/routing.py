"""Routed experts as captured from transformers' registry: whole, or in their parts."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.builder import Builder
from tilewright.frontend.experts import EXPERTS, GROUPED, ROUTING
from tilewright.frontend.registry import lowers
from tilewright.ir.graph.experts import ExpertsOp
from tilewright.ir.graph.routing import GroupedMatmulOp, RouteOp, SlotsOp


@lowers(EXPERTS)
def experts(
    c: Builder,
    x: SSAValue,
    indices: SSAValue,
    weights: SSAValue,
    gate_up: SSAValue,
    down: SSAValue,
    gate_up_bias: SSAValue | None,
    down_bias: SSAValue | None,
    activation: str,
    gated: bool,
) -> SSAValue:
    operands = (x, indices, weights, gate_up, down, gate_up_bias, down_bias)
    return c.emit(ExpertsOp, *operands, activation=activation, gated=gated)


@lowers(ROUTING)
def routing(c: Builder, indices: SSAValue, experts: int, each: int) -> tuple[Any, ...]:
    places, offsets = c.add(RouteOp.make(indices, experts=experts)).results
    order, rows = c.add(SlotsOp.make(places, each=each)).results
    return rows, order, offsets


@lowers(GROUPED)
def grouped_matmul(
    c: Builder,
    a: SSAValue,
    b: SSAValue,
    rows: SSAValue,
    targets: SSAValue,
    offsets: SSAValue,
    bias: SSAValue | None,
) -> SSAValue:
    return c.emit(GroupedMatmulOp, a, b, rows, targets, offsets, bias)

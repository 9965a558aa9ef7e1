"""Whether a machine computes every function of a lowered group in its dtype: asked before any kernel is compiled."""

from __future__ import annotations

from tilewright.errors import LoweringError, Problem
from tilewright.ir.dtypes import F64
from tilewright.ir.graph.base import GraphOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import MapOp
from tilewright.passes.lower_to_tile.frame import Lowered

_STEP = "cast to f32 around it: `.float()` before, `.double()` after; or compile the model in f32"


def computed(group: GroupOp, lowered: Lowered, machine: Machine) -> None:
    """LoweringError with every function in the group's kernels that the machine lacks in f64, each with its place.

    The kernels are asked and not the group: what a softmax, a norm or an epilogue computes shows there alone.
    """
    if lowered.first is not None:
        computed(group, lowered.first, machine)
    lacking = machine.rules.f32_only
    places = {op.loc: op for op in group.walk() if isinstance(op, GraphOp) and op is not group and op.loc}
    problems: dict[Problem, None] = {}
    for variant in lowered.variants:
        for op in variant.kernel.walk():
            if isinstance(op, MapOp) and op.fn.data in lacking and tile(op.args[-1]).dtype is F64:
                asked = places.get(op.loc) if op.loc else None
                name = asked.name if asked is not None else op.name
                problems[Problem(f"{op.fn.data} is not computed in f64 by {machine.name}", name, op.loc)] = None
    if problems:
        raise LoweringError(list(problems), step=_STEP)

"""Whether a machine computes every function of a lowered group in its dtype: asked before any kernel is compiled."""

from __future__ import annotations

from typing import Final

from tilewright.errors import LoweringError, Problem
from tilewright.ir.dtypes import F64
from tilewright.ir.graph import elementwise as graph
from tilewright.ir.graph.base import GraphOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import MapOp
from tilewright.passes.lower_to_tile.frame import Lowered

_WHOLE: Final = "compile the model in f32: model.float(), and its inputs with .float()"
# a module of torch's own, such as an LSTM, has no line to cast around
_AROUND: Final = "or, where the line computes it itself, cast to f32 around it: `.float()` before, `.double()` after"


def computed(group: GroupOp, lowered: Lowered, machine: Machine) -> None:
    """LoweringError with every function in the group's kernels that the machine lacks in f64, each with its place.

    The kernels are asked and not the group: what a softmax, a norm or an epilogue computes shows there alone.
    """
    if lowered.first is not None:
        computed(group, lowered.first, machine)
    lacking = machine.rules.f32_only
    places = {op.loc: op for op in group.walk() if isinstance(op, GraphOp) and op is not group and op.loc}
    problems: dict[Problem, None] = {}
    has_line = False
    for variant in lowered.variants:
        for op in variant.kernel.walk():
            if isinstance(op, MapOp) and op.fn.data in lacking and tile(op.args[-1]).dtype is F64:
                asked = places.get(op.loc) if op.loc else None
                asked = asked or _of_torch(group, op.fn.data)
                name = asked.name if asked is not None else op.name
                module = f"module {asked.path}" if asked is not None and asked.path else None
                text = f"{op.fn.data} is not computed in f64 by {machine.name}"
                problems[Problem(text, name, op.loc or module)] = None
                has_line = has_line or op.loc is not None
    if problems:
        raise LoweringError(list(problems), step=f"{_WHOLE}; {_AROUND}" if has_line else _WHOLE)


def _of_torch(group: GroupOp, fn: str) -> GraphOp | None:
    """The op that asks for a function where no line of the user's does: by the function, else one with a module."""
    found = [op for op in group.walk() if isinstance(op, GraphOp) and op is not group and op.loc is None]
    return next((op for op in found if isinstance(op, graph.MapOp) and op.fn.data == fn), None) or next(
        (op for op in found if op.path), None
    )

"""Constants of several values as memory: a kernel of @prepare that stores what it knows."""

from __future__ import annotations

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32, F64, I32, I64
from tilewright.ir.graph import structure
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.compute import LANES
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin


def lower_constant(group: GroupOp, name: str, machine: Machine) -> Lowered:
    """One program that stores vector after vector."""
    op = next(o for o in group.block.ops if isinstance(o, structure.ConstantOp))
    b, _, (output,) = begin(group, name)
    dtype, values = tensor(op.out).dtype, op.values.data
    wide = (F64 if dtype.bits > F32.bits else F32) if dtype.is_float else I64 if dtype.bits > I32.bits else I32
    b.grid([1], [1])
    target = b.view(output, [len(values)], [1])
    for start in range(0, len(values), LANES):
        listed = b.elements(values[start : start + LANES], wide)
        b.store(b.cast(listed, dtype), target, [start])
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))

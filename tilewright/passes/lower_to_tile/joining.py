"""Concatenation: each operand is copied to its place; a part of the result belongs to exactly one operand."""

from __future__ import annotations

from xdsl.ir import BlockArgument

from tilewright.ir.dims import Expr, product
from tilewright.ir.graph import shape
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.passes.lower_to_tile.access import unsupported
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin
from tilewright.passes.lower_to_tile.pointwise import column_tile


def lower_concat(group: GroupOp, name: str, machine: Machine) -> Lowered:
    """One program per outer index; inside, a loop over each operand's contiguous run."""
    op = next(o for o in group.block.ops if isinstance(o, shape.ConcatOp))
    if group.yielded != (op.out,) or not all(isinstance(x, BlockArgument) for x in op.xs):
        raise unsupported(op, "a concatenation is a kernel of its own")
    b, buffers, (output,) = begin(group, name)
    out = tensor(op.out)
    axis = op.axis.data
    outer, run = product(out.dims[:axis]), product(out.dims[axis:])
    (row,) = b.grid([outer], [1])
    offset = Expr.of(0)
    for x in op.xs:
        size = product(tensor(x).dims[axis:])
        columns = column_tile(size)
        source = b.view(buffers[x], [outer, size], [size, 1])
        target = b.view(output, [outer, size], [run, 1], offset)
        with b.loop(0, size, columns) as loop:
            b.store(b.load(source, [row, loop.at], [1, columns]), target, [row, loop.at])
        offset = offset + size
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))

"""Scatters: the result starts as a copy, and updates are set or combined one by one, in the order of the indices.

Programs share out what the indices do not choose: other axes, in columns narrow enough to give every thread some.
"""

from __future__ import annotations

from collections.abc import Mapping

from xdsl.ir import BlockArgument, SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph import indexing
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.compute import LANES
from tilewright.passes.lower_to_tile.access import unsupported
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin, padded
from tilewright.passes.lower_to_tile.memory_lines import Lines, copy_lines

SHARES = 8  # parts that a static row is cut into
WIDEST = 256


def column_share(inner: Expr) -> int:
    """Columns of a program."""
    size = inner.constant
    if size is None:
        return 4 * LANES
    return 1 if size <= 1 else min(padded(-(-size // SHARES), LANES), WIDEST)


def lower_scatter(group: GroupOp, name: str, machine: Machine) -> Lowered:
    """graph.scatter and graph.put_along: a kernel of its own, with its operands in memory."""
    op = next(o for o in group.block.ops if isinstance(o, (indexing.ScatterOp, indexing.PutAlongOp)))
    if group.yielded != (op.out,) or not all(isinstance(v, BlockArgument) for v in op.operands):
        raise unsupported(op, "a scatter is a kernel of its own")
    b, buffers, (output,) = begin(group, name)
    axis = op.axis.data
    lines = Lines.of(tensor(op.x).dims, axis)
    columns = column_share(lines.inner)
    o, i = b.grid([lines.outer, lines.inner], [1, columns])
    source, target = lines.view(b, buffers[op.x]), lines.view(b, output)
    copy_lines(b, source, target, (o, i), lines.length, columns)
    puts(b, op, lines, buffers, target, (o, i), columns)
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))


def puts(
    b: KernelBuilder,
    op: indexing.ScatterOp | indexing.PutAlongOp | indexing.StateUpdateOp,
    lines: Lines,
    buffers: Mapping[SSAValue, SSAValue],
    target: SSAValue,
    at: tuple[SSAValue, SSAValue],
    columns: int,
) -> None:
    """Sets or adds what an op puts in the lines at (outer, inner) and the columns beside it, one index after the other.

    buffers: of the op's indices and updates. target: a view of lines.
    """
    outer, inner = at
    own = isinstance(op, indexing.PutAlongOp) or (isinstance(op, indexing.StateUpdateOp) and op.along.data)
    count = tensor(op.indices).dims[op.axis.data] if own else tensor(op.indices).elements
    given = lines.view(b, buffers[op.updates], count)
    indices = buffers[op.indices]
    picked = lines.view(b, indices, count) if own else b.view(indices, [count], [1])
    with b.loop(0, count, 1) as loop:
        value = b.reshape(b.load(given, [outer, loop.at, inner], [1, 1, columns]), (1, columns))
        if own:
            places = b.reshape(b.load(picked, [outer, loop.at, inner], [1, 1, columns]), (1, columns))
        else:
            places = b.reshape(b.load(picked, [loop.at], [1]), (1, 1))
        b.update(value, places, target, [outer, inner], 1, op.mode.data)

"""Packing a weight matrix into panels, for @prepare: the inverse of what the matmul skeleton reads."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph import shape
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.memory import ViewOp
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin

K_TILE = 32  # rows of a panel a program writes; even, so that pairs stay together


def lower_pack(group: GroupOp, name: str, machine: Machine) -> Lowered:
    """One program a panel and a run of k: a [k, columns] block is read, transposed if need be, and stored densely."""
    b, buffers, (output,) = begin(group, name)
    (weight,) = group.block.args
    result = tensor(group.yielded[0])
    columns = result.dims[2].constant or 1
    pairs = result.dims[3].constant or 1 if result.rank == 4 else 1
    transposed = any(isinstance(op, shape.TransposeOp) and op.x is weight for op in group.block.ops)
    rows = result.dims[1] * pairs
    k_tile = K_TILE if rows.constant is None or rows.constant >= K_TILE else rows.constant
    panel, k = b.grid([result.dims[0], rows], [1, k_tile])
    source = b.view(buffers[weight], tensor(weight).dims, ViewOp.row_major(tensor(weight).dims))
    n = b.index(Expr.of("a0") * columns, panel)
    block: SSAValue
    if transposed:
        block = b.transpose(b.load(source, [n, k], [columns, k_tile], 0.0), (1, 0))
    else:
        block = b.load(source, [k, n], [k_tile, columns], 0.0)
    target = b.view(output, result.dims, ViewOp.row_major(result.dims))
    if pairs == 1:
        b.store(b.reshape(block, (1, k_tile, columns)), target, [panel, k, 0])
    else:
        paired = b.transpose(b.reshape(block, (k_tile // pairs, pairs, columns)), (0, 2, 1))
        half = b.index(Expr.of("a0") // pairs, k)
        b.store(b.reshape(paired, (1, k_tile // pairs, columns, pairs)), target, [panel, half, 0, 0])
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))

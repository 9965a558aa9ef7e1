"""Packing a weight (one matrix, or one an expert) into panels, for @prepare: the inverse of what matmuls read."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph import shape
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.memory import ViewOp
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin

K_TILE = 32  # rows of a panel a program writes; even, so that pairs stay together


def matrix_of_pairs(b: KernelBuilder, panels: SSAValue) -> SSAValue:
    """The tile [K, N] that a tile of panels of pairs holds, [panels, K/2, columns, 2]; it moves nothing."""
    count, half, columns, pairs = tile(panels).extents
    return b.reshape(b.transpose(panels, (1, 3, 0, 2)), (half * pairs, count * columns))


def pairs_of(b: KernelBuilder, x: SSAValue, *, turned: bool) -> SSAValue:
    """A tile [K, N], or [N, K] where `turned`, as pairs of k side by side, [K/2, N, 2]."""
    rows, columns = tile(x).extents
    if turned:
        return b.transpose(b.reshape(x, (rows, columns // 2, 2)), (1, 0, 2))
    return b.transpose(b.reshape(x, (rows // 2, 2, columns)), (0, 2, 1))


def panels_of_pairs(b: KernelBuilder, pairs: SSAValue, width: int) -> SSAValue:
    """Pairs [K/2, N, 2] in panels of `width` columns, [N/width, K/2, width, 2], as `matrix_of_pairs` reads them."""
    half, columns, _ = tile(pairs).extents
    return b.transpose(b.reshape(pairs, (half, columns // width, width, 2)), (1, 0, 2, 3))


def lower_pack(group: GroupOp, name: str, machine: Machine) -> Lowered:
    """One program a panel and a run of k: a [k, columns] block is read, transposed if need be, and stored densely."""
    b, buffers, (output,) = begin(group, name)
    (weight,) = group.block.args
    result = tensor(group.yielded[0])
    at = tensor(weight).rank - 2
    lead = result.dims[:at]
    columns = result.dims[at + 2].constant or 1
    pairs = result.dims[at + 3].constant or 1 if result.rank == at + 4 else 1
    transposed = any(isinstance(op, shape.TransposeOp) and op.x is weight for op in group.block.ops)
    rows = result.dims[at + 1] * pairs
    k_tile = K_TILE if rows.constant is None or rows.constant >= K_TILE else rows.constant
    *matrix, panel, k = b.grid([*lead, result.dims[at], rows], [*[1] * at, 1, k_tile])
    one = (1,) * at
    source = b.view(buffers[weight], tensor(weight).dims, ViewOp.row_major(tensor(weight).dims))
    n = b.index(Expr.of("a0") * columns, panel)
    block: SSAValue
    if transposed:
        loaded = b.load(source, [*matrix, n, k], [*one, columns, k_tile], 0.0)
        block = b.transpose(b.reshape(loaded, (columns, k_tile)), (1, 0))
    else:
        block = b.reshape(b.load(source, [*matrix, k, n], [*one, k_tile, columns], 0.0), (k_tile, columns))
    target = b.view(output, result.dims, ViewOp.row_major(result.dims))
    if pairs == 1:
        b.store(b.reshape(block, (*one, 1, k_tile, columns)), target, [*matrix, panel, k, 0])
    else:
        paired = b.transpose(b.reshape(block, (k_tile // pairs, pairs, columns)), (0, 2, 1))
        half = b.index(Expr.of("a0") // pairs, k)
        shaped = b.reshape(paired, (*one, 1, k_tile // pairs, columns, pairs))
        b.store(shaped, target, [*matrix, panel, half, 0, 0])
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))

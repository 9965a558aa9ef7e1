"""What a kernel that writes past the caches asks memory for before it reads it.

Such a kernel passes over its data once. Where an operand has an element for each of the results and lies dense, the
elements that come next are those that follow in memory, whatever the tiles are. A load is evaluated in every sweep that
reads it, and finds its elements in a cache in all but the first; the requests are made in the sweep with the most
arithmetic, whose time the memory has. Rows that are walked in tiles have a load for each walk, and each asks: whether a
cache still holds what the one before brought is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator

from xdsl.ir import Operation

from tilewright.ir.dims import product
from tilewright.ir.tile.memory import LoadOp, StoreOp, ViewOp
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.types import TileType
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.materialise import weight


def asking(cx: Lowering) -> dict[LoadOp, Operation]:
    """The loads of which a kernel asks for what follows, and the op whose evaluation of each does so."""
    if not cx.machine.rules.ahead:
        return {}
    found: dict[LoadOp, Operation] = {}
    for load in _in_step(cx.kernel):
        readers = [op for op in cx.kernel.walk() if op in cx.plan.roots.get(load.out, ())]
        if readers:
            found[load] = max(readers, key=lambda op: _work(cx, op))
    return found


def _in_step(kernel: KernelOp) -> Iterator[LoadOp]:
    """Loads of dense operands with as many elements as a result that is written past the caches."""
    stores = [op for op in kernel.walk() if isinstance(op, StoreOp) and op.streaming.data]
    views = [op.target.owner for op in stores]
    sizes = {product(v.extents.data) for v in views if isinstance(v, ViewOp)}
    for op in kernel.walk():
        if isinstance(op, LoadOp) and isinstance(op.source.owner, ViewOp):
            view = op.source.owner
            dense = tuple(view.strides.data) == ViewOp.row_major(view.extents.data)
            if dense and product(view.extents.data) in sizes:
                yield op


def _work(cx: Lowering, op: Operation) -> int:
    """What the sweep of an op computes at a site, roughly."""
    kept = cx.plan.homes.keys() - set(op.results)
    return sum(weight(cx, o, kept) for o in (*op.operands, *op.results) if isinstance(o.type, TileType))

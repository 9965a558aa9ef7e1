"""How many programs of a kernel run side by side on a thread.

A reduction along a row is one chain, each link of which waits for the one before: a row after the other leaves a core
idle for most of it. Rows of several programs give it as many chains. All passes over a row but the first find it in the
first cache, and so only as many rows stand side by side as that has room for beside what they share.
"""

from __future__ import annotations

from math import prod
from typing import Final

from xdsl.ir import BlockArgument

from tilewright.ir.tile import compute
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.memory import VIEWS, LoadOp, StageOp, StoreOp
from tilewright.ir.tile.structure import ExprOp, ForOp, KernelOp, YieldOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import INLINE
from tilewright.passes.lower_tile_to_loops.sites import lane_axis

_ROWS: Final = (
    *VIEWS, compute.ReduceOp, compute.AccumulateOp, LoadOp, StageOp, StoreOp, ExprOp, ForOp, YieldOp, KernelOp,
)  # fmt: skip


def programs_together(cx: Lowering) -> int:
    """Programs that a thread takes at a time: 1 unless a kernel reduces rows and does little else."""
    ops = list(cx.kernel.walk())
    folds = [op for op in ops if isinstance(op, (compute.ReduceOp, compute.AccumulateOp))]
    if not any(_along_lanes(op) for op in folds) or any(op.fn.data == "attention" for op in folds):
        return 1
    if not all(isinstance(op, _ROWS) or type(op) in INLINE for op in ops):
        return 1
    near = cx.machine.caches[-1].size if cx.machine.caches else None
    count = cx.machine.rules.together
    while near is not None and count > 1 and count * _bytes(cx) > near // 2:
        count //= 2
    return count


def _along_lanes(op: compute.ReduceOp | compute.AccumulateOp) -> bool:
    """Whether an op folds along the lanes of its vectors."""
    if isinstance(op, compute.AccumulateOp):
        return True
    return bool(op.axis.data == lane_axis(tile(op.args[0]).extents))


def _bytes(cx: Lowering) -> int:
    """What a program keeps of its own: the tiles that it loads by its coordinates, and those in scratch."""
    own = [op.out for op in cx.kernel.walk() if isinstance(op, LoadOp) and _of_program(cx, op)]
    kept = [value for value, home in cx.plan.homes.items() if home == "scratch"]
    return sum(prod(tile(value).extents) * tile(value).dtype.bytes for value in (*own, *kept))


def _of_program(cx: Lowering, op: LoadOp) -> bool:
    """Whether a load depends on which program loads."""
    return any(isinstance(at, BlockArgument) and at.owner is cx.kernel.block for at in op.at)

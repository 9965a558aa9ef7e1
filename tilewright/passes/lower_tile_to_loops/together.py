"""How many programs of a kernel run side by side on a thread.

A reduction along a row is one chain, each link of which waits for the one before: a row after the other leaves a core
idle for most of it. Rows of several programs give it as many chains. What a program writes to scratch and reads again
must stay in the first cache with its row; rows that are only read come as fast from the next level, while they are few.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Final

from xdsl.ir import BlockArgument, SSAValue

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
# First caches' worth of rows that are only read: four rows of 4,096 numbers took 18.3 ms, two 20.2, one by one 22.4.
_READ_ONLY: Final = 4


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
    kept = _bytes(value for value, home in cx.plan.homes.items() if home == "scratch")
    read = _bytes(op.out for op in ops if isinstance(op, LoadOp) and _of_program(cx, op))
    while near is not None and count > 1 and count * (kept + read) > (near // 2 if kept else near * _READ_ONLY):
        count //= 2
    return count


def _along_lanes(op: compute.ReduceOp | compute.AccumulateOp) -> bool:
    """Whether an op folds along the lanes of its vectors."""
    if isinstance(op, compute.AccumulateOp):
        return True
    return bool(op.axis.data == lane_axis(tile(op.args[0]).extents))


def _bytes(values: Iterable[SSAValue]) -> int:
    """What tiles take in memory."""
    return sum(prod(tile(value).extents) * tile(value).dtype.bytes for value in values)


def _of_program(cx: Lowering, op: LoadOp) -> bool:
    """Whether a load depends on which program loads."""
    return any(isinstance(at, BlockArgument) and at.owner is cx.kernel.block for at in op.at)

"""Where an op may write its result straight away: into the scratch of the loop carry that it becomes."""

from __future__ import annotations

from xdsl.ir import Block, Operation, SSAValue

from tilewright.ir.tile.structure import ForOp, YieldOp
from tilewright.ir.types import TileType
from tilewright.passes.lower_tile_to_loops.aliasing import in_place, scratch_behind
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.materialise import storage_for
from tilewright.passes.lower_tile_to_loops.storage import ScratchTile, Storage


def destination(cx: Lowering, result: SSAValue, start: SSAValue) -> Storage:
    """The home of an op's result that begins with the elements of `start`: a carry's own scratch where nothing is lost.

    That is so when the result is what the loop carries on, when nothing reads the carry after this op, and when the op
    itself reads it in `start` only, element by element.
    """
    carried = _becomes(result)
    home = cx.tiles.get(carried) if carried is not None else None
    op = result.owner
    if carried is not None and isinstance(home, ScratchTile) and isinstance(op, Operation):
        before = _before(op)
        last_reader = all(root is op or root in before for root in cx.plan.roots[carried])
        others = any(home.memory in scratch_behind(cx, o) for o in op.operands if o is not start and o in _tiles(op))
        if last_reader and not others and in_place(cx, start, home.memory):
            return cx.hold(home)
    return storage_for(cx, result)


def _tiles(op: Operation) -> list[SSAValue]:
    return [o for o in op.operands if isinstance(o.type, TileType)]


def _becomes(result: SSAValue) -> SSAValue | None:
    """The carried value that a result is yielded as, where that is its only use."""
    uses = list(result.uses)
    if len(uses) != 1 or not isinstance(uses[0].operation, YieldOp):
        return None
    block = uses[0].operation.parent
    loop = uses[0].operation.parent_op()
    if not isinstance(block, Block) or not isinstance(loop, ForOp):
        return None
    return block.args[1 + uses[0].index]


def _before(op: Operation) -> set[Operation]:
    """The ops of the same block that come before, with everything inside them."""
    found: set[Operation] = set()
    block = op.parent
    for other in block.ops if block is not None else ():
        if other is op:
            break
        found.update(other.walk())
    return found

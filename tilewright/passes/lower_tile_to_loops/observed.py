"""How much of each tile anyone looks at: the part of an axis that reaches a store inside its buffer.

Rows past the last one are computed by nobody: a block of 64 queries of which 18 exist is 18 rows of work. What is not
observed may hold anything, so work is rounded up to whole blocks and vectors and needs no masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

from xdsl.ir import Block, BlockArgument, Operation, SSAValue

from tilewright.ir.tile import compute
from tilewright.ir.tile.base import tile, view
from tilewright.ir.tile.memory import StageOp, StoreOp
from tilewright.ir.tile.places import LookupOp
from tilewright.ir.tile.structure import ExprOp, ForOp, IfOp, KernelOp, YieldOp
from tilewright.ir.types import TileType
from tilewright.passes.lower_tile_to_loops.operands import unit_axis, unit_reshape
from tilewright.passes.lower_tile_to_loops.tails import Constant, Limit, depth_limit, folded_limit, tail

Seen: TypeAlias = Limit | Literal["none", "all"]

_NONE: Final = "none"
_ALL: Final = "all"


class Observed:
    """What is seen of each axis of each tile value of a kernel."""

    def __init__(self, kernel: KernelOp) -> None:
        self._seen: dict[tuple[SSAValue, int], Seen] = {}
        values = [v for v in _values(kernel.block) if isinstance(v.type, TileType)]
        changed = True
        # From "nobody looks" upwards, until nothing changes: loops hand what they carry round.
        while changed:
            changed = False
            for value in reversed(values):
                for axis in range(tile(value).rank):
                    now = self._joined(value, axis)
                    if now != self.of(value, axis):
                        self._seen[value, axis] = now
                        changed = True

    def of(self, value: SSAValue, axis: int) -> Seen:
        """What is seen of an axis."""
        return self._seen.get((value, axis), _NONE)

    def limit(self, value: SSAValue, axis: int) -> Limit | None:
        """Where an axis may end; None where all of it is seen."""
        found = self.of(value, axis)
        return found if isinstance(found, Limit) else None

    def _joined(self, value: SSAValue, axis: int) -> Seen:
        total: Seen = _NONE
        for use in value.uses:
            seen = self._by(use.operation, use.index, value, axis)
            if isinstance(seen, Limit) and not _in_scope(seen, value):
                seen = _ALL
            total = seen if total == _NONE else total if seen in (_NONE, total) else _ALL
        return total

    def _by(self, op: Operation, index: int, value: SSAValue, axis: int) -> Seen:
        """What one use sees of an axis."""
        match op:
            case StoreOp():
                at = op.at[axis]
                return Limit(view(op.target).dims[axis], at) if _follows_coordinates(at) else _ALL
            case compute.MapOp() | compute.CastOp() | compute.BroadcastOp() | StageOp() | LookupOp():
                result = op.results[0]
                if tile(value).extents[axis] != tile(result).extents[axis]:
                    return _ALL
                seen = self.of(result, axis)
                return _selected(op, index, axis) or seen if seen == _ALL else seen
            case compute.TransposeOp():
                return self.of(op.out, list(op.permutation.data).index(axis))
            case compute.ReshapeOp() if unit_reshape(op):
                target = unit_axis(op, axis, forward=True)
                return _ALL if target is None else self.of(op.out, target)
            case compute.SliceOp():
                whole = tile(op.out).extents[axis] == tile(value).extents[axis]
                return self.of(op.out, axis) if whole else _ALL
            case compute.ConcatOp():
                return self.of(op.out, axis) if axis != op.axis.data else _ALL
            case compute.DotOp() | compute.DotScaledOp():
                return self._by_dot(op, index, axis)
            case compute.ReduceOp():
                if axis == op.axis.data:
                    return folded_limit(op) or _ALL
                return self._all_of([(r, axis) for r in op.results])
            case compute.AccumulateOp():
                if index == 0 and axis == tile(value).rank - 1:
                    return folded_limit(op) or _ALL
                return self.of(op.out, axis) if axis < tile(value).rank - 1 else _ALL
            case compute.ScanOp() | compute.SortOp() | compute.TopkOp():
                return _ALL if axis == op.axis.data else self._all_of([(r, axis) for r in op.results])
            case ForOp():
                number = index - 2
                return self._all_of([(op.carried[number], axis), (op.out[number], axis)])
            case YieldOp():
                return self._by_yield(op, index, axis)
            case _:
                return _ALL

    def _by_dot(self, op: compute.DotOp | compute.DotScaledOp, index: int, axis: int) -> Seen:
        operand = op.operands[index]
        if operand is op.acc and operand not in (op.a, op.b):
            return self.of(op.out, axis)
        if operand is op.a and operand is not op.b:
            return self.of(op.out, 0) if axis == 0 else depth_limit(op) or _ALL
        if operand is op.b and operand is not op.a:
            return self.of(op.out, 1) if axis == 1 else depth_limit(op) or _ALL
        return _ALL

    def _by_yield(self, op: YieldOp, index: int, axis: int) -> Seen:
        match op.parent_op():
            case ForOp() as loop:
                return self._all_of([(loop.carried[index], axis), (loop.out[index], axis)])
            case IfOp() as branch:
                return self.of(branch.out[index], axis)
            case _:
                return _ALL

    def _all_of(self, places: list[tuple[SSAValue, int]]) -> Seen:
        """What is seen through any of several values."""
        total: Seen = _NONE
        for place in places:
            seen = self.of(*place)
            total = seen if total == _NONE else total if seen in (_NONE, total) else _ALL
        return total


def _selected(op: Operation, index: int, axis: int) -> Limit | None:
    """Where a select stops looking at one of its sides, because its condition is constant from there on."""
    if not isinstance(op, compute.MapOp) or op.fn.data != "select" or index == 0:
        return None
    condition = op.args[0]
    if tile(condition).extents[axis] == 1:
        return None
    found = tail(condition, axis)
    if found is None or found.constant != Constant(0.0 if index == 1 else 1.0):
        return None
    return found.limit


def _follows_coordinates(at: SSAValue) -> bool:
    """Whether an index is a coordinate of the grid or of a loop, or an expression of some."""
    if isinstance(at, BlockArgument):
        return True
    args = at.owner.args if isinstance(at.owner, ExprOp) else ()
    return len(args) > 0 and all(isinstance(a, BlockArgument) for a in args)


def _in_scope(limit: Limit, value: SSAValue) -> bool:
    """Whether the limit's coordinate has one value for the whole life of a tile value."""
    owner = value.owner
    block: Block | None = owner.parent if isinstance(owner, Operation) else None
    if isinstance(owner, Block):
        loop = owner.parent_op()  # what a loop carries lives outside its body, too
        block = loop.parent if loop is not None else None
    owner = limit.at.owner
    home = owner if isinstance(owner, Block) else owner.parent
    while block is not None:
        if home is block:
            return True
        parent = block.parent_op()
        block = parent.parent if parent is not None else None
    return False


def _values(block: Block) -> Iterator[SSAValue]:
    yield from block.args
    for op in block.ops:
        for region in op.regions:
            yield from _values(region.blocks[0])
        yield from op.results

"""How large each axis of each tile value is printed: powers of two, and 16 at least where a dot multiplies it.

Axes that must agree (a map's operands and its result, a dot's inner extents, what a loop carries) form classes; a class
is as large as its most demanding member asks. Axes of extent 1 are not printed at all.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from xdsl.ir import Operation, SSAValue

from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import (
    AccumulateOp,
    BroadcastOp,
    CastOp,
    ConcatOp,
    DotOp,
    MapOp,
    PackOp,
    ReduceOp,
    ReshapeOp,
    ScanOp,
    SliceOp,
    SortOp,
    TopkOp,
    TransposeOp,
    UnpackOp,
)
from tilewright.ir.tile.memory import StageOp
from tilewright.ir.tile.places import LookupOp, UpdateOp
from tilewright.ir.tile.structure import ForOp, IfOp, KernelOp
from tilewright.ir.types import TileType

Axis: TypeAlias = tuple[SSAValue, int]

DOT_EXTENT: Final = 16
"""The least extent of a dot's operands along every axis."""


def live_axes(value: SSAValue) -> tuple[int, ...]:
    """The axes of a tile that are printed: those longer than 1."""
    return tuple(a for a, n in enumerate(tile(value).extents) if n > 1)


def power_of_two(extent: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << max(0, extent - 1).bit_length()


class PrintedExtents:
    """Printed extents of every axis in a kernel."""

    def __init__(self, kernel: KernelOp) -> None:
        self._parent: dict[Axis, Axis] = {}
        self._least: dict[Axis, int] = {}
        for op in kernel.walk():
            self._visit(op)

    def of(self, value: SSAValue, axis: int) -> int:
        """The printed extent of an axis."""
        extent = tile(value).extents[axis]
        if extent == 1:
            return 1
        return self._least.get(self._find((value, axis)), power_of_two(extent))

    def shape(self, value: SSAValue, axes: tuple[int, ...]) -> tuple[int, ...]:
        """The printed extents of some axes."""
        return tuple(self.of(value, a) for a in axes)

    def _find(self, axis: Axis) -> Axis:
        while (above := self._parent.get(axis, axis)) != axis:
            axis = above
        return axis

    def _ask(self, value: SSAValue, axis: int, least: int = 1) -> None:
        root = self._find((value, axis))
        wanted = max(least, power_of_two(tile(value).extents[axis]))
        self._least[root] = max(self._least.get(root, 1), wanted)

    def _join(self, a: SSAValue, a_axis: int, b: SSAValue, b_axis: int) -> None:
        """Two axes of one extent are printed alike."""
        if tile(a).extents[a_axis] == 1 or tile(a).extents[a_axis] != tile(b).extents[b_axis]:
            return
        first, second = self._find((a, a_axis)), self._find((b, b_axis))
        if first != second:
            least = max(self._least.get(x, 1) for x in (first, second))
            self._parent[second] = first
            self._least[first] = least
        self._ask(a, a_axis)

    def _join_all(self, a: SSAValue, b: SSAValue) -> None:
        for axis in range(tile(a).rank):
            self._join(a, axis, b, axis)

    def _visit(self, op: Operation) -> None:
        match op:
            case MapOp():
                for a in op.args:
                    self._join_all(op.out, a)
            case CastOp() | BroadcastOp() | StageOp():
                self._join_all(op.out, op.source)
            case LookupOp():
                self._join_all(op.out, op.indices)
            case DotOp():
                self._dot(op)
            case ReduceOp():
                for result, a in zip(op.out, op.args, strict=True):
                    self._join_all(op.args[0], a)
                    self._join_all(result, a)
            case AccumulateOp():
                self._join_all(op.out, op.acc)
                for axis in range(tile(op.acc).rank - 1):
                    self._join(op.acc, axis, op.source, axis)
            case TransposeOp():
                for axis, source in enumerate(op.permutation.data):
                    self._join(op.out, axis, op.source, source)
            case ReshapeOp():
                pair = same_live_extents(op)
                for mine, theirs in pair or ():
                    self._join(op.out, mine, op.source, theirs)
            case SliceOp() | PackOp() | UnpackOp():
                self._join_all(op.out, op.source)
            case UpdateOp():
                self._join_all(op.source, op.indices)
            case ScanOp():
                for result, a in zip(op.out, op.args, strict=True):
                    self._join_all(op.args[0], a)
                    self._join_all(result, a)
            case SortOp():
                for value in (op.payload, op.sorted, op.carried):
                    self._join_all(op.keys, value)
            case TopkOp():
                self._join_all(op.values, op.positions)
                for axis in range(tile(op.source).rank):
                    if axis != op.axis.data:
                        self._join(op.source, axis, op.values, axis)
            case ConcatOp():
                for a in op.args:
                    self._join_all(op.out, a)
            case ForOp():
                for group in zip(op.carries, op.carried, op.yielded, op.out, strict=True):
                    if isinstance(group[0].type, TileType):
                        for other in group[1:]:
                            self._join_all(group[0], other)
            case IfOp():
                for region in (op.then, op.otherwise):
                    last = region.blocks[0].last_op
                    for value, given in zip(op.out, last.operands if last else (), strict=True):
                        if isinstance(value.type, TileType):
                            self._join_all(value, given)
            case _:
                pass

    def _dot(self, op: DotOp) -> None:
        self._join_all(op.out, op.acc)
        self._join(op.out, 0, op.a, 0)
        self._join(op.out, 1, op.b, 1)
        self._join(op.a, 1, op.b, 0)
        if is_matrix_product(op):
            for value, axis in ((op.a, 0), (op.a, 1), (op.b, 1)):
                self._ask(value, axis, DOT_EXTENT)


def is_matrix_product(op: DotOp) -> bool:
    """Whether a dot has rows, columns and an inner extent; others are printed as a product and a sum."""
    return min(*tile(op.a).extents, *tile(op.b).extents) > 1


def same_live_extents(op: ReshapeOp) -> list[tuple[int, int]] | None:
    """Pairs of (result axis, source axis) where a reshape only adds or drops axes of extent 1; None for others."""
    mine, theirs = live_axes(op.out), live_axes(op.source)
    pairs = list(zip(mine, theirs, strict=False))
    same = len(mine) == len(theirs) and all(tile(op.out).extents[a] == tile(op.source).extents[b] for a, b in pairs)
    return pairs if same else None

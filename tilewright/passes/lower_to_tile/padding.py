"""Padding: the operand, perhaps seen transposed, is copied to its place; what lies outside it is the fill."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import PadOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.memory import ViewOp
from tilewright.passes.lower_to_tile.access import Space, map_group, unsupported
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, begin
from tilewright.passes.lower_to_tile.layout import strides_of
from tilewright.passes.lower_to_tile.pointwise import column_tile


@dataclass(frozen=True, slots=True)
class _Side:
    """One axis of the result: its size and step, the operand's, and how many elements come before the operand's."""

    size: Expr
    step: Expr
    source: Expr
    source_step: Expr
    low: Expr

    @property
    def grows(self) -> bool:
        return self.size != self.source


# a tensor of one element
_WHOLE = _Side(Expr.of(1), Expr.of(1), Expr.of(1), Expr.of(1), Expr.of(0))


def lower_pad(group: GroupOp, name: str, machine: Machine) -> Lowered:
    """Axes without padding merge with what is outside them; the last one runs along the lanes."""
    op = next(o for o in group.block.ops if isinstance(o, PadOp))
    if group.yielded != (op.out,) or len(group.block.args) != 1:
        raise unsupported(op, "padding is a kernel of its own")
    (source,) = group.block.args

    def seed(space: Space) -> None:
        if op.x not in space.maps:
            space.maps[op.x] = tuple(space.axis_for(d) for d in tensor(op.x).dims)

    space = map_group(group, op, seed)
    strides = strides_of(space, source)
    if any(len(axis.axes) > 1 for axis in space.maps[op.x]):
        raise unsupported(op, "the operand's axes are in pieces")
    steps = [strides.steps[axis.axes[0]] if axis.axes else Expr.of(0) for axis in space.maps[op.x]]
    out, x = tensor(op.out).dims, tensor(op.x).dims
    sides = [_Side(*side) for side in zip(out, ViewOp.row_major(out), x, steps, op.low.data, strict=True)]
    sides = _merged([s for s in sides if s.size.constant != 1 or s.grows]) or [_WHOLE]
    b, buffers, (output,) = begin(group, name)
    extents = [s.size for s in sides]
    tiles = [1] * (len(sides) - 1) + [column_tile(extents[-1])]
    at = b.grid(extents, tiles)
    view = b.view(buffers[source], [s.source for s in sides], [s.source_step for s in sides], strides.offset)
    window = b.window(view, [-s.low for s in sides], extents)
    b.store(b.load(window, at, tiles, op.value.data), b.view(output, extents, [s.step for s in sides]), at)
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))


def _merged(sides: list[_Side]) -> list[_Side]:
    """Neighbours of which the inner one does not grow, and the operand walks both as one, are one axis."""
    found: list[_Side] = []
    for side in sides:
        if found and not side.grows and found[-1].source_step == side.source_step * side.size:
            outer = found.pop()
            size, source, low = (n * side.size for n in (outer.size, outer.source, outer.low))
            side = _Side(size, side.step, source, side.source_step, low)
        found.append(side)
    return found

"""What a dot asks for ahead of time: the rows of its right-hand side that come next, and what its epilogue touches.

Weights in panels lie one chunk of k after the other, and one panel after the other, and so do keys and values, segment
after segment: what follows a tile of the right-hand side in memory is what the next dot multiplies by, as it lies or
turned. Every block of sums asks for its share of that, spread over its steps of k: the memory's time passes under
multiply-adds. The loads that the finished sums meet are asked for when a block of sums begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

from xdsl.ir import SSAValue

from tilewright.ir.loops import BufferArg, Value
from tilewright.ir.tile import compute
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import DotOp
from tilewright.ir.tile.memory import LoadOp, StageOp, StoreOp, ViewOp
from tilewright.ir.tile.structure import ExprOp, ForOp, YieldOp
from tilewright.ir.types import BufferType, TileType
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.index_ops import lower_index_op
from tilewright.passes.lower_tile_to_loops.operands import unit_reshape
from tilewright.passes.lower_tile_to_loops.sites import Position, Site
from tilewright.passes.lower_tile_to_loops.views import AffineView

LINE = 64  # bytes that one request brings
_ELEMENTWISE = (compute.MapOp, compute.CastOp, compute.BroadcastOp, compute.ReshapeOp, StageOp)


@dataclass(frozen=True, slots=True)
class Stream:
    """What follows a dense right-hand side in memory: as many elements as that has, from `first` on.

    more: whether there are any (where not, asking is harmless, but for what it brings in vain).
    """

    memory: BufferArg
    first: Value
    elements: int
    more: Value


@dataclass(frozen=True, slots=True)
class Share:
    """What one block of sums asks for: `step` elements further for every k, from `first` on."""

    memory: BufferArg
    first: Value
    step: Value

    def ask(self, cx: Lowering, k: Value) -> None:
        """The request of one step of k."""
        where = cx.b.add(self.first, cx.b.mul(k, self.step))
        cx.b.prefetch(self.memory, where, near=False)


def stream_after(cx: Lowering, op: DotOp) -> Stream | None:
    """What follows the right-hand side in memory, where it is loaded, as it lies or turned, and its rows are dense."""
    turned = op.b.owner
    load = _loaded(turned.source if isinstance(turned, compute.TransposeOp) else op.b)
    if load is None or 1 in tile(op.b).extents:
        return None
    view = cx.views.get(load.source)
    axes = [axis for axis, n in enumerate(tile(load.out).extents) if n != 1]
    dense = [tile(load.out).extents[axes[1]], 1] if len(axes) == 2 else []
    if not isinstance(view, AffineView) or [view.strides[a].constant for a in axes] != dense:
        return None
    first, elements = element(cx, view, load.at, [0] * tile(load.out).rank), prod(tile(op.b).extents)
    b = cx.b
    after = b.add(first, elements)
    end = b.add(b.expr(view.offset), b.mul(view.extents[0].value, b.expr(view.strides[0])))
    return Stream(view.root, after, elements, b.compare("le", b.add(after, elements), end))


def share(cx: Lowering, stream: Stream, depth: int, number: Value, count: Value) -> Share:
    """The share of a stream that one of `count` blocks has, each of `depth` steps of k."""
    b = cx.b
    step = b.ceildiv(b.index(-(-stream.elements // depth)), b.max(count, 1))
    step = b.select(stream.more, step, b.index(0))
    return Share(stream.memory, b.add(stream.first, b.mul(number, b.mul(step, depth))), step)


def ask_for_epilogue(cx: Lowering, op: DotOp, sites: Sequence[Site]) -> None:
    """Requests for the lines of a block's sites in the loaded tiles that meet the finished sums one to one.

    What is stored is not asked for: stores wait in a queue of their own, and asking gained nothing.
    """
    sizes = tile(op.out).extents
    for load in dict.fromkeys(meeting(op.out)):
        if isinstance(load, StoreOp):
            continue
        extents = tile(load.out).extents
        if [n for n in extents if n != 1] != [n for n in sizes if n != 1]:
            continue
        a_line = max(1, LINE // tile(load.out).dtype.bytes)
        with reachable(cx, [load.source, *load.at]) as known:
            view = cx.views.get(load.source)
            if not known or not isinstance(view, AffineView):
                continue
            for site in sites:
                if site.coords[1].align % a_line:
                    continue  # the line was asked for with the vector before
                moving = [c.at for c, n in zip(site.coords, sizes, strict=True) if n != 1]
                places = [0 if n == 1 else moving.pop(0) for n in extents]
                cx.b.prefetch(view.root, element(cx, view, load.at, places))


def element(cx: Lowering, view: AffineView, origins: Sequence[SSAValue], places: Sequence[Position]) -> Value:
    """Where an element of a region lies in memory; the region need not lie inside the view."""
    b = cx.b
    fixed, moving = b.expr(view.offset), b.index(0)
    for origin, place, stride in zip(origins, places, view.strides, strict=True):
        step = b.expr(stride)
        fixed = b.add(fixed, b.mul(cx.indices[origin].value, step))
        moving = b.add(moving, b.mul(b.index(place), step))
    return b.add(fixed, moving)


def _loaded(value: SSAValue) -> LoadOp | None:
    """The load that a tile is, but for axes of extent 1."""
    op = value.owner
    while isinstance(op, StageOp) or (isinstance(op, compute.ReshapeOp) and unit_reshape(op)):
        op = op.source.owner
    return op if isinstance(op, LoadOp) else None


def meeting(value: SSAValue) -> Iterator[LoadOp | StoreOp]:
    """The loads that elementwise ops join with a dot's result, and what stores it, behind the ends of loops, too."""
    for use in value.uses:
        op = use.operation
        if isinstance(op, StoreOp):
            yield op
        elif isinstance(op, YieldOp):
            loop = op.parent_op()
            if isinstance(loop, ForOp):
                yield from meeting(loop.results[use.index])
        elif isinstance(op, _ELEMENTWISE):
            for other in op.operands:
                if other is not value and isinstance(other.type, TileType):
                    load = _loaded(other)
                    if load is not None:
                        yield load
            yield from meeting(op.results[0])


@contextmanager
def reachable(cx: Lowering, values: Sequence[SSAValue]) -> Iterator[bool]:
    """Lowers index and view ops that come later, for the time of a block; False where they read memory."""
    before = (dict(cx.indices), dict(cx.views))

    def reach(value: SSAValue) -> bool:
        if value in cx.indices or value in cx.views or isinstance(value.type, BufferType):
            return True
        op = value.owner
        if not isinstance(op, (ExprOp, ViewOp)) or not all(reach(o) for o in op.operands):
            return False
        return lower_index_op(cx, op)

    yield all(reach(v) for v in values)
    cx.indices, cx.views = before

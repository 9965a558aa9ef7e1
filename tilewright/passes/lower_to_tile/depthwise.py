"""The depthwise skeleton: every channel has a filter of its own; channels lie along the lanes, taps are summed."""

from __future__ import annotations

from math import prod

from xdsl.ir import BlockArgument, SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32, F64
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.graph.windows import ConvolutionOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.memory import ViewOp
from tilewright.passes.lower_to_tile.access import UNIT, Space, map_group, unsupported
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, all_strides, begin, padded
from tilewright.passes.lower_to_tile.layout import Walk

POSITIONS = 8  # positions along an image row that one program sums: they share the loads of a filter
VECTORS = 2  # vectors of channels beside each other


def lower_depthwise(group: GroupOp, anchor: ConvolutionOp, name: str, machine: Machine) -> Lowered:
    """Taps run in row-major order; those along the last axis are unrolled."""
    if not isinstance(anchor.w, BlockArgument):
        raise unsupported(anchor, "the filters must be in memory")

    def seed(space: Space) -> None:
        for value in (anchor.x, anchor.w):
            space.maps.setdefault(value, (UNIT,) * tensor(value).rank)

    space = map_group(group, anchor, seed)
    strides = all_strides(space, group)
    members = [axis.axes for axis in space.maps[anchor.out]]
    walk = Walk([space.size(m) for m in members], list(members))
    b, buffers, outputs = begin(group, name)
    spatial = len(anchor.windows)
    row, column = spatial, spatial + 1
    width = min(VECTORS * machine.rules.lanes, padded(anchor.groups.data, machine.rules.lanes))
    tiles = [1] * len(walk.extents)
    length = walk.extents[row].constant
    rows = tiles[row] = POSITIONS if length is None else min(POSITIONS, max(length, 1))
    tiles[column] = width
    at = b.grid(walk.extents, tiles)
    e = Emitter(b, space, walk, buffers, strides, dict(enumerate(at)), row, column, dict(enumerate(tiles)))
    kind = F64 if tensor(anchor.out).dtype == F64 else F32
    x, out = tensor(anchor.x), tensor(anchor.out)
    steps = ViewOp.row_major(x.dims)
    windows = [w.constant or 0 for w in anchor.windows]
    inner = windows[-1]
    count = prod(windows[:-1])
    places = zip(steps[1:-1], anchor.strides.data, strict=True)
    spread = [s * d for s, d in zip(steps[1:-1], anchor.dilation.data, strict=True)]
    image = b.view(
        buffers[anchor.x],
        [*out.dims[:-1], *windows, out.dims[-1]],
        [steps[0], *(s * n for s, n in places), *spread, 1],
    )
    filters = b.view(buffers[anchor.w], [count * inner, out.dims[-1]], [out.dims[-1], 1])

    def taps(first: SSAValue | int, acc: SSAValue) -> SSAValue:
        outer: list[SSAValue | int] = []
        rest = 1
        for size in reversed(windows[:-1]):
            place = Expr.of("a0") // rest
            outer.insert(
                0, 0 if isinstance(first, int) else b.index(place % size if rest * size < count else place, first)
            )
            rest *= size
        for tap in range(inner):
            where = [*at[: spatial + 1], *outer, tap, at[column]]
            tile = [1] * spatial + [rows] + [1] * spatial + [width]
            under = b.cast(b.reshape(b.load(image, where, tile), (rows, width)), kind)
            number = tap if isinstance(first, int) else b.index(Expr.of("a0") * inner + tap, first)
            weight = b.cast(b.load(filters, [number, at[column]], (1, width)), kind)
            acc = b.map("add", acc, b.map("mul", under, b.broadcast(weight, (rows, width))))
        return acc

    total: SSAValue = b.constant(0.0, (rows, width), kind)
    if count == 1:
        total = taps(0, total)
    elif count:
        with b.loop(0, count, 1, [total]) as loop:
            loop.give(taps(loop.at, loop.carried[0]))
        total = loop.out[0]
    e.set(anchor.out, b.cast(total, out.dtype))
    for value, output in zip(group.yielded, outputs, strict=True):
        e.store(value, output, e.tile(value))
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))

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
from tilewright.passes.lower_to_tile.access import UNIT, Space, map_group, unsupported
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, all_strides, begin
from tilewright.passes.lower_to_tile.layout import Walk
from tilewright.passes.lower_to_tile.position_tiles import channel_tile
from tilewright.passes.lower_to_tile.taps import NUMBER, Tap, fold_taps, window_steps


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
    rows, width = channel_tile(machine, walk.extents[row].constant, anchor.groups.data)
    tiles = [1] * len(walk.extents)
    tiles[row], tiles[column] = rows, width
    at = b.grid(walk.extents, tiles)
    e = Emitter(b, space, walk, buffers, strides, dict(enumerate(at)), row, column, dict(enumerate(tiles)))
    kind = F64 if tensor(anchor.out).dtype == F64 else F32
    out = tensor(anchor.out)
    windows = [w.constant or 0 for w in anchor.windows]
    inner = windows[-1]
    positions, spread = window_steps(anchor)
    image = b.view(buffers[anchor.x], [*out.dims[:-1], *windows, out.dims[-1]], [*positions, *spread, 1])
    filters = b.view(buffers[anchor.w], [prod(windows), out.dims[-1]], [out.dims[-1], 1])

    def image_row(tap: Tap, acc: SSAValue) -> SSAValue:
        outer = [tap.index(place) for place in tap.coordinates]
        for last in range(inner):
            where = [*at[: spatial + 1], *outer, last, at[column]]
            tile = [1] * spatial + [rows] + [1] * spatial + [width]
            under = b.cast(b.reshape(b.load(image, where, tile), (rows, width)), kind)
            weight = b.cast(b.load(filters, [tap.index(NUMBER * inner + last), at[column]], (1, width)), kind)
            acc = b.map("add", acc, b.map("mul", under, b.broadcast(weight, (rows, width))))
        return acc

    total = fold_taps(b, windows[:-1], b.constant(0.0, (rows, width), kind), image_row)
    e.set(anchor.out, b.cast(total, out.dtype))
    for value, output in zip(group.yielded, outputs, strict=True):
        e.store(value, output, e.tile(value))
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))

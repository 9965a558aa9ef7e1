"""The convolution skeleton: a row of positions by a panel of filters in registers, all taps and channels inside.

x is [N, spatial..., C] and padded already, so element (position p, tap t, channel c) lies at p * stride + t * dilation
along each axis: one affine view. Taps along the last axis follow one another in memory together with their channels
where they are not dilated, so that a 3 by 3 window is three dense products. Sums run over taps in row-major order, then
channels, whatever the register tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from xdsl.ir import BlockArgument, Operation, SSAValue

from tilewright.ir.dims import Expr, product
from tilewright.ir.dtypes import F32, F64
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.graph.windows import ConvolutionOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.memory import ViewOp
from tilewright.passes.lower_to_tile.access import UNIT, Space, map_group, unsupported
from tilewright.passes.lower_to_tile.cache_tiles import window_block, window_run
from tilewright.passes.lower_to_tile.depthwise import lower_depthwise
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, all_strides, begin
from tilewright.passes.lower_to_tile.layout import Strides, Walk, merge_axes
from tilewright.passes.lower_to_tile.matmul import Panels, panels_of
from tilewright.passes.lower_to_tile.pointwise import axes_apart
from tilewright.passes.lower_to_tile.position_tiles import position_tile
from tilewright.passes.lower_to_tile.skeleton import Refusal
from tilewright.passes.lower_to_tile.taps import NUMBER, Tap, fold_taps, window_steps


@dataclass(frozen=True, slots=True)
class Runs:
    """How the window is walked: `loops` are the extents of the axes looped over, `length` elements lie dense in memory.

    spread: the loops' steps through x, in elements.
    """

    loops: tuple[int, ...]
    spread: tuple[Expr, ...]
    length: int

    def cut(self, stretch: int) -> Runs:
        """The same walk in shorter runs, which divide these."""
        return Runs((*self.loops, self.length // stretch), (*self.spread, Expr.of(stretch)), stretch)


@dataclass(frozen=True, slots=True)
class Block:
    """Whole rows of an image: how many, the positions of each, and the stretch of a run that they meet at once."""

    lines: int
    width: int
    stretch: int

    @property
    def positions(self) -> int:
        return self.lines * self.width


def refuses_convolution(op: Operation) -> Refusal | None:
    """What channels-last leaves when it cannot turn, pad or split a convolution."""
    if not isinstance(op, ConvolutionOp):
        return None
    if not op.channels_last.data or any((*op.padding_low.data, *op.padding_high.data)):
        return Refusal("a convolution is lowered on padded images with their channels last")
    if op.bias is not None:
        return Refusal("the bias of a channels-last convolution is added by an op of its own")
    if any(d.constant is None for d in tensor(op.w).dims):
        return Refusal(f"filters {tensor(op.w)} of a size that is not fixed")
    return None


def lower_convolution(group: GroupOp, name: str, machine: Machine) -> Lowered:
    """One kernel; filters known when weights are set come in panels."""
    anchor = next(op for op in group.block.ops if isinstance(op, ConvolutionOp))
    if anchor.depthwise:
        return lower_depthwise(group, anchor, name, machine)
    return _lower(group, anchor, name, machine)


def filter_panels(anchor: ConvolutionOp) -> Panels | None:
    """The panels that plan-layout made of the filters, read back as reshape(slice(...))."""
    return panels_of(anchor.w.owner.x) if isinstance(anchor.w.owner, ReshapeOp) else None


def _runs(anchor: ConvolutionOp) -> Runs:
    windows = [w.constant or 0 for w in anchor.windows]
    depth = anchor.depth.constant or 0
    _, spread = window_steps(anchor)
    length = window_run(anchor)
    if anchor.groups.data == 1 and length == windows[-1] * depth:
        # the taps along the last axis are part of the run
        return Runs(tuple(windows[:-1]), tuple(spread[:-1]), length)
    return Runs(tuple(windows), tuple(spread), depth)


def _lower(group: GroupOp, anchor: ConvolutionOp, name: str, machine: Machine) -> Lowered:
    groups = anchor.groups.data
    packed = filter_panels(anchor)
    space = _space(group, anchor, packed)
    strides = all_strides(space, group)
    x, out = tensor(anchor.x), space.maps[anchor.out]
    spatial = x.rank - 2
    members = [axis.axes for axis in out[:-1]]
    filters = out[-1].axes
    if groups > 1:
        members.append(filters[:1] if len(filters) > 1 or (anchor.filters.constant or 0) > groups else filters)
        filters = filters[1:] if members[-1] is not filters else ()
    walk = Walk([*(space.size(m) for m in members), space.size(filters)], [*members, filters])
    column, row = len(members), spatial
    block = _block(group, anchor, machine, packed, space, walk, strides)
    if block is not None:
        # image rows of a block follow one another in every buffer: one axis of positions
        walk = Walk(
            [*walk.extents[: row - 1], walk.extents[row - 1] * walk.extents[row], walk.extents[column]],
            [*walk.members[: row - 1], (*walk.members[row - 1], *walk.members[row]), walk.members[column]],
        )
        column, row = column - 1, row - 1
    b, buffers, outputs = begin(group, name)
    wanted = walk.extents[row].constant, walk.extents[column].constant or 1
    rows, vectors = position_tile(machine, *wanted, packed.columns if packed is not None else None)
    width = packed.columns if packed is not None else vectors * machine.rules.lanes
    runs = _runs(anchor)
    if block is not None:
        rows, runs = block.positions, runs.cut(block.stretch)
    tiles = [1] * len(walk.extents)
    tiles[row], tiles[column] = rows, width
    at = b.grid(walk.extents, tiles, _order(machine, anchor, walk, row, column, block))
    extent = dict(enumerate(tiles))
    single = not filters
    places = dict(enumerate(at))
    e = Emitter(b, space, walk, buffers, strides, places, row, column, {**extent, column: 1 if single else width})
    if block is not None:
        line = b.index(Expr.of("a0") // block.width, at[row])
        at = [*at[:row], line, b.index(0), *at[row + 1 :]]
    across = (1, rows) if block is None else (block.lines, block.width)
    total = _sum(b, anchor, packed, buffers, at, runs, across, width)
    if single:
        total = b.slice(total, [0, 0], [rows, 1])
    e.set(anchor.out, b.cast(total, tensor(anchor.out).dtype))
    for value, output in zip(group.yielded, outputs, strict=True):
        e.store(value, output, e.tile(value))
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0))


def _block(
    group: GroupOp,
    anchor: ConvolutionOp,
    machine: Machine,
    packed: Panels | None,
    space: Space,
    walk: Walk,
    strides: Mapping[SSAValue, Strides],
) -> Block | None:
    """The block of positions that a program takes where filters come from far; None where rows cannot be joined."""
    found = window_block(machine, anchor)
    if found is None or packed is None or packed.columns != machine.rules.panel:
        return None
    axes = [m for members in walk.members[-3:-1] for m in members]
    if len(axes) != 2 or axes_apart(space, group) & set(axes):
        return None
    if len(merge_axes(space, axes, strides).members) != 1:
        return None
    return Block(found[0], tensor(anchor.out).dims[-2].constant or 1, found[1])


def _space(group: GroupOp, anchor: ConvolutionOp, packed: Panels | None) -> Space:
    """The result's axes, the filters' split by group; image and filters are addressed by the skeleton itself."""
    groups = anchor.groups.data

    def seed(space: Space) -> None:
        if anchor.x in space.maps:
            return
        channel = space.maps[anchor.out][-1]
        wide = (anchor.filters.constant or 0) // groups
        if groups > 1 and wide > 1:
            space.split(channel.axes[0], Expr.of(groups), Expr.of(wide))
        space.maps[anchor.x] = (UNIT,) * tensor(anchor.x).rank
        value: SSAValue = anchor.w
        space.maps[value] = (UNIT,) * tensor(value).rank
        for inner in packed.chain if packed is not None else ():
            space.maps[inner] = (UNIT,) * tensor(inner).rank

    return map_group(group, anchor, seed)


def _order(
    machine: Machine, anchor: ConvolutionOp, walk: Walk, row: int, column: int, block: Block | None
) -> list[tuple[int, int]]:
    """Blocks of image rows that half of the blocking level holds meet every panel of filters before the next ones.

    Where whole images fit, several of them form a block, so that filters are streamed once for all.
    """
    x = tensor(anchor.x)
    level = machine.blocking_level()
    cache = (level.size if level is not None else None) or 1 << 20
    axes = list(range(row))
    inner = [(i, 1) for i in range(row + 1, column)]
    size = x.dtype.bytes
    line = product(x.dims[-2:]).constant
    image = product(x.dims[1:]).constant
    if line is None or not axes:
        return [*[(i, 1) for i in axes], *inner, (column, 1), (row, 1)]
    if image is not None and image * size * 2 <= cache // 2:
        count = max(1, cache // 2 // (image * size))
        rest = [(i, 1) for i in axes[1:]]
        return [(0, count), *inner, (column, 1), (0, 1), *rest, (row, 1)]
    # lines of the image that one step along the axis takes
    last = axes[-1] if block is None else row
    step = anchor.strides.data[last - 1] if last else 1
    if block is not None:
        step = anchor.strides.data[-2] * block.lines
    count = max(1, cache // 2 // max(1, line * step * size))
    rest = [(row, 1)] if last != row else []
    return [*[(i, 1) for i in axes if i != last], (last, count), *inner, (column, 1), (last, 1), *rest]


def _sum(
    b: KernelBuilder,
    anchor: ConvolutionOp,
    packed: Panels | None,
    buffers: dict[SSAValue, SSAValue],
    at: list[SSAValue],
    runs: Runs,
    places: tuple[int, int],
    width: int,
) -> SSAValue:
    """The tile's sum over the window and its channels, for positions of (image rows, positions along each)."""
    kind = F64 if tensor(anchor.out).dtype == F64 else F32
    rows = prod(places)
    start = b.constant(0.0, (rows, width), kind)
    if not runs.length:
        return start

    def part(tap: Tap, acc: SSAValue) -> SSAValue:
        a = _left(b, anchor, runs, buffers[anchor.x], at, tap, places)
        return b.dot(a, _right(b, anchor, packed, runs, buffers, at, tap, width), acc)

    return fold_taps(b, runs.loops, start, part)


def _left(
    b: KernelBuilder,
    anchor: ConvolutionOp,
    runs: Runs,
    image: SSAValue,
    at: list[SSAValue],
    tap: Tap,
    places: tuple[int, int],
) -> SSAValue:
    """The [positions, run] tile of the image under one tap of the looped axes."""
    out, spatial = tensor(anchor.out), len(anchor.windows)
    extents = list(out.dims[:-1])
    steps, _ = window_steps(anchor)
    where: list[SSAValue | int] = list(at[: spatial + 1])
    for size, spread, place in zip(runs.loops, runs.spread, tap.coordinates, strict=True):
        if size > 1:
            extents.append(Expr.of(size))
            steps.append(spread)
            where.append(tap.index(place))
    if anchor.groups.data > 1:
        extents.append(Expr.of(anchor.groups.data))
        steps.append(anchor.depth)
        where.append(at[spatial + 1])
    lines, along = places
    tile = [*[1] * (spatial - 1), lines, along, *[1] * (len(extents) - spatial - 1)]
    view = b.view(image, [*extents, runs.length], [*steps, 1])
    return b.reshape(b.load(view, [*where, 0], [*tile, runs.length]), (lines * along, runs.length))


def _right(
    b: KernelBuilder,
    anchor: ConvolutionOp,
    packed: Panels | None,
    runs: Runs,
    buffers: dict[SSAValue, SSAValue],
    at: list[SSAValue],
    tap: Tap,
    width: int,
) -> SSAValue:
    """The [run, filters] tile of the filters under one tap."""
    spatial, groups = len(anchor.windows), anchor.groups.data
    first = tap.index(NUMBER * runs.length)
    if packed is not None:
        dims = tensor(packed.argument).dims
        panel = b.index(Expr.of("a0") // packed.columns, at[spatial + 1])
        view = b.view(buffers[packed.argument], dims, ViewOp.row_major(dims))
        return b.reshape(b.load(view, [panel, first, 0], (1, runs.length, width)), (runs.length, width))
    if not isinstance(anchor.w, BlockArgument):
        raise unsupported(anchor, "the filters must be in memory")
    filters, depth = anchor.filters, product((*anchor.windows, anchor.depth))
    if groups == 1:
        view = b.view(buffers[anchor.w], [depth, filters], [filters, 1])
        return b.load(view, [first, at[spatial + 1]], (runs.length, width), 0.0)
    wide = filters // groups
    view = b.view(buffers[anchor.w], [depth, groups, wide], [filters, wide, 1])
    column = at[spatial + 2] if len(at) > spatial + 2 else 0
    loaded = b.load(view, [first, at[spatial + 1], column], (runs.length, 1, width), 0.0)
    return b.reshape(loaded, (runs.length, width))

"""The matmul skeleton: a register tile of the result per program, all of K inside it, then the epilogue on registers.

A weight comes in panels (plan-layout): [panels, K, columns], or [panels, K/2, columns, 2] for a matrix unit, where a
program takes several of them. Cache
blocking is the grid's order: a block of rows that fits the second-level cache meets every panel before the next block
starts. Many rows take a panel in stretches of k (`cache_tiles.py`), so that weights are on their way while others are
multiplied by. Variants differ in the rows of a tile; all of them add k in the same order. A group may hold several
matmuls of one left-hand side (gate and up): each sums in registers of its own, one after the other, before the
epilogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xdsl.ir import BlockArgument, Operation, SSAValue

from tilewright.ir.dims import DimSpace, Expr, product
from tilewright.ir.dtypes import F32, F64
from tilewright.ir.graph import contraction, shape
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine, TileRules
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.memory import ViewOp
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_to_tile.access import UNIT, Axis, Space, map_group, unsupported
from tilewright.passes.lower_to_tile.cache_tiles import block_of
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, all_strides, begin
from tilewright.passes.lower_to_tile.layout import Walk, merge_axes
from tilewright.passes.lower_to_tile.matrix_tiles import is_deep, row_tiles, steps_of, tile_columns, unit_for
from tilewright.passes.lower_to_tile.packing import matrix_of_pairs
from tilewright.passes.lower_to_tile.pointwise import axes_apart
from tilewright.passes.lower_to_tile.skeleton import Refusal

DYNAMIC_K = 64  # a K known only at run time is walked in steps of this


@dataclass(frozen=True, slots=True)
class Panels:
    """A packed right-hand side: the group argument that holds it, its panel width, and the k's side by side.

    total: columns of all panels.
    """

    argument: BlockArgument
    columns: int
    pairs: int
    total: int
    chain: tuple[SSAValue, ...]


def panels_of(b: SSAValue) -> Panels | None:
    """Reads back what plan-layout wrote: slice(reshape(transpose(argument))) from panels to [K, N]."""
    match b.owner:
        case shape.SliceOp(x=SSAValue(owner=shape.ReshapeOp(x=SSAValue(owner=shape.TransposeOp() as turned)) as flat)):
            argument = turned.x
            if not isinstance(argument, BlockArgument):
                return None
            dims = [d.constant for d in tensor(argument).dims]
            values = (b, flat.out, turned.out, argument)
            total = tensor(flat.out).dims[1].constant
            if total is None:
                return None
            if turned.permutation.data == (1, 0, 2) and dims[2] is not None:
                return Panels(argument, dims[2], 1, total, values)
            if turned.permutation.data == (1, 3, 0, 2) and dims[2] is not None and dims[3] is not None:
                return Panels(argument, dims[2], dims[3], total, values)
    return None


def refuses_matmul(op: Operation) -> Refusal | None:
    """Products of integers: canonicalize leaves none, the reduction skeleton multiplies and adds them up."""
    if isinstance(op, contraction.MatmulOp) and not tensor(op.out).dtype.is_float:
        return Refusal(f"a matrix product of {tensor(op.a).dtype}: cast the operands to a float dtype")
    return None


def lower_matmul(group: GroupOp, name: str, machine: Machine, dims: DimSpace) -> Lowered:
    """A kernel per register tile that the possible numbers of rows call for."""
    anchor = next(op for op in group.block.ops if isinstance(op, contraction.MatmulOp))
    rows = _row_count(group, anchor)
    low, high = dims.interval(rows)
    variants: list[Variant] = []
    previous = 0
    packed = panels_of(anchor.b)
    unit = unit_for(machine, anchor) if packed is not None and packed.pairs > 1 else None
    for limit, tile_rows in row_tiles(machine.rules, unit, tall=unit is not None and is_deep(machine, anchor, unit)):
        if (low is None or limit is None or low <= limit) and (high is None or high > previous or not variants):
            block = _block(anchor, packed, rows, machine) if limit is None and unit is None else None
            height, stretch = block or (tile_rows, None)
            variants.append(Variant(_kernel(group, anchor, f"{name}_r{tile_rows}", machine, height, stretch), limit))
        previous = limit or previous
    variants[-1] = Variant(variants[-1].kernel, None)
    return Lowered(tuple(variants), tuple(variants[0].kernel.dims.data), rows)


def _block(anchor: contraction.MatmulOp, packed: Panels | None, rows: Expr, machine: Machine) -> tuple[int, int] | None:
    """Rows and k of the blocks of a product of two matrices in memory, the right one in panels; None for none."""
    k = anchor.sizes()[3].constant
    if packed is None or not k or tensor(anchor.b).rank != 2 or not isinstance(anchor.a, BlockArgument):
        return None
    argument = tensor(packed.argument)
    return block_of(machine, rows, k, packed.total, argument.dtype.bytes)


@dataclass(slots=True)
class _Axes:
    k: int = -1
    seeded: list[contraction.MatmulOp] = field(default_factory=list)


def _seed(space: Space, anchors: Sequence[contraction.MatmulOp], axes: _Axes) -> None:
    """Maps the operands of every matmul whose result has a map; all of them share one k."""
    for anchor in anchors:
        if anchor.out not in space.maps or anchor in axes.seeded:
            continue
        axes.seeded.append(anchor)
        if axes.k < 0:
            axes.k = space.new(anchor.sizes()[3])
        _seed_operands(space, anchor, axes)


def _seed_operands(space: Space, anchor: contraction.MatmulOp, axes: _Axes) -> None:
    packed = panels_of(anchor.b)
    out, size = space.maps[anchor.out], anchor.sizes()[3]
    if space.extents[axes.k] != size:
        raise unsupported(anchor, "matmuls of one kernel must share their K")
    k = UNIT if size.constant == 1 else Axis((axes.k,))
    lead, m, n = out[:-2], out[-2], out[-1]
    left = (*broadcast_axes_of(anchor.a, lead), m, k)
    if space.maps.setdefault(anchor.a, left) != left:
        raise unsupported(anchor, "matmuls of one kernel must share their left-hand side")
    if packed is not None:
        for value in packed.chain:
            space.maps[value] = (UNIT,) * tensor(value).rank
    else:
        pair = (n, k) if anchor.transpose_b.data else (k, n)
        space.maps[anchor.b] = (*broadcast_axes_of(anchor.b, lead), *pair)


def broadcast_axes_of(operand: SSAValue, lead: tuple[Axis, ...]) -> list[Axis]:
    """The leading axes of a matmul operand, aligned with the result's from the right."""
    dims = tensor(operand).dims[:-2]
    aligned = lead[len(lead) - len(dims) :]
    return [UNIT if d.constant == 1 else a for d, a in zip(dims, aligned, strict=True)]


def _row_count(group: GroupOp, anchor: contraction.MatmulOp) -> Expr:
    """The rows one program range covers: all leading dims and M for a shared right-hand side, else M."""
    lead, m, _, _ = anchor.sizes()
    return product((*lead, m)) if tensor(anchor.b).rank == 2 else m


def _kernel(
    group: GroupOp, anchor: contraction.MatmulOp, name: str, machine: Machine, tile_rows: int, stretch: int | None
) -> KernelOp:
    anchors = [op for op in group.block.ops if isinstance(op, contraction.MatmulOp)]
    packed = panels_of(anchor.b)
    axes = _Axes()
    space = map_group(group, anchor, lambda s: _seed(s, anchors, axes))
    strides = all_strides(space, group)
    n_axes = {a for axis in space.maps[anchor.out][-1:] for a in axis.axes}
    order = [a for a in space.order if a != axes.k and a not in n_axes]
    order += [a for a in space.order if a in n_axes]
    inner = frozenset(n_axes)
    walk = merge_axes(
        space, [*order, axes.k], strides, axes_apart(space, group) | {axes.k} | (inner if len(inner) == 1 else set())
    )
    k_at = len(walk.members) - 1
    column = k_at - 1
    if column < 0 or not set(walk.members[column]) <= n_axes:
        walk = Walk(
            [*walk.extents[:k_at], Expr.of(1), walk.extents[k_at]], [*walk.members[:k_at], (), walk.members[k_at]]
        )
        column, k_at = k_at, k_at + 1
    elif sum(bool(set(m) & n_axes) for m in walk.members) > 1:
        raise unsupported(group, "the result's columns are stored in pieces that no single stride walks")
    b, buffers, outputs = begin(group, name)
    row = column - 1 if column > 0 else None
    width = machine.rules.panel
    if packed is not None:
        width = tile_columns(packed.columns, packed.pairs, packed.total, machine.rules)
    extent = dict.fromkeys(range(len(walk.members)), 1)
    extent[column] = width
    if row is not None:
        extent[row] = tile_rows
    grid = list(range(k_at))
    on_unit = packed is not None and packed.pairs > 1 and unit_for(machine, anchor) is not None
    loops = _order(machine, walk, grid, row, column, tile_rows, tensor(anchor.a).dtype.bytes, on_unit=on_unit)
    at = dict(zip(grid, b.grid([walk.extents[i] for i in grid], [extent[i] for i in grid], loops), strict=True))
    at[k_at] = b.index(0)
    wide = Emitter(b, space, walk, buffers, strides, at, row, column, extent)
    # a result of one column has no axis along the lanes: the first column of the register tile is it
    single = not walk.members[column]
    result = Emitter(b, space, walk, buffers, strides, at, row, column, {**extent, column: 1 if single else width})
    for op in anchors:
        total = _accumulate(wide, op, panels_of(op.b), k_at, machine, stretch)
        if single:
            total = b.slice(total, [0, 0], [tile_rows if row is not None else 1, 1])
        result.set(op.out, b.cast(total, tensor(op.out).dtype))
    for value, output in zip(group.yielded, outputs, strict=True):
        result.store(value, output, result.tile(value))
    return b.finish()


def _order(
    machine: Machine,
    walk: Walk,
    grid: list[int],
    row: int | None,
    column: int,
    tile_rows: int,
    size: int,
    *,
    on_unit: bool,
) -> list[tuple[int, int]]:
    """Outer axes, then blocks of rows, then panels, then the rows of a block.

    A block takes half of the second-level cache. On a matrix unit, which products from memory keep waiting, it takes
    all of it where the weight comes from there for every block: where it is larger than twice that cache.
    """
    outer = [(i, 1) for i in grid if i not in (row, column)]
    if row is None:
        return [*outer, (column, 1)]
    k = walk.extents[-1].constant
    level = machine.blocking_level()
    if k is None or level is None or level.size is None:
        block = 16
    else:
        n = walk.extents[column].constant
        near = machine.block_bytes()
        whole = on_unit and (n is None or k * n * size > 2 * near)
        block = max(1, (near if whole else near // 2) // max(1, tile_rows * k * size))
    return [*outer, (row, block), (column, 1), (row, 1)]


def chunk_of(k: int, rules: TileRules, *, whole: bool) -> int:
    """The largest divisor of K up to the machine's chunk; K itself where it has none worth using.

    Where tiles are powers of two anyway, the chunk is one, and its last step may reach past K; unless `whole` asks for
    steps that do not, because an operand is computed and not loaded.
    """
    most = rules.reduction_chunk
    if k <= most:
        return max(k, 1)
    if rules.extent == "power-of-two":
        found = next((d for d in (most, most // 2, most // 4) if d and k % d == 0), None)
        if found is not None or not whole:
            return found or most
    return next((d for d in range(most, most // 4, -1) if k % d == 0), k)


def _accumulate(
    e: Emitter, anchor: contraction.MatmulOp, packed: Panels | None, k_at: int, machine: Machine, stretch: int | None
) -> SSAValue:
    """The tile's sum over K: chunks of k in order, each accumulated from zero and then added to the total.

    stretch: k that a block of rows takes at once, in one chunk, each stretch going on with the sums of the one before.
    """
    b: KernelBuilder = e.b
    rows = e.extent[e.row] if e.row is not None else 1
    columns = e.extent[e.column]
    kind = F64 if tensor(anchor.out).dtype == F64 else F32
    zero = b.constant(0.0, (rows, columns), kind)
    k = e.walk.extents[k_at].constant
    if k == 0:
        return zero
    in_memory = isinstance(anchor.a, BlockArgument)
    unit = unit_for(machine, anchor) if packed is not None and packed.pairs > 1 else None
    step = DYNAMIC_K if k is None else chunk_of(k, machine.rules, whole=not in_memory)
    if k is not None and unit is not None:
        step, k = steps_of(k, unit, machine.rules)
    if stretch is not None:
        step = stretch
    # a step that does not divide K reaches past its end, where both operands count as zero
    ragged = k is None or k % step != 0 or k != e.walk.extents[k_at].constant

    def part(acc: SSAValue) -> SSAValue:
        left = Emitter(b, e.space, e.walk, e.buffers, e.strides, e.at, e.row, k_at, {**e.extent, k_at: step})
        fill = 0.0 if ragged else None
        a = left.load(anchor.a, fill) if in_memory else left.tile(anchor.a)
        return b.dot(b.broadcast(a, (rows, step)), _right(e, anchor, packed, k_at, step, fill), acc)

    if k is not None and step == k:
        return part(zero)
    start = e.at[k_at]
    with b.loop(0, e.walk.extents[k_at], step, [zero]) as loop:
        e.at[k_at] = loop.at
        with e.scope():
            if k is None or stretch is not None:
                loop.give(part(loop.carried[0]))
            else:
                loop.give(b.map("add", loop.carried[0], part(b.constant(0.0, (rows, columns), kind))))
    e.at[k_at] = start
    return loop.out[0]


def _right(
    e: Emitter, anchor: contraction.MatmulOp, packed: Panels | None, k_at: int, step: int, fill: float | None
) -> SSAValue:
    """The [K, N] tile of the right-hand side at the current place."""
    b = e.b
    if packed is not None:
        buffer = e.buffers[packed.argument]
        dims = tensor(packed.argument).dims
        view = b.view(buffer, dims, ViewOp.row_major(dims))
        panel = b.index(Expr.of("a0") // packed.columns, e.at[e.column])
        if packed.pairs == 1:
            return b.reshape(b.load(view, [panel, e.at[k_at], 0], (1, step, packed.columns)), (step, packed.columns))
        pair = b.index(Expr.of("a0") // packed.pairs, e.at[k_at])
        count = e.extent[e.column] // packed.columns
        loaded = b.load(view, [panel, pair, 0, 0], (count, step // packed.pairs, packed.columns, packed.pairs))
        return matrix_of_pairs(b, loaded)
    value = anchor.b
    while not isinstance(value, BlockArgument):
        if not isinstance(value.owner, (shape.ReshapeOp, shape.TransposeOp, shape.SliceOp, shape.BroadcastOp)):
            raise unsupported(anchor, "the right-hand side must be in memory")
        value = value.owner.x
    extent = {**e.extent, k_at: step}
    strides = e.strides[value]
    axes = [i for i, s in enumerate(e.walk.strides(strides)) if s is not None]
    steps = [s for s in e.walk.strides(strides) if s is not None]
    k_first = not (k_at in axes and strides.steps[e.walk.members[k_at][-1]] == Expr.of(1))
    outer = [a for a in axes if a not in (k_at, e.column)]
    placed = [*outer, *([k_at, e.column] if k_first else [e.column, k_at])]
    placed = [a for a in placed if a in axes]
    view = b.view(
        e.buffers[value], [e.walk.extents[a] for a in placed], [steps[axes.index(a)] for a in placed], strides.offset
    )
    loaded = b.load(view, [e.at[a] for a in placed], [extent[a] for a in placed], fill)
    k_rows = step if k_at in axes else 1
    n_rows = e.extent[e.column] if e.column in axes else 1
    if k_first:
        return b.broadcast(b.reshape(loaded, (k_rows, n_rows)), (step, e.extent[e.column]))
    return b.broadcast(b.transpose(b.reshape(loaded, (n_rows, k_rows)), (1, 0)), (step, e.extent[e.column]))

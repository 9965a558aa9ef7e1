"""Reductions and accumulations in the order of the canonical 16 lanes, whatever the machine's vectors are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from xdsl.ir import SSAValue

from tilewright.ir.dtypes import DType
from tilewright.ir.loops import Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES, AccumulateOp, ReduceOp
from tilewright.passes.lower_tile_to_loops.combines import UNORDERED, Parts, across, combine, identity
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.elementwise import evaluate, lanes_at, operand_site
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.materialise import space_of, static_axes, storage_for
from tilewright.passes.lower_tile_to_loops.sites import ORIGIN, Coord, Site, known, lane_axis
from tilewright.passes.lower_tile_to_loops.spilling import spilled
from tilewright.passes.lower_tile_to_loops.storage import RegisterTile, Storage
from tilewright.passes.lower_tile_to_loops.sweeps import Space, columns, outer, sweep, whole_or_part
from tilewright.passes.lower_tile_to_loops.tails import folded_limit


def lower_reduce(cx: Lowering, op: ReduceOp) -> None:
    """One axis reduced to extent 1."""
    extents, axis = tile(op.args[0]).extents, op.axis.data
    if op.fn.data == "attention":
        _in_order(cx, op)
    elif axis == lane_axis(extents):
        fold = RowFold(cx, op)
        fold_all(cx, [fold], replace(Space.of(extents, LANES, fold.static), live=_live(cx, op, axis)))
        fold.publish()
    else:
        _down_columns(cx, op)


def _live(cx: Lowering, op: ReduceOp | AccumulateOp, axis: int) -> dict[int, Index]:
    """The rows that anyone looks at, and the part of each that is not neutral."""
    results = op.results if isinstance(op, ReduceOp) else [op.out]
    rows = [cx.live(r) for r in results if cx.plan.roots.get(r)]
    live = {a: limit for a, limit in rows[0].items() if a != axis and all(r.get(a) == limit for r in rows)}
    limit = folded_limit(op)
    if limit is not None:
        live[axis] = cx.resolved(limit)
    return live


@dataclass(slots=True)
class RowFold:
    """One reduction along the lane axis, row by row: shared by a reduction of its own and one fused into a sweep."""

    cx: Lowering
    op: ReduceOp

    def __post_init__(self) -> None:
        self.homes: list[Storage | None] = [
            storage_for(self.cx, r) if r in self.cx.plan.homes and self.cx.plan.roots.get(r) else None
            for r in self.op.results
        ]

    homes: list[Storage | None] = None  # type: ignore[assignment]  # set above

    @property
    def static(self) -> frozenset[int]:
        """Axes that must be unrolled: of what is read, and of register tiles that are written."""
        rows = {axis for axis, n in enumerate(tile(self.op.args[0]).extents) if n > 1 and axis != self.op.axis.data}
        found = frozenset().union(*(static_axes(self.cx, a) for a in self.op.args))
        held = any(isinstance(h, RegisterTile) for h in self.homes)
        return found | frozenset(rows if held else ())

    @property
    def dtypes(self) -> list[DType]:
        return [tile(a).dtype for a in self.op.args]

    def start(self) -> list[Value]:
        """What joins to nothing, in every lane."""
        parts = zip(identity(self.op.fn.data, self.dtypes), self.dtypes, strict=True)
        return [self.cx.b.const(value, dtype, LANES) for value, dtype in parts]

    def at(self, site: Site) -> list[Value]:
        """The lanes of a site."""
        return [lanes_at(self.cx, a, site) for a in self.op.args]

    def join(self, left: Parts, right: Parts) -> list[Value]:
        """Two partial results as one."""
        return combine(self.cx.b, self.op.fn.data, left, right)

    def step(self, site: Site, parts: Parts) -> list[Value]:
        """The lanes of a site joined to what came before; lanes that do not count keep what they had."""
        b = self.cx.b
        joined = self.join(parts, self.at(site))
        if site.mask is None:
            return joined
        return [b.select(site.mask, new, old) for new, old in zip(joined, parts, strict=True)]

    def finish(self, coords: Sequence[Coord], parts: Parts) -> None:
        """The lanes joined and stored as the row's result."""
        axis = self.op.axis.data
        present = min(tile(self.op.args[0]).extents[axis], LANES)
        site = Site((*coords[:axis], ORIGIN, *coords[axis + 1 :]))
        for home, value in zip(self.homes, across(self.cx.b, self.op.fn.data, parts, present), strict=True):
            if home is not None:
                home.write(self.cx.b, site, value)

    def publish(self) -> None:
        """Makes the results known to what follows."""
        self.cx.done.add(self.op)
        for result, home in zip(self.op.results, self.homes, strict=True):
            if home is not None:
                self.cx.tiles[result] = home


def fold_all(cx: Lowering, folds: Sequence[RowFold], space: Space, first: Callable[[Site], None] | None = None) -> None:
    """Folds every row of a space for several reductions at once; `first` is done at each site before."""

    def run(part: Space) -> None:
        cx.sweep += 1
        outer(cx, part, lambda coords: _fold_row(cx, folds, part, coords, first))

    if any(isinstance(home, RegisterTile) for fold in folds for home in fold.homes):
        run(space)
    else:
        whole_or_part(cx, space, run)


def _fold_row(
    cx: Lowering,
    folds: Sequence[RowFold],
    space: Space,
    coords: tuple[Coord, ...],
    first: Callable[[Site], None] | None,
) -> None:
    """Folds one row."""
    starts = [f.start() for f in folds]

    def visit(site: Site, carried: Sequence[Value]) -> Sequence[Value]:
        if first is not None:
            first(site)
        return [v for fold, parts in zip(folds, _split(carried, starts), strict=True) for v in fold.step(site, parts)]

    def visit_several(sites: Sequence[Site], carried: Sequence[Value]) -> Sequence[Value]:
        joined = []
        for fold, parts in zip(folds, _split(carried, starts), strict=True):
            own = [fold.at(site) for site in sites]
            while len(own) > 1:
                own = [fold.join(own[n], own[n + 1]) for n in range(0, len(own), 2)]
            joined += fold.join(parts, own[0])
        return joined

    free = first is None and all(f.op.fn.data in UNORDERED for f in folds)
    carries = [v for s in starts for v in s]
    ends = columns(cx, space, coords, visit, carries, visit_several if free else None)
    for fold, parts in zip(folds, _split(ends, starts), strict=True):
        fold.finish(coords, parts)


def _split(values: Sequence[Value], like: Sequence[Sequence[Value]]) -> list[list[Value]]:
    left, found = list(values), []
    for group in like:
        found.append(left[: len(group)])
        del left[: len(group)]
    return found


def lower_accumulate(cx: Lowering, op: AccumulateOp) -> None:
    """The last axis folded into the canonical lanes of an accumulator."""
    extents = tile(op.source).extents
    home = storage_for(cx, op.out)
    rows = frozenset(a for a, n in enumerate(extents[:-1]) if n > 1)
    held = isinstance(home, RegisterTile)
    static = static_axes(cx, op.source) | (static_axes(cx, op.acc) & rows) | (rows if held else frozenset())
    space = Space(extents, LANES, len(extents) - 1, live=_live(cx, op, len(extents) - 1), static=static)
    cx.sweep += 1

    def step(site: Site, acc: Sequence[Value]) -> list[Value]:
        (joined,) = combine(cx.b, op.fn.data, acc, [lanes_at(cx, op.source, site)])
        return [joined if site.mask is None else cx.b.select(site.mask, joined, acc[0])]

    def row(coords: tuple[Coord, ...]) -> None:
        site = Site((*coords[:-1], known(0, 1)), LANES)
        folded = columns(cx, space, coords, step, [lanes_at(cx, op.acc, site)])
        home.write(cx.b, site, folded[0])

    outer(cx, space, row)
    cx.tiles[op.out] = home


def _down_columns(cx: Lowering, op: ReduceOp) -> None:
    """An axis that is not the lane axis: elements are vectors, and the canonical lanes are sixteen of them."""
    b, fn, axis = cx.b, op.fn.data, op.axis.data
    extents = tile(op.args[0]).extents
    count = extents[axis]
    homes = [storage_for(cx, r) if cx.plan.roots.get(r) else None for r in op.results]
    space = _output_space(cx, op, homes)

    def at(site: Site, position: Coord) -> list[Value]:
        own = site.moved((*site.coords[:axis], position, *site.coords[axis + 1 :]))
        return [lanes_at(cx, a, own) for a in op.args]

    static = any(axis in static_axes(cx, a) for a in op.args)
    width = 1 if fn in UNORDERED else min(LANES, count)

    def visit(site: Site) -> None:
        whole = count // width * width
        lanes = [at(site, known(lane)) for lane in range(width)]
        if static or whole <= 2 * width:
            for start in range(width, whole, width):
                lanes = [combine(b, fn, lanes[n], at(site, known(start + n))) for n in range(width)]
        else:
            with b.loop(width, whole, width, [v for lane in lanes for v in lane], name="a") as loop:
                before = _split(loop.carries, lanes)
                after = [combine(b, fn, before[n], at(site, Coord(b.add(loop.index, n)))) for n in range(width)]
                loop.next(*[v for lane in after for v in lane])
            lanes = _split(loop.results, lanes)
        for n in range(count - whole):
            lanes[n] = combine(b, fn, lanes[n], at(site, known(whole + n)))
        half = LANES // 2
        while half:
            lanes = [
                combine(b, fn, lane, lanes[n + half]) if n + half < len(lanes) else lane
                for n, lane in enumerate(lanes[:half])
            ]
            half //= 2
        for home, value in zip(homes, lanes[0], strict=True):
            if home is not None:
                home.write(b, site, value)

    sweep(cx, space, visit)
    for result, home in zip(op.results, homes, strict=True):
        if home is not None:
            cx.tiles[result] = home


def _output_space(cx: Lowering, op: ReduceOp, homes: Sequence[Storage | None]) -> Space:
    """The sweep over a reduction's results, in the vectors of its source."""
    held = next((h for h in homes if isinstance(h, RegisterTile)), None)
    if held is not None:
        return space_of(held, cx.lanes)
    static = frozenset().union(*(static_axes(cx, a) for a in op.args)) - {op.axis.data}
    return Space.of(tile(op.results[0]).extents, cx.lanes, static)


def _in_order(cx: Lowering, op: ReduceOp) -> None:
    """The attention triple, merged left to right; its parts may differ in extent, so each has a sweep of its own."""
    b, axis = cx.b, op.axis.data
    count = tile(op.args[0]).extents[axis]
    homes: list[tuple[SSAValue, Storage]] = []
    for number, result in enumerate(op.results):
        if not cx.plan.roots.get(result):
            continue
        home = storage_for(cx, result)
        # The running maximum and the denominator are computed again for every vector of O: they are few.
        args = list(op.args[: max(number, 1) + 1] if number < 2 else (op.args[0], op.args[number]))
        space = space_of(home, cx.lanes)

        def visit(site: Site, args: list[SSAValue] = args, home: Storage = home, number: int = number) -> None:
            def at(position: Coord) -> list[Value]:
                own = site.moved((*site.coords[:axis], position, *site.coords[axis + 1 :]))
                shape = tuple(max(n) for n in zip(*(tile(a).extents for a in args), strict=True))
                return [evaluate(cx, a, operand_site(own, a, shape)) for a in args]

            with_lanes = [b.broadcast(v, site.lanes) if v.type.lanes == 1 else v for v in at(known(0))]
            with b.loop(1, count, 1, with_lanes, name="a") as loop:
                found = combine(b, "attention", loop.carries, at(Coord(loop.index)))
                loop.next(*(b.broadcast(v, site.lanes) if v.type.lanes == 1 else v for v in found))
            home.write(b, site, loop.results[min(number, len(loop.results) - 1)])

        with spilled(cx, args):
            sweep(cx, space, visit)
        homes.append((result, home))
    cx.tiles.update(homes)

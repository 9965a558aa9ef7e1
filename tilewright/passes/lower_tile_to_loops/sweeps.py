"""Traversals of a tile's extents: loops over outer axes, vectors along the lane axis, clipped where no bound is proved.

A sweep calls its visitor while emitting code: once for every unrolled position, once for the body of every loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final

from tilewright.ir.dims import Expr
from tilewright.ir.loops import LoopScope, Value
from tilewright.ir.tile.compute import LANES
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.sites import ORIGIN, Coord, Position, Site, known, lane_axis

UNROLLED_COLUMNS: Final = 8  # vectors along the lane axis that are unrolled rather than looped over
_COLUMNS_A_TURN: Final = 4  # vectors that one turn of a column loop handles

Visit = Callable[[Site, Sequence[Value]], Sequence[Value]]
VisitSeveral = Callable[[Sequence[Site], Sequence[Value]], Sequence[Value]]


@dataclass(frozen=True, slots=True)
class Break:
    """What is done in between, before every so many rows of a sweep that loops over them."""

    rows: int
    do: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Space:
    """What a sweep runs over.

    axis: the lane axis, None for scalars. limits: run-time bounds of the coordinates along some axes, kept exactly.
    live: bounds beyond which nobody looks: whole canonical vectors are visited, and unrolled axes run to their end.
    below: expressions that the coordinates are known to stay under. static: axes whose coordinates must be known while
    compiling. broken: what is done between rows.
    """

    extents: tuple[int, ...]
    lanes: int
    axis: int | None
    limits: Mapping[int, Index] = field(default_factory=dict)
    live: Mapping[int, Index] = field(default_factory=dict)
    below: Mapping[int, tuple[Expr, ...]] = field(default_factory=dict)
    static: frozenset[int] = frozenset()
    broken: Break | None = None

    @staticmethod
    def of(extents: tuple[int, ...], lanes: int, static: frozenset[int] = frozenset()) -> Space:
        """A whole tile, along its lane axis."""
        return Space(extents, lanes, lane_axis(extents), static=static)

    def known_below(self, axis: int) -> tuple[Expr, ...]:
        limit = self.limits.get(axis)
        return (*self.below.get(axis, ()), *(() if limit is None else (limit.expr,)))

    def full(self) -> Space:
        """The space where every limit is known to lie beyond the extents."""
        below = {axis: self.known_below(axis) for axis in range(len(self.extents))}
        return replace(self, limits={}, below=below)


def sweep(cx: Lowering, space: Space, visit: Callable[[Site], None]) -> None:
    """Visits every site of the space once."""
    cx.sweep += 1

    def each(site: Site, carried: Sequence[Value]) -> Sequence[Value]:
        visit(site)
        return carried

    outer(cx, space, lambda coords: _nothing(columns(cx, space, coords, each)))


def whole_or_part(cx: Lowering, space: Space, run: Callable[[Space], None]) -> None:
    """Runs a sweep of scratch; one whose rows are short has them unrolled where all of a row is looked at.

    For sweeps without results in registers, because `run` may be called on both sides of a branch.
    """
    axis = space.axis
    live = space.live.get(axis) if axis is not None else None
    if axis is None or live is None or axis in space.static or not _short(space) or space.extents[axis] % LANES:
        run(space)
        return
    rest = {a: limit for a, limit in space.live.items() if a != axis}
    below = {**space.below, axis: (*space.below.get(axis, ()), live.expr)}
    with cx.b.either(cx.b.compare("ge", live.value, space.extents[axis])) as sides:
        with sides.then() as taken:
            if taken:
                run(replace(space, live=rest, below=below))
        with sides.otherwise() as taken:
            if taken:
                run(space)


def _short(space: Space) -> bool:
    """Whether a row is short enough to be unrolled."""
    return space.axis is not None and space.extents[space.axis] <= UNROLLED_COLUMNS * space.lanes


def _nothing(values: Sequence[Value]) -> None:
    """Drops the results of a sweep that carries none."""


def outer(cx: Lowering, space: Space, visit: Callable[[tuple[Coord, ...]], None]) -> None:
    """Visits every position of the axes other than the lane axis, which gets coordinate 0."""
    coords = [ORIGIN] * len(space.extents)
    axes = [axis for axis in range(len(space.extents)) if axis != space.axis]

    def descend(depth: int) -> None:
        if depth == len(axes):
            visit(tuple(coords))
            return
        axis = axes[depth]
        extent, limit, below = space.extents[axis], space.limits.get(axis), space.known_below(axis)
        if axis in space.static or extent == 1:
            for at in range(extent):
                coords[axis] = replace(known(at), below=below)
                if limit is None:
                    descend(depth + 1)
                else:
                    with cx.b.when(cx.b.compare("gt", limit.value, at)):
                        descend(depth + 1)
            return
        limit = limit or space.live.get(axis)
        end = cx.b.index(extent) if limit is None else cx.b.min(limit.value, extent)
        below = below if limit is None else (*below, limit.expr)
        with ExitStack() as around:
            first, last = cx.b.index(0), end
            if space.broken is not None and depth == len(axes) - 1:
                first = around.enter_context(cx.b.loop(0, end, space.broken.rows, name="rb")).index
                last = cx.b.min(cx.b.add(first, space.broken.rows), end)
                space.broken.do()
            loop = around.enter_context(cx.b.loop(first, last, name="r"))
            coords[axis] = Coord(loop.index, below=below)
            descend(depth + 1)

    descend(0)


def columns(
    cx: Lowering,
    space: Space,
    coords: tuple[Coord, ...],
    visit: Visit,
    carries: Sequence[Value] = (),
    visit_several: VisitSeveral | None = None,
) -> Sequence[Value]:
    """Visits the vectors along the lane axis in order, handing values on from one to the next; gives the last ones.

    visit_several: visits the vectors of one turn of a loop together, where every turn has all of them. What joins them
    among themselves first waits for the turn before once, and not once for each.
    """
    b, axis, lanes = cx.b, space.axis, space.lanes
    if axis is None:
        return visit(Site(coords), carries)
    extent, limit, below = space.extents[axis], space.limits.get(axis), space.known_below(axis)

    def site(at: Value | int, mask: Value | None) -> Site:
        coord = known(at, 1) if isinstance(at, int) else Coord(at, 1, align=lanes)
        return Site((*coords[:axis], replace(coord, below=below), *coords[axis + 1 :]), lanes, mask)

    live = space.live.get(axis)
    if live is not None and limit is None and (axis in space.static or extent % LANES):
        limit, live = live, None  # no vector may lie across the end, so the bound is kept exactly
    static = axis in space.static or (extent <= UNROLLED_COLUMNS * lanes and limit is None and live is None)
    if static:
        for at in range(0, extent, lanes):
            mask = b.tail_mask(extent - at, lanes) if at + lanes > extent else None
            if limit is not None:
                mask = b.tail_mask(b.sub(b.min(limit.value, extent), at), lanes)
            carries = visit(site(at, mask), carries)
        return carries
    if live is not None and limit is None:
        end, turn = b.ceildiv(b.min(live.value, extent), LANES), 1 if _short(space) else _COLUMNS_A_TURN
        with b.loop(0, b.mul(end, LANES), lanes, carries, unroll=turn, name="c") as loop:
            loop.next(*visit(site(loop.index, None), loop.carries))
        return loop.results
    count = b.index(extent) if limit is None else b.min(limit.value, extent)
    if limit is not None and not cx.facts.at_least(limit.expr, 0):
        count = b.max(count, 0)  # a region may start beyond the view's end
    turn = _COLUMNS_A_TURN * lanes
    if visit_several is not None and limit is None and extent % turn == 0:
        with b.loop(0, extent, turn, carries, name="c") as loop:
            starts = [b.add(loop.index, n * lanes) for n in range(_COLUMNS_A_TURN)]
            loop.next(*visit_several([site(at, None) for at in starts], loop.carries))
        return loop.results
    whole = b.mul(b.floordiv(count, lanes), lanes) if limit is not None else b.index(extent // lanes * lanes)
    with b.loop(0, whole, lanes, carries, unroll=_COLUMNS_A_TURN, name="c") as loop:
        loop.next(*visit(site(loop.index, None), loop.carries))
    carries = loop.results
    if limit is None:
        if extent % lanes:
            carries = visit(site(extent // lanes * lanes, b.tail_mask(extent % lanes, lanes)), carries)
        return carries
    branch = b.branch(b.compare("lt", whole, count))
    with branch.then():
        branch.give(*visit(site(whole, b.tail_mask(b.sub(count, whole), lanes)), carries))
    with branch.otherwise():
        branch.give(*carries)
    return branch.results


class Starts:
    """The starts of blocks: a loop over them, or one static start, as a context manager that gives the start."""

    def __init__(self, cx: Lowering, at: Position, loop: LoopScope | None = None) -> None:
        self.at, self.loop = at, loop

    @staticmethod
    def over(cx: Lowering, lo: Value | int, hi: Value | int, step: int) -> Starts:
        """Starts lo, lo + step, ... below hi; a single static one opens no loop."""
        if isinstance(lo, int) and isinstance(hi, int) and lo + step >= hi > lo:
            return Starts(cx, lo)
        return Starts(cx, 0, cx.b.loop(lo, hi, step, name="b"))

    def __enter__(self) -> Position:
        if self.loop is None:
            return self.at
        self.loop.__enter__()
        return self.loop.index

    def __exit__(self, *error: object) -> None:
        if self.loop is not None:
            self.loop.__exit__(*error)  # type: ignore[arg-type]  # passed through

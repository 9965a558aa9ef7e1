"""Dots: blocks of rows by vectors held in registers while k runs in order, one fused multiply-add a step and element.

A block reads one vector of b per column vector and k, and broadcasts a's elements straight from where they lie. Which
block an element falls into changes nothing about its sum, so any machine's blocks give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import DType
from tilewright.ir.loops import Value
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import DotOp, DotScaledOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.destinations import destination
from tilewright.passes.lower_tile_to_loops.elementwise import lanes_at
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.materialise import static_axes
from tilewright.passes.lower_tile_to_loops.prefetching import Share, Stream, ask_for_epilogue, share, stream_after
from tilewright.passes.lower_tile_to_loops.sites import Coord, Position, Site, known
from tilewright.passes.lower_tile_to_loops.step_requests import Asking
from tilewright.passes.lower_tile_to_loops.storage import RegisterTile, ScratchTile, Storage
from tilewright.passes.lower_tile_to_loops.sweeps import Space, Starts, sweep
from tilewright.passes.lower_tile_to_loops.tails import depth_limit

UNROLLED_K = 4  # steps of k that one turn of the innermost loop takes
_EVEN = 0.6  # how much of the register tile's height a block must keep to avoid a rest of rows

Reader = Callable[[Site], Value]


@dataclass(frozen=True, slots=True)
class Block:
    """A block of the result: its first row and column, how many rows and vectors it has, and what it asks for ahead.

    before: steps of k that the blocks before it take.
    """

    row: Position
    rows: int
    column: Position
    vectors: int
    share: Share | None = None
    before: Value | int = 0


def lower_dot(cx: Lowering, op: DotOp) -> None:
    """acc + a b, into the home that placement gave it."""
    home = destination(cx, op.out, op.acc)
    with readers(cx, op.a, op.b, op.out, tile(op.acc).dtype) as (left, right):
        Blocks(cx, op, home, left, right, tile(op.acc).dtype).run()


class Blocks:
    """Emits the blocks of one dot; products run in `dtype`, which the readers give."""

    def __init__(
        self, cx: Lowering, op: DotOp | DotScaledOp, home: Storage, left: Reader, right: Reader, dtype: DType
    ) -> None:
        self.cx, self.op, self.home, self.left, self.right, self.dtype = cx, op, home, left, right, dtype
        self.rows, self.columns = tile(op.out).extents
        # one column lies along the lanes of scratch: a vector would spill over the rows that follow
        self.lanes = home.lanes if isinstance(home, RegisterTile) else 1 if self.columns == 1 else cx.lanes
        blocks = 1
        if not isinstance(home, RegisterTile):
            height, width = register_block(cx, self.rows, self.columns)
            blocks = -(-self.rows // height) * -(-self.columns // (self.lanes * width))
        self.asking = Asking.of(cx, op, blocks) if isinstance(op, DotOp) else None

    def run(self) -> None:
        """Emits the whole result: one block where it lives in registers."""
        self.cx.sweep += 1
        if isinstance(self.home, RegisterTile):
            self.block(Block(0, self.rows, 0, -(-self.columns // self.lanes)))
        else:
            self.cover()
        self.cx.tiles[self.op.out] = self.home

    def cover(self) -> None:
        """Covers a result in scratch, as far as anyone looks: a's rows pass under one strip of b after the other."""
        static = static_axes(self.cx, self.op.acc)
        live = self.cx.live(self.op.out)
        rows = None if 0 in static else live.get(0)
        columns = None if 1 in static or self.columns % self.lanes else live.get(1)
        vectors = -(-self.columns // self.lanes)
        height, width = register_block(self.cx, self.rows, self.columns)
        stream = stream_after(self.cx, self.op) if isinstance(self.op, DotOp) and self.asking is None else None
        b, bands = self.cx.b, -(-self.rows // height)
        passing = self.cx.b.index(self.rows) if rows is None else self.cx.b.min(rows.value, self.rows)
        for strip, wide in _ranges(self.cx, vectors, width, self.lanes, columns, looped=1 not in static):
            tall = height if wide == width else register_block(self.cx, self.rows, wide * self.lanes)[0]
            with strip as at:
                for band, high in _ranges(self.cx, self.rows, tall, 1, rows, looped=0 not in static):
                    with band as top:
                        part = None
                        if stream is not None and wide == min(width, vectors):
                            part = self.share(stream, (top, high, passing), (at, wide, vectors))
                        before: Value | int = 0
                        if self.asking is not None:
                            strips = b.mul(b.floordiv(b.index(at), width * self.lanes), bands)
                            turn = b.add(strips, b.floordiv(b.index(top), height))
                            before = b.mul(turn, tile(self.op.a).extents[1])
                        self.block(Block(top, high, at, wide, part, before))

    def share(self, stream: Stream, rows: tuple[Position, int, Value], columns: tuple[Position, int, int]) -> Share:
        """A block's share of a stream. rows: its first, how many it has, and how many there are; so of vectors."""
        (top, high, passing), (at, wide, vectors), b = rows, columns, self.cx.b
        bands, strips = b.ceildiv(passing, high), -(-vectors // wide)
        strip = b.floordiv(b.index(at), wide * self.lanes)
        number = b.add(b.mul(strip, bands), b.floordiv(b.index(top), high))
        return share(self.cx, stream, tile(self.op.a).extents[1], number, b.mul(bands, strips))

    def sites(self, block: Block) -> list[Site]:
        """The sites of a block's vectors, row by row."""
        b, found = self.cx.b, []
        for row in range(block.rows):
            for number in range(block.vectors):
                coords = (_moved(self.cx, block.row, row, 0), _moved(self.cx, block.column, number * self.lanes, 1))
                end = coords[1].at + self.lanes if isinstance(coords[1].at, int) else 0
                mask = b.tail_mask(self.columns - end + self.lanes, self.lanes) if end > self.columns else None
                found.append(Site(coords, self.lanes, mask))
        return found

    def block(self, block: Block) -> None:
        """One block: its accumulators start from acc, run over k, and are written.

        Sums of further chains are added to the first one's. There are no registers for both, and the compiler of the
        loops writes less to memory than what kept them there would: the earlier sums once a chain.
        """
        cx, b, sites = self.cx, self.cx.b, self.sites(block)
        chains = [(0, tile(self.op.a).extents[1])]
        if isinstance(self.op, DotOp):
            ask_for_epilogue(cx, self.op, sites)
            chains = self.op.chains
        limits = limits_of_k(cx, self.op)
        end = cx.b.index(tile(self.op.a).extents[1])
        for limit in limits:
            end = cx.b.max(cx.b.min(limit.value, end), 0)
        below = tuple(limit.expr for limit in limits)

        def chain(number: Value | int, starts: list[Value]) -> Sequence[Value]:
            first = b.mul(b.index(0) if isinstance(number, int) else number, chains[0][1])
            last = end if len(chains) == 1 else b.min(b.add(first, chains[0][1]), end)
            return self.products(block, sites, starts, first, last, below)

        sums = chain(0, [lanes_at(cx, self.op.acc, site) for site in sites])
        zeros = [b.const(0, self.dtype, site.lanes) for site in sites]
        if len(chains) > 1:
            with b.loop(1, len(chains), 1, sums, name="chain") as loop:
                found = chain(loop.index, zeros)
                loop.next(*(b.add(total, more) for total, more in zip(loop.carries, found, strict=True)))
            sums = loop.results
        for site, value in zip(sites, sums, strict=True):
            self.home.write(b, site, value)

    def products(
        self,
        block: Block,
        sites: list[Site],
        starts: list[Value],
        first: Value,
        end: Value,
        below: tuple[Expr, ...] = (),
    ) -> Sequence[Value]:
        """The products of k in first..end added to the starts, one after the other."""
        with self.cx.b.loop(first, end, 1, starts, unroll=UNROLLED_K, name="k") as loop:
            k = Coord(loop.index, below=below)
            if block.share is not None:
                block.share.ask(self.cx, loop.index)
            if self.asking is not None:
                self.asking.ask(self.cx.b.add(loop.index, block.before))
            right = [self.right(Site((k, s.coords[1]), s.lanes, s.mask)) for s in sites[: block.vectors]]
            sums: list[Value] = []
            for row in range(block.rows):
                left = self.left(Site((sites[row * block.vectors].coords[0], k)))
                for number, value in enumerate(right):
                    sums.append(self.step(left, value, loop.carries[row * block.vectors + number]))
            loop.next(*sums)
        return loop.results

    def step(self, left: Value, right: Value, total: Value) -> Value:
        """total + left * right: rounded once for floats, wrapping for integers."""
        b = self.cx.b
        if self.dtype.is_float:
            return b.fma(left, right, total)
        return b.add(b.mul(b.broadcast(left, right.type.lanes), right), total)


def _ranges(
    cx: Lowering, count: int, size: int, scale: int, live: Index | None, *, looped: bool
) -> list[tuple[Starts, int]]:
    """Blocks of `size` of `count` things of `scale` elements: where they start, and how many things each has.

    live: elements that anyone looks at; whole blocks are then followed by blocks of one, so that little lies beyond.
    """
    whole, rest = divmod(count, size)
    if not looped:
        found = [(Starts(cx, number * size * scale), size) for number in range(whole)]
        return found + ([(Starts(cx, whole * size * scale), rest)] if rest else [])
    if live is None:
        found = [(Starts.over(cx, 0, whole * size * scale, size * scale), size)] if whole else []
        return found + ([(Starts(cx, whole * size * scale), rest)] if rest else [])
    b = cx.b
    needed = b.max(b.min(b.ceildiv(live.value, scale), count), 0)
    if scale == 1 and not rest:
        # A block of rows may run past the end: the rows exist in scratch.
        return [(Starts.over(cx, 0, needed, size), size)]
    covered = b.mul(b.floordiv(needed, size), size * scale)
    found = [(Starts.over(cx, 0, covered, size * scale), size)] if whole else []
    return [*found, (Starts.over(cx, covered, b.mul(needed, scale), scale), 1)]


def register_block(cx: Lowering, rows: int, columns: int) -> tuple[int, int]:
    """Rows and vectors of the blocks of a result: the machine's register tile, taller where the result is narrow.

    A somewhat lower block that divides the rows is taken instead of one that leaves a rest, which would be code of its
    own.
    """
    _, height, width = next(entry for entry in cx.machine.rules.dot if entry[0] is None or rows <= entry[0])
    vectors = min(width, -(-columns // cx.lanes))
    tallest = min(rows, height * width // vectors)
    even = next((h for h in range(tallest, 0, -1) if rows % h == 0), 1)
    return (even if even >= _EVEN * tallest else tallest), vectors


def _moved(cx: Lowering, start: Position, by: int, step: int) -> Coord:
    if isinstance(start, int):
        return known(start + by, step)
    return Coord(cx.b.add(start, by), step, align=cx.lanes if step else 1)


@contextmanager
def readers(cx: Lowering, a: SSAValue, b: SSAValue, out: SSAValue, wide: DType) -> Iterator[tuple[Reader, Reader]]:
    """How a block reads a's elements and b's vectors, in the dtype of the products.

    Elements of a that need a conversion are converted into scratch once, not once a step; so are b's where several rows
    of blocks use them.
    """
    rows, columns = tile(out).extents
    height, _ = register_block(cx, rows, columns)
    several = rows > height and cx.plan.homes[out] == "scratch"
    temporary: list[ScratchTile] = []

    def reader(value: SSAValue, *, keep: bool) -> Reader:
        def convert(site: Site) -> Value:
            return cx.b.widened(lanes_at(cx, value, site), wide)

        if tile(value).dtype is wide or not keep:
            return convert
        copy = cx.scratch(tile(value).extents, wide)
        temporary.append(copy)
        space = Space.of(copy.extents, cx.lanes, static_axes(cx, value))
        sweep(cx, space, lambda site: copy.write(cx.b, site, convert(site)))
        return lambda site: copy.read(cx.b, site)

    yield reader(a, keep=True), reader(b, keep=several)
    for made in temporary:
        cx.drop(made)


def limits_of_k(cx: Lowering, op: DotOp | DotScaledOp) -> list[Index]:
    """Run-time bounds of k: where one side's elements are 0, products add nothing."""
    limit = depth_limit(op)
    if limit is None:
        return []
    found = cx.resolved(limit)
    return [] if cx.facts.at_least(found.expr, tile(op.a).extents[1]) else [found]

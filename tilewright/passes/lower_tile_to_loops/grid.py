"""The kernel's grid as loops: programs are numbered in the kernel's order, and each thread takes a contiguous range."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir.dims import Expr, product
from tilewright.ir.loops import For, Value
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.side_by_side import side_by_side


def over_programs(cx: Lowering, body: Callable[[], None]) -> None:
    """Runs the body for every program of this thread, with the kernel's coordinates as indices."""
    b, kernel = cx.b, cx.kernel
    counts = [b.expr(p) for p in kernel.programs]
    total = b.expr(product(kernel.programs))
    # Thread t takes programs [P * t // T, P * (t + 1) // T): a contiguous range, and ranges differ by at most one.
    first = b.floordiv(b.mul(total, b.tid), b.nthreads)
    last = b.floordiv(b.mul(total, b.add(b.tid, 1)), b.nthreads)
    runs = [(axis, step) for axis, step in kernel.loops if kernel.programs[axis].constant != 1]
    if not runs:
        with b.loop(first, last, name="p"):
            _place(cx, {})
            body()
        return
    axis = runs[-1][0]
    if len(runs) == 1:
        with b.loop(first, last, name="p") as loop:
            _place(cx, {axis: loop.index})
            body()
        _several(cx)
    elif sum(a == axis for a, _ in runs) == 1:
        # Runs along the innermost axis: the other coordinates are decoded once a run, not once a program.
        inner = b.max(counts[axis], 1)
        with b.loop(b.floordiv(first, inner), b.ceildiv(last, inner), name="o") as around:
            start = b.mul(around.index, inner)
            found = _decode(cx, around.index, runs[:-1], counts)
            lo, hi = b.max(b.sub(first, start), 0), b.min(b.sub(last, start), inner)
            with b.loop(lo, hi, name="p") as loop:
                _place(cx, {**found, axis: loop.index})
                body()
            _several(cx)
    else:
        with b.loop(first, last, name="p") as loop:
            _place(cx, _decode(cx, loop.index, runs, counts))
            body()
        _several(cx)


def _several(cx: Lowering) -> None:
    """Makes of the loop over programs that was just added one that takes several at a time."""
    if cx.together > 1:
        loop = cx.b.open_ops().pop()
        assert isinstance(loop, For)
        side_by_side(cx.b, loop, cx.together)


def _decode(cx: Lowering, number: Value, runs: list[tuple[int, int]], counts: list[Value]) -> dict[int, Value]:
    """The program along each axis, from its number in the order of `runs`.

    Blocks of an axis are full but for the last, so dividing by the size of a full block finds the block; `left` is what
    remains of each axis inside it.
    """
    b = cx.b
    left = {axis: counts[axis] for axis, _ in runs}
    base = {axis: b.index(0) for axis, _ in runs}
    for depth, (axis, step) in enumerate(runs):
        size = b.index(step) if any(a == axis for a, _ in runs[depth + 1 :]) else b.index(1)
        for other, remains in left.items():
            if other != axis and any(a == other for a, _ in runs[depth:]):
                size = b.mul(size, remains)
        if depth == len(runs) - 1:
            base[axis] = b.add(base[axis], number)
            break
        block, number = b.floordiv(number, size), b.mod(number, size)
        base[axis] = b.add(base[axis], b.mul(block, step))
        left[axis] = b.min(b.sub(left[axis], b.mul(block, step)), step)
    return base


def _place(cx: Lowering, programs: dict[int, Value]) -> None:
    """Makes the coordinates of a program known: where its tiles start, inside the grid's extents."""
    kernel = cx.kernel
    for axis, (value, extent, step) in enumerate(
        zip(kernel.coordinates, kernel.extents.data, kernel.tiles.data, strict=True)
    ):
        if axis in programs:
            number = _folded(cx, axis, programs[axis]) if axis in kernel.folded.data else programs[axis]
            at = cx.b.mul(number, step)
            cx.indices[value] = Index(at, cx.facts.induction(Expr.of(0), extent, step))
        else:
            cx.indices[value] = cx.constant(0)


def _folded(cx: Lowering, axis: int, turn: Value) -> Value:
    """The program of an axis that has its turn where they are taken from stretches in turn.

    Stretches have `each` programs, the first ones of them one more, which have their turns last.
    """
    b, count = cx.b, cx.b.expr(cx.kernel.programs[axis])
    most = cx.kernel.stretches.data
    stretches: Value | int = 2
    if most > 2:
        stretches = b.add(2, b.mul(b.min(b.floordiv(count, 4 * most), 1), most - 2))
    each, more = b.floordiv(count, stretches), b.mod(count, stretches)
    depth, stretch = b.floordiv(turn, stretches), b.mod(turn, stretches)
    begin = b.add(b.mul(stretch, each), b.min(stretch, more))
    # what is left over lies behind its stretch's others, whichever way those are taken
    backwards = b.mul(b.mod(stretch, 2), b.sub(1, b.floordiv(depth, b.max(each, 1))))
    from_end = b.sub(b.sub(each, 1), b.mul(depth, 2))
    return b.add(b.add(begin, depth), b.mul(backwards, from_end))

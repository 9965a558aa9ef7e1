"""Loops, branches and grids: what is carried, in which order, and which thread does what."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.ir import Block, Region

from tests.passes.lower_tile_to_loops.running import check, inputs, interpreted, machine, reference
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32, I32
from tilewright.ir.loops_interpreter import run_kernel
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.structure import IfOp, KernelOp, YieldOp
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.lower_tile_to_loops.counters import quantities


@pytest.mark.parametrize("rows", [2, 9])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_carried_tiles_may_change_places(rows: int, n: int, rng: np.random.Generator) -> None:
    b = KernelBuilder("places", ["n"])
    x, z = b.buffer([rows, 40], F32), b.buffer([rows, 40], F32)
    first, second = b.output([rows, 40], F32), b.output([rows, 40], F32)
    b.grid([1], [1])
    starts = [b.load(b.dense(x), [0, 0], [rows, 40]), b.load(b.dense(z), [0, 0], [rows, 40])]
    with b.loop(0, "n", 1, [*starts, b.constant(0.0, (rows, 40))]) as loop:
        p, q, r = loop.carried
        loop.give(b.map("sub", q, r), b.map("add", p, q), p)
    b.store(loop.out[0], b.dense(first), [0, 0])
    b.store(b.map("add", loop.out[1], loop.out[2]), b.dense(second), [0, 0])
    check(b.finish(), {"n": n}, rng)


@pytest.mark.parametrize("rows", [2, 20])
def test_a_carried_tile_may_be_turned_and_sliced(rows: int, rng: np.random.Generator) -> None:
    b = KernelBuilder("turned", [])
    x, y = b.buffer([rows, rows], F32), b.output([rows, rows], F32)
    b.grid([1], [1])
    with b.loop(0, 3, 1, [b.load(b.dense(x), [0, 0], [rows, rows])]) as loop:
        (p,) = loop.carried
        upper, lower = b.slice(p, (1, 0), (rows, rows)), b.slice(p, (0, 0), (1, rows))
        loop.give(b.map("add", b.transpose(p, (1, 0)), b.concat([upper, lower], 0)))
    b.store(loop.out[0], b.dense(y), [0, 0])
    check(b.finish(), {}, rng)


def test_an_index_may_be_carried(rng: np.random.Generator) -> None:
    b = KernelBuilder("chased", [])
    x, y = b.buffer([8], I32), b.output([1], I32)
    b.grid([1], [1])
    with b.loop(0, 5, 1, [b.index(0)]) as loop:
        loop.give(b.scalar(b.dense(x), [loop.carried[0]]))
    b.store(b.splat(loop.out[0], (1,)), b.dense(y), [0])
    given = [np.array([3, 0, 5, 2, 1, 7, 0, 4], np.int32)]
    (got,) = check(b.finish(), {}, rng, given=given)
    assert got.tolist() == [4]  # 0 -> 3 -> 2 -> 5 -> 7 -> 4


def branching(columns: int) -> KernelOp:
    b = KernelBuilder("branching", ["n"])
    x, lengths = b.buffer(["n", columns], F32), b.buffer(["n"], I32)
    whole, part = b.output(["n", columns], F32), b.output(["n", 3], F32)
    (i,) = b.grid(["n"], [1])
    loaded = b.load(b.dense(x), [i, 0], [1, columns])
    condition = b.compare(b.scalar(b.dense(lengths), [i]), "<", 3)
    arms = []
    for fn, factor in (("abs", 2.0), ("neg", 3.0)):
        block = Block()
        b._blocks.append(block)
        results = [b.map(fn, loaded), b.map("mul", b.slice(loaded, (0, 0), (1, 3)), b.constant(factor, (1, 1)))]
        block.add_op(YieldOp.make(results, result_types=[]))
        b._blocks.pop()
        arms.append((block, results))
    types = [r.type for r in arms[0][1]]
    op = IfOp.make(condition, regions=[Region(block) for block, _ in arms], result_types=[types])
    b.add(op)
    b.store(op.results[0], b.dense(whole), [i, 0])
    b.store(op.results[1], b.dense(part), [i, 0])
    return b.finish()


@pytest.mark.parametrize("columns", [40, 300])
def test_a_branch_gives_the_results_of_the_side_that_ran(columns: int, rng: np.random.Generator) -> None:
    kernel = branching(columns)
    given = inputs(kernel, {"n": 5}, rng)
    given[1] = np.array([1, 2, 3, 4, 0], np.int32)
    check(kernel, {"n": 5}, rng, given=given)


def numbering(order: list[tuple[int, int]], folded: list[int]) -> KernelOp:
    """Adds each program's coordinates into the element that it owns."""
    b = KernelBuilder("numbering", ["n", "m"])
    y = b.output(["n", "m", 3], I32)
    i, j, k = b.grid(["n", "m", 3], [2, 5, 1], order, folded)
    value = b.map("add", b.map("add", b.coordinates(i, 0, (2, 5, 1)), b.splat(j, (1, 1, 1))), b.splat(k, (1, 1, 1)))
    b.store(value, b.dense(y), [i, j, k])
    return b.finish()


@pytest.mark.parametrize(
    "order",
    [
        [(0, 1), (1, 1), (2, 1)], [(2, 1), (1, 1), (0, 1)], [(0, 4), (1, 1), (2, 1), (0, 1)],
        [(1, 2), (0, 3), (2, 1), (1, 1), (0, 1)],
    ],
)  # fmt: skip
@pytest.mark.parametrize("folded", [[], [0], [1, 2]])
@pytest.mark.parametrize("sizes", [(7, 12), (1, 1), (20, 5), (0, 4)])
@pytest.mark.parametrize("nthreads", [1, 4, 50])
def test_every_program_runs_once_in_any_order_on_any_threads(
    order: list[tuple[int, int]], folded: list[int], sizes: tuple[int, int], nthreads: int
) -> None:
    kernel, dims = numbering(order, folded), dict(zip(("n", "m"), sizes, strict=True))
    (wanted,) = reference(kernel, [], dims)
    (got,) = interpreted(kernel, [], dims, "avx512", nthreads=nthreads)
    assert np.array_equal(got, wanted)


def test_threads_take_contiguous_balanced_ranges() -> None:
    b = KernelBuilder("ranges", ["n"])
    x, y = b.buffer(["n"], I32), b.output(["n"], I32)
    (i,) = b.grid(["n"], [1])
    b.store(b.load(b.dense(x), [i], [1]), b.dense(y), [i])
    lowered = lower_kernel(b.finish(), machine("avx512"), instrument=True)
    rows = np.zeros((4, 2), np.int64)  # elements read and written by each thread
    given, got = np.arange(10, dtype=np.int32), np.zeros(10, np.int32)
    run_kernel(lowered, [given, got, rows], {"n": 10}, nthreads=4)
    assert rows.tolist() == [[2, 2], [3, 3], [2, 2], [3, 3]]
    assert np.array_equal(given, got)


@pytest.mark.parametrize("programs", [40, 41])
@pytest.mark.parametrize("nthreads", [2, 3, 5])
def test_threads_share_folded_work_that_grows_evenly(programs: int, nthreads: int) -> None:
    b = KernelBuilder("growing", ["n"])
    x, y = b.buffer(["n"], F32), b.output(["n"], F32)
    (i,) = b.grid(["n"], [1], folded=[0])
    with b.loop(0, i, 1, [b.constant(0.0, (1,))]) as loop:
        loop.give(b.map("add", loop.carried[0], b.load(b.dense(x), [loop.at], [1])))
    b.store(loop.out[0], b.dense(y), [i])
    lowered = lower_kernel(b.finish(), machine("avx512"), instrument=True)
    rows = np.zeros((nthreads, 3), np.int64)  # elements read and written by each thread, and FLOPs
    run_kernel(
        lowered,
        [np.ones(programs, np.float32), np.zeros(programs, np.float32), rows],
        {"n": programs},
        nthreads=nthreads,
    )
    work = rows[:, 0]
    assert work.sum() == programs * (programs - 1) // 2
    assert work.max() <= work.mean() * 1.2


@pytest.mark.parametrize("programs", [0, 1, 7, 31, 32, 33, 100])
def test_stretches_leave_out_no_program_and_share_work_that_grows_and_falls(programs: int) -> None:
    b = KernelBuilder("packed", ["n"])
    x, y = b.buffer(["n", 2], I32), b.output(["n"], F32)
    (i,) = b.grid(["n"], [1], folded=[0], stretches=8)
    view = b.dense(x)
    begin, end = (b.scalar(view, [i, side]) for side in (0, 1))
    with b.loop(begin, end, 1, [b.constant(0.0, (1,))]) as loop:
        loop.give(b.map("add", loop.carried[0], b.constant(1.0, (1,))))
    b.store(loop.out[0], b.dense(y), [i])
    kernel = b.finish()
    columns = quantities(kernel)
    (flops,) = (place for place, column in enumerate(columns) if column.kind == "vector")
    lowered = lower_kernel(kernel, machine("avx512"), instrument=True)
    # causal work of sequences that lie in one row: it grows inside each
    work = np.concatenate([np.arange(n) + 1 for n in (10, 40, 5, 25, 20)])[:programs]
    given = np.stack([np.zeros_like(work), work], 1).astype(np.int32).reshape(-1)
    for nthreads in (1, 2, 3):
        rows, got = np.zeros((nthreads, len(columns)), np.int64), np.full(programs, -1, np.float32)
        run_kernel(lowered, [given, got, rows], {"n": programs}, nthreads=nthreads)
        assert np.array_equal(got, work)
        if programs == 100:
            assert rows[:, flops].max() <= rows[:, flops].mean() * 1.2


def test_a_loop_goes_on_where_the_loop_before_left_its_tile(rng: np.random.Generator) -> None:
    b = KernelBuilder("stretches", ["n"])
    x, y = b.buffer(["n", 9, 100], F32), b.output([9, 100], F32)
    b.grid([1], [1])
    carried = b.constant(0.0, (9, 100))
    for first, last in ((0, Expr.of("n") // 2), (Expr.of("n") // 2, "n")):
        with b.loop(first, last, 1, [carried]) as loop:
            row = b.reshape(b.load(b.dense(x), [loop.at, 0, 0], [1, 9, 100]), (9, 100))
            loop.give(b.map("add", loop.carried[0], row))
        (carried,) = loop.out
    b.store(carried, b.dense(y), [0, 0])
    kernel = b.finish()
    for n in (0, 1, 2, 7):
        check(kernel, {"n": n}, rng)
    assert len(lower_kernel(kernel, machine("avx512")).scratch) == 1


def test_an_expression_of_loop_coordinates_places_a_store(rng: np.random.Generator) -> None:
    b = KernelBuilder("placed", ["n"])
    x, y = b.buffer(["n", 3, 8], F32), b.output(["n", 24], F32)
    (i,) = b.grid(["n"], [1])
    with b.loop(0, 3, 1) as loop:
        row = b.reshape(b.load(b.dense(x), [i, loop.at, 0], [1, 1, 8]), (1, 8))
        b.store(row, b.dense(y), [i, b.index(Expr.of("a0") * 8, loop.at)])
    check(b.finish(), {"n": 3}, rng)

"""What passes a cache by the model is what one that forgets the least recent lets pass, within twice its size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tilewright.ir.dtypes import BF16, F32, DType
from tilewright.ir.machine import Level, Machine
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.levels import programs_of, work_of
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.testing import MACHINE

ROWS, COLUMNS, STEP = 4, 8, 16


def matmul(block: int = 1, dtype: DType = F32) -> KernelOp:
    """x [m, k] times w [k, n]: panels of columns meet `block` tiles of rows before the next panel."""
    b = KernelBuilder("matmul", ["m", "k", "n"])
    x, w = b.buffer(["m", "k"], dtype), b.buffer(["k", "n"], dtype)
    y = b.output(["m", "n"], F32)
    order = [(0, block), (1, 1), (0, 1)] if block > 1 else [(0, 1), (1, 1)]
    i, j = b.grid(["m", "n"], [ROWS, COLUMNS], order)
    with b.loop(0, "k", STEP, [b.constant(0.0, [ROWS, COLUMNS])]) as loop:
        left = b.load(b.dense(x), [i, loop.at], [ROWS, STEP], 0.0)
        right = b.load(b.dense(w), [loop.at, j], [STEP, COLUMNS], 0.0)
        loop.give(b.dot(left, right, loop.carried[0]))
    b.store(loop.out[0], b.dense(y), [i, j])
    return b.finish()


def tiles(block: int, m: int, k: int, n: int) -> Iterator[tuple[tuple[str, int, int], int]]:
    """What that kernel names, tile by tile in its order, with the bytes of each."""
    for first, j in product(range(0, m, ROWS * block), range(0, n, COLUMNS)):
        for i in range(first, min(first + ROWS * block, m), ROWS):
            for at in range(0, k, STEP):
                depth = min(STEP, k - at)
                yield ("x", i, at), 4 * min(ROWS, m - i) * depth
                yield ("w", at, j), 4 * depth * min(COLUMNS, n - j)
            yield ("y", i, j), 4 * min(ROWS, m - i) * min(COLUMNS, n - j)


def passed(room: int, named: Iterator[tuple[tuple[str, int, int], int]]) -> int:
    """Bytes that miss a least-recently-used cache."""
    held: OrderedDict[tuple[str, int, int], int] = OrderedDict()
    missed = 0
    for tile, size in named:
        if tile in held:
            held.move_to_end(tile)
            continue
        missed += size
        held[tile] = size
        while sum(held.values()) > room:
            held.popitem(last=False)
    return missed


def cached(*sizes: int) -> Machine:
    """A machine with caches of these sizes, the largest first."""
    levels = [Level(f"cache{i}", size, 1e11) for i, size in enumerate(sizes)]
    units = tuple(replace(unit, reaches=()) for unit in MACHINE.units)
    return replace(MACHINE, units=units, levels=(MACHINE.memory, *levels))


@pytest.mark.parametrize("block", [1, 3])
def test_misses_are_those_of_a_cache_that_forgets_what_was_used_longest_ago(
    block: int, rng: np.random.Generator
) -> None:
    traffic = kernel_traffic(matmul(block))
    for _ in range(6):
        m, k, n = (int(v) for v in (rng.integers(1, 40), rng.integers(1, 70), rng.integers(1, 60)))
        for room in (700, 3000, 12000):
            found = work_of(traffic, {"m": m, "k": k, "n": n}, cached(room)).moved["memory"]
            most, least = (passed(size, tiles(block, m, k, n)) for size in (room // 2, room * 2))
            assert least <= found * (1 + 1e-9), (m, k, n, room)
            assert found <= most * (1 + 1e-9), (m, k, n, room)


def test_the_last_cache_gives_all_that_is_named_and_each_level_less_than_the_next() -> None:
    sizes = {"m": 40, "k": 64, "n": 48}
    traffic = kernel_traffic(matmul())
    named = traffic.at(sizes)["read"] + traffic.at(sizes)["write"]
    moved = work_of(traffic, sizes, cached(8000, 1500)).moved
    assert moved["cache1"] == named
    assert traffic.lower_bound.evaluate(sizes) <= moved["memory"] <= moved["cache0"] <= named
    assert work_of(traffic, sizes, cached()).moved == {"memory": named}
    assert work_of(traffic, sizes, cached(1 << 20)).moved["memory"] == traffic.lower_bound.evaluate(sizes)


def test_blocks_that_fit_stream_the_weight_once_a_block() -> None:
    sizes = {"m": 48, "k": 64, "n": 64}
    x, w, y = 4 * 48 * 64, 4 * 64 * 64, 4 * 48 * 64
    # 4 tiles of rows are 4 KiB, a panel 2 KiB
    room = cached(8 << 10)
    assert work_of(kernel_traffic(matmul(4)), sizes, room).moved["memory"] == x + w * 3 + y
    assert work_of(kernel_traffic(matmul(1)), sizes, room).moved["memory"] == x + w * 12 + y


def test_flops_go_by_the_dtype_of_the_factors() -> None:
    sizes = {"m": 4, "k": 16, "n": 8}
    assert work_of(kernel_traffic(matmul(dtype=BF16)), sizes, MACHINE).flops == {("matrix", "bf16"): 2 * 4 * 16 * 8}


def test_nothing_moves_where_there_is_nothing() -> None:
    work = work_of(kernel_traffic(matmul()), {"m": 0, "k": 3, "n": 5}, MACHINE)
    assert MACHINE.seconds(work) == 0
    assert programs_of(matmul(), {"m": 0, "k": 3, "n": 5}) == 0

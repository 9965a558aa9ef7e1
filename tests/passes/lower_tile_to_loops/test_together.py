"""Programs that reduce rows run side by side: the same bits, one loop for all of them, and only where it pays."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.passes.lower_tile_to_loops.kernels import layer_norm, matmul, softmax
from tests.passes.lower_tile_to_loops.running import inputs, outputs
from tests.passes.test_streaming import doubled, lowered, soft
from tests.passes.test_streaming import machine as streaming
from tilewright.backends.cpu.machines import MACHINES
from tilewright.ir.loops import LoopKernel
from tilewright.ir.loops.text import print_kernel
from tilewright.ir.loops_interpreter import run_kernel
from tilewright.ir.machine import Machine
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_tile_to_loops import lower_kernel

FOUR = MACHINES["avx512"]()


def machine(together: int) -> Machine:
    return replace(FOUR, rules=replace(FOUR.rules, together=together))


def kept_row(width: int) -> KernelOp:
    """Softmax of a row whose exponentials wait in scratch."""
    return lowered(soft(width), FOUR).variants[0].kernel


def chains(kernel: LoopKernel) -> int:
    """The most values that a loop of a kernel hands on."""
    return max(found.count("=") for found in re.findall(r" carry\((.*)\) {", print_kernel(kernel)))


@pytest.mark.parametrize(
    ("kernel", "dims"),
    [(layer_norm(1, 100), {}), (softmax(1, 64), {"m": 70}), (softmax(1, 64), {"m": 1}), (kept_row(200), {})],
    ids=["rows in registers", "rows in tiles", "short rows in tiles", "rows in scratch"],
)
@pytest.mark.parametrize("together", [2, 4])
def test_no_bit_depends_on_what_runs_beside(
    kernel: KernelOp, dims: dict[str, int], together: int, rng: np.random.Generator
) -> None:
    row = kernel.dims.data[0]
    alone, beside = (lower_kernel(kernel, machine(count)) for count in (1, together))
    assert len(print_kernel(beside)) > len(print_kernel(alone))
    for rows in (0, 1, 3, 4, 7, 17):
        sizes = {row: rows, **dims}
        given = inputs(kernel, sizes, rng)
        wanted = outputs(kernel, sizes)
        run_kernel(alone, [*given, *wanted], sizes, nthreads=1)
        for threads in (1, 2):
            got = outputs(kernel, sizes)
            run_kernel(beside, [*given, *got], sizes, nthreads=threads)
            for have, want in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize(
    ("kernel", "rows"),
    [
        (layer_norm(1, 4096), 4), (layer_norm(1, 16384), 2), (layer_norm(1, 32768), 1),
        (kept_row(512), 4), (kept_row(1024), 2), (softmax(1, 64), 4),
        (matmul(64, 64, 4, 64), 1), (lowered(doubled(64), FOUR).variants[0].kernel, 1),
    ],
)  # fmt: skip
def test_as_many_rows_as_the_caches_have_room_for(kernel: KernelOp, rows: int) -> None:
    beside, alone = lower_kernel(kernel, machine(4)), lower_kernel(kernel, machine(1))
    assert len(print_kernel(beside)) > len(print_kernel(alone)) if rows > 1 else str(beside) == str(alone)
    if rows > 1:
        assert chains(beside) == rows * chains(alone)


def test_what_programs_share_is_loaded_once() -> None:
    """Four rows meet one load of the weight, and the row that is left over another."""
    text = print_kernel(lower_kernel(layer_norm(1, 1024), machine(4)))
    together, left = text.split("for %p_")[1:]
    assert [part.count("store ") for part in (together, left)] == [4, 1]
    assert [part.count("load arg1[") for part in (together, left)] == [1, 1]


def test_requests_lie_beyond_all_rows_that_run() -> None:
    """What follows is asked for once, a machine's distance ahead or, where rows are long, behind the last of them."""
    streamed = lowered(soft(2048), streaming("avx512")).variants[-1].kernel
    for together in (1, 2):
        room = replace(FOUR.levels[2], size=64 << 10)
        levels = (*FOUR.levels[:2], room, *FOUR.levels[3:])
        on = replace(machine(together), levels=levels)
        text = print_kernel(lower_kernel(streamed, on))
        assert f", {2048 * together} : i64" in text
        assert len(re.findall("prefetch far", text)) == (3 if together == 2 else 1)

"""Outputs that a kernel changes in place: what it does not reach stays, and no program sees what another one does."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.utils.exceptions import VerifyException

from tilewright.errors import KernelStoreError
from tilewright.ir.attributes import Ints
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.counting import Counters
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.tile_interpreter import run_kernel

ROWS, WIDTH = 11, 6


def changing(mode: str = "set", *, every_program_all: bool = False, loads: bool = False) -> KernelOp:
    """Puts n lines into 11 of 6 elements, a program four columns (or, wrongly, every program all columns)."""
    b = KernelBuilder("changing", ["n"])
    at, new = b.buffer(["n"], I64), b.buffer(["n", WIDTH], F32)
    memory = b.dense(b.updated([ROWS, WIDTH], F32))
    _, i = b.grid([2 if every_program_all else 1, WIDTH], [1, 4])
    with b.loop(0, "n", 1) as loop:
        value = b.load(b.dense(new), [loop.at, i], [1, 4])
        if loads:
            value = b.map("add", value, b.load(memory, [loop.at, i], [1, 4]))
        places = b.reshape(b.load(b.dense(at), [loop.at], [1]), (1,))
        b.update(b.reshape(value, (4,)), places, memory, [i], 0, mode)
    return b.finish()


@pytest.mark.parametrize("mode", ["set", "add"])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_what_no_update_reaches_stays(mode: str, n: int, rng: np.random.Generator) -> None:
    kernel = changing(mode)
    at = rng.integers(0, ROWS, n)
    new = rng.standard_normal((n, WIDTH)).astype(np.float32)
    memory = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    expected = memory.copy()
    for place, line in zip(at, new, strict=True):
        expected[place] = line if mode == "set" else expected[place] + line
    counters = Counters()
    run_kernel(kernel, [at, new, memory], {"n": n}, counters)
    np.testing.assert_array_equal(memory, expected)
    counts = kernel_traffic(kernel).at({"n": n})
    assert counts["write"] == n * WIDTH * 4 == counters.bytes.of("write")
    # a place is read by each of two programs, and what is added to once
    assert counts["read"] == n * (WIDTH * 4 * (2 if mode == "add" else 1) + 2 * 8) == counters.bytes.of("read")


def test_two_programs_may_not_change_one_element() -> None:
    buffers = [np.array([3]), np.ones((1, WIDTH), np.float32), np.zeros((ROWS, WIDTH), np.float32)]
    with pytest.raises(KernelStoreError, match="written by another program"):
        run_kernel(changing(every_program_all=True), buffers, {"n": 1})


def test_old_elements_are_read_by_updates_alone() -> None:
    buffers = [np.array([3]), np.ones((1, WIDTH), np.float32), np.zeros((ROWS, WIDTH), np.float32)]
    with pytest.raises(KernelStoreError, match="not written yet"):
        run_kernel(changing(loads=True), buffers, {"n": 1})


@pytest.mark.parametrize("numbers", [(1,), (-1,), (0, 0)])
def test_what_is_changed_are_outputs_once_each(numbers: tuple[int, ...]) -> None:
    kernel = changing()
    kernel.properties["updates"] = Ints(numbers)
    with pytest.raises(VerifyException, match="are not outputs in increasing order"):
        kernel.verify()

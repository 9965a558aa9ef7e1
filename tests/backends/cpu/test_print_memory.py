"""Loads and stores, printed for each class this machine runs, do what the interpreter does."""

from __future__ import annotations

import numpy as np

from tests.backends.cpu.native_kernel import NativeKernel
from tests.backends.cpu.op_cases import ALL, grid, numbers, same
from tilewright.ir.dtypes import I32
from tilewright.ir.loops import LoopBuilder
from tilewright.ir.loops.elementwise import storage
from tilewright.ir.loops_interpreter import run_kernel


@grid
def test_masked_accesses_touch_only_their_lanes(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    """Each vector's tail mask, strided and gathered accesses, on every dtype; the rest of the output stays."""
    for dtype in ALL:
        b = LoopBuilder("masked")
        source, where = b.buffer("source", dtype), b.buffer("where", I32)
        out = b.buffer("out", dtype, writable=True)
        n, stride = b.dim("n"), b.dim("stride")
        with b.loop(0, n, lanes) as loop:
            tail = b.tail_mask(b.sub(n, loop.index), lanes)
            plain = b.load(source, loop.index, lanes, mask=tail)
            b.store(plain, out, loop.index, mask=tail)
            filled = b.load(source, loop.index, lanes, mask=tail, fill=b.load(source, 0))
            b.store(filled, out, b.add(loop.index, 200))
            picked = b.gather(source, 0, b.load(where, loop.index, lanes, mask=tail), mask=tail)
            b.scatter(picked, out, 400, b.load(where, loop.index, lanes, mask=tail), mask=tail)
            strided = b.load(source, loop.index, lanes, stride=stride, mask=tail)
            b.store(strided, out, b.add(600, loop.index), stride=3, mask=tail)
        kernel = b.finish()
        size = 37
        source_array = numbers(rng, dtype, size * 5)
        where_array = rng.permutation(size).astype(np.int32)
        got, wanted = (np.zeros(1000, storage(dtype)) for _ in range(2))
        native = NativeKernel(kernel, cpu)
        for count in (0, 1, lanes - 1, lanes, size):
            native([source_array, where_array, got], [count, 4])
            run_kernel(kernel, [source_array, where_array, wanted], [count, 4])
            same(got, wanted, dtype)

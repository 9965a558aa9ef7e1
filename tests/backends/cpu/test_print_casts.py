"""Casts, printed for each class this machine runs, have the interpreter's bits."""

from __future__ import annotations

import numpy as np

from tests.backends.cpu.native_kernel import NativeKernel
from tests.backends.cpu.op_cases import ALL, Case, every_printer, grid, run_cases, same
from tilewright.ir.dtypes import BF16, F16, F32
from tilewright.ir.loops import LoopBuilder


@grid
def test_every_cast_has_the_interpreters_bits(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    cases = [Case(f"{a} to {d}", (a,), lambda b, x, d=d: b.cast(x, d)) for a in ALL for d in ALL if a is not d]
    run_cases(cases, lanes, cpu, rng)


@every_printer
def test_every_half_and_bfloat_pattern_survives_widening_and_narrowing(cpu: str) -> None:
    b = LoopBuilder("patterns")
    halves, brains = b.buffer("halves", F16), b.buffer("brains", BF16)
    out16, outb = b.buffer("out16", F16, writable=True), b.buffer("outb", BF16, writable=True)
    with b.loop(0, 65536, 16) as loop:
        b.store(b.cast(b.cast(b.load(halves, loop.index, 16), F32), F16), out16, loop.index)
        b.store(b.cast(b.cast(b.load(brains, loop.index, 16), F32), BF16), outb, loop.index)
    every = np.arange(65536).astype(np.uint16)
    got16, gotb = np.zeros_like(every), np.zeros_like(every)
    NativeKernel(b.finish(), cpu)([every, every, got16, gotb])
    same(got16.view(np.float16), every.view(np.float16), F16)
    nan = (every & 0x7FFF) > 0x7F80
    np.testing.assert_array_equal(gotb, np.where(nan, 0x7FC0, every))

"""Casts, printed for each class this machine runs, have the interpreter's bits."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cpu.native_kernel import NativeKernel
from tests.backends.cpu.op_cases import ALL, Case, every_printer, grid, run_cases, same
from tilewright.ir.dtypes import BF16, F16, F32
from tilewright.ir.loops import LoopBuilder


@grid
def test_every_cast_has_the_interpreters_bits(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    cases = [Case(f"{a} to {d}", (a,), lambda b, x, d=d: b.cast(x, d)) for a in ALL for d in ALL if a is not d]
    run_cases(cases, lanes, cpu, rng)


def _normal(arrays: list[np.ndarray]) -> list[np.ndarray]:
    (a,) = arrays
    return [np.where(np.isfinite(a) & (np.abs(a) < 2.0**-126), 0, np.where(np.isnan(a), 1, a)).astype(np.float32)]


@grid
def test_numbers_known_to_be_normal_are_rounded_alike(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    run_cases([Case("normal", (F32,), lambda b, x: b.cast(x, BF16, normal=True), _normal)], lanes, cpu, rng, rounds=11)


def _without_nan(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [np.where(np.isnan(arrays[0]), np.float32(1e-39), arrays[0])]


@pytest.mark.parametrize("lanes", [1, 16, 32])
@every_printer
def test_subnormal_numbers_can_be_made_zeros_of_their_sign(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    cases = [Case("flush", (F32,), lambda b, x: b.cast(x, BF16, flush=True), _without_nan)]
    run_cases(cases, lanes, cpu, rng, rounds=11)


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

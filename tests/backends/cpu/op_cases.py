"""Ops as cases: one kernel runs many of them over vectors of every kind of number, natively and interpreted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from tests.backends.cpu.native_kernel import NativeKernel, host_classes
from tilewright.backends.cpu.cpu_class import CPU_CLASSES
from tilewright.backends.toy.compiler import missing
from tilewright.ir.dtypes import BF16, F16, F32, F64, I1, I8, I16, I32, I64, U8, DType
from tilewright.ir.loops import LoopBuilder, Value
from tilewright.ir.loops.elementwise import storage
from tilewright.ir.loops_interpreter import run_kernel

CLASSES = host_classes()
# Text differs between these; avx512-bf16 prints what the class with a matrix unit prints.
DISTINCT = [name for name in CLASSES if name != "avx512-bf16" or "avx512-amx" not in CLASSES]
NO_CC = missing()
C = pytest.param("c", marks=pytest.mark.skipif(NO_CC is not None, reason=f"toy: {NO_CC}"))
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    -2.5,
    np.inf,
    -np.inf,
    np.nan,
    1e-45,
    -3e-39,
    3.4e38,
    8388607.5,
    1e10,
    -3e9,
]
INTEGERS = (I64, I32, I16, I8, U8)
ALL = (F64, F32, F16, BF16, *INTEGERS, I1)


def numbers(rng: np.random.Generator, dtype: DType, count: int) -> np.ndarray:
    """Values of all magnitudes, with the special ones at random places."""
    if dtype is I1:
        return rng.integers(0, 2, count).astype(bool)
    if not dtype.is_float:
        info = np.iinfo(storage(dtype))
        wide = rng.integers(info.min, info.max, count, dtype=storage(dtype), endpoint=True)
        return np.where(rng.random(count) < 0.5, wide, rng.integers(0, 100, count).astype(storage(dtype)))
    spread = rng.standard_normal(count) * 10.0 ** rng.integers(-4, 5, count)
    special = rng.choice(SPECIAL, count)
    with np.errstate(over="ignore"):
        values = np.where(rng.random(count) < 0.3, special, spread).astype(np.float64 if dtype is F64 else np.float32)
        if dtype is BF16:
            return (values.view(np.uint32) >> 16).astype(np.uint16)
        return values.astype(storage(dtype))


def same(got: np.ndarray, wanted: np.ndarray, dtype: DType) -> None:
    """Equal bits, any NaN being as good as another but for bf16's."""
    if dtype.is_float and dtype is not BF16:
        nan = np.isnan(wanted)
        np.testing.assert_array_equal(np.isnan(got), nan)
        bits = f"u{wanted.dtype.itemsize}"
        got, wanted = np.where(nan, 0, got).view(bits), np.where(nan, 0, wanted).view(bits)
    np.testing.assert_array_equal(got, wanted)


@dataclass
class Case:
    """An op on operands of given dtypes; `build` makes the result from the loaded operands."""

    name: str
    operands: tuple[DType, ...]
    build: Callable[..., Value]
    prepare: Callable[[list[np.ndarray]], list[np.ndarray]] = lambda arrays: arrays


def run_cases(cases: Sequence[Case], lanes: int, cpu: str, rng: np.random.Generator, rounds: int = 23) -> None:
    """All cases in one kernel over `rounds` vectors; native and interpreted results compared bit for bit."""
    b = LoopBuilder("cases")
    inputs, outputs = [], []
    arrays: list[np.ndarray] = []
    for n, case in enumerate(cases):
        made = case.prepare([numbers(rng, d, rounds * lanes) for d in case.operands])
        inputs.append([b.buffer(f"i{n}_{k}", d) for k, d in enumerate(case.operands)])
        arrays += made
    results: list[DType] = []
    with b.loop(0, rounds) as loop:
        at = b.mul(loop.index, lanes)
        for n, case in enumerate(cases):
            value = case.build(b, *[b.load(m, at, lanes) for m in inputs[n]])
            outputs.append(b.buffer(f"o{n}", value.type.dtype, writable=True))
            results.append(value.type.dtype)
            b.store(value, outputs[n], b.mul(loop.index, value.type.lanes))
    kernel = b.finish()
    room = 64 * lanes * rounds
    native = [np.zeros(room, storage(d)) for d in results]
    wanted = [np.zeros(room, storage(d)) for d in results]
    NativeKernel(kernel, cpu)([*arrays, *native])
    run_kernel(kernel, [*arrays, *wanted], fused=cpu != "c" and CPU_CLASSES[cpu].fma)
    for case, got, right, dtype in zip(cases, native, wanted, results, strict=True):
        try:
            same(got, right, dtype)
        except AssertionError as error:
            raise AssertionError(f"{case.name} on {lanes} lanes, {cpu}: {error}") from None


every_printer = pytest.mark.parametrize("cpu", [*DISTINCT, C])


def grid(test: Callable[..., None]) -> Callable[..., None]:
    """The test on every printer and number of lanes."""
    return pytest.mark.parametrize("lanes", [1, 4, 8, 16])(every_printer(test))

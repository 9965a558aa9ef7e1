"""Whatever placement, fusion and clipping decide, loops compute what the interpreter computes.

A kernel, its sizes and its inputs follow from one number, which every failure names: TILEWRIGHT_TEST_KERNEL=NUMBER runs
that kernel alone.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.passes.lower_tile_to_loops.random_kernels import RandomKernel
from tests.passes.lower_tile_to_loops.running import check_counts, inputs, interpreted, outputs, run_tiles, same
from tilewright.errors import KernelStoreError, PoisonError

REPLAYED = os.environ.get("TILEWRIGHT_TEST_KERNEL")
CLASSES = {"avx512": 2e-5, "avx2": 2e-5, "generic": 1e-4}  # and how far sums in another order may lie


def numbers(rng: np.random.Generator, count: int) -> list[int]:
    """Those of the kernels to run."""
    return [int(REPLAYED)] if REPLAYED else rng.integers(1 << 31, size=count).tolist()


def agrees(number: int, name: str) -> bool:
    """Compares a kernel on random sizes; False where it stores poison, which has no meaning to compare."""
    kernel, rng = RandomKernel(number).build(), np.random.default_rng(number)
    dims = {"n": int(rng.choice([1, 2, 5, 9, 21])), "m": int(rng.choice([1, 3, 16, 20, 33, 70]))}
    given, wanted = inputs(kernel, dims, rng), outputs(kernel, dims)
    try:
        run_tiles(kernel, [*given, *wanted], dims, complete=False)
    except (PoisonError, KernelStoreError):
        return False
    for at, (have, want) in enumerate(zip(interpreted(kernel, given, dims, name, nthreads=2), wanted, strict=True)):
        same(have, want, CLASSES[name], f"TILEWRIGHT_TEST_KERNEL={number}: output {at} with {dims} on {name}")
    return True


@pytest.mark.parametrize("name", CLASSES)
def test_random_kernels(name: str, rng: np.random.Generator) -> None:
    compared = [agrees(number, name) for number in numbers(rng, 40)]
    assert any(compared), "every kernel stored poison"


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_very_many_random_kernels(name: str, rng: np.random.Generator) -> None:
    for number in numbers(rng, 300):
        agrees(number, name)


def test_random_kernels_are_counted_exactly(rng: np.random.Generator) -> None:
    for number in numbers(rng, 8):
        kernel, drawn = RandomKernel(number).build(), np.random.default_rng(number)
        dims = {"n": int(drawn.integers(1, 12)), "m": int(drawn.integers(1, 50))}
        given = inputs(kernel, dims, drawn)
        try:
            run_tiles(kernel, [*given, *outputs(kernel, dims)], dims, complete=False)
        except (PoisonError, KernelStoreError):
            continue
        try:
            check_counts(kernel, dims, given)
        except AssertionError as error:
            raise AssertionError(f"TILEWRIGHT_TEST_KERNEL={number} with {dims}: {error}") from error

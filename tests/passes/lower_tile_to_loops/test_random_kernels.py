"""Whatever placement, fusion and clipping decide, loops compute what the interpreter computes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.lower_tile_to_loops.random_kernels import RandomKernel
from tests.passes.lower_tile_to_loops.running import check_counts, inputs, interpreted, outputs, run_tiles, same
from tilewright.errors import KernelStoreError, PoisonError
from tilewright.ir.tile.structure import KernelOp


def run_one(kernel: KernelOp, name: str, rng: np.random.Generator, tolerance: float) -> bool:
    """Compares a kernel on random sizes; False where it stores poison, which has no meaning to compare."""
    dims = {"n": int(rng.choice([1, 2, 5, 9, 21])), "m": int(rng.choice([1, 3, 16, 20, 33, 70]))}
    given, wanted = inputs(kernel, dims, rng), outputs(kernel, dims)
    try:
        run_tiles(kernel, [*given, *wanted], dims, complete=False)
    except (PoisonError, KernelStoreError):
        return False
    for number, (have, want) in enumerate(zip(interpreted(kernel, given, dims, name, nthreads=2), wanted, strict=True)):
        same(have, want, tolerance, f"output {number} with {dims} on {name}")
    return True


@pytest.mark.parametrize(("name", "tolerance"), [("avx512", 2e-5), ("avx2", 2e-5), ("generic", 1e-4)])
def test_random_kernels(name: str, tolerance: float, rng: np.random.Generator) -> None:
    compared = 0
    for seed in rng.integers(1 << 31, size=40):
        print(f"RandomKernel({seed})")
        compared += run_one(RandomKernel(int(seed)).build(), name, rng, tolerance)
    assert compared, "every kernel stored poison"


@pytest.mark.slow
def test_very_many_random_kernels(rng: np.random.Generator) -> None:
    for seed in rng.integers(1 << 31, size=600):
        print(f"RandomKernel({seed})")
        run_one(RandomKernel(int(seed)).build(), "avx512", rng, 2e-5)


def test_random_kernels_are_counted_exactly(rng: np.random.Generator) -> None:
    for seed in rng.integers(1 << 31, size=8):
        print(f"RandomKernel({seed})")
        kernel = RandomKernel(int(seed)).build()
        dims = {"n": int(rng.integers(1, 12)), "m": int(rng.integers(1, 50))}
        given = inputs(kernel, dims, rng)
        try:
            run_tiles(kernel, [*given, *outputs(kernel, dims)], dims, complete=False)
        except (PoisonError, KernelStoreError):
            continue
        check_counts(kernel, dims, given)

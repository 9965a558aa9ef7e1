"""Runs a tile kernel three ways: by the tile interpreter, as loops by their interpreter, and natively here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from tests.backends.cpu.native_kernel import NativeKernel, host_classes
from tilewright.backends.cpu.machines import MACHINES
from tilewright.ir.dtypes import DType
from tilewright.ir.loops import LoopKernel
from tilewright.ir.loops_interpreter import run_kernel as run_loops
from tilewright.ir.machine import Machine
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.counting import Counters, Counts
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.tile_interpreter import run_kernel as run_tiles
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.lower_tile_to_loops.counters import quantities

CLASSES = list(MACHINES)


def machine(name: str) -> Machine:
    return MACHINES[name]()


# one kernel, many calls: kernels are equal where they are one object, and nobody changes one that is built
@lru_cache(maxsize=16)
def lowered(kernel: KernelOp, name: str, *, instrument: bool = False) -> LoopKernel:
    """The loops of a kernel for a class."""
    return lower_kernel(kernel, machine(name), instrument=instrument)


def inputs(kernel: KernelOp, dims: Mapping[str, int], rng: np.random.Generator) -> list[np.ndarray]:
    """Fresh random arrays for a kernel's inputs."""
    return [random(v.type.dtype, size, rng) for v in kernel.inputs for size in [buffer(v).elements.evaluate(dims)]]


def random(dtype: DType, size: int, rng: np.random.Generator) -> np.ndarray:
    kind = dtype.numpy()
    if dtype.is_float:
        return rng.standard_normal(size).astype(np.float32).astype(kind)
    if dtype.kind == "bool":
        return rng.random(size) < 0.5
    limits = np.iinfo(kind)
    return rng.integers(max(limits.min, -100), min(limits.max, 100), size).astype(kind)


def outputs(kernel: KernelOp, dims: Mapping[str, int]) -> list[np.ndarray]:
    """Arrays of a value nobody computes, to see what is left unwritten."""
    made = []
    for value in kernel.buffers[len(kernel.inputs) :]:
        kind = buffer(value).dtype.numpy()
        made.append(np.frombuffer(b"\x5a" * (buffer(value).elements.evaluate(dims) * kind.itemsize), kind).copy())
    return made


def reference(
    kernel: KernelOp, given: Sequence[np.ndarray], dims: Mapping[str, int], **options: bool
) -> list[np.ndarray]:
    """What the tile interpreter computes."""
    made = outputs(kernel, dims)
    run_tiles(kernel, [*given, *made], dims, **options)
    return made


def interpreted(
    kernel: KernelOp, given: Sequence[np.ndarray], dims: Mapping[str, int], name: str, *, nthreads: int = 1
) -> list[np.ndarray]:
    """What the loop kernel for a class computes in the loop interpreter."""
    made = outputs(kernel, dims)
    run_loops(lowered(kernel, name), [*given, *made], dims, nthreads=nthreads, fused=name != "generic")
    return made


def native(
    kernel: KernelOp, given: Sequence[np.ndarray], dims: Mapping[str, int], name: str, *, nthreads: int = 1
) -> list[np.ndarray]:
    """What the compiled loop kernel computes."""
    made = outputs(kernel, dims)
    compiled = NativeKernel(lowered(kernel, name), name)
    compiled([*given, *made], [dims[d] for d in kernel.dims.data], nthreads=nthreads)
    return made


def check(
    kernel: KernelOp,
    dims: Mapping[str, int],
    rng: np.random.Generator,
    *,
    given: Sequence[np.ndarray] | None = None,
    tolerance: float = 0.0,
    classes: Sequence[str] = ("avx512", "generic"),
    compiled: bool = True,
    nthreads: int = 3,
) -> list[np.ndarray]:
    """Holds the loops of every class, interpreted, and the host's best class, compiled, against the tile interpreter.

    tolerance: relative to the largest magnitude of an output; 0 asks for equal bits.
    """
    given = inputs(kernel, dims, rng) if given is None else given
    wanted = reference(kernel, given, dims)
    runs = {name: interpreted(kernel, given, dims, name, nthreads=nthreads) for name in classes}
    if compiled:
        best = host_classes()[-1]
        runs[f"native {best}"] = native(kernel, given, dims, best, nthreads=nthreads)
    for name, got in runs.items():
        for number, (have, want) in enumerate(zip(got, wanted, strict=True)):
            same(have, want, tolerance, f"output {number} on {name}")
    return wanted


def same(have: np.ndarray, want: np.ndarray, tolerance: float, what: str) -> None:
    """Equal bits (NaN equals NaN), or close where a tolerance is given."""
    if want.dtype.kind in "fV":
        x, y = have.astype(np.float64), want.astype(np.float64)
        assert np.array_equal(np.isnan(x), np.isnan(y)), f"{what}: NaN in other places"
        finite = np.isfinite(y)
        assert np.array_equal(x[~finite & ~np.isnan(y)], y[~finite & ~np.isnan(y)]), f"{what}: other infinities"
        scale = np.abs(y[finite]).max(initial=1.0)
        error = np.abs(x[finite] - y[finite]).max(initial=0.0)
        assert error <= tolerance * scale, f"{what}: error {error:.3g} with values up to {scale:.3g}"
    else:
        assert np.array_equal(have, want), f"{what}: {np.flatnonzero(have != want)[:8]} differ"


def counted(
    kernel: KernelOp, given: Sequence[np.ndarray], dims: Mapping[str, int], name: str, *, nthreads: int = 2
) -> Counts:
    """What the instrumented loops count, summed over the threads."""
    columns = quantities(kernel)
    made = outputs(kernel, dims)
    rows = np.zeros((nthreads, len(columns)), np.int64)
    loops = lowered(kernel, name, instrument=True)
    run_loops(loops, [*given, *made, rows], dims, nthreads=nthreads, fused=name != "generic")
    return Counts(dict(zip(columns, map(int, rows.sum(0)), strict=True)))


def check_counts(
    kernel: KernelOp, dims: Mapping[str, int], given: Sequence[np.ndarray], name: str = "avx512"
) -> Counts:
    """Holds the counters of the loops against the tile interpreter's."""
    counters = Counters()
    run_tiles(kernel, [*given, *outputs(kernel, dims)], dims, counters, complete=False)
    got = counted(kernel, given, dims, name)
    assert got == counters.elements
    return got

"""Runs a tile kernel slowly and exactly on NumPy arrays: values, poison and counters. Every backend is tested against
it.

Poison: lanes that a load found outside its view (and that no fill covers) or through an index that points nowhere.
They hold garbage (NaN, or an absurd integer), spread through arithmetic by each op's `spread`, and must not reach an
in-bounds lane of a store, or an index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tilewright.errors import IRError, KernelStoreError, Problem
from tilewright.ir.tile.axes import Memory, Site
from tilewright.ir.tile.base import Array, buffer
from tilewright.ir.tile.counting import Counters
from tilewright.ir.tile.execution import Execution
from tilewright.ir.tile.structure import KernelOp


def run_kernel(
    kernel: KernelOp,
    buffers: Sequence[Array],
    dims: Mapping[str, int],
    counters: Counters | None = None,
    *,
    complete: bool = True,
) -> None:
    """Runs every program of the grid in the kernel's order, writing outputs in place.

    buffers: C-contiguous arrays of the buffers' dtypes (bf16 from ml_dtypes) and sizes, inputs first; any shape.
    dims: the kernel's formal dims. counters: added to. complete: whether every element of the outputs must be written.

    Raises PoisonError where a lane without a value is stored or indexed with, KernelStoreError where an output
    element is written twice, read before this program wrote it, or left unwritten, IRError where buffers or dims do
    not fit.
    """
    site = Site(kernel.sym_name.data)
    memories = _memories(kernel, buffers, dims)
    execution = Execution(kernel, memories, dims, site)
    with np.errstate(all="ignore"):
        for site.program, site.coordinates in enumerate(programs(kernel, dims)):
            execution.run(site.coordinates)
    if counters is not None:
        execution.count_into(counters)
    if complete:
        site.op, site.coordinates = kernel, ()
        for memory in memories:
            if memory.writers is not None and not memory.writers.all():
                missing = np.flatnonzero(memory.writers == 0)
                raise site.error(
                    KernelStoreError,
                    f"{missing.size} of {memory.flat.size} elements of output {memory.number} are never written, "
                    f"the first at {missing[0]}",
                    "make the grid and the stores cover the output",
                )


def programs(kernel: KernelOp, dims: Mapping[str, int]) -> Iterator[tuple[int, ...]]:
    """The coordinates of each program, in the kernel's order."""
    tiles, loops = kernel.tiles.data, kernel.loops

    def walk(depth: int, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, ...]]:
        if depth == len(loops):
            yield tuple(lo * size for (lo, _), size in zip(ranges, tiles, strict=True))
            return
        axis, step = loops[depth]
        lo, hi = ranges[axis]
        for at in range(lo, hi, step):
            yield from walk(depth + 1, [*ranges[:axis], (at, min(at + step, hi)), *ranges[axis + 1 :]])

    return walk(0, [(0, extent.evaluate(dims)) for extent in kernel.programs])


def _memories(kernel: KernelOp, buffers: Sequence[Array], dims: Mapping[str, int]) -> list[Memory]:
    types, name = [buffer(v) for v in kernel.buffers], kernel.sym_name.data
    faults = [f"dim {d} has no size" for d in kernel.dims.data if d not in dims]
    if len(buffers) != len(types):
        faults.append(f"{len(types)} buffers are declared, {len(buffers)} are given")
    if not faults:
        for number, (declared, array) in enumerate(zip(types, buffers, strict=True)):
            size = declared.elements.evaluate(dims)
            if array.dtype != declared.dtype.numpy() or array.size != size or not array.flags.c_contiguous:
                faults.append(
                    f"buffer {number} wants {size} contiguous elements of {declared.dtype}, "
                    f"got {array.dtype}{list(array.shape)}"
                )
    if faults:
        raise IRError(
            [Problem(f, op=f"tile.kernel @{name}") for f in faults], step="pass the arrays that the kernel declares"
        )
    first_output = len(types) - kernel.outputs.data
    return [
        Memory(number, array.reshape(-1), np.zeros(array.size, np.int32) if number >= first_output else None)
        for number, array in enumerate(buffers)
    ]

"""Runs a tile kernel slowly and exactly on NumPy arrays: values, poison and counters. Every backend is tested against it.

Poison: lanes that a load found outside its view (and that no fill covers) or through an index that points nowhere. They
hold garbage (NaN, or an absurd integer), spread through arithmetic by each op's `spread`, and must not reach an in-bounds
lane of a store, or an index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from xdsl.ir import Block, Operation, SSAValue

from tilewright.errors import IRError, KernelStoreError, Problem
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import DType
from tilewright.ir.tile import memory as mem
from tilewright.ir.tile.axes import AffineAxis, Axis, Memory, PagesAxis, Reads, RowsAxis, SegmentAxis, Site, WindowAxis
from tilewright.ir.tile.base import Array, TileOp, buffer, element, tile, view
from tilewright.ir.tile.counting import MEMORY, Counters, Quantity, op_numbers
from tilewright.ir.tile.regions import View
from tilewright.ir.tile.structure import CompareOp, ExprOp, ForOp, IfOp, KernelOp, ScalarOp, YieldOp
from tilewright.ir.types import TileType

Slots: TypeAlias = list[Any]  # the values of one program: ints, Tiles, Views and Memories, by the slot of each SSA value
Step: TypeAlias = Callable[[Slots], None]


class Tile(NamedTuple):
    """A tile's values, its poison lanes (None: none), and for a loaded tile how many lanes were inside."""

    values: Array
    poison: Array | None
    inside: int | None = None


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

    Raises PoisonError where a lane without a value is stored or indexed with, KernelStoreError where an output element is
    written twice, read before this program wrote it, or left unwritten, IRError where buffers or dims do not fit.
    """
    site = Site(kernel.sym_name.data)
    run = _Run(kernel, _memories(kernel, buffers, dims), dims, site)
    with np.errstate(all="ignore"):
        for site.program, site.coordinates in enumerate(programs(kernel, dims)):
            run.program(site.coordinates)
    if counters is not None:
        run.count_into(counters)
    if complete:
        site.op, site.coordinates = kernel, ()
        for memory in run.memories:
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
        raise IRError([Problem(f, op=f"tile.kernel @{name}") for f in faults], step="pass the arrays that the kernel declares")
    first_output = len(types) - kernel.outputs.data
    return [
        Memory(number, array.reshape(-1), np.zeros(array.size, np.int32) if number >= first_output else None)
        for number, array in enumerate(buffers)
    ]


def garbage(dtype: DType) -> Any:
    """What a poison lane holds: NaN, or a number that no one computes with by accident."""
    if dtype.is_float:
        return element(float("nan"), dtype)
    return np.bool_(True) if dtype.kind == "bool" else np.frombuffer(b"\xa5" * dtype.bytes, dtype.numpy())[0]


class _Run:
    """A kernel's ops as closures over the slots of its values, made once and called for every program."""

    def __init__(self, kernel: KernelOp, memories: list[Memory], dims: Mapping[str, int], site: Site) -> None:
        self.memories, self.site = memories, site
        self.dims = {name: dims[name] for name in kernel.dims.data}
        self.numbers = op_numbers(kernel)
        self.slots: dict[SSAValue, int] = {}
        self.moved: Counter[Quantity] = Counter()
        self.index_reads: dict[int, Reads] = {}
        self.executed: dict[Operation, int] = {}
        at = [self.slot(c) for c in kernel.coordinates]
        arguments = [self.slot(b) for b in kernel.buffers]
        steps = self.block(kernel.block)
        env: Slots = [None] * len(self.slots)
        for index, memory in zip(arguments, memories, strict=True):
            env[index] = memory

        def program(coordinates: Sequence[int]) -> None:
            for index, coordinate in zip(at, coordinates, strict=True):
                env[index] = coordinate
            for step in steps:
                step(env)

        self.program = program

    def count_into(self, counters: Counters) -> None:
        """Adds what the run moved and did."""
        sizes = [memory.flat.itemsize for memory in self.memories]
        for quantity, n in self.moved.items():
            size = sizes[quantity.buffer] if quantity.buffer is not None else self.stage_bytes(quantity)
            counters.add(quantity, n, size)
        for op, reads in self.index_reads.items():
            for number, n in reads.items():
                counters.add(Quantity(op, "read", number, MEMORY), n, sizes[number])
        for done, times in self.executed.items():
            cost = done.cost() if isinstance(done, TileOp) else None
            if cost is not None and times:
                for kind, flops in (("matrix", cost.matrix), ("vector", cost.vector)):
                    if flops.constant:
                        counters.add(Quantity(self.numbers[done], kind), times * flops.constant)

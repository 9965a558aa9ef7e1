"""The machines' register tiles fit their classes, share one panel width, and compile to loops that touch no stack."""

from __future__ import annotations

import re

import pytest

from tilewright.backends.cpu.cpu_class import CPU_CLASSES
from tilewright.backends.cpu.machines import MACHINES
from tilewright.backends.cpu.printer import print_kernel
from tilewright.backends.host.mlir import TARGETS, compile_assembly
from tilewright.ir.dtypes import F32
from tilewright.ir.loops import LoopBuilder, LoopKernel
from tilewright.passes.lower_tile_to_loops.dots import UNROLLED_K

TILES = {name: describe().rules.dot for name, describe in MACHINES.items()}


@pytest.mark.parametrize("cpu", MACHINES)
def test_tiles_fit_the_register_file_and_share_their_panel(cpu: str) -> None:
    tiles = TILES[cpu]
    assert len({vectors for _, _, vectors in tiles}) == 1
    limits = [limit for limit, _, _ in tiles]
    assert limits[:-1] == sorted(limit for limit in limits if limit is not None)
    for _, rows, vectors in tiles:
        # Accumulators, one row of the panel and one broadcast; without fma the product needs a register, too.
        assert rows * vectors + vectors + 1 + (not CPU_CLASSES[cpu].fma) <= CPU_CLASSES[cpu].registers


def microkernel(lanes: int, rows: int, vectors: int, depth: int) -> LoopKernel:
    b = LoopBuilder("microkernel")
    a, panel, c = b.buffer("a", F32), b.buffer("panel", F32), b.buffer("c", F32, writable=True)
    columns = vectors * lanes
    zeros = [b.const(0.0, F32, lanes)] * (rows * vectors)
    with b.loop(0, depth, 1, zeros, unroll=UNROLLED_K) as loop:
        at = b.mul(loop.index, columns)
        right = [b.load(panel, b.add(at, v * lanes), lanes) for v in range(vectors)]
        left = [b.broadcast(b.load(a, b.add(loop.index, r * depth)), lanes) for r in range(rows)]
        sums = iter(loop.carries)
        loop.next(*[b.fma(x, y, next(sums)) for x in left for y in right])
    for n, value in enumerate(loop.results):
        b.store(value, c, n * lanes)
    return b.finish()


@pytest.mark.parametrize(("cpu", "rows", "vectors"), [(c, r, v) for c, tiles in TILES.items() for _, r, v in tiles])
def test_inner_loops_do_not_spill(cpu: str, rows: int, vectors: int) -> None:
    kernel = microkernel(CPU_CLASSES[cpu].lanes, rows, vectors, 384)
    text = compile_assembly(print_kernel(kernel, CPU_CLASSES[cpu]).text, TARGETS[cpu])
    multiply = "mulps" if cpu == "generic" else "vfmadd"
    block = max(re.split(r"\n(?=\.L)", text), key=lambda block: block.count(multiply))
    label = block[: block.index(":")]
    loop = block[: block.rindex(label)]  # up to the jump back; what follows is the way out
    assert loop.count(multiply) >= rows * vectors * UNROLLED_K
    assert not re.search(r"\(%rsp|\[sp", loop)

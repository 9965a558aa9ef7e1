"""The register tiles fit their classes, share one panel width, and compile to loops that touch no stack."""

from __future__ import annotations

import re

import pytest

from tilewright.backends.cpu.cpu_class import CPU_CLASSES
from tilewright.backends.cpu.mlir import TARGETS, compile_assembly
from tilewright.backends.cpu.printer import print_kernel
from tilewright.backends.cpu.register_tiles import REGISTER_TILES, RegisterTile
from tilewright.ir.dtypes import F32
from tilewright.ir.loops import LoopBuilder, LoopKernel


@pytest.mark.parametrize("cpu", list(CPU_CLASSES))
def test_tiles_fit_the_register_file_and_share_their_panel(cpu: str) -> None:
    tiles = REGISTER_TILES[cpu]
    assert len({t.vectors for t in tiles}) == 1
    limits = [t.limit for t in tiles]
    assert limits[-1] is None
    assert limits[:-1] == sorted(limit for limit in limits if limit is not None)
    for t in tiles:
        # Accumulators, one row of the panel and one broadcast; without fma the product needs a register, too.
        assert t.rows * t.vectors + t.vectors + 1 + (not CPU_CLASSES[cpu].fma) <= CPU_CLASSES[cpu].registers


def microkernel(lanes: int, tile: RegisterTile, depth: int) -> LoopKernel:
    b = LoopBuilder("microkernel")
    a, panel, c = b.buffer("a", F32), b.buffer("panel", F32), b.buffer("c", F32, writable=True)
    columns = tile.vectors * lanes
    zeros = [b.const(0.0, F32, lanes)] * (tile.rows * tile.vectors)
    with b.loop(0, depth, 1, zeros, unroll=tile.unroll) as loop:
        at = b.mul(loop.index, columns)
        right = [b.load(panel, b.add(at, v * lanes), lanes) for v in range(tile.vectors)]
        left = [b.broadcast(b.load(a, b.add(loop.index, r * depth)), lanes) for r in range(tile.rows)]
        sums = iter(loop.carries)
        loop.next(*[b.fma(x, y, next(sums)) for x in left for y in right])
    for n, value in enumerate(loop.results):
        b.store(value, c, n * lanes)
    return b.finish()


@pytest.mark.parametrize(("cpu", "tile"), [(c, t) for c, ts in REGISTER_TILES.items() for t in ts], ids=str)
def test_inner_loops_do_not_spill(cpu: str, tile: RegisterTile) -> None:
    kernel = microkernel(CPU_CLASSES[cpu].lanes, tile, 384)
    text = compile_assembly(print_kernel(kernel, CPU_CLASSES[cpu]).text, TARGETS[cpu])
    multiply = {"generic": "mulps", "aarch64": "fmla"}.get(cpu, "vfmadd")
    block = max(re.split(r"\n(?=\.L)", text), key=lambda block: block.count(multiply))
    label = block[: block.index(":")]
    loop = block[: block.rindex(label)]  # up to the jump back; what follows is the way out
    assert loop.count(multiply) >= tile.rows * tile.vectors * tile.unroll
    assert not re.search(r"\(%rsp|\[sp", loop)

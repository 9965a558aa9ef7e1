"""How many warps (waves) a program has, from how large its tiles are printed."""

from __future__ import annotations

from math import prod
from typing import Final

from xdsl.ir import SSAValue

from tilewright.backends.triton.extents import PrintedExtents, is_matrix_product, live_axes, power_of_two
from tilewright.backends.triton.machines import Gpu
from tilewright.ir.tile.compute import DotOp
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.types import TileType

SUMS: Final = 64
"""Sums of a product that a thread holds: a quarter of its registers, beside operands and addresses."""
ELEMENTS: Final = 8
"""Elements of the largest tile that a thread works on where nothing is multiplied: one vector or two."""
MOST: Final = 8


def warps_for(kernel: KernelOp, gpu: Gpu) -> int:
    """A power of two from 1 to 8; `gpu.warps` at least where a matrix unit is fed, which takes that many together."""
    extents = PrintedExtents(kernel)

    def size(value: SSAValue) -> int:
        return prod(extents.shape(value, live_axes(value)))

    sums = [size(op.out) for op in kernel.walk() if isinstance(op, DotOp) and is_matrix_product(op)]
    if sums:
        return min(MOST, max(gpu.warps, power_of_two(-(-max(sums) // (SUMS * gpu.threads)))))
    tiles = [size(v) for op in kernel.walk() for v in op.results if isinstance(v.type, TileType)]
    return min(MOST, power_of_two(-(-max(tiles, default=1) // (ELEMENTS * gpu.threads))))

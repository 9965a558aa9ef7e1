"""Scratch of kernels that run on a host's threads: how much of it a thread's stack holds."""

from __future__ import annotations

from typing import Final

from tilewright.errors import CapacityError
from tilewright.ir.loops import LoopKernel

STACK_SCRATCH: Final = 768 * 1024
"""Bytes: a tenth of a thread's usual 8 MiB, and less than the 1 MiB gap that guards the main stack."""


def check_stack_scratch(kernel: LoopKernel) -> None:
    """Raises CapacityError where a kernel's scratch, laid out one after the other, does not fit the stack."""
    needed = 0
    for scratch in kernel.scratch:
        needed = -(-needed // scratch.align) * scratch.align + scratch.bytes
    if needed > STACK_SCRATCH:
        raise CapacityError(
            f"kernel {kernel.name} needs {needed} bytes of scratch a thread, more than its stack holds",
            step="lower the tile rules' query_block or columns",
        )

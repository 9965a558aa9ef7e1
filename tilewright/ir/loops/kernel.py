"""A whole loop kernel: the unit that a machine's printer turns into code."""

from __future__ import annotations

from dataclasses import dataclass, field

from tilewright.ir.loops.matrix import MatrixRegister
from tilewright.ir.loops.memory import BufferArg, Scratch
from tilewright.ir.loops.ops import Block


@dataclass(slots=True, eq=False)
class LoopKernel:
    """Code that every thread of a launch runs, each taking its share by (tid, nthreads).

    buffers: in the order of the launch's buffer array; offsets in the code are in elements of a buffer's dtype.
    dims: names of the formal dims, in the order of the launch's dims array (64-bit integers).
    scratch: per-thread memory. matrix: the shapes of the matrix registers that ops name by number.
    """

    name: str
    buffers: tuple[BufferArg, ...] = ()
    dims: tuple[str, ...] = ()
    scratch: tuple[Scratch, ...] = ()
    body: Block = field(default_factory=Block)
    matrix: tuple[MatrixRegister, ...] = ()

    def __str__(self) -> str:
        from tilewright.ir.loops.text import print_kernel

        return print_kernel(self)

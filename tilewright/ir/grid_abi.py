"""The kernel ABI of devices that run a grid of programs themselves; the CPU's is `ir/native_abi.py`.

A **kernel** is a function of pointers to its tensors in declared order (inputs, then outputs), then its formal dims in
declared order as 64-bit integers. Tensors are dense and row-major, and each begins on a multiple of `ALIGNMENT` bytes:
who launches copies an argument that does not. It is launched on a one-dimensional grid: program p
of the launch is program p of the kernel's grid, counted in the kernel's own order. It masks its own tails, and programs
neither wait for each other nor write what another one reads or writes.

What a launch must know besides is data beside the object: `Grid`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tilewright.ir.dims import Expr

ALIGNMENT: Final = 16
"""Bytes on whose multiples tensors begin: the widest load of one thread."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How a compiled kernel is launched.

    programs: how many, an expression of the formal dims; none are launched where it is 0. threads: of one program.
    shared: bytes of memory that a program's threads share.
    """

    programs: Expr
    threads: int
    shared: int

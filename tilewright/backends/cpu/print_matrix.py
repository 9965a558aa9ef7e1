"""Ops on matrix registers as the tile instructions of a CPU class that has them.

The shapes of a kernel's registers are one 64-byte block of configuration, loaded at the kernel's entry; at its exit the
registers are given up, so that whoever runs next on the core does not pay for saving them.
"""

from __future__ import annotations

from tilewright.backends.cpu.emitter import Emitter
from tilewright.backends.cpu.print_memory import element_pointer
from tilewright.errors import LoweringError
from tilewright.ir.dtypes import I8, I64, DType
from tilewright.ir.loops import LoopKernel, vec

_REGISTERS, _ROWS, _ROW_BYTES = 8, 16, 64
_CONFIGURATION = 64  # bytes: palette, then two bytes of row length from 16 on, one of rows from 48 on, a register


def configure(e: Emitter, kernel: LoopKernel) -> None:
    """Gives the kernel's registers their shapes, at its entry."""
    if not kernel.matrix:
        return
    fits = all(r.rows <= _ROWS and r.columns * r.dtype.bytes <= _ROW_BYTES for r in kernel.matrix)
    if not e.cpu.matrix or len(kernel.matrix) > _REGISTERS or not fits:
        raise LoweringError(
            f"kernel {kernel.name} uses matrix registers that the class {e.cpu.name} does not have",
            step="lower it for a machine whose rules describe the registers it has",
        )
    block = [1, *[0] * (_CONFIGURATION - 1)]
    for number, register in enumerate(kernel.matrix):
        block[16 + 2 * number] = register.columns * register.dtype.bytes
        block[48 + number] = register.rows
    count = e.constant(_CONFIGURATION, I64)
    shapes = e.constant_text(str(block), vec(I8, _CONFIGURATION))
    e.entry += [
        f"  %shapes = llvm.alloca {count} x i8 {{alignment = 64 : i64}} : (i64) -> !llvm.ptr",
        f"  llvm.store {shapes}, %shapes {{alignment = 64 : i64}} : vector<{_CONFIGURATION}xi8>, !llvm.ptr",
        '  llvm.call_intrinsic "llvm.x86.ldtilecfg"(%shapes) : (!llvm.ptr) -> ()',
    ]


def give_up(e: Emitter, kernel: LoopKernel) -> None:
    """Leaves the registers, at the kernel's exit."""
    if kernel.matrix:
        e.line('llvm.call_intrinsic "llvm.x86.tilerelease"() : () -> ()')


def zero(e: Emitter, register: int) -> None:
    """Every element 0."""
    e.line(f'llvm.call_intrinsic "llvm.x86.tilezero"({_number(e, register)}) : (i8) -> ()')


def move(e: Emitter, kind: str, register: int, dtype: DType, base: str, offset: str, stride: str) -> None:
    """Rows of a register from memory (kind "load") or to it ("store")."""
    pointer = element_pointer(e, base, dtype, offset)
    far = e.emit(f"arith.muli {stride}, {e.constant(dtype.bytes, I64)} : i64")
    name = {"load": "tileloadd64", "store": "tilestored64"}[kind]
    operands = f"{_number(e, register)}, {pointer}, {far}"
    e.line(f'llvm.call_intrinsic "llvm.x86.{name}"({operands}) : (i8, !llvm.ptr, i64) -> ()')


def dot(e: Emitter, total: int, left: int, right: int) -> None:
    """sum += left * right in pairs of bf16."""
    numbers = ", ".join(_number(e, n) for n in (total, left, right))
    e.line(f'llvm.call_intrinsic "llvm.x86.tdpbf16ps"({numbers}) : (i8, i8, i8) -> ()')


def _number(e: Emitter, register: int) -> str:
    return e.constant(register, I8)

"""What a printed kernel's statements refer to: value names, and at the entry dims, buffer pointers and scratch."""

from __future__ import annotations

from tilewright.backends.cpu.cpu_class import CpuClass
from tilewright.backends.cpu.emitter import Emitter, literal, type_text
from tilewright.errors import IRError
from tilewright.ir.dtypes import I8
from tilewright.ir.loops import (
    INDEX,
    Const,
    DimValue,
    LoopKernel,
    Memory,
    Scratch,
    ThreadCount,
    ThreadId,
    Value,
    VectorConst,
    vec,
)


class Operands:
    """Names for everything a kernel mentions; leaves are defined at the entry when first used."""

    def __init__(self, kernel: LoopKernel, cpu: CpuClass) -> None:
        self.kernel = kernel
        self.e = Emitter(cpu)
        self.names: dict[Value, str] = {}
        self.numbers: dict[Memory, int] = {buffer: number for number, buffer in enumerate(kernel.buffers)}
        self.bases: dict[Memory, str] = {}
        self._place_scratch()

    def _place_scratch(self) -> None:
        """Takes scratch from the stack, and clears what is to start as zeros."""
        for number, scratch in enumerate(self.kernel.scratch):
            count = self.e.constant(scratch.bytes, INDEX.dtype)
            text = f"llvm.alloca {count} x i8 {{alignment = {scratch.align} : i64}} : (i64) -> !llvm.ptr"
            self.bases[scratch] = self.e.at_entry(f"%s{number}", text)
        for number, scratch in enumerate(self.kernel.scratch):
            if scratch.zeroed:
                self._clear(number, scratch)

    def _clear(self, number: int, scratch: Scratch) -> None:
        step = next(size for size in (64, 32, 16, 8, 4, 2, 1) if scratch.bytes % size == 0)
        first, end, by = (self.e.constant(n, INDEX.dtype) for n in (0, scratch.bytes, step))
        zeros, base = self.e.constant(0, I8, step), self.bases[scratch]
        self.e.entry += [
            f"  scf.for %z{number} = {first} to {end} step {by} : i64 {{",
            f"    %at{number} = llvm.getelementptr {base}[%z{number}] : (!llvm.ptr, i64) -> !llvm.ptr, i8",
            f"    llvm.store {zeros}, %at{number} {{alignment = {step} : i64}} : {type_text(vec(I8, step))}, !llvm.ptr",
            "  }",
        ]

    def _buffer_pointer(self, number: int) -> str:
        slot = f"llvm.getelementptr %buffers[{number}] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr"
        pointer = self.e.at_entry(f"%slot{number}", slot)
        return self.e.at_entry(f"%b{number}", f"llvm.load {pointer} : !llvm.ptr -> !llvm.ptr")

    def base(self, place: Memory) -> str:
        """The pointer to a buffer's or scratch's first byte."""
        found = self.bases.get(place)
        if found is None:
            found = self.bases[place] = self._buffer_pointer(self.numbers[place])
        return found

    def name(self, value: Value) -> str:
        """The MLIR name of a value."""
        found = self.names.get(value)
        if found is None:
            found = self.names[value] = self._leaf(value)
        return found

    def _leaf(self, value: Value) -> str:
        match value:
            case Const(type_, number):
                return self.e.constant(number, type_.dtype, type_.lanes)
            case VectorConst(type_, numbers):
                listed = ", ".join(literal(n, type_.dtype) for n in numbers)
                return self.e.constant_text(f"[{listed}]", type_)
            case DimValue(_, name):
                number = self.kernel.dims.index(name)
                slot = f"llvm.getelementptr %dims[{number}] : (!llvm.ptr) -> !llvm.ptr, i64"
                pointer = self.e.at_entry(f"%dim{number}", slot)
                return self.e.at_entry(f"%d{number}", f"llvm.load {pointer} : !llvm.ptr -> i64")
            case ThreadId():
                return "%tid"
            case ThreadCount():
                return "%nthreads"
        raise IRError(
            f"kernel {self.kernel.name}: a {type(value).__name__} is used outside its block", step="verify the kernel"
        )

    def optional(self, value: Value | None) -> str | None:
        return None if value is None else self.name(value)

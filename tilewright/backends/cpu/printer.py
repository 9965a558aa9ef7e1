"""Loop kernels as MLIR text for a CPU class: `print_kernel`.

The text is one module with one function of the kernel ABI,

    void name(void** buffers, int64_t* dims, int64_t tid, int64_t nthreads)

in scf, arith, vector and llvm dialects, which `backends/host/mlir.py` compiles. Elementwise math is already expanded,
so nothing in it calls a library.

*Scratch* is aligned allocations on the thread's stack, up to `stack_scratch.STACK_SCRATCH` bytes in all.

*Same bits.* Everything but `Fma` is the same on every class; that one follows its docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tilewright.backends.cpu import print_arithmetic as arithmetic
from tilewright.backends.cpu import print_matrix as matrix
from tilewright.backends.cpu import print_memory as memory
from tilewright.backends.cpu.cpu_class import CpuClass
from tilewright.backends.cpu.emitter import type_text
from tilewright.backends.cpu.operands import Operands
from tilewright.backends.cpu.print_casts import cast
from tilewright.backends.stack_scratch import check_stack_scratch
from tilewright.ir.loops import (
    INDEX,
    Binary,
    Bitcast,
    Block,
    Broadcast,
    Cast,
    Compare,
    Const,
    Extract,
    Fma,
    For,
    Gather,
    If,
    Load,
    LoopKernel,
    MatrixDot,
    MatrixLoad,
    MatrixStore,
    MatrixZero,
    Prefetch,
    Reduce,
    Scatter,
    Select,
    Shuffle,
    Store,
    Unary,
)


@dataclass(frozen=True, slots=True)
class PrintedKernel:
    """A kernel's code as text. symbol: the function's name. text: an MLIR module."""

    symbol: str
    text: str


def print_kernel(kernel: LoopKernel, cpu: CpuClass) -> PrintedKernel:
    """The kernel for one CPU class; lanes wider than the class's vectors are legal and split by LLVM.

    Raises CapacityError where its scratch does not fit the stack, LoweringError where the class lacks its registers.
    """
    check_stack_scratch(kernel)
    return _KernelPrinter(kernel, cpu).run()


class _KernelPrinter(Operands):
    """Walks a kernel once. Printing a block again (an unrolled loop) gives its values new names."""

    streams = False

    def run(self) -> PrintedKernel:
        matrix.configure(self.e, self.kernel)
        self.block(self.kernel.body)
        if self.streams:
            # such stores are not in order with others: the barrier that follows must find them done
            self.e.line("llvm.fence seq_cst")
        matrix.give_up(self.e, self.kernel)
        head = f"llvm.func @{self.kernel.name}(%buffers: !llvm.ptr, %dims: !llvm.ptr, %tid: i64, %nthreads: i64) {{"
        text = "\n".join([head, *self.e.entry, *self.e.lines, "  llvm.return", "}", ""])
        return PrintedKernel(self.kernel.name, text)

    # --- structure ------------------------------------------------------------------------------------------------

    def block(self, block: Block) -> list[str]:
        """Prints the block's statements; the names of what it yields."""
        for op in block.ops:
            _PRINT[type(op)](self, op)
        return [self.name(v) for v in block.yields]

    def loop(self, op: For) -> None:
        lo, hi, step = self.name(op.lo), self.name(op.hi), self.name(op.step)
        carried = [self.name(v) for v in op.inits]
        static = _static_range(op)
        if static is not None and len(static) <= op.unroll:
            for number in static:
                carried = self.iteration(op, self.e.constant(number, INDEX.dtype), carried)
        elif op.unroll == 1:
            carried = self.counted(op, lo, hi, step, carried, 1)
        else:
            split, wide = self.split(op, static, lo, hi, step)
            carried = self.counted(op, lo, split, wide, carried, op.unroll)
            if static is None or len(static) % op.unroll:
                carried = self.counted(op, split, hi, step, carried, 1)
        self.names.update(zip(op.results, carried, strict=True))

    def split(self, op: For, static: range | None, lo: str, hi: str, step: str) -> tuple[str, str]:
        """Where the unrolled loop ends, and its step."""
        if static is not None:
            width = static.step * op.unroll
            end = static.start + len(static) // op.unroll * width
            return self.e.constant(end, INDEX.dtype), self.e.constant(width, INDEX.dtype)
        if isinstance(op.step, Const):
            wide = self.e.constant(int(op.step.value) * op.unroll, INDEX.dtype)
        else:
            wide = self.e.emit(f"arith.muli {step}, {self.e.constant(op.unroll, INDEX.dtype)} : i64")
        # Division towards zero: an empty range gives an end between hi and lo, so both loops stay empty.
        extent = self.e.emit(f"arith.subi {hi}, {lo} : i64")
        whole = self.e.emit(f"arith.divsi {extent}, {wide} : i64")
        covered = self.e.emit(f"arith.muli {whole}, {wide} : i64")
        return self.e.emit(f"arith.addi {lo}, {covered} : i64"), wide

    def counted(self, op: For, lo: str, hi: str, step: str, carried: Sequence[str], copies: int) -> list[str]:
        """One scf.for whose body is `copies` iterations; the names of its results."""
        e = self.e
        types = [type_text(v.type) for v in op.inits]
        index, results, args = e.fresh(), e.fresh(), [e.fresh() for _ in carried]
        head = f"scf.for {index} = {lo} to {hi} step {step}"
        if carried:
            given = ", ".join(f"{a} = {v}" for a, v in zip(args, carried, strict=True))
            several = f":{len(args)}" if len(args) > 1 else ""
            head = f"{results}{several} = {head} iter_args({given}) -> ({', '.join(types)})"
        e.line(f"{head} : i64 {{")
        self.indent(1)
        inner: list[str] = args
        at = index
        for n in range(copies):
            if n:
                at = e.emit(f"arith.addi {at}, {self.name(op.step)} : i64")
            inner = self.iteration(op, at, inner)
        if inner:
            e.line(f"scf.yield {', '.join(inner)} : {', '.join(types)}")
        self.indent(-1)
        e.line("}")
        return _result_names(results, len(args))

    def iteration(self, op: For, at: str, carried: Sequence[str]) -> list[str]:
        self.names.update(zip(op.body.args, [at, *carried], strict=True))
        return self.block(op.body)

    def branch(self, op: If) -> None:
        e = self.e
        types = ", ".join(type_text(v.type) for v in op.results)
        results = e.fresh()
        several = f":{len(op.results)}" if len(op.results) > 1 else ""
        condition = self.name(op.condition)
        e.line(f"{results}{several} = scf.if {condition} -> ({types}) {{" if types else f"scf.if {condition} {{")
        self.arm(op.then, types)
        if op.otherwise.ops or types:
            e.line("} else {")
            self.arm(op.otherwise, types)
        e.line("}")
        self.names.update(zip(op.results, _result_names(results, len(op.results)), strict=True))

    def arm(self, block: Block, types: str) -> None:
        self.indent(1)
        given = self.block(block)
        if given:
            self.e.line(f"scf.yield {', '.join(given)} : {types}")
        self.indent(-1)

    def indent(self, by: int) -> None:
        self.e.indent = self.e.indent[:-2] if by < 0 else self.e.indent + "  "

    # --- ops ------------------------------------------------------------------------------------------------------

    def unary(self, op: Unary) -> None:
        self.names[op] = arithmetic.unary(self.e, op.kind, op.type, self.name(op.a))

    def binary(self, op: Binary) -> None:
        a = self.name(op.a)
        if isinstance(op.b, Const) and op.type.dtype.is_integer:
            cheap = arithmetic.divide_by_constant(self.e, op.kind, op.type, a, int(op.b.value))
            if cheap is not None:
                self.names[op] = cheap
                return
        right = op.b
        if op.kind == "scale" and isinstance(right, Unary) and right.kind == "floor":
            right = right.a if arithmetic.scales_by_floor(self.e, op.type) else right
        self.names[op] = arithmetic.binary(self.e, op.kind, op.type, a, self.name(right))

    def fma(self, op: Fma) -> None:
        self.names[op] = arithmetic.fma(self.e, op.type, self.name(op.a), self.name(op.b), self.name(op.c))

    def compare(self, op: Compare) -> None:
        self.names[op] = arithmetic.compare(self.e, op.predicate, op.a.type, self.name(op.a), self.name(op.b))

    def select(self, op: Select) -> None:
        condition, lanes = self.name(op.condition), op.condition.type.lanes
        self.names[op] = arithmetic.select(self.e, condition, op.type, self.name(op.a), self.name(op.b), lanes)

    def cast(self, op: Cast) -> None:
        how = {"normal": op.normal, "flush": op.flush}
        self.names[op] = cast(self.e, op.a.type, op.type.dtype, self.name(op.a), **how)

    def bitcast(self, op: Bitcast) -> None:
        self.names[op] = arithmetic.bitcast(self.e, op.a.type, op.type, self.name(op.a))

    def broadcast(self, op: Broadcast) -> None:
        self.names[op] = arithmetic.broadcast(self.e, op.type, self.name(op.a))

    def shuffle(self, op: Shuffle) -> None:
        self.names[op] = arithmetic.shuffle(self.e, op.a.type, self.name(op.a), self.name(op.b), op.indices)

    def extract(self, op: Extract) -> None:
        self.names[op] = arithmetic.extract(self.e, op.a.type, self.name(op.a), op.lane)

    def reduce(self, op: Reduce) -> None:
        self.names[op] = arithmetic.reduce(self.e, op.kind, op.a.type, self.name(op.a))

    def load(self, op: Load) -> None:
        place, mask, fill = self.base(op.memory), self.optional(op.mask), self.optional(op.fill)
        self.names[op] = memory.load(self.e, op.type, place, self.name(op.offset), mask, fill)

    def gather(self, op: Gather) -> None:
        place, mask, fill = self.base(op.memory), self.optional(op.mask), self.optional(op.fill)
        indices, offset = self.name(op.indices), self.name(op.offset)
        self.names[op] = memory.gather(self.e, op.type, place, offset, indices, op.indices.type, mask, fill)

    def store(self, op: Store) -> None:
        place, offset = self.base(op.memory), self.name(op.offset)
        if op.streaming:
            self.streams = True
            memory.stream(self.e, op.value.type, self.name(op.value), place, offset)
            return
        memory.store(self.e, op.value.type, self.name(op.value), place, offset, self.optional(op.mask))

    def scatter(self, op: Scatter) -> None:
        place, offset, indices = self.base(op.memory), self.name(op.offset), self.name(op.indices)
        value, mask = self.name(op.value), self.optional(op.mask)
        memory.scatter(self.e, op.value.type, value, place, offset, indices, op.indices.type, mask)

    def prefetch(self, op: Prefetch) -> None:
        place, dtype = self.base(op.memory), op.memory.dtype
        memory.prefetch(self.e, place, dtype, self.name(op.offset), near=op.near)

    def matrix_zero(self, op: MatrixZero) -> None:
        matrix.zero(self.e, op.register)

    def matrix_move(self, op: MatrixLoad | MatrixStore) -> None:
        kind, place = "load" if isinstance(op, MatrixLoad) else "store", self.base(op.memory)
        matrix.move(self.e, kind, op.register, op.memory.dtype, place, self.name(op.offset), self.name(op.stride))

    def matrix_dot(self, op: MatrixDot) -> None:
        matrix.dot(self.e, op.sum, op.left, op.right)


_PRINT: Final[dict[type, Callable[[_KernelPrinter, Any], None]]] = {
    Unary: _KernelPrinter.unary,
    Binary: _KernelPrinter.binary,
    Fma: _KernelPrinter.fma,
    Compare: _KernelPrinter.compare,
    Select: _KernelPrinter.select,
    Cast: _KernelPrinter.cast,
    Bitcast: _KernelPrinter.bitcast,
    Broadcast: _KernelPrinter.broadcast,
    Shuffle: _KernelPrinter.shuffle,
    Extract: _KernelPrinter.extract,
    Reduce: _KernelPrinter.reduce,
    Load: _KernelPrinter.load,
    Gather: _KernelPrinter.gather,
    Store: _KernelPrinter.store,
    Scatter: _KernelPrinter.scatter,
    Prefetch: _KernelPrinter.prefetch,
    MatrixZero: _KernelPrinter.matrix_zero,
    MatrixLoad: _KernelPrinter.matrix_move,
    MatrixStore: _KernelPrinter.matrix_move,
    MatrixDot: _KernelPrinter.matrix_dot,
    For: _KernelPrinter.loop,
    If: _KernelPrinter.branch,
}


def _result_names(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}#{n}" for n in range(count)]


def _static_range(op: For) -> range | None:
    """The counter's values, where they are constant."""
    if isinstance(op.lo, Const) and isinstance(op.hi, Const) and isinstance(op.step, Const):
        return range(int(op.lo.value), int(op.hi.value), int(op.step.value))
    return None

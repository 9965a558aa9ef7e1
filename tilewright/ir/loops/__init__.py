"""The loop IR: what a kernel is after tiling, one step before a machine's own text.

A `LoopKernel` is flat buffers, structured loops and branches, and vectors of a fixed number of lanes. Lowering from
tile IR builds one with `LoopBuilder`; a backend's printer turns it into target text; `loops_interpreter` runs it slowly
and exactly. It is made of light dataclasses, not of a dialect, because a compile makes very many of these ops.

Reading order: `values` (types and leaves), `ops` (a docstring an op: the semantics), `builder` (how to write a kernel).

Rules that every kernel keeps, and `verify_kernel` checks:
- offsets are i64 scalars counted in elements of the memory's dtype; a type with one lane is a scalar;
- bf16 and f16 are storage dtypes: cast to f32 before computing;
- i1 buffers hold one byte an element; a loaded i1 is a mask;
- constants, dims, tid and nthreads belong to no block; every other value is used inside its block or below.
"""

from __future__ import annotations

from tilewright.ir.loops.builder import BranchScope, LoopBuilder, LoopScope
from tilewright.ir.loops.kernel import LoopKernel
from tilewright.ir.loops.matrix import MatrixDot, MatrixLoad, MatrixRegister, MatrixStore, MatrixZero
from tilewright.ir.loops.memory import BufferArg, Memory, Scratch
from tilewright.ir.loops.ops import (
    Binary,
    BinaryKind,
    Bitcast,
    Block,
    Broadcast,
    Cast,
    Compare,
    Extract,
    Fma,
    For,
    Gather,
    If,
    Load,
    Op,
    Predicate,
    Prefetch,
    Reduce,
    ReduceKind,
    Scatter,
    Select,
    Shuffle,
    Store,
    Unary,
    UnaryKind,
    operands,
)
from tilewright.ir.loops.text import print_kernel
from tilewright.ir.loops.values import (
    BOOL,
    INDEX,
    Argument,
    Const,
    DimValue,
    Result,
    ThreadCount,
    ThreadId,
    Value,
    ValueType,
    VectorConst,
    mask,
    scalar,
    vec,
)
from tilewright.ir.loops.verifier import verify_kernel

__all__ = [
    "BOOL",
    "INDEX",
    "Argument",
    "Binary",
    "BinaryKind",
    "Bitcast",
    "Block",
    "BranchScope",
    "Broadcast",
    "BufferArg",
    "Cast",
    "Compare",
    "Const",
    "DimValue",
    "Extract",
    "Fma",
    "For",
    "Gather",
    "If",
    "Load",
    "LoopBuilder",
    "LoopKernel",
    "LoopScope",
    "MatrixDot",
    "MatrixLoad",
    "MatrixRegister",
    "MatrixStore",
    "MatrixZero",
    "Memory",
    "Op",
    "Predicate",
    "Prefetch",
    "Reduce",
    "ReduceKind",
    "Result",
    "Scatter",
    "Scratch",
    "Select",
    "Shuffle",
    "Store",
    "ThreadCount",
    "ThreadId",
    "Unary",
    "UnaryKind",
    "Value",
    "ValueType",
    "VectorConst",
    "mask",
    "operands",
    "print_kernel",
    "scalar",
    "vec",
    "verify_kernel",
]

"""Runs a loop kernel slowly and exactly on NumPy arrays: the reference for printers, with bounds checks, counting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.errors import IRError
from tilewright.ir.dtypes import I64
from tilewright.ir.loops import ops
from tilewright.ir.loops.elementwise import (
    BINARY,
    COMPARE,
    UNARY,
    Lanes,
    bitcast,
    cast,
    fma,
    splat,
    storage,
)
from tilewright.ir.loops.kernel import LoopKernel
from tilewright.ir.loops.matrix import MatrixDot, MatrixLoad, MatrixOp, MatrixStore, MatrixZero
from tilewright.ir.loops.matrix_reference import flushed, multiply_add
from tilewright.ir.loops.memory import Memory
from tilewright.ir.loops.values import Const, DimValue, ThreadCount, ThreadId, Value, VectorConst


@dataclass(slots=True)
class Traffic:
    """Elements loaded from and stored to each buffer or scratch, by name, over all threads, without masked lanes."""

    loaded: Counter[str] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)


def run_kernel(
    kernel: LoopKernel,
    buffers: Sequence[np.ndarray[Any, np.dtype[Any]]],
    dims: Sequence[int] | Mapping[str, int] = (),
    *,
    nthreads: int = 1,
    fused: bool = True,
    asked: list[tuple[ops.Prefetch, int]] | None = None,
) -> Traffic:
    """Runs every thread of a launch, one after the other, writing to the writable buffers in place.

    buffers: C-contiguous arrays in the kernel's order, in the buffers' dtypes (bf16 also as uint16 bits).
    dims: sizes by name, or in the kernel's order. fused: whether `Fma` rounds once, as on machines that have it.
    asked: takes every request for memory ahead of time, with the element it names.
    Raises IRError for accesses outside a buffer, division by zero and shifts beyond the width.
    """
    if not isinstance(dims, Mapping):
        dims = dict(zip(kernel.dims, dims, strict=True))
    memory: dict[Memory, Lanes] = {}
    for arg, array in zip(kernel.buffers, buffers, strict=True):
        if not array.flags.c_contiguous or array.dtype.itemsize != arg.dtype.bytes:
            raise IRError(f"buffer {arg.name} wants contiguous {arg.dtype}, got {array.dtype}", step="copy it first")
        memory[arg] = array.reshape(-1).view(storage(arg.dtype))
    traffic = Traffic()
    for tid in range(nthreads):
        for scratch in kernel.scratch:
            # A NaN or an absurd integer everywhere: a read before the first write shows in the result.
            held = np.full(scratch.bytes, 0 if scratch.zeroed else 0xFF, np.uint8)
            memory[scratch] = held.view(storage(scratch.dtype))
        with np.errstate(all="ignore"):
            _Thread(kernel, memory, dims, tid, nthreads, fused, traffic, asked).block(kernel.body)
    return traffic


class _Thread:
    """One thread's walk through the kernel: values by identity, statements in order."""

    def __init__(
        self,
        kernel: LoopKernel,
        memory: dict[Memory, Lanes],
        dims: Mapping[str, int],
        tid: int,
        nthreads: int,
        fused: bool,
        traffic: Traffic,
        asked: list[tuple[ops.Prefetch, int]] | None,
    ) -> None:
        self.name, self.memory, self.dims, self.fused, self.traffic = kernel.name, memory, dims, fused, traffic
        self.asked = asked
        self.matrix: list[Lanes] = [np.full((r.rows, r.columns), -1).astype(storage(r.dtype)) for r in kernel.matrix]
        self.tid, self.nthreads = tid, nthreads
        self.values: dict[Value, Lanes] = {}

    def get(self, value: Value) -> Lanes:
        match value:
            case Const(type_, number):
                return splat(number, type_.dtype, type_.lanes)
            case VectorConst(type_, numbers):
                return np.concatenate([splat(n, type_.dtype, 1) for n in numbers])
            case DimValue(_, name):
                return splat(self.dims[name], I64, 1)
            case ThreadId():
                return splat(self.tid, I64, 1)
            case ThreadCount():
                return splat(self.nthreads, I64, 1)
        return self.values[value]

    def integer(self, value: Value) -> int:
        return int(self.get(value)[0])

    def block(self, block: ops.Block) -> list[Lanes]:
        for op in block.ops:
            match op:
                case ops.For():
                    self.loop(op)
                case ops.If():
                    taken = op.then if self.get(op.condition)[0] else op.otherwise
                    self.values.update(zip(op.results, self.block(taken), strict=True))
                case ops.Store():
                    self.write(op, self.integer(op.offset) + np.arange(op.value.type.lanes))
                case ops.Scatter():
                    self.write(op, self.integer(op.offset) + self.get(op.indices).astype(np.int64))
                case ops.Prefetch():
                    if self.asked is not None:
                        self.asked.append((op, self.integer(op.offset)))
                case MatrixZero() | MatrixLoad() | MatrixStore() | MatrixDot():
                    self.on_matrix(op)
                case _:
                    self.values[op] = self.value(op)
        return [self.get(v) for v in block.yields]

    def loop(self, op: ops.For) -> None:
        step = self.integer(op.step)
        if step <= 0:
            raise self.fault(f"a loop's step is {step}", "make it positive")
        carried = [self.get(v) for v in op.inits]
        for index in range(self.integer(op.lo), self.integer(op.hi), step):
            self.values[op.body.args[0]] = splat(index, I64, 1)
            self.values.update(zip(op.body.args[1:], carried, strict=True))
            carried = self.block(op.body)
        self.values.update(zip(op.results, carried, strict=True))

    def value(self, op: ops.Op) -> Lanes:
        match op:
            case ops.Unary(_, kind, a):
                return UNARY[kind](self.get(a))
            case ops.Binary():
                return self.binary(op.kind, self.get(op.a), self.get(op.b))
            case ops.Fma(_, a, b, c):
                return fma(self.get(a), self.get(b), self.get(c), fused=self.fused)
            case ops.Compare(_, predicate, a, b):
                return COMPARE[predicate](self.get(a), self.get(b))
            case ops.Select(_, condition, a, b):
                return np.where(self.get(condition), self.get(a), self.get(b))
            case ops.Cast(type_, a, _, flush):
                return cast(flushed(self.get(a)) if flush else self.get(a), a.type.dtype, type_.dtype)
            case ops.Bitcast(type_, a):
                return bitcast(self.get(a), type_.dtype)
            case ops.Broadcast(type_, a):
                return np.repeat(self.get(a), type_.lanes)
            case ops.Shuffle(_, a, b, indices):
                return np.concatenate([self.get(a), self.get(b)])[list(indices)]
            case ops.Extract(_, a, lane):
                return self.get(a)[lane : lane + 1]
            case ops.Reduce(_, kind, a):
                lanes = self.get(a)
                while len(lanes) > 1:
                    half = len(lanes) // 2
                    lanes = self.binary(kind, lanes[:half], lanes[half:])
                return lanes
            case ops.Load():
                return self.read(op, self.integer(op.offset) + np.arange(op.type.lanes))
            case ops.Gather():
                return self.read(op, self.integer(op.offset) + self.get(op.indices).astype(np.int64))
        raise self.fault(f"{type(op).__name__} is not an op of the loop IR", "verify the kernel")

    def binary(self, kind: ops.BinaryKind | ops.ReduceKind, a: Lanes, b: Lanes) -> Lanes:
        if kind in ("floordiv", "mod", "truncdiv", "truncmod") and not b.all():
            raise self.fault(f"{kind} by zero", "guard it")
        if kind in ("shl", "shr", "ushr") and not ((b >= 0) & (b < 8 * b.dtype.itemsize)).all():
            raise self.fault(f"{kind} by {b}", "shift by 0..bits-1")
        return BINARY[kind](a, b)

    def active(self, mask: Value | None, where: Lanes, memory: Memory, verb: str) -> Lanes:
        on = np.ones(len(where), bool) if mask is None else self.get(mask)
        size = len(self.memory[memory])
        outside = where[on & ((where < 0) | (where >= size))]
        if len(outside):
            raise self.fault(
                f"{verb} element {outside[0]} of {memory.name}, which has {size}", "mask the lanes outside"
            )
        return on

    def read(self, op: ops.Load | ops.Gather, where: Lanes) -> Lanes:
        on = self.active(op.mask, where, op.memory, "loads")
        fill = splat(0, op.type.dtype, op.type.lanes) if op.fill is None else self.get(op.fill)
        self.traffic.loaded[op.memory.name] += int(on.sum())
        source = self.memory[op.memory]
        return np.where(on, source[np.where(on, where, 0)] if len(source) else fill, fill)

    def write(self, op: ops.Store | ops.Scatter, where: Lanes) -> None:
        on = self.active(op.mask, where, op.memory, "stores")
        self.traffic.stored[op.memory.name] += int(on.sum())
        self.memory[op.memory][where[on]] = self.get(op.value)[on]

    def on_matrix(self, op: MatrixOp) -> None:
        if isinstance(op, MatrixZero):
            self.matrix[op.register] = np.zeros_like(self.matrix[op.register])
            return
        if isinstance(op, MatrixDot):
            right = self.matrix[op.right]
            pairs = right.reshape(len(right), -1, 2)
            self.matrix[op.sum] = multiply_add(self.matrix[op.sum], self.matrix[op.left], pairs)
            return
        held = self.matrix[op.register]
        rows, columns = held.shape
        where = (
            self.integer(op.offset) + (np.arange(rows)[:, None] * self.integer(op.stride) + np.arange(columns)).ravel()
        )
        if isinstance(op, MatrixLoad):
            self.active(None, where, op.memory, "loads")
            self.traffic.loaded[op.memory.name] += held.size
            self.matrix[op.register] = self.memory[op.memory][where].reshape(held.shape)
        else:
            self.active(None, where, op.memory, "stores")
            self.traffic.stored[op.memory.name] += held.size
            self.memory[op.memory][where] = held.ravel()

    def fault(self, text: str, step: str) -> IRError:
        return IRError(f"kernel {self.name}: {text}", step=step)

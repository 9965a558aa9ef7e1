"""Runs a loop kernel slowly and exactly on NumPy arrays: the reference for printers, with bounds checks, counting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

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
            _Thread(kernel, memory, dims, tid, nthreads, fused, traffic, asked).block(kernel.body)()
    return traffic


Read: TypeAlias = Callable[[], Lanes]


class _Thread:
    """One thread's walk through the kernel: values by identity, statements in order.

    Each op becomes a function of no arguments before it first runs, so that a loop's body is taken apart only once.
    """

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

    def leaf(self, value: Value) -> Lanes | None:
        """What a value is that no op makes."""
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
        return None

    def reads(self, value: Value) -> Read:
        return partial(self.values.__getitem__, value) if (lanes := self.leaf(value)) is None else partial(_same, lanes)

    def integer(self, value: Value) -> Callable[[], int]:
        lanes, values = self.leaf(value), self.values
        if lanes is None:
            return lambda: int(values[value][0])
        number = int(lanes[0])
        return lambda: number

    def block(self, block: ops.Block) -> Callable[[], list[Lanes]]:
        steps = [self.step(op) for op in block.ops]
        values, yields = self.values, [self.reads(v) for v in block.yields]

        def run() -> list[Lanes]:
            for result, compute in steps:
                found = compute()
                if result is not None:
                    values[result] = found
            return [read() for read in yields]

        return run

    def later(self, block: ops.Block) -> Callable[[], list[Lanes]]:
        """A block that may never run."""
        found: list[Callable[[], list[Lanes]]] = []

        def run() -> list[Lanes]:
            if not found:
                found.append(self.block(block))
            return found[0]()

        return run

    def step(self, op: ops.Op) -> tuple[Value | None, Callable[[], Any]]:
        """What an op does, and the value that it gives, if it is one."""
        match op:
            case ops.For():
                return None, self.loop(op)
            case ops.If():
                return None, self.branch(op)
            case ops.Store() | ops.Scatter():
                return None, self.write(op)
            case ops.Prefetch():
                return None, self.prefetch(op)
            case MatrixZero() | MatrixLoad() | MatrixStore() | MatrixDot():
                return None, lambda: self.on_matrix(op)
            case _:
                return op, self.value(op)

    def branch(self, op: ops.If) -> Callable[[], None]:
        condition, then, otherwise = self.reads(op.condition), self.later(op.then), self.later(op.otherwise)
        return lambda: self.values.update(zip(op.results, (then if condition()[0] else otherwise)(), strict=True))

    def prefetch(self, op: ops.Prefetch) -> Callable[[], None]:
        offset = self.integer(op.offset)

        def run() -> None:
            if self.asked is not None:
                self.asked.append((op, offset()))

        return run

    def loop(self, op: ops.For) -> Callable[[], None]:
        lo, hi, steps = self.integer(op.lo), self.integer(op.hi), self.integer(op.step)
        inits, body, values = [self.reads(v) for v in op.inits], self.later(op.body), self.values
        counter, arguments = op.body.args[0], op.body.args[1:]

        def run() -> None:
            step = steps()
            if step <= 0:
                raise self.fault(f"a loop's step is {step}", "make it positive")
            carried = [read() for read in inits]
            for index in range(lo(), hi(), step):
                values[counter] = np.full(1, index, np.int64)
                values.update(zip(arguments, carried, strict=True))
                carried = body()
            values.update(zip(op.results, carried, strict=True))

        return run

    def value(self, op: ops.Op) -> Read:
        match op:
            case ops.Unary(_, kind, a):
                one, x = UNARY[kind], self.reads(a)
                return lambda: one(x())
            case ops.Binary():
                two, x, y = self.binary(op.kind), self.reads(op.a), self.reads(op.b)
                return lambda: two(x(), y())
            case ops.Fma(_, a, b, c):
                x, y, z = self.reads(a), self.reads(b), self.reads(c)
                return lambda: fma(x(), y(), z(), fused=self.fused)
            case ops.Compare(_, predicate, a, b):
                two, x, y = COMPARE[predicate], self.reads(a), self.reads(b)
                return lambda: two(x(), y())
            case ops.Select(_, condition, a, b):
                on, x, y = self.reads(condition), self.reads(a), self.reads(b)
                return lambda: np.where(on(), x(), y())
            case ops.Cast(type_, a, _, flush):
                x, source, target = self.reads(a), a.type.dtype, type_.dtype
                if flush:
                    return lambda: cast(flushed(x()), source, target)
                return lambda: cast(x(), source, target)
            case ops.Bitcast(type_, a):
                x, target = self.reads(a), type_.dtype
                return lambda: bitcast(x(), target)
            case ops.Broadcast(type_, a):
                x, lanes = self.reads(a), type_.lanes
                return lambda: x().repeat(lanes)
            case ops.Shuffle(_, a, b, indices):
                x, y, picked = self.reads(a), self.reads(b), np.array(list(indices), np.int64)
                return lambda: np.concatenate((x(), y()))[picked]
            case ops.Extract(_, a, lane):
                x, picks = self.reads(a), slice(lane, lane + 1)
                return lambda: x()[picks]
            case ops.Reduce(_, kind, a):
                two, x = self.binary(kind), self.reads(a)
                return lambda: _halved(two, x())
            case ops.Load() | ops.Gather():
                return self.read(op)
        raise self.fault(f"{type(op).__name__} is not an op of the loop IR", "verify the kernel")

    def binary(self, kind: ops.BinaryKind | ops.ReduceKind) -> Callable[[Lanes, Lanes], Lanes]:
        plain = BINARY[kind]
        if kind in ("floordiv", "mod", "truncdiv", "truncmod"):

            def divided(a: Lanes, b: Lanes) -> Lanes:
                if not b.all():
                    raise self.fault(f"{kind} by zero", "guard it")
                return plain(a, b)

            return divided
        if kind in ("shl", "shr", "ushr"):

            def shifted(a: Lanes, b: Lanes) -> Lanes:
                if not ((b >= 0) & (b < 8 * b.dtype.itemsize)).all():
                    raise self.fault(f"{kind} by {b}", "shift by 0..bits-1")
                return plain(a, b)

            return shifted
        return plain

    def active(self, mask: Lanes | None, where: Lanes, memory: Memory, verb: str) -> Lanes:
        """Which lanes of an access count. Raises IRError where one of them lies outside."""
        on = np.ones(len(where), bool) if mask is None else mask
        size = len(self.memory[memory])
        outside = where[on & ((where < 0) | (where >= size))]
        if len(outside):
            raise self.fault(
                f"{verb} element {outside[0]} of {memory.name}, which has {size}", "mask the lanes outside"
            )
        return on

    def places(self, op: ops.Load | ops.Gather | ops.Store | ops.Scatter, lanes: int) -> Read:
        """The elements that an access names, whether or not they count."""
        offset = self.integer(op.offset)
        if isinstance(op, (ops.Load, ops.Store)):
            count = np.arange(lanes)
            return lambda: offset() + count
        indices = self.reads(op.indices)
        return lambda: offset() + indices().astype(np.int64)

    def read(self, op: ops.Load | ops.Gather) -> Read:
        kind, lanes, name, loaded = op.type.dtype, op.type.lanes, op.memory.name, self.traffic.loaded
        places, source = self.places(op, lanes), self.memory[op.memory]
        mask = None if op.mask is None else self.reads(op.mask)
        zeros = splat(0, kind, lanes)
        fills = partial(_same, zeros) if op.fill is None else self.reads(op.fill)
        if isinstance(op, ops.Load) and mask is None:
            offset = self.integer(op.offset)

            def whole() -> Lanes:
                first = offset()
                if first < 0 or first + lanes > len(source):
                    self.active(None, places(), op.memory, "loads")
                loaded[name] += lanes
                return source[first : first + lanes].copy()

            return whole

        def run() -> Lanes:
            where = places()
            on = self.active(None if mask is None else mask(), where, op.memory, "loads")
            loaded[name] += int(np.count_nonzero(on))
            fill = fills()
            return np.where(on, source[np.where(on, where, 0)] if len(source) else fill, fill)

        return run

    def write(self, op: ops.Store | ops.Scatter) -> Callable[[], None]:
        lanes, name, stored = op.value.type.lanes, op.memory.name, self.traffic.stored
        places, target, value = self.places(op, lanes), self.memory[op.memory], self.reads(op.value)
        mask = None if op.mask is None else self.reads(op.mask)

        def run() -> None:
            where = places()
            on = self.active(None if mask is None else mask(), where, op.memory, "stores")
            stored[name] += int(np.count_nonzero(on))
            target[where[on]] = value()[on]

        return run

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
            self.integer(op.offset)()
            + (np.arange(rows)[:, None] * self.integer(op.stride)() + np.arange(columns)).ravel()
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


def _same(lanes: Lanes) -> Lanes:
    return lanes


def _halved(combine: Callable[[Lanes, Lanes], Lanes], lanes: Lanes) -> Lanes:
    """All lanes as one: the upper half with the lower, again and again."""
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = combine(lanes[:half], lanes[half:])
    return lanes

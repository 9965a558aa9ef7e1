"""What the machine gives at this moment, on all threads: multiply-adds in registers and a plain read of memory.

The kernels come through our own backend from loop IR, so they are measured on the same threads, by the same driver,
with the same instructions that the compiler's kernels have.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tilewright.ir.backend import resolve_target
from tilewright.ir.dtypes import BF16, F32
from tilewright.ir.loops import LoopBuilder, LoopKernel, MatrixRegister, Value
from tilewright.ir.machine import Machine, MatrixUnit
from tilewright.runtime import native
from tilewright.runtime.step_plan import Step, StepPlan
from tilewright.runtime.threads import thread_pool

# Enough independent sums to hide a multiply-add's latency on two ports; they and two operands fit any register file.
_SUMS = 12
_BLOCK = 4  # registers of sums on a matrix unit
READ_BYTES = 512 << 20
_TURNS = 1_000_000
_TRIES = 5


def multiply_adds(machine: Machine) -> LoopKernel:
    """buffers: x (two vectors), out (a vector a thread); dims: turns. Each thread does them all."""
    lanes = machine.rules.lanes
    b = LoopBuilder("multiply_adds")
    x, out = b.buffer("x", F32), b.buffer("out", F32, writable=True)
    left, right = b.load(x, 0, lanes), b.load(x, lanes, lanes)
    _sums(b, lanes, lambda total: b.fma(left, right, total), out)
    return b.finish()


def matrix_products(machine: Machine, unit: MatrixUnit) -> LoopKernel:
    """The same with products of registers of zeros on the machine's matrix unit: two rows of sums by two columns."""
    b = LoopBuilder("matrix_products")
    b.buffer("x", F32)
    out = b.buffer("out", F32, writable=True)
    sums, left = MatrixRegister(F32, unit.rows, unit.columns), MatrixRegister(BF16, unit.rows, unit.depth)
    right = MatrixRegister(BF16, unit.depth // 2, 2 * unit.columns)
    b.matrix = (*[sums] * _BLOCK, left, left, right, right)
    for register in range(len(b.matrix)):
        b.matrix_zero(register)
    with b.loop(0, b.dim("turns"), 1):
        for number in range(_BLOCK):
            b.matrix_dot(number, _BLOCK + number // 2, _BLOCK + 2 + number % 2)
    kept = b.scratch("kept", F32, unit.rows * unit.columns)
    b.matrix_store(0, kept, 0, unit.columns)
    b.store(b.load(kept, 0, machine.rules.lanes), out, b.mul(b.tid, machine.rules.lanes))
    return b.finish()


def _sums(b: LoopBuilder, lanes: int, step: Callable[[Value], Value], out: object) -> None:
    with b.loop(0, b.dim("turns"), 1, [b.const(float(n), F32, lanes) for n in range(_SUMS)]) as loop:
        loop.next(*[step(total) for total in loop.carries])
    whole = loop.results[0]
    for total in loop.results[1:]:
        whole = b.add(whole, total)
    b.store(whole, out, b.mul(b.tid, lanes))  # type: ignore[arg-type]  # a buffer of the builder's


def read(machine: Machine) -> LoopKernel:
    """buffers: x, out (a vector a thread); dims: blocks of four vectors. Each thread adds up its part of x."""
    lanes = machine.rules.lanes
    b = LoopBuilder("read")
    x, out = b.buffer("x", F32), b.buffer("out", F32, writable=True)
    blocks = b.dim("blocks")
    first = b.floordiv(b.mul(blocks, b.tid), b.nthreads)
    last = b.floordiv(b.mul(blocks, b.add(b.tid, 1)), b.nthreads)
    with b.loop(first, last, 1, [b.const(0.0, F32, lanes)] * 4) as loop:
        at = b.mul(loop.index, 4 * lanes)
        loop.next(*[b.add(total, b.load(x, b.add(at, n * lanes), lanes)) for n, total in enumerate(loop.carries)])
    b.store(b.add(b.add(*loop.results[:2]), b.add(*loop.results[2:])), out, b.mul(b.tid, lanes))
    return b.finish()


class Ceilings:
    """The compiled kernels and their memory; calling it measures once and gives rates a second."""

    def __init__(self) -> None:
        backend, machine = resolve_target("cpu")
        kernels = {"f32": multiply_adds(machine), "read": read(machine)}
        unit = machine.rules.matrix
        if unit is not None:
            kernels["bf16"] = matrix_products(machine, unit)
        built = {name: future.result() for name, future in backend.build(kernels.items(), machine).items()}
        self._library = native.load([b.object for b in built.values()], [b.symbol for b in built.values()])
        self._pool = thread_pool(lambda: backend.runtime_objects(machine)["driver"])
        lanes = machine.rules.lanes
        self._small = np.zeros(4 * lanes, np.float32)
        self._large = np.ones(READ_BYTES // 4, np.float32)
        self._out = np.zeros(1024 * lanes, np.float32)
        self._work: dict[str, tuple[StepPlan, np.ndarray, float]] = {}
        with self._pool.team() as team:
            self.threads = team.threads
        for name, b in built.items():
            memory = self._large if name == "read" else self._small
            dim = memory.size // (4 * lanes) if name == "read" else _TURNS
            flops = _TURNS * _SUMS * lanes * self.threads * 2
            if name == "bf16" and unit is not None:
                flops = _TURNS * _BLOCK * unit.rows * unit.columns * unit.depth * self.threads * 2
            plan = StepPlan([Step(self._library[b.symbol], [(0, 0), (1, 0)], [dim])])
            bases = np.array([memory.ctypes.data, self._out.ctypes.data], np.int64)
            self._work[name] = plan, bases, float(memory.nbytes if name == "read" else flops)
        self.machine = machine.name
        self()

    def __call__(self) -> dict[str, float]:
        """FLOP/s by dtype, and bytes a second of "read": the best of some tries each, as neighbours only take away."""
        return {
            name: work / min(self._seconds(name) for _ in range(_TRIES)) for name, (_, _, work) in self._work.items()
        }

    def _seconds(self, name: str) -> float:
        plan, bases, _ = self._work[name]
        with self._pool.team() as team:
            begin = time.perf_counter()
            team.run(plan.address, int(bases.ctypes.data))
            return time.perf_counter() - begin

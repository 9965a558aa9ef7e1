"""Tiny kernels as MLIR text, for tests of what compiles, loads and runs native code."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from tilewright.backends.host.driver import driver_text
from tilewright.backends.host.mlir import TARGETS, compile_object
from tilewright.runtime import native
from tilewright.runtime.step_plan import Step, StepPlan
from tilewright.runtime.threads import Driver, ThreadPool

GENERIC = TARGETS["generic"]

# buffers: in, out, int64 [n]; dims: n, pauses, turn.
# out[i] = in[n - 1 - i] + 1, each thread its part of out. The thread
# whose turn it is dawdles first. What a thread reads, mostly another one has written in the step before.
RELAY = """
llvm.func @relay(%buffers: !llvm.ptr, %dims: !llvm.ptr, %tid: i64, %threads: i64) {
  %zero = arith.constant 0 : i64
  %one = arith.constant 1 : i64
  %in = llvm.load %buffers : !llvm.ptr -> !llvm.ptr
  %out_at = llvm.getelementptr %buffers[1] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr
  %out = llvm.load %out_at : !llvm.ptr -> !llvm.ptr
  %n = llvm.load %dims : !llvm.ptr -> i64
  %pauses_at = llvm.getelementptr %dims[1] : (!llvm.ptr) -> !llvm.ptr, i64
  %pauses = llvm.load %pauses_at : !llvm.ptr -> i64
  %turn_at = llvm.getelementptr %dims[2] : (!llvm.ptr) -> !llvm.ptr, i64
  %turn = llvm.load %turn_at : !llvm.ptr -> i64
  %slow = arith.remsi %turn, %threads : i64
  %mine = arith.cmpi eq, %slow, %tid : i64
  scf.if %mine {
    scf.for %i = %zero to %pauses step %one : i64 {
      llvm.call_intrinsic "llvm.x86.sse2.pause"() : () -> ()
    }
  }
  %a = arith.muli %n, %tid : i64
  %lo = arith.divsi %a, %threads : i64
  %b = arith.addi %a, %n : i64
  %hi = arith.divsi %b, %threads : i64
  %last = arith.subi %n, %one : i64
  scf.for %i = %lo to %hi step %one : i64 {
    %j = arith.subi %last, %i : i64
    %p = llvm.getelementptr %in[%j] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    %x = llvm.load %p : !llvm.ptr -> i64
    %y = arith.addi %x, %one : i64
    %q = llvm.getelementptr %out[%i] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    llvm.store %y, %q : i64, !llvm.ptr
  }
  llvm.return
}
"""

# buffers: out, int64 [threads, 4]; dims: two. out[tid] = tid + 1, threads, dims[0], dims[1].
RECORD = """
llvm.func @record(%buffers: !llvm.ptr, %dims: !llvm.ptr, %tid: i64, %threads: i64) {
  %one = arith.constant 1 : i64
  %four = arith.constant 4 : i64
  %out = llvm.load %buffers : !llvm.ptr -> !llvm.ptr
  %row = arith.muli %tid, %four : i64
  %p0 = llvm.getelementptr %out[%row] : (!llvm.ptr, i64) -> !llvm.ptr, i64
  %who = arith.addi %tid, %one : i64
  llvm.store %who, %p0 : i64, !llvm.ptr
  %p1 = llvm.getelementptr %p0[1] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %threads, %p1 : i64, !llvm.ptr
  %d0 = llvm.load %dims : !llvm.ptr -> i64
  %p2 = llvm.getelementptr %p0[2] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %d0, %p2 : i64, !llvm.ptr
  %d1_at = llvm.getelementptr %dims[1] : (!llvm.ptr) -> !llvm.ptr, i64
  %d1 = llvm.load %d1_at : !llvm.ptr -> i64
  %p3 = llvm.getelementptr %p0[3] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %d1, %p3 : i64, !llvm.ptr
  llvm.return
}
"""


@cache
def driver() -> Driver:
    return Driver(compile_object(driver_text(GENERIC), GENERIC))


@cache
def library() -> native.NativeLibrary:
    texts = {"relay": RELAY, "record": RECORD}
    return native.load([compile_object(text, GENERIC) for text in texts.values()], list(texts))


def relay_plan(n: int, steps: int, *, pauses: int = 0, slow: int | None = None, barriers: bool = True) -> StepPlan:
    """`steps` relays to and fro between bases 0 and 1; thread `slow` dawdles in each, or (None) all in turn."""
    kernel = library()["relay"]
    there, back = [(0, 0), (1, 0)], [(1, 0), (0, 0)]
    return StepPlan(
        [Step(kernel, (there, back)[s % 2], [n, pauses, s if slow is None else slow], barriers) for s in range(steps)]
    )


class Relay:
    """Buffers for a relay plan and what it must leave in them."""

    def __init__(self, n: int) -> None:
        rng = np.random.default_rng()
        self.start = rng.integers(0, 1 << 40, n)
        self.buffers = [self.start.copy(), np.zeros(n, np.int64)]
        self.bases = np.array([buffer.ctypes.data for buffer in self.buffers], np.int64)

    def run(self, pool: ThreadPool, plan: StepPlan, threads: int | None = None) -> NDArray[np.int64]:
        """One run on a team, from the start values; returns what the last step wrote."""
        self.buffers[0][:] = self.start
        with pool.team(threads) as team:
            team.run(plan.address, self.bases.ctypes.data)
        return self.buffers[plan.nsteps % 2]

    def expected(self, steps: int) -> NDArray[np.int64]:
        return (self.start[::-1] if steps % 2 else self.start) + steps

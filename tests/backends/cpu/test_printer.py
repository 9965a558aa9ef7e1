"""Loops, branches and scratch, printed for each class this machine runs, do what the interpreter does."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cpu.native_kernel import NativeKernel
from tests.backends.cpu.op_cases import DISTINCT, every_printer
from tilewright.backends.clike import CLike
from tilewright.backends.cpu.cpu_class import CPU_CLASSES, GENERIC
from tilewright.backends.cpu.printer import print_kernel
from tilewright.backends.stack_scratch import STACK_SCRATCH
from tilewright.errors import CapacityError
from tilewright.ir.dtypes import F32, F64, I8, I64, DType
from tilewright.ir.loops import LoopBuilder
from tilewright.ir.loops.elementwise import storage
from tilewright.ir.loops_interpreter import run_kernel


@every_printer
@pytest.mark.parametrize("unroll", [1, 2, 3, 4])
def test_loops_carry_unroll_and_nest(cpu: str, unroll: int) -> None:
    b = LoopBuilder("loops")
    out = b.buffer("out", I64, writable=True)
    lo, hi, step = b.dim("lo"), b.dim("hi"), b.dim("step")
    with b.loop(lo, hi, step, [b.index(1), b.index(7)], unroll=unroll) as outer:
        first, second = outer.carries
        with b.loop(0, b.mod(outer.index, 5), 1, [first], unroll=unroll) as inner:
            inner.next(b.add(b.mul(inner.carries[0], 3), inner.index))
        outer.next(b.add(inner.results[0], second), b.xor(first, outer.index))
    with b.loop(3, 17, 2, [b.index(0)], unroll=unroll) as static:
        static.next(b.add(b.mul(static.carries[0], 2), static.index))
    with b.loop(9, 9, 1, [b.index(5)], unroll=unroll) as never:
        never.next(b.index(0))
    for n, value in enumerate((*outer.results, *static.results, *never.results)):
        b.store(value, out, n)
    kernel = b.finish()
    native = NativeKernel(kernel, cpu)
    for dims in ((0, 0, 1), (0, 1, 1), (2, 25, 3), (5, -20, 1), (-4, 11, 2), (0, 12, 1), (1, 8, 100)):
        got, wanted = np.zeros(4, np.int64), np.zeros(4, np.int64)
        native([got], dims)
        run_kernel(kernel, [wanted], dims)
        np.testing.assert_array_equal(got, wanted)
        assert wanted[3] == 5


@every_printer
def test_branches_give_values_and_effects(cpu: str) -> None:
    b = LoopBuilder("branches")
    out = b.buffer("out", F32, writable=True)
    n = b.dim("n")
    with b.loop(0, n) as loop:
        odd = b.compare("eq", b.mod(loop.index, 2), 1)
        choice = b.branch(odd)
        with choice.then():
            choice.give(b.const(1.5, F32), b.add(loop.index, 10))
        with choice.otherwise():
            choice.give(b.cast(loop.index, F32), b.index(-3))
        value, whole = choice.results
        b.store(b.add(value, b.cast(whole, F32)), out, loop.index)
        with b.when(b.compare("gt", loop.index, 4)):
            b.store(b.const(-1, F32), out, b.add(loop.index, 20))
    kernel = b.finish()
    got = np.zeros(40, np.float32)
    NativeKernel(kernel, cpu)([got], [9])
    right = [i % 2 * 1.5 + i % 2 * (i + 10) + (1 - i % 2) * (i - 3) for i in range(9)]
    np.testing.assert_array_equal(got[:9], np.float32(right))
    np.testing.assert_array_equal(got[20:29], np.float32([0] * 5 + [-1] * 4))


@pytest.mark.parametrize("elements", [100, 131_000])  # the second takes nearly all there is
@every_printer
def test_scratch_is_a_threads_own_on_the_stack(cpu: str, elements: int) -> None:
    b = LoopBuilder("scratch")
    out = b.buffer("out", F32, writable=True)
    small, large = b.scratch("small", F64, 3), b.scratch("large", F32, elements, align=128 if elements == 100 else 64)
    step = elements // 50
    with b.loop(0, elements, step) as loop:
        b.store(b.cast(b.add(loop.index, b.mul(b.tid, 1000)), F32), large, loop.index)
    b.store(b.const(2.5, F64), small, 2)
    with b.loop(0, elements, step) as loop:
        value = b.mul(b.load(large, b.sub(elements - step, loop.index)), b.cast(b.load(small, 2), F32))
        b.store(value, out, b.add(loop.index, b.mul(b.tid, elements)))
    kernel = b.finish()
    native = NativeKernel(kernel, cpu)
    got = np.zeros(3 * elements, np.float32)
    native([got], nthreads=3)
    wanted = np.zeros_like(got)
    run_kernel(kernel, [wanted], nthreads=3)
    np.testing.assert_array_equal(got, wanted)


def test_scratch_beyond_the_stack_is_a_coded_error() -> None:
    b = LoopBuilder("large")
    b.store(b.const(1, F32), b.scratch("large", F32, STACK_SCRATCH // 4 + 1), 0)
    kernel = b.finish()
    refused = f"kernel large needs {STACK_SCRATCH + 4} bytes of scratch a thread"
    with pytest.raises(CapacityError, match=refused):
        print_kernel(kernel, GENERIC)
    with pytest.raises(CapacityError, match=refused):
        CLike(kernel).source()


@pytest.mark.parametrize(("dtype", "elements"), [(F64, 3), (F32, 100), (I8, 37), (F32, 100000)])
@pytest.mark.parametrize("cpu", DISTINCT)
def test_zeroed_scratch_starts_as_zeros_in_every_call(cpu: str, dtype: DType, elements: int) -> None:
    b = LoopBuilder("zeroed")
    out = b.buffer("out", dtype, writable=True)
    held = b.scratch("held", dtype, elements)
    held.zeroed = True
    with b.loop(0, elements) as loop:
        before = b.load(held, loop.index)
        b.store(b.add(before, b.const(1, dtype)), held, loop.index)
        b.store(b.load(held, loop.index), out, loop.index)
    native = NativeKernel(b.finish(), cpu)
    for _ in range(2):
        got = np.zeros(elements, storage(dtype))
        native([got])
        np.testing.assert_array_equal(got, np.ones_like(got))


def test_a_thousand_ops_print_into_text_that_names_no_library() -> None:
    b = LoopBuilder("long")
    x, y = b.buffer("x", F32), b.buffer("y", F32, writable=True)
    value = b.load(x, 0, 16)
    for n in range(1000):
        value = b.fma(value, float(n), b.load(x, n, 16)) if n % 3 else b.minimum(value, b.floor(value))
    b.store(value, y, 0)
    kernel = b.finish()
    for cpu in CPU_CLASSES.values():
        text = print_kernel(kernel, cpu).text
        assert text == print_kernel(kernel, cpu).text
        assert "llvm.call " not in text

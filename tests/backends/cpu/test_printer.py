"""Every op of the loop IR, printed and compiled for each class this machine runs, does what the interpreter does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from tests.backends.cpu.native_kernel import NativeKernel, host_classes
from tilewright.backends.cpu.cpu_class import CPU_CLASSES
from tilewright.backends.cpu.printer import print_kernel
from tilewright.ir.dtypes import BF16, F16, F32, F64, I1, I8, I16, I32, I64, U8, DType
from tilewright.ir.loops import LoopBuilder, Value
from tilewright.ir.loops.elementwise import storage
from tilewright.ir.loops_interpreter import run_kernel

CLASSES = host_classes()
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    -2.5,
    np.inf,
    -np.inf,
    np.nan,
    1e-45,
    -3e-39,
    3.4e38,
    8388607.5,
    1e10,
    -3e9,
]
INTEGERS = (I64, I32, I16, I8, U8)
ALL = (F64, F32, F16, BF16, *INTEGERS, I1)


def numbers(rng: np.random.Generator, dtype: DType, count: int) -> np.ndarray:
    """Values of all magnitudes, with the special ones at random places."""
    if dtype is I1:
        return rng.integers(0, 2, count).astype(bool)
    if not dtype.is_float:
        info = np.iinfo(storage(dtype))
        wide = rng.integers(info.min, info.max, count, dtype=storage(dtype), endpoint=True)
        return np.where(rng.random(count) < 0.5, wide, rng.integers(0, 100, count).astype(storage(dtype)))
    spread = rng.standard_normal(count) * 10.0 ** rng.integers(-4, 5, count)
    special = rng.choice(SPECIAL, count)
    with np.errstate(over="ignore"):
        values = np.where(rng.random(count) < 0.3, special, spread).astype(np.float64 if dtype is F64 else np.float32)
        if dtype is BF16:
            return (values.view(np.uint32) >> 16).astype(np.uint16)
        return values.astype(storage(dtype))


def same(got: np.ndarray, wanted: np.ndarray, dtype: DType) -> None:
    """Equal bits, any NaN being as good as another but for bf16's."""
    if dtype.is_float and dtype is not BF16:
        nan = np.isnan(wanted)
        np.testing.assert_array_equal(np.isnan(got), nan)
        bits = f"u{wanted.dtype.itemsize}"
        got, wanted = np.where(nan, 0, got).view(bits), np.where(nan, 0, wanted).view(bits)
    np.testing.assert_array_equal(got, wanted)


@dataclass
class Case:
    """An op on operands of given dtypes; `build` makes the result from the loaded operands."""

    name: str
    operands: tuple[DType, ...]
    build: Callable[..., Value]
    prepare: Callable[[list[np.ndarray]], list[np.ndarray]] = lambda arrays: arrays


def run_cases(cases: Sequence[Case], lanes: int, cpu: str, rng: np.random.Generator, rounds: int = 23) -> None:
    """All cases in one kernel over `rounds` vectors; native and interpreted results compared bit for bit."""
    b = LoopBuilder("cases")
    inputs, outputs = [], []
    arrays: list[np.ndarray] = []
    for n, case in enumerate(cases):
        made = case.prepare([numbers(rng, d, rounds * lanes) for d in case.operands])
        inputs.append([b.buffer(f"i{n}_{k}", d) for k, d in enumerate(case.operands)])
        arrays += made
    results: list[DType] = []
    with b.loop(0, rounds) as loop:
        at = b.mul(loop.index, lanes)
        for n, case in enumerate(cases):
            value = case.build(b, *[b.load(m, at, lanes) for m in inputs[n]])
            outputs.append(b.buffer(f"o{n}", value.type.dtype, writable=True))
            results.append(value.type.dtype)
            b.store(value, outputs[n], b.mul(loop.index, value.type.lanes))
    kernel = b.finish()
    room = 64 * lanes * rounds
    native = [np.zeros(room, storage(d)) for d in results]
    wanted = [np.zeros(room, storage(d)) for d in results]
    NativeKernel(kernel, cpu)([*arrays, *native])
    run_kernel(kernel, [*arrays, *wanted], fused=CPU_CLASSES[cpu].fma)
    for case, got, right, dtype in zip(cases, native, wanted, results, strict=True):
        try:
            same(got, right, dtype)
        except AssertionError as error:
            raise AssertionError(f"{case.name} on {lanes} lanes, {cpu}: {error}") from None


grid = pytest.mark.parametrize(("cpu", "lanes"), [(c, n) for c in CLASSES for n in (1, 4, 8, 16)])


@grid
def test_float_arithmetic_has_the_interpreters_bits(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    cases = []
    for d in (F32, F64):
        for kind in ("add", "sub", "mul", "div", "min", "max", "minimum", "maximum"):
            cases.append(Case(f"{kind} {d}", (d, d), lambda b, x, y, k=kind: b.binary(k, x, y)))
        for kind in ("neg", "abs", "sqrt", "floor", "ceil", "trunc", "round"):
            cases.append(Case(f"{kind} {d}", (d,), lambda b, x, k=kind: b.unary(k, x)))
        cases.append(Case(f"fma {d}", (d, d, d), lambda b, x, y, z: b.fma(x, y, z)))
        cases.append(Case(f"near fma {d}", (d, d), lambda b, x, y: b.fma(x, y, b.neg(b.mul(x, y)))))
        for predicate in ("eq", "ne", "lt", "le", "gt", "ge"):
            cases.append(Case(f"{predicate} {d}", (d, d), lambda b, x, y, p=predicate: b.compare(p, x, y)))
        cases.append(Case(f"clamp {d}", (d,), lambda b, x: b.clamp(x, -2.0, 3.5)))
    run_cases(cases, lanes, cpu, rng)


def _divisible(arrays: list[np.ndarray]) -> list[np.ndarray]:
    a, b = arrays
    least = np.iinfo(a.dtype).min
    b = np.where((b == 0) | ((b == -1) & (a == least)), 7, b).astype(b.dtype)
    return [a, b]


def _shifts(arrays: list[np.ndarray]) -> list[np.ndarray]:
    a, b = arrays
    return [a, (b.astype(np.int64) % (8 * b.dtype.itemsize)).astype(b.dtype)]


@grid
def test_integer_arithmetic_has_the_interpreters_bits(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    cases = []
    for d in INTEGERS:
        for kind in ("add", "sub", "mul", "min", "max", "and", "or", "xor"):
            cases.append(Case(f"{kind} {d}", (d, d), lambda b, x, y, k=kind: b.binary(k, x, y)))
        for kind in ("floordiv", "mod", "truncdiv", "truncmod"):
            cases.append(Case(f"{kind} {d}", (d, d), lambda b, x, y, k=kind: b.binary(k, x, y), _divisible))
        for kind in ("shl", "shr", "ushr"):
            cases.append(Case(f"{kind} {d}", (d, d), lambda b, x, y, k=kind: b.binary(k, x, y), _shifts))
        for kind in ("neg", "abs", "not"):
            cases.append(Case(f"{kind} {d}", (d,), lambda b, x, k=kind: b.unary(k, x)))
        for divisor in (1, 2, 3, 16, 100):
            for kind in ("floordiv", "mod"):
                cases.append(Case(f"{kind} {d} by {divisor}", (d,), lambda b, x, k=kind, n=divisor: b.binary(k, x, n)))
        for predicate in ("eq", "ne", "lt", "le", "gt", "ge"):
            cases.append(Case(f"{predicate} {d}", (d, d), lambda b, x, y, p=predicate: b.compare(p, x, y)))
    for kind in ("and", "or", "xor"):
        cases.append(Case(f"{kind} masks", (I1, I1), lambda b, x, y, k=kind: b.binary(k, x, y)))
    cases.append(Case("not mask", (I1,), lambda b, x: b.not_(x)))
    cases.append(Case("eq masks", (I1, I1), lambda b, x, y: b.compare("eq", x, y)))
    run_cases(cases, lanes, cpu, rng, rounds=11)


@grid
def test_every_cast_has_the_interpreters_bits(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    cases = [Case(f"{a} to {d}", (a,), lambda b, x, d=d: b.cast(x, d)) for a in ALL for d in ALL if a is not d]
    run_cases(cases, lanes, cpu, rng)


@pytest.mark.parametrize("cpu", CLASSES)
def test_every_half_and_bfloat_pattern_survives_widening_and_narrowing(cpu: str) -> None:
    b = LoopBuilder("patterns")
    halves, brains = b.buffer("halves", F16), b.buffer("brains", BF16)
    out16, outb = b.buffer("out16", F16, writable=True), b.buffer("outb", BF16, writable=True)
    with b.loop(0, 65536, 16) as loop:
        b.store(b.cast(b.cast(b.load(halves, loop.index, 16), F32), F16), out16, loop.index)
        b.store(b.cast(b.cast(b.load(brains, loop.index, 16), F32), BF16), outb, loop.index)
    every = np.arange(65536).astype(np.uint16)
    got16, gotb = np.zeros_like(every), np.zeros_like(every)
    NativeKernel(b.finish(), cpu)([every, every, got16, gotb])
    same(got16.view(np.float16), every.view(np.float16), F16)
    nan = (every & 0x7FFF) > 0x7F80
    np.testing.assert_array_equal(gotb, np.where(nan, 0x7FC0, every))


@grid
def test_moves_between_lanes_have_the_interpreters_bits(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    mixed = [int(i) for i in rng.integers(0, 2 * lanes, lanes)]
    longer = [int(i) for i in rng.integers(0, 2 * lanes, 2 * lanes)]
    last = lanes - 1
    cases = []
    for d in ALL:
        cases.append(Case(f"select {d}", (I1, d, d), lambda b, m, x, y: b.select(m, x, y)))
        cases.append(Case(f"shuffle {d}", (d, d), lambda b, x, y: b.shuffle(x, mixed, y)))
        cases.append(Case(f"widening shuffle {d}", (d, d), lambda b, x, y: b.shuffle(x, longer, y)))
        cases.append(Case(f"one-lane shuffle {d}", (d, d), lambda b, x, y: b.shuffle(x, [2 * lanes - 1], y)))
        cases.append(Case(f"extract {d}", (d,), lambda b, x: b.extract(x, last)))
        cases.append(Case(f"broadcast {d}", (d,), lambda b, x: b.broadcast(b.extract(x, 0), 2 * lanes)))
        one = lambda b, m, x, y: b.select(b.extract(m, last), x, y)  # noqa: E731
        cases.append(Case(f"select all {d}", (I1, d, d), one))
    for d in (F32, F64, I32, I64):
        for kind in ("add", "mul", "min", "max"):
            cases.append(Case(f"reduce {kind} {d}", (d,), lambda b, x, k=kind: b.reduce(k, x)))
    for kind in ("minimum", "maximum"):
        cases.append(Case(f"reduce {kind}", (F32,), lambda b, x, k=kind: b.reduce(k, x)))
    for kind in ("and", "or"):
        cases.append(Case(f"reduce {kind} mask", (I1,), lambda b, x, k=kind: b.reduce(k, x)))
    for a, d in ((F32, I32), (I32, F32), (F64, I32), (I64, F64), (BF16, I16), (I32, I8), (F32, BF16)):
        cases.append(Case(f"bitcast {a} to {d}", (a,), lambda b, x, d=d: b.bitcast(x, d)))
    cases.append(Case("iota", (I32,), lambda b, x: b.add(x, b.iota(lanes))))
    run_cases(cases, lanes, cpu, rng, rounds=7)


@pytest.mark.parametrize("cpu", CLASSES)
@pytest.mark.parametrize("lanes", [1, 4, 8, 16])
def test_dot2_rounds_twice_in_the_documented_order(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    b = LoopBuilder("dot2")
    acc, x, y = b.buffer("acc", F32), b.buffer("x", BF16), b.buffer("y", BF16)
    out = b.buffer("out", F32, writable=True)
    rounds = 200
    with b.loop(0, rounds) as loop:
        wide = b.mul(loop.index, 2 * lanes)
        at = b.mul(loop.index, lanes)
        b.store(b.dot2_bf16(b.load(acc, at, lanes), b.load(x, wide, 2 * lanes), b.load(y, wide, 2 * lanes)), out, at)
    kernel = b.finish()
    count = rounds * lanes
    # Spread over 2**8, so that the sums round; no subnormals, which native units may flush.
    arrays = [rng.standard_normal(count).astype(np.float32)]
    for _ in range(2):
        values = (rng.standard_normal(2 * count) * 2.0 ** rng.integers(-4, 5, 2 * count)).astype(np.float32)
        arrays.append((values.view(np.uint32) >> 16).astype(np.uint16))
    got, wanted = np.zeros(count, np.float32), np.zeros(count, np.float32)
    NativeKernel(kernel, cpu)([*arrays, got])
    run_kernel(kernel, [*arrays, wanted])
    same(got, wanted, F32)
    x64, y64 = ((a.astype(np.uint32) << 16).view(np.float32).astype(np.float64).reshape(-1, 2) for a in arrays[1:])
    exact = arrays[0] + (x64 * y64).sum(1)
    bound = 2.0**-23 * (np.abs(arrays[0]) + np.abs(x64 * y64).sum(1))
    assert (np.abs(got - exact) <= bound).all()


@grid
def test_masked_accesses_touch_only_their_lanes(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    """Each vector's tail mask, strided and gathered accesses, on every dtype; the rest of the output stays."""
    for dtype in ALL:
        b = LoopBuilder("masked")
        source, where = b.buffer("source", dtype), b.buffer("where", I32)
        out = b.buffer("out", dtype, writable=True)
        n, stride = b.dim("n"), b.dim("stride")
        with b.loop(0, n, lanes) as loop:
            tail = b.tail_mask(b.sub(n, loop.index), lanes)
            plain = b.load(source, loop.index, lanes, mask=tail)
            b.store(plain, out, loop.index, mask=tail)
            filled = b.load(source, loop.index, lanes, mask=tail, fill=b.load(source, 0))
            b.store(filled, out, b.add(loop.index, 200))
            picked = b.gather(source, 0, b.load(where, loop.index, lanes, mask=tail), mask=tail)
            b.scatter(picked, out, 400, b.load(where, loop.index, lanes, mask=tail), mask=tail)
            strided = b.load(source, loop.index, lanes, stride=stride, mask=tail)
            b.store(strided, out, b.add(600, loop.index), stride=3, mask=tail)
        kernel = b.finish()
        size = 37
        source_array = numbers(rng, dtype, size * 5)
        where_array = rng.permutation(size).astype(np.int32)
        got, wanted = (np.zeros(1000, storage(dtype)) for _ in range(2))
        native = NativeKernel(kernel, cpu)
        for count in (0, 1, lanes - 1, lanes, size):
            native([source_array, where_array, got], [count, 4])
            run_kernel(kernel, [source_array, where_array, wanted], [count, 4])
            same(got, wanted, dtype)


@pytest.mark.parametrize("cpu", CLASSES)
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


@pytest.mark.parametrize("cpu", CLASSES)
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


@pytest.mark.parametrize("elements", [100, 40000])
@pytest.mark.parametrize("cpu", CLASSES)
def test_scratch_is_a_threads_own_on_the_stack_or_in_the_launch(cpu: str, elements: int) -> None:
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
    assert (native.printed.thread_scratch > 0) == (elements == 40000)
    got = np.zeros(3 * elements, np.float32)
    native([got], nthreads=3)
    wanted = np.zeros_like(got)
    run_kernel(kernel, [wanted], nthreads=3)
    np.testing.assert_array_equal(got, wanted)


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

"""Arithmetic and moves between lanes, printed for each class this machine runs, have the interpreter's bits."""

from __future__ import annotations

import numpy as np

from tests.backends.cpu.op_cases import ALL, INTEGERS, Case, grid, run_cases
from tilewright.ir.dtypes import BF16, F32, F64, I1, I8, I16, I32, I64


@grid
def test_float_arithmetic_has_the_interpreters_bits(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    cases = []
    for d in (F32, F64):
        for kind in ("add", "sub", "mul", "div", "min", "max", "minimum", "maximum"):
            cases.append(Case(f"{kind} {d}", (d, d), lambda b, x, y, k=kind: b.binary(k, x, y)))
        for kind in ("neg", "abs", "sqrt", "floor", "ceil", "trunc", "round"):
            cases.append(Case(f"{kind} {d}", (d,), lambda b, x, k=kind: b.unary(k, x)))
        if d is F32:
            # 0 has either sign, and an infinite number has no fraction to look at
            cases.append(Case("fraction", (d,), lambda b, x: b.add(b.fraction(b.clamp(x, -1e9, 1e9)), 0.0)))
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


def _scalable(arrays: list[np.ndarray]) -> list[np.ndarray]:
    a, b = arrays
    mantissas = np.frexp(np.where(np.isfinite(a), a, 0))[0] * 2
    whole = np.nan_to_num(b).clip(-1e9, 1e9).astype(np.int64) % 507 - 252
    return [np.where(np.isnan(a), a, mantissas).astype(np.float32), whole.astype(np.float32)]


@grid
def test_powers_of_two_have_the_interpreters_bits(cpu: str, lanes: int, rng: np.random.Generator) -> None:
    run_cases([Case("scale", (F32, F32), lambda b, x, y: b.scale(x, y), _scalable)], lanes, cpu, rng, rounds=11)


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

"""The loop interpreter computes what the ops' docstrings say, stays inside its buffers and counts what it moves."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from tilewright.errors import IRError
from tilewright.ir.dtypes import BF16, F16, F32, F64, I1, I8, I16, I32, I64, U8, DType, torch_name
from tilewright.ir.loops import LoopBuilder, LoopKernel
from tilewright.ir.loops.elementwise import fma
from tilewright.ir.loops_interpreter import run_kernel

ALL = (F64, F32, F16, BF16, I64, I32, I16, I8, U8, I1)


def cast_kernel(source: DType, target: DType, count: int) -> LoopKernel:
    b = LoopBuilder("cast")
    x, y = b.buffer("x", source), b.buffer("y", target, writable=True)
    b.store(b.cast(b.load(x, 0, count), target), y, 0)
    return b.finish()


@pytest.mark.parametrize("target", ALL, ids=str)
@pytest.mark.parametrize("source", ALL, ids=str)
def test_casts_are_torchs(source: DType, target: DType, rng: np.random.Generator) -> None:
    count = 500
    if source.is_float:
        values = rng.standard_normal(count) * 10.0 ** rng.integers(-3, 3, count)
        values[:8] = [0.0, -0.0, 1.5, 2.5, -1.5, 65519.0, -127.9, 3.4e38]
        if not target.is_integer:  # torch leaves these to the machine for integers
            values[8:11] = [np.inf, -np.inf, np.nan]
        else:
            values = np.clip(values, -30000, 30000)
        if target is U8:
            values = np.abs(values) % 200
        if target is I8:
            values = np.clip(values, -127, 127)
        if target is I16:
            values = np.clip(values, -30000, 30000)
        tensor = torch.tensor(values).to(getattr(torch, torch_name(source)))
    else:
        wide = rng.integers(-(2**62), 2**62, count) >> rng.integers(0, 62, count)
        tensor = torch.tensor(wide).to(getattr(torch, torch_name(source)))
    wanted = tensor.to(getattr(torch, torch_name(target)))
    given = tensor.view(torch.uint16).numpy() if source is BF16 else tensor.numpy()
    got = np.zeros(count, np.uint16 if target is BF16 else target.numpy())
    run_kernel(cast_kernel(source, target, count) if source is not target else same_kernel(source, count), [given, got])
    right = wanted.view(torch.uint16).numpy() if target is BF16 else wanted.numpy()
    if target is BF16:  # which NaN it is depends on torch's code path; ours is always the quiet one
        nan = wanted.isnan().numpy()
        assert (got[nan] == 0x7FC0).all() or source is BF16
        got, right = got[~nan], right[~nan]
    np.testing.assert_array_equal(got, right)


def same_kernel(dtype: DType, count: int) -> LoopKernel:
    b = LoopBuilder("copy")
    x, y = b.buffer("x", dtype), b.buffer("y", dtype, writable=True)
    b.store(b.load(x, 0, count), y, 0)
    return b.finish()


@pytest.mark.parametrize(("target", "least"), [(I32, -(2**31)), (I64, -(2**63)), (I8, 0), (I16, 0), (U8, 0)], ids=str)
def test_floats_that_no_integer_holds_become_the_least_one(target: DType, least: int) -> None:
    given = np.float32([np.nan, np.inf, -np.inf, 1e19, -1e19])
    got = np.zeros(5, target.numpy())
    run_kernel(cast_kernel(F32, target, 5), [given, got])
    assert got.tolist() == [least] * 5


def test_fused_multiply_add_rounds_once(rng: np.random.Generator) -> None:
    count = 3000
    a = (rng.standard_normal(count) * 2.0 ** rng.integers(-60, 60, count)).astype(np.float32)
    b = (rng.standard_normal(count) * 2.0 ** rng.integers(-60, 60, count)).astype(np.float32)
    # c near -a*b cancels; c far below it decides a tie.
    c = np.where(rng.random(count) < 0.5, -(a * b), rng.standard_normal(count) * 2.0 ** rng.integers(-140, 100, count))
    c = c.astype(np.float32)
    got = fma(a, b, c, fused=True)
    for x, y, z, result in zip(a, b, c, got, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        # Nearest f32: no neighbour of the result is closer to the exact value.
        distance = abs(Fraction(float(result)) - exact)
        for direction in (-np.inf, np.inf):
            neighbour = np.nextafter(result, np.float32(direction))
            if np.isfinite(neighbour):
                assert distance <= abs(Fraction(float(neighbour)) - exact)
    separate = a * b + c
    np.testing.assert_array_equal(fma(a, b, c, fused=False), separate)
    assert (got != separate).any()


def test_fused_multiply_add_in_f64_keeps_what_the_product_loses() -> None:
    x = 1 + 2.0**-30
    got = fma(np.array([x, np.inf, 0.0]), np.array([x, 0.0, -1.0]), np.array([-x * x, 1.0, 0.0]), fused=True)
    assert got[0] == 2.0**-60
    assert np.isnan(got[1])
    assert got[2] == 0.0
    assert not np.signbit(got[2])


def test_minimum_and_maximum_differ_from_the_plain_form_only_at_nan() -> None:
    b = LoopBuilder("order")
    x, y = b.buffer("x", F32), b.buffer("y", F32)
    out = b.buffer("out", F32, writable=True)
    for n, kind in enumerate(("min", "max", "minimum", "maximum")):
        b.store(b.binary(kind, b.load(x, 0, 4), b.load(y, 0, 4)), out, 4 * n)
    got = np.zeros(16, np.float32)
    nan = math.nan
    run_kernel(b.finish(), [np.float32([nan, 1, 2, nan]), np.float32([3, nan, 5, nan]), got])
    rows = got.reshape(4, 4)
    np.testing.assert_array_equal(rows[0], [3, nan, 2, nan])  # plain: the second operand where unordered
    np.testing.assert_array_equal(rows[1], [3, nan, 5, nan])
    np.testing.assert_array_equal(rows[2], [nan, nan, 2, nan])
    np.testing.assert_array_equal(rows[3], [nan, nan, 5, nan])


def test_reduction_is_the_documented_tree(rng: np.random.Generator) -> None:
    b = LoopBuilder("tree")
    x, out = b.buffer("x", F32), b.buffer("out", F32, writable=True)
    b.store(b.reduce("add", b.load(x, 0, 8)), out, 0)
    values = rng.standard_normal(8).astype(np.float32) * np.float32(10.0) ** rng.integers(-3, 4, 8).astype(np.float32)
    got = np.zeros(1, np.float32)
    run_kernel(b.finish(), [values, got])
    v = values
    right = ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    assert got[0] == right


def test_floor_and_truncating_division_follow_python_and_c(rng: np.random.Generator) -> None:
    count = 64
    b = LoopBuilder("division")
    x, y = b.buffer("x", I32), b.buffer("y", I32)
    out = b.buffer("out", I32, writable=True)
    for n, kind in enumerate(("floordiv", "mod", "truncdiv", "truncmod")):
        b.store(b.binary(kind, b.load(x, 0, count), b.load(y, 0, count)), out, n * count)
    left = rng.integers(-1000, 1000, count).astype(np.int32)
    right = rng.choice([-7, -1, 1, 3, 16, 1001], count).astype(np.int32)
    got = np.zeros(4 * count, np.int32)
    run_kernel(b.finish(), [left, right, got])
    pairs = list(zip(left.tolist(), right.tolist(), strict=True))
    wanted = [a // c for a, c in pairs] + [a % c for a, c in pairs]
    wanted += [math.trunc(Fraction(a, c)) for a, c in pairs] + [int(math.fmod(a, c)) for a, c in pairs]
    assert got.tolist() == wanted


def test_counts_are_the_lanes_that_were_moved() -> None:
    b = LoopBuilder("count")
    x, y = b.buffer("x", F32), b.buffer("y", F32, writable=True)
    local = b.scratch("local", F32, 8)
    n = b.dim("n")
    with b.loop(0, n, 8) as loop:
        tail = b.tail_mask(b.sub(n, loop.index), 8)
        b.store(b.load(x, loop.index, 8, mask=tail), local, 0)
        b.store(b.load(local, 0, 8), y, loop.index, mask=tail)
    kernel = b.finish()
    for count in (0, 1, 8, 19):
        x_values = np.arange(count, dtype=np.float32)
        got = np.full(count, -1, np.float32)
        traffic = run_kernel(kernel, [x_values, got], [count])
        np.testing.assert_array_equal(got, x_values)
        vectors = -(-count // 8)
        assert traffic.loaded == {name: c for name, c in (("x", count), ("local", 8 * vectors)) if c or vectors}
        assert traffic.stored == {name: c for name, c in (("y", count), ("local", 8 * vectors)) if c or vectors}


def test_threads_share_buffers_and_count_together() -> None:
    b = LoopBuilder("threads")
    out = b.buffer("out", I64, writable=True)
    b.store(b.add(b.mul(b.tid, 10), b.nthreads), out, b.tid)
    got = np.zeros(3, np.int64)
    traffic = run_kernel(b.finish(), [got], nthreads=3)
    assert got.tolist() == [3, 13, 23]
    assert traffic.stored == {"out": 3}


def test_accesses_outside_a_buffer_are_faults_unless_masked() -> None:
    b = LoopBuilder("outside")
    x, y = b.buffer("x", F32), b.buffer("y", F32, writable=True)
    at = b.dim("at")
    b.store(b.load(x, at, 4, mask=b.tail_mask(b.dim("on"), 4)), y, 0)
    kernel = b.finish()
    values, got = np.zeros(6, np.float32), np.zeros(4, np.float32)
    run_kernel(kernel, [values, got], [2, 4])
    run_kernel(kernel, [values, got], [4, 2])
    run_kernel(kernel, [np.zeros(0, np.float32), got], [0, 0])
    with pytest.raises(IRError, match="kernel outside: loads element 6 of x, which has 6"):
        run_kernel(kernel, [values, got], [3, 4])
    with pytest.raises(IRError, match="loads element -1 of x"):
        run_kernel(kernel, [values, got], [-1, 1])
    with pytest.raises(IRError, match="stores element 3 of y, which has 3"):
        run_kernel(kernel, [values, got[:3].copy()], [0, 4])


def test_faults_of_arithmetic_are_named() -> None:
    b = LoopBuilder("faulty")
    out, n = b.buffer("out", I64, writable=True), b.dim("n")
    b.store(b.floordiv(7, n), out, 0)
    b.store(b.shl(b.index(1), n), out, 0)
    kernel = b.finish()
    got = np.zeros(1, np.int64)
    run_kernel(kernel, [got], [3])
    assert got[0] == 8
    with pytest.raises(IRError, match="floordiv by zero"):
        run_kernel(kernel, [got], [0])
    with pytest.raises(IRError, match="shl by"):
        run_kernel(kernel, [got], [64])


def test_scratch_read_before_it_is_written_shows() -> None:
    b = LoopBuilder("stale")
    out, local = b.buffer("out", F32, writable=True), b.scratch("local", F32, 4)
    b.store(b.load(local, 0, 4), out, 0)
    got = np.zeros(4, np.float32)
    run_kernel(b.finish(), [got])
    assert np.isnan(got).all()


def test_bfloat_buffers_come_as_ml_dtypes_or_as_bits(rng: np.random.Generator) -> None:
    values = rng.standard_normal(16).astype(ml_dtypes.bfloat16)
    b = LoopBuilder("double")
    x, y = b.buffer("x", BF16), b.buffer("y", BF16, writable=True)
    b.store(b.cast(b.mul(b.cast(b.load(x, 0, 16), F32), 2.0), BF16), y, 0)
    kernel = b.finish()
    named, bits = np.zeros(16, ml_dtypes.bfloat16), np.zeros(16, np.uint16)
    run_kernel(kernel, [values, named])
    run_kernel(kernel, [values.view(np.uint16), bits])
    np.testing.assert_array_equal(named.astype(np.float32), values.astype(np.float32) * 2)
    np.testing.assert_array_equal(named.view(np.uint16), bits)


def test_buffers_of_another_width_are_refused() -> None:
    with pytest.raises(IRError, match="buffer x wants contiguous f32, got float64"):
        run_kernel(same_kernel(F32, 2), [np.zeros(2), np.zeros(2, np.float32)])

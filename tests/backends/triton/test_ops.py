"""Ops of the tile dialect one by one, printed and interpreted: orders, scans, rearrangements, places, packing."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.backends.triton.both_interpreters import check, run_both
from tests.backends.triton.printed_ops import product_f64
from tilewright.backends.triton.interpreter import InterpretedKernels
from tilewright.backends.triton.printer import print_kernel, printed_ops
from tilewright.errors import LoweringError
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32, F64, I1, I8, I32, I64, DType, from_numpy
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.compute import DotScaledOp, PackOp, UnpackOp
from tilewright.ir.tile.dialect import TILE
from tilewright.ir.tile.formats import FORMATS
from tilewright.ir.tile.lines import SortLineOp, TopkLineOp, spare_words

LINED = [np.dtype(t) for t in (np.float32, np.int64, np.uint8)]
BF16 = np.dtype(ml_dtypes.bfloat16)
SORTED = [np.dtype(t) for t in (np.float32, np.float16, np.float64, np.int32, np.int64, np.int16, np.uint8, bool)]


def drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Any:
    """Many equal numbers, both zeros, infinities and NaN among floats, the extremes among integers."""
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    values = rng.integers(0, 6, shape).astype(dtype)
    if dtype.kind in "fV":
        for special in (np.nan, -0.0, np.inf, -np.inf, -1.5):
            values[rng.random(shape) < 0.1] = special
    else:
        for special in (np.iinfo(dtype).min, np.iinfo(dtype).max):
            values[rng.random(shape) < 0.1] = special
    return values


@pytest.mark.parametrize("dtype", [*SORTED, BF16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (5, 2)], ids=str)
def test_orders_of_tiles(
    shape: tuple[int, int], dtype: Any, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    keys, payload = drawn(rng, shape, dtype), rng.standard_normal(shape).astype(np.float32)
    for axis in (0, 1):
        k = max(1, shape[axis] // 2)

        def build(b: Any, x: Any, p: Any, axis: int = axis, k: int = k) -> list[Any]:
            counted = b.coordinates(0, axis, shape)
            rising, falling = b.sort(x, p, axis), b.sort(x, counted, axis, descending=True)
            return [*rising, *falling, *b.topk(x, k, axis), *b.topk(x, 1, axis), *b.topk(x, shape[axis], axis)]

        check(interpreter, build, keys, payload)


@pytest.mark.parametrize("dtype", LINED, ids=str)
def test_lines_of_memory_are_ordered(dtype: Any, interpreter: InterpretedKernels, rng: np.random.Generator) -> None:
    element = from_numpy(dtype)
    assert element is not None
    b = KernelBuilder("lines", ["n"])
    x = b.buffer([1, "n", 2], element)
    values, places = b.output([1, "n", 2], element), b.output([1, "n", 2], I64)
    spare = b.output([2, Expr.of("n") * (2 * spare_words(element))], I64)
    o, i = b.grid([1, 2], [1, 1])
    line, whole = b.index("2*a0 + a1", o, i), [b.dense(v) for v in (x, values, places, spare)]
    b.add(SortLineOp.make(*whole, [o, i, line], axis=1, descending=dtype.kind != "f", result_types=[]))
    kernel = b.finish()
    for n in (0, 1, 300):
        given, shape = drawn(rng, (1, n, 2), dtype), (1, n, 2)
        scratch = np.zeros((2, 2 * n * spare_words(element)), np.int64)
        outputs = [np.zeros(shape, dtype), np.zeros(shape, np.int64), scratch]
        found, wanted = run_both(kernel, [given], outputs, {"n": n}, interpreter)
        for a, e in zip(found[:2], wanted[:2], strict=True):
            np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("dtype", LINED, ids=str)
@pytest.mark.parametrize("k", [1, 130])
def test_the_first_of_lines_are_found(
    k: int, dtype: Any, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    element = from_numpy(dtype)
    assert element is not None
    b = KernelBuilder("best", ["n"])
    x, values, places = b.buffer([1, "n", 2], element), b.output([1, k, 2], element), b.output([1, k, 2], I64)
    o, i = b.grid([1, 2], [1, 1])
    b.add(TopkLineOp.make(b.dense(x), b.dense(values), b.dense(places), [o, i], axis=1, k=k, result_types=[]))
    kernel = b.finish()
    for n in (k, 300):
        outputs = [np.zeros((1, k, 2), dtype), np.zeros((1, k, 2), np.int64)]
        found, wanted = run_both(kernel, [drawn(rng, (1, n, 2), dtype)], outputs, {"n": n}, interpreter)
        for a, e in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("extent", [1, 5, 16])
def test_scans(extent: int, interpreter: InterpretedKernels, rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((2, 3, extent)).astype(np.float32)
    integers = rng.integers(-9, 9, (3, extent)).astype(np.int16)

    def build(b: Any, x: Any, y: Any, n: Any) -> list[Any]:
        both = [r for axis in (0, 1) for r in b.scan("linear", [x, y], axis)]
        return [*both, *(r for fn in ("sum", "prod", "max", "min") for r in b.scan(fn, [x])), *b.scan("sum", [n])]

    check(interpreter, build, x, y, integers, steps=32)


@pytest.mark.parametrize("extent", [1, 3, 20])
def test_tuples_that_travel_together(extent: int, interpreter: InterpretedKernels, rng: np.random.Generator) -> None:
    m, weights = rng.standard_normal((2, extent, 3, 1)).astype(np.float32)
    m[rng.random(m.shape) < 0.3] = -np.inf
    values = rng.standard_normal((extent, 3, 6)).astype(np.float32)
    check(interpreter, lambda b, *given: b.combine("attention", given, 0), m, weights, values, steps=32)
    mean, squares = rng.standard_normal((2, 3, extent)).astype(np.float32)
    count = rng.integers(0, 4, (3, extent)).astype(np.float32)
    check(interpreter, lambda b, *given: b.combine("welford", given, 1), mean, squares, count, steps=64)


@pytest.mark.parametrize(
    ("shape", "starts", "stops"),
    [
        ((5, 12), (1, 3), (4, 12)), ((5, 12), (0, 11), (5, 12)), ((5, 12), (4, 0), (5, 12)), ((5, 12), (2, 7), (3, 8)),
        ((3, 4, 6), (1, 0, 2), (3, 1, 5)), ((9,), (3,), (4,)), ((1, 9), (0, 2), (1, 9)),
    ],
)  # fmt: skip
def test_any_box_of_a_computed_tile(
    shape: tuple[int, ...], starts: Any, stops: Any, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    for dtype in (np.float32, np.int16):
        x = rng.integers(-99, 99, shape).astype(dtype)
        check(interpreter, lambda b, x: [b.slice(b.map("neg", x), starts, stops)], x)


@pytest.mark.parametrize(
    "shapes", [((3, 5), (3, 5)), ((3, 4), (3, 4)), ((3, 1), (3, 6), (3, 2)), ((3, 1), (3, 1))], ids=str
)
@pytest.mark.parametrize("axis", [0, 1])
def test_tiles_of_any_extents_are_joined(
    shapes: Any, axis: int, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    parts = [rng.standard_normal(s if axis else s[::-1]).astype(np.float32) for s in shapes]
    (joined,) = check(interpreter, lambda b, *tiles: [b.concat([b.map("neg", t) for t in tiles], axis)], *parts)
    np.testing.assert_array_equal(joined, -np.concatenate(parts, axis))


@pytest.mark.parametrize(("shape", "other"), [((4, 6), (24,)), ((24,), (3, 8)), ((3, 10), (6, 5)), ((2, 3, 5), (5, 6))])
def test_any_reshape(shape: Any, other: Any, interpreter: InterpretedKernels, rng: np.random.Generator) -> None:
    x = rng.standard_normal(shape).astype(np.float32)
    (found,) = check(interpreter, lambda b, x: [b.reshape(b.map("neg", x), other)], x)
    np.testing.assert_array_equal(found, -x.reshape(other))


@pytest.mark.parametrize("dtype", [F32, F64, I32, I64, I1], ids=str)
def test_stated_elements(dtype: DType, interpreter: InterpretedKernels) -> None:
    listed = [0.1, 0.1, -7, 3, 3, 1e9, 0]
    check(interpreter, lambda b: [b.elements(listed, dtype), b.elements([0.1], dtype)])


@pytest.mark.parametrize("name", list(FORMATS))
def test_packed_storage(name: str, interpreter: InterpretedKernels, rng: np.random.Generator) -> None:
    words = rng.integers(0, 256, (3, 5)).astype(np.uint8)
    per = FORMATS[name].per_storage

    def build(b: Any, w: Any) -> list[Any]:
        made = []
        for axis in (0, 1):
            b.add(unpacked := UnpackOp.make(w, format=name, axis=axis))
            b.add(packed := PackOp.make(unpacked.out, format=name, axis=axis))
            few = b.slice(unpacked.out, (0, 0), (per, 5) if axis == 0 else (3, per))
            b.add(one := PackOp.make(few, format=name, axis=axis))
            made += [unpacked.out, packed.out, one.out]
        return made

    _, again, *_ = check(interpreter, build, words)
    np.testing.assert_array_equal(again, words)


@pytest.mark.parametrize("mode", ["set", "add"])
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8, np.int64], ids=lambda t: t.__name__)
def test_updates_of_what_was_stored(
    mode: str, kind: Any, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    dtype = from_numpy(np.dtype(kind))
    assert dtype is not None
    b = KernelBuilder("scattered", ["m", "n"])
    x, updates, at = b.buffer([6, "n"], dtype), b.buffer(["m", "n"], dtype), b.buffer(["m"], I64)
    y = b.output([6, "n"], dtype)
    (i,) = b.grid(["n"], [16])
    b.store(b.load(b.dense(x), [0, i], [6, 16]), b.dense(y), [0, i])
    with b.loop(0, "m", 1) as loop:
        row = b.reshape(b.load(b.dense(updates), [loop.at, i], [1, 16]), (16,))
        b.update(row, b.load(b.dense(at), [loop.at], [1]), b.dense(y), [i], 0, mode)
    kernel = b.finish()
    for m, n in ((0, 3), (5, 1), (9, 37)):
        given = [rng.integers(-60, 60, s).astype(kind) for s in ((6, n), (m, n))]
        places = rng.integers(0, 6, m)
        found, wanted = run_both(kernel, [*given, places], [np.zeros((6, n), kind)], {"m": m, "n": n}, interpreter)
        np.testing.assert_array_equal(found[0], wanted[0])


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16], ids=lambda t: t.__name__)
def test_powers_and_remainders(kind: Any, interpreter: InterpretedKernels, rng: np.random.Generator) -> None:
    special = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -3.0, np.inf, -np.inf, np.nan, 7.25]
    a, e = (v.astype(kind).reshape(-1) for v in np.meshgrid(special, special))
    a = np.concatenate([a, rng.standard_normal(50).astype(kind) * 3])
    e = np.concatenate([e, rng.standard_normal(50).astype(kind) * 3])
    kernel_inputs = a, e

    def build(b: Any, x: Any, y: Any) -> list[Any]:
        return [b.map("pow", x, y), b.map("remainder", x, y)]

    # doubles are exp2(y log2(x)) in doubles: half a step of an exponent of up to 40 is 40 steps of the power
    check(interpreter, build, *kernel_inputs, steps=40 if kind is np.float64 else 4)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16], ids=lambda t: t.__name__)
def test_angles_and_signs(kind: Any, interpreter: InterpretedKernels, rng: np.random.Generator) -> None:
    special = [0.0, -0.0, 1.0, -1.0, 0.5, -3.0, np.inf, -np.inf, 7.25]
    a, e = (v.astype(kind).reshape(-1) for v in np.meshgrid(special, special))
    a = np.concatenate([a, rng.standard_normal(47).astype(kind) * 3])
    e = np.concatenate([e, rng.standard_normal(47).astype(kind) * 3])
    fns = ["copysign"] if kind is np.float64 else ["copysign", "atan2"]

    def build(b: Any, x: Any, y: Any) -> list[Any]:
        return [b.map(fn, *pair) for fn in fns for pair in ((x, y), (1.0, y), (x, -1.0))]

    found = check(interpreter, build, a, e, steps=2)
    if kind is not np.float64:
        return
    np.testing.assert_array_equal(np.signbit(found[0]), np.signbit(e))
    with pytest.raises(LoweringError, match="atan2 of f64 is not printed"):
        check(interpreter, lambda b, x, y: [b.map("atan2", x, y)], a, e)


def test_products_of_doubles(interpreter: InterpretedKernels, rng: np.random.Generator) -> None:
    given, weights = rng.standard_normal((13, 24)), rng.standard_normal((24, 32))
    found, wanted = run_both(product_f64(), [given, weights], [np.zeros((13, 32))], {"m": 13}, interpreter)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=24 * np.finfo(np.float64).eps * 20)


def test_every_op_of_a_kernel_is_printed_but_scaled_dots() -> None:
    ops = {op.name for op in TILE.operations}
    assert ops - {op.name for op in printed_ops()} == {"tile.dot_scaled", "tile.kernel", "tile.launch", "tile.yield"}


def test_what_is_not_printed_is_refused_by_name_before_anything_runs() -> None:
    b = KernelBuilder("scaled", [])
    a, w, s = b.buffer([16, 32], I8), b.buffer([32, 16], I8), b.buffer([16, 1], F32)
    t, y = b.buffer([1, 16], F32), b.output([16, 16], F32)
    b.grid([1], [1])
    loaded = [b.load(b.dense(v), [0, 0], e) for v, e in ((a, (16, 32)), (s, (16, 1)), (w, (32, 16)), (t, (1, 16)))]
    made = b.add(DotScaledOp.make(*loaded, b.constant(0.0, [16, 16]), group=32))
    b.store(made, b.dense(y), [0, 0])
    kernel = b.finish()
    with pytest.raises(LoweringError, match=r"tile\.dot_scaled: this op is not printed, in kernel @scaled"):
        print_kernel(kernel)

"""Ops that only move elements: identities vanish, chains merge, and every element stays where it was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.dtypes import DTYPES, DType
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.canonicalize.shapes import loses_nothing
from tilewright.testing import ground

Build = Callable[[Graph, SSAValue], SSAValue]


def simplified(build: Build, seed: int, dtype: str = "f32") -> list[str]:
    """The ops left of build(x) for x [b, t, 6]."""
    g = Graph("b: 0..5", "t: 1..7", dtype=dtype)
    x = g.input("x", ["b", "t", 6])
    return ops_of(ground(g.done(build(g, x)), Canonicalize(), seed=seed, exact=True))


def first_row(g: Graph, x: SSAValue, start: int, stop: int) -> SSAValue:
    return g.slice(g.slice(x, 1, 0, 1), 2, start, stop)


def last_row(g: Graph, x: SSAValue, start: int, stop: int) -> SSAValue:
    return g.slice(g.slice(x, 1, "t - 1", "t"), 2, start, stop)


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda g, x: g.reshape(x, "b", "t", 6), []),
        (lambda g, x: g.reshape(g.reshape(x, "b*t", 6), "b", "t", 6), []),
        (lambda g, x: g.reshape(g.reshape(x, "b*t", 6), "b", "t", 2, 3), ["reshape"]),
        (lambda g, x: g.transpose(x, 0, 1, 2), []),
        (lambda g, x: g.transpose(g.transpose(x, 2, 0, 1), 1, 2, 0), []),
        (lambda g, x: g.transpose(g.transpose(x, 2, 0, 1), 2, 0, 1), ["transpose"]),
        (lambda g, x: g.transpose(g.reshape(x, "b", 1, "t", 6), 1, 0, 2, 3), ["reshape"]),
        (lambda g, x: g.transpose(x, 1, 0, 2), ["transpose"]),
        (lambda g, x: g.broadcast(x, "b", "t", 6), []),
        (lambda g, x: g.broadcast(g.broadcast(x, 2, "b", "t", 6), 3, 2, "b", "t", 6), ["broadcast"]),
        (lambda g, x: g.broadcast(g.reshape(x, 1, "b", "t", 6), 4, "b", "t", 6), ["broadcast"]),
        (lambda g, x: g.slice(x, 2, 0, 6), []),
        (lambda g, x: g.slice(g.slice(x, 2, 1, 5), 2, 1, 3), ["slice"]),
        (lambda g, x: g.slice(g.slice(x, 2, 1, 6), 2, 0, 5, 2), ["slice"]),
        (lambda g, x: g.slice(g.slice(x, 2, 0, 6, 2), 2, 1, 3), ["slice", "slice"]),
        (lambda g, x: g.concat(2, x), []),
        (lambda g, x: g.concat(2, x, g.slice(x, 2, 3, 3)), []),
        (lambda g, x: g.concat(2, g.slice(x, 2, 0, 2), g.slice(x, 2, 2, 6)), []),
        (lambda g, x: g.concat(2, g.slice(x, 2, 1, 2), g.slice(x, 2, 2, 5)), ["slice"]),
        (lambda g, x: g.concat(2, g.slice(x, 2, 2, 6), g.slice(x, 2, 0, 2)), ["slice", "slice", "concat"]),
        (lambda g, x: g.concat(2, g.slice(x, 2, 0, 2), g.slice(x, 2, 2, 6, 2)), ["slice", "slice", "concat"]),
        (
            lambda g, x: g.concat(2, g.slice(x, 2, 0, 2), g.slice(g.map("exp", x), 2, 2, 6)),
            ["slice", "exp", "slice", "concat"],
        ),
        (lambda g, x: g.concat(2, g.slice(x, 2, 0, 3, 2), g.slice(x, 2, 3, 6, 2)), ["slice", "slice", "concat"]),
        (lambda g, x: g.concat(2, first_row(g, x, 0, 2), last_row(g, x, 2, 6)), ["slice", "slice", "concat"]),
        (lambda g, x: g.concat(2, g.slice(x, 2, 3, 3), g.slice(x, 2, 2, 2)), ["slice", "slice", "concat"]),
        (lambda g, x: g.reshape(g.reduce("sum", x, 2), "b", "t", 1), ["reduce"]),
        (lambda g, x: g.reshape(g.reduce("max", x, 2, keepdims=True), "b", "t"), ["reduce"]),
    ],
)
def test_what_moves_no_element_goes(build: Build, left: list[str], seed: int) -> None:
    assert simplified(build, seed) == left


def test_a_reduction_that_others_read_is_not_made_twice(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        total = g.reduce("sum", x, 2)
        return g.map("add", g.reshape(total, "b", "t", 1), g.reshape(g.map("exp", total), "b", "t", 1))

    assert simplified(build, seed).count("reduce") == 1


@pytest.mark.parametrize(
    ("chain", "left"),
    [
        (("f32",), []),
        (("f64", "f32"), []),
        (("f64", "bf16"), ["cast"]),
        (("bf16", "f32"), ["cast", "cast"]),
        (("f16", "bf16"), ["cast", "cast"]),
        (("i64", "f32"), ["cast", "cast"]),
    ],
)
def test_casts_merge_where_the_first_loses_nothing(chain: tuple[str, ...], left: list[str], seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        for dtype in chain:
            x = g.cast(x, dtype)
        return x

    assert simplified(build, seed) == left


def test_loses_nothing_is_what_a_round_trip_of_telling_values_says() -> None:
    values = [-(2**31), -128, -3, 0, 1, 127, 255, 257, 2049, 65504, 2**24 + 1, 2**53 + 1, 0.1, 1e-6, 3e38]
    for a in DTYPES.values():
        narrow = np.array([v for v in values if _holds(a.name, v)]).astype(a.numpy())
        for b in DTYPES.values():
            with np.errstate(all="ignore"):
                wide = narrow.astype(b.numpy())
            assert loses_nothing(a, b) == (_numbers(a, narrow) == _numbers(b, wide)), (a, b)


def _numbers(dtype: DType, values: np.ndarray) -> list[float]:
    return [float(v) if dtype.is_float else int(v) for v in values]


def _holds(name: str, value: float) -> bool:
    if DTYPES[name].is_float:
        return name != "f16" or abs(value) <= 65504
    if name == "i1":
        return value in (0, 1)
    info = np.iinfo(DTYPES[name].numpy())
    return float(value).is_integer() and info.min <= value <= info.max


def test_a_transposed_weight_is_read_the_other_way(seed: int) -> None:
    g = Graph("b: 0..4")
    x = g.input("x", ["b", 3, 5])
    w = g.transpose(g.weight("w", [7, 5]), 1, 0)
    batch = g.transpose(g.input("v", ["b", 7, 4]), 0, 2, 1)
    module = g.done(g.matmul(g.matmul(x, w), batch, transpose_b=True))
    after = ground(module, Canonicalize(), seed=seed)
    assert ops_of(after) == ["matmul", "matmul"]
    assert "transpose_b = true" in str(after)


def test_a_transpose_of_other_axes_is_no_matter_for_the_matmul(seed: int) -> None:
    g = Graph("b: 1..4")
    x, y = g.input("x", ["b", 3, 5]), g.input("y", [7, "b", 5])
    module = g.done(g.matmul(x, g.transpose(y, 1, 2, 0)))
    assert ops_of(ground(module, Canonicalize(), seed=seed)) == ["transpose", "matmul"]

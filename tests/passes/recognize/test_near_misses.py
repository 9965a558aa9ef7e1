"""Activations and norms that nearly are: other sums, other dims, other operands stay what they are."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.recognize import Recognize
from tilewright.testing import ground

Build = Callable[[Graph, SSAValue], SSAValue]
PASSES = [Canonicalize(), Recognize()]


def mean(g: Graph, x: SSAValue) -> SSAValue:
    return g.reduce("mean", x, -1, keepdims=True)


def row_total(g: Graph, e: SSAValue, *axes: int, keepdims: bool = True, fn: str = "sum") -> SSAValue:
    return g.reduce(fn, e, *axes, keepdims=keepdims)


@pytest.mark.parametrize(
    "build",
    [
        # over both axes; over a row, but divided along the other axis
        lambda g, x: g.map("div", g.map("exp", x), row_total(g, g.map("exp", x), 0, 1)),
        lambda g, x: g.map("div", g.map("exp", x), row_total(g, g.map("exp", x), 1, keepdims=False)),
        lambda g, x: g.map("sub", x, g.map("log", row_total(g, g.map("exp", x), 0, 1))),
        lambda g, x: g.map("sub", x, g.map("log", row_total(g, g.map("exp", x), 1, keepdims=False))),
    ],
)
def test_a_sum_that_is_not_of_the_row_is_no_softmax(build: Build, seed: int) -> None:
    assert "softmax" not in recognized(build, [4, 4], seed)


def test_what_is_subtracted_along_another_axis_stays(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        e = g.map("exp", g.map("sub", x, row_total(g, x, 1, keepdims=False, fn="max")))
        return g.map("div", e, row_total(g, e, 1))

    assert "sub" in recognized(build, [4, 4], seed)


def wide(g: Graph, value: float) -> SSAValue:
    return g.constant(value, [3, 4])


@pytest.mark.parametrize(
    "build",
    [
        lambda g, x: g.map("mul", g.map("mul", x, wide(g, 0.5)), g.map("add", g.map("erf", over_root_2(g, x)), 1.0)),
        lambda g, x: g.map("reciprocal", g.map("add", g.map("exp", g.map("neg", x)), wide(g, 1.0))),
        lambda g, x: g.map("div", wide(g, 1.0), g.map("add", g.map("exp", g.map("neg", x)), 1.0)),
        lambda g, x: g.map("log", g.map("add", g.map("exp", x), wide(g, 1.0))),
        lambda g, x: g.map("max", x, wide(g, 0.0)),
        lambda g, x: g.map("div", x, g.map("sqrt", g.map("add", mean(g, g.map("mul", x, x)), g.constant(0.1, [3, 1])))),
        lambda g, x: by_two_means(g, x, g.constant(0.1, [3, 1])),
    ],
)
def test_a_number_that_gives_the_result_its_dims_is_not_dropped(build: Build, seed: int) -> None:
    """x is [4], and the result [3, 4]."""
    recognized(build, [4], seed)


def over_root_2(g: Graph, x: SSAValue) -> SSAValue:
    return g.map("mul", x, math.sqrt(0.5))


def by_two_means(g: Graph, x: SSAValue, eps: SSAValue) -> SSAValue:
    m = mean(g, x)
    gap = g.map("sub", mean(g, g.map("mul", x, x)), g.map("mul", m, m))
    return g.map("div", g.map("sub", x, m), g.map("sqrt", g.map("add", gap, eps)))


def recognized(build: Build, dims: list[int], seed: int) -> list[str]:
    g = Graph(dtype="f64")
    return ops_of(ground(g.done(build(g, g.input("x", dims))), PASSES, seed=seed))


@pytest.mark.parametrize(
    "build",
    [
        lambda g, x: g.map("add", g.map("sigmoid", x), x),
        lambda g, x: g.map("sigmoid", g.map("sigmoid", x)),
        lambda g, x: g.map("silu", g.map("sigmoid", x)),
    ],
)
def test_only_a_product_with_the_gate_is_gated(build: Build, seed: int) -> None:
    left = recognized(build, [4, 4], seed)
    assert "sigmoid" in left


@pytest.mark.parametrize(
    ("build", "dims"),
    [
        (lambda g, x: over_root(g, x, g.reduce("mean", g.map("mul", x, x), -1)), [4, 4]),
        (lambda g, x: over_root(g, x, by_count(g, g.map("mul", x, x))), [3, "t"]),
        (lambda g, x: over_root(g, x, by_count(g, g.map("mul", x, x))), [3, 0]),
        (lambda g, x: over_root(g, x, g.map("div", 4.0, row_total(g, g.map("mul", x, x), 1))), [3, 4]),
        (lambda g, x: over_root(g, x, g.map("div", row_total(g, g.map("mul", x, x), 1), 0.0)), [3, 4]),
    ],
)
def test_what_is_no_mean_of_the_row_makes_no_norm(build: Build, dims: list[int | str], seed: int) -> None:
    g = Graph("t: 1..5", dtype="f64")
    g.sized("t")
    assert "norm" not in ops_of(ground(g.done(build(g, g.input("x", dims))), PASSES, seed=seed))


def over_root(g: Graph, x: SSAValue, square: SSAValue) -> SSAValue:
    return g.map("div", x, g.map("sqrt", g.map("add", square, 0.1)))


def by_count(g: Graph, x: SSAValue) -> SSAValue:
    return g.map("div", row_total(g, x, 1), 4.0)


@pytest.mark.parametrize("fn", ["mul", "add"])
def test_a_norm_has_one_weight_and_one_bias(fn: str, seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        own = {"mul": (g.weight("w", [4]), None), "add": (None, g.weight("w", [4]))}[fn]
        return g.map(fn, g.norm(x, *own), g.weight("v", [4]))

    assert recognized(build, [3, 4], seed) == ["norm", fn]


@pytest.mark.parametrize(("dtype", "between"), [("bf16", "f64"), ("f64", "f32"), ("i32", "f32"), ("i8", "f32")])
def test_a_norm_between_other_casts_keeps_them(dtype: str, between: str, seed: int) -> None:
    g = Graph(dtype=dtype)
    module = g.done(g.cast(g.norm(g.cast(g.input("x", [3, 4]), between), eps=0.1), dtype))
    rounding = "bf16" if dtype == "bf16" else "f32"
    assert ops_of(ground(module, PASSES, seed=seed, rounding=rounding)) == ["cast", "norm", "cast"]


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda g, x: g.cast(g.norm(g.cast(x, "f32"), g.weight("w", [4], "f32"), eps=0.1), "bf16"), "cast norm cast"),
        (lambda g, x: g.cast(g.norm(g.cast(x, "f32"), eps=0.1), "f16"), "cast norm cast"),
        (lambda g, x: g.cast(g.norm(g.input("y", [3, 4], "f32"), eps=0.1), "bf16"), "norm cast"),
    ],
)
def test_a_norm_with_a_weight_or_of_other_values_keeps_its_casts(build: Build, left: str, seed: int) -> None:
    g = Graph(dtype="bf16")
    module = g.done(build(g, g.input("x", [3, 4])))
    assert " ".join(ops_of(ground(module, PASSES, seed=seed, rounding="bf16"))) == left


@pytest.mark.parametrize(
    "build",
    [
        lambda g, y: [g.map("add", y, g.weight("w", [3, 1]))],
        lambda g, y: [g.map("add", y, g.weight("w", [3, 4]))],
        lambda g, y: [y, g.map("add", y, g.weight("w", [4]))],
    ],
)
def test_what_is_added_to_a_norm_is_its_bias_only_as_a_column_that_nobody_else_misses(
    build: Callable[[Graph, SSAValue], list[SSAValue]], seed: int
) -> None:
    g = Graph(dtype="f64")
    module = g.done(*build(g, g.norm(g.input("x", [3, 4]), eps=0.1)))
    assert ops_of(ground(module, PASSES, seed=seed)) == ["norm", "add"]

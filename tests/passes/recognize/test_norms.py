"""Layer norm and RMS norm written out in the common orders become graph.norm; what is another function does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.reduction import NormOp
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.recognize import Recognize
from tilewright.testing import context, ground

Build = Callable[[Graph, SSAValue], SSAValue]


def recognized(build: Build, seed: int, dtype: str = "f64") -> tuple[list[str], list[NormOp], list[str]]:
    g = Graph("b: 0..4", dtype=dtype)
    x = g.input("x", ["b", 3, 8])
    module = g.done(build(g, x))
    ctx = context(module)
    after = ground(module, [Canonicalize(), Recognize()], seed=seed, ctx=ctx, rounding=dtype)
    return ops_of(after), [op for op in after.walk() if isinstance(op, NormOp)], [r.reason for r in ctx.refused]


def mean(g: Graph, x: SSAValue) -> SSAValue:
    return g.reduce("mean", x, -1, keepdims=True)


def mean_by_sum(g: Graph, x: SSAValue, count: float = 8.0) -> SSAValue:
    return g.map("div", g.reduce("sum", x, -1, keepdims=True), count)


def centered(g: Graph, x: SSAValue) -> SSAValue:
    return g.map("sub", x, mean(g, x))


def over_root(g: Graph, y: SSAValue, square: SSAValue, how: str, eps: float = 0.1) -> SSAValue:
    """y / sqrt(mean(square) + eps), written in one of three ways."""
    under = g.map("add", square, eps)
    if how == "rsqrt":
        return g.map("mul", g.map("rsqrt", under), y)
    return g.map("div", y, g.map("sqrt", under)) if how == "sqrt" else g.map("div", y, g.map("pow", under, 0.5))


@pytest.mark.parametrize("how", ["rsqrt", "sqrt", "pow"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("average", [mean, mean_by_sum])
def test_the_common_orders_are_recognized(how: str, kind: str, average: Callable[..., SSAValue], seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        y = x if kind == "rms" else centered(g, x)
        return over_root(g, y, average(g, g.map("pow", y, 2.0)), how)

    left, norms, said = recognized(build, seed)
    assert (left, said) == (["norm"], [])
    assert (norms[0].kind.data, norms[0].eps.data) == (kind, 0.1)


def test_variance_as_a_difference_of_means_is_recognized(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        m = mean(g, x)
        variance = g.map("sub", mean(g, g.map("mul", x, x)), g.map("mul", m, m))
        return over_root(g, g.map("sub", x, m), variance, "rsqrt")

    assert recognized(build, seed)[0] == ["norm"]


def test_weight_and_bias_join_the_norm(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        y = over_root(g, x, mean(g, g.map("mul", x, x)), "rsqrt")
        return g.map("add", g.map("mul", g.weight("w", [8]), y), g.weight("c", [8]))

    left, norms, _ = recognized(build, seed)
    assert left == ["norm"]
    assert norms[0].weight is not None
    assert norms[0].bias is not None


@pytest.mark.parametrize(
    ("build", "left", "said"),
    [
        (
            lambda g, x: g.map("div", x, g.map("add", g.map("sqrt", mean(g, g.map("mul", x, x))), 0.1)),
            ["mul", "reduce", "sqrt", "add", "div"],
            ["norm: eps is added outside the root"],
        ),
        (
            lambda g, x: g.map("div", x, g.map("sqrt", mean(g, g.map("mul", x, x)))),
            ["mul", "reduce", "sqrt", "div"],
            ["norm: no eps under the root"],
        ),
        (
            lambda g, x: over_root(g, x, mean(g, g.map("mul", centered(g, x), centered(g, x))), "rsqrt"),
            ["reduce", "sub", "mul", "reduce", "add", "rsqrt", "mul"],
            ["norm: the squares under the root are not of what is divided"],
        ),
        (
            lambda g, x: over_root(g, centered(g, x), mean_by_sum(g, g.map("pow", centered(g, x), 2.0), 7.0), "sqrt"),
            ["reduce", "sub", "mul", "reduce", "div", "add", "sqrt", "div"],
            [],
        ),
        (
            lambda g, x: over_root(g, x, g.reduce("mean", g.map("mul", x, x), 1, keepdims=True), "rsqrt"),
            ["mul", "reduce", "add", "rsqrt", "mul"],
            [],
        ),
    ],
)
def test_what_is_another_function_stays(build: Build, left: list[str], said: list[str], seed: int) -> None:
    found, _, reasons = recognized(build, seed)
    assert (found, reasons) == (left, said)


def test_a_scale_that_is_no_column_vector_stays_outside(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        y = over_root(g, x, mean(g, g.map("mul", x, x)), "rsqrt")
        return g.map("mul", y, g.weight("w", [3, 1]))

    assert recognized(build, seed)[0] == ["norm", "mul"]


def test_a_norm_that_others_read_keeps_its_weight_outside(seed: int) -> None:
    g = Graph(dtype="f64")
    x = g.input("x", [3, 8])
    y = over_root(g, x, mean(g, g.map("mul", x, x)), "rsqrt")
    after = ground(g.done(y, g.map("mul", y, g.weight("w", [8]))), [Canonicalize(), Recognize()], seed=seed)
    assert ops_of(after) == ["norm", "mul"]


def test_a_bias_before_the_weight_is_not_the_norms_bias(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        y = over_root(g, x, mean(g, g.map("mul", x, x)), "rsqrt")
        return g.map("mul", g.map("add", y, g.weight("c", [8])), g.weight("w", [8]))

    left, norms, _ = recognized(build, seed)
    assert left == ["norm", "mul"]
    assert norms[0].weight is None


def test_narrow_values_normalised_in_f32_lose_their_casts_but_keep_their_rounding(seed: int) -> None:
    """As a model in bf16 writes it: up, norm, down, then the weight in bf16."""

    def build(g: Graph, x: SSAValue) -> SSAValue:
        wide = g.cast(x, "f32")
        y = over_root(g, wide, mean(g, g.map("mul", wide, wide)), "rsqrt")
        return g.map("mul", g.weight("w", [8]), g.cast(y, "bf16"))

    left, norms, _ = recognized(build, seed, "bf16")
    assert left == ["norm", "mul"]
    assert norms[0].weight is None, "scaling inside would skip a rounding to bf16"

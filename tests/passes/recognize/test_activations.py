"""Activations and softmax written out become one function, whatever the order; other coefficients are left alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.recognize import Recognize
from tilewright.testing import context, ground

Build = Callable[[Graph, SSAValue], SSAValue]
ROOT = math.sqrt(2 / math.pi)


def recognized(build: Build, seed: int) -> tuple[list[str], list[str]]:
    """The ops left of build(x), and the near misses; x is [b, 7] in f64, so that constants are exact."""
    g = Graph("b: 0..4", dtype="f64")
    x = g.input("x", ["b", 7])
    module = g.done(build(g, x))
    ctx = context(module)
    after = ground(module, [Canonicalize(), Recognize()], seed=seed, ctx=ctx)
    return ops_of(after), [r.reason for r in ctx.refused]


def square(g: Graph, x: SSAValue) -> SSAValue:
    return g.map("mul", x, x)


def total(g: Graph, x: SSAValue) -> SSAValue:
    return g.reduce("sum", x, -1, keepdims=True)


def one_plus_erf(g: Graph, x: SSAValue, factor: float = math.sqrt(0.5)) -> SSAValue:
    return g.map("add", g.map("erf", g.map("mul", x, factor)), 1.0)


def cubic(g: Graph, x: SSAValue, coefficient: float = 0.044715) -> SSAValue:
    return g.map("add", x, g.map("mul", coefficient, g.map("pow", x, 3.0)))


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda g, x: g.map("mul", g.map("mul", x, 0.5), one_plus_erf(g, x)), ["gelu"]),
        (lambda g, x: g.map("mul", one_plus_erf(g, x), g.map("div", x, 2.0)), ["gelu"]),
        (lambda g, x: g.map("mul", g.map("mul", x, one_plus_erf(g, x)), 0.5), ["gelu"]),
        (lambda g, x: g.map("mul", x, g.map("mul", 0.5, one_plus_erf(g, x))), ["gelu"]),
        (
            lambda g, x: g.map(
                "mul", g.map("mul", x, 0.5), g.map("add", 1.0, g.map("erf", g.map("div", x, math.sqrt(2))))
            ),
            ["gelu"],
        ),
        (
            lambda g, x: g.map(
                "mul",
                g.map("mul", 0.5, x),
                g.map("add", 1.0, g.map("tanh", g.map("mul", ROOT, cubic(g, x)))),
            ),
            ["gelu_tanh"],
        ),
        (
            lambda g, x: g.map(
                "mul",
                g.map("mul", 0.5, x),
                g.map(
                    "add",
                    g.map(
                        "tanh",
                        g.map(
                            "mul", g.map("mul", x, ROOT), g.map("add", 1.0, g.map("mul", 0.044715, g.map("mul", x, x)))
                        ),
                    ),
                    1.0,
                ),
            ),
            ["gelu_tanh"],
        ),
        (lambda g, x: g.map("div", 1.0, g.map("add", g.map("exp", g.map("neg", x)), 1.0)), ["sigmoid"]),
        (lambda g, x: g.map("mul", g.map("sigmoid", x), x), ["silu"]),
        (lambda g, x: g.map("div", x, g.map("add", 1.0, g.map("exp", g.map("mul", x, -1.0)))), ["silu"]),
        (lambda g, x: g.map("log1p", g.map("exp", x)), ["softplus"]),
        (lambda g, x: g.map("log", g.map("add", 1.0, g.map("exp", x))), ["softplus"]),
        (lambda g, x: g.map("max", x, 0.0), ["relu"]),
    ],
)
def test_an_activation_written_out_is_recognized(build: Build, left: list[str], seed: int) -> None:
    assert recognized(build, seed) == (left, [])


@pytest.mark.parametrize(
    "build",
    [
        lambda g, x: g.map("mul", g.map("mul", x, 0.5), one_plus_erf(g, x, 0.7)),
        lambda g, x: g.map("mul", g.map("mul", x, 0.51), one_plus_erf(g, x)),
        lambda g, x: g.map("mul", g.map("mul", g.map("exp", x), 0.5), one_plus_erf(g, x)),
        lambda g, x: g.map(
            "mul", g.map("mul", 0.5, x), g.map("add", 1.0, g.map("tanh", g.map("mul", ROOT, cubic(g, x, 0.05))))
        ),
        lambda g, x: g.map("mul", g.map("sigmoid", g.map("mul", x, 1.702)), x),
        lambda g, x: g.map("div", 1.0, g.map("add", g.map("exp", g.map("neg", x)), 1.5)),
        lambda g, x: g.map("div", 1.0, g.map("add", g.map("exp", x), 1.0)),
        lambda g, x: g.map("log", g.map("add", g.map("exp", x), 2.0)),
        lambda g, x: g.map("max", x, 0.1),
    ],
)
def test_other_constants_or_operands_are_another_function(build: Build, seed: int) -> None:
    left, _ = recognized(build, seed)
    assert not {"gelu", "gelu_tanh", "silu", "softplus", "relu"} & set(left)


def test_a_near_miss_is_recorded_with_what_failed(seed: int) -> None:
    _, said = recognized(lambda g, x: g.map("mul", g.map("mul", x, 0.5), one_plus_erf(g, x, 0.7)), seed)
    assert said == ["gelu: the argument of erf has other coefficients"]


def softmax(g: Graph, x: SSAValue, axis: int, *, shifted: bool = True, axis_of_max: int | None = None) -> SSAValue:
    top = g.reduce("max", x, axis if axis_of_max is None else axis_of_max, keepdims=True)
    e = g.map("exp", g.map("sub", x, top) if shifted else x)
    return g.map("div", e, g.reduce("sum", e, axis, keepdims=True))


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda g, x: softmax(g, x, -1), ["softmax"]),
        (lambda g, x: softmax(g, x, -1, shifted=False), ["softmax"]),
        (lambda g, x: softmax(g, g.map("exp", x), 0), ["exp", "softmax"]),
        (lambda g, x: softmax(g, x, 1, axis_of_max=0), ["reduce", "sub", "softmax"]),
        (
            lambda g, x: g.map("sub", x, g.map("log", total(g, g.map("exp", x)))),
            ["softmax"],
        ),
        (
            lambda g, x: g.map(
                "mul", g.map("exp", x), g.map("reciprocal", g.reduce("sum", g.map("exp", x), -1, keepdims=True))
            ),
            ["softmax"],
        ),
        (
            lambda g, x: g.map(
                "div", g.map("exp", x), g.reduce("sum", g.map("exp", g.map("neg", x)), -1, keepdims=True)
            ),
            ["exp", "neg", "exp", "reduce", "div"],
        ),
        (
            lambda g, x: g.map("div", g.map("exp", x), g.reduce("max", g.map("exp", x), -1, keepdims=True)),
            ["exp", "reduce", "div"],
        ),
    ],
)
def test_softmax_is_exponentials_over_their_own_sum(build: Build, left: list[str], seed: int) -> None:
    g = Graph("b: 1..4", dtype="f64")
    module = g.done(build(g, g.input("x", ["b", 7])))
    after = ground(module, [Canonicalize(), Recognize()], seed=seed)
    assert ops_of(after) == left


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_constants_are_bound_as_the_dtype_rounds_them(dtype: str, seed: int) -> None:
    g = Graph(dtype=dtype)
    x = g.input("x", [9])
    module = g.done(g.map("mul", g.map("mul", x, 0.5), one_plus_erf(g, x)))
    assert ops_of(ground(module, [Canonicalize(), Recognize()], seed=seed, rounding=dtype)) == ["gelu"]

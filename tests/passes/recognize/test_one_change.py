"""One change anywhere in what a pattern is written for: recognized or not, the module computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph
from tests.passes.one_change import changes
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.equivalence import compare, depth, draw_values, outcome, unit_of, width
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.recognize import Recognize
from tilewright.testing import context, ground, transform

Build = Callable[[Graph, SSAValue], SSAValue]
PASSES = [Canonicalize(), Recognize()]


def gelu(g: Graph, x: SSAValue) -> SSAValue:
    one_plus = g.map("add", g.map("erf", g.map("mul", x, math.sqrt(0.5))), 1.0)
    return g.map("mul", g.map("mul", x, 0.5), one_plus)


def gelu_tanh(g: Graph, x: SSAValue) -> SSAValue:
    cubic = g.map("add", x, g.map("mul", g.map("mul", g.map("mul", x, x), x), 0.044715))
    inner = g.map("tanh", g.map("mul", cubic, math.sqrt(2 / math.pi)))
    return g.map("mul", g.map("mul", x, 0.5), g.map("add", inner, 1.0))


def sigmoid(g: Graph, x: SSAValue) -> SSAValue:
    return g.map("reciprocal", g.map("add", g.map("exp", g.map("neg", x)), 1.0))


def silu(g: Graph, x: SSAValue) -> SSAValue:
    return g.map("div", x, g.map("add", g.map("exp", g.map("neg", x)), 1.0))


def gated(g: Graph, x: SSAValue) -> SSAValue:
    return g.map("mul", g.map("sigmoid", x), x)


def softplus(g: Graph, x: SSAValue) -> SSAValue:
    return g.map("log", g.map("add", g.map("exp", x), 1.0))


def relu(g: Graph, x: SSAValue) -> SSAValue:
    return g.map("max", x, 0.0)


def softmax(g: Graph, x: SSAValue) -> SSAValue:
    e = g.map("exp", g.map("sub", x, g.reduce("max", x, -1, keepdims=True)))
    return g.map("div", e, g.reduce("sum", e, -1, keepdims=True))


def softmax_by_reciprocal(g: Graph, x: SSAValue) -> SSAValue:
    e = g.map("exp", x)
    return g.map("mul", e, g.map("reciprocal", g.reduce("sum", e, -1, keepdims=True)))


def log_softmax(g: Graph, x: SSAValue) -> SSAValue:
    return g.map("sub", x, g.map("log", g.reduce("sum", g.map("exp", x), -1, keepdims=True)))


def mean(g: Graph, x: SSAValue) -> SSAValue:
    return g.reduce("mean", x, -1, keepdims=True)


def rms(g: Graph, x: SSAValue) -> SSAValue:
    y = g.map("mul", x, g.map("rsqrt", g.map("add", mean(g, g.map("mul", x, x)), 0.1)))
    return g.map("add", g.map("mul", g.weight("w", [4]), y), g.weight("c", [4]))


def layer(g: Graph, x: SSAValue) -> SSAValue:
    y = g.map("sub", x, g.map("div", g.reduce("sum", x, -1, keepdims=True), 4.0))
    root = g.map("sqrt", g.map("add", mean(g, g.map("mul", y, y)), 0.1))
    return g.map("mul", y, g.map("reciprocal", root))


def layer_by_two_means(g: Graph, x: SSAValue) -> SSAValue:
    m = mean(g, x)
    gap = g.map("sub", mean(g, g.map("mul", x, x)), g.map("mul", m, m))
    return g.map("div", g.map("sub", x, m), g.map("sqrt", g.map("add", gap, 0.1)))


def rotary(g: Graph, x: SSAValue) -> SSAValue:
    a, b = g.slice(x, -1, 0, 2), g.slice(x, -1, 2, 4)
    turned = g.concat(-1, g.map("neg", b), a)
    return g.map("add", g.map("mul", x, g.input("cos", [4, 4])), g.map("mul", turned, g.input("sin", [4, 4])))


def rotary_by_halves(g: Graph, x: SSAValue) -> SSAValue:
    a, b = g.slice(x, -1, 0, 2), g.slice(x, -1, 2, 4)
    cos, sin = g.input("cos", [4, 2]), g.input("sin", [4, 2])
    first = g.map("sub", g.map("mul", a, cos), g.map("mul", b, sin))
    return g.concat(-1, first, g.map("add", g.map("mul", b, cos), g.map("mul", a, sin)))


def rotary_by_pairs(g: Graph, x: SSAValue) -> SSAValue:
    pairs = g.reshape(x, 4, 2, 2)
    a, b = (g.slice(pairs, -1, i, i + 1) for i in (0, 1))
    turned = g.reshape(g.concat(-1, g.map("neg", b), a), 4, 4)
    return g.map("add", g.map("mul", x, g.input("cos", [4, 4])), g.map("mul", turned, g.input("sin", [4, 4])))


def heads(g: Graph, count: int = 2) -> tuple[SSAValue, SSAValue]:
    k, v = (g.input(name, [1, count, 4, 4]) for name in "kv")
    return k, v


def capped(g: Graph, x: SSAValue) -> SSAValue:
    (k, v), q = heads(g), g.broadcast(g.reshape(x, 1, 1, 4, 4), 1, 2, 4, 4)
    logits = g.map("mul", g.matmul(g.map("mul", q, 0.3), k, transpose_b=True), 0.5)
    logits = g.map("mul", g.map("tanh", g.map("div", logits, 3.0)), 3.0)
    return g.matmul(g.softmax(g.map("add", logits, g.input("bias", [4, 4]))), v)


def repeated(g: Graph, x: SSAValue) -> SSAValue:
    (k, v), q = heads(g, 1), g.broadcast(g.reshape(x, 1, 1, 4, 4), 1, 2, 4, 4)
    k, v = (g.reshape(g.broadcast(g.reshape(y, 1, 1, 1, 4, 4), 1, 1, 2, 4, 4), 1, 2, 4, 4) for y in (k, v))
    return g.matmul(g.softmax(g.matmul(q, g.transpose(k, 0, 1, 3, 2))), v)


PATTERNS: list[tuple[Build, str]] = [
    (gelu, "gelu"),
    (gelu_tanh, "gelu"),
    (sigmoid, "sigmoid"),
    (silu, "silu"),
    (gated, "silu"),
    (softplus, "softplus"),
    (relu, "relu"),
    (softmax, "softmax"),
    (softmax_by_reciprocal, "softmax"),
    (log_softmax, "softmax"),
    (rms, "norm"),
    (layer, "norm"),
    (layer_by_two_means, "norm"),
    (rotary, "rotary"),
    (rotary_by_halves, "rotary"),
    (rotary_by_pairs, "rotary"),
    (capped, "attention"),
    (repeated, "attention"),
]


@pytest.mark.parametrize(("build", "name"), PATTERNS, ids=lambda p: p if isinstance(p, str) else p.__name__)
def test_a_pattern_with_one_change_still_computes_the_same(build: Build, name: str, seed: int) -> None:
    g = Graph(dtype="f64")
    module = g.done(build(g, g.input("x", [4, 4])))
    ctx = context(module)
    ground(module, PASSES, seed=seed, ctx=ctx)
    assert name in [a.what for a in ctx.applied if a.pass_name == "recognize"]
    rng = np.random.default_rng(seed)
    for what, changed in changes(module):
        try:
            computes_the_same(changed, transform(changed, PASSES), rng)
        except Exception as fault:
            raise AssertionError(f"{build.__name__}, {what}: {fault!r}") from fault


def computes_the_same(before: ModuleOp, after: ModuleOp, rng: np.random.Generator) -> None:
    """As `ground` has it, once, for fixed sizes in float64."""
    given = draw_values(before, {}, rng)
    wanted, found = (outcome(module, given, wide=True) for module in (before, after))
    slack = unit_of(DTYPES["f64"]) * depth(before) * width(before, {})
    for name, value in wanted.items():
        compare(name, value, found[name], slack, False, "fixed sizes")

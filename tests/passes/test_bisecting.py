"""A bisecting limit holds back every pass: with no rewrites allowed it does not touch the module, nor say it did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph
from tilewright.ir.graph.experts import ExpertsOp
from tilewright.ir.graph.linear_attention import LinearAttentionOp
from tilewright.ir.graph.windows import ConvolutionOp
from tilewright.ir.module import print_module
from tilewright.ir.passing import Context
from tilewright.testing import context, ground, transform

Build = Callable[[Graph], SSAValue]


def constants_meet(g: Graph) -> SSAValue:
    return g.map("add", g.input("x", ["b", 6]), g.map("exp", g.constant(2.0)))


def equal_ops(g: Graph) -> SSAValue:
    x = g.input("x", ["b", 6])
    return g.map("sub", g.map("exp", x), g.reduce("sum", g.map("exp", x), 1, keepdims=True))


def convolved(g: Graph, window: int = 3) -> SSAValue:
    pad = [window // 2] * 2
    stated = {"strides": [1, 1], "padding_low": pad, "padding_high": pad, "dilation": [1, 1]}
    return g.op(ConvolutionOp, g.input("x", ["b", 4, 5, 6]), g.weight("w", [5, 4, window, window]), None, **stated)


def convolved_by_one(g: Graph) -> SSAValue:
    return convolved(g, 1)


def twice_negated(g: Graph) -> SSAValue:
    return g.map("neg", g.map("neg", g.input("x", ["b", 6])))


def rms(g: Graph) -> SSAValue:
    x = g.input("x", ["b", 8])
    square = g.reduce("mean", g.map("mul", x, x), 1, keepdims=True)
    return g.map("mul", x, g.map("rsqrt", g.map("add", square, 0.1)))


def two_products(g: Graph) -> SSAValue:
    x = g.input("x", ["b", 6])
    left, right = (g.map("exp", g.matmul(x, g.weight(name, [6, 8]))) for name in ("u", "v"))
    return g.map("add", g.softmax(left), g.softmax(right))


def routed(g: Graph) -> SSAValue:
    x, indices, share = g.input("x", ["b", 6]), g.input("i", ["b", 2], "i64"), g.input("w", ["b", 2])
    up, down = g.weight("up", [3, 10, 6]), g.weight("down", [3, 6, 5])
    return g.op(ExpertsOp, x, indices, share, up, down, activation="gelu")


def remembered(g: Graph) -> SSAValue:
    keys, values = g.input("k", ["b", 5, 1, 3]), g.input("v", ["b", 5, 2, 4])
    return g.op(LinearAttentionOp, keys, keys, values, g.map("neg", g.map("abs", g.input("d", ["b", 5, 2]))))


def weighed(g: Graph) -> SSAValue:
    return g.map("mul", g.input("x", ["b", 6]), g.map("exp", g.weight("w", [6])))


def product(g: Graph) -> SSAValue:
    return g.matmul(g.input("x", ["b", 6]), g.weight("w", [6, 8]))


def layers(g: Graph) -> SSAValue:
    x = g.input("x", ["b", 6])
    for number in range(3):
        g.path = f"net.{number}"
        y = g.map("exp", g.map("neg", g.matmul(g.map("tanh", x), g.weight(f"w{number}", [6, 6]))))
        x = g.map("add", g.map("sin", y), x)
    g.path = ""
    return x


@pytest.mark.parametrize(
    ("passes", "build", "before"),
    [
        ("canonicalize", equal_ops, ""),
        ("canonicalize", twice_negated, ""),
        ("fold", constants_meet, ""),
        ("channels-last", convolved, ""),
        ("channels-last", convolved_by_one, ""),
        ("recognize", rms, ""),
        ("merge-shared-lhs{min-saved=0}", two_products, ""),
        ("expand-experts", routed, ""),
        ("expand-recurrences", remembered, ""),
        ("hoist-weights", weighed, ""),
        ("set-precision", product, ""),
        ("dedupe-layers", layers, ""),
        ("plan-layout", product, "fuse"),
        ("plan-layout", convolved, "channels-last,hoist-weights,fuse"),
    ],
)
def test_no_rewrite_is_done_that_the_limit_forbids(passes: str, build: Build, before: str, seed: int) -> None:
    g = Graph("b: 1..4")
    module = g.done(build(g))
    whole = f"{before},{passes}".strip(",")
    done = len(run_to(module, before).applied)
    free, held = (run_to(module, whole, limit) for limit in (None, done))
    assert len(free.applied) > done, "the sample has nothing to rewrite"
    assert len(held.applied) == done
    untouched, after = transform(module, before or []), transform(module, whole, context(module, limit=done))
    assert print_module(after) == print_module(untouched)
    ground(module, whole, seed=seed, rounding="bf16", ctx=context(module, limit=done + 1))


def run_to(module: ModuleOp, passes: str, limit: int | None = None) -> Context:
    ctx = context(module, limit=limit)
    transform(module, passes or [], ctx)
    return ctx

"""One change anywhere in what a pattern is written for leaves the function as it is: recognized or not, it grounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tests.passes.one_change import changes
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.equivalence import compare, depth, draw_values, outcome, unit_of, width
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
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


Change = Callable[[Graph, SSAValue], SSAValue]


def attend(g: Graph, x: SSAValue, change: Change) -> SSAValue:
    """x attends to itself, with `change` between the product and the softmax."""
    x = g.reshape(x, 1, 1, 4, 4)
    return g.matmul(g.softmax(change(g, g.matmul(x, x, transpose_b=True))), x)


def cap(g: Graph, x: SSAValue, limit: float) -> SSAValue:
    return g.map("mul", g.map("tanh", g.map("div", x, limit)), limit)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda g, p: g.map("div", 2.0, p), False),
        (lambda g, p: g.map("div", p, 0.0), False),
        (lambda g, p: cap(g, cap(g, p, 5.0), 3.0), False),
        (lambda g, p: g.map("mul", g.map("tanh", g.map("mul", p, 0.0)), 3.0), False),
        (lambda g, p: g.map("select", g.map("gt", p, 0.0), p, -1.0), False),
        (lambda g, p: g.map("max", p, -0.5), False),
        (lambda g, p: g.map("mul", p, p), False),
        (lambda g, p: cap(g, g.map("select", g.input("c", [4, 4], "i1"), p, -1e30), 3.0), False),
        (lambda g, p: g.map("mul", g.map("add", p, g.input("bias", [4, 4])), -0.5), False),
        (lambda g, p: g.map("mul", p, g.constant(0.5, [3, 1, 4, 4])), False),
        (lambda g, p: g.map("add", g.input("bias", [4, 4]), cap(g, p, 3.0)), True),
        # numbers that are no mask, though they look like one
        (lambda g, p: g.map("add", p, g.map("select", lower(g), 1.0, 0.0)), True),
        (lambda g, p: g.map("add", p, g.map("select", lower(g), -1e30, 1.0)), True),
        (lambda g, p: g.map("add", p, g.map("mul", g.input("m", [4, 4]), -1e30)), True),
        (lambda g, p: g.map("add", p, g.map("mul", g.cast(g.input("m", [4, 4], "i64"), "f64"), -1e30)), True),
        (lambda g, p: g.map("add", p, g.map("mul", g.map("sub", 0.0, g.cast(lower(g), "f64")), -1e30)), True),
        (lambda g, p: g.map("add", p, g.map("mul", g.map("sub", 1.0, g.input("m", [4, 4])), -1e30)), True),
        (lambda g, p: g.map("add", p, g.map("mul", g.map("sub", 1.0, g.cast(g.iota(4), "f64")), -1e30)), True),
        (lambda g, p: g.map("add", p, g.reshape(over_all_rows(g), 1, 1, 4, 4)), True),
    ],
)
def test_what_stands_between_product_and_softmax(change: Change, found: bool, seed: int) -> None:
    left = recognized(lambda g, x: attend(g, x, change), [4, 4], seed)
    assert ("attention" in left) == found


def lower(g: Graph) -> SSAValue:
    return g.map("le", g.reshape(g.iota(4), 1, 4), g.reshape(g.iota(4), 4, 1))


def over_all_rows(g: Graph) -> SSAValue:
    """A mask of keys whose numbers give it rows."""
    return g.map("select", g.map("lt", g.iota(4), 3), g.constant(0.0, [4, 4]), -1e30)


@pytest.mark.parametrize(
    "mask",
    [
        lambda g: g.cast(g.map("select", lower(g), g.constant(0.0, (), "f32"), g.constant(-1e30, (), "f32")), "f64"),
        lambda g: g.map("select", g.map("not", lower(g)), -1e30, 0.0),
        lambda g: g.map("mul", g.cast(g.map("not", lower(g)), "f64"), -1e30),
        lambda g: g.map("mul", g.map("sub", 1.0, g.cast(lower(g), "f64")), -1e30),
    ],
)
def test_a_mask_of_numbers_is_a_condition_however_it_is_written(mask: Callable[[Graph], SSAValue], seed: int) -> None:
    g = Graph(dtype="f64")
    x = g.input("x", [4, 4])
    module = g.done(attend(g, x, lambda g, p: g.map("add", p, mask(g))))
    (found,) = [op for op in ground(module, PASSES, seed=seed).walk() if isinstance(op, AttentionOp)]
    assert found.bias is None
    assert found.mask.data == "causal" or found.valid is not None


@pytest.mark.parametrize(
    "build",
    [
        lambda g, x: attend(g, x, lambda g, p: g.map("exp", p)),
        lambda g, x: g.matmul(g.softmax(x), x),
        lambda g, x: g.matmul(g.softmax(g.matmul(x, x), log=True), x),
    ],
)
def test_what_has_nothing_of_attention_is_no_near_miss(build: Build, seed: int) -> None:
    g = Graph(dtype="f64")
    module = g.done(build(g, g.input("x", [4, 4])))
    ctx = context(module)
    assert "attention" not in ops_of(ground(module, PASSES, seed=seed, ctx=ctx))
    assert not ctx.refused


def test_a_number_repeated_for_all_keys_has_no_heads(seed: int) -> None:
    g = Graph(dtype="f64")
    q = g.input("q", [4, 4])
    k, v = (g.reshape(g.broadcast(g.reshape(g.input(name, []), 1), 16), 4, 4) for name in "kv")
    module = g.done(g.matmul(g.softmax(g.matmul(q, k, transpose_b=True)), v))
    assert "attention" in ops_of(ground(module, Recognize(), seed=seed))


def row(g: Graph, counted: SSAValue | None = None) -> SSAValue:
    return g.reshape(g.iota(4) if counted is None else counted, 1, 4)


def column(g: Graph, counted: SSAValue | None = None) -> SSAValue:
    return g.reshape(g.iota(4) if counted is None else counted, 4, 1)


def some(g: Graph, name: str, dtype: str = "i64") -> SSAValue:
    return g.input(name, [4], dtype)


@pytest.mark.parametrize(
    ("condition", "kind"),
    [
        (lambda g: g.map("le", row(g), column(g)), "causal"),
        (lambda g: g.map("ge", column(g), row(g)), "causal"),
        (lambda g: g.map("lt", row(g), g.map("add", column(g), 1)), "causal"),
        (lambda g: g.map("le", row(g), column(g, g.slice(g.iota(8), 0, 0, 4))), "causal"),
        (lambda g: g.map("le", row(g, g.slice(g.iota(8), 0, 2, 6)), column(g, g.slice(g.iota(8), 0, 2, 6))), "causal"),
        (lambda g: g.map("le", row(g, g.positions(4)), column(g, g.positions(4))), "causal"),
        (lambda g: g.constant([int(j <= i) for i in range(4) for j in range(4)], [4, 4], "i1"), "causal"),
        (
            lambda g: g.map("not", g.map("or", g.map("gt", row(g), column(g)), g.map("lt", row(g), older(g, 2)))),
            "sliding",
        ),
        # not two counts by one of one thing
        (lambda g: g.map("le", g.map("mul", row(g), 2), column(g)), "none"),
        (lambda g: g.map("le", row(g, g.slice(g.iota(8), 0, 0, 8, 2)), column(g)), "none"),
        (lambda g: g.map("le", row(g, g.slice(g.positions(8), 0, 0, 4)), column(g, g.positions(4))), "none"),
        (lambda g: g.map("le", row(g, g.slice(g.map("min", g.input("m", [8], "i64"), 0), 0, 1, 5)), column(g)), "none"),
        (lambda g: g.map("le", row(g, g.map("min", some(g, "m"), 0)), column(g)), "none"),
        (lambda g: g.map("le", row(g), column(g, g.map("max", some(g, "m"), 0))), "none"),
        (lambda g: g.map("ge", g.reshape(g.iota(16), 4, 4), column(g)), "none"),
        (lambda g: g.map("ge", row(g), row(g, g.iota(4, -1))), "none"),
        (lambda g: g.map("le", row(g), column(g, g.positions(4))), "none"),
        (lambda g: g.map("or", g.input("c", [4, 4], "i1"), lower(g)), "none"),
        (lambda g: g.constant([1, 0, 0, 1], [4], "i1"), "none"),
        # a window alone; an upper bound that is no causal one; windows of nothing and of a varying size
        (lambda g: g.map("gt", row(g), older(g, 2)), "none"),
        (lambda g: g.map("le", row(g), g.map("add", column(g), 1)), "none"),
        (lambda g: g.map("and", lower(g), g.map("ge", row(g), g.map("sub", column(g), older_by(g)))), "causal"),
        # positions of one kind for the window, of another for the bound
        (lambda g: g.map("and", lower(g), g.map("gt", row(g, g.positions(4)), column_less(g, 2))), "causal"),
        (lambda g: g.map("lt", g.iota(4), 3), "none"),
    ],
)
def test_conditions_on_counts_are_what_they_are(condition: Callable[[Graph], SSAValue], kind: str, seed: int) -> None:
    g = Graph(dtype="f64")
    q, k, v = (g.input(name, [1, 2, 4, 4]) for name in "qkv")
    logits = g.map("select", condition(g), g.matmul(q, k, transpose_b=True), -math.inf)
    after = ground(g.done(g.matmul(g.softmax(logits), v)), PASSES, seed=seed)
    (found,) = [op for op in after.walk() if isinstance(op, AttentionOp)]
    assert found.mask.data == kind


def older_by(g: Graph) -> SSAValue:
    return g.map("max", g.input("m", [1, 1], "i64"), 0)


def column_less(g: Graph, by: int) -> SSAValue:
    return g.map("sub", column(g, g.positions(4)), by)


def older(g: Graph, by: int) -> SSAValue:
    return g.map("sub", column(g), by)


def test_a_size_of_the_call_may_shift_a_count(seed: int) -> None:
    g = Graph("t: 1..3", "s: 3..5", dtype="f64")
    q, k, v = (g.input(name, [1, 2, length, 4]) for name, length in (("q", "t"), ("k", "s"), ("v", "s")))
    queries = g.map("add", g.iota("t"), g.dim("s - t"))
    seen = g.map("le", g.reshape(g.iota("s"), 1, "s"), g.reshape(queries, "t", 1))
    logits = g.map("select", seen, g.matmul(q, k, transpose_b=True), -math.inf)
    after = ground(g.done(g.matmul(g.softmax(logits), v)), PASSES, seed=seed)
    (found,) = [op for op in after.walk() if isinstance(op, AttentionOp)]
    assert (found.mask.data, found.valid) == ("causal", None)


def test_a_mask_that_hides_everything_is_a_condition_like_others() -> None:
    g = Graph("t: 1..4", dtype="f64")
    x = g.input("x", [1, 2, "t", 4])
    logits = g.map("select", g.constant(0, ["t", "t"], "i1"), g.matmul(x, x, transpose_b=True), -math.inf)
    after = transform(g.done(g.matmul(g.softmax(logits), x)), Recognize())
    (found,) = [op for op in after.walk() if isinstance(op, AttentionOp)]
    assert (found.mask.data, found.valid is None) == ("none", False)


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


@pytest.mark.parametrize(("dtype", "between"), [("bf16", "f64"), ("f64", "f32"), ("i32", "f32")])
def test_a_norm_between_other_casts_keeps_them(dtype: str, between: str, seed: int) -> None:
    g = Graph(dtype=dtype)
    module = g.done(g.cast(g.norm(g.cast(g.input("x", [3, 4]), between), eps=0.1), dtype))
    rounding = "bf16" if dtype == "bf16" else "f32"
    assert ops_of(ground(module, PASSES, seed=seed, rounding=rounding)) == ["cast", "norm", "cast"]


def test_logits_rounded_before_the_softmax_are_no_attention(seed: int) -> None:
    g = Graph(dtype="f32")
    x = g.input("x", [1, 2, 4, 4])
    weights = g.cast(g.softmax(g.cast(g.matmul(x, x, transpose_b=True), "bf16")), "f32")
    assert "attention" not in ops_of(ground(g.done(g.matmul(weights, x)), PASSES, seed=seed, rounding="bf16"))


def test_keys_repeated_one_after_another_stay_so(seed: int) -> None:
    g = Graph(dtype="f64")
    q, k, v = (g.input(name, [1, 1, 4, 4]) for name in "qkv")
    k, v = (g.reshape(g.broadcast(g.reshape(y, 1, 1, 1, 4, 4), 1, 1, 2, 4, 4), 1, 1, 8, 4) for y in (k, v))
    after = ground(g.done(g.matmul(g.softmax(g.matmul(q, k, transpose_b=True)), v)), PASSES, seed=seed)
    (found,) = [op for op in after.walk() if isinstance(op, AttentionOp)]
    assert tensor(found.k).dims[-2].constant == 8


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

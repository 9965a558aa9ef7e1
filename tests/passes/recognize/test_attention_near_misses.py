"""Logits, masks and heads that nearly are attention's: what is another function stays one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.recognize import Recognize
from tilewright.testing import context, ground, transform

Build = Callable[[Graph, SSAValue], SSAValue]
PASSES = [Canonicalize(), Recognize()]


def recognized(build: Build, dims: list[int], seed: int) -> list[str]:
    g = Graph(dtype="f64")
    return ops_of(ground(g.done(build(g, g.input("x", dims))), PASSES, seed=seed))


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
        (lambda g, p: g.map("add", p, over_all_rows(g)), True),
    ],
)
def test_what_stands_between_product_and_softmax(change: Change, found: bool, seed: int) -> None:
    left = recognized(lambda g, x: attend(g, x, change), [4, 4], seed)
    assert ("attention" in left) == found


def lower(g: Graph) -> SSAValue:
    return g.map("le", g.reshape(g.iota(4), 1, 4), g.reshape(g.iota(4), 4, 1))


def over_all_rows(g: Graph) -> SSAValue:
    """Some rows of a mask of keys whose numbers give it rows."""
    return g.slice(g.map("select", g.map("lt", g.iota(4), 3), g.constant(0.0, [8, 4]), -1e30), 0, 0, 4)


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
        (lambda g: g.map("le", row(g, later(g)), column(g, later(g))), "none"),
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
        (lambda g: g.map("le", row(g), g.transpose(g.reshape(g.iota(16), 4, 4), 1, 0)), "none"),
        (lambda g: g.map("le", row(g), row(g)), "none"),
        # keys from the query on
        (lambda g: g.map("ge", row(g), column(g)), "none"),
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


def later(g: Graph) -> SSAValue:
    return g.slice(g.positions(8), 0, 2, 6)


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


@pytest.mark.parametrize(
    "other",
    [
        lambda g: g.map("le", row(g), older(g, 1)),  # a second upper bound, which hides the first key from its query
        lambda g: g.map("ge", row(g), older(g, -1)),  # a window of nothing
    ],
)
def test_a_bound_that_hides_all_keys_of_a_row_is_a_condition_like_others(other: Callable[[Graph], SSAValue]) -> None:
    """What is written out gives NaN there, so that nothing can be compared."""
    g = Graph(dtype="f64")
    q, k, v = (g.input(name, [1, 2, 4, 4]) for name in "qkv")
    seen = g.map("and", lower(g), other(g))
    logits = g.map("select", seen, g.matmul(q, k, transpose_b=True), -math.inf)
    after = transform(g.done(g.matmul(g.softmax(logits), v)), PASSES)
    (found,) = [op for op in after.walk() if isinstance(op, AttentionOp)]
    assert (found.mask.data, found.valid is None) == ("causal", False)


@pytest.mark.parametrize("first", [True, False])
def test_a_bias_of_the_logits_dims_is_told_from_the_logits(first: bool, seed: int) -> None:
    g = Graph(dtype="f64")
    q, k, v = (g.input(name, [1, 2, 4, 4]) for name in "qkv")
    terms = [g.input("bias", [1, 2, 4, 4]), g.matmul(q, k, transpose_b=True)]
    logits = g.map("add", *(terms if first else reversed(terms)))
    after = ground(g.done(g.matmul(g.softmax(logits), v)), Recognize(), seed=seed)
    assert ops_of(after) == ["attention"]


def test_a_window_of_a_size_that_varies_is_a_condition(seed: int) -> None:
    g = Graph("n: 1..3", dtype="f64")
    g.sized("n")
    q, k, v = (g.input(name, [1, 2, 4, 4]) for name in "qkv")
    seen = g.map("and", lower(g), g.map("gt", row(g), g.map("sub", column(g), g.dim("n"))))
    logits = g.map("select", seen, g.matmul(q, k, transpose_b=True), -math.inf)
    after = ground(g.done(g.matmul(g.softmax(logits), v)), PASSES, seed=seed)
    (found,) = [op for op in after.walk() if isinstance(op, AttentionOp)]
    assert (found.mask.data, found.valid is None) == ("causal", False)


@pytest.mark.parametrize("dims", [["t", "t"], []])
def test_a_mask_that_hides_everything_is_a_condition_like_others(dims: list[str]) -> None:
    g = Graph("t: 1..4", dtype="f64")
    x = g.input("x", [1, 2, "t", 4])
    logits = g.map("select", g.constant(0, dims, "i1"), g.matmul(x, x, transpose_b=True), -math.inf)
    after = transform(g.done(g.matmul(g.softmax(logits), x)), Recognize())
    (found,) = [op for op in after.walk() if isinstance(op, AttentionOp)]
    assert (found.mask.data, found.valid is None) == ("none", False)


def test_logits_rounded_before_the_softmax_are_no_attention(seed: int) -> None:
    g = Graph(dtype="f32")
    x = g.input("x", [1, 2, 4, 4])
    weights = g.cast(g.softmax(g.cast(g.matmul(x, x, transpose_b=True), "bf16")), "f32")
    assert "attention" not in ops_of(ground(g.done(g.matmul(weights, x)), PASSES, seed=seed, rounding="bf16"))


def test_keys_repeated_one_after_another_stay_so(seed: int) -> None:
    g = Graph(dtype="f64")
    q, k, v = (g.input(name, [1, 2, 4, 4]) for name in "qkv")
    k, v = (g.reshape(g.broadcast(g.reshape(y, 1, 2, 1, 4, 4), 1, 2, 2, 4, 4), 1, 2, 8, 4) for y in (k, v))
    after = ground(g.done(g.matmul(g.softmax(g.matmul(q, k, transpose_b=True)), v)), PASSES, seed=seed)
    (found,) = [op for op in after.walk() if isinstance(op, AttentionOp)]
    assert tensor(found.k).dims[-2].constant == 8


def test_heads_of_a_size_that_varies_stay_products_and_a_softmax() -> None:
    g = Graph("width: 1..9", dtype="f32")
    x = g.input("x", [2, 3, 5, "width"])
    module = g.done(g.matmul(g.softmax(g.matmul(x, x, transpose_b=True)), x))
    ctx = context(module)
    assert "attention" not in ops_of(transform(module, PASSES, ctx))
    assert any("head dims must be fixed numbers, not width" in refusal.reason for refusal in ctx.refused)

"""The conditions of recognize, each with a module that is nearly but not quite what the pattern means."""

from __future__ import annotations

import math
from collections.abc import Callable

from xdsl.ir import SSAValue

from tests.passes.graphs import Graph
from tests.passes.mutation import Build, mutation, x_of

MINUS = -math.inf


def gelu(g: Graph, half: float = 0.5, root: float = math.sqrt(0.5)) -> SSAValue:
    x = x_of(g)
    return g.map("mul", g.map("mul", x, half), g.map("add", g.map("erf", g.map("mul", x, root)), 1.0))


def gelu_tanh(g: Graph, coefficient: float) -> SSAValue:
    x = x_of(g)
    inner = g.map("add", x, g.map("mul", coefficient, g.map("pow", x, 3.0)))
    t = g.map("tanh", g.map("mul", math.sqrt(2 / math.pi), inner))
    return g.map("mul", g.map("mul", x, 0.5), g.map("add", t, 1.0))


def logistic(g: Graph, one: float) -> SSAValue:
    return g.map("div", 1.0, g.map("add", g.map("exp", g.map("neg", x_of(g))), one))


def softmax(g: Graph, fn: str = "sum", top_of: str = "x") -> SSAValue:
    x = x_of(g)
    other = g.map("mul", x, x) if top_of == "y" else x
    e = g.map("exp", g.map("sub", x, g.reduce("max", other, -1, keepdims=True)))
    return g.map("div", e, g.reduce(fn, e, -1, keepdims=True))


def shifted_by_another_axis(g: Graph) -> SSAValue:
    """exp(x - largest of the column) over its sum along the row: a softmax of the difference, not of x."""
    x = x_of(g, 6, 6)
    e = g.map("exp", g.map("sub", x, g.reduce("max", x, 0, keepdims=True)))
    return g.map("div", e, g.reduce("sum", e, -1, keepdims=True))


def gate_of_another(g: Graph) -> SSAValue:
    x = x_of(g)
    return g.map("mul", x, g.map("sigmoid", g.map("mul", x, 1.7)))


def norm(
    g: Graph,
    *,
    kind: str = "rms",
    count: float = 6.0,
    square: str = "y",
    mean: str = "x",
    weight: list[int] | None = None,
) -> SSAValue:
    x = x_of(g)

    def average(v: SSAValue) -> SSAValue:
        return g.map("div", g.reduce("sum", v, -1, keepdims=True), count)

    y = x if kind == "rms" else g.map("sub", x, average(x if mean == "x" else g.map("exp", x)))
    squared = g.map("mul", y, y) if square == "y" else g.map("mul", y, g.map("exp", y))
    out = g.map("div", y, g.map("sqrt", g.map("add", average(squared), 0.1)))
    return out if weight is None else g.map("mul", out, g.weight("w", weight))


def narrow_norm(g: Graph, between: str = "f32") -> SSAValue:
    wide = g.cast(x_of(g), between)
    return g.cast(g.norm(wide, kind="rms", eps=0.1), "bf16")


def twice_scaled(g: Graph, fn: str) -> SSAValue:
    inner = g.norm(x_of(g), g.weight("w", [6]), g.weight("c", [6]), eps=0.1)
    return g.map(fn, inner, g.weight("v", [6]))


def rotary(g: Graph, fault: str) -> SSAValue:
    x, cos, sin = x_of(g, "t", 8), g.input("cos", ["t", 8]), g.input("sin", ["t", 8])
    a, b = g.slice(x, -1, 0, 4), g.slice(x, -1, 4, 8)
    straight = x
    if fault == "two tensors":
        b = g.slice(g.map("exp", x), -1, 4, 8)
    else:
        straight = g.map("exp", x)
    return g.map("add", g.map("mul", straight, cos), g.map("mul", g.concat(-1, g.map("neg", b), a), sin))


def swapped_halves(g: Graph) -> SSAValue:
    x, cos, sin = x_of(g, "t", 8), g.input("cos", ["t", 4]), g.input("sin", ["t", 4])
    a, b = g.slice(x, -1, 4, 8), g.slice(x, -1, 0, 4)
    first = g.map("sub", g.map("mul", a, cos), g.map("mul", b, sin))
    return g.concat(-1, first, g.map("add", g.map("mul", b, cos), g.map("mul", a, sin)))


def heads(g: Graph) -> tuple[SSAValue, SSAValue, SSAValue]:
    q, k, v = (g.input(n, ["b", 2, "t", 4]) for n in "qkv")
    return q, k, v


def attention(g: Graph, change: Callable[[Graph, SSAValue], SSAValue]) -> SSAValue:
    q, k, v = heads(g)
    return g.matmul(g.softmax(change(g, g.matmul(q, k, transpose_b=True))), v)


def counts(g: Graph, start: int = 0, step: int = 1) -> tuple[SSAValue, SSAValue]:
    """Key and query indices, ready to compare."""
    return g.reshape(g.iota("t", start, step), 1, "t"), g.reshape(g.iota("t", 0, step), "t", 1)


def masked(condition: Callable[[Graph], SSAValue], fill: float = MINUS) -> Build:
    return lambda g: attention(g, lambda g, logits: g.map("select", condition(g), logits, fill))


def strictly_lower(g: Graph) -> SSAValue:
    """The first query sees no key: where its keys are not taken as hidden, it gives their average."""
    keys, queries = counts(g)
    return g.map("lt", keys, queries)


def lower(g: Graph) -> SSAValue:
    keys, queries = counts(g)
    return g.map("le", keys, queries)


def near_and_causal(g: Graph) -> SSAValue:
    keys, queries = counts(g)
    return g.map("and", g.map("gt", keys, g.map("sub", queries, 2)), g.map("le", keys, queries))


def per_head(g: Graph) -> SSAValue:
    """Which keys are seen depends on the head."""
    seen = g.input("seen", [1, 2, 1, "t"])
    return g.map(
        "or", g.map("gt", seen, 0.0), g.map("eq", g.reshape(g.iota("t"), 1, 1, 1, "t"), g.constant(0, (), "i64"))
    )


RECOGNIZE_PASSES = "canonicalize,recognize,canonicalize"
RECOGNIZE = [
    mutation("recognize.activations.is_half_of_x_and_xf", lambda g: gelu(g, half=0.6), RECOGNIZE_PASSES),
    mutation("recognize.activations.is_erf_argument", lambda g: gelu(g, root=0.6), RECOGNIZE_PASSES),
    mutation("recognize.activations.is_tanh_argument", lambda g: gelu_tanh(g, 0.05), RECOGNIZE_PASSES),
    mutation("recognize.activations.is_one", lambda g: logistic(g, 1.2), RECOGNIZE_PASSES),
    mutation("recognize.activations.is_gate_of", gate_of_another, RECOGNIZE_PASSES),
    mutation("recognize.activations.is_sum_of", lambda g: softmax(g, fn="max"), RECOGNIZE_PASSES),
    mutation("recognize.activations.is_max_of", shifted_by_another_axis, RECOGNIZE_PASSES),
    mutation("recognize.norms.divides_by_count", lambda g: norm(g, count=5.0), RECOGNIZE_PASSES),
    mutation("recognize.norms.is_square_of", lambda g: norm(g, square="z"), RECOGNIZE_PASSES),
    mutation("recognize.norms.is_mean_of", lambda g: norm(g, kind="layer", mean="z"), RECOGNIZE_PASSES),
    mutation("recognize.norms.is_column_weight", lambda g: norm(g, weight=[1]), RECOGNIZE_PASSES),
    mutation("recognize.norms.has_no_scale", lambda g: twice_scaled(g, "mul"), RECOGNIZE_PASSES),
    mutation("recognize.norms.has_no_shift", lambda g: twice_scaled(g, "add"), RECOGNIZE_PASSES),
    mutation(
        "recognize.norms.rounds_once_anyway",
        lambda g: g.map("mul", g.norm(x_of(g, 40, 64), kind="rms", eps=0.1), g.weight("w", [64])),
        RECOGNIZE_PASSES,
        dtype="bf16",
        exact=True,
    ),
    mutation(
        "recognize.norms.is_computed_in_f32_anyway",
        lambda g: g.cast(g.norm(g.cast(g.input("x", [40, 64], "f32"), "f64"), kind="rms", eps=0.1), "f32"),
        RECOGNIZE_PASSES,
        exact=True,
    ),
    mutation("recognize.rotary.are_neighbours", swapped_halves, RECOGNIZE_PASSES),
    mutation("recognize.rotary.are_alike", lambda g: rotary(g, "two tensors"), RECOGNIZE_PASSES),
    mutation("recognize.rotary.is_of", lambda g: rotary(g, "another"), RECOGNIZE_PASSES),
    mutation(
        "recognize.attention.scales_alone",
        lambda g: attention(
            g, lambda g, z: g.map("mul", g.map("add", z, g.map("mul", g.input("c", ["t", "t"]), 2.0)), 0.5)
        ),
        RECOGNIZE_PASSES,
    ),
    mutation(
        "recognize.attention.is_outside_cap",
        lambda g: attention(
            g,
            lambda g, z: g.map("mul", g.map("tanh", g.map("div", g.map("add", z, g.input("c", ["t", "t"])), 3.0)), 3.0),
        ),
        RECOGNIZE_PASSES,
    ),
    mutation(
        "recognize.attention.undoes_cap",
        lambda g: attention(g, lambda g, z: g.map("mul", g.map("tanh", g.map("div", z, 3.0)), 2.0)),
        RECOGNIZE_PASSES,
    ),
    mutation(
        "recognize.attention.keeps_values",
        lambda g: attention(g, lambda g, z: g.cast(g.cast(z, "i64"), "f64")),
        RECOGNIZE_PASSES,
    ),
    mutation("recognize.masks.hides", masked(strictly_lower, fill=-5e3), RECOGNIZE_PASSES),
    mutation(
        "recognize.masks.counts_by_one",
        masked(lambda g: g.map("le", g.reshape(g.iota("t", 0, 2), 1, "t"), g.reshape(g.iota("t"), "t", 1))),
        RECOGNIZE_PASSES,
    ),
    mutation(
        "recognize.masks.is_lower_triangle",
        lambda g: g.matmul(
            g.softmax(
                g.map(
                    "select",
                    g.constant([1, 1, 0, 1], [2, 2], "i1"),
                    g.matmul(x_of(g, 3, 2, 4), g.input("k", [3, 2, 4]), transpose_b=True),
                    MINUS,
                )
            ),
            g.input("v", [3, 2, 4]),
        ),
        RECOGNIZE_PASSES,
    ),
    mutation(
        "recognize.visibility.is_causal",
        masked(lambda g: g.map("le", counts(g)[0], g.map("add", counts(g)[1], 1))),
        RECOGNIZE_PASSES,
    ),
    mutation(
        "recognize.visibility.window_of",
        masked(near_and_causal),
        RECOGNIZE_PASSES,
        lambda bound, tq, tk: None if bound.upper else 7,
        sizes={"b": 2, "t": 5},
    ),
    mutation("recognize.visibility.is_per_key", masked(per_head), RECOGNIZE_PASSES),
]

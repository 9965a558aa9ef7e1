"""Every side condition earns its place: with it disabled, a crafted module no longer grounds.

A mutation replaces one named predicate by one that always (or never) holds. Unmutated, the module grounds; mutated, the
run differs in numbers, breaks a type, or cannot be ordered or lowered. So the tests that ground these passes can fail.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph
from tilewright.errors import TilewrightError
from tilewright.ir.graph.structure import GroupOp
from tilewright.testing import ground, transform

Build = Callable[[Graph], SSAValue]
MINUS = -math.inf


def always(*args: Any, **stated: Any) -> bool:
    return True


@dataclass(frozen=True)
class Mutation:
    """One predicate, what replaces it, and a module that needs it."""

    place: str
    build: Build
    passes: str
    replacement: Callable[..., Any] = always
    dtype: str = "f64"
    stated: dict[str, Any] = field(default_factory=dict)

    def module(self) -> ModuleOp:
        g = Graph("b: 1..4", "t: 2..7", dtype=self.dtype)
        g.sized("b", "t")
        return g.done(self.build(g))

    @property
    def name(self) -> str:
        return self.place.replace("tilewright.passes.", "")


def x_of(g: Graph, *dims: Any) -> SSAValue:
    return g.input("x", dims or ["b", 6])


def mutation(
    place: str, build: Build, passes: str, replacement: Callable[..., Any] = always, **stated: Any
) -> Mutation:
    dtype = stated.pop("dtype", "f64")
    return Mutation(f"tilewright.passes.{place}", build, passes, replacement, dtype, stated)


# --- canonicalize ---------------------------------------------------------------------------------------------------

ZERO = {"inputs": {"x": torch.tensor([-0.0, 1.0], dtype=torch.float64)}, "exact": True}


def joined_slices(g: Graph) -> SSAValue:
    x = x_of(g)
    return g.concat(1, g.slice(x, 1, 3, 6), g.slice(x, 1, 0, 3))


def two_norms(g: Graph) -> SSAValue:
    x = x_of(g)
    return g.map("sub", g.norm(x, eps=0.1), g.norm(x, eps=0.9))


CANONICALIZE = [
    mutation("canonicalize.shapes.keeps_dims", lambda g: g.reshape(x_of(g), "b", 2, 3), "canonicalize"),
    mutation("canonicalize.shapes.is_identity", lambda g: g.transpose(x_of(g, 4, 4), 1, 0), "canonicalize"),
    mutation("canonicalize.shapes.moves_only_units", lambda g: g.transpose(x_of(g, 4, 4), 1, 0), "canonicalize"),
    mutation(
        "canonicalize.shapes.swaps_last_two",
        lambda g: g.matmul(g.input("a", [4, 4, 4]), g.transpose(x_of(g, 4, 4, 4), 1, 0, 2)),
        "canonicalize",
    ),
    mutation(
        "canonicalize.shapes.loses_nothing",
        lambda g: g.cast(g.cast(x_of(g), "bf16"), "f64"),
        "canonicalize",
        exact=True,
    ),
    mutation(
        "canonicalize.shapes.passes_through", lambda g: g.cast(g.cast(x_of(g), "i8"), "f64"), "canonicalize", exact=True
    ),
    mutation("canonicalize.shapes.takes_all", lambda g: g.slice(x_of(g), 1, 1, 6), "canonicalize"),
    mutation("canonicalize.shapes.follow_one_another", joined_slices, "canonicalize"),
    mutation(
        "canonicalize.broadcasts.stretches_none",
        lambda g: g.map("add", g.broadcast(x_of(g, 6), "b", 6), g.weight("w", [6])),
        "canonicalize",
    ),
    mutation(
        "canonicalize.broadcasts.reduces_none_of",
        lambda g: g.reduce("sum", g.broadcast(x_of(g, "b", 1), "b", 6), 1),
        "canonicalize",
    ),
    mutation(
        "canonicalize.broadcasts.stretches_none_without",
        lambda g: g.map("add", x_of(g, 6), g.constant(1.5, ["b", 6])),
        "canonicalize",
    ),
    mutation("canonicalize.singles.is_unit", lambda g: g.reduce("sum", x_of(g), 1), "canonicalize"),
    mutation(
        "canonicalize.arithmetic.adds_nothing",
        lambda g: g.map("add", x_of(g, 2), 0.0),
        "canonicalize",
        lambda value, dtype: value == 0,
        **ZERO,
    ),
    mutation(
        "canonicalize.arithmetic.subtracts_nothing",
        lambda g: g.map("sub", x_of(g, 2), -0.0),
        "canonicalize",
        lambda value, dtype: value == 0,
        **ZERO,
    ),
    mutation(
        "canonicalize.arithmetic.is_negative_zero", lambda g: g.map("add", x_of(g, 2), 0.0), "canonicalize", **ZERO
    ),
    mutation(
        "canonicalize.arithmetic.is_exact_reciprocal",
        lambda g: g.map("div", x_of(g), 3.0),
        "canonicalize",
        dtype="f32",
        exact=True,
    ),
    mutation("canonicalize.arithmetic.is_identity_of", lambda g: g.map("max", x_of(g), 0.2), "canonicalize"),
    mutation(
        "canonicalize.arithmetic.is_boolean",
        lambda g: g.map("and", g.input("i", ["b", 6], "i64"), 1),
        "canonicalize",
    ),
    mutation(
        "canonicalize.arithmetic.gives_dims",
        lambda g: g.map("mul", x_of(g, 6), g.constant(1.0, ["b", 6])),
        "canonicalize",
    ),
    mutation(
        "canonicalize.sharing.identity",
        two_norms,
        "canonicalize",
        lambda op: (op.name, tuple(map(id, op.operands)), tuple(r.type for r in op.results)),
    ),
]

# --- fold -----------------------------------------------------------------------------------------------------------

FOLD = [
    mutation("fold.all_constant", lambda g: g.map("exp", x_of(g, 6)), "fold"),
    mutation(
        "fold.computes_each_element_alone",
        lambda g: g.map("add", x_of(g, 6), g.reduce("sum", g.constant(1.5, [4]), 0)),
        "fold",
    ),
    mutation("fold.fits", lambda g: g.map("add", x_of(g), g.reduce("sum", g.constant(1.5, ["b"]), 0)), "fold"),
]

# --- recognize ------------------------------------------------------------------------------------------------------


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
    mutation("recognize.masks.hides", masked(lower, fill=-2.0), RECOGNIZE_PASSES),
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


# --- dedupe-layers --------------------------------------------------------------------------------------------------


def layers(g: Graph, odd: str) -> SSAValue:
    """Three layers, the middle one odd in one way; "probed": an op outside reads and feeds every layer."""
    x = x_of(g)
    for i in range(3):
        g.path = f"net.{i}"
        differs = i == 1
        x = g.norm(x, g.weight(f"net.{i}.w", [6]), kind="rms", eps=0.5 if odd == "eps" and differs else 0.1)
        y = g.map("sin", x)
        g.path = "probe" if odd == "probed" else g.path
        y = g.map("cos", y)
        g.path = f"net.{i}"
        counted = g.reduce("sum", g.iota(7 if odd == "count" and differs else 5, dtype="f64"), 0)
        z = g.matmul(g.map("tanh", g.map("add", y, counted)), g.weight(f"net.{i}.up", [6, 6]))
        x = g.map("add", x, z)
    return x


DEDUPE = [
    mutation("layer_matching.same_properties", lambda g: layers(g, "eps"), "dedupe-layers"),
    mutation("layer_matching.same_types", lambda g: layers(g, "count"), "dedupe-layers"),
    mutation("layer_matching.stands_alone", lambda g: layers(g, "probed"), "dedupe-layers"),
]

# --- fuse -----------------------------------------------------------------------------------------------------------

TO_KERNELS = "fuse,lower-to-tile"


def wide(g: Graph) -> SSAValue:
    return g.input("x", ["b", "t", 16])


def with_its_transpose(g: Graph) -> SSAValue:
    y = g.map("exp", x_of(g, "t", "t"))
    return g.map("add", y, g.transpose(y, 1, 0))


def around_a_kernel(g: Graph) -> SSAValue:
    """The sum reads a softmax directly, and through a concatenation, which is a kernel of its own."""
    y = g.softmax(wide(g))
    return g.map("add", y, g.concat(-1, g.slice(y, -1, 8, 16), g.slice(y, -1, 0, 8)))


FUSE = [
    mutation("fuse.views.keeps_last_axis", lambda g: g.norm(g.reshape(x_of(g, "b", 4, 8), "b", 2, 16)), "fuse"),
    mutation(
        "fuse.views.is_vector",
        lambda g: g.map("add", g.reshape(x_of(g, "b", 4, 8), "4*b", 8), g.input("y", ["4*b", 1])),
        "fuse",
    ),
    mutation("fuse.views.divides", lambda g: g.reshape(g.slice(x_of(g, "b", 9), 1, 1, 7), "b", 3, 2), "fuse"),
    mutation(
        "fuse.views.keeps_last_place",
        lambda g: g.rotary(g.transpose(x_of(g, 4, 4), 1, 0), g.input("cos", [1, 1]), g.input("sin", [1, 1])),
        "fuse",
    ),
    mutation("fuse.legality.views_stay_outside", with_its_transpose, TO_KERNELS, dtype="f32"),
    mutation(
        "fuse.legality.buffers_come_from_outside",
        lambda g: g.map("exp", g.gather(g.weight("w", [9, 16]), g.map("add", g.input("i", ["b"], "i64"), 1))),
        TO_KERNELS,
        dtype="f32",
    ),
    mutation("fuse.plan.Plan.can_join", around_a_kernel, TO_KERNELS, dtype="f32"),
]

ALL = [*CANONICALIZE, *FOLD, *RECOGNIZE, *DEDUPE, *FUSE]

# A mutated pass may also trip over what it made.
FAILURES = (TilewrightError, ValueError, KeyError, IndexError, RecursionError)


def mutate(monkeypatch: pytest.MonkeyPatch, mutation: Mutation) -> None:
    module, _, attribute = mutation.place.rpartition(".")
    try:
        owner: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        outer, _, name = module.rpartition(".")
        owner = getattr(importlib.import_module(outer), name)
    assert callable(getattr(owner, attribute)), "the predicate has another name now"
    monkeypatch.setattr(owner, attribute, mutation.replacement)


@pytest.mark.parametrize("mutation", ALL, ids=lambda m: m.name)
def test_without_its_condition_a_rewrite_does_not_ground(
    mutation: Mutation, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    module = mutation.module()
    ground(module, mutation.passes, seed=seed, **mutation.stated)
    mutate(monkeypatch, mutation)
    with pytest.raises(FAILURES):
        ground(module, mutation.passes, seed=seed, **mutation.stated)


# --- what decides the partition, though any partition computes the same ---------------------------------------------


def partition(module: ModuleOp) -> list[int]:
    """The number of ops in each kernel."""
    after = transform(module, "fuse")
    return [len(list(op.block.ops)) for op in after.walk() if isinstance(op, GroupOp)]


def onto_a_product(operand: Callable[[Graph], SSAValue]) -> Build:
    return lambda g: g.map("mul", g.matmul(wide(g), g.weight("u", [16, 16])), operand(g))


def two_products(g: Graph) -> SSAValue:
    x = wide(g)
    return g.map("mul", g.matmul(x, g.weight("u", [16, 16])), g.matmul(g.map("exp", x), g.weight("v", [16, 16])))


def read_twice(g: Graph) -> SSAValue:
    y = g.map("exp", wide(g))
    return g.map("add", g.reduce("sum", y, 1, keepdims=True), y)


PARTITION = [
    mutation("fuse.legality.fits_epilogue", onto_a_product(lambda g: g.input("y", ["t", 16])), "fuse"),
    mutation("fuse.legality.is_column_vector", onto_a_product(lambda g: g.input("y", ["t", 16])), "fuse"),
    mutation("fuse.legality.is_row_scalar", onto_a_product(lambda g: g.input("y", ["t", 16])), "fuse"),
    mutation("fuse.legality.is_scalar", onto_a_product(lambda g: g.input("y", ["t", 16])), "fuse"),
    mutation("fuse.legality.is_pair", two_products, "fuse"),
    mutation("fuse.legality.only_read_inside", read_twice, "fuse"),
    mutation(
        "fuse.legality.recomputes_cheaply", lambda g: g.map("mul", wide(g), g.map("cos", g.input("v", [16]))), "fuse"
    ),
    mutation(
        "fuse.legality.turns_whole_rows",
        lambda g: g.rotary(g.norm(g.input("x", ["b", 24])), g.input("c", [24]), g.input("s", [24])),
        "fuse",
    ),
    mutation(
        "fuse.legality.is_row_shape", lambda g: g.map("add", g.softmax(x_of(g, 6)), g.input("y", ["b", 6])), "fuse"
    ),
]


@pytest.mark.parametrize("mutation", PARTITION, ids=lambda m: m.name)
def test_without_its_condition_the_partition_is_another(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    module = mutation.module()
    before = partition(module)
    mutate(monkeypatch, mutation)
    assert partition(module) != before

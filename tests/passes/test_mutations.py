"""Every side condition earns its place: with it disabled, a crafted module no longer grounds.

A mutation replaces one named predicate by one that always (or never) holds. Unmutated, the module grounds; mutated, the
run differs in numbers, breaks a type, or cannot be ordered or lowered. So the tests that ground these passes can fail.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph
from tests.passes.mutation import Build, Mutation, mutate, mutation, x_of
from tests.passes.recognize.mutations import RECOGNIZE
from tilewright.errors import TilewrightError
from tilewright.ir.graph.structure import GroupOp
from tilewright.testing import ground, transform

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
        lambda g: g.gather(g.map("exp", g.input("w", [9, 16])), g.input("i", [9], "i64")),
        TO_KERNELS,
        dtype="f32",
    ),
    mutation("fuse.plan.Plan.can_join", around_a_kernel, TO_KERNELS, dtype="f32"),
]

ALL = [*CANONICALIZE, *FOLD, *RECOGNIZE, *DEDUPE, *FUSE]

# A mutated pass may also trip over what it made.
FAILURES = (TilewrightError, ValueError, KeyError, IndexError, RecursionError)


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

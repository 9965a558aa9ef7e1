"""Axes of one element and lookups of known places need no reduction, no matrix unit and no gather."""

from __future__ import annotations

import pytest

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.compile_options import CompileOptions
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.graph.structure import IotaOp
from tilewright.ir.types import TensorType
from tilewright.passes.canonicalize import Canonicalize
from tilewright.testing import context, ground, transform


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_over_one_term_is_elementwise(transposed: bool, seed: int) -> None:
    g = Graph("b: 0..4")
    a, b = g.input("a", ["b", 3, 1]), g.input("w", [7, 1] if transposed else [1, 7])
    after = ground(g.done(g.matmul(a, b, transpose_b=transposed)), Canonicalize(), seed=seed)
    assert ops_of(after) == (["reshape", "mul"] if transposed else ["mul"])


def test_a_product_that_is_to_be_rounded_waits_for_it(seed: int) -> None:
    g = Graph("b: 0..4")
    module = g.done(g.matmul(g.input("a", ["b", 3, 1]), g.input("w", [1, 7])))
    ctx = context(module, options=CompileOptions(precision="bf16"))
    assert ops_of(ground(module, Canonicalize(), seed=seed, ctx=ctx)) == ["matmul"]


@pytest.mark.parametrize("fn", ["sum", "mean", "max", "min", "prod", "argmax"])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reducing_one_element_keeps_it(fn: str, keepdims: bool, seed: int) -> None:
    g = Graph("b: 0..4")
    x = g.input("x", ["b", 1, 5])
    after = ground(g.done(g.reduce(fn, x, 1, keepdims=keepdims)), Canonicalize(), seed=seed)
    assert "reduce" not in ops_of(after)


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
def test_rows_of_one_element_are_normalised_without_a_reduction(dtype: str, seed: int) -> None:
    g = Graph("b: 0..4", dtype=dtype)
    x, w, c = g.input("x", ["b", 1]), g.weight("w", [1]), g.weight("c", [1])
    values = [g.norm(x, w, c, kind=kind) for kind in ("rms", "layer")]
    module = g.done(*values, g.softmax(x), g.softmax(x, log=True))
    left = ops_of(ground(module, Canonicalize(), seed=seed, rounding=dtype))
    assert not {"norm", "softmax", "reduce"} & set(left)


def test_a_row_of_two_elements_is_still_a_reduction(seed: int) -> None:
    g = Graph("b: 0..4")
    x = g.input("x", ["b", 2])
    module = g.done(g.norm(x), g.softmax(x), g.reduce("sum", x, 1))
    assert ops_of(ground(module, Canonicalize(), seed=seed)) == ["norm", "softmax", "reduce"]


def test_one_place_for_all_indices_is_a_slice(seed: int) -> None:
    g = Graph("b: 0..4", "t: 1..5")
    g.sized("b", "t")
    w = g.weight("w", [9, 6])
    rows = g.gather(w, g.constant(3, ["b", "t"], "i64"))
    assert ops_of(ground(g.done(rows), Canonicalize(), seed=seed, exact=True)) == ["slice", "broadcast"]


@pytest.mark.parametrize(("limit", "left"), [(9, ["slice"]), (8, ["iota", "gather"])])
def test_a_range_of_indices_is_a_slice_if_it_is_proved_to_fit(limit: int, left: list[str], seed: int) -> None:
    g = Graph("t: 1..7")
    g.sized("t")
    w = g.weight("w", [limit, 6])
    rows = g.gather(w, g.iota("t", 2))
    sizes = [{"t": 1}, {"t": 6}]
    assert ops_of(ground(g.done(rows), Canonicalize(), seed=seed, exact=True, sizes=sizes)) == left


def test_a_range_with_axes_of_size_one_is_a_slice_with_them(seed: int) -> None:
    g = Graph("t: 1..7")
    g.sized("t")
    rows = g.gather(g.weight("w", [9, 6]), g.reshape(g.iota("t"), 1, "t"))
    assert ops_of(ground(g.done(rows), Canonicalize(), seed=seed, exact=True)) == ["slice", "reshape"]


def test_every_other_place_is_not_a_slice_of_neighbours(seed: int) -> None:
    g = Graph("t: 1..4")
    g.sized("t")
    rows = g.gather(g.weight("w", [9, 6]), g.iota("t", 0, 2))
    assert ops_of(ground(g.done(rows), Canonicalize(), seed=seed, exact=True)) == ["iota", "gather"]


@pytest.mark.parametrize("place", [-1, 3, 9])
def test_a_place_that_is_not_proved_to_exist_is_looked_up(place: int) -> None:
    g = Graph("t: 1..5")
    module = g.done(g.gather(g.input("x", ["t", 6]), g.constant(place, [2], "i64")))
    assert ops_of(transform(module, Canonicalize())) == ["gather"]


def test_the_last_place_that_is_proved_to_exist_is_a_slice(seed: int) -> None:
    g = Graph("t: 4..5")
    module = g.done(g.gather(g.input("x", ["t", 6]), g.constant(3, [2], "i64")))
    assert ops_of(ground(module, Canonicalize(), seed=seed, exact=True)) == ["slice", "broadcast"]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_range_repeated_along_another_axis_is_looked_up(axis: int, seed: int) -> None:
    g = Graph()
    kind = TensorType.of([2, 3], DTYPES["i64"])
    places = g.op(IotaOp, axis=axis, start=[Expr.of(1)], step=1, result_types=[kind])
    module = g.done(g.gather(g.weight("w", [9, 6]), places))
    assert ops_of(ground(module, Canonicalize(), seed=seed, exact=True)) == ["iota", "gather"]


def test_a_range_that_may_begin_below_zero_is_looked_up(seed: int) -> None:
    g = Graph("t: 1..7")
    g.sized("t")
    module = g.done(g.gather(g.weight("w", [9, 6]), g.iota(2, "t - 3")))
    sizes = [{"t": 3}, {"t": 7}]
    assert ops_of(ground(module, Canonicalize(), seed=seed, exact=True, sizes=sizes)) == ["iota", "gather"]


def test_one_number_that_a_call_decides_is_no_constant(seed: int) -> None:
    g = Graph("t: 1..7")
    x = g.input("x", ["t"], "i64")
    module = g.done(g.map("add", x, g.iota(1, "t")))
    assert ops_of(ground(module, Canonicalize(), seed=seed, exact=True)) == ["iota", "add"]

"""Repetition costs nothing: splats become numbers, maps broadcast by themselves, broadcasts wait to be needed."""

from __future__ import annotations

import pytest

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.structure import ConstantOp
from tilewright.passes.canonicalize import Canonicalize
from tilewright.testing import ground


def test_a_map_broadcasts_its_operands_itself(seed: int) -> None:
    g = Graph("b: 0..4", "t: 1..5")
    x, v = g.input("x", ["b", "t", 6]), g.input("v", [6])
    after = ground(
        g.done(g.map("add", x, g.broadcast(g.reshape(v, 1, 6), "b", "t", 6))), Canonicalize(), seed=seed, exact=True
    )
    assert ops_of(after) == ["add"]


def test_a_broadcast_that_alone_gives_the_dims_stays(seed: int) -> None:
    g = Graph("b: 0..4", "t: 1..5")
    g.sized("b", "t")
    v, w = g.input("v", [6]), g.input("w", [6])
    after = ground(g.done(g.map("add", g.broadcast(v, "b", "t", 6), w)), Canonicalize(), seed=seed, exact=True)
    assert ops_of(after) == ["broadcast", "add"]


def test_axes_of_size_one_in_front_of_other_axes_are_no_broadcast(seed: int) -> None:
    g = Graph("b: 1..4")
    column, y = g.reshape(g.input("x", [1, 6]), 1, 6, 1), g.input("y", ["b", 6, 6])
    assert ops_of(ground(g.done(g.map("add", column, y)), Canonicalize(), seed=seed)) == ["reshape", "add"]


def test_a_function_of_a_constant_has_nothing_to_wait_for(seed: int) -> None:
    g = Graph()
    x = g.input("x", [4])
    module = g.done(g.map("add", x, g.map("exp", g.constant(0.5, [4]))))
    assert ops_of(ground(module, Canonicalize(), seed=seed, exact=True)) == ["exp", "add"]


def test_a_constant_of_equal_elements_is_a_number_in_a_map(seed: int) -> None:
    g = Graph("b: 0..4")
    x = g.input("x", ["b", 6])
    after = ground(g.done(g.map("mul", x, g.constant(0.3, ["b", 6]))), Canonicalize(), seed=seed, exact=True)
    (constant,) = [op for op in after.walk() if isinstance(op, ConstantOp)]
    assert constant.out.type.dims == ()  # type: ignore[attr-defined]


def test_moving_equal_elements_gives_a_constant(seed: int) -> None:
    g = Graph("b: 0..4", "t: 1..5")
    x = g.input("x", ["t", "b", 2])
    c = g.transpose(g.broadcast(g.reshape(g.constant(2.5, [2]), 1, 2), "b", "t", 2), 1, 0, 2)
    assert ops_of(ground(g.done(g.map("add", x, c)), Canonicalize(), seed=seed, exact=True)) == ["add"]


@pytest.mark.parametrize("axes", [(1,), (1, 2)])
def test_a_function_of_one_repeated_value_is_computed_once(axes: tuple[int, ...], seed: int) -> None:
    g = Graph("b: 0..4", "t: 1..5")
    m = g.input("m", ["b", "t", 1], "i64")
    wide = g.map("exp", g.map("mul", g.cast(g.broadcast(m, "b", "t", 8), "f32"), 0.5))
    after = ground(g.done(g.reduce("sum", wide, *axes)), Canonicalize(), seed=seed)
    reduced_the_repeated_axis = 2 in axes
    assert ops_of(after) == [
        "cast",
        "mul",
        "exp",
        *(["broadcast", "reduce"] if reduced_the_repeated_axis else ["reduce", "broadcast"]),
    ]


def test_a_reduction_over_new_leading_axes_stays_after_the_broadcast(seed: int) -> None:
    g = Graph("b: 1..4")
    g.sized("b")
    x = g.input("x", [6])
    after = ground(g.done(g.reduce("sum", g.broadcast(x, "b", 6), 0)), Canonicalize(), seed=seed)
    assert ops_of(after) == ["broadcast", "reduce"]

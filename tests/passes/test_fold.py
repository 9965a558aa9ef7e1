"""Constants meet constants at compile time, exactly as at run time; weights are never looked at."""

from __future__ import annotations

import pytest

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.structure import ConstantOp, StateWriteOp
from tilewright.ir.module import function
from tilewright.passes.fold import Fold
from tilewright.testing import context, ground, transform


def constants(module: object) -> list[tuple[object, ...]]:
    return [op.values.data for op in module.walk() if isinstance(op, ConstantOp)]  # type: ignore[attr-defined]


def test_small_constants_are_computed(seed: int) -> None:
    g = Graph(dtype="f32")
    x = g.input("x", [2, 3])
    table = g.map("exp", g.constant([0.0, 1.0, -2.0, 3.5, 0.1, 7.0], [2, 3]))
    module = g.done(g.map("add", x, g.map("mul", table, 0.3)))
    after = ground(module, Fold(), seed=seed, exact=True, rounding="f32")
    assert ops_of(after) == ["add"]


def test_a_splat_with_symbolic_dims_is_one_number(seed: int) -> None:
    g = Graph("b: 0..4")
    x = g.input("x", ["b", 3])
    c = g.cast(g.map("sub", g.constant(3, ["b", 3], "i64"), 5), "f32")
    after = ground(g.done(g.map("add", x, c)), Fold(), seed=seed, exact=True)
    assert ops_of(after) == ["add"]
    assert constants(after) == [(-2.0,)]


def test_a_sum_of_a_splat_is_not_the_number_itself(seed: int) -> None:
    g = Graph()
    x = g.input("x", [4])
    total = g.reduce("sum", g.constant(1.5, [4]), 0)
    assert constants(ground(g.done(g.map("add", x, total)), Fold(), seed=seed, exact=True)) == [(6.0,)]


def test_a_reduction_over_a_symbol_is_left_alone(seed: int) -> None:
    g = Graph("b: 0..4")
    x = g.input("x", ["b"])
    after = ground(g.done(g.map("add", x, g.reduce("sum", g.constant(1.5, ["b"]), 0))), Fold(), seed=seed)
    assert ops_of(after) == ["reduce", "add"]


def test_what_is_too_large_stays_an_op(seed: int) -> None:
    g = Graph()
    x = g.input("x", [4, 8])
    table = g.reshape(g.constant([float(i) for i in range(32)], [32]), 4, 8)
    module = g.done(g.map("add", x, table))
    assert ops_of(ground(module, Fold(max_elements=31), seed=seed)) == ["reshape", "add"]
    assert ops_of(ground(module, Fold(max_elements=32), seed=seed)) == ["add"]


def test_weights_are_not_read(seed: int) -> None:
    g = Graph()
    w = g.weight("w", [3])
    ctx = context(g.done(g.map("mul", g.map("exp", w), 2.0)))
    after = ground(g.module, Fold(), seed=seed, ctx=ctx)
    assert ops_of(after) == ["exp", "mul"]
    assert not ctx.applied
    assert not ctx.weights_read


def test_a_constant_that_a_state_keeps_is_still_written(seed: int) -> None:
    g = Graph()
    x, five = g.input("x", [3]), g.map("add", g.constant(2.0, [3]), 3.0)
    g.function.block.add_op(StateWriteOp.make(five, name="s"))
    module = g.done(g.map("exp", x))
    ctx = context(module)
    assert "state_write" in ops_of(ground(module, Fold(), seed=seed, exact=True, ctx=ctx))
    assert not ctx.refused


def test_counting_stays_an_op_and_so_does_a_kernel_of_constants(seed: int) -> None:
    g = Graph(dtype="i64")
    x, table = g.input("x", [5]), g.map("exp", g.cast(g.constant([1, 2, 3], [3]), "f64"))
    module = g.done(g.map("add", x, g.iota(5)), table)
    ctx = context(module)
    after = ground(module, "fuse,fold", seed=seed, ctx=ctx)
    assert not [r for r in ctx.refused if r.pass_name == "fold"]
    assert "iota" in ops_of(after)
    assert ops_of(after).count("group") == ops_of(transform(module, "fuse")).count("group")


def test_a_kernel_that_is_given_constants_stays_a_kernel(seed: int) -> None:
    g = Graph()
    x = g.input("x", [3])
    module = transform(g.done(g.map("neg", g.map("exp", x))), "fuse")
    main = function(module, "main")
    table = ConstantOp.of([1.0, 2.0, 3.0], [3], g.dtype)
    main.block.insert_op_before(table, main.block.first_op)  # type: ignore[arg-type]
    main.block.args[0].replace_all_uses_with(table.out)
    ctx = context(module)
    assert "group" in ops_of(ground(module, Fold(), seed=seed, ctx=ctx))
    assert not ctx.refused


def test_a_fixed_dim_is_a_number_and_a_symbol_is_not(seed: int) -> None:
    g = Graph("b: 0..4")
    x = g.input("x", ["b"], "i64")
    after = ground(g.done(g.map("add", g.map("mul", x, g.dim("b")), g.dim(7))), Fold(), seed=seed)
    assert ops_of(after) == ["dim", "mul", "add"]
    assert constants(after) == [(7,)]


def test_integers_of_64_bits_keep_them_all() -> None:
    g = Graph(dtype="i64")
    x = g.input("x", [2])
    big = g.map("add", g.constant(2**62 + 1, ()), 2**61 + 3)
    assert constants(ground(g.done(g.map("add", x, big)), Fold(), exact=True)) == [(2**62 + 2**61 + 4,)]


def test_an_op_that_fails_on_its_constants_is_refused_with_the_reason() -> None:
    g = Graph(dtype="i64")
    x = g.input("x", [2])
    module = g.done(g.map("add", x, g.gather(g.constant([5, 6, 7], [3]), g.constant([0, 3], [2]))))
    ctx = context(module)
    assert ops_of(transform(module, Fold(), ctx)) == ["gather", "add"]
    assert "indices from 0 to 3" in ctx.refused[0].reason


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_folding_rounds_as_the_dtype_does(dtype: str, seed: int) -> None:
    g = Graph(dtype=dtype)
    x = g.input("x", [7])
    third = g.map("div", g.constant(1.0, ()), 3.0)
    after = ground(g.done(g.map("mul", x, third)), Fold(), seed=seed, exact=True, rounding=dtype)
    assert ops_of(after) == ["mul"]

"""Equal ops on the same operands are computed once; ops that differ in anything, or have effects, are not."""

from __future__ import annotations

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.structure import StateReadOp, StateWriteOp
from tilewright.ir.types import TensorType
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.fuse import Fuse
from tilewright.testing import context, ground


def test_equal_chains_become_one(seed: int) -> None:
    g = Graph("b: 0..4")
    x = g.input("x", ["b", 6])
    a, b = (g.reduce("sum", g.map("exp", x), 1) for _ in range(2))
    assert ops_of(ground(g.done(a, b), Canonicalize(), seed=seed, exact=True)) == ["exp", "reduce"]


def test_another_property_is_another_op(seed: int) -> None:
    g = Graph()
    x = g.input("x", [5, 6])
    module = g.done(g.norm(x, eps=0.1), g.norm(x, eps=0.2), g.map("mul", x, 2.0), g.map("mul", x, 3.0))
    assert ops_of(ground(module, Canonicalize(), seed=seed, exact=True)) == ["norm", "norm", "mul", "mul"]


def test_kernels_of_other_ops_are_others(seed: int) -> None:
    g = Graph()
    x = g.input("x", [5, 6])
    module = g.done(g.map("add", x, 2.0), g.map("add", x, 3.0))
    after = ground(module, [Fuse(), Canonicalize()], seed=seed, exact=True)
    assert ops_of(after).count("group") == 2


def test_zeros_of_both_signs_are_two_constants(seed: int) -> None:
    g = Graph()
    x = g.input("x", [5])
    module = g.done(g.map("div", x, 0.0), g.map("div", x, -0.0))
    assert ops_of(ground(module, Canonicalize(), seed=seed, exact=True)) == ["div", "div"]


def test_a_state_read_after_a_write_is_another_value(seed: int) -> None:
    g = Graph()
    x = g.input("x", [5])
    kind = TensorType.of([5], g.dtype)
    first = g.op(StateReadOp, name="s", result_types=[kind])
    g.function.block.add_op(StateWriteOp.make(g.map("add", first, x), name="s"))
    second = g.op(StateReadOp, name="s", result_types=[kind])
    after = ground(g.done(g.map("sub", second, first)), Canonicalize(), seed=seed)
    assert ops_of(after).count("state_read") == 2


def test_a_bisecting_limit_stops_after_so_many_rewrites() -> None:
    g = Graph()
    x = g.input("x", [5])
    module = g.done(g.map("mul", g.map("neg", g.map("neg", g.map("mul", x, 1.0))), 1.0))
    for limit, left in ((0, 4), (1, 3), (2, 1), (3, 0)):
        ctx = context(module, limit=limit)
        assert len(ops_of(ground(module, Canonicalize(), ctx=ctx))) == left
        assert len(ctx.applied) == limit

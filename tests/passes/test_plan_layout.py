"""Weights that products alone read become panels; every other right-hand side is read where it lies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.testing import context, ground

Build = Callable[[Graph], SSAValue]


def both_ways(g: Graph) -> SSAValue:
    """One kernel that multiplies by a weight and by its transpose."""
    x, w = g.input("x", ["b", 6]), g.weight("w", [6, 6])
    return g.map("mul", g.matmul(x, w), g.matmul(x, w, transpose_b=True))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda g: g.matmul(g.input("x", ["b", 6]), g.input("y", [6, 8])), "the right-hand side is not a weight"),
        (both_ways, "the right-hand side is not a weight"),
        (
            lambda g: g.matmul(g.input("x", ["b", 6]), g.slice(g.weight("w", [6, 20]), 1, 3, 11)),
            "the right-hand side is not a weight",
        ),
        (lambda g: g.matmul(g.input("x", [3, "b", 6]), g.weight("w", [3, 6, 8])), "not of fixed size, or not a matrix"),
    ],
    ids=["an input", "read in two ways", "a part of a weight", "a batch of matrices"],
)
def test_what_is_not_packed(build: Build, reason: str, seed: int) -> None:
    g = Graph("b: 1..5")
    module = g.done(build(g))
    ctx = context(module)
    after = ground(module, "fuse,plan-layout", seed=seed, ctx=ctx)
    assert "packed" not in ops_of(after)
    assert any(reason in r.reason for r in ctx.refused)


def test_a_weight_is_packed_with_zeros_below_the_panel(seed: int) -> None:
    g = Graph("b: 1..5")
    module = g.done(g.matmul(g.input("x", ["b", 6]), g.weight("w", [6, 37])))
    after = ground(module, "fuse,plan-layout", seed=seed)
    assert ops_of(after).count("packed") == 1

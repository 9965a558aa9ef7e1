"""Weights that products alone read become panels; every other right-hand side is read where it lies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.module import functions
from tilewright.testing import context, ground

Build = Callable[[Graph], SSAValue]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda g: g.matmul(g.input("x", ["b", 6]), g.input("y", [6, 8])), "the right-hand side is not a weight"),
        (
            lambda g: g.matmul(g.input("x", ["b", 6]), g.slice(g.weight("w", [6, 20]), 1, 3, 11)),
            "the right-hand side is not a weight",
        ),
        (
            lambda g: g.matmul(g.weight("a", [5, 6]), g.slice(g.weight("w", [6, 20]), 1, 3, 11)),
            "the right-hand side is not a weight",
        ),
        (lambda g: g.matmul(g.input("x", ["b", 6]), g.weight("w", [6, "b"])), "not of fixed size, or not a matrix"),
        (lambda g: g.matmul(g.input("x", [3, "b", 6]), g.weight("w", [3, 6, 8])), "not of fixed size, or not a matrix"),
    ],
    ids=[
        "an input",
        "a part of a weight",
        "a part beside a weight",
        "a weight as wide as the call",
        "a batch of matrices",
    ],
)
def test_what_is_not_packed(build: Build, reason: str, seed: int) -> None:
    g = Graph("b: 1..5")
    module = g.done(build(g))
    ctx = context(module)
    after = ground(module, "fuse,plan-layout", seed=seed, ctx=ctx)
    assert "packed" not in ops_of(after)
    assert any(reason in r.reason for r in ctx.refused)


READ_TWICE = """builtin.module {
  graph.func() {arg_names = ["x"], result_names = ["out0"], sym_name = "main"} {
  ^bb0(%0: !graph.tensor<[6, 6], f32>):
    %1 = graph.weight() {name = "w"} : !graph.tensor<[6, 6], f32>
    %2 = graph.group(args=[%0, %1]) {kind = "matmul", name = "matmul_add"} {
    ^bb0(%3: !graph.tensor<[6, 6], f32>, %4: !graph.tensor<[6, 6], f32>):
      %5 = graph.matmul(%3, %4) : !graph.tensor<[6, 6], f32>
      %6 = graph.map(args=[%5, %4]) {fn = "add"} : !graph.tensor<[6, 6], f32>
      graph.yield(values=[%6])
    } : !graph.tensor<[6, 6], f32>
    graph.return(values=[%2])
  }
}"""


def test_a_kernel_that_reads_a_weight_in_another_way_too_keeps_it_as_it_lies(seed: int) -> None:
    after = ground(READ_TWICE, "fuse,plan-layout", seed=seed)
    assert ops_of(after) == ["group", "matmul", "add"]


def test_a_weight_is_packed_with_zeros_below_the_panel(seed: int) -> None:
    g = Graph("b: 1..5")
    module = g.done(g.matmul(g.input("x", ["b", 6]), g.weight("w", [6, 37])))
    after = ground(module, "fuse,plan-layout", seed=seed)
    assert ops_of(after).count("packed") == 1


@pytest.mark.parametrize("read_whole", [False, True])
def test_what_was_only_packed_on_takes_no_memory_of_its_own(read_whole: bool, seed: int) -> None:
    g = Graph("b: 1..5")
    joined = g.concat(1, g.weight("v", [6, 13]), g.weight("w", [6, 24]))
    product = g.matmul(g.input("x", ["b", 6]), joined)
    module = g.done(product, *([g.reduce("sum", g.map("mul", joined, g.input("y", [6, 37])), 0, 1)] * read_whole))
    after = ground(module, "hoist-weights,fuse,plan-layout", seed=seed)
    kept = functions(after)["prepare"].result_names.data
    assert len(kept) == 1 + read_whole
    assert any("panels" in name for name in kept)

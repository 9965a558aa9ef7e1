"""Rows of a product that nobody reads are not computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.passes.canonicalize import Canonicalize
from tilewright.testing import ground

Build = Callable[[Graph, SSAValue], tuple[SSAValue, ...]]


def head(g: Graph, x: SSAValue, *, biased: bool = False) -> SSAValue:
    out = g.matmul(x, g.weight("head", [11, 6]), transpose_b=True)
    return g.map("add", out, g.weight("bias", [11])) if biased else out


def rows_multiplied(build: Build, seed: int) -> str:
    g = Graph("b: 0..5", "t: 1..7")
    x = g.input("x", ["b", "t", 6])
    after = ground(g.done(*build(g, x)), Canonicalize(), seed=seed)
    products = [op for op in after.walk() if isinstance(op, MatmulOp)]
    return ", ".join(" ".join(str(d) for d in tensor(product.out).dims[:-1]) for product in products)


@pytest.mark.parametrize(
    ("build", "rows"),
    [
        (lambda g, x: (g.slice(head(g, x), 1, "t - 1", "t"),), "b 1"),
        (lambda g, x: (g.slice(head(g, x, biased=True), 1, "t - 1", "t"),), "b 1"),
        (lambda g, x: (g.slice(head(g, x), 1, 0, "t", 2),), "b floordiv(t + 1, 2)"),
        # some columns of every row: all rows are needed
        (lambda g, x: (g.slice(head(g, x), 2, 0, 5),), "b t"),
        (lambda g, x: (g.slice(head(g, x), 2, 2, 11),), "b t"),
        (lambda g, x: (g.slice(head(g, x), 2, 0, 11, 2),), "b t"),
    ],
)
def test_the_rows_that_are_read_are_multiplied(build: Build, rows: str, seed: int) -> None:
    assert rows_multiplied(build, seed) == rows


@pytest.mark.parametrize("whole", ["product", "sum", "product before the sum"])
def test_a_product_that_others_read_whole_stays(whole: str, seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> tuple[SSAValue, ...]:
        out = head(g, x)
        total = out if whole == "product" else g.map("add", out, g.weight("bias", [11]))
        return g.slice(total, 1, "t - 1", "t"), g.reduce("sum", total if whole == "sum" else out, 1)

    assert rows_multiplied(build, seed) == "b t"


def test_rows_of_one_column_and_a_row_of_biases_are_no_product_of_the_rows_size(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> tuple[SSAValue, ...]:
        out = g.matmul(x, g.weight("head", [1, 6]), transpose_b=True)
        return (g.slice(g.map("add", out, g.weight("bias", [11])), 1, "t - 1", "t"),)

    assert rows_multiplied(build, seed) == "b t"


def test_a_matrix_for_every_batch_stays_whole(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> tuple[SSAValue, ...]:
        return (g.slice(g.matmul(x, g.input("y", ["b", 6, 11])), 0, 0, "b", 2),)

    assert rows_multiplied(build, seed) == "b t"


def test_a_bias_of_rows_is_not_taken_for_one_of_columns(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> tuple[SSAValue, ...]:
        return (g.slice(g.map("add", head(g, x), g.weight("rows", [1, 1])), 1, "t - 1", "t"),)

    g = Graph("b: 0..5", "t: 1..7")
    after = ground(g.done(*build(g, g.input("x", ["b", "t", 6]))), Canonicalize(), seed=seed)
    assert "slice" in ops_of(after)

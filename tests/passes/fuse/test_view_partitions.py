"""Views of small programs move out of the way of kernels, or stay: a row for each condition that decides it."""

from __future__ import annotations

import pytest
from xdsl.ir import SSAValue

from tests.passes.fuse.partitions import Row, partition
from tests.passes.graphs import Graph
from tilewright.ir.graph.shape import SliceOp

VIEWED = "a view of the result lies between them"
ROUNDED = "not rounded to bf16 where it is computed: not all that is read of it is bf16"
MANY = "graph.matmul reads its operands many times: they are computed once, before it"


def linear(g: Graph, x: SSAValue, name: str = "w", *, dims: tuple[int, int] = (16, 16)) -> SSAValue:
    return g.matmul(x, g.weight(name, dims))


def flat(g: Graph) -> SSAValue:
    """A product [b*t, 16] of the flattened input."""
    return linear(g, g.input("rows", ["b*t", 16]))


def turned(g: Graph, x: SSAValue, table: list[int | str]) -> SSAValue:
    return g.rotary(x, g.input("cos", table), g.input("sin", table))


ROWS: dict[str, Row] = {
    # views
    "elements of a transpose": Row(
        lambda g, x: g.map("neg", g.transpose(linear(g, x), 1, 0, 2)),
        ["matmul(2): matmul neg", "map(1): transpose"],
        [],
    ),
    "elements of rows regrouped": Row(
        lambda g, x: g.map("neg", g.reshape(flat(g), "b", "t", 16)), ["matmul(2): matmul neg"], []
    ),
    "elements of rows regrouped, with many numbers": Row(
        lambda g, x: g.map("add", g.reshape(flat(g), "b", "t", 16), g.constant(1.5, ["t", 16], "f32")),
        ["matmul(2): matmul add"],
        [],
    ),
    "one row beside several rows of a number": Row(
        lambda g, x: g.map(
            "exp", g.map("pow", g.reshape(g.input("row", [2, 8]), 1, 16), g.constant(2.5, [3, 16], "f32"))
        ),
        ["map(1): pow exp"],
        [],
    ),
    "an axis added after a cheap op": Row(
        lambda g, x: g.map("mul", x, g.reshape(g.map("neg", g.input("v", ["b", "t"])), "b", "t", 1)),
        ["map(2): neg mul"],
        [],
    ),
    "an axis added after an op read elsewhere": Row(
        lambda g, x: [g.map("mul", x, g.reshape(y := g.map("neg", g.input("v", ["b", "t"])), "b", "t", 1)), y],
        ["map(1): neg", "map(2): mul"],
        [f"graph.map: {VIEWED}"],
    ),
    "an axis added after an op on a product": Row(
        lambda g, x: g.reshape(g.map("neg", linear(g, x)), "b", "t", 16, 1), ["matmul(2): matmul neg"], []
    ),
    "an axis added after an op that broadcasts": Row(
        lambda g, x: g.map(
            "mul", x, g.reshape(g.map("add", g.input("v", ["b", "t"]), g.input("u", ["t"])), "b", "t", 1)
        ),
        ["map(2): add", "map(2): mul"],
        [f"graph.map: {VIEWED}"],
    ),
    "a value beside itself": Row(
        lambda g, x: g.map("cos", g.concat(-1, x, x)),
        ["map(1): cos", "concat(1): concat"],
        ["graph.map: its operand is stored by a map kernel"],
    ),
    "a value beside another": Row(
        lambda g, x: g.map("cos", g.concat(-1, x, g.input("y", ["b", "t", 16]))),
        ["concat(2): concat", "map(1): cos"],
        ["graph.concat: its operand is stored by a concat kernel"],
    ),
    "a value beside itself times another": Row(
        lambda g, x: g.map("mul", g.concat(-1, x, x), g.input("y", ["b", "t", 32])),
        ["concat(1): concat", "map(2): mul"],
        ["graph.concat: its operand is stored by a concat kernel"],
    ),
    "a table as long as the positions may get": Row(
        lambda g, x: g.gather(g.weight("table", [7, 4]), g.positions("t")), ["map(1): slice"], []
    ),
    "a table that positions may leave": Row(
        lambda g, x: g.gather(g.weight("table", [4096, 4]), g.positions("u")), ["map(1): positions gather"], []
    ),
    "columns on rows regrouped": Row(
        lambda g, x: g.map("add", g.reshape(flat(g), "b", "t", 16), g.input("c", [16])), ["matmul(3): matmul add"], []
    ),
    "a single column on rows regrouped": Row(
        lambda g, x: g.map("add", g.reshape(flat(g), "b", "t", 16), g.input("c", [1])), ["matmul(3): matmul add"], []
    ),
    "columns on a column regrouped": Row(
        lambda g, x: g.map("add", g.reshape(g.input("rows", ["b*t", 1]), "b", "t", 1), g.input("c", [16])),
        ["map(2): add"],
        [],
    ),
    "columns on columns regrouped": Row(
        lambda g, x: g.map("add", g.reshape(g.input("rows", [6, 4]), 6, 2, 2), g.input("c", [2])), ["map(2): add"], []
    ),
    "a matrix on rows regrouped": Row(
        lambda g, x: g.map("add", g.reshape(flat(g), "b", "t", 16), g.input("c", ["t", 16])),
        ["matmul(2): matmul", "map(2): add"],
        [f"graph.matmul: {VIEWED}"],
    ),
    "a scalar on one element": Row(
        lambda g, x: g.map(
            "mul",
            g.reshape(
                g.input("one", [1]),
            ),
            g.input("c", []),
        ),
        ["map(2): mul"],
        [],
    ),
    "one element of a scalar": Row(
        lambda g, x: g.map("mul", g.reshape(g.input("one", []), 1), g.input("c", [1])), ["map(2): mul"], []
    ),
    "a row of a scalar": Row(lambda g, x: g.softmax(g.reshape(g.input("one", []), 1)), ["map(2): sub exp"], []),
    "a residual on rows regrouped": Row(
        lambda g, x: g.map("add", g.reshape(flat(g), "b", "t", 16), x), ["matmul(3): matmul add"], []
    ),
    "a residual that repeats each row": Row(
        lambda g, x: g.map(
            "add", g.reshape(linear(g, g.input("rows", ["t", 16])), "t", 1, 16), g.input("y", ["t", 4, 16])
        ),
        ["matmul(2): matmul", "map(2): add"],
        [f"graph.matmul: {VIEWED}"],
    ),
    "a residual on one group of rows": Row(
        lambda g, x: g.map("add", g.reshape(linear(g, g.input("rows", ["t", 16])), 1, "t", 16), x),
        ["matmul(2): matmul", "map(2): add"],
        ["graph.matmul: its result f32[b, t, 16] has another shape than the product"],
    ),
    "a residual with a name of its own": Row(
        lambda g, x: g.map(
            "add", g.reshape(flat(g), "b", "t", 16), g.reshape(g.map("cos", g.input("y", ["t", "b", 16])), "b", "t", 16)
        ),
        ["matmul(2): matmul", "map(1): cos", "map(2): add"],
        [f"graph.map: {VIEWED}", f"graph.matmul: {VIEWED}"],
    ),
    "a residual on rows read elsewhere": Row(
        lambda g, x: [g.map("add", y := g.reshape(flat(g), "b", "t", 16), x), y],
        ["matmul(2): matmul", "map(2): add"],
        [f"graph.matmul: {VIEWED}"],
    ),
    "a residual on a map of rows": Row(
        lambda g, x: g.map("add", g.reshape(g.norm(g.input("rows", ["b*t", 16])), "b", "t", 16), x),
        ["row-reduction(1): norm", "map(2): add"],
        [f"graph.norm: {VIEWED}"],
    ),
    "a residual that is a product": Row(
        lambda g, x: g.map("add", g.reshape(flat(g), "b", "t", 16), linear(g, x, "v")),
        ["matmul(2): matmul", "matmul(3): matmul add"],
        [f"graph.matmul: {VIEWED}"],
    ),
    "a residual on a product read elsewhere": Row(
        lambda g, x: [g.map("add", g.reshape(y := flat(g), "b", "t", 16), x), y],
        ["matmul(2): matmul", "map(2): add"],
        [f"graph.matmul: {VIEWED}"],
    ),
    "a residual on a product with a map on it": Row(
        lambda g, x: g.map("add", g.reshape(g.map("gelu", flat(g)), "b", "t", 16), x),
        ["matmul(3): matmul gelu add"],
        [],
    ),
    "a residual on columns regrouped": Row(
        lambda g, x: g.map("add", g.reshape(flat(g), "b", "t", 4, 4), g.input("y", ["b", "t", 4, 4])),
        ["matmul(2): matmul", "map(2): add"],
        [f"graph.matmul: {VIEWED}"],
    ),
    "a turn of a transpose": Row(
        lambda g, x: turned(g, g.transpose(linear(g, x), 1, 0, 2), [16]),
        ["matmul(2): matmul", "map(3): rotary transpose"],
        ["graph.matmul: graph.rotary is not pointwise"],
    ),
    "a turn of a transpose with a cosine for each row": Row(
        lambda g, x: g.rotary(g.transpose(linear(g, x), 1, 0, 2), g.input("cos", ["t", "b", 16]), g.input("sin", [16])),
        ["matmul(2): matmul", "map(3): transpose rotary"],
        [f"graph.matmul: {VIEWED}"],
    ),
    "a turn of a transpose with a sine for each row": Row(
        lambda g, x: g.rotary(g.transpose(linear(g, x), 1, 0, 2), g.input("cos", [16]), g.input("sin", ["t", "b", 16])),
        ["matmul(2): matmul", "map(3): transpose rotary"],
        [f"graph.matmul: {VIEWED}"],
    ),
    "a product of rows regrouped": Row(
        lambda g, x: linear(g, g.reshape(g.map("cos", g.input("rows", ["b*t", 16])), "b", "t", 16)),
        ["map(1): cos", "matmul(2): matmul"],
        [f"graph.map: {MANY}"],
    ),
    "a product with matrices of rows regrouped": Row(
        lambda g, x: g.matmul(g.reshape(g.map("cos", g.input("rows", [6, 4])), 2, 3, 4), g.input("ws", [2, 4, 5])),
        ["map(1): cos", "matmul(2): matmul"],
        [f"graph.map: {MANY}"],
    ),
    "a product of one row that is an input": Row(
        lambda g, x: linear(g, g.reshape(g.input("row", [16]), 1, 16)), ["matmul(2): matmul"], []
    ),
    "a product of one row": Row(
        lambda g, x: linear(g, g.reshape(g.map("cos", g.input("row", [16])), 1, 16)),
        ["map(1): cos", "matmul(2): matmul"],
        [f"graph.map: {MANY}"],
    ),
    "a product of columns regrouped": Row(
        lambda g, x: linear(g, g.reshape(g.map("cos", g.input("rows", [6, 32])), 12, 16)),
        ["map(1): cos", "matmul(2): matmul"],
        [f"graph.map: {MANY}"],
    ),
    "a softmax of rows regrouped along another axis": Row(
        lambda g, x: g.softmax(g.reshape(g.map("cos", g.input("rows", ["b*t", 16])), "b", "t", 16), 1),
        ["map(1): cos", "reduction(1): softmax"],
        [f"graph.map: {VIEWED}"],
    ),
    "a cut split": Row(
        lambda g, x: g.softmax(g.reshape(g.slice(x, -1, 4, 12), "b", "t", 2, 4)),
        ["row-reduction(1): slice softmax"],
        [],
    ),
    "a cut split with other rows": Row(
        lambda g, x: g.softmax(g.reshape(g.slice(g.input("y", [2, 6, 16]), -1, 4, 12), 3, 4, 2, 4)),
        ["map(1): slice", "row-reduction(1): softmax"],
        [],
    ),
    "a cut to one feature": Row(
        lambda g, x: g.map("exp", g.reshape(g.slice(x, -1, 3, 4), "b", "t")),
        ["map(1): slice reshape exp"],
        [],
    ),
    "a cut with rows regrouped, too": Row(
        lambda g, x: g.softmax(g.reshape(g.slice(x, -1, 4, 12), "b*t", 2, 4)),
        ["map(1): slice", "row-reduction(1): softmax"],
        [],
    ),
    "a cut with rows regrouped": Row(
        lambda g, x: g.softmax(g.reshape(g.slice(x, -1, 4, 12), "b*t", 8)), ["row-reduction(1): slice softmax"], []
    ),
    "a cut by steps split": Row(
        lambda g, x: g.softmax(g.reshape(g.slice(x, -1, 0, 16, 2), "b", "t", 2, 4)),
        ["map(1): slice", "row-reduction(1): softmax"],
        [],
    ),
    # roundings
    "cuts that are rounded": Row(
        lambda g, x: [g.cast(g.slice(y := linear(g, x), -1, 0, 4), "bf16"), g.cast(g.slice(y, -1, 4, 16), "bf16")],
        ["matmul(2): matmul cast", "map(1): slice", "map(1): slice"],
        [],
    ),
    "cuts that are rounded, seen in many ways": Row(
        lambda g, x: [
            g.cast(g.transpose(g.slice(y := linear(g, x), -1, 0, 4), 1, 0, 2), "bf16"),
            g.cast(g.slice(g.reshape(y, "b", "t", 4, 4), 2, 1, 2), "bf16"),
            g.cast(g.reshape(y, "b*t", 16), "bf16"),
            g.cast(y, "bf16"),
        ],
        ["matmul(2): matmul cast", "map(1): slice transpose", "map(1): slice", "map(1):"],
        [],
    ),
    "cuts that are rounded, of a value returned as it is": Row(
        lambda g, x: [g.cast(g.slice(y := linear(g, x), -1, 0, 4), "bf16"), y],
        ["matmul(2): matmul", "map(1): slice cast"],
        [f"graph.matmul: {VIEWED}", ROUNDED],
    ),
    "cuts that are rounded to two dtypes": Row(
        lambda g, x: [g.cast(g.slice(y := linear(g, x), -1, 0, 4), "bf16"), g.cast(g.slice(y, -1, 4, 16), "f16")],
        ["matmul(2): matmul", "map(1): slice cast", "map(1): slice cast"],
        [f"graph.matmul: {VIEWED}", ROUNDED, ROUNDED.replace("bf16", "f16")],
    ),
    "a cut that is rounded beside one that is not": Row(
        lambda g, x: [g.cast(g.slice(y := linear(g, x), -1, 0, 4), "bf16"), g.map("exp", g.slice(y, -1, 4, 16))],
        ["matmul(2): matmul", "map(1): slice cast", "map(1): slice exp"],
        [f"graph.matmul: {VIEWED}", ROUNDED],
    ),
    "cuts of what lies in memory that are rounded": Row(
        lambda g, x: [g.cast(g.slice(x, -1, 0, 4), "bf16"), g.cast(g.slice(x, -1, 4, 8), "bf16")],
        ["map(1): slice cast", "map(1): slice cast"],
        [],
    ),
    "cuts that are widened": Row(
        lambda g, x: [g.cast(g.slice(y := linear(g, x), -1, 0, 4), "f64"), g.cast(g.slice(y, -1, 4, 16), "f64")],
        ["matmul(2): matmul", "map(1): slice cast", "map(1): slice cast"],
        [f"graph.matmul: {VIEWED}"],
    ),
    "a cut of a scalar": Row(
        lambda g, x: g.reshape(g.op(SliceOp, g.input("one", []), starts=[], stops=[], steps=[]), 1, 1), ["map(1):"], []
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_program_becomes_these_kernels(name: str, seed: int) -> None:
    row = ROWS[name]
    assert partition(row.build, seed) == (row.kernels, row.reasons)

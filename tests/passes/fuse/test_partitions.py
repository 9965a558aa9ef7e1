"""Which ops of small programs share a kernel, and why the others do not: a row for each condition that decides it."""

from __future__ import annotations

import pytest
from xdsl.ir import SSAValue

from tests.passes.fuse.partitions import Row, partition
from tests.passes.graphs import Graph
from tilewright.ir.graph.routing import GroupedMatmulOp, RouteOp, SlotsOp
from tilewright.ir.graph.structure import StateReadOp, StateWriteOp
from tilewright.ir.types import TensorType

DEAR = "it repeats along an axis here, and computing it again moves more words or work than loading it"
MANY = "graph.matmul reads its operands many times: they are computed once, before it"


def linear(g: Graph, x: SSAValue, name: str = "w", *, dims: tuple[int, int] = (16, 16)) -> SSAValue:
    return g.matmul(x, g.weight(name, dims))


def both(g: Graph, y: SSAValue, fn: str = "mul") -> list[SSAValue]:
    """What reads a value twice, once through a chain."""
    return [g.map(fn, y, g.map("neg", y))]


def norm_then_small(g: Graph, small: SSAValue, x: SSAValue) -> SSAValue:
    return g.norm(g.map("mul", x, small))


def looked_up_by_reduction(g: Graph) -> SSAValue:
    ids = g.map("max", g.map("min", g.input("ids", ["t", 32], "i64"), 8), 0)
    return g.gather(g.weight("table", [9, 32]), g.reduce("max", ids, -1))


def of_experts(g: Graph, *, bias: bool) -> SSAValue:
    """Two products of the same rows with matrices of their experts, one of them maybe with a bias, multiplied."""
    route = RouteOp.make(g.input("ids", ["2*t"], "i64"), experts=3)
    slots = SlotsOp.make(route.places, each=2)
    g.function.block.add_ops([route, slots])
    rows = (slots.rows, slots.order, route.offsets)
    a, wide = g.input("a", ["t", 16]), [3, 16, 8]
    gate = g.op(GroupedMatmulOp, a, g.weight("gate", wide), *rows, None)
    up = g.op(GroupedMatmulOp, a, g.weight("up", wide), *rows, g.weight("c", [3, 8]) if bias else None)
    return g.map("mul", gate, up)


def states(g: Graph, x: SSAValue) -> list[SSAValue]:
    """Two products of x with a state before and after it is replaced."""
    kind = TensorType.of([16, 16], g.dtype)
    first = g.op(StateReadOp, name="s", result_types=[kind])
    gate = g.matmul(x, first)
    g.function.block.add_op(StateWriteOp.make(g.input("new", [16, 16]), name="s"))
    up = g.matmul(x, g.op(StateReadOp, name="s", result_types=[kind]))
    return [g.map("mul", gate, up)]


def turned(g: Graph, x: SSAValue, table: list[int | str]) -> SSAValue:
    return g.rotary(x, g.input("cos", table), g.input("sin", table))


def attended(g: Graph, *beside: SSAValue | None) -> SSAValue:
    return g.attention(*(g.input(name, ["b", 2, "t", 4]) for name in "qkv"), *beside)


def same_query_and_bias(g: Graph) -> list[SSAValue]:
    """A number as q and as the bias of as many keys as features."""
    q = g.constant(0.5, [1, 2, 3, 4])
    return [q, g.input("k", [1, 2, 4, 4]), g.input("v", [1, 2, 4, 4]), q]


def kept(g: Graph, x: SSAValue, *, written: bool) -> list[SSAValue]:
    """A state beside a weight (of the same name), read by what replaces it alone, or never replaced."""
    old = g.op(StateReadOp, name="s", result_types=[TensorType.of([16], g.dtype)])
    weight = g.weight("s", [16])
    if written:
        g.function.block.add_op(StateWriteOp.make(g.map("neg", old), name="s"))
        return [g.map("add", x, weight)]
    return [g.map("add", x, g.map("mul", old, weight))]


ROWS: dict[str, Row] = {
    # matmul
    "a number after a product": Row(lambda g, x: g.map("mul", linear(g, x), 2.5), ["matmul(2): matmul mul"], []),
    "a count after a product": Row(
        lambda g, x: g.map("add", linear(g, x), g.iota(16, dtype="f32")),
        ["matmul(2): matmul", "map(1): iota add"],
        ["graph.matmul: its operand f32[16] is no scalar, column, row or tensor of the product's shape"],
    ),
    "a wider scalar after a product": Row(
        lambda g, x: g.map("add", linear(g, g.input("r", ["t", 16])), g.input("s", [1, 1, 1])),
        ["matmul(2): matmul", "map(2): add"],
        ["graph.matmul: its result f32[1, t, 16] has another shape than the product"],
    ),
    "a rotary turn after a product": Row(
        lambda g, x: turned(g, linear(g, g.input("r", ["t", 16])), ["t", 16]),
        ["matmul(2): matmul", "map(3): rotary"],
        ["graph.matmul: graph.rotary is not pointwise"],
    ),
    "a norm after a product": Row(
        lambda g, x: g.norm(linear(g, x)),
        ["matmul(2): matmul", "row-reduction(1): norm"],
        ["graph.matmul: its operand is stored by a matmul kernel"],
    ),
    "a product after a product": Row(
        lambda g, x: linear(g, linear(g, x), "v"), ["matmul(2): matmul", "matmul(2): matmul"], [f"graph.matmul: {MANY}"]
    ),
    "a product of a map": Row(
        lambda g, x: linear(g, g.map("exp", x)), ["map(1): exp", "matmul(2): matmul"], [f"graph.map: {MANY}"]
    ),
    "a product of a view of a map": Row(
        lambda g, x: g.matmul(x, g.transpose(g.map("exp", g.input("w", [16, 16])), 1, 0), transpose_b=False),
        ["map(1): exp", "matmul(2): matmul"],
        [f"graph.map: {MANY}"],
    ),
    "products read the other way round": Row(
        lambda g, x: g.map("mul", linear(g, x), g.matmul(x, g.weight("v", [16, 16]), transpose_b=True)),
        ["matmul(2): matmul", "matmul(3): matmul mul"],
        ["graph.matmul: its operand is stored by a matmul kernel"],
    ),
    "products of experts": Row(
        lambda g, x: of_experts(g, bias=False),
        ["route(1): route", "slots(1): slots", "grouped-matmul(6): grouped_matmul grouped_matmul mul"],
        [
            "graph.route: graph.grouped_matmul reads its operands many times: they are computed once, before it",
            "graph.route: several kernels read the result: it is stored once",
            "graph.slots: graph.grouped_matmul reads its operands many times: they are computed once, before it",
        ],
    ),
    "products of experts of which one has a bias": Row(
        lambda g, x: of_experts(g, bias=True),
        [
            "route(1): route",
            "slots(1): slots",
            "grouped-matmul(6): grouped_matmul",
            "grouped-matmul(6): grouped_matmul mul",
        ],
        [
            "graph.grouped_matmul: its operand is stored by a grouped-matmul kernel",
            "graph.route: graph.grouped_matmul reads its operands many times: they are computed once, before it",
            "graph.route: several kernels read the result: it is stored once",
            "graph.slots: graph.grouped_matmul reads its operands many times: they are computed once, before it",
        ],
    ),
    "products around a replaced state": Row(
        states,
        ["matmul(2): matmul", "matmul(3): matmul mul"],
        ["graph.matmul: another kernel has to run between the two"],
    ),
    "a product with a number": Row(
        lambda g, x: g.matmul(x, g.constant(0.5, [16, 16], "f32")), ["map(0):", "matmul(2): matmul"], []
    ),
    "a product with a view of a number": Row(
        lambda g, x: g.matmul(x, g.broadcast(g.constant(0.5, [1, 16], "f32"), 16, 16)),
        ["map(0):", "matmul(2): matmul"],
        [],
    ),
    "a state that only its new value reads": Row(
        lambda g, x: kept(g, x, written=True), ["map(1): neg", "map(2): add"], []
    ),
    "a state that is never replaced": Row(
        lambda g, x: kept(g, x, written=False), ["map(2): mul", "map(2): add"], [f"graph.map: {DEAR}"]
    ),
    # rows
    "a sum without its axis": Row(
        lambda g, x: g.map("sqrt", g.reduce("sum", g.map("mul", x, x), -1)), ["row-reduction(1): mul reduce sqrt"], []
    ),
    "a look-up by a reduction": Row(
        lambda g, x: looked_up_by_reduction(g),
        ["row-reduction(1): min max reduce", "map(2): gather"],
        ["graph.reduce: graph.gather is not pointwise"],
    ),
    "a turn of rows too long for a tile": Row(
        lambda g, x: turned(g, g.norm(g.input("r", [2, 8192])), [1, 8192]),
        ["row-reduction(1): norm", "map(3): rotary"],
        ["graph.norm: graph.rotary is not pointwise"],
    ),
    "a norm of a turn": Row(
        lambda g, x: g.norm(turned(g, x, ["t", 16])),
        ["map(3): rotary", "row-reduction(1): norm"],
        ["graph.rotary: graph.rotary is not computed on the way into a reduction"],
    ),
    "a norm of a small value read elsewhere": Row(
        lambda g, x: [norm_then_small(g, y := g.map("neg", g.input("v", [16])), x), y],
        ["map(1): neg", "row-reduction(2): mul norm"],
        ["graph.map: other kernels read it, too, and it repeats along an axis here"],
    ),
    "a norm of a small value dear to compute": Row(
        lambda g, x: norm_then_small(g, g.map("cos", g.input("v", [16])), x),
        ["map(1): cos", "row-reduction(2): mul norm"],
        [f"graph.map: {DEAR}"],
    ),
    # other axes
    "a softmax along another axis": Row(
        lambda g, x: g.map("neg", g.softmax(g.map("neg", x), 1)),
        ["map(1): neg", "reduction(1): softmax", "map(1): neg"],
        [
            "graph.map: its operand is stored by a map kernel",
            "graph.softmax: its operand is stored by a reduction kernel",
        ],
    ),
    "a sum along another axis, transposed": Row(
        lambda g, x: g.map("neg", g.reduce("sum", x, 1)), ["reduction(1): reduce neg"], []
    ),
    # elements
    "a diamond": Row(lambda g, x: both(g, g.map("neg", x)), ["map(1): neg neg mul"], []),
    "a small pair of ops": Row(
        lambda g, x: g.map("mul", x, both(g, g.map("neg", g.input("v", [16])), "add")[0]),
        ["map(1): neg neg add", "map(2): mul"],
        [f"graph.map: {DEAR}"],
    ),
    "a small value read elsewhere": Row(
        lambda g, x: [g.map("mul", x, y := g.map("neg", g.input("v", [16]))), y],
        ["map(1): neg", "map(2): mul"],
        ["graph.map: its shape differs, and other kernels read it, too"],
    ),
    "a small turn": Row(
        lambda g, x: g.map("add", g.input("y", [2, "t", 32]), turned(g, g.input("r", ["t", 32]), ["t", 32])),
        ["map(3): rotary", "map(2): add"],
        [f"graph.rotary: {DEAR}"],
    ),
    "a value that several kinds read": Row(
        lambda g, x: [linear(g, y := g.map("neg", x)), g.map("exp", y)],
        ["map(1): neg exp", "matmul(2): matmul"],
        [f"graph.map: {MANY}"],
    ),
    # arguments
    "a residual that is the left-hand side": Row(
        lambda g, x: g.map("add", linear(g, x), x), ["matmul(3): matmul add"], []
    ),
    "a product with itself": Row(lambda g, x: g.matmul(y := g.input("y", [4, 4]), y), ["matmul(2): matmul"], []),
    "an input read twice": Row(lambda g, x: g.map("add", x, g.map("neg", x)), ["map(1): neg add"], []),
    "a table that is read by index and in place": Row(
        lambda g, x: g.map("add", g.gather(y := g.input("y", [5, 4]), g.input("ids", [5], "i64")), y),
        ["map(3): gather add"],
        [],
    ),
    "segments that are counted": Row(
        lambda g, x: attended(g, None, None, None, None, None, g.iota("t")),
        ["map(0): iota", "attention(4): attention"],
        [],
    ),
    "a bias that is a number": Row(
        lambda g, x: attended(g, g.constant(0.5, [2, "t", 1])), ["attention(3): attention"], []
    ),
    "a bias that is the query": Row(
        lambda g, x: g.attention(*same_query_and_bias(g)), ["map(0):", "attention(3): attention"], []
    ),
    # what kernels store and read
    "two results of one value, one of them transposed": Row(
        lambda g, x: [g.transpose(g.map("neg", y := g.map("cos", x)), 1, 0, 2), g.map("exp", y)],
        ["map(1): cos neg exp", "map(1): transpose"],
        [],
    ),
    "two results, one of them transposed": Row(
        lambda g, x: [g.transpose(y := g.map("neg", x), 1, 0, 2), g.map("exp", y)],
        ["map(1): neg exp", "map(1): transpose"],
        [],
    ),
    "a product transposed": Row(
        lambda g, x: g.transpose(linear(g, x), 1, 0, 2), ["matmul(2): matmul", "map(1): transpose"], []
    ),
    "one result, transposed": Row(lambda g, x: g.transpose(g.map("neg", x), 1, 0, 2), ["map(1): neg transpose"], []),
    "one result, transposed in two ways": Row(
        lambda g, x: [g.transpose(y := g.map("neg", x), 1, 0, 2), g.transpose(y, 2, 1, 0)],
        ["map(1): neg", "map(1): transpose", "map(1): transpose"],
        [],
    ),
    "one result, transposed and not": Row(
        lambda g, x: [g.transpose(y := g.map("neg", x), 1, 0, 2), y], ["map(1): neg", "map(1): transpose"], []
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_program_becomes_these_kernels(name: str, seed: int) -> None:
    row = ROWS[name]
    assert partition(row.build, seed) == (row.kernels, row.reasons)


def normalised_twice(g: Graph, x: SSAValue) -> SSAValue:
    return g.map("exp", g.softmax(g.norm(x)))


def test_a_kernel_that_is_full_has_taken_what_it_has(seed: int) -> None:
    kernels, reasons = partition(normalised_twice, seed, max_ops=2)
    assert kernels == ["row-reduction(1): norm softmax", "map(1): exp"]
    assert reasons == ["graph.softmax: a kernel takes 2 ops"]


def test_what_was_joined_and_dissolved_was_not_refused(seed: int) -> None:
    kernels, reasons = partition(normalised_twice, seed, limit=0)
    assert kernels == ["row-reduction(1): norm", "row-reduction(1): softmax", "map(1): exp"]
    assert reasons == [
        "graph.norm: its operand is stored by a row-reduction kernel",
        "graph.softmax: its operand is stored by a row-reduction kernel",
    ]

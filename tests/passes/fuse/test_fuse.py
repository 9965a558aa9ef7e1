"""The partition: what is fused, what is not and why, and the shape that lower-to-tile may rely on."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import BlockArgument, SSAValue

from tests.passes.encoder_text import ENCODER
from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.reduction import CumulativeOp
from tilewright.ir.graph.structure import GroupOp, StateReadOp, StateWriteOp
from tilewright.ir.types import TensorType
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.fuse import Fuse
from tilewright.testing import context, ground, ir


def groups(module: ModuleOp) -> list[tuple[str, list[str]]]:
    """Kind and ops of every group."""
    return [(op.kind.data, ops_of(op)[1:]) for op in module.walk() if isinstance(op, GroupOp)]  # type: ignore[arg-type]


def fused(module: ModuleOp, seed: int, **options: object) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """The groups after fuse, grounded, and the refusals."""
    ctx = context(module)
    after = ground(module, Fuse(**options), seed=seed, ctx=ctx)  # type: ignore[arg-type]
    return groups(after), [r.reason for r in ctx.refused]


def start(*extra: str) -> tuple[Graph, SSAValue]:
    g = Graph("b: 0..4", "t: 1..7", *extra)
    return g, g.input("x", ["b", "t", 16])


# --- matmul ---------------------------------------------------------------------------------------------------------


def test_a_matmul_takes_bias_activation_and_residual(seed: int) -> None:
    g, x = start()
    y = g.map("add", g.matmul(x, g.weight("w", [16, 16])), g.weight("c", [16]))
    out = g.map("add", g.map("gelu", g.cast(y, "f64")), g.cast(x, "f64"))
    found, _ = fused(g.done(out), seed)
    assert found == [("map", ["cast"]), ("matmul", ["matmul", "add", "cast", "gelu", "add"])]


@pytest.mark.parametrize(
    ("dims", "joins"),
    [
        ([16], True),
        ([1, 1, 16], True),
        (["b", "t", 16], True),
        (["b", "t", 1], True),
        ([1], True),
        (["t", 16], False),
        (["b", 1, 1], False),
        (["b", 1, 16], False),
    ],
)
def test_an_epilogues_operand_is_a_scalar_column_row_or_whole(dims: list[object], joins: bool, seed: int) -> None:
    g, x = start()
    other = g.input("other", dims)  # type: ignore[arg-type]
    found, said = fused(g.done(g.map("mul", g.matmul(x, g.weight("w", [16, 16])), other)), seed)
    assert found == ([("matmul", ["matmul", "mul"])] if joins else [("matmul", ["matmul"]), ("map", ["mul"])])
    assert any("no scalar, column, row" in r for r in said) != joins


def test_a_result_that_several_read_ends_the_epilogue(seed: int) -> None:
    g, x = start()
    y = g.map("add", g.matmul(x, g.weight("w", [16, 16])), x)
    found, said = fused(g.done(g.map("exp", y), g.map("neg", y)), seed)
    assert found == [("matmul", ["matmul", "add"]), ("map", ["exp", "neg"])] or found == [
        ("matmul", ["matmul", "add"]),
        ("map", ["exp"]),
        ("map", ["neg"]),
    ]
    assert any("several kernels read the result" in r for r in said)


def test_gate_and_up_share_their_left_hand_side(seed: int) -> None:
    g, x = start()
    gate, up = (g.matmul(x, g.weight(n, [24, 16]), transpose_b=True) for n in ("gate", "up"))
    module = g.done(g.map("mul", g.map("silu", gate), up))
    assert fused(module, seed)[0] == [("matmul", ["matmul", "matmul", "silu", "mul"])]
    assert len(fused(module, seed, pairs=False)[0]) == 2


@pytest.mark.parametrize("fault", ["another x", "another width", "read elsewhere"])
def test_products_that_are_no_pair_stay_two(fault: str, seed: int) -> None:
    g, x = start()
    gate = g.matmul(x, g.weight("gate", [16, 1 if fault == "another width" else 24]))
    up = g.matmul(g.map("exp", x) if fault == "another x" else x, g.weight("up", [16, 24]))
    outs = [g.map("mul", gate, up)] + ([gate] if fault == "read elsewhere" else [])
    assert all(ops.count("matmul") == 1 for kind, ops in fused(g.done(*outs), seed)[0] if kind == "matmul")


def test_a_residual_flattened_by_the_model_still_joins(seed: int) -> None:
    g, x = start()
    flat = g.matmul(g.reshape(x, "b*t", 16), g.weight("w", [16, 16]))
    y = g.map("add", g.reshape(g.map("add", flat, g.weight("c", [16])), "b", "t", 16), x)
    assert fused(g.done(y), seed)[0] == [("matmul", ["matmul", "add", "add"])]


def test_two_products_grouped_differently_come_to_rest(seed: int) -> None:
    g, x = start()
    flat = g.matmul(g.reshape(g.map("exp", x), "b*t", 16), g.weight("w", [16, 16]))
    wide = g.matmul(x, g.weight("v", [16, 16]))
    found, _ = fused(g.done(g.map("add", g.reshape(flat, "b", "t", 16), wide)), seed)
    assert [kind for kind, _ in found] == ["map", "matmul", "matmul"]


def test_a_later_product_takes_the_sum_when_the_earlier_cannot(seed: int) -> None:
    """h + f(h): joining the sum to the first product would make the kernel wait for itself."""
    g, x = start()
    h = g.matmul(x, g.weight("w1", [16, 16]))
    f = g.matmul(g.norm(h), g.weight("w2", [16, 16]))
    found, _ = fused(g.done(g.map("add", h, f)), seed)
    assert found == [("matmul", ["matmul"]), ("row-reduction", ["norm"]), ("matmul", ["matmul", "add"])]


# --- rows -----------------------------------------------------------------------------------------------------------


def test_an_embedding_sum_and_its_norm_are_one_kernel(seed: int) -> None:
    g = Graph("b: 0..4", "t: 1..7")
    ids = g.input("ids", ["b", "t"], "i64")
    words = g.gather(g.weight("words", [9, 16]), ids)
    places = g.gather(g.weight("places", [8, 16]), g.reshape(g.positions("t"), 1, "t"))
    module = g.done(g.norm(g.map("add", words, places), g.weight("w", [16])))
    assert fused(module, seed)[0] == [("row-reduction", ["gather", "slice", "add", "norm"])]


def test_a_sum_that_is_used_twice_is_stored_by_the_norm_that_reads_it(seed: int) -> None:
    g, x = start()
    h = g.map("add", x, g.input("y", ["b", "t", 16]))
    module = g.done(g.norm(h), h)
    ctx = context(module)
    after = ground(module, Fuse(), seed=seed, ctx=ctx)
    assert groups(after) == [("row-reduction", ["add", "norm"])]
    assert str(ctx.applied[-1].saves) == "64*b*t", "h is written once and not read again"


def test_several_reductions_of_the_same_rows_share_a_kernel(seed: int) -> None:
    g, x = start()
    length = g.map("sqrt", g.reduce("sum", g.map("mul", x, x), -1, keepdims=True))
    module = g.done(g.softmax(g.map("div", x, g.map("max", length, 1e-6))))
    assert fused(module, seed)[0] == [
        ("row-reduction", ["mul", "reduce", "sqrt", "max", "div", "softmax"]),
    ]


def test_rows_of_another_shape_are_another_kernel(seed: int) -> None:
    g, x = start()
    total = g.reduce("sum", g.map("exp", x), -1)
    found, said = fused(g.done(g.softmax(total)), seed)
    assert found == [("row-reduction", ["exp", "reduce"]), ("row-reduction", ["softmax"])]
    assert any("rows of another shape" in r for r in said)


def test_rotary_joins_the_norm_before_it_if_the_row_fills_whole_vectors(seed: int) -> None:
    for features, left in ((32, [["norm", "rotary"]]), (24, [["norm"], ["rotary"]])):
        g = Graph("b: 0..3", "t: 1..5")
        x = g.transpose(g.norm(g.input("x", ["b", "t", 2, features]), kind="rms"), 0, 2, 1, 3)
        tables = [g.input(n, ["t", features]) for n in ("cos", "sin")]
        module = g.done(g.attention(g.rotary(x, *tables), x, x))
        found = [ops for kind, ops in fused(module, seed)[0] if kind != "attention"]
        assert found == left


# --- other axes -----------------------------------------------------------------------------------------------------


def test_a_masked_mean_reads_its_input_once(seed: int) -> None:
    g, x = start()
    mask = g.input("mask", ["b", "t", 1])
    total = g.reduce("sum", g.map("mul", x, mask), 1)
    module = g.done(g.map("div", total, g.map("max", g.reduce("sum", mask, 1), 1e-9)))
    assert fused(module, seed)[0] == [("reduction", ["reduce", "max"]), ("reduction", ["mul", "reduce", "div"])]


def test_what_others_read_is_not_swallowed_by_a_reduction(seed: int) -> None:
    g, x = start()
    y = g.map("exp", x)
    found, said = fused(g.done(g.reduce("sum", y, 1), y), seed)
    assert found == [("map", ["exp"]), ("reduction", ["reduce"])]
    assert any("other kernels read it, too" in r for r in said)


# --- elements -------------------------------------------------------------------------------------------------------


def test_elementwise_ops_of_one_shape_are_one_kernel_with_several_results(seed: int) -> None:
    g, x = start()
    angle = g.map("mul", x, g.input("f", [16]))
    module = g.done(g.map("cos", angle), g.map("sin", angle))
    assert fused(module, seed)[0] == [("map", ["mul", "cos", "sin"])]


def test_a_cheap_small_operand_is_computed_again_for_each_repeat(seed: int) -> None:
    g, x = start()
    module = g.done(g.map("mul", x, g.map("add", g.input("v", [16]), 1.0)))
    assert fused(module, seed)[0] == [("map", ["add", "mul"])]


def test_an_expensive_or_widening_small_operand_is_stored(seed: int) -> None:
    for build in (
        lambda g: g.map("cos", g.input("v", [16])),
        lambda g: g.cast(g.input("v", [16], "i64"), "f32"),
    ):
        g, x = start()
        found, said = fused(g.done(g.map("mul", x, build(g))), seed)
        assert len(found) == 2
        assert any("moves more words or work than loading it" in r for r in said)


def test_a_gather_computes_its_indices(seed: int) -> None:
    g = Graph("b: 0..4")
    ids = g.map("add", g.input("ids", ["b"], "i64"), 1)
    found, said = fused(g.done(g.map("exp", g.gather(g.weight("w", [9, 16]), ids))), seed)
    assert found == [("map", ["add", "gather", "exp"])]
    assert not said


def test_what_is_looked_up_lies_in_memory(seed: int) -> None:
    g = Graph("b: 0..4")
    table = g.map("exp", g.input("x", ["b", 16]))
    found, said = fused(g.done(g.gather(table, g.input("ids", ["b"], "i64"))), seed)
    assert found == [("map", ["exp"]), ("map", ["gather"])]
    assert "not joined with graph.map: a look-up needs its table in memory" in said


def test_running_ops_take_what_feeds_them_and_what_follows(seed: int) -> None:
    g = Graph("b: 0..4", "t: 0..9")
    x = g.input("x", ["b", "t"])
    running = g.op(CumulativeOp, g.map("exp", x), fn="sum", axis=1)
    found, said = fused(g.done(g.map("mul", running, x)), seed)
    assert found == [("running", ["exp", "cumulative", "mul"])]
    assert not said


def test_a_value_read_through_a_view_is_in_memory(seed: int) -> None:
    g = Graph("t: 1..5")
    x = g.input("x", ["t", "t"])
    y = g.map("exp", x)
    found, said = fused(g.done(g.map("add", y, g.transpose(y, 1, 0))), seed)
    assert found == [("map", ["exp"]), ("map", ["transpose", "add"])]
    assert "not joined with graph.map: it also reads a view of the other's result" in said


# --- attention and views --------------------------------------------------------------------------------------------


def test_attention_reads_and_stores_through_views(seed: int) -> None:
    g, x = start()
    heads = [
        g.transpose(g.reshape(g.matmul(x, g.weight(n, [16, 16])), "b", "t", 2, 8), 0, 2, 1, 3) for n in ("q", "k", "v")
    ]
    out = g.reshape(g.transpose(g.attention(*heads), 0, 2, 1, 3), "b", "t", 16)
    found, _ = fused(g.done(g.matmul(out, g.weight("o", [16, 16]))), seed)
    assert found[3] == ("attention", ["transpose", "transpose", "transpose", "attention", "transpose"])
    assert [kind for kind, _ in found] == ["matmul", "matmul", "matmul", "attention", "matmul"]


def test_a_joint_projection_is_cut_in_place(seed: int) -> None:
    """q, k and v are slices of one product: no kernel copies them."""
    g, x = start()
    joint = g.matmul(x, g.weight("qkv", [16, 48]))
    parts = [
        g.transpose(g.reshape(g.slice(joint, -1, 16 * i, 16 * i + 16), "b", "t", 2, 8), 0, 2, 1, 3) for i in range(3)
    ]
    found, _ = fused(g.done(g.attention(*parts)), seed)
    assert [kind for kind, _ in found] == ["matmul", "attention"]


def test_a_cut_between_heads_is_copied(seed: int) -> None:
    g, x = start()
    part = g.reshape(g.slice(g.map("exp", x), -1, 3, 11), "b", "t", 2, 4)
    found, _ = fused(g.done(g.softmax(part)), seed)
    assert ("map", ["slice"]) in found


def test_one_value_in_two_roles_is_two_arguments_of_attention(seed: int) -> None:
    g = Graph("b: 0..3", "t: 1..5")
    q, kv = (g.input(n, ["b", 2, "t", 8]) for n in ("q", "kv"))
    after = ground(g.done(g.attention(q, kv, kv)), Fuse(), seed=seed)
    (group,) = [op for op in after.walk() if isinstance(op, GroupOp)]
    assert len(group.args) == 3


def test_positions_given_to_attention_are_counted_inside(seed: int) -> None:
    g = Graph("b: 0..3", "t: 1..5")
    q, k = (g.input(n, ["b", 2, "t", 8]) for n in ("q", "k"))
    at = g.positions("t")
    after = ground(g.done(g.attention(q, k, k, None, None, at, at, mask="causal")), Fuse(), seed=seed)
    assert groups(after) == [("attention", ["positions", "positions", "attention"])]


# --- what lower-to-tile relies on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [[Fuse()], [Canonicalize(), Fuse()], [Fuse(epilogues=False, prologues=False)]])
def test_every_group_has_the_promised_structure(passes: list[object], seed: int) -> None:
    after = ground(ENCODER, passes, seed=seed)  # type: ignore[arg-type]
    function = next(iter(after.body.block.ops))
    outside = {op.name for op in function.regions[0].block.ops}
    assert outside == {"graph.group", "graph.weight", "graph.reshape", "graph.return"}
    for group in after.walk():
        if isinstance(group, GroupOp):
            check_structure(group)


def check_structure(group: GroupOp) -> None:
    """Views at the rim, splats alone as constants, arguments that are used, one shape of elementwise results."""
    computed: set[SSAValue] = set()
    for op in group.block.ops:
        name = op.name.partition(".")[2]
        assert name != "weight"
        if name in ("reshape", "transpose", "slice", "broadcast"):
            assert op.operands[0] not in computed or all(u.operation.name == "graph.yield" for u in op.results[0].uses)
        elif name == "constant":
            assert op.splat is not None  # type: ignore[attr-defined]
        elif name not in ("iota", "dim", "positions"):
            computed.update(op.results)
        if name == "gather":
            assert all(isinstance(v, BlockArgument) for v in op.operands)
    assert all(list(arg.uses) for arg in group.block.args)
    if group.kind.data == "map":
        assert len({tensor(v).dims for v in group.yielded}) == 1


def test_options_limit_what_is_fused(seed: int) -> None:
    module = ir(ENCODER)
    kernels = {
        name: len(groups(ground(module, Fuse(**options), seed=seed)))  # type: ignore[arg-type]
        for name, options in {
            "all": {},
            "none": {"epilogues": False, "prologues": False},
            "few": {"max_ops": 2},
        }.items()
    }
    assert kernels["all"] < kernels["few"] < kernels["none"]


def test_a_bisecting_limit_leaves_single_ops(seed: int) -> None:
    g, x = start()
    module = g.done(g.map("exp", g.map("neg", x)))
    assert groups(ground(module, Fuse(), seed=seed, ctx=context(module, limit=0))) == [
        ("map", ["neg"]),
        ("map", ["exp"]),
    ]


# --- outside --------------------------------------------------------------------------------------------------------


def test_results_are_the_programs_own(seed: int) -> None:
    g, x = start()
    w = g.weight("w", [16])
    y = g.map("exp", x)
    after = ground(g.done(x, w, y, g.reshape(y, "b*t", 16), g.constant(2.0, [3])), Fuse(), seed=seed)
    results = next(iter(after.body.block.ops)).terminator.values  # type: ignore[attr-defined]
    owners = [v.owner for v in results]
    assert all(isinstance(o, GroupOp) for o in owners)
    assert len(set(owners)) == 5


def test_a_state_is_read_before_it_is_replaced(seed: int) -> None:
    g = Graph()
    x = g.input("x", [5])
    kind = TensorType.of([5], g.dtype)
    old = g.op(StateReadOp, name="s", result_types=[kind])
    g.function.block.add_op(StateWriteOp.make(g.map("add", old, x), name="s"))
    late = g.map("mul", old, g.map("exp", x))
    after = ground(g.done(late), Fuse(), seed=seed)
    names = [op.name.partition(".")[2] for op in next(iter(after.body.block.ops)).regions[0].block.ops]
    # values are values: whether memory still holds what is read after the write is for lower-to-tile to see to
    assert names == ["state_read", "group", "state_write", "group", "return"]
    _, product = [op for op in after.walk() if isinstance(op, GroupOp)]
    assert any(isinstance(v.owner, StateReadOp) for v in product.args)


def test_every_value_between_kernels_has_a_reason(seed: int) -> None:
    module = ir(ENCODER)
    ctx = context(module)
    after = ground(module, [Canonicalize(), Fuse()], seed=seed, ctx=ctx)
    produced = {r for g in after.walk() if isinstance(g, GroupOp) for r in g.outs}
    between = [g for g in after.walk() if isinstance(g, GroupOp) for v in g.args if _storage(v) in produced]
    assert len([r for r in ctx.refused if r.pass_name == "fuse"]) >= len({id(g) for g in between}) > 5


def _storage(value: SSAValue) -> SSAValue:
    while getattr(value.owner, "name", "") == "graph.reshape":
        value = value.owner.operands[0]  # type: ignore[union-attr]
    return value

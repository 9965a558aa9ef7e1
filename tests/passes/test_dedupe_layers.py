"""Repeated layers become one function; a layer that differs in anything stays apart, and the report says in what."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph
from tilewright.ir.graph.structure import CallOp, FuncOp, GroupOp, StateReadOp
from tilewright.ir.types import TensorType
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.dedupe_layers import DedupeLayers
from tilewright.passes.fuse import Fuse
from tilewright.passes.inline_layers import InlineLayers
from tilewright.passes.layer_matching import same_operation
from tilewright.testing import context, ground

Change = Callable[[Graph, int, SSAValue], SSAValue]


def no_change(g: Graph, layer: int, x: SSAValue) -> SSAValue:
    return x


def decoder(count: int = 4, change: Change = no_change, *, eps: Callable[[int], float] = lambda i: 0.01) -> Graph:
    """`count` pre-norm layers over a residual stream; all of them read one mask, built by the first."""
    g = Graph("b: 0..3", "t: 1..6", dtype="f64")
    ids, mask = g.input("ids", ["b", "t"], "i64"), g.input("mask", ["b", "t"], "i1")
    g.path = "model.embed"
    h = g.gather(g.weight("embed", [9, 8]), ids)
    for i in range(count):
        g.path = f"model.layers.{i}"
        p = f"layers.{i}."
        seen = g.map("or", mask, g.map("not", mask))
        x = g.norm(h, g.weight(p + "norm", [8]), kind="rms", eps=eps(i))
        q, k, v = (
            g.transpose(g.reshape(g.matmul(x, g.weight(p + n, [8, 8])), "b", "t", 2, 4), 0, 2, 1, 3) for n in "qkv"
        )
        a = g.reshape(g.transpose(g.attention(q, k, v, None, seen, scale=0.5), 0, 2, 1, 3), "b", "t", 8)
        h = g.map("add", h, g.matmul(a, g.weight(p + "o", [8, 8])))
        h = change(g, i, h)
    g.path = "model.norm"
    g.result = g.norm(h, g.weight("final", [8]), kind="rms")  # type: ignore[attr-defined]
    return g


def deduped(g: Graph, seed: int, *more: SSAValue) -> tuple[ModuleOp, list[str], list[str]]:
    """The module after, the layer functions called in order, and the refusals."""
    module = g.done(g.result, *more)  # type: ignore[attr-defined]
    ctx = context(module)
    after = ground(module, [Canonicalize(), DedupeLayers()], seed=seed, ctx=ctx)
    calls = [op.callee.data for op in after.walk() if isinstance(op, CallOp)]
    return after, calls, [r.reason for r in ctx.refused if r.pass_name == "dedupe-layers"]


def test_equal_layers_are_one_function_called_many_times(seed: int) -> None:
    after, calls, said = deduped(decoder(), seed)
    assert (calls, said) == (["layers"] * 4, [])
    (layer,) = [f for f in after.walk() if isinstance(f, FuncOp) and f.kind.data == "layer"]
    assert set(layer.arg_names.data) >= {"norm", "q", "k", "v", "o"}
    assert len(layer.terminator.values) == 1, "the residual stream alone leaves a layer"


def test_later_passes_see_the_layer_once(seed: int) -> None:
    after, _, _ = deduped(decoder(), seed)
    shared = str(ground(after, Fuse(), seed=seed)).count("graph.group(")
    apart = str(ground(after, [InlineLayers(), Fuse()], seed=seed)).count("graph.group(")
    layer = 6  # norm, q, k, v, attention, o with the residual
    across_the_border = 1  # apart, the first norm also looks up the embedding
    assert apart - shared == 3 * layer - across_the_border


@pytest.mark.parametrize("odd", [0, 1, 3])
def test_a_layer_with_another_property_stays_apart(odd: int, seed: int) -> None:
    _, calls, said = deduped(decoder(eps=lambda i: 0.5 if i == odd else 0.01), seed)
    assert len(calls) == 3
    assert any("graph.norm has another eps" in r for r in said)


def test_two_kinds_of_layers_in_turn_are_two_functions(seed: int) -> None:
    _, calls, _ = deduped(decoder(4, eps=lambda i: 0.5 if i % 2 else 0.01), seed)
    assert sorted(calls) == ["layers", "layers", "layers_2", "layers_2"]
    assert calls[0] == calls[2] != calls[1] == calls[3]


def another_fn(g: Graph, layer: int, x: SSAValue) -> SSAValue:
    return g.map("tanh" if layer == 1 else "sin", x)


def another_constant(g: Graph, layer: int, x: SSAValue) -> SSAValue:
    return g.map("mul", x, 0.5 if layer == 1 else 0.25)


def another_axis(g: Graph, layer: int, x: SSAValue) -> SSAValue:
    return g.map(
        "add", x, g.reduce("max", x, -1, keepdims=True) if layer == 1 else g.reduce("max", x, 1, keepdims=True)
    )


def another_operand(g: Graph, layer: int, x: SSAValue) -> SSAValue:
    y = g.map("sin", x)
    return g.map("sub", y, x) if layer == 1 else g.map("sub", x, y)


def another_width(g: Graph, layer: int, x: SSAValue) -> SSAValue:
    width = 3 if layer == 1 else 5
    inner = g.matmul(x, g.weight(f"layers.{layer}.up", [8, width]))
    return g.map("add", x, g.matmul(inner, g.weight(f"layers.{layer}.down", [width, 8])))


def one_value_twice(g: Graph, layer: int, x: SSAValue) -> SSAValue:
    """Layer 1 multiplies by one weight twice, the others by two weights."""
    names = ("m", "m" if layer == 1 else "n")
    for name in names:
        x = g.map("mul", x, g.weight(f"layers.{layer}.{name}", [8]))
    return x


@pytest.mark.parametrize(
    "change", [another_fn, another_constant, another_axis, another_operand, another_width, one_value_twice]
)
def test_structure_decides_not_the_path(change: Change, seed: int) -> None:
    _, calls, said = deduped(decoder(3, change), seed)
    assert len(calls) == (3 if change is one_value_twice else 2)
    assert bool(said) == (change is not one_value_twice)


def test_a_weight_that_layers_share_is_given_to_each(seed: int) -> None:
    def tied(g: Graph, layer: int, x: SSAValue) -> SSAValue:
        return g.map("mul", x, g.weight("tied", [8]))

    _, calls, _ = deduped(decoder(3, tied), seed)
    assert len(calls) == 3


def test_a_value_from_inside_that_is_used_outside_leaves_every_layer(seed: int) -> None:
    kept: list[SSAValue] = []

    def keep(g: Graph, layer: int, x: SSAValue) -> SSAValue:
        y = g.map("sin", x)
        if layer == 1:
            kept.append(y)
        return g.map("cos", y)

    g = decoder(3, keep)
    after, calls, _ = deduped(g, seed, kept[0])
    assert len(calls) == 3
    (layer,) = [f for f in after.walk() if isinstance(f, FuncOp) and f.kind.data == "layer"]
    assert len(layer.terminator.values) == 2


def test_an_op_between_the_parts_of_a_layer_keeps_it_apart(seed: int) -> None:
    def around(g: Graph, layer: int, x: SSAValue) -> SSAValue:
        inside, g.path = g.path, "model.probe"
        y = g.map("sin", x)
        g.path = inside
        return g.map("add", x, y) if layer == 1 else g.map("add", x, g.map("sin", x))

    _, calls, said = deduped(decoder(3, around), seed)
    assert len(calls) == 2
    assert said


def test_layers_that_are_too_small_are_left_alone(seed: int) -> None:
    g = Graph(dtype="f64")
    x = g.input("x", [3, 8])
    for i in range(4):
        g.path = f"net.{i}"
        x = g.map("add", g.matmul(x, g.weight(f"w{i}", [8, 8])), g.weight(f"c{i}", [8]))
    g.result = x  # type: ignore[attr-defined]
    assert deduped(g, seed)[1] == []


def test_grouped_layers_inline_to_what_they_were(seed: int) -> None:
    g = decoder(3)
    module = g.done(g.result)  # type: ignore[attr-defined]
    after = ground(module, [Canonicalize(), DedupeLayers(), Fuse(), InlineLayers()], seed=seed)
    names = {op.name for op in after.walk()}
    assert "graph.call" not in names
    assert sum(isinstance(op, GroupOp) for op in after.walk()) > 15


# --- small layers, of which the middle one differs in one way ---------------------------------------------------------


def chain(change: Change, *, leaves: bool = True) -> Graph:
    """Three layers over x [b, 8] of six ops each, the last of which `change` builds."""
    g = Graph("b: 0..3", dtype="f64")
    x = start = g.input("x", ["b", 8])
    for i in range(3):
        g.path = f"net.{i}"
        y = x if leaves else start
        for fn in ("sin", "tanh", "cos", "exp", "sin"):
            y = g.map(fn, y)
        x = change(g, i, y)
    g.path = ""
    g.result = g.map("neg", x if leaves else start)  # type: ignore[attr-defined]
    return g


def other_parts(g: Graph, layer: int, x: SSAValue) -> SSAValue:
    """Two parts of four joined, or four of two."""
    width = 2 if layer == 1 else 4
    return g.concat(1, *(g.slice(x, 1, start, start + width) for start in range(0, 8, width)))


def one_for_two(g: Graph, layer: int, x: SSAValue) -> SSAValue:
    """A product of one value with itself in layer 1, of two equal ones in the others."""
    y = g.map("cos", x)
    return g.map("mul", y, y if layer == 1 else g.map("cos", x))


def two_for_one(g: Graph, layer: int, x: SSAValue) -> SSAValue:
    """The other way round: what layer 1 multiplies by is computed alike, but from the first layer's input."""
    y = z = g.map("cos", x)
    if layer == 1:
        z = g.function.block.args[0]
        for fn in ("sin", "tanh", "cos", "exp", "sin", "cos"):
            z = g.map(fn, z)
    return g.map("mul", y, z)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_parts, "graph.concat has 4 operands"),
        (one_for_two, "stands for two values of the sample"),
        (two_for_one, "is used where the sample uses one value twice"),
    ],
)
def test_a_layer_wired_otherwise_stays_apart(change: Change, reason: str, seed: int) -> None:
    module = chain(change)
    module.done(module.result)  # type: ignore[attr-defined]
    ctx = context(module.module)
    after = ground(module.module, DedupeLayers(), seed=seed, ctx=ctx)
    assert sum(isinstance(op, CallOp) for op in after.walk()) == 2
    assert any(reason in r.reason for r in ctx.refused), [r.reason for r in ctx.refused]


def test_two_values_may_leave_a_layer_of_which_one_is_computed_from_the_other(seed: int) -> None:
    g = chain(lambda g, layer, x: g.map("tanh", x))
    inner = [op.results[0] for op in g.function.block.ops if op.name == "graph.map"][4::6]
    after, calls, _ = deduped(g, seed, *(g.map("exp", v) for v in inner))
    assert len(calls) == 3
    (layer,) = [f for f in after.walk() if isinstance(f, FuncOp) and f.kind.data == "layer"]
    assert len(layer.terminator.values) == 2


def test_ops_without_a_path_go_with_the_layer_that_alone_reads_them(seed: int) -> None:
    def without_path(g: Graph, layer: int, x: SSAValue) -> SSAValue:
        inside, g.path = g.path, ""
        y = g.map("abs", x)
        g.path = inside
        return g.map("sqrt", y)

    after, calls, said = deduped(chain(without_path), seed)
    assert (len(calls), said) == (3, [])
    (layer,) = [f for f in after.walk() if isinstance(f, FuncOp) and f.kind.data == "layer"]
    assert len(list(layer.block.ops)) == 8


def test_a_layer_that_reads_a_state_is_not_shared(seed: int) -> None:
    def stateful(g: Graph, layer: int, x: SSAValue) -> SSAValue:
        kind = TensorType.of([8], g.dtype)
        return g.map("add", x, g.op(StateReadOp, name="s", result_types=[kind]))

    _, calls, said = deduped(chain(stateful), seed)
    assert calls == []
    assert any("it has effects" in r for r in said)


def test_layers_whose_results_nobody_reads_are_no_functions(seed: int) -> None:
    module = chain(no_change, leaves=False)
    module.done(module.result)  # type: ignore[attr-defined]
    ctx = context(module.module)
    ground(module.module, DedupeLayers(min_ops=1), seed=seed, ctx=ctx)
    assert {r.reason.partition(": ")[2] for r in ctx.refused} == {"nothing leaves it"}
    assert not ctx.applied


def test_ops_of_two_classes_are_told_apart_by_their_names() -> None:
    g = Graph()
    x = g.input("x", [2, 3])
    reshaped, stretched = g.reshape(x, 1, 2, 3).owner, g.broadcast(x, 1, 2, 3).owner
    assert same_operation(reshaped, stretched) == "graph.broadcast where graph.reshape is expected"  # type: ignore[arg-type]
    assert same_operation(reshaped, reshaped) is None  # type: ignore[arg-type]

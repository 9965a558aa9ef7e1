"""The pass keeps every function, and leaves a chain of convolutions without a transpose between its two ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.shape import ConcatOp, PadOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import WeightOp
from tilewright.ir.graph.windows import ConvolutionOp, PoolOp
from tilewright.ir.module import function
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.channels_last import ChannelsLast
from tilewright.passes.hoist_weights import HoistWeights
from tilewright.testing import context, ground

Layer = Callable[[Graph, SSAValue], SSAValue]


def convolution(
    g: Graph, x: SSAValue, filters: int, window: int = 3, *, bias: bool = True, name: str = "w"
) -> SSAValue:
    channels = tensor(x).dims[1]
    pad = window // 2
    return g.op(
        ConvolutionOp,
        x,
        g.weight(name, [filters, channels, window, window]),
        g.weight(f"{name}.bias", [filters]) if bias else None,
        strides=[1, 1],
        padding_low=[pad, pad],
        padding_high=[pad, pad],
        dilation=[1, 1],
    )


def vector(g: Graph, name: str, channels: int) -> SSAValue:
    return g.op(ReshapeOp, g.weight(name, [channels]), dims=[1, channels, 1, 1])


def batch_norm(g: Graph, x: SSAValue, name: str = "bn") -> SSAValue:
    channels = tensor(x).dims[1].constant or 0
    return g.map("add", g.map("mul", x, vector(g, f"{name}.scale", channels)), vector(g, f"{name}.shift", channels))


def run(build: Layer, seed: int, channels: int = 4) -> tuple[Graph, list[str]]:
    g = Graph("b: 0..3", "h: 4..9", dtype="f64")
    x = g.input("x", ["b", channels, "h", 6])
    g.done(build(g, x))
    ctx = context(g.module)
    passes = [Canonicalize(), ChannelsLast(), Canonicalize(), HoistWeights()]
    after = ground(g.module, passes, seed=seed, ctx=ctx, rounding="f64")
    g.module = after
    return g, ops_of(after)


def main_ops(g: Graph) -> list[str]:
    return [op.name.partition(".")[2] for op in function(g.module, "main").block.ops]


def residual_block(g: Graph, x: SSAValue) -> SSAValue:
    y = g.map("relu", batch_norm(g, convolution(g, x, 5, bias=False, name="a"), "n"))
    y = batch_norm(g, convolution(g, y, 4, name="b"), "m")
    return g.map("relu", g.map("add", y, g.map("relu", convolution(g, x, 4, 1, name="c"))))


def test_a_residual_block_has_transposes_at_its_ends_alone(seed: int) -> None:
    g, _ = run(residual_block, seed)
    kept = main_ops(g)
    assert kept.count("convolution") == 2
    # the 1 by 1 convolution
    assert kept.count("matmul") == 1
    assert kept.count("transpose") == 2


def test_batch_norm_joins_filters_and_bias(seed: int) -> None:
    g, _ = run(lambda g, x: batch_norm(g, convolution(g, x, 5)), seed)
    kept = main_ops(g)
    assert "mul" not in [
        op.fn.data for op in g.module.walk() if op.name == "graph.map" and op.parent_op() is function(g.module, "main")
    ]  # type: ignore[attr-defined]
    assert kept.count("map") == 1


def test_a_convolution_read_twice_keeps_its_filters(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        y = convolution(g, x, 5)
        return g.map("add", batch_norm(g, y), g.map("exp", y))

    g, _ = run(build, seed)
    maps = [op.fn.data for op in function(g.module, "main").block.ops if op.name == "graph.map"]  # type: ignore[attr-defined]
    assert sorted(maps) == ["add", "add", "add", "exp", "mul"]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [(1,), (2, 3), (0, 2), (1, 2, 3), (3,)])
def test_reductions_fold_the_same_axes(axes: tuple[int, ...], keepdims: bool, seed: int) -> None:
    from tilewright.ir.graph.reduction import ReduceOp

    g, _ = run(lambda g, x: g.op(ReduceOp, convolution(g, x, 5), fn="sum", axes=axes, keepdims=keepdims), seed)
    assert main_ops(g).count("transpose") <= 2


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_joined_and_padded_images_stay_turned(axis: int, seed: int, rng: np.random.Generator) -> None:
    low = [int(n) for n in rng.integers(0, 3, 4)]

    def build(g: Graph, x: SSAValue) -> SSAValue:
        parts = [convolution(g, x, 5, name="a"), g.map("relu", convolution(g, x, 5, name="b"))]
        return g.op(PadOp, g.op(ConcatOp, parts, axis=axis), low=low, high=low[::-1], value=2.0)

    g, _ = run(build, seed)
    assert main_ops(g).count("transpose") == 2


def test_positions_become_tokens_without_a_copy(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        y = convolution(g, x, 5)
        batch, channels, *sides = tensor(y).dims
        flat = g.op(ReshapeOp, y, dims=[batch, channels, sides[0] * sides[1]])
        return g.op(TransposeOp, flat, permutation=(0, 2, 1))

    g, _ = run(build, seed)
    assert main_ops(g).count("transpose") == 1


@pytest.mark.parametrize("fn", ["max", "mean"])
def test_pools_lie_between_convolutions(fn: str, seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        y = g.op(
            PoolOp, convolution(g, x, 5, name="a"), fn=fn, window=[3, 2], strides=[2, 1], padding_low=[1, 0],
            padding_high=[1, 0], dilation=[1, 1], ceil=True, count_padding=False,
        )  # fmt: skip
        return convolution(g, y, 3, name="b")

    g, _ = run(build, seed)
    assert main_ops(g).count("transpose") == 2


def test_scales_that_calls_bring_stay_outside_the_filters(seed: int) -> None:
    g = Graph("b: 0..3", dtype="f64")
    x, scale = g.input("x", ["b", 4, 5, 6]), g.input("s", [1, 5, 1, 1])
    g.done(g.map("mul", convolution(g, x, 5), scale))
    after = ground(g.module, [ChannelsLast(), HoistWeights()], seed=seed, ctx=context(g.module), rounding="f64")
    found = [op for op in after.walk() if isinstance(op, ConvolutionOp)]
    assert len(found) == 1
    assert found[0].w.owner.name != "graph.map"  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [[], [4, 5], [1, 1, 1, 1, 5]], ids=["a number", "a row of vectors", "five axes"])
def test_weights_that_are_no_vector_of_channels_stay_outside_the_filters(shape: list[int], seed: int) -> None:
    g = Graph("b: 0..3", dtype="f64")
    module = g.done(g.map("mul", image(g, last_filters=5), g.weight("s", shape)))
    after = ground(module, ChannelsLast(), seed=seed)
    assert scaled_filters(after) == 0


def test_a_size_that_a_call_decides_stays_outside_the_filters(seed: int) -> None:
    g = Graph("b: 0..3", "h: 4..9", dtype="f64")
    g.sized("h")
    size = g.broadcast(g.cast(g.dim("h"), "f64"), 1, 1, 1, 5)
    after = ground(g.done(g.map("mul", image(g, last_filters=5), size)), ChannelsLast(), seed=seed)
    assert scaled_filters(after) == 0


@pytest.mark.parametrize("shifted", [False, True])
def test_a_vector_of_channels_scales_the_filters(shifted: bool, seed: int) -> None:
    g = Graph("b: 0..3", dtype="f64")
    y = image(g, last_filters=5)
    y = g.map("add", y, g.weight("a", [5])) if shifted else y
    after = ground(g.done(g.map("mul", y, g.weight("s", [5]))), ChannelsLast(), seed=seed)
    assert scaled_filters(after) == 1


def image(g: Graph, last_filters: int) -> SSAValue:
    """A convolution that has its channels last already."""
    return channels_last(g, g.input("x", ["b", 4, 6, 3]), [3, 3, 3, last_filters])


def channels_last(g: Graph, x: SSAValue, filters: list[int], *, pad: int = 0, groups: int = 1) -> SSAValue:
    return g.op(
        ConvolutionOp, x, g.weight("w", filters), None, strides=[1, 1], padding_low=[pad, pad],
        padding_high=[pad, pad], dilation=[1, 1], groups=groups, channels_last=True,
    )  # fmt: skip


def scaled_filters(module: ModuleOp) -> int:
    convolutions = [op for op in module.walk() if isinstance(op, ConvolutionOp)]
    return sum(not isinstance(op.w.owner, WeightOp) for op in convolutions)


def test_shifts_join_where_nobody_else_reads_the_first(seed: int) -> None:
    for others in (0, 1):
        g = Graph("b: 0..3", dtype="f64")
        first = g.map("add", image(g, last_filters=5), g.weight("a", [5]))
        second = g.map("add", first, g.weight("c", [5]))
        after = ground(g.done(second, *[g.map("exp", first)] * others), ChannelsLast(), seed=seed)
        sums = [op for op in after.walk() if isinstance(op, MapOp) and op.fn.data == "add"]
        images = [op for op in sums if tensor(op.out).rank == 4]
        assert len(images) == 1 + others
        assert sum(isinstance(v.owner, MapOp) and v.owner in images for op in images for v in op.args) == others


@pytest.mark.parametrize(("pad", "groups"), [(1, 1), (0, 2)], ids=["padded", "grouped"])
def test_windows_of_one_element_that_are_no_product(pad: int, groups: int, seed: int) -> None:
    g = Graph("b: 0..3", dtype="f64")
    x = g.input("x", ["b", 3, 5, 4])
    after = ground(
        g.done(channels_last(g, x, [1, 1, 4 // groups, 6], pad=pad, groups=groups)), ChannelsLast(), seed=seed
    )
    assert "convolution" in ops_of(after)
    assert "matmul" not in ops_of(after)


def test_a_graph_without_windows_is_left_as_it_is(seed: int) -> None:
    g = Graph("b: 0..3")
    x = g.input("x", ["b", 3, 5, 4])
    after = ground(g.done(g.map("exp", g.transpose(x, 0, 3, 1, 2))), ChannelsLast(), seed=seed)
    assert ops_of(after) == ["transpose", "exp"]


def test_a_reshape_of_something_else_is_left_alone(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        other = g.reshape(g.input("y", ["b", 4, 5, 3]), "b", 4, 15)
        return g.map("add", g.reduce("sum", convolution(g, x, 5), 0, 1, 2, 3), g.reduce("sum", other, 0, 1, 2))

    g, _ = run(build, seed)
    assert "reshape" in main_ops(g)


def test_a_reshape_that_mixes_channels_stays_behind_the_transpose(seed: int) -> None:
    g, _ = run(lambda g, x: g.reshape(convolution(g, x, 5), 5, "b", "6*h"), seed)
    (reshape,) = [op for op in function(g.module, "main").block.ops if isinstance(op, ReshapeOp)]
    assert isinstance(reshape.x.owner, TransposeOp)


@pytest.mark.parametrize("turned_first", [False, True])
def test_tokens_added_to_a_convolution_over_them_come_to_rest(turned_first: bool, seed: int) -> None:
    """With one spatial axis a turn is its own inverse: [b, tokens, channels] beside a slice of a turned convolution."""
    g = Graph("b: 0..3", "t: 4..9", dtype="f64")
    x = g.input("x", ["b", "t", 4])
    y = g.op(
        ConvolutionOp, g.op(TransposeOp, x, permutation=[0, 2, 1]), g.weight("w", [4, 2, 4]), g.weight("bias", [4]),
        strides=[1], padding_low=[2], padding_high=[2], dilation=[1], groups=2,
    )  # fmt: skip
    y = g.map("relu", g.op(SliceOp, y, starts=[0, 0, 0], stops=["b", 4, "t"], steps=[1, 1, 1]))
    back = g.op(TransposeOp, y, permutation=[0, 2, 1])
    g.done(g.map("add", *((back, x) if turned_first else (x, back))))
    after = ground(g.module, [Canonicalize(), ChannelsLast()], seed=seed, ctx=context(g.module), rounding="f64")
    assert ops_of(after).count("convolution") == 1

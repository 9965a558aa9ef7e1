"""The pass keeps every function, and leaves a chain of convolutions without a transpose between its two ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import ConcatOp, PadOp, ReshapeOp, TransposeOp
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

"""Parts of the keys computed apart and merged in order have the bits of attention that walks all keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from xdsl.ir import SSAValue

from tests.backends.cpu.native_kernel import NativeKernel
from tests.passes.lower_tile_to_loops.running import check_counts
from tests.passes.lower_tile_to_loops.running import inputs as drawn
from tests.passes.lower_to_tile.groups import draw, group, reference, run_lowered
from tests.passes.lower_to_tile.test_paged_bits import BEST, PART, Kernels, machine
from tests.passes.lower_to_tile.test_skeletons import attention
from tilewright.ir.dims import Dim, DimSpace, Expr, ceildiv, minimum
from tilewright.ir.dtypes import BF16, F32, DType
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.passing import Context
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.counting import Counters
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.types import TensorType
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.lower_to_tile.matrix_tiles import own_segment
from tilewright.passes.lower_to_tile.online_softmax import OnlineSoftmax, Segment
from tilewright.passes.lower_to_tile.skeletons import lower_group

HEADS, SIZE = 4, 32
KEYS = Expr.of("s")
PARTS = ceildiv(KEYS, PART)
SPACE = DimSpace([Dim(name, 0, 4096) for name in "bts"])


def whole(dtype: DType) -> GroupOp:
    """One query of all heads against s keys of one head."""
    types = [TensorType.of((1, heads, n, SIZE), dtype) for heads, n in ((HEADS, 1), (1, "s"), (1, "s"))]
    return group("attention", types, lambda g, *xs: [g.add(AttentionOp.make(*xs, scale=0.3))])


def softmax(b: KernelBuilder, made: GroupOp) -> OnlineSoftmax:
    op = next(o for o in made.block.ops if isinstance(o, AttentionOp))
    return OnlineSoftmax.of(b, op, machine(), (HEADS, own_segment(machine(), op)), (SIZE, SIZE))


def state(b: KernelBuilder, made: list[SSAValue]) -> list[SSAValue]:
    """Views of m, l and o of every part."""
    return [b.view(x, [PARTS, HEADS, n], [HEADS * n, n, 1]) for x, n in zip(made, (1, 1, SIZE), strict=True)]


def partials(made: GroupOp, dtype: DType) -> KernelOp:
    """m, l and o of every part, each by a program that knows of no other part."""
    b = KernelBuilder("partials", ("s",))
    q, k, v = (b.buffer([n * SIZE], dtype) for n in (Expr.of(HEADS), KEYS, KEYS))
    outputs = state(b, [b.output([PARTS * HEADS * n], F32) for n in (1, 1, SIZE)])
    (part,) = b.grid([PARTS], [1])
    own = softmax(b, made)
    queries = own.queries(b.load(b.view(q, [HEADS, SIZE], [SIZE, 1]), [0, 0], [HEADS, SIZE]))
    keys, values = (b.view(x, [KEYS, SIZE], [SIZE, 1]) for x in (k, v))

    def segment_at(key: SSAValue) -> Segment:
        near, held = (b.load(x, [key, 0], [own.segment, SIZE], 0.0) for x in (keys, values))
        seen = b.map("lt", b.coordinates(key, 1, (1, own.segment)), b.splat(KEYS, (1, 1)))
        return Segment(own.logits(queries, near), seen, held)

    first, last = b.index(Expr.of("a0") * PART, part), b.index(minimum((Expr.of("a0") + 1) * PART, KEYS), part)
    for value, view in zip(own.over(first, last, None, segment_at, PART), outputs, strict=True):
        b.store(b.reshape(value, (1, HEADS, SIZE if view is outputs[-1] else 1)), view, [part, 0, 0])
    return b.finish()


def merge(made: GroupOp, dtype: DType) -> KernelOp:
    """The parts merged from left to right."""
    b = KernelBuilder("merge", ("s",))
    inputs = state(b, [b.buffer([PARTS * HEADS * n], F32) for n in (1, 1, SIZE)])
    out = b.output([HEADS * SIZE], dtype)
    b.grid([1], [1])
    own = softmax(b, made)
    with b.loop(0, b.index(PARTS), 1, own.start(None)) as loop:
        part = [
            b.reshape(b.load(x, [loop.at, 0, 0], [1, HEADS, n]), (HEADS, n))
            for x, n in zip(inputs, (1, 1, SIZE), strict=True)
        ]
        loop.give(*own.merged(loop.carried, part))
    b.store(own.result(loop.out), b.view(out, [HEADS, SIZE], [SIZE, 1]), [0, 0])
    return b.finish()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_parts_computed_apart_merge_to_the_same_bits(dtype: DType, rng: np.random.Generator) -> None:
    made = whole(dtype)
    at_once = Kernels(made)
    apart, merged = (
        NativeKernel(lower_kernel(kernel, machine()), BEST) for kernel in (partials(made, dtype), merge(made, dtype))
    )
    for keys in (1, PART, PART + 1, int(rng.integers(2 * PART, 512))):
        q, k, v = (rng.standard_normal(n * SIZE).astype(np.float32).astype(dtype.numpy()) for n in (HEADS, keys, keys))
        # logits that grow, so that later parts lower what earlier ones left
        k = (k.reshape(keys, SIZE) * np.linspace(0.1, 3, keys)[:, None]).astype(dtype.numpy()).reshape(-1)
        want = at_once([q, k, v], (HEADS, SIZE), {"s": keys}, 1)
        count = -(-keys // PART)
        held: list[Any] = [np.full(count * HEADS * n, np.nan, np.float32) for n in (1, 1, SIZE)]
        for threads in (1, 2):
            apart([q, k, v, *held], [keys], nthreads=threads)
            got = np.full(HEADS * SIZE, np.nan, dtype.numpy())
            merged([*held, got], [keys])
            np.testing.assert_array_equal(got.view(np.uint8), want.reshape(-1).view(np.uint8))


MASKS: list[dict[str, Any]] = [
    {},
    {"mask": "causal", "keys": "t", "positions": True},
    {"mask": "sliding", "window": 70, "keys": "t", "sinks": True},
    {"mask": "chunked", "window": 150, "keys": "t"},
]


@pytest.mark.parametrize("case", MASKS, ids=str)
def test_formulas_and_counters_agree_where_parts_are_merged(case: dict[str, Any], rng: np.random.Generator) -> None:
    made = attention(heads=2, groups=1, **case)
    lowered = lower_group(made, "kernel", Context(machine(), SPACE))
    kernel, last = lowered.variants[-1].kernel, len(lowered.variants) - 1
    traffic = kernel_traffic(kernel)
    for queries, keys in ((1, 1), (int(rng.integers(130, 160)), int(rng.integers(130, 400)))):
        sizes = {"b": 1, "t": queries, "s": keys}
        inputs, counters = draw(made, sizes, rng), Counters()
        (got,) = run_lowered(made, lowered, last, inputs, sizes, counters)
        torch.testing.assert_close(
            torch.from_numpy(got).double(), reference(made, inputs, sizes)[0], rtol=1e-4, atol=1e-4
        )
        dims = {name: sizes[name] for name in lowered.dims}
        assert traffic.counts(dims) == counters.bytes


def test_loops_count_what_tiles_do_where_parts_are_merged(rng: np.random.Generator) -> None:
    lowered = lower_group(attention(heads=2, groups=1), "kernel", Context(machine(), SPACE))
    dims = {"b": 1, "t": 3, "s": int(rng.integers(PART + 1, PART + 40))}
    kernel = lowered.variants[0].kernel
    check_counts(kernel, dims, drawn(kernel, dims, rng))

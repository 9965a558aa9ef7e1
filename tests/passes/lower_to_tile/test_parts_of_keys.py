"""Parts of the keys computed apart and merged in order have the bits of attention that walks all keys, whether the
programs of one tile of queries follow one another (split-kv) or those of one part (key-outer)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.backends.cpu.native_kernel import NativeKernel
from tests.passes.lower_tile_to_loops.running import check_counts
from tests.passes.lower_tile_to_loops.running import inputs as drawn
from tests.passes.lower_to_tile.groups import draw, group, reference, run_lowered
from tests.passes.lower_to_tile.test_paged_bits import BEST, PART, Kernels, machine
from tests.passes.lower_to_tile.test_skeletons import attention
from tilewright.ir.dims import Dim, DimSpace, Expr, ceildiv
from tilewright.ir.dtypes import BF16, F32, DType
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.passing import Context
from tilewright.ir.schedules import Schedule
from tilewright.ir.tile.counting import Counters
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.types import TensorType
from tilewright.passes.attention_tiling.sizes import Sizes
from tilewright.passes.attention_tiling.tilings import scheduled
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.lower_to_tile.skeletons import lower_group

HEADS, SIZE = 4, 32
KEYS = Expr.of("s")
PARTS = ceildiv(KEYS, PART)
SPACE = DimSpace([Dim(name, 0, 4096) for name in "bts"])


def whole(dtype: DType) -> GroupOp:
    """One query of all heads against s keys of one head."""
    types = [TensorType.of((1, heads, n, SIZE), dtype) for heads, n in ((HEADS, 1), (1, "s"), (1, "s"))]
    return group("attention", types, lambda g, *xs: [g.add(AttentionOp.make(*xs, scale=0.3))])


ORDERS = ("split-kv", "key-outer")


def split(made: GroupOp, order: str = "split-kv") -> GroupOp:
    """The same with a program for each part."""
    heads = next(op for op in made.block.ops if isinstance(op, AttentionOp)).group
    made.properties["schedule"] = Schedule.of({"order": order, "part": PART, "heads": heads})
    return made


@pytest.mark.parametrize(("dtype", "order"), [(F32, "split-kv"), (BF16, "split-kv"), (F32, "key-outer")], ids=str)
def test_parts_computed_apart_merge_to_the_same_bits(dtype: DType, order: str, rng: np.random.Generator) -> None:
    at_once = Kernels(whole(dtype))
    merging = lower_group(split(whole(dtype), order), "kernel", Context(machine(), SPACE))
    assert merging.first is not None
    apart, merged = (
        NativeKernel(lower_kernel(made.variants[0].kernel, machine()), BEST) for made in (merging.first, merging)
    )
    for keys in (0, 1, PART, PART + 1, int(rng.integers(2 * PART, 512))):
        q, k, v = (rng.standard_normal(n * SIZE).astype(np.float32).astype(dtype.numpy()) for n in (HEADS, keys, keys))
        # logits that grow, so that later parts lower what earlier ones left
        k = (k.reshape(keys, SIZE) * np.linspace(0.1, 3, keys)[:, None]).astype(dtype.numpy()).reshape(-1)
        want = at_once([q, k, v], (HEADS, SIZE), {"s": keys}, 1)
        count = -(-keys // PART)
        held: list[Any] = [np.full(count * HEADS * n, np.nan, np.float32) for n in (1, 1, SIZE)]
        for threads in (1, 2):
            apart([q, k, v, *held], [keys], nthreads=threads)
            got = np.full(HEADS * SIZE, np.nan, dtype.numpy())
            merged([q, k, v, *held, got], [keys])
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


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", [*MASKS, {"valid": True, "bias": True, "lse": True}], ids=str)
def test_parts_have_the_bits_of_one_walk_and_move_what_the_closed_forms_say(
    case: dict[str, Any], order: str, rng: np.random.Generator
) -> None:
    made = attention(heads=4, groups=2, **case)
    at_once = lower_group(made, "kernel", Context(machine(), SPACE))
    apart = lower_group(split(made, order), "kernel", Context(machine(), SPACE))
    assert apart.first is not None
    limits = [v.limit for v in apart.variants]
    few, many = int(rng.integers(2, 17)), int(rng.integers(17, 300))
    for queries, keys in ((1, int(rng.integers(1, 400))), (few, int(rng.integers(0, 400))), (many, 2 * PART + 1)):
        sizes = {"b": 2, "t": queries, "s": keys}
        number = next(i for i, limit in enumerate(limits) if limit is None or queries <= limit)
        inputs, counters = draw(made, sizes, rng), Counters()
        got = run_lowered(made, apart, number, inputs, sizes, counters)
        for value, alone in zip(got, run_lowered(made, at_once, min(number, 1), inputs, sizes), strict=True):
            np.testing.assert_array_equal(value.view(np.uint8), alone.view(np.uint8))
        dims = {name: sizes[name] for name in apart.dims}
        counted = [kernel_traffic(m.variants[number].kernel).counts(dims) for m in (apart.first, apart)]
        for kind in ("read", "write", "matrix", "vector"):
            assert sum(c.of(kind) for c in counted) == counters.bytes.of(kind)
        op = next(op for op in made.block.ops if isinstance(op, AttentionOp))
        tiling = scheduled(Sizes.of(op, sizes), made.schedule, machine().rules)
        if not op.bias and not op.valid and not op.sinks:
            assert counters.bytes.read + counters.bytes.write == tiling.named


def test_loops_count_what_tiles_do_where_parts_are_merged(rng: np.random.Generator) -> None:
    lowered = lower_group(attention(heads=2, groups=1), "kernel", Context(machine(), SPACE))
    dims = {"b": 1, "t": 3, "s": int(rng.integers(PART + 1, PART + 40))}
    apart = lower_group(split(attention(heads=2, groups=1)), "kernel", Context(machine(), SPACE))
    assert apart.first is not None
    for kernel in (made.variants[0].kernel for made in (lowered, apart.first, apart)):
        check_counts(kernel, dims, drawn(kernel, dims, rng))

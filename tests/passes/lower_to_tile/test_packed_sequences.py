"""Sequences packed into one row: each block of queries walks the keys of its own sequences, with the bits and results
that a mask over all keys has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.passes.lower_to_tile.attention_forms import Form, check, kernels
from tests.passes.lower_to_tile.groups import group, reference, run_lowered
from tests.passes.lower_to_tile.test_paged_bits import PART, machine
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.dtypes import F32, I1, I64
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.passing import Context
from tilewright.ir.schedules import Schedule
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.counting import Counters
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.tile_interpreter import run_kernel
from tilewright.ir.types import TensorType
from tilewright.passes.lower_to_tile.frame import Lowered
from tilewright.passes.lower_to_tile.skeletons import lower_group

SPACE = DimSpace([Dim("b", 0, 8), Dim("t", 0, 4096)])
HEADS, SHARED, SIZE, SEGMENT = 4, 2, 8, 64


def packed(mask: str = "none", window: int = 0, *, positions: bool = False, valid: bool = False) -> GroupOp:
    """Attention of t queries to as many keys, with segments [b, t]; or with the mask that they stand for."""
    types = [TensorType.of(("b", heads, "t", SIZE), F32) for heads in (HEADS, SHARED, SHARED)]
    types += [TensorType.of(("b", 1, "t", "t"), I1) if valid else TensorType.of(("b", "t"), I64)]
    types += [TensorType.of(("b", "t"), I64)] * (2 if positions else 0)

    def build(g: Any, q: Any, k: Any, v: Any, given: Any, *at: Any) -> list[Any]:
        masks = (given, *(at or (None, None)), None, None) if valid else (None, *(at or (None, None)), None, given)
        op = AttentionOp.make(q, k, v, None, *masks, scale=0.4, mask=mask, window=window, lse=True)
        g.add(op)
        return [op.out, op.lse_out]

    return group("attention", types, build)


def lengths(total: int, rng: np.random.Generator) -> torch.Tensor:
    """Which sequence each of so many tokens is of, in order."""
    cuts = np.sort(rng.integers(0, total + 1, int(rng.integers(1, 6))))
    return torch.from_numpy(np.searchsorted(cuts, np.arange(total), side="right").astype(np.int64))


def places(ids: torch.Tensor) -> torch.Tensor:
    """Tokens counted from the first of their own sequence."""
    return torch.stack([torch.arange(len(row)) - torch.searchsorted(row.contiguous(), row.contiguous()) for row in ids])


def ran(made: GroupOp, given: list[torch.Tensor], sizes: dict[str, int], **schedule: Any) -> tuple[Any, Counters]:
    if schedule:
        made.properties["schedule"] = Schedule.of(schedule)
    lowered, counters = lower_group(made, "kernel", Context(machine(), SPACE)), Counters()
    return run_lowered(made, lowered, len(lowered.variants) - 1, given, sizes, counters), counters


@pytest.mark.parametrize(("mask", "window"), [("none", 0), ("causal", 0), ("sliding", 40), ("chunked", 70)])
@pytest.mark.parametrize("positions", [False, True])
def test_the_results_have_the_bits_of_a_mask_over_all_keys(
    mask: str, window: int, positions: bool, rng: np.random.Generator
) -> None:
    for total in (0, 1, int(rng.integers(2, 64)), int(rng.integers(130, 260))):
        sizes = {"b": 2, "t": total}
        q, k, v = (torch.from_numpy(rng.standard_normal((2, h, total, SIZE))).float() for h in (HEADS, SHARED, SHARED))
        ids = torch.stack([lengths(total, rng) for _ in range(2)])
        at = [places(ids)] * 2 if positions else []
        made = packed(mask, window, positions=positions)
        got, counters = ran(made, [q, k, v, ids, *at], sizes)
        seen = (ids[:, None, :, None] == ids[:, None, None, :]).contiguous()
        want, all_keys = ran(packed(mask, window, positions=positions, valid=True), [q, k, v, seen, *at], sizes)
        for value, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(value.view(np.uint8), other.view(np.uint8))
        assert counters.bytes.matrix <= all_keys.bytes.matrix


def test_segments_in_any_order_are_met_wherever_they_are(rng: np.random.Generator) -> None:
    sizes = {"b": 1, "t": 330}
    given = [torch.from_numpy(rng.standard_normal((1, h, 330, SIZE))).float() for h in (HEADS, SHARED, SHARED)]
    ids = torch.from_numpy(rng.integers(-(2**40), 2**40, 4)[rng.integers(0, 4, (1, 330))])
    made = packed("causal")
    got, _ = ran(made, [*given, ids], sizes)
    for value, want in zip(got, reference(made, [*given, ids], sizes), strict=True):
        torch.testing.assert_close(torch.from_numpy(value).double(), want, rtol=1e-4, atol=1e-4)


def walked(ids: torch.Tensor, rows: int, first: int, *, causal: bool) -> int:
    """Keys that a tile of queries walks: whole blocks from the first to the last that its own blocks can meet."""
    total = len(ids)
    blocks = range(first // SEGMENT, (min(first + rows, total) - 1) // SEGMENT + 1)
    near = {int(n) for block in blocks for n in ids[block * SEGMENT : (block + 1) * SEGMENT]}
    met = [j for j in range(0, total, SEGMENT) if near & {int(n) for n in ids[j : j + SEGMENT]}]
    end = min(total, met[-1] + SEGMENT, first + rows if causal else total)
    return max(0, min(total, -(-end // SEGMENT) * SEGMENT) - met[0])


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_kernels_count_the_keys_that_they_walk_and_formulas_follow(mask: str, rng: np.random.Generator) -> None:
    made = packed(mask)
    lowered = lower_group(made, "kernel", Context(machine(), SPACE))
    rows, total = lowered.variants[-1].kernel.tiles.data[-1], int(rng.integers(300, 500))
    sizes, ids = {"b": 1, "t": total}, lengths(total, rng)
    given = [torch.from_numpy(rng.standard_normal((1, h, total, SIZE))).float() for h in (HEADS, SHARED, SHARED)]
    arrays = [x.numpy() for x in (*given, ids[None])]
    dims = {name: sizes[name] for name in lowered.dims}

    def launched(part: Lowered) -> tuple[list[Any], Counters]:
        """What a launch leaves, and what it counted: as its formulas say."""
        before = [] if part.first is None else launched(part.first)[0]
        made, counters = part.variants[-1].kernel, Counters()
        written = [buffer(x) for x in made.buffers[len(made.inputs) :]]
        left = [np.zeros([d.evaluate(sizes) for d in x.dims], x.dtype.numpy()) for x in written]
        run_kernel(made, [*arrays, *before, *left], dims, counters)
        assert kernel_traffic(made).counts(dims, [*arrays, *before, *left]) == counters.bytes
        return left, counters

    moved = launched(lowered)[1].bytes.buffers
    keys = sum(walked(ids, rows, first, causal=mask == "causal") for first in range(0, total, rows))
    assert moved[1]["read"] == moved[2]["read"] == HEADS * keys * SIZE * 4


@pytest.mark.parametrize("order", ["split-kv", "key-outer"])
def test_parts_of_packed_keys_have_the_same_bits(order: str, rng: np.random.Generator) -> None:
    total = int(rng.integers(2 * PART, 3 * PART))
    sizes, ids = {"b": 1, "t": total}, lengths(total, rng)[None]
    given = [torch.from_numpy(rng.standard_normal((1, h, total, SIZE))).float() for h in (HEADS, SHARED, SHARED)]
    want, _ = ran(packed("causal"), [*given, ids], sizes)
    got, _ = ran(packed("causal"), [*given, ids], sizes, order=order, part=PART)
    for value, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(value.view(np.uint8), other.view(np.uint8))


FORMS = [
    Form(segments=True, mask="causal", heads=4, groups=2, size=32, value_size=24, sinks=True),
    pytest.param(Form(segments=True, dtype="bf16", bias="pairs", size=64, value_size=64), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_native_kernels_keep_the_bound_against_float64(form: Form, rng: np.random.Generator) -> None:
    for total in (61, int(rng.integers(200, 330))):
        check(form, {"b": 2, "t": total, "s": total}, 1.0, rng)
    first = kernels(form).lowered.first
    assert first is not None
    assert first.first is not None

"""What a loop over segments asks memory for: each line of the next segment, where few rows meet it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.passes.lower_tile_to_loops.running import inputs, machine, outputs
from tests.passes.lower_to_tile.groups import group
from tests.passes.lower_to_tile.test_paged import Shape
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.dtypes import BF16, F32, DType
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.loops import BufferArg
from tilewright.ir.loops.ops import Prefetch
from tilewright.ir.loops_interpreter import run_kernel
from tilewright.ir.passing import Context
from tilewright.ir.schedules import Schedule
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.types import TensorType
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.lower_tile_to_loops.prefetching import LINE
from tilewright.passes.lower_to_tile.skeletons import lower_group

HEADS = 4
SPACE = DimSpace([Dim(name, 1, 4096) for name in "smrt"])


def kernel(name: str, dtype: DType, size: int, queries: int) -> KernelOp:
    """Attention of so many queries of all heads to s keys of one head."""
    types = [TensorType.of((1, h, n, size), dtype) for h, n in ((HEADS, queries), (1, "s"), (1, "s"))]
    made = group("attention", types, lambda g, *xs: [g.add(AttentionOp.make(*xs, scale=0.3))])
    made.properties["schedule"] = Schedule.of({"order": "query-outer", "block_q": 64, "heads": HEADS})
    return lower_group(made, "kernel", Context(machine(name), SPACE)).variants[-1].kernel


def asked(made: KernelOp, name: str, given: list[np.ndarray], dims: dict[str, int]) -> dict[str, Counter[int]]:
    """How often a kernel asks for each element, by buffer."""
    found: list[tuple[Prefetch, int]] = []
    run_kernel(lower_kernel(made, machine(name)), [*given, *outputs(made, dims)], dims, asked=found)
    counts: dict[str, Counter[int]] = {}
    for op, at in found:
        if isinstance(op.memory, BufferArg) and not op.near:
            counts.setdefault(op.memory.name, Counter())[at] += 1
    return counts


CASES = [("avx512", F32, 64), ("avx512", F32, 40), ("avx2", BF16, 32), ("avx512-amx", BF16, 64)]


@pytest.mark.parametrize(("name", "dtype", "size"), CASES, ids=str)
def test_one_query_asks_for_each_line_of_the_next_segment(
    name: str, dtype: DType, size: int, rng: np.random.Generator
) -> None:
    segment, line = machine(name).rules.segment(size, size, dtype.name), 64 // dtype.bytes
    made, keys = kernel(name, dtype, size, 1), segment + int(rng.integers(1, segment))
    counts = asked(made, name, inputs(made, {"s": keys}, rng), {"s": keys})
    row = [*range(0, size, line)]
    wanted = {at * size + column for at in range(segment, keys) for column in row}
    for buffer in ("arg1", "arg2"):
        assert wanted <= counts[buffer].keys()
        assert min(counts[buffer]) >= segment * size, "nothing of what is here already"
    if name != "avx2" and not size % line:
        assert max(counts["arg1"][at] for at in wanted) == 1
        most = 1 if name == "avx512-amx" else 2
        assert max(counts["arg2"][at] for at in wanted) <= most, "once by the dot before, whose own operand is near"


def test_many_queries_share_the_lines_of_the_next_segment_out_over_blocks(rng: np.random.Generator) -> None:
    made, size, keys = kernel("avx512", F32, 32, 17), 32, 128
    counts = asked(made, "avx512", inputs(made, {"s": keys}, rng), {"s": keys})
    for buffer in ("arg1", "arg2"):
        lines = {at * 4 // LINE for at in counts[buffer]}
        assert lines >= set(range(64 * size * 4 // LINE, keys * size * 4 // LINE))
        assert min(counts[buffer]) >= 64 * size, "nothing of what is here already"


def test_many_queries_on_a_matrix_unit_have_time_and_ask_for_nothing(rng: np.random.Generator) -> None:
    made = kernel("avx512-amx", BF16, 32, 17)
    assert not asked(made, "avx512-amx", inputs(made, {"s": 300}, rng), {"s": 300})


@pytest.mark.parametrize("prefix", [False, True], ids=["keys and values", "values in keys"])
def test_pages_that_come_next_are_found_by_the_table(prefix: bool, rng: np.random.Generator) -> None:
    shape = Shape(4, 1, 32, 32, 16, 40, F32, prefix=prefix)
    made = lower_group(shape.group(), "kernel", Context(machine("avx512"), SPACE)).variants[0].kernel
    (given, sizes), keys = shape.draw([(99, 1)], rng), 100
    counts = asked(made, "avx512", [np.ascontiguousarray(x).reshape(-1) for x in given], sizes)
    table = np.asarray(given[-1]).reshape(-1)
    wanted = {(table[at // 16] * 16 + at % 16) * 32 + column for at in range(64, keys) for column in (0, 16)}
    held = [counts["arg1"]] if prefix else [counts["arg1"], counts["arg2"]]
    assert all(wanted <= found.keys() for found in held)
    if prefix:
        assert counts["arg1"].total() == 2 * 64 * 2, "two segments of lines: values are asked for with their keys"


def test_the_last_segment_asks_for_the_next_heads_first_and_for_nothing_outside(rng: np.random.Generator) -> None:
    shape = Shape(4, 4, 32, 32, 16, 40, F32)
    made = lower_group(shape.group(), "kernel", Context(machine("avx512"), SPACE)).variants[0].kernel
    given, sizes = shape.draw([(99, 1)], rng)
    table = np.full((1, 12), -1, np.int32)
    table[:, : sizes["m"]] = given[-1]
    arrays = [np.ascontiguousarray(x).reshape(-1) for x in (*given[:-1], table)]
    counts = asked(made, "avx512", arrays, {**sizes, "m": 12})
    firsts = {head: {(page * 4 + head) * 16 * 32 for page in table[0, :4]} for head in range(4)}
    # the programs of a thread that share a request, from its second head on
    beside = -(-4 // machine("avx512").cores)
    assert beside == 1 or firsts[1] <= counts["arg1"].keys()
    assert all(0 <= at < len(arrays[1]) for buffer in ("arg1", "arg2") for at in counts[buffer])

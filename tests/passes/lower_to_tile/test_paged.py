"""Paged attention: tokens of several requests see the keys of their own, wherever pages lie, bit for bit alike."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.backends.cpu.native_kernel import host_classes
from tests.passes.lower_tile_to_loops.running import interpreted, native
from tests.passes.lower_to_tile.groups import group, reference, run_lowered
from tilewright.backends.cpu.machines import MACHINES
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.dtypes import BF16, F32, I32, I64, DType
from tilewright.ir.graph.paging import PagedAttentionOp, by_row
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.loops_interpreter import run_kernel
from tilewright.ir.passing import Context
from tilewright.ir.types import TensorType
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.lower_to_tile.frame import Lowered
from tilewright.passes.lower_to_tile.skeletons import lower_group

SPACE = DimSpace([Dim("t", 0, 512), Dim("r", 0, 64), Dim("m", 1, 64)])


@dataclass
class Shape:
    """What is fixed about an attention: heads, key heads, features of keys and of values, page, rows of the cache."""

    heads: int = 4
    shared: int = 2
    size: int = 16
    wide: int = 16
    page: int = 16
    pages: int = 40
    dtype: DType = F32
    sinks: bool = False
    slopes: bool = False
    distances: int = 0
    prefix: bool = False
    counted: bool = False

    def group(self, **stated: Any) -> GroupOp:
        """One paged attention alone."""
        types = [
            TensorType.of(("t", self.heads, self.size), self.dtype),
            TensorType.of((self.pages, self.shared, self.page, self.size), self.dtype),
            *([] if self.prefix else [TensorType.of((self.pages, self.shared, self.page, self.wide), self.dtype)]),
            TensorType.of(("t",), I64),
            TensorType.of(("r + 1",), I32),
            TensorType.of(("r", "m"), I32),
            *([TensorType.of((self.heads,), F32)] if self.sinks or self.slopes else []),
            *([TensorType.of((self.heads, self.distances), F32)] if self.distances else []),
            *([TensorType.of((self.pages, self.shared, self.page), F32)] if self.counted else []),
        ]
        given = {"page": self.page, "scale": 0.3, "values": self.wide if self.prefix else 0, **stated}

        def made(g: Any, *xs: Any) -> list[Any]:
            q, k, *rest = xs
            v = [None] if self.prefix else []
            args = [q, k, *v, *rest]
            counts = args.pop() if self.counted else None
            far = args.pop() if self.distances else None
            slots = [*([] if self.sinks else [None]), *args[6:]][:2]
            return [g.add(PagedAttentionOp.make(*args[:6], *slots, *[None] * (2 - len(slots)), far, counts, **given))]

        return group("paged-attention", types, made)

    def draw(self, requests: list[tuple[int, int]], rng: np.random.Generator) -> tuple[list[Any], dict[str, int]]:
        """Operands for requests of (tokens before this step, tokens in it); unused rows of the cache hold NaN."""
        tokens = sum(new for _, new in requests)
        most = max([1, *(-(-(old + new) // self.page) for old, new in requests)])
        free = list(rng.permutation(self.pages))
        table = np.full((len(requests), most), self.pages - 1, np.int32)
        keys = rng.standard_normal((self.pages * self.page, self.shared, self.size)).astype(np.float32)
        values = rng.standard_normal((self.pages * self.page, self.shared, self.wide)).astype(np.float32)
        used = np.zeros(self.pages * self.page, bool)
        for r, (old, new) in enumerate(requests):
            for p in range(-(-(old + new) // self.page)):
                table[r, p] = free.pop()
            at = np.arange(old + new)
            used[table[r, at // self.page] * self.page + at % self.page] = True
        keys[~used], values[~used] = np.nan, np.nan
        kind = torch.bfloat16 if self.dtype is BF16 else torch.float32
        operands = [
            torch.from_numpy(rng.standard_normal((tokens, self.heads, self.size)).astype(np.float32)).to(kind),
            in_pages(torch.from_numpy(keys), self.page).to(kind),
            *([] if self.prefix else [in_pages(torch.from_numpy(values), self.page).to(kind)]),
            torch.from_numpy(np.concatenate([np.arange(old, old + new) for old, new in [(0, 0), *requests]])),
            torch.from_numpy(np.cumsum([0, *(new for _, new in requests)]).astype(np.int32)),
            torch.from_numpy(table),
            *(
                [torch.from_numpy(rng.standard_normal(self.heads).astype(np.float32))]
                if self.sinks or self.slopes
                else []
            ),
            *(
                [torch.from_numpy(rng.standard_normal((self.heads, self.distances)).astype(np.float32))]
                if self.distances
                else []
            ),
            *([in_pages(torch.from_numpy(self.counts(used, rng)), self.page)] if self.counted else []),
        ]
        return operands, {"t": tokens, "r": len(requests), "m": most}

    def counts(self, used: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """Logarithms of how many keys one stands for."""
        drawn = np.log(rng.integers(1, 9, (len(used), self.shared))).astype(np.float32)
        drawn[~used] = np.nan
        return drawn


def in_pages(rows: torch.Tensor, page: int) -> torch.Tensor:
    """Rows [pages * page, heads, ..] as pages [pages, heads, page, ..]."""
    return rows.unflatten(0, (-1, page)).transpose(1, 2).contiguous()


def lowered(made: GroupOp, machine: str = "avx512") -> Lowered:
    return lower_group(made, "kernel", Context(MACHINES[machine](), SPACE))


STEPS = [
    [(0, 1)],
    [(3, 1), (70, 1), (0, 1)],
    [(0, 19)],
    [(5, 9), (0, 0), (90, 1), (63, 2), (64, 3)],
]
WAYS = [
    {},
    {"mask": "sliding", "window": 7},
    {"mask": "chunked", "window": 24},
    {"softcap": 5.0},
]


SHAPES = [
    Shape(shared=1, slopes=True),
    Shape(heads=3, shared=1, size=5, wide=7, page=3, pages=90),
    Shape(sinks=True, heads=2),
    Shape(shared=1, size=24, wide=16, prefix=True),
    Shape(sinks=True, distances=130),
    Shape(size=24, counted=True),
]
# every step and every way with every shape once, not all with all
CASES = [(step, WAYS[(i + n) % len(WAYS)], shape) for i, step in enumerate(STEPS) for n, shape in enumerate(SHAPES)]


@pytest.mark.parametrize(("step", "way", "shape"), CASES, ids=str)
def test_every_variant_computes_what_the_op_says(
    step: list[tuple[int, int]], way: dict[str, Any], shape: Shape, rng: np.random.Generator
) -> None:
    made = shape.group(**way)
    operands, sizes = shape.draw(step, rng)
    (want,) = reference(made, operands, sizes)
    found = lowered(made)
    assert len(found.variants) == 2
    for variant in range(2):
        (got,) = run_lowered(made, found, variant, operands, sizes)
        torch.testing.assert_close(torch.from_numpy(got).double(), want.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cpu", host_classes())
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("more", [{"sinks": True}, {"distances": 97}, {"counted": True}], ids=str)
def test_the_machine_computes_what_the_interpreter_does(
    cpu: str, dtype: DType, more: dict[str, Any], rng: np.random.Generator
) -> None:
    shape = Shape(heads=2, shared=1, dtype=dtype, **more)
    made = shape.group(mask="sliding", window=50)
    operands, sizes = shape.draw(STEPS[-1], rng)
    arrays = [
        (x.float().numpy().astype(dtype.numpy()) if x.dtype is torch.bfloat16 else x.numpy()).reshape(-1)
        for x in operands
    ]
    for variant in lowered(made, cpu).variants:
        (want,) = interpreted(variant.kernel, arrays, sizes, cpu)
        for threads in (1, 3):
            (got,) = native(variant.kernel, arrays, sizes, cpu, nthreads=threads)
            np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))


@pytest.mark.parametrize(("page", "group"), [(16, 3), (8, 1), (32, 16)])
def test_few_rows_are_the_right_side_of_a_matrix_unit(page: int, group: int, rng: np.random.Generator) -> None:
    shape, cpu = Shape(2 * group, 2, 64, 32, page, 40, BF16), "avx512-amx"
    made = shape.group()
    operands, sizes = shape.draw([(99, 1), (0, 1), (127, 1)], rng)
    sizes["m"] += 2
    operands[5] = torch.nn.functional.pad(operands[5], (0, 2), value=-1)
    arrays = [
        (x.float().numpy().astype(BF16.numpy()) if x.dtype is torch.bfloat16 else x.numpy()).reshape(-1)
        for x in operands
    ]
    one, many = (variant.kernel for variant in lowered(made, cpu).variants)
    (want,) = interpreted(one, arrays, sizes, cpu)
    kernel = lower_kernel(one, MACHINES[cpu]())
    out = np.zeros(want.shape, want.dtype)
    run_kernel(kernel, [*arrays, out], sizes)
    np.testing.assert_array_equal(out.view(np.uint8), want.view(np.uint8))
    (together,) = interpreted(many, arrays, sizes, cpu)
    np.testing.assert_array_equal(together.view(np.uint8), want.view(np.uint8))


def test_a_tokens_bits_depend_on_its_own_request_alone(rng: np.random.Generator) -> None:
    shape = Shape(size=24, wide=40, slopes=True)
    made = shape.group()
    requests = [(5, 20), (90, 1), (63, 2)]
    operands, sizes = shape.draw(requests, rng)
    (many, several), cpu = lowered(made).variants[::-1], host_classes()[-1]

    def run(kernel: Any, given: list[torch.Tensor], dims: dict[str, int]) -> np.ndarray[Any, Any]:
        (got,) = native(kernel, [x.numpy().reshape(-1) for x in given], dims, cpu)
        return got.reshape(dims["t"], shape.heads, shape.wide)

    together = run(many.kernel, operands, sizes)
    np.testing.assert_array_equal(run(several.kernel, operands, sizes), together)
    q, k, v, positions, offsets, table, slopes = operands
    for r, (first, last) in enumerate(pairwise(offsets.tolist())):
        for t in range(first, last):
            # alone, one token at a time
            one = torch.tensor([0, 1], dtype=torch.int32)
            alone = [q[t : t + 1], k, v, positions[t : t + 1], one, table[r : r + 1], slopes]
            got = run(several.kernel, alone, {"t": 1, "r": 1, "m": sizes["m"]})
            np.testing.assert_array_equal(got[0], together[t])


@pytest.mark.parametrize("more", [{"slopes": True}, {"distances": 100}, {"counted": True}], ids=str)
def test_what_is_added_to_logits_weighs_the_same_in_bf16(more: dict[str, Any], rng: np.random.Generator) -> None:
    shape = Shape(heads=2, shared=1, dtype=BF16, **more)
    made = shape.group()
    operands, sizes = shape.draw(STEPS[1], rng)
    (want,) = reference(made, operands, sizes)
    (got,) = run_lowered(made, lowered(made), 0, operands, sizes)
    assert (torch.from_numpy(got.astype(np.float64)) - want.double()).abs().max() < 0.02 * want.abs().max()


@pytest.mark.parametrize("way", [{"mask": "sliding", "window": 7}, {"mask": "chunked", "window": 24}], ids=str)
def test_rows_that_no_token_sees_any_more_may_hold_anything(way: dict[str, Any], rng: np.random.Generator) -> None:
    shape, step = Shape(heads=2, shared=1), [(90, 1), (40, 3)]
    made = shape.group(**way)
    operands, sizes = shape.draw(step, rng)
    for r, (old, _) in enumerate(step):
        lowest = old - 6 if way["mask"] == "sliding" else old // 24 * 24
        gone = torch.arange(lowest)
        pages, rows = operands[5][r, gone // shape.page].long(), gone % shape.page
        operands[1][pages, :, rows], operands[2][pages, :, rows] = torch.nan, torch.nan
    (want,) = reference(made, operands, sizes)
    found, cpu = lowered(made), host_classes()[-1]
    for variant in range(2):
        (got,) = run_lowered(made, found, variant, operands, sizes)
        torch.testing.assert_close(torch.from_numpy(got).double(), want.double(), rtol=1e-5, atol=1e-5)
        (got,) = native(found.variants[variant].kernel, [x.numpy().reshape(-1) for x in operands], sizes, cpu)
        torch.testing.assert_close(torch.from_numpy(got).double(), want.double().reshape(-1), rtol=1e-5, atol=1e-5)


def test_a_key_that_stands_for_several_weighs_as_much_as_they(rng: np.random.Generator) -> None:
    few, many, old = Shape(page=4, pages=20, counted=True), Shape(page=4, pages=20), 11
    times = rng.integers(1, 5, old)
    operands, sizes = few.draw([(old, 1)], rng)
    q, k, v, positions, offsets, table, _ = operands
    k, v = by_row(k), by_row(v)
    rows = table[0].long().repeat_interleave(4)[: old + 1] * 4 + torch.arange(old + 1) % 4
    counts = torch.full(k.shape[:2], torch.nan)
    counts[rows] = torch.log(torch.tensor([*times, 1.0]))[:, None].float()
    # every key as often as it counts, one after the other
    spread = rows.repeat_interleave(torch.tensor([*times, 1]))
    again, kept = len(spread), [torch.full_like(x, torch.nan) for x in (k, v)]
    for x, wide in zip(kept, (k, v), strict=True):
        x[:again] = wide[spread]
    pages = torch.arange(-(-again // 4), dtype=torch.int32)[None]
    all_of_them = [q, *(in_pages(x, 4) for x in kept), torch.tensor([again - 1]), offsets, pages]
    (want,) = reference(many.group(), all_of_them, {**sizes, "m": pages.shape[1]})
    made = few.group()
    few_of_them = [q, *(in_pages(x, 4) for x in (k, v)), positions, offsets, table, in_pages(counts, 4)]
    (got,) = run_lowered(made, lowered(made), 0, few_of_them, sizes)
    torch.testing.assert_close(torch.from_numpy(got).double(), want.double(), rtol=1e-5, atol=1e-6)


def test_heads_and_pages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Exception, match="has no pages of 4 rows"):
        Shape(page=7, pages=3).group(page=4)
    with pytest.raises(Exception, match="not a fixed multiple"):
        Shape(heads=3, shared=2).group()
    with pytest.raises(Exception, match="as values"):
        Shape(prefix=True).group(values=99)
    with pytest.raises(Exception, match="with window 0"):
        Shape().group(mask="sliding")
    (op,) = (o for o in Shape(sinks=True).group().block.ops if isinstance(o, PagedAttentionOp))
    with pytest.raises(Exception, match="exclude each other"):
        PagedAttentionOp.make(*op.operands, op.sinks, page=16, scale=1.0)

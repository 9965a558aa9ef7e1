"""Attention over quantized pages: old keys decoded, recent ones as they are, each token by its own place."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.backends.cpu.native_kernel import NativeKernel, host_classes
from tests.passes.lower_tile_to_loops.running import interpreted, native
from tests.passes.lower_to_tile.groups import group, reference, run_lowered
from tests.passes.lower_to_tile.test_paged import in_pages
from tilewright.backends.cpu.machines import MACHINES
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.dtypes import BF16, F32, I32, I64, U8, DType
from tilewright.ir.graph.paging_quantized import QuantizedPagedAttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.passing import Context
from tilewright.ir.types import TensorType
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.lower_to_tile.frame import Lowered
from tilewright.passes.lower_to_tile.skeletons import lower_group

SPACE = DimSpace([Dim("t", 0, 512), Dim("r", 0, 64), Dim("m", 1, 64), Dim("n", 1, 64)])


@dataclass
class Shape:
    """What is fixed: heads, key heads, features of keys and of values, page, recent pages, bits of a code."""

    heads: int = 4
    shared: int = 2
    size: int = 16
    wide: int = 16
    page: int = 16
    pages: int = 40
    recent: int = 2
    bits: int = 8
    dtype: DType = F32
    extra: str = ""

    def group(self, **stated: Any) -> GroupOp:
        rows, shared, per = (self.pages, self.shared, self.page), self.shared, 8 // self.bits
        types = [
            TensorType.of(("t", self.heads, self.size), self.dtype),
            TensorType.of((*rows, self.size // per), U8),
            TensorType.of((*rows, self.wide // per), U8),
            *[TensorType.of((self.pages, shared, self.size), BF16)] * 2,
            *[TensorType.of(rows, BF16)] * 2,
            TensorType.of((*rows, self.size), self.dtype),
            TensorType.of((*rows, self.wide), self.dtype),
            TensorType.of(("t",), I64),
            TensorType.of(("t",), I64),
            TensorType.of(("r + 1",), I32),
            TensorType.of(("r", "m"), I32),
            TensorType.of(("r", "n"), I32),
            *([TensorType.of((self.heads,), F32)] if self.extra else []),
        ]
        given = {"page": self.page, "recent": self.recent, "bits": self.bits, "scale": 0.3, **stated}
        skipped = [None] if self.extra == "slopes" else []

        def made(g: Any, *xs: Any) -> list[Any]:
            return [g.add(QuantizedPagedAttentionOp.make(*xs[:14], *skipped, *xs[14:], **given))]

        return group("quantized-paged-attention", types, made)

    def draw(self, requests: list[tuple[int, int]], rng: np.random.Generator) -> tuple[list[Any], dict[str, int]]:
        """Operands for requests of (tokens before this step, tokens in it); what no token sees is NaN."""
        page, rows = self.page, self.pages * self.page
        unit = int(np.lcm(page, 64))
        begins = [max(0, old - self.recent * page + 1) // unit * unit for old, _ in requests]
        most = max([1, *(-(-(old + new) // page) for old, new in requests)])
        close = max([1, *(-(-(old + new - b) // page) for (old, new), b in zip(requests, begins, strict=True))])
        table = np.full((len(requests), most), self.pages - 1, np.int32)
        near = np.full((len(requests), close), self.pages - 1, np.int32)
        free, near_free = list(rng.permutation(self.pages - 1)), list(rng.permutation(self.pages - 1))
        kind = torch.bfloat16 if self.dtype is BF16 else torch.float32

        def floats(*shape: int) -> torch.Tensor:
            return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

        near_k, near_v = (torch.full((rows, self.shared, n), torch.nan) for n in (self.size, self.wide))
        scales = [torch.full((self.pages, self.shared, self.size), torch.nan) for _ in range(2)]
        scales += [torch.full((rows, self.shared), torch.nan) for _ in range(2)]
        for r, (old, new) in enumerate(requests):
            for p in range(-(-(old + new) // page)):
                table[r, p] = free.pop()
                if (p + self.recent) * page < old + new:
                    # some token of the step sees the page's codes
                    held = slice(table[r, p] * page, (table[r, p] + 1) * page)
                    for x, n in zip(scales, (table[r, p], table[r, p], held, held), strict=True):
                        x[n] = floats(*x[n].shape) / 100
            for at in range(begins[r], old + new):
                place = (at - begins[r]) // page
                if near[r, place] == self.pages - 1:
                    near[r, place] = near_free.pop()
                row = near[r, place] * page + at % page
                if at >= (old // page + 1 - self.recent) * page:
                    near_k[row], near_v[row] = floats(self.shared, self.size), floats(self.shared, self.wide)
        places = [np.arange(old, old + new) for old, new in [(0, 0), *requests]]
        tokens = sum(new for _, new in requests)
        per = 8 // self.bits
        operands = [
            floats(tokens, self.heads, self.size).to(kind),
            *(torch.from_numpy(rng.integers(0, 256, (self.pages, self.shared, page, n // per), np.uint8)) for n in
              (self.size, self.wide)),
            *(x.to(torch.bfloat16) for x in scales[:2]),
            *(in_pages(x, page).to(torch.bfloat16) for x in scales[2:]),
            *(in_pages(x, page).to(kind) for x in (near_k, near_v)),
            torch.from_numpy(np.concatenate(places)),
            torch.from_numpy(np.concatenate([p - b for p, b in zip(places, [0, *begins], strict=True)])),
            torch.from_numpy(np.cumsum([0, *(new for _, new in requests)]).astype(np.int32)),
            torch.from_numpy(table),
            torch.from_numpy(near),
            *([floats(self.heads)] if self.extra else []),
        ]  # fmt: skip
        return operands, {"t": tokens, "r": len(requests), "m": most, "n": close}


def lowered(made: GroupOp, machine: str = "avx512") -> Lowered:
    return lower_group(made, "kernel", Context(MACHINES[machine](), SPACE))


def flat(operands: list[torch.Tensor]) -> list[Any]:
    return [
        (x.float().numpy().astype(BF16.numpy()) if x.dtype is torch.bfloat16 else x.numpy()).reshape(-1)
        for x in operands
    ]


CASES = [
    (Shape(extra="slopes"), [(0, 40)]),
    (Shape(bits=4, shared=1), [(3, 1), (150, 1), (0, 1)]),
    (Shape(heads=3, shared=1, size=6, wide=10, page=3, pages=90, recent=1, bits=4, extra="sinks"), [(5, 9), (90, 2)]),
]


@pytest.mark.parametrize(("shape", "step"), CASES, ids=str)
def test_every_variant_computes_what_the_op_says(
    shape: Shape, step: list[tuple[int, int]], rng: np.random.Generator
) -> None:
    made = shape.group(softcap=5.0)
    operands, sizes = shape.draw(step, rng)
    (want,) = reference(made, operands, sizes)
    assert torch.isfinite(want).all()
    found = lowered(made)
    assert len(found.variants) == 2
    for variant in range(2):
        (got,) = run_lowered(made, found, variant, operands, sizes)
        torch.testing.assert_close(torch.from_numpy(got).double(), want.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("bits", "dtype"), [(8, BF16), pytest.param(4, F32, marks=pytest.mark.slow)], ids=str)
def test_the_machine_computes_what_the_interpreter_does(bits: int, dtype: DType, rng: np.random.Generator) -> None:
    shape, cpu = Shape(heads=2, shared=1, size=32, wide=32, bits=bits, dtype=dtype), host_classes()[-1]
    made = shape.group()
    operands, sizes = shape.draw([(5, 9), (90, 1)], rng)
    for variant in lowered(made, cpu).variants:
        (want,) = interpreted(variant.kernel, flat(operands), sizes, cpu)
        for threads in (1, 3):
            (got,) = native(variant.kernel, flat(operands), sizes, cpu, nthreads=threads)
            np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))


def test_a_tokens_bits_depend_on_its_own_request_alone(rng: np.random.Generator) -> None:
    shape = Shape(size=24, wide=40, bits=4)
    made = shape.group()
    operands, sizes = shape.draw([(5, 20), (90, 1), (61, 7)], rng)
    cpu = host_classes()[-1]
    machine, found = MACHINES[cpu](), lowered(made, cpu)
    many, one = (NativeKernel(lower_kernel(v.kernel, machine), cpu) for v in found.variants[::-1])

    def run(kernel: NativeKernel, given: list[torch.Tensor], dims: dict[str, int]) -> np.ndarray[Any, Any]:
        out = np.full((dims["t"], shape.heads, shape.wide), np.nan, np.float32)
        kernel([*flat(given), out.reshape(-1)], [dims[name] for name in found.dims], nthreads=2)
        return out

    together = run(many, operands, sizes)
    assert np.isfinite(together).all()
    np.testing.assert_array_equal(run(one, operands, sizes), together)
    q, *cache, positions, places, offsets, table, near = operands
    for r, (first, last) in enumerate(pairwise(offsets.tolist())):
        for t in range(first, last):
            # alone, one token at a time
            own = [positions[t : t + 1], places[t : t + 1], torch.tensor([0, 1], dtype=torch.int32)]
            alone = [q[t : t + 1], *cache, *own, table[r : r + 1], near[r : r + 1]]
            np.testing.assert_array_equal(run(one, alone, {**sizes, "t": 1, "r": 1})[0], together[t])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(Exception, match="fill no whole bytes"):
        Shape(size=5, bits=4).group()
    with pytest.raises(Exception, match="bits 3"):
        Shape().group(bits=3)
    with pytest.raises(Exception, match="has no pages of 4 rows"):
        Shape(page=7, pages=3).group(page=4)

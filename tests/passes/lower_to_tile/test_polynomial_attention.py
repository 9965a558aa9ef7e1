"""Attention by a polynomial: its kernels are its reference, count what the closed forms say, and stay within the proved
error of exact attention."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.backends.cpu.native_kernel import NativeKernel, host_classes
from tests.passes.lower_to_tile.groups import SPACE, draw, group, lower, reference, run_lowered
from tilewright.backends.cpu.machines import MACHINES
from tilewright.backends.stack_scratch import STACK_SCRATCH
from tilewright.ir.dtypes import BF16, F32, I64, DType
from tilewright.ir.graph.polynomial_attention import PolynomialAttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.passing import Context
from tilewright.ir.tile.counting import Counters
from tilewright.ir.types import TensorType
from tilewright.passes.approximate_attention.certificate import Polynomial, largest_bound
from tilewright.passes.approximate_attention.chains import Chain, block_sizes, chain_of, crossover
from tilewright.passes.attention_tiling.sizes import Sizes
from tilewright.passes.attention_tiling.tilings import Tiling
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.lower_to_tile.skeletons import lower_group

BEST = host_classes()[-1]
BOUND = 0.5


def polynomial(
    *, heads: int = 2, groups: int = 1, size: int = 20, value_size: int = 9, mask: str = "none", first: int = 0,
    last: int | None = None, dtype: DType = F32, scale: float = 0.3,
) -> GroupOp:  # fmt: skip
    """One op of a chain alone in its group; t queries and, without a mask, s keys."""
    keys, p = "t" if mask == "causal" else "s", Polynomial.of(BOUND)
    types = [TensorType.of(("b", h, n, d), dtype) for h, n, d in (
        (heads, "t", size), (groups, keys, size), (groups, keys, value_size))]  # fmt: skip
    types.append(TensorType.of(("b", groups), I64))
    types += [TensorType.of(("b", heads, "t", value_size + 1), F32)] if first else []
    end = len(block_sizes(size)) if last is None else last

    def build(g: Any, *args: Any) -> list[Any]:
        op = PolynomialAttentionOp.make(
            *args, scale=scale, mask=mask, c0=p.c0, c1=p.c1, c2=p.c2, first=first, last=end, chunk=64
        )
        return [g.add(op)]

    return group("polynomial-attention", types, build)


def inputs(made: GroupOp, sizes: dict[str, int], rng: np.random.Generator) -> list[torch.Tensor]:
    """Small logits, any flags, and partial sums as a positive polynomial leaves them."""
    given = draw(made, sizes, rng, high=2)
    given[:2] = [x * 0.5 for x in given[:2]]
    return [*given[:4], *(x.abs() + 50 for x in given[4:])]


@pytest.mark.parametrize("mask", ["none", "causal"])
@pytest.mark.parametrize(("first", "last"), [(0, 4), (0, 2), (1, 2), (2, 4)])
@pytest.mark.parametrize("sizes", [{"b": 2, "t": 66, "s": 70}, {"b": 1, "t": 1, "s": 0}], ids=str)
def test_kernels_equal_the_reference(
    mask: str, first: int, last: int, sizes: dict[str, int], rng: np.random.Generator
) -> None:
    for dtype, tolerance in ((F32, 2e-5), (BF16, 1e-2)):
        made = polynomial(heads=4, groups=2, mask=mask, first=first, last=last, dtype=dtype)
        given = inputs(made, sizes, rng)
        (got,) = run_lowered(made, lower(made), 0, given, sizes)
        (want,) = reference(made, given, sizes)
        off = np.abs(got.astype(np.float64) - want.numpy()).max(initial=0)
        assert off <= tolerance * max(1.0, float(want.abs().max()))


def test_chains_of_blocks_are_one_attention(rng: np.random.Generator) -> None:
    sizes = {"b": 1, "t": 140, "s": 0}
    whole = polynomial(mask="causal")
    given = inputs(whole, sizes, rng)
    given[3].zero_()
    (want,) = run_lowered(whole, lower(whole), 0, given, sizes)
    sums: list[torch.Tensor] = []
    for first, last in ((0, 1), (1, 3), (3, 4)):
        made = polynomial(mask="causal", first=first, last=last)
        (found,) = run_lowered(made, lower(made), 0, [*given, *sums], sizes)
        sums = [torch.from_numpy(found)]
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-6)


def counted(rng: np.random.Generator) -> None:
    groups, each, size, value_size = (int(rng.integers(1, n)) for n in (3, 3, 40, 20))
    mask, n, blocks = str(rng.choice(["none", "causal"])), int(rng.integers(1, 200)), len(block_sizes(size))
    keys = n if mask == "causal" else int(rng.integers(1, 200))
    cuts = sorted({0, *rng.integers(0, blocks, 2).tolist(), blocks})
    chain = list(pairwise(cuts))
    sizes = {"b": 1, "t": n, "s": keys}
    total = 0
    for first, last in chain:
        made = polynomial(
            heads=groups * each, groups=groups, size=size, value_size=value_size, mask=mask, first=first, last=last
        )
        given, counters = inputs(made, sizes, rng), Counters()
        given[3].zero_()
        run_lowered(made, lower(made), 0, given, sizes, counters)
        total += sum(moved["read"] + moved["write"] for moved in counters.bytes.buffers.values())
    stated = Sizes(1, groups * each, groups, n, keys, size, value_size, F32, mask, 0, 0)
    # a flag a key head and kernel besides
    assert total == sum(Chain(stated, tuple(chain), 64).streams.values()) + 8 * groups * len(chain)
    if len(chain) == 1 and each == 1 and size == value_size and n == keys:
        assert total == 4 * groups * n * size * 4 + 8 * groups


def test_kernels_count_what_the_closed_forms_say(rng: np.random.Generator) -> None:
    for _ in range(4):
        counted(rng)


@pytest.mark.slow
def test_kernels_count_what_the_closed_forms_say_in_many_cases(rng: np.random.Generator) -> None:
    for _ in range(100):
        counted(rng)


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_what_moves_grows_with_the_length(mask: str) -> None:
    machine = MACHINES["avx512"]()
    for size in (32, 64, 128):
        blocks = tuple(chain_of(machine, size, size, 4))
        lengths = 64 * 64 * 2 ** np.arange(5)
        at = [Sizes(1, 2, 1, n, n, size, size, F32, mask, 0, 0) for n in lengths.tolist()]
        moved = [Chain(s, blocks, 64).named for s in at]
        assert np.polyfit(np.log(lengths), np.log(moved), 1)[0] == pytest.approx(1, abs=0.03)


def test_what_is_proved_of_the_polynomial_holds_on_a_grid(rng: np.random.Generator) -> None:
    for bound in rng.uniform(0.01, 1.5, 40).tolist():
        p = Polynomial.of(bound)
        x = np.linspace(-bound, bound, 20001)
        values = p.c0 + x * (p.c1 + p.c2 * x)
        ratios = values / np.exp(x)
        assert p.least <= values.min() * (1 + 1e-12)
        assert p.spread == pytest.approx((ratios.max() - ratios.min()) / (2 * ratios.min()), rel=1e-6)
    bounds = [largest_bound(eps, 8192, 2624, 64, "f32") for eps in (1e-4, 1e-2, 0.1)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0 < bounds[1]
    assert Polynomial.of(bounds[1]).error(8192, 2624, 64, "f32") <= 1e-2


@lru_cache(None)
def native(mask: str, dtype: DType) -> tuple[GroupOp, tuple[str, ...], NativeKernel]:
    made = polynomial(heads=2, groups=2, size=17, value_size=5, mask=mask, dtype=dtype)
    kernel = lower_group(made, "kernel", Context(MACHINES[BEST](), SPACE)).variants[0].kernel
    return made, tuple(kernel.dims.data), NativeKernel(lower_kernel(kernel, MACHINES[BEST]()), BEST)


def calibrated(case: int, mask: str, dtype: DType, rng: np.random.Generator) -> float:
    """The error against exact attention in float64 to the proved one, of logits as large as the polynomial is made for,
    or smaller."""
    made, dims, kernel = native(mask, dtype)
    n = int(rng.integers(1, 400))
    sizes = {"b": 1, "t": n, "s": n if mask == "causal" else int(rng.integers(1, 400))}
    given = draw(made, sizes, rng)
    q, k, v = (x.double() for x in given[:3])
    if case % 2:
        # the worst: queries along keys, half of them turned round, whose values say which
        k = q[:, :, :1].expand_as(k) * torch.from_numpy(rng.choice([-1.0, 1.0], (1, 2, k.shape[2], 1)))
        v = torch.where((k[..., :1] * q[:, :, :1, :1]) > 0, 1.0, -1.0).expand_as(v)
        q = q[:, :, :1].expand_as(q)
    norms = 0.3 * q.norm(dim=-1).amax(-1) * k.norm(dim=-1).amax(-1)
    # rounding the operands must not lift them above what was calibrated
    q = q * (BOUND * float(rng.choice([1.0, rng.uniform(0.1, 1)])) * 0.99 / norms)[..., None, None]
    tensors = [x.to(given[0].dtype) for x in (q, k, v)]
    flags = torch.zeros_like(given[3])
    out = np.full((1, 2, n, 5), np.nan, dtype.numpy())
    arrays = [np.ascontiguousarray(x.float().numpy().astype(dtype.numpy())) for x in tensors]
    flat = [x.reshape(-1) for x in (*arrays, flags.numpy(), out)]
    kernel(flat, [sizes[d] for d in dims], nthreads=2)
    q, k, v = (x.double() for x in tensors)
    logits = 0.3 * q @ k.mT
    if mask == "causal":
        logits = logits.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    error = np.abs(out.astype(np.float64) - (logits.softmax(-1) @ v).numpy()).max()
    proved = Polynomial.of(BOUND).error(sizes["s"] if mask == "none" else n, 17 + 256 + 16 + 1, 17, dtype.name)
    return float(error) / (proved * float(v.abs().max()))


@pytest.mark.parametrize("mask", ["none", "causal"])
@pytest.mark.parametrize("dtype", [pytest.param(F32, id="f32"), pytest.param(BF16, id="bf16", marks=pytest.mark.slow)])
def test_errors_stay_below_what_is_proved_in_two_hundred_cases(
    mask: str, dtype: DType, rng: np.random.Generator
) -> None:
    ratios = [calibrated(case, mask, dtype, rng) for case in range(100)]
    assert max(ratios) <= 1
    # the worst are not far below
    assert dtype is BF16 or max(ratios) > 0.3


@pytest.mark.parametrize(
    ("size", "value_size"),
    [(64, 64), (40, 72), *(pytest.param(*n, marks=pytest.mark.slow) for n in ((128, 128), (24, 96), (96, 9)))],
)
def test_chains_fit_the_scratch_of_a_program(size: int, value_size: int) -> None:
    machine = MACHINES["avx512"]()
    for dtype in (F32, BF16):
        chain = chain_of(machine, size, value_size, dtype.bytes)
        assert chain[0][0] == 0
        assert chain[-1][1] == len(block_sizes(size))
        for first, last in {chain[0], chain[-1]}:
            made = polynomial(size=size, value_size=value_size, mask="causal", first=first, last=last, dtype=dtype)
            kernel = lower_kernel(lower(made).variants[0].kernel, machine)
            assert sum(s.bytes + s.align for s in kernel.scratch) <= STACK_SCRATCH


def test_regimes_follow_from_the_memory() -> None:
    machine = MACHINES["avx512"]()
    assert len(chain_of(machine, 32, 32, 4)) == 1
    assert len(chain_of(machine, 64, 64, 4)) == 2
    small = replace(machine, rules=replace(machine.rules, scratch=96 << 10))
    assert chain_of(small, 64, 64, 4) == []


def test_the_crossover_is_where_the_predictions_meet() -> None:
    machine = MACHINES["avx512"]()
    sizes = Sizes(1, 4, 4, 512, 512, 64, 64, F32, "none", 0, 0)
    blocks = chain_of(machine, 64, 64, 4)
    begins = crossover(sizes, blocks, machine, 1 << 16)
    assert begins is not None
    for keys, faster in ((begins, True), (begins - 1, False), (1 << 16, True)):
        at = replace(sizes, queries=keys, keys=keys)
        exact = Tiling(at, "query-outer", machine.rules.query_block, 64).seconds(machine)
        assert (Chain(at, tuple(blocks), 64).seconds(machine) < exact) == faster
    assert crossover(sizes, blocks, machine, begins - 1) is None

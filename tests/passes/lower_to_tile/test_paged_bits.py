"""A token has the same bits in every step that may compute it, and in attention over the whole sequence."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.backends.cpu.native_kernel import NativeKernel, host_classes
from tests.passes.lower_to_tile.groups import group
from tests.passes.lower_to_tile.test_paged import Shape
from tilewright.backends.cpu.machines import MACHINES
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.dtypes import BF16, F32, DType
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.passing import Context
from tilewright.ir.types import TensorType
from tilewright.passes.lower_tile_to_loops import lower_kernel
from tilewright.passes.lower_to_tile.skeletons import lower_group

# tokens reach into a third part of keys
HEADS, SHARED, SIZE, TOKENS, PART = 6, 2, 32, 275, 128
SPACE = DimSpace([Dim("t", 0, 512), Dim("r", 0, 64), Dim("m", 1, 512), Dim("s", 0, 512)])
BEST = host_classes()[-1]


def machine() -> Machine:
    """The host's best class, with short parts."""
    whole = MACHINES[BEST]()
    return replace(whole, rules=replace(whole.rules, key_part=PART))


Array = np.ndarray[Any, Any]


class Kernels:
    """A group's variants, compiled for the host's best class, called as a launch calls them."""

    def __init__(self, made: GroupOp) -> None:
        self.lowered = lower_group(made, "kernel", Context(machine(), SPACE))
        loops = [lower_kernel(v.kernel, machine()) for v in self.lowered.variants]
        self.matrix = [bool(kernel.matrix) for kernel in loops]
        self.compiled = [NativeKernel(kernel, BEST) for kernel in loops]

    def __call__(self, given: list[Array], out: tuple[int, ...], sizes: dict[str, int], threads: int) -> Array:
        """The result, of shape `out`; every variant that the sizes do not choose is left alone."""
        chosen = self.lowered.guard.evaluate(sizes)
        limits = [v.limit for v in self.lowered.variants]
        number = next(i for i, limit in enumerate(limits) if limit is None or chosen <= limit)
        made = np.full(out, np.nan, given[0].dtype)
        flat = [np.ascontiguousarray(x).reshape(-1) for x in given]
        dims = [sizes[name] for name in self.lowered.dims]
        self.compiled[number]([*flat, made.reshape(-1)], dims, nthreads=threads)
        return made


def whole(dtype: DType, **stated: Any) -> Kernels:
    """Causal attention over one sequence of t tokens."""
    types = [TensorType.of((1, heads, "t", SIZE), dtype) for heads in (HEADS, SHARED, SHARED)]
    given = {"scale": 0.3, "mask": "causal", **stated}
    return Kernels(group("attention", types, lambda g, *xs: [g.add(AttentionOp.make(*xs, **given))]))


def steps(tokens: int, chunk: int) -> list[tuple[int, int]]:
    """(tokens before, tokens in it) of every step."""
    return [(a, b - a) for a, b in pairwise([*range(0, tokens, chunk), tokens])]


@pytest.mark.parametrize(
    "stated",
    [{}, {"mask": "sliding", "window": 140}, {"mask": "chunked", "window": 150, "softcap": 4.0}],
    ids=["causal", "sliding", "chunked"],
)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_token_has_one_value_however_it_is_computed(dtype: DType, stated: dict[str, Any], rng: Any) -> None:
    kind = dtype.numpy()
    q, k, v = (
        rng.standard_normal((TOKENS, heads, SIZE)).astype(np.float32).astype(kind) for heads in (HEADS, SHARED, SHARED)
    )
    by_head = [x.transpose(1, 0, 2)[None] for x in (q, k, v)]
    want = whole(dtype, **stated)(by_head, (1, HEADS, TOKENS, SIZE), {"t": TOKENS}, 1)[0].transpose(1, 0, 2)
    assert np.isfinite(want.astype(np.float32)).all()
    for page in (1, 3, 16, 64) if not stated else (3,):
        pages = -(-TOKENS // page)
        # the request's pages lie anywhere among others, whose keys are not numbers
        order = rng.permutation(2 * pages).astype(np.int32)
        cache = [np.full((2 * pages * page, SHARED, SIZE), np.nan, kind) for _ in range(2)]
        at = np.arange(TOKENS)
        for held, given in zip(cache, (k, v), strict=True):
            held[order[at // page] * page + at % page] = given
        cache = [x.reshape(-1, page, SHARED, SIZE).transpose(0, 2, 1, 3) for x in cache]
        shape = Shape(HEADS, SHARED, SIZE, SIZE, page, 2 * pages, dtype)
        run = Kernels(shape.group(**stated))
        assert set(run.matrix) == {dtype is BF16 and machine().rules.matrix is not None}
        for chunk in (1, 16, TOKENS) if page == 3 else (16, TOKENS):
            for beside in (False, True):
                for threads in (1, 2):
                    for old, new in steps(TOKENS, chunk):
                        # the other request is the same one, some tokens earlier: it reads the same pages
                        requests = [(old // 2, 1 + old % 3)] * beside + [(old, new)]
                        places = np.concatenate([np.arange(a, a + n) for a, n in requests]).astype(np.int64)
                        offsets = np.cumsum([0, *(n for _, n in requests)]).astype(np.int32)
                        table = np.tile(order[:pages], (len(requests), 1))
                        sizes = {"t": len(places), "r": len(requests), "m": pages}
                        held = places % TOKENS
                        given = [q[held], *cache, places, offsets, table]
                        got = run(given, (len(places), HEADS, SIZE), sizes, threads)
                        np.testing.assert_array_equal(got.view(np.uint8), want[held].view(np.uint8))

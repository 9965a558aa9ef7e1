"""What lies past the end of the data is known where it is constant, and is not computed where nobody looks."""

from __future__ import annotations

import numpy as np
from xdsl.ir import SSAValue

from tests.passes.lower_tile_to_loops.kernels import attention
from tests.passes.lower_tile_to_loops.running import inputs, lower_kernel, machine, outputs
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32
from tilewright.ir.loops_interpreter import run_kernel
from tilewright.ir.tile import compute
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.passes.lower_tile_to_loops.observed import Observed
from tilewright.passes.lower_tile_to_loops.tails import Limit, depth_limit, folded_limit, tail


class Masked:
    """A kernel whose tile [4, 32] of x [n, m] is masked past column m."""

    def __init__(self, fill: float | None = None) -> None:
        b = self.b = KernelBuilder("masked", ["n", "m"])
        self.x, self.y = b.buffer(["n", "m"], F32), b.output(["n", "m"], F32)
        self.i, self.j = b.grid(["n", "m"], [4, 32])
        self.limit = Limit(Expr.of("m"), self.j)
        self.tile = b.load(b.dense(self.x), [self.i, self.j], [4, 32], fill)

    def select(self, value: SSAValue, beyond: float) -> SSAValue:
        b = self.b
        inside = b.map("lt", b.coordinates(self.j, 1, (1, 32)), b.splat("m", (1, 1)))
        return b.map("select", inside, value, b.constant(beyond, (1, 1)))

    def observed(self, *results: SSAValue) -> Observed:
        for value in results:
            self.b.store(self.b.broadcast(value, (4, 32)), self.b.dense(self.y), [self.i, self.j])
        return Observed(self.b.finish())


def test_a_fill_is_the_tail_of_a_load() -> None:
    k = Masked(fill=0.0)
    found = tail(k.tile, 1)
    assert found is not None
    assert (found.limit, found.value) == (k.limit, 0.0)
    assert tail(Masked().tile, 1) is None, "poison is no constant"


def test_arithmetic_hands_a_tail_on() -> None:
    k = Masked()
    scores = k.select(k.tile, -np.inf)
    top = k.b.reduce("max", scores)
    weights = k.b.map("exp", k.b.map("sub", scores, top))
    for value, constant in ((scores, -np.inf), (weights, 0.0)):
        found = tail(value, 1)
        assert found is not None
        assert found.value == constant
    assert tail(k.b.map("add", weights, k.tile), 1) is None


def test_a_fold_ends_where_what_follows_is_neutral() -> None:
    k = Masked()
    scores = k.select(k.tile, -np.inf)
    for fn, ends in (("max", True), ("sum", False), ("min", False)):
        made = k.b.reduce(fn, scores).owner
        assert isinstance(made, compute.ReduceOp)
        assert (folded_limit(made) == k.limit) is ends


def test_a_dot_ends_where_both_sides_are_known() -> None:
    for other, ends in ((0.0, True), (1.0, True), (-np.inf, False), (None, False)):
        k = Masked(fill=0.0)
        right = k.b.load(k.b.view(k.x, ["m", 16], [1, 0]), [k.j, 0], [32, 16], other)
        made = k.b.dot(k.tile, right, k.b.constant(0.0, (4, 16))).owner
        assert isinstance(made, compute.DotOp)
        assert (depth_limit(made) == k.limit) is ends, f"0 times {other}"


def test_rows_and_columns_outside_the_result_are_not_observed() -> None:
    k = Masked()
    doubled = k.b.map("add", k.tile, k.tile)
    seen = k.observed(doubled)
    assert seen.limit(doubled, 1) == k.limit
    assert seen.limit(k.tile, 0) == Limit(Expr.of("n"), k.i)


def test_a_reduction_looks_at_all_that_is_not_neutral() -> None:
    k = Masked(fill=0.0)
    total = k.b.reduce("sum", k.tile)
    largest = k.b.reduce("max", k.b.map("neg", k.tile))
    both = k.b.map("add", total, largest)
    seen = k.observed(both)
    assert seen.of(k.tile, 1) == "all", "the maximum counts zeros"


def test_attention_does_the_work_of_the_rows_and_keys_that_exist(rng: np.random.Generator) -> None:
    kernel = attention(1, 16, 64, causal=False)
    lowered = lower_kernel(kernel, machine("avx512"))
    moved = {}
    for t in (64, 66, 128):
        given = inputs(kernel, {"t": t}, rng)
        traffic = run_kernel(lowered, [*given, *outputs(kernel, {"t": t})], {"t": t})
        moved[t] = sum(n for name, n in traffic.loaded.items() if name.startswith("s"))
    # two more rows and keys are one more block each, of which little is computed
    assert moved[66] < 2 * moved[64] < moved[128] * 0.6

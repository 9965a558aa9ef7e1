"""What lies past the end of the data is known where it is constant, and is not computed where nobody looks."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.ir import SSAValue

from tests.passes.lower_tile_to_loops.kernels import attention
from tests.passes.lower_tile_to_loops.running import check, inputs, lower_kernel, machine, outputs
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32, I32
from tilewright.ir.loops_interpreter import run_kernel
from tilewright.ir.tile import compute
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.passes.lower_tile_to_loops.observed import Observed
from tilewright.passes.lower_tile_to_loops.tails import Constant, Limit, depth_limit, folded_limit, tail


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

    def largest(self, scores: SSAValue) -> SSAValue:
        """The largest of each row, or 0 where it is -inf."""
        top, none = self.b.reduce("max", scores), self.b.constant(-np.inf, (1, 1))
        return self.b.map("select", self.b.map("eq", top, none), self.b.constant(0.0, (1, 1)), top)

    def observed(self, *results: SSAValue) -> Observed:
        for value in results:
            self.b.store(self.b.broadcast(value, (4, 32)), self.b.dense(self.y), [self.i, self.j])
        return Observed(self.b.finish())


def test_a_fill_is_the_tail_of_a_load() -> None:
    k = Masked(fill=0.0)
    found = tail(k.tile, 1)
    assert found is not None
    assert (found.limit, found.constant) == (k.limit, Constant(0.0))
    assert tail(Masked().tile, 1) is None, "poison is no constant"


def test_arithmetic_hands_a_tail_on() -> None:
    k = Masked()
    scores = k.select(k.tile, -np.inf)
    top = k.largest(scores)
    weights = k.b.map("exp", k.b.map("sub", scores, top))
    sums = k.b.map("add", weights, k.tile)
    k.observed(weights, sums)
    for value, constant in ((scores, Constant(-np.inf)), (weights, Constant(0.0, sure=False))):
        found = tail(value, 1)
        assert found is not None
        assert found.constant == constant
    assert tail(sums, 1) is None


def test_no_constant_is_claimed_where_infinity_or_nan_may_meet_it() -> None:
    k = Masked()
    b, none = k.b, k.b.constant(-np.inf, (1, 1))
    scores = k.select(k.tile, -np.inf)
    for value in (
        b.map("add", scores, k.tile),
        b.map("sub", scores, k.tile),
        b.map("sub", scores, b.reduce("max", scores)),
        b.map("select", b.map("isnan", b.map("sub", scores, k.largest(scores))), b.constant(5.0, (1, 1)), scores),
        b.map("max", b.map("sub", scores, k.largest(scores)), none),
    ):
        found = tail(value, 1)
        assert found is None or (value.owner.fn.data == "select" and found.constant.value == -np.inf), value.owner


@pytest.mark.parametrize("cpu", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("m", [1, 17, 32, 45])
def test_nan_and_infinity_are_what_they_are_without_tails(cpu: str, m: int, rng: np.random.Generator) -> None:
    """Softmax weights, a masked sum with a bias that is not finite, and bits joined by `or`."""
    x = rng.normal(size=(6, m)).astype(np.float32)
    x[0, rng.integers(m)], x[1, rng.integers(m)], x[2] = np.nan, np.inf, -np.inf
    for body in (_softmax_weights, _biased, _joined_bits):
        k = Masked(fill=0.0)
        k.b.store(k.b.broadcast(body(k), (4, 32)), k.b.dense(k.y), [k.i, k.j])
        check(k.b.finish(), {"n": 6, "m": m}, rng, given=[x.reshape(-1)], tolerance=1e-6, classes=[cpu])


def _softmax_weights(k: Masked) -> SSAValue:
    scores = k.select(k.tile, -np.inf)
    return k.b.reduce("sum", k.b.map("exp", k.b.map("sub", scores, k.largest(scores))))


def _biased(k: Masked) -> SSAValue:
    return k.b.reduce("max", k.b.map("add", k.select(k.b.constant(0.0, (4, 32)), -np.inf), k.tile))


def _joined_bits(k: Masked) -> SSAValue:
    whole = k.b.cast(k.b.map("select", k.b.map("isnan", k.tile), k.b.constant(3.0, (1, 1)), k.tile), I32)
    first = k.select(k.b.constant(0.0, (4, 32)), 1.0)
    return k.b.reduce("max", k.b.cast(k.b.map("or", k.b.cast(first, I32), whole), F32))


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

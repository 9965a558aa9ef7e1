"""Index arithmetic that the builder shares: rows of one page have one quotient, and no value changes."""

from __future__ import annotations

import numpy as np

from tilewright.ir.dtypes import BF16, F32, I64
from tilewright.ir.loops import Gather, LoopBuilder
from tilewright.ir.loops.folding import divisor
from tilewright.ir.loops.ops import Broadcast
from tilewright.ir.loops_interpreter import run_kernel


def test_indices_inside_a_multiple_share_quotient_and_comparison() -> None:
    b = LoopBuilder("shared")
    begin, end = b.mul(b.dim("begin"), 64), b.mul(b.dim("end"), 16)
    with b.loop(begin, 1 << 20, 64) as outer, b.loop(0, 64, 16) as inner:
        at = b.add(outer.index, inner.index)
        rows = [b.add(outer.index, b.add(inner.index, n)) for n in range(16)]
        assert {b.floordiv(row, 16) for row in rows} == {b.floordiv(at, 16)}
        assert [b.mod(row, 16) for row in rows] == [b.index(n) for n in range(16)]
        assert {b.compare("lt", row, end) for row in rows} == {b.compare("lt", at, end)}
        assert b.compare("lt", b.add(at, 16), end) is not b.compare("lt", at, end)
        assert b.floordiv(b.add(at, 3), 32) is b.floordiv(at, 32)
        assert b.floordiv(b.add(at, 17), 32) is not b.floordiv(at, 32)


def test_shared_forms_have_the_values_of_plain_ones(rng: np.random.Generator) -> None:
    for _ in range(20):
        step, by, more, scale = (int(n) for n in rng.integers(1, 40, 4))
        shift = int(rng.integers(-50, 50))
        b = LoopBuilder("values")
        out = b.buffer("out", I64, writable=True)
        with b.loop(-3 * step, 4 * step, step) as loop:
            x = b.add(b.add(b.mul(loop.index, scale), shift), b.add(loop.index, more))
            found = [b.floordiv(x, by), b.mod(x, by), b.compare("lt", x, by * 2), b.compare("ge", x, 0)]
            at = b.mul(b.floordiv(b.add(loop.index, 3 * step), step), 4)
            for n, value in enumerate(found):
                b.store(b.cast(value, I64), out, b.add(at, n))
        got = np.zeros(28, np.int64)
        run_kernel(b.finish(), [got])
        for turn, index in enumerate(range(-3 * step, 4 * step, step)):
            x = index * scale + shift + index + more
            np.testing.assert_array_equal(got[4 * turn : 4 * turn + 4], [x // by, x % by, x < by * 2, x >= 0])


def test_what_divides_an_index_is_known() -> None:
    b = LoopBuilder("divisors")
    n = b.dim("n")
    wide = b.mul(n, 48)
    with b.loop(wide, 1 << 20, 32) as loop:
        assert divisor(loop.index) == 16
        assert divisor(b.min(loop.index, b.mul(n, 24))) == 8
        assert divisor(b.select(b.compare("lt", n, 3), wide, b.index(0))) == 48
        assert divisor(b.floordiv(wide, 16)) == 3
        assert divisor(n) == divisor(b.floordiv(wide, 5)) == 1


def test_lanes_under_one_condition_are_gathered_under_a_branch(rng: np.random.Generator) -> None:
    b = LoopBuilder("gathered")
    x, out = b.buffer("x", BF16), b.buffer("out", F32, writable=True)
    one = b.broadcast(b.compare("lt", b.dim("n"), 4), 16)
    both = b.and_(one, b.broadcast(b.compare("gt", b.dim("n"), 1), 16))
    assert isinstance(both, Broadcast)
    b.store(b.cast(b.load(x, 0, 16, stride=3, mask=both, fill=2.0), F32), out, 0)
    values = rng.standard_normal(48).astype(np.float32).view(np.uint32) >> 16
    kernel = b.finish()
    for n in (0, 2, 5):
        got = np.zeros(16, np.float32)
        run_kernel(kernel, [values.astype(np.uint16), got], [n])
        want = (values[::3] << 16).astype(np.uint32).view(np.float32)
        np.testing.assert_array_equal(got, want if n == 2 else np.full(16, 2.0, np.float32))
    assert not any(isinstance(op, Gather) and op.mask is not None for op in kernel.body.ops)

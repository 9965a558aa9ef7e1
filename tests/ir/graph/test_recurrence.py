"""Linear recurrences against plain loops in torch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.graph.single_op import apply, complaint, run, value
from tilewright.ir.dtypes import F64
from tilewright.ir.graph.recurrence import ScanOp


@given(st.lists(st.sampled_from([0, 1, 2, 5]), min_size=1, max_size=3), st.data())
def test_scan_is_the_recurrence(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    b = torch.randn(shape).double()
    a = torch.rand([1 if data.draw(st.booleans()) else n for n in shape]).double()
    rest = [n for i, n in enumerate(shape) if i != axis]
    h0 = torch.randn(rest).double() if data.draw(st.booleans()) else None
    h, expected = (torch.zeros(rest).double() if h0 is None else h0), []
    for t in range(shape[axis]):
        h = a.expand(shape).select(axis, t) * h + b.select(axis, t)
        expected.append(h)
    stacked = torch.stack(expected, axis) if expected else b
    torch.testing.assert_close(apply(ScanOp, a, b, h0, axis=axis), stacked)


def test_scan_with_ones_adds_up() -> None:
    b = torch.randn(3, 50)
    torch.testing.assert_close(apply(ScanOp, torch.ones(1), b, axis=1), b.cumsum(1))


def test_scan_keeps_symbols_and_names_what_does_not_fit() -> None:
    op = ScanOp.make(value(["t", 4]), value(["t", 4]), value([4]), axis=0)
    run(op, torch.rand(3, 4), torch.rand(3, 4), torch.rand(4), sizes={"t": 3})
    b = value([3, 4])
    assert "floats of one dtype" in complaint(ScanOp, value([3, 4], F64), b, axis=0)
    assert "do not broadcast" in complaint(ScanOp, value([5, 4]), b, axis=0)
    assert "does not broadcast" in complaint(ScanOp, value([2, 3, 4]), b, axis=0)
    assert "h0 must be f32[4], got f32[3]" in complaint(ScanOp, b, b, value([3]), axis=0)
    assert "axis 2" in complaint(ScanOp, b, b, axis=2)

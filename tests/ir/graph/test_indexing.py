"""Gathers and scatters: torch's elements, defined winners, and no index that wraps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.graph.single_op import apply, complaint, value
from tilewright.errors import IRError
from tilewright.ir.dtypes import F64, I64
from tilewright.ir.graph.indexing import GatherOp, PutAlongOp, ScatterOp, StateUpdateOp, TakeAlongOp

shapes = st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=3)


@given(shapes, st.lists(st.sampled_from([0, 1, 4]), max_size=2), st.data())
def test_gather_takes_slices(shape: list[int], index_shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x, indices = torch.randn(shape), torch.randint(0, shape[axis], index_shape)
    expected = x[(slice(None),) * axis + (indices,)]
    assert torch.equal(apply(GatherOp, x, indices, axis=axis), expected)


def test_gather_reads_no_more_than_it_takes() -> None:
    op = GatherOp.make(value([30000, 384]), value(["tokens"], I64))
    assert str(op.out.type) == "f32[tokens, 384]"
    assert op.cost().at({"tokens": 2})["read"] == 2 * 384 * 4 + 2 * 8


@given(shapes, st.data())
def test_take_along_is_torch_gather(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = torch.randn(shape)
    lengths = [data.draw(st.integers(0, 4)) if i == axis else n for i, n in enumerate(shape)]
    indices = torch.randint(0, shape[axis], lengths)
    assert torch.equal(apply(TakeAlongOp, x, indices, axis=axis), x.gather(axis, indices))


@given(shapes, st.data(), st.sampled_from(["set", "add"]))
def test_scatter_writes_slices_in_order(shape: list[int], data: st.DataObject, mode: str) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x, indices = torch.randn(shape), torch.randint(0, shape[axis], [data.draw(st.integers(0, 4))])
    updates = torch.randn([indices.numel() if i == axis else n for i, n in enumerate(shape)])
    expected = x.clone()
    for i, place in enumerate(indices.tolist()):
        old = expected.select(axis, place) if mode == "add" else 0
        expected.select(axis, place).copy_(old + updates.select(axis, i))
    assert torch.equal(apply(ScatterOp, x, indices, updates, axis=axis, mode=mode), expected)


@given(shapes, st.data())
def test_put_along_without_repeats_is_torch_scatter(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = torch.randn(shape)
    indices = torch.rand(shape).argsort(axis)
    updates = torch.randn(shape)
    assert torch.equal(apply(PutAlongOp, x, indices, updates, axis=axis), x.scatter(axis, indices, updates))
    added = apply(PutAlongOp, x, indices, updates, axis=axis, mode="add")
    torch.testing.assert_close(added, x.scatter_add(axis, indices, updates))


def test_the_last_of_equal_indices_wins() -> None:
    x, twice, updates = torch.zeros(2), torch.tensor([1, 1]), torch.tensor([5.0, 6.0])
    assert apply(PutAlongOp, x, twice, updates, axis=0).tolist() == [0, 6]
    assert apply(ScatterOp, x, twice, updates).tolist() == [0, 6]
    assert apply(ScatterOp, x, twice, updates, mode="add").tolist() == [0, 11]


@given(shapes, st.data(), st.sampled_from(["set", "add"]), st.booleans())
def test_an_update_of_a_state_is_a_scatter_as_a_value(
    shape: list[int], data: st.DataObject, mode: str, along: bool
) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x, n = torch.randn(shape), data.draw(st.integers(0, 4))
    given_shape = [n if i == axis else size for i, size in enumerate(shape)]
    indices = torch.randint(0, shape[axis], given_shape if along else [n])
    updates, before = torch.randn(given_shape), x.clone()
    kind = PutAlongOp if along else ScatterOp
    found = apply(StateUpdateOp, x, indices, updates, axis=axis, mode=mode, along=along)
    assert torch.equal(found, apply(kind, x, indices, updates, axis=axis, mode=mode))
    assert torch.equal(x, before)


@pytest.mark.parametrize("along", [False, True])
def test_an_update_of_a_state_moves_what_it_writes(along: bool) -> None:
    operands = (value([8, 4096, 64]), value([8, "n", 64] if along else ["n"], I64), value([8, "n", 64]))
    places = 8 * 64 if along else 1
    for mode, reads in (("set", 1), ("add", 2)):
        op = StateUpdateOp.make(*operands, axis=1, mode=mode, along=along)
        cost = op.cost().at({"n": 3})
        assert cost["write"] == 3 * 8 * 64 * 4
        assert cost["read"] == reads * 3 * 8 * 64 * 4 + 3 * places * 8
        assert cost["vector"] == (3 * 8 * 64 if mode == "add" else 0)


@pytest.mark.parametrize("bad", [-1, 3])
def test_an_index_outside_is_an_error_and_never_wraps(bad: int) -> None:
    x, indices = torch.randn(3), torch.tensor([0, bad])
    for kind, more in ((GatherOp, {}), (TakeAlongOp, {"axis": 0})):
        with pytest.raises(IRError, match="into an axis of 3"):
            apply(kind, x, indices, **more)
    for kind, more in (
        (ScatterOp, {}),
        (PutAlongOp, {"axis": 0}),
        (StateUpdateOp, {}),
        (StateUpdateOp, {"along": True}),
    ):
        with pytest.raises(IRError, match="into an axis of 3"):
            apply(kind, x, indices, torch.zeros(2), **more)


def test_what_does_not_fit_is_named() -> None:
    x, i = value([2, 3]), value([2, 3], I64)
    assert "indices must be integers" in complaint(GatherOp, x, value([2]))
    assert "axis 2" in complaint(GatherOp, x, i, axis=2)
    assert "except along axis 1" in complaint(TakeAlongOp, x, value([3, 3], I64), axis=1)
    assert "updates of" in complaint(ScatterOp, x, value([4], I64), value([4, 4]))
    assert "updates of" in complaint(StateUpdateOp, x, value([4], I64), value([4, 4]))
    assert "except along axis 1" in complaint(StateUpdateOp, x, value([3, 3], I64), x, axis=1, along=True)
    assert "got f64" in complaint(PutAlongOp, x, i, value([2, 3], F64), axis=0)
    assert "'mean' is not one of set, add" in complaint(ScatterOp, x, value([2], I64), x, mode="mean")

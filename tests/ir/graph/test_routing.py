"""Routing against sorting in Python, and grouped products against one product a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.graph.single_op import apply, complaint, value
from tilewright.ir.dtypes import F64, I32, I64
from tilewright.ir.graph.routing import GroupedMatmulOp, RouteOp, SlotsOp


@given(st.lists(st.integers(-2, 6), max_size=30), st.integers(1, 5))
def test_places_are_those_of_a_stable_sort(indices: list[int], experts: int) -> None:
    places, offsets = apply(RouteOp, torch.tensor(indices, dtype=torch.int64), experts=experts)
    known = [min(max(i, 0), experts - 1) for i in indices]
    wanted = sorted(range(len(known)), key=known.__getitem__)
    assert [wanted.index(s) for s in range(len(known))] == places.tolist()
    assert offsets.tolist() == [sum(i < e for i in known) for e in range(experts + 1)]


@given(st.permutations(range(12)), st.integers(1, 4))
def test_slots_invert_places(places: list[int], each: int) -> None:
    order, rows = apply(SlotsOp, torch.tensor(places, dtype=torch.int32), each=each)
    assert [places[s] for s in order.tolist()] == list(range(12))
    assert rows.tolist() == [s // each for s in order.tolist()]


@given(st.lists(st.integers(0, 3), max_size=12), st.booleans(), st.booleans())
def test_every_slot_meets_its_experts_matrix(indices: list[int], turned: bool, biased: bool) -> None:
    a, b = torch.randn(max(len(indices), 1), 6).double(), torch.randn(4, 6, 3).double()
    bias = torch.randn(4, 3).double() if biased else None
    chosen = torch.tensor(indices, dtype=torch.int64)
    places, offsets = apply(RouteOp, chosen, experts=4)
    order, rows = apply(SlotsOp, places, each=1)
    right = b.mT.contiguous() if turned else b
    found = apply(GroupedMatmulOp, a, right, rows, order, offsets, bias, transpose_b=turned)
    wanted = torch.einsum("sk,skn->sn", a[: len(indices)], b[chosen]) + (0 if bias is None else bias[chosen])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("at", "operand", "says"),
    [
        (0, value([3]), "rank"),
        (0, value([3, 7]), "the contracted dims differ"),
        (1, value([4, 8, 6], F64), "one float dtype"),
        (2, value([5], I32), "i32 [S]"),
        (3, value([6], I64), "i32 [S]"),
        (4, value([4], I32), "offsets i32 [5]"),
        (5, value([4, 8]), "bias must be f32[4, 6]"),
    ],
)
def test_grouped_products_name_what_does_not_fit(at: int, operand: Any, says: str) -> None:
    operands = [value([3, 8]), value([4, 8, 6]), value([6], I32), value([6], I32), value([5], I32), None]
    operands[at] = operand
    assert says in complaint(GroupedMatmulOp, *operands)


def test_routing_needs_experts_and_integers() -> None:
    assert "one expert or more" in complaint(RouteOp, value(["s"], I64), experts=0)
    assert "takes integers" in complaint(RouteOp, value(["s"]), experts=3)
    assert "takes i32" in complaint(SlotsOp, value(["s"], I64), each=2)


def test_a_grouped_product_counts_every_slot_once() -> None:
    lists = [value(["s"], I32), value(["s"], I32), value([5], I32)]
    op = GroupedMatmulOp.make(value(["t", 8]), value([4, 8, 6]), *lists)
    assert str(op.out.type) == "f32[s, 6]"
    assert op.cost().at({"t": 3, "s": 7})["matrix"] == 7 * 8 * 6 * 2

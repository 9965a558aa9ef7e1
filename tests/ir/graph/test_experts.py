"""Experts against dense feed-forwards, mixed by how much each token wants each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.graph.single_op import apply, complaint, value
from tilewright.ir.dtypes import F64, I64
from tilewright.ir.graph.experts import ExpertsOp


@given(st.integers(0, 5), st.integers(1, 3), st.booleans(), st.booleans())
def test_experts_mix_dense_feed_forwards(tokens: int, slots: int, gated: bool, biased: bool) -> None:
    experts, width, hidden = 4, 6, 3
    x = torch.randn(tokens, width).double()
    indices = torch.randint(0, experts, (tokens, slots))
    weights = torch.rand(tokens, slots).double()
    gate_up = torch.randn(experts, hidden * (2 if gated else 1), width).double()
    down = torch.randn(experts, width, hidden).double()
    up_bias = torch.randn(experts, gate_up.shape[1]).double() if biased else None
    down_bias = torch.randn(experts, width).double() if biased else None
    # every expert on every token, then a mix by how much each token wants each
    inner = torch.einsum("td,efd->tef", x, gate_up) + (up_bias if biased else 0)
    if gated:
        gate, up = inner.chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * up
    else:
        inner = torch.nn.functional.silu(inner)
    dense = torch.einsum("tef,edf->ted", inner, down) + (down_bias if biased else 0)
    share = torch.zeros(tokens, experts).double().scatter_add(1, indices, weights)
    ours = apply(ExpertsOp, x, indices, weights, gate_up, down, up_bias, down_bias, activation="silu", gated=gated)
    torch.testing.assert_close(ours, torch.einsum("te,ted->td", share, dense))


def test_experts_keep_symbols_and_count_routed_work() -> None:
    op = ExpertsOp.make(
        value(["tokens", 8]),
        value(["tokens", 2], I64),
        value(["tokens", 2]),
        value([4, 12, 8]),
        value([4, 8, 6]),
        activation="silu",
    )
    assert str(op.out.type) == "f32[tokens, 8]"
    assert op.cost().at({"tokens": 3})["matrix"] == 3 * 2 * 2 * (12 * 8 + 8 * 6)


@pytest.mark.parametrize(
    ("at", "operand", "says"),
    [
        (0, value([3, 8, 1]), "do not fit"),
        (1, value([4, 2], I64), "do not fit"),
        (1, value([3, 2]), "integer indices"),
        (2, value([3, 3]), "weights must be floats"),
        (3, value([4, 12, 8], F64), "rank 3"),
        (3, value([4, 12, 9]), "do not fit"),
        (3, value([4, 10, 8]), "10 rows an expert"),
        (4, value([5, 8, 6]), "do not fit"),
        (5, value([4, 8]), "gate_up_bias must be f32[4, 12]"),
        (6, value([4, 12]), "down_bias must be f32[4, 8]"),
    ],
)
def test_experts_name_what_does_not_fit(at: int, operand: Any, says: str) -> None:
    operands = [value([3, 8]), value([3, 2], I64), value([3, 2]), value([4, 12, 8]), value([4, 8, 6]), None, None]
    operands[at] = operand
    assert says in complaint(ExpertsOp, *operands, activation="silu")


def test_experts_refuse_odd_activations() -> None:
    shapes = ([3, 8], [3, 2], [4, 12, 8], [4, 8, 6])
    x, weights, gate_up, down = (value(s) for s in shapes)
    assert "'add' is not a function of one float" in complaint(
        ExpertsOp, x, value([3, 2], I64), weights, gate_up, down, activation="add"
    )


def test_a_slot_without_an_expert_adds_nothing() -> None:
    x, gate_up, down = torch.randn(2, 8), torch.randn(4, 12, 8), torch.randn(4, 8, 6)
    share = torch.rand(2, 2)
    rest = {"activation": "silu"}
    with_strays = apply(ExpertsOp, x, torch.tensor([[9, 0], [3, -1]]), share, gate_up, down, **rest)
    kept = share * torch.tensor([[0, 1], [1, 0]])
    torch.testing.assert_close(
        with_strays, apply(ExpertsOp, x, torch.tensor([[1, 0], [3, 2]]), kept, gate_up, down, **rest)
    )

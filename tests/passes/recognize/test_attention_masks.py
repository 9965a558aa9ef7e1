"""A mask that was computed and handed to attention becomes the attention's own: causal, a window, what remains."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from xdsl.ir import SSAValue

from tests.passes.recognize.test_attention import MINUS, Case
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor


def attend(case: Case, seed: int, **given: SSAValue | None) -> AttentionOp:
    """What becomes of the attention with these operands; the numbers are compared on the way."""
    operands = [given.get(name) for name in ("bias", "valid")]
    return case.run(case.g.attention(case.q, case.k, case.v, *operands, scale=8**-0.5), seed)


def four(case: Case, mask: SSAValue) -> SSAValue:
    """[t, s] as [1, 1, t, s]."""
    return case.g.reshape(mask, 1, 1, *tensor(mask).dims)


def windowed(case: Case, width: int = 3) -> SSAValue:
    near = case.g.map("not", case.causal("le", -width))
    return case.g.map("and", case.causal(), near)


@pytest.mark.parametrize("keys", ["s", "t"])
def test_a_causal_condition_is_causal(keys: str, seed: int) -> None:
    case = Case(keys=keys)
    found = attend(case, seed, valid=four(case, case.causal()))
    assert (found.mask.data, found.valid, found.bias) == ("causal", None, None)


def test_a_window_is_sliding(seed: int) -> None:
    case = Case(keys="t")
    found = attend(case, seed, valid=four(case, windowed(case)))
    assert (found.mask.data, found.window.data, found.valid) == ("sliding", 3, None)


def test_numbers_that_hide_are_a_mask(seed: int) -> None:
    case = Case(keys="t")
    bias = case.g.map("select", case.causal(), 0.0, MINUS)
    found = attend(case, seed, bias=four(case, bias))
    assert (found.mask.data, found.bias, found.valid) == ("causal", None, None)


def test_a_bias_stays_beside_the_mask(seed: int) -> None:
    case = Case(keys="t")
    bias = case.g.input("bias", [1, 4, "t", "t"], "f64")
    found = attend(case, seed, bias=bias, valid=four(case, case.causal()))
    assert (found.mask.data, found.valid) == ("causal", None)
    assert found.bias is not None


def test_padding_stays_beside_the_mask(seed: int) -> None:
    case = Case(keys="t")
    padding = case.g.reshape(case.key_mask(), "b", 1, 1, "t")
    found = attend(case, seed, valid=case.g.map("and", padding, four(case, case.causal())))
    assert found.mask.data == "causal"
    assert found.valid is not None
    assert tensor(found.valid).rank == 2


def test_padding_alone_is_left_as_it_was(seed: int) -> None:
    case = Case(keys="t")
    found = attend(case, seed, valid=case.key_mask())
    assert found.mask.data == "none"
    assert found.valid is not None


@pytest.mark.parametrize("shift", [-1, 2])
def test_another_bound_stays_a_condition(shift: int, seed: int) -> None:
    case = Case(keys="t")
    found = attend(case, seed, valid=four(case, case.causal("le", shift)))
    assert (found.mask.data, found.valid is None) == ("none", False)


def test_torchs_own_attention_is_told(seed: int) -> None:
    import tilewright as tw

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            at = torch.arange(x.shape[2])
            seen = (at[None] <= at[:, None]) & (at[:, None] - at[None] < 4)
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=seen)

    torch.manual_seed(seed % 2**31)
    x: Any = torch.randn(2, 3, 11, 8)
    compiled = tw.compile(Model(), (x,), dims={"x": {2: tw.Dim("tokens", 1, 32)}}, expect={"attention-mask": 1})
    assert math.isclose((compiled(x) - Model()(x)).abs().max().item(), 0, abs_tol=1e-5)


def packed(case: Case, *lead: str | int) -> SSAValue:
    """Which query and key have equal numbers, [.., t, t], from integers [.., t]."""
    ids = case.g.input("ids", [*lead, "t"], "i64")
    column, line = (case.g.reshape(ids, *lead, *([1] if lead else []), *ends) for ends in (("t", 1), (1, "t")))
    return case.g.map("eq", column, line)


@pytest.mark.parametrize("batched", [False, True])
def test_equal_numbers_are_sequences_packed_into_one_row(batched: bool, seed: int) -> None:
    case = Case(keys="t")
    lead = tensor(case.q).dims[0]
    same = packed(case, lead) if batched else four(case, packed(case))
    found = attend(case, seed, valid=same)
    assert found.segments is not None
    assert tensor(found.segments).rank == (2 if batched else 1)
    assert (found.mask.data, found.valid) == ("none", None)


def test_packed_sequences_may_be_causal_and_have_other_conditions(seed: int) -> None:
    case = Case(keys="t")
    other = case.g.input("other", ["t", "t"], "i1")
    both = case.g.map("and", case.g.map("and", packed(case), case.causal()), other)
    found = attend(case, seed, valid=four(case, both))
    assert found.segments is not None
    assert found.mask.data == "causal"
    assert found.valid is not None


def test_numbers_of_queries_and_of_keys_are_no_segments(seed: int) -> None:
    case = Case(keys="t")
    mine, theirs = (case.g.input(name, ["t"], "i64") for name in ("mine", "theirs"))
    same = case.g.map("eq", case.g.reshape(mine, "t", 1), case.g.reshape(theirs, 1, "t"))
    assert attend(case, seed, valid=four(case, same)).segments is None


@pytest.mark.parametrize("negated", [False, True])
def test_unequal_numbers_are_segments_where_that_hides(negated: bool, seed: int) -> None:
    case = Case(keys="t")
    ids = case.g.input("ids", ["t"], "i64")
    apart = case.g.map("ne", case.g.reshape(ids, "t", 1), case.g.reshape(ids, 1, "t"))
    seen = case.g.map("not", apart) if negated else apart
    assert (attend(case, seed, valid=four(case, seen)).segments is not None) == negated


def test_axes_of_a_batch_stay_those_of_a_batch(seed: int) -> None:
    """A condition [b, t, t] that gets an axis for heads only as a whole: its parts have it at the same place."""
    case = Case(keys="t")
    ids = case.g.input("ids", ["b", "t"], "i64")
    same = case.g.map("eq", case.g.reshape(ids, "b", "t", 1), case.g.reshape(ids, "b", 1, "t"))
    other = case.g.input("other", ["b", "t", "t"], "i1")
    both = case.g.map("and", case.g.map("and", same, case.causal()), other)
    found = attend(case, seed, valid=case.g.reshape(both, "b", 1, "t", "t"))
    assert found.segments is not None
    assert found.valid is not None
    assert [str(n) for n in tensor(found.segments).dims] == ["b", "t"]
    assert [str(n) for n in tensor(found.valid).dims] == ["b", "1", "t", "t"]
    assert found.mask.data == "causal"

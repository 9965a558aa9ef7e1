"""Attention and rotary embedding, against a loop over single queries and against torch's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.graph.single_op import apply, complaint, run, value
from tilewright.ir.dtypes import BF16, F32, F64, I1, I64
from tilewright.ir.graph.attention import AttentionOp, RotaryOp

SLOTS = ("bias", "valid", "q_positions", "k_positions", "sinks", "segments")


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, given: dict[str, Any], **properties: Any) -> Any:
    """Runs the op with optional operands by name."""
    return apply(AttentionOp, q, k, v, *(given.get(slot) for slot in SLOTS), **properties)


def one_by_one(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    given: dict[str, Any],
    *,
    scale: float,
    mask: str = "none",
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, for rank 4 and one query and key at a time, in Python floats."""
    batch, heads, tq, _ = q.shape
    tk, group = k.shape[2], heads // k.shape[1]
    out, lse = torch.zeros(batch, heads, tq, v.shape[-1]), torch.zeros(batch, heads, tq)

    def at(name: str, b: int, i: int, otherwise: int) -> int:
        listed = given.get(name)
        return otherwise if listed is None else int(listed[i] if listed.ndim == 1 else listed[b, i])

    for b in range(batch):
        for h in range(heads):
            for t in range(tq):
                terms = []
                for s in range(tk):
                    pos_q, pos_k = at("q_positions", b, t, t + tk - tq), at("k_positions", b, s, s)
                    seen = mask == "none" or pos_k <= pos_q
                    seen &= mask != "sliding" or pos_q - pos_k < window
                    seen &= mask != "chunked" or pos_q // window == pos_k // window
                    seen &= at("segments", b, t, 0) == at("segments", b, s, 0)
                    valid = given.get("valid")
                    if valid is not None:
                        seen &= bool(valid[b, s] if valid.ndim == 2 else valid.expand(batch, heads, tq, tk)[b, h, t, s])
                    if not seen:
                        continue
                    logit = scale * float(q[b, h, t].double() @ k[b, h // group, s].double())
                    logit = softcap * math.tanh(logit / softcap) if softcap else logit
                    if given.get("bias") is not None:
                        logit += float(given["bias"].expand(batch, heads, tq, tk)[b, h, t, s])
                    terms.append((logit, v[b, h // group, s].double()))
                logits = [x for x, _ in terms] + ([float(given["sinks"][h])] if given.get("sinks") is not None else [])
                total = math.fsum(math.exp(x) for x in logits)
                lse[b, h, t] = math.log(total) if logits else -math.inf
                for x, row in terms:
                    out[b, h, t] += math.exp(x) / total * row
    return out, lse


@given(st.data())
def test_attention_is_its_definition(data: st.DataObject) -> None:
    batch, groups, group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    tq, tk = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 5))
    heads = groups * group
    q, k = torch.randn(batch, heads, tq, 3).double(), torch.randn(batch, groups, tk, 3).double()
    v = torch.randn(batch, groups, tk, 2).double()
    mask = data.draw(st.sampled_from(["none", "causal", "sliding", "chunked"]))
    properties: dict[str, Any] = {
        "scale": 0.7,
        "mask": mask,
        "window": data.draw(st.integers(1, 4)) if mask in ("sliding", "chunked") else 0,
        "softcap": data.draw(st.sampled_from([0.0, 2.0])),
    }
    present = data.draw(st.sets(st.sampled_from(SLOTS)))
    options: dict[str, torch.Tensor] = {
        "bias": torch.randn(data.draw(st.sampled_from([(tq, tk), (1, heads, 1, tk), (batch, 1, tq, tk)]))).double(),
        "valid": torch.rand(data.draw(st.sampled_from([(batch, tk), (batch, 1, tq, tk), (1, heads, 1, tk)]))) < 0.6,
        "q_positions": torch.randint(0, 6, data.draw(st.sampled_from([(tq,), (batch, tq)]))),
        "k_positions": torch.randint(0, 6, data.draw(st.sampled_from([(tk,), (batch, tk)]))),
        "sinks": torch.randn(heads).double(),
        "segments": torch.randint(0, 2, data.draw(st.sampled_from([(tq,), (batch, tq)]))),
    }
    if tq != tk:
        present -= {"segments"}
    given_options = {name: options[name] for name in present}
    out, lse = attend(q, k, v, given_options, lse=True, **properties)
    expected, expected_lse = one_by_one(q, k, v, given_options, **properties)
    torch.testing.assert_close(out.float(), expected)
    torch.testing.assert_close(lse.float(), expected_lse)
    assert torch.equal(out, attend(q, k, v, given_options, **properties))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 7, 8), (1, 1, 1, 4), (3, 2, 0, 4)])
def test_attention_is_torchs(shape: tuple[int, ...], causal: bool) -> None:
    q, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.25)
    torch.testing.assert_close(attend(q, k, v, {}, scale=0.25, mask="causal" if causal else "none"), theirs)


def test_narrow_operands_are_rounded_only_at_the_end() -> None:
    q, k, v = (torch.randn(1, 2, 9, 16).bfloat16() for _ in range(3))
    wide = attend(q.double(), k.double(), v.double(), {}, scale=0.25)
    out, lse = attend(q, k, v, {}, scale=0.25, lse=True)
    torch.testing.assert_close(out, wide.bfloat16())
    assert lse.dtype == torch.float32


def test_a_row_without_a_key_is_zero_and_its_lse_minus_infinity() -> None:
    q, k, v = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    valid = torch.zeros(1, 5, dtype=torch.bool)
    out, lse = attend(q, k, v, {"valid": valid}, scale=1.0, lse=True)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -math.inf))
    sinks = torch.tensor([0.5, -2.0])
    out, lse = attend(q, k, v, {"valid": valid, "sinks": sinks}, scale=1.0, lse=True)
    assert torch.equal(out, torch.zeros_like(out))
    torch.testing.assert_close(lse, sinks[None, :, None].expand_as(lse))


def test_a_key_no_query_sees_contributes_nothing_whatever_it_holds() -> None:
    q, k, v = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 5, 4), torch.randn(1, 1, 5, 4)
    valid = torch.tensor([[True, True, False, True, False]])
    expected = attend(q, k[:, :, valid[0]], v[:, :, valid[0]], {}, scale=1.0)
    k[:, :, 2], v[:, :, 2], v[:, :, 4] = math.nan, math.nan, math.inf
    torch.testing.assert_close(attend(q, k, v, {"valid": valid}, scale=1.0), expected)


def test_splitting_the_keys_merges_by_lse() -> None:
    q, k, v = torch.randn(1, 2, 4, 8).double(), torch.randn(1, 2, 6, 8).double(), torch.randn(1, 2, 6, 8).double()
    parts = [attend(q, k[:, :, s], v[:, :, s], {}, scale=0.3, lse=True) for s in (slice(0, 2), slice(2, 6))]
    weights = torch.stack([lse for _, lse in parts]).softmax(0)
    merged = sum(w[..., None] * out for w, (out, _) in zip(weights, parts, strict=True))
    torch.testing.assert_close(merged, attend(q, k, v, {}, scale=0.3))


def test_attention_keeps_symbols_and_counts_both_products() -> None:
    q, k = value(["b", 8, "t", 64]), value(["b", 2, "s", 64])
    op = AttentionOp.make(q, k, k, scale=0.125, lse=True)
    assert [str(r.type) for r in op.results] == ["f32[b, 8, t, 64]", "f32[b, 8, t]"]
    assert op.group == 4
    assert op.cost().at({"b": 2, "t": 3, "s": 5})["matrix"] == 2 * 8 * 3 * 5 * 128 * 2
    sizes = {"b": 2, "t": 3, "s": 5}
    run(op, torch.randn(2, 8, 3, 64), *[torch.randn(2, 2, 5, 64)] * 2, *[None] * 6, sizes=sizes)
    narrow = AttentionOp.make(*(value([1, 2, 3, 4], t) for t in (BF16,) * 3), scale=1.0, lse=True)
    assert [str(r.type) for r in narrow.results] == ["bf16[1, 2, 3, 4]", "f32[1, 2, 3]"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"q": value([4, 3, 8])}, "equal ranks"),
        ({"q": value([2, 4, 3, 8], F64)}, "one dtype"),
        ({"q": value([2, 4, 3, 9])}, "do not fit"),
        ({"q": value([3, 4, 3, 8])}, "do not fit"),
        ({"v": value([2, 2, 6, 8])}, "do not fit"),
        ({"q": value([2, 3, 3, 8])}, "3 query heads are not a fixed multiple of 2"),
        ({"mask": "sliding"}, "mask 'sliding' with window 0"),
        ({"mask": "sliding", "window": -3}, "mask 'sliding' with window -3"),
        ({"softcap": -1.0}, "softcap -1.0 is not 0 (none) or a number above it"),
        ({"softcap": float("nan")}, "softcap nan is not 0"),
        ({"mask": "causal", "window": 4}, "mask 'causal' with window 4"),
        ({"mask": "banded"}, "'banded' is not one of"),
        ({"bias": value([2, 4, 3, 6])}, "do not broadcast"),
        ({"bias": value([2, 4, 3, 5], I64)}, "bias must be floats"),
        ({"valid": value([2, 5])}, "valid must be i1"),
        ({"valid": value([5], I1)}, "rank 2 or 4"),
        ({"valid": value([2, 4], I1)}, "do not broadcast"),
        ({"q_positions": value([4], I64)}, "q_positions must be integers [3] or [2, 3]"),
        ({"k_positions": value([5])}, "k_positions must be integers"),
        ({"sinks": value([2])}, "sinks must have the dims [4]"),
        ({"segments": value([3], I64)}, "as many queries as keys, got 3 and 5"),
    ],
)
def test_attention_names_what_does_not_fit(change: dict[str, Any], says: str) -> None:
    operands = {"q": value([2, 4, 3, 8]), "k": value([2, 2, 5, 8]), "v": value([2, 2, 5, 8]), **change}
    properties = {n: operands.pop(n) for n in ("mask", "window", "softcap") if n in operands}
    slots = [operands.get(n) for n in ("q", "k", "v", *SLOTS)]
    assert says in complaint(AttentionOp, *slots, scale=1.0, **properties)


@given(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=3), st.integers(0, 4), st.data())
def test_rotary_turns_pairs(lead: list[int], half: int, data: st.DataObject) -> None:
    features = 2 * half
    x = torch.randn(*lead, features, dtype=torch.float64)
    angles = torch.randn(lead[-1], half, dtype=torch.float64)
    style = data.draw(st.sampled_from(["half", "interleaved"]))
    # as complex numbers, a pair is multiplied by e^(i angle)
    if style == "half":
        pairs, spread = torch.complex(x[..., :half], x[..., half:]), torch.cat([angles, angles], -1)
    else:
        pairs, spread = torch.complex(x[..., 0::2], x[..., 1::2]), angles.repeat_interleave(2, -1)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    if style == "half":
        expected = torch.cat([turned.real, turned.imag], -1)
    else:
        expected = torch.stack([turned.real, turned.imag], -1).reshape(x.shape)
    torch.testing.assert_close(apply(RotaryOp, x, spread.cos(), spread.sin(), style=style), expected)


def test_rotary_refusals() -> None:
    table = value([5, 8])
    assert "even, fixed last dim" in complaint(RotaryOp, value([5, 7]), value([5, 7]), value([5, 7]))
    assert "even, fixed last dim" in complaint(RotaryOp, value([5, "d"]), table, table)
    assert "even, fixed last dim" in complaint(RotaryOp, value([], F32), table, table)
    assert "sin f32[2, 5, 8] does not broadcast" in complaint(RotaryOp, value([5, 8]), table, value([2, 5, 8]))
    assert "do not broadcast" in complaint(RotaryOp, value([4, 8]), table, table)
    assert "'neox' is not one of" in complaint(RotaryOp, value([5, 8]), table, table, style="neox")

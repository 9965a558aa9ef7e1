"""Rows of attention that see no key differ from eager, and that is said; other fills are numbers as in eager."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tilewright.errors import NumericMismatchError

Mask = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
NOTE = "rows that see no key give 0, where the model's finite fill gives an average"


class Attend(torch.nn.Module):
    """Attention written out `layers` times, with its logits masked by a function of (logits, seen)."""

    def __init__(self, mask: Mask, layers: int = 1) -> None:
        super().__init__()
        self.mask, self.layers = mask, layers

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        for _ in range(self.layers):
            q = self.mask(q @ k.transpose(-1, -2) / 4, seen).softmax(-1) @ v
        return q


def filled(fill: float) -> dict[str, Mask]:
    return {
        "masked_fill": lambda x, seen: x.masked_fill(~seen, fill),
        "where": lambda x, seen: torch.where(seen, x, fill),
        "added": lambda x, seen: x + (1 - seen.float()) * fill,
    }


def drawn(rng: np.random.Generator, keys: int = 9) -> tuple[torch.Tensor, ...]:
    """q, k, v and a mask of which one row hides all keys and no other does."""
    q, k, v = (torch.from_numpy(rng.standard_normal((2, 4, n, 16)).astype(np.float32)) for n in (6, keys, keys))
    seen = torch.from_numpy(rng.random((2, 1, 6, keys)) < 0.6)
    seen[..., 0] = True
    seen[0, 0, 2] = False
    return q, k, v, seen


@pytest.mark.parametrize("how", ["masked_fill", "where", "added"])
@pytest.mark.parametrize("fill", [-1e4, -100.0])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_a_fill_that_logits_may_lie_below_gives_what_eager_gives(
    how: str, fill: float, size: float, rng: np.random.Generator
) -> None:
    model = Attend(filled(fill)[how]).eval()
    q, k, v, seen = drawn(rng)
    compiled = tw.compile(model, args=(q, k, v, seen))
    wanted = Attend(filled(fill)[how])(q.double() * size, k.double(), v.double(), seen)
    # rounding of the logits moves the exponents: eager in f32 has it, too
    eager = (model(q * size, k, v, seen) - wanted).abs().max()
    assert (compiled(q * size, k, v, seen) - wanted).abs().max() <= 1e-5 + 4 * eager
    assert not [note for note in compiled.report.to_dict()["notes"] if NOTE in note]
    if how == "added":
        assert compiled.report.to_dict()["patterns"]["attention"] == 1


def test_a_select_that_keeps_attention_from_being_found_is_told(rng: np.random.Generator) -> None:
    compiled = tw.compile(Attend(filled(-1e4)["masked_fill"]).eval(), args=drawn(rng))
    assert "attention: -10000 stands for logits that may be less; -1e9 and less hides keys" in [
        refused["reason"] for refused in compiled.report.to_dict()["refused"]
    ]


@pytest.mark.parametrize("how", ["masked_fill", "where", "added"])
@pytest.mark.parametrize("fill", [-1e9, torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min])
def test_a_fill_that_hides_is_noted_once_with_a_count(how: str, fill: float, rng: np.random.Generator) -> None:
    model = Attend(filled(fill)[how], layers=2).eval()
    q, k, v, seen = drawn(rng, keys=6)
    compiled = tw.compile(model, args=(q, k, v, seen))
    assert compiled.report.to_dict()["notes"] == [f"2 attentions: {NOTE}"]
    assert str(compiled.report).count(NOTE) == 1
    assert f"note: 2 attentions: {NOTE}\n" in str(compiled.report)
    found = compiled(q, k, v, seen)
    assert not found[0, :, 2].any()
    wanted = model.double()(q.double(), k.double(), v.double(), seen)
    others = seen.any(-1).expand(2, 4, 6)
    assert (found - wanted)[others].abs().max() < 1e-5


def test_a_mask_in_bf16_hides_with_what_its_fill_is_rounded_to(rng: np.random.Generator) -> None:
    q, k, v, seen = drawn(rng)
    args = (q.bfloat16(), k.bfloat16(), v.bfloat16(), seen)
    compiled = tw.compile(Attend(lambda x, seen: x + (~seen).to(x.dtype) * -1e9).eval(), args=args)
    assert compiled.report.to_dict()["notes"] == [f"1 attention: {NOTE}"]


def test_masks_that_leave_every_row_a_key_are_not_noted(rng: np.random.Generator) -> None:
    def causal(x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        t = x.shape[-1]
        return x.masked_fill(torch.ones(t, t).tril().logical_not(), -1e9)

    q, k, v, seen = drawn(rng, keys=6)
    compiled = tw.compile(Attend(causal).eval(), args=(q, k, v, seen))
    assert compiled.report.to_dict()["patterns"]["attention"] == 1
    assert compiled.report.to_dict()["notes"] == []
    hidden = tw.compile(Attend(filled(-math.inf)["masked_fill"]).eval(), args=(q, k, v, seen))
    assert hidden.report.to_dict()["notes"] == []


DESIGN = (
    "next: if these rows see no key: recognized attention gives 0 there, eager NaN or an average over hidden keys; to "
    'keep those, compile with passes=tw.pipeline().without("recognize"). If not: '
)


@pytest.mark.parametrize("fill", [-1e9, -math.inf])
def test_a_checked_first_call_says_what_such_rows_are(fill: float, rng: np.random.Generator) -> None:
    model = Attend(filled(fill)["masked_fill"]).eval()
    args = drawn(rng)
    compiled = tw.compile(model, args=args, check="first")
    with pytest.raises(NumericMismatchError) as raised:
        compiled(*args)
    assert "first in pass recognize: output 0 after graph.matmul: attention; off by " in str(raised.value)
    assert str(raised.value).endswith(f"{DESIGN}report it with the lines above")
    # what it advises keeps eager's numbers
    kept = tw.compile(model, args=args, check="first", passes=tw.pipeline().without("recognize"))
    assert torch.allclose(kept(*args), model(*args), atol=1e-5, equal_nan=True)


def test_passes_verified_by_numbers_say_what_such_rows_are(rng: np.random.Generator) -> None:
    q, k, v, seen = drawn(rng)
    given: dict[str, Any] = {"k": {2: "s"}, "v": {2: "s"}, "seen": {3: "s"}}
    with pytest.raises(NumericMismatchError) as raised:
        tw.compile(Attend(filled(-1e9)["masked_fill"]).eval(), args=(q, k, v, seen), dims=given, verify_each="numeric")
    assert str(raised.value).startswith("TW024 results differ: after recognize: ")
    assert f"{DESIGN}tilewright opt FILE -p 'recognize' --verify-each=numeric" in str(raised.value)

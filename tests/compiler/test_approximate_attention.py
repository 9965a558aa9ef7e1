"""Approximate attention as a user asks for it: admitted by calibration, held to its bound, exact where it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tilewright.errors import ArgumentError, OptionError, PassOptionError

EPS = 0.05
HEADS, KEY_HEADS, SIZE = 4, 2, 16


class Attend(torch.nn.Module):
    def __init__(self, *, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=True)


def call(n: int, rng: np.random.Generator, size: float = 0.3, last: float = 1.0) -> tuple[torch.Tensor, ...]:
    """q, k and v of n tokens. size: of queries and keys; last: times that of the last key head's keys."""
    q, k, v = (
        torch.from_numpy(rng.uniform(-1, 1, (1, h, n, SIZE)).astype(np.float32)) for h in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    k[:, -1] *= last
    return q * size, k * size, v


DIMS = {name: {2: tw.Dim("n", 1, 512)} for name in "qkv"}


def compiled(bounds: Any, rng: np.random.Generator, **more: Any) -> Any:
    asked = tw.ApproximateAttention(EPS, bounds, **{"crossover": 64, **more})
    return tw.compile(Attend().eval(), call(9, rng), dims=DIMS, attention=asked)


@pytest.fixture(scope="module")
def programs() -> tuple[Any, Any, Any]:
    """With approximate heads, without, and what admitted them."""
    rng = np.random.default_rng()
    bounds = tw.calibrate_attention(Attend().eval(), [call(n, rng) for n in (9, 300)], dims=DIMS)
    return compiled(bounds, rng), tw.compile(Attend().eval(), call(9, rng), dims=DIMS), bounds


def test_small_logits_are_approximated_within_eps(programs: Any, rng: np.random.Generator) -> None:
    near, exact, _ = programs
    for n in (64, 65, 200, 512):
        q, k, v = call(n, rng)
        wanted = Attend()(q.double(), k.double(), v.double())
        off = (near(q, k, v) - wanted).abs().max()
        assert off <= EPS * v.abs().max()
        assert not torch.equal(near(q, k, v), exact(q, k, v))


def test_a_call_is_exact_where_logits_or_numbers_of_keys_ask_for_it(programs: Any, rng: np.random.Generator) -> None:
    near, exact, _ = programs
    for n, size in ((63, 0.3), (1, 0.3), (64, 6.0), (300, 20.0), (300, np.nan)):
        args = call(n, rng, size)
        np.testing.assert_array_equal(near(*args).numpy(), exact(*args).numpy())


def test_of_two_key_heads_one_may_be_exact(programs: Any, rng: np.random.Generator) -> None:
    near, exact, _ = programs
    args = call(200, rng, last=30.0)
    same = (near(*args) == exact(*args)).flatten(2).all(-1)
    assert same.tolist() == [[False, False, True, True]]


def test_the_report_says_of_each_head_how_it_attends(programs: Any, rng: np.random.Generator) -> None:
    near, _, _ = programs
    notes = near.report.to_dict()["notes"]
    assert len(notes) == KEY_HEADS
    assert "heads 0 to 1 are approximate from 64 keys on: logits up to " in notes[0]
    assert "eps 0.05, 1 kernel (regime A)" in notes[1]
    assert near.report.to_dict()["patterns"] == {"polynomial-attention": 1}
    calls = [call(300, rng, last=30.0)]
    bounds = tw.calibrate_attention(Attend().eval(), calls, dims=DIMS)
    mixed = compiled(bounds, rng)
    assert mixed.report.to_dict()["patterns"] == {"polynomial-attention": 1, "attention": 1}
    reasons = [r["reason"] for r in mixed.report.to_dict()["refused"]]
    assert any(r.startswith("heads 2 to 3 are exact: logits up to ") for r in reasons)
    args = call(200, rng)
    wanted = Attend()(*(x.double() for x in args))
    assert (mixed(*args) - wanted).abs().max() <= EPS * args[2].abs().max()


def test_without_a_length_that_pays_all_heads_are_exact(programs: Any, rng: np.random.Generator) -> None:
    _, exact, bounds = programs
    program = compiled(bounds, rng, crossover=0)
    (reason,) = [r["reason"] for r in program.report.to_dict()["refused"] if "polynomial" in r["reason"]]
    assert reason.startswith("all heads are exact: a polynomial is faster from ")
    assert reason.endswith(" keys on, and there are at most 512")
    args = call(300, rng)
    assert torch.equal(program(*args), exact(*args))


def test_bounds_are_what_calls_had(programs: Any, rng: np.random.Generator, tmp_path: Path) -> None:
    q, k, v = call(30, rng)
    bounds = tw.calibrate_attention(Attend().eval(), [(q, k, v), {"q": q / 2, "k": k, "v": v}], dims=DIMS)
    assert bounds.calls == 2
    keys = k.repeat_interleave(2, 1)
    norms = q.norm(dim=-1).amax(-1)[0] * keys.norm(dim=-1).amax(-1)[0] / 4
    logits = (q @ keys.mT).abs().amax((-1, -2))[0] / 4
    assert bounds.norms[0] == pytest.approx(norms.tolist(), rel=1e-5)
    assert bounds.logits[0] == pytest.approx(logits.tolist(), rel=1e-5)
    bounds.save(tmp_path / "bounds.json")
    assert tw.AttentionBounds.load(tmp_path / "bounds.json") == bounds


def test_what_is_asked_for_wrongly_is_told(programs: Any, rng: np.random.Generator, tmp_path: Path) -> None:
    _, _, bounds = programs
    for eps in (0, -0.5, "small", float("nan")):
        with pytest.raises(OptionError) as raised:
            tw.ApproximateAttention(eps, bounds)  # type: ignore[arg-type]
        assert raised.value.problems[0].text == f"eps={eps!r} is not a number above 0"
        assert (
            raised.value.step == "write attention=tw.ApproximateAttention(0.01, tw.calibrate_attention(model, calls))"
        )
    with pytest.raises(OptionError, match=r"attention=0\.01 is not a tw\.ApproximateAttention"):
        tw.compile(Attend().eval(), call(9, rng), attention=0.01)
    with pytest.raises(OptionError, match=r"bounds is a float, not what tw\.calibrate_attention gives"):
        tw.ApproximateAttention(0.01, 3.0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="calls is no list of example calls"):
        tw.calibrate_attention(Attend().eval(), [])
    with pytest.raises(PassOptionError, match=r"approximate-attention: eps=0.0 is not above 0"):
        tw.compile(Attend().eval(), call(9, rng), passes="approximate-attention{eps=0}")
    other = tw.AttentionBounds(((0.1,),), ((0.1,),), 1)
    with pytest.raises(PassOptionError) as raised:
        tw.compile(Attend().eval(), call(9, rng), attention=tw.ApproximateAttention(0.01, other))
    assert raised.value.problems[0].text == (
        "approximate-attention: 1 bounds, and the module's 1 attentions have 4 heads"
    )
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(OptionError, match="holds no bounds of attention"):
        tw.AttentionBounds.load(tmp_path / "other.json")

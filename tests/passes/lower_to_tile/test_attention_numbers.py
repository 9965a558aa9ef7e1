"""Attention of every form, as its native kernels compute it, is float64's within rounding, and as close as torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.passes.lower_to_tile.attention_forms import Form, check, kernels, wanted

# between them most masks and operands; few features, and lengths of one variant, so that each is compiled once
FORMS = [
    Form(heads=4, groups=2, mask="causal", softcap=5.0, sinks=True, segments=True, prefix=True, size=17, value_size=19),
    Form(dtype="bf16", heads=2, mask="sliding", window=70, valid="keys", bias="heads", square=False, size=32),
    Form(heads=2, groups=2, mask="chunked", window=34, valid="pairs", bias="pairs", square=False, size=24),
    Form(dtype="bf16", heads=6, groups=2, valid="streaming", size=64),
]
MAGNITUDES = (0.0, 1.0, 30.0, 1e4)


# one key, a segment's end and one past it among them; then a part's
KEYS = st.one_of(st.integers(0, 9), st.sampled_from([1, 63, 64, 65, 130]), st.integers(1, 200))


@settings(max_examples=60, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
@given(
    st.sampled_from(FORMS),
    st.integers(1, 2),
    st.integers(17, 140),
    KEYS,
    st.sampled_from(MAGNITUDES),
    st.integers(0, 2**32),
)
def test_attention_is_float64s_within_rounding(
    form: Form, batch: int, queries: int, keys: int, magnitude: float, seed: int
) -> None:
    check(form, {"b": batch, "t": queries, "s": keys}, magnitude, np.random.default_rng(seed))


@pytest.mark.parametrize("rise", [0.1, 3.0, 5.4, 5.6, 40.0])
def test_logits_that_rise_from_segment_to_segment_keep_their_weights(rise: float, rng: np.random.Generator) -> None:
    # 16-bit weights may exceed 1 by 2**8 before a row's sums are taken relative to its new maximum: e**5.545
    form = Form(dtype="bf16", heads=2, square=False, size=32, value_size=32)
    sizes = {"b": 1, "t": int(rng.integers(17, 40)), "s": int(rng.integers(600, 700))}
    given = form.draw(sizes, 1.0, rng)
    for name in "qk":
        given[name] = torch.zeros_like(given[name])
    given["q"][..., 0] = 1 / form.scale
    given["k"][..., 0] = rise * (torch.arange(sizes["s"]) // 64)
    out, lse = kernels(form)(list(given.values()), sizes, 1)
    want, want_lse = wanted(form, given, sizes)
    assert (out - want).abs().max() <= 2**-7 * given["v"].abs().max()
    assert (lse - want_lse).abs().max() <= 2**-12 + 2**-21 * rise * sizes["s"] / 64

"""Attention of every form, as its native kernels compute it, is float64's within rounding, and as close as torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.passes.lower_to_tile.attention_forms import Form, check

# between them most masks and operands; few features, and lengths of one variant, so that each is compiled once
FORMS = [
    Form(heads=4, groups=2, mask="causal", softcap=5.0, sinks=True, segments=True, prefix=True, size=17, value_size=19),
    Form(dtype="bf16", heads=2, mask="sliding", window=70, valid="keys", bias="heads", square=False, size=32),
]
MAGNITUDES = (0.0, 1.0, 30.0, 1e4)


@st.composite
def forms(draw: Any) -> Form:
    """Any form; head dims from 16 to 576, odd ones among them."""
    groups, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3]))
    mask = draw(st.sampled_from(["none", "causal", "sliding", "chunked"]))
    square = draw(st.booleans())
    dims = st.sampled_from([16, 17, 32, 37, 64, 80, 96, 128, 129, 192, 256, 511, 576])
    size = draw(dims)
    return Form(
        dtype=draw(st.sampled_from(["f32", "bf16"])), heads=groups * group, groups=groups, size=size,
        value_size=draw(st.one_of(st.just(size), dims)), scale=draw(st.sampled_from([size**-0.5, 1.0, 0.1])),
        square=square, mask=mask, window=draw(st.integers(1, 90)) if mask in ("sliding", "chunked") else 0,
        softcap=draw(st.sampled_from([0.0, 0.0, 4.0, 50.0])),
        valid=draw(st.sampled_from(["", "", "keys", "pairs", "streaming"])),
        bias=draw(st.sampled_from(["", "", "heads", "pairs"])), sinks=draw(st.booleans()),
        prefix=mask == "causal" and draw(st.booleans()), segments=square and draw(st.booleans()),
    )  # fmt: skip


# one key, a segment's end and one past it among them; then a part's
KEYS = st.one_of(st.integers(0, 9), st.sampled_from([1, 63, 64, 65, 130]), st.integers(1, 200))
LENGTHS = st.one_of(KEYS, st.sampled_from([1023, 1024, 1025, 1100]))


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


@pytest.mark.slow
@settings(max_examples=500, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
@given(forms(), st.integers(1, 2), LENGTHS, LENGTHS, st.sampled_from(MAGNITUDES), st.integers(0, 2**32))
def test_attention_of_any_form_is_float64s_within_rounding(
    form: Form, batch: int, queries: int, keys: int, magnitude: float, seed: int
) -> None:
    check(form, {"b": batch, "t": queries, "s": keys}, magnitude, np.random.default_rng(seed))

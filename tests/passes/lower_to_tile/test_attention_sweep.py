"""Attention of every variant, as native kernels compute it, is float64's within rounding, and as close as torch's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.passes.lower_to_tile.attention_forms import Form, check
from tests.passes.lower_to_tile.paged_forms import PagedForm, check_paged, requests_of

EACH = 36  # cases of a family
LUCK = 6  # of them in which torch's own order of features may have been the better one


def both(*forms: Form) -> list[Form]:
    """The forms in f32 and in bf16."""
    return [replace(form, dtype=dtype) for form in forms for dtype in ("f32", "bf16")]


def sized(size: int, value_size: int, **stated: object) -> Form:
    """Heads of so many features, at the usual scale."""
    form = Form(size=size, value_size=value_size, scale=size**-0.5, mask="causal")
    return replace(form, **stated)  # type: ignore[arg-type]


FAMILIES: dict[str, list[Form]] = {
    "causal": [*both(sized(64, 64)), sized(128, 128, dtype="bf16"), Form(mask="causal", square=False, scale=1.0)],
    "sliding": [*both(Form(mask="sliding", window=70, size=32)), Form(mask="sliding", window=1, size=24)],
    "chunked": [*both(Form(mask="chunked", window=34, size=64)), Form(mask="chunked", window=64, square=False)],
    "prefix": both(Form(mask="causal", prefix=True, size=40, value_size=24)),
    "boolean": [*both(Form(valid="keys", size=32)), *both(Form(valid="pairs", square=False))],
    "additive": [*both(Form(bias="heads", mask="causal", heads=4)), Form(bias="pairs", square=False, valid="keys")],
    "softcap": [
        Form(softcap=5.0, size=37, heads=4, groups=2),
        Form(softcap=50.0, size=64, mask="sliding", window=40),
        Form(softcap=30.0, size=32, dtype="bf16", bias="pairs", square=False),
    ],
    "sinks": [*both(Form(sinks=True, mask="causal", size=64, heads=4)), *both(Form(valid="streaming", size=32))],
    "shared-heads": [
        *both(Form(heads=8, groups=2, size=64, mask="causal")),
        Form(heads=8, groups=1, size=24),
        Form(heads=6, groups=3, size=33, value_size=31, square=False),
    ],
    "cross": [*both(Form(square=False, size=64, value_size=64)), Form(square=False, size=80, value_size=80, heads=1)],
    "segments": both(Form(segments=True, size=32), Form(segments=True, mask="causal", size=17, value_size=19)),
    "small-heads": [
        sized(1, 1), sized(1, 5, dtype="bf16"), sized(16, 1), sized(3, 2), sized(7, 9, dtype="bf16", groups=2),
    ],
    "large-heads": [
        sized(96, 96), sized(128, 128), sized(192, 128, dtype="bf16"), sized(192, 128), sized(256, 256),
        sized(289, 77), sized(576, 512, square=False), sized(576, 512, dtype="bf16", heads=4),
    ],
}  # fmt: skip

PAGED = [
    PagedForm(size=64, value_size=64, scale=0.125),
    PagedForm(dtype="bf16", heads=8, groups=2, size=64, value_size=64, scale=0.125),
    PagedForm(mask="sliding", window=20, size=33, value_size=1, sinks=True),
    PagedForm(mask="chunked", window=30, softcap=30.0, dtype="bf16"),
    PagedForm(slopes=True, size=24, page=8),
    PagedForm(heads=16, groups=1, size=576, value_size=512, scale=0.07, latent=True),
    PagedForm(dtype="bf16", heads=16, groups=1, size=576, value_size=512, scale=0.07, latent=True),
]
MAGNITUDES = st.sampled_from([0.0, 1.0, 30.0, 1e4])
SEEDS = st.integers(0, 2**32)
# one token, a segment's end and one past it among them; of keys a part's, too
COUNTS = st.one_of(st.integers(0, 9), st.sampled_from([1, 63, 64, 65, 130]), st.integers(1, 200))
KEYS = st.one_of(COUNTS, st.sampled_from([1, 1023, 1100]))
swept = settings(
    max_examples=EACH, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate], deadline=None
)


def test_the_sweep_has_500_cases() -> None:
    assert EACH * (len(FAMILIES) + 1) >= 500


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_every_kind(family: str) -> None:
    lucky = []

    @swept
    @given(st.sampled_from(FAMILIES[family]), st.integers(1, 2), COUNTS, KEYS, MAGNITUDES, SEEDS)
    def cases(form: Form, batch: int, queries: int, keys: int, magnitude: float, seed: int) -> None:
        if not check(form, {"b": batch, "t": queries, "s": keys}, magnitude, np.random.default_rng(seed)):
            lucky.append((form, queries, keys, magnitude))

    cases()
    assert len(lucky) <= LUCK, lucky


@pytest.mark.slow
def test_attention_over_pages() -> None:
    lucky = []
    counts = st.lists(st.one_of(st.integers(0, 3), st.sampled_from([1, 17, 70])), min_size=3, max_size=3)

    @swept
    @given(st.sampled_from(PAGED), counts, counts, MAGNITUDES, SEEDS)
    def cases(form: PagedForm, news: list[int], olds: list[int], magnitude: float, seed: int) -> None:
        requests = requests_of(news, olds, form.page)
        if not check_paged(form, requests, magnitude, np.random.default_rng(seed)):
            lucky.append((form, requests, magnitude))

    cases()
    assert len(lucky) <= LUCK, lucky

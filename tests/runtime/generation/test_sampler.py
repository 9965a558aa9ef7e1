"""A sampler's distribution is the optimum of its template; draws follow it and depend on seed, request and position."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tilewright.errors import SamplerError
from tilewright.runtime.generation.choice import Choice
from tilewright.runtime.generation.distribution import Distribution, distribution, log_softmax, softmax, sparsemax
from tilewright.runtime.generation.mirror import BestOf, KLAnchor, mirror_ascent, residual
from tilewright.runtime.generation.random_numbers import Use, philox, races, uniform
from tilewright.runtime.generation.sampler import GREEDY, Sampler

Floats = np.ndarray


def entropy(q: Floats, ids: Floats) -> tuple[float, Floats]:
    logs = np.log(np.maximum(q, 1e-300))
    return float(q @ logs), logs + 1


def half_square(q: Floats, ids: Floats) -> tuple[float, Floats]:
    return float(q @ q / 2), q


def project(v: Floats) -> Floats:
    """The nearest point of the simplex, by bisection on the threshold."""
    low, high = v.min() - 1, v.max()
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - high, 0)


def of(sampler: Sampler, logits: Floats, prompt: tuple[int, ...] = ()) -> Floats:
    return Choice(sampler, prompt, len(logits)).distribution(logits.astype(np.float32)).dense(len(logits))


def objective(q: Floats, s: Floats, f: Any) -> float:
    return float(q @ s) - f(q, np.arange(len(s)))[0]


REGULARISERS = {
    "entropy": lambda v, rng: entropy,
    "half_square": lambda v, rng: half_square,
    "anchor": lambda v, rng: KLAnchor(softmax(rng.normal(size=v))),
    "best_of_1": lambda v, rng: BestOf(1),
    "best_of_4": lambda v, rng: BestOf(4, 2.0),
    "both": lambda v, rng: (
        lambda q, ids: tuple(a + b for a, b in zip(BestOf(3)(q, ids), half_square(q, ids), strict=True))
    ),
}


@pytest.mark.parametrize("name", REGULARISERS)
@pytest.mark.parametrize("size", [1, 2, 5, 8, 300])
def test_mirror_ascent_reaches_the_optimum(name: str, size: int, rng: np.random.Generator) -> None:
    f = REGULARISERS[name](size, rng)
    scores = rng.normal(size=size) * 2
    ids = np.arange(size)
    q = Distribution(ids, mirror_ascent(scores, ids, f))
    assert abs(q.probabilities.sum() - 1) < 1e-12
    assert residual(q, scores, f) < 1e-6
    for _ in range(200):
        other = rng.dirichlet(np.full(size, rng.uniform(0.05, 3)))
        assert objective(other, scores, f) <= objective(q.probabilities, scores, f) + 1e-9


@pytest.mark.parametrize("size", [2, 3, 8])
def test_mirror_ascent_agrees_with_projected_gradient(size: int, rng: np.random.Generator) -> None:
    scores = rng.normal(size=size)
    found = mirror_ascent(scores, np.arange(size), half_square)
    np.testing.assert_allclose(found, sparsemax(scores, np.arange(size)), atol=1e-7)
    np.testing.assert_allclose(found, project(scores), atol=1e-7)
    f = BestOf(3, 2.0)
    q = np.full(size, 1 / size)
    for _ in range(2000):
        q = project(q + 0.02 * (scores - f(q, np.arange(size))[1]))
    np.testing.assert_allclose(mirror_ascent(scores, np.arange(size), f), q, atol=1e-4)


def test_closed_forms_are_limits_of_mirror_ascent(rng: np.random.Generator) -> None:
    scores, ids = rng.normal(size=40) * 3, np.arange(40)
    reference = softmax(rng.normal(size=40))
    anchored = mirror_ascent(scores, ids, KLAnchor(reference))
    np.testing.assert_allclose(anchored, softmax(scores + np.log(reference)), rtol=1e-6, atol=1e-12)
    for f in (KLAnchor(np.full(40, 1 / 40)), BestOf(1, 3.0), BestOf(7, 0.0)):
        np.testing.assert_allclose(mirror_ascent(scores, ids, f), softmax(scores), rtol=1e-6, atol=1e-12)
    spread = mirror_ascent(scores, ids, BestOf(8, 4.0))
    assert spread.max() < softmax(scores).max(), "what one draw will show anyway is left to it"


def test_sparsemax_is_the_nearest_point_and_has_zeros(rng: np.random.Generator) -> None:
    for size in (1, 2, 7, 200):
        scores = rng.normal(size=size) * 3
        np.testing.assert_allclose(sparsemax(scores, np.arange(size)), project(scores), atol=1e-9)
    assert (sparsemax(np.array([3.0, 0.0, 2.9]), np.arange(3)) == 0).tolist() == [False, True, False]


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_supports_are_those_of_exhaustive_search(size: int, rng: np.random.Generator) -> None:
    logits = np.round(rng.normal(size=size), 1)  # ties happen
    t = float(rng.uniform(0.3, 2))
    p = softmax(logits / t)
    subsets = [list(s) for n in range(1, size + 1) for s in itertools.combinations(range(size), n)]
    for k in range(1, size + 1):
        best = max((s for s in subsets if len(s) == k), key=lambda s: (round(p[s].sum(), 12), [-i for i in s]))
        assert np.flatnonzero(of(Sampler(temperature=t, top_k=k), logits)).tolist() == best
    for mass in (0.05, 0.5, 0.9, 0.999):
        enough = [s for s in subsets if p[s].sum() >= mass]
        found = np.flatnonzero(of(Sampler(temperature=t, top_p=mass), logits)).tolist()
        assert len(found) == min(map(len, enough))
        assert p[found].sum() == pytest.approx(max(p[s].sum() for s in enough if len(s) == len(found)))
    for least in (0.0, 0.3, 1.0):
        kept = np.flatnonzero(of(Sampler(temperature=t, min_p=least), logits))
        assert kept.tolist() == np.flatnonzero(logits / t >= logits.max() / t + np.log(max(least, 1e-300))).tolist()


def test_a_large_vocabulary_is_narrowed_like_a_small_one(rng: np.random.Generator) -> None:
    for logits in (rng.normal(size=5000), rng.normal(size=5000) * 8, np.zeros(5000), np.round(rng.normal(size=5000))):
        p = softmax(logits)
        order = np.argsort(-p, kind="stable")
        count = int(np.searchsorted(np.cumsum(p[order]), 0.7)) + 1
        found = distribution(logits, 1.0, top_p=0.7)
        assert abs(len(found.ids) - count) <= (1 if np.ptp(logits) == 0 else 0)
        assert set(found.ids) <= set(order[: len(found.ids)])
        np.testing.assert_allclose(found.probabilities, softmax(logits[found.ids]))


def test_options_narrow_one_after_the_other() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    # 0.4 / (0.4 + 0.3 + 0.2) is below 0.5, so two are kept; without top_k one would do at top_p=0.4
    found = of(Sampler(top_k=3, top_p=0.5), logits)
    np.testing.assert_allclose(found, [4 / 7, 3 / 7, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(of(Sampler(top_p=0.4 - 1e-6), logits), [1, 0, 0, 0])


def test_limits(rng: np.random.Generator) -> None:
    logits = rng.normal(size=50)
    # clearly the best: near ties are spread over at any temperature
    logits[rng.integers(50)] += 5
    best = np.eye(50)[logits.argmax()]
    for sampler in (GREEDY, Sampler(top_k=1), Sampler(temperature=1e-9), Sampler(top_p=1e-9), Sampler(min_p=1.0)):
        np.testing.assert_allclose(of(sampler, logits), best)
    np.testing.assert_allclose(of(Sampler(temperature=1e-3, sparse=True), logits), best, atol=1e-9)
    np.testing.assert_allclose(of(Sampler(top_k=50, top_p=1.0, min_p=0.0), logits), softmax(logits), rtol=1e-5)
    np.testing.assert_allclose(of(Sampler(temperature=1e9), logits), 1 / 50, rtol=1e-6)
    assert of(GREEDY, np.zeros(5)).argmax() == 0, "the lower id among equals"


def test_penalties_and_bias_by_hand() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.5], np.float32)
    choice = Choice(Sampler(repetition_penalty=2.0), [0, 1], 4)
    np.testing.assert_allclose(choice.distribution(logits).probabilities, softmax(np.array([1.0, -4, 1, 0.5])))
    choice = Choice(Sampler(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: -1.5, 1: -np.inf}), [0, 1], 4)
    choice.accept(2)
    choice.accept(2)
    found = choice.distribution(logits)
    assert found.ids.tolist() == [0, 2, 3], "the prompt's tokens were not generated"
    np.testing.assert_allclose(found.probabilities, softmax(np.array([2.0, 1 - 0.5 - 2 * 0.25, -1.0])))


def test_a_logits_processor_sees_all_tokens_and_has_its_way() -> None:
    calls = []

    def only_last(tokens: tuple[int, ...], logits: Floats) -> Floats:
        calls.append(tokens)
        return np.where(np.arange(len(logits)) == tokens[-1], 0.0, -np.inf)

    choice = Choice(Sampler(logits_processor=only_last, seed=1), [3, 1], 5)
    assert choice.choose(np.zeros(5, np.float32)) == 1
    choice.accept(4)
    assert choice.choose(np.zeros(5, np.float32)) == 4
    assert calls == [(3, 1), (3, 1, 4)]


def test_draws_follow_the_distribution(rng: np.random.Generator) -> None:
    logits = rng.normal(size=12).astype(np.float32) * 1.5
    sampler = Sampler(top_k=9, temperature=0.8, seed=int(rng.integers(2**63)))
    expected = Choice(sampler, [], 12).distribution(logits)
    drawn = []
    for key in range(200):
        choice = Choice(sampler, [], 12, key=key)
        for _ in range(50):
            drawn.append(choice.choose(logits))
            choice.accept(drawn[-1])
    counts = np.bincount(drawn, minlength=12)[expected.ids]
    assert counts.sum() == 10_000, "nothing outside the support"
    statistic = ((counts - 10_000 * expected.probabilities) ** 2 / (10_000 * expected.probabilities)).sum()
    assert statistic < 8 + 7 * np.sqrt(2 * 8), f"chi-square {statistic} with 8 degrees of freedom"


def test_draws_are_keyed_by_seed_request_and_position_alone() -> None:
    logits = np.zeros(1000, np.float32)

    def text(seed: int, key: int = 0, prompt: tuple[int, ...] = (1,)) -> list[int]:
        choice = Choice(Sampler(seed=seed), prompt, 1000, key=key)
        found = []
        for _ in range(8):
            found.append(choice.choose(logits))
            choice.accept(found[-1])
        return found

    assert text(3) == text(3)
    assert len({tuple(t) for t in (text(3), text(4), text(3, 1), text(3, 2**40), text(2**40 + 3))}) == 5
    assert text(3, prompt=(5, 5))[:-1] == text(3, prompt=(9,))[1:], "the position counts, not the text before"


def test_the_generator_is_philox_4x32_10() -> None:
    """The vectors that its authors publish with the generator."""
    full = 0xFFFFFFFF
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((full,) * 4, (full, full)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox(pi, (0xA4093822, 0x299F31D0)) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_a_race_is_won_as_often_as_the_probabilities_say(rng: np.random.Generator) -> None:
    p = softmax(rng.normal(size=6) * 1.5)
    q = Distribution(np.arange(6), p)
    key = int(rng.integers(2**60))
    won = np.bincount([q.race(races(key, 3, i, q.ids)) for i in range(6000)], minlength=6)
    statistic = ((won - 6000 * p) ** 2 / (6000 * p)).sum()
    assert statistic < 5 + 7 * np.sqrt(10)


def test_two_distributions_that_race_with_the_same_numbers_mostly_agree(rng: np.random.Generator) -> None:
    p, q = softmax(rng.normal(size=8)), softmax(rng.normal(size=8))
    distance = np.abs(p - q).sum() / 2
    pair = [Distribution(np.arange(8), each) for each in (p, q)]
    same = [len({d.race(races(1, 2, i, d.ids)) for d in pair}) == 1 for i in range(4000)]
    assert np.mean(same) > (1 - distance) / (1 + distance) - 0.05


def test_uniform_numbers_fill_the_interval_and_uses_are_independent() -> None:
    numbers = np.array([[uniform(5, 7, i, use) for use in Use] for i in range(4000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(numbers.T) - np.eye(len(Use))).max() < 0.1


def test_a_number_at_the_very_end_never_falls_off() -> None:
    q = Distribution(np.array([2, 5, 9]), np.array([0.5, 0.5, 0.0]))
    assert [q.at(u) for u in (0.0, 0.4999, 0.5, np.nextafter(1, 0))] == [2, 2, 5, 5]
    assert [q.of(i) for i in (2, 5, 9, 3, 10)] == [0.5, 0.5, 0, 0, 0]


def test_log_probabilities_are_those_of_the_logits(rng: np.random.Generator) -> None:
    logits = (rng.normal(size=9) * 30).astype(np.float32)
    np.testing.assert_allclose(np.exp(log_softmax(logits)), softmax(logits.astype(np.float64)), rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": 0}, "top_k=0 leaves no token"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_p": -0.5}, "min_p=-0.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"presence_penalty": float("inf")}, "presence_penalty=inf"),
        ({"sparse": True, "regularizer": half_square}, "one of both"),
        ({"seed": -1}, "seed=-1"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias holds NaN"),
        ({"temperature": -1, "top_k": 0}, "2 problems"),
    ],
)
def test_options_out_of_range_are_refused_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SamplerError, match=said):
        Sampler(**options)


def test_what_cannot_be_drawn_from_is_refused() -> None:
    nothing = Sampler(logits_processor=lambda tokens, logits: logits - np.inf)
    for sampler, logits, said in (
        (nothing, np.zeros(4), "every token is excluded"),
        (Sampler(), np.array([0, np.nan]), "the largest score is nan"),
        (GREEDY, np.array([0, np.nan]), "the largest logit is nan"),
        (Sampler(logits_processor=lambda tokens, logits: logits[1:]), np.zeros(4), r"gives \[3\] for logits \[4\]"),
        (Sampler(regularizer=lambda q, ids: (0.0, q[1:])), np.zeros(4), r"a gradient \[3\] for 4 tokens"),
    ):
        with pytest.raises(SamplerError, match=said):
            of(sampler, np.asarray(logits))
    with pytest.raises(SamplerError, match="logit_bias names token 4"):
        Choice(Sampler(logit_bias={4: 1.0}), [], 4)
    with pytest.raises(SamplerError, match="best of 0"):
        BestOf(0)

"""Distributions under a regulariser of the caller's, by mirror ascent, and two regularisers worth having.

`Sampler(regularizer=f)` draws from q = argmax of <q, s / t> - f(q) over the support. f(q, ids) gives f's value and its
gradient [m] at the probabilities q [m] of the tokens ids [m]; it is convex in q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.errors import SamplerError
from tilewright.option_names import known_options
from tilewright.runtime.generation.distribution import Distribution, Float64, Ids, Regularizer

# Of the KKT conditions, in units of scores / temperature; below a probability of _ABSENT a token is off the support.
_TOLERANCE = 1e-8
_ABSENT = 1e-9
_STEPS = 20_000
_SMALLEST = 1e-300
_SHORTEST = 1e-9


def mirror_ascent(scores: Float64, ids: Ids, regularizer: Regularizer) -> Float64:
    """argmax over the simplex of F(q) = <q, scores> - f(q): probabilities [m].

    Multiplicative steps q <- q exp(eta grad F) / Z. The step length follows F's curvature relative to the entropy's,
    -<dg, dq> / <dlog q, dq>, measured along each step (relative smoothness: Bauschke, Bolte, Teboulle 2017; Lu, Freund,
    Nesterov 2018); it is read off gradients, because values of F no longer differ near the optimum. Ends where the
    gradient is level on the support and nowhere higher. Raises SamplerError where that is not reached or f gives other
    than a finite number and gradient.
    """
    logs = _normal(scores - scores.max())
    eta, uneven = 1.0, np.inf
    gradient = _gradient(scores, ids, logs, regularizer)
    for _ in range(_STEPS):
        q = np.exp(logs)
        excess = gradient - q @ gradient
        uneven = _uneven(q, excess)
        if uneven <= _TOLERANCE:
            found: Float64 = q / q.sum()
            return found
        while True:
            moved = _normal(logs + eta * excess)
            slope = _gradient(scores, ids, moved, regularizer)
            ahead = np.exp(moved) - q
            turned, entropy = -float((slope - gradient) @ ahead), float((moved - logs) @ ahead)
            if turned * eta <= entropy * (1 + 1e-9) or eta < _SHORTEST:
                break
            eta *= max(0.1, min(0.9, 0.95 * entropy / (eta * turned)))
        logs, gradient = moved, slope
        # as long as the curvature allows, but no leaps: it was measured on the way here
        eta = min(2 * eta, entropy / turned) if turned > 0 and entropy > 0 else 2 * eta
    raise SamplerError(
        f"the regularizer's optimum was not reached: the gradient is uneven by {uneven:.2g}",
        step="give a convex regularizer, with its gradient, that is finite on the simplex",
    )


def _normal(logs: Float64) -> Float64:
    """Logarithms of probabilities that add up to 1."""
    logs = logs - logs.max()
    found: Float64 = logs - np.log(np.exp(logs).sum())
    return found


def _uneven(q: Float64, excess: Float64) -> float:
    """By how much the KKT conditions fail, from the gradient less its mean."""
    return max(float(excess.max()), float(np.abs(excess[q > _ABSENT]).max()))


def _gradient(scores: Float64, ids: Ids, logs: Float64, regularizer: Regularizer) -> Float64:
    q = np.exp(logs)
    value, slope = regularizer(q, ids)
    if not np.isfinite(value) or np.shape(slope) != q.shape or not np.isfinite(slope).all():
        raise SamplerError(
            f"the regularizer gives {value} and a gradient {list(np.shape(slope))} for {len(q)} tokens",
            step="return a finite number and as many finite numbers as there are tokens",
        )
    return scores - slope


@known_options()
@dataclass(frozen=True)
class KLAnchor:
    """f(q) = KL(q | reference): as close to another distribution over the vocabulary as the scores allow.

    reference: probabilities [V], positive where the model may go. Against the uniform distribution it is the softmax.
    """

    reference: Sequence[float] | Float64

    def __call__(self, q: Float64, ids: Ids) -> tuple[float, Float64]:
        ratio = np.log(np.maximum(q, _SMALLEST)) - np.log(np.maximum(np.asarray(self.reference)[ids], _SMALLEST))
        return float(q @ ratio), ratio + 1


@known_options()
@dataclass(frozen=True)
class BestOf:
    """f(q) = -H(q) - weight sum_i (1 - (1 - q_i)^k): softmax that cares for what k draws together will have seen.

    With k = 1 the second term is constant, and q the softmax.
    """

    k: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.k < 1 or self.weight < 0:
            raise SamplerError(f"best of {self.k} with weight {self.weight}", step="give k >= 1 and a weight >= 0")

    def __call__(self, q: Float64, ids: Ids) -> tuple[float, Float64]:
        logs = np.log(np.maximum(q, _SMALLEST))
        missed = np.maximum(1 - q, 0)
        value = q @ logs - self.weight * (1 - missed**self.k).sum()
        return float(value), logs + 1 - self.weight * self.k * missed ** (self.k - 1)


def residual(q: Distribution, scores: Float64, regularizer: Regularizer) -> float:
    """How far a distribution is from the KKT conditions: the gradient level on the support, nowhere higher."""
    _, slope = regularizer(q.probabilities, q.ids)
    gradient = scores[q.ids] - slope
    return _uneven(q.probabilities, gradient - q.probabilities @ gradient)

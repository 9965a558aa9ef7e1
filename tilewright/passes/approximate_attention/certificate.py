"""How far attention with a polynomial of degree 2 in place of the exponential may be from the exact one, proved.

Logits lie in [-bound, bound] because scale |q| |k| does (Cauchy and Schwarz), which a kernel can see without a product
of queries and keys. With r(x) = p(x) / exp(x) there, and w the true weights, a result is sum(w r v) / sum(w r): it
differs from sum(w v) by the covariance of r and v under w over the mean of r, and a covariance is at most a quarter of
the product of both ranges (Gruess). v ranges over twice its largest magnitude.

Rounding: numerators and denominators are sums of products, each of at most keys + features + head dim terms and a few
factors, one after the other in f32 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Magnitudes
behind a weight add up to at most |c0| + |c1| bound + |c2| bound^2, while it is at least the least of p.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, exp, pi, sqrt
from typing import Final

UNITS: Final = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
"""Unit roundoffs of the dtypes that results may have."""

# beyond, a parabola is no exponential: its ratio to one spreads by more than values do
_LARGEST: Final = 4.0
_FACTORS: Final = 16  # roundings of a product of features beside its sums': scale, weight, coefficients, quotient


@dataclass(frozen=True, slots=True)
class Polynomial:
    """c0 + c1 x + c2 x^2 for logits of a magnitude up to `bound`."""

    bound: float
    c0: float
    c1: float
    c2: float

    def __call__(self, x: float) -> float:
        return self.c0 + x * (self.c1 + self.c2 * x)

    @staticmethod
    def of(bound: float) -> Polynomial:
        """The one that is exp where a polynomial of Chebyshev is 0: nearly the best."""
        nodes = [bound * cos((2 * i + 1) * pi / 6) for i in range(3)]
        (x, y, z), (a, b, c) = nodes, [exp(n) for n in nodes]
        first, second = (b - a) / (y - x), (c - b) / (z - y)
        c2 = (second - first) / (z - x)
        c1 = first - c2 * (x + y)
        return Polynomial(bound, a - x * (c1 + c2 * x), c1, c2)

    def _places(self, *more: float) -> list[float]:
        """Both ends, and what lies between of some places."""
        return [-self.bound, self.bound, *(x for x in more if abs(x) <= self.bound)]

    @property
    def least(self) -> float:
        """Its least value."""
        return min(self(x) for x in self._places(*([-self.c1 / (2 * self.c2)] if self.c2 else [])))

    @property
    def spread(self) -> float:
        """Half the range of its ratio to exp, over the least ratio: the largest error, in exact arithmetic and in
        largest magnitudes of v."""
        # where the ratio's derivative, (p' - p) / exp, is 0
        a, b, c = -self.c2, 2 * self.c2 - self.c1, self.c1 - self.c0
        root = b * b - 4 * a * c
        turns = [(-b + s * sqrt(root)) / (2 * a) for s in (1, -1)] if a and root >= 0 else []
        ratios = [self(x) * exp(-x) for x in self._places(*turns)]
        return (max(ratios) - min(ratios)) / (2 * min(ratios)) if min(ratios) > 0 else float("inf")

    def rounding(self, keys: int, features: int, head_dim: int) -> float:
        """The largest error by rounding of sums in f32, in largest magnitudes of v; infinite where none is proved."""
        terms = (keys + features + head_dim + _FACTORS) * UNITS["f32"]
        magnitude = abs(self.c0) + abs(self.c1) * self.bound + abs(self.c2) * self.bound**2
        if terms >= 1 or self.least <= 0:
            return float("inf")
        each = terms / (1 - terms) * magnitude / self.least
        return 2 * each / (1 - each) if each < 1 else float("inf")

    def error(self, keys: int, features: int, head_dim: int, dtype: str) -> float:
        """The largest error of a result in a dtype, in largest magnitudes of v."""
        error = self.spread + self.rounding(keys, features, head_dim)
        return error + UNITS[dtype] * (1 + error)


def largest_bound(eps: float, keys: int, features: int, head_dim: int, dtype: str) -> float:
    """The largest bound of logits whose error is at most eps; 0 where even the smallest one's is more."""
    low, high = 0.0, _LARGEST
    for _ in range(40):
        middle = (low + high) / 2
        if middle > 1e-6 and Polynomial.of(middle).error(keys, features, head_dim, dtype) <= eps:
            low = middle
        else:
            high = middle
    return low

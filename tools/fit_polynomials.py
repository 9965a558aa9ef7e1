"""Fits the polynomials of `tilewright/ir/loop_math/tables.py`: `python tools/fit_polynomials.py` prints that file.

Each fit minimises the largest weighted error of a polynomial on a dense grid of Chebyshev points, by Lawson's
iteratively reweighted least squares (C. Lawson, 1961), with targets evaluated by mpmath to 50 digits. Coefficients are
then rounded one by one from the lowest degree up, the rest being fitted again to what is left, so that the rounding of
one is made up for by the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import numpy as np
from mpmath import mpf

mpmath.mp.dps = 50
HEADER = '''"""Coefficients of `loop_math`, lowest degree first: the output of `python tools/fit_polynomials.py`."""

from __future__ import annotations

from typing import Final
'''
POINTS = 600
ROUNDS = 400

Function = Callable[[mpf], mpf]


@dataclass(frozen=True)
class Fit:
    """A table: sum of c[k] * x**k for k = 0..degree approximates target on [low, high], with errors times weight."""

    name: str
    says: str
    target: Function
    weight: Function
    low: float
    high: float
    degree: int
    single: bool = True


def _erfc_exponent(t: mpf) -> mpf:
    return mpmath.log(mpmath.erfc(t)) / t


def _root_erfc(t: mpf) -> mpf:
    return mpmath.sqrt(mpmath.erfc(t / mpmath.sqrt(2)))


HALF_LN2 = float(mpmath.log(2)) / 2 * 1.0001
LOW_ROOT, HIGH_ROOT = float(mpmath.sqrt(0.5)) - 1, float(mpmath.sqrt(2)) - 1

FITS = (
    Fit(
        "EXP",
        "exp(r) = 1 + r + r**2 * P(r), weighed for relative error in expm1(r)",
        lambda r: (mpmath.expm1(r) - r) / r**2,
        lambda r: r**2 / mpmath.expm1(r),
        -HALF_LN2,
        HALF_LN2,
        4,
    ),
    Fit(
        "EXP2",
        "2**r = 1 + r * P(r)",
        lambda r: mpmath.expm1(r * mpmath.log(2)) / r,
        lambda r: r / 2**r,
        -0.5,
        0.5,
        5,
    ),
    Fit(
        "EXP2_COARSE",
        "2**r = 1 + r * P(r), to 13 bits",
        lambda r: mpmath.expm1(r * mpmath.log(2)) / r,
        lambda r: r / 2**r,
        0.0,
        1.0,
        2,
    ),
    Fit(
        "LOG",
        "log(1 + f) = f - f**2 / 2 + f**3 * P(f)",
        lambda f: (mpmath.log1p(f) - f + f**2 / 2) / f**3,
        lambda f: f**3 / mpmath.log1p(f),
        LOW_ROOT,
        HIGH_ROOT,
        7,
    ),
    Fit(
        "LOG2_ATANH",
        "log2((1 + s) / (1 - s)) = s * P(s**2), in f64",
        lambda q: 2 * mpmath.atanh(mpmath.sqrt(q)) / mpmath.sqrt(q) / mpmath.log(2),
        lambda q: mpf(1),
        0.0,
        0.0295,
        5,
        single=False,
    ),
    Fit(
        "ERF",
        "erf(x) = x + x * P(x**2) for |x| <= 0.9375",
        lambda q: mpmath.erf(mpmath.sqrt(q)) / mpmath.sqrt(q) - 1,
        lambda q: mpmath.sqrt(q) / mpmath.erf(mpmath.sqrt(q)),
        0.0,
        0.9375**2,
        5,
    ),
    Fit(
        "ERFC_TAIL",
        "erfc(t) = exp(-t - t * P(t)) for 0.9375 <= t <= 4",
        lambda t: -1 - _erfc_exponent(t),
        lambda t: t * mpmath.erfc(t) / mpmath.erf(t),
        0.9375,
        4.0,
        5,
    ),
    Fit(
        "GELU",
        "sqrt(2 Phi(-t)) = sqrt(erfc(t / sqrt 2)) = 1 + t * P(t) for 0 <= t <= 5.8, weighed for the error in 2 Phi(-t),"
        "\n# relative above 0.2 and absolute below, where it falls on beyond",
        lambda t: (_root_erfc(t) - 1) / t,
        lambda t: 2 * t * _root_erfc(t) / max(_root_erfc(t) ** 2, mpf("0.2")),
        0.0,
        5.8,
        13,
    ),
    Fit(
        "SIN",
        "sin(r) = r + r**3 * P(r**2) for |r| <= pi / 4",
        lambda q: (mpmath.sin(mpmath.sqrt(q)) / mpmath.sqrt(q) - 1) / q,
        lambda q: q * mpmath.sqrt(q) / mpmath.sin(mpmath.sqrt(q)),
        0.0,
        float(mpmath.pi / 4 * 1.0001) ** 2,
        2,
    ),
    Fit(
        "COS",
        "cos(r) = 1 - r**2 / 2 + r**4 * P(r**2) for |r| <= pi / 4",
        lambda q: (mpmath.cos(mpmath.sqrt(q)) - 1 + q / 2) / q**2,
        lambda q: q**2 / mpmath.cos(mpmath.sqrt(q)),
        0.0,
        float(mpmath.pi / 4 * 1.0001) ** 2,
        2,
    ),
    Fit(
        "ATAN",
        "atan(t) = t + t**3 * P(t**2) for 0 <= t <= 1",
        lambda q: (mpmath.atan(mpmath.sqrt(q)) / mpmath.sqrt(q) - 1) / q,
        lambda q: q * mpmath.sqrt(q) / mpmath.atan(mpmath.sqrt(q)),
        0.0,
        1.0,
        8,
    ),
)


def lawson(x: np.ndarray, values: np.ndarray, weight: np.ndarray, degrees: list[int]) -> np.ndarray:
    """Coefficients of x**k for k in degrees that minimise the largest |weight * error|."""
    scale = np.abs(x).max()
    basis = np.stack([(x / scale) ** k for k in degrees], 1)
    importance = np.full(len(x), 1 / len(x))
    best, best_error = np.zeros(len(degrees)), np.inf
    for _ in range(ROUNDS):
        root = np.sqrt(importance) * weight
        found = np.linalg.lstsq(basis * root[:, None], values * root, rcond=None)[0]
        error = np.abs(weight * (values - basis @ found))
        if error.max() < best_error:
            best, best_error = found, error.max()
        importance *= error
        importance /= importance.sum()
    return best / scale ** np.array(degrees, float)


def fit(what: Fit) -> tuple[list[float], float]:
    """The rounded coefficients, lowest degree first, and the largest weighted error they leave."""
    angle = np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS)
    x = (what.low + what.high) / 2 + (what.high - what.low) / 2 * angle
    values = np.array([float(what.target(mpf(v))) for v in x])
    weight = np.array([abs(float(what.weight(mpf(v)))) for v in x])
    kept: list[float] = []
    left = values.copy()
    for degree in range(what.degree + 1):
        coefficient = lawson(x, left, weight, list(range(degree, what.degree + 1)))[0]
        kept.append(float(np.float32(coefficient)) if what.single else float(coefficient))
        left -= kept[-1] * x**degree
    return kept, float(np.abs(weight * left).max())


def source() -> str:
    """The module of tables as Python source."""
    lines = [HEADER]
    for what in FITS:
        coefficients, error = fit(what)
        lines += [f"# {what.says};", f"# largest weighted error {error:.1e}.", f"{what.name}: Final = ("]
        lines += [f"    {c!r}," for c in coefficients]
        lines += [")", ""]
    return "\n".join(lines[:-1]) + "\n"


def main() -> None:
    """Prints the tables as Python source."""
    sys.stdout.write(source())


if __name__ == "__main__":
    main()

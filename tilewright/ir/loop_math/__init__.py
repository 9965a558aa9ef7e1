"""Elementary functions on loop-IR values: polynomials of our own, so that no kernel calls a math library.

Every function takes a builder and f32 values of any lane count, and returns the same type. Coefficients come from
`tools/fit_polynomials.py`. Largest errors in units in the last place of the result, which the tests hold over dense
samples of the whole range on every class:

    exp, exp2 1.5   expm1 1.75   log 1   log1p 1.75   tanh 2.75   sigmoid 2.5   silu 3.5   erf 1.5   softplus 2
    sin, cos 2.25 (|x| <= 1e8)   atan2 2   pow 1.25   rsqrt 1.5   gelu 3.25, gelu_tanh 4 for x >= -1

exp2_coarse is for weights that are rounded to 16 bits: it has 13 of them.
Below -1, where the value of gelu is small beside its argument, its error is at most 5e-8 |x|, as the argument's own
rounding is multiplied by x**2 there in any formula. silu below -87 multiplies x by a subnormal.

Infinities, NaN, zeros and signs of zero are as in torch: exp(-inf) is 0, log(0) is -inf, log(-1) is NaN, sin(inf) is
NaN, silu(-inf) is NaN. Subnormal results are right, subnormal inputs count.
sin and cos stay within [-1, 1] for finite arguments, but the reduction by pi / 2 is in f64, not exact for large ones.
Absolute errors, with a fused multiply-add and (in parentheses) on classes without one: 1e-7 (1e-7) up to 1e8, 1e-7
(1e-4) up to 1e12, 1e-7 (1e-2) up to 1e14, 0.1 (0.3) up to 2e15; beyond, quadrants are not told apart and results mean
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tilewright.ir.loop_math.angles import atan2
from tilewright.ir.loop_math.division import fmod
from tilewright.ir.loop_math.exponentials import (
    erf,
    exp,
    exp2,
    exp2_coarse,
    expm1,
    gelu,
    gelu_tanh,
    sigmoid,
    silu,
    tanh,
)
from tilewright.ir.loop_math.logarithms import log, log1p, softplus
from tilewright.ir.loop_math.powers import pow, rsqrt  # noqa: A004  # the name it has in ir.scalars
from tilewright.ir.loop_math.trigonometry import cos, sin
from tilewright.ir.loops import Value

__all__ = [
    "F32_ONLY",
    "MATH",
    "atan2",
    "cos",
    "erf",
    "exp",
    "exp2",
    "exp2_coarse",
    "expm1",
    "fmod",
    "gelu",
    "gelu_tanh",
    "log",
    "log1p",
    "pow",
    "rsqrt",
    "sigmoid",
    "silu",
    "sin",
    "softplus",
    "tanh",
]

MATH: Final[dict[str, Callable[..., Value]]] = {
    "exp": exp,
    "exp2": exp2,
    "exp2_coarse": exp2_coarse,
    "expm1": expm1,
    "log": log,
    "log1p": log1p,
    "sin": sin,
    "cos": cos,
    "atan2": atan2,
    "tanh": tanh,
    "erf": erf,
    "sigmoid": sigmoid,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "softplus": softplus,
    "pow": pow,
    "rsqrt": rsqrt,
}
"""The expansions by their names in `ir.scalars`: call with a builder and the operands, all f32."""

F32_ONLY: Final = frozenset(MATH) - {"rsqrt"}
"""What a machine that takes loops does not compute in f64; 1 / sqrt(x) needs no expansion."""

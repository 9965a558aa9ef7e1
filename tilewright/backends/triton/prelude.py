"""The functions that printed kernels call where Triton's own mean something else. Each is printed only where used."""

from __future__ import annotations

import re
from typing import Final

from tilewright.backends.triton.ordering_functions import ORDERING

FUNCTIONS: Final[dict[str, str]] = {
    "floordiv": '''\
@triton.jit
def floordiv(a, b):
    """Rounds down; Triton's // rounds towards zero."""
    return a // b - tl.where((a % b != 0) & ((a % b < 0) != (b < 0)), 1, 0)''',
    "floormod": '''\
@triton.jit
def floormod(a, b):
    """With the sign of b; Triton's % has the sign of a."""
    return a % b + tl.where((a % b != 0) & ((a % b < 0) != (b < 0)), b, 0)''',
    "shifted": '''\
@triton.jit
def shifted(inside, outside, amount, bits: tl.constexpr):
    """A shift by any amount; `outside` for those that move every bit out."""
    return tl.where((amount >= 0) & (amount < bits), inside, outside)''',
    "largest": '''\
@triton.jit
def largest(x, axis: tl.constexpr):
    """The maximum along an axis; NaN where there is one."""
    some = tl.max((x != x).to(tl.int32), axis) != 0
    return tl.where(some, float("nan"), tl.max(x, axis))''',
    "smallest": '''\
@triton.jit
def smallest(x, axis: tl.constexpr):
    """The minimum along an axis; NaN where there is one."""
    some = tl.max((x != x).to(tl.int32), axis) != 0
    return tl.where(some, float("nan"), tl.min(x, axis))''',
    "multiply": """\
@triton.jit
def multiply(a, b):
    return a * b""",
    "signed": '''\
@triton.jit
def signed(size, like):
    """|size| with the sign of `like`, that of a zero included."""
    return tl.where(like.to(tl.float32).to(tl.int32, bitcast=True) < 0, -tl.abs(size), tl.abs(size))''',
    # The polynomial is that of ir/loop_math.
    "angle": '''\
@triton.jit
def angle(y, x):
    """The angle of the point (x, y) with the first axis, from -pi to pi."""
    height, width = tl.abs(y.to(tl.float32)), tl.abs(x.to(tl.float32))
    steep, left = height > width, x.to(tl.float32).to(tl.int32, bitcast=True) < 0
    low, high = tl.where(steep, width, height), tl.where(steep, height, width)
    t = tl.where(low == high, tl.where(high == 0.0, 0.0, 1.0), low / high)
    q = t * t
    p = -1.78281229455024e-3 * q + 1.0868660174310207e-2
    p = p * q - 3.1096961349248886e-2
    p = p * q + 5.788138136267662e-2
    p = p * q - 8.399306237697601e-2
    p = p * q + 1.0950880497694016e-1
    p = p * q - 1.4264015853405e-1
    p = p * q + 1.999852955341339e-1
    p = (p * q - 3.3333298563957214e-1) * q * t + t
    halves = tl.where(steep, 1.0, tl.where(left, 2.0, 0.0))
    turned = halves * 1.5707963705062866 + (halves * -4.371139000186241e-8 + tl.where(steep != left, -p, p))
    return signed(turned, y)''',
    # The polynomial is that of S. Moshier's Cephes library.
    "tanh": '''\
@triton.jit
def tanh(x):
    """Hyperbolic tangent: a polynomial near 0, where the exponential form would cancel."""
    z = x * x
    near = -5.70498872745e-3 * z + 2.06390887954e-2
    near = near * z - 5.37397155531e-2
    near = near * z + 1.33314422036e-1
    near = (near * z - 3.33332819422e-1) * z * x + x
    fade = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - fade) / (1.0 + fade)
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0, -far, far))''',
    "expm1": '''\
@triton.jit
def expm1(x):
    """exp(x) - 1 by the tangent of half of it near 0."""
    half = tanh(0.5 * x)
    return tl.where(tl.abs(x) < 1.0, 2.0 * half / (1.0 - half), tl.exp(x) - 1.0)''',
    "log1p": '''\
@triton.jit
def log1p(x):
    """log(1 + x), corrected by what 1 + x lost in rounding."""
    whole = 1.0 + x
    lost = tl.where(whole == 1.0, 1.0, whole - 1.0)
    return tl.where(whole == 1.0, x, tl.where(lost == float("inf"), x, tl.log(whole) * (x / lost)))''',
    "nearest": '''\
@triton.jit
def nearest(x, big):
    """To the nearest integer, halves to even: adding a number whose last place is 1 rounds."""
    moved = (tl.abs(x) + big) - big
    return tl.where(tl.abs(x) < big, tl.where(x < 0, -moved, moved), x)''',
    "power": '''\
@triton.jit
def power(a, b):
    """a to the power b, as C's pow; computed in f64."""
    size, by = tl.abs(a.to(tl.float64)), b.to(tl.float64)
    whole = by == tl.floor(by)
    odd = whole & (by * 0.5 != tl.floor(by * 0.5))
    found = tl.exp(by * tl.log(tl.where(size == 0.0, 1.0, size)))
    found = tl.where(size == 0.0, tl.where(by < 0, float("inf"), 0.0), tl.where(size == 1.0, 1.0, found))
    below = (a < 0) | ((a == 0) & (1.0 / a < 0))
    found = tl.where((a < 0) & ~whole & (size != float("inf")), float("nan"), tl.where(below & odd, -found, found))
    found = tl.where((a != a) | (b != b), float("nan"), found)
    return tl.where((b == 0) | (a == 1), 1.0, found).to(a.dtype)''',
    "larger": """\
@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)""",
    "smaller": """\
@triton.jit
def smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)""",
    "affine": '''\
@triton.jit
def affine(a, b, c, d):
    """x -> a x + b and then x -> c x + d, as one step."""
    return a * c, c * b + d''',
    **ORDERING,
}


def called(text: str) -> set[str]:
    """The names of the functions that an expression calls."""
    return {name for name in re.findall(r"(?<![\w.])(\w+)\(", text) if name in FUNCTIONS}


def texts(used: set[str]) -> list[str]:
    """The source of functions and of what they call, each before its users."""
    wanted, new = set(used), set(used)
    while new:
        new = {found for name in new for found in called(FUNCTIONS[name])} - wanted
        wanted |= new
    return [text for name, text in FUNCTIONS.items() if name in wanted]

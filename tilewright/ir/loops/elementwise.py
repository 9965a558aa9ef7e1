"""The elementwise ops of the loop IR on NumPy arrays: the reference that printers are compared with.

Every value is a 1-D array with one entry a lane, in the storage type of its dtype; bf16 travels as its bits in uint16.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy as np

from tilewright.ir.dtypes import BF16, DType
from tilewright.ir.loops.ops import BinaryKind, Predicate, UnaryKind
from tilewright.ir.loops.values import rounded

Lanes: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def storage(dtype: DType) -> np.dtype[Any]:
    """The NumPy type that holds an element: its own, but uint16 for bf16."""
    return np.dtype(np.uint16) if dtype is BF16 else dtype.numpy()


def splat(value: float, dtype: DType, lanes: int) -> Lanes:
    """A constant in every lane."""
    if dtype is BF16:
        return cast(np.full(lanes, value, np.float32), None, BF16)
    return np.full(lanes, rounded(value, dtype), storage(dtype))


# --- arithmetic -----------------------------------------------------------------------------------------------------


def _fraction(a: Lanes) -> Lanes:
    whole = np.floor(a)
    rest = a - whole
    # below 1 only what a small negative number leaves is inexact: it lies above 1/2
    result: Lanes = np.where(rest + whole > a, rest - a.dtype.type(2.0**-24), rest)
    return result


UNARY: Final[dict[UnaryKind, Callable[[Lanes], Lanes]]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.rint,
    "fraction": _fraction,
    "not": np.invert,
}


def _plain_min(a: Lanes, b: Lanes) -> Lanes:
    return np.where(a < b, a, b)


def _plain_max(a: Lanes, b: Lanes) -> Lanes:
    return np.where(a > b, a, b)


def _unsigned_shift(a: Lanes, b: Lanes) -> Lanes:
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    return np.asarray(np.right_shift(a.view(unsigned), b.view(unsigned))).view(a.dtype)


def _scale(a: Lanes, b: Lanes) -> Lanes:
    result: Lanes = np.ldexp(a, np.clip(np.nan_to_num(b), -300, 300).astype(np.int32))
    return result


BINARY: Final[dict[BinaryKind, Callable[[Lanes, Lanes], Lanes]]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "truncdiv": lambda a, b: (a - np.fmod(a, b)) // b,
    "truncmod": np.fmod,
    "min": _plain_min,
    "max": _plain_max,
    "minimum": lambda a, b: np.where(np.isnan(a), a, _plain_min(a, b)),
    "maximum": lambda a, b: np.where(np.isnan(a), a, _plain_max(a, b)),
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "ushr": _unsigned_shift,
    "scale": _scale,
}

COMPARE: Final[dict[Predicate, Callable[[Lanes, Lanes], Lanes]]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def fma(a: Lanes, b: Lanes, c: Lanes, *, fused: bool) -> Lanes:
    """a * b + c with one rounding, or with two where the machine class has no fused form."""
    if not fused:
        return a * b + c
    if a.dtype == np.float64:
        return np.array([_fma64(float(x), float(y), float(z)) for x, y, z in zip(a, b, c, strict=True)])
    # The product of two f32 is exact in f64. Rounding the f64 sum to odd (Boldo and Melquiond, "Emulation of FMA and
    # correctly rounded sums", 2008) makes the second rounding to f32 the only one that counts.
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + addend
    # It decides only where the f64 sum lies half-way between two f32: the 29 bits that f32 lacks are then 1000..., or
    # any, where f32 has fewer bits than usual.
    halfway = (total.view(np.int64) & 0x1FFFFFFF == 0x10000000) | ((np.abs(total) < 2.0**-126) & (total != 0))
    if not halfway.any():
        return total.astype(np.float32)
    back = total - product
    error = (product - (total - back)) + (addend - back)
    inexact = np.isfinite(total) & (error != 0) & (total.view(np.int64) & 1 == 0)
    nudged = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(inexact, nudged, total).astype(np.float32)


def _fma64(a: float, b: float, c: float) -> float:
    plain = a * b + c
    if not all(map(np.isfinite, (a, b, c))):
        return plain
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return plain if c == 0 else 0.0
    try:
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


# --- conversions ----------------------------------------------------------------------------------------------------


def widen_bf16(bits: Lanes) -> Lanes:
    """bf16 bits as f32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow_bf16(values: Lanes) -> Lanes:
    """f32 as bf16 bits, to nearest even; every NaN is 0x7fc0."""
    bits = values.view(np.uint32).astype(np.uint64)
    halves = (bits + np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(values), 0x7FC0, halves).astype(np.uint16)


def cast(values: Lanes, source: DType | None, target: DType) -> Lanes:
    """`Cast` of the loop IR; `source` matters only when it is bf16."""
    if source is BF16:
        values = widen_bf16(values)
    if target is BF16 or target.name == "f16":
        narrow = values.astype(np.float32)
        return narrow_bf16(narrow) if target is BF16 else narrow.astype(np.float16)
    if target.kind == "bool":
        return np.not_equal(values, 0)
    if target.is_integer and values.dtype.kind == "f":
        wide = np.int64 if target.bits == 64 else np.int32
        least = np.iinfo(wide).min
        inside = (values >= least) & (values < -float(least))
        whole = np.where(inside, values, 0).astype(wide)
        return np.where(inside, whole, least).astype(storage(target))
    return values.astype(storage(target))


def bitcast(values: Lanes, target: DType) -> Lanes:
    """The same bytes as lanes of another dtype."""
    return np.ascontiguousarray(values).view(storage(target))

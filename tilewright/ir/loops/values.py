"""What a loop-IR value is: its type, and the values that no op makes (constants, dims, thread numbers, arguments)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tilewright.ir.dtypes import BF16, DTYPES, F16, F32, I1, I64, DType
from tilewright.ir.loops.numerics import round_to_bf16


@dataclass(frozen=True, slots=True, eq=False)
class ValueType:
    """`lanes` elements of `dtype`; one lane is a scalar.

    Types are interned: get one with `vec`, `scalar` or `mask` and compare with `is`.
    """

    dtype: DType
    lanes: int

    @property
    def bits(self) -> int:
        return self.dtype.bits * self.lanes

    def __str__(self) -> str:
        return self.dtype.name if self.lanes == 1 else f"{self.dtype.name}x{self.lanes}"

    def __reduce__(self) -> tuple[object, ...]:
        return (vec, (self.dtype, self.lanes))


_INTERNED: dict[tuple[str, int], ValueType] = {}


def vec(dtype: DType, lanes: int) -> ValueType:
    """The type of `lanes` elements of `dtype` (lanes 1: a scalar)."""
    key = (dtype.name, lanes)
    found = _INTERNED.get(key)
    if found is None:
        found = _INTERNED.setdefault(key, ValueType(DTYPES[dtype.name], lanes))
    return found


def scalar(dtype: DType) -> ValueType:
    """The type of one element."""
    return vec(dtype, 1)


def mask(lanes: int) -> ValueType:
    """The type of a predicate per lane; `mask(1)` is what `If` and a scalar select take."""
    return vec(I1, lanes)


INDEX = scalar(I64)  # offsets, extents and loop counters are plain i64 scalars
BOOL = scalar(I1)


@dataclass(slots=True, eq=False)
class Value:
    """A typed SSA value; compared by identity."""

    type: ValueType


@dataclass(slots=True, eq=False)
class Const(Value):
    """The same number in every lane, already rounded to the dtype. Belongs to no block."""

    value: int | float


@dataclass(slots=True, eq=False)
class VectorConst(Value):
    """A number per lane (iota, permutation tables). Belongs to no block."""

    values: tuple[int | float, ...]


@dataclass(slots=True, eq=False)
class DimValue(Value):
    """The run-time size of a formal dim of the kernel."""

    name: str


@dataclass(slots=True, eq=False)
class ThreadId(Value):
    """This thread's number, 0 <= tid < nthreads."""


@dataclass(slots=True, eq=False)
class ThreadCount(Value):
    """How many threads run the kernel together, at least 1."""


@dataclass(slots=True, eq=False)
class Argument(Value):
    """A loop's counter or a carried value, inside the body. divisor: of an integer, a number that divides it."""

    hint: str
    divisor: int = 1


@dataclass(slots=True, eq=False)
class Result(Value):
    """What a `For` or an `If` leaves behind, outside its body."""

    hint: str


LEAVES = (Const, VectorConst, DimValue, ThreadId, ThreadCount)


def rounded(value: int | float, dtype: DType) -> int | float:
    """`value` as an element of `dtype`: floats rounded to nearest even, integers wrapped."""
    if dtype.is_float:
        value = float(value)
        if value != value or value in (float("inf"), float("-inf")):
            return value
        if dtype is F32:
            return _through("<f", value)
        if dtype is F16:
            return _through("<e", value)
        if dtype is BF16:
            return round_to_bf16(value)
        return value
    if dtype is I1:
        return 1 if value else 0
    value = int(value) & ((1 << dtype.bits) - 1)
    if dtype.kind == "int" and value >> (dtype.bits - 1):
        value -= 1 << dtype.bits
    return value


def _through(form: str, value: float) -> float:
    try:
        return float(struct.unpack(form, struct.pack(form, value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")

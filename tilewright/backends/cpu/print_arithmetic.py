"""Elementwise ops and lane moves of the loop IR as arith, vector and llvm-intrinsic lines.

Each function takes operand names, so that casts, reductions and emulations can call them too.
"""

from __future__ import annotations

from typing import Final

from tilewright.backends.cpu.emitter import Emitter, type_text
from tilewright.ir.dtypes import F32, I1, I16, I32
from tilewright.ir.loops import BinaryKind, Predicate, ReduceKind, UnaryKind, ValueType, scalar, vec

_FLOAT: Final[dict[str, str]] = {"add": "addf", "sub": "subf", "mul": "mulf", "div": "divf"}
_INTEGER: Final[dict[str, str]] = {
    "add": "addi", "sub": "subi", "mul": "muli", "and": "andi", "or": "ori", "xor": "xori",
    "shl": "shli", "shr": "shrsi", "ushr": "shrui", "truncdiv": "divsi", "truncmod": "remsi",
    "min": "minsi", "max": "maxsi",
}  # fmt: skip
_UNSIGNED: Final[dict[str, str]] = {
    **_INTEGER, "shr": "shrui", "truncdiv": "divui", "truncmod": "remui", "floordiv": "divui", "mod": "remui",
    "min": "minui", "max": "maxui",
}  # fmt: skip
_INTRINSIC: Final[dict[str, str]] = {
    "abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "roundeven",
}  # fmt: skip

_CURRENT_ROUNDING: Final = 4  # "as the control register says" in the intrinsic's operand


def binary(e: Emitter, kind: BinaryKind | ReduceKind, type_: ValueType, a: str, b: str) -> str:
    """One two-operand op."""
    typed, dtype = type_text(type_), type_.dtype
    if kind == "scale":
        return _scale(e, type_, a, b)
    if dtype.is_float:
        direct = _FLOAT.get(kind)
        if direct is not None:
            return e.emit(f"arith.{direct} {a}, {b} : {typed}")
        order = "olt" if kind in ("min", "minimum") else "ogt"
        before = e.emit(f"arith.cmpf {order}, {a}, {b} : {typed}")
        plain = select(e, before, type_, a, b)
        if kind in ("min", "max"):
            return plain
        nan = e.emit(f"arith.cmpf uno, {a}, {a} : {typed}")
        return select(e, nan, type_, a, plain)
    direct = (_UNSIGNED if dtype.kind == "uint" else _INTEGER).get(kind)
    if direct is not None:
        return e.emit(f"arith.{direct} {a}, {b} : {typed}")
    # Floor division from C's: where the remainder is not zero and its sign differs from the divisor's, one step down.
    zero = e.constant(0, dtype, type_.lanes)
    remainder = e.emit(f"arith.remsi {a}, {b} : {typed}")
    signs = e.emit(f"arith.xori {remainder}, {b} : {typed}")
    differ = e.emit(f"arith.cmpi slt, {signs}, {zero} : {typed}")
    some = e.emit(f"arith.cmpi ne, {remainder}, {zero} : {typed}")
    down = e.emit(f"arith.andi {differ}, {some} : {type_text(vec(I1, type_.lanes))}")
    if kind == "mod":
        up = e.emit(f"arith.addi {remainder}, {b} : {typed}")
        return select(e, down, type_, up, remainder)
    quotient = e.emit(f"arith.divsi {a}, {b} : {typed}")
    lower = e.emit(f"arith.subi {quotient}, {e.constant(1, dtype, type_.lanes)} : {typed}")
    return select(e, down, type_, lower, quotient)


def scales_by_floor(e: Emitter, type_: ValueType) -> bool:
    """Whether the machine's a * 2**b rounds b down by itself."""
    return e.cpu.scaling and type_.lanes == e.cpu.lanes


def _scale(e: Emitter, type_: ValueType, a: str, b: str) -> str:
    """a * 2**b, in one instruction or in two factors that are neither subnormal nor infinite.

    The factors' exponent fields are the halves of b + 254, which a sum brings into the low bits of a float.
    """
    typed, lanes = type_text(type_), type_.lanes
    if scales_by_floor(e, type_):
        all_lanes, nearest = e.constant(-1, I16), e.constant(_CURRENT_ROUNDING, I32)
        return e.emit(
            f'llvm.call_intrinsic "llvm.x86.avx512.mask.scalef.ps.512"({a}, {b}, {a}, {all_lanes}, {nearest}) : '
            f"({typed}, {typed}, {typed}, i16, i32) -> {typed}"
        )
    whole = scalar(I32) if lanes == 1 else vec(I32, lanes)
    sum_ = binary(e, "add", type_, b, e.constant(1.5 * 2.0**23 + 254, F32, lanes))
    bits = bitcast(e, type_, whole, sum_)
    half = binary(e, "shl", whole, bits, e.constant(22, I32, lanes))
    half = binary(e, "and", whole, half, e.constant(-(1 << 23), I32, lanes))
    rest = binary(e, "sub", whole, binary(e, "shl", whole, bits, e.constant(23, I32, lanes)), half)
    first = binary(e, "mul", type_, a, bitcast(e, whole, type_, half))
    return binary(e, "mul", type_, first, bitcast(e, whole, type_, rest))


def divide_by_constant(e: Emitter, kind: BinaryKind, type_: ValueType, a: str, divisor: int) -> str | None:
    """floordiv and mod by a positive power of two as a shift and a mask; None for other divisors."""
    if divisor <= 0 or divisor & (divisor - 1) or kind not in ("floordiv", "mod"):
        return None
    if kind == "mod":
        return binary(e, "and", type_, a, e.constant(divisor - 1, type_.dtype, type_.lanes))
    return binary(e, "shr", type_, a, e.constant(divisor.bit_length() - 1, type_.dtype, type_.lanes))


def unary(e: Emitter, kind: UnaryKind, type_: ValueType, a: str) -> str:
    """One one-operand op."""
    typed, dtype, lanes = type_text(type_), type_.dtype, type_.lanes
    if kind == "not":
        ones = e.constant(1 if dtype is I1 else -1, dtype, lanes)
        return e.emit(f"arith.xori {a}, {ones} : {typed}")
    if not dtype.is_float:
        negated = e.emit(f"arith.subi {e.constant(0, dtype, lanes)}, {a} : {typed}")
        if kind == "neg" or dtype.kind == "uint":
            return negated if kind == "neg" else a
        return e.emit(f"arith.maxsi {a}, {negated} : {typed}")
    if kind == "neg":
        return e.emit(f"arith.negf {a} : {typed}")
    if kind == "fraction":
        return _fraction(e, type_, a)
    if kind in ("floor", "ceil", "trunc", "round") and not e.cpu.rounding:
        return _round_by_addition(e, kind, type_, a)
    return e.emit(f"llvm.intr.{_INTRINSIC[kind]}({a}) : ({typed}) -> {typed}")


def _fraction(e: Emitter, type_: ValueType, a: str) -> str:
    """a - floor(a) rounded down, in one instruction, or rounded to nearest and corrected: what a small negative number
    leaves lies above 1/2, all else is exact."""
    if scales_by_floor(e, type_):
        typed, all_lanes = type_text(type_), e.constant(-1, I16)
        # no bits behind the point are kept, rounded down
        down, nearest = e.constant(1, I32), e.constant(_CURRENT_ROUNDING, I32)
        return e.emit(
            f'llvm.call_intrinsic "llvm.x86.avx512.mask.reduce.ps.512"({a}, {down}, {a}, {all_lanes}, {nearest}) : '
            f"({typed}, i32, {typed}, i16, i32) -> {typed}"
        )
    whole = unary(e, "floor", type_, a)
    rest = binary(e, "sub", type_, a, whole)
    above = compare(e, "gt", type_, binary(e, "add", type_, rest, whole), a)
    return select(e, above, type_, binary(e, "sub", type_, rest, e.constant(2.0**-24, F32, type_.lanes)), rest)


def _round_by_addition(e: Emitter, kind: UnaryKind, type_: ValueType, a: str) -> str:
    """Rounding where the machine has no instruction for it (LLVM would call libm).

    Adding and subtracting 2**(mantissa bits) rounds |a| to an integer, halves to even; larger |a| are integers.
    """
    typed, dtype, lanes = type_text(type_), type_.dtype, type_.lanes
    big = e.constant(2.0**23 if dtype is F32 else 2.0**52, dtype, lanes)
    magnitude = e.emit(f"llvm.intr.fabs({a}) : ({typed}) -> {typed}")
    nearest = e.emit(f"arith.subf {binary(e, 'add', type_, magnitude, big)}, {big} : {typed}")
    if kind == "trunc":
        nearest = _step_back(e, type_, nearest, "ogt", magnitude, 1.0)
    nearest = e.emit(f"llvm.intr.copysign({nearest}, {a}) : ({typed}, {typed}) -> {typed}")
    if kind == "floor":
        nearest = _step_back(e, type_, nearest, "ogt", a, 1.0)
    elif kind == "ceil":
        nearest = _step_back(e, type_, nearest, "olt", a, -1.0)
        nearest = e.emit(f"llvm.intr.copysign({nearest}, {a}) : ({typed}, {typed}) -> {typed}")
    small = e.emit(f"arith.cmpf olt, {magnitude}, {big} : {typed}")
    return select(e, small, type_, nearest, a)


def _step_back(e: Emitter, type_: ValueType, value: str, order: str, limit: str, step: float) -> str:
    """value - step where value <order> limit, else value."""
    beyond = e.emit(f"arith.cmpf {order}, {value}, {limit} : {type_text(type_)}")
    return select(e, beyond, type_, binary(e, "sub", type_, value, e.constant(step, type_.dtype, type_.lanes)), value)


def fma(e: Emitter, type_: ValueType, a: str, b: str, c: str) -> str:
    """One fused instruction, or a product and a sum on the generic class."""
    typed = type_text(type_)
    if e.cpu.fma:
        return e.emit(f"llvm.intr.fma({a}, {b}, {c}) : ({typed}, {typed}, {typed}) -> {typed}")
    return binary(e, "add", type_, binary(e, "mul", type_, a, b), c)


def compare(e: Emitter, predicate: Predicate, type_: ValueType, a: str, b: str) -> str:
    """A mask of a <predicate> b, operands of `type_`."""
    if type_.dtype.is_float:
        ordered = "une" if predicate == "ne" else f"o{predicate}"
        return e.emit(f"arith.cmpf {ordered}, {a}, {b} : {type_text(type_)}")
    sign = "" if predicate in ("eq", "ne") else ("s" if type_.dtype.kind == "int" else "u")
    return e.emit(f"arith.cmpi {sign}{predicate}, {a}, {b} : {type_text(type_)}")


def select(e: Emitter, condition: str, type_: ValueType, a: str, b: str, condition_lanes: int | None = None) -> str:
    """`a` where set; the condition has as many lanes as the values unless told otherwise."""
    lanes = type_.lanes if condition_lanes is None else condition_lanes
    if lanes == 1:
        return e.emit(f"arith.select {condition}, {a}, {b} : {type_text(type_)}")
    return e.emit(f"arith.select {condition}, {a}, {b} : {type_text(vec(I1, lanes))}, {type_text(type_)}")


def broadcast(e: Emitter, type_: ValueType, a: str) -> str:
    """A scalar in every lane of `type_`."""
    return e.emit(f"vector.broadcast {a} : {type_text(scalar(type_.dtype))} to {type_text(type_)}")


def extract(e: Emitter, type_: ValueType, a: str, lane: int) -> str:
    """One lane of a vector of `type_`."""
    return e.emit(f"vector.extract {a}[{lane}] : {type_text(scalar(type_.dtype))} from {type_text(type_)}")


def shuffle(e: Emitter, operand: ValueType, a: str, b: str, indices: tuple[int, ...]) -> str:
    """Lanes of a ++ b by constant number; operands of type `operand`."""
    if operand.lanes == 1:
        single = f"vector<1x{type_text(operand)}>"
        a, b = (e.emit(f"vector.broadcast {x} : {type_text(operand)} to {single}") for x in (a, b))
        typed = single
    else:
        typed = type_text(operand)
    if len(indices) == 1:
        lane = indices[0]
        source, lane = (a, lane) if lane < operand.lanes else (b, lane - operand.lanes)
        return e.emit(f"vector.extract {source}[{lane}] : {type_text(scalar(operand.dtype))} from {typed}")
    return e.emit(f"vector.shuffle {a}, {b} {list(indices)} : {typed}, {typed}")


def reduce(e: Emitter, kind: ReduceKind, type_: ValueType, a: str) -> str:
    """The fixed tree: upper half onto lower half until one lane is left."""
    while type_.lanes > 1:
        half = type_.lanes // 2
        low = shuffle(e, type_, a, a, tuple(range(half)))
        high = shuffle(e, type_, a, a, tuple(range(half, 2 * half)))
        type_ = vec(type_.dtype, half)
        a = binary(e, kind, type_, low, high)
    return a


def bitcast(e: Emitter, source: ValueType, target: ValueType, a: str) -> str:
    """The same bits as another type; nothing where the register type is one."""
    if type_text(source) == type_text(target):
        return a
    return e.emit(f"llvm.bitcast {a} : {type_text(source)} to {type_text(target)}")

"""Algebra on index expressions at build time, so that the printed code stays small.

`fold_binary` and its kin return the value an op would have, as a known Value or a Python number, or None where the op
is needed. Only integer and mask identities are used: they hold for every bit pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

from tilewright.ir.loops.ops import Binary, BinaryKind, Predicate, Select
from tilewright.ir.loops.values import Argument, Const, Value, rounded

COMMUTATIVE = frozenset({"add", "mul", "and", "or", "xor", "min", "max"})

_EVALUATE: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "truncdiv": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    "truncmod": lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1),
    "min": min,
    "max": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
}

_COMPARE: dict[Predicate, Callable[[int | float, int | float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
_REFLEXIVE: dict[Predicate, bool] = {"eq": True, "le": True, "ge": True, "ne": False, "lt": False, "gt": False}


def fold_binary(kind: BinaryKind, a: Value, b: Value) -> Value | int | None:
    """The result of an integer or mask op where it needs no code. A constant operand stands on the right."""
    dtype = a.type.dtype
    if dtype.is_float:
        return None
    if isinstance(b, Const):
        c = int(b.value)
        if isinstance(a, Const):
            evaluate = _EVALUATE.get(kind)
            if evaluate is None or (c == 0 and kind in ("floordiv", "mod", "truncdiv", "truncmod")):
                return None
            return int(rounded(evaluate(int(a.value), c), dtype))
        ones = 1 if dtype.kind == "bool" else rounded(-1, dtype)
        match kind:
            case "add" | "sub" | "or" | "xor" | "shl" | "shr" | "ushr" if c == 0:
                return a
            case "mul" | "floordiv" | "truncdiv" if c == 1:
                return a
            case "and" if c == ones:
                return a
            case "mul" | "and" if c == 0:
                return 0
            case "mod" | "truncmod" if c == 1:
                return 0
            case "or" if c == ones:
                return int(ones)
    if a is b:
        match kind:
            case "sub" | "xor":
                return 0
            case "and" | "or" | "min" | "max":
                return a
    return None


_DEPTH = 8  # ops that `divisor` looks through


def divisor(value: Value, depth: int = _DEPTH) -> int:
    """A number that divides an index: 0 for 0, 1 where nothing is known."""
    match value:
        case Const(value=number):
            return abs(int(number))
        case Argument(divisor=known):
            return known
        case Binary() if depth:
            return _divisor_of(value, depth - 1)
        case Select(a=a, b=b) if depth:
            return gcd(divisor(a, depth - 1), divisor(b, depth - 1))
    return 1


def _divisor_of(op: Binary, depth: int) -> int:
    match op.kind:
        case "add" | "sub" | "min" | "max":
            left = divisor(op.a, depth)
            return left if left == 1 else gcd(left, divisor(op.b, depth))
        case "mul":
            return divisor(op.a, depth) * divisor(op.b, depth)
        case "floordiv" if isinstance(op.b, Const) and op.b.value:
            found, by = divisor(op.a, depth), abs(int(op.b.value))
            return found // by if found % by == 0 else 1
    return 1


def split(value: Value) -> tuple[Value, int]:
    """x + 3 as (x, 3)."""
    if isinstance(value, Binary) and value.kind == "add" and isinstance(value.b, Const):
        return value.a, int(value.b.value)
    return value, 0


def beyond_multiple(a: Value, by: int) -> tuple[Value, int, int] | None:
    """An index a = x + m + r, as (x, m, r), where x + m is a multiple of some divisor of `by` larger than r >= 0.

    So a and x + m lie between the same two multiples of `by`: a // by == (x + m) // by. None where r would be 0.
    """
    base, more = split(a)
    shared = gcd(divisor(base), by)
    rest = more % shared if shared else more
    return (base, more - rest, rest) if rest else None


def reassociate(kind: BinaryKind, a: Value, b: Value) -> tuple[Value, int] | None:
    """(x + 3) + 4 as (x, 7), and the same for mul: wrapping integers are a ring."""
    if not (isinstance(a, Binary) and a.kind == kind and a.type.dtype.is_integer and kind in ("add", "mul")):
        return None
    if isinstance(a.b, Const) and isinstance(b, Const):
        inner, outer = int(a.b.value), int(b.value)
        return a.a, inner + outer if kind == "add" else inner * outer
    return None


def fold_compare(predicate: Predicate, a: Value, b: Value) -> bool | None:
    """The truth of a comparison known at build time."""
    if isinstance(a, Const) and isinstance(b, Const):
        return _COMPARE[predicate](a.value, b.value)
    if a is b and not a.type.dtype.is_float:
        return _REFLEXIVE[predicate]
    return None

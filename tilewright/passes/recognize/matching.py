"""Matching arithmetic whatever its order: an expression over chosen values as a polynomial with bound coefficients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from xdsl.ir import SSAValue

from tilewright.ir.dtypes import DType
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.passes.rewriting import defined, mapped, near, splat

Powers: TypeAlias = tuple[int, ...]  # an exponent for each atom
Polynomial: TypeAlias = dict[Powers, float]

MAX_TERMS = 32  # what grows beyond this is no pattern


def polynomial(value: SSAValue, atoms: Sequence[SSAValue]) -> Polynomial | None:
    """The value as a polynomial in the atoms, by + - * and division by numbers; None if it is not one."""
    for i, atom in enumerate(atoms):
        if value is atom:
            return {tuple(int(i == j) for j in range(len(atoms))): 1.0}
    number = splat(value)
    if number is not None:
        return {(0,) * len(atoms): float(number)}
    op = defined(value, MapOp)
    if op is None or op.fn.data not in ("add", "sub", "mul", "div", "neg"):
        return None
    parts = [polynomial(a, atoms) for a in op.args]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts):
        return None
    match op.fn.data:
        case "neg":
            return _scaled(known[0], -1.0)
        case "add":
            return _sum(known[0], known[1])
        case "sub":
            return _sum(known[0], _scaled(known[1], -1.0))
        case "mul":
            return _product(known[0], known[1])
        case _:
            divisor = splat(op.args[1])
            return _scaled(known[0], 1.0 / divisor) if divisor else None


def _scaled(p: Polynomial, factor: float) -> Polynomial:
    return {powers: c * factor for powers, c in p.items()}


def _sum(p: Polynomial, q: Polynomial) -> Polynomial:
    total = dict(p)
    for powers, c in q.items():
        total[powers] = total.get(powers, 0.0) + c
    return {powers: c for powers, c in total.items() if c}


def _product(p: Polynomial, q: Polynomial) -> Polynomial | None:
    if len(p) * len(q) > MAX_TERMS:
        return None
    total: Polynomial = {}
    for a, ca in p.items():
        for b, cb in q.items():
            powers = tuple(i + j for i, j in zip(a, b, strict=True))
            total[powers] = total.get(powers, 0.0) + ca * cb
    return {powers: c for powers, c in total.items() if c}


def is_polynomial(found: Polynomial | None, wanted: Polynomial, dtype: DType) -> bool:
    """The same powers with coefficients that are the wanted ones up to the dtype's rounding."""
    return found is not None and found.keys() == wanted.keys() and all(near(found[p], wanted[p], dtype) for p in wanted)


def leaves(value: SSAValue, depth: int = 6) -> Iterator[SSAValue]:
    """The values in an arithmetic expression, itself first: candidates for what it is an expression of."""
    if splat(value) is not None:
        return
    yield value
    op = defined(value, MapOp)
    if op is not None and depth and op.fn.data in ("add", "sub", "mul", "div", "neg"):
        for arg in op.args:
            yield from leaves(arg, depth - 1)


def within(value: SSAValue, fn: str, depth: int = 4) -> Iterator[MapOp]:
    """The maps of a function inside an arithmetic expression."""
    for inner in leaves(value, depth):
        found = mapped(inner, fn)
        if found is not None:
            yield found


def other_operand(op: MapOp, one: SSAValue) -> SSAValue | None:
    """The operand of a two-operand map that is not this one; itself where both are."""
    if one is op.args[0]:
        return op.args[1]
    return op.args[0] if one is op.args[1] else None


def over_last_axis(value: SSAValue, fn: str) -> SSAValue | None:
    """x where the value is a reduction of x over its last axis, kept as size 1."""
    op = defined(value, ReduceOp)
    if op is None or op.fn.data != fn or not op.keepdims.data or op.axes.data != (tensor(op.x).rank - 1,):
        return None
    return op.x

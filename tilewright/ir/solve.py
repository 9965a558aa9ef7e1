"""The values of dims from the shapes of a call's tensors, each with the axis that gave it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tilewright.ir.dims import Expr
from tilewright.ir.signature import Input


def linear(expr: Expr) -> tuple[str, int, int] | None:
    """(symbol, a, b) where the expression is a * symbol + b with a not 0; None where it is anything else."""
    symbol, factor, constant = "", 0, 0
    for monomial, coefficient in expr.terms:
        if not monomial:
            constant = coefficient
        elif not symbol and len(monomial) == 1 and not monomial[0].args:
            symbol, factor = monomial[0].name, coefficient
        else:
            return None
    return (symbol, factor, constant) if symbol else None


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of one input of a call: its declared size and the size it came with."""

    input: str
    axis: int
    expr: Expr
    size: int

    def __str__(self) -> str:
        return f"{self.input} axis {self.axis}"


@dataclass(slots=True)
class Solution:
    """values: by dim. origin: the axis that gave a dim its value. wrong: axes whose size contradicts the values."""

    values: dict[str, int] = field(default_factory=dict)
    origin: dict[str, Axis] = field(default_factory=dict)
    wrong: list[Axis] = field(default_factory=list)


def axes_of(inputs: Sequence[Input], shapes: Sequence[Sequence[int]]) -> list[Axis]:
    """Every axis of the inputs in order; shapes have the declared ranks."""
    return [
        Axis(leaf.name, number, expr, int(size))
        for leaf, shape in zip(inputs, shapes, strict=True)
        for number, (expr, size) in enumerate(zip(leaf.dims, shape, strict=True))
    ]


def solve(axes: Iterable[Axis], known: Mapping[str, int]) -> Solution:
    """Reads dims off the axes: bare dims first, then those that are alone unknown on an axis, as in past + 2 * tokens.

    The first axis to give a dim its value decides. Every axis is then held against the values; those that differ, or
    that no value explains, are `wrong`.
    """
    solution = Solution(dict(known))
    axes = list(axes)
    for axis in axes:
        if (form := linear(axis.expr)) is not None and form[1:] == (1, 0):
            _take(solution, axis, form)
    pending = [axis for axis in axes if not axis.expr.symbols <= solution.values.keys()]
    found = True
    while found and pending:
        found = False
        for axis in pending:
            form = linear(axis.expr.substitute(solution.values))
            found = (form is not None and _take(solution, axis, form)) or found
        pending = [axis for axis in pending if not axis.expr.symbols <= solution.values.keys()]
    for axis in axes:
        solved = axis.expr.symbols <= solution.values.keys()
        if not solved or axis.expr.evaluate(solution.values) != axis.size:
            solution.wrong.append(axis)
    return solution


def _take(solution: Solution, axis: Axis, form: tuple[str, int, int]) -> bool:
    symbol, factor, constant = form
    if symbol in solution.values or (axis.size - constant) % factor:
        return False
    solution.values[symbol] = (axis.size - constant) // factor
    solution.origin[symbol] = axis
    return True


def solvable(exprs: Iterable[Expr], known: Iterable[str] = ()) -> set[str]:
    """The dims that `solve` finds from axes of these sizes, `known` included."""
    found = set(known)
    pending = list(exprs)
    while True:
        # Any value will do for a known dim: whether the rest is linear does not depend on it.
        forms = [linear(expr.substitute(dict.fromkeys(found, 1))) for expr in pending]
        new = {form[0] for form in forms if form is not None} - found
        if not new:
            return found
        found |= new

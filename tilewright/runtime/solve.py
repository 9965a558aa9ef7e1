"""The values of dims from the shapes of a call's tensors, each with the axis that gave it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tilewright.ir.dims import Expr
from tilewright.ir.signature import Input


def linear(expr: Expr) -> tuple[str, int, int] | None:
    """(symbol, a, b) where the expression is a * symbol + b with a > 0; None where it is anything else."""
    symbol, factor, constant = "", 0, 0
    for monomial, coefficient in expr.terms:
        if not monomial:
            constant = coefficient
        elif not symbol and len(monomial) == 1 and not monomial[0].args:
            symbol, factor = monomial[0].name, coefficient
        else:
            return None
    return (symbol, factor, constant) if factor > 0 else None


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
    """values: by dim. origin: the axis that gave a dim its value. wrong: axes that have not the size the values demand."""

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
    """Reads dims off the axes: bare dims first, then a * dim + b; the first axis to give a dim its value decides.

    Every axis is then held against the values; those that differ, or that no value explains, are `wrong`.
    """
    solution = Solution(dict(known))
    axes = list(axes)
    for bare in (True, False):
        for axis in axes:
            form = linear(axis.expr)
            if form is None or ((form[1], form[2]) == (1, 0)) != bare:
                continue
            symbol, factor, constant = form
            if symbol not in solution.values and (axis.size - constant) % factor == 0:
                solution.values[symbol] = (axis.size - constant) // factor
                solution.origin[symbol] = axis
    for axis in axes:
        solved = axis.expr.symbols <= solution.values.keys()
        if not solved or axis.expr.evaluate(solution.values) != axis.size:
            solution.wrong.append(axis)
    return solution

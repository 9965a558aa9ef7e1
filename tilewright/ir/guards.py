"""Relations between dims that a program relies on: what capture could not prove of all sizes, a call is held to."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from tilewright.ir.dims import Expr

Relation: TypeAlias = Literal["==", "!=", "<=", "<", ">=", ">"]

_COMPARE: Final[Mapping[Relation, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}


@dataclass(frozen=True, slots=True)
class Guard:
    """A relation between two sizes. where: the user's line that relies on it ("model.py:12"), where that is known."""

    left: Expr
    relation: Relation
    right: Expr
    where: str | None = None

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is true at these sizes of the dims, by name; not where it divides by 0."""
        try:
            return _COMPARE[self.relation](self.left.evaluate(sizes), self.right.evaluate(sizes))
        except ZeroDivisionError:
            return False

    def facts(self) -> list[Expr]:
        """What is 0 or more wherever it holds; nothing for "!=", which is no bound."""
        gap = self.right - self.left
        match self.relation:
            case "==":
                return [gap, -gap]
            case "<=":
                return [gap]
            case "<":
                return [gap - 1]
            case ">=":
                return [-gap]
            case ">":
                return [-gap - 1]
            case "!=":
                return []

    def __str__(self) -> str:
        return f"{self.left} {self.relation} {self.right}"


def distinct(guards: Iterable[Guard]) -> tuple[Guard, ...]:
    """Each relation once, either way round, and with a line where one is known."""
    found: dict[tuple[Relation, frozenset[Expr] | tuple[Expr, Expr]], Guard] = {}
    for guard in guards:
        sides = guard.left, guard.right
        key = guard.relation, frozenset(sides) if guard.relation in ("==", "!=") else sides
        if key not in found or found[key].where is None:
            found[key] = guard
    return tuple(found.values())

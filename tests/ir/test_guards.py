"""A guard means what Python means by its relation, and its facts hold wherever it does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.ir.dims import Expr, floordiv
from tilewright.ir.guards import Guard

A, B = Expr.of("a"), Expr.of("b")
RELATIONS = ["==", "!=", "<=", "<", ">=", ">"]


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_guard_holds_where_python_says_so_and_its_facts_are_never_below_zero_there(
    relation: Any, rng: np.random.Generator
) -> None:
    guard = Guard(A * 2, relation, B + 1, "model.py:3")
    assert str(guard) == f"2*a {relation} b + 1"
    answers = set()
    for a, b in [(1, 1), (0, 0), (2, 0), *((int(a), int(b)) for a, b in rng.integers(0, 6, (40, 2)))]:
        holds = guard.holds({"a": a, "b": b})
        answers.add(holds)
        assert holds == eval(f"{2 * a} {relation} {b + 1}")
        # the facts say exactly as much as the relation, except of "!=", which bounds nothing
        told = all(fact.evaluate({"a": a, "b": b}) >= 0 for fact in guard.facts())
        assert told if relation == "!=" else told == holds
    assert answers == {True, False}
    assert bool(guard.facts()) == (relation != "!=")


def test_a_guard_that_divides_by_zero_does_not_hold() -> None:
    guard = Guard(floordiv(Expr.of(12), B), "==", Expr.of(3))
    assert [b for b in range(6) if guard.holds({"b": b})] == [4]

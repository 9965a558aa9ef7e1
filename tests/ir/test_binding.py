"""Sizes of dims are found from shapes, whatever the order, and every axis is held against them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.errors import DimDeclarationError, DimMismatchError, DimRangeError, RankError
from tilewright.ir.binding import Bound, bind, check_bounds
from tilewright.ir.dims import Dim, DimSpace, Expr, parse_expr

SPACE = DimSpace([Dim("a", 0, 50), Dim("b", 1, 50), Dim("c", 1, 50)])
SHAPES = ("a", "2*b + a", "a*b", "3*c + b - a", "floordiv(a, 4)", "7", "a + b + c")


@given(st.permutations(SHAPES), st.integers(0, 50), st.integers(1, 50), st.integers(1, 50))
def test_every_symbol_of_solvable_shapes_is_found(order: list[str], a: int, b: int, c: int) -> None:
    at = {"a": a, "b": b, "c": c}
    exprs = tuple(parse_expr(text) for text in order)
    shape = tuple(e.evaluate(at) for e in exprs)
    assert bind([Bound("x", exprs, shape)], SPACE, needed=at) == at
    spoiled = (*shape[:-1], shape[-1] + 1)
    # one more on an axis fits no sizes, or other ones that every axis confirms
    try:
        found = bind([Bound("x", exprs, spoiled)], SPACE, needed=at)
    except (DimMismatchError, DimRangeError):
        return
    assert tuple(e.evaluate(found) for e in exprs) == spoiled


def test_what_shapes_leave_open_is_named() -> None:
    tensor = Bound("x", (parse_expr("a*b"), parse_expr("floordiv(c, 2)")), (6, 3))
    with pytest.raises(DimDeclarationError, match="determines the dims a, b, c"):
        bind([tensor], SPACE, needed=["a", "b", "c"])
    assert bind([tensor], SPACE) == {}
    assert bind([tensor], SPACE, known={"a": 2}) == {"a": 2, "b": 3}


def test_all_offending_axes_come_in_one_error() -> None:
    tensors = [Bound("x", (Expr.of("a"), Expr.of(4)), (3, 5)), Bound("y", (Expr.of("a"),), (2,))]
    with pytest.raises(DimMismatchError) as caught:
        bind(tensors, SPACE)
    assert [p.text for p in caught.value.problems] == [
        "axis 1 of x is 5, declared 4",
        "axis 0 of y is 2, declared a = 3 (with a = 3)",
    ]
    with pytest.raises(RankError, match="x has 1 axes, 2 are declared"):
        bind([Bound("x", (Expr.of(1), Expr.of(2)), (1,))], SPACE)


def test_bounds_are_checked_with_the_lines_that_would_admit_the_sizes() -> None:
    space = DimSpace([Dim("a", 2, 4), Dim("b", 1, None)])
    check_bounds({"a": 4, "b": 10**6}, space)
    with pytest.raises(DimRangeError) as caught:
        check_bounds({"a": 9, "b": 0}, space)
    assert 'tw.Dim("a", 2, 9), tw.Dim("b", 0, None)' in str(caught.value)

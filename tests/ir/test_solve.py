"""Dims from shapes: whatever the values were, they come back; a shape that no values give is wrong."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from tilewright.ir.dims import Expr, minimum
from tilewright.ir.dtypes import F32
from tilewright.ir.signature import Input
from tilewright.ir.solve import Axis, axes_of, linear, solvable, solve

NAMES = ("a", "b", "c")
A, B, C = map(Expr.of, NAMES)


@given(
    st.tuples(*[st.integers(0, 99)] * 3),
    st.tuples(st.integers(1, 9), st.integers(0, 9)),
    st.permutations(range(5)),
    st.booleans(),
)
def test_values_come_back_from_their_shapes(
    values: tuple[int, ...], factors: tuple[int, int], order: list[int], bare: bool
) -> None:
    sizes = dict(zip(NAMES, values, strict=True))
    scale, shift = factors
    # c is found only once a or b is: the axes come in any order.
    exprs = [A if bare else A * scale + shift, B * 3, A + B + C, A * B + minimum(A, C), Expr.of(7)]
    exprs = [exprs[i] for i in order]
    shape = tuple(e.evaluate(sizes) for e in exprs)
    axes = axes_of([Input("x", F32, tuple(exprs))], [shape])
    solution = solve(axes, {})
    assert solution.values == sizes
    assert not solution.wrong
    for name, axis in solution.origin.items():
        assert name in axis.expr.symbols
    assert solvable(exprs) == set(NAMES)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(2, 5))
def test_a_size_without_a_whole_value_is_wrong(a: int, size: int, factor: int) -> None:
    assume(size % factor)
    axes = [Axis("x", 0, A, a), Axis("x", 1, B * factor, size)]
    solution = solve(axes, {})
    assert solution.values == {"a": a}
    assert solution.wrong == [axes[1]]


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_first_axis_decides_and_the_other_is_wrong(first: int, second: int) -> None:
    axes = [Axis("x", 0, A, first), Axis("y", 3, A, second)]
    solution = solve(axes, {})
    assert solution.values == {"a": first}
    assert solution.origin == {"a": axes[0]}
    assert solution.wrong == ([] if first == second else [axes[1]])
    assert str(axes[1]) == "y axis 3"


def test_known_values_are_taken_as_they_are() -> None:
    axes = [Axis("x", 0, A + B, 7)]
    assert solve(axes, {"a": 3}).values == {"a": 3, "b": 4}
    assert solve(axes, {"a": 3, "b": 5}).wrong == axes
    assert solve(axes, {}).wrong == axes


def test_what_is_linear() -> None:
    assert linear(A) == ("a", 1, 0)
    assert linear(A * 4 - 3) == ("a", 4, -3)
    assert linear(3 - A) == ("a", -1, 3)
    for other in (Expr.of(3), A * A, A + B, A // 2, minimum(A, B)):
        assert linear(other) is None
    assert solvable([A * B]) == set()
    assert solvable([A * B, B]) == {"a", "b"}

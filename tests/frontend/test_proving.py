from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tilewright.frontend.proving import at_most, nonnegative
from tilewright.ir.dims import Dim, DimSpace, Expr, floordiv, maximum, minimum, mod

SPACE = DimSpace([Dim("a", 0, 9), Dim("b", 1, 6)])
LEAVES = st.one_of(st.sampled_from([Expr.of("a"), Expr.of("b")]), st.integers(-4, 7).map(Expr.of))


def combined(parts: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    binary = st.sampled_from([lambda x, y: x + y, lambda x, y: x - y, minimum, maximum])
    by_number = st.sampled_from([floordiv, mod, lambda x, k: x * k])
    return st.one_of(
        st.builds(lambda f, x, y: f(x, y), binary, parts, parts),
        st.builds(lambda f, x, k: f(x, k), by_number, parts, st.integers(1, 5)),
    )


@given(st.recursive(LEAVES, combined, max_leaves=8))
def test_what_is_proved_holds_at_every_size(value: Expr) -> None:
    if nonnegative(SPACE, value):
        assert all(value.evaluate({"a": a, "b": b}) >= 0 for a in range(10) for b in range(1, 7))


def test_relations_that_slices_and_blocks_rely_on_are_proved() -> None:
    a, b = Expr.of("a"), Expr.of("b")
    assert at_most(SPACE, floordiv(a, 2), a)
    assert at_most(SPACE, maximum(a - 5, 0), a)
    assert at_most(SPACE, minimum(a, 512), a)
    assert at_most(SPACE, mod(a, 4), a)
    assert at_most(SPACE, floordiv(a + 3, 4), a + b)
    assert at_most(SPACE, b - floordiv(b, 2), b)
    assert not at_most(SPACE, a, b)
    assert not at_most(SPACE, a, floordiv(a, 2))

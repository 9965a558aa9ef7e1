"""Dim expressions are canonical, mean what they print, and claim nothing about sizes that is not so."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.errors import DimDeclarationError, IRError, ParseError
from tilewright.ir.dims import (
    Dim,
    DimSpace,
    Expr,
    ceildiv,
    exact_div,
    floordiv,
    maximum,
    minimum,
    mod,
    parse_expr,
    product,
)

NAMES = ("a", "b", "c")
SIZES = (0, 1, 2, 3, 7, 12)

# A tree stands beside each expression: what plain Python computes without any canonical form.
Tree = Callable[[dict[str, int]], int]


def _binary(pair: tuple[tuple[Expr, Tree], tuple[Expr, Tree]], op: str) -> tuple[Expr, Tree]:
    (x, fx), (y, fy) = pair
    match op:
        case "+":
            return x + y, lambda v: fx(v) + fy(v)
        case "-":
            return x - y, lambda v: fx(v) - fy(v)
        case "*":
            return x * y, lambda v: fx(v) * fy(v)
        case "min":
            return minimum(x, y), lambda v: min(fx(v), fy(v))
        case _:
            return maximum(x, y), lambda v: max(fx(v), fy(v))


def _divided(pair: tuple[Expr, Tree], op: str, by: int) -> tuple[Expr, Tree]:
    x, fx = pair
    if op == "floordiv":
        return floordiv(x, by), lambda v: fx(v) // by
    return mod(x, by), lambda v: fx(v) % by


leaves = st.one_of(
    st.integers(-9, 9).map(lambda n: (Expr.of(n), lambda v: n)),
    st.sampled_from(NAMES).map(lambda n: (Expr.of(n), lambda v: v[n])),
)
expressions: st.SearchStrategy[Any] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(_binary, st.tuples(inner, inner), st.sampled_from(["+", "-", "*", "min", "max"])),
        st.builds(_divided, inner, st.sampled_from(["floordiv", "mod"]), st.integers(1, 9)),
    ),
    max_leaves=8,
)
values = st.fixed_dictionaries({n: st.integers(0, 40) for n in NAMES})


@given(expressions, values)
def test_an_expression_has_the_value_of_the_arithmetic_that_made_it(pair: Any, at: dict[str, int]) -> None:
    expr, meaning = pair
    assert expr.evaluate(at) == meaning(at)


@given(expressions, values)
def test_substituting_numbers_is_evaluating(pair: Any, at: dict[str, int]) -> None:
    expr, meaning = pair
    assert expr.substitute(at).constant == meaning(at)


@given(expressions, expressions, values)
def test_substituting_an_expression_is_evaluating_it_first(outer: Any, inner: Any, at: dict[str, int]) -> None:
    expr, other = outer[0], inner[0] * inner[0]
    assert expr.substitute({"a": other}).evaluate(at) == expr.evaluate({**at, "a": other.evaluate(at)})


@given(expressions)
def test_printing_parses_back_to_the_same_object(pair: Any) -> None:
    expr = pair[0]
    assert parse_expr(str(expr)) == expr
    assert hash(parse_expr(str(expr))) == hash(expr)


@given(expressions, expressions, expressions)
def test_equal_polynomials_are_equal_objects(x: Any, y: Any, z: Any) -> None:
    x, y, z = x[0], y[0], z[0]
    assert x + y == y + x
    assert x * y == y * x
    assert (x + y) + z == x + (y + z)
    assert x * (y + z) == x * y + x * z
    assert x - x == Expr.of(0)
    assert minimum(x, y) == minimum(y, x)


@given(expressions, st.integers(1, 9), st.integers(-3, 3))
def test_whole_multiples_leave_a_division(pair: Any, divisor: int, times: int) -> None:
    expr = pair[0]
    assert floordiv(expr + times * divisor, divisor) == floordiv(expr, divisor) + times
    assert mod(expr + times * divisor, divisor) == mod(expr, divisor)


@given(
    expressions, st.dictionaries(st.sampled_from(NAMES), st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3)
)
def test_no_value_lies_outside_the_interval(pair: Any, ends: dict[str, tuple[int, int]]) -> None:
    expr = pair[0]
    bounds: dict[str, Any] = {n: (min(e), max(e)) for n, e in ends.items()}
    low, high = expr.interval(bounds)
    for point in itertools.product(*(range(lo, hi + 1, max(1, (hi - lo) // 3)) for lo, hi in bounds.values())):
        value = expr.evaluate(dict(zip(bounds, point, strict=True)))
        assert low is None or low <= value
        assert high is None or value <= high


@given(expressions, st.sampled_from(["floordiv", "mod"]))
def test_division_by_a_symbol_stays_inside_its_interval(pair: Any, function: str) -> None:
    divide = {"floordiv": floordiv, "mod": mod}[function]
    expr = divide(pair[0], Expr.of("c") + 1)
    low, high = expr.interval(dict.fromkeys(NAMES, (0, 5)))
    for a, b, c in itertools.product(range(0, 6, 2), range(0, 6, 2), range(6)):
        at = {"a": a, "b": b, "c": c}
        value = expr.evaluate(at)
        assert value == (pair[1](at) // (c + 1) if function == "floordiv" else pair[1](at) % (c + 1))
        assert low is None or low <= value
        assert high is None or value <= high


def test_nothing_is_known_of_a_division_by_what_may_be_nothing() -> None:
    assert floordiv("a", "b").interval({"a": (3, 9), "b": (0, 5)}) == (None, None)
    assert floordiv("a", "b").interval({"a": (3, 9), "b": (1, None)}) == (0, 9)
    assert floordiv("a", "b").interval({"a": (-9, -3), "b": (2, None)}) == (-5, -1)


RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "==": lambda x, y: x == y,
    "<=": lambda x, y: x <= y,
    "<": lambda x, y: x < y,
    ">=": lambda x, y: x >= y,
    ">": lambda x, y: x > y,
}


@given(expressions, expressions, st.sampled_from(sorted(RELATIONS)))
def test_what_compare_proves_or_disproves_holds_everywhere(x: Any, y: Any, relation: Any) -> None:
    space = DimSpace([Dim("a", 1, 4), Dim("b", 0, 3), Dim("c", 2, 2)])
    verdict = space.compare(x[0], relation, y[0])
    if verdict is None:
        return
    for a, b in itertools.product(range(1, 5), range(4)):
        at = {"a": a, "b": b, "c": 2}
        assert RELATIONS[relation](x[1](at), y[1](at)) is verdict


@pytest.mark.parametrize(
    ("left", "relation", "right", "verdict"),
    [
        ("t", "<=", 256, True),
        ("t", "<", 256, None),
        ("t", ">=", 1, True),
        ("t", ">", 256, False),
        ("t + 1", ">", "t", True),
        ("2*t", "==", "t", False),
        ("b*t", ">=", "t", True),
        ("b*t", "<=", "64*t", True),
        ("b*t", "<", "t", False),
        ("floordiv(t + 63, 64)", "<=", 4, True),
        ("min(t, 8)", "<=", 8, True),
        ("mod(t, 16)", "<", 16, True),
        ("t*t - t", ">=", 0, True),
        ("b*t - t", "<=", 63 * 256, True),
        ("free", ">=", 0, True),
        ("free", "<=", 10**9, None),
    ],
)
def test_compare_decides_what_bounds_decide(left: str, relation: Any, right: Any, verdict: bool | None) -> None:
    space = DimSpace([Dim("b", 1, 64), Dim("t", 1, 256)])
    right = parse_expr(right) if isinstance(right, str) else right
    assert space.compare(parse_expr(left), relation, right) is verdict


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("tokens", "tokens"),
        ("2*a + a", "3*a"),
        ("(a + b)*(a - b)", "a*a - b*b"),
        ("floordiv(4*a + 6, 4)", "a + 1"),
        ("floordiv(a + 5, 4)", "floordiv(a + 1, 4) + 1"),
        ("floordiv(a - 1, 4)", "floordiv(a + 3, 4) - 1"),
        ("floordiv(9*a - 6*b, 4)", "2*a - b + floordiv(a - 2*b, 4)"),
        ("floordiv(4*a + 3, 6)", "floordiv(2*a + 1, 3)"),
        ("floordiv(a*b, b)", "a"),
        ("mod(6*a + 7, 3)", "1"),
        ("min(a, a + 1)", "a"),
        ("max(a, a + 1)", "a + 1"),
        ("min(b, a)", "min(a, b)"),
        ("-a", "-a"),
        ("a - 3", "a - 3"),
        ("0", "0"),
    ],
)
def test_canonical_forms(text: str, canonical: str) -> None:
    assert str(parse_expr(text)) == canonical


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a number or a name"),
        ("a +", "a number or a name"),
        ("a b", "the end"),
        ("min(a)", "','"),
        ("(a", "')'"),
        ("a ** b", "a number or a name"),
        ("a / b", "the end"),
        ("min", "'('"),
        ("é", "a number or a name"),
    ],
)
def test_text_that_is_no_expression_is_an_error_that_says_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(ParseError, match="TW021") as caught:
        parse_expr(text)
    assert f"expected {expected}" in str(caught.value)


def test_deep_nesting_is_an_error_not_a_recursion_limit() -> None:
    for text in ("(" * 5000, "-" * 5000 + "a", "min(" * 5000):
        with pytest.raises(ParseError, match="nesting"):
            parse_expr(text)


def test_a_product_that_would_fill_the_memory_is_an_error() -> None:
    with pytest.raises(ParseError, match="fewer than 1024 terms"):
        parse_expr("*".join(f"(a{i} + b{i})" for i in range(64)))


@pytest.mark.parametrize("divisor", [0, -2])
def test_dividing_by_nothing_or_less_is_an_error(divisor: int) -> None:
    with pytest.raises(IRError, match="divided by"):
        floordiv("a", divisor)
    with pytest.raises(IRError, match="divided by"):
        mod("a", divisor)


def test_numbers_of_every_kind_are_numbers() -> None:
    assert Expr.of(np.int64(7)) == Expr.of(7) == Expr.of("7")
    assert Expr.of(Dim("a", 1, 2)) == Expr.of("a")
    with pytest.raises(TypeError):
        Expr.of(1.5)  # type: ignore[arg-type]


@given(expressions, st.integers(1, 9))
def test_ceildiv_covers(pair: Any, block: int) -> None:
    expr = pair[0]
    blocks = ceildiv(expr, block)
    at = {"a": 3, "b": 5, "c": 1}
    assert blocks.evaluate(at) * block >= expr.evaluate(at) > (blocks.evaluate(at) - 1) * block


@given(expressions, st.sampled_from(["a", "a*b", "3*c", "2"]))
def test_exact_division_undoes_multiplication(pair: Any, factor: str) -> None:
    by = parse_expr(factor)
    assert exact_div(pair[0] * by, by) == pair[0]
    quotient = exact_div(pair[0], by)
    assert quotient is None or quotient * by == pair[0]


def test_symbols_are_found_inside_functions() -> None:
    assert parse_expr("a + floordiv(b*c, 2) + min(d, 3)").symbols == {"a", "b", "c", "d"}
    assert product(["a", 2, "b"]) == parse_expr("2*a*b")
    assert product([]).constant == 1
    with pytest.raises(KeyError):
        parse_expr("a + b").evaluate({"a": 1})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("2x", 1, 2), "not a name"),
        (("min", 1, 2), "not a name"),
        (("", 1, 2), "not a name"),
        (("x y", 1, 2), "not a name"),
        (("t", -1, 2), "negative"),
        (("t", 5, 2), "below the lower bound"),
        (("t", 1.5, 2), "1.5 is not a whole number"),
        (("t", 1, "x"), "'x' is not a whole number"),
        (("t", True, 3), "True is not a whole number"),
        (("t", float("nan"), float("inf")), "nan is not a whole number"),
        ((3, 1, 2), "3 is not a name"),
        (("a1", 1, 2), "index values"),
    ],
)
def test_a_dim_that_makes_no_sense_is_an_error_whose_step_declares_one(arguments: Any, complaint: str) -> None:
    with pytest.raises(DimDeclarationError, match=complaint) as caught:
        Dim(*arguments)
    line = str(caught.value).split("declare it as tw.")[1]
    assert isinstance(eval(line, {"Dim": Dim}), Dim)


@pytest.mark.parametrize(
    "combine",
    [
        lambda d: 2 * d,
        lambda d: d * 2,
        lambda d: d + 1,
        lambda d: 1 + d,
        lambda d: d - d,
        lambda d: 9 - d,
        lambda d: d // 2,
        lambda d: d % 2,
        lambda d: d / 2,
        lambda d: d**2,
    ],
)
def test_arithmetic_on_a_declared_dim_says_what_to_declare_instead(combine: Any) -> None:
    with pytest.raises(DimDeclarationError, match=r"give the other axis a Dim of its own"):
        combine(Dim("t", 1, 4))


def test_a_name_has_one_declaration() -> None:
    space = DimSpace([Dim("t", 1, 4)])
    space.add(Dim("t", 1, 4))
    with pytest.raises(DimDeclarationError, match="declared twice"):
        space.add(Dim("t", 1, 5))


def test_upper_bounds() -> None:
    space = DimSpace([Dim("b", 1, 64), Dim("t", 0, 256), Dim("n", 1)])
    assert space.at_most(Expr.of("b") * "t" * 4) == 64 * 256 * 4
    assert space.at_most("n") is None
    assert str(space.dims["b"]) == "b: 1..64"

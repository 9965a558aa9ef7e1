"""Attributes print and parse back exactly, bare and in full, and compare by value."""

from __future__ import annotations

import math
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import ParseError as XdslParseError

from tilewright.ir.attributes import BareData, Bool, Dims, Float, Floats, Int, Ints, Numbers, Str, Strs
from tilewright.ir.dims import Expr, parse_expr
from tilewright.ir.module import new_context
from tilewright.ir.schedules import Schedule

CONTEXT = new_context()

doubles = st.floats(allow_nan=True, allow_infinity=True)
texts = st.text(max_size=12)
attributes = st.one_of(
    st.integers().map(Int.of),
    st.booleans().map(Bool.of),
    doubles.map(Float.of),
    texts.map(Str.of),
    st.lists(st.integers()).map(Ints.of),
    st.lists(doubles).map(Floats.of),
    st.lists(st.one_of(st.integers(), doubles)).map(Numbers.of),
    st.lists(texts).map(Strs.of),
    st.dictionaries(st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True), st.one_of(st.integers(), texts)).map(
        Schedule.of
    ),
    st.lists(st.sampled_from([Expr.of(3), Expr.of("tokens"), parse_expr("2*a - floordiv(b, 4)")])).map(Dims.of),
)


def bare(attribute: BareData[Any]) -> str:
    out = StringIO()
    attribute.print_bare(Printer(out))
    return out.getvalue()


@given(attributes)
def test_bare_text_parses_back(attribute: Any) -> None:
    back = type(attribute).parse_bare(Parser(CONTEXT, bare(attribute)))
    assert back == attribute
    assert hash(back) == hash(attribute)


@given(attributes)
def test_full_text_parses_back(attribute: Any) -> None:
    assert Parser(CONTEXT, str(attribute)).parse_attribute() == attribute


@pytest.mark.parametrize("kind", [Float, lambda v: Floats.of([v]), lambda v: Numbers.of([v])])
def test_floats_compare_by_bits_that_matter(kind: Any) -> None:
    assert kind(0.0) != kind(-0.0)
    assert kind(math.nan) == kind(math.nan)
    assert hash(kind(math.nan)) == hash(kind(math.nan))


def test_an_integer_is_not_the_float_of_its_value() -> None:
    assert Numbers.of([1]) != Numbers.of([1.0])
    big = 2**63 - 1
    assert Numbers.parse_bare(Parser(CONTEXT, bare(Numbers.of([big])))).data == (big,)


def test_lists_are_taken_from_any_sequence() -> None:
    assert Ints.of((1, 2)) == Ints.of([1, 2])
    assert Dims.of(["b", 3]).data == (Expr.of("b"), Expr.of(3))
    assert Strs.of(x for x in "ab").data == ("a", "b")
    assert Float.of(1).data == 1.0
    assert Int.of(Int(3)) == Int(3)


@pytest.mark.parametrize(("kind", "text"), [(Int, '"x"'), (Bool, "3"), (Ints, "[1, x]"), (Dims, "[a]"), (Str, "3")])
def test_text_of_another_kind_is_an_error(kind: Any, text: str) -> None:
    with pytest.raises(XdslParseError):
        kind.parse_bare(Parser(CONTEXT, text))

from __future__ import annotations

import pytest

from tilewright.cli.dims_text import parse_dims, parse_sizes
from tilewright.errors import DimDeclarationError, ParseError
from tilewright.ir.dims import Dim


def test_dims_are_what_compile_takes() -> None:
    batch, tokens = Dim("batch", 1, 64), Dim("tokens", 0)
    assert parse_dims([]) is None
    assert parse_dims(["ids=batch:1..64,tokens:0..", "mask = batch, tokens", "x=_,384,batch"]) == {
        "ids": (batch, tokens),
        "mask": (batch, tokens),
        "x": (None, 384, batch),
    }


def test_a_path_names_a_part_of_an_argument() -> None:
    n = Dim("n", 1, 2)
    assert parse_dims(["batch.mask=n:1..2", "batch.xs.1=_,n"]) == {"batch": {"mask": (n,), "xs": {1: (None, n)}}}


def test_a_dim_may_be_used_before_its_range_is_stated() -> None:
    assert parse_dims(["a=n", "b=n:2..3"]) == {"a": (Dim("n", 2, 3),), "b": (Dim("n", 2, 3),)}


STEP = 'write --dims "ids=batch:1..64,tokens:1..256": an entry an axis, _ or its size where it is fixed'


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (
            ["ids"],
            ParseError,
            f"TW021 text does not parse: --dims 'ids' does not name an argument and its axes\n  next: {STEP}",
        ),
        (
            ["ids=b:1-64"],
            ParseError,
            f"TW021 text does not parse: --dims 'ids=b:1-64': 'b:1-64' is not an axis\n  next: {STEP}",
        ),
        (
            ["ids=b:1..2,"],
            ParseError,
            f"TW021 text does not parse: --dims 'ids=b:1..2,': '' is not an axis\n  next: {STEP}",
        ),
        (
            ["a=b:1..2,c", "d=b:1..3"],
            DimDeclarationError,
            "TW006 dims declaration is wrong: 2 problems\n  - b is declared with two ranges: 1..2 and 1..3\n"
            "  - c has no range\n  next: give each dim one range, where it is first named: batch:1..64",
        ),
        (
            ["a=b:8..2"],
            DimDeclarationError,
            "TW006 dims declaration is wrong: b: the upper bound 2 is below the lower bound 8\n"
            '  next: declare it as tw.Dim("b", 2, 8)',
        ),
    ],
)
def test_other_texts_are_errors(texts: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        parse_dims(texts)
    assert str(caught.value) == message


def test_sizes() -> None:
    assert parse_sizes(None) == parse_sizes("") == {}
    assert parse_sizes("batch=8, tokens=0") == {"batch": 8, "tokens": 0}
    with pytest.raises(ParseError) as caught:
        parse_sizes("batch=8,tokens")
    assert str(caught.value) == (
        "TW021 text does not parse: 'tokens' in 'batch=8,tokens' is not a size of a dim\n"
        "  next: write batch=8,tokens=82"
    )

"""A pipeline's text that does not parse: what is missing is named, where, and written in where that is plain."""

from __future__ import annotations

import pytest

from tilewright.errors import ParseError
from tilewright.passes.pipeline import parse_pipeline

FORM = "write it as name{option=value option=value},name"


@pytest.mark.parametrize(
    ("text", "said", "column", "step"),
    [
        ("fuse{max-ops=8", "'}' is missing", 15, "write fuse{max-ops=8}"),
        ("fold,fuse{", "'}' is missing", 11, "write fold,fuse{}"),
        # options hold commas of their own: a pass's name after one ends them
        ("fuse{max-ops=8 , fold, fuse", "'}' is missing", 15, "write fuse{max-ops=8} , fold, fuse"),
        ("fuse{max-ops=8,fuse{max-ops=3}", "'}' is missing", 15, "write fuse{max-ops=8},fuse{max-ops=3}"),
        ("fuse{{max-ops=3}", "'}' is missing", 6, FORM),
        ("fuse{max-ops=8}}", "'}' closes nothing", 16, FORM),
        ("fuse}", "'}' closes nothing", 5, FORM),
        ("fuse fold", "',' is missing", 6, "write fuse,fold"),
        ("fold,fuse{max-ops=8} fold,fuse", "',' is missing", 22, "write fold,fuse{max-ops=8},fold,fuse"),
        ("fuse;fold", "',' is missing", 5, FORM),
        ("Fuse", "a pass's name is missing", 1, FORM),
        ("fuse,,fold", "a pass's name is missing", 6, FORM),
        ("fuse,{max-ops=8}", "a pass's name is missing", 6, FORM),
    ],
)
def test_what_is_missing_is_named_with_its_column(text: str, said: str, column: int, step: str) -> None:
    with pytest.raises(ParseError) as raised:
        parse_pipeline(text)
    (problem,) = raised.value.problems
    place = f"after {text[: column - 1]!r}" if column > 1 else f"before {text!r}"
    assert problem.text == f"pipeline: {said} at column {column}, {place}"
    assert raised.value.step == step
    if step != FORM:
        mended = step.removeprefix("write ")
        assert str(parse_pipeline(str(parse_pipeline(mended)))) == str(parse_pipeline(mended))

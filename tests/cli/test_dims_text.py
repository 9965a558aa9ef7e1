from __future__ import annotations

from collections.abc import Callable

import pytest

from tilewright.cli.dims_text import parse_dims, parse_sizes
from tilewright.cli.flags import for_command_line
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


def step(entry: str) -> str:
    return f'write --dims "{entry}": an entry an axis, _ or its size where it is fixed'


STEP = step("ids=batch:1..64,tokens:1..256")


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
            f"TW021 text does not parse: --dims 'ids=b:1-64': 'b:1-64' is not an axis\n  next: {step('ids=b:1..64')}",
        ),
        (
            ["ids=b:1..2,"],
            ParseError,
            f"TW021 text does not parse: --dims 'ids=b:1..2,': '' is not an axis\n  next: {step('ids=b:1..2,_')}",
        ),
        (
            ["ids=b:1..8", "ids=t:1..2"],
            ParseError,
            f"TW021 text does not parse: --dims 'ids=t:1..2': ids has its axes from another --dims\n  "
            f"next: {step('ids=b:1..8,t:1..2')}",
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


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ('as dims={"ids": {0: tw.Dim("n", 1, 64)}}; or', 'as --dims "ids=n:1..64"; or'),
        ('dims={"a": {0: tw.Dim("n", 2), 2: "n"}, "b": {1: "n"}}', '--dims "a=n:2..,_,n" --dims "b=_,n"'),
        (
            'dims={"in": {"x": {0: tw.Dim("n", 1, 8)}, "ys": {1: {0: "n"}}}}',
            '--dims "in.x=n:1..8" --dims "in.ys.1=n"',
        ),
        ('declare tw.Dim("n", 2, 8), tw.Dim("m", 3); or', "declare n:2..8, m:3..; or"),
        ('dims={"a": {-1: "n"}}, dims={}, tw.Dim("n")',) * 2,
        # a path cannot say these
        ('dims={"in": {"a.b": {0: "n"}}}', 'dims={"in": {"a.b": {0: "n"}}}'),
        ("dims={'x': (B, T)} and tw.Dim(name, least, largest)",) * 2,
        # other arguments
        ("precision='f16' needs more; write precision='bf16'", "--precision f16 needs more; write --precision bf16"),
        ("threads=0 is none; threads=None uses all", "--threads 0 is none; leaving out --threads uses all"),
        (
            "determinism='yes' is not one of None, 'free', 'batch'; write determinism=None",
            "--determinism yes is not one of 'free', 'batch'; leave out --determinism",
        ),
        ('write expect={"attention": 0, "rope": 2}', "write --expect attention=0 --expect rope=2"),
        ("tw.Sampler(top_p=0.95, seed=0) is one", "--top-p 0.95 --seed 0 is one"),
        ("(others: report.at(batch=..., n=8))", "(others: --at batch=...,n=8)"),
        ("write memory_limit='1GiB'", "write --memory-limit 1GiB"),
        ("or give tw.load() memory_limit=8204", "or give tw.load() --memory-limit 8204B"),
        ("memory_limit=2**30, my_threads=2, x.cache='a'",) * 2,
    ],
)
def test_python_in_messages_is_written_as_options(python: str, said: str) -> None:
    assert for_command_line(python) == said


def test_the_next_step_of_a_command_line_is_one(tw: Callable[..., tuple[int, str, str]]) -> None:
    line = ["compile", "sample_models:counter", "-o", "counter.tilewright", "--dims"]
    for wrong, step in (
        ("y=n:1..8", 'follow the arguments: --dims "x=batch:1..64"'),
        ("x=n:8..1", "declare it as n:1..8"),
    ):
        code, _, err = tw(*line, wrong)
        assert (code, err.splitlines()[-1]) == (1, f"  next: {step}")


@pytest.mark.parametrize(
    ("texts", "entry"),
    [
        (["x=batch:1..8,_", "x=_,tokens:1..8"], "x=batch:1..8,tokens:1..8"),
        (["x=batch:1..8", "x=_,t:1..8,_"], "x=batch:1..8,t:1..8,_"),
        (["x=b:1..8", "x=b:1..8,t:1..2"], "x=b:1..8,t:1..2"),
        (["x"], "x=batch:1..64,tokens:1..256"),
        (["x=b:8,-1,7,*"], "x=b:1..8,_,7,_"),
        (["x=b=1:8,t:2...9"], "x=b:1..8,t:2..9"),
        (["x=1..8,t"], "x=batch:1..64,tokens:1..256"),
    ],
)
def test_the_next_step_is_of_the_line_that_was_typed_and_parses(texts: list[str], entry: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_dims(texts)
    assert caught.value.step == step(entry)
    assert parse_dims([entry])


def test_sizes() -> None:
    assert parse_sizes(None) == parse_sizes("") == {}
    assert parse_sizes("batch=8, tokens=0") == {"batch": 8, "tokens": 0}
    with pytest.raises(ParseError) as caught:
        parse_sizes("batch=8,tokens")
    assert str(caught.value) == (
        "TW021 text does not parse: 'tokens' in 'batch=8,tokens' is not a size of a dim\n"
        "  next: write batch=8,tokens=82"
    )

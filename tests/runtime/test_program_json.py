"""Programs to JSON and back: exact for any program, the same text in any process, strict about what it reads."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.programs import B, T, affine_program
from tilewright.errors import ArtifactError
from tilewright.ir.dims import Dim, Expr, floordiv, maximum, minimum, mod
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.grid_abi import Grid
from tilewright.ir.guards import Guard
from tilewright.runtime.canonical import canonical_json, key_of
from tilewright.runtime.program import (
    SPACES,
    Copy,
    HostCall,
    KernelInfo,
    ReadDim,
    Ref,
    Routine,
    Slot,
    State,
    Step,
    TensorSpec,
    Variant,
)
from tilewright.runtime.program_json import program_from_text, program_text

names = st.text(max_size=12)
numbers = st.integers(0, 1 << 40)
symbols = st.sampled_from(["batch", "tokens", "n_7"])
functions = st.sampled_from([floordiv, mod, minimum, maximum])
exprs = st.recursive(
    st.integers(-9, 1 << 40).map(Expr.of) | symbols.map(Expr.of),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] * p[1]),
        st.tuples(functions, inner, st.integers(1, 64).map(Expr.of)).map(lambda p: p[0](p[1], p[2])),
    ),
    max_leaves=6,
)
dims = st.builds(Dim, symbols, st.integers(0, 5), st.none() | st.integers(5, 99), st.sampled_from(["declared", "read"]))
refs = st.builds(Ref, st.sampled_from(SPACES), st.integers(0, 99), exprs)
specs = st.builds(TensorSpec, names, st.lists(exprs, max_size=3).map(tuple), st.sampled_from(list(DTYPES.values())))
grids = st.none() | st.builds(Grid, exprs, st.integers(1, 1024), st.integers(0, 1 << 18))


def tuples(items: st.SearchStrategy[Any], most: int = 3) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=most).map(tuple)


hosts = st.none() | st.builds(HostCall, names, names, tuples(specs, 2), tuples(specs, 2))
steps = st.builds(
    Step,
    names,
    tuples(st.builds(Variant, names, st.none() | numbers)),
    tuples(refs),
    tuples(names),
    tuples(exprs),
    exprs,
    st.booleans(),
    names,
    names,
    st.none() | names,
    names,
    hosts,
    numbers,
)
routines = st.builds(Routine, tuples(steps, 2), tuples(st.builds(Slot, tuples(exprs)), 2))
programs = st.builds(
    lambda **fields: replace(affine_program(), **fields),
    dims=tuples(dims),
    main=routines,
    results=tuples(specs),
    weights=tuples(specs),
    packed=tuples(specs),
    states=tuples(st.builds(State, specs, st.none() | numbers), 2),
    prepare=tuples(routines, 2),
    copies=tuples(st.builds(Copy, refs, refs, exprs), 2),
    guards=tuples(
        st.builds(Guard, exprs, st.sampled_from(["==", "!=", "<=", "<", ">=", ">"]), exprs, st.none() | names), 2
    ),
    reads=tuples(st.builds(ReadDim, names, numbers, numbers), 2),
    kernels=tuples(st.builds(KernelInfo, names, names, names, grids), 2),
    tied=tuples(st.tuples(names, names), 2),
    ignored=tuples(names),
    transient=tuples(names),
    target=names,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(programs)
def test_any_program_comes_back_equal(program: Any) -> None:
    text = program_text(program)
    again = program_from_text(text)
    assert again == program
    assert program_text(again) == text


def test_the_text_is_the_same_in_every_process() -> None:
    script = (
        "from tests.runtime.programs import affine_program\n"
        "from tilewright.runtime.program_json import program_text\n"
        "print(program_text(affine_program()))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("0", "17")
    }
    assert texts == {program_text(affine_program())}


def edited(*path: Any, value: Any) -> str:
    data = json.loads(program_text(affine_program()))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    "path",
    [
        ("dims",),
        ("dims", 0, 0),
        ("dims", 0, 3),
        ("signature", "arguments"),
        ("main",),
        ("main", "steps", 0, "name"),
        ("main", "steps", 0, "variants", 0, 1),
        ("main", "steps", 0, "buffers", 0, 1),
        ("main", "steps", 0, "buffers", 0, 2),
        ("main", "steps", 0, "guard"),
        ("main", "steps", 0, "barrier_after"),
        ("main", "slots", 0, 0),
        ("results", 0, 2),
        ("weights", 0, 1),
        ("prepare",),
        ("kernels",),
        ("target",),
    ],
    ids=str,
)
@pytest.mark.parametrize("value", [1.5, {"a": []}, "a ?"], ids=["float", "object", "text"])
def test_what_is_no_program_is_an_artifact_error(path: tuple[Any, ...], value: Any) -> None:
    text = edited(*path, value=value)
    if path[-1] in ("name", "target") and value == "a ?":
        assert program_text(program_from_text(text)) != program_text(affine_program())
        return
    with pytest.raises(ArtifactError) as raised:
        program_from_text(text)
    assert "malformed" in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 100_000, '{"dims": []}'])
def test_other_json_is_an_artifact_error(text: str) -> None:
    with pytest.raises(ArtifactError, match="malformed"):
        program_from_text(text)


def test_the_message_in_full() -> None:
    with pytest.raises(ArtifactError) as raised:
        program_from_text(edited("main", "steps", 0, "guard", value=3))
    assert str(raised.value) == (
        "TW042 artifact is damaged: the program is malformed: TypeError('3 where text belongs')\n"
        "  next: save the program again"
    )
    with pytest.raises(ArtifactError) as raised:
        program_from_text(edited("main", "steps", 0, "guard", value="1 +"))
    assert str(raised.value) == (
        "TW042 artifact is damaged: the program is malformed: "
        "TW021 text does not parse: dim expression '1 +': expected a number or a name, got the end\n"
        "  next: save the program again"
    )


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": "\u00e9"}) == '{"a":"\\u00e9","b":[1,2.5,null,true]}'
    assert canonical_json({"a": (1, 2)}) == canonical_json({"a": [1, 2]})
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 1.0}) != key_of({"a": True})
    for bad in (float("nan"), float("inf"), {1: 2}, {"a": [{2: 3}]}, object(), {"a": {1}}):
        with pytest.raises((ValueError, TypeError)):
            canonical_json(bad)


@given(exprs, st.integers(0, 50), st.integers(0, 50))
def test_bytes_of_a_tensor_are_its_elements_times_their_width(size: Expr, batch: int, tokens: int) -> None:
    spec = TensorSpec("t", (size, B, T), DTYPES["bf16"])
    at = {"batch": batch, "tokens": tokens, "n_7": 3}
    assert spec.bytes.evaluate(at) == 2 * size.evaluate(at) * batch * tokens
    assert spec.shape(at) == (size.evaluate(at), batch, tokens)

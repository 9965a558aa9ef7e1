"""Modules print and parse back as they were, and text that is no module ends in a coded error with its place."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ir.graph import every_op
from tests.ir.random_modules import modules
from tilewright.errors import IRError, ParseError
from tilewright.ir.dims import Dim
from tilewright.ir.dtypes import F32
from tilewright.ir.graph.dialect import GRAPH_OPS
from tilewright.ir.graph.structure import FuncOp
from tilewright.ir.module import (
    dim_space,
    function,
    functions,
    new_module,
    parse_module,
    print_module,
    states,
    weights,
)
from tilewright.ir.types import TensorType
from tilewright.ir.verifier import verify


def test_a_module_with_every_op_parses_back() -> None:
    module = every_op.build().module
    assert every_op.op_names(module) >= {op.name for op in GRAPH_OPS}
    verify(module)
    text = print_module(module)
    back = parse_module(text)
    assert back.is_structurally_equivalent(module)
    assert print_module(back) == text


@given(modules())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_random_modules_parse_back(module: object) -> None:
    verify(module)  # type: ignore[arg-type]
    text = print_module(module)  # type: ignore[arg-type]
    back = parse_module(text)
    assert back.is_structurally_equivalent(module)  # type: ignore[arg-type]
    assert print_module(back) == text


def test_locations_and_paths_survive() -> None:
    text = (
        'graph.func() {arg_names = ["x"], result_names = ["y"], sym_name = "main"} {\n'
        '^bb0(%0 : !graph.tensor<["n"], f32>):\n'
        '  %1 = graph.map(args=[%0]) {fn = "exp"} : !graph.tensor<["n"], f32> loc("a \\C3\\A9:3") path("net.block")\n'
        "  graph.return(values=[%1])\n"
        "}\n"
    )
    op = function(parse_module(text), "main").block.first_op
    assert op is not None
    assert (op.loc, op.path) == ("a é:3", "net.block")  # type: ignore[attr-defined]
    assert 'path("net.block")' in print_module(parse_module(text))


def test_defaults_are_not_printed_and_come_back() -> None:
    text = print_module(every_op.build().module)
    assert "transpose_b = false" not in text
    assert 'softcap = "0.0"' not in text
    assert "transpose_b = true" in text


@pytest.mark.parametrize(
    "dims",
    [
        (),
        (Dim("b", 1, 64), Dim("t", 0, None)),
        (Dim("n", 0, 9, "read"), Dim("hit", 0, 128, "runtime"), Dim("b", 3, 3)),
    ],
)
def test_the_dim_space_keeps_order_bounds_and_kinds(dims: tuple[Dim, ...]) -> None:
    module = new_module(dims)
    assert tuple(dim_space(parse_module(print_module(module))).dims.values()) == dims


MAIN = """builtin.module attributes {{tw.dims = #tw.dim_space<["n: 1..4"]>}} {{
  graph.func() {{arg_names = ["x"], result_names = ["y"], sym_name = "main"}} {{
  ^bb0(%0 : !graph.tensor<["n", 3], f32>):
    {line}
    graph.return(values=[%1])
  }}
}}
"""


def test_the_frame_of_the_following_test_is_itself_right() -> None:
    parse_module(MAIN.format(line='%1 = graph.map(args=[%0]) {fn = "exp"} : !graph.tensor<["n", 3], f32>'))


@pytest.mark.parametrize(
    ("line", "place", "says"),
    [
        ("%1 = graph.nothing(%0)", "4:", "there is no op graph.nothing; `tilewright ops` lists them"),
        ("%1 = graph.cast(%0)", "4:20", "needs the properties dtype"),
        ('%1 = graph.cast(%0) {dtype = "f32", size = 3} : !graph.tensor<["n", 3], f32>', "4:", "no property 'size'"),
        ('%1 = graph.cast(%0) {dtype = 32} : !graph.tensor<["n", 3], f32>', "4:", "string literal expected"),
        (
            '%1 = graph.cast(%0, %0) {dtype = "f32"} : !graph.tensor<["n", 3], f32>',
            "4:",
            "graph.cast is written graph.cast(%x); got 2 operands without a name",
        ),
        ('%1 = graph.cast(%0) {dtype = "f32"} : !graph.tensor<["n", 3], float>', "4:67", "no dtype is called 'float'"),
        ('%1 = graph.cast(%0) {dtype = "f32"} : !graph.tensor<["n +", 3], f32>', "4:", "expected a number or a name"),
        ('%1 = graph.cast(%0) {dtype = "f32"}', "4:20", "1 results, got 0 result types"),
        ('%1 = graph.cast(%2) {dtype = "f32"} : !graph.tensor<["n", 3], f32>', "", "%2"),
        ("%1 = = graph.cast(%0)", "4:10", ""),
    ],
)
def test_broken_text_names_its_line_and_column(line: str, place: str, says: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_module(MAIN.format(line=line), "net.mlir")
    assert f"at net.mlir:{place}" in str(caught.value)
    assert says in str(caught.value)


def test_text_with_wrong_types_is_refused_with_every_reason() -> None:
    lines = (
        '%1 = graph.map(args=[%0]) {fn = "exp"} : !graph.tensor<["n", 4], f32> loc("a.py:1")\n'
        '%2 = graph.map(args=[%0]) {fn = "cosh"} : !graph.tensor<["n", 3], f32> loc("a.py:2")'
    )
    with pytest.raises(IRError) as caught:
        parse_module(MAIN.format(line=lines))
    # places of this text: the lines of a model that its ops name are not what anybody wrote here
    assert [p.where for p in caught.value.problems] == ["<text>:4:5", "<text>:5:1"]
    assert "operands imply (f32[n, 3]), declared (f32[n, 4])" in str(caught.value)


@pytest.mark.parametrize("dim", ["n", "n: 4..1", "n: 1..4 often", "min: 1..2", "n: -1..2"])
def test_a_broken_dim_space_is_an_error(dim: str) -> None:
    with pytest.raises(ParseError):
        parse_module(f'builtin.module attributes {{tw.dims = #tw.dim_space<["{dim}"]>}} {{\n}}\n')


def test_a_string_without_end_is_refused_at_once() -> None:
    for broken in ('"' + "a" * 5000, '"' + "a" * 5000 + '\\q"'):
        with pytest.raises(ParseError, match=r"no closing quote.*at net:2:12\)"):
            parse_module(f'builtin.module {{ // "\n  "test.op"{broken}\n}}', "net")


def test_nesting_without_end_is_an_error() -> None:
    with pytest.raises(ParseError, match="nested too deeply"):
        parse_module("builtin.module {" * 3000)


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_text_is_parsed_or_refused_with_a_code(data: st.DataObject) -> None:
    text = MAIN.format(line='%1 = graph.map(args=[%0]) {fn = "exp"} : !graph.tensor<["n", 3], f32> loc("a:1")')
    at = data.draw(st.integers(0, len(text)))
    until = data.draw(st.integers(at, min(at + 8, len(text))))
    damaged = text[:at] + data.draw(st.text(alphabet='%{}[]()<>,:="#!^-*abf01. \n\\', max_size=4)) + text[until:]
    # any other exception fails this test
    with contextlib.suppress(ParseError, IRError):
        parse_module(damaged)


def test_functions_weights_and_states_are_found() -> None:
    module = every_op.build().module
    assert list(functions(module)) == ["double", "prepare", "main"]
    assert list(weights(module)) == ["w", "scale", "gain", "gate_up", "down", "halves", "kernel"]
    assert str(states(module)["memory"]) == "f32[8]"
    with pytest.raises(IRError, match="use one of: double, prepare, main"):
        function(module, "decode")


def test_an_empty_module_has_nothing() -> None:
    module = parse_module("builtin.module {\n}\n")
    assert functions(module) == {}
    assert dim_space(module).dims == {}
    with pytest.raises(IRError, match="it has none"):
        function(module, "main")
    func = FuncOp.begin("main", {"x": TensorType.of([2], F32)})
    module.body.block.add_op(func.finish(list(func.block.args), ["y"]))
    verify(module)

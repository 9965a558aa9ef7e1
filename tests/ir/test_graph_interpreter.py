"""The graph interpreter runs whole modules as torch would, and stops with a code at the op that breaks its word."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

from tests.ir import random_modules
from tests.ir.graph import every_op
from tilewright.errors import (
    ArgumentError,
    DimDeclarationError,
    DimMismatchError,
    DimRangeError,
    DTypeError,
    InterpreterError,
    RankError,
    StateError,
    TilewrightError,
    WeightsError,
)
from tilewright.ir.graph.externs import EXTERNS
from tilewright.ir.graph_interpreter import GraphInterpreter, interpret
from tilewright.ir.module import parse_module, print_module


def program(
    body: str, arguments: str = '"x"', types: str = '%0 : !graph.tensor<["n", 3], f32>', dims: str = ""
) -> ModuleOp:
    """A module with one function @main that returns %r."""
    return parse_module(f"""builtin.module attributes {{tw.dims = #tw.dim_space<["n: 1..8"{dims}]>}} {{
      graph.func() {{arg_names = [{arguments}], result_names = ["r"], sym_name = "main"}} {{
      ^bb0({types}):
        {body}
        graph.return(values=[%r])
      }}
    }}""")


EXP = '%r = graph.map(args=[%0]) {fn = "exp"} : !graph.tensor<["n", 3], f32>'


def test_inputs_come_by_name_or_in_order() -> None:
    x = torch.randn(4, 3)
    for inputs in ({"x": x}, [x], (x,)):
        assert torch.equal(interpret(program(EXP), inputs)["r"], x.exp())  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 2, 13, 64])
def test_a_module_with_every_op_runs_at_any_size(tokens: int) -> None:
    module, weights, states = every_op.build()
    seen: set[str] = set()
    found = interpret(
        module,
        every_op.Ready.inputs(tokens),
        weights=weights,
        states=states,
        observe=lambda op, values: seen.add(op.name),
    )
    assert found["written"].shape == (tokens, 8)
    assert not found["written"].isnan().any()
    assert seen == every_op.op_names(module) - {"builtin.module", "graph.func", "graph.return", "graph.yield"}


def test_wide_runs_differ_by_rounding_only() -> None:
    module, weights, states = every_op.build()
    inputs = every_op.Ready.inputs(9)
    narrow = interpret(module, inputs, weights=weights, states=dict(states))
    wide = interpret(module, inputs, weights=weights, states=dict(states), wide=True)
    for name, value in wide.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(narrow[name].double(), value, rtol=1e-3, atol=1e-4)
    assert not torch.equal(narrow["written"].double(), wide["written"])


@given(random_modules.modules(), st.sampled_from([(0, 3), (1, 1), (2, 5), (8, 0)]))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_printing_and_parsing_does_not_change_what_a_module_computes(module: Any, sizes: tuple[int, int]) -> None:
    inputs, weights = random_modules.operands(*sizes), random_modules.weights()
    (before,) = interpret(module, inputs, weights=weights).values()
    (after,) = interpret(parse_module(print_module(module)), inputs, weights=weights).values()
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
    (wide,) = interpret(module, inputs, weights=weights, wide=True).values()
    assert wide.dtype == torch.float64
    assert wide.shape == before.shape == (*sizes, random_modules.WIDTH)


def test_states_are_read_then_replaced() -> None:
    module = program(
        '%s = graph.state_read() {name = "seen"} : !graph.tensor<[3], f32>\n'
        '%m = graph.reduce(%0) {axes = [0], fn = "max"} : !graph.tensor<[3], f32>\n'
        '%t = graph.map(args=[%s, %m]) {fn = "max"} : !graph.tensor<[3], f32>\n'
        'graph.state_write(%t) {name = "seen"}\n'
        '%u = graph.state_read() {name = "seen"} : !graph.tensor<[3], f32>\n'
        '%r = graph.map(args=[%u]) {fn = "neg"} : !graph.tensor<[3], f32>'
    )
    start = torch.zeros(3)
    interpreter = GraphInterpreter(module, states={"seen": start})
    for _ in range(2):
        x = torch.randn(4, 3)
        expected = torch.maximum(interpreter.states["seen"], x.amax(0))
        assert torch.equal(interpreter.run([x])["r"], -expected)
        assert torch.equal(interpreter.states["seen"], expected)
    assert torch.equal(start, torch.zeros(3))


def test_prepare_runs_once() -> None:
    module, weights, states = every_op.build()
    runs: list[str] = []
    interpreter = GraphInterpreter(
        module,
        weights=weights,
        states=states,
        observe=lambda op, values: runs.append(op.name) if op.name == "graph.quantize" else None,
    )
    for tokens in (2, 3):
        interpreter.run(every_op.Ready.inputs(tokens))
    assert runs == ["graph.quantize"]
    assert list(interpreter.packed()) == ["w.turned"]


def test_values_are_freed_after_their_last_use() -> None:
    body = "\n".join(
        f'%{i + 1} = graph.map(args=[%{i}]) {{fn = "neg"}} : !graph.tensor<["n", 3], f32>' for i in range(20)
    )
    module = program(body + '\n%r = graph.map(args=[%20]) {fn = "neg"} : !graph.tensor<["n", 3], f32>')
    alive: list[Any] = []
    most = 0

    def count(op: Any, values: Any) -> None:
        nonlocal most
        alive.append(weakref.ref(values[0]))
        most = max(most, sum(r() is not None for r in alive))

    interpret(module, [torch.randn(4, 3)], observe=count)
    assert most <= 2


def test_a_dim_of_a_sum_is_solved() -> None:
    module = program(EXP.replace('["n", 3]', '["2*n + 1", 3]'), types='%0 : !graph.tensor<["2*n + 1", 3], f32>')
    assert interpret(module, [torch.zeros(7, 3)])["r"].shape == (7, 3)
    with pytest.raises(DimMismatchError, match=r"axis 0 of x is 6, declared 2\*n \+ 1, which no n gives"):
        interpret(module, [torch.zeros(6, 3)])


def test_a_read_dim_comes_from_the_input_of_its_name() -> None:
    module = program(
        '%r = graph.slice(%0) {starts = [0, 0], stops = ["take", 3]} : !graph.tensor<["take", 3], f32>',
        arguments='"x", "take"',
        types='%0 : !graph.tensor<["n", 3], f32>, %1 : !graph.tensor<[], i64>',
        dims=', "take: 0..8 read"',
    )
    assert interpret(module, [torch.zeros(5, 3), torch.tensor(2)])["r"].shape == (2, 3)
    with pytest.raises(InterpreterError, match=r"0\.\.6 is not a range inside its 5 elements"):
        interpret(module, [torch.zeros(5, 3), torch.tensor(6)])
    with pytest.raises(DimRangeError, match=r"take is 9, declared take: 0\.\.8"):
        interpret(module, [torch.zeros(5, 3), torch.tensor(9)])


def test_a_runtime_dim_takes_the_size_it_meets() -> None:
    EXTERNS["tests.positive"] = lambda x: x[x[:, 0] > 0]
    module = program(
        '%1 = graph.extern(args=[%0]) {callee = "tests.positive"} : !graph.tensor<["hits", 3], f32>\n'
        '%r = graph.map(args=[%1]) {fn = "exp"} : !graph.tensor<["hits", 3], f32>',
        dims=', "hits: 0..4 runtime"',
    )
    x = torch.tensor([[1.0] * 3, [-1.0] * 3, [2.0] * 3])
    assert interpret(module, [x])["r"].shape == (2, 3)
    with pytest.raises(InterpreterError, match=r"hits is 5, declared hits: 0\.\.4"):
        interpret(module, [torch.ones(5, 3)])


@pytest.mark.parametrize(
    ("inputs", "error", "says"),
    [
        ([], ArgumentError, "0 inputs for 1 arguments"),
        ({"y": torch.zeros(2, 3)}, ArgumentError, "y is not an argument"),
        ({"y": torch.zeros(2, 3)}, ArgumentError, "x is missing"),
        ([torch.zeros(2, 3).double()], DTypeError, "x is torch.float64, declared f32"),
        ([torch.zeros(3)], RankError, "x has 1 axes, 2 are declared"),
        ([torch.zeros(2, 4)], DimMismatchError, "axis 1 of x is 4, declared 3"),
        ([torch.zeros(9, 3)], DimRangeError, 'tw.Dim("n", 1, 9)'),
        ([torch.zeros(0, 3)], DimRangeError, 'tw.Dim("n", 0, 8)'),
    ],
)
def test_inputs_that_do_not_fit(inputs: Any, error: type[TilewrightError], says: str) -> None:
    with pytest.raises(error) as caught:
        interpret(program(EXP), inputs)
    assert says in str(caught.value)


def test_two_axes_of_one_dim_must_agree() -> None:
    module = program(
        '%r = graph.map(args=[%0, %1]) {fn = "add"} : !graph.tensor<["n", 3], f32>',
        arguments='"x", "y"',
        types='%0 : !graph.tensor<["n", 3], f32>, %1 : !graph.tensor<["n", 3], f32>',
    )
    with pytest.raises(DimMismatchError, match=r"axis 0 of y is 5, declared n = 4"):
        interpret(module, [torch.zeros(4, 3), torch.zeros(5, 3)])


def test_a_dim_no_input_determines_is_named() -> None:
    module = program('%r = graph.iota() {} : !graph.tensor<["m"], f32>', dims=', "m: 1..4"')
    with pytest.raises(DimDeclarationError, match="no input's shape determines the dims m"):
        interpret(module, [torch.zeros(2, 3)])


def test_weights_and_states_are_checked_together() -> None:
    module, weights, states = every_op.build()
    del weights["w"]
    weights["gain"] = torch.randn(9)
    weights["down"] = weights["down"].double()
    with pytest.raises(WeightsError) as caught:
        interpret(module, every_op.Ready.inputs(3), weights=weights, states=states)
    assert [p.text for p in caught.value.problems] == [
        "w is missing (f32[8, 8])",
        "gain is [9], the module has f32[8]",
        "down is torch.float64, the module has f32[3, 8, 6]",
    ]
    with pytest.raises(StateError, match="memory has no value"):
        interpret(module, every_op.Ready.inputs(3), weights=every_op.build().weights)


GATHER = """%i = graph.reduce(%0) {axes = [1], fn = "argmax"} : !graph.tensor<["n"], i64>
        %r = graph.gather(%0, %i) : !graph.tensor<["n", 3], f32> loc("net.py:7")"""


def test_an_op_that_fails_is_named_with_the_users_line() -> None:
    with pytest.raises(InterpreterError) as caught:
        interpret(program(GATHER), [torch.tensor([[0.0, 1.0, 0.0]])])
    assert str(caught.value) == (
        "TW029 reference run failed: graph.gather: indices from 1 to 1 into an axis of 1  (at net.py:7)\n"
        "  next: look at the operands' values and shapes"
    )


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (lambda x: x[:, :2], "gave float32[4, 2], its type says f32[n, 3] = float32[4, 3]"),
        (lambda x: x.double(), "gave float64[4, 3]"),
        (lambda x: x[0], "gave float32[3]"),
        (lambda x: (x, x), "gave 2 results, 1 are declared"),
        (lambda x: x @ x, "RuntimeError: mat1 and mat2"),
    ],
)
def test_a_result_that_is_not_what_its_type_says_names_the_op(result: Any, says: str) -> None:
    EXTERNS["tests.wrong"] = result
    module = program(
        '%r = graph.extern(args=[%0]) {callee = "tests.wrong"} : !graph.tensor<["n", 3], f32> loc("a.py:2")'
    )
    with pytest.raises(InterpreterError) as caught:
        interpret(module, [torch.randn(4, 3)])
    assert says in str(caught.value)
    assert "graph.extern" in str(caught.value)
    assert "a.py:2" in str(caught.value)


def test_a_symbol_nobody_settles_is_named() -> None:
    module = program('%r = graph.iota() {} : !graph.tensor<["hits + 1"], f32>', dims=', "hits: 0..8 runtime"')
    with pytest.raises(InterpreterError, match=r"graph\.iota: KeyError: 'hits'"):
        interpret(module, [torch.zeros(2, 3)])
    EXTERNS["tests.three"] = lambda x: x.new_zeros(3)
    module = program(
        '%r = graph.extern(args=[%0]) {callee = "tests.three"} : !graph.tensor<["hits + 1"], f32>',
        dims=', "hits: 0..8 runtime"',
    )
    with pytest.raises(InterpreterError, match="the sizes of hits are unknown"):
        interpret(module, [torch.zeros(2, 3)])


def test_ops_of_other_dialects_need_a_launcher() -> None:
    module = program(EXP)
    from xdsl.dialects.test import TestOp

    (op,) = [op for op in module.walk() if op.name == "graph.map"]
    foreign = TestOp(operands=list(op.operands), result_types=[op.results[0].type])
    op.parent.insert_op_before(foreign, op)  # type: ignore[union-attr]
    with pytest.raises(InterpreterError, match=r"test\.op is not a graph op"):
        interpret(module, [torch.zeros(2, 3)])
    calls: list[dict[str, int]] = []

    def launch(op: Any, operands: Any, sizes: Any) -> Any:
        calls.append(dict(sizes))
        return operands

    interpret(module, [torch.zeros(2, 3)], launch=launch)
    assert calls == [{"n": 2}]

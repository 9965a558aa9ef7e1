"""What weights alone decide is computed in @prepare, once; what a call decides, or costs nothing, is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.structure import FuncOp, StateReadOp
from tilewright.ir.types import TensorType
from tilewright.passes.hoist_weights import HoistWeights
from tilewright.passes.prepare import Prepare
from tilewright.testing import ground

Build = Callable[[Graph, SSAValue], SSAValue]


def hoisted(build: Build, seed: int) -> tuple[list[str], list[str]]:
    """The ops of @prepare and of @main for build(x), x [b, 6]."""
    g = Graph("b: 1..4", dtype="f64")
    module = ground(g.done(build(g, g.input("x", ["b", 6]))), HoistWeights(), seed=seed)
    return within(module, "prepare"), within(module, "main")


def within(module: ModuleOp, kind: str) -> list[str]:
    return [n for f in module.walk() if isinstance(f, FuncOp) and f.kind.data == kind for n in ops_of(f)]


def state(g: Graph) -> SSAValue:
    return g.op(StateReadOp, name="s", result_types=[TensorType.of([6], g.dtype)])


@pytest.mark.parametrize(
    ("build", "prepared", "main"),
    [
        (lambda g, x: g.map("mul", x, g.map("exp", g.weight("w", [6]))), ["exp"], ["packed", "mul"]),
        # a result itself
        (lambda g, x: g.map("exp", g.weight("w", [6])), ["exp"], ["packed"]),
        # nothing to compute: the weight's own bytes
        (lambda g, x: g.map("mul", x, g.reshape(g.weight("w", [6, 1]), 6)), [], ["reshape", "mul"]),
        (lambda g, x: g.map("mul", x, g.reshape(g.reshape(g.weight("w", [6, 1]), 6), 1, 6)), [], [*"rrm"]),
        # a number inside a kernel
        (lambda g, x: g.map("mul", x, 0.5), [], ["mul"]),
        (lambda g, x: g.map("mul", x, g.constant([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [6])), [], ["packed", "mul"]),
        (lambda g, x: g.map("mul", x, g.cast(g.iota(6), "f64")), [], ["iota", "cast", "mul"]),
        # what a call decides
        (
            lambda g, x: g.map("mul", x, g.map("mul", g.weight("w", [6]), g.cast(g.dim("b"), "f64"))),
            [],
            ["dim", "cast", "mul", "mul"],
        ),
        (lambda g, x: g.map("mul", x, g.map("mul", g.weight("w", [6]), state(g))), [], ["state_read", "mul", "mul"]),
    ],
)
def test_what_goes_to_prepare(build: Build, prepared: list[str], main: list[str], seed: int) -> None:
    main = ["reshape", "reshape", "mul"] if main == [*"rrm"] else main
    assert hoisted(build, seed) == (prepared, main)


def test_what_two_results_need_is_computed_once(seed: int) -> None:
    def build(g: Graph, x: SSAValue) -> SSAValue:
        shared = g.map("exp", g.weight("w", [6]))
        return g.map("add", g.map("mul", x, g.map("sin", shared)), g.map("cos", shared))

    assert sorted(hoisted(build, seed)[0]) == ["cos", "exp", "sin"]


def test_a_result_of_prepare_is_returned_once_under_one_name() -> None:
    g = Graph()
    first, second = (g.map(fn, g.weight("w", [6])) for fn in ("exp", "sin"))
    prepare = Prepare(g.done(first, second))
    assert prepare.add(first, "made") == "made"
    assert prepare.add(second, "made") == "made.2"
    assert prepare.add(first, "again") == "made"
    assert list(prepare.results()) == ["made", "made.2"]

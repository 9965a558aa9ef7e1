"""`ground` tells a pass that changes results from one that does not, down to the bit where asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from tests.passes.graphs import Graph
from tilewright.errors import NumericMismatchError
from tilewright.ir.attributes import Float, Str
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.reduction import NormOp
from tilewright.ir.graph.structure import StateReadOp, StateWriteOp
from tilewright.ir.module import print_module
from tilewright.ir.passing import Context, Pass
from tilewright.ir.types import TensorType
from tilewright.testing import ground, ir, run, transform

TEXT = """
builtin.module attributes {tw.dims = #tw.dim_space<["b: 0..4"]>} {
  graph.func() {sym_name = "main", arg_names = ["x"], result_names = ["y"]} {
  ^bb0(%x: !graph.tensor<["b", 3], f32>):
    %y = graph.map(args=[%x]) {fn = "exp"} : !graph.tensor<["b", 3], f32>
    graph.return(values=[%y])
  }
}
"""


@dataclass(frozen=True)
class Edit(Pass):
    """Does to every op what a test says."""

    name: ClassVar[str] = "edit"
    change: Callable[[object], None] = lambda op: None

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for op in module.walk():
            self.change(op)


def becomes(fn: str) -> Edit:
    def change(op: object) -> None:
        if isinstance(op, MapOp):
            op.fn = Str(fn)

    return Edit(change)


def test_text_becomes_a_module_that_runs() -> None:
    x = torch.tensor([[0.0, 1.0, 2.0]])
    assert torch.equal(run(TEXT, {"x": x})["y"], x.exp())
    assert run(ir(TEXT), {"x": x.double()}, wide=True)["y"].dtype == torch.float64


def test_a_pass_that_changes_nothing_grounds(seed: int) -> None:
    after = ground(TEXT, Edit(), seed=seed, exact=True)
    assert print_module(after) == print_module(ir(TEXT))


def test_the_module_given_is_not_the_one_changed() -> None:
    module = ir(TEXT)
    transform(module, becomes("sin"))
    assert print_module(module) == print_module(ir(TEXT))


@pytest.mark.parametrize("fn", ["sin", "exp2", "neg"])
def test_other_numbers_are_found_and_named(fn: str, seed: int) -> None:
    with pytest.raises(NumericMismatchError, match=rf"y is off by .* seed {seed}"):
        ground(TEXT, becomes(fn), seed=seed, sizes={"b": 3})


def test_an_empty_batch_alone_tells_nothing(seed: int) -> None:
    ground(TEXT, becomes("sin"), seed=seed, sizes={"b": 0})


def test_a_constant_that_is_slightly_off_is_found(seed: int) -> None:
    g = Graph(dtype="f64")
    module = g.done(g.norm(g.input("x", [3, 8]), eps=1e-5))

    def change(op: object) -> None:
        if isinstance(op, NormOp):
            op.eps = Float(1.00001e-5)

    with pytest.raises(NumericMismatchError, match="is rounding"):
        ground(module, Edit(change), seed=seed)
    ground(module, Edit(change), seed=seed, rounding="f32")


def test_nan_where_there_was_a_number_is_found(seed: int) -> None:
    with pytest.raises(NumericMismatchError, match="NaN or infinite"):
        ground(TEXT.replace('"exp"', '"abs"'), becomes("log"), seed=seed, sizes={"b": 3})


def test_exact_means_every_bit(seed: int) -> None:
    g = Graph()
    x = g.input("x", [300])
    module = g.done(g.map("silu", x))

    def change(op: object) -> None:
        if isinstance(op, MapOp) and op.fn.data == "silu":
            gate = MapOp.make([op.args[0]], fn="sigmoid")
            product = MapOp.make([op.args[0], gate.out], fn="mul")
            block = op.parent
            assert block is not None
            block.insert_ops_before([gate, product], op)
            op.out.replace_all_uses_with(product.out)

    ground(module, Edit(change), seed=seed)
    with pytest.raises(NumericMismatchError, match="differs in the bits"):
        ground(module, Edit(change), seed=seed, exact=True)


def test_what_a_state_ends_as_is_compared(seed: int) -> None:
    g = Graph()
    x = g.input("x", [5])
    kind = TensorType.of([5], g.dtype)
    old = g.op(StateReadOp, name="s", result_types=[kind])
    g.function.block.add_op(StateWriteOp.make(g.map("add", old, x), name="s"))
    with pytest.raises(NumericMismatchError, match="state s is off"):
        ground(g.done(x), becomes("sub"), seed=seed)


def test_inputs_can_be_given(seed: int) -> None:
    zero = {"x": torch.zeros(2, 3, dtype=torch.float64)}
    ground(TEXT.replace('"exp"', '"abs"'), becomes("neg"), seed=seed, sizes={"b": 2}, inputs=zero)


def test_a_module_that_does_not_print_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright import testing

    module = ir(TEXT)
    shown = iter(["one", "another"])
    monkeypatch.setattr(testing, "print_module", lambda module: next(shown))
    monkeypatch.setattr(testing, "parse_module", lambda text: module)
    with pytest.raises(NumericMismatchError, match="does not print and parse back"):
        ground(module, Edit())

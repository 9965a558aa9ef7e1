"""Arguments of a call: drawn so that the model can read them, and put where its parameters want them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import tilewright
from tilewright.cli.inputs import as_torch, call_of, draw, index_limits, named_outputs, sizes_of, usual_sizes
from tilewright.errors import OptionError
from tilewright.ir.dims import Dim, Expr
from tilewright.ir.dtypes import BF16, F32, I64
from tilewright.ir.signature import Argument, Input, Output, Parameter, Signature
from tilewright.ir.trees import LEAF, Tree
from tilewright.testing import ir, transform

GATHERS = """
builtin.module attributes {tw.dims = #tw.dim_space<["b: 1..4", "t: 1..9"]>} {
  graph.func() {sym_name="main", arg_names=["ids","narrow","mask","summed","table"], result_names=["y"]} {
  ^bb(%ids: !graph.tensor<["b","t"],i64>, %narrow: !graph.tensor<["t"],i32>, %mask: !graph.tensor<["b","t"],i64>,
      %summed: !graph.tensor<["b","t"],i64>, %table: !graph.tensor<["t",2],f32>):
    %w = graph.weight() {name="w"} : !graph.tensor<[30,2],f32>
    %short = graph.weight() {name="s"} : !graph.tensor<[7,2],f32>
    %flat = graph.reshape(%ids) {dims=["b*t"]} : !graph.tensor<["b*t"],i64>
    %a = graph.gather(%w, %flat) : !graph.tensor<["b*t",2],f32>
    %b = graph.gather(%short, %flat) : !graph.tensor<["b*t",2],f32>
    %wide = graph.cast(%narrow) {dtype="i64"} : !graph.tensor<["t"],i64>
    %c = graph.gather(%table, %wide) : !graph.tensor<["t",2],f32>
    %d = graph.map(args=[%summed,%mask]) {fn="add"} : !graph.tensor<["b","t"],i64>
    %e = graph.gather(%w, %d) : !graph.tensor<["b","t",2],f32>
    %f = graph.map(args=[%a,%b]) {fn="add"} : !graph.tensor<["b*t",2],f32>
    %g = graph.reshape(%f) {dims=["b","t",2]} : !graph.tensor<["b","t",2],f32>
    %h = graph.map(args=[%g,%e]) {fn="add"} : !graph.tensor<["b","t",2],f32>
    %y = graph.map(args=[%h,%c]) {fn="add"} : !graph.tensor<["b","t",2],f32>
    graph.return(values=[%y])
  }
}
"""


@pytest.mark.parametrize("passes", ["", "canonicalize,fuse"])
def test_what_indexes_an_axis_is_known_through_views_casts_and_groups(passes: str) -> None:
    module = transform(GATHERS, passes) if passes else ir(GATHERS)
    limits = {name: str(size) for name, size in index_limits(module).items()}
    # of two axes the shorter; what goes through arithmetic is not followed
    assert limits == {"ids": "7", "narrow": "t"}


class Reads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(5, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, keep: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (self.table(ids) + x) * mask.unsqueeze(-1) * keep


def test_drawn_inputs_fit_the_model(seed: int) -> None:
    t = tilewright.Dim("t", 1, 50)
    ids = torch.zeros(2, dtype=torch.int64)
    example = (ids, ids.clone(), torch.ones(3, dtype=torch.bool), torch.randn(2, 3))
    compiled = tilewright.compile(Reads().eval(), args=example, dims={"ids": (t,), "mask": (t,), "x": (t, None)})
    program = compiled.code.program
    limits = index_limits(ir(compiled.code.texts["captured"]))
    leaves = draw(program, {"t": 40}, limits, np.random.default_rng(seed))
    ids_, mask, keep, x = leaves
    assert [a.dtype.name for a in leaves] == ["int64", "int64", "bool", "float32"]
    assert set(np.unique(ids_)) == {0, 1, 2, 3, 4}
    assert set(np.unique(mask)) == {0, 1}
    assert mask[0] == keep[0] == 1
    assert x.shape == (40, 3)
    assert 0.5 < x.std() < 1.5
    given = draw(program, {"t": 40}, limits, np.random.default_rng(seed), {"mask": ids_ * 0})
    assert not given[1].any()
    args, kwargs = call_of(program.signature, leaves)
    np.testing.assert_allclose(
        compiled(*args, **kwargs),
        Reads.forward(compiled_model(compiled), *map(torch.from_numpy, leaves)).detach(),
        atol=1e-6,
    )


def compiled_model(compiled: Any) -> Any:
    """A model with the weights of a compiled one."""
    model = Reads()
    stored = compiled.executable.weights.weight("table.weight").numpy()
    model.table.weight.data = torch.from_numpy(np.array(stored))
    return model


def test_sizes_come_from_the_line_then_from_arrays_then_are_usual() -> None:
    dims = [Dim("a", 1, 64), Dim("b", 1, 3), Dim("c", 100), Dim("d", 0, 9, "runtime")]
    assert usual_sizes(dims, {}) == {"a": 8, "b": 3, "c": 100}
    assert usual_sizes(dims, {"a": 1, "b": 2}) == {"a": 1, "b": 2, "c": 100}
    with pytest.raises(OptionError) as caught:
        usual_sizes(dims, {"a": 65, "c": 9, "e": 1})
    assert str(caught.value) == (
        "TW008 wrong option: 3 problems\n  - the program has no dim 'e'\n  - a = 65 is outside 1..64\n"
        "  - c = 9 is outside 100..\n  next: give sizes like a=8,b=3,c=100"
    )


def signature(*parameters: Parameter, arguments: dict[str, Tree]) -> Signature:
    listed = tuple(
        Argument(name, tree, tuple(Input(path, F32) for path in tree.paths(name))) for name, tree in arguments.items()
    )
    return Signature(parameters, listed, LEAF, (Output(F32, index=0),))


def test_a_call_is_put_together_by_the_kinds_of_its_parameters() -> None:
    pair = Tree("dict", ("p", "q"), (LEAF, LEAF))
    plain = signature(Parameter("a"), Parameter("b", "keyword"), arguments={"a": LEAF, "b": pair})
    assert call_of(plain, [1, 2, 3]) == ((1,), {"b": {"p": 2, "q": 3}})
    spread = signature(
        Parameter("a"),
        Parameter("xs", "var_positional"),
        Parameter("k", "keyword"),
        arguments={"a": LEAF, "xs.0": LEAF, "xs.1": LEAF, "k": LEAF},
    )
    assert call_of(spread, [1, 2, 3, 4]) == ((1, 2, 3), {"k": 4})
    only = signature(Parameter("a", "positional"), Parameter("b"), arguments={"a": LEAF, "b": LEAF})
    assert call_of(only, [1, 2]) == ((1, 2), {})
    gap = signature(Parameter("a"), Parameter("left_out"), Parameter("b"), arguments={"a": LEAF, "b": LEAF})
    assert call_of(gap, [1, 2]) == ((1,), {"b": 2})


def test_constants_of_the_capture_are_part_of_the_call() -> None:
    made = Signature(
        (Parameter("x"), Parameter("flag")),
        (Argument("x", LEAF, (Input("x", F32),)), Argument("flag", LEAF, (Input("flag", constant=True),))),
        LEAF,
        (Output(F32, index=0),),
    )
    assert call_of(made, [7]) == ((7, True), {})


def test_given_arrays_state_sizes_of_dims_that_are_an_axis_alone() -> None:
    leaf = Input("x", I64, (Expr.of("b"), Expr.of("2*t"), Expr.of("t")))
    made = Signature((Parameter("x"),), (Argument("x", LEAF, (leaf,)),), LEAF, ())
    assert sizes_of(made, {"x": np.zeros((3, 8, 4))}) == {"b": 3, "t": 4}
    assert sizes_of(made, {"x": np.zeros(3)}) == sizes_of(made, {}) == {}


def test_bf16_arrays_keep_their_bits(rng: np.random.Generator) -> None:
    array = rng.standard_normal((3, 5)).astype(ml_dtypes.bfloat16)
    tensor = as_torch(array)
    assert tensor.dtype == torch.bfloat16
    assert np.array_equal(tensor.float().numpy(), array.astype(np.float32))
    assert BF16.numpy() == array.dtype


def test_outputs_are_named_by_their_place() -> None:
    tree = Tree("dict", ("y", "parts"), (LEAF, Tree("list", (), (LEAF, LEAF))))
    made = Signature((), (), tree, ())
    assert named_outputs(made, {"y": 1, "parts": [2, 3]}) == {"y": 1, "parts.0": 2, "parts.1": 3}
    assert named_outputs(Signature((), (), LEAF, ()), 5) == {"output": 5}

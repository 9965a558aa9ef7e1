"""verify_each="numeric" runs the module around every pass, kernels included, and names the pass that is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

import tilewright as tw
from tests.compiler.test_divergence import Block, SwapMaps
from tilewright.compiler.verify_each import NumericCheck
from tilewright.errors import NumericMismatchError
from tilewright.ir.passing import Context, Pass
from tilewright.passes.pipeline import default_pipeline
from tilewright.testing import context, ir

X = torch.randn(2, 3, 12)
DIMS = {"x": (tw.Dim("batch", 1, 4), tw.Dim("tokens", 1, 9), None)}


@pytest.mark.parametrize("precision", ["model", "bf16"])
def test_every_pass_of_the_default_pipeline_keeps_the_numbers(precision: str) -> None:
    compiled = tw.compile(Block().eval(), args=(X,), dims=DIMS, verify_each="numeric", precision=precision)
    assert compiled(X).shape == X.shape
    assert compiled.facts.cache == "off (verify_each)"


@pytest.mark.parametrize(
    ("where", "planted"),
    [
        ("recognize", SwapMaps()),
        ("lower-to-tile", SwapMaps(op="tile.map", old="exp", new="tanh")),
        ("place-levels", SwapMaps(op="tile.map", old="add", new="sub")),
    ],
)
def test_a_wrong_pass_is_named_at_any_level(where: str, planted: SwapMaps) -> None:
    with pytest.raises(NumericMismatchError) as caught:
        tw.compile(
            Block().eval(), args=(X,), dims=DIMS, passes=default_pipeline().after(where, planted), verify_each="numeric"
        )
    assert caught.value.problems[0].op == "after swap-maps"
    assert "'batch': 1, 'tokens': 1" in str(caught.value)
    assert "--verify-each=numeric" in caught.value.step


@dataclass(frozen=True)
class KeepOrder(Pass):
    """Does nothing."""

    name: ClassVar[str] = "keep-order"

    def run(self, module: ModuleOp, ctx: Context) -> None:
        return None


def test_sizes_and_values_are_the_same_for_every_pass() -> None:
    text = """
    builtin.module attributes {tw.dims = #tw.dim_space<["n: 0..9"]>} {
      graph.func() {sym_name = "main", arg_names = ["x"], result_names = ["y"]} {
      ^bb(%x: !graph.tensor<["n"], f32>):
        %y = graph.map(args=[%x]) {fn = "exp"} : !graph.tensor<["n"], f32>
        graph.return(values=[%y])
      }
    }
    """
    module = ir(text)
    ctx, check = context(module), NumericCheck(seed=4)
    with check.around(KeepOrder(), module, ctx):
        pass
    first = [(dict(sizes), values["inputs"]["x"].clone()) for sizes, values, _ in check._values]
    with check.around(KeepOrder(), module, ctx):
        pass
    again = [(dict(sizes), values["inputs"]["x"]) for sizes, values, _ in check._values]
    assert first[0][0] == {"n": 0}
    assert len(first) == 2
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))

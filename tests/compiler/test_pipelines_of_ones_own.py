"""Pipelines that a user edits: options stay in force beside them, and passes that read weights see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from xdsl.dialects.builtin import ModuleOp

import tilewright as tw
from tests.compiler.models import compile_mlp, mlp
from tilewright.compiler.code_key import plugins_of
from tilewright.errors import OptionError, PassOptionError
from tilewright.ir.backend import resolve_target
from tilewright.ir.passing import Context, Pass


def test_a_precision_is_kept_beside_passes() -> None:
    model = mlp(3)
    asked = compile_mlp(model, precision="bf16").facts.pipeline
    assert "set-precision" in asked
    for passes in (tw.pipeline(), str(tw.pipeline()), asked):
        assert compile_mlp(model, precision="bf16", passes=passes).facts.pipeline == asked


def test_two_statements_of_one_thing_are_refused() -> None:
    model = mlp(3)
    asked = compile_mlp(model, precision="bf16").facts.pipeline
    refused: list[tuple[dict[str, Any], str]] = [
        (
            {"precision": "f32", "passes": asked},
            "TW008 wrong option: precision='f32', and the pipeline has set-precision\n"
            "  next: leave set-precision out of passes",
        ),
        (
            {"materialise": True, "passes": tw.pipeline()},
            "TW008 wrong option: passes and materialise both name a pipeline\n  next: leave one of them out",
        ),
    ]
    for given, text in refused:
        with pytest.raises(OptionError) as caught:
            compile_mlp(model, **given)
        assert str(caught.value) == text


@dataclass(frozen=True)
class Largest(Pass):
    """Notes how large a weight is."""

    name: ClassVar[str] = "largest"
    reads_weights: ClassVar[bool] = True
    seen: ClassVar[list[float]] = []

    def run(self, module: ModuleOp, ctx: Context) -> None:
        self.seen.append(float(abs(ctx.weight("up.weight")).max()))


@dataclass(frozen=True)
class Undeclared(Largest):
    reads_weights: ClassVar[bool] = False


def test_a_pass_that_reads_weights_sees_them_and_they_are_in_the_key(tmp_path: Path) -> None:
    first, second = mlp(4), mlp(5)
    pipeline = tw.pipeline().after("recognize", Largest())
    Largest.seen.clear()
    for model in (first, first, second):
        compile_mlp(model, passes=pipeline, cache=tmp_path)
    assert Largest.seen == [model.up.weight.abs().max().item() for model in (first, second)]
    with pytest.raises(PassOptionError) as caught:
        compile_mlp(first, passes=tw.pipeline().after("recognize", Undeclared()), cache=False)
    assert "largest reads weight 'up.weight' but does not declare reads_weights" in str(caught.value)


def test_a_backend_from_outside_is_in_the_key_by_its_source() -> None:
    inside, _ = resolve_target("cpu")
    assert not plugins_of(tw.pipeline(), inside)

    def build(kernels: Any, machine: Any) -> Any:
        return inside.build(kernels, machine)

    outside = inside.__class__(**{**vars(inside), "build": build})
    (name,) = plugins_of(tw.pipeline(), outside)
    assert name.endswith("build")

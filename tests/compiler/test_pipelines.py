"""One place decides which passes run: what a backend adds runs for models, kernels and artifacts alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

import tilewright as tw
from tests.compiler.models import compile_mlp, mlp
from tilewright.compiler.pipelines import kernel_pipeline, planning_pipeline, whole_pipeline
from tilewright.errors import BackendManifestError, PassOrderError
from tilewright.ir import backend as backend_module
from tilewright.ir.backend import Backend, kernels_of, resolve_target
from tilewright.ir.passing import Context, Pass
from tilewright.passes import pipeline as pipeline_module


@dataclass(frozen=True)
class Inspect(Pass):
    """Looks at every kernel that a backend is about to build."""

    name: ClassVar[str] = "inspect-kernels"
    requires: ClassVar[tuple[str, ...]] = ()
    seen: ClassVar[list[list[str]]] = []

    def run(self, module: ModuleOp, ctx: Context) -> None:
        self.seen.append(list(kernels_of(module)))
        ctx.note("inspection", "kernels were looked at")


@dataclass(frozen=True)
class Point:
    """What another package registers."""

    name: str
    found: Any
    dist: None = None
    value: str = "elsewhere"

    def load(self) -> Any:
        return self.found


@pytest.fixture
def adds(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Backend]:
    """Makes the installed CPU backend one that adds passes; gives it."""
    plain = resolve_target("cpu")[0]
    monkeypatch.setattr(pipeline_module, "entry_points", lambda group: [Point("inspect-kernels", Inspect)])
    Inspect.seen.clear()

    def add(text: str) -> Backend:
        made = replace(plain, legalize=text)
        monkeypatch.setattr(backend_module, "entry_points", lambda group: [Point("cpu", made)])
        return made

    return add


def names(found: tw.Pipeline) -> list[str]:
    return [p.name for p in found.passes]


def test_what_a_backend_adds_runs_last_in_every_pipeline(adds: Callable[[str], Backend]) -> None:
    backend = adds("inspect-kernels,plan-memory")
    whole = whole_pipeline(backend)
    assert names(whole)[:-2] == names(tw.pipeline())
    for found in (
        whole,
        whole_pipeline(backend, materialise=True),
        whole_pipeline(backend, tw.pipeline().without("fold")),
        whole_pipeline(backend, precision="bf16"),
        kernel_pipeline(backend),
        planning_pipeline(backend),
    ):
        assert names(found)[-2:] == ["inspect-kernels", "plan-memory"]
    assert names(kernel_pipeline(backend)) == ["place-levels", "plan-memory", "inspect-kernels", "plan-memory"]
    assert names(planning_pipeline(backend))[0] == "plan-memory"
    # a whole pipeline's text gives the same one again
    assert whole_pipeline(backend, str(whole)) == whole
    assert names(whole_pipeline(adds(""))) == names(tw.pipeline())


def test_a_legalize_that_is_no_pipeline_is_a_fault_of_the_manifest(adds: Callable[[str], Backend]) -> None:
    for text, said in (
        ("inspect-kernel", "backend cpu: legalize: no pass is called 'inspect-kernel'"),
        ("fuse{", "backend cpu: legalize: pipeline: '}' is missing at column 6"),
        ("fuse{max-opps=3}", "backend cpu: legalize: fuse has no option 'max-opps'"),
    ):
        adds(text)
        with pytest.raises(BackendManifestError) as caught:
            compile_mlp(mlp(1), cache=False)
        assert said in str(caught.value)


def test_a_pipeline_without_lowering_is_refused_whatever_the_backend_adds(adds: Callable[[str], Backend]) -> None:
    with pytest.raises(PassOrderError, match="the pipeline has no lower-to-tile"):
        whole_pipeline(adds("inspect-kernels"), tw.pipeline().without("lower-to-tile"))


def test_models_kernels_and_artifacts_are_compiled_with_what_the_backend_adds(
    adds: Callable[[str], Backend], tmp_path: Path, rng: np.random.Generator
) -> None:
    model, x = mlp(7), torch.randn(5, 24)
    plain = compile_mlp(model, cache=tmp_path / "cache")
    assert not Inspect.seen
    adds("inspect-kernels")
    compiled = compile_mlp(model, cache=tmp_path / "cache")
    assert "miss" in compiled.facts.cache, "what a backend adds is in the key"
    assert len(Inspect.seen) == 1
    assert Inspect.seen[0]
    assert compiled.report.to_dict()["pipeline"] == f"{tw.pipeline()},inspect-kernels"
    assert "inspection: kernels were looked at" in str(compiled.report)
    assert "tile.kernel" in compiled.ir(after="inspect-kernels")
    assert torch.equal(compiled(x), plain(x))
    compiled.save(tmp_path / "mlp.tw")
    Inspect.seen.clear()
    again = tw.load(tmp_path / "mlp.tw", native=False)
    assert len(Inspect.seen) == 1
    assert torch.equal(again(x), plain(x))

    @tw.kernel("x f32[rows, 8] -> y f32[rows, 8]")
    def twice(b: Any, x: Any, y: Any) -> None:
        (i,) = b.grid(["rows"], [4])
        tile = b.load(b.dense(x), [i, 0], [4, 8])
        b.store(b.map("add", tile, tile), b.dense(y), [i, 0])

    Inspect.seen.clear()
    given = rng.standard_normal((7, 8)).astype(np.float32)
    made = twice.compile(cache=False)
    np.testing.assert_array_equal(made(given), 2 * given)
    assert Inspect.seen == [["twice"]]
    assert made.report.to_dict()["pipeline"] == "place-levels,plan-memory,inspect-kernels"
    twice.sources()
    assert len(Inspect.seen) == 2

"""What the report says kernels move and compute is what the tile interpreter and the running kernels count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.compiler.counting import check_counts
from tests.compiler.models import bert, compile_bert, compile_llama, llama, token_inputs
from tilewright.compiler.instrumented import CountingTwin
from tilewright.compiler.native_launches import NativeLaunches
from tilewright.ir.backend import machine_of
from tilewright.ir.graph_interpreter import GraphInterpreter
from tilewright.ir.module import parse_module, weights
from tilewright.ir.tile.traffic import kernel_traffic

Build = Callable[[], Any]


@pytest.fixture(scope="module", params=["bert", "bert in bf16", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    if request.param == "llama":
        return compile_llama(llama(0))
    return compile_bert(bert(0), precision="bf16" if "bf16" in request.param else "model")


@pytest.fixture(scope="module")
def twin(model: Any) -> CountingTwin:
    return CountingTwin(model)


def arguments(model: Any, batch: int, tokens: int) -> dict[str, Any]:
    given: dict[str, Any] = token_inputs(batch, tokens)
    if "use_cache" in {i.name for i in model.code.program.signature.inputs}:
        given["use_cache"] = False
    return given


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 7), (2, 11)])
def test_report_interpreter_and_running_kernels_count_the_same(
    model: Any, twin: CountingTwin, batch: int, tokens: int
) -> None:
    given = arguments(model, batch, tokens)
    counted = twin.run(**given)
    assert len(counted) == len(model.code.program.main.steps)
    sums = check_counts(model, counted, (), given)

    rows = {row.kernel: row for row in model.report.at(batch=batch, tokens=tokens).rows}
    assert rows.keys() == sums.keys()
    for name, row in rows.items():
        figures = model.report.counts[name].at({"batch": batch, "tokens": tokens})
        assert figures.flops * row.launches == sums[name].matrix + sums[name].vector
        assert figures.read * row.launches == sums[name].read
        assert figures.write * row.launches == sums[name].write
        if not model.report.counts[name].traffic.data_dependent:
            assert figures.bound <= figures.read + figures.write


def test_kernels_that_prepare_weights_count_the_same(model: Any, rng: np.random.Generator) -> None:
    module = parse_module(model.code.texts["tile"])
    backend, machine = machine_of(model.code.program.target)
    given = {
        name: torch.from_numpy(rng.standard_normal([d.evaluate({}) for d in kind.dims]).astype(np.float32))
        for name, kind in weights(module).items()
    }
    launches = NativeLaunches(module, backend, machine, instrument=True)
    GraphInterpreter(module, weights=given, launch=launches).packed()
    assert launches.counted
    for launch in launches.counted:
        kernel = launches.kernels[launch.kernel]
        assert +kernel_traffic(kernel).counts(launch.dims, launch.buffers) == launch.counts

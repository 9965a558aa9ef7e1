"""Whole programs on a device that runs grids: every step launched in order, Triton's interpreter as the device."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bench.models.minilm import build as minilm
from tests.backends.triton.lowered import MACHINES, lowered
from tests.compiler.models import bert, llama, token_inputs
from tests.models.encoders import draw_call
from tilewright.backends.triton.interpreter import InterpretedKernels
from tilewright.backends.triton.printer import print_kernel
from tilewright.compiler.assemble import Interface, assemble
from tilewright.errors import TargetError, WeightsError
from tilewright.ir.backend import kernels_of
from tilewright.ir.dims import Dim, DimSpace
from tilewright.runtime.grid_program import GridProgram

F32, F16 = torch.float32, torch.float16


def on_device(
    model: torch.nn.Module, machine: str, example: dict[str, Any], interpreter: InterpretedKernels
) -> GridProgram:
    """The model as a program of printed kernels, its weights held by the interpreter."""
    captured = lowered(model, MACHINES[machine], example)
    kernels = kernels_of(captured.module)
    for name, kernel in kernels.items():
        interpreter.load(name, print_kernel(kernel).source)
    symbols = {name: name for name in kernels}
    program = assemble(
        captured.module, Interface.of(captured), symbols, [], target=f"cuda:{machine}",
        dims=DimSpace(captured.dims), device="cuda",
    )  # fmt: skip
    return GridProgram(program, interpreter, {**captured.weights, **captured.states})


def exact(model: torch.nn.Module, call: Mapping[str, Any]) -> torch.Tensor:
    """The model's result in float64."""
    with torch.inference_mode():
        found = copy.deepcopy(model).double()(**call)
    return found if isinstance(found, torch.Tensor) else found[0]


def rounded(program: GridProgram, dtype: torch.dtype, wanted: torch.Tensor) -> float:
    """How far off a result may be. Each launch rounds what it stores; roundings of either sign add up as their root."""
    launches = len(program.program.main.steps)
    return 2 * launches**0.5 * torch.finfo(dtype).eps * wanted.abs().max().item()


@pytest.mark.parametrize("dtype", [F32, F16], ids=["f32", "f16"])
@pytest.mark.parametrize(("family", "machine"), [("encoder", "sm_90"), ("decoder", "gfx942")])
def test_a_small_model_runs_from_its_step_table(
    family: str, machine: str, dtype: torch.dtype, interpreter: InterpretedKernels, seed: int
) -> None:
    model = (bert(seed) if family == "encoder" else llama(seed)).to(dtype)
    extra = {} if family == "encoder" else {"use_cache": False}
    program = on_device(model, machine, {**token_inputs(2, 8), **extra}, interpreter)
    assert len(program.program.main.steps) > 8
    for size in ((1, 1), (2, 19)):
        call = token_inputs(*size)
        wanted, found = exact(model, {**call, **extra}), program(**call, **extra)
        result = found if isinstance(found, torch.Tensor) else found[0]
        assert result.dtype == dtype
        seen = call["attention_mask"].bool()
        error = (result[seen].double() - wanted[seen]).abs().max().item()
        assert error <= rounded(program, dtype, wanted)


@pytest.mark.parametrize(
    ("layers", "dtype"),
    [(1, F16), pytest.param(6, F16, marks=pytest.mark.slow), pytest.param(6, F32, marks=pytest.mark.slow)],
)
def test_minilm_with_its_own_weights(
    layers: int, dtype: torch.dtype, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    model = minilm()
    model.encoder.encoder.layer = model.encoder.encoder.layer[:layers]
    program = on_device(model.to(dtype), "sm_90", draw_call(np.random.default_rng(0), 3, 8), interpreter)
    for size in ((1, 1), (2, 37)) if layers > 1 else ((2, 9),):
        call = draw_call(rng, *size)
        found, wanted = program(**call), exact(model, call)
        assert (found.double() - wanted).abs().max().item() <= rounded(program, dtype, wanted)
        assert torch.nn.functional.cosine_similarity(found.double(), wanted).min() > 1 - 384 * torch.finfo(dtype).eps


class Running(torch.nn.Module):
    """Adds what it has seen so far."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.full((5,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total += x.sum(0)  # type: ignore[operator]
        return x + self.total


def test_states_live_from_call_to_call(interpreter: InterpretedKernels) -> None:
    model, example = Running(), {"x": torch.randn(3, 5)}
    program = on_device(copy.deepcopy(model), "sm_90", example, interpreter)
    for rows in (4, 1, 6):
        x = torch.randn(rows, 5)
        torch.testing.assert_close(program(x=x), model(x=x), rtol=0, atol=1e-5)


class Device:
    """Memory of the host, and no kernels: what a walk asks of a device, in order."""

    def __init__(self) -> None:
        self.launched: list[tuple[str, list[int]]] = []
        self.held: set[int] = set()

    def allocate(self, size: int) -> Any:
        memory = np.zeros(size + 1, np.uint8)
        self.held.add(id(memory))
        self.kept = [*getattr(self, "kept", []), memory]
        return memory

    def release(self, memory: Any) -> None:
        self.held.remove(id(memory))

    def write(self, memory: Any, data: memoryview) -> None:
        memory[: data.nbytes] = np.frombuffer(data, np.uint8)

    def read(self, memory: Any, into: memoryview) -> None:
        into[:] = memory[: into.nbytes].data

    def copy(self, source: Any, destination: Any, size: int) -> None:
        (a, i), (b, j) = source, destination
        b[j : j + size] = a[i : i + size]

    def launch(self, symbol: str, places: Any, dims: Any) -> None:
        assert all(id(memory) in self.held for memory, _ in places)
        self.launched.append((symbol, list(dims)))


def test_memory_is_given_back_and_variants_are_chosen_by_size(seed: int) -> None:
    captured = lowered(bert(seed, 1), MACHINES["sm_90"], token_inputs(2, 8))
    names = {name: name for name in kernels_of(captured.module)}
    program = assemble(
        captured.module, Interface.of(captured), names, [], target="cuda:sm_90", dims=DimSpace(captured.dims),
        device="cuda",
    )  # fmt: skip
    device = Device()
    placed = GridProgram(program, device, captured.weights)
    held, prepared = set(device.held), len(device.launched)
    assert prepared == sum(len(routine.steps) for routine in program.prepare)
    for size in ((1, 1), (6, 40)):
        placed(**token_inputs(*size))
    assert device.held == held
    ran = [symbol for symbol, _ in device.launched[prepared:]]
    steps = len(program.main.steps)
    assert len(ran) == 2 * steps
    several = [i for i, step in enumerate(program.main.steps) if len(step.variants) > 1]
    assert several
    assert all(ran[i] != ran[steps + i] for i in several)
    with pytest.raises(WeightsError, match="is missing"):
        GridProgram(program, device, {})


def test_what_a_grid_cannot_run_is_refused(seed: int) -> None:
    captured = lowered(bert(seed, 1), MACHINES["sm_90"], token_inputs(2, 8))
    names = {name: name for name in kernels_of(captured.module)}
    program = assemble(
        captured.module, Interface.of(captured), names, [], target="cuda:sm_90", dims=DimSpace(captured.dims),
        device="cuda",
    )  # fmt: skip
    with pytest.raises(TargetError, match="sizes computed while running are not known to a grid"):
        GridProgram(replace(program, dims=(*program.dims, Dim("found", 0, 9, kind="runtime"))), Device(), {})

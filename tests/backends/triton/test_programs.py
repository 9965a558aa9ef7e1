"""Whole programs on a device that runs grids: every step launched in order, Triton's interpreter as the device."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
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
from tilewright.ir.device import Device
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.grid_abi import Grid
from tilewright.runtime.grid_program import GridProgram
from tilewright.runtime.program import KernelInfo

F32, F16 = torch.float32, torch.float16


def on_device(model: torch.nn.Module, machine: str, example: dict[str, Any], device: Device) -> GridProgram:
    """The model as a program of printed kernels, with its weights on the device."""
    captured = lowered(model, MACHINES[machine], example)
    printed = {name: print_kernel(kernel) for name, kernel in kernels_of(captured.module).items()}
    kernels = [KernelInfo(n, n, n, Grid(p.programs, threads=32 * p.warps, shared=0)) for n, p in printed.items()]
    program = assemble(
        captured.module, Interface.of(captured), {name: name for name in printed}, kernels, target=f"cuda:{machine}",
        dims=DimSpace(captured.dims), device="cuda",
    )  # fmt: skip
    images = {name: p.source.encode() for name, p in printed.items()}
    return GridProgram(program, device, {**captured.weights, **captured.states}, images)


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


class Recorder:
    """Memory of this process, and no kernels: what a walk asks of a device, in order. Addresses are a GiB apart."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.launched: list[tuple[str, int, list[int]]] = []
        self.held: dict[int, Any] = {}
        self.given = 0

    def alloc(self, size: int) -> int:
        self.given += 1 << 30
        self.held[self.given] = np.zeros(size + 1, np.uint8)
        return self.given

    def free(self, address: int) -> None:
        del self.held[address]

    def write(self, address: int, data: memoryview) -> None:
        self.held[address][: data.nbytes] = np.frombuffer(data, np.uint8)

    def read(self, address: int, into: memoryview) -> None:
        into[:] = self.held[address][: into.nbytes].data

    def copy(self, source: int, destination: int, size: int) -> None:
        (a, i), (b, j) = (divmod(place, 1 << 30) for place in (source, destination))
        self.held[b << 30][j : j + size] = self.held[a << 30][i : i + size]

    def load(self, image: bytes, symbol: str) -> int:
        self.loaded.append(symbol)
        return len(self.loaded) - 1

    def launch(self, function: int, grid: Grid, programs: int, buffers: Sequence[int], dims: Sequence[int]) -> None:
        assert all(address >> 30 << 30 in self.held for address in buffers)
        assert programs > 0
        self.launched.append((self.loaded[function], programs, list(dims)))

    def sync(self) -> None: ...

    def clock(self) -> int:
        return 0


def test_memory_is_given_back_and_variants_are_chosen_by_size(seed: int) -> None:
    device = Recorder()
    placed = on_device(bert(seed, 1), "sm_90", token_inputs(2, 8), device)
    program = placed.program
    held, prepared = set(device.held), len(device.launched)
    assert prepared == sum(len(routine.steps) for routine in program.prepare)
    for size in ((1, 1), (6, 40)):
        placed(**token_inputs(*size))
    assert set(device.held) == held
    ran = device.launched[prepared:]
    steps = len(program.main.steps)
    assert len(ran) == 2 * steps
    several = [i for i, step in enumerate(program.main.steps) if len(step.variants) > 1]
    assert several
    assert all(ran[i][0] != ran[steps + i][0] for i in several)
    grids = {kernel.symbol: kernel.grid for kernel in program.kernels}
    for (symbol, programs, dims), step in zip(ran, [*program.main.steps, *program.main.steps], strict=True):
        grid = grids[symbol]
        assert grid is not None
        assert programs == grid.programs.evaluate(dict(zip(step.formal_dims, dims, strict=True)))
    images = {kernel.key: b"" for kernel in program.kernels}
    with pytest.raises(WeightsError, match="is missing"):
        GridProgram(program, device, {}, images)


def test_what_a_grid_cannot_run_is_refused(seed: int) -> None:
    program = on_device(bert(seed, 1), "sm_90", token_inputs(2, 8), Recorder()).program
    with pytest.raises(TargetError, match="sizes computed while running are not known to a grid"):
        GridProgram(replace(program, dims=(*program.dims, Dim("found", 0, 9, kind="runtime"))), Recorder(), {}, {})
    native = replace(program, kernels=(replace(program.kernels[0], grid=None), *program.kernels[1:]))
    with pytest.raises(TargetError, match=r"splits its own grid over threads, which no device does"):
        GridProgram(native, Recorder(), {}, {})

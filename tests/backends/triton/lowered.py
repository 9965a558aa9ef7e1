"""Captured models with their modules lowered to kernels for the machines of the printer."""

from __future__ import annotations

from typing import Any

import torch

from tests.compiler.models import dims
from tilewright.backends.triton.machines import machines
from tilewright.compiler.pipelines import whole_pipeline
from tilewright.frontend.capturing import capture
from tilewright.ir.backend import resolve_target
from tilewright.ir.compile_options import CompileOptions
from tilewright.ir.dims import DimSpace
from tilewright.ir.machine import Machine
from tilewright.ir.passing import Context, run_pipeline

MACHINES: dict[str, Machine] = {n: make() for b in ("cuda", "hip") for n, make in machines(b).items()}


def lowered(model: torch.nn.Module, machine: Machine, example: dict[str, Any]) -> Any:
    """The captured model with its module lowered to kernels for a machine."""
    declared = {name: dims() for name in ("input_ids", "attention_mask") if name in example}
    captured = capture(model, (), example, declared or {"x": (dims()[0], *example["x"].shape[1:])})
    ctx = Context(machine=machine, dims=DimSpace(captured.dims), options=CompileOptions(determinism="run"))
    run_pipeline(whole_pipeline(resolve_target("cuda")[0]), captured.module, ctx)
    return captured

"""Groups built in a few lines, and the two ways to run one: the graph's reference and the kernels it lowers to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from xdsl.dialects.test import TestOp
from xdsl.ir import Block, Region, SSAValue

from tilewright.backends.cpu.machines import MACHINES
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.dtypes import torch_name
from tilewright.ir.graph.base import Setting, tensor
from tilewright.ir.graph.structure import GroupOp, YieldOp
from tilewright.ir.passing import Context
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.counting import Counters
from tilewright.ir.tile_interpreter import run_kernel
from tilewright.ir.types import TensorType
from tilewright.passes.lower_to_tile.frame import Lowered
from tilewright.passes.lower_to_tile.skeletons import lower_group

SPACE = DimSpace([Dim("b", 0, 64), Dim("t", 0, 256), Dim("s", 0, 256)])


class Body:
    """The block of a group under construction."""

    def __init__(self, types: Sequence[TensorType]) -> None:
        self.block = Block(arg_types=list(types))
        self.args = list(self.block.args)

    def add(self, op: Any) -> SSAValue:
        self.block.add_op(op)
        value: SSAValue = op.results[0]
        return value


def group(kind: str, types: Sequence[TensorType], build: Callable[..., Sequence[SSAValue]]) -> GroupOp:
    """A group of a kind; `build(body, *args)` gives the values it yields."""
    body = Body(types)
    results = list(build(body, *body.args))
    body.block.add_op(YieldOp.make(results))
    source = TestOp(result_types=list(types))
    return GroupOp.make(
        list(source.results),
        result_types=[[r.type for r in results]],
        kind=kind,
        name=kind,
        regions=[Region(body.block)],
    )


def context(machine: str = "avx512") -> Context:
    return Context(MACHINES[machine](), SPACE)


def lower(made: GroupOp, machine: str = "avx512") -> Lowered:
    return lower_group(made, "kernel", context(machine))


def reference(made: GroupOp, inputs: Sequence[torch.Tensor], sizes: Mapping[str, int]) -> list[torch.Tensor]:
    """The group's values by the ops' own references in float64."""
    setting = Setting(sizes=dict(sizes), wide=True)
    values: dict[SSAValue, torch.Tensor] = {}
    for arg, given in zip(made.block.args, inputs, strict=True):
        values[arg] = given.double() if given.is_floating_point() else given
    for op in made.block.ops:
        if isinstance(op, YieldOp):
            return [values[v] for v in op.values]
        operands = [None if slot is None else values[slot] for slot in op.slots()]
        found = op.evaluate(setting, *operands)
        values.update(zip(op.results, found if isinstance(found, tuple) else (found,), strict=True))
    raise AssertionError("a group ends in a yield")


def draw(made: GroupOp, sizes: Mapping[str, int], rng: np.random.Generator, high: int = 5) -> list[torch.Tensor]:
    """Random inputs for a group at given sizes."""
    inputs = []
    for arg in made.block.args:
        kind = tensor(arg)
        shape = [d.evaluate(sizes) for d in kind.dims]
        if kind.dtype.is_float:
            value = torch.from_numpy(rng.standard_normal(shape)).to(getattr(torch, torch_name(kind.dtype)))
        elif kind.dtype.kind == "bool":
            value = torch.from_numpy(rng.random(shape) < 0.7)
        else:
            value = torch.from_numpy(rng.integers(0, high, shape)).to(getattr(torch, torch_name(kind.dtype)))
        inputs.append(value)
    return inputs


def run_lowered(
    made: GroupOp,
    lowered: Lowered,
    variant: int,
    inputs: Sequence[torch.Tensor],
    sizes: Mapping[str, int],
    counters: Counters | None = None,
) -> list[np.ndarray[Any, Any]]:
    """One variant's results by the tile interpreter, which fails on poison, overlaps and elements left unwritten."""
    arrays = []
    for arg, given in zip(made.block.args, inputs, strict=True):
        kind = tensor(arg).dtype
        array = given.float().numpy().astype(kind.numpy()) if kind.name == "bf16" else given.numpy()
        arrays.append(np.ascontiguousarray(array))
    dims = {name: sizes[name] for name in lowered.dims}

    def launched(part: Lowered) -> list[np.ndarray[Any, Any]]:
        kernel = part.variants[min(variant, len(part.variants) - 1)].kernel
        before = [] if part.first is None else launched(part.first)
        written = [buffer(v) for v in kernel.buffers[len(kernel.inputs) :]]
        outputs = [np.zeros([d.evaluate(dims) for d in b.dims], b.dtype.numpy()) for b in written]
        run_kernel(kernel, [*arrays, *before, *outputs], dims, counters)
        return outputs

    return launched(lowered)

"""Launches run one at a time by native kernels, inside the graph interpreter: what each of them computes and counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation

from tilewright.compiler.building import build_kernels
from tilewright.errors import IRError
from tilewright.ir.backend import Backend, kernels_of
from tilewright.ir.dtypes import torch_name
from tilewright.ir.graph.base import tensor
from tilewright.ir.machine import Machine
from tilewright.ir.tile.base import buffer, tile
from tilewright.ir.tile.counting import Counts, Quantity
from tilewright.ir.tile.memory import StageOp
from tilewright.ir.tile.structure import KernelOp, LaunchOp
from tilewright.ir.tile_interpreter import chosen_variant
from tilewright.passes.lower_tile_to_loops.counters import quantities
from tilewright.runtime.native import load
from tilewright.runtime.step_plan import Step, StepPlan
from tilewright.runtime.tensors import address_of
from tilewright.runtime.threads import ThreadPool, thread_pool

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LaunchCounts:
    """What one launch counted while it ran.

    kernel: the variant's name. dims: values of its formal dims. buffers: what it read and wrote, as flat arrays (bf16
    as its bits). counts: bytes and FLOPs by op, as the tile interpreter and the closed forms give them.
    """

    kernel: str
    dims: Mapping[str, int]
    buffers: Sequence[NDArray[Any]]
    counts: Counts


@dataclass
class NativeLaunches:
    """A launcher for `interpret`: native kernels on torch tensors, one launch at a time.

    instrument: builds the kernels' counting twins and notes each launch in `counted`.
    """

    module: ModuleOp
    backend: Backend
    machine: Machine
    instrument: bool = False
    counted: list[LaunchCounts] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kernels = kernels_of(self.module)
        built = build_kernels(self.kernels, self.backend, self.machine, instrument=self.instrument)
        self.symbols = built.symbols
        self._library = load(list(built.objects.values()), sorted(built.objects))
        self._pool: ThreadPool = thread_pool(lambda: self.backend.runtime_objects(self.machine)["driver"])

    def __call__(self, op: Operation, operands: Sequence[torch.Tensor], sizes: Mapping[str, int]) -> list[torch.Tensor]:
        """The results of a launch."""
        import torch

        if not isinstance(op, LaunchOp):
            raise IRError(f"{op.name} is neither a graph op nor a launch", step="lower the module to launches")
        values = [d.evaluate(sizes) for d in op.dims.data]
        name = chosen_variant(op, self.kernels[op.callees.data[0]], values)
        outputs = [
            torch.empty([d.evaluate(sizes) for d in tensor(v).dims], dtype=getattr(torch, torch_name(tensor(v).dtype)))
            for v in op.outputs
        ]
        # what the program changes in place is a value here: its results are other tensors
        for number, old in zip(op.updates.data, operands[len(op.read) :], strict=True):
            outputs[number].copy_(old)
        held = [t.contiguous() for t in (*operands[: len(op.read)], *outputs)]
        addresses = [t.data_ptr() for t in held]
        kernel = self.kernels[name]
        with self._pool.team() as team:
            # a row for each thread, even those that other callers have now
            rows = np.zeros((self._pool.state.lease.cores, len(quantities(kernel))), np.int64)
            if self.instrument:
                addresses.append(address_of(rows))
            bases = np.array(addresses, np.int64)
            refs = [(i, 0) for i in range(len(addresses))]
            plan = StepPlan([Step(self._library[self.symbols[name]], refs, values)])
            team.run(plan.address, address_of(bases))
        if self.instrument:
            counts = Counts(dict(_bytes(kernel, rows.sum(axis=0).tolist())))
            formal = dict(zip(kernel.dims.data, values, strict=True))
            self.counted.append(LaunchCounts(name, formal, [_array(t) for t in held], counts))
        return outputs


def _bytes(kernel: KernelOp, elements: Sequence[int]) -> Iterator[tuple[Quantity, int]]:
    """Columns of counters with elements turned into bytes; what never happened is left out, as in the interpreter."""
    ops = list(kernel.walk())
    for quantity, count in zip(quantities(kernel), elements, strict=True):
        size = 1
        op = ops[quantity.op]
        if quantity.buffer is not None:
            size = buffer(kernel.buffers[quantity.buffer]).dtype.bytes
        elif isinstance(op, StageOp):
            size = tile(op.source).dtype.bytes
        if count:
            yield quantity, count * size


def _array(value: torch.Tensor) -> NDArray[Any]:
    import torch

    bits = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
    found: NDArray[Any] = bits.reshape(-1).numpy()
    return found

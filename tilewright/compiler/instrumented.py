"""A program's counting twins: its own kernels with counters, run natively on given inputs."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from xdsl.dialects.builtin import ModuleOp
from xdsl.rewriter import Rewriter

from tilewright.compiler.native_launches import LaunchCounts, NativeLaunches
from tilewright.errors import TargetError
from tilewright.ir.backend import Backend, backends
from tilewright.ir.dtypes import torch_name
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import FuncOp, PackedOp, WeightOp
from tilewright.ir.graph_interpreter import interpret
from tilewright.ir.machine import Machine
from tilewright.ir.module import function, parse_module
from tilewright.runtime.tensors import Buffer

if TYPE_CHECKING:
    import torch

    from tilewright.compiler.compiled import Compiled


class CountingTwin:
    """A compiled program's kernels built once more with counters; torch is needed to run them."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        backend, machine = machine_of(compiled.code.program.target)
        module = parse_module(compiled.code.texts["tile"], "tile")
        self._launches = NativeLaunches(module, backend, machine, instrument=True)

    def run(self, *args: Any, **kwargs: Any) -> list[LaunchCounts]:
        """What every launch of one call counts, in order, while it runs natively on these arguments.

        The program's states are read, not changed. Raises what a call raises for its arguments.
        """
        module, inputs, weights, states = call_of(self.compiled, args, kwargs)
        self._launches.counted = []
        interpret(module, inputs, weights=weights, states=states, launch=self._launches)
        return self._launches.counted


def call_of(
    compiled: Compiled, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[ModuleOp, dict[str, torch.Tensor], dict[str, torch.Tensor], MutableMapping[str, torch.Tensor]]:
    """A call for the interpreters: the lowered module without @prepare, its inputs, stored weights and states.

    What @prepare computed is a weight "packed:NAME" of this module, with the values the program holds.
    """
    import torch

    module = parse_module(compiled.code.texts["tile"], "tile")
    for op in list(module.walk()):
        if isinstance(op, PackedOp):
            read = WeightOp.make(name=f"packed:{op.label.data}", result_types=[tensor(op.out)])
            Rewriter.replace_op(op, read)
    for prepare in [f for f in module.body.block.ops if isinstance(f, FuncOp) and f.kind.data == "prepare"]:
        module.body.block.erase_op(prepare)
    given = [torch.as_tensor(value) for value in compiled.code.program.signature.flatten(args, kwargs)]
    names = list(function(module, "main").arguments)
    stored = {name.removeprefix("weight:"): _tensor(b) for name, b in compiled.executable.weights.stored.items()}
    states = {name: torch.from_numpy(value.copy()) for name, value in compiled.state.items()}
    return module, dict(zip(names, given, strict=True)), stored, states


def machine_of(target: str) -> tuple[Backend, Machine]:
    """The backend and machine of a program's target name."""
    name, _, machine = target.partition(":")
    known = backends()
    if name not in known or machine not in known[name].machines:
        raise TargetError(f"no installed backend knows {target}", step="see `tilewright targets`")
    return known[name], known[name].machines[machine]()


def _tensor(buffer: Buffer) -> torch.Tensor:
    import torch

    raw = torch.frombuffer(bytearray(buffer.bytes()) or bytearray(1), dtype=torch.uint8)[: buffer.nbytes]
    return raw.view(getattr(torch, torch_name(buffer.dtype))).reshape(buffer.shape)

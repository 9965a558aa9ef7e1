"""Runs a tile kernel slowly and exactly on NumPy arrays: values, poison and counters. Every backend is tested against
it.

Poison: lanes that a load found outside its view (and that no fill covers) or through an index that points nowhere.
They hold garbage (NaN, or an absurd integer), spread through arithmetic by each op's `spread`, and must not reach an
in-bounds lane of a store, or an index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation

from tilewright.errors import IRError, KernelStoreError, Problem
from tilewright.ir.dtypes import BF16
from tilewright.ir.tile.axes import Memory, Site
from tilewright.ir.tile.base import Array, buffer
from tilewright.ir.tile.counting import Counters
from tilewright.ir.tile.execution import Execution
from tilewright.ir.tile.structure import KernelOp, LaunchOp
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch

    from tilewright.ir.graph_interpreter import Launcher


def run_kernel(
    kernel: KernelOp,
    buffers: Sequence[Array],
    dims: Mapping[str, int],
    counters: Counters | None = None,
    *,
    complete: bool = True,
    names: Sequence[str] = (),
) -> None:
    """Runs every program of the grid in the kernel's order, writing outputs in place.

    buffers: C-contiguous arrays of the buffers' dtypes (bf16 from ml_dtypes) and sizes, inputs first; any shape.
    dims: the kernel's formal dims. counters: added to. complete: whether every element of the outputs must be written,
    but for outputs that the kernel changes in place, which hold values already. names: of the buffers, for errors.

    Raises PoisonError where a lane without a value is stored or indexed with, KernelStoreError where an output
    element is written twice, read before this program wrote it, or left unwritten, IRError where buffers or dims do
    not fit.
    """
    site = Site(kernel.sym_name.data, names=names)
    memories = _memories(kernel, buffers, dims)
    execution = Execution(kernel, memories, dims, site)
    with np.errstate(all="ignore"):
        for site.program, site.coordinates in enumerate(programs(kernel, dims)):
            execution.run(site.coordinates)
    if counters is not None:
        execution.count_into(counters)
    if complete:
        site.op, site.coordinates = kernel, ()
        for memory in memories:
            if memory.writers is not None and not memory.held and not memory.writers.all():
                missing = np.flatnonzero(memory.writers == 0)
                shape = [d.evaluate(dims) for d in buffer(kernel.buffers[memory.number]).dims]
                first = [int(i) for i in np.unravel_index(missing[0], shape)]
                raise site.error(
                    KernelStoreError,
                    f"{missing.size} of {memory.flat.size} elements of {site.buffer(memory.number, 'output')} are "
                    f"never written, the first at {first}",
                    "make the grid and the stores cover the output",
                )


def programs(kernel: KernelOp, dims: Mapping[str, int]) -> Iterator[tuple[int, ...]]:
    """The coordinates of each program, in the kernel's order."""
    tiles, loops = kernel.tiles.data, kernel.loops

    def walk(depth: int, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, ...]]:
        if depth == len(loops):
            yield tuple(lo * size for (lo, _), size in zip(ranges, tiles, strict=True))
            return
        axis, step = loops[depth]
        lo, hi = ranges[axis]
        for at in range(lo, hi, step):
            yield from walk(depth + 1, [*ranges[:axis], (at, min(at + step, hi)), *ranges[axis + 1 :]])

    return walk(0, [(0, extent.evaluate(dims)) for extent in kernel.programs])


def _memories(kernel: KernelOp, buffers: Sequence[Array], dims: Mapping[str, int]) -> list[Memory]:
    types, name = [buffer(v) for v in kernel.buffers], kernel.sym_name.data
    faults = [f"dim {d} has no size" for d in kernel.dims.data if d not in dims]
    if len(buffers) != len(types):
        faults.append(f"{len(types)} buffers are declared, {len(buffers)} are given")
    if not faults:
        for number, (declared, array) in enumerate(zip(types, buffers, strict=True)):
            size = declared.elements.evaluate(dims)
            if array.dtype != declared.dtype.numpy() or array.size != size or not array.flags.c_contiguous:
                faults.append(
                    f"buffer {number} wants {size} contiguous elements of {declared.dtype}, "
                    f"got {array.dtype}{list(array.shape)}"
                )
    if faults:
        raise IRError(
            [Problem(f, op=f"tile.kernel @{name}") for f in faults], step="pass the arrays that the kernel declares"
        )
    first_output = len(types) - kernel.outputs.data
    held = {first_output + number for number in kernel.updates.data}
    return [
        Memory(
            number,
            array.reshape(-1),
            np.zeros(array.size, np.int32) if number >= first_output else None,
            number in held,
        )
        for number, array in enumerate(buffers)
    ]


def run_launch(
    kernels: Mapping[str, KernelOp],
    launch: LaunchOp,
    inputs: Sequence[Array],
    sizes: Mapping[str, int],
    counters: MutableMapping[str, Counters] | None = None,
) -> list[Array]:
    """The results of a launch, by the variant that its guard picks at these sizes of the program's dims.

    kernels: by name. counters: by kernel name, added to. Raises as `run_kernel`.
    """
    dims = [d.evaluate(sizes) for d in launch.dims.data]
    name = chosen_variant(launch, kernels[launch.callees.data[0]], dims)
    kernel = kernels[name]
    types = [r.type for r in launch.outputs if isinstance(r.type, TensorType)]
    outputs = [np.empty([d.evaluate(sizes) for d in t.dims], t.dtype.numpy()) for t in types]
    # what the program changes in place is a value here: its results are other arrays
    for number, old in zip(launch.updates.data, inputs[len(launch.read) :], strict=True):
        outputs[number] = np.array(old).reshape(outputs[number].shape)
    counted = None if counters is None else counters.setdefault(name, Counters())
    read = inputs[: len(launch.read)]
    run_kernel(kernel, [*read, *outputs], dict(zip(kernel.dims.data, dims, strict=True)), counted)
    return outputs


def chosen_variant(launch: LaunchOp, kernel: KernelOp, dims: Sequence[int]) -> str:
    """The callee for these values of the formal dims, which all variants of a launch share."""
    guard = launch.guard.data[0].evaluate(dict(zip(kernel.dims.data, dims, strict=True)))
    allowed = [name for name, limit in zip(launch.callees.data, launch.limits.data, strict=False) if guard <= limit]
    return allowed[0] if allowed else launch.callees.data[-1]


def tile_launcher(module: ModuleOp, counters: MutableMapping[str, Counters] | None = None) -> Launcher:
    """What the graph interpreter runs a module's launches by; counters are by kernel name, and added to."""
    kernels = {op.sym_name.data: op for op in module.body.block.ops if isinstance(op, KernelOp)}

    def launch(op: Operation, operands: Sequence[torch.Tensor], sizes: Mapping[str, int]) -> list[torch.Tensor]:
        if not isinstance(op, LaunchOp):
            raise IRError(f"{op.name} is neither a graph op nor a launch", step="lower the module to launches")
        results = run_launch(kernels, op, [_array(t) for t in operands], sizes, counters)
        return [_tensor(a) for a in results]

    return launch


def run_module(
    module: ModuleOp,
    inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor],
    *,
    name: str = "main",
    weights: Mapping[str, torch.Tensor] | None = None,
    states: MutableMapping[str, torch.Tensor] | None = None,
    counters: MutableMapping[str, Counters] | None = None,
) -> dict[str, torch.Tensor]:
    """A function's results by name: launches by their kernels, what is left of the graph by the graph interpreter.

    counters: by kernel name, added to. Raises as the graph interpreter, which quotes a kernel's error.
    """
    from tilewright.ir.graph_interpreter import interpret

    launch = tile_launcher(module, counters)
    return interpret(module, inputs, name=name, weights=weights, states=states, launch=launch)


def _array(tensor: torch.Tensor) -> Array:
    import torch

    dense = tensor.detach().contiguous()
    # NumPy knows no bf16 of torch's; the bits are the same
    return dense.view(torch.uint16).numpy().view(BF16.numpy()) if dense.dtype == torch.bfloat16 else dense.numpy()


def _tensor(array: Array) -> torch.Tensor:
    import torch

    if array.dtype == BF16.numpy():
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)

"""Runs `tile.launch` for the graph interpreter: the variant its guard chooses, in the tile interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tilewright.errors import IRError
from tilewright.ir.graph.base import tensor
from tilewright.ir.tile.structure import KernelOp, LaunchOp

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from xdsl.dialects.builtin import ModuleOp
    from xdsl.ir import Operation

    from tilewright.ir.graph_interpreter import Launcher


def tile_launcher(module: ModuleOp) -> Launcher:
    """A launcher of a module's kernels, in the dtypes they declare; outputs start as garbage that would be noticed."""
    kernels = {op.sym_name.data: op for op in module.body.block.ops if isinstance(op, KernelOp)}

    def launch(op: Operation, operands: Sequence[torch.Tensor], sizes: Mapping[str, int]) -> list[torch.Tensor]:
        from tilewright.ir.tile_interpreter import run_kernel

        if not isinstance(op, LaunchOp):
            raise IRError(f"{op.name} is no op that can be run", step="run ops of the graph dialect and tile.launch")
        chosen = _variant(op, kernels, sizes)
        formal = {name: value.evaluate(sizes) for name, value in zip(chosen.dims.data, op.dims.data, strict=True)}
        inputs = [_array(value) for value in operands]
        outputs = [_fresh([d.evaluate(sizes) for d in tensor(v).dims], tensor(v).dtype.numpy()) for v in op.outputs]
        run_kernel(chosen, [*inputs, *outputs], formal)
        return [_tensor(array) for array in outputs]

    return launch


def _variant(op: LaunchOp, kernels: Mapping[str, KernelOp], sizes: Mapping[str, int]) -> KernelOp:
    names = op.callees.data
    first = kernels[names[0]]
    formal = {name: value.evaluate(sizes) for name, value in zip(first.dims.data, op.dims.data, strict=True)}
    guard = op.guard.data[0].evaluate(formal)
    limits = [*op.limits.data, None]
    return kernels[next(name for name, limit in zip(names, limits, strict=True) if limit is None or guard <= limit)]


def _fresh(shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    import numpy as np

    return np.frombuffer(bytearray(b"\xa5" * (int(np.prod(shape)) * dtype.itemsize)), dtype).reshape(shape)


def _array(value: torch.Tensor) -> NDArray[Any]:
    import torch

    if value.dtype == torch.bfloat16:
        import ml_dtypes

        found: NDArray[Any] = value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return found
    return value.contiguous().numpy()


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    import numpy as np
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)

"""A kernel run by Triton's interpreter and by the tile interpreter, and how near two results must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from xdsl.ir import SSAValue

from tilewright.backends.triton.interpreter import InterpretedKernels
from tilewright.backends.triton.printer import print_kernel
from tilewright.ir.device import Device
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import from_numpy
from tilewright.ir.grid_abi import Grid
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.tile_interpreter import run_kernel

NEVER_WRITTEN = 77


def launched(
    device: Device,
    printed: tuple[str, str],
    programs: Expr,
    buffers: Sequence[Any],
    outputs: int,
    dims: Mapping[str, int],
) -> list[Any]:
    """The outputs (the last `outputs` buffers, as they are after the launch) of a printed kernel: symbol and source."""
    places = [device.alloc(array.nbytes) for array in buffers]
    for array, place in zip(buffers, places, strict=True):
        device.write(place, memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
    function, count = device.load(printed[1].encode(), printed[0]), programs.evaluate(dims)
    if count > 0:
        device.launch(function, Grid(programs, threads=1, shared=0), count, places, list(dims.values()))
    found = [np.empty_like(array) for array in buffers[len(buffers) - outputs :]]
    for array, place in zip(found, places[len(buffers) - outputs :], strict=True):
        device.read(place, memoryview(array.reshape(-1).view(np.uint8)))
    for place in places:
        device.free(place)
    return found


def run_both(
    kernel: KernelOp, inputs: list[Any], outputs: list[Any], sizes: Mapping[str, int], interpreter: InterpretedKernels
) -> tuple[list[Any], list[Any]]:
    """The outputs by Triton's interpreter and by the tile interpreter."""
    held = kernel.updates.data
    blank = [o.copy() if i in held else np.full_like(o, NEVER_WRITTEN) for i, o in enumerate(outputs)]
    printed, dims = print_kernel(kernel), {d: sizes[d] for d in kernel.dims.data}
    code = printed.symbol, printed.source
    found = launched(interpreter, code, printed.programs, [*inputs, *blank], len(outputs), dims)
    run_kernel(kernel, [*inputs, *outputs], sizes)
    return found, outputs


def near(found: Any, wanted: Any, *, steps: float) -> None:
    """Equal but for `steps` units in the last place of the dtype at the largest magnitude; integers are equal."""
    assert found.shape == wanted.shape
    if wanted.dtype.kind != "f":
        np.testing.assert_array_equal(found, wanted)
        return
    size = max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)))
    bound = steps * float(np.finfo(wanted.dtype).eps) * size
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound, equal_nan=True)


Build = Callable[..., Sequence[SSAValue]]


def kernel_of(build: Build, *inputs: Any) -> tuple[KernelOp, list[Any]]:
    """A kernel of one program that loads whole arrays, and stores all that `build(b, *tiles)` makes of them."""
    b = KernelBuilder("whole", [])
    dtypes = [from_numpy(a.dtype) for a in inputs]
    buffers = [b.buffer(a.shape, dtype) for a, dtype in zip(inputs, dtypes, strict=True) if dtype is not None]

    def trial(builder: KernelBuilder, sources: Sequence[SSAValue]) -> Sequence[SSAValue]:
        loaded = [builder.load(builder.dense(v), [0] * a.ndim, a.shape) for v, a in zip(sources, inputs, strict=True)]
        return build(builder, *loaded)

    # the results' types are known once the ops exist: they are made twice
    sketch = KernelBuilder("sketch", [])
    sources = [sketch.buffer(a.shape, d) for a, d in zip(inputs, dtypes, strict=True) if d is not None]
    sketch.grid([1], [1])
    types: list[Any] = [value.type for value in trial(sketch, sources)]
    outputs = [b.output(t.extents, t.dtype) for t in types]
    b.grid([1], [1])
    for value, output, t in zip(trial(b, buffers), outputs, types, strict=True):
        b.store(value, b.dense(output), [0] * len(t.extents))
    return b.finish(), [np.zeros(t.extents, t.dtype.numpy()) for t in types]


def check(interpreter: InterpretedKernels, build: Build, *inputs: Any, steps: float = 0) -> list[Any]:
    """Both interpreters give the same; what the tile interpreter gives."""
    kernel, outputs = kernel_of(build, *inputs)
    found, wanted = run_both(kernel, list(inputs), outputs, {}, interpreter)
    for a, e in zip(found, wanted, strict=True):
        if e.dtype.kind == "V":  # bf16
            np.testing.assert_array_equal(a.astype(np.float32), e.astype(np.float32))
        else:
            near(a, e, steps=steps)
    return wanted

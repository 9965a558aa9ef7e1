"""A resolved routine on a team of threads: native parts in one launch each, host steps on the calling thread."""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import IRError
from tilewright.runtime.resolve import HostPart, NativePart, Resolved
from tilewright.runtime.tensors import Buffer, address_of
from tilewright.runtime.threads import Team

HostFunction = Callable[..., Sequence[NDArray[Any]]]
"""What a host step calls: NumPy arrays of its inputs, and its constants by keyword; gives arrays for its outputs."""


# The kernel ABI of tilewright.ir.native_abi; ctypes lets go of the interpreter lock around a call.
_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@dataclass(frozen=True, slots=True)
class Times:
    """When each step of one run began and ended, in nanoseconds of time.monotonic_ns().

    spans: int64 [steps, 2], over all threads. busy: int64 [steps], the sum over threads of the time inside the kernel.
    """

    spans: NDArray[np.int64]
    busy: NDArray[np.int64]


def run_parts(
    resolved: Resolved, words: NDArray[np.int64], team: Team, host: Mapping[str, HostFunction], *, timed: bool = False
) -> Times | None:
    """Runs the parts in order; words: the base pointers that their places index."""
    bases = address_of(words)
    if not timed:
        for part in resolved.parts:
            if isinstance(part, NativePart):
                team.run(part.address, bases)
            else:
                _run_host(part, words, host)
        return None
    steps = len(resolved.variants)
    times = Times(np.zeros((steps, 2), np.int64), np.zeros(steps, np.int64))
    for part in resolved.parts:
        if isinstance(part, NativePart):
            each = part.plan.times(team.threads)
            team.run(part.address, bases, address_of(each))
            at = slice(part.first, part.first + part.plan.nsteps)
            times.spans[at, 0] = each[:, :, 0].min(axis=0)
            times.spans[at, 1] = each[:, :, 1].max(axis=0)
            times.busy[at] = (each[:, :, 1] - each[:, :, 0]).sum(axis=0)
        else:
            begin = time.monotonic_ns()
            _run_host(part, words, host)
            times.spans[part.index] = begin, time.monotonic_ns()
            times.busy[part.index] = times.spans[part.index, 1] - begin
    return times


def run_in_pieces(
    resolved: Resolved, words: NDArray[np.int64], pieces: int, others: Executor, threads: int,
    between: Callable[[], None],
) -> None:  # fmt: skip
    """Runs native parts, each step as `pieces` threads would, on the calling thread and `threads - 1` of the others.

    Kernels share a step's pieces out by number, and a step begins when the one before has ended. between: called
    after every piece, when what that piece wrote will not be touched again before the next step.
    """
    for part in resolved.parts:
        if not isinstance(part, NativePart):
            raise IRError("a host step cannot run in pieces", step="run the routine on a team")
        for step in part.plan.steps:
            kernel = _KERNEL(step.kernel)
            buffers = np.array([int(words[base]) + offset for base, offset in step.refs], np.int64)
            dims = np.array(step.dims, np.int64)

            def share(first: int, kernel: Any = kernel, buffers: Any = buffers, dims: Any = dims) -> None:
                for piece in range(first, pieces, threads):
                    kernel(address_of(buffers), address_of(dims), piece, pieces)
                    between()

            beside = [others.submit(share, first) for first in range(1, min(threads, pieces))]
            share(0)
            for future in beside:
                future.result()


def _run_host(part: HostPart, words: NDArray[np.int64], host: Mapping[str, HostFunction]) -> None:
    specs = (*part.call.inputs, *part.call.outputs)
    arrays = [
        # The call keeps all of this memory alive; functions must not keep the arrays.
        Buffer(spec.dtype, shape, int(words[base]) + offset, None).numpy(writeable=True)
        for spec, shape, (base, offset) in zip(specs, part.shapes, part.places, strict=True)
    ]
    inputs, outputs = arrays[: len(part.call.inputs)], arrays[len(part.call.inputs) :]
    results = host[part.call.callee](*inputs, **json.loads(part.call.arguments))
    for output, result in zip(outputs, results, strict=True):
        if output.shape != np.shape(result):
            raise IRError(
                f"host function {part.call.callee} gave {list(np.shape(result))} where {list(output.shape)} belongs",
                step="the function must keep to the shapes that the program declares for it",
            )
        output[...] = result

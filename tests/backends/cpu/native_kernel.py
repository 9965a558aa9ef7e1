"""Runs one loop kernel natively, as a launch would: print, compile, link, call for every thread."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from tilewright.backends.clike import CLike
from tilewright.backends.cpu.cpu_class import CPU_CLASSES
from tilewright.backends.cpu.printer import PrintedKernel, print_kernel
from tilewright.backends.host.mlir import TARGETS, compile_object
from tilewright.backends.toy.compiler import compile_source
from tilewright.ir.loops import LoopKernel
from tilewright.runtime.native import NativeLibrary, cpu_features, load

_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def host_classes() -> list[str]:
    """The classes whose code this machine runs."""
    return [name for name in CPU_CLASSES if name != "aarch64" and set(TARGETS[name].features) <= cpu_features()]


class NativeKernel:
    """A kernel compiled for one CPU class, or printed as "c" for the host's C compiler; call it with flat arrays."""

    def __init__(self, kernel: LoopKernel, cpu: str) -> None:
        if cpu == "c":
            self.printed = PrintedKernel(kernel.name, CLike(kernel).source())
            code = compile_source(self.printed.text, kernel.name)
        else:
            self.printed = print_kernel(kernel, CPU_CLASSES[cpu])
            code = compile_object(self.printed.text, TARGETS[cpu])
        self._library: NativeLibrary = load([code], [self.printed.symbol])
        self.function = _SIGNATURE(self._library[self.printed.symbol])

    def __call__(self, buffers: Sequence[np.ndarray], dims: Sequence[int] = (), *, nthreads: int = 1) -> None:
        pointers = (ctypes.c_void_p * max(1, len(buffers)))(*[a.ctypes.data for a in buffers])
        sizes = (ctypes.c_int64 * max(1, len(dims)))(*dims)
        for tid in range(nthreads):
            self.function(pointers, sizes, tid, nthreads)

"""Runs one loop kernel natively, as a launch would: print, compile, link, call for every thread."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

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


# a test calls one kernel many times, and tests of many numbers share a few kernels
@lru_cache(maxsize=64)
def _linked(text: str, symbol: str, cpu: str) -> NativeLibrary:
    code = compile_source(text, symbol) if cpu == "c" else compile_object(text, TARGETS[cpu])
    return load([code], [symbol])


class NativeKernel:
    """A kernel compiled for one CPU class, or printed as "c" for the host's C compiler; call it with flat arrays."""

    def __init__(self, kernel: LoopKernel, cpu: str) -> None:
        if cpu == "c":
            self.printed = PrintedKernel(kernel.name, CLike(kernel).source())
        else:
            self.printed = print_kernel(kernel, CPU_CLASSES[cpu])
        self._library = _linked(self.printed.text, self.printed.symbol, cpu)
        self.function = _SIGNATURE(self._library[self.printed.symbol])

    def __call__(self, buffers: Sequence[np.ndarray], dims: Sequence[int] = (), *, nthreads: int = 1) -> None:
        pointers = (ctypes.c_void_p * max(1, len(buffers)))(*[a.ctypes.data for a in buffers])
        sizes = (ctypes.c_int64 * max(1, len(dims)))(*dims)
        for tid in range(nthreads):
            self.function(pointers, sizes, tid, nthreads)

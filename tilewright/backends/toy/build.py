"""Loop kernels to object code by the host's C compiler, a process a kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

from tilewright.backends.clike import CLike
from tilewright.backends.host.build import driver_objects
from tilewright.backends.host.build import probe as host_probe
from tilewright.backends.host.cores import cores
from tilewright.backends.toy.compiler import FLAGS, compile_source, find_compiler, missing, version_of
from tilewright.errors import LoweringError
from tilewright.ir.backend import BuiltKernel, Source
from tilewright.ir.loops import LoopKernel
from tilewright.ir.machine import Machine


@cache
def _waiting() -> ThreadPoolExecutor:
    """Threads that wait for compilers."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="tilewright-toy")


def build(kernels: Iterable[tuple[str, Source]], machine: Machine) -> Mapping[str, Future[BuiltKernel]]:
    """Prints each kernel and starts its compiler; printing the next one overlaps with compiling this one."""
    return {name: _waiting().submit(_compiled, name, printed(name, kernel)) for name, kernel in kernels}


def printed(name: str, kernel: Source) -> str:
    """A kernel's C source."""
    if not isinstance(kernel, LoopKernel):
        raise LoweringError(f"kernel {name} comes as tiles; toy takes loops", step="lower it by lower_kernel first")
    return CLike(kernel).source()


def _compiled(name: str, source: str) -> BuiltKernel:
    return BuiltKernel(name, compile_source(source, name), source, ())


def runtime_objects(machine: Machine) -> Mapping[str, bytes]:
    """The driver of programs that run on the host: not this backend's own."""
    return driver_objects()


def toolchain() -> Mapping[str, str]:
    """What decides object code."""
    path = find_compiler()
    return {"cc": version_of(path) if path else "none", "flags": " ".join(FLAGS)}


def warm() -> None:
    """A C compiler starts at once."""


def probe() -> str | None:
    """What is missing to compile and run programs."""
    return missing() or host_probe()

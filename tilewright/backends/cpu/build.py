"""Loop kernels to object code for a CPU class: printed here, compiled in worker processes."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from functools import cache
from importlib.metadata import version

from tilewright.backends.cpu.cpu_class import CPU_CLASSES
from tilewright.backends.cpu.driver import driver_text
from tilewright.backends.cpu.mlir import TARGETS, CpuTarget
from tilewright.backends.cpu.printer import PrintedKernel, print_kernel
from tilewright.backends.cpu.workers import CompilePool, shared_pool
from tilewright.errors import LoweringError
from tilewright.ir.backend import BuiltKernel, Source
from tilewright.ir.loops import LoopKernel
from tilewright.ir.machine import Machine


def build(kernels: Iterable[tuple[str, Source]], machine: Machine) -> Mapping[str, Future[BuiltKernel]]:
    """Prints each kernel and hands it to a worker at once; printing the next one overlaps with compiling this one."""
    target, cpu = TARGETS[machine.name], CPU_CLASSES[machine.name]
    pool = shared_pool()
    built: dict[str, Future[BuiltKernel]] = {}
    for name, kernel in kernels:
        if not isinstance(kernel, LoopKernel):
            raise LoweringError(
                f"kernel {name} comes as tiles; the CPU takes loops", step="lower it by lower_kernel first"
            )
        printed = print_kernel(kernel, cpu)
        built[name] = _built(pool, printed, target)
    return built


def _built(pool: CompilePool, printed: PrintedKernel, target: CpuTarget) -> Future[BuiltKernel]:
    """The future of a built kernel, which a worker compiles."""
    result: Future[BuiltKernel] = Future()
    seconds: list[float] = []

    def done(finished: Future[bytes]) -> None:
        error = finished.exception()
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(
                BuiltKernel(printed.symbol, finished.result(), printed.text, target.features, seconds=sum(seconds))
            )

    pool.submit(printed.text, target, seconds.append).add_done_callback(done)
    return result


@cache
def _driver(name: str) -> bytes:
    return shared_pool().submit(driver_text(TARGETS[name]), TARGETS[name]).result()


def runtime_objects(machine: Machine) -> Mapping[str, bytes]:
    """The native driver, for the baseline of the machine's architecture: it runs wherever an artifact is opened."""
    return {"driver": _baseline(TARGETS[machine.name].triple)}


def host_driver() -> bytes:
    """The driver for this machine's architecture: every backend whose kernels run on the host's cores shares it."""
    return _baseline(f"{platform.machine()}-unknown-linux-gnu")


def _baseline(triple: str) -> bytes:
    return _driver(next(t.name for t in TARGETS.values() if t.triple == triple))


def toolchain() -> Mapping[str, str]:
    """Versions that decide object code."""
    return {name: version(name) for name in ("torch-mlir", "llvmlite")}


def warm() -> None:
    """Starts the workers; importing their code generator overlaps with capture."""
    shared_pool()


def probe() -> str | None:
    """What is missing to compile for the CPU."""
    from importlib.util import find_spec

    missing = [name for name in ("torch_mlir", "llvmlite") if find_spec(name) is None]
    return f"pip install {' '.join(m.replace('_', '-') for m in missing)}" if missing else None

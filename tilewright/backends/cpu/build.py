"""Loop kernels to object code for a CPU class: printed here, compiled in worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future

from tilewright.backends.cpu.cpu_class import CPU_CLASSES
from tilewright.backends.cpu.printer import PrintedKernel, print_kernel
from tilewright.backends.host.build import driver_objects
from tilewright.backends.host.mlir import TARGETS, CpuTarget
from tilewright.backends.host.workers import CompilePool, shared_pool
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
        if not result.set_running_or_notify_cancel():
            return
        error = finished.exception()
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(
                BuiltKernel(printed.symbol, finished.result(), printed.text, target.features, seconds=sum(seconds))
            )

    submitted = pool.submit(printed.text, target, seconds.append)
    # who no longer wants the kernel does not want it compiled
    result.add_done_callback(lambda ended: submitted.cancel() if ended.cancelled() else None)
    submitted.add_done_callback(done)
    return result


def runtime_objects(machine: Machine) -> Mapping[str, bytes]:
    """The native driver, for the machine's architecture."""
    return driver_objects(TARGETS[machine.name].triple)

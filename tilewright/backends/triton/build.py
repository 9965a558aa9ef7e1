"""Tile kernels to cubin and hsaco: printed here, compiled in worker processes, without a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from importlib.metadata import version
from importlib.util import find_spec

from tilewright.backends.triton.machines import GPUS
from tilewright.backends.triton.occupancy import warps_for
from tilewright.backends.triton.printer import PrintedKernel, print_kernel
from tilewright.backends.triton.workers import ask, waiting
from tilewright.errors import CapacityError, LoweringError, Problem, ToolchainError
from tilewright.ir.backend import BuiltKernel, Source
from tilewright.ir.grid_abi import Grid
from tilewright.ir.machine import Machine
from tilewright.ir.tile.structure import KernelOp

EXTRA = "pip install 'tilewright[gpu]'"


def build(kernels: Iterable[tuple[str, Source]], machine: Machine) -> Mapping[str, Future[BuiltKernel]]:
    """Prints each kernel and hands it to a worker; printing the next one overlaps with compiling this one."""
    built: dict[str, Future[BuiltKernel]] = {}
    for name, kernel in kernels:
        if not isinstance(kernel, KernelOp):
            raise LoweringError(f"kernel {name} comes as loops; this backend takes tiles", step="hand over the tiles")
        gpu = GPUS[machine.name]
        printed = print_kernel(kernel, warps=warps_for(kernel, gpu), stages=gpu.stages)
        built[name] = waiting().submit(_compiled, printed, machine, kernel.path, kernel.loc)
    return built


def _compiled(printed: PrintedKernel, machine: Machine, path: str | None, where: str | None) -> BuiltKernel:
    gpu = GPUS[machine.name]
    head = {
        "symbol": printed.symbol,
        "signature": printed.signature,
        "backend": gpu.backend,
        "arch": gpu.arch,
        "threads": gpu.threads,
        "warps": printed.warps,
        "stages": gpu.stages,
    }
    facts, image = ask(head, printed.source)
    what = f"kernel {printed.symbol}" + (f" ({path})" if path else "")
    if "error" in facts:
        raise ToolchainError(
            Problem(f"Triton does not compile {what} for {machine.name}: {facts['error']}", where=where),
            step="report it with the kernel's source, or compile with target='cpu'",
        )
    shared = machine.nearest("matrix", kind="explicit")
    room = (shared.size if shared is not None else None) or 0
    if facts["shared"] > room:
        raise CapacityError(
            Problem(f"{what} needs {facts['shared']} bytes of shared memory, {machine.name} has {room}", where=where),
            step="lower the tile rules' dot rows, reduction_chunk or key_segment",
        )
    grid = Grid(printed.programs, facts["threads"], facts["shared"])
    return BuiltKernel(printed.symbol, image, printed.source, (), grid)


def runtime_objects(machine: Machine) -> Mapping[str, bytes]:
    """None: what launches kernels on a device is the executor's."""
    return {}


def toolchain() -> Mapping[str, str]:
    """What decides object code."""
    return {"triton": version("triton")}


def warm() -> None:
    """Workers start with the first kernel: the passes before take longer than a worker's start."""


def probe() -> str | None:
    """What is missing to compile."""
    return None if find_spec("triton") is not None else EXTRA

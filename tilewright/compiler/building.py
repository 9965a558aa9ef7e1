"""From a lowered and planned module to code: kernels to objects by the backend, launches to the step table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp

from tilewright.compiler.assemble import Interface, assemble
from tilewright.compiler.code import Code
from tilewright.compiler.levels import Weaving, stage_of
from tilewright.compiler.stopwatch import Stopwatch
from tilewright.compiler.supported_dtypes import check_dtypes
from tilewright.errors import TargetError
from tilewright.ir.backend import Backend, Source, content_of, kernels_of
from tilewright.ir.dims import DimSpace
from tilewright.ir.grid_abi import Grid
from tilewright.ir.machine import Machine
from tilewright.ir.tile.structure import KernelOp
from tilewright.runtime.program import KernelInfo


def build_code(
    module: ModuleOp,
    interface: Interface,
    backend: Backend,
    machine: Machine,
    *,
    dims: DimSpace,
    texts: Mapping[str, str],
    runtime: Callable[[], Mapping[str, bytes]] | None = None,
    watch: Stopwatch | None = None,
    cleared: bool = False,
    meanwhile: Callable[[], object] | None = None,
) -> Code:
    """The code of a module whose @main is planned. texts: by stage, as in `Code`.

    runtime: gives the backend's runtime objects for the machine, where they are made already. cleared, meanwhile: see
    `build_kernels`.
    """
    watch = watch or Stopwatch()
    with watch.stage("kernels"):
        built = build_kernels(kernels_of(module), backend, machine, watch=watch, cleared=cleared, meanwhile=meanwhile)
    with watch.stage("assemble"):
        program = assemble(
            module, interface, built.symbols, built.infos, target=f"{backend.name}:{machine.name}", dims=dims,
            device=backend.device.name,
        )  # fmt: skip
        objects = {**built.objects, **(backend.runtime_objects(machine) if runtime is None else runtime())}
    return Code(program, objects, built.sources, texts, built.features)


@dataclass(frozen=True)
class Kernels:
    """Built kernels. symbols, sources: by the kernel's name. objects: by symbol. features: of the CPU that they use.

    grids: by symbol, how kernels are launched that a device's own grid runs.
    """

    symbols: Mapping[str, str]
    objects: Mapping[str, bytes]
    sources: Mapping[str, str]
    features: tuple[str, ...]
    grids: Mapping[str, Grid]

    @property
    def infos(self) -> list[KernelInfo]:
        """An entry for each symbol, with one of its kernels' names."""
        names = {self.symbols[n]: n for n in sorted(self.symbols)}
        return [KernelInfo(s, s, n, self.grids.get(s)) for s, n in names.items()]


def build_kernels(
    kernels: Mapping[str, KernelOp],
    backend: Backend,
    machine: Machine,
    *,
    instrument: bool = False,
    watch: Stopwatch | None = None,
    cleared: bool = False,
    meanwhile: Callable[[], object] | None = None,
) -> Kernels:
    """Kernels to objects; equal kernels compile once. instrument: with counters, see `instrumented`.

    cleared: a thread's scratch is zeros when a kernel begins. meanwhile: called when the backend has all of them; what
    it raises ends the compilation. Raises TargetError for counters on a backend that takes
    tiles: they are woven into loops; LoweringError for dtypes that the backend lacks.
    """
    stage = stage_of(backend)
    if instrument and not stage.woven:
        raise TargetError(
            f"{backend.name} takes {backend.takes}s, and only loops carry counters", step="count with target='cpu'"
        )
    check_dtypes(kernels, backend)
    watch = watch or Stopwatch()
    symbols: dict[str, str] = {}
    unique: dict[str, KernelOp] = {}
    for name, kernel in kernels.items():
        symbols[name] = "k" + hashlib.sha256(content_of(kernel).encode()).hexdigest()[:20] + ("c" if instrument else "")
        unique.setdefault(symbols[name], kernel)
    names = {symbol: name for name, symbol in reversed(symbols.items())}

    def lowered() -> Iterator[tuple[str, Source]]:
        for symbol, kernel in unique.items():
            renamed = kernel.clone()
            renamed.properties["sym_name"] = type(kernel.sym_name)(symbol)
            if stage.lower is None:
                yield symbol, renamed
                continue
            with watch.part("lowering", names[symbol]):
                source = stage.lower(renamed, machine, Weaving(instrument, cleared))
            yield symbol, source

    futures, built = backend.build(lowered(), machine), {}
    if meanwhile is not None:
        try:
            meanwhile()
        except BaseException:
            for future in futures.values():
                future.cancel()
            raise
    for symbol, future in futures.items():
        built[symbol] = future.result()
        if (seconds := built[symbol].seconds) is not None:
            watch.note("compiling", names[symbol], seconds)
        watch.tell("kernels", len(built), len(unique))
    return Kernels(
        symbols,
        {symbol: b.object for symbol, b in built.items()},
        {name: built[symbol].source for name, symbol in symbols.items()},
        tuple(sorted({feature for b in built.values() for feature in b.features})),
        {symbol: b.grid for symbol, b in built.items() if b.grid is not None},
    )

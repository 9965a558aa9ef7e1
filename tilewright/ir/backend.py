"""What a backend is: one frozen manifest, validated when it is made, found by entry point.

A backend takes kernels at the level it names and gives each one's object, source and symbol. One that takes "loops"
gets them lowered by the shared lowering from tiles to loops. Supported ops follow from its printer, not from a second
table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, Protocol, TypeAlias, get_args

from xdsl.dialects.builtin import ModuleOp

from tilewright.errors import BackendManifestError, Problem, TargetError
from tilewright.ir.device import DeviceKind
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.grid_abi import Grid
from tilewright.ir.loops import LoopKernel
from tilewright.ir.machine import Machine
from tilewright.ir.tile.structure import KernelOp

API_VERSION = 2
"""2: `device` is a DeviceKind, `legalize` runs, and kernels are held to `dtypes`."""
GROUP = "tilewright.backends"


@dataclass(frozen=True, slots=True)
class BuiltKernel:
    """One compiled kernel: the symbol to call, its object code, its readable source, and the CPU features it needs.

    grid: how it is launched, on a device that runs the grid itself (`ir/grid_abi.py`); None for kernels that split
    their own grid over threads (`ir/native_abi.py`). seconds: how long a worker took for it, where that is known.
    """

    symbol: str
    object: bytes
    source: str
    features: tuple[str, ...]
    grid: Grid | None = None
    seconds: float | None = field(default=None, compare=False)


Source: TypeAlias = KernelOp | LoopKernel

Level: TypeAlias = Literal["loops", "tile", "queue", "graph"]
"""What a backend may take kernels as. Which of them something lowers to is known where passes and backends meet."""


class KernelBuilder(Protocol):
    """Starts compiling kernels for a machine; each future gives its object.

    Kernels come by symbol, at the level the backend takes, and are drawn one by one: lowering the next overlaps with
    compiling those before it.
    """

    def __call__(
        self, kernels: Iterable[tuple[str, Source]], machine: Machine
    ) -> Mapping[str, Future[BuiltKernel]]: ...


@dataclass(frozen=True)
class Backend:
    """A backend's manifest.

    takes: the level it accepts. machines: machine name -> description, built when asked. dtypes: those that its kernels
    may compute in. legalize: text of the passes that run last, after the default pipeline, for models, kernels in
    Python and artifacts' IR alike. They accept what they made themselves, and one that adds launches or results is
    followed by plan-memory. build: kernels to objects. runtime_objects: native code its programs need besides kernels
    (a driver), by name. toolchain: what decides the objects besides the kernels, for cache keys. warm: starts what
    takes long to start, without waiting. probe: says what is missing to compile with it, or None when it is ready.
    device: where its kernels run, and how they are called there.
    """

    api: int
    name: str
    takes: Level
    machines: Mapping[str, Callable[[], Machine]]
    default_machine: Callable[[], str]
    dtypes: frozenset[str]
    legalize: str
    build: KernelBuilder
    runtime_objects: Callable[[Machine], Mapping[str, bytes]]
    toolchain: Callable[[], Mapping[str, str]]
    warm: Callable[[], None]
    probe: Callable[[], str | None]
    device: DeviceKind

    def __post_init__(self) -> None:
        faults = []
        if self.api != API_VERSION:
            faults.append(f"api: {self.api} is not {API_VERSION}")
        if not self.name.isidentifier():
            faults.append(f"name: {self.name!r} is not an identifier")
        if self.takes not in get_args(Level):
            faults.append(f"takes: {self.takes!r} is not {', '.join(get_args(Level)[:-1])} or {get_args(Level)[-1]}")
        if not self.machines:
            faults.append("machines: none is described")
        if unknown := sorted(self.dtypes - set(DTYPES)):
            faults.append(f"dtypes: {', '.join(unknown)} is none of {', '.join(DTYPES)}")
        if not isinstance(self.device, DeviceKind):
            faults.append(f"device: {self.device!r} is no DeviceKind")
        if faults:
            raise BackendManifestError(
                [f"backend {self.name}: {f}" for f in faults], step="correct the manifest's field"
            )


def backends() -> Mapping[str, Backend]:
    """Every backend that is installed, by its entry point; imported when looked up."""
    return _Backends()


class _Backends(Mapping[str, Backend]):
    """Backends by name. One that cannot be imported fails for those who ask for it."""

    def __init__(self) -> None:
        self._points = _entry_points()

    def __getitem__(self, name: str) -> Backend:
        point = self._points[name]
        try:
            found: Backend = point.load()
        except ImportError as fault:
            distribution = point.dist.name if point.dist else "?"
            raise BackendManifestError(
                f"backend {name!r} of {distribution} cannot be imported: {fault}",
                step=f"install {distribution} again, or uninstall it",
            ) from fault
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._points

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)


def _entry_points() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    origin: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        distribution = point.dist.name if point.dist else "?"
        if point.name in origin and origin[point.name] != distribution:
            raise BackendManifestError(
                f"backend {point.name!r} is installed by {origin[point.name]} and {distribution}",
                step="uninstall one of them",
            )
        origin[point.name] = distribution
        found.setdefault(point.name, point)
    return found


def resolve_target(target: str | Sequence[str]) -> tuple[Backend, Machine]:
    """The backend and machine of "cpu", "cpu:avx2" or a preference list (the first that is ready and runs here).

    A single target is resolved wherever its kernels would run: compiling needs no device.
    """
    wanted = [target] if isinstance(target, str) else list(target)
    known = backends()
    faults: list[str | Problem] = []
    for name in wanted:
        backend_name, _, machine_name = name.partition(":")
        backend = known.get(backend_name)
        if backend is None:
            faults.append(f"no backend is called {backend_name!r}")
            continue
        machine_name = machine_name or backend.default_machine()
        if machine_name not in backend.machines:
            faults.append(f"{backend_name} has no machine {machine_name!r}; it has {', '.join(backend.machines)}")
            continue
        missing = backend.probe()
        if missing is not None:
            faults.append(f"{backend_name} is not ready: {missing}")
            continue
        if len(wanted) > 1 and (absent := backend.device.why_not_here()) is not None:
            faults.append(f"{name} compiles here, but this process has no executor for it: {absent}")
            continue
        return backend, backend.machines[machine_name]()
    meant = [known[n] for n in dict.fromkeys(name.partition(":")[0] for name in wanted) if n in known]
    listed = ", ".join(f"{b.name}:{m}" for b in meant for m in b.machines) or ", ".join(known)
    raise TargetError(faults, step=f"use one of {listed}")


def machine_of(target: str) -> tuple[Backend, Machine]:
    """The backend and machine of a program's target, named in full: "cpu:avx2". TargetError where none is installed."""
    name, _, machine = target.partition(":")
    backend = backends().get(name)
    if backend is None or machine not in backend.machines:
        raise TargetError(f"no installed backend knows {target}", step="see `tilewright targets`")
    return backend, backend.machines[machine]()


def content_of(kernel: KernelOp) -> str:
    """The kernel's text without its name: what its content hash is taken from."""
    clone = kernel.clone()
    clone.properties["sym_name"] = type(kernel.sym_name)("kernel")
    for op in clone.walk():
        op.attributes.clear()
    return str(clone)


def kernels_of(module: ModuleOp) -> dict[str, KernelOp]:
    """Every kernel of a module by name."""
    return {op.sym_name.data: op for op in module.walk() if isinstance(op, KernelOp)}

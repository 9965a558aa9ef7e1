"""Artifacts: one relocatable file with a program's IR, step table, kernels, driver and weights.

`save_artifact` writes it, `load_artifact` reads it with numpy and llvmlite alone. Nothing in it is executed or trusted
before its hash has been checked; but native kernels are code, and a hash says nothing about who wrote them: load a
stranger's file with native=False, which rebuilds everything from IR whose accesses are proved to stay in bounds.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tilewright import __version__
from tilewright.errors import ArtifactAccessError, ArtifactError, CpuFeatureError, IRError, OptionError, WeightsError
from tilewright.runtime import native
from tilewright.runtime.artifact_file import Container, NewSection, plain_path, write_container
from tilewright.runtime.facts import Facts
from tilewright.runtime.program import Program
from tilewright.runtime.program_check import check_program
from tilewright.runtime.program_json import program_from_text, program_text
from tilewright.runtime.safetensors_file import SafetensorsFile
from tilewright.runtime.weights import WeightSet

_PAGE = 4096
_WRITABLE = "give a path in a folder that you can write"
_NAMED = "model.tilewright"


@dataclass(frozen=True, slots=True)
class KernelObject:
    """Relocatable native code of one or several kernels. key: of its contents. features: what a CPU needs to run it."""

    key: str
    data: bytes
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NativeCode:
    """All native code of a program. architecture: as platform.machine() names it. driver: walks the step table."""

    architecture: str
    kernels: tuple[KernelObject, ...]
    driver: bytes

    @property
    def features(self) -> frozenset[str]:
        return frozenset(feature for kernel in self.kernels for feature in kernel.features)

    def missing(self) -> list[str]:
        """What this machine lacks to run the code: features by LLVM's names, or the architecture itself."""
        if self.architecture != platform.machine():
            return [self.architecture]
        return sorted(self.features - native.cpu_features())


@dataclass(frozen=True, slots=True)
class Artifact:
    """A loaded artifact. ir: text by level ("graph", "tile"). facts: what its writer noted."""

    path: str
    program: Program
    ir: Mapping[str, str]
    native: NativeCode
    weights: WeightSet
    facts: Facts
    rebuilt: bool


@dataclass(frozen=True, slots=True)
class Rebuildable:
    """What an artifact holds besides native code: all that a rebuild for this machine may use.

    missing: CPU features that its own kernels need and this machine lacks; empty when native=False asked for the
    rebuild.
    """

    path: str
    program: Program
    ir: Mapping[str, str]
    facts: Facts
    missing: tuple[str, ...]


Rebuild = Callable[[Rebuildable], tuple[Program, NativeCode]]
"""Compiles the IR for this machine. The program it gives must hold the same stored tensors. It must come from the IR:
the artifact's own step table says where kernels read and write, and is not to be believed of a stranger's file."""


def save_artifact(
    path: str | Path,
    *,
    program: Program,
    ir: Mapping[str, str],
    native_code: NativeCode,
    weights: SafetensorsFile,
    facts: Facts | None = None,
) -> None:
    """Writes an artifact; weights are streamed. The same arguments give the same bytes, whatever the process or folder.

    weights: the tensors of `Program.stored`. facts: for the report. ArtifactAccessError when it cannot be written.
    """
    place = Path(plain_path(path, f'name a file: "{_NAMED}"'))
    if place.is_dir():
        step = f"name a file in it: {place / _NAMED}"
        raise ArtifactAccessError(f"{path} cannot be written: it is a folder", step=step)
    if not place.parent.exists():
        raise ArtifactAccessError(
            f"{path} cannot be written: there is no folder {place.parent}", step=f"mkdir -p {place.parent}"
        )
    check_program(program)
    kernels = sorted(native_code.kernels, key=lambda kernel: kernel.key)
    header = {
        "tilewright": __version__,
        "architecture": native_code.architecture,
        "kernels": [{"key": k.key, "features": sorted(k.features)} for k in kernels],
        "ir": sorted(ir),
        "facts": (facts or Facts()).to_json(),
    }
    sections = [NewSection.of("program", program_text(program).encode("ascii"))]
    sections += [NewSection.of(f"ir/{level}", ir[level].encode()) for level in sorted(ir)]
    sections += [NewSection.of(f"kernel/{kernel.key}", kernel.data) for kernel in kernels]
    sections.append(NewSection.of("driver", native_code.driver))
    # Last and on a page of its own, to be mapped.
    sections.append(NewSection("weights", weights.size, weights.chunks, alignment=_PAGE))
    try:
        write_container(place, header, sections)
    except OSError as fault:
        raise ArtifactAccessError(f"{path} cannot be written: {fault.strerror}", step=_WRITABLE) from fault


def load_artifact(
    path: str | Path,
    *,
    rebuild: Rebuild | None = None,
    use_native: bool = True,
    verify: Literal["all", "code"] = "all",
) -> Artifact:
    """Reads an artifact.

    rebuild: used when this CPU lacks features that the kernels need, and always when use_native is False.
    verify: "all" hashes every section before anything is used; "code" leaves out the weights, which are then read only
    where a call needs them.

    Raises ArtifactError naming the section that is damaged, ArtifactVersionError, and CpuFeatureError when the kernels
    cannot run here and nothing can rebuild them.
    """
    if verify not in ("all", "code"):
        raise OptionError(f"verify={verify!r} is neither 'all' nor 'code'", step="verify='all'")
    container = Container(path)
    for name in container.sections if verify == "all" else ():
        container.verify(name)
    header = _header(container)
    facts = _facts(container, header)
    program = _program(container)
    ir = {level: _text(container, f"ir/{level}") for level in header["ir"]}
    code = _native(container, header) if use_native else None
    missing = code.missing() if code is not None else []
    rebuilt = code is None or bool(missing)
    if code is None or missing:
        if rebuild is None:
            raise _cannot_run(container, missing)
        program, code = rebuild(Rebuildable(container.path, program, ir, facts, tuple(missing)))
    return Artifact(container.path, program, ir, code, _weights(container, program), facts, rebuilt)


def _cannot_run(container: Container, missing: list[str]) -> CpuFeatureError | OptionError:
    if not missing:
        return OptionError(
            f"{container.path} can be rebuilt only where the compiler is installed", step="pip install tilewright"
        )
    return CpuFeatureError(
        f"the kernels in {container.path} need {', '.join(missing)}, which this CPU does not have",
        step="tw.load(path, native=False) rebuilds them here",
    )


def _weights(container: Container, program: Program) -> WeightSet:
    section = container.section("weights")

    def fault(text: str) -> ArtifactError:
        return container.fault(f"is malformed in section weights: {text}")

    file = SafetensorsFile(container.fd, offset=section.offset, size=section.size, fault=fault)
    try:
        return WeightSet(program, file)
    except WeightsError as problem:
        raise fault(str(problem.problems[0])) from problem


def _header(container: Container) -> dict[str, Any]:
    header = container.facts
    fields = {"tilewright": str, "architecture": str, "kernels": list, "ir": list, "facts": dict}
    if not isinstance(header, dict) or any(not isinstance(header.get(name), kind) for name, kind in fields.items()):
        raise container.fault("has a malformed header: its facts are incomplete")
    return header


def _facts(container: Container, header: Mapping[str, Any]) -> Facts:
    try:
        return Facts.from_json(header["facts"])
    except (KeyError, TypeError, ValueError, RecursionError) as fault:
        raise container.fault(f"has a malformed header: of its facts, {fault}") from fault


def _program(container: Container) -> Program:
    try:
        program = program_from_text(container.read("program"))
        check_program(program)
    except IRError as fault:
        raise container.fault(f"is malformed in section program: {fault.problems[0]}") from fault
    return program


def _native(container: Container, header: Mapping[str, Any]) -> NativeCode:
    try:
        kernels = tuple(
            KernelObject(k["key"], container.read(f"kernel/{k['key']}"), tuple(k["features"]))
            for k in header["kernels"]
        )
    except (KeyError, TypeError) as fault:
        raise container.fault(f"has a malformed header: {fault!r}") from fault
    return NativeCode(header["architecture"], kernels, container.read("driver"))


def _text(container: Container, name: str) -> str:
    try:
        return container.read(name).decode()
    except UnicodeDecodeError as fault:
        raise container.fault(f"is malformed in section {name}: {fault}") from fault

"""Compiled objects to files and back: `Compiled.save` and tw.load.

Loading and calling need numpy, safetensors and llvmlite: nothing here imports a tensor library, the IR's library or a
code generator unless kernels have to be built again.
"""

from __future__ import annotations

import json
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from tilewright.compiler.code import Code
from tilewright.compiler.compiled import Compiled
from tilewright.compiler.linking import DRIVER, ready
from tilewright.compiler.stopwatch import Stopwatch
from tilewright.errors import CpuFeatureError, MissingDependencyError, Problem, UnsupportedOpError
from tilewright.runtime.artifact import (
    Artifact,
    KernelObject,
    NativeCode,
    Rebuildable,
    load_artifact,
    save_artifact,
)
from tilewright.runtime.canonical import canonical_json
from tilewright.runtime.program import Program
from tilewright.runtime.safetensors_file import SafetensorsFile

SOURCES: Final = "sources"
"""The level under which an artifact keeps the kernels' sources, as JSON."""

# What compiling noted and is the same wherever and whenever it ran: no times, no state of a cache.
_FACTS: Final = ("model", "applied", "patterns", "refused", "notes", "pipeline", "options", "choices")
_TOOLCHAIN: Final = ("xdsl", "torch_mlir")


def save(compiled: Compiled, path: str | Path) -> None:
    """Writes a compiled object as one artifact, weights streamed. The same model and options give the same bytes.

    Raises UnsupportedOpError for a program with operators that run in torch, ArtifactError where the file cannot be
    written.
    """
    code = compiled.code
    hosted = [
        Problem("runs in torch, and an artifact holds no torch code", op=step.host.callee, where=step.location)
        for step in code.program.main.steps
        if step.host is not None
    ]
    if hosted:
        raise UnsupportedOpError(hosted, step="compile with fallback='error' to see what replaces them")
    stored = compiled.executable.weights.stored
    if not isinstance(stored, SafetensorsFile):
        raise TypeError(f"weights in a {type(stored).__name__} cannot be streamed")
    save_artifact(
        path,
        program=code.program,
        ir={**code.texts, SOURCES: canonical_json(dict(code.sources))},
        native_code=_native_code(code),
        weights=stored,
        facts={name: compiled.facts[name] for name in _FACTS if name in compiled.facts},
    )


def load_compiled(
    path: str | Path, *, native: bool = True, threads: int | None = None, memory_limit: int | None = None
) -> Compiled:
    """Opens an artifact. See tilewright.load.

    Its kernels run as they are where this CPU has the features they need. Elsewhere, and with native=False, they are
    built from its IR, for the artifact's own CPU class or the best this CPU has, once every access in it is proved to
    stay inside its buffer (`rebuilding`); its step table is made again from the IR, too. What such a program computes
    in and gives back is zeros when a call begins: kernels that leave elements unwritten show nothing of this process.

    Raises ArtifactError and ArtifactVersionError for a file that is damaged, foreign or of another format,
    CpuFeatureError and MissingDependencyError where kernels would have to be built and cannot be.
    """
    watch = Stopwatch()
    with watch.stage("load"):
        artifact = load_artifact(path, rebuild=_rebuild, use_native=native)
    origin = f"artifact {Path(path).name}" + (", kernels built again" if artifact.rebuilt else "")
    facts = {**artifact.facts, "cache": origin}
    return ready(
        _code(artifact), facts, lambda *_: artifact.weights, watch, threads=threads, memory_limit=memory_limit,
        cleared=artifact.rebuilt,
    )  # fmt: skip


def _native_code(code: Code) -> NativeCode:
    kernels = tuple(
        KernelObject(name, data, code.features) for name, data in sorted(code.objects.items()) if name != DRIVER
    )
    return NativeCode(platform.machine(), kernels, code.objects[DRIVER])


def _code(artifact: Artifact) -> Code:
    """The compiled code as compile() would give it."""
    texts = dict(artifact.ir)
    sources: dict[str, str] = json.loads(texts.pop(SOURCES, "{}"))
    objects = {kernel.key: kernel.data for kernel in artifact.native.kernels}
    objects[DRIVER] = artifact.native.driver
    return Code(artifact.program, objects, sources, texts, tuple(sorted(artifact.native.features)))


def _rebuild(parts: Rebuildable) -> tuple[Program, NativeCode]:
    """The program and kernels of an artifact's tile IR, compiled here."""
    absent = [name.replace("_", "-") for name in _TOOLCHAIN if find_spec(name) is None]
    if absent:
        _refuse(parts, absent)
    from tilewright.compiler.rebuilding import rebuild

    code = rebuild(parts)
    return code.program, _native_code(code)


def _refuse(parts: Rebuildable, absent: list[str]) -> Any:
    step = f"pip install {' '.join(absent)}"
    if parts.missing:
        raise CpuFeatureError(
            f"the kernels in {parts.path} need {', '.join(parts.missing)}, which this CPU does not have, and building "
            f"them again needs {', '.join(absent)}",
            step=step,
        )
    raise MissingDependencyError(f"building the kernels of {parts.path} again needs {', '.join(absent)}", step=step)

"""Tilewright compiles a model into kernels it wrote itself.

    import tilewright as tw

    batch, tokens = tw.Dim("batch", 1, 64), tw.Dim("tokens", 1, 256)
    compiled = tw.compile(model, kwargs=inputs, dims={"ids": (batch, tokens)})
    out = compiled(**inputs)
    print(compiled.report)

Importing this module imports no tensor library and no code generator; compile() and load() do, when they are called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tilewright.errors import TilewrightError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tilewright.compiler.compiled import Compiled
    from tilewright.ir.dims import Dim
    from tilewright.ir.passing import Context, Pass, Pipeline

__version__ = "0.1.0"

# Public names that live in rooms whose imports take time: resolved on first use.
_LAZY = {
    "Dim": "tilewright.ir.dims",
    "Pass": "tilewright.ir.passing",
    "Context": "tilewright.ir.passing",
    "Pipeline": "tilewright.ir.passing",
    "Compiled": "tilewright.compiler.compiled",
}
__all__ = ["Compiled", "Context", "Dim", "Pass", "Pipeline", "TilewrightError", "compile", "load", "pipeline"]


def compile(
    model: Any,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dims: Any = None,
    **options: Any,
) -> Compiled:
    """Compiles a model for the whole declared range of its dims; no later call compiles anything.

    model: a torch.nn.Module, a torch.export.ExportedProgram, or the path of a .pt2 file.
    args, kwargs: example inputs (torch tensors or NumPy arrays), nested as the model takes them.
    dims: which axes vary: {"ids": (B, T)} or {"ids": {1: T}}, following the arguments' tree; the same Dim means equal.

    Options:

    - target: "cpu", "cpu:avx2", ... or a list in order of preference. Default "cpu".
    - precision: "model", "f32" or "bf16": operands of matrix products are rounded to it; sums and the rest stay.
    - passes: a pipeline, or its text; tw.pipeline() is the default one to edit.
    - determinism: "free", "run" or "batch" (the default: a row's bits do not depend on batch, neighbours or threads).
    - expect: pattern counts that must hold: {"attention": 6}.
    - fallback: "error", the only one yet: an operator without a lowering is an error that names it.
    - check: "first" compares the first call with the original model and names the first op that differs.
    - verify_each: "numeric" runs the module before and after every pass on random inputs.
    - materialise: True plans every op as a kernel of its own with a buffer of its own, for comparing intermediates.
    - threads, memory_limit (bytes): bounds for a call. cache: True, False, or a directory.

    Raises subclasses of TilewrightError, each with a code: `tilewright explain CODE`.
    """
    from tilewright.compiler.entry import compile_model

    return compile_model(model, args, kwargs, dims, **options)


def load(
    path: str | Path, *, native: bool = True, threads: int | None = None, memory_limit: int | None = None
) -> Compiled:
    """Opens an artifact that `Compiled.save` wrote.

    native=False ignores its machine code and its step table and rebuilds both from its IR: the way to open a stranger's
    file. Before anything is compiled, every access of every kernel is proved to stay inside its buffer, for all sizes
    that the dims and guards admit; ArtifactError names what is not proved. What the file computes, and how long it
    takes, is still the stranger's choice.
    """
    from tilewright.compiler.artifacts import load_compiled

    return load_compiled(path, native=native, threads=threads, memory_limit=memory_limit)


def pipeline() -> Pipeline:
    """The default pipeline, to edit: tw.pipeline().after("recognize", MyPass())."""
    from tilewright.passes.pipeline import default_pipeline

    return default_pipeline()


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name == "testing":
        return import_module("tilewright.testing")
    raise AttributeError(f"module 'tilewright' has no attribute {name!r}")

"""The way of a model into the graph IR, top to bottom."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from xdsl.dialects.builtin import ModuleOp

from tilewright.errors import CaptureError, MissingDependencyError, ModelInputError, OptionError
from tilewright.frontend.captured import Captured, Proof, Unproved

# The exporter and the switch of transformers' attention are process-wide state.
_LOCK: Final = threading.Lock()
_FALLBACKS: Final = ("error", "torch")


def capture(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dims: Mapping[str, Any] | None = None,
    *,
    fallback: str = "error",
) -> Captured:
    """Captures a model as graph IR.

    model: a torch.nn.Module, a torch ExportedProgram or the path of a .pt2 file. args, kwargs: example inputs (tensors
    or arrays, nested as forward takes them). dims: the axes that may vary, by argument: `{"ids": (B, T)}` or
    `{"ids": {1: T}}`, nested as the argument is; the same Dim or name means equal. fallback: "error", or "torch" to
    keep operators without a lowering in torch.

    Raises ModelInputError, MissingDependencyError, ArgumentError, DimDeclarationError, TrainingModeError, HookError,
    CaptureError, SpecialisationError, UnsupportedOpError. The model is neither changed nor kept alive: only its tensors
    are referred to.
    """
    return capture_unproved(model, args, kwargs, dims, fallback=fallback).proved()


def capture_unproved(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dims: Mapping[str, Any] | None = None,
    *,
    fallback: str = "error",
) -> Unproved:
    """As `capture`, and not held against the model yet: that takes longer than the capture, and can be done while
    something else does not wait for it.
    """
    if fallback not in _FALLBACKS:
        raise OptionError(f"fallback={fallback!r}", step=f"use one of {', '.join(map(repr, _FALLBACKS))}")
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError("capturing a model needs torch", step="pip install 'torch>=2.11'")
    import torch

    if isinstance(model, (str, os.PathLike)):
        model = load_program(Path(model))
    with _LOCK:
        if isinstance(model, torch.export.ExportedProgram):
            captured = _program(model, args, dict(kwargs or {}), dims, fallback)
            return Unproved(captured, lambda _: Proof())
        return _module(model, args, dict(kwargs or {}), dims, fallback)


def _module(
    model: Any, args: Sequence[Any], kwargs: dict[str, Any], dims: Mapping[str, Any] | None, fallback: str
) -> Unproved:
    from tilewright.frontend import huggingface, inspection, weights
    from tilewright.frontend.assembling import assemble
    from tilewright.frontend.declaring import declare
    from tilewright.frontend.eager import eager
    from tilewright.frontend.examples import bind
    from tilewright.frontend.export_faults import seen_in_eager
    from tilewright.frontend.exporting import Exported, export
    from tilewright.frontend.fast_path import padding_noted
    from tilewright.frontend.inference_tensors import as_constants
    from tilewright.frontend.preserving import preserved
    from tilewright.frontend.trial import tried

    inspection.require_module(model)
    inspection.require_evaluation(model)
    inspection.require_no_hooks(model)
    inspection.require_no_autocast()
    notes: list[str] = []
    with preserved(model), as_constants(model), huggingface.switched(model, kwargs, notes), padding_noted(notes):
        example = declare(bind(model.forward, args, kwargs), dims)
        inspection.require_on_cpu(
            [*model.named_parameters(), *model.named_buffers()], [(leaf.name, leaf.value) for leaf in example.leaves]
        )
        exported: Exported | CaptureError
        try:
            exported = export(model, example)
        except CaptureError as fault:
            exported = fault
    if isinstance(exported, CaptureError):
        with as_constants(model):
            raise seen_in_eager(exported, lambda: eager(model, example, {})) from exported
    tensors = weights.collect(exported.program)
    weights.add_aliases(tensors, model)
    source = f"{type(model).__module__}.{type(model).__qualname__}"
    captured = assemble(exported, tensors, source=source, notes=notes, fallback=fallback)

    @contextmanager
    def like_export() -> Iterator[None]:
        with preserved(model), huggingface.switched(model, dict(kwargs), []):
            yield

    known = captured.guards

    def prove(graph: Callable[[], ModuleOp]) -> Proof:
        with _LOCK, as_constants(model):
            return tried(model, exported, captured, known, graph, like_export)

    return Unproved(captured, prove)


def _program(
    program: Any, args: Sequence[Any], kwargs: dict[str, Any], dims: Mapping[str, Any] | None, fallback: str
) -> Captured:
    import torch

    from tilewright.frontend import inspection, programs, weights
    from tilewright.frontend.assembling import assemble
    from tilewright.frontend.exporting import describe
    from tilewright.frontend.sizing import sizes_of

    example = programs.example(program, args, kwargs, dims)
    stored = {**program.state_dict, **{n: c for n, c in program.constants.items() if isinstance(c, torch.Tensor)}}
    inspection.require_on_cpu(stored.items(), [(leaf.name, leaf.value) for leaf in example.leaves])
    exported = describe(program, example, sizes_of(example), doubts=False)
    tensors = weights.collect(exported.program)
    return assemble(exported, tensors, source="ExportedProgram", notes=[], fallback=fallback)


def load_program(path: Path) -> Any:
    """The program of a .pt2 file. Raises ModelInputError saying what the path is instead."""
    import torch

    from tilewright.frontend.quiet import quiet

    if path.suffix == ".onnx":
        raise ModelInputError(
            f"{path.name}: ONNX files are not read",
            step="give the PyTorch model itself, or a .pt2 file: "
            "torch.export.save(torch.export.export(model, args), 'model.pt2')",
        )
    if not path.exists():
        step = "give the path of a .pt2 file or of a model directory"
        if path.suffix != ".pt2" and not path.is_absolute():
            step += f", or load the model first: transformers.AutoModel.from_pretrained({str(path)!r})"
        raise ModelInputError(f"there is no file {path}", step=step)
    if path.suffix != ".pt2" or path.is_dir():
        raise ModelInputError(f"{path.name} is not a .pt2 file", step="save one with torch.export.save(program, path)")
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as fault:
        reason = " ".join(str(fault).split())[:300]
        raise ModelInputError(f"{path.name}: {reason}", step="save it again with torch.export.save") from fault

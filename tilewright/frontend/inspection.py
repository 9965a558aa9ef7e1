"""What must be true of a module before it is captured: evaluation mode, no hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tilewright.errors import HookError, ModelInputError, Problem, TrainingModeError

if TYPE_CHECKING:
    import torch

_HOOKS: Final = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}


def require_module(model: Any) -> None:
    """ModelInputError unless the model is something the torch frontend captures."""
    import torch

    if isinstance(model, type) and issubclass(model, torch.nn.Module):
        raise ModelInputError(f"{model.__name__} is a class", step=f"pass an instance: {model.__name__}(...)")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelInputError(
            "a ScriptModule has no Python forward to capture", step="pass the torch.nn.Module it was scripted from"
        )
    if not isinstance(model, torch.nn.Module):
        raise ModelInputError(
            f"{type(model).__name__} is not a model",
            step="pass a torch.nn.Module, an ExportedProgram, or the path of a .pt2 or .onnx file",
        )


def require_evaluation(model: torch.nn.Module) -> None:
    """TrainingModeError naming every module in training mode whose training behaviour is not inference."""
    import torch

    problems: list[str | Problem] = []
    for name, module in model.named_modules():
        if not module.training:
            continue
        label = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0:
            problems.append(f"{label} drops elements with p={module.p}")
        elif isinstance(module, torch.nn.modules.batchnorm._NormBase) and module.track_running_stats:
            problems.append(f"{label} normalises by the batch's statistics")
    if problems:
        raise TrainingModeError(problems, step="call model.eval() before compiling")


def require_no_hooks(model: torch.nn.Module) -> None:
    """HookError naming every module that carries a hook a user has registered."""
    problems: list[str | Problem] = []
    for name, module in model.named_modules():
        for attribute, what in _HOOKS.items():
            for hook in getattr(module, attribute, {}).values():
                if not _is_capturing_hook(hook):
                    problems.append(f"{name or 'the model'} ({type(module).__name__}) has the {what} {_name(hook)}")
    if problems:
        raise HookError(problems, step="call .remove() on each hook's handle, or move what it does into forward")


def _is_capturing_hook(hook: Any) -> bool:
    """Hooks that transformers leaves behind after collecting hidden states: idle unless its collector is active."""
    return str(getattr(hook, "__module__", "")).startswith("transformers.utils.output_capturing")


def _name(hook: Any) -> str:
    return str(getattr(hook, "__qualname__", None) or type(hook).__qualname__)

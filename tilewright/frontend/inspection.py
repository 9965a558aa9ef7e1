"""What must be true of a module before it is captured: evaluation mode, no hooks, weights in memory, no autocast."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from tilewright.errors import CaptureError, DeviceError, HookError, ModelInputError, Problem, TrainingModeError

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
    if inspect.isroutine(model):
        name = model.__name__
        raise ModelInputError(
            f"{name} is a function, not a model",
            step='compile it with torch.compile(f, backend="tilewright"), or call it in a torch.nn.Module\'s forward',
        )
    if not isinstance(model, torch.nn.Module):
        raise ModelInputError(
            f"{type(model).__name__} is not a model",
            step="pass a torch.nn.Module, an ExportedProgram, or the path of a .pt2 file or a model directory",
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


def require_on_cpu(weights: Iterable[tuple[str, Any]], inputs: Iterable[tuple[str, Any]]) -> None:
    """DeviceError unless all tensors are in the CPU's memory: kernels read weights where they lie.

    weights: parameters and buffers by name; inputs: leaves of the example, of which those that are tensors count.
    """
    away: dict[str, list[str]] = {}
    for name, tensor in weights:
        if tensor.device.type != "cpu":
            away.setdefault(str(tensor.device), []).append(name)
    if away:
        listed = [
            f"the weights are on {device}: {', '.join(names[:3])}"
            + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for device, names in away.items()
        ]
        step = "move the model: model.cpu()"
        if "meta" in away:
            step = "load them first: model.to_empty(device='cpu'), then model.load_state_dict(...)"
        raise DeviceError(listed, step=step)
    strangers = [(name, t.device) for name, t in inputs if hasattr(t, "device") and t.device.type != "cpu"]
    if strangers:
        raise DeviceError(
            [f"the example's {name} is on {device}" for name, device in strangers],
            step="give example tensors on the CPU: "
            + ", ".join(
                f"torch.zeros_like({n}, device='cpu')" if d.type == "meta" else f"{n}.cpu()" for n, d in strangers
            ),
        )


def require_no_autocast() -> None:
    """CaptureError under torch.autocast: its casts happen at every call, so that none would be in the program."""
    import torch

    if torch.is_autocast_enabled("cpu"):
        raise CaptureError(
            "torch.autocast is on, and what it casts at each call cannot be captured",
            step='compile outside of autocast, with precision="bf16" for products of bf16 operands',
        )


def _is_capturing_hook(hook: Any) -> bool:
    """Hooks that transformers leaves behind after collecting hidden states: idle unless its collector is active."""
    return str(getattr(hook, "__module__", "")).startswith("transformers.utils.output_capturing")


def _name(hook: Any) -> str:
    return str(getattr(hook, "__qualname__", None) or type(hook).__qualname__)

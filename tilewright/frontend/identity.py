"""All that decides what a capture of a model finds, by name: equal factors give equal captures.

A capture takes seconds, and most are the same as one that was made before. What is listed here is the model (classes,
attributes, configs, names and shapes of its tensors, contents of its small buffers), the code that its forward can
reach (`reached`), the example, the declared dims, what is registered with transformers, and torch's switches. Where
something cannot be told by what it is made of (a hook, a method of one instance, a tensor as an attribute), nothing is
said, and the model is captured.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from tilewright.errors import TilewrightError
from tilewright.frontend import huggingface, inspection
from tilewright.frontend.declaring import declare
from tilewright.frontend.examples import Example, bind
from tilewright.frontend.loaded_code import owner_of_named
from tilewright.frontend.preserving import preserved
from tilewright.frontend.quiet import quiet
from tilewright.frontend.reached import Reached, UnprovedError
from tilewright.ir.dims import Dim

if TYPE_CHECKING:
    import torch

# Contents of buffers up to this size count; of larger ones where a capture may write their numbers into the graph.
_SMALL_BYTES: Final = 1 << 20
_ENVIRONMENT: Final = ("TRANSFORMERS_", "USE_")


@dataclass(frozen=True)
class Identity:
    """factors: by name, or None where they do not tell all; unproved then says what is in the way.

    operators: those of other libraries than torch that the factors tell, as "mylib::swiglu".
    """

    factors: Mapping[str, Any] | None
    unproved: str = ""
    operators: frozenset[str] = frozenset()


def identify(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], dims: Mapping[str, Any] | None, fallback: str
) -> Identity:
    """The factors of `capturing.capture` with these arguments. What capture would refuse has none."""
    import torch

    if not isinstance(model, torch.nn.Module):
        return Identity(None, "the model is no torch.nn.Module")
    try:
        inspection.require_module(model)
        inspection.require_evaluation(model)
        inspection.require_no_hooks(model)
        inspection.require_no_autocast()
        with preserved(model), quiet():
            example = declare(bind(model.forward, args, kwargs), dims)
            return _told(model, example, fallback)
    except UnprovedError as fault:
        return Identity(None, str(fault))
    except TilewrightError:
        return Identity(None, "the model cannot be captured as it is")


def tensors_of(model: Any) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a model under all their names; nothing of what is no model of torch."""
    if "torch" not in sys.modules or not isinstance(model, sys.modules["torch"].nn.Module):
        return {}
    return {
        name: value.detach()
        for name, value in (
            *model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)
        )
    }  # fmt: skip


def bytes_of(model: Any, width: int | None = None) -> int:
    """About so many bytes the weights take in a program. width: bytes that a float has there at most."""
    if "torch" not in sys.modules or not isinstance(model, sys.modules["torch"].nn.Module):
        return 0
    sizes = ((v.numel(), v.element_size(), v.is_floating_point()) for v in (*model.parameters(), *model.buffers()))
    return sum(count * (min(size, width) if width and floats else size) for count, size, floats in sizes)


def _told(model: torch.nn.Module, example: Example, fallback: str) -> Identity:
    kinds = {base for module in model.modules() for base in type(module).__mro__}
    packages = {owner_of_named(kind.__module__) for kind in kinds} - {"torch", "python", "tilewright"}
    libraries = ["torch"]
    registered: dict[str, Any] = {}
    if huggingface.is_transformers(model):
        libraries.append("transformers")
        registered = huggingface.registered()
    reached = Reached({*packages, *libraries[1:]})
    plain = {
        "kind": "capture",
        "fallback": fallback,
        "model": type(model).__module__ + "." + type(model).__qualname__,
        "modules": _modules(model, reached),
        "configs": [reached.value(vars(config), "the config") for config in huggingface.configs(model)],
        "tensors": _tensors(model, reached),
        "example": _example(example),
        "registered": {name: reached.value(table, name) for name, table in sorted(registered.items())},
        "torch": _switches(),
        "environment": {n: v for n, v in sorted(os.environ.items()) if n.startswith(_ENVIRONMENT)},
        "versions": {**{name: version(name) for name in libraries}, "python": sys.version},
    }
    return Identity(plain | {"code": reached.settle()}, operators=frozenset(reached.operators))


def _modules(model: torch.nn.Module, reached: Reached) -> dict[str, Any]:
    """Each module by its path: its class, and its attributes besides parameters, buffers and modules."""
    import torch

    _require_no_global_hooks()
    usual = vars(torch.nn.Module())
    configs = {id(config): i for i, config in enumerate(huggingface.configs(model))}
    paths = {id(module): path for path, module in model.named_modules()}
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        place = path or "the model"
        attributes = {}
        for name, held in sorted(vars(module).items()):
            if name in usual:
                if isinstance(held, dict) and held and name not in ("_parameters", "_buffers", "_modules"):
                    raise UnprovedError(f"{place} has {name.strip('_').replace('_', ' ')}")
                continue
            if callable(held) and callable(getattr(type(module), name, None)):
                raise UnprovedError(f"{place}.{name} is a method of this instance alone")
            if id(held) in configs:
                attributes[name] = f"config {configs[id(held)]}"
            elif isinstance(held, torch.nn.Module) and id(held) in paths:
                attributes[name] = f"module {paths[id(held)]}"
            else:
                attributes[name] = repr(reached.value(held, f"{place}.{name}"))
        _require_followed(type(module), place)
        reached.kind(type(module))
        children = ", ".join(f"{name}: {paths.get(id(c))}" for name, c in module._modules.items())
        found[path] = {
            "class": f"{type(module).__module__}.{type(module).__qualname__}", "training": module.training,
            "children": children, **{f".{name}": value for name, value in attributes.items()},
        }  # fmt: skip
    return found


def _require_followed(kind: type, place: str) -> None:
    """Torch's layers are compared as loaded (`reached`); other modules of its, such as traced graphs, hold more."""
    for base in kind.__mro__:
        if owner_of_named(base.__module__) == "torch" and not base.__module__.startswith("torch.nn.modules."):
            raise UnprovedError(f"{place} is a {base.__module__}.{base.__qualname__}")


def _require_no_global_hooks() -> None:
    from torch.nn.modules import module

    for name, held in vars(module).items():
        if name.startswith("_global_") and name.endswith("_hooks") and held:
            raise UnprovedError("torch has hooks for all modules")


def _tensors(model: torch.nn.Module, reached: Reached) -> dict[str, Any]:
    """Each parameter and buffer: its type, how it lies in memory, what it shares it with, whether it has or wants a
    gradient, its attributes; small buffers' contents."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    transient = {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }
    first: dict[Any, str] = {}
    found: dict[str, Any] = {}
    whole = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, value in tensors_of(model).items():
        if type(value).__name__ != "Tensor":
            raise UnprovedError(f"{name} is a {type(value).__qualname__}")
        told = f"{value.dtype} {list(value.shape)} {list(value.stride())} {value.device} {value.is_conj()}"
        memory = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), tuple(value.stride()))
        told += f" as {first.setdefault(memory if value.numel() else name, name)}"
        told += f" {whole[name].requires_grad} {whole[name].grad is None}"
        if vars(whole[name]):
            told += f" {reached.value(vars(whole[name]), name)}"
        if name not in parameters:
            told += " transient" if name in transient else ""
            if value.nbytes <= _SMALL_BYTES or name in transient:
                content: Any = value.contiguous().reshape(-1).view(_bytes()).numpy() if value.numel() else b""
                told += f" {hashlib.sha256(content).hexdigest()}"
        found[name] = told
    return found


def _bytes() -> Any:
    import torch

    return torch.uint8


def _example(example: Example) -> dict[str, Any]:
    """The arguments as a capture takes them: names, types, names of declared axes; dims; what is no tensor by value."""
    leaves = {}
    for leaf in example.leaves:
        if leaf.is_tensor:
            value = leaf.value
            axes = [None if dim is None else dim.name for dim in leaf.axes]
            leaves[leaf.name] = f"{value.dtype} {list(value.shape)} {list(value.stride())} {value.requires_grad} {axes}"
        else:
            leaves[leaf.name] = repr(leaf.value)
    return {
        "arguments": [[e.name, e.keyword, str(e.tree.to_json())] for e in example.entries],
        "leaves": leaves,
        "dims": [_dim(dim) for dim in example.dims],
    }


def _dim(dim: Dim) -> list[Any]:
    return [dim.name, dim.min, dim.max, str(dim.kind)]


def _switches() -> dict[str, Any]:
    """What torch is told for the whole process or thread and that a model may ask it for."""
    import torch
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    seeing: Any = _get_current_function_mode_stack
    if seeing() or _get_current_dispatch_mode_stack():
        raise UnprovedError("a mode of torch is on that sees every operator")
    return {
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "products": torch.get_float32_matmul_precision(),
        "attention": [getattr(torch._C, f"_get_{kind}_sdp_enabled")() for kind in ("flash", "mem_efficient", "math")],
    }

"""Whether the references of a user's operators are right where a model calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tilewright.frontend.custom_ops import registered


def wrong_references(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    differs: Callable[[Any, Any], str | None],
) -> list[str]:
    """What is wrong with each reference given to tw.register_op that differs from its operator in a call of the model.

    differs: how two tensors are apart, None where rounding explains it.
    """
    import torch
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    found: dict[str, str] = {}

    class Comparing(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            op = registered(str(func))
            if op is not None and op.reference is not None:
                other = op.reference(*args, **(kwargs or {}))
                pairs = zip(pytree.tree_leaves(out), pytree.tree_leaves(other), strict=False)
                apart = next((fault for a, b in pairs if (fault := differs(a, b)) is not None), None)
                if apart is not None:
                    name = func._schema.name
                    found.setdefault(name, f"{name}'s reference, from tw.register_op, is not the operator: {apart}")
            return out

    with torch.inference_mode(), Comparing():  # type: ignore[no-untyped-call]
        model(*args, **kwargs)
    return list(found.values())

"""Leaves a module as it was found: tracing runs its forward, and forwards write attributes and register hooks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None))
_CONTAINERS: Final = (dict, list, set, deque)


@contextmanager
def preserved(model: torch.nn.Module, changed: list[str] | None = None) -> Iterator[None]:
    """Puts back every attribute of every submodule, hooks and tables of parameters included, as they were before.

    changed: receives the names of the attributes that were not as before: "layers.0.count". Parameters, buffers, hooks
    and whatever else every module has are not among them.
    """
    import torch

    usual = vars(torch.nn.Module()).keys()
    modules = list(model.named_modules())
    before = [dict(module.__dict__) for _, module in modules]
    saved: dict[int, tuple[Any, Any]] = {}
    for attributes in before:
        _save(attributes, saved)
    try:
        yield
    finally:
        for (path, module), attributes in zip(modules, before, strict=True):
            if changed is not None:
                own, now = attributes.keys() - usual, module.__dict__.keys() - usual
                found = (own ^ now) | {
                    n for n in own & now if not _same(attributes[n], module.__dict__[n], saved, set())
                }
                names = [f"{path}.{name}".lstrip(".") for name in sorted(found)]
                changed += [name for name in names if name not in changed]
            _restore(module.__dict__, attributes)
        for container, contents in saved.values():
            _restore(container, contents)


def _save(value: Any, saved: dict[int, tuple[Any, Any]]) -> None:
    """Keeps what containers hold, those inside others included: they are changed in place."""
    parts = value.values() if isinstance(value, dict) else value
    for part in parts:
        if isinstance(part, tuple):
            _save(part, saved)
        elif isinstance(part, _CONTAINERS) and id(part) not in saved:
            saved[id(part)] = (part, dict(part) if isinstance(part, dict) else list(part))
            _save(part, saved)


def _same(was: Any, value: Any, saved: dict[int, tuple[Any, Any]], seen: set[int]) -> bool:
    """Whether an attribute holds what it held before: the same objects, or equal numbers and strings."""
    if isinstance(value, _PLAIN):
        return type(was) is type(value) and bool(was == value or was is value)
    if isinstance(value, tuple):
        paired = isinstance(was, tuple) and len(was) == len(value)
        return paired and all(_same(a, b, saved, seen) for a, b in zip(was, value, strict=False))
    if was is not value:
        return False
    if id(value) not in saved or id(value) in seen:
        return True
    seen.add(id(value))
    held = saved[id(value)][1]
    if isinstance(held, dict):
        return held.keys() == value.keys() and all(_same(held[k], value[k], saved, seen) for k in held)
    return len(held) == len(value) and all(_same(a, b, saved, seen) for a, b in zip(held, value, strict=True))


def _restore(container: Any, contents: Any) -> None:
    if isinstance(contents, dict):
        same = container.keys() == contents.keys() and all(container[k] is v for k, v in contents.items())
    else:
        same = len(container) == len(contents) and all(a is b for a, b in zip(container, contents, strict=True))
    if same:
        return
    container.clear()
    put = container.update if isinstance(container, (dict, set)) else container.extend
    put(contents)

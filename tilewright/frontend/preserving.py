"""Leaves a module as it was found: tracing runs its forward, and forwards write attributes and register hooks."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def preserved(model: torch.nn.Module) -> Iterator[None]:
    """Puts back every attribute of every submodule, hooks and tables of parameters included, as they were before."""
    modules = list(model.modules())
    before = [dict(module.__dict__) for module in modules]
    # tables are changed in place, so their contents are kept beside the reference
    tables = [{name: dict(v) for name, v in saved.items() if isinstance(v, MutableMapping)} for saved in before]
    try:
        yield
    finally:
        for module, saved, contents in zip(modules, before, tables, strict=True):
            for name, entries in contents.items():
                _restore(saved[name], entries)
            _restore(module.__dict__, saved)


def _restore(table: MutableMapping[Any, Any], saved: dict[Any, Any]) -> None:
    same = table.keys() == saved.keys() and all(table[key] is value for key, value in saved.items())
    if not same:
        table.clear()
        table.update(saved)

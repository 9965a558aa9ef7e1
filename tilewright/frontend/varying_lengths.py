"""Functions of torch that take a length as a plain integer, as operators of ours whose length may vary.

`torch.linspace(a, b, n)` asks a size for its value before anything sees the call, which fixes the size. While a model
is traced, the name stands for an operator with the same arguments and a symbolic length; lowering gives both the same
form.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def with_varying_lengths() -> Iterator[None]:
    """Within it, such functions keep lengths that vary. Process-wide while it lasts."""
    import torch

    _define()
    owner: Any = torch
    original = owner.linspace

    def linspace(start: Any, end: Any, steps: Any, **options: Any) -> Any:
        dtype = options.get("dtype") or torch.get_default_dtype()
        plain = not any(isinstance(n, (torch.Tensor, complex)) for n in (start, end, steps)) and not dtype.is_complex
        # ends are cut to integers first where the result has those
        exact = dtype.is_floating_point or not any(isinstance(n, (float, torch.SymFloat)) for n in (start, end))
        if not plain or not exact or set(options) - {"dtype", "device"}:
            return original(start, end, steps, **options)
        device = torch.device(options.get("device") or torch.get_default_device())
        return torch.ops.tilewright.linspace(start, end, steps, dtype=dtype, device=device)

    try:
        owner.linspace = linspace
        yield
    finally:
        owner.linspace = original


@cache
def _define() -> Any:
    """Registers the operators, once in a process; returns the library object that keeps them registered.

    linspace: [steps], as torch.linspace of two numbers.
    """
    import torch

    library: Any = torch.library.Library("tilewright", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("linspace(Scalar start, Scalar end, SymInt steps, *, ScalarType dtype, Device device) -> Tensor")

    def linspace(start: Any, end: Any, steps: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty([steps], dtype=dtype, device=device)

    torch.library.register_fake("tilewright::linspace", linspace, lib=library)
    return library

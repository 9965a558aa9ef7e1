"""Shapes of operators that torch works out in C++ from plain numbers, which would fix every size they read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def with_open_sizes() -> Iterator[None]:
    """Within it, such operators keep sizes that vary: each is what it is made of. Process-wide while it lasts."""
    import torch

    key = torch._C.DispatchKey.CompositeImplicitAutograd
    made = {torch.ops.aten.max_pool1d.default: _max_pool1d}
    before = {op: op.py_kernels.get(key) for op in made}
    try:
        for op, function in made.items():
            _put(op, key, function)
        yield
    finally:
        for op, kernel in before.items():
            _put(op, key, kernel)


def _put(op: Any, key: Any, kernel: Any) -> None:
    op.py_kernels.pop(key, None)
    if kernel is not None:
        op.py_kernels[key] = kernel
    op._dispatch_cache.clear()


def _max_pool1d(
    x: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    """As a pool of one row."""
    import torch

    def one(value: Any, default: int) -> int:
        listed = value if isinstance(value, (list, tuple)) else [value]
        return listed[0] if listed else default

    width = one(kernel_size, 1)
    steps, pad, spread = one(stride, width), one(padding, 0), one(dilation, 1)
    pooled = torch.ops.aten.max_pool2d_with_indices.default(
        x.unsqueeze(-2), [1, width], [1, steps], [0, pad], [1, spread], ceil_mode
    )
    return pooled[0].select(-2, 0)

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
    aten: Any = torch.ops.aten
    made = {aten.max_pool1d.default: _max_pool1d, aten.max_pool1d_with_indices.default: _max_pool1d_with_indices,
            aten.cdist.default: _cdist, aten.fill_diagonal_.default: _fill_diagonal,
            aten.take_along_dim.default: _take_along_dim, aten.bilinear.default: _bilinear}  # fmt: skip
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


def _max_pool1d(x: Any, *places: Any, **named: Any) -> Any:
    return _max_pool1d_with_indices(x, *places, **named)[0]


def _max_pool1d_with_indices(
    x: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> tuple[Any, Any]:
    """As a pool of one row."""
    import torch

    def one(value: Any, default: int) -> int:
        listed = value if isinstance(value, (list, tuple)) else [value]
        return listed[0] if listed else default

    width = one(kernel_size, 1)
    steps, pad, spread = one(stride, width), one(padding, 0), one(dilation, 1)
    found = torch.ops.aten.max_pool2d_with_indices.default(
        x.unsqueeze(-2), [1, width], [1, steps], [0, pad], [1, spread], ceil_mode
    )
    return found[0].select(-2, 0), found[1].select(-2, 0)


def _cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: int | None = None) -> Any:
    """The norms of all differences; torch takes another way from 26 rows on."""
    import torch

    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


def _fill_diagonal(x: Any, fill_value: Any, wrap: bool = False) -> Any:
    """Each axis counted at once; torch writes through a view of every (columns + 1)-th element."""
    import torch

    places = [torch.arange(n, device=x.device).reshape([-1, *[1] * (x.dim() - 1 - i)]) for i, n in enumerate(x.shape)]
    if wrap and x.dim() == 2:
        # past the last column it begins again, one row further down
        inside = (places[0] * x.shape[1] + places[1]) % (x.shape[1] + 1) == 0
    else:
        inside = places[0] == places[1]
        for place in places[2:]:
            inside = inside & (places[0] == place)
    return x.masked_fill_(inside, fill_value)


def _take_along_dim(x: Any, indices: Any, dim: int | None = None) -> Any:
    import torch

    if dim is None:
        return x.reshape(-1).gather(0, indices.reshape(-1))
    axis = dim % x.dim()
    kept = [[1 if i == axis else n for i, n in enumerate(t.shape)] for t in (x, indices)]
    shared = torch.broadcast_shapes(*kept)  # type: ignore[no-untyped-call]
    given, wanted = ([t.shape[axis] if i == axis else n for i, n in enumerate(shared)] for t in (x, indices))
    return x.expand(given).gather(axis, indices.expand(wanted))


def _bilinear(x1: Any, x2: Any, weight: Any, bias: Any = None) -> Any:
    """One product of x1 with the weight, and one with x2 for each row; torch compares sizes that it has made plain."""
    outer, rows, columns = weight.shape
    halfway = (x1 @ weight.permute(1, 0, 2).reshape(rows, outer * columns)).unflatten(-1, (outer, columns))
    found = (halfway * x2.unsqueeze(-2)).sum(-1)
    return found if bias is None else found + bias

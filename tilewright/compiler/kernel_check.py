"""A user's kernel held against the tile interpreter before it is compiled, at a few small sizes of its dims.

Native code checks neither stores nor poison: a missing store, programs that write one element, a hole or a value from
outside a view would be wrong numbers in silence. All four depend on sizes, and show where a dim is 0 or 1, and around
the extent of the tiles that cover it: one less, equal, one more, and more than two of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from tilewright.errors import IRError, KernelStoreError, PoisonError, Problem
from tilewright.ir.dtypes import DType
from tilewright.ir.tile.base import buffer, tile
from tilewright.ir.tile.memory import LoadOp, StoreOp, ViewPagesOp, ViewRowsOp, ViewSegmentOp, root
from tilewright.ir.tile.places import LookupOp, UpdateOp
from tilewright.ir.tile.structure import ForOp, KernelOp, ScalarOp
from tilewright.ir.tile_interpreter import programs, run_kernel

_CHOSEN: Final = (LookupOp, ScalarOp, UpdateOp, ViewPagesOp, ViewRowsOp, ViewSegmentOp)
_WORK: Final = 1 << 15
"""Elements of buffers, and ops of programs at `_OP` elements each, that all sizes together may cost."""
_OP: Final = 64  # elements that NumPy computes in the time that the interpreter needs for one op
_ALWAYS: Final = 3
_DRAWS: Final = (0, None, 1, 2, 4)


def check_kernel(kernel: KernelOp, names: Sequence[str] = ()) -> None:
    """Raises KernelStoreError or PoisonError, with the user's line and the sizes, where the kernel is unsound.

    Integers are drawn as zeros. Where a kernel takes places from its inputs, they are also drawn as 0, 1, 2, ... and as
    small numbers, it passes when it is sound for one of these draws, and what only other numbers could decide is left
    open: poison, because a place outside is poison, and stores to places that the inputs give. names: of the buffers.
    """
    work = 0
    for number, sizes in enumerate(_sizes(kernel)):
        cost = _cost(kernel, sizes)
        if number < _ALWAYS or work + cost <= _WORK:
            work += cost
            _check_at(kernel, sizes, names)


def _check_at(kernel: KernelOp, sizes: Mapping[str, int], names: Sequence[str]) -> None:
    chosen = any(isinstance(op, _CHOSEN) for op in kernel.walk())
    told = ", ".join(f"{name}={size}" for name, size in sizes.items())
    for draw in _DRAWS if chosen else _DRAWS[:1]:
        try:
            run_kernel(kernel, _drawn(kernel, sizes, draw), sizes, names=names)
            return
        except (PoisonError, KernelStoreError) as fault:
            # A place that is none is poison too: it says nothing where the drawn integers are places.
            undecided = chosen if isinstance(fault, PoisonError) else _stores_where_inputs_say(kernel)
            if not undecided:
                problems = [Problem(f"{p.text}{told and ', where '}{told}", p.op, p.where) for p in fault.problems]
                raise type(fault)(problems, step=fault.step) from fault
        except IRError:
            # Offsets that fall, a page that is none: what this kernel takes for granted was not drawn.
            if not chosen:
                raise


def _sizes(kernel: KernelOp) -> Iterator[dict[str, int]]:
    """Sizes of the dims, the most telling first; none that give a buffer a negative size."""
    names, covers = list(kernel.dims.data), _covers(kernel)
    if not names:
        yield {}
        return
    asked = [
        {n: covers[n] + 1 + i for i, n in enumerate(names)},
        dict.fromkeys(names, 1),
        {n: covers[n] for n in names},
        dict.fromkeys(names, 0),
        *({**dict.fromkeys(names, 1), name: covers[name] + 1} for name in names),
        {n: max(covers[n] - 1, 1) for n in names},
        *({n: 0 if n == name else covers[n] for n in names} for name in names),
        {n: 2 * covers[n] + 3 for n in names},
    ]
    seen: list[dict[str, int]] = []
    for sizes in asked:
        fits = all(d.evaluate(sizes) >= 0 for v in kernel.buffers for d in buffer(v).dims)
        if fits and sizes not in seen:
            seen.append(sizes)
            yield sizes


def _covers(kernel: KernelOp) -> dict[str, int]:
    """By dim, the largest extent of a tile or step of a loop that runs over it."""
    found = dict.fromkeys(kernel.dims.data, 1)
    for extent, size in zip(kernel.extents.data, kernel.tiles.data, strict=True):
        for name in extent.symbols:
            found[name] = max(found[name], size)
    steps = [op.step.data for op in kernel.walk() if isinstance(op, ForOp)]
    for name in found.keys() - {n for extent in kernel.extents.data for n in extent.symbols}:
        # which loop or load goes over it is not worth finding out
        loaded = [n for op in kernel.walk() if isinstance(op, LoadOp) for n in tile(op.out).extents]
        found[name] = max([n for n in [*steps, *loaded] if n <= 256], default=1)
    return found


def _cost(kernel: KernelOp, sizes: Mapping[str, int]) -> int:
    count = sum(1 for _ in programs(kernel, sizes))
    elements = sum(buffer(v).elements.evaluate(sizes) for v in kernel.buffers)
    return elements + count * _OP * sum(1 for _ in kernel.walk())


def _drawn(kernel: KernelOp, sizes: Mapping[str, int], draw: int | None) -> list[Any]:
    """Arrays for the buffers: floats of any sign, integers all `draw` or, for None, counting up along the last axis."""
    rng = np.random.default_rng(0)
    types = [buffer(value) for value in kernel.buffers]
    return [_array(t.dtype, [d.evaluate(sizes) for d in t.dims], rng, draw) for t in types]


def _array(dtype: DType, shape: list[int], rng: np.random.Generator, draw: int | None) -> Any:
    if dtype.is_float:
        return rng.standard_normal(shape).astype(dtype.numpy())
    row = np.arange(shape[-1] if shape else 1) if draw is None else np.array(draw)
    return np.broadcast_to(row.astype(dtype.numpy()), shape or [1]).copy()


def _stores_where_inputs_say(kernel: KernelOp) -> bool:
    """Whether a store's place, or whether it happens, depends on values that the kernel reads."""
    written = {root(op.target) for op in kernel.walk() if isinstance(op, StoreOp)}
    views = (ViewPagesOp, ViewRowsOp, ViewSegmentOp)
    placed = any(isinstance(op, views) and root(op.out) in written for op in kernel.walk())
    return placed or any(isinstance(op, ScalarOp) for op in kernel.walk())

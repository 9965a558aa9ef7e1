"""States: tensors that live from call to call, as one piece of memory that steps read and write in place."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import StateError
from tilewright.ir.dtypes import torch_name
from tilewright.runtime.memory import Arena
from tilewright.runtime.program import ALIGNMENT, Program
from tilewright.runtime.tensors import Buffer, as_buffer, describe
from tilewright.runtime.weights import WeightSet


class StateStore(MutableMapping[str, Any]):
    """The states of one executable by name. Reading gives a copy, a NumPy array; writing takes an array or a torch
    tensor.

    turn: the lock under which calls run; every access takes it, so that no call is seen half done. Raises StateError
    for a name that does not exist and for a value of another shape or dtype. States cannot be deleted.
    """

    def __init__(self, program: Program, weights: WeightSet, turn: AbstractContextManager[Any]) -> None:
        self._turn = turn
        self._initial: dict[str, str | None] = {}
        self._buffers: dict[str, Buffer] = {}
        places, end = [], 0
        for state in program.states:
            places.append(end)
            end += -(-state.spec.bytes.evaluate({}) // ALIGNMENT) * ALIGNMENT
        arena = Arena(end)
        self.pointers = np.array([arena.address + at for at in places], np.int64)
        for state, at in zip(program.states, places, strict=True):
            name = state.spec.name
            self._buffers[name] = Buffer(state.spec.dtype, state.spec.shape({}), arena.address + at, arena)
            self._initial[name] = None if state.initial is None else program.weights[state.initial].name
        # fresh memory reads as zero: a large state takes no memory until it is written to
        self.reset(weights, weights_only=True)

    def reset(self, weights: WeightSet, *, weights_only: bool = False) -> None:
        """Every state as it was before the first call. weights_only: those alone that start from a weight."""
        with self._turn:
            for name, buffer in self._buffers.items():
                initial = self._initial[name]
                if initial is not None:
                    buffer.bytes()[:] = weights.weight(initial).bytes()
                elif not weights_only:
                    np.frombuffer(buffer.bytes(), np.uint8)[:] = 0

    def renew(self, turn: AbstractContextManager[Any]) -> None:
        """Take another lock, in a forked child."""
        self._turn = turn

    def __repr__(self) -> str:
        held = ", ".join(f"{name}: {b.dtype} {list(b.shape)}" for name, b in self._buffers.items())
        return f"<states {held}>" if held else "<no states>"

    def __getitem__(self, name: str) -> NDArray[Any]:
        with self._turn:
            return self._find(name).numpy().copy()

    def __setitem__(self, name: str, value: Any) -> None:
        buffer = self._find(name)
        found = describe(value)
        wanted = f"{torch_name(buffer.dtype)} {list(buffer.shape)}"
        if found is None:
            raise StateError(f"{name} is {wanted}, not a {type(value).__name__}", step="set it to an array or a tensor")
        if (found.dtype, found.shape, found.device) != (buffer.dtype, buffer.shape, "cpu"):
            given = f"{found.dtype_name} {list(found.shape)}" + ("" if found.device == "cpu" else f" on {found.device}")
            raise StateError(f"{name} is {wanted}, not {given}", step=f"set it to a tensor of {wanted}")
        data = as_buffer(value)
        with self._turn:
            buffer.bytes()[:] = data.bytes()

    def rows(self, name: str) -> int:
        """The size of the state's first axis."""
        return self._find(name).shape[0]

    def copy_rows(self, name: str, source: int, target: int, count: int) -> None:
        """Makes `count` rows from `target` on equal to those from `source` on; both ranges must lie in the state."""
        buffer = self._find(name)
        rows = buffer.shape[0]
        if min(source, target, count) < 0 or max(source, target) + count > rows:
            raise StateError(f"{name} has {rows} rows, not {max(source, target) + count}", step="copy rows that it has")
        size, data = buffer.nbytes // rows, buffer.bytes()
        with self._turn:
            data[target * size : (target + count) * size] = data[source * size : (source + count) * size]

    def clear_rows(self, name: str, first: int, count: int) -> None:
        """Fills `count` rows from `first` on, which must lie in the state, with zeros."""
        buffer = self._find(name)
        rows = buffer.shape[0]
        if min(first, count) < 0 or first + count > rows:
            raise StateError(f"{name} has {rows} rows, not {first + count}", step="clear rows that it has")
        size = buffer.nbytes // rows
        with self._turn:
            np.frombuffer(buffer.bytes(), np.uint8)[first * size : (first + count) * size] = 0

    def take_tokens(self, name: str, slots: NDArray[np.int64]) -> NDArray[Any]:
        """Of a state in pages [pages, heads, page, ..] a copy of tokens' rows [n, heads, ..]; slots: pages in one line,
        `page` places each."""
        with self._turn:
            held = self._find(name).numpy()
            found: NDArray[Any] = held[slots // held.shape[2], :, slots % held.shape[2]]
        return found

    def put_tokens(self, name: str, slots: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Writes rows [n, heads, ..], an array of the state's own kind, to where `take_tokens` reads them."""
        with self._turn:
            held = self._find(name).numpy(writeable=True)
            held[slots // held.shape[2], :, slots % held.shape[2]] = rows

    def put_page(self, name: str, page: int, rows: Any) -> None:
        """Copies rows [heads, n, ..], an array or a torch tensor of the state's own kind, to a page's first ones."""
        buffer, found = self._find(name), describe(rows)
        heads, size, *rest = buffer.shape[1:] if len(buffer.shape) > 2 else (0, 0)
        kind = (buffer.dtype, (heads, *rest), "cpu")
        if found is None or (found.dtype, (*found.shape[:1], *found.shape[2:]), found.device) != kind:
            raise StateError(
                f"{name} has pages of {torch_name(buffer.dtype)} {list(buffer.shape[1:])}, not {rows!r}",
                step="give an array or a tensor of such rows",
            )
        if not 0 <= page < buffer.shape[0] or found.shape[1] > size:
            raise StateError(
                f"{name} has {buffer.shape[0]} pages of {size}, no {found.shape[1]} rows in page {page}",
                step="put rows it has",
            )
        data = as_buffer(rows)
        with self._turn:
            # as bytes: NumPy need not know the dtype
            held = np.frombuffer(buffer.bytes(), np.uint8).reshape(buffer.shape[0], heads, size, -1)
            held[page, :, : found.shape[1]] = np.frombuffer(data.bytes(), np.uint8).reshape(*found.shape[:2], -1)

    def __delitem__(self, name: str) -> None:
        self._find(name)
        raise StateError(f"{name} belongs to the program and cannot be deleted", step="reset() gives its first value")

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __len__(self) -> int:
        return len(self._buffers)

    def _find(self, name: str) -> Buffer:
        if name in self._buffers:
            return self._buffers[name]
        near = difflib.get_close_matches(name, self._buffers, n=1)
        listed = ", ".join(self._buffers) or "none"
        raise StateError(
            f"there is no state {name!r}; the program has {listed}",
            step=f"did you mean {near[0]!r}?" if near else "use one of these names",
        )

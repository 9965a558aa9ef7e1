"""The step program of a compiled model: the protocol's arguments as those of the program's own entry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import StepProgramError
from tilewright.runtime.executor import Executable
from tilewright.runtime.generation.compression import Compressed
from tilewright.runtime.generation.compressor import Compressor
from tilewright.runtime.generation.step import Float32, GroupStep, Int32, Int64, StepInputs, StepLayout


@dataclass(frozen=True)
class Addressing:
    """How one group of layers finds its keys and values.

    states: names of the states that hold them, all with the same pages, in rows of their own size. width: columns of
    the program's table. unit: where a group with a window lets its tables begin: at multiples of so many tokens.
    compact: places are told. read: whether the program has a table of it.
    """

    states: tuple[str, ...]
    page: int
    window: int | None
    width: int
    unit: int
    compact: bool = False
    read: bool = True

    def arguments(self, inputs: StepInputs, held: GroupStep) -> list[NDArray[np.int32] | NDArray[np.int64]]:
        """slots, table and, with a window, places: a ring's columns are brought into the order of the sequence, from
        the first that any token of the step sees. Where tokens were given up, places are positions less those.
        """
        if not self.read:
            return [held.slots]
        if self.compact:
            gone = np.repeat(held.gone, np.diff(inputs.offsets))
            return [held.slots, held.table, (inputs.positions - gone).astype(np.int64)]
        if self.window is None:
            return [held.slots, held.table]
        first, counts = inputs.positions[inputs.offsets[:-1]], np.diff(inputs.offsets)
        begin = np.maximum(first - (self.window - 1), 0) // self.unit * self.unit
        columns = begin[:, None] // self.page + np.arange(self.width, dtype=np.int32)
        ring = np.take_along_axis(held.table, columns % held.table.shape[1], 1)
        # pages that have left the window are masked, not skipped: any page that exists will do
        return [held.slots, np.maximum(ring, 0), (inputs.positions - np.repeat(begin, counts)).astype(np.int64)]


@dataclass(frozen=True)
class RowStates:
    """The states with a row a request. recurrent: those that tokens overwrite, by name. reaches: how many tokens before
    a request's own its convolutions see, each number once, in the order of the program's arguments. crossed: those that
    the encoder fills, in the order of its results, a page a request.
    """

    recurrent: tuple[str, ...] = ()
    reaches: tuple[int, ...] = ()
    crossed: tuple[str, ...] = ()

    def arguments(self, inputs: StepInputs, sources: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """rows; for each reach taps and ends, places in a line of the kept inputs of all requests, `reach` of each, and
        behind them the step's tokens; and each token's last place of its source. sources: their lengths by row.
        """
        if not self.recurrent and not self.crossed:
            return []
        rows = inputs.states.astype(np.int64)
        counts, requests = np.diff(inputs.offsets).astype(np.int64), len(inputs.lengths)
        begins, which = inputs.offsets[:-1].astype(np.int64), np.repeat(np.arange(requests), counts)
        given, within = [rows], np.arange(len(which)) - begins[which]
        for reach in self.reaches:
            back = np.arange(-reach, 1)
            given.append(_places(within[:, None] + back, which[:, None], begins[which][:, None], requests, reach))
            last = counts[:, None] + back[:-1]
            given.append(_places(last, np.arange(requests)[:, None], begins[:, None], requests, reach))
        return [*given, sources[rows][which] - 1] if self.crossed else given


NO_ROWS = RowStates()


def _places(
    at: NDArray[np.int64], which: NDArray[np.int64], begins: NDArray[np.int64], requests: int, reach: int
) -> NDArray[np.int64]:
    """Where a request's input lies, counted from its first token in this step; below 0 it is one that was kept."""
    return np.where(at < 0, which * reach + reach + at, requests * reach + begins + at)


class CompiledStep:
    """A compiled causal model as generation sees it; see `step.py`. The executable's states are the cache."""

    def __init__(
        self,
        executable: Executable,
        layout: StepLayout,
        groups: tuple[Addressing, ...],
        coded: tuple[int, int] | None = None,
        rows: RowStates = NO_ROWS,
        encoder: Executable | None = None,
        compressor: Compressor | None = None,
    ) -> None:
        """coded: the groups with codes of old pages and with the last pages as they are, if there are such. rows: the
        states of requests. encoder: source ids [m] to what the states of cross attention hold. compressor: of the
        compact group.
        """
        if len(groups) != len(layout.groups):
            raise StepProgramError(
                f"{len(groups)} groups are addressed, the layout has {len(layout.groups)}", step="address each group"
            )
        self.layout = layout
        self._executable = executable
        self._groups = groups
        self._coded = coded
        self._rows = rows
        self._encoder, self._compressor = encoder, compressor
        self._sources = np.ones(layout.state_rows, np.int64)

    def step(self, inputs: StepInputs) -> Float32:
        """Runs one call: logits [w, vocabulary] f32."""
        logits: Float32 = self._executable(*self.arguments(inputs))
        return logits

    def arguments(self, inputs: StepInputs) -> list[NDArray[np.int32] | NDArray[np.int64]]:
        """What the program is called with."""
        given: list[NDArray[np.int32] | NDArray[np.int64]] = [
            inputs.ids.astype(np.int64),
            inputs.positions.astype(np.int64),
            inputs.offsets,
            inputs.wanted.astype(np.int64),
        ]
        for addressing, held in zip(self._groups, inputs.groups, strict=True):
            given += addressing.arguments(inputs, held)
        given += self._rows.arguments(inputs, self._sources)
        if self._coded is not None:
            # the pages that the step's tokens fill, in both groups
            size = self.layout.page_size
            last = inputs.positions % size == size - 1
            given += [inputs.groups[group].slots[last] // size for group in self._coded]
        return given

    def copy_page(self, group: int, source: int, target: int) -> None:
        """Makes page `target` of a group equal to page `source`."""
        pages, states = self.layout.groups[group].pages, self._executable.state
        for name in self._groups[group].states:
            rows = states.rows(name) // pages
            states.copy_rows(name, source * rows, target * rows, rows)

    def compressed(self, slots: Int64, observed: Int64, count: int) -> Compressed:
        """What is left of the tokens at slots [n] of the compact group, with the last queries at `observed`."""
        return self._gives_up().compressed(self._executable.state, slots, observed, count)

    def put_back(self, slots: Int64, left: Compressed) -> None:
        """Writes what is left to slots [count] of the compact group."""
        self._gives_up().put_back(self._executable.state, slots, left)

    def _gives_up(self) -> Compressor:
        if self._compressor is None:
            raise StepProgramError("the program was compiled to keep all tokens", step="report this")
        return self._compressor

    def reset(self, row: int) -> None:
        """A row of per-request states as before the first token: zeros."""
        if not 0 <= row < self.layout.state_rows:
            raise StepProgramError(f"there is no row {row} of per-request states", step="report this")
        for name in self._rows.recurrent:
            self._executable.state.clear_rows(name, row, 1)

    def encode(self, row: int, ids: Int32) -> None:
        """Runs the encoder over source ids [m] and keeps its results in the row."""
        if self._encoder is None or not 0 <= row < self.layout.state_rows:
            raise StepProgramError(f"there is no encoder to read {len(ids)} ids into row {row}", step="report this")
        found = self._encoder(ids.astype(np.int64))
        for name, rows in zip(self._rows.crossed, found, strict=True):
            self._executable.state.put_page(name, row, rows)
        self._sources[row] = len(ids)

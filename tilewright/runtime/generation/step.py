"""The step program: the one thing that generation asks of a compiled model.

A step program computes over a flat axis of n tokens. The tokens of r requests lie one after the other, so prefill,
chunks of it, decoding, continuous batching and the verification of drafts are all the same call with other sizes. The
program owns the cache's memory as named states and reads and writes only the places that a call names; which request
holds which page is decided here, on the host, and the program keeps no account of it.

What a call means, for request i with tokens offsets[i] .. offsets[i+1]:

- its positions are consecutive and end at lengths[i] - 1; what it has in the cache are the positions before them;
- first the keys and values of all n tokens are written to their `slots`, then every token sees the keys of its own
  request at positions <= its own and, in a group with a window w, > its own - w (or < sinks);
- position p of request i lies in page `table[i, (p // page_size) % columns]` of the group at offset p % page_size. A
  group without a window has a column for every page of `max_tokens`; with one, the table is a ring that holds the
  window, one step and a partial page at each end. Columns that hold nothing are -1 and are never read;
- where tokens were given up (`compact` groups), a request's places are its positions less those `gone`: what is said
  here of positions in the cache holds for places, and every token sees all places up to its own;
- a page that a call writes belongs to one request alone; a page that it reads may belong to several;
- states of recurrences and convolutions, and cross keys and values, live in the request's own `state` row. A step that
  begins at position 0 follows `reset` (and `encode`, where there is an encoder);
- row j of the result are the logits after flat token wanted[j]. Its bits depend on the request's own tokens up to
  there and on nothing else: not on neighbours, chunks, page numbers, or on who computed a shared page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import StepProgramError
from tilewright.runtime.generation.compression import Compressed, Compression

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

# What a table's column holds where the request has no page.
NO_PAGE = -1


@dataclass(frozen=True)
class CacheGroup:
    """Layers whose keys and values live equally long, and therefore in pages of one kind.

    pages: how many there are. token_bytes: bytes of one token over all layers of the group. window: how many keys a
    query sees, its own included, or None for all. sinks: so many first tokens stay visible beside the window.
    page_extra: bytes of a page beside its tokens', such as scales of a page. compact: its tokens may be given up.
    observed: it holds the last queries, by which it is chosen what to give up.
    """

    name: str
    pages: int
    token_bytes: int
    window: int | None = None
    sinks: int = 0
    page_extra: int = 0
    compact: bool = False
    observed: bool = False


@dataclass(frozen=True)
class StepLayout:
    """What a step program's cache looks like and how much a call takes. Raises StepProgramError.

    vocabulary: logits are [w, vocabulary]. max_tokens: positions of one request. step_tokens, step_requests: most of n
    and r in one call. page_size: tokens of a page, in all groups. state_rows: rows of per-request states, at least
    step_requests where there are such states. recurrent_bytes: bytes of a row that every token overwrites; they cannot
    be wound back or shared. source_tokens: most source tokens of an encoder, 0 without one; cross_bytes: bytes of a
    row that `encode` fills once. start: the first token of every answer of an encoder-decoder model. compression: what
    requests give up of their compact groups, and when; the program is then a CompressingProgram.
    """

    vocabulary: int
    max_tokens: int
    step_tokens: int
    step_requests: int
    page_size: int
    groups: tuple[CacheGroup, ...]
    state_rows: int = 0
    recurrent_bytes: int = 0
    source_tokens: int = 0
    cross_bytes: int = 0
    start: int | None = None
    compression: Compression | None = None

    def __post_init__(self) -> None:
        least_one = ("vocabulary", "max_tokens", "step_tokens", "step_requests", "page_size")
        faults = [f"{name} is {getattr(self, name)}" for name in least_one if getattr(self, name) < 1]
        rows = ("state_rows", "recurrent_bytes", "source_tokens", "cross_bytes")
        faults += [f"{name} is {getattr(self, name)}" for name in rows if getattr(self, name) < 0]
        for group in self.groups:
            faults += [f"group {group.name}: {said}" for said in _group_faults(group)]
        if len({group.name for group in self.groups}) < len(self.groups):
            faults.append("two groups have the same name")
        if not self.groups and not self.has_rows:
            faults.append("there is no group and no state: a step would remember nothing")
        if self.has_rows and self.state_rows < 1:
            faults.append("there are per-request states, but state_rows is 0")
        if self.source_tokens and (self.start is None or not 0 <= self.start < self.vocabulary):
            faults.append(f"an encoder-decoder model starts with a token of its vocabulary, not {self.start}")
        if sum(group.compact for group in self.groups) != (self.compression is not None):
            faults.append("tokens are given up in one compact group, by a compression that says which")
        if faults:
            raise StepProgramError(faults, step="sizes are at least 1, counts of bytes and rows at least 0")

    @property
    def has_rows(self) -> bool:
        """Whether a request owns a row of states besides pages."""
        return bool(self.recurrent_bytes or self.source_tokens)

    @property
    def row_bytes(self) -> int:
        return self.recurrent_bytes + self.cross_bytes

    @property
    def rewinds(self) -> bool:
        """Whether tokens can be taken back, so that drafts may be tried and prefixes shared."""
        return not self.recurrent_bytes

    def page_bytes(self, group: int) -> int:
        """Bytes of one page of a group."""
        return self.page_size * self.groups[group].token_bytes + self.groups[group].page_extra

    def columns(self, group: int) -> int:
        """Columns of a group's page table."""
        whole = -(-self.max_tokens // self.page_size)
        window, sinks = self.groups[group].window, self.groups[group].sinks
        # sinks never leave, so that a ring would come back upon them
        if window is None or sinks:
            return whole
        return min(whole, -(-(window + self.step_tokens) // self.page_size) + 1)

    def pages_for(self, group: int, length: int) -> int:
        """The most pages that a request of `length` tokens holds at one time."""
        held, of = -(-length // self.page_size), self.groups[group]
        if of.window is None:
            return held
        ring = -(-(of.window + self.step_tokens) // self.page_size) + 1
        return min(held, ring + -(-of.sinks // self.page_size))

    def bytes_for(self, length: int) -> int:
        """The most bytes that a request of `length` tokens holds at one time."""
        pages = sum(self.pages_for(g, length) * self.page_bytes(g) for g in range(len(self.groups)))
        return pages + self.row_bytes


def _group_faults(group: CacheGroup) -> list[str]:
    said = [f"{name} is {getattr(group, name)}" for name in ("pages", "token_bytes") if getattr(group, name) < 1]
    if group.window is not None and group.window < 1:
        said.append(f"window is {group.window}")
    if group.compact and group.window is not None:
        said.append(f"compact beside a window of {group.window}")
    if group.page_extra < 0:
        said.append(f"page_extra is {group.page_extra}")
    if group.sinks < 0 or (group.sinks and group.window is None):
        said.append(f"{group.sinks} sinks make sense beside a window only")
    return said


@dataclass(frozen=True)
class GroupStep:
    """Where one group's keys and values are: slots [n] int64, page * page_size + offset of every new token, and
    table [r, columns] int32, the pages of every request. gone: [r] int32, how many tokens every request has given up.
    """

    slots: Int64
    table: Int32
    gone: Int32


@dataclass(frozen=True)
class StepInputs:
    """The arguments of one call.

    ids, positions: [n] int32. offsets: [r+1] int32, from 0 to n, ascending. lengths: [r] int32, new tokens included.
    groups: one GroupStep a cache group. states: [r] int32, rows of per-request states (-1 where there are none).
    wanted: [w] int32, ascending rows of the flat axis whose logits are computed.
    """

    ids: Int32
    positions: Int32
    offsets: Int32
    lengths: Int32
    groups: tuple[GroupStep, ...]
    states: Int32
    wanted: Int32


@runtime_checkable
class StepProgram(Protocol):
    """A compiled model as generation sees it. No method is called while another one runs."""

    @property
    def layout(self) -> StepLayout: ...

    def step(self, inputs: StepInputs) -> Float32:
        """Runs one call. Returns logits [w, vocabulary] f32; the array is the caller's."""

    def copy_page(self, group: int, source: int, target: int) -> None:
        """Makes page `target` of a group equal to page `source`."""

    def reset(self, row: int) -> None:
        """Brings a row of per-request states to its value before the first token."""

    def encode(self, row: int, ids: Int32) -> None:
        """Runs the encoder over source ids [m] and keeps its cross keys and values in the row (encoder-decoder)."""


@runtime_checkable
class CompressingProgram(StepProgram, Protocol):
    """A step program with a compact group."""

    def compressed(self, slots: Int64, observed: Int64, count: int) -> Compressed:
        """What is left of the tokens at slots [n] of the compact group, in the order of their places, once all but
        `count` are given up. observed: slots of the last queries, or none where nothing looks at them.
        """

    def put_back(self, slots: Int64, left: Compressed) -> None:
        """Writes what is left to slots [count] of the compact group."""


def check_inputs(layout: StepLayout, inputs: StepInputs) -> None:
    """Raises StepProgramError where a call breaks the protocol: for reference programs and tests."""
    n, r = len(inputs.ids), len(inputs.lengths)
    faults = []
    if not 1 <= n <= layout.step_tokens or not 1 <= r <= layout.step_requests:
        faults.append(f"{n} tokens of {r} requests; one call takes {layout.step_tokens} of {layout.step_requests}")
    if len(inputs.offsets) != r + 1 or inputs.offsets[0] != 0 or inputs.offsets[-1] != n:
        faults.append(f"offsets {inputs.offsets.tolist()} do not cover {n} tokens of {r} requests")
    elif (np.diff(inputs.offsets) < 1).any():
        faults.append("a request has no token")
    if n and not (inputs.ids.min() >= 0 and inputs.ids.max() < layout.vocabulary):
        faults.append(f"ids from {inputs.ids.min()} to {inputs.ids.max()} in a vocabulary of {layout.vocabulary}")
    if (np.diff(inputs.wanted) < 1).any() or (
        len(inputs.wanted) and not 0 <= inputs.wanted[0] <= inputs.wanted[-1] < n
    ):
        faults.append(f"wanted rows {inputs.wanted.tolist()} are not ascending rows of {n}")
    if len(inputs.groups) != len(layout.groups):
        faults.append(f"{len(inputs.groups)} groups, the program has {len(layout.groups)}")
    if not faults:
        for g, held in enumerate(inputs.groups):
            faults += [f"group {layout.groups[g].name}: {said}" for said in _address_faults(layout, inputs, g, held)]
    if faults:
        raise StepProgramError(faults, step="report this: the engine has addressed the cache wrongly")


def _address_faults(layout: StepLayout, inputs: StepInputs, g: int, held: GroupStep) -> list[str]:
    group, size, columns = layout.groups[g], layout.page_size, layout.columns(g)
    if held.table.shape != (len(inputs.lengths), columns):
        return [f"a page table of {held.table.shape}, not {(len(inputs.lengths), columns)}"]
    faults = []
    for i, length in enumerate(inputs.lengths.tolist()):
        rows = slice(int(inputs.offsets[i]), int(inputs.offsets[i + 1]))
        positions, gone = inputs.positions[rows].astype(np.int64), int(held.gone[i])
        if length > layout.max_tokens or not np.array_equal(positions, np.arange(length - len(positions), length)):
            faults.append(f"request {i}: positions {positions.tolist()} do not end at {length - 1}")
            continue
        if gone and not (group.compact and 0 < gone < length):
            faults.append(f"request {i}: {gone} of {length} tokens are said to be given up")
            continue
        positions, length = positions - gone, length - gone
        pages = held.table[i, (positions // size) % columns]
        if not np.array_equal(pages * np.int64(size) + positions % size, held.slots[rows]):
            faults.append(f"request {i}: slots are not where the table says")
        seen = np.arange(length) if group.window is None else _seen(group, int(positions[0]), length)
        used = held.table[i, (seen // size) % columns]
        if used.size and not (used.min() >= 0 and used.max() < group.pages):
            faults.append(f"request {i}: a visible position lies in no page")
    if len(np.unique(held.slots)) < len(held.slots):
        faults.append("two tokens are written to one place")
    return faults


def _seen(group: CacheGroup, first: int, length: int) -> Int64:
    """The positions that the queries from `first` on see in a group with a window."""
    begin = max(0, first - (group.window or 0) + 1)
    return np.concatenate([np.arange(min(group.sinks, begin)), np.arange(begin, length)])

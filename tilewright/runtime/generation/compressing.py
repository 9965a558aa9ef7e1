"""A request gives up what its compression says, and what is left moves together into pages of its own.

The pages from before go back as they are: those that are known by their contents go on serving whoever has the same
prefix. What is left is no text's beginning, so nobody else finds it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tilewright.runtime.generation.compression import Compression
from tilewright.runtime.generation.holding import Holding
from tilewright.runtime.generation.step import CompressingProgram, StepProgram


def next_stop(compression: Compression | None, holding: Holding, prompt: int) -> int | None:
    """The length at which a request gives up tokens next; None never."""
    return None if compression is None else compression.next_stop(prompt, holding.compressed_at)


def compress(program: StepProgram, holding: Holding, prompt: int, make_room: Callable[[], bool]) -> bool:
    """Gives up tokens of a request that stands at its next stop. make_room: gives back other pages, as many as it takes
    to be called again for more; False where there are none left, and then the request holds nothing that can be used.
    """
    layout = program.layout
    assert layout.compression is not None
    assert isinstance(program, CompressingProgram)
    groups, length = layout.groups, holding.length
    holding.compressed_at = length
    (compact,) = (g for g, group in enumerate(groups) if group.compact)
    gone, count = holding.gone[compact], layout.compression.kept(prompt)
    if count >= length - gone:
        return True
    slots, observed = holding.slots(compact, gone, length), np.zeros(0, np.int64)
    for g, group in enumerate(groups):
        if group.observed:
            observed = holding.slots(g, length - layout.compression.recent, length)
    left = program.compressed(slots, observed, count)
    holding.empty(compact)
    while not holding.refill(compact, count):
        if not make_room():
            return False
    program.put_back(holding.slots(compact, length - count, length), left)
    return True

"""The logits of a given text, through the same steps and pages as generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tilewright.errors import CacheFullError
from tilewright.runtime.generation.engine import Engine
from tilewright.runtime.generation.holding import Holding, chain_root
from tilewright.runtime.generation.step import Float32
from tilewright.runtime.generation.step_inputs import Segment, step_inputs


def score(engine: Engine, tokens: Sequence[int], source: Sequence[int] = ()) -> Iterator[Float32]:
    """Logits after every token, a step's worth at a time: [n, vocabulary] f32. Raises CacheFullError.

    No page is taken up from requests, and none is left to them: every logit is computed. source: what an
    encoder reads first.
    """
    book, layout = engine.book, engine.layout
    with engine.turn:
        holding = Holding(book, chain_root("scored"))
        try:
            if layout.has_rows:
                holding.row = book.take_row()
                if holding.row is not None:
                    engine.program.reset(holding.row)
                    if source:
                        engine.program.encode(holding.row, np.asarray(source, np.int32))
            while holding.length < len(tokens):
                length = min(len(tokens), holding.length + layout.step_tokens)
                if (layout.has_rows and holding.row is None) or not holding.reserve(length):
                    raise CacheFullError(
                        f"{book.held_bytes} of {book.budget} B are held by {engine.live} requests",
                        step="let running requests end first, or give the cache a larger budget",
                    )
                new = tokens[holding.length : length]
                rows = engine.program.step(step_inputs(layout, [Segment(holding, new, len(new))]))
                holding.commit(tokens, length)
                yield rows
        finally:
            holding.release()

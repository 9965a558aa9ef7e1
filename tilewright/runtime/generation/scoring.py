"""The logits of a given text, through the same steps and pages as generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tilewright.errors import CacheFullError
from tilewright.runtime.generation.compressing import compress, next_stop
from tilewright.runtime.generation.engine import Engine
from tilewright.runtime.generation.holding import Holding, chain_root
from tilewright.runtime.generation.step import Float32
from tilewright.runtime.generation.step_inputs import Segment, step_inputs


def score(
    engine: Engine, tokens: Sequence[int], source: Sequence[int] = (), prompt: int | None = None
) -> Iterator[Float32]:
    """Logits after every token, a step's worth at a time: [n, vocabulary] f32. Raises CacheFullError.

    No page is taken up from requests, and none is left to them: every logit is computed. source: what an
    encoder reads first. prompt: so many of the tokens are the prompt, after which a compressed cache gives some up;
    None for all.
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
                stop = None if prompt is None else next_stop(layout.compression, holding, prompt)
                length = min(len(tokens), holding.length + layout.step_tokens, stop or len(tokens))
                if (layout.has_rows and holding.row is None) or not holding.reserve(length):
                    raise _full(engine)
                new = tokens[holding.length : length]
                rows = engine.program.step(step_inputs(layout, [Segment(holding, new, len(new))]))
                holding.commit(tokens, length)
                if prompt is not None and length == stop and not compress(engine.program, holding, prompt, _no_room):
                    raise _full(engine)
                yield rows
        finally:
            holding.release()


def _no_room() -> bool:
    """Requests keep what they have."""
    return False


def _full(engine: Engine) -> CacheFullError:
    return CacheFullError(
        f"{engine.book.held_bytes} of {engine.book.budget} B are held by {engine.live} requests",
        step="let running requests end first, or give the cache a larger budget",
    )

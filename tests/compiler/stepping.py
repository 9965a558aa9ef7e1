"""Logits of texts that are read side by side through a step program, each in chunks of its own size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.runtime.generation.holding import Holding, chain_root
from tilewright.runtime.generation.pages import PageBook
from tilewright.runtime.generation.step import check_inputs
from tilewright.runtime.generation.step_inputs import Segment, step_inputs


def logits(
    program: Any, texts: Sequence[Sequence[int]], chunks: Sequence[int], sources: Sequence[Sequence[int]] = ()
) -> list[np.ndarray]:
    """[tokens, V] of each text. sources: what an encoder has read for each."""
    book = PageBook(program, None)
    holdings = [Holding(book, chain_root(f"text {i}")) for i in range(len(texts))]
    if program.layout.has_rows:
        for i, holding in enumerate(holdings):
            holding.row = book.take_row()
            assert holding.row is not None
            program.reset(holding.row)
            if sources:
                program.encode(holding.row, np.asarray(sources[i], np.int32))
    rows: list[list[np.ndarray]] = [[] for _ in texts]
    while any(h.length < len(t) for h, t in zip(holdings, texts, strict=True)):
        segments, whose = [], []
        for i, (holding, text) in enumerate(zip(holdings, texts, strict=True)):
            new = text[holding.length : holding.length + chunks[i]]
            if new:
                assert holding.reserve(holding.length + len(new))
                segments.append(Segment(holding, new, len(new)))
                whose.append(i)
        given = step_inputs(program.layout, segments)
        check_inputs(program.layout, given)
        found, at = program.step(given), 0
        for i, segment in zip(whose, segments, strict=True):
            rows[i].append(found[at : at + segment.wanted])
            at += segment.wanted
            holdings[i].commit(texts[i], holdings[i].length + len(segment.tokens))
    for holding in holdings:
        holding.release()
    return [np.concatenate(each) for each in rows]

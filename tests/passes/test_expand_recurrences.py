"""Linear attention over whole sequences becomes products and a scan that compute the same, at any length."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import ModuleOp

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.linear_attention import LinearAttentionOp
from tilewright.passes.expand_recurrences import CHUNK, ExpandRecurrences
from tilewright.testing import ground


def remembered(groups: int, each: int, dtype: str = "f32") -> ModuleOp:
    g = Graph("b: 0..3", "t: 0..200", dtype=dtype)
    queries, keys = (g.input(name, ["b", "t", groups, 3]) for name in "qk")
    values, decay = g.input("v", ["b", "t", groups * each, 4]), g.input("d", ["b", "t", groups * each])
    return g.done(g.op(LinearAttentionOp, queries, keys, values, g.map("neg", g.map("abs", decay))))


@pytest.mark.parametrize(("groups", "each", "dtype"), [(1, 1, "f32"), (2, 3, "f32"), (1, 2, "bf16")])
def test_chunks_compute_what_the_recurrence_does(groups: int, each: int, dtype: str, seed: int) -> None:
    module = remembered(groups, each, dtype)
    for batch, tokens in ((1, 1), (2, CHUNK - 1), (1, CHUNK), (3, 2 * CHUNK + 5), (0, 3)):
        after = ground(module, ExpandRecurrences(), sizes={"b": batch, "t": tokens}, seed=seed)
        assert "linear_attention" not in ops_of(after)
        assert ops_of(after).count("scan") == 1


def test_a_sequence_of_one_length_is_padded_to_whole_chunks_or_not_at_all(seed: int) -> None:
    for tokens, pads in ((CHUNK, 1), (CHUNK + 1, 5)):
        g = Graph("b: 1..2")
        keys, values = g.input("k", ["b", tokens, 1, 3]), g.input("v", ["b", tokens, 1, 4])
        decay = g.map("neg", g.map("abs", g.input("d", ["b", tokens, 1])))
        module = g.done(g.op(LinearAttentionOp, keys, keys, values, decay))
        # what comes before the first chunk is one pad more
        assert ops_of(ground(module, ExpandRecurrences(), seed=seed)).count("pad") == pads

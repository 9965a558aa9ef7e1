"""Routed experts become routing and grouped products that compute the same, in every form they are written in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.experts import ExpertsOp
from tilewright.passes.expand_experts import ExpandExperts
from tilewright.testing import context, ground, transform

EXPERTS, HIDDEN = 4, 5


def routed(each: int, *, gated: bool = True, biased: bool = False, dtype: str = "f32") -> ModuleOp:
    g = Graph("t: 0..9", dtype=dtype)
    x, indices, share = g.input("x", ["t", 6]), g.input("i", ["t", each], "i64"), g.input("w", ["t", each], "f32")
    rows = HIDDEN * (2 if gated else 1)
    up, down = g.weight("up", [EXPERTS, rows, 6]), g.weight("down", [EXPERTS, 6, HIDDEN])
    biases = (g.weight("bu", [EXPERTS, rows]), g.weight("bd", [EXPERTS, 6])) if biased else (None, None)
    return g.done(g.op(ExpertsOp, x, indices, share, up, down, *biases, activation="gelu", gated=gated))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("gated", [False, True], ids=["one product", "gated"])
@pytest.mark.parametrize("each", [1, 3])
def test_every_form_computes_the_same(
    each: int, gated: bool, biased: bool, dtype: str, seed: int, rng: np.random.Generator
) -> None:
    module = routed(each, gated=gated, biased=biased, dtype=dtype)
    for tokens in (0, 1, 7):
        # strays among them: an index that is no expert adds nothing
        indices = torch.from_numpy(rng.integers(-1, EXPERTS + 1, (tokens, each)))
        after = ground(module, ExpandExperts(), sizes={"t": tokens}, inputs={"i": indices}, seed=seed)
        assert "experts" not in ops_of(after)
        assert ops_of(after).count("grouped_matmul") == (3 if gated else 2)
        # the halves of what is gated, and nothing else
        assert ops_of(after).count("slice") == (2 if gated else 0) * (2 if biased else 1)


def test_halves_of_the_weights_are_cut_and_nothing_else_moves() -> None:
    names = ops_of(transform(routed(2), ExpandExperts()))
    assert names.count("slice") == 2
    assert not {"gather", "scatter", "transpose", "sort"} & set(names)


def test_a_number_of_slots_that_varies_is_refused() -> None:
    g = Graph("t: 1..9", "k: 1..4")
    x, indices, share = g.input("x", ["t", 6]), g.input("i", ["t", "k"], "i64"), g.input("w", ["t", "k"])
    weights = g.weight("up", [EXPERTS, 2 * HIDDEN, 6]), g.weight("down", [EXPERTS, 6, HIDDEN])
    module = g.done(g.op(ExpertsOp, x, indices, share, *weights, activation="silu"))
    ctx = context(module)
    assert "experts" in ops_of(transform(module, ExpandExperts(), ctx))
    assert "not fixed numbers" in ctx.refused[0].reason

"""Products of one left-hand side become one that computes the same, bit for bit; whatever would lose by it stays."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.passes.merge_shared_lhs import MergeSharedLhs
from tilewright.testing import context, ground, transform

ANY = MergeSharedLhs(min_saved=0)
WIDTHS = (8, 1, 13)


def projections(
    *,
    biased: tuple[bool, ...] = (False, False, False),
    transposed: bool = True,
    dtype: str = "f32",
    paths: bool = False,
) -> tuple[Graph, list[SSAValue]]:
    """x [b, t, 6] times weights of several widths, each negated, so that none of them is a result itself."""
    g = Graph("b: 0..3", "t: 1..7", dtype=dtype)
    x = g.input("x", ["b", "t", 6])
    found = []
    for number, (width, bias) in enumerate(zip(WIDTHS, biased, strict=True)):
        g.path = f"layers.{number}.proj" if paths else f"proj{number}"
        weight = g.weight(f"w{number}", [width, 6] if transposed else [6, width])
        out = g.matmul(x, weight, transpose_b=transposed)
        if bias:
            out = g.map("add", out, g.weight(f"b{number}", [width]))
        found.append(g.map("neg", out))
    return g, found


def count(module: ModuleOp) -> int:
    return ops_of(module).count("matmul")


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("biased", [False, True])
def test_they_become_one_with_the_same_bits(biased: bool, transposed: bool, dtype: str, seed: int) -> None:
    g, found = projections(biased=(biased,) * 3, transposed=transposed, dtype=dtype)
    after = ground(g.done(*found), ANY, seed=seed)
    assert count(after) == 1
    assert ops_of(after).count("add") == (1 if biased else 0)


def test_those_with_a_bias_and_those_without_stay_apart(seed: int) -> None:
    g, found = projections(biased=(True, False, True))
    after = ground(g.done(*found), ANY, seed=seed)
    assert count(after) == 2


def test_layers_stay_apart(seed: int) -> None:
    g, found = projections(paths=True)
    assert count(ground(g.done(*found), ANY, seed=seed)) == 3


def test_a_result_is_not_cut_out_of_its_neighbours(seed: int) -> None:
    g, found = projections()
    returned = g.reshape(g.matmul(g.function.block.args[0], g.weight("w9", [4, 6]), transpose_b=True), "b*t", 4)
    assert count(ground(g.done(*found, returned), ANY, seed=seed)) == 2


def test_two_that_meet_in_one_expression_are_left_to_fuse(seed: int) -> None:
    g = Graph("t: 1..7")
    x = g.input("x", ["t", 6])
    gate, up, other = (g.matmul(x, g.weight(n, [6, 8])) for n in ("gate", "up", "other"))
    module = g.done(g.map("mul", g.map("silu", gate), up), g.map("neg", other))
    assert count(ground(module, ANY, seed=seed)) == 3


def test_a_weight_that_others_read_is_not_stored_twice(seed: int) -> None:
    g = Graph("t: 1..7")
    x, shared = g.input("x", ["t", 6]), g.weight("shared", [6, 8])
    outs = [g.map("neg", g.matmul(x, w)) for w in (shared, g.weight("a", [6, 8]), g.weight("b", [6, 8]))]
    assert count(ground(g.done(*outs, g.map("neg", shared)), ANY, seed=seed)) == 2


def test_what_calls_bring_is_not_put_side_by_side(seed: int) -> None:
    g = Graph("t: 1..7")
    x = g.input("x", ["t", 6])
    outs = [g.map("neg", g.matmul(x, g.input(name, [6, 8]))) for name in ("u", "v")]
    assert count(ground(g.done(*outs), ANY, seed=seed)) == 2


def test_a_matrix_for_every_row_of_a_batch_stays_alone(seed: int) -> None:
    g = Graph("t: 1..7")
    x = g.input("x", [3, "t", 6])
    outs = [g.map("neg", g.matmul(x, g.weight(name, [3, 6, 8]))) for name in ("u", "v")]
    assert count(ground(g.done(*outs), ANY, seed=seed)) == 2


def test_weights_whose_size_a_call_decides_stay_alone(seed: int) -> None:
    g = Graph("t: 1..7")
    x = g.input("x", ["t", 6])
    outs = [g.map("neg", g.matmul(x, g.weight(name, [6, "t"]))) for name in ("u", "v")]
    assert count(ground(g.done(*outs), ANY, seed=seed)) == 2


def test_what_saves_too_little_is_refused_with_the_bytes() -> None:
    g, found = projections()
    module = g.done(*found)
    ctx = context(module)
    after = transform(module, MergeSharedLhs(), ctx)
    assert count(after) == 3
    # x is at most 3 * 7 * 6 floats, read twice less
    assert f"saves {3 * 7 * 6 * 4 * 2} bytes" in ctx.refused[0].reason


def test_what_is_saved_is_told() -> None:
    g, found = projections()
    module = g.done(*found)
    ctx = context(module)
    transform(module, ANY, ctx)
    assert [a.saves.evaluate({"b": 2, "t": 5}) for a in ctx.applied] == [2 * 5 * 6 * 4 * 2]

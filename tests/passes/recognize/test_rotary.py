"""Rotary embedding written out in its four common forms becomes graph.rotary; a wrong half or sign does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.attention import RotaryOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import SliceOp
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.recognize import Recognize
from tilewright.testing import context, ground

HEADS = ["b", 2, "t", 8]


def start(width: int) -> tuple[Graph, SSAValue, SSAValue, SSAValue]:
    g = Graph("b: 0..3", "t: 1..6", dtype="f64")
    return g, g.input("x", HEADS), g.input("cos", ["t", width]), g.input("sin", ["t", width])


def recognized(g: Graph, value: SSAValue, seed: int) -> tuple[list[RotaryOp], list[str], list[str]]:
    module = g.done(value)
    ctx = context(module)
    after = ground(module, [Canonicalize(), Recognize(), Canonicalize()], seed=seed, ctx=ctx)
    return [op for op in after.walk() if isinstance(op, RotaryOp)], ops_of(after), [r.reason for r in ctx.refused]


def halves(g: Graph, x: SSAValue) -> tuple[SSAValue, SSAValue]:
    return g.slice(x, -1, 0, 4), g.slice(x, -1, 4, 8)


def members(g: Graph, x: SSAValue) -> tuple[SSAValue, SSAValue]:
    return g.slice(x, -1, 0, 8, 2), g.slice(x, -1, 1, 8, 2)


def members_by_pairs(g: Graph, x: SSAValue) -> tuple[SSAValue, SSAValue]:
    pairs = g.reshape(x, "b", 2, "t", 4, 2)
    first, second = (g.reshape(g.slice(pairs, -1, i, i + 1), "b", 2, "t", 4) for i in (0, 1))
    return first, second


def beside(g: Graph, a: SSAValue, b: SSAValue) -> SSAValue:
    return g.concat(-1, a, b)


def interleaved(g: Graph, a: SSAValue, b: SSAValue) -> SSAValue:
    units = [g.reshape(v, "b", 2, "t", 4, 1) for v in (a, b)]
    return g.reshape(g.concat(-1, *units), *HEADS)


FORMS = [
    (halves, beside, "half"),
    (members, interleaved, "interleaved"),
    (members_by_pairs, interleaved, "interleaved"),
]


@pytest.mark.parametrize(("split", "join", "style"), FORMS)
@pytest.mark.parametrize("swapped", [False, True])
def test_x_cos_plus_rotated_x_sin(split, join, style: str, swapped: bool, seed: int) -> None:  # type: ignore[no-untyped-def]
    g, x, cos, sin = start(8)
    a, b = split(g, x)
    terms = [g.map("mul", x, cos), g.map("mul", sin, join(g, g.map("neg", b), a))]
    found, left, _ = recognized(g, g.map("add", *(reversed(terms) if swapped else terms)), seed)
    assert [op.style.data for op in found] == [style]
    assert left == ["rotary"]


@pytest.mark.parametrize(("split", "join", "style"), FORMS)
def test_each_half_by_itself(split, join, style: str, seed: int) -> None:  # type: ignore[no-untyped-def]
    g, x, cos, sin = start(4)
    a, b = split(g, x)
    first = g.map("sub", g.map("mul", a, cos), g.map("mul", b, sin))
    second = g.map("add", g.map("mul", a, sin), g.map("mul", b, cos))
    found, left, _ = recognized(g, join(g, first, second), seed)
    assert [op.style.data for op in found] == [style]
    assert not {"mul", "sub", "add", "slice"} & set(left)


def test_halves_of_a_full_table_are_the_table_again(seed: int) -> None:
    g, x, cos, sin = start(8)
    a, b = halves(g, x)
    (c1, c2), (s1, s2) = halves(g, cos), halves(g, sin)
    first = g.map("sub", g.map("mul", a, c1), g.map("mul", b, s1))
    second = g.map("add", g.map("mul", b, c2), g.map("mul", a, s2))
    assert recognized(g, beside(g, first, second), seed)[1] == ["rotary"]


@pytest.mark.parametrize("fault", ["no minus", "minus on the other", "swapped halves", "uneven halves", "another x"])
def test_what_is_not_a_rotation_stays(fault: str, seed: int) -> None:
    g, x, cos, sin = start(8)
    a, b = halves(g, x)
    match fault:
        case "no minus":
            turned = beside(g, b, a)
        case "minus on the other":
            turned = beside(g, b, g.map("neg", a))
        case "swapped halves":
            turned = beside(g, g.map("neg", a), b)
        case "uneven halves":
            turned = beside(g, g.map("neg", g.slice(x, -1, 3, 8)), g.slice(x, -1, 0, 3))
        case _:
            other = g.map("exp", x)
            turned = beside(g, g.map("neg", halves(g, other)[1]), halves(g, other)[0])
    found, _, said = recognized(g, g.map("add", g.map("mul", x, cos), g.map("mul", turned, sin)), seed)
    assert not found
    assert said == (["rotary: what is rotated is not what is multiplied by the cosine"] if fault == "another x" else [])


def test_a_part_of_the_features_may_turn(seed: int) -> None:
    g, _, cos, sin = start(8)
    wide = g.input("wide", ["b", 2, "t", 11])
    turning = g.slice(wide, -1, 0, 8)
    a, b = halves(g, turning)
    turned = g.map("add", g.map("mul", turning, cos), g.map("mul", beside(g, g.map("neg", b), a), sin))
    found, left, _ = recognized(g, g.map("exp", beside(g, turned, g.slice(wide, -1, 8, 11))), seed)
    assert len(found) == 1
    assert "rotary" in left


Turn = Callable[[Graph, SSAValue, SSAValue, SSAValue], SSAValue]


def by_pairs(g: Graph, x: SSAValue, cos: SSAValue, sin: SSAValue, turned: SSAValue) -> SSAValue:
    return g.map("add", g.map("mul", x, cos), g.map("mul", g.reshape(turned, 4, 8), sin))


def pairs(g: Graph, x: SSAValue, first: int, second: int, *, step: int = 1) -> SSAValue:
    """[4, 4, 2] with (-member `second`, member `first`) of each pair of x [4, 8]."""
    whole = g.reshape(x, 4, 4, 2)
    a, b = g.slice(whole, -1, first, first + 1), g.slice(whole, -1, second, second + 1)
    return g.concat(-1, g.map("neg", b), a)


@pytest.mark.parametrize(
    "turn",
    [
        # numbers or single columns for tables
        lambda g, x, cos, sin: plain(g, g.input("one", []), x, sin),
        lambda g, x, cos, sin: plain(g, x, g.input("one", []), sin),
        lambda g, x, cos, sin: plain(g, x, g.input("col", [4, 1]), sin),
        lambda g, x, cos, sin: plain(g, x, cos, g.input("col", [4, 1])),
        # members of pairs in another order, or of other pairs
        lambda g, x, cos, sin: by_pairs(g, x, cos, sin, pairs(g, x, 1, 0)),
        lambda g, x, cos, sin: by_pairs(g, x, cos, sin, pairs(g, x, 0, 0)),
        lambda g, x, cos, sin: by_pairs(g, x, cos, sin, quarters(g, x)),
        lambda g, x, cos, sin: by_pairs(g, x, cos, sin, g.transpose(pairs(g, x, 0, 1), 1, 0, 2)),
        lambda g, x, cos, sin: by_pairs(g, x, cos, sin, columns(g, x)),
        lambda g, x, cos, sin: by_pairs(g, x, cos, sin, stacked_before(g, x)),
        lambda g, x, cos, sin: by_pairs(g, x, cos, sin, upside_down(g, x)),
        lambda g, x, cos, sin: by_pairs(g, x, cos, sin, four_members(g, x)),
        lambda g, x, cos, sin: plain(g, x, cos, sin, turned=thirds(g, x)),
        lambda g, x, cos, sin: plain(g, x, cos, sin, turned=mixed(g, x)),
    ],
)
def test_what_is_nearly_a_rotation_stays(turn: Turn, seed: int) -> None:
    g = Graph(dtype="f64")
    x, cos, sin = g.input("x", [4, 8]), g.input("cos", [4, 8]), g.input("sin", [4, 8])
    assert not recognized(g, turn(g, x, cos, sin), seed)[0]


def plain(g: Graph, x: SSAValue, cos: SSAValue, sin: SSAValue, turned: SSAValue | None = None) -> SSAValue:
    base = x if tensor(x).rank else cos
    a, b = halves(g, base)
    return g.map("add", g.map("mul", x, cos), g.map("mul", turned or beside(g, g.map("neg", b), a), sin))


def quarters(g: Graph, x: SSAValue) -> SSAValue:
    """Halves of the row where members of pairs are expected."""
    a, b = halves(g, x)
    return g.concat(-1, *(g.reshape(v, 4, 4, 1) for v in (g.map("neg", b), a)))


def columns(g: Graph, x: SSAValue) -> SSAValue:
    """The two rows of [2, 4] where the members of pairs [4, 2] are expected."""
    whole = g.reshape(x, 4, 2, 4)
    a, b = (g.reshape(g.slice(whole, 1, i, i + 1), 4, 4, 1) for i in (0, 1))
    return g.concat(-1, g.map("neg", b), a)


def stacked_before(g: Graph, x: SSAValue) -> SSAValue:
    """Members joined along the axis before the last."""
    whole = g.reshape(x, 4, 4, 2)
    a, b = (g.slice(whole, -1, i, i + 1) for i in (0, 1))
    return g.concat(1, g.map("neg", b), a)


def upside_down(g: Graph, x: SSAValue) -> SSAValue:
    """Members of the rows below and above."""
    whole = g.reshape(x, 4, 4, 2)
    below, above = g.slice(whole, 0, 2, 4), g.slice(whole, 0, 0, 2)
    moved = g.concat(0, below, above)
    a, b = (g.slice(moved, -1, i, i + 1) for i in (0, 1))
    return g.concat(-1, g.map("neg", b), a)


def four_members(g: Graph, x: SSAValue) -> SSAValue:
    """Two pairs at once: (-c, -d, a, b)."""
    whole = g.reshape(x, 4, 2, 4)
    a, b = g.slice(whole, -1, 0, 2), g.slice(whole, -1, 2, 4)
    return g.concat(-1, g.map("neg", b), a)


def thirds(g: Graph, x: SSAValue) -> SSAValue:
    parts = g.slice(x, -1, 4, 8), g.slice(x, -1, 0, 2), g.slice(x, -1, 2, 4)
    return g.concat(-1, g.map("neg", parts[0]), parts[1], parts[2])


def mixed(g: Graph, x: SSAValue) -> SSAValue:
    """Members of pairs joined as halves are."""
    a, b = members(g, x)
    return beside(g, g.map("neg", b), a)


@pytest.mark.parametrize("which", ["every other row", "some rows", "some columns"])
def test_each_half_of_a_part_is_a_part(which: str, seed: int) -> None:
    g = Graph(dtype="f64")
    x, cos, sin = g.input("x", [6, 12]), g.input("cos", [3, 4]), g.input("sin", [3, 4])
    rows = {"every other row": (0, 6, 2), "some rows": (2, 5, 1), "some columns": (0, 3, 1)}[which]
    a, b = (
        g.op(SliceOp, x, starts=[rows[0], start], stops=[rows[1], start + 4], steps=[rows[2], 1]) for start in (1, 5)
    )
    first = g.map("sub", g.map("mul", a, cos), g.map("mul", b, sin))
    second = g.map("add", g.map("mul", b, cos), g.map("mul", a, sin))
    found, _, _ = recognized(g, g.concat(1, first, second), seed)
    assert len(found) == (0 if which == "every other row" else 1)


def test_halves_with_tables_of_other_sizes_stay_apart(seed: int) -> None:
    g = Graph(dtype="f64")
    x = g.input("x", [3, 8])
    a, b = halves(g, x)
    c1, s1, s2 = (g.input(name, [3, 4]) for name in ("c1", "s1", "s2"))
    first = g.map("sub", g.map("mul", a, c1), g.map("mul", b, s1))
    second = g.map("add", g.map("mul", b, g.input("c2", [3, 1])), g.map("mul", a, s2))
    assert not recognized(g, g.concat(1, first, second), seed)[0]


Members = tuple[SSAValue, SSAValue]


def each(g: Graph, parts: Members, join: Callable[[SSAValue, SSAValue], SSAValue]) -> SSAValue:
    """Both members turned by themselves, with tables of their own dims, and joined."""
    (a, b), (c, s) = parts, (g.input(name, tensor(parts[0]).dims) for name in ("c", "s"))
    first = g.map("sub", g.map("mul", a, c), g.map("mul", b, s))
    second = g.map("add", g.map("mul", b, c), g.map("mul", a, s))
    return join(first, second)


def paired(g: Graph, value: SSAValue, *dims: int | str, flat: tuple[int | str, ...]) -> Members:
    """The first two members of a value reshaped to `dims`, each reshaped to `flat`."""
    whole = g.reshape(value, *dims)
    a, b = (g.reshape(g.slice(whole, -1, i, i + 1), *flat) for i in (0, 1))
    return a, b


def own_axis(g: Graph, *dims: int | str) -> Callable[[SSAValue, SSAValue], SSAValue]:
    """Gives members an axis of their own, joins them there, and flattens to `dims`."""

    def join(a: SSAValue, b: SSAValue) -> SSAValue:
        units = [g.reshape(v, *tensor(v).dims, 1) for v in (a, b)]
        return g.reshape(g.concat(-1, *units), *dims)

    return join


NEARLY_PAIRS: dict[str, Callable[[Graph, SSAValue], SSAValue]] = {
    "halves of every other feature": lambda g, x: each(
        g, (g.slice(x, -1, 0, 6, 2), g.slice(x, -1, 3, 8, 2)), lambda a, b: beside(g, a, b)
    ),
    "overlapping halves as pairs": lambda g, x: each(
        g, (g.slice(x, -1, 0, 4), g.slice(x, -1, 1, 5)), own_axis(g, 8, 8)
    ),
    "pairs of every other row": lambda g, x: each(
        g, paired(g, g.slice(x, 0, 0, 8, 2), 4, 4, 2, flat=(4, 4)), own_axis(g, 4, 8)
    ),
    "pairs of every other feature": lambda g, x: each(
        g, paired(g, g.slice(x, 1, 0, 8, 2), 8, 2, 2, flat=(8, 2)), own_axis(g, 8, 4)
    ),
    "members regrouped": lambda g, x: each(g, paired(g, x, 8, 4, 2, flat=(4, 8)), own_axis(g, 4, 16)),
    "two rows of pairs in one": lambda g, x: each(g, paired(g, x, 8, 4, 2, flat=(8, 4)), own_axis(g, 4, 16)),
}


@pytest.mark.parametrize("name", NEARLY_PAIRS)
def test_members_of_something_else_stay(name: str, seed: int) -> None:
    g = Graph(dtype="f64")
    assert not recognized(g, NEARLY_PAIRS[name](g, g.input("x", [8, 8])), seed)[0]


def test_members_of_pairs_of_a_size_that_varies_stay(seed: int) -> None:
    g = Graph("n: 1..3", dtype="f64")
    x = g.input("x", [4, "2*n"])
    assert not recognized(g, each(g, paired(g, x, 4, "n", 2, flat=(4, "n")), own_axis(g, 4, "2*n")), seed)[0]


def test_halves_of_one_row_stacked_are_no_pairs(seed: int) -> None:
    """(-x1, -x3, x0, x2), which has the dims of pairs side by side."""
    g = Graph(dtype="f64")
    x, cos, sin = g.input("x", [1, 4]), g.input("cos", [1, 4]), g.input("sin", [4])
    a, b = g.slice(x, -1, 0, 4, 2), g.slice(x, -1, 1, 4, 2)
    turned = g.reshape(g.concat(0, g.map("neg", b), a), 4)
    assert not recognized(g, g.map("add", g.map("mul", x, cos), g.map("mul", turned, sin)), seed)[0]


def test_members_of_fours_are_no_pairs(seed: int) -> None:
    """The first two of four features of each of x's two rows, side by side, which both rows read."""
    g = Graph(dtype="f64")
    x, cos, sin = (g.input(name, [2, 4]) for name in ("x", "cos", "sin"))
    whole = g.reshape(x, 1, 2, 4)
    a, b = (g.slice(whole, -1, i, i + 1) for i in (0, 1))
    turned = g.reshape(g.concat(-1, g.map("neg", b), a), 1, 4)
    assert not recognized(g, g.map("add", g.map("mul", x, cos), g.map("mul", turned, sin)), seed)[0]


@pytest.mark.parametrize("rows", [(0, 1, 1), (7, 8, 1), (0, 8, 8)])
def test_one_row_turned_for_all_is_no_rotation_of_each(rows: tuple[int, int, int], seed: int) -> None:
    g = Graph(dtype="f64")
    x, cos, sin = (g.input(name, [8, 8]) for name in ("x", "cos", "sin"))
    whole = g.reshape(x, 8, 4, 2)
    low, high, step = rows
    a, b = (g.op(SliceOp, whole, starts=[low, 0, i], stops=[high, 4, i + 1], steps=[step, 1, 1]) for i in (0, 1))
    turned = g.reshape(g.concat(-1, g.map("neg", b), a), 1, 8)
    assert not recognized(g, g.map("add", g.map("mul", x, cos), g.map("mul", turned, sin)), seed)[0]


def test_something_joined_with_nothing_is_no_pair(seed: int) -> None:
    g = Graph(dtype="f64")
    alone = g.reshape(g.concat(-1, g.input("x", [4, 2])), 8)
    assert ops_of(ground(g.done(alone), Recognize(), seed=seed)) == ["concat", "reshape"]


def test_two_vectors_joined_and_cut_into_rows_are_no_pairs(seed: int) -> None:
    g = Graph(dtype="f64")
    rows = g.reshape(g.concat(-1, g.input("x", [4]), g.input("y", [4])), 2, 4)
    assert ops_of(ground(g.done(rows), Recognize(), seed=seed)) == ["concat", "reshape"]


def test_what_is_turned_whole_is_not_cut(seed: int) -> None:
    g, x, cos, sin = start(4)
    a, b = halves(g, x)
    first = g.map("sub", g.map("mul", a, cos), g.map("mul", b, sin))
    second = g.map("add", g.map("mul", b, cos), g.map("mul", a, sin))
    after = ground(g.done(beside(g, first, second)), Recognize(), seed=seed)
    assert "slice" not in ops_of(after)

"""Rotary embedding written out in its four common forms becomes graph.rotary; a wrong half or sign does not."""

from __future__ import annotations

import pytest
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.attention import RotaryOp
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

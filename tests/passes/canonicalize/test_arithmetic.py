"""Every arithmetic rewrite keeps every bit, or refuses: NaN, infinities and -0.0 are among the inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.errors import NumericMismatchError
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.fold import Fold
from tilewright.testing import ground

Build = Callable[[Graph, SSAValue], SSAValue]

SPECIAL = torch.tensor([0.0, -0.0, 1.5, -2.25, math.inf, -math.inf, math.nan, 3e-310], dtype=torch.float64)


def simplified(build: Build, dtype: str = "f32", *, exact: bool = True) -> list[str]:
    """The ops left of build(x), grounded on special values; x is [8]."""
    g = Graph(dtype=dtype)
    x = g.input("x", [8])
    inputs = {"x": SPECIAL} if dtype.startswith(("f", "bf")) else {}
    return ops_of(ground(g.done(build(g, x)), Canonicalize(), inputs=inputs, exact=exact))


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda g, x: g.map("mul", x, 1.0), []),
        (lambda g, x: g.map("mul", 1.0, x), []),
        (lambda g, x: g.map("div", x, 1.0), []),
        (lambda g, x: g.map("add", x, -0.0), []),
        (lambda g, x: g.map("sub", x, 0.0), []),
        (lambda g, x: g.map("max", x, -math.inf), []),
        (lambda g, x: g.map("min", math.inf, x), []),
        (lambda g, x: g.map("pow", x, 1.0), []),
        (lambda g, x: g.map("neg", g.map("neg", x)), []),
        (lambda g, x: g.map("abs", g.map("neg", g.map("abs", x))), ["abs"]),
        (lambda g, x: g.map("relu", g.map("relu", x)), ["relu"]),
        (lambda g, x: g.map("add", x, g.map("neg", g.map("exp", x))), ["exp", "sub"]),
        (lambda g, x: g.map("add", g.map("neg", x), g.map("exp", x)), ["exp", "sub"]),
        (lambda g, x: g.map("sub", x, g.map("neg", x)), ["add"]),
        (lambda g, x: g.map("mul", x, -1.0), ["neg"]),
        (lambda g, x: g.map("div", x, 8.0), ["mul"]),
        (lambda g, x: g.map("div", x, -0.5), ["mul"]),
        (lambda g, x: g.map("div", 1.0, x), ["reciprocal"]),
        (lambda g, x: g.map("pow", x, 2.0), ["mul"]),
        (lambda g, x: g.map("select", g.map("lt", 2.0, x), x, x), []),
        (lambda g, x: g.map("select", g.constant(1, (), "i1"), x, g.map("exp", x)), []),
        (lambda g, x: g.map("select", g.constant(0, (8,), "i1"), x, g.map("exp", x)), ["exp"]),
        (lambda g, x: g.map("select", g.map("not", g.map("lt", x, 1.0)), x, g.map("exp", x)), ["lt", "exp", "select"]),
        (lambda g, x: g.map("ne", g.cast(g.map("gt", x, 0.5), "i64"), 0), ["gt"]),
        (lambda g, x: g.map("eq", g.cast(g.map("gt", x, 0.5), "f32"), 0.0), ["gt", "not"]),
        (lambda g, x: g.cast(g.cast(g.map("gt", x, 0.5), "f16"), "i1"), ["gt"]),
        (lambda g, x: g.map("and", g.map("gt", x, 0.5), g.constant(1, (), "i1")), ["gt"]),
        (lambda g, x: g.map("or", g.constant(1, (), "i1"), g.map("gt", x, 0.5)), []),
    ],
)
def test_a_rewrite_that_keeps_every_bit_is_done(build: Build, left: list[str]) -> None:
    assert simplified(build) == left


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda g, x: g.map("add", x, 0.0), ["add"]),  # -0.0 + 0.0 is 0.0
        (lambda g, x: g.map("add", x, -1.5), ["add"]),
        (lambda g, x: g.map("sub", x, -0.0), ["sub"]),  # -0.0 - -0.0 is 0.0
        (lambda g, x: g.map("mul", x, 0.0), ["mul"]),  # inf * 0 is NaN
        (lambda g, x: g.map("sub", x, x), ["sub"]),  # inf - inf is NaN
        (lambda g, x: g.map("max", x, -3.4028234663852886e38), ["max"]),  # -inf stays below
        (lambda g, x: g.map("div", x, 3.0), ["div"]),  # 1/3 is rounded
        (lambda g, x: g.map("div", x, 2.0**-128), ["div"]),  # 2^128 is no f32
        (lambda g, x: g.map("div", x, 0.0), ["div"]),
        (lambda g, x: g.map("div", x, -math.inf), ["div"]),
        (lambda g, x: g.map("eq", x, x), ["eq"]),  # NaN is not NaN
        (lambda g, x: g.map("eq", g.cast(g.map("gt", x, 0.5), "i64"), 2), ["gt", "cast", "eq"]),
        (lambda g, x: g.map("eq", g.cast(g.cast(x, "i64"), "f32"), 1.0), ["cast", "cast", "eq"]),
        (lambda g, x: g.cast(x, "i1"), ["cast"]),
    ],
)
def test_a_rewrite_that_would_change_a_bit_is_not_done(build: Build, left: list[str]) -> None:
    assert simplified(build) == left


@pytest.mark.parametrize(("exponent", "left"), [(3.0, ["mul", "mul"]), (0.5, ["sqrt"]), (-0.5, ["rsqrt"])])
def test_powers_become_what_torch_computes_for_scalar_exponents(exponent: float, left: list[str], seed: int) -> None:
    g = Graph(dtype="f64")
    x = g.map("exp", g.input("x", [5, 7]))
    after = ground(g.done(g.map("pow", x, exponent)), Canonicalize(), seed=seed)
    assert ops_of(after) == ["exp", *left]


@pytest.mark.parametrize("value", [1, 0])
def test_integers_have_one_zero(value: int, seed: int) -> None:
    g = Graph(dtype="i64")
    x = g.input("x", [6])
    for fn in ("add", "sub", "xor") if value == 0 else ("mul", "div"):
        x = g.map(fn, x, value)
    assert ops_of(ground(g.done(x), Canonicalize(), exact=True, seed=seed)) == []


def test_an_integer_division_is_not_a_multiplication() -> None:
    assert simplified(lambda g, x: g.map("div", x, 4), "i64") == ["div"]


def test_one_divided_by_an_integer_is_no_reciprocal() -> None:
    assert simplified(lambda g, x: g.map("div", 1, g.map("max", x, 1)), "i64") == ["max", "div"]


def test_or_true_of_an_integer_sets_one_bit() -> None:
    assert simplified(lambda g, x: g.map("or", x, 1), "i64") == ["or"]


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda g, x, c: g.map("div", c(1.0), x), ["div"]),
        (lambda g, x, c: g.map("pow", x, c(2.0)), ["pow"]),
        (lambda g, x, c: g.map("mul", x, c(-1.0)), ["mul"]),
        (lambda g, x, c: g.cast(g.map("and", g.map("gt", x, 0.5), g.cast(c(1.0), "i1")), "f32"), ["gt", "and", "cast"]),
        (lambda g, x, c: g.map("eq", g.cast(g.map("gt", x, 0.5), "f32"), c(1.0)), ["gt", "cast", "eq"]),
    ],
)
def test_a_constant_that_gives_the_result_its_dims_stays(
    build: Callable[..., SSAValue], left: list[str], seed: int
) -> None:
    g = Graph("b: 1..4")
    g.sized("b")
    x = g.input("x", [6])
    module = g.done(build(g, x, lambda value: g.constant(value, ["b", 6])))
    passes = [Fold(), Canonicalize()]
    assert ops_of(ground(module, passes, seed=seed)) == left


def test_two_constants_keep_their_order(seed: int) -> None:
    g = Graph()
    x = g.input("x", [6])
    module = g.done(g.map("sub", x, g.map("mul", g.constant(2.0), 3.0)))
    assert ops_of(ground(module, Canonicalize(), seed=seed, exact=True)) == ["mul", "sub"]


def test_grounding_sees_a_lost_sign_of_zero() -> None:
    g = Graph()
    x = g.input("x", [8])
    broken = g.done(g.map("add", x, 0.0))

    from tilewright.passes.canonicalize import arithmetic

    keep = arithmetic.adds_nothing
    arithmetic.adds_nothing = lambda value, dtype: value == 0
    try:
        with pytest.raises(NumericMismatchError, match="bits of 1 of 8"):
            ground(broken, Canonicalize(), inputs={"x": SPECIAL}, exact=True)
    finally:
        arithmetic.adds_nothing = keep

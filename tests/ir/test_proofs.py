"""What is proved never negative is so at every size; the shapes that kernels need are proved, wrong ones are not."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.ir.dims import Expr, parse_expr
from tilewright.ir.proofs import Assumptions


def proved(text: str, bounds: dict[str, tuple[int | None, int | None]] | None = None, *facts: str) -> bool:
    return Assumptions.of(bounds or {}, [parse_expr(f) for f in facts]).nonnegative(parse_expr(text))


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("8*t - (t - 1)*8 - 7 - 1", ()),
        ("384*b*t - (b - 1)*384*t - 383 - 1", ("t - 1",)),
        ("384*b*t - (b - 1)*384*t - 383 - 1", ("b*t - 1",)),
        ("n - 8*floordiv(n, 8)", ()),
        ("64*floordiv(n + 63, 64) - n", ()),
        ("n - mod(n, 16)", ()),
        ("m*n - min(m, 7)*n", ()),
        ("max(m, n) - min(m, n)", ()),
        ("t*u - t", ("u - 1",)),
        ("a*b - 3*b", ("a - c - 2", "c - 1")),
        ("mod(n, 5) - 2*n + 2*n", ()),
    ],
)
def test_what_kernels_rest_on_is_proved(text: str, facts: tuple[str, ...]) -> None:
    assert proved(text, {}, *facts)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("8*t - (t - 1)*8 - 8 - 1", ()),
        ("384*b*t - (b - 1)*384*t - 383 - 1", ()),
        ("8*floordiv(n, 8) - n", ()),
        ("n - 64*floordiv(n + 63, 64)", ()),
        ("t - 1", ()),
        ("t*u - t", ("t - 1",)),
        ("floordiv(t - 9, 4) + 2", ()),
        ("x - t", ("t - 1",)),
    ],
)
def test_what_does_not_hold_is_not_proved(text: str, facts: tuple[str, ...]) -> None:
    assert not proved(text, {}, *facts)


def test_a_proof_holds_at_every_size(rng: np.random.Generator) -> None:
    """Random expressions under random bounds and facts: a proved one is 0 or more wherever the assumptions hold."""
    found = 0
    for _ in range(600):
        expr, fact = _drawn(rng, 3), _drawn(rng, 1)
        bounds = {n: (int(rng.integers(-2, 3)), int(rng.integers(3, 7))) for n in "xyz"}
        known = Assumptions.of(bounds, [fact])
        if not known.nonnegative(expr):
            continue
        found += 1
        for _ in range(60):
            at = {n: int(rng.integers(low, high + 1)) for n, (low, high) in bounds.items()}
            assert fact.evaluate(at) < 0 or expr.evaluate(at) >= 0, (str(expr), str(fact), at)
    assert found > 30


def _drawn(rng: np.random.Generator, depth: int) -> Expr:
    kind = int(rng.integers(0, 7)) if depth else 0
    if kind < 2:
        return Expr.of(str(rng.choice(list("xyz")))) if rng.random() < 0.7 else Expr.of(int(rng.integers(-4, 9)))
    a, b = _drawn(rng, depth - 1), _drawn(rng, depth - 1)
    match kind:
        case 2:
            return a + b
        case 3:
            return a * b
        case 4:
            return a - b
        case 5:
            return Expr.of(f"{rng.choice(['min', 'max'])}({a}, {b})")
        case _:
            return Expr.of(f"{rng.choice(['floordiv', 'mod'])}({a}, {int(rng.integers(1, 6))})")

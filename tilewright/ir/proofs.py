"""Proofs that an integer expression is never negative, stronger than intervals: what a memory access rests on.

An `Assumptions` holds what is known: bounds of symbols and expressions that are 0 or more. Every step of a proof
replaces the expression by one that is not larger (so a proof of the second is one of the first), until its interval or
the signs of its terms show it. Nothing is guessed: True is a proof, False says that none was found.

A proof is a search, for questions that are asked once and matter: what a model's trace may rely on, and whether a
kernel's accesses stay in bounds. Passes that compare sizes by the thousand ask `DimSpace.compare`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from tilewright.ir.dims import Atom, Expr, Monomial, exact_div, shared_atoms
from tilewright.ir.intervals import Interval

# expressions a single proof may look at, and how many replacements deep: what our kernels need is below 6 and 200
_DEPTH: Final = 10
_BUDGET: Final = 500


@dataclass(slots=True)
class Assumptions:
    """Bounds of symbols (a symbol without any is 0 or more), and expressions that are known to be 0 or more."""

    bounds: dict[str, Interval] = field(default_factory=dict)
    facts: list[Expr] = field(default_factory=list)
    _proved: dict[Expr, bool] = field(default_factory=dict)
    _left: int = 0

    @staticmethod
    def of(bounds: Mapping[str, Interval], facts: Iterable[Expr] = ()) -> Assumptions:
        """The bounds, tightened by the facts that speak of one symbol, and the facts."""
        made = Assumptions(dict(bounds))
        pending = [f for f in facts if f.constant is None]
        # a bound may say the sign of a factor in another fact: twice is enough for products of sizes
        for _ in range(2):
            for fact in pending:
                made._tighten(fact)
        made.facts = pending
        return made

    def _tighten(self, fact: Expr) -> None:
        constant = dict(fact.terms).get((), 0)
        moving = [(m, c) for m, c in fact.terms if m]
        if len(moving) != 1:
            return
        ((monomial, coefficient),) = moving
        if len(monomial) == 1 and not monomial[0].args:
            low, high = self.bounds.get(monomial[0].name, (0, None))
            if coefficient > 0:
                least = -(constant // coefficient)
                low = least if low is None else max(low, least)
            else:
                most = constant // -coefficient
                high = most if high is None else min(high, most)
            self.bounds[monomial[0].name] = low, high
        elif coefficient > 0 > constant and all(self._sign(a) for a in monomial):
            # a product of sizes that is not 0 has no factor that is
            for atom in monomial:
                if not atom.args:
                    low, high = self.bounds.get(atom.name, (0, None))
                    self.bounds[atom.name] = max(low or 0, 1), high

    def _sign(self, atom: Atom) -> bool:
        """Whether intervals alone show that the atom is never negative."""
        low, _ = Expr((((atom,), 1),)).interval(self.bounds)
        return low is not None and low >= 0

    def nonnegative(self, expr: Expr) -> bool:
        """True where expr >= 0 is proved for all values of the symbols within the assumptions."""
        found = self._proved.get(expr)
        if found is None:
            self._left = _BUDGET
            found = self._proved[expr] = self._prove(expr, _DEPTH, {})
        return found

    def interval(self, expr: Expr) -> Interval:
        """Bounds of the expression's value."""
        return expr.interval(self.bounds)

    def at_least(self, expr: Expr, least: Expr | int) -> bool:
        """True where expr >= least is proved."""
        return self.nonnegative(expr - least)

    def _prove(self, expr: Expr, depth: int, tried: dict[Expr, bool]) -> bool:
        if expr.constant is not None:
            return expr.constant >= 0
        if expr in tried or self._left <= 0:
            return tried.get(expr, False)
        # while it is being looked at, it cannot be its own reason
        tried[expr] = False
        self._left -= 1
        tried[expr] = self._by_bounds(expr) or (depth > 0 and self._by_steps(expr, depth - 1, tried))
        return tried[expr]

    def _by_bounds(self, expr: Expr) -> bool:
        low, _ = expr.interval(self.bounds)
        if low is not None and low >= 0:
            return True
        shifted, bounds = self._shifted(expr)
        low, _ = shifted.interval(bounds)
        return low is not None and low >= 0

    def _by_steps(self, expr: Expr, depth: int, tried: dict[Expr, bool]) -> bool:
        factors = shared_atoms(expr)
        if factors and all(self._sign(a) for a in factors):
            rest = exact_div(expr, Expr(((factors, 1),)))
            if rest is not None and self._prove(rest, depth, tried):
                return True
        return any(
            all(self._prove(case, depth, tried) for case in cases)
            for cases in chain(self._cases(expr), self._less(expr))
        )

    def _shifted(self, expr: Expr) -> tuple[Expr, dict[str, Interval]]:
        """The expression with every symbol counted from its least value: a product of sizes then has visible signs."""
        moved: dict[str, Expr] = {}
        bounds = dict(self.bounds)
        for name in expr.symbols:
            low, high = self.bounds.get(name, (0, None))
            if low:
                moved[name] = Expr.of(name) + low
                bounds[name] = 0, None if high is None else high - low
        return (expr.substitute(dict(moved)) if moved else expr), bounds

    def _cases(self, expr: Expr) -> Iterator[list[Expr]]:
        """Lists of expressions of which each list's proofs together prove the expression: functions taken apart."""
        for monomial, coefficient in expr.terms:
            term = Expr(((monomial, coefficient),))
            for atom in dict.fromkeys(a for a in monomial if a.args):
                itself = Expr((((atom,), 1),))
                rest = exact_div(term, itself)
                if rest is None or not self._signed(rest):
                    continue
                others, (a, b) = expr - term, atom.args
                if atom.name in ("min", "max"):
                    with_a, with_b = others + rest * a, others + rest * b
                    # a smaller minimum or a larger maximum is on our side: either argument bounds it
                    if (atom.name == "min") == (coefficient < 0):
                        yield [with_a]
                        yield [with_b]
                    else:
                        yield [with_a, with_b]
                elif atom.name == "floordiv" and self._positive(b):
                    # b * (a // b) lies in a - b + 1 .. a; integers are 0 or more where b of them are above -b
                    yield [others * b + rest * (a if coefficient < 0 else a - b + 1) + b - 1]
                elif atom.name == "mod" and self._positive(b):
                    if coefficient > 0:
                        yield [others]
                    else:
                        yield [others + rest * (b - 1)]
                        if self._quick(a):
                            yield [others + rest * a]

    def _less(self, expr: Expr) -> Iterator[list[Expr]]:
        """What is left after a multiple of something that is 0 or more is taken away."""
        for fact in self.facts:
            for lead, c in fact.terms:
                for monomial, coefficient in expr.terms if lead else ():
                    quotient = _divided(monomial, lead)
                    if quotient is None or coefficient * c < 0 or not all(self._sign(a) for a in quotient):
                        continue
                    # integers: the expression is 0 or more where `times` of it are above -times
                    times = abs(c) // math.gcd(c, coefficient)
                    yield [expr * times + (times - 1) - fact * Expr(((quotient, coefficient * times // c),))]

    def _signed(self, term: Expr) -> bool:
        """Whether the sign of a term is that of its coefficient."""
        ((monomial, _),) = term.terms
        return all(self._sign(a) for a in monomial)

    def _positive(self, expr: Expr) -> bool:
        low, _ = expr.interval(self.bounds)
        return (low is not None and low >= 1) or expr - 1 in self.facts

    def _quick(self, expr: Expr) -> bool:
        low, _ = expr.interval(self.bounds)
        return low is not None and low >= 0


def _divided(monomial: Monomial, by: Monomial) -> Monomial | None:
    left = list(monomial)
    for atom in by:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)

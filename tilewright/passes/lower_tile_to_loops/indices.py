"""What is known about index values: each has a symbolic expression, and `Facts` proves bounds from the loops it is in.

Everything that decides whether a load needs a mask or a store a clip asks here, so a bound that is proved costs no
code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from tilewright.ir.dims import Atom, Expr, ExprLike, exact_div, floordiv
from tilewright.ir.loops import Value


@dataclass(frozen=True, slots=True)
class Index:
    """An i64 scalar of the loop IR, and the same number as an expression over dims and symbols of `Facts`."""

    value: Value
    expr: Expr


@dataclass(frozen=True, slots=True)
class Induction:
    """A symbol that counts a loop's iterations, of coordinates lo + count * step below hi; there is one at least."""

    lo: Expr
    hi: Expr
    step: int

    @property
    def reach(self) -> Expr:
        """The last iteration's distance from lo where the steps divide the range, else an upper bound of it."""
        extent = self.hi - self.lo
        if extent.constant is not None:
            return Expr.of((extent.constant - 1) // self.step * self.step)
        return extent - (self.step if (extent % self.step) == Expr.of(0) else 1)


class Facts:
    """The symbols that stand for loop coordinates and run-time integers, and proofs about expressions over them.

    A dim is 0 or more; a symbol without an induction may be any integer.
    """

    def __init__(self) -> None:
        self._inductions: dict[str, Induction] = {}
        self._opaque: set[str] = set()
        self._proved: dict[Expr, bool] = {}

    def induction(self, lo: Expr, hi: Expr, step: int) -> Expr:
        """A loop's coordinate, as `lo + step * count` with a fresh symbol for the count."""
        name = self._fresh()
        self._inductions[name] = Induction(lo, hi, step)
        return lo + Expr.of(name) * step

    def opaque(self) -> Expr:
        """A fresh symbol for an integer read at run time."""
        name = self._fresh()
        self._opaque.add(name)
        return Expr.of(name)

    def _fresh(self) -> str:
        # Two underscores: no dim that a frontend or a user names begins so.
        return f"__{len(self._inductions) + len(self._opaque)}"

    def at_least(self, expr: Expr, least: ExprLike) -> bool:
        """True where expr >= least is proved for every iteration and every size of the dims."""
        difference = expr - least
        if difference.constant is not None:
            return difference.constant >= 0
        found = self._proved.get(difference)
        if found is None:
            found = self._proved[difference] = self._nonnegative(difference, 12)
        return found

    def _nonnegative(self, expr: Expr, depth: int) -> bool:
        if depth == 0:
            return False
        newest = max((s for s in expr.symbols if s in self._inductions), key=lambda s: int(s[2:]), default=None)
        if newest is not None:
            bounded = self._eliminate(expr, newest)
            if bounded is not None:
                return self._nonnegative(bounded, depth)
        else:
            low, _ = expr.interval(dict.fromkeys(self._opaque, (None, None)))
            if low is not None and low >= 0:
                return True
        return any(self._nonnegative(weaker, depth - 1) for weaker in chain(_weaker(expr), self._rounded(expr, depth)))

    def _rounded(self, expr: Expr, depth: int) -> Iterator[Expr]:
        """Without a quotient and one that is taken off, where it is at least that: of a larger number by the same."""
        quotients = [
            (monomial[0], count)
            for monomial, count in expr.terms
            if len(monomial) == 1 and monomial[0].name == "floordiv"
        ]
        for more, count in quotients:
            for less, off in quotients:
                same = count > 0 > off and more.args[1] == less.args[1]
                if same and self._nonnegative(more.args[0] - less.args[0], depth - 1):
                    taken = min(count, -off)
                    yield expr - Expr((((more,), taken),)) + Expr((((less,), taken),))

    def _eliminate(self, expr: Expr, name: str) -> Expr | None:
        """A lower bound of expr without the symbol; None where the symbol sits inside a function of unknown sign."""
        symbol, induction = Atom(name), self._inductions[name]
        total = Expr.of(0)
        for monomial, coefficient in expr.terms:
            term = Expr(((monomial, coefficient),))
            if name not in term.symbols:
                total = total + term
                continue
            others = list(monomial)
            if symbol in others:
                others.remove(symbol)
            sizes = Expr(((tuple(others), 1),))
            # only where the other factors are never negative is the term monotone in the count, which is 0 at first
            if monomial.count(symbol) != 1 or term.symbols & self._opaque or not _never_negative(sizes):
                low, _ = term.interval(dict.fromkeys([name, *self._opaque], (None, None)))
                if low is None:
                    return None
                total = total + low
                continue
            if coefficient > 0:
                continue
            factor = exact_div(term, Expr.of(name) * induction.step)
            if factor is not None:
                total = total + factor * induction.reach
                continue
            factor = exact_div(term, Expr.of(name))
            if factor is None:
                return None
            total = total + factor * floordiv(induction.reach, induction.step)
        return total


def _never_negative(sizes: Expr) -> bool:
    low, _ = sizes.interval({})
    return low is not None and low >= 0


def _weaker(expr: Expr) -> list[Expr]:
    """Lower bounds of the expression with one min or max replaced by one of its arguments, or what is rounded down to
    a multiple by what it is rounded from."""
    found = []
    for monomial, coefficient in expr.terms:
        for atom in monomial:
            if (atom.name == "min" and coefficient < 0) or (atom.name == "max" and coefficient > 0):
                rest = exact_div(Expr(((monomial, coefficient),)), Expr((((atom,), 1),)))
                if rest is not None and _never_negative(rest * (1 if coefficient > 0 else -1)):
                    found += [expr - Expr(((monomial, coefficient),)) + rest * arg for arg in atom.args]
            elif atom.name == "floordiv" and coefficient < 0:
                numerator, divisor = atom.args
                each = exact_div(Expr(((monomial, coefficient),)), divisor * Expr((((atom,), 1),)))
                if each is not None and _never_negative(-each):
                    found.append(expr - Expr(((monomial, coefficient),)) + each * numerator)
    return found

"""Index values: their text, and what is known of their range, so that masks are printed only where they matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.ir.dims import Atom, Expr
from tilewright.ir.intervals import Interval


@dataclass(frozen=True, slots=True)
class Index:
    """An integer of the program.

    text: a name or a number. low, high: inclusive bounds (None: none known). below: a size that it is less than, where
    that is known as an expression. expr: what it is, where that is an expression of dims alone.
    """

    text: str
    low: int | None = None
    high: int | None = None
    below: Expr | None = None
    expr: Expr | None = None

    @property
    def interval(self) -> Interval:
        return (self.low, self.high)

    @staticmethod
    def of(value: int) -> Index:
        return Index(str(value), value, value, expr=Expr.of(value))


class IndexText:
    """Dims expressions as Python text; `helpers` collects the functions that they call.

    host: for Python itself, whose numbers are no tensors, and whose // and % round down.
    """

    def __init__(self, helpers: set[str], *, host: bool = False) -> None:
        self.helpers, self._host = helpers, host

    def expr(self, expr: Expr, symbols: Mapping[str, str], bounds: Mapping[str, Interval]) -> str:
        """A polynomial; `symbols` gives the text of every symbol, `bounds` what is known of them."""
        if expr.constant is not None:
            return str(expr.constant) if expr.constant >= 0 else f"({expr.constant})"
        parts = []
        for monomial, coefficient in expr.terms:
            factors = [self._atom(atom, symbols, bounds) for atom in monomial]
            if coefficient != 1 or not factors:
                factors.append(str(coefficient))
            parts.append(" * ".join(factors) if coefficient >= 0 else f"({' * '.join(factors)})")
        text = " + ".join(parts)
        return f"({text})" if len(parts) > 1 or len(expr.terms[0][0]) + (expr.terms[0][1] != 1) > 1 else text

    def _atom(self, atom: Atom, symbols: Mapping[str, str], bounds: Mapping[str, Interval]) -> str:
        if not atom.args:
            return symbols[atom.name]
        a, b = (self.expr(x, symbols, bounds) for x in atom.args)
        match atom.name:
            case "min" | "max":
                return f"{atom.name}({a}, {b})" if self._host else f"tl.{atom.name}imum({a}, {b})"
            case _ if self._host:
                return f"({a} {'//' if atom.name == 'floordiv' else '%'} {b})"
            case _:
                low, _ = atom.args[0].interval(bounds)
                divisor, _ = atom.args[1].interval(bounds)
                if low is not None and low >= 0 and divisor is not None and divisor > 0:
                    return f"({a} {'//' if atom.name == 'floordiv' else '%'} {b})"
                name = "floordiv" if atom.name == "floordiv" else "floormod"
                self.helpers.add(name)
                return f"{name}({a}, {b})"

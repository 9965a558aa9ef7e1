"""Dims: sizes as canonical integer expressions over named symbols, with bounds and three-valued comparison.

An `Expr` is a polynomial whose atoms are symbols ("tokens") or floordiv/mod/min/max of other expressions. Two that are
equal as polynomials are equal as Python objects, so `==` means "proved equal"; `DimSpace.compare` also uses declared
bounds and answers True (proved), False (disproved) or None (depends on the sizes of a call).

Symbols come in three kinds: *declared* dims (bound to the axes of inputs), *read* dims (a small integer input read at
entry) and *run-time* dims (a step writes the size; buffers take the declared upper bound).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Final, Literal, SupportsIndex, TypeAlias

from tilewright.errors import DimDeclarationError, IRError, ParseError
from tilewright.ir import intervals
from tilewright.ir.dim_faults import dim_faults, is_name, nearest
from tilewright.ir.intervals import Interval
from tilewright.option_names import known_options

DimKind = Literal["declared", "read", "runtime"]
Function = Literal["floordiv", "mod", "min", "max"]


@known_options()
@dataclass(frozen=True, slots=True)
class Dim:
    """A named size with inclusive bounds, as the user declares it: `Dim("tokens", 1, 256)`."""

    name: str
    min: int = 1
    max: int | None = None
    kind: DimKind = "declared"

    def __post_init__(self) -> None:
        faults = dim_faults(self.name, self.min, self.max)
        if faults:
            raise DimDeclarationError(faults, step=f"declare it as {nearest(self.name, self.min, self.max)}")

    def _no_arithmetic(self, _other: object) -> Expr:
        raise DimDeclarationError(
            f"a Dim is one size, and arithmetic on {self.name} gives another that no axis can be declared with",
            step="give the other axis a Dim of its own: where the model ties the two, a call is held to it",
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _no_arithmetic
    __floordiv__ = __rfloordiv__ = __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __pow__ = _no_arithmetic

    def __str__(self) -> str:
        return f"{self.name}: {self.min}..{'' if self.max is None else self.max}"


@dataclass(frozen=True, slots=True)
class Atom:
    """What a polynomial is made of: a symbol (no arguments) or a function of two expressions."""

    name: str
    args: tuple[Expr, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})" if self.args else self.name


Monomial: TypeAlias = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class Expr:
    """A canonical integer expression: a sum of coefficient times product of atoms, in a fixed order."""

    terms: tuple[tuple[Monomial, int], ...]

    @staticmethod
    def of(value: ExprLike) -> Expr:
        """An integer (NumPy's too), a symbol's name, the text of an expression, a Dim or an Expr as an Expr."""
        if isinstance(value, Expr):
            return value
        if isinstance(value, str):
            return Expr((((Atom(value),), 1),)) if is_name(value) else parse_expr(value)
        if isinstance(value, Dim):
            return Expr((((Atom(value.name),), 1),))
        number = index(value)
        return Expr((((), number),) if number else ())

    @staticmethod
    def _from(terms: Mapping[Monomial, int]) -> Expr:
        kept = [(m, c) for m, c in terms.items() if c]
        kept.sort(key=lambda term: (-len(term[0]), [str(a) for a in term[0]]))
        return Expr(tuple(kept))

    @property
    def constant(self) -> int | None:
        """The value when no symbol is left, else None."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and not self.terms[0][0]:
            return self.terms[0][1]
        return None

    @property
    def is_static(self) -> bool:
        return self.constant is not None

    @property
    def symbols(self) -> frozenset[str]:
        """The names of every symbol in the expression, inside functions too."""
        found: set[str] = set()
        for monomial, _ in self.terms:
            for atom in monomial:
                if atom.args:
                    for arg in atom.args:
                        found |= arg.symbols
                else:
                    found.add(atom.name)
        return frozenset(found)

    def __add__(self, other: ExprLike) -> Expr:
        total = dict(self.terms)
        for monomial, coefficient in Expr.of(other).terms:
            total[monomial] = total.get(monomial, 0) + coefficient
        return Expr._from(total)

    def __mul__(self, other: ExprLike) -> Expr:
        total: dict[Monomial, int] = {}
        for m1, c1 in self.terms:
            for m2, c2 in Expr.of(other).terms:
                monomial = tuple(sorted(m1 + m2, key=str))
                total[monomial] = total.get(monomial, 0) + c1 * c2
        return Expr._from(total)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Expr:
        return self * -1

    def __sub__(self, other: ExprLike) -> Expr:
        return self + (-Expr.of(other))

    def __rsub__(self, other: ExprLike) -> Expr:
        return Expr.of(other) - self

    def __floordiv__(self, other: ExprLike) -> Expr:
        return floordiv(self, other)

    def __mod__(self, other: ExprLike) -> Expr:
        return mod(self, other)

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The value at given sizes of the symbols; KeyError names a symbol without one."""
        total = 0
        for monomial, coefficient in self.terms:
            for atom in monomial:
                coefficient *= _evaluate(atom, values)
            total += coefficient
        return total

    def substitute(self, values: Mapping[str, ExprLike]) -> Expr:
        """The expression with symbols replaced by expressions, canonical again."""
        total = Expr(())
        for monomial, coefficient in self.terms:
            product = Expr.of(coefficient)
            for atom in monomial:
                product = product * _substitute(atom, values)
            total = total + product
        return total

    def interval(self, bounds: Mapping[str, Interval]) -> Interval:
        """Bounds of the value given bounds of the symbols (an unknown symbol is 0 or more)."""
        total: Interval = (0, 0)
        for monomial, coefficient in self.terms:
            part: Interval = (coefficient, coefficient)
            for atom in monomial:
                part = intervals.multiply(part, _interval(atom, bounds))
            total = intervals.add(total, part)
        return total

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        text = ""
        for monomial, coefficient in self.terms:
            factors = [str(atom) for atom in monomial]
            if abs(coefficient) != 1 or not factors:
                factors.insert(0, str(abs(coefficient)))
            sign = "-" if coefficient < 0 else "+"
            text += f" {sign} " if text else ("-" if coefficient < 0 else "")
            text += "*".join(factors)
        return text


ExprLike: TypeAlias = Expr | SupportsIndex | str | Dim


def floordiv(a: ExprLike, b: ExprLike) -> Expr:
    """a // b for b > 0, with the part of `a` that b divides taken out, so that (x + 5) // 4 is (x + 1) // 4 + 1."""
    a, b = Expr.of(a), _divisor(b)
    divisor = b.constant
    if divisor is None:
        exact = exact_div(a, b)
        return exact if exact is not None else Expr((((Atom("floordiv", (a, b)),), 1),))
    whole: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, c in a.terms:
        # a negative coefficient keeps its sign (-x stays -x, not 3*x - 4*x), which keeps intervals tight
        taken = c // divisor if c > 0 or not monomial else -(-c // divisor)
        whole[monomial] = taken
        rest[monomial] = c - taken * divisor
    shared = math.gcd(divisor, *(c for m, c in rest.items() if m))
    # what is left of the constant below the shared factor never reaches the next multiple
    reduced = Expr._from({m: c // shared for m, c in rest.items()})
    if reduced.constant is not None:
        return Expr._from(whole) + reduced.constant // (divisor // shared)
    return Expr._from(whole) + Expr((((Atom("floordiv", (reduced, Expr.of(divisor // shared))),), 1),))


def ceildiv(a: ExprLike, b: ExprLike) -> Expr:
    """The number of blocks of b that cover a, for b > 0."""
    b = Expr.of(b)
    return floordiv(Expr.of(a) + b - 1, b)


def mod(a: ExprLike, b: ExprLike) -> Expr:
    """a - (a // b) * b for b > 0: never negative."""
    a, b = Expr.of(a), _divisor(b)
    divisor = b.constant
    if divisor is not None:
        rest = Expr._from({m: c % divisor for m, c in a.terms})
        if rest.constant is not None:
            return Expr.of(rest.constant % divisor)
        return Expr((((Atom("mod", (rest, b)),), 1),))
    return Expr(()) if exact_div(a, b) is not None else Expr((((Atom("mod", (a, b)),), 1),))


def _divisor(b: ExprLike) -> Expr:
    b = Expr.of(b)
    if b.constant is not None and b.constant < 1:
        raise IRError(f"a dim is divided by {b}", step="divide by sizes of 1 or more")
    return b


def minimum(a: ExprLike, b: ExprLike) -> Expr:
    """The smaller of two expressions, folded where their difference is a constant."""
    return _choose("min", Expr.of(a), Expr.of(b))


def maximum(a: ExprLike, b: ExprLike) -> Expr:
    """The larger of two expressions, folded where their difference is a constant."""
    return _choose("max", Expr.of(a), Expr.of(b))


def _choose(name: Function, a: Expr, b: Expr) -> Expr:
    gap = (a - b).constant
    if gap is not None:
        return a if (gap <= 0) == (name == "min") else b
    first, second = sorted((a, b), key=str)
    return Expr((((Atom(name, (first, second)),), 1),))


def exact_div(a: ExprLike, b: ExprLike) -> Expr | None:
    """q with a == q * b as polynomials, where b is one product of atoms; None if there is none."""
    a, b = Expr.of(a), Expr.of(b)
    if not a.terms:
        return a
    if len(b.terms) != 1:
        return Expr.of(1) if a == b else None
    ((divisor, coefficient),) = b.terms
    quotient: dict[Monomial, int] = {}
    for monomial, c in a.terms:
        left = list(monomial)
        for atom in divisor:
            if atom not in left:
                return None
            left.remove(atom)
        if c % coefficient:
            return None
        quotient[tuple(left)] = c // coefficient
    return Expr._from(quotient)


def product(values: Iterable[ExprLike]) -> Expr:
    """The product of sizes; 1 for none."""
    total = Expr.of(1)
    for value in values:
        total = total * value
    return total


_FUNCTIONS: Final[dict[str, Callable[[Expr, Expr], Expr]]] = {
    "floordiv": floordiv,
    "mod": mod,
    "min": minimum,
    "max": maximum,
}


_INTERVALS: Final[dict[str, Callable[[Interval, Interval], Interval]]] = {
    "floordiv": intervals.floordiv,
    "mod": intervals.mod,
    "min": intervals.minimum,
    "max": intervals.maximum,
}


def _evaluate(atom: Atom, values: Mapping[str, int]) -> int:
    if not atom.args:
        return values[atom.name]
    a, b = (arg.evaluate(values) for arg in atom.args)
    match atom.name:
        case "floordiv":
            return a // b
        case "mod":
            return a % b
        case "min":
            return min(a, b)
        case _:
            return max(a, b)


def _substitute(atom: Atom, values: Mapping[str, ExprLike]) -> Expr:
    if not atom.args:
        return Expr.of(values.get(atom.name, atom.name))
    a, b = (arg.substitute(values) for arg in atom.args)
    return _FUNCTIONS[atom.name](a, b)


def _interval(atom: Atom, bounds: Mapping[str, Interval]) -> Interval:
    if not atom.args:
        return bounds.get(atom.name, (0, None))
    a, b = (arg.interval(bounds) for arg in atom.args)
    return _INTERVALS[atom.name](a, b)


class DimSpace:
    """The named dims of one program: their kinds and bounds, and what can be proved with them."""

    def __init__(self, dims: Iterable[Dim] = ()) -> None:
        self.dims: dict[str, Dim] = {}
        for dim in dims:
            self.add(dim)

    def add(self, dim: Dim) -> None:
        """Registers a dim; the same name with other bounds is an error."""
        known = self.dims.setdefault(dim.name, dim)
        if known != dim:
            raise DimDeclarationError(
                f"dim {dim.name!r} is declared twice: {known} and {dim}", step="use one tw.Dim object for both axes"
            )

    @property
    def bounds(self) -> dict[str, Interval]:
        return {d.name: (d.min, d.max) for d in self.dims.values()}

    def interval(self, expr: ExprLike) -> Interval:
        return Expr.of(expr).interval(self.bounds)

    def compare(self, a: ExprLike, relation: Literal["==", "<=", "<", ">=", ">"], b: ExprLike) -> bool | None:
        """True when proved for every size in bounds, False when disproved for every size, None when it depends.

        By intervals, with one factor taken out: cheap enough for passes to ask of every pair of sizes, and three-valued
        because folding a comparison needs the disproof as well. `proofs.Assumptions` takes functions apart, knows facts
        beyond bounds, and searches.
        """
        low, high = self._sign_interval(Expr.of(a) - b)
        match relation:
            case "==":
                if low == high == 0:
                    return True
                return False if (low is not None and low > 0) or (high is not None and high < 0) else None
            case "<=":
                return True if high is not None and high <= 0 else (False if low is not None and low > 0 else None)
            case "<":
                return True if high is not None and high < 0 else (False if low is not None and low >= 0 else None)
            case ">=":
                return self.compare(b, "<=", a)
            case ">":
                return self.compare(b, "<", a)

    def _sign_interval(self, difference: Expr) -> Interval:
        """Bounds with the sign of the difference, tighter where its terms share a factor: t*b - t is t * (b - 1)."""
        plain = self.interval(difference)
        offset = dict(difference.terms).get((), 0)
        shared = Expr(((shared_atoms(difference - offset), 1),))
        rest = None if shared.constant == 1 else exact_div(difference - offset, shared)
        if rest is None:
            return plain
        factored = intervals.multiply(self.interval(shared), self.interval(rest))
        return intervals.intersect(plain, intervals.add(factored, (offset, offset)))

    def at_most(self, expr: ExprLike) -> int | None:
        """The largest value the expression can take; None where a dim has no upper bound."""
        return self.interval(expr)[1]


def shared_atoms(expr: Expr) -> Monomial:
    """The atoms that every one of several terms has, as often as all of them have it; none for fewer terms."""
    if len(expr.terms) < 2:
        return ()
    common = list(expr.terms[0][0])
    for monomial, _ in expr.terms[1:]:
        left, kept = list(monomial), []
        for atom in common:
            if atom in left:
                left.remove(atom)
                kept.append(atom)
        common = kept
    return tuple(common)


_TOKEN: Final = re.compile(r"\s*(?:([0-9]+)|([A-Za-z_]\w*)|(.))", re.ASCII | re.DOTALL)
# a stranger's file must end in an error, not in Python's recursion limit or a full memory
_MAX_DEPTH: Final = 64
_MAX_TERMS: Final = 1024


def parse_expr(text: str) -> Expr:
    """Reads the printed form back: integers, names, + - *, parentheses and floordiv/mod/min/max calls."""
    tokens = [m.group(1) or m.group(2) or m.group(3) for m in _TOKEN.finditer(text.strip())]
    position = 0
    depth = 0

    def fail(expected: str) -> ParseError:
        got = tokens[position] if position < len(tokens) else "the end"
        return ParseError(
            f"dim expression {text!r}: expected {expected}, got {got}", step="see `tilewright ops` for the form"
        )

    def take(token: str) -> None:
        nonlocal position
        if position >= len(tokens) or tokens[position] != token:
            raise fail(repr(token))
        position += 1

    def nested(rule: Callable[[], Expr]) -> Expr:
        nonlocal depth
        depth += 1
        value = rule()
        depth -= 1
        return value

    def factor() -> Expr:
        nonlocal position
        if position >= len(tokens) or depth > _MAX_DEPTH:
            raise fail(f"less nesting than {depth}" if depth > _MAX_DEPTH else "a number or a name")
        token = tokens[position]
        position += 1
        if token[0] in "0123456789":
            return Expr.of(int(token))
        if token == "-":
            return -nested(factor)
        if token == "(":
            inner = nested(total)
            take(")")
            return inner
        if token in _FUNCTIONS:
            take("(")
            a = nested(total)
            take(",")
            b = nested(total)
            take(")")
            return _FUNCTIONS[token](a, b)
        if is_name(token):
            return Expr.of(token)
        position -= 1
        raise fail("a number or a name")

    def term() -> Expr:
        nonlocal position
        value = factor()
        while position < len(tokens) and tokens[position] == "*":
            position += 1
            other = factor()
            if len(value.terms) * len(other.terms) > _MAX_TERMS:
                raise fail(f"a product of fewer than {_MAX_TERMS} terms")
            value = value * other
        return value

    def total() -> Expr:
        nonlocal position
        value = term()
        while position < len(tokens) and tokens[position] in ("+", "-"):
            sign = tokens[position]
            position += 1
            value = value + term() if sign == "+" else value - term()
        return value

    result = total()
    if position != len(tokens):
        raise fail("the end")
    return result

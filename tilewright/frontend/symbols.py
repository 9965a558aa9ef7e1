"""Torch's symbolic sizes as our dim expressions, and what the exporter assumed about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tilewright.errors import Problem, SpecialisationError
from tilewright.frontend.captured import Guard
from tilewright.frontend.locations import innermost
from tilewright.frontend.proving import at_most
from tilewright.ir.dims import Dim, DimSpace, Expr, exact_div, floordiv, maximum, minimum, mod


class UnknownSizeError(Exception):
    """A size that is no expression of declared dims: it depends on values of tensors."""


class Symbols:
    """The dims of one capture: torch's symbols by the dim each stands for."""

    def __init__(self, shape_env: Any, dims: DimSpace, names: Mapping[Any, Expr]) -> None:
        self.shape_env = shape_env
        self.space = dims
        self.names: dict[Any, Expr] = dict(names)

    def size(self, value: Any) -> Expr:
        """The expression of an int, a SymInt or a sympy expression; UnknownSizeError where data decides it."""
        if isinstance(value, int):
            return Expr.of(value)
        node = getattr(value, "node", None)
        return self._convert(self.shape_env.replace(node.expr) if node is not None else value)

    def dims(self, shape: Any) -> tuple[Expr, ...]:
        """The expressions of a shape."""
        return tuple(self.size(n) for n in shape)

    def _convert(self, expr: Any) -> Expr:
        if expr.is_Integer:
            return Expr.of(int(expr))
        if expr.is_Symbol:
            known = self.names.get(expr)
            if known is not None:
                return known
            replaced = self.shape_env.replacements.get(expr) if self.shape_env is not None else None
            if replaced is None:
                raise UnknownSizeError(str(expr))
            return self._convert(replaced)
        args: list[Expr] = [self._convert(arg) for arg in expr.args] if expr.func.__name__ in _FUNCTIONS else []
        match expr.func.__name__:
            case "Add":
                return sum(args[1:], start=args[0])
            case "Mul":
                return self._product(args)
            case "Pow" if args[1].constant is not None and args[1].constant >= 0:
                return self._product([args[0]] * args[1].constant)
            case "FloorDiv" | "CleanDiv":
                return floordiv(args[0], args[1])
            case "Mod" | "PythonMod":
                return mod(args[0], args[1])
            case "ModularIndexing":
                return mod(floordiv(args[0], args[1]), args[2])
            case "Max":
                return self._extreme(args, largest=True)
            case "Min":
                return self._extreme(args, largest=False)
        raise UnknownSizeError(str(expr))

    def _product(self, args: list[Expr]) -> Expr:
        total = Expr.of(1)
        for arg in args:
            total = total * arg
        return total

    def _extreme(self, args: list[Expr], *, largest: bool) -> Expr:
        """A max or min, resolved where the declared bounds prove which one it is."""
        best = args[0]
        for arg in args[1:]:
            if at_most(self.space, arg, best):
                best = best if largest else arg
            elif at_most(self.space, best, arg):
                best = arg if largest else best
            else:
                best = maximum(best, arg) if largest else minimum(best, arg)
        return best

    def guards(self) -> list[Guard]:
        """The relations that the exporter relied on and that the declared bounds do not prove.

        Inequalities that only exclude the sizes 0 and 1 are left out: the exporter adds them for every symbol because
        it treats those sizes apart, and what they decide (strides, broadcasting) means the same in the graph dialect.
        """
        found: dict[str, Guard] = {}
        for item in getattr(self.shape_env, "guards", ()):
            guard = self._guard(item.expr, _line(item.sloc))
            if guard is not None:
                found.setdefault(str(guard), guard)
        return list(found.values())

    def _guard(self, expr: Any, where: str | None) -> Guard | None:
        kind = type(expr).__name__
        if kind not in ("Equality", "LessThan", "StrictLessThan", "GreaterThan", "StrictGreaterThan"):
            return None
        try:
            a, b = self._convert(expr.lhs), self._convert(expr.rhs)
        except UnknownSizeError:
            return None
        if kind == "Equality":
            a, b = _without_common_factor(a, b)
            settled = self.space.compare(a, "==", b) is True or _is_nonempty_test(a, b)
            return None if settled else Guard(a, "==", b, where)
        if kind.endswith("GreaterThan"):
            a, b = b, a
        # a <= b or a < b from here on
        relation: Literal["<", "<="] = "<" if kind.startswith("Strict") else "<="
        excludes_only_small = a.constant is not None and a.constant <= (1 if relation == "<" else 2)
        if excludes_only_small or at_most(self.space, a + 1 if relation == "<" else a, b):
            return None
        return Guard(a, relation, b, where)


_FUNCTIONS = {"Add", "Mul", "Pow", "FloorDiv", "CleanDiv", "Mod", "PythonMod", "ModularIndexing", "Max", "Min"}


def _without_common_factor(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """An equality with the factors that both sides share taken out: sizes of the other axes of a reshape."""
    if not a.terms or not b.terms:
        # everything divides zero
        return a, b
    for monomial, coefficient in (*a.terms, *b.terms):
        for factor in (Expr(((monomial, coefficient),)), *(Expr((((atom,), 1),)) for atom in monomial)):
            left, right = exact_div(a, factor), exact_div(b, factor)
            if left is not None and right is not None and factor.constant != 1:
                return _without_common_factor(left, right)
    return a, b


def _is_nonempty_test(a: Expr, b: Expr) -> bool:
    """max(1, n) == n, and products of such: true for every size but 0."""
    nonempty = {f"max({first}, {second})": rest for rest in _atoms(b) for first, second in ((1, rest), (rest, 1))}
    text = str(a)
    for maxed, plain in nonempty.items():
        text = text.replace(maxed, plain)
    return text == str(b)


def _atoms(expr: Expr) -> list[str]:
    return [str(atom) for monomial, _ in expr.terms for atom in monomial]


@dataclass(frozen=True)
class Admitted:
    """What the exporter made of one declared dim: the sizes it admits and the user's line that decided so."""

    dim: Dim
    fixed: int | None
    low: int
    high: int | None
    where: str | None

    @property
    def fault(self) -> str | None:
        """How the admitted sizes fall short of the declared ones; None when they do not."""
        if self.fixed is not None:
            return f"{self.dim.name} ({self.dim}) was fixed to {self.fixed}"
        # every symbol starts at 2 because the exporter treats 0 and 1 apart
        short = self.low > max(self.dim.min, 2) or (
            self.high is not None and (self.dim.max is None or self.high < self.dim.max)
        )
        admits = f"{self.low if self.low > 2 else self.dim.min}..{'' if self.high is None else self.high}"
        return f"{self.dim.name} is declared {self.dim}, the model admits {admits}" if short else None

    @property
    def declaration(self) -> str:
        """The line to paste."""
        if self.fixed is not None:
            return f"leave {self.dim.name} out of dims (its size is {self.fixed})"
        low = max(self.dim.min, self.low if self.low > 2 else 0)
        ends = [n for n in (self.high, self.dim.max) if n is not None]
        return f'declare tw.Dim("{self.dim.name}", {", ".join(map(str, [low, *ends[:1]]))})'


def admitted(dim: Dim, symbol: Any, shape_env: Any) -> Admitted:
    """What stands for a declared dim in the exported graph: a sympy expression or an int."""
    if not getattr(symbol, "is_Symbol", False):
        value = int(symbol) if isinstance(symbol, int) or symbol.is_Integer else None
        slocs = getattr(shape_env, "replacements_slocs", {})
        lines = [_line(slocs.get(old)) for old, new in shape_env.replacements.items() if new == symbol]
        where = next(filter(None, lines), None)
        return Admitted(dim, value, dim.min, dim.max, where)
    bounds = shape_env.var_to_range.get(symbol)
    locations = getattr(shape_env, "var_to_range_sloc", {}).get(symbol)
    low, high = (_finite(bounds.lower) or 0, _finite(bounds.upper)) if bounds is not None else (0, None)
    side = getattr(locations, "lower" if low > max(dim.min, 2) else "upper", None)
    return Admitted(dim, None, low, high, _line(side))


def require_admitted(found: Iterable[Admitted]) -> None:
    """SpecialisationError listing every declared dim that the exporter fixed or narrowed."""
    short = [entry for entry in found if entry.fault]
    if short:
        problems = [Problem(entry.fault or "", where=entry.where) for entry in short]
        step = ", ".join(entry.declaration for entry in short) + "; or change the line that fixes it"
        raise SpecialisationError(problems, step=step)


def _finite(bound: Any) -> int | None:
    return int(bound) if getattr(bound, "is_Integer", False) else None


def _line(sloc: Any) -> str | None:
    """The user's line of one of torch's symbolic locations."""
    frame: Any = getattr(sloc, "framework_loc", None)
    return innermost([(frame.filename, frame.lineno)]) if hasattr(frame, "filename") else None

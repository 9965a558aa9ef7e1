"""Torch's symbolic sizes as our dim expressions, and what the exporter made of the declared dims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tilewright.errors import Problem, SpecialisationError
from tilewright.frontend.locations import innermost
from tilewright.frontend.proving import at_most
from tilewright.ir.dims import Dim, DimSpace, Expr, ceildiv, floordiv, maximum, minimum, mod
from tilewright.ir.guards import Guard, Relation


class UnknownSizeError(Exception):
    """A size that is no expression of declared dims; the message says why not: "its size is ...", "depends on ..."."""


class Symbols:
    """The dims of one capture: torch's symbols by the dim each stands for.

    own: the size of each dim in the user's example. required: what lowering relies on and torch has no guard for.
    """

    def __init__(self, shape_env: Any, dims: DimSpace, names: Mapping[Any, Expr], own: Mapping[str, int]) -> None:
        self.shape_env = shape_env
        self.space = dims
        self.names: dict[Any, Expr] = dict(names)
        self.own = dict(own)
        self.required: dict[str, Guard] = {}

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
                raise UnknownSizeError(f"depends on the values of tensors ({expr})")
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
                dividend, divisor = self._towards_more(*args)
                return floordiv(dividend, divisor)
            case "Mod" | "PythonMod" if (args[1].constant or 0) >= 0:
                return mod(args[0], self._divisor(args[1]))
            case "ModularIndexing":
                return mod(floordiv(args[0], self._divisor(args[1])), self._divisor(args[2]))
            case "TruncToInt" | "FloorToInt" | "CeilToInt" if (found := self._scaled(expr)) is not None:
                return found
            case "Max":
                return self._extreme(args, largest=True)
            case "Min":
                return self._extreme(args, largest=False)
        raise UnknownSizeError(
            f"is {self._named(expr)}; sizes are computed with +, -, *, //, %, min and max of whole numbers only: write "
            "n * 3 // 10 for round(n * 0.3), -(-n // 2) for math.ceil(n / 2)"
        )

    def _scaled(self, expr: Any) -> Expr | None:
        """int, floor or ceil of a size times a number: exact where the number is a fraction of a power of two.

        Of other numbers the product is rounded, and may reach another integer.
        """
        (inside,) = expr.args
        factors = list(inside.args) if inside.is_Mul else [inside]
        numbers = [f for f in factors if f.is_number]
        sizes = [f for f in factors if f.func.__name__ == "ToFloat"]
        if len(sizes) != 1 or len(numbers) > 1 or len(sizes) + len(numbers) != len(factors):
            return None
        size = self._convert(sizes[0].args[0])
        over, under = float(numbers[0] if numbers else 1.0).as_integer_ratio()
        if not 0 < under <= _EXACT or not 0 <= over <= _EXACT or not at_most(self.space, Expr.of(0), size):
            return None
        return ceildiv(size * over, under) if expr.func.__name__ == "CeilToInt" else floordiv(size * over, under)

    def _named(self, expr: Any) -> str:
        """An expression in the user's dims, as far as they are known."""
        text = str(expr)
        for symbol in sorted(expr.free_symbols, key=lambda s: -len(str(s))):
            try:
                text = text.replace(str(symbol), str(self._convert(symbol)))
            except UnknownSizeError:
                continue
        return text

    def _towards_more(self, dividend: Expr, divisor: Expr) -> tuple[Expr, Expr]:
        """Dividend and divisor with the same quotient, and a divisor of 1 or more."""
        if divisor.constant is not None and divisor.constant < 0:
            return dividend * -1, divisor * -1
        return dividend, self._divisor(divisor)

    def _divisor(self, size: Expr) -> Expr:
        """A size that others are divided by: the model itself fails where it is 0."""
        if not at_most(self.space, Expr.of(1), size):
            self.require(Expr.of(1), "<=", size, None)
        return size

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

    def is_unnamed(self, expr: Any) -> bool:
        """Whether it is a symbol that torch made up and that stands for no expression of dims yet."""
        return bool(expr.is_Symbol) and expr not in self.names and expr not in self.shape_env.replacements

    def require(self, left: Expr, relation: Relation, right: Expr, where: str | None) -> None:
        """A relation that lowering relies on; what bounds do not prove becomes a guard."""
        guard = Guard(left, relation, right, where)
        self.required.setdefault(str(guard), guard)


# products of a size below 2**32 with such a number have no more digits than a double
_EXACT = 1 << 20
_FUNCTIONS = {"Add", "Mul", "Pow", "FloorDiv", "CleanDiv", "Mod", "PythonMod", "ModularIndexing", "Max", "Min"}


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
        short = self.low > self.dim.min or (
            self.high is not None and (self.dim.max is None or self.high < self.dim.max)
        )
        admits = f"{max(self.low, self.dim.min)}..{'' if self.high is None else self.high}"
        return f"{self.dim.name} is declared {self.dim}, the model admits {admits}" if short else None

    @property
    def declaration(self) -> str:
        """The line to paste."""
        if self.fixed is not None:
            return f"leave {self.dim.name} out of dims (its size is {self.fixed})"
        low = max(self.dim.min, self.low)
        ends = [n for n in (self.high, self.dim.max) if n is not None]
        return f'declare tw.Dim("{self.dim.name}", {", ".join(map(str, [low, *ends[:1]]))})'


def admitted(dim: Dim, symbol: Any, shape_env: Any) -> Admitted:
    """What stands for a declared dim in the exported graph: a sympy expression or an int."""
    if not getattr(symbol, "is_Symbol", False):
        value = int(symbol) if isinstance(symbol, int) or symbol.is_Integer else None
        slocs = getattr(shape_env, "replacements_slocs", {})
        lines = [line_of(slocs.get(old)) for old, new in shape_env.replacements.items() if new == symbol]
        where = next(filter(None, lines), None)
        return Admitted(dim, value, dim.min, dim.max, where)
    bounds = shape_env.var_to_range.get(symbol)
    locations = getattr(shape_env, "var_to_range_sloc", {}).get(symbol)
    low, high = (finite(bounds.lower) or 0, finite(bounds.upper)) if bounds is not None else (0, None)
    low = max(low, least_asked(symbol, shape_env))
    side = getattr(locations, "lower" if low > dim.min else "upper", None)
    return Admitted(dim, None, low, high, line_of(side))


def least_asked(symbol: Any, shape_env: Any) -> int:
    """The least size that a trace can have told from others: what was decided below it left no mark.

    A symbol that is positive by nature was never asked about 0. One from a file has lost the range of its trace, which
    starts at 2 by default.
    """
    from_file = symbol not in getattr(shape_env, "var_to_sources", {})
    return 2 if from_file else 1 if symbol.is_positive else 0


def require_admitted(found: Iterable[Admitted]) -> None:
    """SpecialisationError listing every declared dim that the exporter fixed or narrowed."""
    short = [entry for entry in found if entry.fault]
    if short:
        problems = [Problem(entry.fault or "", where=entry.where) for entry in short]
        step = ", ".join(entry.declaration for entry in short) + "; or change the line that fixes it"
        raise SpecialisationError(problems, step=step)


def finite(bound: Any) -> int | None:
    """One of the bounds that torch keeps of a symbol: an integer, or None where there is no end."""
    return int(bound) if getattr(bound, "is_Integer", False) else None


def line_of(sloc: Any) -> str | None:
    """The user's line of one of torch's symbolic locations."""
    frame: Any = getattr(sloc, "framework_loc", None)
    return innermost([(frame.filename, frame.lineno)]) if hasattr(frame, "filename") else None

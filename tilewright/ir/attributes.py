"""The attributes ops carry: typed Python values, bare inside an op's `{...}`, parsed back by their declared class.

`{eps = 1e-05, kind = "rms", sizes = ["tokens", 384]}` needs no `#attr<...>` noise, because the op's declaration already
says which class each property has.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from xdsl.ir import Attribute, Data
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer

from tilewright.errors import IRError, ParseError
from tilewright.ir.dims import Expr, ExprLike, parse_expr

T = TypeVar("T")


class BareData(Data[T]):
    """Shared shape of the attributes below: the full form is the bare form in angle brackets."""

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> T:
        with parser.in_angle_brackets():
            return cls.parse_bare(parser).data

    def print_parameter(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            self.print_bare(printer)

    def print_bare(self, printer: Printer) -> None:
        raise TypeError(f"{type(self).__name__} has no text form")

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> BareData[T]:
        raise TypeError(f"{cls.__name__} has no text form")

    @classmethod
    def of(cls, value: Any) -> BareData[T]:
        """The attribute holding a plain Python value."""
        return value if isinstance(value, cls) else cls(value)


def parse_text(parser: AttrParser) -> str:
    """A quoted string; xDSL hands out what it escaped beyond ASCII as bytes."""
    raw = parser.parse_optional_bytes_literal()
    if raw is None:
        return parser.parse_str_literal()
    try:
        return raw.decode()
    except UnicodeDecodeError:
        parser.raise_error("a string that is UTF-8 expected")


def _whole(value: Any) -> int:
    """An integer as it is: a number is not cut to one, and text is none."""
    try:
        return operator.index(value)
    except TypeError as fault:
        step = "give integers; in a kernel of your own a dim is one as a static parameter: def kernel(b, ..., *, n)"
        raise IRError(f"{value!r} is no integer", step=step) from fault


@irdl_attr_definition
class Int(BareData[int]):
    """An integer."""

    name = "tw.int"

    def print_bare(self, printer: Printer) -> None:
        printer.print_string(str(self.data))

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> Int:
        return cls(parser.parse_integer())

    @classmethod
    def of(cls, value: Any) -> Int:
        return value if isinstance(value, cls) else cls(_whole(value))


@irdl_attr_definition
class Float(BareData[float]):
    """A double; infinities and NaN print as strings because MLIR has no literal for them."""

    name = "tw.float"

    def print_bare(self, printer: Printer) -> None:
        printer.print_string(f'"{self.data!r}"')

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> Float:
        return cls(float(parser.parse_str_literal()))

    @classmethod
    def of(cls, value: Any) -> Float:
        return value if isinstance(value, cls) else cls(float(value))

    def __eq__(self, other: object) -> bool:
        # repr tells -0.0 from 0.0 and makes NaN equal to itself, which a constant must be.
        return isinstance(other, Float) and repr(self.data) == repr(other.data)

    def __hash__(self) -> int:
        return hash(repr(self.data))


@irdl_attr_definition
class Bool(BareData[bool]):
    """true or false."""

    name = "tw.bool"

    def print_bare(self, printer: Printer) -> None:
        printer.print_string("true" if self.data else "false")

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> Bool:
        return cls(parser.parse_boolean())


@irdl_attr_definition
class Str(BareData[str]):
    """A quoted string."""

    name = "tw.str"

    def print_bare(self, printer: Printer) -> None:
        printer.print_string_literal(self.data)

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> Str:
        return cls(parse_text(parser))


@irdl_attr_definition
class Ints(BareData[tuple[int, ...]]):
    """A list of integers: axes, permutations."""

    name = "tw.ints"

    def print_bare(self, printer: Printer) -> None:
        printer.print_string("[" + ", ".join(map(str, self.data)) + "]")

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> Ints:
        values: Sequence[int] = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_integer)
        return cls(tuple(values))

    @classmethod
    def of(cls, value: Any) -> Ints:
        return value if isinstance(value, cls) else cls(tuple(_whole(v) for v in value))


@irdl_attr_definition
class Floats(BareData[tuple[float, ...]]):
    """A list of doubles: the elements of a small constant."""

    name = "tw.floats"

    def print_bare(self, printer: Printer) -> None:
        printer.print_string("[" + ", ".join(f'"{v!r}"' for v in self.data) + "]")

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> Floats:
        values: Sequence[str] = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_str_literal)
        return cls(tuple(float(v) for v in values))

    @classmethod
    def of(cls, value: Any) -> Floats:
        return value if isinstance(value, cls) else cls(tuple(float(v) for v in value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Floats) and list(map(repr, self.data)) == list(map(repr, other.data))

    def __hash__(self) -> int:
        return hash(tuple(map(repr, self.data)))


@irdl_attr_definition
class Numbers(BareData[tuple[int | float, ...]]):
    """The elements of a small constant, exactly: integers (and 0/1 for i1) print bare, doubles as quoted strings.

    An integer never passes through a double, so i64 loses no bits; 1 and 1.0 are different, and so are 0.0 and -0.0.
    """

    name = "tw.numbers"

    def print_bare(self, printer: Printer) -> None:
        printer.print_string("[" + ", ".join(str(v) if isinstance(v, int) else f'"{v!r}"' for v in self.data) + "]")

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> Numbers:
        def number() -> int | float:
            text = parser.parse_optional_str_literal()
            return parser.parse_integer() if text is None else float(text)

        values: Sequence[int | float] = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, number)
        return cls(tuple(values))

    @classmethod
    def of(cls, value: Any) -> Numbers:
        if isinstance(value, cls):
            return value
        return cls(tuple(float(v) if isinstance(v, float) else int(v) for v in value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Numbers) and list(map(repr, self.data)) == list(map(repr, other.data))

    def __hash__(self) -> int:
        return hash(tuple(map(repr, self.data)))


@irdl_attr_definition
class Number(BareData[int | float]):
    """One element of a constant, exactly: an integer prints bare, a double as a quoted string; see Numbers."""

    name = "tw.number"

    def print_bare(self, printer: Printer) -> None:
        printer.print_string(str(self.data) if isinstance(self.data, int) else f'"{self.data!r}"')

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> Number:
        text = parser.parse_optional_str_literal()
        return cls(parser.parse_integer() if text is None else float(text))

    @classmethod
    def of(cls, value: Any) -> Number:
        if isinstance(value, cls):
            return value
        return cls(float(value) if isinstance(value, float) else int(value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and repr(self.data) == repr(other.data)

    def __hash__(self) -> int:
        return hash(repr(self.data))


@irdl_attr_definition
class Strs(BareData[tuple[str, ...]]):
    """A list of strings: argument names, dim names."""

    name = "tw.strs"

    def print_bare(self, printer: Printer) -> None:
        with printer.in_square_brackets():
            printer.print_list(self.data, printer.print_string_literal)

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> Strs:
        values: Sequence[str] = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: parse_text(parser))
        return cls(tuple(values))

    @classmethod
    def of(cls, value: Any) -> Strs:
        return value if isinstance(value, cls) else cls(tuple(value))


def print_expr(printer: Printer, expr: Expr) -> None:
    """A dim: an integer as it is, anything else as a quoted expression."""
    if expr.constant is not None:
        printer.print_string(str(expr.constant))
    else:
        printer.print_string_literal(str(expr))


def parse_dim(parser: AttrParser) -> Expr:
    """Reads what print_expr wrote."""
    start = parser.pos
    text = parser.parse_optional_str_literal()
    if text is None:
        return Expr.of(parser.parse_integer())
    try:
        return parse_expr(text)
    except (ParseError, IRError) as fault:
        parser.raise_error(fault.problems[0].text, start)


@irdl_attr_definition
class Dims(BareData[tuple[Expr, ...]]):
    """A list of dim expressions: a shape, starts of a slice."""

    name = "tw.dims"

    def print_bare(self, printer: Printer) -> None:
        with printer.in_square_brackets():
            printer.print_list(self.data, lambda e: print_expr(printer, e))

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> Dims:
        exprs: Sequence[Expr] = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: parse_dim(parser))
        return cls(tuple(exprs))

    @classmethod
    def of(cls, value: Any) -> Dims:
        if isinstance(value, cls):
            return value
        items: Sequence[ExprLike] = value
        return cls(tuple(Expr.of(v) for v in items))


BARE_ATTRIBUTES: Final[list[type[Attribute]]] = [Int, Float, Bool, Str, Ints, Floats, Number, Numbers, Strs, Dims]

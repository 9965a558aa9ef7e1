"""Where a launch's results live: the typed places that plan-memory assigns and the step table refers to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer

from tilewright.ir.attributes import BareData, parse_text

Kind = Literal["slot", "output", "state"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Place:
    """One piece of memory: scratch slot `number`, the function's result `number`, or the state `name`.

    Its text is `slot 3`, `output 0` or `state "cache"`.
    """

    kind: Kind
    number: int = 0
    name: str = ""

    @staticmethod
    def slot(number: int) -> Place:
        return Place("slot", number)

    @staticmethod
    def output(number: int) -> Place:
        return Place("output", number)

    @staticmethod
    def state(name: str) -> Place:
        return Place("state", name=name)

    def __str__(self) -> str:
        return f"state {self.name!r}" if self.kind == "state" else f"{self.kind} {self.number}"


@irdl_attr_definition
class Places(BareData[tuple[Place, ...]]):
    """A list of places, one a result: `[slot 0, state "cache"]`."""

    name = "tw.places"

    def print_bare(self, printer: Printer) -> None:
        def one(place: Place) -> None:
            printer.print_string(f"{place.kind} ")
            if place.kind == "state":
                printer.print_string_literal(place.name)
            else:
                printer.print_string(str(place.number))

        with printer.in_square_brackets():
            printer.print_list(self.data, one)

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> Places:
        def one() -> Place:
            word = parser.parse_keyword_in(KINDS)
            kind = next(k for k in KINDS if k == word)
            if kind == "state":
                return Place.state(parse_text(parser))
            return Place(kind, parser.parse_integer(allow_boolean=False, allow_negative=False))

        values: Sequence[Place] = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, one)
        return cls(tuple(values))

    @classmethod
    def of(cls, value: Any) -> Places:
        return value if isinstance(value, cls) else cls(tuple(value))

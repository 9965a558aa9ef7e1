"""The schedule of a group: the choices that its kernel is made by, named and typed by the group's kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer

from tilewright.ir.attributes import BareData, parse_text

ORDERS: Final = ("query-outer", "split-kv", "key-outer")

# what may be chosen for a kind of group: the least value of a number, or the names of an enumeration
CHOICES: Final[Mapping[str, Mapping[str, int | tuple[str, ...]]]] = {
    # order: the outer loop over tiles. block_q, block_k: rows of a tile of queries and of keys. heads: query heads of
    # one key head that share a tile. part: keys of the parts that they are cut into. stages: tiles of keys in flight.
    # pairs: 1 where a matrix unit's pairs of keys and of values are made once, before.
    "attention": {"order": ORDERS, "block_q": 1, "block_k": 1, "heads": 1, "part": 1, "stages": 1, "pairs": 0},
}


@irdl_attr_definition
class Schedule(BareData[tuple[tuple[str, int | str], ...]]):
    """Choices by name, sorted: `{block_q = 128, order = "query-outer"}`. Empty: the lowering's own."""

    name = "tw.schedule"

    def print_bare(self, printer: Printer) -> None:
        printer.print_string("{")

        def one(item: tuple[str, int | str]) -> None:
            printer.print_string(f"{item[0]} = ")
            if isinstance(item[1], str):
                printer.print_string_literal(item[1])
            else:
                printer.print_string(str(item[1]))

        printer.print_list(self.data, one)
        printer.print_string("}")

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> Schedule:
        def one() -> tuple[str, int | str]:
            name = parser.parse_identifier()
            parser.parse_punctuation("=")
            number = parser.parse_optional_integer()
            return name, parse_text(parser) if number is None else number

        start = parser.pos
        items = parser.parse_comma_separated_list(parser.Delimiter.BRACES, one)
        if len(dict(items)) < len(items):
            parser.raise_error("a schedule names each choice once", start)
        return cls.of(dict(items))

    @classmethod
    def of(cls, value: Any) -> Schedule:
        return value if isinstance(value, cls) else cls(tuple(sorted(dict(value).items())))

    def to_dict(self) -> dict[str, int | str]:
        return dict(self.data)

    def number(self, name: str, default: int) -> int:
        """A number that was chosen, or the default where none was."""
        found = self.to_dict().get(name, default)
        return found if isinstance(found, int) else default

    def faults(self, kind: str) -> Iterator[str]:
        """What is wrong with the schedule for a group of a kind."""
        known = CHOICES.get(kind, {})
        for name, value in self.data:
            if name not in known:
                yield f"a group of kind {kind!r} has no choice {name!r}; it has {', '.join(known) or 'none'}"
                continue
            allowed = known[name]
            if isinstance(allowed, tuple) and value not in allowed:
                yield f"{name} = {value!r} is not one of {', '.join(allowed)}"
            elif isinstance(allowed, int) and (not isinstance(value, int) or value < allowed):
                yield f"{name} = {value!r} is not a number of {allowed} or more"

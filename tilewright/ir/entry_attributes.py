"""What a program asks of a call before it runs, as attributes of its module: guards on sizes, and dims that are read.

    builtin.module attributes {
      tw.dims = #tw.dim_space<["tokens: 1..256", "past: 0.. read"]>,
      tw.guards = #tw.guards<["mod(tokens, 4) == 0" at "net.py:12"]>,
      tw.reads = #tw.reads<["past" of 2]>
    } { ... }

They stand in the module and nowhere beside it, so its text is the whole of what was captured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, get_args

from xdsl.dialects.builtin import ModuleOp
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer

from tilewright.ir.attributes import BareData, parse_text
from tilewright.ir.dims import parse_expr
from tilewright.ir.guards import Guard, Relation

GUARDS: Final = "tw.guards"
READS: Final = "tw.reads"

_RELATION: Final = re.compile(rf" ({'|'.join(sorted(map(re.escape, get_args(Relation)), key=len, reverse=True))}) ")


@dataclass(frozen=True, slots=True)
class Read:
    """A dim whose value an argument of @main tells: its only element, an integer. argument: by number."""

    dim: str
    argument: int


@irdl_attr_definition
class GuardsAttr(BareData[tuple[Guard, ...]]):
    """Relations that hold in every call, each with the user's line that relies on it: `["b == a" at "net.py:3"]`."""

    name = "tw.guards"

    def print_bare(self, printer: Printer) -> None:
        def one(guard: Guard) -> None:
            printer.print_string_literal(str(guard))
            if guard.where is not None:
                printer.print_string(" at ")
                printer.print_string_literal(guard.where)

        with printer.in_square_brackets():
            printer.print_list(self.data, one)

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> GuardsAttr:
        guards = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: _parse_guard(parser))
        return cls(tuple(guards))

    @classmethod
    def of(cls, value: Any) -> GuardsAttr:
        return value if isinstance(value, cls) else cls(tuple(value))


@irdl_attr_definition
class ReadsAttr(BareData[tuple[Read, ...]]):
    """Dims and the arguments of @main that they are read from: `["past" of 2]`."""

    name = "tw.reads"

    def print_bare(self, printer: Printer) -> None:
        def one(read: Read) -> None:
            printer.print_string_literal(read.dim)
            printer.print_string(f" of {read.argument}")

        with printer.in_square_brackets():
            printer.print_list(self.data, one)

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> ReadsAttr:
        def one() -> Read:
            dim = parse_text(parser)
            parser.parse_keyword("of")
            return Read(dim, parser.parse_integer(allow_boolean=False, allow_negative=False))

        return cls(tuple(parser.parse_comma_separated_list(parser.Delimiter.SQUARE, one)))

    @classmethod
    def of(cls, value: Any) -> ReadsAttr:
        return value if isinstance(value, cls) else cls(tuple(value))


def _parse_guard(parser: AttrParser) -> Guard:
    text = parse_text(parser)
    parts = _RELATION.split(text)
    if len(parts) != 3:
        parser.raise_error(f'expected a relation like "mod(tokens, 4) == 0", got "{text}"')
    where = parse_text(parser) if parser.parse_optional_keyword("at") else None
    left, relation, right = parts
    known: Any = relation
    return Guard(parse_expr(left), known, parse_expr(right), where)


def guards(module: ModuleOp) -> tuple[Guard, ...]:
    """What every call of a module's program is held to."""
    found = module.attributes.get(GUARDS)
    return found.data if isinstance(found, GuardsAttr) else ()


def reads(module: ModuleOp) -> tuple[Read, ...]:
    """The dims of a module that are read at entry."""
    found = module.attributes.get(READS)
    return found.data if isinstance(found, ReadsAttr) else ()


def require(module: ModuleOp, held: Iterable[Guard]) -> None:
    """Adds guards to a module, each once; without any, the module has no such attribute."""
    every = tuple(dict.fromkeys((*guards(module), *held)))
    if every:
        module.attributes[GUARDS] = GuardsAttr(every)


def set_reads(module: ModuleOp, found: Iterable[Read]) -> None:
    """Says which dims of a module are read from which arguments."""
    every = tuple(found)
    if every:
        module.attributes[READS] = ReadsAttr(every)

"""Modules: made, printed, parsed, and asked for what belongs to the whole program: functions, dims, weights, states.

A module is xDSL's `builtin.module`. Its functions are `graph.func`, its kernels `tile.kernel`. The named dims of the
program are the module attribute `tw.dims`:

    builtin.module attributes {tw.dims = #tw.dim_space<["batch: 1..64", "tokens: 1..256"]>} { ... }

What a call is held to, and which dims it tells by a number, stands beside them (`ir/entry_attributes.py`).
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, get_args

from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.ir import Dialect, Operation
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser, Parser
from xdsl.printer import Printer
from xdsl.utils import exceptions as xdsl_exceptions

from tilewright.errors import IRError, ParseError, Problem, TilewrightError
from tilewright.ir.attributes import BARE_ATTRIBUTES, BareData, Str
from tilewright.ir.dims import Dim, DimKind, DimSpace
from tilewright.ir.entry_attributes import GuardsAttr, ReadsAttr
from tilewright.ir.graph.dialect import GRAPH
from tilewright.ir.graph.structure import FuncOp, StateReadOp, StateWriteOp, WeightOp
from tilewright.ir.operation import LOC, TwOperation
from tilewright.ir.printing import PlainPrinter
from tilewright.ir.schedules import Schedule
from tilewright.ir.tile.residence import Places
from tilewright.ir.types import TensorType

DIMS: Final = "tw.dims"

_UNREGISTERED: Final = re.compile(r"Operation (?P<op>\S+) is not registered")
_DIM: Final = re.compile(r"(?P<name>[A-Za-z_]\w*): (?P<low>\d+)\.\.(?P<high>\d*)(?: (?P<kind>\w+))?")


_COMMENTS: Final = re.compile(r"//[^\n]*")
_NO_OPERATION: Final = "Could not parse entire input!"  # xDSL's own words
# Comments, string literals, and a quote that opens no literal.
_QUOTES: Final = re.compile(r'//[^\n]*|"(?:[^"\\\n\v\f]|\\(?:["nt\\]|[0-9A-Fa-f]{2}))*"|(?P<open>")')


@irdl_attr_definition
class DimSpaceAttr(BareData[tuple[Dim, ...]]):
    """The named dims of a program, in declared order: `["batch: 1..64", "experts_hit: 0..128 runtime"]`."""

    name = "tw.dim_space"

    def print_bare(self, printer: Printer) -> None:
        with printer.in_square_brackets():
            printer.print_list(self.data, lambda dim: printer.print_string_literal(_dim_text(dim)))

    @classmethod
    def parse_bare(cls, parser: AttrParser) -> DimSpaceAttr:
        dims = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: _parse_dim(parser))
        return cls(tuple(dims))

    @classmethod
    def of(cls, value: Any) -> DimSpaceAttr:
        return value if isinstance(value, cls) else cls(tuple(value))


def _dim_text(dim: Dim) -> str:
    return str(dim) if dim.kind == "declared" else f"{dim} {dim.kind}"


def _parse_dim(parser: AttrParser) -> Dim:
    text = parser.parse_str_literal()
    found = _DIM.fullmatch(text)
    if found is None or (found["kind"] or "declared") not in get_args(DimKind):
        parser.raise_error(f'expected a dim like "tokens: 1..256" or "hits: 0..64 runtime", got "{text}"')
    high = int(found["high"]) if found["high"] else None
    kind: Any = found["kind"] or "declared"
    return Dim(found["name"], int(found["low"]), high, kind)


TW: Final = Dialect("tw", [], [*BARE_ATTRIBUTES, Places, DimSpaceAttr, GuardsAttr, ReadsAttr, Schedule])


def dialects() -> list[Dialect]:
    """Every dialect of Tilewright."""
    # imported here: whoever only builds graphs does not pay for the other dialects
    from tilewright.ir.queue.dialect import QUEUE
    from tilewright.ir.tile.dialect import TILE

    return [TW, GRAPH, TILE, QUEUE]


def new_context() -> Context:
    """An xDSL context that knows every op, type and attribute of Tilewright."""
    context = Context()
    for dialect in [Builtin, *dialects()]:
        context.load_dialect(dialect)
    return context


def new_module(dims: Iterable[Dim] = ()) -> ModuleOp:
    """An empty module with named dims."""
    module = ModuleOp([])
    set_dim_space(module, DimSpace(dims))
    return module


def dim_space(module: ModuleOp) -> DimSpace:
    """The named dims of a module; a space without dims where it declares none."""
    found = module.attributes.get(DIMS)
    return DimSpace(found.data if isinstance(found, DimSpaceAttr) else ())


def set_dim_space(module: ModuleOp, space: DimSpace) -> None:
    """Declares the named dims of a module."""
    module.attributes[DIMS] = DimSpaceAttr(tuple(space.dims.values()))


def print_module(module: ModuleOp) -> str:
    """The module's text; `parse_module` reads it back as the same module."""
    out = io.StringIO()
    PlainPrinter(out).print_op(module)
    return f"{out.getvalue()}\n"


def parse_module(text: str, name: str = "<text>") -> ModuleOp:
    """The module a text describes, verified.

    Raises ParseError with line and column where the text is not IR, IRError listing every broken rule where it is.
    """
    # the verifier asks modules the questions defined below, so it imports this file
    from tilewright.ir.verifier import verify

    _check_strings(text, name)
    parser: _PlacedParser | None = None
    try:
        # the constructor reads the first token already
        parser = _PlacedParser(new_context(), text, name)
        module = parser.parse_module()
    except xdsl_exceptions.ParseError as fault:
        place = fault.span.get_location()
        unknown = _UNREGISTERED.fullmatch(fault.msg)
        if unknown is not None:
            # the parser stands behind the name, which may be the last word of the line before
            at = text.rfind(unknown["op"], 0, fault.span.start)
            raise _parse_error(_no_op(unknown["op"]), name, *_place(text, max(at, 0))) from None
        if fault.msg == _NO_OPERATION:
            raise _no_operation(text, name, fault.span.start) from None
        raise _parse_error(_ends_early(text, fault.span.start) or fault.msg, name, place.line, place.col) from None
    except (TilewrightError, xdsl_exceptions.VerifyException, ValueError, RecursionError) as fault:
        # raised by a type, an attribute or an op's constructor while the parser stood behind its text
        reason = fault.problems[0].text if isinstance(fault, TilewrightError) else str(fault)
        if isinstance(fault, RecursionError):
            reason = "regions are nested too deeply"
        raise _parse_error(reason, name, *_place(text, parser.pos if parser is not None else 0)) from fault
    try:
        verify(module)
    except IRError:
        raise _malformed(module, parser.starts, text, name) from None
    return module


class _PlacedParser(Parser):
    """Knows where in the text every op begins."""

    def __init__(self, context: Context, text: str, name: str) -> None:
        # before the constructor, which reads the first token
        self.starts: dict[Operation, int] = {}
        super().__init__(context, text, name)

    def parse_operation(self) -> Operation:
        begin = self.pos
        found = super().parse_operation()
        self.starts[found] = begin
        return found


def _malformed(module: ModuleOp, starts: Mapping[Operation, int], text: str, name: str) -> IRError:
    """What breaks a rule in a text, by its places there: an op's own `loc` names a model's line, which nobody wrote."""
    from tilewright.ir.verifier import verify

    for op, start in starts.items():
        if isinstance(op, TwOperation):
            op.attributes[LOC] = Str(":".join(map(str, (name, *_place(text, start)))))
    try:
        verify(module)
    except IRError as fault:
        ops = sorted({problem.op for problem in fault.problems if problem.op in _ops_by_name()})
        told = f"; tilewright ops {ops[0]} says what it takes" if len(ops) == 1 else ""
        return IRError(
            [replace(problem, where=problem.where or name) for problem in fault.problems],
            step=f"correct the text there{told}",
        )
    raise AssertionError("a module that broke rules keeps them where its places are its text's")


def _ends_early(text: str, at: int) -> str | None:
    """What a fault at a text's end says, whatever was expected there."""
    if text[at:].strip():
        return None
    plain = _QUOTES.sub("", text)
    missing = plain.count("{") - plain.count("}")
    return "the text ends too early" + (f": {missing} '}}' missing" if missing > 0 else "")


def _no_operation(text: str, name: str, at: int) -> ParseError:
    if not _COMMENTS.sub("", text).strip():
        return ParseError(
            Problem("there is no IR: the text is empty", where=name),
            step="give text as print_module() or compiled.ir() writes it",
        )
    return _parse_error("no operation begins here", name, *_place(text, at))


def _parse_error(reason: str, name: str, line: int, column: int) -> ParseError:
    return ParseError(
        Problem(reason.strip(), where=f"{name}:{line}:{column}"), step=f"look at line {line}, column {column} of {name}"
    )


def _ops_by_name() -> list[str]:
    return [op.name for known in dialects() for op in known.operations]


def _no_op(name: str) -> str:
    dialect, _, short = name.rpartition(".")
    found = [op for op in _ops_by_name() if dialect in ("", op.partition(".")[0])]
    known = {full.partition(".")[2]: full for full in found}
    near = difflib.get_close_matches(short, known, n=1)
    return f"there is no op {name}" + (f", did you mean {known[near[0]]}?" if near else "; `tilewright ops` lists them")


def _check_strings(text: str, name: str) -> None:
    """Refuses a string that does not end on its line: xDSL's lexer takes exponential time to find that out."""
    for found in _QUOTES.finditer(text):
        if found["open"]:
            place = _place(text, found.start())
            raise _parse_error("a string has no closing quote, or an escape that is none", name, *place)


def _place(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1


def functions(module: ModuleOp) -> dict[str, FuncOp]:
    """The functions of a module by name, in order."""
    return {op.symbol: op for op in module.body.block.ops if isinstance(op, FuncOp)}


def function(module: ModuleOp, name: str) -> FuncOp:
    """A function by name; IRError lists those there are."""
    found = functions(module)
    if name not in found:
        raise IRError(f"the module has no function @{name}", step=f"use one of: {', '.join(found) or 'it has none'}")
    return found[name]


def weights(module: ModuleOp) -> dict[str, TensorType]:
    """The weights a module names, with their types, in order of first use."""
    return dict(_named(module, WeightOp))


def states(module: ModuleOp) -> dict[str, TensorType]:
    """The states a module reads or writes, with their types, in order of first use."""
    return dict(_named(module, StateReadOp, StateWriteOp))


def _named(module: ModuleOp, *kinds: type[WeightOp | StateReadOp | StateWriteOp]) -> Iterator[tuple[str, TensorType]]:
    for op in module.walk():
        if isinstance(op, kinds):
            value = op.value if isinstance(op, StateWriteOp) else op.out
            if isinstance(value.type, TensorType):
                yield op.label.data, value.type

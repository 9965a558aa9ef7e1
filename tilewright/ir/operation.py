"""How an op is declared: once, in one class, with its constraints, shape rule, reference semantics, cost and doc line.

A subclass states operands, results and properties with xDSL's declarations; this base derives from them the text form
(printer and parser), construction from plain Python values (`make`) and the verifier (the declared result types must be
the ones `infer` gives).

Text form, the same for every op:

    %y = graph.norm(%x, weight=%w) {eps = "1e-06", kind = "rms"} : !graph.tensor<["tokens", 384], f32> loc("net.py:12")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self, cast

from xdsl.ir import Attribute, Operation, Region, SSAValue
from xdsl.irdl import IRDLOperation, OperandDef, OptionalDef, VariadicDef
from xdsl.irdl.constraints import BaseAttr
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from tilewright.errors import IRError, Problem
from tilewright.ir.attributes import BareData, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dtypes import F32
from tilewright.ir.types import TensorType

LOC = "loc"  # the user's source line, "model.py:12"
PATH = "path"  # the module path it came from, "encoder.layer.0.attention"


class TwOperation(IRDLOperation):
    """The base of every op in the graph, tile and queue dialects."""

    # ops whose result types follow from operands and properties alone omit nothing; the others state them in `make`
    INFERS: ClassVar[bool] = True

    def infer(self) -> Sequence[Attribute]:
        """The result types that operands and properties imply. Raises IRError naming the operand that breaks a rule."""
        raise IRError(f"{self.name} does not infer its result types", step="pass result_types to make()")

    def cost(self) -> Cost:
        """Work and compulsory traffic; nothing for ops that only name or rearrange."""
        return Cost()

    @classmethod
    def doc(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    @property
    def loc(self) -> str | None:
        """The user's source line, where known."""
        attr = self.attributes.get(LOC)
        return attr.data if isinstance(attr, Str) else None

    @property
    def path(self) -> str | None:
        """The path of the torch module the op came from, where known."""
        attr = self.attributes.get(PATH)
        return attr.data if isinstance(attr, Str) else None

    @classmethod
    def make(
        cls,
        *operands: SSAValue | Operation | Sequence[SSAValue] | None,
        result_types: Sequence[Attribute | Sequence[Attribute]] | None = None,
        regions: Sequence[Region] = (),
        like: Operation | None = None,
        **properties: Any,
    ) -> Self:
        """Builds the op from operands in declared order (None for an absent optional) and plain property values.

        A variadic operand takes a list; an op whose only operand is variadic takes its values one by one, too.
        like: an op whose source location the new one takes over. Result types are inferred where the op can.
        """
        definition = cls.get_irdl_definition()
        given = {name: _as_attribute(cls, name, value) for name, value in properties.items() if value is not None}
        if _takes_one_list(definition.operands) and not (len(operands) == 1 and isinstance(operands[0], (list, tuple))):
            operands = (operands,)  # type: ignore[assignment]
        slots: list[Any] = [*operands, *([None] * (len(definition.operands) - len(operands)))]
        for i, (name, operand_def) in enumerate(definition.operands):
            if isinstance(operand_def, OptionalDef):
                slots[i] = [] if slots[i] is None else [_as_value(cls, name, slots[i])]
            elif isinstance(operand_def, VariadicDef):
                slots[i] = [_as_value(cls, name, v) for v in slots[i] or []]
            else:
                slots[i] = _as_value(cls, name, slots[i])
        # known before infer() runs, so that its complaint can name the user's line
        location = {} if like is None else {k: like.attributes[k] for k in (LOC, PATH) if k in like.attributes}
        if result_types is None and not definition.results:
            result_types = []
        if result_types is None:
            return cls._make_inferred(slots, given, location, regions)
        nested = any(isinstance(t, (list, tuple)) for t in result_types)
        types: list[Any] = list(result_types) if nested else _grouped(cls, cast("Sequence[Attribute]", result_types))
        return cls(operands=slots, result_types=types, properties=given, attributes=location, regions=list(regions))

    @classmethod
    def _make_inferred(
        cls,
        slots: Sequence[Any],
        properties: dict[str, Attribute],
        location: dict[str, Attribute],
        regions: Sequence[Region],
    ) -> Self:
        """Builds the op with placeholder results, asks it what they are, and gives them those types."""
        placeholder = TensorType.of((), F32)
        results = cls.get_irdl_definition().results
        types: list[Any] = [[] if isinstance(d, VariadicDef) else placeholder for _, d in results]
        op = cls(operands=slots, result_types=types, properties=properties, attributes=location, regions=list(regions))
        try:
            inferred = list(op.infer())
        except IRError:
            # a half-made op must not stay among the users of its operands
            op.drop_all_references()
            raise
        if len(inferred) == len(op.results):
            for result, result_type in zip(op.results, inferred, strict=True):
                result._type = result_type
            return op
        kept = [op.detach_region(0) for _ in list(op.regions)]
        op.drop_all_references()
        return cls(
            operands=slots,
            result_types=_grouped(cls, inferred),
            properties=properties,
            attributes=location,
            regions=kept,
        )

    def take_location(self, other: Operation) -> Self:
        """Copies the source line and module path of another op."""
        for key in (LOC, PATH):
            if key in other.attributes:
                self.attributes[key] = other.attributes[key]
        return self

    def verify_(self) -> None:
        if not self.INFERS:
            return
        try:
            expected = list(self.infer())
        except IRError as fault:
            raise VerifyException(str(fault)) from fault
        actual = [r.type for r in self.results]
        if expected != actual:
            raise VerifyException(
                f"{self.name}: operands imply ({', '.join(map(str, expected))}), "
                f"declared ({', '.join(map(str, actual))})"
            )

    def malformed(self, reason: str, step: str = "print the module and look at this op") -> IRError:
        """The error for operands or properties that break a rule of this op. step: what mends it, where it is known."""
        return IRError(Problem(reason, op=self.name, where=self.loc), step=step)

    def print(self, printer: Printer) -> None:
        definition = self.get_irdl_definition()
        parts: list[tuple[str | None, Sequence[SSAValue] | SSAValue]] = []
        for name, operand_def in definition.operands:
            value = getattr(self, name)
            if isinstance(operand_def, OptionalDef):
                if value is not None:
                    parts.append((name, value))
            elif isinstance(operand_def, VariadicDef):
                parts.append((name, value))
            else:
                parts.append((None, value))
        printer.print_string("(")

        def one(part: tuple[str | None, Sequence[SSAValue] | SSAValue]) -> None:
            name, value = part
            if name is not None:
                printer.print_string(f"{name}=")
            if isinstance(value, SSAValue):
                printer.print_ssa_value(value)
            else:
                with printer.in_square_brackets():
                    printer.print_list(value, printer.print_ssa_value)

        printer.print_list(parts, one)
        printer.print_string(")")
        shown = self._shown_properties()
        # the braces of a region would read as properties if these were left out before it
        if shown or self.regions:
            printer.print_string(" {")

            def prop(item: tuple[str, Attribute]) -> None:
                printer.print_string(f"{item[0]} = ")
                if isinstance(item[1], BareData):
                    item[1].print_bare(printer)
                else:
                    printer.print_attribute(item[1])

            printer.print_list(shown, prop)
            printer.print_string("}")
        for region in self.regions:
            printer.print_string(" ")
            printer.print_region(region)
        if self.results:
            printer.print_string(" : ")
            printer.print_list([r.type for r in self.results], printer.print_attribute)
        for key in (LOC, PATH):
            attr = self.attributes.get(key)
            if isinstance(attr, Str):
                printer.print_string(f" {key}(")
                attr.print_bare(printer)
                printer.print_string(")")

    def _shown_properties(self) -> list[tuple[str, Attribute]]:
        """What the text form states: every property that differs from its default, by name."""
        declared = self.get_irdl_definition().properties
        return sorted(
            (name, value)
            for name, value in self.properties.items()
            if not name.endswith("SegmentSizes") and value != declared[name].default_value
        )

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        start = parser.pos
        definition = cls.get_irdl_definition()
        kinds = dict(definition.operands)
        named: dict[str, Any] = {}
        positional: list[SSAValue] = []

        def operand() -> None:
            for name, kind in kinds.items():
                if isinstance(kind, VariadicDef) and parser.parse_optional_keyword(name):
                    parser.parse_punctuation("=")
                    if isinstance(kind, OptionalDef):
                        named[name] = [_parse_value(parser)]
                    else:
                        named[name] = parser.parse_comma_separated_list(
                            parser.Delimiter.SQUARE, lambda: _parse_value(parser)
                        )
                    return
            positional.append(_parse_value(parser))

        parser.parse_comma_separated_list(parser.Delimiter.PAREN, operand)
        single = [name for name, kind in definition.operands if not isinstance(kind, VariadicDef)]
        if len(single) != len(positional):
            forms = [_operand_form(name, kind) for name, kind in definition.operands]
            parser.raise_error(
                f"{cls.name} is written {cls.name}({', '.join(forms)}); got {len(positional)} operands without a name",
                start,
            )
        named.update(zip(single, positional, strict=True))
        operands = [named.get(name, []) for name, _ in definition.operands]

        properties: dict[str, Attribute] = {}
        if parser.parse_optional_punctuation("{") and not parser.parse_optional_punctuation("}"):
            while True:
                name = parser.parse_identifier()
                if name not in definition.properties:
                    known = ", ".join(definition.properties)
                    parser.raise_error(f"{cls.name} has no property {name!r}; it has {known}")
                parser.parse_punctuation("=")
                attr_class = _property_class(cls, name)
                properties[name] = parser.parse_attribute() if attr_class is None else attr_class.parse_bare(parser)
                if not parser.parse_optional_punctuation(","):
                    break
            parser.parse_punctuation("}")
        missing = [
            name
            for name, kind in definition.properties.items()
            if name not in properties
            and kind.default_value is None
            and not isinstance(kind, OptionalDef)
            and not name.endswith("SegmentSizes")
        ]
        if missing:
            parser.raise_error(f"{cls.name} needs the properties {', '.join(missing)}", start)
        regions = [parser.parse_region() for _ in definition.regions]
        types: list[Attribute] = []
        if parser.parse_optional_punctuation(":"):
            types.append(parser.parse_type())
            while parser.parse_optional_punctuation(","):
                types.append(parser.parse_type())
        attributes: dict[str, Attribute] = {}
        for key in (LOC, PATH):
            if parser.parse_optional_keyword(key):
                with parser.in_parens():
                    attributes[key] = Str.parse_bare(parser)
        least = sum(not isinstance(kind, VariadicDef) for _, kind in definition.results)
        most = None if any(_is_list(kind) for _, kind in definition.results) else len(definition.results)
        if len(types) < least or (most is not None and len(types) > most):
            parser.raise_error(f"{cls.name} has {_count(least, most)}, got {len(types)} result types", start)
        return cls(
            operands=operands,
            result_types=_grouped(cls, types),
            properties=properties,
            attributes=attributes,
            regions=regions,
        )


def _parse_value(parser: Parser) -> SSAValue:
    """A value defined earlier; its type stands where it was defined, so the text of a use has none."""
    reference = parser.parse_unresolved_operand("Expected a value like %0.")
    values = parser.ssa_values.get(reference.operand_name, ())
    if reference.index >= len(values):
        parser.raise_error(f"%{reference.operand_name} is not defined before its use", reference.span)
    return values[reference.index]


def _is_list(kind: object) -> bool:
    """True for variadic operands and results, not for optional ones (which xDSL counts as variadic)."""
    return isinstance(kind, VariadicDef) and not isinstance(kind, OptionalDef)


def _takes_one_list(operands: Sequence[tuple[str, OperandDef]]) -> bool:
    return len(operands) == 1 and _is_list(operands[0][1])


def _count(least: int, most: int | None) -> str:
    if most is None:
        return f"{least} or more results"
    return f"{least} results" if least == most else f"{least} to {most} results"


def _grouped(cls: type[TwOperation], types: Sequence[Attribute]) -> list[Any]:
    """Result types in the nesting xDSL wants: single results plain, variadic and optional ones in lists."""
    defs = cls.get_irdl_definition().results
    variadic = [i for i, (_, d) in enumerate(defs) if isinstance(d, VariadicDef)]
    spare = len(types) - (len(defs) - len(variadic))
    grouped: list[Any] = []
    position = 0
    for i, (_, result_def) in enumerate(defs):
        if isinstance(result_def, VariadicDef):
            # at most one variadic group is ambiguous-free; optional results fill in order
            take = min(spare, 1) if isinstance(result_def, OptionalDef) else spare if i == variadic[-1] else 0
            grouped.append(list(types[position : position + take]))
            position += take
            spare -= take
        else:
            grouped.append(types[position])
            position += 1
    return grouped


def _property_class(cls: type[TwOperation], name: str) -> Any:
    """The attribute class a property was declared with; None where the declaration admits several."""
    constraint = cls.get_irdl_definition().properties[name].constr
    return constraint.attr if isinstance(constraint, BaseAttr) else None


def _as_value(op: type[TwOperation], name: str, given: Any) -> SSAValue:
    if isinstance(given, (SSAValue, Operation)):
        return SSAValue.get(given)
    raise IRError(f"{op.name}: {name} is {given!r}, not a value", step="pass what another op gives")


def _as_attribute(cls: type[TwOperation], name: str, value: Any) -> Attribute:
    if isinstance(value, Attribute):
        return value
    properties = cls.get_irdl_definition().properties
    if name not in properties:
        known = [p for p in properties if not p.endswith("SegmentSizes")]
        raise IRError(f"{cls.name} has no property {name!r}", step=f"use one of: {', '.join(known) or 'it has none'}")
    try:
        attribute: Attribute = _property_class(cls, name).of(value)
    except IRError as fault:
        raise IRError([f"{cls.name}: {name}: {p.text}" for p in fault.problems], step=fault.step) from fault
    return attribute


def _operand_form(name: str, kind: OperandDef) -> str:
    """How text states an operand: `%x`, `[bias=%v]` where it may be absent, `args=[%v, ...]` for any number."""
    if isinstance(kind, OptionalDef):
        return f"[{name}=%v]"
    return f"{name}=[%v, ...]" if isinstance(kind, VariadicDef) else f"%{name}"

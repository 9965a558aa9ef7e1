"""Every op of every dialect as data, read from the declarations: what `tilewright ops` prints."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO

from xdsl.irdl import OptionalDef, VariadicDef
from xdsl.irdl.constraints import BaseAttr
from xdsl.printer import Printer

from tilewright.ir.attributes import BareData
from tilewright.ir.module import dialects
from tilewright.ir.operation import TwOperation


@dataclass(frozen=True, slots=True)
class PropertyEntry:
    """A property of an op: its name, what it holds ("Float", "Dims"), and its default as text (None: must be given)."""

    name: str
    kind: str
    default: str | None

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}" + (f" = {self.default}" if self.default is not None else "")


@dataclass(frozen=True, slots=True)
class OpEntry:
    """An op: operands and results by name, `[x]` where optional and `x...` where there may be any number."""

    name: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    properties: tuple[PropertyEntry, ...]
    regions: int
    doc: str

    @property
    def dialect(self) -> str:
        return self.name.split(".", 1)[0]

    @property
    def signature(self) -> str:
        """One line: `graph.norm(x, [weight], [bias]) {kind: Str, eps: Float} -> out`."""
        text = f"{self.name}({', '.join(self.operands)})"
        if self.properties:
            text += f" {{{', '.join(map(str, self.properties))}}}"
        if self.regions:
            text += " region"
        return text + (f" -> {', '.join(self.results)}" if self.results else "")


def catalogue(dialect: str | None = None) -> list[OpEntry]:
    """The ops of one dialect or of all, in the order they are declared."""
    found = []
    for known in dialects():
        for op in known.operations:
            if issubclass(op, TwOperation) and dialect in (None, known.name):
                found.append(_entry(op))
    return found


def _entry(op: type[TwOperation]) -> OpEntry:
    definition = op.get_irdl_definition()
    properties = []
    for name, declared in definition.properties.items():
        if name.endswith("SegmentSizes"):
            continue
        constraint = declared.constr
        kind = constraint.attr.__name__ if isinstance(constraint, BaseAttr) else "Attribute"
        default = declared.default_value
        text = _bare(default) if isinstance(default, BareData) else None if default is None else str(default)
        properties.append(PropertyEntry(name, kind, text))
    return OpEntry(
        name=op.name,
        operands=tuple(_shown(name, kind) for name, kind in definition.operands),
        results=tuple(_shown(name, kind) for name, kind in definition.results),
        properties=tuple(properties),
        regions=len(definition.regions),
        doc=op.doc(),
    )


def _shown(name: str, kind: object) -> str:
    if isinstance(kind, OptionalDef):
        return f"[{name}]"
    return f"{name}..." if isinstance(kind, VariadicDef) else name


def _bare(attribute: BareData[object]) -> str:
    out = StringIO()
    attribute.print_bare(Printer(out))
    return out.getvalue()

"""What a kernel moves and computes, known without running it.

`kernel_traffic(kernel)` gives each op's bytes and FLOPs as formulas over the kernel's dims where its iteration space is
rectangular, and exact numbers at given dims always; both equal the tile interpreter's counters. Counts that depend on
integers in memory (lengths, offsets) are bounds as formulas, and exact when the kernel's buffers are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from tilewright.ir.dims import Expr, minimum
from tilewright.ir.tile.base import Array, buffer
from tilewright.ir.tile.bounds import bounded, limits_of
from tilewright.ir.tile.closed_forms import SIZES, closed_distinct, closed_form
from tilewright.ir.tile.counting import Counts, Kind, Quantity
from tilewright.ir.tile.spaces import Enumeration, Symbols, Term, exprs_of
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.tile.symbolic import SymbolicWalk


@dataclass(frozen=True)
class OpTraffic:
    """One quantity of one op: bytes of a buffer or level, or FLOPs of a unit.

    Where `data_dependent`, formulas are bounds, and so are numbers when no buffers are given.
    """

    quantity: Quantity
    data_dependent: bool
    terms: tuple[Term, ...]
    bounds: tuple[Term, ...] | None
    symbols: Symbols

    @cached_property
    def formula(self) -> Expr | None:
        """The bytes or FLOPs over the kernel's dims; None where only enumeration is exact."""
        return self._sum(closed_form)

    @cached_property
    def distinct(self) -> Expr | None:
        """The bytes without repeats over loops that a region does not move with."""
        return self._sum(closed_distinct)

    def _sum(self, closed: Callable[[Term, Symbols], Expr | None]) -> Expr | None:
        return None if self.bounds is None else add(closed(t, self.symbols) for t in self.bounds)

    def at(self, dims: Mapping[str, int], buffers: Sequence[Array] | None = None) -> int:
        """The number at these dims. Raises IRError where data has no bound and no buffers are given."""
        if self.formula is not None and not (self.data_dependent and buffers is not None):
            return self.formula.evaluate(dims)
        return self.enumerated(dims, buffers)

    def enumerated(self, dims: Mapping[str, int], buffers: Sequence[Array] | None = None) -> int:
        """The same, summed over the iteration space whether or not there is a formula."""
        return sum(Enumeration(self.symbols, dims, buffers).sum(t) for t in self._terms(buffers))

    def _terms(self, buffers: Sequence[Array] | None) -> tuple[Term, ...]:
        return self.terms if buffers is not None or self.bounds is None else self.bounds


class KernelTraffic:
    """A kernel's quantities: one `OpTraffic` each in `ops`, and their sums."""

    def __init__(self, kernel: KernelOp) -> None:
        walk = SymbolicWalk(kernel)
        limits = limits_of((c.term for c in walk.counted), walk.symbols)
        grouped: dict[Quantity, list[Term]] = {}
        for quantity, term in walk.counted:
            grouped.setdefault(quantity, []).append(term)
        self.kernel = kernel
        self.ops = tuple(_op_traffic(q, tuple(terms), walk.symbols, limits) for q, terms in grouped.items())

    def __repr__(self) -> str:
        """The formulas, a line each; a count without one says how to get its number."""
        lines = {"reads": self.read, "writes": self.write, "matrix FLOPs": self.matrix, "vector FLOPs": self.vector}
        at = ", ".join(f"{dim!r}: ..." for dim in self.kernel.dims.data)
        told = [f"  {name}: {f'.at({{{at}}})' if found is None else found}" for name, found in lines.items()]
        bounds = ", at most, as integers in memory decide" if self.data_dependent else ""
        told.append(f"  bytes that no kernel saves: {self.lower_bound}")
        return "\n".join([f"@{self.kernel.sym_name.data} moves bytes and computes{bounds}:", *told])

    @property
    def data_dependent(self) -> bool:
        """Whether any count depends on integers in memory, so that formulas are bounds."""
        return any(op.data_dependent for op in self.ops)

    def of(self, kind: Kind, *, buffer: int | None = None, level: str | None = None) -> Expr | None:
        """The formula of a kind's total, of one buffer or level where given; None where a part has none."""
        return add(op.formula for op in self._chosen(kind, buffer) if level in (None, op.quantity.level))

    @cached_property
    def read(self) -> Expr | None:
        return self.of("read")

    @cached_property
    def write(self) -> Expr | None:
        return self.of("write")

    @cached_property
    def matrix(self) -> Expr | None:
        return self.of("matrix")

    @cached_property
    def vector(self) -> Expr | None:
        return self.of("vector")

    @cached_property
    def lower_bound(self) -> Expr:
        """The compulsory bytes, reads and writes."""
        return self.compulsory("read") + self.compulsory("write")

    def compulsory(self, kind: Literal["read", "write"]) -> Expr:
        """The least bytes any kernel with these results would move: what is touched of each buffer, once.

        Rows picked by indices count as distinct, up to the whole buffer, and so do overlapping windows; where what is
        touched has no closed form, it is all that is named, and where that has none either, the whole buffer. Holds for
        grids and loops that are not empty.
        """
        total = Expr.of(0)
        for number, value in enumerate(self.kernel.buffers):
            ops = self._chosen(kind, number)
            touched, whole = add(op.distinct for op in ops), buffer(value).bytes
            if touched is None:
                touched = add(op.formula for op in ops)
            if touched is None or SIZES.compare(whole, "<=", touched):
                total = total + whole
            else:
                total = total + (touched if SIZES.compare(touched, "<=", whole) else minimum(touched, whole))
        return total

    def at(self, dims: Mapping[str, int], buffers: Sequence[Array] | None = None) -> dict[Kind, int]:
        """The totals at given dims: bytes "read", "write" and "stage", FLOPs "matrix" and "vector"; see `counts`."""
        counts = self.counts(dims, buffers)
        return {kind: counts.of(kind) for kind in get_args(Kind)}

    def counts(self, dims: Mapping[str, int], buffers: Sequence[Array] | None = None) -> Counts:
        """Bytes and FLOPs of each op at given dims, per buffer and level: exactly what the interpreter counts.

        buffers: the kernel's buffers (only integers that index are read); without them, data-dependent counts are
        bounds. Raises IRError where data has no bound and no buffers are given.
        """
        return Counts({op.quantity: op.at(dims, buffers) for op in self.ops})

    def _chosen(self, kind: Kind, number: int | None) -> list[OpTraffic]:
        return [op for op in self.ops if op.quantity.kind == kind and number in (None, op.quantity.buffer)]


def kernel_traffic(kernel: KernelOp) -> KernelTraffic:
    """What a kernel moves and computes. Raises IRError for index arithmetic that has no countable form."""
    return KernelTraffic(kernel)


def _op_traffic(quantity: Quantity, terms: tuple[Term, ...], symbols: Symbols, limits: Mapping[str, Expr]) -> OpTraffic:
    dependent = any(symbols.depends_on_data(*exprs_of(p)) for t in terms for p in (*t.path, *t.factors))
    if not dependent:
        return OpTraffic(quantity, False, terms, terms, symbols)
    wider = [bounded(t, symbols, limits) for t in terms]
    bounds = tuple(t for t in wider if t is not None)
    return OpTraffic(quantity, True, terms, bounds if len(bounds) == len(wider) else None, symbols)


def add(parts: Iterable[Expr | None]) -> Expr | None:
    """The sum of formulas; None when one is missing."""
    total = Expr.of(0)
    for part in parts:
        if part is None:
            return None
        total = total + part
    return total

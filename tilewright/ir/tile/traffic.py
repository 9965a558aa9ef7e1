"""What a kernel moves and computes, known without running it.

`kernel_traffic(kernel)` gives each op's bytes and FLOPs as formulas over the kernel's dims where its iteration space is
rectangular, and exact numbers at given dims always; both equal the tile interpreter's counters. Counts that depend on
integers in memory (lengths, offsets) are bounds as formulas, and exact when the kernel's buffers are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tilewright.ir.dims import Expr, minimum
from tilewright.ir.tile.base import Array, buffer
from tilewright.ir.tile.bounds import bounded, limits_of
from tilewright.ir.tile.closed_forms import closed_distinct, closed_form
from tilewright.ir.tile.counting import Counts, Kind, Quantity
from tilewright.ir.tile.spaces import Enumeration, Symbols, Term, exprs_of
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.tile.symbolic import Counted, SymbolicWalk


@dataclass(frozen=True)
class OpTraffic:
    """One quantity of one op: bytes of a buffer or level, or FLOPs of a unit.

    formula: the bytes or FLOPs over the kernel's dims, or None where no closed form is known. Where `data_dependent`, it
    is a bound, and `at` without buffers gives that bound, too.
    """

    quantity: Quantity
    terms: tuple[Term, ...]
    bounds: tuple[Term, ...] | None
    size: int
    data_dependent: bool
    symbols: Symbols

    @cached_property
    def formula(self) -> Expr | None:
        return _sum_of(closed_form(t, self.symbols) for t in self.bounds or ()) if self._is_bounded else None

    @property
    def _is_bounded(self) -> bool:
        return self.bounds is not None

    @cached_property
    def distinct(self) -> Expr | None:
        """The bytes without repeats over loops that the region does not move with; an upper bound where regions overlap."""
        return _sum_of(closed_distinct(t, self.symbols) for t in self.bounds or ()) if self._is_bounded else None

    def at(self, dims: Mapping[str, int], buffers: Sequence[Array] | None = None) -> int:
        """The exact number at these dims; for data-dependent ones the bound, unless the kernel's buffers are given.

        Raises IRError where the data has no bound and no buffers are given.
        """
        exact = buffers is not None or not self.data_dependent
        if self.formula is not None and not (self.data_dependent and exact):
            return self.formula.evaluate(dims)
        return self.enumerate(dims, buffers)

    def enumerate(self, dims: Mapping[str, int], buffers: Sequence[Array] | None = None) -> int:
        """`at`, summed over the iteration space whether or not there is a formula."""
        terms = self.terms if buffers is not None or self.bounds is None else self.bounds
        enumeration = Enumeration(self.symbols, dims, buffers)
        return sum(enumeration.sum(t) for t in terms)

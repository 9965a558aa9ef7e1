"""Whether index arithmetic stays inside 64 bits: a proof about integers holds for machine words only then.

Sizes without a bound count as `MOST`: no machine addresses more elements. Integers read from memory and carried by
loops are brought into -`READ`..`READ` where they are lowered, which changes no access: what lies outside is outside of
every view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from xdsl.ir import SSAValue

from tilewright.errors import Problem
from tilewright.ir.dims import Atom, Expr, Monomial, product
from tilewright.ir.intervals import Interval
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.structure import CompareOp, ExprOp, ForOp, KernelOp
from tilewright.ir.types import IndexType

MOST: Final = 1 << 47
READ: Final = 1 << 40
_WORD: Final = 1 << 62
_PROGRAMS: Final = 1 << 52  # times the number of a thread


def overflowing(kernel: KernelOp, bounds: Mapping[str, Interval]) -> Iterator[Problem]:
    """What may leave 64 bits in a kernel whose dims lie in the bounds."""
    ranges = _Ranges(kernel, bounds)
    steps = max((step for _, step in kernel.loops), default=1)
    programs = ranges.magnitude(product(kernel.extents.data))
    for extent, tile in zip(kernel.extents.data, kernel.tiles.data, strict=True):
        if ranges.magnitude(extent) + tile > _WORD:
            yield Problem(f"its grid axis of {extent} leaves 64 bits", op=f"@{kernel.sym_name.data}")
    if programs > _PROGRAMS or programs * steps > _WORD:
        yield Problem("its programs cannot be counted in 64 bits", op=f"@{kernel.sym_name.data}")
    for op in kernel.walk():
        if isinstance(op, ExprOp) and ranges.of(op.out) > _WORD:
            yield Problem(f"{op.expr} may leave 64 bits", op=f"{op.name} in @{kernel.sym_name.data}", where=op.loc)
        if isinstance(op, ForOp) and max(ranges.of(op.lo), ranges.of(op.hi)) + op.step.data > _WORD:
            yield Problem("its range may leave 64 bits", op=f"{op.name} in @{kernel.sym_name.data}", where=op.loc)


class _Ranges:
    """How large index values of a kernel may become, without their sign."""

    def __init__(self, kernel: KernelOp, bounds: Mapping[str, Interval]) -> None:
        self.kernel, self.bounds = kernel, bounds
        self.known: dict[SSAValue, int] = {}
        # no buffer has more than MOST elements, so neither has a product of some of its dims
        terms = [term for value in kernel.buffers for term in product(buffer(value).dims).terms]
        self.sizes = [(monomial, MOST // coefficient) for monomial, coefficient in terms if 0 < coefficient < MOST]
        for value, extent in zip(kernel.coordinates, kernel.extents.data, strict=True):
            self.known[value] = self.magnitude(extent)

    def of(self, value: SSAValue) -> int:
        """The largest magnitude of an index value."""
        if value not in self.known:
            self.known[value] = self._find(value)
        return self.known[value]

    def _find(self, value: SSAValue) -> int:
        op = value.owner
        if isinstance(op, ExprOp):
            return self.magnitude(op.expr, {f"a{i}": self.of(a) for i, a in enumerate(op.args)})
        if isinstance(op, CompareOp):
            return 1
        loop = getattr(op, "parent_op", lambda: None)()
        if isinstance(loop, ForOp) and value is loop.coordinate and isinstance(value.type, IndexType):
            return max(self.of(loop.lo), self.of(loop.hi)) + loop.step.data
        return READ

    def magnitude(self, expr: Expr, given: Mapping[str, int] | None = None) -> int:
        """A bound of every value that computing the expression goes through."""
        return max(sum(abs(c) * self._monomial(m, given or {}) for m, c in expr.terms), self._inner(expr, given or {}))

    def _inner(self, expr: Expr, given: Mapping[str, int]) -> int:
        """What the arguments of functions go through, though the result may be small."""
        inside = [arg for monomial, _ in expr.terms for atom in monomial for arg in atom.args]
        return max((self.magnitude(arg, given) for arg in inside), default=0)

    def _monomial(self, monomial: Monomial, given: Mapping[str, int]) -> int:
        total = 1
        for atom in monomial:
            total *= self._atom(atom, given)
        return min([total, *(most for size, most in self.sizes if _divides(monomial, size))])

    def _atom(self, atom: Atom, given: Mapping[str, int]) -> int:
        if not atom.args:
            if atom.name in given:
                return given[atom.name]
            low, high = self.bounds.get(atom.name, (0, None))
            return MOST if high is None else max(high, -(low or 0))
        a, b = (self.magnitude(arg, given) for arg in atom.args)
        match atom.name:
            case "floordiv":
                return a
            case "mod":
                return b
            case _:
                return max(a, b)


def _divides(monomial: Monomial, size: Monomial) -> bool:
    left = list(size)
    for atom in monomial:
        if atom not in left:
            return False
        left.remove(atom)
    return True

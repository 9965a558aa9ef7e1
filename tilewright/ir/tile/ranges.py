"""Whether index arithmetic stays inside 64 bits: a proof about integers holds for machine words only then.

Sizes without a bound count as `MOST`: no machine addresses more elements. Integers read from memory and carried by
loops are brought into -`READ`..`READ` where they are lowered, which changes no access: what lies outside is outside of
every view.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from xdsl.ir import SSAValue

from tilewright.errors import Problem
from tilewright.ir.dims import Atom, Expr, Monomial, product
from tilewright.ir.intervals import Interval
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.memory import LoadOp, StoreOp, ViewOp, ViewPagesOp, ViewRowsOp, ViewSegmentOp, ViewWindowOp
from tilewright.ir.tile.structure import CompareOp, ExprOp, ForOp, KernelOp, ScalarOp
from tilewright.ir.types import IndexType, TileType

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
        if isinstance(op, (LoadOp, StoreOp, ScalarOp)) and ranges.reached(op) > _WORD:
            yield Problem("its coordinates may leave 64 bits", op=f"{op.name} in @{kernel.sym_name.data}", where=op.loc)
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

    def reached(self, op: LoadOp | StoreOp | ScalarOp) -> int:
        """The largest coordinate that an access goes through on its way down a chain of views."""
        value = op.target if isinstance(op, StoreOp) else op.source
        tile_type = op.source.type if isinstance(op, StoreOp) else op.out.type
        extents = tile_type.extents if isinstance(tile_type, TileType) else (1,) * len(op.at)
        at = [self.of(a) + n for a, n in zip(op.at, extents, strict=True)]
        largest = max(at, default=0)
        while not isinstance(value.owner, ViewOp):
            view = value.owner
            if isinstance(view, ViewWindowOp):
                moved = zip(view.offsets, at, view.steps.data, strict=True)
                at = [self.of(offset) + a * step for offset, a, step in moved]
            elif isinstance(view, ViewPagesOp):
                at = [0, 0, *at[1:]]
            elif isinstance(view, (ViewRowsOp, ViewSegmentOp)):
                # from memory, and checked at run time against both ends
                at[view.axis.data] = 0
            else:
                break
            largest = max(largest, *at)
            value = view.source
        return largest

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


def divisors(exprs: Iterable[Expr]) -> list[Expr]:
    """What expressions divide by, anywhere inside, where it is not a number of 1 or more."""
    found: dict[Expr, None] = {}
    pending = list(exprs)
    while pending:
        for monomial, _ in pending.pop().terms:
            for atom in monomial:
                pending += atom.args
                if atom.name in ("floordiv", "mod") and (atom.args[1].constant or 0) < 1:
                    found[atom.args[1]] = None
    return list(found)


def _divides(monomial: Monomial, size: Monomial) -> bool:
    left = list(size)
    for atom in monomial:
        if atom not in left:
            return False
        left.remove(atom)
    return True

"""The arithmetic half of the builder: one method an op, folded where the result is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tilewright.errors import IRError
from tilewright.ir.dims import Atom, Expr, ExprLike
from tilewright.ir.dtypes import BF16, F32, I1, I32, DType
from tilewright.ir.loops.folding import (
    COMMUTATIVE,
    beyond_multiple,
    divisor,
    fold_binary,
    fold_compare,
    reassociate,
    split,
)
from tilewright.ir.loops.operands import Operand, Operands
from tilewright.ir.loops.ops import (
    Binary,
    BinaryKind,
    Bitcast,
    Broadcast,
    Cast,
    Compare,
    Extract,
    Fma,
    Predicate,
    Reduce,
    ReduceKind,
    Select,
    Shuffle,
    Unary,
    UnaryKind,
)
from tilewright.ir.loops.values import INDEX, Const, Value, mask, scalar, vec


class Arithmetic(Operands):
    """One method an op; each gives the value, which may be a constant or one built before."""

    def expr(self, value: ExprLike, symbols: Mapping[str, Value] | None = None) -> Value:
        """An index computed from a dims expression; `symbols` gives values that are not formal dims."""
        total: Value = self.index(0)
        for monomial, coefficient in Expr.of(value).terms:
            product = self.index(coefficient)
            for atom in monomial:
                product = self.mul(self._atom(atom, symbols or {}), product)
            total = self.add(total, product)
        return total

    def _atom(self, atom: Atom, symbols: Mapping[str, Value]) -> Value:
        if atom.args:
            a, b = (self.expr(arg, symbols) for arg in atom.args)
            return self.binary(atom.name, a, b)  # type: ignore[arg-type]  # Atom's functions are BinaryKinds
        found = symbols.get(atom.name) or self._dims.get(atom.name)
        if found is None:
            known = ", ".join([*symbols, *self._dims]) or "none"
            raise IRError(f"the symbol {atom.name!r} has no value here (known: {known})", step="declare it with dim()")
        return found

    # --- elementwise ----------------------------------------------------------------------------------------------

    def unary(self, kind: UnaryKind, a: Value) -> Value:
        return self._pure(("unary", kind, id(a)), Unary(a.type, kind, a))

    def binary(self, kind: BinaryKind, a: Operand, b: Operand) -> Value:
        a, b = self.alike(a, b)
        if not a.type.dtype.is_float:
            if isinstance(a, Const) and kind in COMMUTATIVE:
                a, b = b, a
            if kind == "sub" and isinstance(b, Const):
                kind, b = "add", self.const(-int(b.value), b.type.dtype, b.type.lanes)
            folded = fold_binary(kind, a, b)
            if folded is not None:
                return folded if isinstance(folded, Value) else self.const(folded, a.type.dtype, a.type.lanes)
            if kind in ("and", "or") and isinstance(a, Broadcast) and isinstance(b, Broadcast):
                return self.broadcast(self.binary(kind, a.a, b.a), a.type.lanes)
            chained = reassociate(kind, a, b)
            if chained is not None:
                return self.binary(kind, *chained)
            shared = self._shared(kind, a, b) if a.type is INDEX else None
            if shared is not None:
                return shared
        return self._pure((kind, id(a), id(b)), Binary(a.type, kind, a, b))

    def _shared(self, kind: BinaryKind, a: Value, b: Value) -> Value | None:
        """An index in a form that its neighbours share: constants are added last, and quotients are those of what
        lies between the same multiples.
        """
        if kind == "add" and not isinstance(b, Const):
            (x, m), (y, n) = split(a), split(b)
            return self.add(self.add(x, y), m + n) if m or n else None
        if kind not in ("floordiv", "mod") or not isinstance(b, Const) or b.value <= 0:
            return None
        by = int(b.value)
        base, more = split(a)
        if divisor(base) % by == 0 and (more or kind == "mod"):
            return self.add(self.floordiv(base, by), more // by) if kind == "floordiv" else self.index(more % by)
        found = beyond_multiple(a, by)
        if found is None:
            return None
        x, multiple, rest = found
        whole = self.binary(kind, self.add(x, multiple), by)
        return whole if kind == "floordiv" else self.add(whole, rest)

    def add(self, a: Operand, b: Operand) -> Value:
        return self.binary("add", a, b)

    def sub(self, a: Operand, b: Operand) -> Value:
        return self.binary("sub", a, b)

    def mul(self, a: Operand, b: Operand) -> Value:
        return self.binary("mul", a, b)

    def div(self, a: Operand, b: Operand) -> Value:
        return self.binary("div", a, b)

    def floordiv(self, a: Operand, b: Operand) -> Value:
        return self.binary("floordiv", a, b)

    def mod(self, a: Operand, b: Operand) -> Value:
        return self.binary("mod", a, b)

    def min(self, a: Operand, b: Operand) -> Value:
        return self.binary("min", a, b)

    def max(self, a: Operand, b: Operand) -> Value:
        return self.binary("max", a, b)

    def minimum(self, a: Operand, b: Operand) -> Value:
        return self.binary("minimum", a, b)

    def maximum(self, a: Operand, b: Operand) -> Value:
        return self.binary("maximum", a, b)

    def and_(self, a: Operand, b: Operand) -> Value:
        return self.binary("and", a, b)

    def or_(self, a: Operand, b: Operand) -> Value:
        return self.binary("or", a, b)

    def xor(self, a: Operand, b: Operand) -> Value:
        return self.binary("xor", a, b)

    def shl(self, a: Operand, b: Operand) -> Value:
        return self.binary("shl", a, b)

    def shr(self, a: Operand, b: Operand) -> Value:
        return self.binary("shr", a, b)

    def ushr(self, a: Operand, b: Operand) -> Value:
        return self.binary("ushr", a, b)

    def scale(self, a: Operand, b: Operand) -> Value:
        """a * 2**b; see `Binary` for what they may be."""
        return self.binary("scale", a, b)

    def ceildiv(self, a: Operand, b: Operand) -> Value:
        """Blocks of b that cover a, for b > 0."""
        return self.floordiv(self.add(self.add(a, b), -1), b)

    def neg(self, a: Value) -> Value:
        return self.unary("neg", a)

    def abs(self, a: Value) -> Value:
        return self.unary("abs", a)

    def sqrt(self, a: Value) -> Value:
        return self.unary("sqrt", a)

    def floor(self, a: Value) -> Value:
        return self.unary("floor", a)

    def ceil(self, a: Value) -> Value:
        return self.unary("ceil", a)

    def trunc(self, a: Value) -> Value:
        return self.unary("trunc", a)

    def round(self, a: Value) -> Value:
        """To the nearest integer, halves to even."""
        return self.unary("round", a)

    def fraction(self, a: Value) -> Value:
        """a - floor(a), below 1; see `Unary` for its rounding."""
        return self.unary("fraction", a)

    def not_(self, a: Value) -> Value:
        return self.unary("not", a)

    def fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        """a * b + c; see `Fma` for its rounding."""
        a, b = self.alike(a, b)
        a, c = self.alike(a, c)
        b, c = self.alike(b, c)
        return self._pure(("fma", id(a), id(b), id(c)), Fma(a.type, a, b, c))

    def compare(self, predicate: Predicate, a: Operand, b: Operand) -> Value:
        a, b = self.alike(a, b)
        known = fold_compare(predicate, a, b)
        if known is not None:
            return self.const(known, I1, a.type.lanes)
        if a.type is INDEX and predicate in ("lt", "ge"):
            # multiples of a number on both sides: less than that beside one of them decides nothing
            found = beyond_multiple(a, divisor(b)) if divisor(b) else beyond_multiple(a, divisor(split(a)[0]))
            if found is not None:
                return self.compare(predicate, self.add(found[0], found[1]), b)
        return self._pure((predicate, id(a), id(b)), Compare(mask(a.type.lanes), predicate, a, b))

    def select(self, condition: Value, a: Operand, b: Operand) -> Value:
        """`a` where set, else `b`."""
        if isinstance(a, Value) or isinstance(b, Value):
            a, b = self.alike(a, b)
        else:
            raise IRError("select between two Python numbers has no type", step="make one of them a const")
        if isinstance(condition, Const):
            chosen = a if condition.value else b
            return self.broadcast(chosen, condition.type.lanes) if condition.type.lanes > chosen.type.lanes else chosen
        lanes = condition.type.lanes
        if lanes > 1 and a.type.lanes == 1:
            a, b = self.broadcast(a, lanes), self.broadcast(b, lanes)
        return self._pure(("select", id(condition), id(a), id(b)), Select(a.type, condition, a, b))

    def is_nan(self, a: Value) -> Value:
        return self.compare("ne", a, a)

    def clamp(self, a: Value, low: Operand, high: Operand) -> Value:
        """min(max(a, low), high) in the plain form; a NaN becomes `low`."""
        return self.min(self.max(a, low), high)

    def cast(self, a: Value, dtype: DType, *, normal: bool = False, flush: bool = False) -> Value:
        """The number in another dtype; see `Cast` for the rounding, and for numbers known or made to be normal."""
        if a.type.dtype is dtype:
            return a
        if isinstance(a, Const) and not a.type.dtype.is_float and not dtype.is_float:
            return self.const(a.value, dtype, a.type.lanes)
        rounds = (a.type.dtype, dtype) == (F32, BF16)
        normal, flush = normal and rounds, flush and rounds
        made = Cast(vec(dtype, a.type.lanes), a, normal, flush)
        return self._pure(("cast", dtype.name, normal, flush, id(a)), made)

    def bitcast(self, a: Value, dtype: DType) -> Value:
        """The same bits as lanes of `dtype`."""
        if a.type.dtype is dtype:
            return a
        if a.type.bits % dtype.bits:
            raise IRError(f"{a.type} does not split into lanes of {dtype}", step="bitcast whole elements")
        return self._pure(("bitcast", dtype.name, id(a)), Bitcast(vec(dtype, a.type.bits // dtype.bits), a))

    # --- lanes ----------------------------------------------------------------------------------------------------

    def shuffle(self, a: Value, indices: Sequence[int], b: Value | None = None) -> Value:
        """Lanes of a ++ b (b: a again by default) by constant number."""
        picked = tuple(indices)
        b = a if b is None else b
        result = vec(a.type.dtype, len(picked))
        if picked == tuple(range(a.type.lanes)):
            return a
        return self._pure(("shuffle", picked, id(a), id(b)), Shuffle(result, a, b, picked))

    def extract(self, a: Value, lane: int) -> Value:
        if a.type.lanes == 1 and lane == 0:
            return a
        return self._pure(("extract", lane, id(a)), Extract(scalar(a.type.dtype), a, lane))

    def reduce(self, kind: ReduceKind, a: Value) -> Value:
        """All lanes in one scalar, in the fixed tree of `Reduce`."""
        if a.type.lanes == 1:
            return a
        return self._pure(("reduce", kind, id(a)), Reduce(scalar(a.type.dtype), kind, a))

    def tail_mask(self, count: Operand, lanes: int) -> Value:
        """A mask of the first `count` lanes (any index; 0 or less: none, lanes or more: all)."""
        count = self.index(count)
        if not isinstance(count, Const) and divisor(count) % lanes == 0:
            return self.broadcast(self.compare("gt", count, 0), lanes)
        clamped = self.min(self.max(count, 0), lanes)
        if isinstance(clamped, Const) and clamped.value in (0, lanes):
            return self.const(bool(clamped.value), I1, lanes)
        return self.compare("lt", self.iota(lanes), self.cast(clamped, I32))

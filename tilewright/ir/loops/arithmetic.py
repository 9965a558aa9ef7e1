"""The arithmetic half of the builder: one method an op, operands coerced, pure ops folded and shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from tilewright.errors import IRError
from tilewright.ir.dims import Atom, Expr, ExprLike
from tilewright.ir.dtypes import BF16, F32, I1, I32, I64, DType
from tilewright.ir.loops.folding import COMMUTATIVE, fold_binary, fold_compare, reassociate
from tilewright.ir.loops.ops import (
    Binary,
    BinaryKind,
    Bitcast,
    Block,
    Broadcast,
    Cast,
    Compare,
    Dot2,
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
from tilewright.ir.loops.values import INDEX, Const, DimValue, Value, ValueType, VectorConst, mask, rounded, scalar, vec

Operand: TypeAlias = Value | int | float
Key: TypeAlias = tuple[object, ...]


class Arithmetic:
    """Builds values. Operands may be Python numbers wherever another operand tells the type, and a scalar beside a
    vector is broadcast. Pure ops that were built before in an enclosing block are reused."""

    def __init__(self) -> None:
        self._constants: dict[Key, Value] = {}
        self._dims: dict[str, DimValue] = {}
        # One (block, ops by key) pair per open block; an op found in any of them dominates what is built now.
        self._scopes: list[tuple[Block, dict[Key, Value]]] = []

    # --- leaves ---------------------------------------------------------------------------------------------------

    def const(self, value: int | float, dtype: DType, lanes: int = 1) -> Value:
        """`value` (rounded to dtype) in every lane."""
        value = rounded(value, dtype)
        key = ("const", dtype.name, lanes, value, str(value) if value == 0 else "")  # keeps 0.0 and -0.0 apart
        found = self._constants.get(key)
        if found is None:
            found = self._constants[key] = Const(vec(dtype, lanes), value)
        return found

    def index(self, value: Operand) -> Value:
        """An i64 scalar from a Python int; a value of that type passes through."""
        if isinstance(value, Value):
            if value.type is not INDEX:
                raise IRError(f"an index is i64, this value is {value.type}", step="cast it to i64")
            return value
        return self.const(value, I64)

    def constants(self, values: Sequence[int | float], dtype: DType) -> Value:
        """A constant vector, lane by lane."""
        items = tuple(rounded(v, dtype) for v in values)
        key = ("constants", dtype.name, tuple(map(str, items)))
        found = self._constants.get(key)
        if found is None:
            found = self._constants[key] = VectorConst(vec(dtype, len(items)), items)
        return found

    def iota(self, lanes: int, dtype: DType = I32) -> Value:
        """0, 1, ... lanes-1."""
        return self.constants(range(lanes), dtype) if lanes > 1 else self.const(0, dtype)

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
        a, b = self._alike(a, b)
        if not a.type.dtype.is_float:
            if isinstance(a, Const) and kind in COMMUTATIVE:
                a, b = b, a
            if kind == "sub" and isinstance(b, Const):
                kind, b = "add", self.const(-int(b.value), b.type.dtype, b.type.lanes)
            folded = fold_binary(kind, a, b)
            if folded is not None:
                return folded if isinstance(folded, Value) else self.const(folded, a.type.dtype, a.type.lanes)
            chained = reassociate(kind, a, b)
            if chained is not None:
                return self.binary(kind, *chained)
        return self._pure((kind, id(a), id(b)), Binary(a.type, kind, a, b))

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

    def not_(self, a: Value) -> Value:
        return self.unary("not", a)

    def fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        """a * b + c; see `Fma` for its rounding."""
        a, b = self._alike(a, b)
        a, c = self._alike(a, c)
        b, c = self._alike(b, c)
        return self._pure(("fma", id(a), id(b), id(c)), Fma(a.type, a, b, c))

    def compare(self, predicate: Predicate, a: Operand, b: Operand) -> Value:
        a, b = self._alike(a, b)
        known = fold_compare(predicate, a, b)
        if known is not None:
            return self.const(known, I1, a.type.lanes)
        return self._pure((predicate, id(a), id(b)), Compare(mask(a.type.lanes), predicate, a, b))

    def select(self, condition: Value, a: Operand, b: Operand) -> Value:
        """`a` where set, else `b`."""
        if isinstance(a, Value) or isinstance(b, Value):
            a, b = self._alike(a, b)
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

    def cast(self, a: Value, dtype: DType) -> Value:
        """The number in another dtype; see `Cast` for the rounding."""
        if a.type.dtype is dtype:
            return a
        if isinstance(a, Const) and not a.type.dtype.is_float and not dtype.is_float:
            return self.const(a.value, dtype, a.type.lanes)
        return self._pure(("cast", dtype.name, id(a)), Cast(vec(dtype, a.type.lanes), a))

    def bitcast(self, a: Value, dtype: DType) -> Value:
        """The same bits as lanes of `dtype`."""
        if a.type.dtype is dtype:
            return a
        if a.type.bits % dtype.bits:
            raise IRError(f"{a.type} does not split into lanes of {dtype}", step="bitcast whole elements")
        return self._pure(("bitcast", dtype.name, id(a)), Bitcast(vec(dtype, a.type.bits // dtype.bits), a))

    # --- lanes ----------------------------------------------------------------------------------------------------

    def broadcast(self, a: Value, lanes: int) -> Value:
        if lanes == 1:
            return a
        if isinstance(a, Const):
            return self.const(a.value, a.type.dtype, lanes)
        return self._pure(("broadcast", lanes, id(a)), Broadcast(vec(a.type.dtype, lanes), a))

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

    def dot2_bf16(self, acc: Value, a: Value, b: Value) -> Value:
        """acc (f32 x L) plus the sums of pairs of products of a and b (bf16 x 2L); see `Dot2`."""
        wide = vec(BF16, 2 * acc.type.lanes)
        if acc.type.dtype is not F32 or a.type is not wide or b.type is not wide:
            raise IRError(
                f"dot2 takes f32 x L and twice bf16 x 2L, not {acc.type}, {a.type}, {b.type}", step="bitcast first"
            )
        return self._pure(("dot2", id(acc), id(a), id(b)), Dot2(acc.type, acc, a, b))

    def tail_mask(self, count: Operand, lanes: int) -> Value:
        """A mask of the first `count` lanes (any index; 0 or less: none, lanes or more: all)."""
        clamped = self.min(self.max(self.index(count), 0), lanes)
        if isinstance(clamped, Const) and clamped.value in (0, lanes):
            return self.const(bool(clamped.value), I1, lanes)
        return self.compare("lt", self.iota(lanes), self.cast(clamped, I32))

    # --- inside ---------------------------------------------------------------------------------------------------

    def _pure(self, key: Key, made: Value) -> Value:
        for _, known in reversed(self._scopes):
            found = known.get(key)
            if found is not None:
                return found
        block, known = self._scopes[-1]
        known[key] = made
        block.ops.append(made)  # type: ignore[arg-type]  # every Value made here is an Op
        return made

    def _alike(self, a: Operand, b: Operand) -> tuple[Value, Value]:
        """Two operands of one type: numbers take the other's type, a scalar its lanes."""
        if not isinstance(a, Value):
            if not isinstance(b, Value):
                return self.index(a), self.index(b)
            a = self.const(a, b.type.dtype, b.type.lanes)
        elif not isinstance(b, Value):
            b = self.const(b, a.type.dtype, a.type.lanes)
        if a.type is b.type:
            return a, b
        if a.type.dtype is b.type.dtype:
            if a.type.lanes == 1:
                return self.broadcast(a, b.type.lanes), b
            if b.type.lanes == 1:
                return a, self.broadcast(b, a.type.lanes)
        raise _differ(a.type, b.type)


def _differ(a: ValueType, b: ValueType) -> IRError:
    return IRError(f"operands differ in type: {a} and {b}", step="cast one of them")

"""The ground of the builder: constants, operands brought to one type, and pure ops shared between equal uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from tilewright.errors import IRError
from tilewright.ir.dtypes import I32, I64, DType
from tilewright.ir.loops.ops import Block, Broadcast
from tilewright.ir.loops.values import INDEX, Const, DimValue, Value, ValueType, VectorConst, rounded, vec

Operand: TypeAlias = Value | int | float
Key: TypeAlias = tuple[object, ...]


class Operands:
    """Operands may be Python numbers wherever another operand tells the type, and a scalar beside a vector is
    broadcast. Pure ops that were built before in an enclosing block are reused."""

    def __init__(self) -> None:
        self._constants: dict[Key, Value] = {}
        self._dims: dict[str, DimValue] = {}
        # One (block, ops by key) pair per open block; an op found in any of them dominates what is built now.
        self._scopes: list[tuple[Block, dict[Key, Value]]] = []

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
        if len(items) == 1:
            return self.const(items[0], dtype)
        key = ("constants", dtype.name, tuple(map(str, items)))
        found = self._constants.get(key)
        if found is None:
            found = self._constants[key] = VectorConst(vec(dtype, len(items)), items)
        return found

    def iota(self, lanes: int, dtype: DType = I32) -> Value:
        """0, 1, ... lanes-1."""
        return self.constants(range(lanes), dtype)

    def broadcast(self, a: Value, lanes: int) -> Value:
        """A scalar in every lane."""
        if lanes == 1:
            return a
        if isinstance(a, Const):
            return self.const(a.value, a.type.dtype, lanes)
        return self._pure(("broadcast", lanes, id(a)), Broadcast(vec(a.type.dtype, lanes), a))

    def alike(self, a: Operand, b: Operand) -> tuple[Value, Value]:
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

    def _pure(self, key: Key, made: Value) -> Value:
        for _, known in reversed(self._scopes):
            found = known.get(key)
            if found is not None:
                return found
        block, known = self._scopes[-1]
        known[key] = made
        block.ops.append(made)  # type: ignore[arg-type]  # every Value made here is an Op
        return made


def _differ(a: ValueType, b: ValueType) -> IRError:
    return IRError(f"operands differ in type: {a} and {b}", step="cast one of them")

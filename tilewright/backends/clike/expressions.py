"""The loop IR's elementwise ops as C expressions: operand texts in, a text out, with the bits the loop IR promises."""

from __future__ import annotations

import math
from typing import Final

from tilewright.backends.clike.prelude import TYPES, typed
from tilewright.errors import IRError
from tilewright.ir.dtypes import BF16, F16, F32, F64, I1, I32, I64, DType
from tilewright.ir.loops import BinaryKind, Predicate, ReduceKind, UnaryKind
from tilewright.ir.loops.elementwise import splat
from tilewright.ir.loops.values import rounded

_OPERATOR: Final[dict[str, str]] = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "truncdiv": "/", "truncmod": "%", "and": "&", "or": "|", "xor": "^",
}  # fmt: skip
_PREDICATE: Final[dict[Predicate, str]] = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_MATH: Final[dict[str, str]] = {
    "abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "rint",
}  # fmt: skip


class Expressions:
    """Texts of elementwise ops; `helpers` collects the prelude functions that they call."""

    def __init__(self) -> None:
        self.helpers: set[str] = set()

    def type_name(self, dtype: DType) -> str:
        """The C type of a value in a register."""
        return TYPES[dtype.name]

    def call(self, name: str, *operands: str) -> str:
        """A call of a prelude function."""
        self.helpers.add(name)
        return f"{name}({', '.join(operands)})"

    def literal(self, value: int | float, dtype: DType) -> str:
        """A number; floats by the shortest decimal that gives their bits."""
        if dtype in (BF16, F16):
            return hex(int(splat(value, dtype, 1).view("uint16")[0]))
        value = rounded(value, dtype)
        if dtype.is_float:
            suffix = "f" if dtype is F32 else ""
            if math.isnan(value):
                return "NAN"
            if math.isinf(value):
                return "INFINITY" if value > 0 else "(-INFINITY)"
            text = repr(float(value))
            return f"({text}{suffix})" if text.startswith("-") else text + suffix
        if dtype is I1:
            return "true" if value else "false"
        number = int(value)
        if dtype is I64 and number == -(1 << 63):
            return "INT64_MIN"
        text = f"{number}LL" if not -(1 << 31) < number < 1 << 31 else str(number)
        return f"({text})" if number < 0 else text

    def narrowed(self, text: str, dtype: DType) -> str:
        """C computes in int at least; narrow integers wrap when they are cast back."""
        return f"({self.type_name(dtype)})({text})" if dtype.is_integer and dtype.bits < 32 else text

    def binary(self, kind: BinaryKind | ReduceKind, dtype: DType, a: str, b: str) -> str:
        """One two-operand op."""
        own = ("min", "max", "minimum", "maximum", "scale")
        if kind in own or (kind in ("floordiv", "mod") and dtype.kind == "int"):
            return self.call(typed(kind, dtype), a, b)
        if kind in ("floordiv", "mod"):
            return f"({a} {'/' if kind == 'floordiv' else '%'} {b})"
        if kind in ("shl", "shr", "ushr"):
            return self.shift(kind, dtype, a, b)
        return self.narrowed(f"({a} {_OPERATOR[kind]} {b})", dtype)

    def shift(self, kind: str, dtype: DType, a: str, b: str) -> str:
        """Shifts of the bits as an unsigned number, but for the one that keeps the sign."""
        kept = self.type_name(dtype)
        through = kept if kind == "shr" else f"uint{dtype.bits}_t"
        return f"({kept})(({through}){a} {'<<' if kind == 'shl' else '>>'} {b})"

    def by_constant(self, kind: BinaryKind, dtype: DType, a: str, b: int) -> str | None:
        """floordiv and mod by a positive power of two as a shift and a mask; None for others."""
        if kind not in ("floordiv", "mod") or not dtype.is_integer or b <= 0 or b & (b - 1):
            return None
        return self.narrowed(f"({a} >> {b.bit_length() - 1})" if kind == "floordiv" else f"({a} & {b - 1})", dtype)

    def unary(self, kind: UnaryKind, dtype: DType, a: str) -> str:
        """One one-operand op."""
        if kind == "not":
            return f"!{a}" if dtype is I1 else self.narrowed(f"(~{a})", dtype)
        if kind == "neg":
            return self.narrowed(f"(-{a})", dtype)
        if kind == "fraction":
            return self.call(typed(kind, dtype), a)
        if dtype.is_float:
            return f"{_MATH[kind]}{'f' if dtype is F32 else ''}({a})"
        return a if dtype.kind == "uint" else self.narrowed(self.call(typed("abs", dtype), a), dtype)

    def fma(self, dtype: DType, a: str, b: str, c: str) -> str:
        """Two roundings: plain C has no instruction to count on."""
        return f"({a} * {b} + {c})"

    def compare(self, predicate: Predicate, a: str, b: str) -> str:
        return f"({a} {_PREDICATE[predicate]} {b})"

    def select(self, condition: str, a: str, b: str) -> str:
        return f"({condition} ? {a} : {b})"

    def cast(self, source: DType, target: DType, a: str, *, flush: bool = False) -> str:
        """`Cast` of the loop IR, by way of f32 for 16-bit floats and of i32 for narrow integers."""
        if flush:
            # 0 keeps the sign of a product
            a = f"(fabsf({a}) < {self.literal(2.0**-126, F32)} ? 0.0f * {a} : {a})"
        if source is target:
            return a
        if source in (BF16, F16):
            return self.cast(F32, target, self.call(f"f32_of_{source}", a))
        if target in (BF16, F16):
            return self.call(f"{target}_of_f32", self.cast(source, F32, a))
        if target is I1:
            return f"({a} != 0)"
        if source.is_float and target.is_integer:
            wide = I64 if target is I64 else I32
            return self.cast(wide, target, self.call(f"{wide}_of_{source}", a))
        return f"({self.type_name(target)}){a}"

    def bitcast(self, source: DType, target: DType, a: str) -> str:
        """The same bits as another type of the same width."""
        if self.type_name(source) == self.type_name(target):
            return a
        if source in (F32, F64):
            return f"({self.type_name(target)}){self.call(f'bits_of_{source}', a)}"
        if target in (F32, F64):
            return self.call(f"{target}_of_bits", a)
        if source.bits == target.bits and source is not I1 and target is not I1:
            return f"({self.type_name(target)}){a}"
        raise IRError(f"{source} has not the bits of a {target}", step="verify the kernel")

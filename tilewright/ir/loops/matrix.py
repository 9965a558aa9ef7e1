"""Matrix registers: two-dimensional registers that a kernel declares and ops name by number.

They are no SSA values, because machines have few of them and cannot copy one to another: a kernel says which register
holds what, as it says what lies where in scratch. Their contents are lost between kernels.

A left register holds [rows, depth] bf16, row by row. A right register holds [depth/2, columns, 2] bf16: rows of pairs
of k. A sum holds [rows, columns] f32.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.dtypes import DType
from tilewright.ir.loops.memory import Memory
from tilewright.ir.loops.values import Value


@dataclass(frozen=True, slots=True)
class MatrixRegister:
    """The shape a kernel gives one register: rows of `columns` elements."""

    dtype: DType
    rows: int
    columns: int


@dataclass(slots=True, eq=False)
class MatrixZero:
    """Every element of the register becomes 0."""

    register: int


@dataclass(slots=True, eq=False)
class MatrixLoad:
    """Row r of the register becomes `memory[offset + r * stride + column]`; stride is in elements."""

    register: int
    memory: Memory
    offset: Value
    stride: Value


@dataclass(slots=True, eq=False)
class MatrixStore:
    """`memory[offset + r * stride + column]` becomes row r of the register."""

    register: int
    memory: Memory
    offset: Value
    stride: Value


@dataclass(slots=True, eq=False)
class MatrixDot:
    """sum[m, n] += the products over k of left[m, k] and right[k/2, n, k%2], in an order of its own.

    Two chains start from 0, one over the even k and one over the odd ones, each adding its products in ascending order,
    rounded once a product (fused); then `sum + (even + odd)`. Subnormal operands and results are zeros of their sign.
    A NaN that an operation makes is any NaN.
    """

    sum: int
    left: int
    right: int


MatrixOp = MatrixZero | MatrixLoad | MatrixStore | MatrixDot

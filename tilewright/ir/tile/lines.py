"""Ordering whole lines of memory: rows that no tile holds, of a length that is known at run time.

A line is one axis of a view at fixed coordinates of the others. These ops read a line and write its order; how they
work in between (digits, heaps, networks) is the machine's affair, and so is the memory that `spare` lends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from xdsl.ir import SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, var_operand_def

from tilewright.ir.attributes import Bool, Int
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.tile.base import TileOp, check_axis, view
from tilewright.ir.tile.memory import ViewOp
from tilewright.ir.types import IndexType, ViewType


def spare_words(dtype: DType) -> int:
    """The 64-bit words that hold an element's key and place: one where the key has 32 bits or fewer."""
    return 2 if dtype.bits > 32 else 1


class LineOp(TileOp):
    """Shared by ops on lines: a source, where values and i64 places go, and the coordinates of the other axes."""

    INFERS: ClassVar[bool] = False

    def check_line(
        self, source: SSAValue, values: SSAValue, places: SSAValue, at: Sequence[SSAValue], length: Expr
    ) -> None:
        """Views of buffers that differ along the axis alone, where the results have the given length."""
        axis = check_axis(self, self.axis.data, view(source).rank)  # type: ignore[attr-defined]
        wanted = tuple(length if a == axis else d for a, d in enumerate(view(source).dims))
        if not all(isinstance(v.owner, ViewOp) for v in (source, values, places)):
            raise self.malformed("lines lie in affine views")
        if view(values).dims != wanted or view(places).dims != wanted:
            raise self.malformed(f"results of {view(source)} have the dims ({', '.join(map(str, wanted))})")
        if view(values).dtype != view(source).dtype or view(places).dtype != I64:
            raise self.malformed(f"writes {view(source).dtype} and i64, not {view(values)} and {view(places)}")
        if len(at) != view(source).rank - 1:
            raise self.malformed(f"{view(source)} needs a coordinate for every axis but one, got {len(at)}")


@irdl_op_definition
class SortLineOp(LineOp):
    """A line in order, and the i64 places its elements had: stable, NaN above everything as in torch.

    spare is a view [lines, 2 n spare_words] of i64 whose row `at[-1]` the op may use; nothing in it has a meaning
    afterwards.
    """

    name = "tile.sort_line"
    source = operand_def(ViewType)
    values = operand_def(ViewType)
    places = operand_def(ViewType)
    spare = operand_def(ViewType)
    at = var_operand_def(IndexType)
    axis = prop_def(Int)
    descending = prop_def(Bool)

    def verify_(self) -> None:
        length = view(self.source).dims[self.axis.data]
        self.check_line(self.source, self.values, self.places, self.at[:-1], length)
        spare = view(self.spare)
        if not isinstance(self.spare.owner, ViewOp) or spare.rank != 2 or spare.dtype != I64:
            raise self.malformed(f"spare must be an affine view of i64 words by line, got {spare}")
        words = length * 2 * spare_words(view(self.source).dtype)
        if spare.dims[1] != words:
            raise self.malformed(f"spare must have {words} words a line, got {spare}")


@irdl_op_definition
class TopkLineOp(LineOp):
    """The k largest of a line in falling order, and their i64 places; the lowest place wins among equals.

    A line of fewer elements fills what it has.
    """

    name = "tile.topk_line"
    source = operand_def(ViewType)
    values = operand_def(ViewType)
    places = operand_def(ViewType)
    at = var_operand_def(IndexType)
    axis = prop_def(Int)
    k = prop_def(Int)

    def verify_(self) -> None:
        if self.k.data < 1:
            raise self.malformed(f"k = {self.k.data} is not positive")
        self.check_line(self.source, self.values, self.places, self.at, Expr.of(self.k.data))


LINES: list[type[Any]] = [SortLineOp, TopkLineOp]

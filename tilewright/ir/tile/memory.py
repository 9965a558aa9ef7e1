"""Views, loads and stores: the only ops that touch memory, and they name regions, never pointers.

A view maps each of its axes to elements of one buffer independently of the other axes. Lanes outside a view's extents
clip; where a window reaches beyond its source, lanes outside the source clip, too. An index read from memory that
points nowhere makes its lanes poison instead, whatever the load's fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def, var_operand_def

from tilewright.ir.attributes import Bool, Dims, Float, Int, Ints, Str
from tilewright.ir.dims import Expr, product
from tilewright.ir.tile.base import TileOp, buffer, check_axis, tile, view
from tilewright.ir.types import BufferType, IndexType, TileType, ViewType

POISON, VALUE = "poison", "value"


@irdl_op_definition
class ViewOp(TileOp):
    """A buffer seen as `extents` with element `strides` from `offset`: transposes, splits, broadcasts (stride 0)."""

    name = "tile.view"
    source = operand_def(BufferType)
    extents = prop_def(Dims)
    strides = prop_def(Dims)
    offset = prop_def(Dims, default_value=Dims((Expr.of(0),)))
    out = result_def(ViewType)

    @staticmethod
    def row_major(extents: Sequence[Expr]) -> tuple[Expr, ...]:
        """The element strides of a dense row-major layout."""
        return tuple(product(extents[axis + 1 :]) for axis in range(len(extents)))

    def infer(self) -> Sequence[Attribute]:
        if len(self.extents.data) != len(self.strides.data):
            raise self.malformed(f"{len(self.extents.data)} extents and {len(self.strides.data)} strides")
        return [ViewType.of(self.extents.data, buffer(self.source).dtype)]


@irdl_op_definition
class ViewWindowOp(TileOp):
    """Coordinate i along axis a is offsets[a] + i * steps[a] of the source; lanes outside the source clip.

    A convolution reads its input at oh * stride + kh * dilation - padding through this. Steps are 1 or more.
    """

    name = "tile.view_window"
    source = operand_def(ViewType)
    offsets = var_operand_def(IndexType)
    extents = prop_def(Dims)
    steps = prop_def(Ints)
    out = result_def(ViewType)

    def infer(self) -> Sequence[Attribute]:
        source = view(self.source)
        if not len(self.offsets) == len(self.steps.data) == len(self.extents.data) == source.rank:
            raise self.malformed(f"needs one offset, step and extent for each of {source.rank} axes")
        if any(step < 1 for step in self.steps.data):
            raise self.malformed(f"steps {list(self.steps.data)} must be 1 or more")
        return [ViewType.of(self.extents.data, source.dtype)]


@irdl_op_definition
class ViewRowsOp(TileOp):
    """Coordinate i along `axis` is indices[i] of the source: embedding rows, expert tokens. Others are poison."""

    name = "tile.view_rows"
    source = operand_def(ViewType)
    indices = operand_def(ViewType)
    axis = prop_def(Int)
    out = result_def(ViewType)

    def infer(self) -> Sequence[Attribute]:
        source, indices = view(self.source), view(self.indices)
        if indices.rank != 1 or indices.dtype.is_float:
            raise self.malformed(f"indices must be an integer view of rank 1, got {indices}")
        axis = check_axis(self, self.axis.data, source.rank)
        return [ViewType.of((*source.dims[:axis], indices.dims[0], *source.dims[axis + 1 :]), source.dtype)]


@irdl_op_definition
class ViewPagesOp(TileOp):
    """A paged sequence: source [pages, page, ...], coordinate s is (table[s // page], s % page), for s below `length`.

    `extent` bounds the length and is what the type says; lanes from `length` on clip. A page outside the source is
    poison.
    """

    name = "tile.view_pages"
    source = operand_def(ViewType)
    table = operand_def(ViewType)
    length = operand_def(IndexType)
    page = prop_def(Int)
    extent = prop_def(Dims)
    out = result_def(ViewType)

    def infer(self) -> Sequence[Attribute]:
        source, table = view(self.source), view(self.table)
        if source.rank < 2 or table.rank != 1 or table.dtype.is_float:
            raise self.malformed(f"needs [pages, page, ...] and an integer table of rank 1, got {source} and {table}")
        if self.page.data < 1 or source.dims[1] != Expr.of(self.page.data) or len(self.extent.data) != 1:
            raise self.malformed(f"needs pages of {self.page.data} and one extent, got {source}")
        return [ViewType.of((self.extent.data[0], *source.dims[2:]), source.dtype)]


@irdl_op_definition
class ViewSegmentOp(TileOp):
    """One segment of a ragged axis: coordinate i along `axis` is offsets[which] + i, below offsets[which + 1].

    Offsets never fall.

    `extent` bounds the segment's length and is what the type says; lanes beyond the length clip, lanes of the segment
    that the source does not have are poison.
    """

    name = "tile.view_segment"
    source = operand_def(ViewType)
    offsets = operand_def(ViewType)
    which = operand_def(IndexType)
    axis = prop_def(Int)
    extent = prop_def(Dims)
    out = result_def(ViewType)

    def infer(self) -> Sequence[Attribute]:
        source, offsets = view(self.source), view(self.offsets)
        axis = check_axis(self, self.axis.data, source.rank)
        if offsets.rank != 1 or offsets.dtype.is_float or len(self.extent.data) != 1:
            raise self.malformed(f"needs integer offsets of rank 1 and one extent, got {offsets}")
        return [ViewType.of((*source.dims[:axis], self.extent.data[0], *source.dims[axis + 1 :]), source.dtype)]


@irdl_op_definition
class LoadOp(TileOp):
    """Reads the region at the coordinates; lanes outside the view hold `value`, or are poison if fill says so.

    `value` is an element as in tile.constant: integers saturate, so that infinities stand for the extremes.
    """

    name = "tile.load"
    source = operand_def(ViewType)
    at = var_operand_def(IndexType)
    extents = prop_def(Ints)
    fill = prop_def(Str, default_value=Str(POISON))
    value = prop_def(Float, default_value=Float(0.0))
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source = view(self.source)
        if not len(self.at) == len(self.extents.data) == source.rank:
            raise self.malformed(f"a view of rank {source.rank} needs as many coordinates and extents")
        if self.fill.data not in (POISON, VALUE):
            raise self.malformed(f"fill {self.fill.data!r} is not one of {POISON}, {VALUE}")
        return [TileType.of(self.extents.data, source.dtype)]


@irdl_op_definition
class StoreOp(TileOp):
    """Writes a tile to the region that starts at the coordinates; lanes outside the view are dropped.

    streaming: nobody reads it before the caches have forgotten it, so a machine may write past them.
    """

    name = "tile.store"
    source = operand_def(TileType)
    target = operand_def(ViewType)
    at = var_operand_def(IndexType)
    streaming = prop_def(Bool, default_value=Bool(False))
    INFERS: ClassVar[bool] = False

    def verify_(self) -> None:
        from xdsl.utils.exceptions import VerifyException

        source, target = tile(self.source), view(self.target)
        if source.rank != target.rank or len(self.at) != target.rank or source.dtype != target.dtype:
            raise VerifyException(f"{self.name}: {source} does not fit {target} with {len(self.at)} coordinates")


@irdl_op_definition
class StageOp(TileOp):
    """Holds a tile in a memory level of the machine; the value is unchanged. Inserted by place-levels."""

    name = "tile.stage"
    source = operand_def(TileType)
    level = prop_def(Str)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        return [self.source.type]


VIEWS = (ViewOp, ViewWindowOp, ViewRowsOp, ViewPagesOp, ViewSegmentOp)


def root(value: SSAValue) -> SSAValue:
    """The buffer that a view looks at."""
    while isinstance(value.owner, VIEWS):
        value = value.owner.source
    return value


def staged_load(op: StageOp) -> LoadOp | None:
    """The load whose result a stage holds, through other stages; None where it holds something computed."""
    source: Operation | object = op.source.owner
    while isinstance(source, StageOp):
        source = source.source.owner
    return source if isinstance(source, LoadOp) else None


MEMORY = [ViewOp, ViewWindowOp, ViewRowsOp, ViewPagesOp, ViewSegmentOp, LoadOp, StoreOp, StageOp]

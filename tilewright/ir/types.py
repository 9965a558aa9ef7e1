"""The types of the three dialects: tensors (graph), tiles, buffers and views (tile)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xdsl.ir import Data, ParametrizedAttribute, TypeAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer

from tilewright.errors import IRError
from tilewright.ir.attributes import parse_dim, print_expr
from tilewright.ir.dims import Expr, ExprLike, product
from tilewright.ir.dtypes import DTYPES, DType


@dataclass(frozen=True, slots=True)
class Shaped:
    """Dims and element type, the payload of every shaped type."""

    dims: tuple[Expr, ...]
    dtype: DType


def _print_shaped(printer: Printer, shaped: Shaped) -> None:
    with printer.in_angle_brackets():
        with printer.in_square_brackets():
            printer.print_list(shaped.dims, lambda e: print_expr(printer, e))
        printer.print_string(f", {shaped.dtype.name}")


def _parse_shaped(parser: AttrParser) -> Shaped:
    with parser.in_angle_brackets():
        dims = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: parse_dim(parser))
        parser.parse_punctuation(",")
        start = parser.pos
        name = parser.parse_identifier()
        if name not in DTYPES:
            parser.raise_error(f"no dtype is called {name!r}; use one of {', '.join(DTYPES)}", start)
    return Shaped(tuple(dims), DTYPES[name])


class ShapedType(Data[Shaped], TypeAttribute):
    """Shared by the types with dims and an element type."""

    @classmethod
    def parse_parameter(cls, parser: AttrParser) -> Shaped:
        return _parse_shaped(parser)

    def print_parameter(self, printer: Printer) -> None:
        _print_shaped(printer, self.data)

    @property
    def dims(self) -> tuple[Expr, ...]:
        return self.data.dims

    @property
    def dtype(self) -> DType:
        return self.data.dtype

    @property
    def rank(self) -> int:
        return len(self.data.dims)

    @property
    def elements(self) -> Expr:
        return product(self.data.dims)

    @property
    def bytes(self) -> Expr:
        """Storage bytes of a dense value of this type."""
        return self.elements * self.data.dtype.bytes

    def __str__(self) -> str:
        return f"{self.data.dtype.name}[{', '.join(map(str, self.data.dims))}]"


@irdl_attr_definition
class TensorType(ShapedType):
    """`!graph.tensor<["tokens", 384], f32>`: a whole value in the model's graph, dense and row-major in memory."""

    name = "graph.tensor"

    @staticmethod
    def of(dims: Iterable[ExprLike], dtype: DType) -> TensorType:
        return TensorType(Shaped(tuple(Expr.of(d) for d in dims), dtype))


@irdl_attr_definition
class TileType(ShapedType):
    """`!tile.tile<[6, 64], f32>`: a value of static extents inside a kernel."""

    name = "tile.tile"

    @staticmethod
    def of(extents: Iterable[int], dtype: DType) -> TileType:
        return TileType(Shaped(tuple(Expr.of(e) for e in extents), dtype))

    @property
    def extents(self) -> tuple[int, ...]:
        """The static extents; a dim that is not a number makes the type malformed."""
        sizes = tuple(d.constant for d in self.data.dims)
        if any(s is None for s in sizes):
            raise IRError(f"a tile's extents must be numbers, got {self}", step="tile the axis with a static extent")
        return tuple(s for s in sizes if s is not None)


@irdl_attr_definition
class BufferType(ShapedType):
    """`!tile.buffer<["m", 384], f32>`: a kernel's argument, dense row-major storage of those dims."""

    name = "tile.buffer"

    @staticmethod
    def of(dims: Iterable[ExprLike], dtype: DType) -> BufferType:
        return BufferType(Shaped(tuple(Expr.of(d) for d in dims), dtype))


@irdl_attr_definition
class ViewType(ShapedType):
    """`!tile.view<["m", 384], f32>`: a buffer seen through a pure index map; loads and stores name regions of it."""

    name = "tile.view"

    @staticmethod
    def of(dims: Iterable[ExprLike], dtype: DType) -> ViewType:
        return ViewType(Shaped(tuple(Expr.of(d) for d in dims), dtype))


@irdl_attr_definition
class IndexType(ParametrizedAttribute, TypeAttribute):
    """`!tile.index`: one integer used to place regions, bound loops and guard branches."""

    name = "tile.index"

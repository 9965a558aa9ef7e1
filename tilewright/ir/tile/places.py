"""Memory at places that a kernel computes: reading through a tile of indices, and changing what was stored before.

One axis of a view is addressed by the integers of a tile, lane by lane; the other axes by a region, as in a load. So an
index may be arithmetic of the same kernel, and need not lie in memory first. An integer that points nowhere makes its
lane poison, whatever the fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def, var_operand_def

from tilewright.ir.attributes import Float, Int, Ints, Str
from tilewright.ir.cost import Cost
from tilewright.ir.tile.base import TileOp, check_axis, tile, view
from tilewright.ir.tile.memory import POISON, VALUE, ViewOp, ViewWindowOp
from tilewright.ir.types import IndexType, TileType, ViewType

MODES = ("set", "add", "mul", "max", "min")


def check_places(op: TileOp, memory: SSAValue, indices: SSAValue, at: Sequence[SSAValue], axis: int) -> None:
    """The axis is one of an affine view's, the indices are integers, and every other axis has a coordinate."""
    looked = view(memory)
    check_axis(op, axis, looked.rank)
    if not isinstance(memory.owner, (ViewOp, ViewWindowOp)):
        raise op.malformed("needs a view without indices of its own")
    if not tile(indices).dtype.is_integer or len(at) != looked.rank - 1:
        raise op.malformed(
            f"{looked} along axis {axis} needs integers and {looked.rank - 1} coordinates, "
            f"got {tile(indices)} and {len(at)}"
        )


@irdl_op_definition
class LookupOp(TileOp):
    """Reads a region whose coordinate along `axis` each lane takes from a tile of integers; other axes as in a load.

    `at` and `extents` leave the axis out; indices have these extents or 1. An index outside the axis is poison.
    """

    name = "tile.lookup"
    source = operand_def(ViewType)
    indices = operand_def(TileType)
    at = var_operand_def(IndexType)
    axis = prop_def(Int)
    extents = prop_def(Ints)
    fill = prop_def(Str, default_value=Str(POISON))
    value = prop_def(Float, default_value=Float(0.0))
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        check_places(self, self.source, self.indices, self.at, self.axis.data)
        own, extents = tile(self.indices).extents, self.extents.data
        if len(extents) != len(self.at) or len(own) != len(extents):
            raise self.malformed(f"{len(self.at)} coordinates need as many extents and axes of indices")
        if any(n not in (1, m) for n, m in zip(own, extents, strict=True)):
            raise self.malformed(f"indices {tile(self.indices)} do not stretch to {list(extents)}")
        if self.fill.data not in (POISON, VALUE):
            raise self.malformed(f"fill {self.fill.data!r} is not one of {POISON}, {VALUE}")
        return [TileType.of(extents, view(self.source).dtype)]


@irdl_op_definition
class UpdateOp(TileOp):
    """Sets a tile's lanes in elements that this program has stored, along `axis` at places given by integers.

    Or combines both, by the function that `mode` names.

    The only op that writes an element again, or that changes one which was there before the launch: in an output that
    its kernel changes in place, the element need not have been stored. Lanes of one update are distinct elements; lanes
    outside the other axes are dropped.
    """

    name = "tile.update"
    source = operand_def(TileType)
    indices = operand_def(TileType)
    target = operand_def(ViewType)
    at = var_operand_def(IndexType)
    axis = prop_def(Int)
    mode = prop_def(Str)
    INFERS: ClassVar[bool] = False

    def verify_(self) -> None:
        from xdsl.utils.exceptions import VerifyException

        check_places(self, self.target, self.indices, self.at, self.axis.data)
        source, own = tile(self.source), tile(self.indices).extents
        if source.rank != len(self.at) or source.dtype != view(self.target).dtype or len(own) != source.rank:
            raise VerifyException(f"{self.name}: {source} does not fit {view(self.target)} without its axis")
        if any(n not in (1, m) for n, m in zip(own, source.extents, strict=True)):
            raise VerifyException(f"{self.name}: indices {tile(self.indices)} do not stretch to {source}")
        if self.mode.data not in MODES:
            raise VerifyException(f"{self.name}: mode {self.mode.data!r} is not one of {', '.join(MODES)}")

    def cost(self) -> Cost:
        elements = 1
        for n in tile(self.source).extents:
            elements *= n
        return Cost.of(vector=0 if self.mode.data == "set" else elements)


PLACES: list[type[Any]] = [LookupOp, UpdateOp]

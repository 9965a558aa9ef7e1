"""Arithmetic on tiles: elementwise, reductions, scans, dots, order, and static rearrangement."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from xdsl.ir import Attribute
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def, var_operand_def, var_result_def

from tilewright.ir.attributes import Bool, Float, Int, Ints, Str
from tilewright.ir.dtypes import DTYPES, F32, I32
from tilewright.ir.scalars import SCALARS
from tilewright.ir.tile.base import TileOp, broadcast_extents, extents_of, tile
from tilewright.ir.types import IndexType, TileType

LANES = 16  # the canonical lanes of an ordered reduction, whatever the machine's vectors are


@irdl_op_definition
class ConstantOp(TileOp):
    """A tile whose elements all have one value."""

    name = "tile.constant"
    value = prop_def(Float)
    extents = prop_def(Ints)
    dtype = prop_def(Str)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        return [TileType.of(self.extents.data, DTYPES[self.dtype.data])]


@irdl_op_definition
class IndexTileOp(TileOp):
    """Absolute coordinates along an axis: base + position. Causal masks, windows and biases are made of these."""

    name = "tile.index"
    base = operand_def(IndexType)
    axis = prop_def(Int)
    extents = prop_def(Ints)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        return [TileType.of(self.extents.data, I32)]


@irdl_op_definition
class SplatOp(TileOp):
    """A tile filled with one run-time index, as i32."""

    name = "tile.splat"
    source = operand_def(IndexType)
    extents = prop_def(Ints)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        return [TileType.of(self.extents.data, I32)]


@irdl_op_definition
class MapOp(TileOp):
    """An elementwise function of the scalar table on tiles of equal rank; extents of 1 stretch."""

    name = "tile.map"
    args = var_operand_def(TileType)
    fn = prop_def(Str)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        function = SCALARS.get(self.fn.data)
        if function is None:
            raise self.malformed(f"no scalar function is called {self.fn.data!r}")
        dtypes = [tile(a).dtype for a in self.args]
        result = function.result(dtypes)
        if result is None:
            raise self.malformed(f"{function.name} does not take ({', '.join(map(str, dtypes))})")
        return [TileType.of(broadcast_extents(self, extents_of(self.args)), result)]


@irdl_op_definition
class CastOp(TileOp):
    """Elements converted to another dtype, rounding to nearest even; floats to integers truncate."""

    name = "tile.cast"
    source = operand_def(TileType)
    dtype = prop_def(Str)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        return [TileType.of(tile(self.source).extents, DTYPES[self.dtype.data])]


@irdl_op_definition
class BroadcastOp(TileOp):
    """Axes of extent 1 repeated to the given extents."""

    name = "tile.broadcast"
    source = operand_def(TileType)
    extents = prop_def(Ints)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source = tile(self.source)
        if broadcast_extents(self, [source.extents, self.extents.data]) != self.extents.data:
            raise self.malformed(f"{source} does not broadcast to {list(self.extents.data)}")
        return [TileType.of(self.extents.data, source.dtype)]


@irdl_op_definition
class AccumulateOp(TileOp):
    """Folds the last axis of x into the canonical lanes of acc [..., 16]: lane l takes elements l, l + 16, ... in order."""

    name = "tile.accumulate"
    source = operand_def(TileType)
    acc = operand_def(TileType)
    fn = prop_def(Str)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source, acc = tile(self.source), tile(self.acc)
        if acc.extents != (*source.extents[:-1], LANES) or source.extents[-1] % LANES or acc.dtype != source.dtype:
            raise self.malformed(f"{source} does not fold into {acc}: last extents must be a multiple of {LANES} and {LANES}")
        if self.fn.data not in ("sum", "max", "min", "prod"):
            raise self.malformed(f"cannot accumulate by {self.fn.data!r}")
        return [acc]


@irdl_op_definition
class ReduceOp(TileOp):
    """Reduces an axis to extent 1 by a named combine; tuples travel together ("argmax", "attention", "welford").

    Order of "sum": lane l of the canonical 16 takes elements l, l + 16, ... in order, then lanes l and l + 8, l + 4, ...
    add pairwise. "attention" combines (m, l, O) left to right, "argmax"/"argmin" take the lowest index of equals.
    """

    name = "tile.reduce"
    args = var_operand_def(TileType)
    fn = prop_def(Str)
    axis = prop_def(Int)
    out = var_result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        arity = {"argmax": 2, "argmin": 2, "attention": 3, "welford": 3}.get(self.fn.data, 1)
        if self.fn.data not in ("sum", "max", "min", "prod", "any", "all", "argmax", "argmin", "attention", "welford"):
            raise self.malformed(f"no combine is called {self.fn.data!r}")
        if len(self.args) != arity:
            raise self.malformed(f"{self.fn.data} combines {arity} tiles, got {len(self.args)}")
        results = []
        for value in self.args:
            source = tile(value)
            extents = list(source.extents)
            extents[self.axis.data] = 1
            results.append(TileType.of(extents, source.dtype))
        return results


@irdl_op_definition
class ScanOp(TileOp):
    """Inclusive scan along an axis: "sum", "prod", "max", or "linear" on pairs (a, b) for h = a * h_before + b."""

    name = "tile.scan"
    args = var_operand_def(TileType)
    fn = prop_def(Str)
    axis = prop_def(Int)
    out = var_result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        if self.fn.data not in ("sum", "prod", "max", "linear"):
            raise self.malformed(f"no scan is called {self.fn.data!r}")
        if len(self.args) != (2 if self.fn.data == "linear" else 1):
            raise self.malformed(f"{self.fn.data} does not take {len(self.args)} tiles")
        return [a.type for a in self.args]


@irdl_op_definition
class DotOp(TileOp):
    """acc [M, N] + a [M, K] times b [K, N], products and sums in acc's dtype, k in increasing order."""

    name = "tile.dot"
    a = operand_def(TileType)
    b = operand_def(TileType)
    acc = operand_def(TileType)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        a, b, acc = tile(self.a), tile(self.b), tile(self.acc)
        if a.rank != 2 or b.rank != 2 or a.extents[1] != b.extents[0] or acc.extents != (a.extents[0], b.extents[1]):
            raise self.malformed(f"{a} times {b} does not fit the accumulator {acc}")
        if a.dtype != b.dtype:
            raise self.malformed(f"operand dtypes differ: {a.dtype} and {b.dtype}")
        return [acc]


@irdl_op_definition
class DotScaledOp(TileOp):
    """acc + the sum over groups of `group` along K of exact_dot(a, b) * sa[M, K/group] * sb[K/group, N], in f32."""

    name = "tile.dot_scaled"
    a = operand_def(TileType)
    a_scale = operand_def(TileType)
    b = operand_def(TileType)
    b_scale = operand_def(TileType)
    acc = operand_def(TileType)
    group = prop_def(Int)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        a, b, acc, group = tile(self.a), tile(self.b), tile(self.acc), self.group.data
        m, k = a.extents
        n = b.extents[1]
        if k % group or b.extents[0] != k or acc.extents != (m, n) or acc.dtype != F32:
            raise self.malformed(f"{a} times {b} in groups of {group} does not fit the accumulator {acc}")
        if tile(self.a_scale).extents != (m, k // group) or tile(self.b_scale).extents != (k // group, n):
            raise self.malformed(f"scales must be [{m}, {k // group}] and [{k // group}, {n}]")
        return [acc]


@irdl_op_definition
class UnpackOp(TileOp):
    """Packed storage to elements along an axis, by the reference table of the format ("int4", "int2", ...)."""

    name = "tile.unpack"
    source = operand_def(TileType)
    format = prop_def(Str)
    axis = prop_def(Int)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        from tilewright.ir.tile.formats import FORMATS

        source, entry = tile(self.source), FORMATS.get(self.format.data)
        if entry is None or source.dtype != entry.storage:
            raise self.malformed(f"format {self.format.data!r} does not unpack {source.dtype}")
        extents = list(source.extents)
        extents[self.axis.data] *= entry.per_storage
        return [TileType.of(extents, entry.element)]


@irdl_op_definition
class PackOp(TileOp):
    """Elements to packed storage along an axis; the inverse of tile.unpack."""

    name = "tile.pack"
    source = operand_def(TileType)
    format = prop_def(Str)
    axis = prop_def(Int)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        from tilewright.ir.tile.formats import FORMATS

        source, entry = tile(self.source), FORMATS.get(self.format.data)
        if entry is None or source.dtype != entry.element or source.extents[self.axis.data] % entry.per_storage:
            raise self.malformed(f"format {self.format.data!r} does not pack {source}")
        extents = list(source.extents)
        extents[self.axis.data] //= entry.per_storage
        return [TileType.of(extents, entry.storage)]


@irdl_op_definition
class SortOp(TileOp):
    """Sorts keys along an axis, stably, NaN above everything as in torch, and carries a payload tile along."""

    name = "tile.sort"
    keys = operand_def(TileType)
    payload = operand_def(TileType)
    axis = prop_def(Int)
    descending = prop_def(Bool)
    sorted = result_def(TileType)
    carried = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        if tile(self.keys).extents != tile(self.payload).extents:
            raise self.malformed("keys and payload must have equal extents")
        return [self.keys.type, self.payload.type]


@irdl_op_definition
class TopkOp(TileOp):
    """The k largest along an axis, in order, with their positions (i32); the lowest position wins among equals."""

    name = "tile.topk"
    source = operand_def(TileType)
    k = prop_def(Int)
    axis = prop_def(Int)
    values = result_def(TileType)
    positions = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source = tile(self.source)
        extents = list(source.extents)
        if self.k.data > extents[self.axis.data]:
            raise self.malformed(f"k = {self.k.data} exceeds the extent {extents[self.axis.data]}")
        extents[self.axis.data] = self.k.data
        return [TileType.of(extents, source.dtype), TileType.of(extents, I32)]


@irdl_op_definition
class ReshapeOp(TileOp):
    """The same elements in row-major order under other extents."""

    name = "tile.reshape"
    source = operand_def(TileType)
    extents = prop_def(Ints)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source = tile(self.source)
        if prod(source.extents) != prod(self.extents.data):
            raise self.malformed(f"{source} has {prod(source.extents)} elements, {list(self.extents.data)} another number")
        return [TileType.of(self.extents.data, source.dtype)]


@irdl_op_definition
class TransposeOp(TileOp):
    """Axis i of the result is axis permutation[i] of the source."""

    name = "tile.transpose"
    source = operand_def(TileType)
    permutation = prop_def(Ints)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source = tile(self.source)
        if sorted(self.permutation.data) != list(range(source.rank)):
            raise self.malformed(f"{list(self.permutation.data)} does not permute {source.rank} axes")
        return [TileType.of([source.extents[a] for a in self.permutation.data], source.dtype)]


@irdl_op_definition
class SliceOp(TileOp):
    """The static box from starts to stops."""

    name = "tile.slice"
    source = operand_def(TileType)
    starts = prop_def(Ints)
    stops = prop_def(Ints)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        source = tile(self.source)
        boxes = zip(self.starts.data, self.stops.data, source.extents, strict=True)
        if any(not 0 <= lo <= hi <= extent for lo, hi, extent in boxes):
            raise self.malformed(f"box {list(self.starts.data)}..{list(self.stops.data)} leaves {source}")
        return [TileType.of([hi - lo for lo, hi in zip(self.starts.data, self.stops.data, strict=True)], source.dtype)]


@irdl_op_definition
class ConcatOp(TileOp):
    """Tiles joined along an axis."""

    name = "tile.concat"
    args = var_operand_def(TileType)
    axis = prop_def(Int)
    out = result_def(TileType)

    def infer(self) -> Sequence[Attribute]:
        tiles = [tile(a) for a in self.args]
        axis = self.axis.data
        rest = {(*t.extents[:axis], *t.extents[axis + 1 :], t.dtype) for t in tiles}
        if len(rest) != 1:
            raise self.malformed(f"cannot join {', '.join(map(str, tiles))} along axis {axis}")
        extents = list(tiles[0].extents)
        extents[axis] = sum(t.extents[axis] for t in tiles)
        return [TileType.of(extents, tiles[0].dtype)]


COMPUTE = [
    ConstantOp, IndexTileOp, SplatOp, MapOp, CastOp, BroadcastOp, AccumulateOp, ReduceOp, ScanOp, DotOp, DotScaledOp, UnpackOp,
    PackOp, SortOp, TopkOp, ReshapeOp, TransposeOp, SliceOp, ConcatOp,
]

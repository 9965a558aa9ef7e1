"""Right-hand sides packed in pairs of k, as a machine's matrix unit takes them.

The elements of a pair lie side by side. Loaded ones come in panels as wide as the unit's registers,
`reshape(transpose(w [N/c, K/2, c, 2], (1, 3, 0, 2)), [K, N])`, which moves nothing. Others are a tile of [K, N] or
[N, K], `transpose(reshape(x, [K/2, 2, N]), (0, 2, 1))` or `transpose(reshape(x, [N, K/2, 2]), (1, 0, 2))`, brought into
the form [K/2, N, 2] and back, `reshape(transpose(w, (0, 2, 1)), [K, N])`; they are written to scratch as pairs. A
kernel that stores panels for others to load stores `transpose(reshape(w [K/2, N, 2], [K/2, N/c, c, 2]), (1, 0, 2, 3))`.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import Operation, SSAValue

from tilewright.ir.dtypes import F32
from tilewright.ir.machine import TileRules
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES, DotOp, ReshapeOp, TransposeOp
from tilewright.ir.tile.memory import LoadOp, StoreOp, ViewOp
from tilewright.passes.lower_tile_to_loops.operands import unit_reshape


@dataclass(frozen=True, slots=True)
class Paired:
    """A packed right-hand side and the values between it and the dot.

    load: of [..., N/c, K/2, c, 2]; or None, and source is a tile to pack: [N, K] where `turned`, else [K, N].
    """

    load: LoadOp | None
    source: SSAValue
    turned: bool
    through: tuple[SSAValue, ...]


def multiplied_by_unit(op: Operation, left: SSAValue, rules: TileRules) -> bool:
    """Whether the matrix unit multiplies a value as a left-hand side; it takes subnormal numbers as zeros."""
    return isinstance(op, DotOp) and op.a is left and paired(op, rules) is not None


def paired(op: Operation, rules: TileRules) -> Paired | None:
    """The packed right-hand side of a dot that the machine's matrix unit multiplies."""
    if not isinstance(op, DotOp) or rules.matrix is None:
        return None
    if tile(op.a).dtype.name != rules.matrix.dtype or tile(op.acc).dtype is not F32:
        return None
    match op.b.owner:
        case ReshapeOp(source=SSAValue(owner=TransposeOp() as turned)):
            packed = turned.source
        case _:
            return None
    depth, columns = tile(op.b).extents
    if depth % rules.matrix.depth or columns % rules.matrix.columns:
        return None
    if turned.permutation.data == (1, 3, 0, 2):
        return _loaded(op, turned, rules.matrix.columns)
    if turned.permutation.data != (0, 2, 1) or tile(packed).extents != (depth // 2, columns, 2):
        return None
    return _by_way_of(packed, (op.b, turned.out))


def stored_panels(op: Operation, rules: TileRules) -> Paired | None:
    """A tile that is stored in panels of pairs, whole squares of words: what `pair_packing` writes as it packs."""
    if not isinstance(op, StoreOp) or rules.matrix is None or tile(op.source).dtype.name != rules.matrix.dtype:
        return None
    value, through = op.source, []
    while isinstance(value.owner, ReshapeOp) and unit_reshape(value.owner):
        through.append(value)
        value = value.owner.source
    match value.owner:
        case TransposeOp(source=SSAValue(owner=ReshapeOp() as split)) as panels:
            count, half, width, _ = (*tile(value).extents, 0, 0, 0)[:4]
            form = (half, count, width, 2)
        case _:
            return None
    view = op.target.owner
    if panels.permutation.data != (1, 0, 2, 3) or tile(split.out).extents != form or width != rules.matrix.columns:
        return None
    dense = [2 * width * half, 2 * width, 2, 1]
    if tile(split.source).extents != (half, count * width, 2) or half % LANES or width % LANES:
        return None
    if not isinstance(view, ViewOp) or [s.constant for s in view.strides.data[-4:]] != dense:
        return None
    if [n.constant for n in view.extents.data[-4:]] != list(tile(value).extents):
        return None
    return _by_way_of(split.source, (*through, value, split.out))


def _by_way_of(packed: SSAValue, through: tuple[SSAValue, ...]) -> Paired | None:
    """The tile that is brought into pairs, [K/2, N, 2]."""
    half, columns, _ = tile(packed).extents
    match packed.owner:
        case TransposeOp(source=SSAValue(owner=ReshapeOp() as split)) as order:
            whole, form = tile(split.source).extents, (tile(split.out).extents, order.permutation.data)
            through = (*through, packed, split.out)
            if whole == (2 * half, columns) and form == ((half, 2, columns), (0, 2, 1)):
                return Paired(None, split.source, False, through)
            if whole == (columns, 2 * half) and form == ((columns, half, 2), (1, 0, 2)):
                return Paired(None, split.source, True, through)
    return None


def _loaded(op: DotOp, turned: TransposeOp, width: int) -> Paired | None:
    """Panels of pairs in memory, each of whose registers is dense."""
    depth, columns = tile(op.b).extents
    form = (columns // width, depth // 2, width, 2)
    source = turned.source
    while isinstance(source.owner, ReshapeOp) and unit_reshape(source.owner):
        source = source.owner.source
    load = source.owner
    if not isinstance(load, LoadOp) or tile(turned.source).extents != form or tile(load.out).extents[-4:] != form:
        return None
    view = load.source.owner
    if not isinstance(view, ViewOp) or [s.constant for s in view.strides.data[-3:]] != [2 * width, 2, 1]:
        return None
    return Paired(load, turned.source, False, (op.b, turned.out, turned.source))

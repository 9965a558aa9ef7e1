"""A bias that hangs on the distance between a token and a key alone (T5, Raffel et al. 2020): a table by distance.

Between the counted places and the bias stand ops that treat pairs of a token and a key one by one. Done once for all
distances from 0 on instead, in the place of all pairs, they give the table; it depends on weights alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr, ExprLike
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.indexing import GatherOp
from tilewright.ir.graph.shape import BroadcastOp, ReshapeOp, TransposeOp
from tilewright.ir.graph.structure import IotaOp
from tilewright.ir.operation import TwOperation
from tilewright.ir.types import TensorType
from tilewright.passes.recognize.masks import count_of
from tilewright.passes.rewriting import wide_dims

Axes = tuple[int, int]
"""The axes of queries and of keys, counted from the last one as -1."""


@dataclass
class Distances:
    """How a bias comes of distances. gaps: differences of counted places, 1 where it is the key's less the token's, -1
    the other way round. axes: of every value on the way. leaves: what is the same for all pairs.
    """

    bias: SSAValue
    gaps: dict[SSAValue, int] = field(default_factory=dict)
    axes: dict[SSAValue, Axes] = field(default_factory=dict)
    leaves: list[SSAValue] = field(default_factory=list)

    def table(
        self, values: Callable[[SSAValue], SSAValue], add: Callable[[TwOperation], SSAValue], heads: Expr, length: int
    ) -> SSAValue:
        """The table [heads, length] f32. values: a leaf as it is there. add: puts an op there and gives its result."""
        made: dict[SSAValue, SSAValue] = {}

        def of(value: SSAValue) -> SSAValue:
            if value in made:
                return made[value]
            axes = self.axes.get(value)
            if axes is None:
                made[value] = values(value)
                return made[value]
            op, kind, rank = value.owner, tensor(value), tensor(value).rank
            dims: list[ExprLike] = list(kind.dims)
            dims[rank + axes[0]], dims[rank + axes[1]] = 1, length
            if value in self.gaps:
                counted = TensorType.of(dims, I64)
                found = add(IotaOp.make(axis=rank + axes[1], step=-self.gaps[value], result_types=[counted]))
                found = found if kind.dtype == I64 else add(CastOp.make(found, dtype=kind.dtype.name))
            else:
                assert isinstance(op, TwOperation)  # as every op on the way
                stated: dict[str, Any] = dict(op.properties) | (
                    {"dims": dims} if isinstance(op, (ReshapeOp, BroadcastOp)) else {}
                )
                given = [of(x) for x in op.operands]
                found = add(type(op).make(*([given] if isinstance(op, MapOp) else given), **stated, like=op))
            made[value] = found
            return found

        flat = of(self.bias)
        flat = add(ReshapeOp.make(flat, dims=[tensor(flat).dims[-3], length]))
        if tensor(flat).dims[0] != heads:
            flat = add(BroadcastOp.make(flat, dims=[heads, length]))
        return flat if tensor(flat).dtype == F32 else add(CastOp.make(flat, dtype=F32.name))


def distances_of(op: AttentionOp) -> Distances | None:
    """How the bias of an attention of tokens to themselves comes of distances; None where it does not, or not for all
    sequences alike.
    """
    if op.bias is None or tensor(op.bias).rank < 3:
        return None
    *lead, heads, queries, keys = tensor(op.bias).dims
    alike = all(d.constant == 1 for d in lead) and heads.constant in (1, tensor(op.q).dims[1].constant)
    if not alike or queries != tensor(op.q).dims[-2] or keys != queries or queries.constant is not None:
        return None
    found = Distances(op.bias)
    return found if _walk(found, op.bias, (-2, -1)) else None


def _walk(found: Distances, value: SSAValue, axes: Axes) -> bool:
    """Notes how a value with these axes comes of distances; False where it does not."""
    if value in found.axes:
        return found.axes[value] == axes
    found.axes[value] = axes
    match value.owner:
        case MapOp() as op if (sign := _gap(op, axes)) is not None:
            found.gaps[value] = sign
            return True
        case MapOp() | CastOp() | BroadcastOp() as op:
            return all(_step(found, x, axes) for x in op.operands)
        case TransposeOp() as op:
            rank, turned = tensor(value).rank, op.permutation.data
            return _step(found, op.x, (turned[rank + axes[0]] - rank, turned[rank + axes[1]] - rank))
        case ReshapeOp() as op:
            kept = _kept(op, axes)
            return kept is not None and _step(found, op.x, kept)
        case GatherOp() as op:
            first, rank, own = op.axis.data, tensor(value).rank, tensor(op.indices).rank
            inner = (rank + axes[0] - first - own, rank + axes[1] - first - own)
            within = all(-own <= axis < 0 for axis in inner)
            return within and _leaf(found, op.x) and _step(found, op.indices, inner)
        case _:
            return False


def _step(found: Distances, x: SSAValue, axes: Axes) -> bool:
    """An operand of an op whose axes lie along its result's."""
    return _leaf(found, x) or (not any(_lacks(x, axis) for axis in axes) and _walk(found, x, axes))


def _lacks(x: SSAValue, axis: int) -> bool:
    dims = tensor(x).dims
    return -axis > len(dims) or dims[axis].constant == 1


def _leaf(found: Distances, x: SSAValue) -> bool:
    """Whether a value is the same for all pairs; noted if it is."""
    same = not any(d.symbols for d in tensor(x).dims)
    if same:
        found.leaves.append(x)
    return same


def _gap(op: MapOp, axes: Axes) -> int | None:
    """1 for the key's place less the token's, -1 the other way round, None for anything else."""
    if op.fn.data != "sub" or any(len(wide_dims(tensor(x).dims)) != 1 for x in op.args):
        return None
    first, second = (count_of(x) for x in op.args)
    if first is None or second is None or first.start != second.start:
        return None
    return {(axes[1], axes[0]): 1, axes: -1}.get((first.axis, second.axis))


def _kept(op: ReshapeOp, axes: Axes) -> Axes | None:
    """The axes before a reshape that only adds or drops axes of one element."""
    before, after = tensor(op.x).dims, tensor(op.out).dims
    if wide_dims(before) != wide_dims(after):
        return None
    there = [i for i, d in enumerate(before) if d.constant != 1]
    here = [i for i, d in enumerate(after) if d.constant != 1]
    moved = [there[here.index(len(after) + axis)] - len(before) for axis in axes]
    return moved[0], moved[1]

"""An attention's axes: those of its group's iteration space that its kernels speak of, and how they are walked."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import BlockArgument, SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import GroupOp
from tilewright.passes.lower_to_tile.access import UNIT, Axis, Space, map_group, unsupported
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.frame import all_strides
from tilewright.passes.lower_to_tile.layout import Strides, Walk, merge_axes


class Axes:
    """The space's axes that attention names: query heads of a key head h, queries t, keys s, features of q and k (e)
    and of v (d)."""

    h: tuple[int, ...]
    t: tuple[int, ...]
    s: int
    e: int
    d: tuple[int, ...]


@dataclass(frozen=True)
class Walked:
    """A group's space around its attention, and the axes that kernels walk.

    t, s, e, d: where the queries (None: one), the keys and the features of k and v stand in the walk. h: the query
    heads of a key head; None where they are not kept apart, or are no single axis.
    """

    space: Space
    strides: dict[SSAValue, Strides]
    axes: Axes
    walk: Walk
    h: int | None
    t: int | None
    s: int
    e: int
    d: int

    @staticmethod
    def of(group: GroupOp, op: AttentionOp, *, packed: bool = False) -> Walked:
        """packed: with the query heads of a key head apart, as far as they are one axis."""
        axes = Axes()
        space = map_group(group, op, lambda s: None if op.q in s.maps else _seed(s, op, axes))
        strides = all_strides(space, group)
        inner = {axes.s, axes.e, *axes.t, *axes.d}
        outer = [a for a in space.order if a not in inner]
        packed = packed and len(axes.h) == 1
        apart = frozenset({*inner, *axes.h} if packed else inner)
        walk = merge_axes(space, [*outer, *axes.t, axes.s, axes.e, *axes.d], strides, apart)
        place = {members: i for i, members in enumerate(walk.members)}
        if len(axes.d) != 1 or len(axes.t) > 1:
            raise unsupported(op, "the value's features or the queries are split into several axes")
        t = place[axes.t] if axes.t else None
        h = place[axes.h] if packed else None
        return Walked(space, strides, axes, walk, h, t, place[axes.s,], place[axes.e,], place[axes.d])

    @property
    def features(self) -> tuple[int, int]:
        """Of a row of k and of v."""
        of_keys, of_values = (self.walk.extents[i].evaluate({}) for i in (self.e, self.d))
        return of_keys, of_values

    @property
    def grid(self) -> list[int]:
        """The axes of the walk that programs stand at."""
        return [i for i in range(len(self.walk.members)) if i not in (self.s, self.e, self.d)]

    def along(self, value: SSAValue) -> set[int]:
        """The axes of the walk that a value of the group varies along."""
        found = {axis for place in self.space.maps[value] for axis in place.axes}
        return {i for i, members in enumerate(self.walk.members) if found.intersection(members)}


def _seed(space: Space, op: AttentionOp, axes: Axes) -> None:
    q, k = tensor(op.q), tensor(op.k)
    heads, group = space.maps[op.out][-3], op.group
    if group > 1 and heads.axes and k.dims[-3].constant != 1:
        space.split(heads.axes[0], k.dims[-3], Expr.of(group))
    out = space.maps[op.out]
    lead, heads, t, d = out[:-3], out[-3], out[-2], out[-1]
    kv_heads = UNIT if k.dims[-3].constant == 1 else Axis(heads.axes[:1])
    # axes of size 1 still need a loop variable, so they are always made
    s, e = Axis((space.new(k.dims[-2]),)), Axis((space.new(q.dims[-1]),))
    axes.h = heads.axes[0 if kv_heads is UNIT else 1 :]
    axes.t, axes.s, axes.e, axes.d = t.axes, s.axes[0], e.axes[0], d.axes or (space.new(Expr.of(1)),)
    if op.lse_out is not None:
        space.maps[op.lse_out] = (*lead, heads, t)

    def trimmed(value: SSAValue, full: tuple[Axis, ...]) -> tuple[Axis, ...]:
        dims = tensor(value).dims
        aligned = full[len(full) - len(dims) :]
        return tuple(UNIT if n.constant == 1 else a for n, a in zip(dims, aligned, strict=True))

    space.maps[op.q] = trimmed(op.q, (*lead, heads, t, e))
    space.maps[op.k] = trimmed(op.k, (*lead, kv_heads, s, e))
    space.maps[op.v] = trimmed(op.v, (*lead, kv_heads, s, d))
    logits = (*lead, heads, t, s)
    if op.bias is not None:
        space.maps[op.bias] = trimmed(op.bias, logits)
    if op.valid is not None:
        per_key = tensor(op.valid).rank == q.rank - 2
        space.maps[op.valid] = trimmed(op.valid, (*lead, s) if per_key else logits)
    if op.sinks is not None:
        space.maps[op.sinks] = trimmed(op.sinks, (heads,))
    for value, axis in ((op.q_positions, t), (op.k_positions, s)):
        if value is not None:
            wanted = trimmed(value, (*lead, axis))
            if space.maps.setdefault(value, wanted) != wanted:
                raise unsupported(op, "queries and keys share one positions operand: clone it first")
    if op.segments is not None:
        # of queries; those of keys are the same numbers, read along the other axis
        space.maps[op.segments] = trimmed(op.segments, (*lead, t))


def keys_or_values(e: Emitter, value: SSAValue, extents: tuple[int, int]) -> SSAValue:
    """A block of keys or values; rows past the last key are zero, so that p = 0 times them is 0."""
    source = value
    while not isinstance(source, BlockArgument):
        op = source.owner
        x = getattr(op, "x", None)
        if not isinstance(x, SSAValue):
            raise unsupported(op, "keys and values must be in memory")
        source = x
    return e.b.broadcast(e.load(source, 0.0), extents)

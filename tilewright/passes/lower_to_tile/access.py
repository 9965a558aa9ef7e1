"""How the values of a group are addressed by one iteration space.

A group is one kernel, so its values share a set of *axes*. Each axis of a value is a row-major combination of such axes
(none for a broadcast size of 1), maybe sliced. `map_group` finds these maps by walking from the group's results to its
arguments, splitting axes where a reshape asks for it; a map and a buffer's row-major strides then give an affine view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from xdsl.ir import Block, Operation, SSAValue

from tilewright.errors import LoweringError, Problem
from tilewright.ir.dims import Expr, exact_div, product
from tilewright.ir.graph import (
    attention,
    contraction,
    elementwise,
    indexing,
    polynomial_attention,
    recurrence,
    reduction,
    routing,
    shape,
    structure,
    windows,
)
from tilewright.ir.graph.base import tensor
from tilewright.ir.operation import TwOperation


def unsupported(
    op: Operation | Block, reason: str, step: str = "report the model, and this line of it"
) -> LoweringError:
    """The error for a group that no skeleton lowers."""
    where = None
    if isinstance(op, TwOperation):
        # of a module that is torch's own code there is no line
        where = op.loc or (f"module {op.path}" if op.path else None)
    name = op.name if isinstance(op, Operation) else "block"
    return LoweringError(
        Problem(reason, op=name, where=where),
        step=step,
    )


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a value in terms of the space: axes in row-major order, read from `offset` in steps of `step`."""

    axes: tuple[int, ...]
    offset: Expr = field(default_factory=lambda: Expr.of(0))
    step: int = 1

    @property
    def sliced(self) -> bool:
        return self.offset != Expr.of(0) or self.step != 1


UNIT = Axis(())


class Space:
    """The axes of a group: extents by id, and each value's map. Ids never change; a split replaces one id by two."""

    def __init__(self) -> None:
        self.extents: dict[int, Expr] = {}
        self.maps: dict[SSAValue, tuple[Axis, ...]] = {}
        self.reduced: dict[int, Operation] = {}
        self.order: list[int] = []

    def new(self, extent: Expr) -> int:
        """A fresh axis, after all others."""
        number = max(self.extents, default=-1) + 1
        self.extents[number] = extent
        self.order.append(number)
        return number

    def axis_for(self, dim: Expr) -> Axis:
        """A fresh axis for a dim; a size of 1 needs none."""
        return UNIT if dim.constant == 1 else Axis((self.new(dim),))

    def split(self, axis: int, outer: Expr, inner: Expr) -> tuple[int, int]:
        """Replaces an axis by two, in every map."""
        first, second = self.new(outer), self.new(inner)
        self.order.remove(first)
        self.order.remove(second)
        at = self.order.index(axis)
        self.order[at : at + 1] = [first, second]
        del self.extents[axis]

        def refine(a: Axis) -> Axis:
            return replace(a, axes=tuple(n for x in a.axes for n in ((first, second) if x == axis else (x,))))

        self.maps = {value: tuple(map(refine, axes)) for value, axes in self.maps.items()}
        if axis in self.reduced:
            self.reduced[first] = self.reduced[second] = self.reduced.pop(axis)
        return first, second

    def size(self, axes: Iterable[int]) -> Expr:
        return product(self.extents[a] for a in axes)


def map_group(
    group: structure.GroupOp, anchor: Operation | None = None, seed: Callable[[Space], None] | None = None
) -> Space:
    """The maps of every value in a group, walking from its anchor (or last result) to arguments and the other results.

    seed: called whenever more values may have a map, to map the operands of anchors, which only their skeleton
    understands.
    """
    space = Space()
    start = anchor.results[0] if anchor is not None else group.yielded[-1]
    space.maps[start] = tuple(space.axis_for(d) for d in tensor(start).dims)
    ops = [op for op in group.block.ops if not isinstance(op, structure.YieldOp)]
    while True:
        before = len(space.maps)
        if seed is not None:
            seed(space)
        for op in reversed(ops):
            if all(r in space.maps for r in op.results):
                _to_operands(space, op)
        for op in ops:
            if op.operands and not all(r in space.maps for r in op.results):
                _to_result(space, op)
        if len(space.maps) > before:
            continue
        # only when nothing else says where a reduced axis is walked does a reduction get an axis of its own
        waiting = [op for op in reversed(ops) if isinstance(op, reduction.ReduceOp) and op.out in space.maps]
        waiting = [op for op in waiting if op.x not in space.maps]
        if not waiting:
            break
        _reduce_operand(space, waiting[0], space.maps[waiting[0].out])
    for value in (*group.block.args, *group.yielded):
        if value not in space.maps:
            raise unsupported(group, f"value {value.type} of the group is not addressed by its iteration space")
    return space


def _known(space: Space, value: SSAValue, axes: Sequence[Axis]) -> None:
    """Sets a value's map, or checks that the one it has is the same."""
    found = space.maps.setdefault(value, tuple(axes))
    if found != tuple(axes):
        raise unsupported(
            next(iter(value.uses)).operation,
            f"two uses address {value.type} differently",
        )


def _to_operands(space: Space, op: Operation) -> None:
    out = space.maps[op.results[0]]
    match op:
        case elementwise.MapOp() | elementwise.CastOp() | shape.BroadcastOp():
            for operand in op.operands:
                _known(space, operand, broadcast_axes(operand, out))
        case attention.RotaryOp():
            for operand in op.operands:
                if operand not in space.maps:
                    _known(space, operand, broadcast_axes(operand, out))
        case reduction.NormOp() | reduction.SoftmaxOp():
            _mark_reduced(space, op, out)
            for operand in op.operands:
                _known(space, operand, broadcast_axes(operand, out))
        case reduction.ReduceOp():
            if op.x in space.maps:
                _check_reduced(space, op)
        case shape.TransposeOp():
            axes = [UNIT] * len(out)
            for position, source in enumerate(op.permutation.data):
                axes[source] = out[position]
            _known(space, op.x, axes)
        case shape.SliceOp():
            steps = op.steps.data or (1,) * len(out)
            axes = []
            for a, start, step, dim in zip(out, op.starts.data, steps, tensor(op.x).dims, strict=True):
                if len(a.axes) > 1 and (start != Expr.of(0) or step != 1):
                    raise unsupported(op, "a slice of a merged axis")
                axes.append(UNIT if dim.constant == 1 else Axis(a.axes, a.offset * step + start, a.step * step))
            _known(space, op.x, axes)
        case shape.ReshapeOp():
            if op.x not in space.maps:
                _known(space, op.x, _regroup(space, op, op.results[0], op.x))
        case indexing.GatherOp():
            at, rank = op.axis.data, len(tensor(op.indices).dims)
            _known(space, op.indices, out[at : at + rank])
            # the gathered axis of the table is addressed by the indices' values, not by the space
            _known(space, op.x, (*out[:at], UNIT, *out[at + rank :]))
        case indexing.TakeAlongOp():
            _known(space, op.indices, out)
            _known(space, op.x, (*out[: op.axis.data], UNIT, *out[op.axis.data + 1 :]))
        case shape.PadOp():
            low = op.low.data
            _known(space, op.x, [replace(a, offset=a.offset - by) for a, by in zip(out, low, strict=True)])
        case reduction.CumulativeOp():
            _known(space, op.x, out)
        case recurrence.ScanOp():
            _known(space, op.a, broadcast_axes(op.a, out))
            _known(space, op.b, out)
            if op.h0 is not None:
                _known(space, op.h0, (*out[: op.axis.data], *out[op.axis.data + 1 :]))
        case contraction.MatmulOp() | routing.GroupedMatmulOp() | windows.WindowOp():
            pass  # their skeletons map their own operands
        case attention.AttentionOp() | polynomial_attention.PolynomialAttentionOp():
            pass  # so do theirs
        case _:
            if op.operands:
                raise unsupported(op, "no skeleton addresses the operands of this op")


def _to_result(space: Space, op: Operation) -> None:
    result = op.results[0]
    match op:
        case (
            elementwise.MapOp()
            | elementwise.CastOp()
            | shape.BroadcastOp()
            | reduction.NormOp()
            | reduction.SoftmaxOp()
        ):
            axes: list[Axis | None] = []
            dims = tensor(result).dims
            for position, dim in enumerate(dims):
                found: Axis | None = UNIT if dim.constant == 1 else None
                for operand in op.operands:
                    at = position - (len(dims) - len(tensor(operand).dims))
                    if at >= 0 and operand in space.maps and tensor(operand).dims[at].constant != 1:
                        found = space.maps[operand][at]
                axes.append(found)
            if all(a is not None for a in axes):
                space.maps[result] = tuple(a for a in axes if a is not None)
                if isinstance(op, (reduction.NormOp, reduction.SoftmaxOp)):
                    _mark_reduced(space, op, space.maps[result])
        case shape.TransposeOp() if op.x in space.maps:
            space.maps[result] = tuple(space.maps[op.x][a] for a in op.permutation.data)
        case shape.ReshapeOp() if op.x in space.maps:
            space.maps[result] = tuple(_regroup(space, op, op.x, result))
        case reduction.ReduceOp() if op.x in space.maps:
            reduced = [a % len(tensor(op.x).dims) for a in op.axes.data]
            source = space.maps[op.x]
            _check_reduced(space, op)
            kept = [UNIT if i in reduced else a for i, a in enumerate(source) if op.keepdims.data or i not in reduced]
            space.maps[result] = tuple(kept)
        case indexing.GatherOp() if op.indices in space.maps:
            at, rank = op.axis.data, tensor(op.x).rank
            rest = space.maps.get(op.x, (UNIT,) * rank)
            if op.x in space.maps or all(d.constant == 1 for i, d in enumerate(tensor(op.x).dims) if i != at):
                space.maps[result] = (*rest[:at], *space.maps[op.indices], *rest[at + 1 :])
        case indexing.TakeAlongOp() if op.indices in space.maps:
            space.maps[result] = space.maps[op.indices]
        case attention.RotaryOp() if op.x in space.maps:
            space.maps[result] = space.maps[op.x]
        case _:
            pass


def broadcast_axes(operand: SSAValue, out: Sequence[Axis]) -> list[Axis]:
    """An operand's map under NumPy broadcasting to a result with map `out`."""
    dims = tensor(operand).dims
    aligned = out[len(out) - len(dims) :]
    return [UNIT if d.constant == 1 else a for d, a in zip(dims, aligned, strict=True)]


def padded_axes(op: shape.PadOp) -> list[int]:
    """The axes of the result that have other elements than the operand's."""
    sides = zip(op.low.data, op.high.data, strict=True)
    return [i for i, (low, high) in enumerate(sides) if low != Expr.of(0) or high != Expr.of(0)]


def _mark_reduced(space: Space, op: Operation, out: Sequence[Axis]) -> None:
    axis = op.axis.data % len(out) if isinstance(op, reduction.SoftmaxOp) else len(out) - 1
    for number in out[axis].axes:
        space.reduced.setdefault(number, op)


def _check_reduced(space: Space, op: reduction.ReduceOp) -> None:
    """Marks the axes a reduction folds, once its operand has a map."""
    for a in op.axes.data:
        for number in space.maps[op.x][a].axes:
            space.reduced.setdefault(number, op)


def _reduce_operand(space: Space, op: reduction.ReduceOp, out: Sequence[Axis]) -> None:
    dims = tensor(op.x).dims
    reduced = {a % len(dims) for a in op.axes.data}
    kept = iter(out)
    axes = []
    for i, dim in enumerate(dims):
        if i in reduced:
            if op.keepdims.data:
                next(kept)
            axes.append(space.axis_for(dim))
        else:
            axes.append(next(kept))
    _known(space, op.x, axes)
    _check_reduced(space, op)


def _regroup(space: Space, op: Operation, known: SSAValue, wanted: SSAValue) -> list[Axis]:
    """The map of one side of a reshape from the other's: runs of dims with equal products, split where one is finer."""
    source, target = list(tensor(known).dims), list(tensor(wanted).dims)
    result: list[Axis] = [UNIT] * len(target)
    i = j = 0
    while i < len(source) or j < len(target):
        if i < len(source) and source[i].constant == 1:
            i += 1
            continue
        if j < len(target) and target[j].constant == 1:
            j += 1
            continue
        if i >= len(source) or j >= len(target):
            raise unsupported(op, f"reshape from {known.type} to {wanted.type}")
        i_end, j_end = i + 1, j + 1
        left, right = source[i], target[j]
        while left != right:
            if exact_div(right, left) is not None and i_end < len(source):
                left = left * source[i_end]
                i_end += 1
            elif exact_div(left, right) is not None and j_end < len(target):
                right = right * target[j_end]
                j_end += 1
            else:
                raise unsupported(op, f"reshape from {known.type} to {wanted.type} is not a regrouping of whole dims")
        run = space.maps[known][i:i_end]
        if any(a.sliced for a in run) and (i_end - i > 1 or j_end - j > 1):
            raise unsupported(op, "a reshape that regroups a sliced axis")
        if i_end - i == 1 and j_end - j == 1:
            result[j] = run[0]
        else:
            axes = _deal(space, op, known, (i, i_end), target[j:j_end])
            result[j:j_end] = [Axis(a) for a in axes]
        i, j = i_end, j_end
    return result


def _deal(
    space: Space, op: Operation, known: SSAValue, run: tuple[int, int], dims: Sequence[Expr]
) -> list[tuple[int, ...]]:
    """Deals the axes of a run of dims out to other dims of the same product, splitting an axis that spans two."""
    dealt: list[tuple[int, ...]] = []
    used = 0
    for dim in dims:
        taken: list[int] = []
        left = dim
        while left.constant != 1:
            axes = [a for axis in space.maps[known][run[0] : run[1]] for a in axis.axes]
            if used >= len(axes):
                raise unsupported(op, "a reshape across a broadcast axis")
            axis = axes[used]
            extent = space.extents[axis]
            rest = exact_div(left, extent)
            if rest is None:
                inner = exact_div(extent, left)
                if inner is None:
                    raise unsupported(op, f"a reshape that splits {extent} into {left}")
                axis, _ = space.split(axis, left, inner)
                dealt = [tuple(a for a in d) for d in dealt]
                rest = Expr.of(1)
            taken.append(axis)
            used += 1
            left = rest
        dealt.append(tuple(taken))
    return dealt

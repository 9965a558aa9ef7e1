"""Rotary position embedding written out: x * cos + rotated(x) * sin, or each half (member of the pairs) by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.attention import RotaryOp
from tilewright.ir.graph.base import broadcast_dims, tensor
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.shape import ConcatOp, ReshapeOp, SliceOp
from tilewright.passes.recognize.matching import other_operand
from tilewright.passes.rewriting import Rules, Site, defined, mapped, same_dims

ROTARY = Rules()


@dataclass(frozen=True)
class Part:
    """One half of x's features: of which x, in which style ("half", "interleaved"), and whether it is the second."""

    x: SSAValue
    style: str
    second: bool


# --- conditions -----------------------------------------------------------------------------------------------------


def is_half(op: SliceOp, second: bool) -> bool:
    """The first or second half of the last axis, and all of the others."""
    size = _features(op.x)
    if size is None or size % 2 or any(step != 1 for step in op.strides):
        return False
    low = size // 2 if second else 0
    bounds = (Expr.of(low), Expr.of(low + size // 2))
    return takes_other_axes_whole(op) and (op.starts.data[-1], op.stops.data[-1]) == bounds


def is_every_other(op: SliceOp, second: bool) -> bool:
    """The even or odd places of the last axis, and all of the others."""
    size = _features(op.x)
    if size is None or size % 2 or op.strides[-1] != 2 or any(step != 1 for step in op.strides[:-1]):
        return False
    stops = (Expr.of(size), Expr.of(size - 1 + int(second)))
    return takes_other_axes_whole(op) and op.starts.data[-1] == Expr.of(int(second)) and op.stops.data[-1] in stops


def takes_other_axes_whole(op: SliceOp) -> bool:
    """Only the last axis is cut."""
    dims = tensor(op.x).dims
    return all(s == Expr.of(0) for s in op.starts.data[:-1]) and op.stops.data[:-1] == dims[:-1]


def are_halves_of_one(first: Part | None, second: Part | None) -> bool:
    """The two halves of the same x, in the same style, in order."""
    if first is None or second is None:
        return False
    return first.x is second.x and first.style == second.style and not first.second and second.second


def broadcasts_to(table: SSAValue, x: SSAValue, op: MapOp) -> bool:
    """The table has an angle for every feature of x."""
    dims, given = tensor(x).dims, tensor(table).dims
    return bool(given) and given[-1] == dims[-1] and broadcast_dims(op, dims, given) == dims


# --- parts ----------------------------------------------------------------------------------------------------------


def _features(value: SSAValue) -> int | None:
    dims = tensor(value).dims
    return dims[-1].constant if dims else None


def part_of(value: SSAValue) -> Part | None:
    """Which half of which x a value is."""
    op = defined(value, SliceOp)
    if op is not None:
        for second in (False, True):
            if is_half(op, second):
                return Part(op.x, "half", second)
            if is_every_other(op, second):
                return Part(op.x, "interleaved", second)
        return None
    return _part_of_pairs(value)


def _part_of_pairs(value: SSAValue) -> Part | None:
    """x reshaped to [..., D/2, 2], cut to one member of each pair, reshaped to [..., D/2]."""
    flat = defined(value, ReshapeOp)
    cut = None if flat is None else defined(flat.x, SliceOp)
    pairs = None if cut is None else defined(cut.x, ReshapeOp)
    if flat is None or cut is None or pairs is None or _features(pairs.out) != 2:
        return None
    size, dims = _features(pairs.x), tensor(pairs.x).dims
    if size is None or pairs.dims.data != (*dims[:-1], Expr.of(size // 2), Expr.of(2)):
        return None
    if flat.dims.data != (*dims[:-1], Expr.of(size // 2)):
        return None
    second = next((s for s in (False, True) if is_half(cut, s)), None)
    return None if second is None else Part(pairs.x, "interleaved", second)


def joined(value: SSAValue) -> tuple[SSAValue, SSAValue, str] | None:
    """(a, b, style) where the value has a and b as its halves, or as the members of its pairs."""
    op = defined(value, ConcatOp)
    if op is not None and len(op.xs) == 2 and op.axis.data == tensor(op.out).rank - 1:
        return op.xs[0], op.xs[1], "half"
    flat = defined(value, ReshapeOp)
    stack = None if flat is None else defined(flat.x, ConcatOp)
    if flat is None or stack is None or len(stack.xs) != 2 or stack.axis.data != tensor(stack.out).rank - 1:
        return None
    members = [_without_unit(x) for x in stack.xs]
    if members[0] is None or members[1] is None or not keeps_pairs(flat, stack):
        return None
    return members[0], members[1], "interleaved"


def keeps_pairs(flat: ReshapeOp, stack: ConcatOp) -> bool:
    """[..., D/2, 2] flattened to [..., D]."""
    dims = tensor(stack.out).dims
    return dims[-1].constant == 2 and flat.dims.data == (*dims[:-2], dims[-2] * 2)


def _without_unit(value: SSAValue) -> SSAValue | None:
    """x where the value is x with an axis of size 1 at the end."""
    op = defined(value, ReshapeOp)
    return op.x if op is not None and op.dims.data == (*tensor(op.x).dims, Expr.of(1)) else None


def rotated(value: SSAValue) -> tuple[SSAValue, str] | None:
    """(x, style) where the value is x with every pair (a, b) as (-b, a)."""
    parts = joined(value)
    if parts is None:
        return None
    negated = mapped(parts[0], "neg")
    first = part_of(parts[1])
    second = None if negated is None else part_of(negated.args[0])
    if first is None or not are_halves_of_one(first, second) or first.style != parts[2]:
        return None
    return first.x, first.style


def join(parts: Sequence[SSAValue], style: str, site: Site) -> SSAValue:
    """Two halves side by side, or element by element."""
    axis = tensor(parts[0]).rank
    if style == "half":
        return site.make(ConcatOp, list(parts), axis=axis - 1)
    dims = tensor(parts[0]).dims
    units = [site.make(ReshapeOp, p, dims=(*dims, 1)) for p in parts]
    stacked = site.make(ConcatOp, units, axis=axis)
    return site.make(ReshapeOp, stacked, dims=(*dims[:-1], dims[-1] * 2))


# --- rules ----------------------------------------------------------------------------------------------------------


@ROTARY.on(MapOp)
def rotary(op: MapOp, site: Site) -> SSAValue | None:
    """x * cos + rotated(x) * sin."""
    products = [mapped(a, "mul") for a in op.args] if op.fn.data == "add" else []
    if len(products) != 2 or products[0] is None or products[1] is None:
        return None
    for straight, crossed in ((products[0], products[1]), (products[1], products[0])):
        for arg in crossed.args:
            turned = rotated(arg)
            if turned is None:
                continue
            x, style = turned
            cos, sin = other_operand(straight, x), other_operand(crossed, arg)
            if cos is None or sin is None:
                site.refuse("rotary: what is rotated is not what is multiplied by the cosine")
            elif same_dims(x, op.out) and broadcasts_to(cos, x, op) and broadcasts_to(sin, x, op):
                return site.make(RotaryOp, x, cos, sin, style=style)
    return None


@ROTARY.on(ConcatOp, ReshapeOp, name="rotary")
def rotary_by_halves(op: ConcatOp | ReshapeOp, site: Site) -> SSAValue | None:
    """(x1 * cos1 - x2 * sin1) beside (x2 * cos2 + x1 * sin2)."""
    parts = joined(op.results[0])
    if parts is None:
        return None
    gap, total = mapped(parts[0], "sub"), mapped(parts[1], "add")
    left = None if gap is None else [mapped(a, "mul") for a in gap.args]
    right = None if total is None else [mapped(a, "mul") for a in total.args]
    if left is None or right is None or left[0] is None or left[1] is None or right[0] is None or right[1] is None:
        return None
    for first in left[0].args:
        for straight, crossed in ((right[0], right[1]), (right[1], right[0])):
            for second in straight.args:
                a, b = part_of(first), part_of(second)
                if a is None or not are_halves_of_one(a, b) or a.style != parts[2]:
                    continue
                tables = [
                    other_operand(left[0], first),
                    other_operand(straight, second),
                    other_operand(left[1], second),
                    other_operand(crossed, first),
                ]
                found = [t for t in tables if t is not None]
                if len(found) < 4 or not are_like(found, first):
                    continue
                cos, sin = join(found[:2], a.style, site), join(found[2:], a.style, site)
                return site.make(RotaryOp, a.x, cos, sin, style=a.style)
    return None


def are_like(tables: Sequence[SSAValue], half: SSAValue) -> bool:
    """Tables of one type with an angle for every feature of a half: they fit side by side."""
    features = tensor(half).dims[-1:]
    return all(t.type == tables[0].type and tensor(t).dims[-1:] == features for t in tables)

"""Rotary position embedding written out: x * cos + rotated(x) * sin, or each half (member of the pairs) by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.attention import RotaryOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.shape import ConcatOp, ReshapeOp, SliceOp
from tilewright.passes.recognize.matching import other_operand
from tilewright.passes.rewriting import Rules, Site, defined, mapped, same_dims

ROTARY = Rules()


@dataclass(frozen=True)
class Span:
    """Features of a tensor: `count` places of its last axis from `start` by `step`, in a region of the other axes."""

    base: SSAValue
    region: tuple[tuple[Expr, Expr], ...]
    start: Expr
    count: Expr
    step: int


# --- conditions -----------------------------------------------------------------------------------------------------


def are_neighbours(first: Span, second: Span, style: str) -> bool:
    """The second half starts where the first stops; of pairs, the second member stands right of the first."""
    if style == "half":
        return first.step == 1 and second.start == first.start + first.count
    return first.step == 2 and second.start == first.start + 1


def are_alike(first: Span, second: Span) -> bool:
    """The same tensor, the same region of its other axes, and as many features."""
    return (first.base, first.region, first.count, first.step) == (
        second.base,
        second.region,
        second.count,
        second.step,
    )


def has_angles_for(table: SSAValue, x: SSAValue) -> bool:
    """The table has an angle for every feature of x."""
    return tensor(table).dims[-1:] == tensor(x).dims[-1:]


def is_of(x: SSAValue, whole: Span) -> bool:
    """x is what the two halves make up."""
    return span_of(x, "half") == whole


# --- parts ----------------------------------------------------------------------------------------------------------


def span_of(value: SSAValue, style: str) -> Span | None:
    """Which features of which tensor a value is; `style` says whether to look for members of pairs."""
    if style == "interleaved" and (member := _member_of_pairs(value)) is not None:
        return member
    op = defined(value, SliceOp)
    dims = tensor(value).dims
    if op is None:
        return Span(value, tuple((Expr.of(0), d) for d in dims[:-1]), Expr.of(0), dims[-1], 1) if dims else None
    if any(step != 1 for step in op.strides[:-1]):
        return None
    region = tuple(zip(op.starts.data[:-1], op.stops.data[:-1], strict=True))
    return Span(op.x, region, op.starts.data[-1], dims[-1], op.strides[-1])


def _member_of_pairs(value: SSAValue) -> Span | None:
    """x reshaped to [..., D/2, 2] and cut to one member of each pair, maybe reshaped to [..., D/2]."""
    flat = defined(value, ReshapeOp)
    cut = defined(value if flat is None else flat.x, SliceOp)
    pairs = None if cut is None else defined(cut.x, ReshapeOp)
    if cut is None or pairs is None or tensor(cut.out).dims[-1] != Expr.of(1) or not takes_other_axes_whole(cut):
        return None
    whole = span_of(pairs.x, "half")
    if whole is None or whole.step != 1:
        return None
    dims = tensor(pairs.x).dims
    size = dims[-1].constant
    if size is None:
        return None
    half = (*dims[:-1], Expr.of(size // 2))
    if pairs.dims.data != (*half, Expr.of(2)) or (flat is not None and flat.dims.data != half):
        return None
    return Span(whole.base, whole.region, whole.start + cut.starts.data[-1], half[-1], 2)


def takes_other_axes_whole(op: SliceOp) -> bool:
    """Only the last axis is cut."""
    return tensor(op.out).dims[:-1] == tensor(op.x).dims[:-1]


def whole_of(first: SSAValue, second: SSAValue, style: str) -> Span | None:
    """What two values are the halves, or the members of the pairs, of."""
    a, b = span_of(first, style), span_of(second, style)
    if a is None or b is None or not are_alike(a, b) or not are_neighbours(a, b, style):
        return None
    return Span(a.base, a.region, a.start, a.count * 2, 1)


def joined(value: SSAValue) -> tuple[SSAValue, SSAValue, str] | None:
    """(a, b, style) where the value has a and b as its halves, or as the members of its pairs."""
    op = defined(value, ConcatOp)
    if op is not None and len(op.xs) == 2 and op.axis.data == tensor(op.out).rank - 1:
        return op.xs[0], op.xs[1], "half"
    flat = defined(value, ReshapeOp)
    stack = None if flat is None else defined(flat.x, ConcatOp)
    if flat is None or stack is None or len(stack.xs) != 2 or stack.axis.data != tensor(stack.out).rank - 1:
        return None
    if not keeps_pairs(flat, stack):
        return None
    return _without_unit(stack.xs[0]), _without_unit(stack.xs[1]), "interleaved"


def keeps_pairs(flat: ReshapeOp, stack: ConcatOp) -> bool:
    """[..., D/2, 2] flattened to [..., D]."""
    dims = tensor(stack.out).dims
    return len(dims) > 1 and flat.dims.data == (*dims[:-2], dims[-2] * 2)  # which leaves 2 for the last axis


def _without_unit(value: SSAValue) -> SSAValue:
    """x where the value is x with an axis of size 1 at the end, which a member of pairs may have anyway."""
    op = defined(value, ReshapeOp)
    return op.x if op is not None and op.dims.data == (*tensor(op.x).dims, Expr.of(1)) else value


def rotated(value: SSAValue) -> tuple[Span, str] | None:
    """(x, style) where the value is x with every pair (a, b) as (-b, a)."""
    parts = joined(value)
    negated = None if parts is None else mapped(_without_unit(parts[0]), "neg")
    if parts is None or negated is None:
        return None
    whole = whole_of(parts[1], negated.args[0], parts[2])
    return None if whole is None else (whole, parts[2])


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
            x = next((v for v in straight.args if is_of(v, turned[0])), None)
            cos = None if x is None else other_operand(straight, x)
            sin = other_operand(crossed, arg)
            if x is None or cos is None or sin is None:
                site.refuse("rotary: what is rotated is not what is multiplied by the cosine")
            elif same_dims(x, op.out) and has_angles_for(cos, x) and has_angles_for(sin, x):
                return site.make(RotaryOp, x, cos, sin, style=turned[1])
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
                whole = whole_of(first, second, parts[2])
                tables = [
                    other_operand(left[0], first),
                    other_operand(straight, second),
                    other_operand(left[1], second),
                    other_operand(crossed, first),
                ]
                found = [t for t in tables if t is not None]
                if whole is None or len(found) < 4 or not are_like(found, first):
                    continue
                cos, sin = join(found[:2], parts[2], site), join(found[2:], parts[2], site)
                return site.make(RotaryOp, _value_of(whole, site), cos, sin, style=parts[2])
    return None


def _value_of(whole: Span, site: Site) -> SSAValue:
    starts = (*(low for low, _ in whole.region), whole.start)
    stops = (*(high for _, high in whole.region), whole.start + whole.count)
    dims = tensor(whole.base).dims
    if stops == dims and all(s == Expr.of(0) for s in starts):
        return whole.base
    return site.make(SliceOp, whole.base, starts=starts, stops=stops)


def are_like(tables: Sequence[SSAValue], half: SSAValue) -> bool:
    """Tables of one type with an angle for every feature of a half: they fit side by side."""
    features = tensor(half).dims[-1:]
    return all(t.type == tables[0].type and tensor(t).dims[-1:] == features for t in tables)

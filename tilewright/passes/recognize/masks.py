"""What hides keys from queries: comparisons of counted positions, taken apart until each is a bound or stays as it is.

A mask reaches the logits as a condition (`where(c, logits, -inf)`) or as numbers added to them (0 where a key is seen,
a large negative number where not). Both are taken apart into conditions that must all hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import DType
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.shape import BroadcastOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import ConstantOp, DimOp, IotaOp, PositionsOp
from tilewright.passes.rewriting import Site, defined, mapped, splat, wide_dims

# A fill at or below -1e9, which bf16 rounds to -9.98e8, stands for minus infinity: no model's logits lie as low. Above
# it (old code fills with -1e4) a logit may lie below the fill, and the fill is a number like others. f16 ends earlier:
# its lowest number hides among logits in f16, which cannot lie lower.
HIDING = -9.9e8
LOWEST_F16 = -65504.0
# After a later factor the fill must still make the exponential vanish: exp(-1e3) is 0 in every float.
VANISHING = -1e3
INVERSE = {"le": "gt", "lt": "ge", "ge": "lt", "gt": "le"}
MIRROR = {"le": "ge", "lt": "gt", "ge": "le", "gt": "lt"}


@dataclass(frozen=True)
class Count:
    """A value that counts along one axis: start + index.

    axis: from the right, -1 the last. positions: what it counts in, where that is not the index itself.
    """

    axis: int
    start: Expr
    positions: SSAValue | None = None


@dataclass(frozen=True)
class Bound:
    """A condition on keys and queries: key <= query + offset (upper), or key >= query + offset."""

    upper: bool
    offset: Expr
    q_positions: SSAValue | None
    k_positions: SSAValue | None


# --- conditions -----------------------------------------------------------------------------------------------------


def hides(fill: float, dtype: DType) -> bool:
    """Added to a logit in this dtype, or put in its place, the number stands for minus infinity."""
    return fill <= (LOWEST_F16 if dtype.name == "f16" else HIDING)


def vanishes(fill: float) -> bool:
    """The exponential of the number is 0 beside any logit that is seen."""
    return fill <= VANISHING


def is_hiding(value: SSAValue, scale: float = 1.0, *, finite: bool) -> bool:
    """The value is a number that hides a key, after a later factor, too. finite: it need not be minus infinity."""
    fill = splat(value)
    if fill is None or not hides(fill, tensor(value).dtype) or not vanishes(fill * scale):
        return False
    return finite or fill == -math.inf


def why_seen(value: SSAValue, scale: float) -> str:
    """Why a number in the place of logits, later multiplied, hides no key; empty for what is not meant to."""
    fill = splat(value)
    if fill is None or fill >= 0:
        return ""
    if not hides(fill, tensor(value).dtype):
        return f"{fill:g} stands for logits that may be less; -1e9 and less hides keys"
    if not vanishes(fill * scale):
        return f"{fill:g} stands for logits and is multiplied by {scale:g}: its exponential does not vanish"
    return f"{fill:g} stands for logits, and finite numbers hide no keys with finite-hides=false"


def counts_by_one(op: IotaOp) -> bool:
    """Neighbours differ by 1."""
    return op.step.data == 1


def is_lower_triangle(values: Sequence[float], size: int) -> bool:
    """A size x size matrix of truths: on and below the diagonal, and nowhere else."""
    return list(map(bool, values)) == [key <= query for query in range(size) for key in range(size)]


# --- taking masks apart ---------------------------------------------------------------------------------------------


def condition_of(bias: SSAValue, site: Site, *, finite: bool) -> SSAValue | None:
    """The i1 value that is true where a bias is 0, which hides keys elsewhere; None where the bias is something else.

    finite: also where the hiding number is finite.
    """
    view = bias.owner
    if isinstance(view, (ReshapeOp, BroadcastOp, SliceOp, TransposeOp)):
        inner = condition_of(view.x, site, finite=finite)
        return None if inner is None else site.make(type(view), inner, **view.properties)
    if (cast := defined(bias, CastOp)) is not None and tensor(cast.x).dtype.is_float:
        return condition_of(cast.x, site, finite=finite)
    if (select := mapped(bias, "select")) is not None:
        condition, yes, no = select.args
        if tensor(condition).dims != tensor(bias).dims:
            return None
        if splat(yes) == 0 and is_hiding(no, finite=finite):
            return condition
        return site.map("not", condition) if is_hiding(yes, finite=finite) and splat(no) == 0 else None
    if (product := mapped(bias, "mul")) is not None and is_hiding(product.args[1], finite=finite):
        return _is_zero(product.args[0], site)
    return None


def _is_zero(value: SSAValue, site: Site) -> SSAValue | None:
    """The truth of value == 0, for a value that is 0 or 1: cast(c), or 1 - cast(c)."""
    cast = defined(value, CastOp)
    if cast is not None and tensor(cast.x).dtype.kind == "bool":
        return site.map("not", cast.x)
    gap = mapped(value, "sub")
    if gap is None or splat(gap.args[0]) != 1:
        return None
    cast = defined(gap.args[1], CastOp)
    return cast.x if cast is not None and tensor(cast.x).dtype.kind == "bool" else None


def conjuncts(condition: SSAValue, site: Site) -> list[SSAValue]:
    """Conditions that must all hold for this one to hold."""
    both = mapped(condition, "and")
    if both is not None and tensor(condition).dtype.kind == "bool":
        return [part for arg in both.args for part in conjuncts(arg, site)]
    negated = mapped(condition, "not")
    either = None if negated is None else mapped(negated.args[0], "or")
    if either is not None:
        return [part for arg in either.args for part in conjuncts(site.map("not", arg), site)]
    return [condition]


# --- counted positions ----------------------------------------------------------------------------------------------


def count_of(value: SSAValue) -> Count | None:
    """How a value counts along one axis, if it does."""
    rank = tensor(value).rank
    match value.owner:
        case IotaOp() as op:
            return Count(op.axis.data - rank, op.start.data[0]) if counts_by_one(op) else None
        case PositionsOp():
            return Count(-1, Expr.of(0), value)
        case ReshapeOp() as op:
            return _moved(count_of(op.x), tensor(op.x).dims, op.dims.data)
        case BroadcastOp() | CastOp() as op:
            return count_of(op.x)
        case TransposeOp() as op:
            inner = count_of(op.x)
            return None if inner is None else _at(inner, list(op.permutation.data).index(inner.axis + rank) - rank)
        case SliceOp() as op:
            inner = count_of(op.x)
            if inner is None or inner.positions is not None or op.strides[inner.axis] != 1:
                return None
            return Count(inner.axis, inner.start + op.starts.data[inner.axis])
        case MapOp() as op if op.fn.data in ("add", "sub"):
            return _shifted(op)
        case _:
            return None


def _at(count: Count, axis: int) -> Count:
    return Count(axis, count.start, count.positions)


def _moved(count: Count | None, before: Sequence[Expr], after: Sequence[Expr]) -> Count | None:
    """The same count after a reshape that only adds or drops axes of size 1."""
    if count is None or wide_dims(before) != wide_dims(after):
        return None
    behind = wide_dims(before[len(before) + count.axis :])
    place, left = len(after), len(behind)
    while left:
        place -= 1
        left -= after[place].constant != 1
    return _at(count, place - len(after))


def size_of(value: SSAValue) -> Expr | None:
    """A value that is one integer known as a dim expression."""
    dim, number = defined(value, DimOp), splat(value)
    if dim is not None:
        return dim.value.data[0]
    return Expr.of(number) if isinstance(number, int) else None


def _shifted(op: MapOp) -> Count | None:
    """A count plus or minus a size."""
    pairs = [(op.args[0], op.args[1])] + ([(op.args[1], op.args[0])] if op.fn.data == "add" else [])
    for counted, shift in pairs:
        count, by = count_of(counted), size_of(shift)
        if count is not None and by is not None:
            return Count(count.axis, count.start + (by if op.fn.data == "add" else -by), count.positions)
    return None


def bound_of(condition: SSAValue) -> Bound | None:
    """The condition as a bound on the distance of key and query, if it compares the two by counting both."""
    negated = mapped(condition, "not")
    compare = mapped(condition if negated is None else negated.args[0], *INVERSE)
    if compare is None:
        return None
    relation = compare.fn.data if negated is None else INVERSE[compare.fn.data]
    left, right, extra = count_of(compare.args[0]), count_of(compare.args[1]), Expr.of(0)
    gap, size = mapped(compare.args[0], "sub"), size_of(compare.args[1])
    if gap is not None and size is not None:
        # a - b < c is a < b + c
        left, right, extra = count_of(gap.args[0]), count_of(gap.args[1]), size
    if left is None or right is None or {left.axis, right.axis} != {-1, -2}:
        return None
    if (left.positions is None) != (right.positions is None):
        return None
    offset = right.start + extra - left.start
    if left.axis == -2:
        left, right, relation, offset = right, left, MIRROR[relation], -offset
    if relation in ("lt", "gt"):
        offset = offset + (-1 if relation == "lt" else 1)
    return Bound(relation in ("le", "lt"), offset, right.positions, left.positions)


def triangle(condition: SSAValue) -> bool:
    """A stored matrix of truths that is the lower triangle."""
    constant, dims = defined(condition, ConstantOp), tensor(condition).dims
    if constant is None or not dims:
        return False
    # size * size elements, so that every axis but the last two has size 1
    size = dims[-1].constant
    return size is not None and is_lower_triangle(constant.values.data, size)


def numbers_shared(condition: SSAValue) -> tuple[SSAValue, list[Expr]] | None:
    """Where a condition holds for queries and keys with equal numbers: the integers [.., T] that both read, and the
    dims [.., T, 1] as which queries read them."""
    negated = mapped(condition, "not")
    compare = mapped(condition, "eq") if negated is None else mapped(negated.args[0], "ne")
    if compare is None:
        return None
    (q_dims, of_queries), (k_dims, of_keys) = sorted((_line(x) for x in compare.args), key=lambda x: _is_row(x[0]))
    if of_queries is not of_keys or not tensor(of_keys).dtype.is_integer or len(q_dims) < 2 or not _is_row(k_dims):
        return None
    size, lead = tensor(of_keys).dims[-1], [Expr.of(1)] * (len(q_dims) - len(k_dims))
    alike = q_dims == [*lead, *k_dims[:-2], size, Expr.of(1)][-len(q_dims) :] and k_dims[-1] == size
    return (of_keys, q_dims) if alike else None


def _line(value: SSAValue) -> tuple[list[Expr], SSAValue]:
    """The dims of a value before it is stretched, and the value before axes of size 1 were added."""
    while (stretched := defined(value, BroadcastOp)) is not None:
        value = stretched.x
    dims = list(tensor(value).dims)
    while (shaped := defined(value, ReshapeOp)) is not None and wide_dims(dims) == wide_dims(tensor(shaped.x).dims):
        value = shaped.x
    return dims, value


def _is_row(dims: Sequence[Expr]) -> bool:
    """Along keys: the last axis is not one of size 1, and the one before it is."""
    return bool(dims) and dims[-1].constant != 1 and (len(dims) == 1 or dims[-2].constant == 1)


def all_of(conditions: Iterable[SSAValue], site: Site) -> SSAValue | None:
    """One condition that holds where all do; None for none."""
    found: SSAValue | None = None
    for condition in conditions:
        found = condition if found is None else site.map("and", found, condition)
    return found

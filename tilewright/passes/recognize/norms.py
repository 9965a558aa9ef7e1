"""Layer norm and RMS norm written out by mean, variance and root, and what scales, shifts and casts around them."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import SSAValue

from tilewright.ir.dtypes import F32
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.reduction import NormOp
from tilewright.ir.types import TensorType
from tilewright.passes.recognize.matching import other_operand, over_last_axis
from tilewright.passes.rewriting import Rules, Site, defined, mapped, near, same_dims, splat, with_splat

NORMS = Rules()


@dataclass(frozen=True)
class Spread:
    """What y is divided by: the root of mean(square) + eps."""

    square: SSAValue
    eps: float


# --- conditions -----------------------------------------------------------------------------------------------------


def divides_by_count(factor: float, x: SSAValue) -> bool:
    """A sum over the last axis times this factor is the mean: not the unbiased estimate over one element less."""
    count = tensor(x).dims[-1].constant
    return count is not None and count > 0 and near(factor, 1.0 / count, tensor(x).dtype)


def is_square_of(square: SSAValue, y: SSAValue) -> bool:
    """y * y."""
    op = mapped(square, "mul")
    return op is not None and op.args[0] is y and op.args[1] is y


def is_mean_of(mean: SSAValue, x: SSAValue) -> bool:
    """The mean of x over its last axis."""
    return mean_over_rows(mean) is x


def is_column_weight(value: SSAValue, x: TensorType) -> bool:
    """One element per column, of x's dtype."""
    return tensor(value) == TensorType.of(x.dims[-1:], x.dtype)


def rounds_once_anyway(x: TensorType) -> bool:
    """Scaling inside the norm drops no rounding: statistics and result have the same precision."""
    return x.dtype.bits >= F32.bits


def has_no_scale(norm: NormOp) -> bool:
    """Neither weight nor bias yet."""
    return norm.weight is None and norm.bias is None


def has_no_shift(norm: NormOp) -> bool:
    """No bias yet."""
    return norm.bias is None


def is_computed_in_f32_anyway(x: TensorType, wide: TensorType) -> bool:
    """The norm of the narrow values casts them to f32 by itself."""
    return wide.dtype == F32 and x.dtype.is_float and x.dtype.bits < F32.bits


# --- parts ----------------------------------------------------------------------------------------------------------


def mean_over_rows(value: SSAValue) -> SSAValue | None:
    """x where the value is the mean of x over its last axis: by `mean`, or by a sum over the fixed count."""
    x = over_last_axis(value, "mean")
    if x is not None:
        return x
    op = mapped(value, "mul", "div")
    found = None if op is None else with_splat(op)
    total = None if found is None else over_last_axis(found[0], "sum")
    if op is None or found is None or total is None:
        return None
    factor = found[1] if op.fn.data == "mul" else (1.0 / found[1] if found[1] and op.args[0] is found[0] else 0.0)
    return total if divides_by_count(factor, total) else None


def spread_of(value: SSAValue) -> Spread | None:
    """The parts of sqrt(mean(square) + eps), given what is under the root."""
    op = mapped(value, "add")
    found = None if op is None else with_splat(op)
    if found is None:
        return None
    square = mean_over_rows(found[0])
    return None if square is None else Spread(square, found[1])


def divided_by_root(op: MapOp) -> tuple[SSAValue, SSAValue] | None:
    """(y, s) where the op is y / sqrt(s), by rsqrt, by a division, or by a reciprocal."""
    if op.fn.data == "div" and (root := mapped(op.args[1], "sqrt")) is not None:
        return op.args[0], root.args[0]
    if op.fn.data != "mul":
        return None
    for arg in op.args:
        y = other_operand(op, arg)
        if y is None:
            continue
        if (root := mapped(arg, "rsqrt")) is not None:
            return y, root.args[0]
        inverse = mapped(arg, "reciprocal")
        root = None if inverse is None else mapped(inverse.args[0], "sqrt")
        if root is not None:
            return y, root.args[0]
    return None


# --- rules ----------------------------------------------------------------------------------------------------------


@NORMS.on(MapOp)
def norm(op: MapOp, site: Site) -> SSAValue | None:
    """y / sqrt(mean(y^2) + eps) with y = x - mean(x), or y = x."""
    parts = divided_by_root(op)
    if parts is None:
        _say_eps_is_outside(op, site)
        return None
    y, under = parts
    if not same_dims(y, op.out):
        return None
    spread = spread_of(under)
    if spread is None:
        if mean_over_rows(under) is not None:
            site.refuse("norm: no eps under the root")
        return None
    centered = mapped(y, "sub")
    x = None if centered is None or not is_mean_of(centered.args[1], centered.args[0]) else centered.args[0]
    if is_square_of(spread.square, y):
        kind, source = ("rms", y) if x is None else ("layer", x)
        return site.make(NormOp, source, None, None, kind=kind, eps=spread.eps)
    if mapped(spread.square, "mul") is not None:
        site.refuse("norm: the squares under the root are not of what is divided")
    return None


@NORMS.on(MapOp, name="norm")
def norm_by_two_means(op: MapOp, site: Site) -> SSAValue | None:
    """(x - mean(x)) / sqrt(mean(x^2) - mean(x)^2 + eps)."""
    parts = divided_by_root(op)
    total = None if parts is None else mapped(parts[1], "add")
    found = None if total is None else with_splat(total)
    gap = None if found is None else mapped(found[0], "sub")
    centered = None if parts is None else mapped(parts[0], "sub")
    if found is None or gap is None or centered is None or not same_dims(centered.out, op.out):
        return None
    x, mean = centered.args
    square = mean_over_rows(gap.args[0])
    if square is None or not is_mean_of(mean, x) or not is_square_of(square, x) or not is_square_of(gap.args[1], mean):
        return None
    return site.make(NormOp, x, None, None, kind="layer", eps=found[1])


def _say_eps_is_outside(op: MapOp, site: Site) -> None:
    """y / (sqrt(var) + eps) is another function."""
    total = mapped(op.args[1], "add") if op.fn.data == "div" else None
    found = None if total is None else with_splat(total)
    root = None if found is None else mapped(found[0], "sqrt")
    if root is not None and mean_over_rows(root.args[0]) is not None:
        site.refuse("norm: eps is added outside the root")


@NORMS.on(MapOp)
def scaled_norm(op: MapOp, site: Site) -> SSAValue | None:
    """A column vector times a norm is the norm's weight."""
    if op.fn.data != "mul":
        return None
    for arg in op.args:
        inner, weight = defined(arg, NormOp), other_operand(op, arg)
        if inner is None or weight is None or not inner.out.has_one_use() or not is_column_weight(weight, tensor(arg)):
            continue
        if splat(weight) is None and has_no_scale(inner) and rounds_once_anyway(tensor(arg)):
            return site.make(NormOp, inner.x, weight, None, kind=inner.kind, eps=inner.eps)
    return None


@NORMS.on(MapOp)
def shifted_norm(op: MapOp, site: Site) -> SSAValue | None:
    """A norm plus a column vector: the norm's bias."""
    if op.fn.data != "add":
        return None
    for arg in op.args:
        inner, bias = defined(arg, NormOp), other_operand(op, arg)
        if inner is None or bias is None or not inner.out.has_one_use() or not is_column_weight(bias, tensor(arg)):
            continue
        if splat(bias) is None and has_no_shift(inner) and rounds_once_anyway(tensor(arg)):
            return site.make(NormOp, inner.x, inner.weight, bias, kind=inner.kind, eps=inner.eps)
    return None


@NORMS.on(CastOp)
def norm_of_narrow_values(op: CastOp, site: Site) -> SSAValue | None:
    """Cast up, normalise, cast down: what a norm of narrow values does."""
    inner = defined(op.x, NormOp)
    up = None if inner is None else defined(inner.x, CastOp)
    if inner is None or up is None or not has_no_scale(inner) or tensor(up.x).dtype != tensor(op.out).dtype:
        return None
    if not is_computed_in_f32_anyway(tensor(up.x), tensor(up.out)):
        return None
    return site.make(NormOp, up.x, None, None, kind=inner.kind, eps=inner.eps)

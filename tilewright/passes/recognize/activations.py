"""Activations written out: gelu by erf or tanh, sigmoid, silu, softplus, relu; and softmax by exponentials."""

from __future__ import annotations

import math

from xdsl.ir import SSAValue

from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.reduction import ReduceOp, SoftmaxOp
from tilewright.passes.recognize.matching import Polynomial, is_polynomial, leaves, other_operand, polynomial, within
from tilewright.passes.rewriting import Rules, Site, defined, mapped, near, same_dims, splat

ACTIVATIONS = Rules()

HALF_X_PLUS_HALF_XF: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}  # 0.5 x (1 + f)
INNER = math.sqrt(2 / math.pi)

# --- conditions -----------------------------------------------------------------------------------------------------


def is_half_of_x_and_xf(root: MapOp, x: SSAValue, f: SSAValue) -> bool:
    """The root is 0.5 * x * (1 + f), in any order."""
    return is_polynomial(polynomial(root.out, [x, f]), HALF_X_PLUS_HALF_XF, tensor(root.out).dtype)


def is_erf_argument(argument: SSAValue, x: SSAValue) -> bool:
    """x / sqrt(2)."""
    wanted: Polynomial = {(1,): math.sqrt(0.5)}
    return is_polynomial(polynomial(argument, [x]), wanted, tensor(x).dtype)


def is_tanh_argument(argument: SSAValue, x: SSAValue) -> bool:
    """sqrt(2 / pi) * (x + 0.044715 x^3)."""
    wanted: Polynomial = {(1,): INNER, (3,): INNER * 0.044715}
    return is_polynomial(polynomial(argument, [x]), wanted, tensor(x).dtype)


def is_one(value: SSAValue) -> bool:
    """The number 1."""
    found = splat(value)
    return found is not None and near(float(found), 1.0, tensor(value).dtype)


def is_sum_of(total: ReduceOp, terms: SSAValue) -> bool:
    """The sum of exactly these terms over one axis, kept as size 1."""
    return total.fn.data == "sum" and total.x is terms and len(total.axes.data) == 1 and total.keepdims.data


def is_max_of(top: ReduceOp, x: SSAValue, axis: int) -> bool:
    """The largest of x along the axis, kept as size 1."""
    return top.fn.data == "max" and top.x is x and top.axes.data == (axis,) and top.keepdims.data


# --- rules ----------------------------------------------------------------------------------------------------------


@ACTIVATIONS.on(MapOp)
def gelu(op: MapOp, site: Site) -> SSAValue | None:
    """0.5 x (1 + erf(x / sqrt 2)), or its tanh form."""
    if op.fn.data not in ("mul", "add"):
        return None
    for fn, name, fits in (("erf", "gelu", is_erf_argument), ("tanh", "gelu_tanh", is_tanh_argument)):
        for inner in within(op.out, fn):
            for x in leaves(inner.args[0]):
                if not same_dims(x, op.out) or not is_half_of_x_and_xf(op, x, inner.out):
                    continue
                if fits(inner.args[0], x):
                    return site.map(name, x)
                if x is not inner.args[0]:
                    site.refuse(f"{name}: the argument of {fn} has other coefficients")
    return None


def one_plus_exp_of_minus(value: SSAValue) -> SSAValue | None:
    """x where the value is 1 + exp(-x)."""
    total = mapped(value, "add")
    exponential = None if total is None or not is_one(total.args[1]) else mapped(total.args[0], "exp")
    negated = None if exponential is None else mapped(exponential.args[0], "neg")
    return None if negated is None else negated.args[0]


@ACTIVATIONS.on(MapOp)
def sigmoid(op: MapOp, site: Site) -> SSAValue | None:
    """1 / (1 + exp(-x))."""
    if op.fn.data == "reciprocal":
        x = one_plus_exp_of_minus(op.args[0])
    elif op.fn.data == "div" and is_one(op.args[0]):
        x = one_plus_exp_of_minus(op.args[1])
    else:
        return None
    return site.map("sigmoid", x) if x is not None and same_dims(x, op.out) else None


@ACTIVATIONS.on(MapOp)
def silu(op: MapOp, site: Site) -> SSAValue | None:
    """x * sigmoid(x), or x / (1 + exp(-x))."""
    if op.fn.data == "div":
        x = one_plus_exp_of_minus(op.args[1])
        return site.map("silu", op.args[0]) if x is op.args[0] else None
    if op.fn.data != "mul":
        return None
    for arg in op.args:
        gate = mapped(arg, "sigmoid")
        if gate is not None and is_gate_of(gate, other_operand(op, arg)):
            return site.map("silu", gate.args[0])
    return None


def is_gate_of(gate: MapOp, x: SSAValue | None) -> bool:
    """The sigmoid is of x itself."""
    return gate.args[0] is x


@ACTIVATIONS.on(MapOp)
def softplus(op: MapOp, site: Site) -> SSAValue | None:
    """log(1 + exp(x))."""
    if op.fn.data == "log1p":
        inner = mapped(op.args[0], "exp")
    elif op.fn.data == "log":
        total = mapped(op.args[0], "add")
        inner = None if total is None or not is_one(total.args[1]) else mapped(total.args[0], "exp")
    else:
        return None
    return site.map("softplus", inner.args[0]) if inner is not None and same_dims(inner.out, op.out) else None


@ACTIVATIONS.on(MapOp)
def relu(op: MapOp, site: Site) -> SSAValue | None:
    """max(x, 0)."""
    if op.fn.data != "max" or splat(op.args[1]) != 0 or not same_dims(op.args[0], op.out):
        return None
    return site.map("relu", op.args[0])


def shifted(z: SSAValue, axis: int) -> SSAValue:
    """x where z is x minus its largest element along the axis, else z: softmax shifts by itself."""
    gap = mapped(z, "sub")
    top = None if gap is None else defined(gap.args[1], ReduceOp)
    return gap.args[0] if gap is not None and top is not None and is_max_of(top, gap.args[0], axis) else z


@ACTIVATIONS.on(MapOp)
def softmax(op: MapOp, site: Site) -> SSAValue | None:
    """exp(z) / sum(exp(z)), with z = x - max(x) or without; and z - log(sum(exp(z))), its logarithm."""
    if op.fn.data == "div":
        weights, divisor = op.args
    elif op.fn.data == "mul" and (inverse := mapped(op.args[1], "reciprocal")) is not None:
        weights, divisor = op.args[0], inverse.args[0]
    elif op.fn.data == "sub" and (log := mapped(op.args[1], "log")) is not None:
        return _log_softmax(op, log, site)
    else:
        return None
    exponential, total = mapped(weights, "exp"), defined(divisor, ReduceOp)
    if exponential is None or total is None or not is_sum_of(total, weights):
        return None
    axis = total.axes.data[0]
    return site.make(SoftmaxOp, shifted(exponential.args[0], axis), axis=axis)


def _log_softmax(op: MapOp, log: MapOp, site: Site) -> SSAValue | None:
    total = defined(log.args[0], ReduceOp)
    exponential = None if total is None else mapped(total.x, "exp")
    if total is None or exponential is None or not is_sum_of(total, exponential.out):
        return None
    if exponential.args[0] is not op.args[0]:
        return None
    axis = total.axes.data[0]
    return site.make(SoftmaxOp, shifted(op.args[0], axis), axis=axis, log=True)

"""Rules on elementwise arithmetic. Every one gives the same bits, -0.0 and NaN included, with one exception.

The exception: `pow` with the exponents 2, 3, 0.5, -0.5 and -1 becomes what torch itself computes for a scalar exponent
(`aten/native/cpu/PowKernel.cpp`), which differs from the general power by a rounding and at -0.0 and -inf.
"""

from __future__ import annotations

import math

from xdsl.ir import SSAValue

from tilewright.ir.dtypes import DType
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.shape import BroadcastOp
from tilewright.passes.rewriting import Rules, Site, defined, mapped, same_dims, splat

ARITHMETIC = Rules()

COMMUTATIVE = frozenset({"add", "mul", "min", "max", "eq", "ne", "and", "or", "xor"})
MIRRORED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}

# --- conditions -----------------------------------------------------------------------------------------------------


def is_negative_zero(value: float) -> bool:
    """The number is -0.0, which 0.0 == -0.0 does not tell."""
    return value == 0 and math.copysign(1.0, value) < 0


def adds_nothing(value: float, dtype: DType) -> bool:
    """x + value is x for every x: of floats only -0.0 does it, because -0.0 + 0.0 is 0.0."""
    return is_negative_zero(value) if dtype.is_float else value == 0


def subtracts_nothing(value: float, dtype: DType) -> bool:
    """x - value is x for every x: of floats only 0.0 does it, because -0.0 - -0.0 is 0.0."""
    return value == 0 and not (dtype.is_float and is_negative_zero(value))


def is_exact_reciprocal(value: float, dtype: DType) -> bool:
    """1 / value is a normal number of the dtype without rounding: value is a power of two in range."""
    if not dtype.is_float:
        return False
    # of 0, inf and NaN the mantissa is not 0.5
    mantissa, exponent = math.frexp(abs(value))
    largest = {"f64": 1021, "f32": 125, "bf16": 125, "f16": 13}[dtype.name]
    return mantissa == 0.5 and abs(exponent - 1) <= largest


def is_identity_of(fn: str, value: float) -> bool:
    """max(x, value) or min(x, value) is x for every x, NaN included."""
    return value == (-math.inf if fn == "max" else math.inf)


def is_boolean(value: SSAValue) -> bool:
    """The value is i1."""
    return tensor(value).dtype.kind == "bool"


def gives_dims(x: SSAValue, op: MapOp) -> bool:
    """x alone has the dims of the result."""
    return tensor(x).dims == tensor(op.out).dims


# --- order ----------------------------------------------------------------------------------------------------------


@ARITHMETIC.on(MapOp)
def constants_go_right(op: MapOp, site: Site) -> SSAValue | None:
    """2 + x is x + 2, 2 < x is x > 2."""
    fn = op.fn.data
    if fn not in COMMUTATIVE and fn not in MIRRORED:
        return None
    left, right = op.args
    if splat(left) is None or splat(right) is not None:
        return None
    return site.map(MIRRORED.get(fn, fn), right, left)


# --- neutral elements -----------------------------------------------------------------------------------------------


@ARITHMETIC.on(MapOp)
def neutral_operand(op: MapOp, site: Site) -> SSAValue | None:
    """x + 0, x - 0, x * 1, x / 1, x ^ 1, max(x, -inf): x, where that is so for every x."""
    if op.function.arity != 2:
        return None
    x, value, dtype = op.args[0], splat(op.args[1]), tensor(op.args[0]).dtype
    if value is None:
        return None
    neutral = {
        "add": lambda: adds_nothing(value, dtype),
        "sub": lambda: subtracts_nothing(value, dtype),
        "mul": lambda: value == 1,
        "div": lambda: value == 1,
        "pow": lambda: value == 1,
        "max": lambda: is_identity_of("max", value),
        "min": lambda: is_identity_of("min", value),
        "and": lambda: is_boolean(x) and value == 1,
        "or": lambda: is_boolean(x) and value == 0,
        "xor": lambda: value == 0,
    }.get(op.fn.data)
    return x if neutral is not None and neutral() and gives_dims(x, op) else None


@ARITHMETIC.on(MapOp)
def absorbing_operand(op: MapOp, site: Site) -> SSAValue | None:
    """x and false is false, x or true is true."""
    if op.fn.data not in ("and", "or") or not is_boolean(op.args[0]):
        return None
    absorbs = 0 if op.fn.data == "and" else 1
    if splat(op.args[1]) != absorbs:
        return None
    return site.constant(absorbs, tensor(op.out).dtype, tensor(op.out).dims)


# --- signs ----------------------------------------------------------------------------------------------------------


@ARITHMETIC.on(MapOp)
def twice_the_same(op: MapOp, site: Site) -> SSAValue | None:
    """-(-x) and not not x are x; |(|x|)| and relu relu x need one; |-x| is |x|."""
    fn = op.fn.data
    if fn in ("neg", "not") and (inner := mapped(op.args[0], fn)) is not None:
        return inner.args[0]
    if fn in ("abs", "relu") and (inner := mapped(op.args[0], fn)) is not None:
        return inner.out
    if fn == "abs" and (inner := mapped(op.args[0], "neg")) is not None:
        return site.map("abs", inner.args[0])
    return None


@ARITHMETIC.on(MapOp)
def negated_term(op: MapOp, site: Site) -> SSAValue | None:
    """x + -y is x - y, x - -y is x + y, x * -1 is -x."""
    if op.fn.data in ("add", "sub") and (inner := mapped(op.args[1], "neg")) is not None:
        return site.map("sub" if op.fn.data == "add" else "add", op.args[0], inner.args[0])
    if op.fn.data == "add" and (inner := mapped(op.args[0], "neg")) is not None:
        return site.map("sub", op.args[1], inner.args[0])
    if op.fn.data == "mul" and splat(op.args[1]) == -1 and gives_dims(op.args[0], op):
        return site.map("neg", op.args[0])
    return None


# --- cheaper forms --------------------------------------------------------------------------------------------------


@ARITHMETIC.on(MapOp)
def divide_by_power_of_two(op: MapOp, site: Site) -> SSAValue | None:
    """x / 4 is x * 0.25."""
    dtype = tensor(op.out).dtype
    bound = splat(op.args[1]) if op.fn.data == "div" else None
    if bound is None or not is_exact_reciprocal(float(bound), dtype):
        return None
    return site.map("mul", op.args[0], site.constant(1.0 / bound, dtype, tensor(op.args[1]).dims))


@ARITHMETIC.on(MapOp)
def one_divided_by(op: MapOp, site: Site) -> SSAValue | None:
    """1 / x is the reciprocal of x."""
    if (
        op.fn.data != "div"
        or splat(op.args[0]) != 1
        or not tensor(op.out).dtype.is_float
        or not gives_dims(op.args[1], op)
    ):
        return None
    return site.map("reciprocal", op.args[1])


@ARITHMETIC.on(MapOp)
def power_by_constant(op: MapOp, site: Site) -> SSAValue | None:
    """Powers that torch computes by other means than the general one."""
    exponent = splat(op.args[1]) if op.fn.data == "pow" else None
    if exponent is None or not gives_dims(op.args[0], op):
        return None
    x = op.args[0]
    match float(exponent):
        case 2.0:
            return site.map("mul", x, x)
        case 3.0:
            return site.map("mul", site.map("mul", x, x), x)
        case 0.5:
            return site.map("sqrt", x)
        case -0.5:
            return site.map("rsqrt", x)
        case -1.0:
            return site.map("reciprocal", x)
        case _:
            return None


# --- selections and masks -------------------------------------------------------------------------------------------


@ARITHMETIC.on(MapOp)
def select_is_decided(op: MapOp, site: Site) -> SSAValue | None:
    """A constant condition, or the same value on both sides, leaves nothing to select."""
    if op.fn.data != "select":
        return None
    condition, yes, no = op.args
    if (inner := mapped(condition, "not")) is not None:
        return site.map("select", inner.args[0], no, yes)
    value = splat(condition)
    if value is None and yes is not no:
        return None
    chosen = no if value == 0 else yes
    return chosen if gives_dims(chosen, op) else site.make(BroadcastOp, chosen, dims=tensor(op.out).dims)


@ARITHMETIC.on(MapOp)
def truth_of_a_truth(op: MapOp, site: Site) -> SSAValue | None:
    """Comparing a cast i1 with 0 or 1 gives the i1 back, or its negation."""
    if op.fn.data not in ("eq", "ne") or splat(op.args[1]) not in (0, 1):
        return None
    cast = defined(op.args[0], CastOp)
    if cast is None or not is_boolean(cast.x) or not same_dims(cast.x, op.out):
        return None
    agrees = (op.fn.data == "eq") == (splat(op.args[1]) == 1)
    return cast.x if agrees else site.map("not", cast.x)

"""The loop IR's ops. An op with one result *is* its value; the others are statements.

Everything here is exact: two printers that follow these docstrings produce the same bits, but for `Fma`, whose
docstring says what a machine class may decide. bf16 and f16 are storage dtypes: they are loaded, stored, shuffled,
selected, bitcast and cast, and never computed with, but by the ops on registers in `matrix`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tilewright.ir.loops.matrix import MatrixDot, MatrixLoad, MatrixStore, MatrixZero
from tilewright.ir.loops.memory import Memory
from tilewright.ir.loops.values import Argument, Result, Value

UnaryKind = Literal["neg", "abs", "sqrt", "floor", "ceil", "trunc", "round", "fraction", "not"]
BinaryKind = Literal[
    "add", "sub", "mul", "div", "floordiv", "mod", "truncdiv", "truncmod",
    "min", "max", "minimum", "maximum", "and", "or", "xor", "shl", "shr", "ushr", "scale",
]  # fmt: skip
Predicate = Literal["eq", "ne", "lt", "le", "gt", "ge"]
ReduceKind = Literal["add", "mul", "min", "max", "minimum", "maximum", "and", "or"]


@dataclass(slots=True, eq=False)
class Unary(Value):
    """One operand, same type out.

    neg (floats: flips the sign bit), abs; floats only: sqrt (correctly rounded), floor, ceil, trunc, round (half to
    even); f32 only: fraction (a - floor(a), rounded down, so that it is below 1; 0 has either sign, and of an infinite
    number it is 0 or NaN); integers and masks only: not (all bits).
    """

    kind: UnaryKind
    a: Value


@dataclass(slots=True, eq=False)
class Binary(Value):
    """Two operands of one type, that type out.

    Integers wrap; u8 compares, divides and shifts unsigned. Per kind:
      add sub mul        integers and floats
      div                floats
      floordiv mod       integers, rounding to minus infinity (mod has the divisor's sign)
      truncdiv truncmod  integers, rounding to zero, as C does; dividing by 0 is a fault of the kernel in all four
      min max            integers; floats as machines have them: `a < b ? a : b`, so b where unordered or equal
      minimum maximum    floats as torch has them: NaN where either is NaN (equal operands give b)
      and or xor         integers and masks
      shl shr ushr       integers; shr keeps the sign of signed types, ushr never does; the amount is 0..bits-1
      scale              f32: a * 2**b, rounded once; |a| is 0 or 1/2..2, b a whole number of -252..254, or a is NaN
    """

    kind: BinaryKind
    a: Value
    b: Value


@dataclass(slots=True, eq=False)
class Fma(Value):
    """a * b + c on floats, rounded once where the machine class has fused multiply-add (avx2 and up).

    The generic class has no such instruction and rounds the product and the sum. Bits are therefore promised within one
    machine class only.
    """

    a: Value
    b: Value
    c: Value


@dataclass(slots=True, eq=False)
class Compare(Value):
    """A mask of a <predicate> b. With a NaN every predicate is false but `ne`, which is true."""

    predicate: Predicate
    a: Value
    b: Value


@dataclass(slots=True, eq=False)
class Select(Value):
    """`a` where the mask is set, else `b`, lane by lane; a one-lane mask chooses for all lanes."""

    condition: Value
    a: Value
    b: Value


@dataclass(slots=True, eq=False)
class Cast(Value):
    """A number in another dtype, lanes unchanged, as torch converts on a CPU.

    float -> narrower float: to nearest even; any NaN is 0x7fc0 in bf16. f64 -> bf16 and f16 go through f32.
    float -> i32, i64: towards zero; the least integer where out of range or NaN.
    float -> i8, i16, u8: through i32, low bits.
    integer -> float: to nearest even. integer -> integer: sign or zero extended, or low bits.
    anything -> i1: nonzero (NaN too). i1 -> anything: 0 or 1.
    normal: of f32 -> bf16, that the number is not subnormal, and that a NaN may become any NaN: machines have an
    instruction for that. flush: of f32 -> bf16, the same of any number, subnormal ones becoming zeros of their sign.
    """

    a: Value
    normal: bool = False
    flush: bool = False


@dataclass(slots=True, eq=False)
class Bitcast(Value):
    """The same bits as another type of the same total width; lower lanes come first. Masks have no bits."""

    a: Value


@dataclass(slots=True, eq=False)
class Broadcast(Value):
    """A scalar in every lane."""

    a: Value


@dataclass(slots=True, eq=False)
class Shuffle(Value):
    """Lanes picked by constant numbers from the concatenation of `a` and `b` (which have one type)."""

    a: Value
    b: Value
    indices: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Extract(Value):
    """One lane as a scalar; the lane number is constant."""

    a: Value
    lane: int


@dataclass(slots=True, eq=False)
class Reduce(Value):
    """All lanes combined to a scalar in a fixed tree: while n > 1 lanes are left, lane l of the lower half takes lane
    l + n/2 (`x[l] op x[l + n/2]`). The lane count is a power of two."""

    kind: ReduceKind
    a: Value


@dataclass(slots=True, eq=False)
class Load(Value):
    """Contiguous elements `memory[offset + lane]`. Lanes outside `mask` touch no memory and hold `fill` (None: 0)."""

    memory: Memory
    offset: Value
    mask: Value | None = None
    fill: Value | None = None


@dataclass(slots=True, eq=False)
class Gather(Value):
    """Elements `memory[offset + indices[lane]]`; indices are i32 or i64 lanes. Mask and fill as in `Load`."""

    memory: Memory
    offset: Value
    indices: Value
    mask: Value | None = None
    fill: Value | None = None


@dataclass(slots=True, eq=False)
class Store:
    """`memory[offset + lane] = value[lane]` for the lanes in `mask`.

    streaming: past the caches; the offset is a multiple of the lanes, and the memory a buffer.
    """

    value: Value
    memory: Memory
    offset: Value
    mask: Value | None = None
    streaming: bool = False


@dataclass(slots=True, eq=False)
class Scatter:
    """`memory[offset + indices[lane]] = value[lane]`; indices of set lanes are distinct."""

    value: Value
    memory: Memory
    offset: Value
    indices: Value
    mask: Value | None = None


@dataclass(slots=True, eq=False)
class Prefetch:
    """Asks for the memory around `memory[offset]` to be brought near, to be read soon.

    A request about time, never about results: the place may lie outside the memory, and nothing is read or counted.
    near: into the level next to the registers; else only as far as the last level that a core has to itself.
    """

    memory: Memory
    offset: Value
    near: bool = True


@dataclass(slots=True, eq=False)
class Block:
    """Statements in order, the block's arguments, and the values it hands to the op it belongs to."""

    args: tuple[Argument, ...] = ()
    ops: list[Op] = field(default_factory=list)
    yields: tuple[Value, ...] = ()


@dataclass(slots=True, eq=False)
class For:
    """`for i in range(lo, hi, step)` with step > 0.

    `body.args` is (i, *carried); `body.yields` are the next carried values; `results` the last ones, which are `inits`
    when the range is empty. `unroll` asks the printer to repeat the body that often per iteration (a remainder loop
    follows): a request about code, never about results.
    """

    lo: Value
    hi: Value
    step: Value
    inits: tuple[Value, ...]
    body: Block
    results: tuple[Result, ...]
    unroll: int = 1


@dataclass(slots=True, eq=False)
class If:
    """One of two blocks, chosen by a scalar predicate; both yield values of the results' types."""

    condition: Value
    then: Block
    otherwise: Block
    results: tuple[Result, ...]


Op: TypeAlias = (
    Unary | Binary | Fma | Compare | Select | Cast | Bitcast | Broadcast | Shuffle | Extract | Reduce
    | Load | Gather | Store | Scatter | Prefetch | For | If | MatrixZero | MatrixLoad | MatrixStore | MatrixDot
)  # fmt: skip


def operands(op: Value | Op) -> tuple[Value, ...]:
    """The values an op reads, without those of its blocks; empty for leaves."""
    match op:
        case Binary(_, _, a, b) | Compare(_, _, a, b) | Shuffle(_, a, b):
            return (a, b)
        case Unary(_, _, a) | Cast(_, a) | Bitcast(_, a) | Broadcast(_, a) | Extract(_, a) | Reduce(_, _, a):
            return (a,)
        case Fma(_, a, b, c) | Select(_, a, b, c):
            return (a, b, c)
        case Load():
            return _present(op.offset, op.mask, op.fill)
        case Gather():
            return _present(op.offset, op.indices, op.mask, op.fill)
        case Store():
            return _present(op.value, op.offset, op.mask)
        case Scatter():
            return _present(op.value, op.offset, op.indices, op.mask)
        case For():
            return (op.lo, op.hi, op.step, *op.inits)
        case If():
            return (op.condition,)
        case Prefetch():
            return (op.offset,)
        case MatrixLoad() | MatrixStore():
            return (op.offset, op.stride)
        case _:
            return ()


def _present(*values: Value | None) -> tuple[Value, ...]:
    return tuple(v for v in values if v is not None)

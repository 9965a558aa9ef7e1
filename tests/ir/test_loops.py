"""The loop IR: what the builder folds and shares, what the verifier refuses, how a kernel reads."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.errors import IRError
from tilewright.ir.dims import Expr, ceildiv, floordiv, maximum, minimum, mod
from tilewright.ir.dtypes import BF16, F16, F32, I1, I8, I32, I64, U8
from tilewright.ir.loops import (
    BOOL,
    INDEX,
    Argument,
    Binary,
    Block,
    BufferArg,
    Cast,
    Const,
    For,
    If,
    LoopBuilder,
    LoopKernel,
    Reduce,
    Result,
    Select,
    Shuffle,
    Store,
    Value,
    mask,
    scalar,
    vec,
    verify_kernel,
)
from tilewright.ir.loops_interpreter import run_kernel


def test_types_are_one_object_each() -> None:
    assert vec(F32, 16) is vec(F32, 16)
    assert scalar(I64) is INDEX
    assert mask(1) is BOOL
    assert vec(F32, 8) is not vec(F32, 16)
    assert str(vec(BF16, 32)) == "bf16x32"


def test_constants_are_rounded_to_their_dtype_and_shared() -> None:
    b = LoopBuilder("k")
    assert b.const(0.1, F32).value == float(np.float32(0.1))  # type: ignore[attr-defined]
    assert b.const(0.1, F16).value == float(np.float16(0.1))  # type: ignore[attr-defined]
    assert b.const(1.005859375, BF16).value == 1.0078125  # type: ignore[attr-defined]  # a half, up to even
    assert b.const(1.00390625, BF16).value == 1.0  # type: ignore[attr-defined]  # a half, down to even
    assert b.const(300, U8).value == 44  # type: ignore[attr-defined]
    assert b.const(200, I8).value == -56  # type: ignore[attr-defined]
    assert b.const(1e39, F32).value == float("inf")  # type: ignore[attr-defined]
    assert b.const(2.0, F32, 4) is b.const(2, F32, 4)
    assert b.const(0.0, F32) is not b.const(-0.0, F32)


def test_index_arithmetic_folds_to_what_is_left() -> None:
    b = LoopBuilder("k")
    n = b.dim("n")
    assert b.add(n, 0) is n
    assert b.mul(1, n) is n
    assert b.floordiv(n, 1) is n
    assert b.min(n, n) is n
    assert b.sub(n, n) is b.index(0)
    assert b.mod(n, 1) is b.index(0)
    assert b.mul(n, 0) is b.index(0)
    assert b.floordiv(-7, 2) is b.index(-4)
    assert b.mod(-7, 2) is b.index(1)
    assert b.binary("truncdiv", -7, 2) is b.index(-3)
    assert b.binary("truncmod", -7, 2) is b.index(-1)
    assert b.ceildiv(33, 16) is b.index(3)
    once = b.add(b.add(n, 3), 4)
    assert isinstance(once, Binary)
    assert (once.a, once.b) == (n, b.index(7))
    assert b.sub(once, 7) is n
    assert b.compare("lt", n, n) is b.const(False, I1)
    assert b.compare("le", 2, 3) is b.const(True, I1)
    assert b.add(b.index(2**63 - 1), 1) is b.index(-(2**63))


def test_float_arithmetic_is_never_rewritten() -> None:
    b = LoopBuilder("k")
    x = b.buffer("x", F32)
    value = b.load(x, 0)
    for made in (b.add(value, 0.0), b.mul(value, 1.0), b.sub(value, value), b.add(b.const(1, F32), 2.0)):
        assert isinstance(made, Binary)
    assert isinstance(b.compare("eq", value, value), Value)
    assert not isinstance(b.is_nan(value), Const)


def test_pure_ops_are_shared_with_enclosing_blocks_and_not_with_siblings() -> None:
    b = LoopBuilder("k")
    n = b.dim("n")
    outside = b.mul(n, 3)
    with b.loop(0, n) as first:
        assert b.mul(n, 3) is outside
        assert b.mul(3, n) is outside
        inside = b.mul(first.index, n)
        assert b.mul(first.index, n) is inside
        local = b.add(n, 5)
    with b.loop(0, n):
        assert b.add(n, 5) is not local
    verify_kernel(b.finish())


def test_dims_expressions_become_the_same_numbers(rng: np.random.Generator) -> None:
    n, m = Expr.of("n"), Expr.of("m")
    expressions = [
        n * 3 - m + 7,
        floordiv(n * 5 + m, 7),
        mod(n + m * 2, 5),
        minimum(n, m) * maximum(n, 3),
        ceildiv(n * m, 16),
        Expr.of(0),
        floordiv(n, m) + mod(m, n),
    ]
    b = LoopBuilder("k")
    b.dim("n")
    outer = b.dim("outer")
    out = b.buffer("out", I64, writable=True)
    for place, expression in enumerate(expressions):
        b.store(b.expr(expression, {"m": b.add(outer, 1)}), out, place)
    kernel = b.finish()
    for _ in range(10):
        sizes = {"n": int(rng.integers(1, 50)), "m": int(rng.integers(1, 50))}
        got = np.zeros(len(expressions), np.int64)
        run_kernel(kernel, [got], {"n": sizes["n"], "outer": sizes["m"] - 1})
        assert got.tolist() == [e.evaluate(sizes) for e in expressions]


def test_unknown_symbols_are_named() -> None:
    b = LoopBuilder("k")
    b.dim("n")
    with pytest.raises(IRError, match="'heads' has no value here \\(known: n\\)"):
        b.expr("heads")


def test_scalars_and_numbers_take_the_type_beside_them() -> None:
    b = LoopBuilder("k")
    x = b.buffer("x", F32)
    one, many = b.load(x, 0), b.load(x, 0, 8)
    assert b.add(one, many).type is vec(F32, 8)
    assert b.fma(many, one, 1.5).type is vec(F32, 8)
    assert b.fma(2.0, one, many).type is vec(F32, 8)
    assert b.select(b.compare("lt", many, 0.0), one, 2.0).type is vec(F32, 8)
    assert b.compare("ge", many, one).type is mask(8)
    with pytest.raises(IRError, match="operands differ in type: f32 and i64"):
        b.add(one, b.dim("n"))
    with pytest.raises(IRError, match="an index is i64, this value is f32"):
        b.load(x, one)


def test_tail_masks_of_constant_counts_are_constants() -> None:
    b = LoopBuilder("k")
    assert b.tail_mask(16, 16) is b.const(True, I1, 16)
    assert b.tail_mask(99, 16) is b.const(True, I1, 16)
    assert b.tail_mask(-1, 16) is b.const(False, I1, 16)
    assert not isinstance(b.tail_mask(3, 16), Const)


def test_an_access_under_an_all_true_mask_is_a_plain_one() -> None:
    b = LoopBuilder("k")
    x = b.buffer("x", F32)
    loaded = b.load(x, 0, 16, mask=b.tail_mask(16, 16), fill=3.0)
    assert loaded.mask is None  # type: ignore[attr-defined]


def test_half_open_structure_is_refused() -> None:
    b = LoopBuilder("k")
    with (
        pytest.raises(IRError, match="loop body hands on nothing, its carries are \\(f32\\)"),
        b.loop(0, 4, 1, [b.const(0, F32)]),
    ):
        pass
    with (
        pytest.raises(IRError, match="hands on \\(i64\\), its carries are \\(f32\\)"),
        b.loop(0, 4, 1, [b.const(0, F32)]) as loop,
    ):
        loop.next(b.index(3))
    branch = b.branch(b.compare("eq", b.dim("n"), 3))
    with branch.then():
        branch.give(b.index(1))
    with pytest.raises(IRError, match="a branch has no `otherwise`"):
        b.finish()
    with pytest.raises(IRError, match="two sides of a branch give \\(i64\\) and \\(\\)"), branch.otherwise():
        pass
    with pytest.raises(IRError, match="a branch takes one predicate, not i1x8"):
        b.branch(b.const(True, I1, 8))


X = BufferArg("x", F32)
Y = BufferArg("y", F32, writable=True)
ZERO = Const(INDEX, 0)
VECTOR = Const(vec(F32, 8), 1.0)


def kernel_of(*made: object, buffers: tuple[BufferArg, ...] = (X, Y)) -> LoopKernel:
    return LoopKernel("bad", buffers, ("n",), (), Block(ops=list(made)))  # type: ignore[arg-type]


def faults() -> list[tuple[LoopKernel, str]]:
    early = Binary(INDEX, "add", ZERO, ZERO)
    inner = Binary(INDEX, "mul", ZERO, ZERO)
    counter = Argument(INDEX, "i")
    loop = For(ZERO, ZERO, ZERO, (), Block((counter,), [inner]), ())
    skewed = For(ZERO, ZERO, ZERO, (VECTOR,), Block((counter, Argument(scalar(F32), "c")), [], (VECTOR,)), ())
    given = If(Const(BOOL, 1), Block(yields=(ZERO,)), Block(), (Result(INDEX, "r"),))
    return [
        (kernel_of(Binary(INDEX, "add", early, ZERO)), "binary from a block it is not in|uses a binary of type i64"),
        (kernel_of(loop, Store(Cast(scalar(F32), inner), Y, ZERO)), "uses a cast of type f32 from a block"),
        (kernel_of(loop, Binary(INDEX, "add", inner, ZERO)), "uses a binary of type i64 from a block it is not in"),
        (kernel_of(Store(VECTOR, X, ZERO)), "buffer 'x' is read-only"),
        (kernel_of(Store(VECTOR, BufferArg("z", F32, True), ZERO)), "'z' is no memory of this kernel"),
        (kernel_of(Store(Const(vec(I32, 8), 1), Y, ZERO)), "the value is i32x8, not f32x8"),
        (kernel_of(Store(VECTOR, Y, ZERO, Const(mask(4), 1))), "the mask is i1x4, not i1x8"),
        (kernel_of(Store(VECTOR, Y, Const(scalar(I32), 0))), "the offset is i32, not i64"),
        (kernel_of(Binary(scalar(BF16), "add", Const(scalar(BF16), 1), Const(scalar(BF16), 1))), "not compute on bf16"),
        (kernel_of(Binary(INDEX, "div", ZERO, ZERO)), "does not compute on i64"),
        (kernel_of(Binary(vec(F32, 8), "xor", VECTOR, VECTOR)), "does not compute on f32x8"),
        (kernel_of(Binary(vec(F32, 8), "add", VECTOR, ZERO)), "b is i64, not f32x8"),
        (kernel_of(Select(vec(F32, 8), Const(mask(4), 1), VECTOR, VECTOR)), "chooses f32x8 by i1x4"),
        (kernel_of(Shuffle(vec(F32, 2), VECTOR, VECTOR, (0, 16))), "picks lanes \\(0, 16\\) of 2 x 8"),
        (kernel_of(Reduce(scalar(F32), "add", Const(vec(F32, 6), 0.0))), "6 lanes are not a power of two"),
        (kernel_of(skewed), "arguments \\(f32\\) do not match the carries \\(f32x8\\)"),
        (kernel_of(given), "otherwise yields \\(\\), the results are \\(i64\\)"),
        (kernel_of(buffers=(X, BufferArg("x", F32))), "the name 'x' is used twice"),
    ]


@pytest.mark.parametrize("number", range(len(faults())))
def test_the_verifier_names_the_fault(number: int) -> None:
    kernel, message = faults()[number]
    with pytest.raises(IRError, match=message) as caught:
        verify_kernel(kernel)
    assert "bad" in str(caught.value)


def test_all_faults_of_a_kernel_come_together() -> None:
    with pytest.raises(IRError, match="2 problems") as caught:
        verify_kernel(kernel_of(Store(VECTOR, X, ZERO), Binary(INDEX, "div", ZERO, ZERO)))
    assert [p.op for p in caught.value.problems] == ["bad: store", "bad: binary div"]


def test_a_kernel_reads_as_text() -> None:
    b = LoopBuilder("scale")
    x, y = b.buffer("x", F32), b.buffer("y", F32, writable=True)
    n = b.dim("n")
    with b.loop(0, n, 8, [b.const(0, F32, 8)], unroll=2) as loop:
        value = b.load(x, loop.index, 8)
        b.store(b.mul(value, 2.0), y, loop.index)
        loop.next(b.fma(value, value, loop.carries[0]))
    with b.when(b.compare("eq", b.tid, 0)):
        b.store(b.reduce("add", loop.results[0]), y, n)
    assert str(b.finish()).splitlines() == [
        "kernel @scale(x: f32, y: mut f32) dims(n) {",
        "  %i_r0_1 = for %i_2 in (0, $n, 8) unroll 2 carry(%c0_0 = splat(0.0)) {",
        "    %3 = load x[%i_2] : f32x8",
        "    %4 = mul %3, splat(2.0) : f32x8",
        "    store %4, y[%i_2]",
        "    %5 = fma %3, %3, %c0_0 : f32x8",
        "    yield %5",
        "  }",
        "  %6 = eq $tid, 0 : i1",
        "  if %6 {",
        "    %7 = reduce add %i_r0_1 : f32",
        "    store %7, y[$n]",
        "  }",
        "}",
    ]


def test_what_is_asked_for_ahead_is_neither_read_nor_bounded() -> None:
    b = LoopBuilder("ahead")
    memory, out = b.buffer("x", F32), b.buffer("y", F32, writable=True)
    b.prefetch(memory, 1 << 40)
    b.prefetch(memory, -1, near=False)
    b.store(b.load(memory, 0), out, 0)
    kernel = b.finish()
    verify_kernel(kernel)
    held = [np.float32([3.0]), np.float32([0.0])]
    traffic = run_kernel(kernel, held, {})
    assert held[1][0] == 3.0
    assert sum(traffic.loaded.values()) == 1


def test_memory_asked_for_ahead_belongs_to_the_kernel() -> None:
    b = LoopBuilder("stranger")
    b.prefetch(BufferArg("elsewhere", F32, False), 0)
    with pytest.raises(IRError, match="no memory of this kernel"):
        verify_kernel(b.finish())

"""Dots give the interpreter's bits, whatever blocks of registers a machine computes them in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from xdsl.ir import SSAValue

from tests.backends.cpu.native_kernel import host_classes
from tests.passes.lower_tile_to_loops.kernels import matmul, on_tiles
from tests.passes.lower_tile_to_loops.running import check, check_counts, inputs, machine, native, outputs, same
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import BF16, F16, F32, F64, I8, I32, U8, DType
from tilewright.ir.loops import BufferArg, For, LoopKernel, MatrixDot
from tilewright.ir.loops.ops import Block, Fma, Gather, If, Load, Op, Prefetch, Shuffle
from tilewright.ir.loops_interpreter import run_kernel
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.compute import DotScaledOp, UnpackOp
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_tile_to_loops import lower_kernel

MATMULS: list[tuple[tuple[int, int, int, int], dict[str, Any]]] = [
    ((48, 64, 6, 64), {}),
    ((48, 128, 6, 64), {"step": 16}),
    ((50, 100, 6, 64), {"step": 16, "activation": "gelu"}),
    ((48, 100, 4, 64), {"activation": "relu", "residual": True}),
    ((33, 64, 1, 64), {}),
    ((48, 96, 14, 32), {"step": 16}),
    ((64, 64, 6, 64), {"step": 16, "chunk": 32}),
    ((48, 128, 6, 64), {"order": [(0, 4), (1, 1), (0, 1)]}),
    ((1, 1, 1, 16), {}),
]


@pytest.mark.parametrize(("sizes", "options"), MATMULS, ids=str)
def test_matmuls(sizes: tuple[int, int, int, int], options: dict[str, Any], rng: np.random.Generator) -> None:
    kernel = matmul(*sizes, **options)
    tolerance = 1e-6 if options.get("activation") == "gelu" else 0.0
    for m in (1, 13, 0):
        classes = ["avx512", "avx2"] if m == 1 else ["avx512"]
        check(kernel, {"m": m}, rng, tolerance=tolerance, classes=classes, compiled=m == 13)
    check_counts(kernel, {"m": 13}, inputs(kernel, {"m": 13}, rng))


def test_the_inner_loop_of_a_matmul_is_loads_and_multiply_adds() -> None:
    kernel = lower_kernel(matmul(384, 384, 6, 64), machine("avx512"))
    (loop,) = (op for op in every(kernel) if isinstance(op, For) and len(op.inits) == 24)
    assert sum(isinstance(op, Fma) for op in loop.body.ops) == 24
    assert sum(isinstance(op, Load) and op.type.lanes == 16 for op in loop.body.ops) == 4
    assert sum(isinstance(op, Load) and op.type.lanes == 1 for op in loop.body.ops) == 6
    assert not any(isinstance(op, Load) and op.mask is not None for op in loop.body.ops)
    assert not kernel.scratch or all(s.elements <= 6 * 64 + 16 for s in kernel.scratch)


def every(kernel: LoopKernel) -> list[Op]:
    def walk(block: Block) -> list[Op]:
        found: list[Op] = []
        for op in block.ops:
            found.append(op)
            if isinstance(op, For):
                found += walk(op.body)
            elif isinstance(op, If):
                found += walk(op.then) + walk(op.otherwise)
        return found

    return walk(kernel.body)


SIZES = [(1, 1, 1), (3, 5, 7), (20, 33, 100), (7, 16, 16), (14, 9, 130), (5, 4, 1)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("dtype", "wide"), [(F32, F32), (BF16, F32), (F16, F32), (F64, F64), (I8, I32)], ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_tiles_of_any_size(
    sizes: tuple[int, int, int], dtype: DType, wide: DType, turned: bool, rng: np.random.Generator
) -> None:
    m, k, n = sizes if dtype is not F64 else tuple(min(size, 9) for size in sizes)

    def body(b: KernelBuilder, x: SSAValue, y: SSAValue, acc: SSAValue) -> list[SSAValue]:
        return [b.dot(x, b.transpose(y, (1, 0)) if turned else y, b.map("add", acc, acc))]

    kernel = on_tiles([((m, k), dtype), ((n, k) if turned else (k, n), dtype), ((m, n), wide)], [((m, n), wide)], body)
    check(kernel, {"n": 2}, rng, classes=["avx512"], compiled=dtype is F32)


@pytest.mark.parametrize(("m", "k", "n", "chain"), [(1, 70, 16, 18), (3, 64, 40, 32), (17, 11, 33, 4), (20, 3, 9, 1)])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_k_in_several_chains(m: int, k: int, n: int, chain: int, dtype: DType, rng: np.random.Generator) -> None:
    def body(b: KernelBuilder, x: SSAValue, y: SSAValue, acc: SSAValue) -> list[SSAValue]:
        return [b.dot(x, y, b.map("add", acc, acc), chain)]

    kernel = on_tiles([((m, k), dtype), ((k, n), dtype), ((m, n), F32)], [((m, n), F32)], body)
    check(kernel, {"n": 2}, rng, classes=["avx512", "avx2"])
    check_counts(kernel, {"n": 2}, inputs(kernel, {"n": 2}, rng))


@pytest.mark.parametrize("chain", [0, 5])
def test_a_column_that_a_loop_carries(chain: int, rng: np.random.Generator) -> None:
    b = KernelBuilder("column", [])
    x, y, out = b.buffer([40, 36], F32), b.buffer([36, 1], F32), b.output([40, 1], F32)
    b.grid([1], [1])
    with b.loop(0, 36, 12, [b.constant(1.0, (40, 1))]) as loop:
        left, right = b.load(b.dense(x), [0, loop.at], [40, 12]), b.load(b.dense(y), [loop.at, 0], [12, 1])
        loop.give(b.dot(left, right, b.map("mul", *loop.carried, b.constant(0.5, (1, 1))), chain))
    b.store(*loop.out, b.dense(out), [0, 0])
    kernel = b.finish()
    check(kernel, {}, rng, classes=["avx512", "avx2"])


def test_operands_may_be_computed_and_the_result_read_again(rng: np.random.Generator) -> None:
    def body(b: KernelBuilder, x: SSAValue, y: SSAValue, z: SSAValue) -> list[SSAValue]:
        left = b.map("mul", x, x)
        first = b.dot(left, b.map("neg", y), b.constant(0.0, (20, 24)))
        second = b.dot(first, z, b.constant(1.0, (20, 40)))
        return [first, b.map("add", second, b.reduce("max", second, 1))]

    shapes = [(20, 18), (18, 24), (24, 40)]
    kernel = on_tiles([(s, F32) for s in shapes], [((20, 24), F32), ((20, 40), F32)], body)
    check(kernel, {"n": 2}, rng, classes=["avx512", "avx2"])


@pytest.mark.parametrize("chain", [0, 7])
def test_what_lies_past_the_end_of_k_adds_nothing_even_if_it_is_nan(chain: int, rng: np.random.Generator) -> None:
    b = KernelBuilder("past_the_end", [])
    x, w, y = b.buffer([4, 20], F32), b.buffer([24, 32], F32), b.output([4, 32], F32)
    b.grid([1], [1])
    # a's view ends at column 20, and its rows are followed by whatever comes next in the buffer
    a = b.load(b.view(x, [4, 18], [20, 1]), [0, 0], [4, 32], 0.0)
    right = b.load(b.view(w, [18, 32], [32, 1]), [0, 0], [32, 32], 0.0)
    b.store(b.dot(a, right, b.constant(0.0, (4, 32)), chain), b.dense(y), [0, 0])
    kernel = b.finish()
    given = inputs(kernel, {}, rng)
    given[0].reshape(4, 20)[:, 18:] = np.nan
    given[1].reshape(24, 32)[18:] = np.nan
    (got,) = check(kernel, {}, rng, given=given, classes=["avx512", "avx2"])
    assert np.isfinite(got).all()


@pytest.mark.parametrize(
    ("m", "k", "n", "group"), [(1, 8, 16, 4), (3, 64, 40, 32), (20, 32, 100, 16), (2, 2048, 16, 2048)]
)
@pytest.mark.parametrize("dtype", [I8, U8, BF16], ids=str)
def test_scaled_dots(m: int, k: int, n: int, group: int, dtype: DType, rng: np.random.Generator) -> None:
    def body(b: KernelBuilder, x: SSAValue, sx: SSAValue, y: SSAValue, sy: SSAValue, acc: SSAValue) -> list[SSAValue]:
        return [b.add(DotScaledOp.make(x, sx, y, sy, acc, group=group))]

    shapes = [((m, k), dtype), ((m, k // group), F32), ((k, n), dtype), ((k // group, n), F32), ((m, n), F32)]
    kernel = on_tiles(shapes, [((m, n), F32)], body)
    given = inputs(kernel, {"n": 2}, rng)
    if dtype is not BF16:  # sums that need every bit
        for number in (0, 2):
            limits = np.iinfo(given[number].dtype)
            given[number] = rng.integers(limits.min, limits.max + 1, given[number].size).astype(given[number].dtype)
    check(kernel, {"n": 2}, rng, given=given, classes=["avx512"], compiled=dtype is I8)


@pytest.mark.parametrize("m", [1, 20])
def test_int4_weights_unpack_on_the_way_into_a_scaled_dot(m: int, rng: np.random.Generator) -> None:
    def body(b: KernelBuilder, x: SSAValue, sx: SSAValue, y: SSAValue, sy: SSAValue, acc: SSAValue) -> list[SSAValue]:
        right = b.add(UnpackOp.make(y, format="int4", axis=0))
        return [b.add(DotScaledOp.make(x, sx, right, sy, acc, group=16))]

    shapes = [((m, 32), I8), ((m, 2), F32), ((16, 40), U8), ((2, 40), F16), ((m, 40), F32)]
    check(on_tiles(shapes, [((m, 40), F32)], body), {"n": 2}, rng, classes=["avx512"])


def packed_pairs(
    depth: int,
    columns: int,
    rows: int,
    *,
    chunk: int,
    computed: bool = False,
    block: int = 1,
    unread: int = 0,
    residual: bool = False,
) -> KernelOp:
    """A matmul whose right-hand side lies in panels of pairs of k, each as wide as a register; a program takes four.

    block: programs of rows that meet a program's panels before the next do. unread: panels behind those it reads.
    """
    panels = -(-columns // 64)
    b = KernelBuilder("pairs", ["m"])
    x, w = b.buffer(["m", depth], BF16), b.buffer([4 * panels + unread, depth // 2, 16, 2], BF16)
    added = b.buffer(["m", columns], F32) if residual else None
    y = b.output(["m", columns], F32)
    i, p = b.grid(["m", panels], [rows, 1], [(0, block), (1, 1), (0, 1)])

    def part(at: SSAValue, total: SSAValue) -> SSAValue:
        left = b.load(b.dense(x), [i, at], [rows, chunk])
        if computed:
            left = b.cast(b.map("neg", b.cast(left, F32)), BF16)
        half = b.index(Expr.of("a0") // 2, at)
        loaded = b.load(b.dense(w), [b.index(Expr.of("a0") * 4, p), half, 0, 0], [4, chunk // 2, 16, 2])
        return b.dot(left, b.reshape(b.transpose(loaded, (1, 3, 0, 2)), (chunk, 64)), total)

    total = b.constant(0.0, (rows, 64))
    if chunk == depth:
        total = part(b.index(0), total)
    else:
        with b.loop(0, depth, chunk, [total]) as loop:
            loop.give(part(loop.at, loop.carried[0]))
        total = loop.out[0]
    at = [i, b.index(Expr.of("a0") * 64, p)]
    if added is not None:
        total = b.map("add", total, b.load(b.dense(added), at, [rows, 64]))
    b.store(total, b.dense(y), at)
    return b.finish()


@pytest.mark.parametrize(("columns", "rows"), [(64, 6), (100, 4)])
@pytest.mark.parametrize("computed", [False, True])
def test_pairs_of_k_are_multiplied_as_they_lie(
    columns: int, rows: int, computed: bool, rng: np.random.Generator
) -> None:
    kernel = packed_pairs(64, columns, rows, chunk=32, computed=computed)
    given = inputs(kernel, {"m": 13}, rng)
    (wanted,) = check(kernel, {"m": 13}, rng, given=given, classes=["avx512"], compiled=False)
    lowered = lower_kernel(kernel, machine("avx512-amx"))
    assert any(isinstance(op, MatrixDot) for op in every(lowered))
    assert not any(isinstance(op, (Fma, Shuffle, Gather)) for op in every(lowered))
    (got,) = outputs(kernel, {"m": 13})
    run_kernel(lowered, [*given, got], {"m": 13}, nthreads=2)
    same(got, wanted, 1e-5, "pairs")
    check_counts(kernel, {"m": 13}, given, "avx512-amx")
    if "avx512-amx" in host_classes():
        (run,) = native(kernel, given, {"m": 13}, "avx512-amx", nthreads=2)
        same(run, got, 0.0, "native and interpreted")


@pytest.mark.parametrize(("columns", "rows"), [(64, 32), (100, 16), (64, 12)])
def test_a_row_has_the_same_bits_in_tiles_of_any_height(columns: int, rows: int, rng: np.random.Generator) -> None:
    tall, low = (packed_pairs(64, columns, n, chunk=32) for n in (rows, 1))
    given = inputs(tall, {"m": 13}, rng)
    found = []
    for kernel in (tall, low):
        (got,) = outputs(kernel, {"m": 13})
        run_kernel(lower_kernel(kernel, machine("avx512-amx")), [*given, got], {"m": 13})
        found.append(got)
    same(found[0], found[1], 0.0, "tall and low")


@pytest.mark.parametrize(("depth", "m"), [(544, 0), (544, 31), (544, 64), (1088, 67)])
def test_blocks_of_k_over_tall_tiles_keep_a_rows_bits(depth: int, m: int, rng: np.random.Generator) -> None:
    tall, low = (packed_pairs(depth, 64, n, chunk=544) for n in (64, 1))
    lowered = lower_kernel(tall, machine("avx512-amx"))
    assert any(isinstance(op, For) and op.body.args[0].hint == "kb" for op in every(lowered))
    given = inputs(tall, {"m": m}, rng)
    found = []
    for kernel in (tall, low):
        (got,) = outputs(kernel, {"m": m})
        run_kernel(lower_kernel(kernel, machine("avx512-amx")), [*given, got], {"m": m}, nthreads=2)
        found.append(got)
    same(found[0], found[1], 0.0, "tall and low")
    x, w = (a.astype(np.float64) for a in given)
    pairs = w.reshape(4, depth // 2, 16, 2).transpose(1, 3, 0, 2).reshape(depth, 64)
    same(found[0].reshape(m, 64), x.reshape(m, depth) @ pairs, 1e-4, "reference")
    check_counts(tall, {"m": m}, given, "avx512-amx")
    if "avx512-amx" in host_classes():
        (run,) = native(tall, given, {"m": m}, "avx512-amx", nthreads=2)
        same(run, found[0], 0.0, "native and interpreted")


def asked(kernel: KernelOp, m: int, rng: np.random.Generator) -> list[tuple[str, bool, int]]:
    """What a kernel asks for ahead on a matrix unit: the buffer, whether near, and the element."""
    found: list[tuple[Prefetch, int]] = []
    buffers = [*inputs(kernel, {"m": m}, rng), *outputs(kernel, {"m": m})]
    run_kernel(lower_kernel(kernel, machine("avx512-amx")), buffers, {"m": m}, asked=found)
    return [(op.memory.name, op.near, at) for op, at in found if isinstance(op.memory, BufferArg)]


@pytest.mark.parametrize(("rows", "block"), [(32, 8), (64, 4), (256, 1)])
def test_a_block_of_rows_asks_for_the_panels_that_follow_once(rows: int, block: int, rng: np.random.Generator) -> None:
    kernel = packed_pairs(64, 128, rows, chunk=64, block=block, unread=200)
    found = [at for name, near, at in asked(kernel, 256, rng) if not near]
    panels = 4 * 64 * 16  # elements that a program reads
    lines = [*range(panels, 3 * panels, 32)]
    assert sorted(found) == lines, "each line of what the two programs' panels are followed by, once"


def test_weights_that_stay_in_the_cache_are_not_asked_for(rng: np.random.Generator) -> None:
    assert all(near for _, near, _ in asked(packed_pairs(64, 128, 32, chunk=64, block=8), 256, rng))


@pytest.mark.parametrize("depth", [32, 64, 96, 1056])
def test_blocks_of_sums_ask_for_what_they_meet_and_become(depth: int, rng: np.random.Generator) -> None:
    found = asked(packed_pairs(depth, 64, 64, chunk=depth, residual=True), 64, rng)
    touched = {name: {at // 16 for other, near, at in found if other == name and near} for name, _, _ in found}
    assert len(touched) == 2
    assert all(lines == set(range(64 * 64 // 16)) for lines in touched.values()), "every line, and none beyond"
    assert not asked(packed_pairs(depth, 64, 1, chunk=depth, residual=True), 3, rng), "a row alone has no time for it"


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("keys", [64, 37])
def test_tiles_are_packed_in_pairs_where_memory_has_none(turned: bool, keys: int, rng: np.random.Generator) -> None:
    b = KernelBuilder("packing", ["n"])
    shape = (64, 32) if turned else (32, 64)
    x, w = b.buffer([16, 32], BF16), b.buffer([keys, 32] if turned else [32, keys], BF16)
    y = b.output([16, 64], F32)
    b.grid([1], [1])
    right = b.load(b.dense(w), [0, 0], shape, 0.0)
    if turned:
        pairs = b.transpose(b.reshape(right, (64, 16, 2)), (1, 0, 2))
    else:
        pairs = b.transpose(b.reshape(right, (16, 2, 64)), (0, 2, 1))
    left = b.load(b.dense(x), [0, 0], [16, 32])
    dot = b.dot(left, b.reshape(b.transpose(pairs, (0, 2, 1)), (32, 64)), b.constant(1.0, (16, 64)))
    b.store(dot, b.dense(y), [0, 0])
    kernel = b.finish()
    given = inputs(kernel, {"n": 1}, rng)
    (wanted,) = check(kernel, {"n": 1}, rng, given=given, classes=["avx512-amx"], tolerance=1e-5)
    x32, w32 = (a.astype(np.float64) for a in given)
    w32 = w32.reshape(keys, 32).T if turned else w32.reshape(32, keys)
    same(wanted.reshape(16, 64)[:, :keys], 1 + x32.reshape(16, 32) @ w32, 1e-5, "reference")
    assert any(isinstance(op, MatrixDot) for op in every(lower_kernel(kernel, machine("avx512-amx"))))

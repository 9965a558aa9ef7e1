"""Reshapes, transposes, slices, joints and packed storage move every element to where the interpreter moves it."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.ir import SSAValue

from tests.passes.lower_tile_to_loops.kernels import on_tiles
from tests.passes.lower_tile_to_loops.running import check, lower_kernel, machine
from tilewright.ir.dtypes import BF16, F32, I8, I64, U8, DType
from tilewright.ir.loops import Gather, LoopBuilder, Shuffle, vec
from tilewright.ir.loops_interpreter import run_kernel
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.compute import PackOp, UnpackOp
from tilewright.passes.lower_tile_to_loops.rearrangement import runs
from tilewright.passes.lower_tile_to_loops.transposes import turn

Shape = tuple[int, ...]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((6, 20), (120,)), ((6, 20), (20, 6)), ((4, 32), (2, 2, 32)), ((2, 2, 32), (4, 32)), ((2, 64), (128,)), ((128,),
        (2, 64)), ((3, 1, 5), (15,)), ((4, 48), (3, 64)), ((1, 6), (6, 1)), ((16, 33), (33, 16)), ((12, 10), (4, 30)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("computed", [False, True])
def test_reshapes(source: Shape, target: Shape, computed: bool, rng: np.random.Generator) -> None:
    def body(b: KernelBuilder, x: SSAValue) -> list[SSAValue]:
        return [b.reshape(b.map("neg", x) if computed else x, target)]

    check(on_tiles([(source, F32)], [(target, F32)], body), {"n": 2}, rng)


def test_runs_are_the_smallest_that_match() -> None:
    assert runs((6, 20), (2, 60)) == [([0, 1], [0, 1])]
    assert runs((6, 20), (2, 3, 20)) == [([0], [0, 1]), ([1], [2])]
    assert runs((1, 8, 1, 3), (8, 3)) == [([1], [0]), ([3], [1])]


@pytest.mark.parametrize(
    ("source", "permutation"),
    [((6, 20), (1, 0)), ((33, 40), (1, 0)), ((2, 20, 33), (0, 2, 1)), ((5, 3, 20), (1, 0, 2)), ((17, 3, 20), (2, 1, 0)),
     ((1, 40), (1, 0)), ((40, 1), (1, 0))],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [F32, BF16, I64], ids=str)
def test_transposes(source: Shape, permutation: Shape, dtype: DType, rng: np.random.Generator) -> None:
    target = tuple(source[p] for p in permutation)
    kernel = on_tiles([(source, dtype)], [(target, dtype)], lambda b, x: [b.transpose(x, permutation)])
    check(kernel, {"n": 2}, rng, compiled=dtype is F32)


@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
def test_a_square_of_vectors_is_turned_by_shuffles(lanes: int, rng: np.random.Generator) -> None:
    b = LoopBuilder("turn")
    x, y = b.buffer("x", F32), b.buffer("y", F32, writable=True)
    for row, value in enumerate(turn(b, [b.load(x, row * lanes, lanes) for row in range(lanes)])):
        assert value.type is vec(F32, lanes)
        b.store(value, y, row * lanes)
    kernel = b.finish()
    assert sum(isinstance(op, Shuffle) for op in kernel.body.ops) == lanes * (lanes.bit_length() - 1)
    given, got = rng.standard_normal((lanes, lanes)).astype(np.float32), np.zeros((lanes, lanes), np.float32)
    run_kernel(kernel, [given, got])
    assert np.array_equal(got, given.T)


def test_large_transposes_gather_nothing() -> None:
    kernel = on_tiles([((64, 32), F32)], [((32, 64), F32)], lambda b, x: [b.transpose(x, (1, 0))])
    text = str(lower_kernel(kernel, machine("avx512")))
    assert Gather.__name__.lower() not in text
    assert "shuffle" in text


@pytest.mark.parametrize(
    ("shape", "starts", "stops"), [((6, 20), (1, 3), (5, 19)), ((40,), (7,), (38,)), ((3, 100), (0, 50), (3, 100))]
)
def test_slices(shape: Shape, starts: Shape, stops: Shape, rng: np.random.Generator) -> None:
    result = tuple(hi - lo for lo, hi in zip(starts, stops, strict=True))
    check(on_tiles([(shape, F32)], [(result, F32)], lambda b, x: [b.slice(x, starts, stops)]), {"n": 2}, rng)


@pytest.mark.parametrize(
    ("axis", "shapes"),
    [(1, ((3, 5), (3, 20), (3, 16))), (0, ((3, 20), (1, 20))), (1, ((2, 32), (2, 32))), (0, ((20, 5), (30, 5))),
     (1, ((2, 200), (2, 300)))],
)  # fmt: skip
@pytest.mark.parametrize("computed", [False, True])
def test_joints(axis: int, shapes: tuple[Shape, ...], computed: bool, rng: np.random.Generator) -> None:
    result = tuple(sum(s[a] for s in shapes) if a == axis else n for a, n in enumerate(shapes[0]))

    def body(b: KernelBuilder, *parts: SSAValue) -> list[SSAValue]:
        joined = b.concat([b.map("neg", p) for p in parts] if computed else parts, axis)
        return [b.map("add", joined, b.constant(1.0, (1, 1)))]

    check(on_tiles([(s, F32) for s in shapes], [(result, F32)], body), {"n": 2}, rng)


def test_rotary_halves_come_from_registers(rng: np.random.Generator) -> None:
    def body(b: KernelBuilder, x: SSAValue, cos: SSAValue, sin: SSAValue) -> list[SSAValue]:
        low, high = b.slice(x, (0, 0), (5, 32)), b.slice(x, (0, 32), (5, 64))
        turned = b.concat([b.map("neg", high), low], 1)
        return [b.map("add", b.map("mul", x, cos), b.map("mul", turned, sin))]

    kernel = on_tiles([((5, 64), F32)] * 3, [((5, 64), F32)], body)
    check(kernel, {"n": 2}, rng)
    assert "gather" not in str(lower_kernel(kernel, machine("avx512")))


@pytest.mark.parametrize(
    ("format_", "per", "dtype"), [("int4", 2, I8), ("uint4", 2, U8), ("int2", 4, I8), ("uint2", 4, U8)]
)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("words", [(3, 20), (16, 64)])
def test_packed_storage(
    format_: str, per: int, dtype: DType, axis: int, words: Shape, rng: np.random.Generator
) -> None:
    elements = tuple(n * per if a == axis else n for a, n in enumerate(words))
    unpack = on_tiles(
        [(words, U8)], [(elements, dtype)], lambda b, x: [b.add(UnpackOp.make(x, format=format_, axis=axis))]
    )
    check(unpack, {"n": 2}, rng)
    pack = on_tiles([(elements, dtype)], [(words, U8)], lambda b, x: [b.add(PackOp.make(x, format=format_, axis=axis))])
    check(pack, {"n": 2}, rng, compiled=axis == 1)

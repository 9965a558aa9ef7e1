"""Constants, coordinates, maps, casts and broadcasts of tiles."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.ir.tile.single_op import make, poison_is_honest, run, spread
from tilewright.errors import IRError
from tilewright.ir.dtypes import DTYPES, from_numpy, torch_name
from tilewright.ir.scalars import SCALARS, ScalarFunction
from tilewright.ir.tile.compute import BroadcastOp, CastOp, ConstantOp, IndexTileOp, MapOp, SplatOp

BF16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(t) for t in ("float32", "float64", "float16")] + [BF16]
INTEGERS = [np.dtype(t) for t in ("int8", "uint8", "int16", "int32", "int64")]
SHAPES = [(1,), (7,), (1, 1), (3, 17), (5, 1, 4)]


def sample(shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> Any:
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(max(limits.min, -100), min(limits.max, 100), shape).astype(dtype)
    return (rng.standard_normal(shape) * 3).astype(dtype)


def as_torch(values: Any) -> torch.Tensor:
    if values.dtype == BF16:
        return torch.from_numpy(values.astype(np.float32)).bfloat16()
    return torch.from_numpy(np.ascontiguousarray(values))


class TestConstant:
    @pytest.mark.parametrize("dtype", list(DTYPES))
    def test_every_element_has_the_value(self, dtype: str) -> None:
        found = run(ConstantOp, value=1.0, extents=(2, 3), dtype=dtype)
        assert found.dtype == DTYPES[dtype].numpy()
        assert found.astype(np.float64).tolist() == [[1.0] * 3] * 2

    @pytest.mark.parametrize("dtype", INTEGERS)
    def test_infinities_are_an_integers_extremes(self, dtype: np.dtype[Any]) -> None:
        name = from_numpy(dtype).name  # type: ignore[union-attr]
        assert run(ConstantOp, value=math.inf, extents=(1,), dtype=name)[0] == np.iinfo(dtype).max
        assert run(ConstantOp, value=-math.inf, extents=(1,), dtype=name)[0] == np.iinfo(dtype).min

    def test_a_value_between_floats_rounds_to_nearest_even(self) -> None:
        assert run(ConstantOp, value=1.0 + 2**-8, extents=(1,), dtype="bf16")[0] == 1.0
        assert run(ConstantOp, value=1.0 + 3 * 2**-8, extents=(1,), dtype="bf16")[0] == 1.0 + 2**-6

    def test_an_unknown_dtype_is_refused(self) -> None:
        with pytest.raises(IRError, match="no dtype is called 'f8'"):
            ConstantOp.make(value=1.0, extents=(1,), dtype="f8")


class TestCoordinates:
    @pytest.mark.parametrize("base", [0, 5, -3, 2**31 - 4])
    def test_an_index_tile_counts_along_its_axis(self, base: int) -> None:
        found = run(IndexTileOp, base, axis=1, extents=(2, 3, 2))
        assert found.tolist() == [[[base + j] * 2 for j in range(3)]] * 2

    def test_a_splat_repeats_the_index(self) -> None:
        assert run(SplatOp, -7, extents=(2, 2)).tolist() == [[-7, -7], [-7, -7]]

    def test_an_axis_outside_the_tile_is_refused(self) -> None:
        with pytest.raises(IRError, match="axis 2 is not one of 2 axes"):
            make(IndexTileOp, 0, axis=2, extents=(2, 2))


def dtypes_of(function: ScalarFunction) -> list[tuple[np.dtype[Any], ...]]:
    """Operand dtypes that a function takes."""
    found = []
    for dtype in [*FLOATS, np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.uint8), np.dtype(bool)]:
        operands = (np.dtype(bool), dtype, dtype) if function.rule == "select" else (dtype,) * function.arity
        if dtype.kind == "b" and function.rule == "same":
            continue  # torch has no arithmetic on booleans either
        if function.result([from_numpy(d) for d in operands]) is not None:  # type: ignore[misc]
            found.append(operands)
    return found


class TestMap:
    @pytest.mark.parametrize("name", list(SCALARS))
    def test_every_function_gives_what_torch_gives(self, name: str, rng: np.random.Generator) -> None:
        function = SCALARS[name]
        for dtypes in dtypes_of(function):
            values = [sample((3, 17), d, rng) for d in dtypes]
            if name in ("div", "floordiv", "remainder"):
                values[1][values[1] == 0] = 3
            if name in ("log", "sqrt", "rsqrt", "pow", "log1p"):
                values[0] = np.abs(values[0]) + values[0].dtype.type(0.5)
            with np.errstate(all="ignore"):
                found = run(MapOp, *values, fn=name)
            wide = [as_torch(v).double() if v.dtype.kind in "fV" else as_torch(v) for v in values]
            expected = function.torch(*wide).to(getattr(torch, torch_name(from_numpy(found.dtype))))  # type: ignore[arg-type]
            got, want = as_torch(found), expected
            if found.dtype.kind in "fV":
                eps = float(torch.finfo(want.dtype).eps)
                torch.testing.assert_close(got, want, rtol=4 * eps, atol=1e-15, equal_nan=True)
            else:
                assert torch.equal(got, want), (name, dtypes)

    def test_extents_of_1_stretch(self, rng: np.random.Generator) -> None:
        a, b = sample((5, 1), np.dtype(np.float32), rng), sample((1, 3), np.dtype(np.float32), rng)
        np.testing.assert_array_equal(run(MapOp, a, b, fn="add"), a + b)

    def test_tiles_of_different_rank_are_refused(self) -> None:
        with pytest.raises(IRError, match="equal rank"):
            make(MapOp, np.zeros((3,), np.float32), np.zeros((1, 3), np.float32), fn="add")

    def test_the_cost_is_the_tables_flops_for_every_element(self) -> None:
        assert make(MapOp, np.zeros((3, 5), np.float32), fn="exp").cost().vector.constant == 15 * SCALARS["exp"].flops

    def test_a_select_is_poison_only_where_it_takes_poison(self) -> None:
        condition = np.array([True, True, False, False])
        a = b = np.zeros(4, np.float32)
        first, second = np.array([True, False, True, False]), np.array([False, True, False, True])
        assert spread(MapOp, [condition, a, b], [None, first, second], fn="select").tolist() == [
            True,
            False,
            False,
            True,
        ]
        assert spread(MapOp, [condition, a, b], [first, None, None], fn="select").tolist() == first.tolist()

    def test_a_certain_false_settles_and_of_masks(self) -> None:
        sure, unsure = np.array([False, True]), np.array([True, True])
        mask = np.array([True, True])
        assert spread(MapOp, [sure, unsure], [None, mask], fn="and").tolist() == [False, True]
        assert spread(MapOp, [sure, unsure], [None, mask], fn="or").tolist() == [True, False]

    @pytest.mark.parametrize("name", ["select", "and", "or", "add", "mul", "max", "lt", "exp"])
    def test_poison_covers_all_that_it_can_change(self, name: str, rng: np.random.Generator) -> None:
        for dtypes in dtypes_of(SCALARS[name]):
            values = [sample((4, 9), d, rng) for d in dtypes]
            masks = [rng.random((4, 9)) < 0.4 for _ in dtypes]
            poison_is_honest(MapOp, values, masks, rng, fn=name)


class TestCast:
    @pytest.mark.parametrize("source", [*FLOATS, *INTEGERS, np.dtype(bool)], ids=str)
    @pytest.mark.parametrize("target", list(DTYPES))
    def test_converts_as_torch_does(self, source: np.dtype[Any], target: str, rng: np.random.Generator) -> None:
        values = sample((4, 33), source, rng)
        found = run(CastOp, values, dtype=target)
        expected = as_torch(values).to(getattr(torch, torch_name(DTYPES[target])))
        assert torch.equal(as_torch(found), expected)

    def test_halves_round_to_even(self) -> None:
        values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], np.float32)
        assert run(CastOp, values, dtype="bf16").astype(float).tolist() == [1.0, 1 + 2**-6, -1.0]

    @pytest.mark.parametrize("shape", SHAPES)
    def test_broadcast_values_convert_too(self, shape: tuple[int, ...]) -> None:
        strange = np.broadcast_to(np.array(2.5, BF16), shape)
        assert (run(CastOp, strange, dtype="f32") == 2.5).all()


class TestBroadcast:
    def test_axes_of_1_repeat(self, rng: np.random.Generator) -> None:
        values = sample((3, 1, 2), np.dtype(np.float32), rng)
        np.testing.assert_array_equal(run(BroadcastOp, values, extents=(3, 5, 2)), np.repeat(values, 5, 1))

    def test_other_axes_cannot_change(self) -> None:
        with pytest.raises(IRError, match="do not broadcast"):
            make(BroadcastOp, np.zeros((3, 1), np.float32), extents=(6, 4))

    def test_poison_repeats(self) -> None:
        mask = np.array([[True], [False]])
        found = spread(BroadcastOp, [np.zeros((2, 1), np.float32)], [mask], extents=(2, 3))
        assert found.tolist() == [[True] * 3, [False] * 3]

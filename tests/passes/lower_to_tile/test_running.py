"""Running ops: right in every form and variant, equal bits in all of them, and natively what the interpreter says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.passes.lower_tile_to_loops.running import check, check_counts
from tests.passes.lower_to_tile.groups import draw, group, lower, reference, run_lowered
from tilewright.ir.dims import ExprLike
from tilewright.ir.dtypes import BF16, F32, F64, I32, I64, DType
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.recurrence import ScanOp
from tilewright.ir.graph.reduction import CumulativeOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.types import TensorType

SIZES = [{"b": 1, "t": 1, "s": 1}, {"b": 3, "t": 70, "s": 2}, {"b": 2, "t": 0, "s": 3}, {"b": 17, "t": 131, "s": 1}]


def typed(dtype: DType, *dims: ExprLike) -> TensorType:
    return TensorType.of(dims, dtype)


def cumulative(fn: str, axis: int, dtype: DType, *dims: ExprLike) -> GroupOp:
    return group("running", [typed(dtype, *dims)], lambda g, x: [g.add(CumulativeOp.make(x, fn=fn, axis=axis))])


def recurrence(axis: int, *dims: ExprLike, start: bool, dtype: DType = F32) -> GroupOp:
    """h = a h + b, where a repeats along the axes before its own, with something after.

    In f32 with something before, too; what narrow floats would round there is amplified by the recurrence.
    """
    rest = [d for i, d in enumerate(dims) if i != axis]
    types = [typed(dtype, *dims[-1:]), typed(dtype, *dims), *([typed(dtype, *rest)] if start else [])]

    def build(g: Any, a: Any, b: Any, h0: Any = None) -> list[Any]:
        before = (a, b) if dtype is not F32 else (g.add(MapOp.make(a, fn="tanh")), g.add(MapOp.make(b, b, fn="mul")))
        h = g.add(ScanOp.make(*before, h0, axis=axis))
        return [h, g.add(MapOp.make(h, b, fn="sub"))]

    return group("running", types, build)


GROUPS = {
    "sum of rows": cumulative("sum", 1, F32, "b", "t"),
    "sum of columns": cumulative("sum", 0, F32, "t", "b"),
    "sum in the middle": cumulative("sum", 1, BF16, "b", "t", 5),
    "product of one line": cumulative("prod", 0, F64, "t"),
    "largest of rows": cumulative("max", 1, F32, "b", "t"),
    "largest of integers": cumulative("max", 1, I32, "b", "t", "s"),
    "sum of integers": cumulative("sum", 1, I64, 3, "t"),
    "recurrence of rows": recurrence(1, "b", "t", start=True),
    "recurrence of columns": recurrence(0, "t", "b", start=True),
    "recurrence from nothing": recurrence(1, "b", "t", "s", start=False, dtype=BF16),
    "one element": cumulative("sum", 0, F32, 1),
    "axis of one": cumulative("sum", 1, F32, "b", 1, "t"),
}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_variant_gives_the_same_right_bits(name: str, sizes: dict[str, int], rng: np.random.Generator) -> None:
    made = GROUPS[name]
    inputs = draw(made, sizes, rng)
    if name.startswith("recurrence"):
        inputs[0] = inputs[0].tanh()  # a state that decays: one that grows leaves the dtype's range, or all its digits
    wanted, lowered = reference(made, inputs, sizes), lower(made)
    runs = [run_lowered(made, lowered, v, inputs, sizes) for v in range(len(lowered.variants))]
    loose = 2e-2 if "bf16" in str(made.args[0].type) + str(made.args[-1].type) else 1e-4
    for results in runs:
        for want, got, first in zip(wanted, results, runs[0], strict=True):
            found = torch.from_numpy(np.asarray(got, np.float64))
            torch.testing.assert_close(found, want.double(), rtol=loose, atol=loose, equal_nan=True)
            assert np.array_equal(np.asarray(got, np.float64), np.asarray(first, np.float64), equal_nan=True)


@pytest.mark.parametrize("name", ["sum of rows", "sum in the middle", "largest of integers", "recurrence of rows"])
def test_native_kernels_do_as_the_interpreter_and_count_the_same(name: str, rng: np.random.Generator) -> None:
    for variant in lower(GROUPS[name]).variants:
        dims = {d: {"b": 19, "t": 70, "s": 3}[d] for d in variant.kernel.dims.data}
        flat = [np.ascontiguousarray(_array(t)).reshape(-1) for t in draw(GROUPS[name], dims, rng)]
        check(variant.kernel, dims, rng, given=flat, tolerance=1e-6)
        counts = check_counts(variant.kernel, dims, flat)
        assert counts.vector == kernel_traffic(variant.kernel).at(dims)["vector"]


def _array(given: torch.Tensor) -> np.ndarray:
    return given.float().numpy().astype(BF16.numpy()) if given.dtype == torch.bfloat16 else given.numpy()


def test_a_first_zero_keeps_its_sign(rng: np.random.Generator) -> None:
    made = GROUPS["sum of rows"]
    x = -torch.zeros(2, 70)
    for variant in range(2):
        (got,) = run_lowered(made, lower(made), variant, [x], {"b": 2, "t": 70})
        assert np.signbit(got).all()

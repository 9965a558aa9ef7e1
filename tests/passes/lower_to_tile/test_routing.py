"""Routing and grouped products: every kernel and variant computes its group, and counts what its formulas say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.ir.graph.single_op import apply
from tests.passes.lower_to_tile.groups import group, lower, reference
from tilewright.ir.dtypes import BF16, F32, I32, I64, DType
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.routing import GroupedMatmulOp, RouteOp, SlotsOp
from tilewright.ir.graph.shape import ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.tile.counting import Counters
from tilewright.ir.tile.traffic import kernel_traffic
from tilewright.ir.tile_interpreter import run_kernel
from tilewright.ir.types import TensorType

EXPERTS, EACH = 5, 3


def typed(dtype: DType, *dims: Any) -> TensorType:
    return TensorType.of(dims, dtype)


def all_results(op: Any, body: Any) -> list[Any]:
    body.block.add_op(op)
    return list(op.results)


def route(kind: DType = I64) -> GroupOp:
    return group("route", [typed(kind, "s")], lambda g, x: all_results(RouteOp.make(x, experts=EXPERTS), g))


def inverse() -> GroupOp:
    return group("slots", [typed(I32, "s")], lambda g, x: all_results(SlotsOp.make(x, each=EACH), g))


def run(made: GroupOp, inputs: list[torch.Tensor], sizes: dict[str, int]) -> None:
    """Every variant equals the reference; counts are the formulas' numbers, and formulas alone are no less."""
    wanted = reference(made, inputs, sizes)
    for variant in lower(made).variants:
        kernel = variant.kernel
        outputs = [np.zeros([d.evaluate(sizes) for d in tensor(v).dims], tensor(v).dtype.numpy()) for v in made.yielded]
        arrays = [t.float().numpy().astype(tensor(a).dtype.numpy()) if tensor(a).dtype == BF16 else t.numpy()
                  for a, t in zip(made.block.args, inputs, strict=True)]  # fmt: skip
        dims = {name: sizes[name] for name in kernel.dims.data}
        counters = Counters()
        run_kernel(kernel, [*arrays, *outputs], dims, counters)
        for found, want in zip(outputs, wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(found.astype(np.float64)), want.double(), rtol=1e-5, atol=1e-5)
        traffic = kernel_traffic(kernel)
        counted = traffic.counts(dims, [*arrays, *outputs])
        assert +counted == +counters.bytes
        bounds = traffic.counts(dims)
        assert all(bounds[quantity] >= number for quantity, number in counted.items())


@pytest.mark.parametrize("kind", [I32, I64], ids=str)
@pytest.mark.parametrize("slots", [0, 1, 2, 17, 61])
def test_slots_are_sorted_by_expert_stably(kind: DType, slots: int, rng: np.random.Generator) -> None:
    indices = torch.from_numpy(rng.integers(-1, EXPERTS + 1, slots).astype(kind.numpy()))
    run(route(kind), [indices], {"s": slots})


@pytest.mark.parametrize("slots", [0, 1, 17, 300])
def test_a_permutation_is_inverted(slots: int, rng: np.random.Generator) -> None:
    run(inverse(), [torch.from_numpy(rng.permutation(slots).astype(np.int32))], {"s": slots})


def segments(tokens: int, rng: np.random.Generator, *, skew: bool) -> list[torch.Tensor]:
    """rows, targets and offsets of a drawn routing; skew: all slots go to one expert."""
    slots = tokens * EACH
    indices = np.full(slots, 3) if skew else rng.integers(0, EXPERTS, slots)
    places, offsets = apply(RouteOp, torch.from_numpy(indices), experts=EXPERTS)
    order, rows = apply(SlotsOp, places, each=EACH)
    return [rows, order, offsets]


def lists() -> list[TensorType]:
    return [typed(I32, "s"), typed(I32, "s"), typed(I32, EXPERTS + 1)]


def gate_and_up(k: int, n: int, dtype: DType = F32) -> GroupOp:
    def build(g: Any, a: Any, gate: Any, up: Any, rows: Any, targets: Any, offsets: Any) -> list[Any]:
        first, second = (
            g.add(GroupedMatmulOp.make(a, b, rows, targets, offsets, transpose_b=True, result="f32"))
            for b in (gate, up)
        )
        return [g.add(MapOp.make(g.add(MapOp.make(first, fn="silu")), second, fn="mul"))]

    weights = [typed(dtype, EXPERTS, n, k)] * 2
    return group("grouped-matmul", [typed(dtype, "t", k), *weights, *lists()], build)


def biased(k: int, n: int) -> GroupOp:
    def build(g: Any, a: Any, b: Any, rows: Any, targets: Any, offsets: Any, bias: Any) -> list[Any]:
        return [g.add(GroupedMatmulOp.make(a, b, rows, targets, offsets, bias))]

    bias = typed(F32, EXPERTS, n)
    return group("grouped-matmul", [typed(F32, "t", k), typed(F32, EXPERTS, k, n), *lists(), bias], build)


def in_panels(k: int, n: int) -> GroupOp:
    """The right-hand side as plan-layout leaves it, panels of 16 columns."""
    count = -(-n // 16)

    def build(g: Any, a: Any, b: Any, rows: Any, targets: Any, offsets: Any) -> list[Any]:
        turned = g.add(TransposeOp.make(b, permutation=(0, 2, 1, 3)))
        flat = g.add(ReshapeOp.make(turned, dims=[EXPERTS, k, count * 16]))
        cut = g.add(SliceOp.make(flat, starts=[0, 0, 0], stops=[EXPERTS, k, n]))
        return [g.add(GroupedMatmulOp.make(a, cut, rows, targets, offsets))]

    return group("grouped-matmul", [typed(F32, "t", k), typed(F32, EXPERTS, count, k, 16), *lists()], build)


def drawn(made: GroupOp, tokens: int, rng: np.random.Generator, *, skew: bool = False) -> list[torch.Tensor]:
    """Inputs of a grouped product."""
    sizes, routed = {"t": tokens, "s": tokens * EACH}, iter(segments(tokens, rng, skew=skew))
    inputs = []
    for arg in made.block.args:
        kind = tensor(arg)
        if kind.dtype == I32:
            inputs.append(next(routed))
            continue
        value = torch.from_numpy(rng.standard_normal([d.evaluate(sizes) for d in kind.dims]).astype(np.float32))
        inputs.append(value.bfloat16() if kind.dtype == BF16 else value)
    return inputs


@pytest.mark.parametrize("skew", [False, True], ids=["spread", "skewed"])
@pytest.mark.parametrize("tokens", [0, 1, 2, 23])
@pytest.mark.parametrize(
    "make",
    [lambda: gate_and_up(13, 70), lambda: biased(7, 5), lambda: in_panels(9, 37)],
    ids=["gate-up", "bias", "panels"],
)  # fmt: skip
def test_products_over_segments(make: Any, tokens: int, skew: bool, rng: np.random.Generator) -> None:
    made = make()
    run(made, drawn(made, tokens, rng, skew=skew), {"t": tokens, "s": tokens * EACH})


def test_bf16_factors_sum_in_f32(rng: np.random.Generator) -> None:
    made = gate_and_up(20, 33, BF16)
    run(made, drawn(made, 9, rng), {"t": 9, "s": 27})


def test_the_bound_reads_each_slot_once_and_each_matrix_once_a_block_of_rows() -> None:
    k, n, slots = 64, 64, 3000
    made = gate_and_up(k, n)
    kernel = lower(made).variants[-1].kernel
    found = kernel_traffic(kernel).at({"t": slots // EACH, "s": slots})
    blocks = slots // 6 + EXPERTS
    # a few panels of columns, each with all rows; without segments joined it would be times the number of experts
    assert found["matrix"] <= 1.05 * (blocks * 6) * 2 * k * 2 * n
    assert found["write"] == slots * n * 4

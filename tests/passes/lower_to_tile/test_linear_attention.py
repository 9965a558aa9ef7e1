"""Linear attention of several requests: each goes on from its own state, and a token's bits are its request's alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.backends.cpu.native_kernel import host_classes
from tests.passes.lower_tile_to_loops.running import interpreted, native
from tests.passes.lower_to_tile.groups import group, reference, run_lowered
from tilewright.backends.cpu.machines import MACHINES
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.dtypes import F32, I32, I64
from tilewright.ir.graph.linear_attention import ContinuedLinearAttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.passing import Context
from tilewright.ir.types import TensorType
from tilewright.passes.lower_to_tile.frame import Lowered
from tilewright.passes.lower_to_tile.skeletons import lower_group

SPACE = DimSpace([Dim("t", 0, 512), Dim("r", 0, 64)])
ROWS = 5
# (groups, heads, features of keys, of values): vectors and parts of them
SHAPES = [(1, 2, 16, 32), (2, 4, 6, 5), (3, 3, 1, 17)]
STEPS = [[1], [4, 0, 1, 9], [1, 1, 1], []]


def made_of(shape: tuple[int, int, int, int], *, only: int | None = None) -> GroupOp:
    """One op alone. only: which of its results is asked for."""
    groups, heads, size, wide = shape
    types = [
        *[TensorType.of(("t", groups, size), F32)] * 2,
        TensorType.of(("t", heads, wide), F32),
        TensorType.of(("t", heads), F32),
        TensorType.of((ROWS, heads, size, wide), F32),
        TensorType.of(("r + 1",), I32),
        TensorType.of(("r",), I64),
    ]

    def built(g: Any, *xs: Any) -> list[Any]:
        op = ContinuedLinearAttentionOp.make(*xs)
        g.add(op)
        return list(op.results) if only is None else [op.results[only]]

    return group("linear-attention", types, built)


def drawn(
    shape: tuple[int, int, int, int], counts: list[int], rng: np.random.Generator
) -> tuple[list[Any], dict[str, int]]:
    """Operands for requests of so many tokens; states of nobody hold NaN."""
    groups, heads, size, wide = shape
    total = sum(counts)
    shapes = [(total, groups, size), (total, groups, size), (total, heads, wide), (total, heads)]
    q, k, v, decay = (torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in shapes)
    states = torch.from_numpy(rng.standard_normal((ROWS, heads, size, wide)).astype(np.float32))
    rows = torch.from_numpy(rng.permutation(ROWS)[: len(counts)])
    states[[row for row in range(ROWS) if row not in rows.tolist()]] = torch.nan
    offsets = torch.tensor(np.cumsum([0, *counts]), dtype=torch.int32)
    return [q, k, v, -decay.abs(), states, offsets, rows], {"t": total, "r": len(counts)}


def lowered(made: GroupOp, machine: str = "avx512") -> Lowered:
    return lower_group(made, "kernel", Context(MACHINES[machine](), SPACE))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_computes_what_the_op_says(shape: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    for counts in STEPS:
        for only in (None, 0, 1):
            made = made_of(shape, only=only)
            operands, sizes = drawn(shape, counts, rng)
            want = reference(made, operands, sizes)
            got = run_lowered(made, lowered(made), 0, operands, sizes)
            for mine, theirs in zip(got, want, strict=True):
                torch.testing.assert_close(torch.from_numpy(mine).double(), theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cpu", host_classes())
def test_the_machine_computes_what_the_interpreter_does(cpu: str, rng: np.random.Generator) -> None:
    for shape in SHAPES:
        made = made_of(shape)
        operands, sizes = drawn(shape, STEPS[1], rng)
        arrays = [x.numpy().reshape(-1) for x in operands]
        (variant,) = lowered(made, cpu).variants
        want = interpreted(variant.kernel, arrays, sizes, cpu)
        for threads in (1, 3):
            got = native(variant.kernel, arrays, sizes, cpu, nthreads=threads)
            for mine, theirs in zip(got, want, strict=True):
                np.testing.assert_array_equal(mine.view(np.uint8), theirs.view(np.uint8))


def test_a_request_in_parts_beside_others_has_the_bits_it_has_alone(rng: np.random.Generator) -> None:
    shape, counts, cpu = SHAPES[0], [7, 20, 3], host_classes()[-1]
    kernel = lowered(made_of(shape), cpu).variants[0].kernel
    operands, sizes = drawn(shape, counts, rng)
    q, k, v, decay, states, offsets, rows = operands

    def run(given: list[torch.Tensor], dims: dict[str, int]) -> list[np.ndarray[Any, Any]]:
        return native(kernel, [x.numpy().reshape(-1) for x in given], dims, cpu)

    out, ends = (x.reshape(n, -1) for x, n in zip(run(operands, sizes), (sum(counts), 3), strict=True))
    first, last = offsets[1:3].tolist()
    mine, at = states[rows[1]][None].clone(), first
    for size in (1, 12, 1, 6):
        new = slice(at, at + size)
        part = [q[new], k[new], v[new], decay[new], mine, torch.tensor([0, size], dtype=torch.int32), torch.tensor([0])]
        # the same kernel, of fewer rows of states: those beyond are not read
        part[4] = torch.cat([mine, torch.full((ROWS - 1, *mine.shape[1:]), torch.nan)])
        alone, after = run(part, {"t": size, "r": 1})
        np.testing.assert_array_equal(alone.reshape(size, -1), out[at : at + size])
        mine, at = torch.from_numpy(after.reshape(1, *states.shape[1:]).copy()), at + size
    assert at == last
    np.testing.assert_array_equal(mine.numpy().reshape(-1), ends[1])


def test_what_does_not_fit_is_refused() -> None:
    (op,) = (o for o in made_of(SHAPES[0]).block.ops if isinstance(o, ContinuedLinearAttentionOp))
    q, k, v, decay, states, offsets, rows = op.operands
    for operands, says in [
        ((q, k, v, v, states, offsets, rows), "needs queries and keys"),
        ((q, k, v, decay, v, offsets, rows), "states must be f32 or wider"),
        ((q, k, v, decay, states, rows, rows), "one more than rows"),
        ((q, k, v, decay, states, offsets, decay), "must be integers"),
    ]:
        with pytest.raises(Exception, match=says):
            ContinuedLinearAttentionOp.make(*operands)

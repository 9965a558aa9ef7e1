"""Operands of products are rounded once, and only where they are not of that dtype already."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import ModuleOp

from tests.passes.graphs import Graph, ops_of
from tilewright.backends.cpu.machines import MACHINES
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.machine import Machine
from tilewright.passes.set_precision import SetPrecision
from tilewright.testing import context, ground

UNITS = MACHINES["avx512-amx"]


def attention(dtype: str) -> ModuleOp:
    g = Graph("b: 1..3", "t: 1..7", dtype=dtype)
    return g.done(g.attention(*(g.input(name, ["b", 2, "t", 32]) for name in "qkv")))


def test_a_product_of_the_dtype_is_left_alone(seed: int) -> None:
    g = Graph("b: 1..4", dtype="bf16")
    module = g.done(g.matmul(g.input("x", ["b", 6]), g.weight("w", [6, 8])))
    ctx = context(module)
    assert ops_of(ground(module, SetPrecision(), seed=seed, ctx=ctx)) == ["matmul"]
    assert not ctx.applied


def test_what_was_widened_is_read_before_it_was(seed: int) -> None:
    g = Graph("b: 1..4", dtype="bf16")
    wide = g.cast(g.input("x", ["b", 6]), "f32")
    module = g.done(g.matmul(wide, g.cast(g.weight("w", [6, 8]), "f32")))
    assert ops_of(ground(module, SetPrecision(), seed=seed, rounding="bf16")) == ["matmul"]


@pytest.mark.parametrize(("machine", "rounded"), [(UNITS(), True), (MACHINES["avx2"](), False)])
def test_attention_is_rounded_where_a_matrix_unit_multiplies_it(machine: Machine, rounded: bool, seed: int) -> None:
    module = attention("f32")
    ctx = context(module, machine=machine)
    after = ground(module, SetPrecision(), seed=seed, rounding="bf16", ctx=ctx)
    (found,) = [op for op in after.walk() if isinstance(op, AttentionOp)]
    assert tensor(found.q).dtype.name == ("bf16" if rounded else "f32")
    assert len(ctx.applied) == rounded


@pytest.mark.parametrize(("dtype", "limit"), [("bf16", None), ("f32", 0)])
def test_attention_of_the_dtype_or_beyond_the_limit_is_left_alone(dtype: str, limit: int | None, seed: int) -> None:
    module = attention(dtype)
    ctx = context(module, machine=UNITS(), limit=limit)
    assert ops_of(ground(module, SetPrecision(), seed=seed, ctx=ctx)) == ["attention"]
    assert not ctx.applied

"""One table says what kernels there are: fuse, lowering, the errors and `tilewright ops` agree because they read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from xdsl.ir import Block

from tests.passes.lower_to_tile.groups import context, group
from tilewright.errors import LoweringError
from tilewright.ir.catalogue import catalogue
from tilewright.ir.dtypes import F32, F64, I32
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.quantization import QuantizeOp
from tilewright.ir.graph.reduction import ReduceOp, SoftmaxOp
from tilewright.ir.graph.shape import TransposeOp
from tilewright.ir.graph.structure import ConstantOp
from tilewright.ir.graph.windows import PoolOp
from tilewright.ir.types import TensorType
from tilewright.passes.fuse.plan import kind_of
from tilewright.passes.lower_to_tile.skeletons import (
    BY_KIND,
    SKELETONS,
    has,
    is_anchor,
    lower_group,
    skeletons_for,
)

X = TensorType.of(["b", 4, 8], F32)


def test_the_first_skeleton_that_takes_an_op_has_it() -> None:
    (x,) = Block(arg_types=[X]).args
    last, first = ReduceOp.make(x, axes=[2], fn="sum"), ReduceOp.make(x, axes=[0], fn="sum")
    assert [kind_of(op) for op in (last, first)] == ["row-reduction", "reduction"]
    assert [s.kind for s in skeletons_for("graph.reduce")] == ["row-reduction", "reduction"]
    assert [kind_of(SoftmaxOp.make(x, axis=axis)) for axis in (0, 2)] == ["reduction", "row-reduction"]
    assert [kind_of(ConstantOp.of(v, (2,), F32)) for v in ([1.0, 2.0], 1.0)] == ["constant", "map"]
    assert kind_of(TransposeOp.make(x, permutation=(0, 2, 1))) == "map"
    assert has(last, "rows")
    assert not has(first, "rows")
    assert is_anchor(first)
    assert not is_anchor(MapOp.make(x, fn="exp"))


def test_kinds_are_names_and_every_anchor_is_an_op_of_the_graph() -> None:
    assert len(BY_KIND) == len(SKELETONS)
    known = {entry.name for entry in catalogue("graph")}
    assert {anchor.name for s in SKELETONS for anchor in s.anchors} <= known
    assert all(s.doc and not s.doc.endswith(".") for s in SKELETONS)


def quantize(g: Any, x: Any) -> Any:
    scale = g.add(ConstantOp.of(0.5, (1, 1, 1), F32))
    return g.add(QuantizeOp.make(x, scale, axis=2))


def attention(g: Any, x: Any) -> Any:
    return g.add(AttentionOp.make(x, x, x, scale=1.0))


def pool(g: Any, x: Any) -> Any:
    return g.add(PoolOp.make(x, fn="max", window=[2], strides=[1], dilation=[1], padding_low=[0], padding_high=[0]))


def exponential(g: Any, x: Any) -> Any:
    return g.add(MapOp.make(x, fn="exp"))


def product(g: Any, x: Any) -> Any:
    return g.add(MatmulOp.make(x, x, transpose_b=True))


@pytest.mark.parametrize(
    ("kind", "dtype", "build", "said", "step"),
    [
        ("quantize", F32, quantize, "graph.quantize: no kernel is made for it yet", "made of graph.attention, "),
        ("reduce", F32, exponential, "no kernel is of kind 'reduce'", "the kinds are matmul, "),
        ("matmul", F32, exponential, "is made around graph.matmul, and this one has none", "report"),
        ("matmul", I32, product, "a matrix product of i32", "report"),
        ("attention", F64, attention, "attention in f64: its exponentials", "cast q, k and v to f32"),
        ("pool", F32, pool, "on images with their channels last", "report"),
    ],
    ids=["no skeleton", "no such kind", "no anchor", "integers", "f64", "channels first"],
)
def test_what_no_skeleton_does_is_refused_with_a_reason(
    kind: str, dtype: Any, build: Callable[..., Any], said: str, step: str
) -> None:
    made = group(kind, [TensorType.of([4, "b", 8], dtype)], lambda g, x: [build(g, x)])
    with pytest.raises(LoweringError) as caught:
        lower_group(made, "kernel", context())
    assert said in str(caught.value)
    assert step in caught.value.step

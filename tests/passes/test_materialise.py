"""The plan without fusion: one op a kernel, every intermediate in memory."""

from __future__ import annotations

from tests.passes.encoder_text import ENCODER
from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.structure import GroupOp
from tilewright.passes.canonicalize import Canonicalize
from tilewright.passes.fuse import Fuse
from tilewright.passes.materialise import Materialise
from tilewright.testing import ground


def test_every_op_is_a_kernel_of_its_own(seed: int) -> None:
    after = ground(ENCODER, [Canonicalize(), Materialise()], seed=seed)
    for group in after.walk():
        if isinstance(group, GroupOp):
            computing = [name for name in ops_of(group)[1:] if name not in ("iota", "positions", "dim")]  # type: ignore[arg-type]
            assert len(computing) == 1


def test_views_are_kernels_and_reshapes_are_names(seed: int) -> None:
    g = Graph("b: 0..4")
    x = g.input("x", ["b", 6])
    value = g.transpose(g.slice(g.broadcast(x, 2, "b", 6), 2, 1, 5), 2, 0, 1)
    after = ground(g.done(g.reshape(value, 4, "2*b")), Materialise(), seed=seed)
    assert [op.kind.data for op in after.walk() if isinstance(op, GroupOp)] == ["map", "map", "map"]


def test_the_kinds_are_those_of_fuse(seed: int) -> None:
    kinds = [
        {op.kind.data for op in ground(ENCODER, p, seed=seed).walk() if isinstance(op, GroupOp)}
        for p in (Fuse(), Materialise())
    ]
    assert kinds[0] <= kinds[1] == {"map", "matmul", "attention", "row-reduction", "reduction"}

"""A small program, the kernels that fuse makes of it, and why there are not fewer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xdsl.ir import SSAValue

from tests.passes.graphs import Graph, ops_of
from tilewright.ir.graph.structure import GroupOp
from tilewright.passes.fuse import Fuse
from tilewright.testing import context, ground

Build = Callable[[Graph, SSAValue], SSAValue | list[SSAValue]]


@dataclass(frozen=True)
class Row:
    """build makes the results from an input f32[b, t, 16].

    kernels: each as "kind(arguments): ops", in order. reasons: what is said of the pairs that stay apart, each once.
    """

    build: Build
    kernels: list[str]
    reasons: list[str]


def partition(build: Build, seed: int, *, limit: int | None = None, **options: int) -> tuple[list[str], list[str]]:
    """The kernels after fuse, which compute the same as the program on random inputs, and the reasons."""
    g = Graph("b: 0..4", "t: 1..7", "u: 1..")
    x = g.input("x", ["b", "t", 16])
    g.sized("u")
    made = build(g, x)
    module = g.done(*(made if isinstance(made, list) else [made]))
    ctx = context(module, limit=limit)
    after = ground(module, Fuse(**options), seed=seed, ctx=ctx)
    kernels = [op for op in after.walk() if isinstance(op, GroupOp)]
    shown = [f"{op.kind.data}({len(op.args)}): {' '.join(ops_of(op)[1:])}".rstrip() for op in kernels]  # type: ignore[arg-type]
    return shown, sorted({r.reason.removeprefix("not joined with ") for r in ctx.refused})

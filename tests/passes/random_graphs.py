"""Random small graphs for properties: every op's operands come from what is there already, so most of them interact."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tests.passes.graphs import Graph
from tilewright.ir.graph.base import tensor
from tilewright.passes.rewriting import wide_dims

UNARY = ["neg", "abs", "tanh", "sigmoid", "relu", "sin"]
BINARY = ["add", "sub", "mul", "max", "min"]
NUMBERS = [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 3.0, 0.3]


@st.composite
def modules(draw: st.DrawFn, most: int = 12) -> ModuleOp:
    """A module of up to `most` drawn ops over [b, t, 4], [b, t, 1], [t, 4], [4] and what follows from them."""
    g = Graph("b: 0..3", "t: 1..4", dtype="f64")
    values = [g.input("x", ["b", "t", 4]), g.input("y", ["b", "t", 4]), g.input("r", ["b", "t", 1])]
    values += [g.input("m", ["t", 4]), g.weight("v", [4]), g.weight("w", [4, 4])]
    steps: list[Callable[[], SSAValue]] = []

    def pick(accept: Callable[[SSAValue], bool] = lambda v: True) -> SSAValue:
        return draw(st.sampled_from([v for v in values if accept(v)] or values[:1]))

    def binary() -> SSAValue:
        a = pick()
        b = pick(lambda v: _broadcast(tensor(a).dims, tensor(v).dims))
        return g.map(draw(st.sampled_from(BINARY)), *draw(st.permutations([a, b])))

    def view() -> SSAValue:
        x = pick()
        dims = tensor(x).dims
        kind = draw(st.sampled_from(["transpose", "slice", "flatten", "unit", "broadcast"]))
        if kind == "transpose":
            return g.transpose(x, *draw(st.permutations(range(len(dims)))))
        if kind == "slice" and dims and dims[-1].constant == 4:
            low, high = sorted(draw(st.tuples(st.integers(0, 4), st.integers(0, 4))))
            return g.slice(x, -1, low, high, draw(st.integers(1, 2)))
        if kind == "flatten" and len(dims) == 3:
            return g.reshape(x, dims[0] * dims[1], dims[2])
        if kind == "broadcast" and len(dims) < 3:
            return g.broadcast(x, 2, *dims)
        at = draw(st.integers(0, len(dims)))
        return g.reshape(x, *dims[:at], 1, *dims[at:])

    def rows() -> SSAValue:
        x = pick(lambda v: bool(tensor(v).dims) and tensor(v).dims[-1].constant in (1, 2, 4))
        kind = draw(st.sampled_from(["norm", "softmax", "sum", "max", "mean"]))
        if kind == "norm":
            return g.norm(x, kind=draw(st.sampled_from(["layer", "rms"])), eps=0.1)
        if kind == "softmax":
            return g.softmax(x)
        return g.reduce(kind, x, -1, keepdims=draw(st.booleans()))

    def other_axes() -> SSAValue:
        x = pick(lambda v: len(tensor(v).dims) > 1)
        return g.reduce("sum", x, draw(st.integers(0, len(tensor(x).dims) - 1)), keepdims=draw(st.booleans()))

    def product() -> SSAValue:
        x = pick(lambda v: len(tensor(v).dims) > 1 and tensor(v).dims[-1].constant == 4)
        return g.matmul(
            x, pick(lambda v: [d.constant for d in tensor(v).dims] == [4, 4]), transpose_b=draw(st.booleans())
        )

    def number() -> SSAValue:
        return g.map(
            draw(st.sampled_from(["add", "mul", "sub", "div", "max"])), pick(), draw(st.sampled_from(NUMBERS[2:]))
        )

    def neutral() -> SSAValue:
        return g.map(draw(st.sampled_from(["add", "mul", "sub"])), pick(), draw(st.sampled_from(NUMBERS)))

    def joined() -> SSAValue:
        x = pick(lambda v: bool(tensor(v).dims))
        return g.concat(-1, x, pick(lambda v: tensor(v).dims == tensor(x).dims))

    steps = [
        lambda: g.map(draw(st.sampled_from(UNARY)), pick()),
        binary,
        binary,
        view,
        rows,
        other_axes,
        product,
        number,
        neutral,
        joined,
        lambda: g.cast(g.cast(pick(), "f32"), "f64"),
    ]
    for _ in range(draw(st.integers(1, most))):
        value = draw(st.sampled_from(steps))()
        # what is large enough has shown itself
        if len(wide_dims(tensor(value).dims)) < 5:
            values.append(value)
    outs = draw(st.lists(st.sampled_from(values[6:] or values[:1]), min_size=1, max_size=3, unique_by=id))
    return g.done(*outs)


def _broadcast(a: tuple[object, ...], b: tuple[object, ...]) -> bool:
    """Two shapes broadcast, with 1 as the only size that stretches."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return all(p == q or getattr(p, "constant", None) == 1 or getattr(q, "constant", None) == 1 for p, q in pairs)

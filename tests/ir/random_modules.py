"""Modules that hypothesis draws: chains of graph ops on a symbolic [batch, tokens, 6] tensor, with shared values."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tilewright.ir.attributes import Str
from tilewright.ir.dims import Dim, Expr
from tilewright.ir.dtypes import F32
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.reduction import CumulativeOp, NormOp, ReduceOp, SoftmaxOp, SortOp
from tilewright.ir.graph.shape import BroadcastOp, ConcatOp, PadOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import ConstantOp, FuncOp, WeightOp
from tilewright.ir.module import new_module
from tilewright.ir.types import TensorType

WIDTH = 6
SHAPE = ("batch", "tokens", WIDTH)
# bounded functions, so that a long chain neither overflows nor meets NaN
UNARY = ("tanh", "sigmoid", "sin", "neg", "abs", "relu")
BINARY = ("add", "sub", "mul", "max", "min")
STEPS = (
    "unary",
    "binary",
    "matmul",
    "norm",
    "softmax",
    "reduce",
    "turn",
    "flatten",
    "rotate",
    "pad",
    "cast",
    "constant",
    "cumulative",
    "sort",
)


@st.composite
def modules(draw: st.DrawFn) -> ModuleOp:
    """A module with one function @main(x, y) of one result, and one weight."""
    module = new_module([Dim("batch", 0, 8), Dim("tokens", 0, 16)])
    tensor = TensorType.of(SHAPE, F32)
    main = FuncOp.begin("main", {"x": tensor, "y": tensor})
    values: list[SSAValue] = list(main.block.args)

    def put(kind: Any, /, *operands: Any, **properties: Any) -> SSAValue:
        op = kind.make(*operands, **properties)
        if draw(st.booleans()):
            op.attributes["loc"] = Str.of(draw(st.text(max_size=6)))
        main.block.add_op(op)
        found: SSAValue = op.results[0]
        return found

    for step in draw(st.lists(st.sampled_from(STEPS), max_size=7)):
        values.append(_step(step, draw(st.sampled_from(values)), values, put, draw))
    module.body.block.add_op(main.finish([values[-1]], [draw(st.text(min_size=1, max_size=4))]))
    return module


def _step(step: str, x: SSAValue, values: list[SSAValue], put: Any, draw: st.DrawFn) -> SSAValue:
    """One op or a few that lead from a [batch, tokens, 6] tensor to another."""
    match step:
        case "unary":
            found = put(MapOp, x, fn=draw(st.sampled_from(UNARY)))
        case "binary":
            other = draw(st.sampled_from(values))
            found = put(MapOp, put(MapOp, x, other, fn=draw(st.sampled_from(BINARY))), fn="tanh")
        case "matmul":
            weight = put(WeightOp, name="w", result_types=[TensorType.of([WIDTH, WIDTH], F32)])
            found = put(MapOp, put(MatmulOp, x, weight, transpose_b=draw(st.booleans())), fn="tanh")
        case "norm":
            found = put(
                NormOp, x, kind=draw(st.sampled_from(["layer", "rms"])), eps=draw(st.sampled_from([1e-5, 1e-3]))
            )
        case "softmax":
            found = put(SoftmaxOp, x, axis=draw(st.integers(0, 2)))
        case "reduce":
            axes = draw(st.sets(st.integers(1, 2), min_size=1))
            part = put(ReduceOp, x, fn="sum", axes=sorted(axes), keepdims=True)
            found = put(BroadcastOp, put(MapOp, part, fn="tanh"), dims=SHAPE)
        case "turn":
            found = put(TransposeOp, put(TransposeOp, x, permutation=[2, 0, 1]), permutation=[1, 2, 0])
        case "flatten":
            flat = put(ReshapeOp, x, dims=[Expr.of("batch") * "tokens" * WIDTH])
            found = put(ReshapeOp, put(MapOp, flat, fn="sin"), dims=SHAPE)
        case "rotate":
            at = draw(st.integers(0, WIDTH))
            right = put(SliceOp, x, starts=[0, 0, at], stops=SHAPE)
            left = put(SliceOp, x, starts=[0, 0, 0], stops=["batch", "tokens", at])
            found = put(ConcatOp, right, left, axis=2)
        case "pad":
            more = Expr.of("tokens") + 1
            wide = put(PadOp, x, low=[0, 1, 0], high=[0, 0, 0], value=draw(st.floats(-1, 1)))
            found = put(SliceOp, wide, starts=[0, 1, 0], stops=["batch", more, WIDTH])
        case "cast":
            found = put(CastOp, put(CastOp, x, dtype=draw(st.sampled_from(["bf16", "f64", "f16"]))), dtype="f32")
        case "constant":
            number = ConstantOp.of(draw(st.floats(-1, 1)), draw(st.sampled_from([(), (WIDTH,), (1, WIDTH)])), F32)
            found = put(MapOp, x, put(ConstantOp, values=number.values, result_types=[number.out.type]), fn="add")
        case "cumulative":
            found = put(MapOp, put(CumulativeOp, x, fn="sum", axis=draw(st.integers(0, 2))), fn="tanh")
        case _:
            found = put(SortOp, x, axis=draw(st.integers(0, 2)), descending=draw(st.booleans()))
    result: SSAValue = found
    return result


def operands(batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Inputs for @main."""
    return {"x": torch.randn(batch, tokens, WIDTH), "y": torch.randn(batch, tokens, WIDTH)}


def weights() -> dict[str, torch.Tensor]:
    return {"w": torch.randn(WIDTH, WIDTH)}

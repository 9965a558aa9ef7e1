"""A module in which every op of the graph dialect occurs, with the tensors to run it on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, Region, SSAValue

from tilewright.ir.attributes import Str
from tilewright.ir.dims import Dim, ExprLike
from tilewright.ir.dtypes import F32, I1, I64, DType
from tilewright.ir.graph.attention import AttentionOp, RotaryOp
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.experts import ExpertsOp
from tilewright.ir.graph.externs import register_extern
from tilewright.ir.graph.indexing import GatherOp, PutAlongOp, ScatterOp, StateUpdateOp, TakeAlongOp
from tilewright.ir.graph.linear_attention import ContinuedLinearAttentionOp, LinearAttentionOp
from tilewright.ir.graph.paging import PagedAttentionOp
from tilewright.ir.graph.paging_quantized import QuantizedPagedAttentionOp
from tilewright.ir.graph.polynomial_attention import PolynomialAttentionOp
from tilewright.ir.graph.quantization import DequantizeOp, QuantizeOp
from tilewright.ir.graph.recurrence import ScanOp
from tilewright.ir.graph.reduction import CumulativeOp, NormOp, ReduceOp, SoftmaxOp, SortOp, TopkOp
from tilewright.ir.graph.routing import GroupedMatmulOp, RouteOp, SlotsOp
from tilewright.ir.graph.shape import BroadcastOp, ConcatOp, PadOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import (
    CallOp,
    ConstantOp,
    DimOp,
    ExternOp,
    FuncOp,
    GroupOp,
    IotaOp,
    PackedOp,
    PositionsOp,
    StateReadOp,
    StateWriteOp,
    WeightOp,
    YieldOp,
)
from tilewright.ir.graph.windows import ConvolutionOp, PoolOp
from tilewright.ir.module import new_module
from tilewright.ir.types import TensorType

T, D, H = "tokens", 8, 2


class Ready(NamedTuple):
    """A module and what `interpret` takes beside it."""

    module: ModuleOp
    weights: dict[str, torch.Tensor]
    states: dict[str, torch.Tensor]

    @staticmethod
    def inputs(tokens: int) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(tokens, D), "ids": torch.randint(0, D, (tokens, 2)), "keep": torch.rand(tokens) < 0.7}


@register_extern("tests.clip")
def _clip(x: torch.Tensor, *, low: float) -> torch.Tensor:
    return x.clamp(min=low)


def tensor_type(dims: Sequence[ExprLike], dtype: DType = F32) -> TensorType:
    return TensorType.of(dims, dtype)


def build() -> Ready:
    """Every op once or more, all reaching the result of @main."""
    module = new_module([Dim(T, 1, 64), Dim("free", 0, None, "runtime")])
    module.body.block.add_ops([_layer(), _prepare(), _main()])
    weights = {
        "w": torch.randn(D, D),
        "gain": torch.randn(D),
        "gate_up": torch.randn(3, 12, D),
        "down": torch.randn(3, D, 6),
        "halves": torch.randn(D, D, D // 2),
        "kernel": torch.randn(4, 1, 3),
        "scale": torch.rand(D, 2) + 0.1,
    }
    return Ready(module, weights, {"memory": torch.randn(D)})


def _layer() -> FuncOp:
    layer = FuncOp.begin("double", {"v": tensor_type([T, D])}, kind="layer")
    (v,) = layer.block.args
    two = ConstantOp.of(2.0, [], F32)
    product = MapOp.make(v, two, fn="mul")
    layer.block.add_ops([two, product])
    return layer.finish([product.out], ["doubled"])


def _prepare() -> FuncOp:
    prepare = FuncOp.begin("prepare", {}, kind="prepare")
    w = WeightOp.make(name="w", result_types=[tensor_type([D, D])])
    scale = WeightOp.make(name="scale", result_types=[tensor_type([D, 2])])
    small = QuantizeOp.make(w, scale, axis=1, group=4)
    back = DequantizeOp.make(small, scale, axis=1, group=4)
    turned = TransposeOp.make(back, permutation=[1, 0])
    prepare.block.add_ops([w, scale, small, back, turned])
    return prepare.finish([turned.out], ["w.turned"])


def _main() -> FuncOp:
    main = FuncOp.begin(
        "main", {"x": tensor_type([T, D]), "ids": tensor_type([T, 2], I64), "keep": tensor_type([T], I1)}
    )
    x, ids, keep = main.block.args

    def put(kind: Any, /, *operands: Any, **properties: Any) -> Any:
        op = kind.make(*operands, **properties)
        op.attributes["loc"] = Str.of(f"net.py:{len(list(main.block.ops)) + 1}")
        main.block.add_op(op)
        return op.results[0] if len(op.results) == 1 else op.results

    def weight(name: str, *dims: int) -> SSAValue:
        found: SSAValue = put(WeightOp, name=name, result_types=[tensor_type(dims)])
        return found

    packed = put(PackedOp, name="w.turned", result_types=[tensor_type([D, D])])
    y = put(MatmulOp, x, packed, transpose_b=True)
    y = put(NormOp, y, weight("gain", D), kind="rms", eps=1e-6)
    (y,) = _results(put(CallOp, [y], callee="double", result_types=[tensor_type([T, D])]))
    y = put(ScanOp, put(ConstantOp, values=[0.5] * D, result_types=[tensor_type([D])]), y, None, axis=0)

    split = put(ReshapeOp, y, dims=[1, T, H, D // H])
    fades = put(ConstantOp, values=[-0.5], result_types=[tensor_type([1, T, H])])
    mixed = put(LinearAttentionOp, split, split, split, fades)
    heads = put(TransposeOp, put(ReshapeOp, mixed, dims=[T, H, D // H]), permutation=[1, 0, 2])
    positions = put(PositionsOp, result_types=[tensor_type([T], I64)])
    angles = put(MapOp, put(CastOp, positions, dtype="f32"), fn="cos")
    table = put(BroadcastOp, put(ReshapeOp, angles, dims=[T, 1]), dims=[T, D // H])
    heads = put(RotaryOp, heads, table, table, style="interleaved")
    mixed, lse = put(
        AttentionOp,
        heads,
        heads,
        heads,
        None,
        keep,
        positions,
        positions,
        scale=0.5,
        mask="sliding",
        window=3,
        lse=True,
    )
    lse = put(MapOp, lse, put(ConstantOp, values=[-30.0], result_types=[tensor_type([])]), fn="max")
    heads = put(MapOp, mixed, put(SoftmaxOp, put(ReshapeOp, lse, dims=[H, T, 1]), axis=0), fn="add")
    never = put(ConstantOp, values=[0] * H, result_types=[tensor_type([H], I64)])
    near = put(
        PolynomialAttentionOp, heads, heads, heads, never, None, scale=1e-3, c0=1.0, c1=1.0, c2=0.5, last=2, chunk=64
    )
    heads = put(MapOp, heads, near, fn="add")
    cached = put(BroadcastOp, put(ReshapeOp, weight("gain", D), dims=[1, H, D // H]), dims=[64, H, D // H])
    none = put(ConstantOp, values=[0], result_types=[tensor_type([1], I64)])
    ends = put(ConcatOp, none, put(ReshapeOp, put(DimOp, value=[T]), dims=[1]), axis=0)
    pages = put(ConstantOp, values=[1, 3, 0, 2], result_types=[tensor_type([1, 4], I64)])
    asked = put(TransposeOp, heads, permutation=[1, 0, 2])
    begun = put(ConstantOp, values=[0.25], result_types=[tensor_type([3, H, D // H, D // H])])
    asked, _ = put(
        ContinuedLinearAttentionOp, asked, asked, asked, put(ReshapeOp, fades, dims=[T, H]), begun, ends,
        put(ConstantOp, values=[2], result_types=[tensor_type([1], I64)]),
    )  # fmt: skip
    cached = put(TransposeOp, put(ReshapeOp, cached, dims=[4, 16, H, D // H]), permutation=[0, 2, 1, 3])
    seen = put(PagedAttentionOp, asked, cached, cached, positions, ends, pages, page=16, scale=0.5)
    codes = put(
        CastOp, put(MapOp, cached, put(ConstantOp, values=[16.0], result_types=[tensor_type([])]), fn="mul"), dtype="u8"
    )
    none = [0, 0, 0, 0]
    scales = put(ReshapeOp, put(SliceOp, cached, starts=none, stops=[4, H, 1, D // H]), dims=[4, H, D // H])
    rows = put(ReshapeOp, put(SliceOp, cached, starts=none, stops=[4, H, 16, 1]), dims=[4, H, 16])
    near = put(
        QuantizedPagedAttentionOp, asked, codes, codes, scales, scales, rows, rows, cached, cached, positions,
        positions, ends, pages, pages, page=16, recent=1, bits=8, scale=0.5,
    )  # fmt: skip
    y = put(ReshapeOp, put(MapOp, put(MapOp, asked, seen, fn="add"), near, fn="add"), dims=[T, D])

    values, order = put(TopkOp, put(SliceOp, y, starts=[0, 0], stops=[T, 3]), k=2, axis=1)
    routed = put(ExpertsOp, y, order, values, weight("gate_up", 3, 12, D), weight("down", 3, D, 6), activation="silu")
    places, offsets = put(RouteOp, put(ReshapeOp, ids, dims=[main_dim() * 2]), experts=D)
    order, rows = put(SlotsOp, places, each=2)
    halves = put(GroupedMatmulOp, y, weight("halves", D, D, D // 2), rows, order, offsets)
    routed = put(MapOp, routed, put(ReshapeOp, halves, dims=[T, D]), fn="add")
    sums = put(CumulativeOp, routed, fn="sum", axis=1)
    sorted_values, _ = put(SortOp, sums, axis=1, descending=True)

    picked = put(TakeAlongOp, sorted_values, ids, axis=1)
    written = put(PutAlongOp, y, ids, picked, axis=1, mode="add")
    memory = put(StateReadOp, name="memory", result_types=[tensor_type([D])])
    rows = put(GatherOp, put(ReshapeOp, memory, dims=[D, 1]), put(ReduceOp, ids, fn="max", axes=[1]), axis=0)
    written = put(MapOp, written, rows, fn="add")
    average = put(ReduceOp, written, fn="mean", axes=[0])
    one = put(ConstantOp, values=[1], result_types=[tensor_type([1], I64)])
    kept = put(ScatterOp, memory, one, put(SliceOp, average, starts=[0], stops=[1]))
    kept = put(StateUpdateOp, kept, one, put(SliceOp, average, starts=[1], stops=[2]), mode="add")
    put(StateWriteOp, kept, name="memory")

    columns = put(IotaOp, axis=1, start=[T], step=2, result_types=[tensor_type([T, D])])
    count = put(CastOp, put(DimOp, value=[T]), dtype="f32")
    scaled = put(MapOp, columns, count, fn="div")
    image = put(ReshapeOp, put(ConcatOp, written, scaled, axis=1), dims=[1, 4, T, 4])
    lines = put(ReshapeOp, put(PadOp, image, low=[0, 0, 0, 1], high=[0, 0, 0, 1]), dims=[1, 4, 6 * main_dim()])
    folded = put(
        ConvolutionOp,
        lines,
        weight("kernel", 4, 1, 3),
        strides=[3],
        padding_low=[0],
        padding_high=[0],
        dilation=[1],
        groups=4,
    )
    folded = put(PoolOp, folded, fn="max", window=[3], strides=[1], padding_low=[1], padding_high=[1], dilation=[1])
    (folded,) = _results(
        put(ExternOp, [folded], callee="tests.clip", arguments='{"low": -1.0}', result_types=[folded.type])
    )
    put_group(main, folded)
    last = main.block.last_op
    assert isinstance(last, GroupOp)
    return main.finish([written, last.results[0]], ["written", "folded"])


def main_dim() -> Any:
    from tilewright.ir.dims import Expr

    return Expr.of(T)


def put_group(main: FuncOp, value: SSAValue) -> None:
    """Adds a group of two ops on a value."""
    block = Block(arg_types=[value.type])
    up = MapOp.make(block.args[0], fn="exp")
    down = MapOp.make(up, fn="tanh")
    block.add_ops([up, down, YieldOp.make([down.out])])
    group = GroupOp.make([value], kind="map", name="squash", result_types=[value.type], regions=[Region(block)])
    main.block.add_op(group)


def _results(made: Any) -> Sequence[SSAValue]:
    """One result or several as a sequence, for ops with any number of results."""
    return [made] if isinstance(made, SSAValue) else made


def op_names(root: Operation) -> set[str]:
    """The names of all ops at and below one."""
    return {op.name for op in root.walk()}

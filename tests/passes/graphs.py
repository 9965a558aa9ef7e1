"""Graphs for tests, in a few lines: `g = Graph("b: 0..4"); x = g.input("x", ["b", 8]); g.done(g.map("neg", x))`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from tilewright.ir.attributes import Str
from tilewright.ir.dims import Dim, Expr, ExprLike
from tilewright.ir.dtypes import DTYPES, DType
from tilewright.ir.graph.attention import AttentionOp, RotaryOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.indexing import GatherOp
from tilewright.ir.graph.reduction import NormOp, ReduceOp, SoftmaxOp
from tilewright.ir.graph.shape import BroadcastOp, ConcatOp, ReshapeOp, SliceOp, TransposeOp
from tilewright.ir.graph.structure import ConstantOp, DimOp, FuncOp, IotaOp, PositionsOp, ReturnOp, WeightOp
from tilewright.ir.module import new_module
from tilewright.ir.operation import PATH, TwOperation
from tilewright.ir.types import TensorType


class Graph:
    """One @main under construction; `path` is the module path that new ops get."""

    def __init__(self, *dims: str, dtype: str = "f32") -> None:
        self.dims = [_dim(d) for d in dims]
        self.dtype = DTYPES[dtype]
        self.module = new_module(self.dims)
        self.function = FuncOp.begin("main", {})
        self.module.body.block.add_op(self.function)
        self.names: list[str] = []
        self.path = ""

    def op(self, op_class: type[TwOperation], /, *operands: Any, **stated: Any) -> SSAValue:
        made = op_class.make(*operands, **stated)
        if self.path:
            made.attributes[PATH] = Str(self.path)
        self.function.block.add_op(made)
        return made.results[0]

    def input(self, name: str, dims: Sequence[ExprLike], dtype: str | None = None) -> SSAValue:
        self.names.append(name)
        kind = TensorType.of([_expr(d) for d in dims], self._dtype(dtype))
        return self.function.block.insert_arg(kind, len(self.names) - 1)

    def weight(self, name: str, dims: Sequence[ExprLike], dtype: str | None = None) -> SSAValue:
        return self.op(WeightOp, name=name, result_types=[TensorType.of(dims, self._dtype(dtype))])

    def constant(self, values: Any, dims: Sequence[ExprLike] = (), dtype: str | None = None) -> SSAValue:
        made = ConstantOp.of(values, [_expr(d) for d in dims], self._dtype(dtype))
        self.function.block.add_op(made)
        return made.out

    def map(self, fn: str, *operands: SSAValue | float) -> SSAValue:
        """A map; plain numbers become rank-0 constants of the dtype of the other operands."""
        dtypes = [tensor(o).dtype for o in operands[1 if fn == "select" else 0 :] if isinstance(o, SSAValue)]
        dtype = dtypes[-1] if dtypes else self.dtype
        values = [o if isinstance(o, SSAValue) else self.constant(o, (), dtype.name) for o in operands]
        return self.op(MapOp, values, fn=fn)

    def cast(self, x: SSAValue, dtype: str) -> SSAValue:
        return self.op(CastOp, x, dtype=dtype)

    def reshape(self, x: SSAValue, *dims: ExprLike) -> SSAValue:
        return self.op(ReshapeOp, x, dims=[_expr(d) for d in dims])

    def transpose(self, x: SSAValue, *permutation: int) -> SSAValue:
        return self.op(TransposeOp, x, permutation=permutation)

    def broadcast(self, x: SSAValue, *dims: ExprLike) -> SSAValue:
        return self.op(BroadcastOp, x, dims=[_expr(d) for d in dims])

    def slice(self, x: SSAValue, axis: int, start: ExprLike, stop: ExprLike, step: int = 1) -> SSAValue:
        """A slice of one axis, which may be counted from the end."""
        dims = tensor(x).dims
        at = axis % len(dims)
        return self.op(
            SliceOp,
            x,
            starts=[_expr(start) if i == at else Expr.of(0) for i in range(len(dims))],
            stops=[_expr(stop) if i == at else d for i, d in enumerate(dims)],
            steps=[step if i == at else 1 for i in range(len(dims))],
        )

    def concat(self, axis: int, *xs: SSAValue) -> SSAValue:
        return self.op(ConcatOp, list(xs), axis=axis % tensor(xs[0]).rank)

    def matmul(self, a: SSAValue, b: SSAValue, *, transpose_b: bool = False) -> SSAValue:
        return self.op(MatmulOp, a, b, transpose_b=transpose_b)

    def reduce(self, fn: str, x: SSAValue, *axes: int, keepdims: bool = False) -> SSAValue:
        rank = tensor(x).rank
        return self.op(ReduceOp, x, fn=fn, axes=[a % rank for a in axes], keepdims=keepdims)

    def softmax(self, x: SSAValue, axis: int = -1, **stated: Any) -> SSAValue:
        return self.op(SoftmaxOp, x, axis=axis % tensor(x).rank, **stated)

    def norm(
        self, x: SSAValue, weight: SSAValue | None = None, bias: SSAValue | None = None, **stated: Any
    ) -> SSAValue:
        return self.op(NormOp, x, weight, bias, **{"kind": "layer", "eps": 1e-5, **stated})

    def gather(self, x: SSAValue, indices: SSAValue, axis: int = 0) -> SSAValue:
        return self.op(GatherOp, x, indices, axis=axis)

    def attention(self, *operands: SSAValue | None, **stated: Any) -> SSAValue:
        return self.op(AttentionOp, *operands, **{"scale": 1.0, **stated})

    def rotary(self, x: SSAValue, cos: SSAValue, sin: SSAValue, style: str = "half") -> SSAValue:
        return self.op(RotaryOp, x, cos, sin, style=style)

    def iota(self, size: ExprLike, start: ExprLike = 0, step: int = 1, dtype: str = "i64") -> SSAValue:
        kind = TensorType.of([_expr(size)], DTYPES[dtype])
        return self.op(IotaOp, axis=0, start=[_expr(start)], step=step, result_types=[kind])

    def positions(self, size: ExprLike) -> SSAValue:
        return self.op(PositionsOp, result_types=[TensorType.of([_expr(size)], DTYPES["i64"])])

    def dim(self, size: ExprLike) -> SSAValue:
        return self.op(DimOp, value=[_expr(size)])

    def sized(self, *dims: ExprLike) -> None:
        """An input that is there for its sizes alone."""
        self.input(f"sized{len(self.names)}", dims)

    def done(self, *values: SSAValue) -> ModuleOp:
        """The module, with these results."""
        self.function.arg_names = type(self.function.arg_names)(tuple(self.names))
        self.function.block.add_op(ReturnOp.make(list(values)))
        self.function.result_names = type(self.function.result_names)(tuple(f"out{i}" for i in range(len(values))))
        self.module.verify()
        return self.module

    def _dtype(self, name: str | None) -> DType:
        return self.dtype if name is None else DTYPES[name]


def _expr(dim: ExprLike) -> Expr:
    from tilewright.ir.dims import parse_expr

    return parse_expr(dim) if isinstance(dim, str) else Expr.of(dim)


def _dim(text: str) -> Dim:
    name, _, bounds = text.partition(": ")
    low, _, high = bounds.partition("..")
    return Dim(name, int(low or 1), int(high) if high else None)


def ops_of(module: ModuleOp) -> list[str]:
    """The names of all ops in order, without the dialect; a map by its function."""
    found = []
    for op in module.walk():
        name = op.name.partition(".")[2]
        found.append(op.fn.data if isinstance(op, MapOp) else name)
    return [n for n in found if n not in ("module", "func", "return", "yield", "weight", "constant")]

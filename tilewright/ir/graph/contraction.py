"""Contractions: matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, prop_def, result_def, traits_def
from xdsl.traits import Pure

from tilewright.ir.attributes import Bool, Int, Ints, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr, floordiv, product
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.graph.base import GraphOp, Setting, at_least_f32, broadcast_dims, tensor
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


@irdl_op_definition
class MatmulOp(GraphOp):
    """a [..., M, K] times b [..., K, N] (with transpose_b [..., N, K]); leading dims broadcast, f32 or wider inside.

    result: the dtype of the result where it is not the operands' ("f32" of bf16 operands keeps the sums unrounded).
    """

    name = "graph.matmul"
    a = operand_def(TensorType)
    b = operand_def(TensorType)
    out = result_def(TensorType)
    transpose_b = prop_def(Bool, default_value=Bool(False))
    result = prop_def(Str, default_value=Str(""))
    traits = traits_def(Pure())

    def sizes(self) -> tuple[tuple[Expr, ...], Expr, Expr, Expr]:
        """Leading dims, M, N and K."""
        a, b = tensor(self.a), tensor(self.b)
        if a.rank < 2 or b.rank < 2:
            raise self.malformed(f"operands need rank 2 or more, got {a} and {b}")
        m, k = a.dims[-2:]
        n, kb = b.dims[-2:] if self.transpose_b.data else (b.dims[-1], b.dims[-2])
        if k != kb:
            raise self.malformed(f"the contracted dims differ: {a} has {k}, {b} has {kb}")
        if a.dtype != b.dtype:
            raise self.malformed(f"operand dtypes differ: {a.dtype} and {b.dtype}")
        lead = broadcast_dims(self, a.dims[:-2], b.dims[:-2])
        return lead, m, n, k

    def infer(self) -> Sequence[TensorType]:
        lead, m, n, _ = self.sizes()
        dtype = tensor(self.a).dtype
        if self.result.data:
            found = DTYPES.get(self.result.data)
            if found is None or not found.is_float or not dtype.is_float:
                raise self.malformed(f"result {self.result.data!r} of {dtype} operands: both must be floats")
            dtype = found
        return [TensorType.of((*lead, m, n), dtype)]

    def reference(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The sums before they are rounded to the result's dtype."""
        wide_a, wide_b = at_least_f32(a), at_least_f32(b)
        return wide_a @ (wide_b.mT if self.transpose_b.data else wide_b)

    def evaluate(self, setting: Setting, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.reference(a, b).to(setting.torch(tensor(self.out).dtype))

    def cost(self) -> Cost:
        _, _, _, k = self.sizes()
        return self.compulsory(matrix=tensor(self.out).elements * k * 2)


@irdl_op_definition
class ConvolutionOp(GraphOp):
    """x [N, C, spatial...] with filters w [F, C / groups, window...] and bias [F]: [N, F, out...], f32 or wider inside.

    Per spatial axis: out = (in + padding_low + padding_high - dilation * (window - 1) - 1) // stride + 1, padding is 0.
    """

    name = "graph.convolution"
    x = operand_def(TensorType)
    w = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    out = result_def(TensorType)
    strides = prop_def(Ints)
    padding_low = prop_def(Ints)
    padding_high = prop_def(Ints)
    dilation = prop_def(Ints)
    groups = prop_def(Int, default_value=Int(1))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x, w, groups = tensor(self.x), tensor(self.w), self.groups.data
        spatial = x.rank - 2
        if spatial < 1 or w.rank != x.rank or w.dtype != x.dtype or not x.dtype.is_float:
            raise self.malformed(f"x [N, C, spatial...] and w [F, C / groups, window...] do not fit: {x}, {w}")
        listed = (self.strides.data, self.padding_low.data, self.padding_high.data, self.dilation.data)
        if any(len(values) != spatial for values in listed):
            raise self.malformed(f"needs {spatial} strides, paddings and dilations, got {listed}")
        if min(*self.strides.data, *self.dilation.data, groups) < 1 or min(*listed[1], *listed[2]) < 0:
            raise self.malformed(f"strides, dilations and groups are 1 or more, paddings 0 or more, got {listed}")
        filters = w.dims[0]
        if w.dims[1] * groups != x.dims[1] or (filters.constant is not None and filters.constant % groups):
            raise self.malformed(f"{x.dims[1]} channels and {filters} filters do not split into {groups} groups of {w}")
        if self.bias is not None and tensor(self.bias) != TensorType.of([filters], x.dtype):
            raise self.malformed(f"bias must be {TensorType.of([filters], x.dtype)}, got {tensor(self.bias)}")
        out = []
        for size, window, stride, low, high, dilation in zip(x.dims[2:], w.dims[2:], *listed, strict=True):
            room = size + low + high - (window - 1) * dilation - 1
            if room.constant is not None and room.constant < 0:
                raise self.malformed(f"the window of {w} does not fit into {x} with padding")
            out.append(floordiv(room, stride) + 1)
        return [TensorType.of((x.dims[0], filters, *out), x.dtype)]

    def reference(self, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        import torch

        wide, filters = at_least_f32(x), at_least_f32(w)
        sides = [s for pair in zip(self.padding_low.data, self.padding_high.data, strict=True) for s in reversed(pair)]
        windows = torch.nn.functional.pad(wide, sides[::-1])
        # every window as its own axes: [N, C, out..., window...]
        for axis, (extent, stride, dilation) in enumerate(
            zip(w.shape[2:], self.strides.data, self.dilation.data, strict=True), start=2
        ):
            reach = dilation * (extent - 1) + 1
            windows = windows.unfold(axis, reach, stride)[..., ::dilation]
        spatial, groups = x.ndim - 2, self.groups.data
        windows = windows.reshape(x.shape[0], groups, w.shape[1], *windows.shape[2:])
        filters = filters.reshape(groups, w.shape[0] // groups, *w.shape[1:])
        axes = "abcde"[:spatial]
        taps = axes.upper()
        out = torch.einsum(f"ngi{axes}{taps},gfi{taps}->ngf{axes}", windows, filters).flatten(1, 2)
        if bias is not None:
            out = out + bias.reshape(-1, *[1] * spatial)
        return out.to(x.dtype)

    def cost(self) -> Cost:
        taps = product(tensor(self.w).dims[1:])
        out = tensor(self.out).elements
        return self.compulsory(matrix=out * taps * 2, vector=out if self.bias is not None else 0)


CONTRACTION = [MatmulOp, ConvolutionOp]

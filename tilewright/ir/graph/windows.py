"""Ops that slide a window over spatial axes: convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, prop_def, result_def, traits_def
from xdsl.traits import Pure

from tilewright.ir.attributes import Bool, Int, Ints, Str
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr, floordiv, minimum, product
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.graph.base import GraphOp, Setting, at_least_f32, tensor
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch

POOLS = ("max", "mean")


class WindowOp(GraphOp):
    """Shared by convolutions and pools: strides, paddings and dilations, one of each per spatial axis.

    channels_last: x is [N, spatial..., C] instead of [N, C, spatial...], and so is the result.
    """

    def channel_axis(self, rank: int) -> int:
        """Where x has its channels."""
        return rank - 1 if self.channels_last.data else 1  # type: ignore[attr-defined]

    def check_windows(self, x: TensorType, windows: Sequence[Expr]) -> None:
        """One stride, padding and dilation for every spatial axis, in range."""
        listed = (self.strides.data, self.padding_low.data, self.padding_high.data, self.dilation.data)  # type: ignore[attr-defined]
        if x.rank < 3 or any(len(values) != len(windows) for values in listed) or len(windows) != x.rank - 2:
            raise self.malformed(f"{x} needs {x.rank - 2} windows, strides, paddings and dilations, got {listed}")
        if min(*listed[0], *listed[3]) < 1 or min(*listed[1], *listed[2]) < 0:
            raise self.malformed(f"strides and dilations are 1 or more, paddings 0 or more, got {listed}")

    def spatial(self, x: TensorType) -> tuple[Expr, ...]:
        """The spatial dims of x."""
        return x.dims[1:-1] if self.channels_last.data else x.dims[2:]  # type: ignore[attr-defined]

    def assembled(self, batch: Expr, channels: Expr, spatial: Sequence[Expr]) -> tuple[Expr, ...]:
        """Dims in the op's layout."""
        return (batch, *spatial, channels) if self.channels_last.data else (batch, channels, *spatial)  # type: ignore[attr-defined]

    def positions(self, size: Expr, window: Expr, axis: int) -> Expr:
        """How many windows fit along a spatial axis."""
        low, high = self.padding_low.data[axis], self.padding_high.data[axis]  # type: ignore[attr-defined]
        room = size + low + high - (window - 1) * self.dilation.data[axis] - 1  # type: ignore[attr-defined]
        if room.constant is not None and room.constant < 0:
            raise self.malformed(f"a window of {window} does not fit into {size} elements with padding")
        return floordiv(room, self.strides.data[axis]) + 1  # type: ignore[attr-defined]

    def windows_of(self, x: torch.Tensor, windows: Sequence[int], high: Sequence[int], fill: float) -> torch.Tensor:
        """x [N, C, spatial...] padded with `fill`, every window as its own axes: [N, C, out..., window...]."""
        import torch

        sides = [s for pair in zip(self.padding_low.data, high, strict=True) for s in reversed(pair)]  # type: ignore[attr-defined]
        found = torch.nn.functional.pad(x, sides[::-1], value=fill)
        for axis, (extent, stride, dilation) in enumerate(
            zip(windows, self.strides.data, self.dilation.data, strict=True),  # type: ignore[attr-defined]
            start=2,
        ):
            found = found.unfold(axis, dilation * (extent - 1) + 1, stride)[..., ::dilation]
        return found


@irdl_op_definition
class ConvolutionOp(WindowOp):
    """x [N, C, spatial...] with filters w [F, C / groups, window...] and bias [F]: [N, F, out...], f32 or wider inside.

    Per spatial axis: out = (in + padding_low + padding_high - dilation * (window - 1) - 1) // stride + 1, padding is 0.
    channels_last: x [N, spatial..., C], w [window..., C / groups, F], the result [N, out..., F]. result: the dtype of
    the result where it is not the operands'.
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
    channels_last = prop_def(Bool, default_value=Bool(False))
    result = prop_def(Str, default_value=Str(""))
    traits = traits_def(Pure())

    @property
    def windows(self) -> tuple[Expr, ...]:
        """The window's extents."""
        dims = tensor(self.w).dims
        return dims[:-2] if self.channels_last.data else dims[2:]

    @property
    def filters(self) -> Expr:
        """F."""
        dims = tensor(self.w).dims
        return dims[-1] if self.channels_last.data else dims[0]

    @property
    def depthwise(self) -> bool:
        """Every channel has one filter of its own."""
        groups = self.groups.data
        return groups > 1 and self.depth.constant == 1 and self.filters.constant == groups

    @property
    def depth(self) -> Expr:
        """C / groups: the channels one filter sees."""
        dims = tensor(self.w).dims
        return dims[-2] if self.channels_last.data else dims[1]

    def infer(self) -> Sequence[TensorType]:
        x, w, groups = tensor(self.x), tensor(self.w), self.groups.data
        if x.rank < 3 or w.rank != x.rank or w.dtype != x.dtype or not x.dtype.is_float or groups < 1:
            raise self.malformed(f"x {x} and filters {w} in {groups} groups do not fit")
        self.check_windows(x, self.windows)
        filters, channels = self.filters, x.dims[self.channel_axis(x.rank)]
        if self.depth * groups != channels or (filters.constant is not None and filters.constant % groups):
            raise self.malformed(f"{channels} channels and {filters} filters do not split into {groups} groups of {w}")
        if self.bias is not None and tensor(self.bias) != TensorType.of([filters], x.dtype):
            raise self.malformed(f"bias must be {TensorType.of([filters], x.dtype)}, got {tensor(self.bias)}")
        pairs = zip(self.spatial(x), self.windows, strict=True)
        out = [self.positions(size, window, axis) for axis, (size, window) in enumerate(pairs)]
        dtype = x.dtype
        if self.result.data:
            found = DTYPES.get(self.result.data)
            if found is None or not found.is_float:
                raise self.malformed(f"result {self.result.data!r} of {dtype} operands: both must be floats")
            dtype = found
        return [TensorType.of(self.assembled(x.dims[0], filters, out), dtype)]

    def evaluate(
        self, setting: Setting, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.reference(x, w, bias).to(setting.torch(tensor(self.out).dtype))

    def reference(self, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The sums before they are rounded to the result's dtype."""
        import torch

        wide, filters = at_least_f32(x), at_least_f32(w)
        if self.channels_last.data:
            wide, filters = wide.movedim(-1, 1), filters.movedim((-1, -2), (0, 1))
        windows = self.windows_of(wide, filters.shape[2:], self.padding_high.data, 0.0)
        spatial, groups = x.ndim - 2, self.groups.data
        windows = windows.reshape(x.shape[0], groups, filters.shape[1], *windows.shape[2:])
        filters = filters.reshape(groups, filters.shape[0] // groups, *filters.shape[1:])
        axes = "abcde"[:spatial]
        taps = axes.upper()
        out = torch.einsum(f"ngi{axes}{taps},gfi{taps}->ngf{axes}", windows, filters).flatten(1, 2)
        if bias is not None:
            out = out + bias.reshape(-1, *[1] * spatial)
        return out.movedim(1, -1) if self.channels_last.data else out

    def cost(self) -> Cost:
        out = tensor(self.out).elements
        taps = self.depth * product(self.windows)
        return self.compulsory(matrix=out * taps * 2, vector=out if self.bias is not None else 0)


@irdl_op_definition
class PoolOp(WindowOp):
    """The maximum or mean of every window of x [N, C, spatial...]: [N, C, out...]; padding is never a maximum.

    ceil: the last window may end past the padding, but must start before it does. count_padding: a mean divides by the
    elements of its window that lie in x or its padding, else by those in x; divisor: by this number instead (0: unset).
    """

    name = "graph.pool"
    x = operand_def(TensorType)
    out = result_def(TensorType)
    fn = prop_def(Str)
    window = prop_def(Ints)
    strides = prop_def(Ints)
    padding_low = prop_def(Ints)
    padding_high = prop_def(Ints)
    dilation = prop_def(Ints)
    ceil = prop_def(Bool, default_value=Bool(False))
    count_padding = prop_def(Bool, default_value=Bool(True))
    divisor = prop_def(Int, default_value=Int(0))
    channels_last = prop_def(Bool, default_value=Bool(False))
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        x = tensor(self.x)
        self.check_choice("fn", self.fn.data, POOLS)
        self.check_windows(x, [Expr.of(n) for n in self.window.data])
        if not x.dtype.is_float and self.fn.data == "mean":
            raise self.malformed(f"the mean of a window needs floats, got {x}")
        if min(self.window.data) < 1 or self.divisor.data < 0:
            raise self.malformed(f"windows are 1 or more and the divisor 0 or more, got {self.window.data}")
        out = []
        for axis, (size, window) in enumerate(zip(self.spatial(x), self.window.data, strict=True)):
            count = self.positions(size, Expr.of(window), axis)
            if self.ceil.data:
                stride = self.strides.data[axis]
                starts = floordiv(size + self.padding_low.data[axis] - 1, stride) + 1
                count = minimum(self.positions(size + stride - 1, Expr.of(window), axis), starts)
            out.append(count)
        return [TensorType.of(self.assembled(x.dims[0], x.dims[self.channel_axis(x.rank)], out), x.dtype)]

    def evaluate(self, setting: Setting, x: torch.Tensor) -> torch.Tensor:
        import torch

        counts = setting.shape(self.spatial(tensor(self.out)))
        given = x.movedim(-1, 1) if self.channels_last.data else x
        sizes = given.shape[2:]
        # as much after x as the last window reaches
        high, kept = [], []
        for axis, (size, count, window) in enumerate(zip(sizes, counts, self.window.data, strict=True)):
            reach = (count - 1) * self.strides.data[axis] + self.dilation.data[axis] * (window - 1) + 1
            high.append(max(0, reach - size - self.padding_low.data[axis]))
            kept.append(slice(0, count))
        where = (slice(None), slice(None), *kept)
        axes = tuple(range(x.ndim, 2 * x.ndim - 2))
        if self.fn.data == "max":
            low = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
            out = self.windows_of(given, self.window.data, high, low)[where].amax(axes)
        else:
            sums = self.windows_of(at_least_f32(given), self.window.data, high, 0.0)[where].sum(axes)
            ones = torch.ones([1, 1, *sizes], dtype=sums.dtype)
            if self.count_padding.data:
                pads = zip(self.padding_low.data, self.padding_high.data, strict=True)
                ones = torch.ones([1, 1, *(a + n + b for n, (a, b) in zip(sizes, pads, strict=True))], dtype=sums.dtype)
                ones = self._counted(ones, counts)
            else:
                ones = self.windows_of(ones, self.window.data, high, 0.0)[where].sum(axes)
            out = sums / (self.divisor.data or ones)
        return (out.movedim(1, -1) if self.channels_last.data else out).to(x.dtype)

    def _counted(self, ones: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """How many elements of each window lie in the padded tensor, which `ones` stands for."""
        import torch

        total = ones.new_ones([1, 1, *counts])
        for axis, (count, window) in enumerate(zip(counts, self.window.data, strict=True)):
            starts = torch.arange(count) * self.strides.data[axis]
            size, dilation = ones.shape[2 + axis], self.dilation.data[axis]
            inside = [(starts + tap * dilation < size).to(ones.dtype) for tap in range(window)]
            shape = [-1 if i == axis else 1 for i in range(len(counts))]
            total = total * torch.stack(inside).sum(0).reshape([1, 1, *shape])
        return total

    def cost(self) -> Cost:
        out = tensor(self.out).elements
        taps = product(Expr.of(n) for n in self.window.data)
        return self.compulsory(vector=out * (taps - 1) + (out if self.fn.data == "mean" else 0))


WINDOWS = [ConvolutionOp, PoolOp]

"""Activation functions that are compositions of the scalar table's."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.rounding import rounded_once
from tilewright.frontend.builder import Builder, axis_of
from tilewright.frontend.registry import lowers
from tilewright.frontend.training import in_training
from tilewright.ir.graph.base import tensor


@lowers("aten.gelu.default")
def gelu(c: Builder, self: SSAValue, *, approximate: str = "none") -> SSAValue:
    return c.map("gelu_tanh" if approximate == "tanh" else "gelu", self)


@lowers("aten.relu6.default")
def relu6(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("min", c.map("max", self, 0), 6)


@lowers("aten.hardsigmoid.default")
@rounded_once
def hardsigmoid(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("div", relu6(c, c.map("add", self, 3.0)), 6.0)


@lowers("aten.hardswish.default")
@rounded_once
def hardswish(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("div", c.map("mul", self, relu6(c, c.map("add", self, 3.0))), 6.0)


@lowers("aten.leaky_relu.default")
def leaky_relu(c: Builder, self: SSAValue, negative_slope: float = 0.01) -> SSAValue:
    return c.select(c.map("gt", self, 0), self, c.map("mul", self, negative_slope), c.result.dtype)


@lowers("aten.prelu.default", "aten._prelu_kernel.default")
def prelu(c: Builder, self: SSAValue, weight: SSAValue) -> SSAValue:
    x, w = tensor(self), tensor(weight)
    if w.rank == 1 and x.rank > 1:
        weight = c.reshape(weight, [w.dims[0] if axis == 1 else 1 for axis in range(x.rank)])
    return c.select(c.map("gt", self, 0), self, c.map("mul", weight, self), c.result.dtype)


@lowers("aten.elu.default")
@rounded_once
def elu(c: Builder, self: SSAValue, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> SSAValue:
    inside = self if input_scale == 1 else c.map("mul", self, input_scale)
    negative = c.map("mul", c.map("expm1", inside), alpha * scale)
    positive = self if scale == 1 else c.map("mul", self, scale)
    return c.select(c.map("gt", self, 0), positive, negative, c.result.dtype)


@lowers("aten.selu.default")
@rounded_once
def selu(c: Builder, self: SSAValue) -> SSAValue:
    # the constants of Klambauer et al., "Self-Normalizing Neural Networks" (2017)
    return elu(c, self, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@lowers("aten.celu.default")
@rounded_once
def celu(c: Builder, self: SSAValue, alpha: float = 1.0) -> SSAValue:
    return elu(c, self, alpha, 1.0, 1.0 / alpha)


@lowers("aten.softplus.default")
@rounded_once
def softplus(c: Builder, self: SSAValue, beta: float = 1, threshold: float = 20) -> SSAValue:
    if beta == 1:
        return c.map("softplus", self)
    return c.map("div", c.map("softplus", c.map("mul", self, beta)), beta)


@lowers("aten.mish.default")
@rounded_once
def mish(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("mul", self, c.map("tanh", c.map("softplus", self)))


@lowers("aten.log_sigmoid.default")
@rounded_once
def log_sigmoid(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("neg", c.map("softplus", c.map("neg", self)))


@lowers("aten.softsign.default")
@rounded_once
def softsign(c: Builder, self: SSAValue) -> SSAValue:
    return c.map("div", self, c.map("add", c.map("abs", self), 1.0))


@lowers("aten.threshold.default")
def threshold_(c: Builder, self: SSAValue, threshold: Any, value: Any) -> SSAValue:
    return c.select(c.map("le", self, threshold), value, self, c.result.dtype)


@lowers("aten.glu.default")
@rounded_once
def glu(c: Builder, self: SSAValue, dim: int = -1) -> SSAValue:
    axis = axis_of(dim, tensor(self).rank)
    half = c.result.dims[axis]
    gate = c.slice(self, axis, half, half * 2)
    return c.map("mul", c.slice(self, axis, 0, half), c.map("sigmoid", gate))


@lowers("aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default")
def dropout(c: Builder, input: SSAValue, p: float, train: bool) -> SSAValue:
    if train and p > 0:
        raise in_training(c.node, f"drops elements with p={p}", "training=self.training")
    return input


@lowers("aten.native_dropout.default")
def native_dropout(c: Builder, input: SSAValue, p: float, train: bool | None) -> tuple[SSAValue, None]:
    return dropout(c, input, p, bool(train)), None

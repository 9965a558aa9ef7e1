"""Normalisations: over the last axes as `graph.norm`, by stored statistics as elementwise arithmetic."""

from __future__ import annotations

from typing import Any

from xdsl.ir import SSAValue

from tilewright.frontend.aten.reduction import variance, wide
from tilewright.frontend.builder import Builder
from tilewright.frontend.registry import Unsupported, lowers
from tilewright.frontend.training import in_training
from tilewright.ir.dims import Expr, product
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.reduction import NormOp


def _last_axes(
    c: Builder, x: SSAValue, count: int, weight: SSAValue | None, bias: SSAValue | None, *, kind: str, eps: float
) -> SSAValue:
    """A norm over the last `count` axes as one over a single axis."""
    dims, dtype = tensor(x).dims, tensor(x).dtype
    lead, inner = dims[: len(dims) - count], product(dims[len(dims) - count :])
    flat = [c.reshape(c.cast(p, dtype), [inner]) if p is not None else None for p in (weight, bias)]
    out = c.emit(NormOp, c.reshape(x, [*lead, inner]), *flat, kind=kind, eps=eps)
    return c.reshape(out, dims)


@lowers("aten.layer_norm.default")
def layer_norm(
    c: Builder,
    input: SSAValue,
    normalized_shape: list[Any],
    weight: SSAValue | None = None,
    bias: SSAValue | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> SSAValue:
    return _last_axes(c, input, len(normalized_shape), weight, bias, kind="layer", eps=eps)


@lowers("aten.native_layer_norm.default")
def native_layer_norm(
    c: Builder,
    input: SSAValue,
    normalized_shape: list[Any],
    weight: SSAValue | None,
    bias: SSAValue | None,
    eps: float,
) -> tuple[SSAValue, SSAValue, SSAValue]:
    rank = tensor(input).rank
    axes = tuple(range(rank - len(normalized_shape), rank))
    spread, center = variance(c, input, axes, 0.0)
    dtype = tensor(spread).dtype
    scale = c.map("rsqrt", c.map("add", spread, eps, dtype=dtype), dtype=dtype)
    return _last_axes(c, input, len(normalized_shape), weight, bias, kind="layer", eps=eps), center, scale


@lowers("aten.rms_norm.default", "aten._fused_rms_norm.default")
def rms_norm(
    c: Builder,
    input: SSAValue,
    normalized_shape: list[Any],
    weight: SSAValue | None = None,
    eps: float | None = None,
) -> Any:
    import torch

    first = c.node.args[0].meta["val"]
    # without an eps torch takes that of the dtype it computes in
    inside = torch.float32 if first.dtype in (torch.bfloat16, torch.float16) else first.dtype
    resolved = eps if eps is not None else torch.finfo(inside).eps
    out = _last_axes(c, input, len(normalized_shape), weight, None, kind="rms", eps=resolved)
    if "_fused" not in str(c.node.target):
        return out
    rank = tensor(input).rank
    x = wide(c, input)
    dtype = tensor(x).dtype
    axes = tuple(range(rank - len(normalized_shape), rank))
    mean = c.reduce("mean", c.map("mul", x, x, dtype=dtype), axes, keepdims=True)
    return out, c.map("rsqrt", c.map("add", mean, resolved, dtype=dtype), dtype=dtype)


@lowers("aten.group_norm.default")
def group_norm(
    c: Builder,
    input: SSAValue,
    num_groups: int,
    weight: SSAValue | None = None,
    bias: SSAValue | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> SSAValue:
    dims = tensor(input).dims
    rest = product(dims[1:])
    grouped = c.reshape(input, [dims[0], num_groups, rest // num_groups])
    out = c.reshape(c.emit(NormOp, grouped, kind="layer", eps=eps), dims)
    return _per_channel(c, out, weight, bias)


@lowers("aten.instance_norm.default")
def instance_norm(
    c: Builder,
    input: SSAValue,
    weight: SSAValue | None,
    bias: SSAValue | None,
    running_mean: SSAValue | None,
    running_var: SSAValue | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> SSAValue:
    if not use_input_stats and running_mean is not None and running_var is not None:
        return _by_statistics(c, input, weight, bias, running_mean, running_var, eps)
    dims = tensor(input).dims
    flat = c.reshape(input, [*dims[:2], product(dims[2:])])
    return _per_channel(c, c.reshape(c.emit(NormOp, flat, kind="layer", eps=eps), dims), weight, bias)


@lowers("aten.batch_norm.default")
def batch_norm(
    c: Builder,
    input: SSAValue,
    weight: SSAValue | None,
    bias: SSAValue | None,
    running_mean: SSAValue | None,
    running_var: SSAValue | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> SSAValue:
    if running_mean is None or running_var is None:
        if not training:
            raise Unsupported("batch norm without statistics, neither stored nor of the batch")
        return _by_batch(c, input, weight, bias, eps)
    if training:
        raise in_training(c.node, "normalises by the batch")
    return _by_statistics(c, input, weight, bias, running_mean, running_var, eps)


@lowers("aten._native_batch_norm_legit_no_training.default", "aten._batch_norm_no_update.default")
def native_batch_norm(
    c: Builder,
    input: SSAValue,
    weight: SSAValue | None,
    bias: SSAValue | None,
    running_mean: SSAValue,
    running_var: SSAValue,
    momentum: float,
    eps: float,
) -> tuple[Any, ...]:
    out = _by_statistics(c, input, weight, bias, running_mean, running_var, eps)
    return (out, *[None] * (len(c.node.meta["val"]) - 1))


@lowers(
    "aten.native_batch_norm.default",
    "aten._native_batch_norm_legit.default",
    "aten._native_batch_norm_legit_functional.default",
)
def native_batch_norm_training(
    c: Builder,
    input: SSAValue,
    weight: SSAValue | None,
    bias: SSAValue | None,
    running_mean: SSAValue | None,
    running_var: SSAValue | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Any, ...]:
    out = batch_norm(c, input, weight, bias, running_mean, running_var, training, momentum, eps)
    # the functional form gives what is stored as well, which evaluation leaves as it is
    return (out, None, None, running_mean, running_var)[: len(c.node.meta["val"])]


@lowers("aten._native_batch_norm_legit.no_stats")
def native_batch_norm_of_batch(
    c: Builder,
    input: SSAValue,
    weight: SSAValue | None,
    bias: SSAValue | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Any, ...]:
    return batch_norm(c, input, weight, bias, None, None, training, momentum, eps), None, None


def _by_batch(c: Builder, x: SSAValue, weight: SSAValue | None, bias: SSAValue | None, eps: float) -> SSAValue:
    """By the mean and the variance of the call's own elements: what a module that stores none does in any mode."""
    spread, center = variance(c, x, tuple(axis for axis in range(tensor(x).rank) if axis != 1), 0.0)
    dtype = tensor(spread).dtype
    scale = c.map("rsqrt", c.map("add", spread, eps, dtype=dtype), dtype=dtype)
    out = c.map("mul", c.map("sub", c.cast(x, dtype), center, dtype=dtype), scale, dtype=dtype)
    if weight is not None:
        out = c.map("mul", out, _channels(c, weight, x), dtype=dtype)
    if bias is not None:
        out = c.map("add", out, _channels(c, bias, x), dtype=dtype)
    return c.cast(out, c.result.dtype)


def _by_statistics(
    c: Builder, x: SSAValue, weight: SSAValue | None, bias: SSAValue | None, mean: SSAValue, var: SSAValue, eps: float
) -> SSAValue:
    """x * scale + shift: both depend on weights alone, so they are computed when weights are prepared."""
    dtype = tensor(mean).dtype
    scale = c.map("rsqrt", c.map("add", var, eps, dtype=dtype), dtype=dtype)
    if weight is not None:
        scale = c.map("mul", scale, weight, dtype=dtype)
    shift = c.map("neg", c.map("mul", mean, scale, dtype=dtype), dtype=dtype)
    if bias is not None:
        shift = c.map("add", shift, bias, dtype=dtype)
    out = c.map("mul", c.cast(x, dtype), _channels(c, scale, x), dtype=dtype)
    return c.cast(c.map("add", out, _channels(c, shift, x), dtype=dtype), c.result.dtype)


def _per_channel(c: Builder, x: SSAValue, weight: SSAValue | None, bias: SSAValue | None) -> SSAValue:
    if weight is not None:
        x = c.map("mul", x, _channels(c, weight, x))
    return c.map("add", x, _channels(c, bias, x)) if bias is not None else x


def _channels(c: Builder, vector: SSAValue, x: SSAValue) -> SSAValue:
    """[C] placed at axis 1 of x."""
    rank = tensor(x).rank
    return c.reshape(vector, [tensor(vector).dims[0] if axis == 1 else Expr.of(1) for axis in range(rank)])

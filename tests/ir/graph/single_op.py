"""Makes one graph op around torch tensors, runs its reference, and holds the result against the op's declared types."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from xdsl.dialects.test import TestOp
from xdsl.ir import SSAValue

from tilewright.errors import IRError
from tilewright.ir.dims import ExprLike
from tilewright.ir.dtypes import DTYPES, F32, DType, from_torch_name
from tilewright.ir.graph.base import GraphOp, Setting
from tilewright.ir.types import TensorType

FLOATS = [DTYPES[n] for n in ("f32", "bf16", "f16", "f64")]


def value(dims: Sequence[ExprLike], dtype: DType = F32) -> SSAValue:
    """A value of a tensor type that comes from nowhere."""
    return TestOp(result_types=[TensorType.of(dims, dtype)]).results[0]


def value_of(tensor: torch.Tensor) -> SSAValue:
    """A value of a tensor's own shape and dtype."""
    dtype = from_torch_name(str(tensor.dtype))
    assert dtype is not None
    return value(tuple(tensor.shape), dtype)


def run(op: GraphOp, *tensors: torch.Tensor | None, sizes: Mapping[str, int] | None = None) -> Any:
    """The op's results on tensors, each checked to have the shape and dtype its inferred type has at these sizes."""
    op.verify()
    setting = Setting(sizes or {})
    before = [None if t is None else t.clone() for t in tensors]
    found = op.evaluate(setting, *tensors)
    for now, then in zip(tensors, before, strict=True):
        assert now is None or torch.equal(now.nan_to_num(), then.nan_to_num()), "a reference changed its operand"
    results = found if isinstance(found, tuple) else (found,)
    assert len(results) == len(op.results)
    for result, declared in zip(results, op.results, strict=True):
        assert isinstance(declared.type, TensorType)
        assert tuple(result.shape) == setting.shape(declared.type.dims), f"{op.name}: {declared.type}"
        assert result.dtype == setting.torch(declared.type.dtype), f"{op.name}: {declared.type}"
    return found


def apply(kind: type[GraphOp], /, *tensors: Any, sizes: Mapping[str, int] | None = None, **properties: Any) -> Any:
    """Makes the op for these tensors (None where optional) and runs it."""
    operands = [None if t is None else value_of(t) for t in tensors]
    return run(kind.make(*operands, **properties), *tensors, sizes=sizes)


def complaint(kind: type[GraphOp], /, *operands: Any, **properties: Any) -> str:
    """What the op says about operands or properties that break its rules; it must leave no trace on the operands."""
    with pytest.raises(IRError, match=f"TW020 malformed IR: {re.escape(kind.name)}: ") as caught:
        kind.make(*operands, **properties)
    for operand in operands:
        for used in operand if isinstance(operand, list) else [operand]:
            assert used is None or not used.uses, "a refused op stays among the users of its operands"
    return caught.value.problems[0].text

"""Bags of embeddings: rows of a table, added up, averaged or compared bag by bag."""

from __future__ import annotations

import math

from xdsl.ir import SSAValue

from tilewright.frontend.aten.indexing import rows
from tilewright.frontend.builder import Builder
from tilewright.frontend.registry import lowers
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I64
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.indexing import ScatterOp

_MODES = ("sum", "mean", "max")
_RANGES = ("aten.arange.default", "aten.arange.start", "aten.arange.start_step")


@lowers("aten.embedding_bag.default", "aten.embedding_bag.padding_idx", "aten._embedding_bag.default",
        "aten._embedding_bag_forward_only.default")  # fmt: skip
def embedding_bag(
    c: Builder,
    weight: SSAValue,
    indices: SSAValue,
    offsets: SSAValue,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: SSAValue | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[SSAValue | None, ...]:
    """Bags of one length are an axis to be reduced; others are found by their offsets and gathered up row by row.

    An empty bag is 0. What torch gives besides the bags is for its backward pass, and not computed.
    """
    one = Expr.of(1)
    fold, dtype = _MODES[mode], c.result.dtype
    (count,), bags = tensor(indices).dims, c.result.dims[0]
    taken = rows(c, weight, indices, 0)
    if per_sample_weights is not None:
        taken = c.map("mul", taken, c.reshape(per_sample_weights, [count, 1]), dtype=dtype)
    ignored: int | Expr | None = padding_idx if padding_idx is not None and padding_idx >= 0 else None
    if padding_idx is not None and padding_idx < 0 and "padding_idx" in str(c.node.target):
        # there it counts from the end; elsewhere -1 is none
        ignored = tensor(weight).dims[0] + padding_idx
    kept = (
        None if ignored is None else c.reshape(c.map("ne", indices, ignored, dtype=tensor(indices).dtype), [count, 1])
    )
    empty = -math.inf if fold == "max" else 0
    if kept is not None:
        taken = c.select(kept, taken, empty, dtype)
    length = _length(c) if not include_last_offset else None
    if length is not None:
        by_bag = [bags, length]
        found = c.reduce("max" if fold == "max" else "sum", c.reshape(taken, [*by_bag, tensor(taken).dims[1]]), [1])
        if fold == "sum":
            return found, None, None, None
        ones = c.full(1, [count, one], I64) if kept is None else c.cast(kept, I64)
        sizes = c.reduce("sum", c.reshape(ones, [*by_bag, 1]), [1])
        return _finished(c, found, sizes, fold), None, None, None
    starts = c.slice(offsets, 0, 0, bags)
    begun = c.map("le", c.reshape(starts, [1, bags]), c.reshape(c.iota([count], 0), [count, 1]), dtype=I64)
    at = c.map("sub", c.reduce("sum", c.cast(begun, I64), [1]), 1, dtype=I64)
    zeros = c.full(empty, [bags, tensor(taken).dims[1]], dtype)
    found = c.emit(ScatterOp, zeros, at, taken, axis=0, mode="max" if fold == "max" else "add")
    if fold == "sum":
        return found, None, None, None
    ones = c.full(1, [count, one], I64) if kept is None else c.cast(kept, I64)
    sizes = c.emit(ScatterOp, c.full(0, [bags, one], I64), at, ones, axis=0, mode="add")
    return _finished(c, found, sizes, fold), None, None, None


def _finished(c: Builder, found: SSAValue, sizes: SSAValue, fold: str) -> SSAValue:
    """Means of sums; 0 for maxima of nothing. sizes: [bags, 1], how many rows count in each."""
    dtype = tensor(found).dtype
    if fold == "mean":
        return c.map("div", found, c.cast(c.map("max", sizes, 1, dtype=I64), dtype), dtype=dtype)
    return c.select(c.map("eq", sizes, 0, dtype=I64), 0, found, dtype)


def _length(c: Builder) -> Expr | None:
    """The one length of all bags, where offsets count from 0 to the end in equal steps: bags given as a matrix."""
    arguments = dict(zip(("weight", "indices", "offsets"), c.node.args, strict=False)) | dict(c.node.kwargs)
    node = arguments["offsets"]
    if str(getattr(node, "target", None)) not in _RANGES:
        return None
    given = [arg.meta["val"] if hasattr(arg, "meta") else arg for arg in node.args]
    start, end, step = [0, given[0], 1] if len(given) == 1 else [*given, 1][:3]
    count, bags = c.symbols.size(arguments["indices"].meta["val"].shape[0]), c.result.dims[0]
    ends = [c.symbols.size(v) for v in (start, end, step)]
    return ends[2] if ends[0] == Expr.of(0) and ends[1] == count and ends[2] * bags == count else None

"""Makes one tile op around NumPy arrays, runs its meaning, and holds the results against the op's declared types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from xdsl.dialects.test import TestOp
from xdsl.ir import SSAValue

from tilewright.ir.dtypes import from_numpy
from tilewright.ir.tile.base import Array, TileOp
from tilewright.ir.types import IndexType, TileType


def operand(value: Array | int) -> SSAValue:
    """A value that comes from nowhere: a tile like the array, or an index."""
    if isinstance(value, int):
        return TestOp(result_types=[IndexType()]).results[0]
    dtype = from_numpy(value.dtype)
    assert dtype is not None
    return TestOp(result_types=[TileType.of(value.shape, dtype)]).results[0]


def make(kind: type[TileOp], *values: Array | int, **properties: Any) -> TileOp:
    """The op on operands like these."""
    operands: list[Any] = [operand(v) for v in values]
    variadic = len(kind.get_irdl_definition().operands) == 1 and kind.name in (
        "tile.map",
        "tile.reduce",
        "tile.scan",
        "tile.concat",
    )
    return kind.make(operands, **properties) if variadic else kind.make(*operands, **properties)


def outcomes(op: TileOp, result: Array | tuple[Array, ...]) -> list[Array]:
    """The results, which must be of the declared extents and dtypes."""
    arrays = list(result) if isinstance(result, tuple) else [result]
    assert [TileType.of(a.shape, from_numpy(a.dtype)) for a in arrays] == [r.type for r in op.results]  # type: ignore[arg-type]
    return arrays


def run(kind: type[TileOp], *values: Array | int, **properties: Any) -> Any:
    """The op's meaning on values: an array, or a tuple of them."""
    op = make(kind, *values, **properties)
    op.verify_()
    arrays = outcomes(op, op.evaluate(*values))
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def spread(kind: type[TileOp], values: Sequence[Array], masks: Sequence[Array | None], **properties: Any) -> Any:
    """Which result lanes are poison."""
    op = make(kind, *values, **properties)
    full = [np.zeros(v.shape, bool) if m is None else m for v, m in zip(values, masks, strict=True)]
    result = op.spread(values, full)
    arrays = list(result) if isinstance(result, tuple) else [result]
    assert [a.shape for a in arrays] == [r.type.extents for r in op.results]  # type: ignore[attr-defined]
    assert all(a.dtype == np.bool_ for a in arrays)
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def poison_is_honest(
    kind: type[TileOp],
    values: Sequence[Array],
    masks: Sequence[Array],
    rng: np.random.Generator,
    **properties: Any,
) -> None:
    """Changing only poisoned lanes changes no lane that `spread` calls defined."""
    op = make(kind, *values, **properties)
    result = op.spread(values, masks)
    poisoned = list(result) if isinstance(result, tuple) else [result]
    before = outcomes(op, op.evaluate(*values))
    for _ in range(4):
        changed = [np.where(m, scrambled(v, rng), v).astype(v.dtype) for v, m in zip(values, masks, strict=True)]
        for a, b, mask in zip(before, outcomes(op, op.evaluate(*changed)), poisoned, strict=True):
            np.testing.assert_array_equal(a[~mask], b[~mask])


def scrambled(like: Array, rng: np.random.Generator) -> Array:
    """Values that have nothing to do with the array, NaN and infinity among them."""
    if like.dtype.kind == "b":
        return rng.integers(0, 2, like.shape).astype(bool)
    if like.dtype.kind in "iu":
        limits = np.iinfo(like.dtype)
        return rng.integers(limits.min, limits.max, like.shape, like.dtype, endpoint=True)
    wild = rng.standard_normal(like.shape) * 1e3
    wild[rng.random(like.shape) < 0.3] = np.nan
    wild[rng.random(like.shape) < 0.2] = -np.inf
    return wild.astype(like.dtype)

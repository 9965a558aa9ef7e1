"""Reshape, transpose, slice and concat of tiles: values and poison move alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.ir.tile.single_op import make, run, spread
from tilewright.errors import IRError
from tilewright.ir.tile.base import TileOp
from tilewright.ir.tile.compute import ConcatOp, ReshapeOp, SliceOp, TransposeOp

CASES: list[tuple[type[TileOp], dict[str, Any], list[tuple[int, ...]], Callable[..., Any]]] = [
    (ReshapeOp, {"extents": (6, 10)}, [(3, 4, 5)], lambda x: x.reshape(6, 10)),
    (ReshapeOp, {"extents": ()}, [(1, 1)], lambda x: x.reshape(())),
    (TransposeOp, {"permutation": (2, 0, 1)}, [(3, 4, 5)], lambda x: np.moveaxis(x, 2, 0)),
    (SliceOp, {"starts": (1, 0, 2), "stops": (3, 4, 3)}, [(3, 4, 5)], lambda x: x[1:3, 0:4, 2:3]),
    (ConcatOp, {"axis": 1}, [(2, 1), (2, 3), (2, 2)], lambda *xs: np.hstack(xs)),
    (ConcatOp, {"axis": 0}, [(2, 3)], lambda x: x),
]


@pytest.mark.parametrize(("kind", "properties", "shapes", "expected"), CASES)
def test_elements_go_where_they_should_and_take_poison_along(
    kind: type[TileOp], properties: dict[str, Any], shapes: list[tuple[int, ...]], expected: Any, rng: Any
) -> None:
    values = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    np.testing.assert_array_equal(run(kind, *values, **properties), expected(*values))
    masks = [rng.random(s) < 0.5 for s in shapes]
    np.testing.assert_array_equal(spread(kind, values, masks, **properties), expected(*masks))
    assert make(kind, *values, **properties).cost().flops.constant == 0


@pytest.mark.parametrize(
    ("kind", "properties", "shapes", "message"),
    [
        (ReshapeOp, {"extents": (7,)}, [(2, 3)], "has 6 elements"),
        (TransposeOp, {"permutation": (0, 0)}, [(2, 3)], "does not permute 2 axes"),
        (SliceOp, {"starts": (0, 2), "stops": (2, 4)}, [(2, 3)], "leaves f32"),
        (SliceOp, {"starts": (0,), "stops": (2,)}, [(2, 3)], "needs 2 starts and stops"),
        (ConcatOp, {"axis": 0}, [(2, 3), (2, 4)], "cannot join"),
        (ConcatOp, {"axis": -1}, [(2, 3)], "axis -1 is not one of 2 axes"),
    ],
)
def test_what_does_not_fit_is_refused(
    kind: type[TileOp], properties: dict[str, Any], shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(IRError, match=message):
        make(kind, *(np.zeros(s, np.float32) for s in shapes), **properties)

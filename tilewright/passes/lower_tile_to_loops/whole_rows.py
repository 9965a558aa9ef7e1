"""Rows that all lie inside the views they are loaded from: one condition for all of them, instead of one each.

Only a sequence's last rows have any outside, so the branch is foreseen, and what masks cost is paid there alone.
"""

from __future__ import annotations

from collections.abc import Callable

from xdsl.ir import SSAValue

from tilewright.ir.loops import Value
from tilewright.ir.loops.folding import divisor
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.compute import LANES
from tilewright.ir.tile.memory import LoadOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.sites import ORIGIN, Coord, Position, known
from tilewright.passes.lower_tile_to_loops.step_requests import behind, stepping
from tilewright.passes.lower_tile_to_loops.view_kinds import PagesView
from tilewright.passes.lower_tile_to_loops.views import AffineView, Span, all_of


def over_whole_rows(cx: Lowering, value: SSAValue, at: Position, rows: int, emit: Callable[[], None]) -> None:
    """Emits what reads so many rows of a tile from `at` on: without masks where they all exist, and with them."""
    found = {load: _inside(cx, load, at, rows) for load in dict.fromkeys(behind(cx, value))}
    conditions = [c for own in found.values() for c in own or ()]
    whole = all_of(cx.b, conditions, 1)
    if whole is None:
        emit()
        return
    with cx.b.either(whole) as sides:
        with sides.then() as taken:
            if taken:
                cx.inside.update(load for load, own in found.items() if own)
                cx.sweep += 1
                emit()
                cx.inside.difference_update(found)
        with sides.otherwise() as taken:
            if taken:
                cx.sweep += 1
                emit()


def _inside(cx: Lowering, load: LoadOp, at: Position, rows: int) -> list[Value] | None:
    """What must hold for all of the rows to exist; None where that takes more than a look at the first and the last."""
    b, view, extents, axis = cx.b, cx.views[load.source], tile(load.out).extents, stepping(load)
    first = b.add(cx.indices[load.at[axis]].value, at)
    if isinstance(view, PagesView):
        if view.page % rows or divisor(first) % rows:
            return None
    elif not isinstance(view, AffineView):
        return None
    found: list[Value] = []
    for number in (0, rows - 1):
        spans = [Span(cx.indices[start], ORIGIN, n) for start, n in zip(load.at, extents, strict=True)]
        row = known(at + number) if isinstance(at, int) else Coord(b.add(at, number))
        spans[axis] = Span(spans[axis].origin, row, extents[axis])
        spans[-1] = Span(spans[-1].origin, known(0, 1), extents[-1])
        found += view.place(spans, min(LANES, extents[-1]), clamp=False).conditions
    return None if any(condition.type.lanes > 1 for condition in found) else found

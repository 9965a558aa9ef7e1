"""Index arithmetic, run-time integers and views: ops that make no tiles."""

from __future__ import annotations

from xdsl.ir import Operation

from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import I64
from tilewright.ir.tile.base import view
from tilewright.ir.tile.memory import ViewOp, ViewPagesOp, ViewRowsOp, ViewSegmentOp, ViewWindowOp
from tilewright.ir.tile.structure import CompareOp, ExprOp, ScalarOp
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.sites import ORIGIN
from tilewright.passes.lower_tile_to_loops.view_kinds import (
    PagesView,
    RowsView,
    SegmentView,
    WindowView,
    read_integers,
)
from tilewright.passes.lower_tile_to_loops.views import AffineView, Span

RELATIONS = {"<": "lt", "<=": "le", "==": "eq"}


def lower_index_op(cx: Lowering, op: Operation) -> bool:
    """Gives an index or view op its meaning; False for any other op."""
    b = cx.b
    match op:
        case ExprOp():
            names = {f"a{n}": cx.indices[v] for n, v in enumerate(op.args)}
            value = b.expr(op.expr, {name: index.value for name, index in names.items()})
            known = op.expr.substitute({name: index.expr for name, index in names.items()})
            cx.indices[op.out] = Index(value, known)
        case CompareOp():
            holds = b.compare(RELATIONS[op.relation.data], cx.indices[op.a].value, cx.indices[op.b].value)  # type: ignore[arg-type]  # Predicates
            cx.indices[op.out] = cx.integer(b.cast(holds, I64))
        case ScalarOp():
            spans = [Span(cx.indices[at], ORIGIN, 1) for at in op.at]
            found, _ = read_integers(cx.views[op.source], spans, 1)
            wide = view(op.source).dtype.bytes == 8
            cx.indices[op.out] = cx.data(found) if wide else cx.integer(found)
        case ViewOp() | ViewWindowOp() | ViewRowsOp() | ViewPagesOp() | ViewSegmentOp():
            _view(cx, op)
        case _:
            return False
    return True


def _view(cx: Lowering, op: ViewOp | ViewWindowOp | ViewRowsOp | ViewPagesOp | ViewSegmentOp) -> None:
    match op:
        case ViewOp():
            extents = [cx.size(e) for e in op.extents.data]
            memory = cx.buffers[op.source]
            cx.views[op.out] = AffineView(cx.b, cx.facts, memory, extents, op.strides.data, op.offset.data[0])
        case ViewWindowOp():
            offsets = [cx.indices[o] for o in op.offsets]
            extents = [cx.size(e) for e in op.extents.data]
            cx.views[op.out] = WindowView(cx.views[op.source], offsets, op.steps.data, extents)
        case ViewRowsOp():
            cx.views[op.out] = RowsView(cx.views[op.source], cx.views[op.indices], op.axis.data)
        case ViewPagesOp():
            extent, length = cx.size(op.extent.data[0]), cx.indices[op.length]
            cx.views[op.out] = PagesView(cx.views[op.source], cx.views[op.table], length, op.page.data, extent)
        case ViewSegmentOp():
            _segment(cx, op)


def _segment(cx: Lowering, op: ViewSegmentOp) -> None:
    """Reads a segment's bounds once, where the view is made."""
    b, offsets, which = cx.b, cx.views[op.offsets], cx.indices[op.which]
    start, _ = read_integers(offsets, [Span(which, ORIGIN, 1)], 1)
    after = Index(b.add(which.value, 1), which.expr + Expr.of(1))
    end, _ = read_integers(offsets, [Span(after, ORIGIN, 1)], 1)
    declared = cx.size(op.extent.data[0])
    length = cx.integer(b.max(b.min(b.sub(end, start), declared.value), 0))
    cx.views[op.out] = SegmentView(cx.views[op.source], cx.integer(start), length, op.axis.data)

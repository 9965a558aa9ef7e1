"""Orders: tiles and lines of memory sorted, and the first of them selected."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.backends.triton.base import Printed
from tilewright.backends.triton.extents import live_axes, power_of_two
from tilewright.backends.triton.places import AffineAxis
from tilewright.backends.triton.rearranging import NONE, RearrangingOps
from tilewright.ir.tile.base import tile, view
from tilewright.ir.tile.compute import IndexTileOp, SortOp, TopkOp
from tilewright.ir.tile.lines import SortLineOp, TopkLineOp
from tilewright.ir.tile.structure import ExprOp

BLOCK = 128  # elements of a line that are sorted in registers: a sorting network of 512 takes a minute to compile


class OrderingOps(RearrangingOps):
    """Prints the ops that order."""

    # --- tiles ----------------------------------------------------------------------------------------------------

    def sort(self, op: SortOp) -> None:
        axis, axes = op.axis.data, live_axes(op.keys)
        if axis not in axes:
            self.tiles[op.sorted], self.tiles[op.carried] = self.tiles[op.keys], self.tiles[op.payload]
            return
        keys = self._turned(self.full(op.keys, axes), axes, axis)
        order = self._order("in_order", keys, op.descending.data, f"{tile(op.keys).extents[axis]}")
        carried = order
        if not _counts_along(op.payload, axis):
            carried = self._taken(self._turned(self.full(op.payload, axes), axes, axis), order, len(axes))
        self._turned_back(op.sorted, self._taken(keys, order, len(axes)), axes, axis)
        self._turned_back(op.carried, carried, axes, axis)

    def topk(self, op: TopkOp) -> None:
        axis, axes, k = op.axis.data, live_axes(op.source), op.k.data
        if axis not in axes:
            self.tiles[op.values] = self.tiles[op.source]
            self.tiles[op.positions] = Printed("0", (), number=True)
            return
        count = max(2, power_of_two(k))
        keys = self._turned(self.full(op.source, axes), axes, axis)
        order = self._order("first_in_order", keys, True, f"{tile(op.source).extents[axis]}, {count}")
        for result, text in ((op.values, self._taken(keys, order, len(axes))), (op.positions, order)):
            if k == 1:
                first = self.out.fresh("x")
                self.out.line(f"{first}, _ = tl.split({text})")
                self.tiles[result] = Printed(first, tuple(a for a in axes if a != axis))
                continue
            printed = self.extents.of(result, axis)
            if printed != count:
                head = self.aligned(Printed(f"(tl.arange(0, {printed}) & {count - 1})", (len(axes) - 1,)), _ranks(axes))
                sizes = (*(self.extents.of(result, a) for a in axes if a != axis), printed)
                text = f"tl.gather({text}, tl.broadcast_to({head}, {_tuple(sizes)}), {len(axes) - 1})"
            self._turned_back(result, text, axes, axis)

    def _order(self, function: str, keys: str, falling: bool, rest: str) -> str:
        self.helpers |= {function, "order_key"}
        return self.out.name("order", f"{function}(order_key({keys}, {falling}), {rest})")

    def _taken(self, source: str, order: str, rank: int) -> str:
        return f"tl.gather({source}, {order}, {rank - 1})"

    def _turned(self, text: str, axes: tuple[int, ...], axis: int) -> str:
        """A text with an axis moved behind the others, as a name."""
        if axes[-1] != axis:
            at = axes.index(axis)
            text = f"tl.permute({text}, {(*(a for a in _ranks(axes) if a != at), at)})"
        return text if text.isidentifier() else self.out.name("x", text)

    def _turned_back(self, result: SSAValue, text: str, axes: tuple[int, ...], axis: int) -> None:
        if axes[-1] != axis:
            at, last = axes.index(axis), len(axes) - 1
            text = f"tl.permute({text}, {(*range(at), last, *range(at, last))})"
        self.define(result, text, axes, "x", NONE)

    # --- lines ----------------------------------------------------------------------------------------------------

    def select_line(self, op: TopkLineOp) -> None:
        self.helpers.add("select_line")
        k = op.k.data
        self.out.line(f"select_line({self._lines(op, list(op.at))}, {k}, {max(2, power_of_two(k))})")

    def sort_line(self, op: SortLineOp) -> None:
        self.helpers.add("sort_line")
        *at, row = op.at
        spare, _ = self._line(op.spare, 1, [row])
        self.out.line(f"sort_line({self._lines(op, at)}, {spare}, {op.descending.data}, {BLOCK})")

    def _lines(self, op: SortLineOp | TopkLineOp, at: list[SSAValue]) -> str:
        """The source with its step and length, then the values and the places with their steps."""
        axis = op.axis.data
        source, step = self._line(op.source, axis, at)
        length = self.size(view(op.source).dims[axis])
        results = [text for v in (op.values, op.places) for text in self._line(v, axis, at)]
        return ", ".join([source, step, self._long(length), *results])

    def _line(self, looked: SSAValue, axis: int, at: list[SSAValue]) -> tuple[str, str]:
        """Where a line of a view begins, and its step."""
        found, starts = self.views[looked], list(at)
        offsets, step = [], "1"
        for number, view_axis in enumerate(found.axes):
            assert isinstance(view_axis, AffineAxis)
            if number == axis:
                step = self.size(view_axis.stride)
                continue
            start, stride = self.indices[starts.pop(0)].text, self.size(view_axis.stride)
            if "0" not in (start, stride):
                offsets.append(start if stride == "1" else f"{start} * {stride}")
        return self.pointer(found, offsets), self._long(step)

    def _long(self, text: str) -> str:
        """A number as 64 bits, so that places times steps are."""
        return self.out.shared("n", f"tl.full((), {text}, tl.int64)") if text.isdigit() else text


def _ranks(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(len(axes)))


def _tuple(sizes: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"


def _counts_along(value: SSAValue, axis: int) -> bool:
    """Whether a tile is 0, 1, 2, ... along an axis."""
    op = value.owner
    if not isinstance(op, IndexTileOp) or op.axis.data != axis:
        return False
    base = op.base.owner
    return isinstance(base, ExprOp) and base.expr.constant == 0

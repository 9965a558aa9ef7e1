"""Scans along an axis, reductions of tiles that travel together, tiles of stated elements, packed storage."""

from __future__ import annotations

from xdsl.ir import SSAValue

from tilewright.backends.triton.base import Printed
from tilewright.backends.triton.extents import live_axes
from tilewright.backends.triton.functions import TYPES, cast, literal
from tilewright.backends.triton.ordering import OrderingOps
from tilewright.backends.triton.rearranging import NONE
from tilewright.ir.dtypes import I32
from tilewright.ir.tile.base import element, tile
from tilewright.ir.tile.compute import ElementsOp, PackOp, ReduceOp, ScanOp, UnpackOp
from tilewright.ir.tile.formats import FORMATS

_COMBINED = {"sum": "tl.cumsum", "prod": "tl.cumprod"}


class CombiningOps(OrderingOps):
    """Prints ops that carry something along an axis."""

    def scan(self, op: ScanOp) -> None:
        fn, axis = op.fn.data, op.axis.data
        axes = live_axes(op.args[0])
        if axis not in axes:
            for result, a in zip(op.out, op.args, strict=True):
                self.tiles[result] = self.tiles[a]
            return
        at, dtype = axes.index(axis), tile(op.args[0]).dtype
        texts = [self.full(a, axes) for a in op.args]
        if fn == "linear":
            self.helpers.add("affine")
            names = [self.out.fresh("c"), self.out.fresh("h")]
            self.out.line(f"{', '.join(names)} = tl.associative_scan(({', '.join(texts)}), {at}, affine)")
            for result, name in zip(op.out, names, strict=True):
                self.tiles[result] = Printed(name, axes)
            return
        if fn in _COMBINED:
            text = f"{_COMBINED[fn]}({texts[0]}, {at})"
            text = cast(text, I32, dtype) if dtype.is_integer and dtype.bits < 32 else text
        else:
            helper = "larger" if fn == "max" else "smaller"
            self.helpers.add(helper)
            text = f"tl.associative_scan({texts[0]}, {at}, {helper})"
        self.tiles[op.out[0]] = Printed(self.out.name("x", text), axes)

    # --- tuples ---------------------------------------------------------------------------------------------------

    def tuples(self, op: ReduceOp) -> None:
        """Parts of softmaxes, or of means and variances, merged at once: everything relative to what all share."""
        axis = op.axis.data
        axes = live_axes(op.args[-1])
        at, left = axes.index(axis), tuple(a for a in axes if a != axis)
        results = self._softmaxes(op, axes, at) if op.fn.data == "attention" else self._moments(op, axes, at)
        for result, name in zip(op.out, results, strict=True):
            own = tuple(a for a in left if a in live_axes(result))
            self.tiles[result] = Printed(name, own)

    def _softmaxes(self, op: ReduceOp, axes: tuple[int, ...], at: int) -> list[str]:
        m, weights, values = op.args
        axis = op.axis.data
        own = live_axes(m)
        place = own.index(axis)
        least = 'float("-inf")'
        top = self.out.name("x", self.within(m, axis, least))
        self.helpers.add("largest")
        most = self.out.name("m", f"largest({top}, {place})")
        spread = self.aligned(Printed(most, tuple(a for a in own if a != axis)), own)
        weight = self.out.name("w", f"tl.where({top} == {least}, 0.0, tl.exp({top} - {spread}))")
        total = self.out.name("l", f"tl.sum({self.within(weights, axis, '0.0')} * {weight}, {place})")
        weight = self.aligned(Printed(weight, own), axes)
        merged = self.out.name("o", f"tl.sum({self.within(values, axis, '0.0')} * {weight}, {at})")
        return [most, total, merged]

    def _moments(self, op: ReduceOp, axes: tuple[int, ...], at: int) -> list[str]:
        axis = op.axis.data
        mean, squares, count = (self.out.name("x", self.within(a, axis, "0.0")) for a in op.args)
        left = tuple(a for a in axes if a != axis)
        total = self.out.name("n", f"tl.sum({count}, {at})")
        whole = f"tl.sum(tl.where({count} == 0.0, 0.0, {mean} * {count}), {at})"
        middle = self.out.name("mean", f"tl.div_rn({whole}, tl.where({total} == 0.0, 1.0, {total}))")
        beside = self.aligned(Printed(middle, left), axes)
        gap = self.out.name("gap", f"tl.where({count} == 0.0, 0.0, {mean} - {beside})")
        spread = f"tl.where({count} == 0.0, 0.0, {squares} + {gap} * {gap} * {count})"
        return [middle, self.out.name("squares", f"tl.sum({spread}, {at})"), total]

    # --- stated elements and packed storage -----------------------------------------------------------------------

    def elements(self, op: ElementsOp) -> None:
        """One constant after the other; a run of equal ones at the end needs no more."""
        dtype, values = tile(op.out).dtype, list(op.values.data)
        numbers = [element(v, dtype).item() for v in values]
        if len(numbers) == 1:
            self.tiles[op.out] = Printed(literal(numbers[0], dtype), (), number=True)
            return
        printed = self.extents.of(op.out, 0)
        at = self.out.shared("at", f"tl.arange(0, {printed})")
        name = self.out.name("x", f"tl.full(({printed},), {literal(numbers[0], dtype)}, {TYPES[dtype.name]})")
        for place in range(1, len(numbers)):
            text, before = (literal(numbers[p], dtype) for p in (place, place - 1))
            if text != before:
                number = f"tl.full((), {text}, {TYPES[dtype.name]})"
                self.out.line(f"{name} = tl.where({at} >= {place}, {number}, {name})")
        self.tiles[op.out] = Printed(name, (0,))

    def unpack(self, op: UnpackOp) -> None:
        axis, entry = op.axis.data, FORMATS[op.format.data]
        axes = live_axes(op.out)
        along = self.aligned(Printed(f"tl.arange(0, {self.extents.of(op.out, axis)})", (axis,)), axes)
        words = self._words(op.source, op.out, axis, axes, entry.per_storage)
        field = (
            f"((({words}).to(tl.int32) >> ({along} % {entry.per_storage} * {entry.bits})) & {(1 << entry.bits) - 1})"
        )
        if entry.element.kind == "int":
            field = f"(({field} ^ {1 << (entry.bits - 1)}) - {1 << (entry.bits - 1)})"
        self.define(op.out, f"{field}.to({TYPES[entry.element.name]})", axes, "x", NONE)

    def _words(self, source: SSAValue, result: SSAValue, axis: int, axes: tuple[int, ...], per: int) -> str:
        """For every element the storage word that holds it."""
        own = live_axes(source)
        if axis not in own:
            return self.aligned(Printed(self.tensor(source), self.tiles[source].axes), axes)
        last = self.extents.of(source, axis) - 1
        place = f"tl.minimum(tl.arange(0, {self.extents.of(result, axis)}) // {per}, {last})"
        index = self.aligned(Printed(place, (axis,)), axes)
        spread = f"tl.broadcast_to({index}, {self.shape(result, axes)})"
        return f"tl.gather({self.full(source, own)}, {spread}, {own.index(axis)})"

    def pack(self, op: PackOp) -> None:
        """Fields shifted to their places and summed, a word at a time."""
        axis, entry = op.axis.data, FORMATS[op.format.data]
        axes, per = live_axes(op.source), entry.per_storage
        at = axes.index(axis)
        sizes = list(self.extents.shape(op.source, axes))
        sizes[at : at + 1] = [sizes[at] // per, per]
        fields = f"tl.reshape({self.full(op.source, axes)}.to(tl.int32) & {(1 << entry.bits) - 1}, {tuple(sizes)})"
        rank = len(axes)
        shifts = f"(tl.arange(0, {per}) * {entry.bits})"
        spread = f"{shifts}[{', '.join(':' if a == at + 1 else 'None' for a in range(rank + 1))}]"
        words = f"tl.sum({fields} << {spread}, {at + 1})"
        if tile(op.out).extents[axis] == 1:
            first = self.aligned(Printed(f"(tl.arange(0, {sizes[at]}) == 0)", (axis,)), axes)
            words = f"tl.sum(tl.where({first}, {words}, 0), {at})"
        self.define(op.out, f"{words}.to({TYPES[entry.storage.name]})", live_axes(op.out), "x", NONE)

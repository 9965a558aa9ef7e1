"""The ops that compute: maps, casts, reductions and dots."""

from __future__ import annotations

import re

from xdsl.ir import SSAValue

from tilewright.backends.source_names import bare
from tilewright.backends.triton.base import Printed
from tilewright.backends.triton.combining import CombiningOps
from tilewright.backends.triton.extents import is_matrix_product, live_axes
from tilewright.backends.triton.functions import TYPED, TYPES, cast, computed_wide, literal, repeats, template
from tilewright.backends.triton.prelude import called
from tilewright.backends.triton.rearranging import NONE
from tilewright.ir.dtypes import F32, F64, I1, I32, DType
from tilewright.ir.tile.base import element, tile
from tilewright.ir.tile.compute import (
    LANES,
    AccumulateOp,
    CastOp,
    ConstantOp,
    DotOp,
    IndexTileOp,
    MapOp,
    ReduceOp,
    SplatOp,
)


class ComputeOps(CombiningOps):
    """Prints the ops on values."""

    # --- elementwise ----------------------------------------------------------------------------------------------

    def constant(self, op: ConstantOp) -> None:
        dtype = tile(op.out).dtype
        value = element(op.value.data, dtype).item()
        zero = frozenset(live_axes(op.out)) if value == 0 else NONE
        self.tiles[op.out] = Printed(literal(value, dtype), (), zero, number=True)

    def splat(self, op: SplatOp) -> None:
        text = self.indices[op.source].text
        if text.lstrip("(-").rstrip(")").isdigit():
            self.tiles[op.out] = Printed(text, (), number=True)
        else:
            dtype = TYPES[tile(op.out).dtype.name]
            self.tiles[op.out] = Printed(self.out.shared("n", f"tl.full((), {text}, {dtype})"), ())

    def coordinates(self, op: IndexTileOp) -> None:
        axis, base = op.axis.data, self.indices[op.base].text
        if tile(op.out).extents[axis] == 1:
            self.tiles[op.out] = Printed(self.out.shared("at", f"tl.full((), {base}, tl.int32)"), ())
            return
        printed = self.extents.of(op.out, axis)
        text = f"tl.arange(0, {printed})" if base == "0" else f"({base} + tl.arange(0, {printed})).to(tl.int32)"
        self.tiles[op.out] = Printed(self.out.shared("at", text), (axis,))

    def map(self, op: MapOp) -> None:
        fn, args = op.fn.data, list(op.args)
        kind = tile(args[-1]).dtype
        for a, other in zip(args, reversed(args), strict=True):
            if a in self.dots:
                head, tail = self.dots[a]
                joined = f"{head}, {bare(self.full(other))}{tail}"
                self.tiles[op.out] = Printed(self.out.name("acc", joined), live_axes(op.out))
                return
        text = template(fn, kind)
        if text is None:
            raise self.refuse(op, f"{fn} of {kind} is not printed")
        self.helpers |= called(text)
        if repeats(text):
            self.named(args[0])
        printed = [self.tiles[a] for a in args]
        axes = tuple(sorted({axis for p in printed for axis in p.axes}))
        texts = [self.aligned(p, axes) for p in printed]
        if fn in TYPED:
            texts = [self.tensor(a) if p.number else t for a, p, t in zip(args, printed, texts, strict=True)]
        elif all(p.number for p in printed):
            texts[0] = self.tensor(args[0])
        wide = computed_wide(fn, kind)
        if wide:
            texts = [t if p.number else cast(t, kind, F32) for t, p in zip(texts, printed, strict=True)]
        found = text.format(*(bare(t) if _is_argument(text, n) else t for n, t in enumerate(texts)))
        if wide:
            found = cast(found, F32, kind)
        elif fn in ("sign", "relu") and kind != F32:
            found = f"{found}.to({TYPES[kind.name]})"
        self.define(op.out, found, axes, fn if fn not in ("and", "or", "not") else "c", NONE)

    def cast_(self, op: CastOp) -> None:
        source, target = tile(op.source).dtype, tile(op.out).dtype
        printed = self.tiles[op.source]
        if source == target:
            self.tiles[op.out] = printed
            return
        if source.is_float and target.is_integer:
            printed = self.named(op.source)
        text = self.tensor(op.source) if printed.number else printed.text
        self.define(op.out, cast(text, source, target), printed.axes, "x", printed.zero)

    # --- reductions -----------------------------------------------------------------------------------------------

    def reduce(self, op: ReduceOp) -> None:
        fn, axis, source = op.fn.data, op.axis.data, op.args[0]
        if tile(source).extents[axis] == 1:
            for result, a in zip(op.out, op.args, strict=True):
                self.tiles[result] = self.tiles[a]
            return
        if fn in ("attention", "welford"):
            self.tuples(op)
            return
        axes = live_axes(source)
        left, at, dtype = tuple(a for a in axes if a != axis), axes.index(axis), tile(source).dtype
        match fn:
            case "sum":
                text = f"tl.sum({self.within(source, axis, '0')}, {at})"
            case "max" | "maxnum" | "min":
                way = fn.removesuffix("num")
                text = self._extreme(way, self.within(source, axis, _worst(way, dtype)), at, dtype)
            case "prod":
                self.helpers.add("multiply")
                text = f"tl.reduce({self.within(source, axis, '1')}, {at}, multiply)"
            case "any" | "all":
                way = "max" if fn == "any" else "min"
                whole = self.within(source, axis, "False" if fn == "any" else "True")
                text = f"(tl.{way}({whole}.to(tl.int32), {at}) != 0)"
            case "argmax" | "argmin":
                self._place_of_best(op, axes, left, at)
                return
            case _:
                raise self.refuse(op, f"the combine {fn} is not printed")
        self.define(op.out[0], text, left, fn, NONE)

    def _extreme(self, fn: str, text: str, at: int, dtype: DType) -> str:
        if not dtype.is_float:
            return f"tl.{fn}({text}, {at})"
        helper = "largest" if fn == "max" else "smallest"
        self.helpers.add(helper)
        return f"{helper}({text}, {at})"

    def _place_of_best(self, op: ReduceOp, axes: tuple[int, ...], left: tuple[int, ...], at: int) -> None:
        """The best key and the lowest index that has it; NaN is best."""
        keys, places = op.args
        fn = "max" if op.fn.data == "argmax" else "min"
        dtype = tile(keys).dtype
        found = self.out.name("x", self.within(keys, op.axis.data, _worst(fn, dtype)))
        best = self.out.name("best", self._extreme(fn, found, at, dtype))
        spread = self.aligned(Printed(best, left), axes)
        hit = f"({found} == {spread})"
        if dtype.is_float:
            hit = f"({hit} | ({found} != {found}))"
        condition = self.beyond(keys, op.axis.data, axes)
        hit = hit if condition is None else f"({hit} & {condition})"
        last = str(2 ** (tile(places).dtype.bits - 1) - 1)
        self.tiles[op.out[0]] = Printed(best, left)
        text = f"tl.min(tl.where({hit}, {self.full(places, axes)}, {last}), {at})"
        self.define(op.out[1], text, left, "place", NONE)

    def accumulate(self, op: AccumulateOp) -> None:
        fn, axis = op.fn.data, tile(op.source).rank - 1
        dtype, axes = tile(op.source).dtype, live_axes(op.source)
        identity = {"sum": "0", "prod": "1"}.get(fn) or _worst(fn, dtype)
        whole = self.within(op.source, axis, identity)
        outer = self.extents.shape(op.source, axes[:-1])
        sizes = (*outer, self.extents.of(op.source, axis) // LANES, LANES)
        parts, at = f"tl.reshape({whole}, {sizes})", len(axes) - 1
        acc = self.full(op.acc)
        match fn:
            case "sum":
                text = f"({acc} + tl.sum({parts}, {at}))"
            case "prod":
                self.helpers.add("multiply")
                text = f"({acc} * tl.reduce({parts}, {at}, multiply))"
            case _:
                nan = ", propagate_nan=tl.PropagateNan.ALL" if dtype.is_float else ""
                text = f"tl.{fn}imum({acc}, {self._extreme(fn, parts, at, dtype)}{nan})"
        self.define(op.out, text, live_axes(op.out), "acc", NONE)

    # --- dots -----------------------------------------------------------------------------------------------------

    def dot(self, op: DotOp) -> None:
        acc = tile(op.acc).dtype
        start = self.tiles[op.acc]
        fresh = start.number and start.text in ("0.0", "0")
        if is_matrix_product(op):
            a, b = self._inner(op.a, 1), self._inner(op.b, 0)
            precision = ', input_precision="ieee"' if tile(op.a).dtype == F32 else ""
            kind = {I32: ", out_dtype=tl.int32", F64: ", out_dtype=tl.float64"}.get(acc, "")
            if fresh and self._joins_a_sum(op):
                self.dots[op.out] = (f"tl.dot({a}, {b}", f"{precision}{kind})")
                return
            given = "" if fresh else f", {bare(self.full(op.acc))}"
            text = f"tl.dot({a}, {b}{given}{precision}{kind})"
        else:
            text = self._thin_dot(op, acc)
            if not fresh:
                text = f"({self.full(op.acc)} + {text})"
        self.tiles[op.out] = Printed(self.out.name("acc", text), live_axes(op.out))

    def _joins_a_sum(self, op: DotOp) -> bool:
        """Whether the next op adds the dot to something of its extents and dtype, and no other reads it."""
        after = op.next_op
        return (
            isinstance(after, MapOp)
            and after.fn.data == "add"
            and self._in_place(op.out)
            and list(after.args).count(op.out) == 1
            and all(a.type == op.out.type for a in after.args)
        )

    def _inner(self, value: SSAValue, axis: int) -> str:
        """A dot's operand: all its elements spelled out, and zeros beyond its extent along K."""
        if axis in self.tiles[value].zero:
            return self.full(value)
        return self.within(value, axis, "0.0" if tile(value).dtype.is_float else "0")

    def _thin_dot(self, op: DotOp, acc: DType) -> str:
        """A dot with an extent of 1: products, and a sum along K."""
        m, n = tile(op.out).extents
        k = tile(op.a).extents[1]
        # places of rows, columns and K among three axes; K last
        axes = (*((0,) if m > 1 else ()), *((1,) if n > 1 else ()), *((2,) if k > 1 else ()))
        a = Printed(cast(self._wide(op.a, 1), tile(op.a).dtype, acc), tuple(x for x in axes if x in (0, 2)))
        b_text = cast(self._wide(op.b, 0), tile(op.b).dtype, acc)
        if n > 1 and k > 1:
            b_text = f"tl.trans({b_text})"
        b = Printed(b_text, tuple(x for x in axes if x in (1, 2)))
        product = f"{self.aligned(a, axes)} * {self.aligned(b, axes)}"
        return f"tl.sum({product}, {len(axes) - 1})" if k > 1 else f"({product})"

    def _wide(self, value: SSAValue, axis: int) -> str:
        return (
            self._inner(value, axis)
            if tile(value).extents[axis] > 1
            else self.full(value)
            if live_axes(value)
            else self.tensor(value)
        )


def _is_argument(template: str, number: int) -> bool:
    """Whether a placeholder is always a whole argument of a call, so that parentheses around it say nothing."""
    placeholder = f"{{{number}}}"
    alone = len(re.findall(rf"(?:(?<=\w\()|(?<=, )){re.escape(placeholder)}(?=[,)])", template))
    return alone == template.count(placeholder)


def _worst(fn: str, dtype: DType) -> str:
    """What never wins a maximum or minimum."""
    if dtype.is_float:
        return 'float("-inf")' if fn == "max" else 'float("inf")'
    if dtype == I1:
        return "False" if fn == "max" else "True"
    unsigned = dtype.kind == "uint"
    low, high = (0, 2**dtype.bits - 1) if unsigned else (-(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1) - 1)
    return literal(low if fn == "max" else high, dtype)

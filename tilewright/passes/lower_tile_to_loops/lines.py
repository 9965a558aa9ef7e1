"""Ordering lines of memory: digit by digit for a whole order, by one pass against a threshold for the k largest.

A sort moves 64-bit words between the two halves of the spare memory: the key over the place where the key has 32 bits
or fewer, else the key and then the place. Each round is a stable counting sort by 8 bits, from the lowest; a round in
which all elements share a digit is left out (the usual case for integers).

A selection keeps its k best in order in scratch, and looks for elements above the worst of them a vector at a time:
most vectors hold none once the first few thousand elements have been seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from xdsl.ir import Operation, SSAValue

from tilewright.errors import LoweringError
from tilewright.ir.dtypes import BF16, F16, I1, I64, DType
from tilewright.ir.loops import BufferArg, LoopBuilder, Scratch, Value
from tilewright.ir.tile.base import view
from tilewright.ir.tile.compute import LANES
from tilewright.ir.tile.lines import SortLineOp, TopkLineOp, spare_words
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.ordering import key_dtype, order_key
from tilewright.passes.lower_tile_to_loops.views import AffineView

DIGIT: Final = 8
BUCKETS: Final = 1 << DIGIT


@dataclass(frozen=True, slots=True)
class Line:
    """Element i lies at memory[offset + i * step]."""

    memory: BufferArg
    offset: Value
    step: Value
    length: Value


def line_of(cx: Lowering, op: Operation, looked: SSAValue, axis: int, at: list[SSAValue]) -> Line:
    """The line of a view at coordinates of its other axes."""
    found = cx.views[looked]
    if not isinstance(found, AffineView):
        raise _no_line(cx, op)
    b, others = cx.b, [a for a in range(len(found.extents)) if a != axis]
    offset = b.expr(found.offset)
    for other, coordinate in zip(others, at, strict=True):
        offset = b.add(offset, b.mul(cx.indices[coordinate].value, b.expr(found.strides[other])))
    return Line(found.memory, offset, b.expr(found.strides[axis]), found.extents[axis].value)


def _no_line(cx: Lowering, op: Operation) -> LoweringError:
    return cx.unsupported(op, "a line of a view that is not affine")


def _element(cx: Lowering, line: Line, at: Value) -> Value:
    return cx.b.load(line.memory, cx.b.add(line.offset, cx.b.mul(at, line.step)))


def _put(cx: Lowering, line: Line, at: Value, value: Value) -> None:
    cx.b.store(value, line.memory, cx.b.add(line.offset, cx.b.mul(at, line.step)))


# narrow floats are ordered as f32, of which these lowest bits say nothing more
_UNUSED: Final = {BF16: 16, F16: 13}


def key_bits(dtype: DType) -> int:
    """The bits of an element's unsigned key."""
    if dtype is I1:
        return 1
    return key_dtype(dtype).bits - _UNUSED.get(dtype, 0) if dtype.is_float else dtype.bits


def unsigned_key(b: LoopBuilder, value: Value, *, descending: bool) -> Value:
    """An element's place in the order as an unsigned number of `key_bits` in an i64."""
    dtype = value.type.dtype
    bits = key_bits(dtype)
    if dtype.is_float:
        key = b.shr(order_key(b, value), _UNUSED.get(dtype, 0))
    else:
        key = order_key(b, value)
    key = b.cast(key, I64)
    if dtype.is_float or dtype.kind == "int":
        key = b.xor(key, -(1 << 63)) if bits == 64 else b.add(key, 1 << (bits - 1))
    if descending:
        key = b.not_(key) if bits == 64 else b.sub((1 << bits) - 1, key)
    return key


# --- sorting --------------------------------------------------------------------------------------------------------


def lower_sort_line(cx: Lowering, op: SortLineOp) -> None:
    """A line's values and places in order."""
    b, axis = cx.b, op.axis.data
    *at, row = op.at
    source, values, places = (line_of(cx, op, v, axis, at) for v in (op.source, op.values, op.places))
    spare = line_of(cx, op, op.spare, 1, [row])
    dtype, count = view(op.source).dtype, source.length
    words = spare_words(dtype)
    low = 32 if words == 1 else 0  # where the key starts in the word that holds it
    rounds = -(-key_bits(dtype) // DIGIT)

    def word_at(half: Value, place: Value) -> Value:
        return b.add(spare.offset, b.mul(b.add(half, place), words))

    def digit(word: Value, shift: Value | int) -> Value:
        return b.and_(b.ushr(word, shift), BUCKETS - 1)

    with cx.temporary((rounds * BUCKETS,), I64) as counts:
        _clear(cx, counts.memory, rounds * BUCKETS)
        start = b.index(0)
        with b.loop(0, count, name="n") as loop:
            key = unsigned_key(b, _element(cx, source, loop.index), descending=op.descending.data)
            word, to = b.or_(b.shl(key, low), loop.index) if low else key, word_at(start, loop.index)
            b.store(word, spare.memory, to)
            if words == 2:
                b.store(loop.index, spare.memory, b.add(to, 1))
            for number in range(rounds):
                where = b.add(digit(word, low + number * DIGIT), number * BUCKETS)
                b.store(b.add(b.load(counts.memory, where), 1), counts.memory, where)
        with b.when(b.compare("gt", count, 0)):
            with b.loop(0, rounds, 1, [start], name="p") as loop:
                (half,) = loop.carries
                shift, first = b.add(b.mul(loop.index, DIGIT), low), b.mul(loop.index, BUCKETS)
                any_word = b.load(spare.memory, word_at(half, start))
                shared = b.load(counts.memory, b.add(first, digit(any_word, shift)))
                branch = b.branch(b.compare("lt", shared, count))
                with branch.then():
                    _starts(cx, counts.memory, first)
                    other = b.sub(count, half)
                    with b.loop(0, count, name="n") as moves:
                        from_ = word_at(half, moves.index)
                        word = b.load(spare.memory, from_)
                        bucket = b.add(first, digit(word, shift))
                        place = b.load(counts.memory, bucket)
                        b.store(b.add(place, 1), counts.memory, bucket)
                        to = word_at(other, place)
                        b.store(word, spare.memory, to)
                        if words == 2:
                            b.store(b.load(spare.memory, b.add(from_, 1)), spare.memory, b.add(to, 1))
                    branch.give(other)
                with branch.otherwise():
                    branch.give(half)
                loop.next(*branch.results)
            (half,) = loop.results
            with b.loop(0, count, name="n") as loop:
                from_ = word_at(half, loop.index)
                if words == 2:
                    place = b.load(spare.memory, b.add(from_, 1))
                else:
                    place = b.and_(b.load(spare.memory, from_), (1 << 32) - 1)
                _put(cx, places, loop.index, place)
                _put(cx, values, loop.index, _element(cx, source, place))


def _clear(cx: Lowering, counts: Scratch, size: int) -> None:
    b = cx.b
    with b.loop(0, size, LANES, name="c") as loop:
        b.store(b.const(0, I64, LANES), counts, loop.index)


def _starts(cx: Lowering, counts: Scratch, first: Value) -> None:
    """Counts of one round become the places where its buckets start."""
    b = cx.b
    with b.loop(0, BUCKETS, 1, [b.index(0)], name="c") as loop:
        where = b.add(first, loop.index)
        here = b.load(counts, where)
        b.store(loop.carries[0], counts, where)
        loop.next(b.add(loop.carries[0], here))


# --- selecting ------------------------------------------------------------------------------------------------------


def lower_topk_line(cx: Lowering, op: TopkLineOp) -> None:
    """The k largest of a line, in order."""
    b, axis, k = cx.b, op.axis.data, op.k.data
    source, values, places = (line_of(cx, op, v, axis, list(op.at)) for v in (op.source, op.values, op.places))
    ordering = key_dtype(view(op.source).dtype)
    count, kept = source.length, b.min(source.length, k)
    with cx.temporary((k,), ordering) as keys, cx.temporary((k,), I64) as best:

        def insert(key: Value, place: Value, held: Value) -> None:
            """Puts a key behind all that are not below it; of k held ones the last falls out."""
            last = b.min(held, k - 1)
            with b.loop(0, last, 1, [last], name="m") as loop:
                # from the end: what lies below the new key moves up by one
                before = b.sub(b.sub(last, loop.index), 1)
                other = b.load(keys.memory, before)
                below = b.compare("lt", other, key)
                with b.when(below):
                    b.store(other, keys.memory, b.add(before, 1))
                    b.store(b.load(best.memory, before), best.memory, b.add(before, 1))
                loop.next(b.select(below, before, loop.carries[0]))
            (hole,) = loop.results
            b.store(key, keys.memory, hole)
            b.store(place, best.memory, hole)

        with b.loop(0, kept, name="n") as loop:
            insert(order_key(b, _element(cx, source, loop.index)), loop.index, loop.index)
        rest = b.sub(count, kept)
        whole = b.mul(b.floordiv(rest, LANES), LANES)

        def offer(at: Value) -> None:
            key = order_key(b, _element(cx, source, at))
            with b.when(b.compare("gt", key, b.load(keys.memory, k - 1))):
                insert(key, at, b.index(k))

        with b.loop(0, whole, LANES, name="n") as loop:
            start = b.add(kept, loop.index)
            offset = b.add(source.offset, b.mul(start, source.step))
            found = order_key(b, b.load(source.memory, offset, LANES, stride=source.step))
            worst = b.broadcast(b.load(keys.memory, k - 1), LANES)
            above = b.reduce("or", b.compare("gt", found, worst))
            with b.when(above), b.loop(0, LANES, name="l") as lane:
                offer(b.add(start, lane.index))
        with b.loop(b.add(kept, whole), count, name="n") as loop:
            offer(loop.index)
        with b.loop(0, kept, name="n") as loop:
            place = b.load(best.memory, loop.index)
            _put(cx, places, loop.index, place)
            _put(cx, values, loop.index, _element(cx, source, place))

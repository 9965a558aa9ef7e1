"""The functions that order: within a tile by Triton's sorting network, in memory by merging sorted blocks.

An element becomes an integer key in the order that torch has (zeros are equal, NaN is above everything), turned around
where the order falls. A tile is sorted as words of 64 bits, the key above the place, so that equal keys keep their
order; keys of 64 bits are sorted by their lower half and then by their upper one.
"""

from __future__ import annotations

from typing import Final

ORDERING: Final[dict[str, str]] = {
    "order_key": '''\
@triton.jit
def order_key(x, falling: tl.constexpr):
    """Integers in the order of x: zeros are equal, NaN is above everything. falling: turned around."""
    if x.dtype.is_floating():
        if x.dtype.primitive_bitwidth == 64:
            wide, bits, most = x, x.to(tl.int64, bitcast=True), 0x7FFFFFFFFFFFFFFF
        else:
            wide, bits, most = x.to(tl.float32), x.to(tl.float32).to(tl.int32, bitcast=True), 0x7FFFFFFF
        key = tl.where(bits < 0, bits ^ most, bits)
        key = tl.where(wide == 0.0, 0, tl.where(wide != wide, most, key)).to(bits.dtype)
    elif x.dtype.primitive_bitwidth == 64:
        key = x
    else:
        key = x.to(tl.int32)
    return ~key if falling else key''',
    "in_order": '''\
@triton.jit
def in_order(key, extent: tl.constexpr):
    """The places of each row's keys in rising order; equal ones stay as they stood, those beyond are last."""
    last: tl.constexpr = key.shape[-1] - 1
    if key.dtype.primitive_bitwidth == 64:
        lower = ((key & 0xFFFFFFFF) - 0x80000000).to(tl.int32)
        first = in_order(lower, extent)
        upper = tl.gather((key >> 32).to(tl.int32), first, len(key.shape) - 1)
        found = tl.gather(first, in_order(upper, extent), len(key.shape) - 1)
    else:
        at = tl.arange(0, key.shape[-1]).to(tl.int64)
        word = tl.where(at < extent, (key.to(tl.int64) << 32) | at, 0x7FFFFFFFFFFFFFFF)
        found = (tl.sort(word) & last).to(tl.int32)
    return found''',
    "first_in_order": '''\
@triton.jit
def first_in_order(key, extent: tl.constexpr, count: tl.constexpr):
    """The first `count` places of in_order: a power of two, 2 at least."""
    last: tl.constexpr = key.shape[-1] - 1
    if key.dtype.primitive_bitwidth == 64:
        found = in_order(key, extent)
        head = tl.zeros(key.shape[:-1] + [count], tl.int32) + tl.arange(0, count)
        found = tl.gather(found, head, len(key.shape) - 1)
    else:
        at = tl.arange(0, key.shape[-1]).to(tl.int64)
        word = tl.where(at < extent, (key.to(tl.int64) << 32) | at, 0x7FFFFFFFFFFFFFFF)
        found = (~tl.topk(~word, count) & last).to(tl.int32)
    return found''',
    "one_after_the_other": '''\
@triton.jit
def one_after_the_other(a, b):
    """Two vectors as one."""
    return tl.reshape(tl.permute(tl.join(a, b), (1, 0)), (2 * a.shape[0],))''',
    "select_line": '''\
@triton.jit
def select_line(source, step, length, values, values_step, places, places_step, k: tl.constexpr, count: tl.constexpr):
    """Writes the k largest elements of a line in falling order and where they were; the lowest place wins.

    The best stay in registers. A block of the line is looked at closely only where it has something better.
    count: k as a power of two, 2 at least.
    """
    block: tl.constexpr = count if count > 128 else 128
    at, among = tl.arange(0, count), tl.arange(0, block)
    most: tl.constexpr = 0x7FFFFFFFFFFFFFFF if source.dtype.element_ty.primitive_bitwidth == 64 else 0x7FFFFFFF
    key = order_key(tl.load(source + among * step, mask=among < length, other=0), True)
    key = tl.where(among < length, key, most)
    first = first_in_order(key, block, count)
    best, place = tl.gather(key, first, 0), first.to(tl.int64)
    for start in range(block, length, block):
        i = start + among
        key = order_key(tl.load(source + i * step, mask=i < length, other=0), True)
        key = tl.where(i < length, key, most)
        worst = tl.max(tl.where(at < k, best, -most - 1), 0)
        if tl.min(key, 0) < worst:
            first = first_in_order(key, block, count)
            keys = one_after_the_other(best, tl.gather(key, first, 0))
            both = one_after_the_other(place, start + first.to(tl.int64))
            first = first_in_order(keys, 2 * count, count)
            best, place = tl.gather(keys, first, 0), tl.gather(both, first, 0)
    kept = (at < k) & (at < length)
    tl.store(values + at * values_step, tl.load(source + place * step, mask=kept), mask=kept)
    tl.store(places + at * places_step, place, mask=kept)''',
    "sort_line": '''\
@triton.jit
def sort_line(
    source, step, length, values, values_step, places, places_step, spare, falling: tl.constexpr, block: tl.constexpr
):
    """Writes the elements of a line in order, equal ones as they stood, and where they were.

    Sorted blocks lie in one half of `spare` and are merged in pairs into the other: an element's place in a pair is its
    place in its own run and the number of elements before it in the other one. A word is the key above the place, or
    the key alone where it has 64 bits; places then have memory of their own.
    """
    wide: tl.constexpr = source.dtype.element_ty.primitive_bitwidth == 64
    at = tl.arange(0, block)
    half = 2 * length if wide else length
    have, want = spare, spare + half
    for start in range(0, length, block):
        i = start + at
        key = order_key(tl.load(source + i * step, mask=i < length, other=0), falling)
        key = tl.where(i < length, key, 0x7FFFFFFFFFFFFFFF if wide else 0x7FFFFFFF)
        first = in_order(key, block)
        word, place = tl.gather(key, first, 0).to(tl.int64), start + first.to(tl.int64)
        if wide:
            tl.store(have + length + i, place, mask=i < length)
        else:
            word = (word << 32) | place
        tl.store(have + i, word, mask=i < length)
    width = tl.full((), block, tl.int64)
    while width < length:
        tl.debug_barrier()
        for start in range(0, length, block):
            i = start + at
            word = tl.load(have + i, mask=i < length, other=0)
            begin = i // (2 * width) * (2 * width)
            middle, end = tl.minimum(begin + width, length), tl.minimum(begin + 2 * width, length)
            left = i < middle
            other = tl.where(left, middle, begin)
            low, high = other, tl.where(left, end, middle)
            size = width
            while size > 0:
                looking, probe = low < high, (low + high) // 2
                found = tl.load(have + probe, mask=looking, other=0)
                before = tl.where(left, found < word, found <= word)
                low, high = tl.where(looking & before, probe + 1, low), tl.where(looking & ~before, probe, high)
                size = size // 2
            to = begin + i - tl.where(left, begin, middle) + low - other
            tl.store(want + to, word, mask=i < length)
            if wide:
                tl.store(want + length + to, tl.load(have + length + i, mask=i < length), mask=i < length)
        have, want = want, have
        width = 2 * width
    tl.debug_barrier()
    for start in range(0, length, block):
        i = start + at
        place = tl.load(have + length + i if wide else have + i, mask=i < length, other=0)
        place = place if wide else place & 0xFFFFFFFF
        tl.store(values + i * values_step, tl.load(source + place * step, mask=i < length), mask=i < length)
        tl.store(places + i * places_step, place, mask=i < length)''',
}

"""The loop of every attention kernel: segments of keys stream past a tile of queries.

State per row of queries: the running maximum m, the denominator l, the unnormalised output o. One segment's step has
the same ops whatever brought its queries, keys and values, so that a token has the same bits in every kernel that
attends, as long as the segments begin at the same keys.

Segments of a part continue one sum, and parts are merged from left to right, so that a part can be computed alone. To
merge every segment instead took 15% more time in bf16 with 128 features, because sums pass through the cache twice;
parts of 1024 keys take 0 to 3%, up to 5% there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr, floordiv, maximum, minimum
from tilewright.ir.dtypes import F32, DType
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.paging import PagedAttentionOp
from tilewright.ir.graph.paging_quantized import QuantizedPagedAttentionOp
from tilewright.ir.machine import Machine
from tilewright.ir.tile.base import tile as tile_type
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.structure import ExprOp
from tilewright.passes.lower_to_tile.matrix_tiles import attention_unit

MINUS_INFINITY = float("-inf")
_HELD: Final = 8.0  # powers of two that a weight of 16 bits may exceed 1 by


class Segment(NamedTuple):
    """What a segment of keys brings: logits [rows, segment], which of them count (None: all), v [segment, value
    features]. scale, low: f32 [1, segment], where a key's values are v * scale + low."""

    logits: SSAValue
    seen: SSAValue | None
    v: SSAValue
    scale: SSAValue | None = None
    low: SSAValue | None = None


@dataclass(frozen=True)
class OnlineSoftmax:
    """An attention's softmax over segments of keys for a tile of `rows` queries.

    segment: keys of a step. part: keys of a part, whole segments. features, value_features: of a row of k and of v.
    chain: the most features of one chain of a logit's multiply-adds. on_unit: whether a matrix unit takes both
    products, and keys and values in pairs; it has an order of its own.
    """

    b: KernelBuilder
    op: AttentionOp | PagedAttentionOp | QuantizedPagedAttentionOp
    rows: int
    segment: int
    part: int
    features: int
    value_features: int
    chain: int
    on_unit: bool

    @staticmethod
    def of(
        b: KernelBuilder,
        op: AttentionOp | PagedAttentionOp | QuantizedPagedAttentionOp,
        machine: Machine,
        block: tuple[int, int],
        features: tuple[int, int],
    ) -> OnlineSoftmax:
        """block: rows of a tile of queries, and of keys. features: of keys, and of values."""
        rows, segment = block
        part = max(1, machine.rules.key_part // segment) * segment
        on_unit = attention_unit(machine, op, keys=segment) is not None
        return OnlineSoftmax(b, op, rows, segment, part, *features, machine.rules.logit_chain, on_unit)

    @property
    def dtype(self) -> DType:
        """That of the factors of both products."""
        return tensor(self.op.q).dtype

    def queries(self, q: SSAValue) -> SSAValue:
        """The left side of all logits from q [rows, features]: scaled where that costs no bits, in f32."""
        b = self.b
        wide = b.broadcast(b.cast(q, F32), (self.rows, self.features))
        return b.map("mul", wide, self._scale()) if self.dtype is F32 else b.cast(wide, self.dtype)

    def start(self, sinks: SSAValue | None) -> list[SSAValue]:
        """m, l and o before the first key; a sink is a logit that carries no value. sinks: [rows, 1] or [1, 1]."""
        b = self.b
        if sinks is None:
            m, total = b.constant(MINUS_INFINITY, (self.rows, 1)), b.constant(0.0, (self.rows, 1))
        else:
            m, total = b.broadcast(self.logit(sinks), (self.rows, 1)), b.constant(1.0, (self.rows, 1))
        return [m, total, b.constant(0.0, (self.rows, self.value_features))]

    @property
    def base(self) -> float:
        """Of the exponentials. That of 16-bit weights is 2: it takes fewer operations, and the logarithm lies in the
        scale; f32 keeps the digits that the product with it would cost."""
        return math.e if self.dtype is F32 else 2.0

    def logit(self, x: SSAValue) -> SSAValue:
        """What is added to logits, or is one, in f32 and for exponentials of `base`."""
        x = self.b.cast(x, F32)
        return x if self.dtype is F32 else self.b.map("mul", x, self.b.constant(1 / math.log(self.base), (1, 1)))

    @property
    def factor(self) -> float | None:
        """What logits are multiplied by as exponentials are taken of them, in one operation with the shift: where
        nothing else happens to them before. None where they are scaled already."""
        op = self.op
        added = any(getattr(op, name, None) is not None for name in ("bias", "slopes", "by_distance", "log_counts"))
        if self.dtype is F32 or op.softcap.data or added or op.scale.data <= 0:
            return None
        return op.scale.data / math.log(self.base)

    def logits(self, queries: SSAValue, k: SSAValue) -> SSAValue:
        """Capped logits of a segment from `queries()` and k [segment, features], scaled for `base` but for `factor`."""
        b, cap = self.b, self.op.softcap.data
        zero = b.constant(0.0, (self.rows, self.segment))
        if self.on_unit:
            logits = b.dot(queries, _pairs_of_features(b, k), zero)
        else:
            logits = b.dot(queries, b.transpose(k, (1, 0)), zero, self._even_chain())
        unit = 1 / math.log(self.base)
        if self.dtype is not F32 and self.factor is None:
            logits = b.map("mul", logits, b.constant(self.op.scale.data * (1 if cap else unit), (1, 1)))
        if cap:
            capped = b.map("tanh", b.map("div", logits, b.constant(cap, (1, 1))))
            logits = b.map("mul", b.constant(cap * unit, (1, 1)), capped)
        return logits

    def _even_chain(self) -> int:
        """Features of a chain, about equally many in all: in one chain of 128 a logit is off by twice what it is in
        four of 32, in one of 576 by three times; shorter ones gain little more, and cost more additions."""
        chains = -(-self.features // self.chain)
        return 0 if chains == 1 else -(-self.features // chains)

    def visible(self, q_at: SSAValue, k_at: SSAValue) -> SSAValue:
        """Which pairs the mask, not "none", leaves; positions as i32, q_at [rows, 1], k_at [1, segment]."""
        if isinstance(self.op, QuantizedPagedAttentionOp):
            raise TypeError(f"{self.op.name} has no mask of its own")
        b, mask = self.b, self.op.mask.data
        seen = b.map("le", k_at, q_at)
        width = b.splat(self.op.window.data, (1, 1))
        if mask == "sliding":
            return b.map("and", seen, b.map("lt", b.map("sub", q_at, k_at), width))
        if mask == "chunked":
            return b.map("and", seen, b.map("eq", b.map("floordiv", q_at, width), b.map("floordiv", k_at, width)))
        return seen

    def over(
        self,
        lo: SSAValue,
        hi: SSAValue,
        sinks: SSAValue | None,
        segment_at: Callable[[SSAValue], Segment],
        keys: int | None,
        before: Sequence[SSAValue] | None = None,
    ) -> list[SSAValue]:
        """m, l and o after the keys from lo, where a segment begins, to hi.

        segment_at: what a segment brings, given its first key. keys: the most there can be; None where that is not
        known. before: m, l and o so far, sinks among them; the keys' sums are merged into it.
        """
        begun = None if before is None else [list(before)]
        return self.over_bands(lo, hi, [sinks], lambda key, _: [segment_at(key)], keys, begun)[0]

    def over_bands(
        self,
        lo: SSAValue,
        hi: SSAValue,
        sinks: Sequence[SSAValue | None],
        segment_at: Callable[[SSAValue, bool], Iterable[Segment]],
        keys: int | None,
        before: Sequence[Sequence[SSAValue]] | None = None,
        whole: SSAValue | None = None,
    ) -> list[list[SSAValue]]:
        """The same for several bands of rows at once: keys and values that a segment brings are those of all.

        segment_at: also told whether all of the segment's keys exist and every row sees them, as it is of segments that
        end at `whole` or before. Those have a loop of their own: what masks cost is paid at the edges alone.
        """
        b, count = self.b, len(sinks)
        begun = [self.start(sink) for sink in sinks] if before is None else before

        def flat(states: Iterable[Sequence[SSAValue]]) -> list[SSAValue]:
            return [value for state in states for value in state]

        def apart(values: Sequence[SSAValue]) -> list[list[SSAValue]]:
            return [list(values[at : at + len(values) // count]) for at in range(0, len(values), len(values) // count)]

        def steps(first: SSAValue, last: SSAValue, states: list[SSAValue], seen: bool) -> list[SSAValue]:
            with b.loop(first, last, self.segment, states) as loop:
                brought = segment_at(loop.at, seen)
                stepped = (self.step(state, band) for state, band in zip(apart(loop.carried), brought, strict=True))
                loop.give(*flat(stepped))
            return list(loop.out)

        def chain(first: SSAValue, last: SSAValue) -> list[list[SSAValue]]:
            states = flat(self.start(None) for _ in sinks)
            if whole is not None:
                size, inside = self.segment, minimum("a1", "a2") - "a0"
                edge = b.index(floordiv(inside, size) * size + "a0", first, last, whole)
                states = steps(first, edge, states, True)
                first = b.index(maximum("a0", "a1"), first, edge)
            return apart(steps(first, last, states, False))

        def all_merged(earlier: Sequence[Sequence[SSAValue]], later: Sequence[Sequence[SSAValue]]) -> list[SSAValue]:
            return flat(self.merged(*pair) for pair in zip(earlier, later, strict=True))

        if keys is not None and keys <= self.part:
            # one part: to merge it into nothing would change no bit
            alone = before is None and all(sink is None for sink in sinks)
            return chain(lo, hi) if alone else apart(all_merged(begun, chain(lo, hi)))
        at_zero = isinstance(lo.owner, ExprOp) and lo.owner.expr == Expr.of(0)
        begin = lo if at_zero else b.index(floordiv("a0", self.part) * self.part, lo)
        with b.loop(begin, hi, self.part, flat(begun)) as parts:
            first = parts.at if at_zero else b.index(maximum("a0", "a1"), parts.at, lo)
            last = b.index(minimum(Expr.of("a0") + self.part, "a1"), parts.at, hi)
            parts.give(*all_merged(apart(parts.carried), chain(first, last)))
        return apart(parts.out)

    def merged(self, earlier: Sequence[SSAValue], later: Sequence[SSAValue]) -> list[SSAValue]:
        """m, l and o of two stretches of keys; one that saw nothing changes no bit of the other."""
        b = self.b
        (m, total, o), (m_later, total_later, o_later) = earlier, later
        top = b.map("max", m, m_later)
        shift = self._shift(top)
        fade, fade_later = self._exponential(m, shift), self._exponential(m_later, shift)

        def both(x: SSAValue, y: SSAValue) -> SSAValue:
            return b.map("add", b.map("mul", x, fade), b.map("mul", y, fade_later))

        return [top, both(total, total_later), both(o, o_later)]

    def step(self, carried: Sequence[SSAValue], brought: Segment) -> tuple[SSAValue, SSAValue, SSAValue]:
        """m, l and o after a segment.

        Values of keys that no row sees must be finite, and so their scale and low: they meet a weight of 0. A key's
        scale goes into its weight, of which there are fewer than values.
        """
        b, (logits, seen, v, scale, low) = self.b, brought
        if seen is not None:
            wide = b.broadcast(seen, (self.rows, self.segment))
            logits = b.map("select", wide, logits, b.constant(MINUS_INFINITY, (1, 1)))
        m, total, o = carried
        # a NaN need not be the maximum: its weight is NaN either way
        highest = b.reduce("maxnum", logits, 1)
        factor = None if self.factor is None else b.constant(self.factor, (1, 1))
        top = self._raised(m, highest if factor is None else b.map("mul", highest, factor))
        shift = self._shift(top)
        if factor is None:
            p = self._exponential(logits, shift, coarse=self.dtype is not F32)
        else:
            p = b.map("exp2_coarse", b.map("fma", logits, factor, b.map("neg", shift)))
        fade = self._exponential(m, shift)
        held = _pairs_of_keys(b, v) if self.on_unit else v
        faded, weights = b.map("mul", o, fade), p
        if scale is not None and low is not None:
            weights = b.map("mul", p, scale)
            faded = b.map("add", faded, b.reduce("sum", b.map("mul", p, low), 1))
        mixed = b.dot(b.cast(weights, tile_type(v).dtype), held, faded)
        return top, b.map("add", b.map("mul", total, fade), b.reduce("sum", p, 1)), mixed

    def result(self, carried: Sequence[SSAValue]) -> SSAValue:
        """The rows' results, 0 where a row saw nothing."""
        b = self.b
        _, total, o = carried
        empty = b.map("eq", total, b.constant(0.0, (1, 1)))
        normal = b.map("select", empty, b.constant(0.0, (1, 1)), b.map("div", o, total))
        return b.cast(normal, self.dtype)

    def log_sum_exp(self, carried: Sequence[SSAValue]) -> SSAValue:
        """[rows, 1], -inf where a row saw nothing."""
        b, (m, total, _) = self.b, carried
        if self.dtype is not F32:
            m = b.map("mul", m, b.constant(math.log(self.base), (1, 1)))
        return b.map("add", m, b.map("log", total))

    def _raised(self, m: SSAValue, highest: SSAValue) -> SSAValue:
        """What a row's exponentials are relative to from now on, given the highest logit of a segment.

        In f32 the maximum so far. 16-bit weights have 8 more bits of exponent than they need: there it stays until the
        maximum rises by more than `_HELD`, so that sums need not be faded in most segments. (The idea is that of
        FlashAttention-4.)
        """
        b = self.b
        if self.dtype is F32:
            return b.map("max", m, highest)
        limit = b.map("add", m, b.constant(_HELD, (1, 1)))
        return b.map("select", b.map("gt", highest, limit), highest, m)

    def _exponential(self, x: SSAValue, shift: SSAValue, *, coarse: bool = False) -> SSAValue:
        """`base` to the x - shift. coarse: as 16-bit weights need it."""
        name = "exp" if self.dtype is F32 else "exp2_coarse" if coarse else "exp2"
        return self.b.map(name, self.b.map("sub", x, shift))

    def _shift(self, top: SSAValue) -> SSAValue:
        """What logits are lowered by: their maximum, but where nothing is visible yet, that would be -inf - -inf."""
        b = self.b
        return b.map("select", b.map("eq", top, b.constant(MINUS_INFINITY, (1, 1))), b.constant(0.0, (1, 1)), top)

    def _scale(self) -> SSAValue:
        return self.b.constant(self.op.scale.data, (1, 1))


def _pairs_of_features(b: KernelBuilder, k: SSAValue) -> SSAValue:
    """k [keys, features] as [features, keys], by way of pairs of features, as a matrix unit takes them."""
    keys, features = tile_type(k).extents
    pairs = b.transpose(b.reshape(k, (keys, features // 2, 2)), (1, 0, 2))
    return b.reshape(b.transpose(pairs, (0, 2, 1)), (features, keys))


def _pairs_of_keys(b: KernelBuilder, v: SSAValue) -> SSAValue:
    """v [keys, features] as it is, by way of pairs of keys."""
    keys, features = tile_type(v).extents
    pairs = b.transpose(b.reshape(v, (keys // 2, 2, features)), (0, 2, 1))
    return b.reshape(b.transpose(pairs, (0, 2, 1)), (keys, features))

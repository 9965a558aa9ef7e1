"""Keys and values as codes: what a step writes, when, and how attention reads it.

New tokens' keys and values go to a group of their own that keeps the last pages only, as they are. Values are coded at
once, with a scale a token. Keys are coded a page at a time, with a scale a feature, in the step that fills the page
(`closed_*`: which pages those are). A token sees a page's codes from so many pages on that the page is full by then, so
that what it sees depends on the two places alone, not on chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xdsl.ir import SSAValue

from tilewright.errors import Problem, StepError
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import BF16, F32, U8
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.indexing import GatherOp
from tilewright.ir.graph.paging_quantized import QuantizedPagedAttentionOp
from tilewright.ir.graph.reduction import ReduceOp
from tilewright.ir.graph.shape import ReshapeOp, SliceOp
from tilewright.ir.graph.structure import ConstantOp
from tilewright.ir.types import TensorType
from tilewright.passes.kv_cache.layout import Codes, Kept, PagedLayout, names

if TYPE_CHECKING:
    from tilewright.passes.kv_cache.step import Stepper

CLOSED, CLOSED_CODES, CLOSED_NEAR = "closed", "closed_codes", "closed_near"
CODES: Final = ("keys", "values", "key_scales", "key_lows", "value_scales", "value_lows")
NEAR: Final = ("near_keys", "near_values")
# The group of the last pages as they are.
NEAR_GROUP: Final = "near"

# A lowest number and a scale in bf16 are moved by this share, so that rounding them leaves no number outside.
_MARGIN = 2.0**-8
# What numbers that are all equal are divided by: their codes are 0.
_LEAST = 1e-30


def quantized_groups(op: AttentionOp, layer: int, layout: PagedLayout, codes: Codes) -> dict[tuple[str, int], Kept]:
    """What a layer keeps: codes of all tokens, and the last pages as they are. StepError where codes fill no bytes."""
    k, v = tensor(op.k), tensor(op.v)
    heads, features, wide = (x.evaluate({}) for x in (k.dims[1], k.dims[3], v.dims[3]))
    if features * codes.bits % 8 or wide * codes.bits % 8:
        raise StepError(
            Problem(f"{features} and {wide} codes of {codes.bits} bits fill no whole bytes", op=op.name, where=op.loc),
            step="keep keys and values as int8",
        )
    scaled = 2 * BF16.bytes * heads
    window = codes.near_pages(layout.page) * layout.page
    unit = layout.unit(window)
    return {
        ("codes", 0): Kept(
            "full", None, layout.unit(None), layout.columns(None, 1), (layer,), tuple(names(layer, CODES)),
            heads * (features + wide) * codes.bits // 8 + scaled, scaled * features, codes,
        ),
        (NEAR_GROUP, window): Kept(
            NEAR_GROUP, window, unit, layout.columns(window, unit), (layer,), tuple(names(layer, NEAR)),
            heads * (features + wide) * k.dtype.bits // 8,
        ),
    }  # fmt: skip


class Quantized:
    """One attention of a step. group: of the codes. near: of the last pages."""

    def __init__(self, step: Stepper, op: AttentionOp, layer: int, group: Kept, near: Kept) -> None:
        assert group.codes is not None  # the first of two groups
        self.step, self.op, self.layer, self.group, self.near = step, op, layer, group, near
        self.bits, self.page = group.codes.bits, step.layout.page
        self.recent = group.codes.near_pages(self.page)

    def attend(
        self, q: SSAValue, k: SSAValue, v: SSAValue, sinks: SSAValue | None, slopes: SSAValue | None
    ) -> SSAValue:
        """graph.quantized_paged_attention over states with this step's keys and values in them, all [tokens, ..]."""
        step, op, given = self.step, self.op, self.step.given
        near = [step.kept(n, self.near, x, op) for n, x in zip(names(self.layer, NEAR), (k, v), strict=True)]
        value_codes, *value_scales = self._coded(v, 2)
        key_codes, *key_scales = self._coded(self._add(GatherOp, near[0], given[CLOSED_NEAR], axis=0), 2)
        keys, values, *places = names(self.layer, CODES)
        stored = [
            self._at_pages(keys, key_codes),
            step.kept(values, self.group, value_codes, op),
            *(self._at_pages(n, x) for n, x in zip(places[:2], key_scales, strict=True)),
            *(step.kept(n, self.group, x, op) for n, x in zip(places[2:], value_scales, strict=True)),
        ]
        assert self.near.places is not None  # it has a window
        where = [given[n] for n in ("positions", self.near.places, "offsets", self.group.table, self.near.table)]
        return self._add(
            QuantizedPagedAttentionOp, q, *stored, *near, *where, sinks, slopes, page=self.page, recent=self.recent,
            bits=self.bits, scale=op.scale.data, softcap=op.softcap.data,
        )  # fmt: skip

    def _at_pages(self, name: str, rows: SSAValue) -> SSAValue:
        """The state, a row a page, with the rows of the pages that this step closes."""
        kind = tensor(rows)
        state = TensorType.of((self.step.pages[self.group.name], *kind.dims[1:]), kind.dtype)
        return self.step.updated(name, state, self.step.given[CLOSED_CODES], rows, self.op)

    def _coded(self, x: SSAValue, axis: int) -> tuple[SSAValue, SSAValue, SSAValue]:
        """Codes, of 4 bits two in a byte along the last axis; over an axis scale and lowest number, in bf16."""
        levels = (1 << self.bits) - 1
        wide = x if tensor(x).dtype == F32 else self._add(CastOp, x, dtype=F32.name)
        top, bottom = (self._add(ReduceOp, wide, fn=fn, axes=[axis], keepdims=True) for fn in ("max", "min"))
        below = self._map("sub", bottom, self._map("mul", self._map("abs", bottom), self._number(_MARGIN)))
        low = self._add(CastOp, below, dtype=BF16.name)
        low_wide = self._add(CastOp, low, dtype=F32.name)
        step = self._map("mul", self._map("sub", top, low_wide), self._number((1 + _MARGIN) / levels))
        scale = self._add(CastOp, step, dtype=BF16.name)
        divisor = self._map("max", self._add(CastOp, scale, dtype=F32.name), self._number(_LEAST))
        codes = self._map("round", self._map("div", self._map("sub", wide, low_wide), divisor))
        codes = self._map("min", self._map("max", codes, self._number(0.0)), self._number(float(levels)))
        words = codes if self.bits == 8 else self._paired(codes)
        dims = [d for i, d in enumerate(tensor(x).dims) if i != axis]
        flat = [self._add(ReshapeOp, n, dims=dims) for n in (scale, low)]
        return self._add(CastOp, words, dtype=U8.name), flat[0], flat[1]

    def _paired(self, codes: SSAValue) -> SSAValue:
        """Codes [.., 2n] of 4 bits as numbers [.., n] of bytes, the even ones in the low bits."""
        *lead, last = tensor(codes).dims
        apart = self._add(ReshapeOp, codes, dims=[*lead, last // 2, 2])
        dims = tensor(apart).dims
        none, one = [Expr.of(0)] * (len(dims) - 1), [1] * len(dims)
        even, odd = (self._add(SliceOp, apart, starts=[*none, i], stops=[*dims[:-1], i + 1], steps=one) for i in (0, 1))
        words = self._map("add", even, self._map("mul", odd, self._number(16.0)))
        return self._add(ReshapeOp, words, dims=list(dims[:-1]))

    def _number(self, value: float) -> SSAValue:
        return self.step.add(ConstantOp.of(value, [], F32))

    def _map(self, fn: str, *args: SSAValue) -> SSAValue:
        return self.step.add(MapOp.make(list(args), fn=fn, like=self.op))

    def _add(self, op: type, *operands: SSAValue | None, **properties: object) -> SSAValue:
        return self.step.add(op.make(*operands, **properties, like=self.op))  # type: ignore[attr-defined]

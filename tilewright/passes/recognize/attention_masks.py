"""A mask that a model computes and hands to attention, told to the attention as what it is: causal, a window, or
sequences packed into one row."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from tilewright.ir.dims import Expr
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import BroadcastOp, ReshapeOp
from tilewright.passes.recognize.attention import leaves_rows_empty
from tilewright.passes.recognize.masks import conjuncts, numbers_shared
from tilewright.passes.recognize.visibility import Visibility, visibility
from tilewright.passes.rewriting import Rules, Site


def attention_mask_rules(*, finite: bool) -> Rules:
    """The rule for masks of attention. finite: whether a finite hiding number hides as minus infinity does."""
    rules = Rules()

    @rules.on(AttentionOp)
    def attention_mask(op: AttentionOp, site: Site) -> SSAValue | None:
        return _told(op, site, finite) or _packed(op, site)

    return rules


def _told(op: AttentionOp, site: Site, finite: bool) -> SSAValue | None:
    """The same attention, where a condition or a bias counts keys against queries."""
    if op.mask.data != "none" or op.lse.data or (op.valid is None and op.bias is None):
        return None
    if op.q_positions is not None or op.k_positions is not None:
        return None
    rank, tq, tk = tensor(op.q).rank, tensor(op.q).dims[-2], tensor(op.k).dims[-2]
    conditions: list[SSAValue] = []
    if op.valid is not None:
        whole = tensor(op.valid).rank == rank
        conditions = [as_valid for _, as_valid in _parts(op.valid, site)] if whole else [_of_keys(op, site)]
    biases = [] if op.bias is None else [_aligned(op.bias)]
    seen = visibility(conditions, (), biases, tq, tk, site, finite=finite)
    if seen.kind == "none":
        return None
    if seen.finite and leaves_rows_empty(seen, tq, tk):
        site.note("rows that see no key give 0, where the model's finite fill gives an average")
    sinks = op.sinks
    return site.make(
        AttentionOp, op.q, op.k, op.v, seen.bias(site), seen.valid(site, rank), seen.q_positions, seen.k_positions,
        sinks, op.segments, scale=op.scale.data, mask=seen.kind, window=seen.window, softcap=op.softcap.data,
    )  # fmt: skip


def _packed(op: AttentionOp, site: Site) -> SSAValue | None:
    """The same attention, where one of its conditions is that query and key have equal numbers: those are segments."""
    rank, tq, tk = tensor(op.q).rank, tensor(op.q).dims[-2], tensor(op.k).dims[-2]
    if op.valid is None or tensor(op.valid).rank != rank or op.segments is not None or op.lse.data or tq != tk:
        return None
    parts = _parts(op.valid, site)
    for part, as_valid in parts:
        inner = _bare(part)
        found = numbers_shared(inner)
        if found is None:
            continue
        numbers, dims = found
        dims = _lifted(_lifted(dims, inner, part), _bare(op.valid), op.valid)
        if dims[-3].constant != 1 or dims[-2] != tq:
            continue
        lead = dims[:-3] if any(n.constant != 1 for n in dims[:-3]) else []
        segments = site.make(ReshapeOp, numbers, dims=[*lead, tq])
        rest = Visibility(conditions=tuple(p for _, p in parts if p is not as_valid)).valid(site, rank)
        return site.make(
            AttentionOp, op.q, op.k, op.v, op.bias, rest, op.q_positions, op.k_positions, op.sinks, segments,
            scale=op.scale.data, mask=op.mask.data, window=op.window.data, softcap=op.softcap.data,
        )  # fmt: skip
    return None


def _parts(condition: SSAValue, site: Site) -> list[tuple[SSAValue, SSAValue]]:
    """Conditions that must all hold for one on logits to hold; each as it was computed, and with the logits' axes."""
    bare, found = _bare(condition), []
    for part in conjuncts(bare, site):
        dims = tensor(part).dims
        wide = any(size.constant != 1 for size in dims[:-2])
        found.append((part, site.make(ReshapeOp, part, dims=_lifted(dims, bare, condition)) if wide else part))
    return found


def _lifted(dims: Sequence[Expr], bare: SSAValue, value: SSAValue) -> list[Expr]:
    """The dims of a part of `bare` with axes of size 1 where the value has them: its axes of other sizes are those of
    `bare`, in order."""
    inner, outer = tensor(bare).dims, tensor(value).dims
    own = [*[Expr.of(1)] * (len(inner) - len(dims)), *dims]
    found = [*[Expr.of(1)] * (len(outer) - 2), *own[-2:]]
    places = ([i for i, size in enumerate(whole[:-2]) if size.constant != 1] for whole in (inner, outer))
    for mine, place in zip(*places, strict=False):
        found[place] = own[mine]
    return found


def _aligned(bias: SSAValue) -> SSAValue:
    """What a bias is before its leading axes were made, where it has none of its own."""
    bare = _bare(bias)
    return bias if any(size.constant != 1 for size in tensor(bare).dims[:-2]) else bare


def _bare(value: SSAValue) -> SSAValue:
    """The value before axes of size 1 were put before it, and before it was stretched along leading axes."""
    while isinstance(value.owner, (ReshapeOp, BroadcastOp)):
        inner, dims = value.owner.x, tensor(value).dims
        short = tensor(inner).dims
        if len(short) < 2 or dims[-2:] != short[-2:] or not _leads(dims[:-2], short[:-2], value):
            break
        value = inner
    return value


def _leads(wide: tuple[Expr, ...], narrow: tuple[Expr, ...], value: SSAValue) -> bool:
    """Nothing but leading axes was added: of size 1 by a reshape, of any size by a broadcast."""
    if isinstance(value.owner, BroadcastOp):
        return all(size.constant == 1 for size in narrow)
    return [size for size in wide if size.constant != 1] == [size for size in narrow if size.constant != 1]


def _of_keys(op: AttentionOp, site: Site) -> SSAValue:
    """A validity of keys alone, with axes for heads and queries."""
    assert op.valid is not None
    *lead, keys = tensor(op.valid).dims
    return site.make(ReshapeOp, op.valid, dims=[*lead, 1, 1, keys])

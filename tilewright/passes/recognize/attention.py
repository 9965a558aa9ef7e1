"""Attention written out: softmax(q k^T * scale, masked) v, with repeated key heads, softcap, bias and masks.

The logits are walked from the softmax inward. What is met first is applied last, so a bias met after a factor would be
scaled by it, and a cap stands between bias (outside) and scale (inside), as in graph.attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from xdsl.ir import SSAValue

from tilewright.errors import IRError
from tilewright.ir.dims import Expr, product
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.contraction import MatmulOp
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.reduction import SoftmaxOp
from tilewright.ir.graph.shape import BroadcastOp, ReshapeOp, TransposeOp
from tilewright.passes.canonicalize.shapes import loses_nothing
from tilewright.passes.lower_to_tile.attention import refuses_heads
from tilewright.passes.recognize import masks
from tilewright.passes.recognize.visibility import Visibility, visibility
from tilewright.passes.rewriting import Rules, Site, defined, mapped, splat, with_splat


@dataclass(frozen=True)
class Logits:
    """The logits taken apart: the product, what multiplies it, the cap, what is added, and what must hold to be seen.

    conditions: i1 values that are true where a key is seen; hidden: true where it is not. finite: a finite number was
    taken for what hides keys. lead: the leading axes, batch and heads, where the product has all of them in one.
    """

    product: MatmulOp | None = None
    scale: float = 1.0
    softcap: float = 0.0
    biases: tuple[SSAValue, ...] = ()
    conditions: tuple[SSAValue, ...] = ()
    hidden: tuple[SSAValue, ...] = ()
    finite: bool = False
    lead: tuple[Expr, ...] = ()


# --- conditions -----------------------------------------------------------------------------------------------------


def is_read_once(value: SSAValue) -> bool:
    """Nobody else needs the value, so that it need not exist."""
    return value.has_one_use()


def scales_alone(outer: Logits) -> bool:
    """No factor was met further out, which would scale a bias, too."""
    return outer.scale == 1.0


def is_outside_cap(outer: Logits) -> bool:
    """The cap was not met yet: what is added or hidden here is so after it."""
    return not outer.softcap


def keeps_values(cast: CastOp) -> bool:
    """The cast only widens: the softmax works in f32 or wider anyway."""
    return loses_nothing(tensor(cast.x).dtype, tensor(cast.out).dtype)


def is_finite(fill: SSAValue) -> bool:
    """What hides keys is a number: a row that sees no key averages over them, where minus infinity gives NaN."""
    return splat(fill) != -math.inf


def leaves_rows_empty(seen: Visibility, tq: Expr, tk: Expr) -> bool:
    """A row may see no key: its own is not always among those that the mask admits."""
    return bool(seen.conditions) or (seen.kind != "none" and (seen.q_positions is not None or tq != tk))


def undoes_cap(factor: float, cap: float) -> bool:
    """What multiplies the tanh is what its argument was divided by."""
    return abs(factor - cap) <= 1e-6 * abs(cap)


def repeats_whole_heads(dims: Sequence[Expr], wide: Sequence[Expr], flat: Sequence[Expr]) -> bool:
    """[.., Hkv, T, D] to [.., Hkv, G, T, D] to [.., Hkv * G, T, D]: query head h reads key head h // G."""
    lead, (heads, *rest) = dims[:-3], dims[-3:]
    # as many elements before as after: nothing but the group was stretched
    return tuple(flat) == (*lead, heads * wide[len(lead) + 1], *rest)


# --- taking logits apart --------------------------------------------------------------------------------------------


def logits_of(value: SSAValue, site: Site, outer: Logits, finite: bool) -> Logits | None:
    """The parts of the logits; None, with the near miss recorded, where they are no such thing."""
    if not is_read_once(value):
        site.refuse("attention: the logits are used outside")
        return None
    scores, cast, op = defined(value, MatmulOp), defined(value, CastOp), defined(value, MapOp)
    if scores is not None:
        return replace(outer, product=scores)
    folded = defined(value, ReshapeOp)
    if folded is not None and not outer.lead and (lead := folded_axes(folded)):
        return logits_of(folded.x, site, replace(outer, lead=lead), finite)
    if cast is not None and keeps_values(cast):
        return logits_of(cast.x, site, outer, finite)
    found: tuple[SSAValue, Logits] | None = None
    if op is not None and op.fn.data in ("mul", "div"):
        found = _capped(op, site, outer) or _scaled(op, outer)
    elif op is not None and op.fn.data == "add":
        found = _biased(op, site, outer)
    elif op is not None and op.fn.data == "select":
        found = _selected(op, site, outer, finite)
    if found is None or tensor(found[0]).dims != tensor(value).dims:
        return None
    return logits_of(found[0], site, found[1], finite)


def _factor(op: MapOp) -> tuple[SSAValue, float] | None:
    """(x, c) where the op is x * c, by multiplication or division."""
    found = with_splat(op)
    if found is None or op.fn.data == "mul":
        return found
    return (found[0], 1.0 / found[1]) if op.args[0] is found[0] and found[1] else None


def _scaled(op: MapOp, outer: Logits) -> tuple[SSAValue, Logits] | None:
    found = _factor(op)
    return None if found is None else (found[0], replace(outer, scale=outer.scale * found[1]))


def _capped(op: MapOp, site: Site, outer: Logits) -> tuple[SSAValue, Logits] | None:
    """cap * tanh(x / cap)."""
    found = _factor(op)
    tanh = None if found is None else mapped(found[0], "tanh")
    inner = None if tanh is None else mapped(tanh.args[0], "mul", "div")
    inside = None if inner is None else _factor(inner)
    if found is None or tanh is None or inside is None or not is_outside_cap(outer) or not inside[1]:
        return None
    factor, cap = found[1] * outer.scale, 1.0 / inside[1]
    if not (is_read_once(tanh.out) and is_read_once(tanh.args[0])) or not undoes_cap(factor, cap):
        site.refuse(f"attention: tanh of the logits over {cap} is multiplied by {factor}")
        return None
    return inside[0], replace(outer, scale=1.0, softcap=cap)


def _biased(op: MapOp, site: Site, outer: Logits) -> tuple[SSAValue, Logits] | None:
    for logits, bias in (tuple(op.args), tuple(reversed(op.args))):
        if not leads_to_product(logits) or tensor(logits).dims != tensor(op.out).dims:
            continue
        if not is_outside_cap(outer):
            site.refuse("attention: a bias is added inside the cap")
        elif not scales_alone(outer):
            site.refuse("attention: the bias is scaled, too")
        else:
            return logits, replace(outer, biases=(*outer.biases, unfolded(bias, outer.lead, site)))
    return None


def _selected(op: MapOp, site: Site, outer: Logits, finite: bool) -> tuple[SSAValue, Logits] | None:
    condition, yes, no = op.args
    if not is_outside_cap(outer):
        return None
    if masks.is_hiding(no, outer.scale, finite=finite):
        seen = (*outer.conditions, unfolded(condition, outer.lead, site))
        return yes, replace(outer, conditions=seen, finite=outer.finite or is_finite(no))
    if masks.is_hiding(yes, outer.scale, finite=finite):
        hidden = (*outer.hidden, unfolded(condition, outer.lead, site))
        return no, replace(outer, hidden=hidden, finite=outer.finite or is_finite(yes))
    for fill, logits in ((no, yes), (yes, no)):
        if leads_to_product(logits) and (why := masks.why_seen(fill, outer.scale)):
            site.refuse(f"attention: {why}")
    return None


def leads_to_product(value: SSAValue, depth: int = 8) -> bool:
    """A product lies inward along factors, sums, caps, selections and casts: this operand is the logits."""
    op = value.owner
    if isinstance(op, MatmulOp):
        return True
    if not depth or not isinstance(op, (MapOp, CastOp, ReshapeOp)):
        return False
    if isinstance(op, ReshapeOp) and not folded_axes(op):
        return False
    if isinstance(op, MapOp) and op.fn.data not in ("add", "mul", "div", "tanh", "select"):
        return False
    return any(leads_to_product(v, depth - 1) for v in op.operands)


# --- heads ----------------------------------------------------------------------------------------------------------


def folded_axes(op: ReshapeOp) -> tuple[Expr, ...]:
    """Several leading axes [.., a, b] of which the operand [n, a, b] has one; empty where it is another reshape."""
    before, after = tensor(op.x).dims, op.dims.data
    if len(before) != 3 or len(after) < 4 or before[1:] != after[-2:] or product(after[:-2]) != before[0]:
        return ()
    return tuple(after[:-2])


def unfolded(value: SSAValue, lead: Sequence[Expr], site: Site) -> SSAValue:
    """A value [n, a, b] with the leading axes that n stands for; one that has no such axis as it is."""
    dims = tensor(value).dims
    if not lead or len(dims) != 3 or dims[0].constant == 1:
        return value
    return site.make(ReshapeOp, value, dims=(*lead, *dims[-2:]))


def unscaled(value: SSAValue) -> tuple[SSAValue, float]:
    """(x, c) where the value is x * c."""
    op = mapped(value, "mul", "div")
    found = None if op is None else _factor(op)
    return (value, 1.0) if found is None or tensor(found[0]) != tensor(value) else found


def unrepeated(value: SSAValue) -> SSAValue | None:
    """The key heads of which the value repeats each for its query heads; None where it does not."""
    flat = defined(value, ReshapeOp)
    spread = None if flat is None else defined(flat.x, BroadcastOp)
    apart = None if spread is None else defined(spread.x, ReshapeOp)
    if flat is None or spread is None or apart is None or tensor(apart.x).rank < 3:
        return None
    dims = tensor(apart.x).dims
    if apart.dims.data != (*dims[:-2], Expr.of(1), *dims[-2:]):
        return None
    return apart.x if repeats_whole_heads(dims, spread.dims.data, flat.dims.data) else None


def with_heads(value: SSAValue, site: Site) -> SSAValue:
    """The value with an axis of size 1 for the heads before its last two."""
    dims = tensor(value).dims
    return site.make(ReshapeOp, value, dims=(*dims[:-2], 1, *dims[-2:]))


# --- the rule -------------------------------------------------------------------------------------------------------


def attention_rules(*, finite: bool) -> Rules:
    """The rule for attention. finite: whether a finite hiding number hides as minus infinity does."""
    rules = Rules()

    @rules.on(MatmulOp)
    def attention(op: MatmulOp, site: Site) -> SSAValue | None:
        return _attention(op, site, finite)

    return rules


def _attention(op: MatmulOp, site: Site, finite: bool) -> SSAValue | None:
    flat = defined(op.a, ReshapeOp)
    weights = op.a if flat is None else flat.x
    cast = defined(weights, CastOp)
    softmax = defined(weights if cast is None else cast.x, SoftmaxOp)
    if softmax is None or softmax.log.data or softmax.axis.data != tensor(softmax.x).rank - 1:
        return None
    if not leads_to_product(softmax.x):
        return None
    if not all(is_read_once(x) for x in (op.a, weights, softmax.out)):
        site.refuse("attention: the probabilities are used outside")
        return None
    logits = logits_of(softmax.x, site, Logits(), finite)
    if logits is None or logits.product is None:
        site.refuse("attention: the logits are not a scaled, capped, masked product in this order")
        return None
    scores = logits.product
    if flat is not None and (tensor(weights).dims[:-2] != logits.lead or tensor(op.a).dims != tensor(scores.out).dims):
        site.refuse("attention: weights and logits have their heads along other axes")
        return None
    (q, q_scale), (k, k_scale) = unscaled(scores.a), unscaled(scores.b)
    k = k if scores.transpose_b.data else _swapped(k, site)
    v = _swapped(op.b, site) if op.transpose_b.data else op.b
    q, k, v = (unfolded(x, logits.lead, site) for x in (q, k, v))
    shared = unrepeated(k), unrepeated(v)
    if shared[0] is not None and shared[1] is not None:
        k, v = shared[0], shared[1]
    tq, tk = tensor(scores.out).dims[-2:]
    seen = visibility(logits.conditions, logits.hidden, logits.biases, tq, tk, site, finite=finite)
    if tensor(q).rank < 3 or not tensor(q).dims[-3].is_static:
        q, k, v = (with_heads(x, site) for x in (q, k, v))
        seen = seen.with_heads(lambda x: with_heads(x, site))
    rank = tensor(q).rank
    if (logits.finite or seen.finite) and leaves_rows_empty(seen, tq, tk):
        site.note("rows that see no key give 0, where the model's finite fill gives an average")
    try:
        out = site.make(
            AttentionOp,
            q,
            k,
            v,
            seen.bias(site),
            seen.valid(site, rank),
            seen.q_positions,
            seen.k_positions,
            scale=logits.scale * q_scale * k_scale,
            mask=seen.kind,
            window=seen.window,
            softcap=logits.softcap,
        )
    except IRError as fault:
        site.refuse(f"attention: {fault.problems[0].text}")
        return None
    made = defined(out, AttentionOp)
    refusal = None if made is None else refuses_heads(made)
    if refusal is not None:
        site.refuse(f"attention: {refusal.reason}")
        return None
    out = out if tensor(out).dims == tensor(op.out).dims else _as(out, op.out, site)
    if out.type != op.out.type:
        site.refuse(f"attention: it would give {tensor(out)}, the product gives {tensor(op.out)}")
        return None
    return out


def _as(value: SSAValue, like: SSAValue, site: Site) -> SSAValue:
    """The value in the other's dims, where they hold as many elements."""
    if tensor(value).elements != tensor(like).elements:
        return value
    return site.make(ReshapeOp, value, dims=tensor(like).dims)


def _swapped(value: SSAValue, site: Site) -> SSAValue:
    rank = tensor(value).rank
    return site.make(TransposeOp, value, permutation=(*range(rank - 2), rank - 1, rank - 2))

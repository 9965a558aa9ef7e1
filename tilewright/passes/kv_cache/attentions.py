"""What a step knows of a model's attentions: which can go on from step to step, what they are computed from, and which
see equally far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from xdsl.ir import SSAValue

from tilewright.errors import Problem, StepError
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.structure import FuncOp, PositionsOp
from tilewright.passes.kv_cache.compact import compact_groups
from tilewright.passes.kv_cache.distances import distances_of
from tilewright.passes.kv_cache.latents import latent_of
from tilewright.passes.kv_cache.layout import LATENTS, NAMES, Kept, PagedLayout, joined, names
from tilewright.passes.kv_cache.quantized import quantized_groups
from tilewright.passes.kv_cache.slopes import slopes_of


def groups_of(main: FuncOp, layout: PagedLayout) -> tuple[Kept, ...]:
    """The attentions by how far they see, those that cannot be taken apart left out."""
    found: dict[tuple[str, int], Kept] = {}
    attentions = (op for op in main.block.ops if isinstance(op, AttentionOp) and not any(unfit(op)))
    for layer, op in enumerate(attentions):
        if layout.codes is not None and distances_of(op) is not None:
            raise StepError(
                Problem(
                    "its bias hangs on distances, which attention over codes does not add", op=op.name, where=op.loc
                ),
                step="keep keys and values as the model computes them: tw.KVCache(dtype='model')",
            )
        mask, window, latent = op.mask.data, op.window.data or None, latent_of(op)
        if window is None and layout.codes is not None and latent is None:
            for key, group in quantized_groups(op, layer, layout, layout.codes).items():
                found[key] = group if key not in found else joined(found[key], group)
            continue
        unit = layout.unit(window)
        if window is not None and mask == "chunked":
            unit = math.lcm(unit, window)
        size = latent.width * tensor(op.k).dtype.bits // 8 if latent is not None else _token_bytes(op)
        group = Kept(
            "full" if window is None else f"{mask}{window}", window, unit, layout.columns(window, unit), (layer,),
            tuple(names(layer, NAMES if latent is None else LATENTS)), size,
        )  # fmt: skip
        given = {(mask, window or 0): group}
        if window is None and layout.compact is not None:
            given = compact_groups(op, layer, group, layout, layout.compact)
        for key, group in given.items():
            found[key] = group if key not in found else joined(found[key], group)
    if layout.compact is not None and not any(group.compact for group in found.values()):
        raise StepError(
            "no layer keeps all tokens' keys and values, so there is nothing to give up",
            step="leave compress= out of tw.KVCache()",
        )
    return tuple(found.values())


def _token_bytes(op: AttentionOp) -> int:
    """Of a token's keys and values as they are."""
    return sum((x.dims[1] * x.dims[3]).evaluate({}) * x.dtype.bits // 8 for x in (tensor(op.k), tensor(op.v)))


def sources_of(op: AttentionOp) -> list[SSAValue]:
    """What a step's attention is computed from, in the place of the model's operands."""
    slopes, latent, far = slopes_of(op), latent_of(op), distances_of(op)
    left_out = [] if slopes is None and far is None else [op.bias]
    made = [slopes] if slopes is not None else [] if far is None else [*far.leaves]
    if latent is not None:
        left_out += [op.k, op.v]
        made += [latent.latent, latent.weight, *([] if latent.shared is None else [latent.shared])]
    return [*(x for x in op.operands if not any(x is y for y in left_out)), *made]


def unfit(op: AttentionOp) -> Iterator[str]:
    """Why an attention cannot go on from step to step."""
    q, k = tensor(op.q), tensor(op.k)
    if op.mask.data == "none":
        yield "tokens see later ones"
    if q.rank != 4:
        yield f"q is {q}, not [batch, heads, tokens, features]"
    if q.dims[-2] != k.dims[-2]:
        yield f"queries and keys are of different sequences ({q.dims[-2]} and {k.dims[-2]})"
    for name in ("bias", "valid", "segments"):
        if getattr(op, name) is not None and (name != "bias" or not _counted(op)):
            yield f"its {name} relates tokens to tokens"
    if op.lse.data:
        yield "its logarithms of sums are read"
    for name in ("q_positions", "k_positions"):
        value = getattr(op, name)
        if value is not None and not isinstance(value.owner, PositionsOp):
            yield f"its {name.replace('_', ' ')} are not those that tokens have by themselves"


def _counted(op: AttentionOp) -> bool:
    """Whether a step can have the bias without pairs of tokens."""
    return slopes_of(op) is not None or distances_of(op) is not None

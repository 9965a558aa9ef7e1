"""Which keys a tile of queries visits, by its mask's own rule, and which of the pairs in a block count."""

from __future__ import annotations

from xdsl.ir import BlockArgument, SSAValue

from tilewright.ir.dims import Expr, floordiv, maximum, minimum
from tilewright.ir.dtypes import I32
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.base import tensor
from tilewright.ir.tile.base import tile as tile_type
from tilewright.passes.attention_tiling.sizes import placed
from tilewright.passes.lower_to_tile.emit import Emitter
from tilewright.passes.lower_to_tile.online_softmax import OnlineSoftmax


def key_range(op: AttentionOp, rows: int, segment: int) -> tuple[Expr, Expr]:
    """First and one-past-last key a program of queries a0.. may see, the first on a segment border."""
    tq, tk = tensor(op.q).dims[-2], tensor(op.k).dims[-2]
    where = placed(op)
    if op.mask.data == "none" or where is None:
        return Expr.of(0), tk
    # without positions the last query stands at the last key
    shift = tk - tq if where == "end" else Expr.of(0)
    first = Expr.of("a0") + shift
    hi = minimum(tk, maximum(0, first + rows))
    if op.mask.data == "sliding":
        return maximum(0, floordiv(first - op.window.data + 1, segment) * segment), hi
    if op.mask.data == "chunked":
        start = floordiv(first, op.window.data) * op.window.data
        return maximum(0, floordiv(start, segment) * segment), hi
    return Expr.of(0), hi


def seen_by_all(op: AttentionOp, segment: int) -> Expr | None:
    """One past the last key up to which every query from a0 on may see all keys there are, as far as the mask's own
    rule goes; None where that rule leaves no such stretch, where positions are not known, and where segments are whole
    anyway."""
    tq, tk = tensor(op.q).dims[-2], tensor(op.k).dims[-2]
    if op.mask.data == "none":
        return None if tk.constant is not None and tk.constant % segment == 0 else tk
    where = placed(op)
    if op.mask.data != "causal" or where is None:
        return None
    return minimum(tk, Expr.of("a0") + 1 + (tk - tq if where == "end" else Expr.of(0)))


def visible(
    softmax: OnlineSoftmax, op: AttentionOp, e: Emitter, keys: Expr, t_at: int | None, *, whole: bool
) -> tuple[SSAValue | None, SSAValue | None]:
    """Which (query, key) pairs of the block count, and which keys count for any query; None where all do.

    t_at: the axis of queries. whole: whether the block's keys all exist, and the mask hides none of them.
    """
    b, segment = e.b, softmax.segment
    key_index = b.coordinates(e.at[e.column], 1, (1, segment))
    seen: SSAValue | None = None
    per_key: SSAValue | None = None

    def both(x: SSAValue | None, y: SSAValue) -> SSAValue:
        return y if x is None else b.map("and", x, y)

    if not whole and (keys.constant is None or keys.constant % segment):
        seen = b.map("lt", key_index, b.splat(keys, (1, 1)))
    if op.valid is not None:
        valid = e.load(op.valid, 0.0) if isinstance(op.valid, BlockArgument) else e.tile(op.valid)
        seen = both(seen, valid)
        if tile_type(valid).extents[0] == 1:
            per_key = b.broadcast(valid, (1, segment))
    if op.mask.data != "none" and not whole:
        tq = tensor(op.q).dims[-2]
        if op.q_positions is not None:
            q_at = b.cast(e.tile(op.q_positions), I32)
        elif t_at is not None:
            places = b.coordinates(e.at[t_at], 0, (e.extent[t_at], 1))
            q_at = b.map("add", places, b.splat(keys - tq, (1, 1)))
        else:
            q_at = b.splat(keys - tq, (1, 1))
        k_at = key_index
        if op.k_positions is not None:
            given = op.k_positions
            k_at = b.cast(e.load(given, 0.0) if isinstance(given, BlockArgument) else e.tile(given), I32)
        seen = both(seen, softmax.visible(q_at, k_at))
    return seen, per_key

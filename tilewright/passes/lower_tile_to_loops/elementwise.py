"""Evaluates tiles at sites: everything that is not materialised is computed here, where its consumer asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from xdsl.ir import Operation, SSAValue

from tilewright.errors import IRError
from tilewright.ir.dtypes import DTYPES, I8, I32, U8
from tilewright.ir.loops import Value
from tilewright.ir.tile import compute
from tilewright.ir.tile.base import element, tile
from tilewright.ir.tile.formats import FORMATS
from tilewright.ir.tile.memory import LoadOp, StageOp
from tilewright.ir.tile.places import LookupOp
from tilewright.passes.lower_tile_to_loops import rearrangement, scalar_functions
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.loads import load
from tilewright.passes.lower_tile_to_loops.lookups import lookup
from tilewright.passes.lower_tile_to_loops.pairs import multiplied_by_unit
from tilewright.passes.lower_tile_to_loops.sites import ORIGIN, Coord, Site, lane_positions


def evaluate(cx: Lowering, value: SSAValue, site: Site) -> Value:
    """The elements of a tile at a site: a vector of the site's lanes, or a scalar that all lanes share.

    What was evaluated before in this sweep and is still in scope is found again.
    """
    return cx.b.once((cx.sweep, value, site.key), lambda: _compute(cx, value, site))


def lanes_at(cx: Lowering, value: SSAValue, site: Site) -> Value:
    """Like `evaluate`, with shared scalars broadcast to the site's lanes."""
    found = evaluate(cx, value, site)
    return cx.b.broadcast(found, site.lanes) if found.type.lanes < site.lanes else found


def _compute(cx: Lowering, value: SSAValue, site: Site) -> Value:
    stored = cx.tiles.get(value)
    if stored is not None:
        return stored.read(cx.b, site)
    op = value.owner
    rule = _RULES.get(type(op)) if isinstance(op, Operation) else None
    if rule is None or not isinstance(op, Operation):
        name = op.name if isinstance(op, Operation) else "a block argument"
        raise IRError(f"{name} of @{cx.kernel.sym_name.data} was not materialised", step="report this kernel")
    return rule(cx, op, site)


def operand_site(site: Site, operand: SSAValue, extents: tuple[int, ...]) -> Site:
    """The site in an operand that stretches to `extents`: axes of extent 1 are read at 0."""
    own = tile(operand).extents
    if own == extents:
        return site
    return site.moved(tuple(ORIGIN if n == 1 else c for n, c in zip(own, site.coords, strict=True)))


def _map(cx: Lowering, op: compute.MapOp, site: Site) -> Value:
    extents = tile(op.out).extents
    args = [evaluate(cx, a, operand_site(site, a, extents)) for a in op.args]
    if not scalar_functions.computes(op.fn.data, args[-1].type.dtype):
        raise cx.unsupported(op, f"{op.fn.data} has no expansion for {args[-1].type.dtype}; cast to f32 around it")
    return scalar_functions.apply(cx.b, op.fn.data, args)


def _cast(cx: Lowering, op: compute.CastOp, site: Site) -> Value:
    source = op.source.owner
    normal = isinstance(source, compute.MapOp) and source.fn.data in scalar_functions.NORMAL
    flush = not normal and all(multiplied_by_unit(use.operation, op.out, cx.machine.rules) for use in op.out.uses)
    return cx.b.widened(evaluate(cx, op.source, site), DTYPES[op.dtype.data], normal=normal, flush=flush)


def _broadcast(cx: Lowering, op: compute.BroadcastOp, site: Site) -> Value:
    return evaluate(cx, op.source, operand_site(site, op.source, tile(op.out).extents))


def _constant(cx: Lowering, op: compute.ConstantOp, site: Site) -> Value:
    dtype = DTYPES[op.dtype.data]
    number = element(op.value.data, dtype)
    return cx.b.const(float(number) if dtype.is_float else int(number), dtype)


def _elements(cx: Lowering, op: compute.ElementsOp, site: Site) -> Value:
    dtype, (coord,) = DTYPES[op.dtype.data], site.coords
    if coord.static is None:
        raise cx.unsupported(op, "stated elements at places of run time")
    numbers = [float(n) if dtype.is_float else int(n) for n in (element(v, dtype) for v in op.values.data)]
    if not coord.step:
        return cx.b.const(numbers[coord.static], dtype)
    places = [coord.static + lane * coord.step for lane in range(site.lanes)]
    return cx.b.constants([numbers[p] if p < len(numbers) else 0 for p in places], dtype)


def _index(cx: Lowering, op: compute.IndexTileOp, site: Site) -> Value:
    b, coord = cx.b, site.coords[op.axis.data]
    base = cx.indices[op.base].value
    if coord.spread is not None:
        return b.cast(b.add(coord.spread, base), I32)
    first = b.cast(b.add(base, coord.at), I32)
    if not coord.step:
        return first
    return b.add(b.broadcast(first, site.lanes), b.constants([n * coord.step for n in range(site.lanes)], I32))


def _splat(cx: Lowering, op: compute.SplatOp, site: Site) -> Value:
    return cx.b.cast(cx.indices[op.source].value, tile(op.out).dtype)


def _lookup(cx: Lowering, op: LookupOp, site: Site) -> Value:
    return lookup(cx, op, site, evaluate(cx, op.indices, operand_site(site, op.indices, tile(op.out).extents)))


def _stage(cx: Lowering, op: StageOp, site: Site) -> Value:
    return evaluate(cx, op.source, site)


def _unpack(cx: Lowering, op: compute.UnpackOp, site: Site) -> Value:
    """Elements of packed words: word i // per at shift (i % per) * bits."""
    b, entry, axis = cx.b, FORMATS[op.format.data], op.axis.data
    coord, per, lanes = site.coords[axis], entry.per_storage, site.lanes

    def words(at: Coord, count: int) -> Value:
        coords = (*site.coords[:axis], at, *site.coords[axis + 1 :])
        narrow = Site(coords, count, None if count < lanes else site.mask)
        return evaluate(cx, op.source, narrow if count > 1 else site.moved(coords))

    whole_words = coord.step == 1 and coord.align % per == 0 and lanes % per == 0 and lanes > per
    if whole_words and site.mask is None:
        at = coord.at // per if isinstance(coord.at, int) else b.floordiv(coord.at, per)
        found = words(Coord(at, 1, align=max(coord.align // per, 1)), lanes // per)
        word = b.cast(b.shuffle(found, [lane // per for lane in range(lanes)]), I32)
        shift: Value = b.constants([lane % per * entry.bits for lane in range(lanes)], I32)
    elif coord.varies:
        where = lane_positions(b, coord, lanes)
        word = b.cast(words(Coord(0, spread=b.floordiv(where, per)), lanes), I32)
        shift = b.cast(b.mul(b.mod(where, per), entry.bits), I32)
    else:
        at = coord.at // per if isinstance(coord.at, int) else b.floordiv(coord.at, per)
        rest = coord.at % per if isinstance(coord.at, int) else b.mod(coord.at, per)
        word = b.cast(words(Coord(at), lanes), I32)
        shift = b.cast(b.mul(b.index(rest), entry.bits), I32)
    if word.type.lanes < shift.type.lanes:
        word = b.broadcast(word, shift.type.lanes)
    elif shift.type.lanes < word.type.lanes:
        shift = b.broadcast(shift, word.type.lanes)
    # To the top of the word and back down: the shift down extends the field's sign, or zeros.
    top = b.shl(word, b.sub(b.const(32 - entry.bits, I32, shift.type.lanes), shift))
    field = (b.shr if entry.element.kind == "int" else b.ushr)(top, 32 - entry.bits)
    return b.narrowed(field, entry.element)


def _pack(cx: Lowering, op: compute.PackOp, site: Site) -> Value:
    """Storage words from elements: field i of word w is element w * per + i."""
    b, entry, axis = cx.b, FORMATS[op.format.data], op.axis.data
    coord, per = site.coords[axis], entry.per_storage
    total: Value | None = None
    for number in range(per):
        if coord.spread is not None:
            at = Coord(0, spread=b.add(b.mul(coord.spread, per), number))
        else:
            first = coord.at * per + number if isinstance(coord.at, int) else b.add(b.mul(coord.at, per), number)
            at = Coord(first, coord.step * per)
        found = evaluate(cx, op.source, site.moved((*site.coords[:axis], at, *site.coords[axis + 1 :])))
        field = b.shl(b.and_(b.cast(found, I32), (1 << entry.bits) - 1), number * entry.bits)
        total = field if total is None else b.or_(total, field)
    assert total is not None
    return b.cast(total, U8 if entry.storage is U8 else I8)


_RULES: Final[dict[type, Callable[[Lowering, Any, Site], Value]]] = {
    compute.MapOp: _map,
    compute.CastOp: _cast,
    compute.BroadcastOp: _broadcast,
    compute.ConstantOp: _constant,
    compute.ElementsOp: _elements,
    compute.IndexTileOp: _index,
    compute.SplatOp: _splat,
    compute.UnpackOp: _unpack,
    compute.PackOp: _pack,
    compute.ReshapeOp: lambda cx, op, site: evaluate(cx, op.source, rearrangement.reshaped(cx.b, op, site)),
    compute.TransposeOp: lambda cx, op, site: evaluate(cx, op.source, rearrangement.transposed(op, site)),
    compute.SliceOp: lambda cx, op, site: evaluate(cx, op.source, rearrangement.sliced(cx.b, op, site)),
    compute.ConcatOp: lambda cx, op, site: rearrangement.concatenated(cx.b, op, site, lambda v, s: evaluate(cx, v, s)),
    LoadOp: load,
    LookupOp: _lookup,
    StageOp: _stage,
}
INLINE: Final = frozenset(_RULES)

"""Loops and branches: carried tiles stay in registers as loop carries, or in one scratch tile they update."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xdsl.ir import Block, SSAValue

from tilewright.ir.loops import Value
from tilewright.ir.tile.structure import ForOp, IfOp, YieldOp
from tilewright.ir.types import TileType
from tilewright.passes.lower_tile_to_loops.aliasing import in_place, scratch_behind
from tilewright.passes.lower_tile_to_loops.context import Lowering
from tilewright.passes.lower_tile_to_loops.indices import Index
from tilewright.passes.lower_tile_to_loops.materialise import copy, fill, keep_clean, register_tile, storage_for
from tilewright.passes.lower_tile_to_loops.storage import RegisterTile, ScratchTile, Storage
from tilewright.passes.lower_tile_to_loops.turned_dots import before_loop

LowerBlock = Callable[[Lowering, Block], None]


def lower_for(cx: Lowering, op: ForOp, lower_block: LowerBlock) -> None:
    """A loop; what it carries is started, handed on and left behind in the home that placement chose."""
    b = cx.b
    homes = [_started(cx, op, argument, init) for argument, init in zip(op.carried, op.carries, strict=True)]
    lo, hi = cx.indices[op.lo], cx.indices[op.hi]
    starts = [v for init, home in zip(op.carries, homes, strict=True) for v in _values(cx, init, home)]
    known = set(cx.few)
    before_loop(cx, op)
    with b.loop(lo.value, hi.value, op.step.data, starts, name="k") as loop:
        cx.indices[op.coordinate] = Index(loop.index, cx.facts.induction(lo.expr, hi.expr, op.step.data))
        _bind(cx, op.carried, homes, loop.carries)
        body = op.body.blocks[0]
        lower_block(cx, body)
        loop.next(*_handed_on(cx, op.yielded, homes))
        if body.last_op is not None:
            cx.release(cx.plan.dies.get(body.last_op, ()))
    for value in [v for v in cx.few if v not in known]:
        cx.drop(cx.few.pop(value))
    _bind(cx, op.results, homes, loop.results)


def lower_if(cx: Lowering, op: IfOp, lower_block: LowerBlock) -> None:
    """A branch on a condition that the whole program shares."""
    b = cx.b
    homes: list[Storage | None] = [
        storage_for(cx, r) if isinstance(r.type, TileType) and r in cx.plan.homes else None for r in op.results
    ]
    branch = b.branch(b.compare("ne", cx.indices[op.condition].value, 0))
    for arm, region in ((branch.then, op.then), (branch.otherwise, op.otherwise)):
        with arm():
            block = region.blocks[0]
            lower_block(cx, block)
            given = block.last_op.operands if isinstance(block.last_op, YieldOp) else ()
            branch.give(*_handed_on(cx, given, homes))
    _bind(cx, op.results, homes, branch.results)


def _started(cx: Lowering, op: ForOp, argument: SSAValue, init: SSAValue) -> Storage | None:
    """The home of a carried tile, holding its first value; None for an index.

    Scratch whose value nothing else reads is carried on where it is.
    """
    if not isinstance(argument.type, TileType):
        return None
    held = cx.tiles.get(init)
    alone = all(use.operation is op for use in init.uses)
    if alone and cx.plan.homes[argument] == "scratch" and isinstance(held, ScratchTile) and cx.sole(held):
        keep_clean(cx, argument, held)
        return cx.hold(held)
    home = storage_for(cx, argument)
    if held is not None and type(held) is type(home):
        copy(cx, held, home)
    else:
        fill(cx, home, init)
    return home


def _values(cx: Lowering, init: SSAValue, home: Storage | None) -> list[Value]:
    """The loop values that a carry starts from: an index, the vectors of a register tile, nothing for scratch."""
    if home is None:
        return [cx.indices[init].value]
    return home.all() if isinstance(home, RegisterTile) else []


def _bind(cx: Lowering, names: Sequence[SSAValue], homes: Sequence[Storage | None], values: Sequence[Value]) -> None:
    """Gives loop values to the names they stand for, in the order `_handed_on` gives them."""
    left = list(values)
    for name, home in zip(names, homes, strict=True):
        if not isinstance(name.type, TileType):
            cx.indices[name] = cx.data(left.pop(0))
        elif isinstance(home, RegisterTile):
            held = register_tile(cx, name)
            count = len(held.positions())
            held.take(left[:count])
            del left[:count]
            cx.tiles[name] = held
        elif home is not None:
            cx.tiles[name] = home


def _handed_on(cx: Lowering, given: Sequence[SSAValue], homes: Sequence[Storage | None]) -> list[Value]:
    """The values that a body hands on; tiles whose home is scratch are written there.

    Registers are read before any scratch is written, and a scratch tile is written when no other value that is still to
    be written reads it.
    """
    values: list[Value] = []
    pending: list[tuple[SSAValue, ScratchTile]] = []
    for value, home in zip(given, homes, strict=True):
        if not isinstance(value.type, TileType):
            values.append(cx.indices[value].value)
        elif isinstance(home, RegisterTile):
            held = cx.tiles.get(value)
            target = RegisterTile(home.extents, home.dtype, home.lanes, scalars=home.axis is None)
            if isinstance(held, RegisterTile) and held.positions() == target.positions():
                target = held
            else:
                fill(cx, target, value)
            values += target.all()
        elif home is not None and cx.tiles.get(value) is not home:
            pending.append((value, home))
    while pending:
        free = [
            (v, home) for v, home in pending
            if not any(home.memory in scratch_behind(cx, o) for o, _ in pending if o is not v)
            and (home.memory not in scratch_behind(cx, v) or in_place(cx, v, home.memory))
        ]  # fmt: skip
        if free:
            for value, home in free:
                fill(cx, home, value)
            pending = [p for p in pending if p not in free]
            continue
        # Values that read each other's homes: one is computed beside them and copied afterwards.
        value, home = pending.pop(0)
        aside = cx.scratch(home.extents, home.dtype)
        fill(cx, aside, value)
        _write_rest(cx, pending)
        copy(cx, aside, home)
        cx.drop(aside)
        return values
    return values


def _write_rest(cx: Lowering, pending: list[tuple[SSAValue, ScratchTile]]) -> None:
    """Writes values whose homes may be read by each other: all are computed aside first."""
    aside = [(cx.scratch(home.extents, home.dtype), value, home) for value, home in pending]
    for made, value, _ in aside:
        fill(cx, made, value)
    for made, _, home in aside:
        copy(cx, made, home)
        cx.drop(made)

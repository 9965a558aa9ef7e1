"""Decides, before any code is emitted, where each tile value lives: inline, in registers, or in scratch.

Values are decided consumers first. An inline value is evaluated inside its *roots*: the ops that drive evaluation
(stores, reductions, dots, yields) and the inline ops that were materialised. A value is materialised when evaluating it
again would cost more than keeping it: several roots, a root inside a loop, or an axis along which a consumer repeats
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Final, Literal

from xdsl.ir import Block, Operation, SSAValue

from tilewright.ir.machine import TileRules
from tilewright.ir.scalars import SCALARS
from tilewright.ir.tile import compute
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.memory import VIEWS, LoadOp, StageOp, StoreOp, ViewPagesOp, ViewRowsOp, root
from tilewright.ir.tile.places import LookupOp, UpdateOp
from tilewright.ir.tile.structure import ForOp, IfOp, KernelOp, YieldOp
from tilewright.ir.types import TileType
from tilewright.passes.lower_tile_to_loops.elementwise import INLINE
from tilewright.passes.lower_tile_to_loops.observed import Observed
from tilewright.passes.lower_tile_to_loops.operands import is_direct, joins_rows, unit_reshape
from tilewright.passes.lower_tile_to_loops.pairs import paired, stored_panels
from tilewright.passes.lower_tile_to_loops.sites import lane_axis
from tilewright.passes.lower_tile_to_loops.transposes import turns_lanes

Home = Literal["registers", "scratch"]

_SPARE: Final = 4  # registers that stay free for operands beside accumulators
_REPEATED: Final = 4  # FLOPs above which a value with several roots is kept
_EXPANDED: Final = 2  # FLOPs above which a value that is repeated along an axis is kept
_SCALARS: Final = 4  # rows of a column that is kept as scalars
_VECTORS: Final = 4  # vectors of a tile that is kept in registers beside accumulators


@dataclass(slots=True)
class Placement:
    """The decisions for a kernel.

    homes: where each materialised value lives; a tile value without a home is inline.
    dies: the values whose storage is free once an op has been lowered.
    roots: the ops inside which a value is evaluated or read, in no order.
    observed: how much of each value anyone looks at.
    """

    observed: Observed
    homes: dict[SSAValue, Home] = field(default_factory=dict)
    dies: dict[Operation, list[SSAValue]] = field(default_factory=dict)
    roots: dict[SSAValue, set[Operation]] = field(default_factory=dict)


def place(kernel: KernelOp, rules: TileRules) -> Placement:
    """The placement of a kernel's values for a machine's registers."""
    return _Placer(kernel, rules).run()


def vectors(value: SSAValue, lanes: int) -> int:
    """Vectors that a tile takes in registers."""
    extents = tile(value).extents
    axis = lane_axis(extents)
    return 1 if axis is None else prod(extents[:axis]) * -(-extents[axis] // lanes)


class _Placer:
    def __init__(self, kernel: KernelOp, rules: TileRules) -> None:
        self.kernel, self.rules, self.plan = kernel, rules, Placement(Observed(kernel))
        self.expanded: dict[SSAValue, bool] = {}
        self.stored = {root(op.target) for op in kernel.walk() if isinstance(op, (StoreOp, UpdateOp))}

        pairs = [found(op, rules) for op in kernel.walk() for found in (paired, stored_panels)]
        # Packed pairs are read as they lie: the ops that say what they mean are not run.
        self.unmoved = {value for pair in pairs if pair is not None for value in pair.through}

    def run(self) -> Placement:
        self.block(self.kernel.block, self.rules.registers - _SPARE)
        self.lifetimes()
        return self.plan

    def block(self, block: Block, free: int) -> None:
        for op in reversed(list(block.ops)):
            for result in op.results:
                if isinstance(result.type, TileType):
                    self.trace(result)
            if isinstance(op, ForOp):
                self.loop(op, free)
            elif isinstance(op, IfOp):
                for result in op.results:
                    if isinstance(result.type, TileType):
                        self.settle(result, _VECTORS)
                for region in op.regions:
                    self.block(region.blocks[0], free)
            elif type(op) in INLINE:
                if self.keeps(op):
                    self.settle(op.results[0], _VECTORS)
            else:
                # a dot that continues a sum takes that sum's registers, even where no others are left
                budget = max(free, 1) if isinstance(op, (compute.DotOp, compute.DotScaledOp)) else _VECTORS
                if paired(op, self.rules) is not None:
                    budget = 0  # a matrix unit stores its sums to memory
                if isinstance(op, (compute.ScanOp, compute.SortOp, compute.TopkOp)):
                    budget = 0  # they write at positions of run time
                for result in op.results:
                    if isinstance(result.type, TileType):
                        self.settle(result, budget)

    def loop(self, op: ForOp, free: int) -> None:
        """Carried tiles share a home with what initialises and what continues them. Inner loops choose first."""
        for carried in op.carried:
            self.trace(carried)
        inner = max((self.carried(o) for o in op.walk() if isinstance(o, ForOp) and o is not op), default=None)
        tiles = [(a, r) for a, r in zip(op.carried, op.results, strict=True) if isinstance(a.type, TileType)]
        nested = [o for o in op.walk() if isinstance(o, ForOp) and o is not op]
        if nested:
            for region in op.regions:
                self.block(region.blocks[0], free)
            inner = max(self.carried(o) for o in nested)
        left = free - (inner or 0)
        for argument, result in sorted(tiles, key=lambda pair: vectors(pair[0], self.rules.lanes)):
            # A body with an inner loop has been decided, so its roots are known; else they are traced when it is.
            size = vectors(argument, self.rules.lanes)
            fits = size <= left and _compact(argument) and self.aligned(argument) and self.aligned(result)
            self.plan.homes[argument] = self.plan.homes[result] = "registers" if fits else "scratch"
            left -= size if fits else 0
        if not nested:
            for region in op.regions:
                self.block(region.blocks[0], left)
        for carried in op.carried:
            self.trace(carried)

    def carried(self, op: ForOp) -> int:
        """Vectors that a loop carries in registers."""
        return sum(vectors(a, self.rules.lanes) for a in op.carried if self.plan.homes.get(a) == "registers")

    # --- where a value is used ----------------------------------------------------------------------------------------

    def trace(self, value: SSAValue) -> None:
        """Finds the roots of a value, and whether a consumer repeats it; its consumers have been decided."""
        roots: set[Operation] = set()
        expanded = False
        for use in value.uses:
            op = use.operation
            if type(op) in INLINE:
                result = op.results[0]
                expanded |= _repeats(op, value)
                if result not in self.plan.homes:
                    roots |= self.plan.roots.get(result, set())
                    expanded |= self.expanded.get(result, False)
                    continue
            roots.add(op)
        self.plan.roots[value], self.expanded[value] = roots, expanded

    def keeps(self, op: Operation) -> bool:
        """Whether an op that could be inline is materialised."""
        value = op.results[0]
        roots = self.plan.roots[value]
        if not roots:
            return False
        if value in self.unmoved:
            return False
        if isinstance(op, (LoadOp, LookupOp)) and root(op.source) in self.stored:
            return True  # a store might come between the load and its evaluation
        # rows picked by indices lie apart, and finding each anew for every element costs more than a copy
        apart = not is_direct(value) or (isinstance(op, LoadOp) and _picked(op))
        # a dot's left rows are found once a block, not once a step
        joined = joins_rows(value)
        for use in value.uses if apart else ():
            left = use.index == 0 and isinstance(use.operation, compute.DotOp)
            if _needs_memory(use.operation, use.index, self.rules) and not (joined and left):
                return True
        if isinstance(op, compute.TransposeOp) and turns_lanes(op, self.rules.lanes):
            return True
        cost = self.cost(value, set())
        if self.expanded[value] and cost > (0 if self.column(value) else _EXPANDED) and not isinstance(op, LoadOp):
            return True
        if len(met := self.met_on_the_way(value)) == 1 and None not in met:
            return False
        inside_loop = any(_in_inner_loop(root, op) for root in roots)
        return (len(roots) > 1 or inside_loop) and cost > _REPEATED

    def met_on_the_way(self, value: SSAValue) -> set[SSAValue | None]:
        """The values that are `folded_on_the_way` and are all that this one is evaluated for; None among them: more."""
        if self.folded_on_the_way(value):
            return {value}
        found: set[SSAValue | None] = set()
        for use in value.uses:
            op = use.operation
            inline = type(op) in INLINE and op.results[0] not in self.plan.homes
            found |= self.met_on_the_way(op.results[0]) if inline else {None}
        return found or {None}

    def folded_on_the_way(self, value: SSAValue) -> bool:
        """Whether a value is cast to what lies in scratch, and otherwise only folded along its rows.

        One sweep does both then, see `definitions`, and the value itself is not kept.
        """
        axis = lane_axis(tile(value).extents)
        casts = [u.operation for u in value.uses if isinstance(u.operation, compute.CastOp)]
        folds = [u.operation for u in value.uses if isinstance(u.operation, compute.ReduceOp)]
        if len(casts) != 1 or not folds or len(casts) + len(folds) != len(list(value.uses)):
            return False
        block, home = casts[0].parent, self.plan.homes.get(casts[0].results[0])
        along = all(f.parent is block and f.axis.data == axis and f.fn.data != "attention" for f in folds)
        return home == "scratch" and along and all(casts[0].is_before_in_block(f) for f in folds)

    def column(self, value: SSAValue) -> bool:
        """A few scalars, one a row."""
        extents = tile(value).extents
        return (not extents or extents[-1] == 1) and _compact(value) and self.aligned(value)

    def cost(self, value: SSAValue, seen: set[SSAValue]) -> int:
        """FLOPs of evaluating a value again, down to what has a home or is a root itself."""
        op = value.owner
        if value in self.plan.homes or value in seen or not isinstance(op, Operation) or type(op) not in INLINE:
            return 0
        seen.add(value)
        below = sum(self.cost(o, seen) for o in op.operands if isinstance(o.type, TileType))
        match op:
            case compute.MapOp():
                return below + max(SCALARS[op.fn.data].flops, 1)
            case compute.UnpackOp() | compute.PackOp() | LookupOp():
                return below + 4
            case compute.CastOp() | LoadOp() | compute.IndexTileOp():
                return below + 1
            case _:
                return below

    def settle(self, value: SSAValue, budget: int) -> None:
        """Gives a materialised value its home. What becomes a carry in registers takes the registers of that carry."""
        fits = vectors(value, self.rules.lanes) <= budget or (budget > 0 and self.continues(value))
        fits = fits and _compact(value) and self.aligned(value)
        self.plan.homes[value] = "registers" if fits else "scratch"

    def continues(self, value: SSAValue) -> bool:
        """Whether a value is yielded to a carry that lives in registers."""
        for use in value.uses:
            op, loop = use.operation, use.operation.parent_op()
            if isinstance(op, YieldOp) and isinstance(loop, ForOp):
                return self.plan.homes.get(loop.carried[use.index]) == "registers"
        return False

    def aligned(self, value: SSAValue) -> bool:
        """Whether every consumer reads the value lane by lane at static positions."""
        for use in value.uses:
            op = use.operation
            match op:
                case compute.MapOp() | compute.CastOp() | compute.BroadcastOp() | StageOp() | LookupOp():
                    if op.results[0] not in self.plan.homes and not self.aligned(op.results[0]):
                        return False
                case compute.ReshapeOp():
                    if not unit_reshape(op) or (op.out not in self.plan.homes and not self.aligned(op.out)):
                        return False
                case compute.DotOp():
                    if use.index != 2:
                        return False
                case compute.ReduceOp() | compute.AccumulateOp() | StoreOp() | YieldOp() | ForOp():
                    pass
                case _:
                    return False
        return True

    # --- lifetimes ----------------------------------------------------------------------------------------------------

    def lifetimes(self) -> None:
        """The last op of its own block that reads each value with a home."""
        for value in self.plan.homes:
            owner = value.owner
            if isinstance(owner, Block):
                continue  # a carried value's storage belongs to its loop
            block = owner.parent
            if block is None:
                continue
            order = {op: n for n, op in enumerate(block.ops)}
            readers = [a for root in self.plan.roots.get(value, ()) for a in _ancestors(root) if a in order]
            last = max(readers, key=lambda op: order[op], default=owner)
            self.plan.dies.setdefault(last, []).append(value)


def _compact(value: SSAValue) -> bool:
    """Whether a tile fits registers by shape: columns are kept as scalars, so only short ones do."""
    extents = tile(value).extents
    return not extents or extents[-1] != 1 or prod(extents) <= _SCALARS


def _ancestors(op: Operation) -> Iterator[Operation]:
    current: Operation | None = op
    while current is not None:
        yield current
        current = current.parent_op()


def _in_inner_loop(root: Operation, op: Operation) -> bool:
    """Whether a loop around the root does not contain the op."""
    around = set(_ancestors(op))
    return any(isinstance(a, ForOp) and a not in around and a is not root for a in _ancestors(root))


def _repeats(op: Operation, value: SSAValue) -> bool:
    """Whether the op's result has more elements than the operand along some axis."""
    if not isinstance(op, (compute.MapOp, compute.BroadcastOp, LookupOp)):
        return False
    return any(n == 1 and m > 1 for n, m in zip(tile(value).extents, tile(op.results[0]).extents, strict=True))


def _picked(op: LoadOp) -> bool:
    """Whether a load goes through integers in memory."""
    source = op.source
    while isinstance(source.owner, VIEWS):
        if isinstance(source.owner, (ViewRowsOp, ViewPagesOp)):
            return True
        source = source.owner.source
    return False


def _needs_memory(op: Operation, index: int, rules: TileRules) -> bool:
    """Whether the op reads this operand element by element, many times over; what it converts then lies in memory."""
    if isinstance(op, compute.DotScaledOp):
        return index in (1, 3)
    if paired(op, rules) is not None:
        return index == 0
    if not isinstance(op, compute.DotOp) or tile(op.a).dtype != tile(op.acc).dtype:
        return False
    return index == 0 or (index == 1 and tile(op.acc).extents[0] > max(rows for _, rows, _ in rules.dot))

"""What one kernel's lowering knows: the builder, the machine, what every SSA value has become, and scratch memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xdsl.ir import BlockArgument, Operation, SSAValue

from tilewright.errors import LoweringError, Problem
from tilewright.ir.dims import Expr, maximum
from tilewright.ir.dtypes import DType
from tilewright.ir.loops import BufferArg, Scratch, Value
from tilewright.ir.machine import Machine
from tilewright.ir.operation import TwOperation
from tilewright.ir.tile.base import tile
from tilewright.ir.tile.memory import LoadOp
from tilewright.ir.tile.ranges import READ
from tilewright.ir.tile.structure import KernelOp
from tilewright.passes.lower_tile_to_loops.emission import Emission
from tilewright.passes.lower_tile_to_loops.indices import Facts, Index
from tilewright.passes.lower_tile_to_loops.storage import Pairs, RegisterTile, ScratchTile, Storage

if TYPE_CHECKING:
    from tilewright.passes.lower_tile_to_loops.counters import CounterRow
    from tilewright.passes.lower_tile_to_loops.placement import Placement
    from tilewright.passes.lower_tile_to_loops.tails import Limit
    from tilewright.passes.lower_tile_to_loops.views import View


@dataclass(slots=True)
class Lowering:
    """The state of one kernel's lowering.

    buffers, indices, views, tiles: what buffer, index, view and materialised tile values have become; a tile value that
    is in none of them is inline and evaluated where it is used. sweep: numbers the traversals. Results of evaluation
    are shared inside one traversal only, because scratch changes. op: the one that is being lowered. ahead: loads that
    ask for what follows in memory, each while one op is lowered. few: rows that dots in the loops around here multiply
    by, as pairs of k. inside: loads whose elements are known to exist where code is emitted. together: programs that
    run side by side.
    """

    kernel: KernelOp
    machine: Machine
    b: Emission
    facts: Facts
    plan: Placement
    counters: CounterRow | None = None
    buffers: dict[SSAValue, BufferArg] = field(default_factory=dict)
    indices: dict[SSAValue, Index] = field(default_factory=dict)
    views: dict[SSAValue, View] = field(default_factory=dict)
    tiles: dict[SSAValue, Storage] = field(default_factory=dict)
    pairs: dict[tuple[SSAValue, bool], Pairs] = field(default_factory=dict)
    few: dict[SSAValue, ScratchTile] = field(default_factory=dict)
    inside: set[LoadOp] = field(default_factory=set)
    done: set[Operation] = field(default_factory=set)
    sweep: int = 0
    op: Operation | None = None
    ahead: Mapping[LoadOp, Operation] = field(default_factory=dict)
    together: int = 1
    _free: dict[tuple[str, int], list[Scratch]] = field(default_factory=dict)
    _holders: dict[Scratch, int] = field(default_factory=dict)

    @property
    def lanes(self) -> int:
        """Elements of a full vector."""
        return self.machine.rules.lanes

    def constant(self, value: int) -> Index:
        """A static index."""
        return Index(self.b.index(value), Expr.of(value))

    def size(self, expr: Expr) -> Index:
        """An index from an expression over the kernel's dims."""
        return Index(self.b.expr(expr), expr)

    def resolved(self, limit: Limit) -> Index:
        """A limit as an index, where its coordinate is known."""
        at = self.indices[limit.at]
        left, expr = self.b.sub(self.b.expr(limit.extent), at.value), limit.extent - at.expr
        if isinstance(limit.at, BlockArgument):
            return Index(left, expr)
        return Index(self.b.max(left, 0), maximum(0, expr))  # a coordinate lies inside, what is computed may not

    def live(self, value: SSAValue) -> dict[int, Index]:
        """How much of a tile anyone looks at, along the axes where that may be less than all of it."""
        found: dict[int, Index] = {}
        for axis, extent in enumerate(tile(value).extents):
            limit = self.plan.observed.limit(value, axis)
            if limit is not None and extent > 1 and limit.at in self.indices:
                index = self.resolved(limit)
                if not self.facts.at_least(index.expr, extent):
                    found[axis] = index
        return found

    def integer(self, value: Value) -> Index:
        """An index of which nothing is known."""
        return Index(value, self.facts.opaque())

    def data(self, value: Value) -> Index:
        """An integer from memory, or one that a loop carries, to compute indices with: what is larger than any extent
        is brought to a number that still is, so that arithmetic on it stays inside 64 bits.
        """
        return self.integer(self.b.min(self.b.max(value, -READ), READ))

    def unsupported(self, op: Operation, reason: str) -> LoweringError:
        """The error for what this lowering cannot do."""
        where = op.loc if isinstance(op, TwOperation) else None
        name = f"{op.name} in @{self.kernel.sym_name.data}"
        return LoweringError(Problem(reason, op=name, where=where), step="choose another tiling for this kernel")

    # --- scratch ------------------------------------------------------------------------------------------------------

    def scratch(self, extents: tuple[int, ...], dtype: DType) -> ScratchTile:
        """A scratch tile; memory that a dead tile left behind is taken first."""
        elements = ScratchTile.elements(extents)
        free = self._free.get((dtype.name, elements))
        if free:
            memory = free.pop()
        else:
            memory = self.b.scratch(self.b.fresh("s"), dtype, elements)
        self._holders[memory] = 1
        return ScratchTile(memory, extents)

    def hold(self, storage: Storage) -> Storage:
        """Says that one more value lives in the storage."""
        if isinstance(storage, ScratchTile):
            self._holders[storage.memory] += 1
        return storage

    def sole(self, storage: ScratchTile) -> bool:
        """Whether one value alone lives in the storage."""
        return self._holders[storage.memory] == 1

    def drop(self, storage: Storage) -> None:
        """Says that a value in the storage is dead."""
        if isinstance(storage, ScratchTile):
            memory = storage.memory
            self._holders[memory] -= 1
            if not self._holders[memory]:
                self._free.setdefault((memory.dtype.name, memory.elements), []).append(memory)

    def release(self, values: Sequence[SSAValue]) -> None:
        """Drops what dead values lived in."""
        for value in values:
            storage = self.tiles.pop(value, None)
            if storage is not None:
                self.drop(storage)

    @contextmanager
    def temporary(self, extents: tuple[int, ...], dtype: DType) -> Iterator[ScratchTile]:
        """Scratch for the time of a block."""
        made = self.scratch(extents, dtype)
        yield made
        self.drop(made)

    def registers(self, extents: tuple[int, ...], dtype: DType, lanes: int, *, scalars: bool = False) -> RegisterTile:
        """An empty register tile."""
        return RegisterTile(extents, dtype, lanes, scalars=scalars)

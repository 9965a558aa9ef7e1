"""States in place: which updates change a state's own memory, what has to be copied so that they may, and their kernel.

As values, the versions of a state are all there at once; in memory there is one. So before a launch changes it, every
reader of the version it replaces must have run, and a version that is read later, or returned, is copied while it is
there. An update whose chain does not start at a state and end in the write of the same state works on a copy. Every
copy is a kernel like others: it is counted, and the report has a note of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xdsl.ir import Block, BlockArgument, Operation, Region, SSAValue, Use

from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.indexing import StateUpdateOp
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.structure import IN_PLACE, FuncOp, GroupOp, ReturnOp, StateReadOp, StateWriteOp, YieldOp
from tilewright.ir.passing import Context
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.compute import LANES
from tilewright.passes.lower_to_tile.access import unsupported
from tilewright.passes.lower_to_tile.frame import Lowered, Variant, dims_of, padded
from tilewright.passes.lower_to_tile.memory_lines import Lines
from tilewright.passes.lower_to_tile.scattering import SHARES, WIDEST, column_share, puts
from tilewright.passes.plan_memory import storage_of
from tilewright.passes.rewriting import erase

_LEAST: Final = 128  # bytes of a row that a program writes


def settle_states(function: FuncOp, ctx: Context) -> None:
    """Makes every update of a function one that its kernel may do in place, by copies where values need them."""
    _forward(function)
    _Settling(function, ctx).run()


def _forward(function: FuncOp) -> None:
    """Reads after a write become the written value; of several writes the last stays, and stands at the end."""
    written: dict[str, StateWriteOp] = {}
    for op in list(function.block.ops):
        if isinstance(op, StateReadOp) and op.label.data in written:
            op.out.replace_all_uses_with(written[op.label.data].value)
            erase(op)
        elif isinstance(op, StateWriteOp):
            before = written.get(op.label.data)
            if before is not None:
                erase(before)
            written[op.label.data] = op
    end = function.terminator
    for write in written.values():
        function.block.detach_op(write)
        function.block.insert_op_before(write, end)


def update_in(op: object) -> StateUpdateOp | None:
    """The update that a group does in place."""
    if isinstance(op, GroupOp) and op.kind.data == IN_PLACE:
        return next((inner for inner in op.block.ops if isinstance(inner, StateUpdateOp)), None)
    return None


def changed_argument(group: GroupOp, update: StateUpdateOp) -> int:
    """Which argument of the group is the value that it changes."""
    if group.yielded != (update.out,) or not all(isinstance(v, BlockArgument) for v in update.operands):
        raise unsupported(update, "an update in place is a kernel of its own")
    if sum(v is update.state for v in update.operands) != 1:
        raise unsupported(update, "an update in place reads what it changes")
    return group.block.args.index(update.state)


class _Settling:
    """One function's updates, in the order in which they run."""

    def __init__(self, function: FuncOp, ctx: Context) -> None:
        self.block, self.ctx = function.block, ctx
        self.position: dict[Operation, float] = {op: i for i, op in enumerate(self.block.ops)}
        self.changed = {
            op: op.args[changed_argument(op, update)]
            for op in self.block.ops
            if isinstance(op, GroupOp) and (update := update_in(op)) is not None
        }

    def run(self) -> None:
        in_place = self._in_place()
        for group in [g for g in self.changed if g not in in_place]:
            self._own_memory(group)
        # every version that is replaced, then the last ones, which a caller may not be given
        for group in [g for g in self.changed if g in in_place]:
            self._before(group)
        for group in in_place:
            for use, alias in _reads(group.outs[0]):
                if isinstance(use.operation, ReturnOp):
                    self._copy_for([(use, alias)], group.outs[0], use.operation, "it is returned")
        self._handed_over()

    def _handed_over(self) -> None:
        """Copies what a state was, for another state that takes it after the first has taken another value."""
        taken: set[str] = set()
        for write in [op for op in self.block.ops if isinstance(op, StateWriteOp)]:
            value = storage_of(write.value)
            if isinstance(value.owner, StateReadOp) and value.owner.label.data in taken:
                use = Use(write, 0)
                self._copy_for([(use, write.value)], value, write, "another state takes its old value")
            taken.add(write.label.data)

    def _in_place(self) -> list[GroupOp]:
        """The updates between the read of a state and the write of the same state."""
        found: list[GroupOp] = []
        for write in [op for op in self.block.ops if isinstance(op, StateWriteOp)]:
            chain: list[GroupOp] = []
            value = storage_of(write.value)
            while isinstance(value.owner, GroupOp) and value.owner in self.changed:
                chain.append(value.owner)
                value = storage_of(self.changed[value.owner])
            if isinstance(value.owner, StateReadOp) and value.owner.label == write.label:
                found += chain
        return found

    def _own_memory(self, group: GroupOp) -> None:
        """Gives an update that belongs to no state a value that nobody else reads."""
        value = storage_of(self.changed[group])
        made_here = isinstance(value.owner, GroupOp) and value.owner not in self._in_place()
        if made_here and all(use.operation is group for use, _ in _reads(value)):
            return
        uses = [(use, alias) for use, alias in _reads(value) if use.operation is group]
        self._copy_for(uses, value, group, "its update is not written back to a state")

    def _before(self, group: GroupOp) -> None:
        """Copies the version that an update replaces, for those that read it afterwards."""
        value, at = storage_of(self.changed[group]), self.position[group]
        late = []
        for use, alias in _reads(value):
            reader = use.operation
            if reader is group and reader.args[use.index] is self.changed[group]:
                continue
            if reader is not group and self.position[reader] < at:
                continue
            # what is returned, and what other states take, is copied when all launches are done
            if _is_copy(reader):
                self.block.detach_op(reader)
                self._insert(reader, group)
            else:
                late.append((use, alias))
        if late:
            self._copy_for(late, value, group, "its old value is read after an update")

    def _copy_for(self, uses: list[tuple[Use, SSAValue]], value: SSAValue, before: Operation, why: str) -> None:
        """A copy of a value in front of an op, for these uses of the value or of reshapes of it."""
        inner = Block(arg_types=[value.type])
        inner.add_op(YieldOp.make([inner.args[0]]))
        copy = GroupOp.make(
            [value], result_types=[[value.type]], regions=[Region(inner)], kind="map", name="copy", like=before
        )
        self._insert(copy, before)
        aliases: dict[object, SSAValue] = {value.type: copy.outs[0]}
        for use, alias in uses:
            if alias.type not in aliases:
                shaped = ReshapeOp.make(copy.outs[0], dims=tensor(alias).dims, like=before)
                self._insert(shaped, before)
                aliases[alias.type] = shaped.out
            use.operation.operands[use.index] = aliases[alias.type]
        self.ctx.note("state", f"copied, because {why}")

    def _insert(self, op: Operation, before: Operation) -> None:
        self.block.insert_op_before(op, before)
        self.position[op] = self.position[before] - 0.5


def _reads(value: SSAValue) -> Iterator[tuple[Use, SSAValue]]:
    """The uses of a value and of its reshapes, each with the value that is used."""
    for use in list(value.uses):
        if isinstance(use.operation, ReshapeOp):
            yield from _reads(use.operation.out)
        else:
            yield use, value


def _is_copy(op: object) -> bool:
    """A group that gives its only argument as it is."""
    return isinstance(op, GroupOp) and len(op.args) == 1 and isinstance(op.block.first_op, YieldOp)


def lower_state_update(group: GroupOp, name: str) -> Lowered:
    """graph.state_update: updates put one after the other; programs share out what the indices do not choose."""
    op = update_in(group)
    if op is None:
        raise unsupported(next(iter(group.block.ops)), "no update in place")
    changed = changed_argument(group, op)
    b = KernelBuilder(name, dims_of(group), like=group)
    buffers: dict[SSAValue, SSAValue] = {}
    for a in group.block.args:
        if a is not op.state:
            buffers[a] = b.buffer(tensor(a).dims, tensor(a).dtype)
    state = b.updated(tensor(op.state).dims, tensor(op.state).dtype)
    lines = Lines.of(tensor(op.state).dims, op.axis.data)
    columns = _columns(lines, tensor(op.state).dtype.bytes)
    o, i = b.grid([lines.outer, lines.inner], [1, columns])
    puts(b, op, lines, buffers, lines.view(b, state), (o, i), columns)
    return Lowered((Variant(b.finish()),), b.dims, Expr.of(0), (changed,))


def _columns(lines: Lines, size: int) -> int:
    """Whole lines where there are enough of them to share out, else parts of them, of a few lines of the cache: each
    program reads all indices. size: bytes of an element."""
    outer, inner = lines.outer.constant, lines.inner.constant
    if outer is not None and inner is not None and outer >= SHARES:
        return 1 if inner <= 1 else min(padded(inner, LANES), WIDEST)
    columns = column_share(lines.inner)
    return columns if inner is None or inner <= 1 else max(columns, min(padded(inner, LANES), _LEAST // size))

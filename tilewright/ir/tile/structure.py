"""Kernels, launches, loops, branches and index arithmetic."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Attribute, Block, SSAValue
from xdsl.irdl import (
    irdl_op_definition,
    operand_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.traits import IsolatedFromAbove, IsTerminator

from tilewright.ir.attributes import Bool, Dims, Int, Ints, Str, Strs
from tilewright.ir.dims import Expr, ceildiv
from tilewright.ir.tile.base import TileOp, buffer
from tilewright.ir.tile.residence import Places
from tilewright.ir.types import BufferType, IndexType, TensorType, TileType, ViewType

INDEX = IndexType()


@irdl_op_definition
class KernelOp(TileOp):
    """A grid of programs that do not communicate; arguments are the buffers, then where the program's tile starts.

    `extents by tiles` give the grid: axis a has ceil(extents[a] / tiles[a]) programs, whose coordinate steps by
    tiles[a]. `order` lists the loops over programs, outermost first, as pairs (axis, programs a step): [1, 1, 0, 16,
    ...]; an axis listed twice is blocked, and its last entry has 1. `outputs` counts the trailing buffers that are
    written.

    `folded` names grid axes that are cut into `stretches`, an even number of them, whose programs are taken in turn,
    those of every other stretch from its end: with two, first, last, second, last but one. Any run of programs is then
    about equally much work: with two where work grows along the axis, with more where it grows and falls. An axis
    with fewer than four programs a stretch is cut into two.

    `updates` are the numbers of the outputs that are changed in place: they start as the memory is, need not be covered
    by the stores, and what no store or update reaches keeps its value. A kernel reads such an output's old elements
    through `tile.update` alone, so that no program reads what another one changes.
    """

    name = "tile.kernel"
    sym_name = prop_def(Str)
    dims = prop_def(Strs)
    extents = prop_def(Dims)
    tiles = prop_def(Ints)
    order = prop_def(Ints)
    folded = prop_def(Ints, default_value=Ints(()))
    stretches = prop_def(Int, default_value=Int(2))
    outputs = prop_def(Int)
    updates = prop_def(Ints, default_value=Ints(()))
    body = region_def("single_block")
    traits = traits_def(IsolatedFromAbove())
    INFERS: ClassVar[bool] = False

    @property
    def block(self) -> Block:
        return self.body.blocks[0]

    @property
    def buffers(self) -> list[SSAValue]:
        """The buffer arguments: inputs first, then the outputs."""
        return [a for a in self.block.args if isinstance(a.type, BufferType)]

    @property
    def inputs(self) -> list[SSAValue]:
        return self.buffers[: len(self.buffers) - self.outputs.data]

    @property
    def coordinates(self) -> list[SSAValue]:
        """One index per grid axis: where the program's tile starts."""
        return [a for a in self.block.args if isinstance(a.type, IndexType)]

    @property
    def programs(self) -> tuple[Expr, ...]:
        """The number of programs along each grid axis."""
        return tuple(ceildiv(e, t) for e, t in zip(self.extents.data, self.tiles.data, strict=True))

    @property
    def loops(self) -> list[tuple[int, int]]:
        """The order as (axis, programs a step) pairs, outermost first."""
        flat = self.order.data
        return list(zip(flat[::2], flat[1::2], strict=True))

    def verify_(self) -> None:
        from xdsl.utils.exceptions import VerifyException

        axes = len(self.extents.data)
        if len(self.tiles.data) != axes or len(self.coordinates) != axes:
            raise VerifyException(
                f"{self.name} @{self.sym_name.data}: {axes} extents need as many tiles and coordinates"
            )
        name = f"{self.name} @{self.sym_name.data}"
        if [type(a.type) for a in self.block.args] != [BufferType] * len(self.buffers) + [IndexType] * axes:
            raise VerifyException(f"{name}: takes buffers, then one index for each grid axis")
        if not 0 <= self.outputs.data <= len(self.buffers):
            raise VerifyException(f"{name}: {self.outputs.data} of {len(self.buffers)} buffers cannot be outputs")
        updates = self.updates.data
        if list(updates) != sorted(set(updates)) or any(not 0 <= n < self.outputs.data for n in updates):
            raise VerifyException(f"{name}: updates {list(updates)} are not outputs in increasing order")
        if len(self.order.data) % 2 or any(n < 1 for n in (*self.tiles.data, *self.order.data[1::2])):
            raise VerifyException(f"{name}: tiles and steps are 1 or more, and order has pairs of axis and step")
        last = dict(self.loops)
        if sorted(last) != list(range(axes)) or any(step != 1 for step in last.values()):
            raise VerifyException(f"{self.name} @{self.sym_name.data}: order must end with step 1 for every grid axis")
        if list(self.folded.data) != sorted(set(self.folded.data) & set(range(axes))):
            raise VerifyException(f"{name}: folded {list(self.folded.data)} are not grid axes in increasing order")
        if self.stretches.data < 2 or self.stretches.data % 2:
            raise VerifyException(f"{name}: {self.stretches.data} stretches are not an even number of them")
        known = set(self.dims.data)
        clash = sorted(d for d in known if re.fullmatch(r"a\d+", d))
        if clash:
            raise VerifyException(
                f"{self.name} @{self.sym_name.data}: {', '.join(clash)}: a0, a1, ... are the operands of tile.expr"
            )
        unknown = {s for value in self.buffers for d in buffer(value).dims for s in d.symbols} - known
        for op in self.walk():
            operands = {f"a{i}" for i in range(len(op.operands))} if isinstance(op, ExprOp) else set()
            stated = [e for a in op.properties.values() if isinstance(a, Dims) for e in a.data]
            unknown |= {s for e in stated for s in e.symbols} - known - operands
        if unknown:
            raise VerifyException(f"{self.name} @{self.sym_name.data}: unknown dims {', '.join(sorted(unknown))}")


@irdl_op_definition
class LaunchOp(TileOp):
    """Runs one of a kernel's variants on tensors: inputs are operands, outputs are results, dims are actual sizes.

    `dims` gives the kernel's formal dims in order, as expressions of the program's dims. Variant i runs when `guard`
    (an expression of the formal dims) is at most limits[i]; the last one has no limit.

    `updates` are the numbers of the results that are other values changed in place; those values are the last operands,
    one for each, in order. Such a result lives where its operand lived, and the operand is gone after the launch.

    plan-memory adds where results live (`places`, one a result) and whether every thread must have finished before the
    next launch starts (`barrier`).
    """

    name = "tile.launch"
    inputs = var_operand_def(TensorType)
    outputs = var_result_def(TensorType)
    callees = prop_def(Strs)
    guard = prop_def(Dims)
    limits = prop_def(Ints)
    dims = prop_def(Dims)
    updates = prop_def(Ints, default_value=Ints(()))
    places = prop_def(Places, default_value=Places(()))
    barrier = prop_def(Bool, default_value=Bool(True))
    INFERS: ClassVar[bool] = False

    @property
    def read(self) -> Sequence[SSAValue]:
        """The operands that are passed as the kernel's inputs: all but those that are changed in place."""
        return self.inputs[: len(self.inputs) - len(self.updates.data)]

    @property
    def updated(self) -> dict[SSAValue, SSAValue]:
        """For each result that changes a value in place, that value."""
        old = self.inputs[len(self.inputs) - len(self.updates.data) :]
        return {self.outputs[number]: value for number, value in zip(self.updates.data, old, strict=True)}

    def kernels(self, module: ModuleOp) -> list[KernelOp]:
        """The variants in order, found in the module."""
        found = {op.sym_name.data: op for op in module.walk() if isinstance(op, KernelOp)}
        return [found[name] for name in self.callees.data]


@irdl_op_definition
class YieldOp(TileOp):
    """Ends a loop's or branch's body with the values it carries on."""

    name = "tile.yield"
    values = var_operand_def()
    traits = traits_def(IsTerminator())
    INFERS: ClassVar[bool] = False


@irdl_op_definition
class ForOp(TileOp):
    """Runs the body for coordinate lo, lo + step, ... below hi, carrying values; an empty range gives the initial ones.

    Carried values are tiles and indices; the step is 1 or more.
    """

    name = "tile.for"
    lo = operand_def(IndexType)
    hi = operand_def(IndexType)
    carries = var_operand_def()
    step = prop_def(Int)
    body = region_def("single_block")
    out = var_result_def()
    INFERS: ClassVar[bool] = False

    @property
    def coordinate(self) -> SSAValue:
        return self.body.blocks[0].args[0]

    @property
    def carried(self) -> Sequence[SSAValue]:
        """The carried values as the body sees them."""
        return self.body.blocks[0].args[1:]

    @property
    def yielded(self) -> Sequence[SSAValue]:
        last = self.body.blocks[0].last_op
        return last.operands if last is not None else ()

    def verify_(self) -> None:
        from xdsl.utils.exceptions import VerifyException

        carried = [v.type for v in self.carries]
        arguments = [a.type for a in self.body.blocks[0].args]
        if self.step.data < 1:
            raise VerifyException(f"{self.name}: step {self.step.data} must be 1 or more")
        if arguments != [INDEX, *carried] or [v.type for v in self.out] != carried:
            raise VerifyException(
                f"{self.name}: the body takes the coordinate and what is carried, which are the results"
            )
        _verify_yield(self, self.body.blocks[0], carried)


@irdl_op_definition
class IfOp(TileOp):
    """Runs one of two bodies by a condition that is the same for the whole program (an index, nonzero is true)."""

    name = "tile.if"
    condition = operand_def(IndexType)
    then = region_def("single_block")
    otherwise = region_def("single_block")
    out = var_result_def()
    INFERS: ClassVar[bool] = False

    def verify_(self) -> None:
        for region in (self.then, self.otherwise):
            _verify_yield(self, region.blocks[0], [v.type for v in self.out])


@irdl_op_definition
class ExprOp(TileOp):
    """An index from an expression over the kernel's dims and the operands, which it calls a0, a1, ..."""

    name = "tile.expr"
    args = var_operand_def(IndexType)
    value = prop_def(Dims)
    out = result_def(IndexType)

    @property
    def expr(self) -> Expr:
        return self.value.data[0]

    def infer(self) -> Sequence[Attribute]:
        return [INDEX]


@irdl_op_definition
class CompareOp(TileOp):
    """1 if a < b, a <= b or a == b holds for two indices, else 0."""

    name = "tile.compare"
    a = operand_def(IndexType)
    b = operand_def(IndexType)
    relation = prop_def(Str)
    out = result_def(IndexType)

    def infer(self) -> Sequence[Attribute]:
        if self.relation.data not in ("<", "<=", "=="):
            raise self.malformed(f"relation {self.relation.data!r} is not one of <, <=, ==")
        return [INDEX]


@irdl_op_definition
class ScalarOp(TileOp):
    """One integer read from a view at given coordinates, to index with: a length, an offset, a page id."""

    name = "tile.scalar"
    source = operand_def(ViewType)
    at = var_operand_def(IndexType)
    out = result_def(IndexType)

    def infer(self) -> Sequence[Attribute]:
        from tilewright.ir.tile.base import view

        source = view(self.source)
        if source.dtype.is_float or source.rank != len(self.at):
            raise self.malformed(
                f"needs an integer view and {source.rank} coordinates, got {source} and {len(self.at)}"
            )
        return [INDEX]


CARRIED_TYPES = (TileType, IndexType)


def _verify_yield(op: TileOp, block: Block, types: Sequence[Attribute]) -> None:
    from xdsl.utils.exceptions import VerifyException

    last = block.last_op
    if not isinstance(last, YieldOp):
        raise VerifyException(f"{op.name}: a body must end in tile.yield")
    if [v.type for v in last.operands] != list(types) or not all(isinstance(t, CARRIED_TYPES) for t in types):
        raise VerifyException(
            f"{op.name}: yields ({', '.join(str(v.type) for v in last.operands)}), "
            f"needs tiles and indices ({', '.join(map(str, types))})"
        )


STRUCTURE = [KernelOp, LaunchOp, YieldOp, ForOp, IfOp, ExprOp, CompareOp, ScalarOp]

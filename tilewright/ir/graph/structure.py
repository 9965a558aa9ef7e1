"""Functions, calls, groups, weights, states, constants and positions: what holds a graph together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from xdsl.ir import Block, BlockArgument, Region, SSAValue
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
from xdsl.traits import IsolatedFromAbove, IsTerminator, Pure
from xdsl.utils.exceptions import VerifyException

from tilewright.ir.attributes import Dims, Int, Numbers, Str, Strs
from tilewright.ir.cost import Cost, total
from tilewright.ir.dims import ExprLike
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.graph.base import GraphOp, Setting, tensor
from tilewright.ir.graph.externs import EXTERNS
from tilewright.ir.schedules import Schedule
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch

FUNCTION_KINDS = ("main", "prepare", "layer")
IN_PLACE = "state-update"
"""The kind of the groups that change a value in place; each holds one graph.state_update."""


@irdl_op_definition
class ReturnOp(GraphOp):
    """Ends a function with its results."""

    name = "graph.return"
    values = var_operand_def(TensorType)
    traits = traits_def(IsTerminator())
    INFERS: ClassVar[bool] = False


@irdl_op_definition
class YieldOp(GraphOp):
    """Ends a group with its results."""

    name = "graph.yield"
    values = var_operand_def(TensorType)
    traits = traits_def(IsTerminator())
    INFERS: ClassVar[bool] = False


@irdl_op_definition
class FuncOp(GraphOp):
    """A function: `main` (inputs to outputs), `prepare` (weights to packed tensors) or `layer` (called by others)."""

    name = "graph.func"
    sym_name = prop_def(Str)
    arg_names = prop_def(Strs, default_value=Strs(()))
    result_names = prop_def(Strs, default_value=Strs(()))
    kind = prop_def(Str, default_value=Str("main"))
    body = region_def("single_block")
    traits = traits_def(IsolatedFromAbove())
    INFERS: ClassVar[bool] = False

    @classmethod
    def begin(cls, name: str, arguments: Mapping[str, TensorType], *, kind: str = "main") -> Self:
        """A function with named arguments and an empty block: add ops to `.block`, then `finish` it."""
        block = Block(arg_types=list(arguments.values()))
        return cls.make(sym_name=name, arg_names=tuple(arguments), kind=kind, regions=[Region(block)])

    def finish(self, values: Sequence[SSAValue], result_names: Sequence[str]) -> Self:
        """Ends the block with a return of named results."""
        self.block.add_op(ReturnOp.make(list(values)))
        self.result_names = Strs(tuple(result_names))
        return self

    @property
    def symbol(self) -> str:
        return self.sym_name.data

    @property
    def block(self) -> Block:
        return self.body.blocks[0]

    @property
    def arguments(self) -> dict[str, BlockArgument]:
        """The arguments by name, in order."""
        return dict(zip(self.arg_names.data, self.block.args, strict=True))

    @property
    def terminator(self) -> ReturnOp:
        last = self.block.last_op
        if not isinstance(last, ReturnOp):
            raise self.malformed(f"@{self.symbol} does not end in graph.return")
        return last

    @property
    def returned(self) -> dict[str, SSAValue]:
        """The results by name, in order."""
        return dict(zip(self.result_names.data, self.terminator.values, strict=True))

    def verify_(self) -> None:
        at = f"{self.name} @{self.symbol}"
        if self.kind.data not in FUNCTION_KINDS:
            raise VerifyException(f"{at}: kind {self.kind.data!r} is not one of {', '.join(FUNCTION_KINDS)}")
        if not isinstance(self.block.last_op, ReturnOp):
            raise VerifyException(f"{at}: the last op must be graph.return")
        for what, names, values in (
            ("arguments", self.arg_names.data, self.block.args),
            ("results", self.result_names.data, self.block.last_op.values),
        ):
            if len(names) != len(values):
                raise VerifyException(f"{at}: {len(values)} {what} but {len(names)} names for them")
            if len(set(names)) != len(names):
                raise VerifyException(f"{at}: {what} share a name: {', '.join(names)}")
            for name, value in zip(names, values, strict=True):
                if not isinstance(value.type, TensorType):
                    raise VerifyException(f"{at}: {name} is a {value.type}, not a graph.tensor")


@irdl_op_definition
class CallOp(GraphOp):
    """Runs a function of the module on tensors; the dims of caller and callee are the same symbols."""

    name = "graph.call"
    args = var_operand_def(TensorType)
    outs = var_result_def(TensorType)
    callee = prop_def(Str)
    INFERS: ClassVar[bool] = False


@irdl_op_definition
class GroupOp(GraphOp):
    """Ops that become one kernel, of the skeleton `kind`; the region sees only its arguments.

    schedule: the choices that its kernel is made by, as far as a pass has made any.
    """

    name = "graph.group"
    args = var_operand_def(TensorType)
    outs = var_result_def(TensorType)
    kind = prop_def(Str)
    label = prop_def(Str, prop_name="name", default_value=Str(""))
    schedule = prop_def(Schedule, default_value=Schedule(()))
    body = region_def("single_block")
    # it holds pure ops only, so it is one
    traits = traits_def(IsolatedFromAbove(), Pure())
    INFERS: ClassVar[bool] = False

    @property
    def block(self) -> Block:
        return self.body.blocks[0]

    @property
    def yielded(self) -> tuple[SSAValue, ...]:
        """The values the group results in."""
        last = self.block.last_op
        if not isinstance(last, YieldOp):
            raise self.malformed("does not end in graph.yield")
        return tuple(last.values)

    def verify_(self) -> None:
        at = f"{self.name} {self.label.data!r}"
        if not isinstance(self.block.last_op, YieldOp):
            raise VerifyException(f"{at}: the last op must be graph.yield")
        for fault in self.schedule.faults(self.kind.data):
            raise VerifyException(f"{at}: {fault}")
        for what, outer, inner in (
            ("operands", self.args, self.block.args),
            ("results", self.outs, self.block.last_op.values),
        ):
            if [v.type for v in outer] != [v.type for v in inner]:
                raise VerifyException(
                    f"{at}: its {what} are ({', '.join(str(v.type) for v in outer)}), "
                    f"inside they are ({', '.join(str(v.type) for v in inner)})"
                )
        for op in self.block.ops:
            if not op.has_trait(Pure) and not isinstance(op, YieldOp):
                raise VerifyException(f"{at}: {op.name} has effects and cannot be in a group")

    def cost(self) -> Cost:
        """The work of its ops; operands are read and results written once, what lies between moves nothing.

        A group that changes a value in place moves what its one op says: the rest of that value stays where it is.
        """
        inner = total(op.cost() for op in self.block.ops if isinstance(op, GraphOp))
        if self.kind.data == IN_PLACE:
            return inner
        return self.compulsory(matrix=inner.matrix, vector=inner.vector)


@irdl_op_definition
class WeightOp(GraphOp):
    """A named parameter or buffer of the model; never constant data, so that programs do not depend on values."""

    name = "graph.weight"
    out = result_def(TensorType)
    label = prop_def(Str, prop_name="name")
    traits = traits_def(Pure())
    INFERS: ClassVar[bool] = False


@irdl_op_definition
class PackedOp(GraphOp):
    """A result of the module's prepare function, by result name."""

    name = "graph.packed"
    out = result_def(TensorType)
    label = prop_def(Str, prop_name="name")
    traits = traits_def(Pure())
    INFERS: ClassVar[bool] = False


@irdl_op_definition
class StateReadOp(GraphOp):
    """The value a named state has at this point of the program."""

    name = "graph.state_read"
    out = result_def(TensorType)
    label = prop_def(Str, prop_name="name")
    INFERS: ClassVar[bool] = False


@irdl_op_definition
class StateWriteOp(GraphOp):
    """Replaces the value of a named state; later reads see it."""

    name = "graph.state_write"
    value = operand_def(TensorType)
    label = prop_def(Str, prop_name="name")
    INFERS: ClassVar[bool] = False


@irdl_op_definition
class ExternOp(GraphOp):
    """An op kept outside the compiler: `callee` is a name in the extern registry, `arguments` its constants as JSON."""

    name = "graph.extern"
    args = var_operand_def(TensorType)
    outs = var_result_def(TensorType)
    callee = prop_def(Str)
    arguments = prop_def(Str, default_value=Str("{}"))
    INFERS: ClassVar[bool] = False

    def reference(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.callee.data not in EXTERNS:
            raise self.malformed(f"no extern function {self.callee.data!r} is registered")
        result = EXTERNS[self.callee.data](*args, **json.loads(self.arguments.data))
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)


@irdl_op_definition
class ConstantOp(GraphOp):
    """A small constant: one value for every element, or all elements in row-major order."""

    name = "graph.constant"
    out = result_def(TensorType)
    values = prop_def(Numbers)
    traits = traits_def(Pure())
    INFERS: ClassVar[bool] = False

    @classmethod
    def of(cls, values: float | Iterable[float], dims: Sequence[ExprLike], dtype: DType) -> Self:
        """A constant of these dims; floats are rounded to the dtype here, so that every level sees the same number."""
        listed = tuple(values) if isinstance(values, Iterable) else (values,)
        if dtype.is_float:
            import numpy as np

            with np.errstate(over="ignore"):
                listed = tuple(float(v) for v in np.array(listed, np.float64).astype(dtype.numpy()))
        else:
            listed = tuple(int(v) for v in listed)
        return cls.make(values=listed, result_types=[TensorType.of(dims, dtype)])

    @property
    def splat(self) -> int | float | None:
        """The value all elements have, when there is only one."""
        values = set(map(repr, self.values.data))
        return self.values.data[0] if len(values) == 1 else None

    def verify_(self) -> None:
        out, values = tensor(self.out), self.values.data
        if len(values) != 1 and out.elements.constant != len(values):
            raise VerifyException(f"{self.name}: {out} has {out.elements} elements, {len(values)} values are given")
        for value in values:
            if isinstance(value, float) != out.dtype.is_float:
                raise VerifyException(f"{self.name}: {value!r} is not an element of {out.dtype}")
            low, high = (0, 1) if out.dtype.kind == "bool" else integer_range(out.dtype)
            if isinstance(value, int) and not low <= value <= high:
                raise VerifyException(f"{self.name}: {value} lies outside {out.dtype}")

    def evaluate(self, setting: Setting) -> torch.Tensor:
        import torch

        out = tensor(self.out)
        # through the stated dtype even in a wide run: a constant is the number the program uses
        flat = torch.tensor(self.values.data, dtype=Setting().torch(out.dtype)).to(setting.torch(out.dtype))
        shape = setting.shape(out.dims)
        return flat.expand(math.prod(shape)).reshape(shape) if len(self.values.data) == 1 else flat.reshape(shape)

    def cost(self) -> Cost:
        return self.compulsory()


@irdl_op_definition
class DimOp(GraphOp):
    """A dim expression as an i64 scalar tensor."""

    name = "graph.dim"
    out = result_def(TensorType)
    value = prop_def(Dims)
    traits = traits_def(Pure())

    def infer(self) -> Sequence[TensorType]:
        if len(self.value.data) != 1:
            raise self.malformed(f"takes one dim expression, got {len(self.value.data)}")
        return [TensorType.of((), I64)]

    def evaluate(self, setting: Setting) -> torch.Tensor:
        import torch

        return torch.tensor(setting.shape(self.value.data)[0], dtype=torch.int64)


@irdl_op_definition
class IotaOp(GraphOp):
    """start + step * index along one axis; the result's type is stated."""

    name = "graph.iota"
    out = result_def(TensorType)
    axis = prop_def(Int, default_value=Int(0))
    start = prop_def(Dims, default_value=Dims.of([0]))
    step = prop_def(Int, default_value=Int(1))
    traits = traits_def(Pure())
    INFERS: ClassVar[bool] = False

    def verify_(self) -> None:
        out = tensor(self.out)
        if not 0 <= self.axis.data < out.rank:
            raise VerifyException(f"{self.name}: axis {self.axis.data} is not an axis of {out}")
        if len(self.start.data) != 1:
            raise VerifyException(f"{self.name}: start is one dim expression, got {len(self.start.data)}")
        if out.dtype.kind == "bool":
            raise VerifyException(f"{self.name}: i1 cannot count")

    def evaluate(self, setting: Setting) -> torch.Tensor:
        import torch

        out = tensor(self.out)
        shape = setting.shape(out.dims)
        along = torch.arange(shape[self.axis.data]) * self.step.data + setting.shape(self.start.data)[0]
        return (
            along.reshape([-1 if i == self.axis.data else 1 for i in range(out.rank)])
            .expand(shape)
            .to(setting.torch(out.dtype))
        )

    def cost(self) -> Cost:
        return self.compulsory()


@irdl_op_definition
class PositionsOp(GraphOp):
    """The absolute positions of a call's tokens, i64: 0, 1, 2, ... without a cache, the slots to fill with one."""

    name = "graph.positions"
    out = result_def(TensorType)
    traits = traits_def(Pure())
    INFERS: ClassVar[bool] = False

    def verify_(self) -> None:
        out = tensor(self.out)
        if out.rank != 1 or out.dtype != I64:
            raise VerifyException(f"{self.name}: positions are i64[tokens], declared {out}")

    def evaluate(self, setting: Setting) -> torch.Tensor:
        import torch

        return torch.arange(setting.shape(tensor(self.out).dims)[0])


def integer_range(dtype: DType) -> tuple[int, int]:
    """The least and greatest value of an integer dtype."""
    if dtype.kind == "uint":
        return 0, 2**dtype.bits - 1
    return -(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1) - 1


STRUCTURE = [
    FuncOp,
    ReturnOp,
    CallOp,
    GroupOp,
    YieldOp,
    WeightOp,
    PackedOp,
    StateReadOp,
    StateWriteOp,
    ExternOp,
    ConstantOp,
    DimOp,
    IotaOp,
    PositionsOp,
]

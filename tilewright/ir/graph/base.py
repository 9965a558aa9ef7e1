"""What every graph op shares: tensor-typed operands, a torch reference, and compulsory traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xdsl.ir import SSAValue
from xdsl.irdl import OptionalDef, VariadicDef

from tilewright.errors import IRError
from tilewright.ir.cost import Cost
from tilewright.ir.dims import Expr, ExprLike
from tilewright.ir.dtypes import F32, DType, torch_name
from tilewright.ir.operation import TwOperation
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch


def tensor(value: SSAValue) -> TensorType:
    """The tensor type of a value."""
    if not isinstance(value.type, TensorType):
        raise IRError(f"expected a graph.tensor, got {value.type}", step="check the op that produces this operand")
    return value.type


def show(dims: Sequence[ExprLike]) -> str:
    """Dims as messages print them: `[batch, tokens, 384]`."""
    return "[" + ", ".join(map(str, dims)) + "]"


def may_equal(a: ExprLike, b: ExprLike) -> bool:
    """False where two sizes differ at every value of their symbols; the graph interpreter checks what stays open."""
    return (Expr.of(a) - b).constant in (None, 0)


def broadcast_dims(op: TwOperation, *shapes: Sequence[Expr]) -> tuple[Expr, ...]:
    """The common shape of several: trailing axes align, 1 stretches, anything else must be proved equal."""
    rank = max((len(s) for s in shapes), default=0)
    result: list[Expr] = []
    for axis in range(-rank, 0):
        size = Expr.of(1)
        for shape in shapes:
            if -axis > len(shape) or shape[axis].constant == 1:
                continue
            if size.constant != 1 and size != shape[axis]:
                listed = ", ".join(map(show, shapes))
                raise op.malformed(f"shapes do not broadcast: {listed} (axis {axis}: {size} and {shape[axis]})")
            size = shape[axis]
        result.append(size)
    return tuple(result)


@dataclass(frozen=True)
class Setting:
    """What a reference run knows besides the operands: the sizes of the symbols, and whether floats are float64."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    wide: bool = False

    def shape(self, dims: Sequence[Expr]) -> tuple[int, ...]:
        """The sizes of dims; KeyError names a symbol without a size."""
        return tuple(d.evaluate(self.sizes) for d in dims)

    def torch(self, dtype: DType) -> torch.dtype:
        """The torch dtype that stands for an IR dtype in this run."""
        import torch

        found: torch.dtype = getattr(torch, "float64" if self.wide and dtype.is_float else torch_name(dtype))
        return found


def at_least_f32(x: torch.Tensor) -> torch.Tensor:
    """Floats narrower than f32 as f32, everything else as it is: what statistics and accumulators are kept in."""
    return x.float() if x.is_floating_point() and x.element_size() < F32.bytes else x


class GraphOp(TwOperation):
    """A graph op: `reference` takes torch tensors in operand order and gives the result, or a tuple of results.

    The reference is slow and obviously right. It computes in the dtype of the tensors it is given (narrow floats
    accumulate in f32), so that feeding float64 gives the higher-precision answer that tests compare with. An absent
    optional operand is None; the values of a variadic operand come one by one. Ops without effects have the trait Pure.
    """

    def reference(self, *operands: Any) -> Any:
        """The op's meaning on torch tensors; ops with regions or effects are the interpreter's to run."""
        raise IRError(f"{self.name} has no reference of its own", step="run it through the graph interpreter")

    def evaluate(self, setting: Setting, *operands: Any) -> Any:
        """`reference` for any op: those whose meaning depends on dim sizes or states a dtype define this instead."""
        return self.reference(*operands)

    def slots(self) -> list[SSAValue | None]:
        """The operands in the order `reference` takes them, None for an absent optional one."""
        found: list[SSAValue | None] = []
        for name, kind in self.get_irdl_definition().operands:
            value = getattr(self, name)
            if isinstance(kind, VariadicDef) and not isinstance(kind, OptionalDef):
                found.extend(value)
            else:
                found.append(value)
        return found

    def check_axis(self, axis: int, rank: int) -> int:
        """The axis, which must lie in 0..rank-1: frontends resolve negative ones."""
        if not 0 <= axis < rank:
            raise self.malformed(f"axis {axis} is not one of the {rank} axes of the operand")
        return axis

    def check_axes(self, axes: Sequence[int], rank: int) -> tuple[int, ...]:
        """Axes in range and without repeats."""
        if len(set(axes)) != len(axes):
            raise self.malformed(f"axes {list(axes)} name an axis twice")
        return tuple(self.check_axis(axis, rank) for axis in axes)

    def check_choice(self, what: str, value: str, choices: Sequence[str]) -> str:
        """A string property that must be one of a few."""
        if value not in choices:
            raise self.malformed(f"{what} {value!r} is not one of {', '.join(choices)}")
        return value

    def compulsory(self, *, matrix: ExprLike = 0, vector: ExprLike = 0) -> Cost:
        """The given work, with every operand read once and every result written once."""
        # a value used twice (x * x) is still read once
        operands = {id(v): v.type.bytes for v in self.operands if isinstance(v.type, TensorType)}
        read = sum(operands.values(), Expr.of(0))
        write = sum((v.type.bytes for v in self.results if isinstance(v.type, TensorType)), Expr.of(0))
        return Cost.of(matrix=matrix, vector=vector, read=read, write=write)


def without_axes(dims: Sequence[Expr], axes: Sequence[int], *, keepdims: bool = False) -> tuple[Expr, ...]:
    """Dims with some axes removed, or kept as 1."""
    if keepdims:
        return tuple(Expr.of(1) if i in axes else d for i, d in enumerate(dims))
    return tuple(d for i, d in enumerate(dims) if i not in axes)

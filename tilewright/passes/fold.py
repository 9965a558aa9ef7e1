"""fold: what depends on constants alone is computed now, by the ops' own reference.

Values of weights are never read: an op on a weight stays an op, and hoist-weights moves it to @prepare later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, SSAValue

from tilewright.errors import IRError
from tilewright.ir.graph.base import GraphOp, Setting, tensor
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.graph.structure import ConstantOp, DimOp
from tilewright.ir.module import functions
from tilewright.ir.operation import TwOperation
from tilewright.ir.passing import Context, Pass
from tilewright.ir.types import TensorType
from tilewright.passes.rewriting import defined, erase_dead, is_pure, replace, splat

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Fold(Pass):
    """Constant operands give constant results, up to `max_elements` elements of different values."""

    name: ClassVar[str] = "fold"
    least: ClassVar[Mapping[str, int]] = {"max_elements": 0}
    max_elements: int = 1024

    def run(self, module: ModuleOp, ctx: Context) -> None:
        for function in functions(module).values():
            self._fold(function.block, ctx)
            erase_dead(function.block)

    def _fold(self, block: Block, ctx: Context) -> None:
        for op in list(block.ops):
            if not is_pure(op) or op.regions:
                continue
            values = self._values(op, ctx)
            if values is None or not ctx.apply([op], "fold"):
                continue
            made = [_constant(v, tensor(r), op) for v, r in zip(values, op.results, strict=True)]
            block.insert_ops_before(made, op)
            replace(op, [constant.out for constant in made])

    def _values(self, op: GraphOp, ctx: Context) -> list[list[Any]] | None:
        """The elements of each result (one where all are equal); None where they are not known or too many."""
        if isinstance(op, DimOp):
            size = op.value.data[0].constant
            return None if size is None else [[size]]
        if not op.operands or not all_constant(op):
            return None
        if computes_each_element_alone(op) and all(splat(v) is not None for v in op.operands):
            # one element stands for all, so the dims may be symbols
            return _evaluate(op, [_literal(v, scalar=True) for v in op.operands], ctx)
        if not all(fits(tensor(v), self.max_elements) for v in (*op.operands, *op.results)):
            return None
        return _evaluate(op, [None if v is None else _literal(v, scalar=False) for v in op.slots()], ctx)


def all_constant(op: Operation) -> bool:
    """Every operand is a graph.constant."""
    return all(defined(v, ConstantOp) is not None for v in op.operands)


def computes_each_element_alone(op: Operation) -> bool:
    """An element of the result depends on one element of each operand, whatever the dims."""
    return isinstance(op, (MapOp, CastOp))


def fits(kind: TensorType, limit: int) -> bool:
    """The size is fixed and not above the limit."""
    size = kind.elements.constant
    return size is not None and size <= limit


def _literal(value: SSAValue, *, scalar: bool) -> torch.Tensor:
    """A constant's elements in its own dtype; as one element of rank 0 where `scalar`."""
    import torch

    op = defined(value, ConstantOp)
    if op is None:
        raise IRError(f"{value.type} is not a constant", step="fold only ops whose operands are constants")
    found = torch.tensor(op.values.data, dtype=Setting().torch(tensor(value).dtype))
    if scalar:
        return found[0]
    shape = Setting().shape(tensor(value).dims)
    return found.reshape([1] * len(shape)).expand(shape) if found.numel() == 1 else found.reshape(shape)


def _evaluate(op: GraphOp, operands: Sequence[torch.Tensor | None], ctx: Context) -> list[list[Any]] | None:
    """The reference's results as plain numbers; None, with the reason recorded, where it fails on these values."""
    try:
        found = op.evaluate(Setting(), *operands)
    except (IRError, RuntimeError, ValueError, IndexError) as fault:
        ctx.refuse(op, f"its reference fails on these constants: {fault}")
        return None
    results = found if isinstance(found, (tuple, list)) else (found,)
    return [result.flatten().tolist() for result in results]


def _constant(values: Sequence[Any], kind: TensorType, like: TwOperation) -> ConstantOp:
    """The constant of these elements; one element where all are equal, bit for bit."""
    if len(set(map(repr, values))) == 1:
        values = values[:1]
    listed = [float(v) for v in values] if kind.dtype.is_float else [int(v) for v in values]
    if not listed:
        # nothing to state: any number fills no element
        listed = [0.0 if kind.dtype.is_float else 0]
    return ConstantOp.make(values=listed, result_types=[kind], like=like)

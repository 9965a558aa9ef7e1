"""Whether a backend has every dtype that kernels compute in: asked before any kernel is lowered to its level."""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.errors import LoweringError, Problem
from tilewright.ir.backend import Backend
from tilewright.ir.operation import TwOperation
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.types import ShapedType


def check_dtypes(kernels: Mapping[str, KernelOp], backend: Backend) -> None:
    """LoweringError with every place that needs a dtype which the backend's manifest does not name, and the first op
    there.

    The kernels are asked and not the graph: what they sum and count in shows there alone.
    """
    problems: dict[tuple[str, str | None], Problem] = {}
    for name, kernel in kernels.items():
        for op in kernel.walk():
            shaped = [value.type for value in (*op.results, *op.operands) if isinstance(value.type, ShapedType)]
            for dtype in dict.fromkeys(t.dtype.name for t in shaped if t.dtype.name not in backend.dtypes):
                where = (op.loc if isinstance(op, TwOperation) else None) or kernel.loc or kernel.path
                problem = Problem(f"{backend.name} has no {dtype}, which kernel {name} needs", op.name, where)
                problems.setdefault((dtype, where), problem)
    if problems:
        raise LoweringError(
            list(problems.values()),
            step=f"cast to one of {', '.join(sorted(backend.dtypes))} around it, or compile for a target that has it: "
            "`tilewright targets` lists their dtypes",
        )

"""A user's Python function traced to a tile kernel: every op carries the user's line, every fault names it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from xdsl.ir import BlockArgument, OpResult

from tilewright.compiler.kernel_spec import KernelSpec, Static
from tilewright.errors import KernelError, Problem, TilewrightError
from tilewright.frontend.locations import of_traceback, shorten
from tilewright.ir.attributes import Str
from tilewright.ir.dtypes import DType
from tilewright.ir.module import new_module
from tilewright.ir.operation import LOC, TwOperation
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.structure import KernelOp
from tilewright.ir.verifier import verify

_PACKAGE: Final = str(Path(__file__).resolve().parent.parent)


class TracingBuilder(KernelBuilder):
    """The builder that user functions get: the compiler's own, which notes where each op was written."""

    def _append(self, op: TwOperation) -> None:
        place = _user_line()
        if place is not None:
            op.attributes.setdefault(LOC, Str(place))
        super()._append(op)


def trace(spec: KernelSpec, function: Callable[..., None], statics: Mapping[str, Static]) -> KernelOp:
    """The kernel that a function builds for these values of its static parameters, verified.

    Raises KernelError with the user's line for whatever goes wrong inside the function.
    """
    b = TracingBuilder(spec.name, list(spec.dims))
    inputs = [b.buffer(i.dims_at(statics), i.dtype_at(statics)) for i in spec.inputs]
    outputs = [b.output(o.dims_at(statics), o.dtype_at(statics)) for o in spec.outputs]
    try:
        function(b, *inputs, *outputs, **statics)
        kernel = b.finish()
    except TilewrightError as fault:
        place = of_traceback(fault.__traceback__) or spec.where
        problems = [Problem(p.text, p.op or f"@{spec.name}", p.where or place) for p in fault.problems]
        raise KernelError(problems, step=fault.step) from fault
    except Exception as fault:
        place = of_traceback(fault.__traceback__) or spec.where
        text, step = str(fault), "correct the line: it runs when the kernel is traced"
        for kind in (OpResult, BlockArgument):
            # Python names the class of what the builder gave; the user knows it as a tile or an index
            if isinstance(fault, (TypeError, AttributeError)) and f"'{kind.__name__}'" in text:
                text = re.sub(f"'{kind.__name__}'( object)?", "a tile or index of the kernel", text)
                step = 'compute with the builder: b.map("add", tile, 1) for tiles, b.index("a0 + 1", index) for indices'
        told = Problem(f"{type(fault).__name__}: {text}", f"@{spec.name}{_shown(statics)}", place)
        raise KernelError(told, step=step) from fault
    kernel.attributes[LOC] = Str(spec.where)
    module = new_module()
    module.body.block.add_op(kernel)
    try:
        verify(module)
    except TilewrightError as fault:
        problems = [Problem(p.text, p.op, p.where or spec.where) for p in fault.problems]
        raise KernelError(problems, step="correct the op at this line") from fault
    module.body.block.detach_op(kernel)
    return kernel


def place_of(function: Callable[..., Any]) -> str:
    """Where a function is written, "model.py:12"."""
    code = function.__code__
    return f"{shorten(code.co_filename)}:{code.co_firstlineno}"


def _shown(statics: Mapping[str, Static]) -> str:
    return f"({', '.join(f'{n}={v.name if isinstance(v, DType) else v}' for n, v in statics.items())})"


def _user_line() -> str | None:
    """The nearest line outside this package."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return None if frame is None else f"{shorten(frame.f_code.co_filename)}:{frame.f_lineno}"

"""The rules of launches against the kernels they run: what is passed is what is declared, whichever variant runs.

A kernel's buffers get the memory of the launch's operands and results, and its dims get values, with nothing checked at
run time. So the types must agree here: each buffer's dims, with the launch's values for the kernel's dims, are those of
the tensor that is passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from xdsl.ir import Operation, SSAValue

from tilewright.errors import Problem
from tilewright.ir.dims import Expr
from tilewright.ir.graph.base import tensor
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.memory import StoreOp, root
from tilewright.ir.tile.structure import KernelOp, LaunchOp


def launch_problems(ops: Sequence[Operation]) -> Iterator[Problem]:
    """Every breach of the rules; the ops' own rules must hold already. ops: all of a module."""
    kernels: dict[str, KernelOp] = {}
    for op in ops:
        if isinstance(op, KernelOp):
            if op.sym_name.data in kernels:
                yield Problem("two kernels have this name", op=f"@{op.sym_name.data}", where=op.loc)
            kernels[op.sym_name.data] = op
            yield from _writes(op)
    # equal layers launch the same kernels with the same types: one check for all of them
    right: set[tuple[object, ...]] = set()
    for op in ops:
        if isinstance(op, LaunchOp):
            values = tuple(v.type for v in (*op.inputs, *op.outputs))
            key = (op.callees, op.limits, op.guard, op.dims, op.updates, len(op.inputs), values)
            if key not in right:
                texts = list(_launch(op, kernels))
                yield from (Problem(text, op=op.name, where=op.loc) for text in texts)
                if not texts:
                    right.add(key)


def _launch(op: LaunchOp, kernels: Mapping[str, KernelOp]) -> Iterator[str]:
    names, limits = op.callees.data, op.limits.data
    if not names or len(limits) != len(names) - 1:
        yield f"{len(names)} variants need a limit for all but the last, got {list(limits)}"
    if any(a >= b for a, b in pairwise(limits)):
        yield f"the variants' limits {list(limits)} do not increase"
    if len(op.guard.data) != 1:
        yield f"one guard chooses among the variants, got {len(op.guard.data)}"
    first = kernels.get(names[0]) if names else None
    for name in names:
        kernel = kernels.get(name)
        if kernel is None:
            yield f"runs @{name}, which is not a kernel of the module"
            continue
        if first is not None and kernel.dims != first.dims:
            yield f"@{name} has the dims {_listed(kernel.dims.data)}, @{names[0]} {_listed(first.dims.data)}"
            continue
        unknown = {s for guard in op.guard.data for s in guard.symbols} - set(kernel.dims.data)
        if unknown:
            yield f"the guard uses {_listed(sorted(unknown))}, which are no dims of @{name}"
        if len(op.dims.data) != len(kernel.dims.data):
            yield f"gives {len(op.dims.data)} values for the dims {_listed(kernel.dims.data)} of @{name}"
            continue
        yield from _passed(op, kernel)


def _passed(op: LaunchOp, kernel: KernelOp) -> Iterator[str]:
    """Whether operands and results are a kernel's buffers."""
    actual = dict(zip(kernel.dims.data, op.dims.data, strict=True))
    outputs = kernel.outputs.data
    written = kernel.buffers[len(kernel.buffers) - outputs :]
    if op.updates != kernel.updates:
        yield (
            f"changes the results {list(op.updates.data)} in place, "
            f"@{kernel.sym_name.data} changes {list(kernel.updates.data)}"
        )
        return
    taken = [*kernel.inputs, *(written[number] for number in kernel.updates.data)]
    for what, given, wanted in (("operands", op.inputs, taken), ("results", op.outputs, written)):
        if len(given) != len(wanted):
            yield f"has {len(given)} {what}, @{kernel.sym_name.data} takes {len(wanted)}"
            continue
        for number, (value, formal) in enumerate(zip(given, wanted, strict=True)):
            if not _same(value, formal, actual):
                yield (
                    f"{what[:-1]} {number} is {value.type}, @{kernel.sym_name.data} takes {formal.type}"
                    + (f" with {', '.join(f'{n} = {e}' for n, e in actual.items())}" if actual else "")
                )


def _same(value: SSAValue, formal: SSAValue, actual: Mapping[str, Expr]) -> bool:
    dims = tuple(d.substitute(dict(actual)) for d in buffer(formal).dims)
    return tensor(value).dtype == buffer(formal).dtype and tensor(value).dims == dims


def _writes(kernel: KernelOp) -> Iterator[Problem]:
    """Stores go to outputs: inputs may be weights, which are mapped to be read, or the caller's own tensors."""
    outputs = set(kernel.buffers[len(kernel.buffers) - kernel.outputs.data :])
    for op in kernel.walk():
        if isinstance(op, StoreOp) and root(op.target) not in outputs:
            yield Problem(f"writes to an input of @{kernel.sym_name.data}", op=op.name, where=op.loc)


def _listed(names: object) -> str:
    return ", ".join(names) if isinstance(names, (list, tuple)) and names else "none"

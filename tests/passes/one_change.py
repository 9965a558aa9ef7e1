"""Modules that differ from a given one in one place: near misses of whatever pattern it is written for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation

from tilewright.ir.attributes import Int, Str
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.elementwise import MapOp
from tilewright.ir.graph.reduction import ReduceOp, SoftmaxOp
from tilewright.ir.graph.structure import ConstantOp, FuncOp, ReturnOp, WeightOp
from tilewright.ir.module import function

Edit = Callable[[FuncOp, Operation], None]

# functions of the same operands and results
OTHER_FN = {
    "add": "sub",
    "sub": "add",
    "mul": "div",
    "div": "mul",
    "max": "min",
    "min": "max",
    "and": "or",
    "or": "and",
    "le": "lt",
    "lt": "le",
    "gt": "ge",
    "ge": "gt",
    **dict.fromkeys(("exp", "neg", "erf", "tanh", "sqrt", "rsqrt", "reciprocal", "log", "log1p", "sigmoid"), "cos"),
}
OTHER_REDUCTION = {"sum": "max", "max": "sum", "mean": "sum"}


def changes(module: ModuleOp) -> Iterator[tuple[str, ModuleOp]]:
    """Each module with one change, and what it is."""
    main = function(module, "main")
    for place, op in enumerate(main.block.ops):
        for what, edit in _edits(op):
            made = module.clone()
            target = function(made, "main")
            edit(target, list(target.block.ops)[place])
            made.verify()
            yield f"{op.name} {place}: {what}", made


def _edits(op: Operation) -> Iterator[tuple[str, Edit]]:
    if isinstance(op, ReturnOp):
        return
    for index in range(len(op.operands)):
        yield f"operand {index} is another value", _other_operand(index)
    if len(op.operands) == 2 and op.operands[0].type == op.operands[1].type:
        yield "its operands change places", _swap
    if not isinstance(op, (ConstantOp, WeightOp)):
        yield "it is read outside, too", _read_outside
    match op:
        case MapOp() if op.fn.data in OTHER_FN:
            yield "another function", _set("fn", Str(OTHER_FN[op.fn.data]))
        case ReduceOp() if op.fn.data in OTHER_REDUCTION:
            yield "another reduction", _set("fn", Str(OTHER_REDUCTION[op.fn.data]))
        case SoftmaxOp():
            yield "another axis", _set("axis", Int((op.axis.data + 1) % tensor(op.x).rank))
        case ConstantOp() if op.splat is not None:
            yield "another number", _other_number


def _set(name: str, value: Str | Int) -> Edit:
    def edit(main: FuncOp, op: Operation) -> None:
        op.properties[name] = value

    return edit


def _other_operand(index: int) -> Edit:
    def edit(main: FuncOp, op: Operation) -> None:
        names = main.arg_names.data
        value = main.block.insert_arg(op.operands[index].type, len(names))
        main.arg_names = type(main.arg_names)((*names, "another"))
        op.operands[index] = value

    return edit


def _swap(main: FuncOp, op: Operation) -> None:
    first, second = op.operands
    op.operands = [second, first]


def _read_outside(main: FuncOp, op: Operation) -> None:
    last = main.terminator
    returned = [*last.values, op.results[0]]
    last.detach()
    last.erase()
    main.finish(returned, (*main.result_names.data, "outside"))


def _other_number(main: FuncOp, op: Operation) -> None:
    assert isinstance(op, ConstantOp)
    kind = tensor(op.out)
    value = (op.splat or 0) * 1.25 + 0.125 if kind.dtype.is_float else (op.splat or 0) + 1
    made = ConstantOp.of(value, kind.dims, kind.dtype)
    main.block.insert_op_before(made, op)
    op.out.replace_all_uses_with(made.out)
    op.detach()
    op.erase()

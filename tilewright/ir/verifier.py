"""The rules of a module: every op's own, and those that need to see the whole module. One error lists all breaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Attribute, Operation
from xdsl.utils.exceptions import VerifyException

from tilewright.errors import IRError, Problem
from tilewright.ir.attributes import Dims
from tilewright.ir.entry_attributes import guards, reads
from tilewright.ir.graph.base import GraphOp
from tilewright.ir.graph.structure import CallOp, FuncOp, PackedOp, StateReadOp, StateWriteOp, WeightOp
from tilewright.ir.module import DIMS, dim_space, functions
from tilewright.ir.operation import TwOperation
from tilewright.ir.tile.launching import launch_problems
from tilewright.ir.types import ShapedType, TensorType

Checked: TypeAlias = dict[Operation, tuple[object, ...]]
"""Ops whose own rules held, each with what it was then."""


def verify(module: ModuleOp, checked: Checked | None = None) -> None:
    """Raises one IRError with every rule that the module breaks; gives nothing where it breaks none.

    checked: of an earlier verification of the same module, brought up to date here. Ops that are what they were then
    are not checked again; without it, every op is.
    """
    ops = list(module.walk())
    if checked is None:
        problems = [problem for op in ops for problem in _own_rules(op)]
    else:
        problems = []
        for op in ops:
            now = _as_it_is(op)
            if checked.get(op) != now:
                found = list(_own_rules(op))
                problems += found
                if not found and not op.regions:
                    checked[op] = now
    # the rules below read what the ops' own rules promise
    if not problems:
        problems = [*_names(module), *_calls(module), *_packed(module, ops), *_one_type_each(ops)]
        problems += [*_symbols(module, ops), *_entry(module), *launch_problems(ops)]
    if problems:
        raise IRError(problems, step="print the module with print_module() and look at these ops")


def _as_it_is(op: Operation) -> tuple[object, ...]:
    """All that the rules of an op without regions read."""
    return (
        op.parent,
        op._operands,
        tuple([operand.type for operand in op._operands]),
        tuple([result.type for result in op.results]),
        tuple(op.properties.values()),
    )


def _problem(op: Operation, text: str) -> Problem:
    return Problem(text, op=op.name, where=op.loc if isinstance(op, TwOperation) else None)


def _own_rules(op: Operation) -> Iterator[Problem]:
    try:
        op.verify(verify_nested_ops=False)
    except VerifyException as fault:
        # xDSL wraps what went wrong in a print of the whole module; the innermost cause is the op's own sentence
        cause: BaseException = fault
        while isinstance(cause.__cause__, (VerifyException, IRError)):
            cause = cause.__cause__
        if isinstance(cause, IRError):
            yield from cause.problems
        else:
            yield _problem(op, str(cause).removeprefix(f"{op.name}: "))


def _names(module: ModuleOp) -> Iterator[Problem]:
    seen: set[str] = set()
    for op in module.body.block.ops:
        if isinstance(op, FuncOp):
            if op.symbol in seen:
                yield _problem(op, f"two functions are called @{op.symbol}")
            seen.add(op.symbol)


def _calls(module: ModuleOp) -> Iterator[Problem]:
    known = functions(module)
    callees: dict[str, set[str]] = {}
    for caller in known.values():
        calls = [op for op in caller.walk() if isinstance(op, CallOp)]
        callees[caller.symbol] = {op.callee.data for op in calls}
        for op in calls:
            callee = known.get(op.callee.data)
            if callee is None:
                yield _problem(op, f"calls @{op.callee.data}, which is not a function of the module")
                continue
            for what, given, wanted in (
                ("arguments", op.args, callee.block.args),
                ("results", op.outs, tuple(callee.returned.values())),
            ):
                if [v.type for v in given] != [v.type for v in wanted]:
                    yield _problem(
                        op,
                        f"{what} ({', '.join(str(v.type) for v in given)}) are not those of "
                        f"@{callee.symbol} ({', '.join(str(v.type) for v in wanted)})",
                    )
    for name in known:
        if name in _reached(name, callees):
            yield _problem(known[name], f"@{name} calls itself")


def _reached(start: str, callees: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    pending = list(callees.get(start, ()))
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending.extend(callees.get(name, ()))
    return reached


def _packed(module: ModuleOp, ops: Sequence[Operation]) -> Iterator[Problem]:
    prepares = [f for f in functions(module).values() if f.kind.data == "prepare"]
    if len(prepares) > 1:
        yield _problem(prepares[1], f"a second prepare function, @{prepares[1].symbol}")
    for prepare in prepares:
        if prepare.block.args:
            yield _problem(prepare, f"@{prepare.symbol} takes arguments: it may depend on weights alone")
        for op in prepare.walk():
            if isinstance(op, (StateReadOp, StateWriteOp, PackedOp)):
                yield _problem(op, f"is in @{prepare.symbol}, which may depend on weights alone")
    results = {name: value.type for prepare in prepares for name, value in prepare.returned.items()}
    for op in ops:
        if isinstance(op, PackedOp):
            if op.label.data not in results:
                yield _problem(op, f"{op.label.data!r} is not a result of a prepare function")
            elif results[op.label.data] != op.out.type:
                yield _problem(op, f"{op.label.data!r} is {results[op.label.data]} there and {op.out.type} here")


def _one_type_each(ops: Sequence[Operation]) -> Iterator[Problem]:
    types: dict[tuple[str, str], Attribute] = {}
    for op in ops:
        if isinstance(op, (WeightOp, StateReadOp, StateWriteOp)):
            what = "weight" if isinstance(op, WeightOp) else "state"
            this = op.value.type if isinstance(op, StateWriteOp) else op.out.type
            first = types.setdefault((what, op.label.data), this)
            if first != this:
                yield _problem(op, f"the {what} {op.label.data!r} is {first} elsewhere and {this} here")


def _entry(module: ModuleOp) -> Iterator[Problem]:
    """Guards are about declared dims, and what dims are read from are arguments of @main that hold one integer."""
    space, main = dim_space(module).dims, functions(module).get("main")
    for guard in guards(module):
        unknown = (guard.left.symbols | guard.right.symbols) - set(space)
        if unknown:
            yield _problem(module, f"guard {guard} names dims that are not declared: {', '.join(sorted(unknown))}")
    for read in reads(module):
        dim = space.get(read.dim)
        if dim is None or dim.kind != "read":
            yield _problem(module, f"dim {read.dim} is not declared as one that is read")
        types = [] if main is None else [value.type for value in main.block.args]
        found = types[read.argument] if read.argument < len(types) else None
        if not isinstance(found, TensorType) or not found.dtype.is_integer or found.elements.constant != 1:
            yield _problem(
                module, f"dim {read.dim} is read from argument {read.argument}, which is {found or 'not there'}"
            )


def _symbols(module: ModuleOp, ops: Sequence[Operation]) -> Iterator[Problem]:
    """Where a module declares its dims, its graph names no other symbol."""
    if DIMS not in module.attributes:
        return
    known = set(dim_space(module).dims)
    # thousands of values are of a few types
    unknown_in: dict[Attribute, set[str]] = {}
    for op in ops:
        if isinstance(op, GraphOp):
            values = [*op.results, *(arg for region in op.regions for block in region.blocks for arg in block.args)]
            told: list[ShapedType | Dims] = [v.type for v in values if isinstance(v.type, ShapedType)]
            told += [attribute for attribute in op.properties.values() if isinstance(attribute, Dims)]
            unknown = set[str]()
            for attribute in told:
                if attribute not in unknown_in:
                    dims = attribute.data if isinstance(attribute, Dims) else attribute.dims
                    unknown_in[attribute] = {symbol for dim in dims for symbol in dim.symbols} - known
                unknown |= unknown_in[attribute]
            if unknown:
                yield _problem(op, f"names dims that the module does not declare: {', '.join(sorted(unknown))}")

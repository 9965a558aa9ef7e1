"""Runs a module's graph on torch tensors by the ops' own references: slow, obviously right, and checked at every op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, SSAValue
from xdsl.traits import IsTerminator

from tilewright.errors import (
    ArgumentError,
    DimRangeError,
    DTypeError,
    InterpreterError,
    KernelStoreError,
    PoisonError,
    Problem,
    RankError,
    StateError,
    TilewrightError,
    WeightsError,
)
from tilewright.ir.binding import Bound, bind, check_bounds
from tilewright.ir.graph.base import GraphOp, Setting, show
from tilewright.ir.graph.structure import CallOp, FuncOp, GroupOp, PackedOp, StateReadOp, StateWriteOp, WeightOp
from tilewright.ir.module import dim_space, function, functions, states, weights
from tilewright.ir.operation import TwOperation
from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    import torch

Tensors: TypeAlias = "Sequence[torch.Tensor]"
Observer: TypeAlias = Callable[[Operation, Tensors], None]
Launcher: TypeAlias = Callable[[Operation, Tensors, Mapping[str, int]], Tensors]


def interpret(
    module: ModuleOp,
    inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor],
    *,
    name: str = "main",
    weights: Mapping[str, torch.Tensor] | None = None,
    states: MutableMapping[str, torch.Tensor] | None = None,
    wide: bool = False,
    observe: Observer | None = None,
    launch: Launcher | None = None,
) -> dict[str, torch.Tensor]:
    """Runs one function once; see `GraphInterpreter`."""
    interpreter = GraphInterpreter(module, weights=weights, states=states, wide=wide, observe=observe, launch=launch)
    return interpreter.run(inputs, name)


class GraphInterpreter:
    """A module with its weights and states, ready to run.

    weights, states: tensors by name, of the dtypes and shapes the module states. States are replaced in the mapping as
    the program writes them.
    wide: every float is computed in float64, casts between floats included: the higher-precision reference.
    observe: called after every op, in groups and called functions too, with its results.
    launch: runs the ops that are not of the graph dialect (`tile.launch`), given the op, its operands and the sizes.

    Raises coded errors that name the op and the user's line: ArgumentError, DTypeError, RankError, DimMismatchError and
    DimRangeError for inputs, WeightsError, StateError, and InterpreterError for an op that fails or whose result is not
    what its type says.
    """

    def __init__(
        self,
        module: ModuleOp,
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
        states: MutableMapping[str, torch.Tensor] | None = None,
        wide: bool = False,
        observe: Observer | None = None,
        launch: Launcher | None = None,
    ) -> None:
        self.module = module
        self.weights = weights if weights is not None else {}
        self.states = states if states is not None else {}
        self.wide = wide
        self._observe = observe
        self._launch = launch
        self._space = dim_space(module)
        self._packed: dict[str, torch.Tensor] | None = None
        self._check_given()

    def packed(self) -> dict[str, torch.Tensor]:
        """The results of the prepare function by name, computed once; nothing where the module has none."""
        if self._packed is None:
            found = [f for f in functions(self.module).values() if f.kind.data == "prepare"]
            self._packed = self.run((), found[0].symbol) if found else {}
        return self._packed

    def run(
        self, inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor], name: str = "main"
    ) -> dict[str, torch.Tensor]:
        """The results of a function by name, in order. inputs: by argument name, or in argument order."""
        called = function(self.module, name)
        arguments = self._arguments(called, inputs)
        sizes = self._sizes(called, arguments)
        values = [self._float(value) for value in arguments.values()]
        results = self._block(called.block, values, Setting(sizes, self.wide), sizes)
        return dict(zip(called.result_names.data, results, strict=True))

    def _check_given(self) -> None:
        narrow = Setting()
        problems = []
        for name, declared in weights(self.module).items():
            given = self.weights.get(name)
            if given is None:
                problems.append(f"{name} is missing ({declared})")
            elif given.dtype not in (narrow.torch(declared.dtype), Setting(wide=self.wide).torch(declared.dtype)):
                problems.append(f"{name} is {given.dtype}, the module has {declared}")
            elif all(d.is_static for d in declared.dims) and tuple(given.shape) != narrow.shape(declared.dims):
                problems.append(f"{name} is {show(given.shape)}, the module has {declared}")
        if problems:
            raise WeightsError(problems, step="pass the state dict of the model that the module was captured from")
        missing = [name for name in states(self.module) if name not in self.states]
        if missing:
            raise StateError([f"{name} has no value" for name in missing], step="pass an initial value for every state")

    def _arguments(
        self, called: FuncOp, inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        names = called.arg_names.data
        step = f"@{called.symbol} takes: {', '.join(names) or 'nothing'}"
        if isinstance(inputs, Mapping):
            missing = [f"{n} is missing" for n in names if n not in inputs]
            extra = [f"{n} is not an argument" for n in inputs if n not in names]
            if missing or extra:
                raise ArgumentError([*missing, *extra], step=step)
            given = {n: inputs[n] for n in names}
        else:
            if len(inputs) != len(names):
                raise ArgumentError(f"{len(inputs)} inputs for {len(names)} arguments", step=step)
            given = dict(zip(names, inputs, strict=True))
        wrong = []
        for name, value in called.arguments.items():
            declared = _type(value)
            allowed = {Setting().torch(declared.dtype), Setting(wide=self.wide).torch(declared.dtype)}
            if given[name].dtype not in allowed:
                wrong.append(f"{name} is {given[name].dtype}, declared {declared.dtype}")
        if wrong:
            raise DTypeError(wrong, step="convert the inputs to the dtypes the module states")
        return given

    def _sizes(self, called: FuncOp, arguments: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """The sizes of all symbols the function needs: from shapes, and read dims from the input of their name."""
        bound = [Bound(n, _type(v).dims, tuple(arguments[n].shape)) for n, v in called.arguments.items()]
        read = {}
        for dim in self._space.dims.values():
            value = arguments.get(dim.name) if dim.kind == "read" else None
            if value is not None:
                if value.numel() != 1 or value.is_floating_point():
                    raise RankError(f"{dim.name} is read as a size: it must be one integer", step="pass one integer")
                read[dim.name] = int(value)
        runtime = {d.name for d in self._space.dims.values() if d.kind == "runtime"}
        return bind(bound, self._space, _symbols(self.module, called) - runtime, read)

    def _float(self, value: torch.Tensor) -> torch.Tensor:
        return value.double() if self.wide and value.is_floating_point() else value

    def _block(
        self, block: Block, arguments: Tensors, setting: Setting, sizes: dict[str, int]
    ) -> tuple[torch.Tensor, ...]:
        values: dict[SSAValue, torch.Tensor] = dict(zip(block.args, arguments, strict=True))
        last_use = {operand: op for op in block.ops for operand in op.operands}
        for op in block.ops:
            if op.has_trait(IsTerminator):
                return tuple(values[v] for v in op.operands)
            slots = op.slots() if isinstance(op, GraphOp) else op.operands
            results = self._run(op, [None if v is None else values[v] for v in slots], setting, sizes)
            self._check(op, results, sizes)
            values.update(zip(op.results, results, strict=True))
            if self._observe is not None:
                self._observe(op, results)
            for value in {*op.operands, *op.results}:
                # free what no later op reads
                if last_use.get(value, op) is op:
                    values.pop(value, None)
        raise InterpreterError("a block ends without a terminator", step="verify the module")

    def _run(
        self, op: Operation, operands: list[Any], setting: Setting, sizes: dict[str, int]
    ) -> tuple[torch.Tensor, ...]:
        match op:
            case CallOp():
                return self._block(function(self.module, op.callee.data).block, operands, setting, sizes)
            case GroupOp():
                return self._block(op.block, operands, setting, sizes)
            case WeightOp():
                return (self._float(self.weights[op.label.data]),)
            case PackedOp():
                return (self.packed()[op.label.data],)
            case StateReadOp():
                return (self._float(self.states[op.label.data]),)
            case StateWriteOp():
                (self.states[op.label.data],) = operands
                return ()
        try:
            if isinstance(op, GraphOp):
                found = op.evaluate(setting, *operands)
            elif self._launch is not None:
                found = self._launch(op, operands, sizes)
            else:
                raise _failed(op, f"{op.name} is not a graph op", "pass launch= to run kernels")
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as fault:
            raise _failed(op, f"{type(fault).__name__}: {fault}", "look at the operands' values and shapes") from fault
        except TilewrightError as fault:
            # what is wrong with a kernel has a code of its own
            if isinstance(fault, (InterpreterError, PoisonError, KernelStoreError)):
                raise
            raise _failed(op, fault.problems[0].text, "look at the operands' values and shapes") from fault
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)

    def _check(self, op: Operation, results: tuple[torch.Tensor, ...], sizes: dict[str, int]) -> None:
        """Every result is what its type says; a run-time dim takes the first size it meets."""
        if len(results) != len(op.results):
            raise _failed(op, f"gave {len(results)} results, {len(op.results)} are declared", "mend its reference")
        for value, result in zip(op.results, results, strict=True):
            declared = _type(value)
            if len(declared.dims) == result.ndim:
                for dim, size in zip(declared.dims, result.shape, strict=True):
                    self._settle(op, str(dim), size, sizes)
            unknown = sorted({s for d in declared.dims for s in d.symbols} - set(sizes))
            if unknown:
                raise _failed(op, f"the sizes of {', '.join(unknown)} are unknown", "declare them as dims of an input")
            dtype = Setting(wide=self.wide).torch(declared.dtype)
            shape = tuple(d.evaluate(sizes) for d in declared.dims)
            if tuple(result.shape) != shape or result.dtype != dtype:
                given = f"{str(result.dtype).removeprefix('torch.')}{show(result.shape)}"
                wanted = f"{declared} = {str(dtype).removeprefix('torch.')}{show(shape)}"
                raise _failed(op, f"gave {given}, its type says {wanted}", "mend the dims that the op was given")

    def _settle(self, op: Operation, symbol: str, size: int, sizes: dict[str, int]) -> None:
        dim = self._space.dims.get(symbol)
        if dim is not None and dim.kind == "runtime" and symbol not in sizes:
            try:
                check_bounds({symbol: size}, self._space)
            except DimRangeError as fault:
                raise _failed(op, fault.problems[0].text, fault.step) from fault
            sizes[symbol] = size


def _failed(op: Operation, reason: str, step: str) -> InterpreterError:
    where = op.loc if isinstance(op, TwOperation) else None
    return InterpreterError(Problem(reason, op=op.name, where=where), step=step)


def _type(value: SSAValue) -> TensorType:
    if not isinstance(value.type, TensorType):
        raise InterpreterError(f"a value of type {value.type} in a graph function", step="verify the module")
    return value.type


def _symbols(module: ModuleOp, called: FuncOp) -> set[str]:
    """The symbols in types of a function and of those it calls."""
    found: set[str] = set()
    pending, seen = [called], {called.symbol}
    while pending:
        current = pending.pop()
        for op in current.walk():
            types = [v.type for v in op.results]
            types += [arg.type for region in op.regions for block in region.blocks for arg in block.args]
            found |= {s for t in types if isinstance(t, TensorType) for d in t.dims for s in d.symbols}
            if isinstance(op, CallOp) and op.callee.data not in seen:
                seen.add(op.callee.data)
                pending.append(function(module, op.callee.data))
    return found

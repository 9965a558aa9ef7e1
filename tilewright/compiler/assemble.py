"""From a lowered and planned module to the runtime's program: launches become rows of the step table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, BlockArgument, Operation, SSAValue

from tilewright.errors import LoweringError, Problem
from tilewright.frontend.captured import Captured
from tilewright.ir.backend import kernels_of
from tilewright.ir.dims import DimSpace
from tilewright.ir.graph.base import tensor
from tilewright.ir.graph.shape import ReshapeOp
from tilewright.ir.graph.structure import FuncOp, PackedOp, ReturnOp, StateReadOp, StateWriteOp, WeightOp
from tilewright.ir.guards import Guard
from tilewright.ir.operation import TwOperation
from tilewright.ir.signature import Signature
from tilewright.ir.tile.residence import Place
from tilewright.ir.tile.structure import KernelOp, LaunchOp
from tilewright.ir.types import TensorType
from tilewright.passes.plan_memory import place_of, plan_function, slots_of, storage_of
from tilewright.runtime.program import (
    Copy,
    KernelInfo,
    Program,
    ReadDim,
    Ref,
    Routine,
    Slot,
    State,
    Step,
    TensorSpec,
    Variant,
)


@dataclass(frozen=True)
class Interface:
    """What a program says of itself beyond its module: how it is called, and by which names its weights come.

    tied, transient, reads: as in Program. names: of every tensor of the model, read by the module or not. zeroed: the
    states that start as zeros; others start from the weight of their name.
    """

    signature: Signature
    guards: tuple[Guard, ...]
    tied: tuple[tuple[str, str], ...]
    transient: frozenset[str]
    names: frozenset[str]
    reads: tuple[ReadDim, ...] = ()
    zeroed: frozenset[str] = frozenset()

    @staticmethod
    def of(captured: Captured) -> Interface:
        """Of a captured model."""
        return Interface(
            captured.signature,
            captured.guards,
            tuple(sorted(captured.aliases.items())),
            frozenset(captured.transient),
            frozenset({*captured.weights, *captured.states}),
            tuple(ReadDim(read.dim, read.argument) for read in captured.reads),
            captured.zeroed,
        )

    @staticmethod
    def again(program: Program) -> Interface:
        """Of a program that was assembled before."""
        names = frozenset({*(spec.name for spec in program.weights), *program.ignored})
        zeroed = frozenset(state.spec.name for state in program.states if state.initial is None)
        return Interface(
            program.signature, program.guards, program.tied, frozenset(program.transient), names, program.reads, zeroed
        )


def assemble(
    module: ModuleOp,
    interface: Interface,
    symbols: Mapping[str, str],
    kernels: Sequence[KernelInfo],
    *,
    target: str,
    dims: DimSpace,
    device: str = "cpu",
) -> Program:
    """The program of a module whose @main is planned.

    symbols: kernel name in the module -> symbol of its object code. device: where the steps run.
    """
    functions = {f.kind.data: f for f in module.body.block.ops if isinstance(f, FuncOp)}
    main = functions["main"]
    table = _Table(main, functions.get("prepare"), kernels_of(module), symbols, device, interface.zeroed)
    results = tuple(TensorSpec(name, tensor(v).dims, tensor(v).dtype) for name, v in main.returned.items())
    routine, copies = table.main()
    prepare = tuple(table.prepare(dims))
    return Program(
        dims=tuple(dims.dims.values()),
        signature=interface.signature,
        main=routine,
        results=results,
        weights=tuple(table.weights.values()),
        packed=tuple(table.packed.values()),
        states=tuple(table.states.values()),
        prepare=prepare,
        copies=tuple(copies),
        guards=interface.guards,
        reads=interface.reads,
        kernels=tuple(kernels),
        tied=interface.tied,
        transient=tuple(sorted(interface.transient & set(table.weights))),
        ignored=tuple(sorted(interface.names - set(table.weights))),
        target=target,
    )


class _Table:
    """Numbers weights, packed tensors and states as they are first met, and turns ops into steps."""

    def __init__(
        self,
        main: FuncOp,
        prepare: FuncOp | None,
        kernels: Mapping[str, KernelOp],
        symbols: Mapping[str, str],
        device: str,
        zeroed: frozenset[str],
    ) -> None:
        self.function, self.preparing, self.kernels, self.symbols = main, prepare, kernels, symbols
        self.device, self.zeroed = device, zeroed
        self.weights: dict[str, TensorSpec] = {}
        self.states: dict[str, State] = {}
        # launches may see a state under other dims
        self.kinds: dict[str, TensorType] = {}
        for op in main.block.ops:
            if isinstance(op, (StateReadOp, StateWriteOp)):
                self.kinds[op.label.data] = tensor(op.value if isinstance(op, StateWriteOp) else op.out)
        self.packed: dict[str, TensorSpec] = {}
        if prepare is not None:
            for name, value in prepare.returned.items():
                self.packed[name] = TensorSpec(name, tensor(value).dims, tensor(value).dtype)

    def main(self) -> tuple[Routine, list[Copy]]:
        """The steps of @main, and the copies that follow them."""
        steps = self._steps(self.function)
        copies: list[Copy] = []
        for i, value in enumerate(self.function.terminator.values):
            found = self._ref(value)
            if found != Ref("output", i):
                copies.append(Copy(found, Ref("output", i), tensor(value).bytes))
        for op in self.function.block.ops:
            if isinstance(op, StateWriteOp):
                state = Ref("state", self._state(op.label.data))
                # a state that launches changed in place is there already
                if (found := self._ref(op.value)) != state:
                    copies.append(Copy(found, state, tensor(op.value).bytes))
        return Routine(
            tuple(steps), tuple(Slot(tuple(dict.fromkeys(s.sizes))) for s in slots_of(self.function))
        ), copies

    def prepare(self, dims: DimSpace) -> list[Routine]:
        """One routine a packed tensor, each computing it from weights alone, so that one at a time is in memory."""
        if self.preparing is None:
            return []
        routines = []
        for index, name in enumerate(self.packed):
            one = _slice(self.preparing, name)
            plan_function(one, dims, reuse=True)
            steps = self._steps(one, output=("packed", index))
            routines.append(Routine(tuple(steps), tuple(Slot(tuple(dict.fromkeys(s.sizes))) for s in slots_of(one))))
        return routines

    def _steps(self, function: FuncOp, output: tuple[str, int] | None = None) -> list[Step]:
        steps = []
        for op in function.block.ops:
            match op:
                case LaunchOp():
                    steps.append(self._step(op, output))
                case WeightOp() | PackedOp() | ReshapeOp() | ReturnOp() | StateReadOp() | StateWriteOp():
                    pass
                case _:
                    raise _left(op)
        return steps

    def _step(self, op: LaunchOp, output: tuple[str, int] | None) -> Step:
        limits: list[int | None] = [*op.limits.data, None]
        variants = tuple(
            Variant(self.symbols[name], limit) for name, limit in zip(op.callees.data, limits, strict=True)
        )
        written = [self._place(place, output) for place in op.places.data]
        kernel = op.callees.data[0]
        return Step(
            name=kernel,
            variants=variants,
            buffers=(*(self._ref(v) for v in op.read), *written),
            written=len(written),
            formal_dims=self.kernels[kernel].dims.data,
            dims=op.dims.data,
            guard=op.guard.data[0],
            barrier_after=op.barrier.data,
            kind=kernel,
            path=op.path or "",
            location=op.loc,
            device=self.device,
        )

    def _place(self, place: Place, output: tuple[str, int] | None) -> Ref:
        """A place in a routine; output: what the one result of @prepare is."""
        match place.kind:
            case "slot":
                return Ref("slot", place.number)
            case "state":
                return Ref("state", self._state(place.name))
            case "output":
                return Ref("output", place.number) if output is None else Ref("packed", output[1])

    def _ref(self, value: SSAValue) -> Ref:
        source = storage_of(value)
        if isinstance(source, BlockArgument):
            return Ref("input", source.index)
        place = place_of(source)
        if place is not None:
            return self._place(place, None)
        op = source.owner
        match op:
            case WeightOp():
                return Ref("weight", self._weight(op))
            case PackedOp():
                return Ref("packed", list(self.packed).index(op.label.data))
            case _:
                raise _left(op)

    def _weight(self, op: WeightOp) -> int:
        name = op.label.data
        self.weights.setdefault(name, TensorSpec(name, tensor(op.out).dims, tensor(op.out).dtype))
        return list(self.weights).index(name)

    def _state(self, name: str) -> int:
        if name not in self.states:
            kind = self.kinds[name]
            spec = TensorSpec(name, kind.dims, kind.dtype)
            if name in self.zeroed:
                self.states[name] = State(spec)
            else:
                self.weights.setdefault(name, spec)
                self.states[name] = State(spec, list(self.weights).index(name))
        return list(self.states).index(name)


def _left(op: Operation | Block) -> LoweringError:
    name = op.name if isinstance(op, Operation) else "block"
    where = op.loc if isinstance(op, TwOperation) else None
    return LoweringError(
        Problem("this op is not part of any kernel", op=name, where=where),
        step="its group was not formed: run `tilewright opt --print-after=fuse` on the module",
    )


def _slice(prepare: FuncOp, name: str) -> FuncOp:
    """A function that computes one result of @prepare and nothing else."""
    wanted = prepare.returned[name]
    needed: set[Operation] = set()
    pending = [wanted.owner]
    while pending:
        op = pending.pop()
        if isinstance(op, Operation) and op not in needed:
            needed.add(op)
            pending.extend(o.owner for o in op.operands)
    values: dict[SSAValue, SSAValue] = {}
    one = FuncOp.begin("prepare", {}, kind="prepare")
    for op in prepare.block.ops:
        if op in needed:
            one.block.add_op(op.clone(values))
    return one.finish([values[wanted]], [name])

"""A compiled program as plain data: the step table, its buffers and everything the runtime must know about a call.

Nothing here computes. `program_json` writes it to JSON and back, `plan` resolves it for one tuple of dims, `executor`
runs it. A program names kernels by symbol; the code behind the symbols travels beside it.

*Buffers.* A step names each buffer as a `Ref`: one of the call's inputs, results, weights, packed tensors, states or
slots, and an offset in bytes. Slots are pieces of the call's own scratch memory, numbered; the space "dims" is a table
of int64 in which entry i is the value of `Program.dims[i]`, for kernels that read a size while running.

*Run-time dims.* A step may write a dim of kind "runtime" into that table. Whatever is decided before the call (slot
sizes, offsets, variants, the dims a kernel is launched with) takes its upper bound; results are cut to the value that
the table holds when the call ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from tilewright.ir.device import HOST_NAME
from tilewright.ir.dims import Dim, DimSpace, Expr
from tilewright.ir.dims import product as product_of
from tilewright.ir.dtypes import DType
from tilewright.ir.grid_abi import Grid
from tilewright.ir.guards import Guard
from tilewright.ir.signature import Signature

Space = Literal["input", "output", "weight", "packed", "state", "slot", "dims"]

SPACES: Final[tuple[Space, ...]] = ("input", "output", "weight", "packed", "state", "slot", "dims")
ZERO: Final = Expr.of(0)
ALIGNMENT: Final = 64
"""Bytes to which slots, stored tensors and our own allocations are aligned: one cache line, one full vector."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's name, sizes and element type; row-major without gaps."""

    name: str
    dims: tuple[Expr, ...]
    dtype: DType

    @property
    def bytes(self) -> Expr:
        return product_of(self.dims) * self.dtype.bytes

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The sizes at given values of the dims; KeyError names a dim without one."""
        return tuple(d.evaluate(sizes) for d in self.dims)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True, slots=True)
class Ref:
    """A place in memory: number `index` of a space, and an offset in bytes from its start."""

    space: Space
    index: int
    offset: Expr = ZERO


@dataclass(frozen=True, slots=True)
class Slot:
    """Scratch memory shared by buffers that are never alive together; as large as the largest, all sizes in bytes."""

    sizes: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """One of a kernel's implementations: runs when the step's guard is at most `limit`; None for the last, always."""

    symbol: str
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class HostCall:
    """A step that runs in Python on the calling thread: a function given to the executor by name.

    arguments: its constants as JSON text. The step's buffers are `inputs`, then `outputs`, which say how to view them.
    """

    callee: str
    arguments: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the step table.

    formal_dims: the kernel's own names for its dims. dims: their values, in the same order, in the program's dims.
    guard: in the formal dims; chooses the variant. barrier_after: other threads' later steps read what this one wrote.
    kind, path, location: for reports: the skeleton, the module path in the model, the user's "file.py:12". written: how
    many of the buffers, the last ones, a kernel writes; a state among them is changed in place.
    """

    name: str
    variants: tuple[Variant, ...] = ()
    buffers: tuple[Ref, ...] = ()
    formal_dims: tuple[str, ...] = ()
    dims: tuple[Expr, ...] = ()
    guard: Expr = ZERO
    barrier_after: bool = True
    kind: str = ""
    path: str = ""
    location: str | None = None
    device: str = HOST_NAME
    host: HostCall | None = None
    written: int = 0


@dataclass(frozen=True, slots=True)
class Routine:
    """Steps in order, with the slots they compute in."""

    steps: tuple[Step, ...] = ()
    slots: tuple[Slot, ...] = ()


@dataclass(frozen=True, slots=True)
class Copy:
    """`size` bytes moved after the steps, in order: results that are an input or a weight as it is, states that take a
    whole new value.
    """

    source: Ref
    destination: Ref
    size: Expr


@dataclass(frozen=True, slots=True)
class State:
    """A tensor that lives from call to call, with static sizes. initial: the weight it starts from; None for zeros."""

    spec: TensorSpec
    initial: int | None = None


@dataclass(frozen=True, slots=True)
class ReadDim:
    """A dim whose value is read at entry: element number `element` of integer input number `input`."""

    dim: str
    input: int
    element: int = 0


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """A kernel by symbol. key: of the object that holds it. name: of one kernel in the IR that it is the code of. grid:
    how a device launches it; None for kernels of the native ABI.
    """

    symbol: str
    key: str
    name: str
    grid: Grid | None = None


@dataclass(frozen=True)
class Program:
    """Everything about a compiled model but its code and its weights' values.

    dims: every named dim, in the order of the tuples that resolved plans are kept by. results: of @main, by number, as
    `signature.outputs` and `signature.mutations` count them. weights: what @prepare and @main read, by the state dict's
    names. packed: results of @prepare; its routines run one after another, each by itself, and touch only weights,
    packed tensors and slots. tied: (other name, name) of weights that are one tensor. transient: weights that no state
    dict holds; they are stored as they are, and keep their values when the others change. ignored: names a state dict
    may hold beyond these. guards: checked at every call. copies: after the steps of @main.
    """

    dims: tuple[Dim, ...]
    signature: Signature
    main: Routine
    results: tuple[TensorSpec, ...]
    weights: tuple[TensorSpec, ...] = ()
    packed: tuple[TensorSpec, ...] = ()
    states: tuple[State, ...] = ()
    prepare: tuple[Routine, ...] = ()
    copies: tuple[Copy, ...] = ()
    guards: tuple[Guard, ...] = ()
    reads: tuple[ReadDim, ...] = ()
    kernels: tuple[KernelInfo, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    transient: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    target: str = "cpu"

    @cached_property
    def space(self) -> DimSpace:
        return DimSpace(self.dims)

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Every kernel symbol that some step may call, sorted."""
        routines = (self.main, *self.prepare)
        return tuple(sorted({v.symbol for r in routines for step in r.steps for v in step.variants}))

    @cached_property
    def resident(self) -> tuple[int, ...]:
        """The weights that @main reads as they are, a state starts from, or no state dict holds, by number: they are
        stored beside the packed.
        """
        used = {ref.index for step in self.main.steps for ref in step.buffers if ref.space == "weight"}
        used |= {copy.source.index for copy in self.copies if copy.source.space == "weight"}
        used |= {state.initial for state in self.states if state.initial is not None}
        used |= {index for index, spec in enumerate(self.weights) if spec.name in self.transient}
        return tuple(sorted(used))

    @cached_property
    def stored(self) -> tuple[TensorSpec, ...]:
        """The tensors a loaded program holds, as its weights file names them: "weight:NAME" and "packed:NAME"."""
        weights = [TensorSpec(f"weight:{s.name}", s.dims, s.dtype) for s in (self.weights[i] for i in self.resident)]
        return (*weights, *(TensorSpec(f"packed:{s.name}", s.dims, s.dtype) for s in self.packed))

    def sizes(self, values: tuple[int, ...]) -> dict[str, int]:
        """Values in the order of `dims`, by name."""
        return {dim.name: value for dim, value in zip(self.dims, values, strict=True)}

"""A call's arguments to addresses and dims: flattened, checked, made dense.

Shapes seen before cost a dictionary look-up; everything else is checked whole, and all problems of one kind come in one
error (`binding_errors`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.errors import CapacityError
from tilewright.ir.signature import Argument, Input
from tilewright.ir.solve import axes_of, solve
from tilewright.runtime import binding_errors as errors
from tilewright.runtime.program import Program
from tilewright.runtime.tensors import Buffer, address_of, as_buffer, describe, is_torch

# Distinct combinations of shapes remembered before starting anew.
_REMEMBERED = 4096

_NO_ARGUMENT = object()


@dataclass(slots=True)
class Binding:
    """One call's arguments.

    values: of `Program.dims` in order, run-time dims at their upper bound. addresses: of the dense inputs, in the order
    of `signature.tensors`. tensors: what the addresses point into. leaves: the caller's own tensors, which mutations
    are written back to. torch: whether results are torch tensors.
    """

    values: tuple[int, ...]
    addresses: list[int]
    tensors: Sequence[Any]
    leaves: Sequence[Any]
    torch: bool


Key = tuple[Any, ...]
"""What a call's tensors are, but for their values: type, shape, dtype, device and layout of each, and whether autograd
would record the call."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a combination of shapes means: the dims it gives, which leaves must be copied to be dense, and whether
    results are torch tensors.
    """

    values: tuple[int, ...]
    copied: frozenset[int]
    torch: bool


class Binder:
    """Checks and binds the arguments of calls to one program; many threads may use it at once."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._signature = program.signature
        self._inputs = program.signature.tensors
        self._flat = _Flat.of(program)
        self._known: dict[Key, Known] = {}
        mutated = {name for name, _ in program.signature.mutations}
        self._mutated = [i for i, leaf in enumerate(self._inputs) if leaf.name in mutated]

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Binding:
        """Checks a call's arguments, and gives dims and addresses.

        Raises, each with every problem of its kind and in this order: ArgumentError, DeviceError, DTypeError,
        RankError, AutogradError, DimMismatchError, DimRangeError.
        """
        leaves = self.leaves(args, kwargs)
        known = self.known(self.key(leaves), leaves)
        addresses, tensors = self.addresses(leaves, known.copied)
        return Binding(known.values, addresses, tensors, leaves, known.torch)

    def leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """The tensors of a call in the order of @main's arguments, not checked; ArgumentError for another structure."""
        leaves = None if self._flat is None else self._flat.take(args, kwargs)
        return self._signature.flatten(args, kwargs) if leaves is None else leaves

    @staticmethod
    def key(leaves: Sequence[Any]) -> Key:
        """What decides how these tensors are bound; equal keys are bound alike, but for read dims."""
        torch: Any = sys.modules.get("torch")
        # A torch that is only being imported has no Tensor yet.
        tensor_class = getattr(torch, "Tensor", ())
        key: list[Any] = []
        gradient = False
        for leaf in leaves:
            if type(leaf) is np.ndarray:
                key += (leaf.shape, leaf.dtype, leaf.flags.num)
            elif isinstance(leaf, tensor_class):
                dense = leaf.is_contiguous() if leaf.layout is torch.strided else leaf.layout
                try:
                    shape = leaf.shape
                except RuntimeError:
                    # a nested tensor; what is refused is never known
                    shape = None
                key += (type(leaf), shape, leaf.dtype, leaf.device, dense, leaf.is_neg())
                gradient = gradient or leaf.requires_grad
            else:
                # A scalar or a subclass of ndarray; what is no tensor is never known.
                key += (type(leaf), getattr(leaf, "shape", None), getattr(leaf, "dtype", None))
        key.append(gradient and torch.is_grad_enabled())
        return tuple(key)

    def known(self, key: Key, leaves: Sequence[Any]) -> Known:
        """What these shapes mean, with the values of read dims, or all that is wrong with them: raises as `bind`."""
        known = None if self._program.reads else self._known.get(key)
        if known is not None:
            return known
        errors.check_tensors(self._inputs, leaves)
        if key[-1]:
            errors.check_gradients(self._inputs, leaves)
        reads = errors.read_dims(self._program, leaves)
        if reads:
            key = (*key, *reads.values())
            known = self._known.get(key)
        if known is None:
            known = self._learn(leaves, reads)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = known
        return known

    def _learn(self, leaves: Sequence[Any], reads: Mapping[str, int]) -> Known:
        found = [describe(leaf) for leaf in leaves]
        axes = axes_of(self._inputs, [d.shape for d in found if d is not None])
        upper = {dim.name: dim.max for dim in self._program.dims if dim.kind == "runtime" and dim.max is not None}
        solution = solve(axes, {**upper, **reads})
        errors.check_dims(self._program, solution)
        copied = frozenset(i for i, leaf in enumerate(leaves) if not _dense(leaf))
        values = tuple(solution.values[dim.name] for dim in self._program.dims)
        # what takes no tensors gives those of the framework that is there
        torch = any(is_torch(leaf) for leaf in leaves) if leaves else hasattr(sys.modules.get("torch"), "Tensor")
        return Known(values, copied, torch)

    def addresses(self, leaves: Sequence[Any], copied: frozenset[int]) -> tuple[list[int], Sequence[Any]]:
        """Where the tensors lie, dense, and what keeps them there. copied: `Known.copied`."""
        if self._mutated:
            errors.check_written(self._inputs, leaves, self._mutated)
        try:
            if not copied:
                found = [address_of(leaf) if type(leaf) is np.ndarray else leaf.data_ptr() for leaf in leaves]
                tensors = leaves
            else:
                tensors = [as_buffer(leaf) if index in copied else leaf for index, leaf in enumerate(leaves)]
                found = [_address(tensor) for tensor in tensors]
        except (RuntimeError, CapacityError):
            # a tracer's tensor has the key of a real one, and no memory
            errors.check_tensors(self._inputs, leaves)
            raise
        if 0 in found:
            # empty, or a tracer's that does not say so
            errors.check_tensors(self._inputs, leaves)
        return found, tensors


def _address(tensor: Any) -> int:
    """Where a dense tensor lies."""
    if type(tensor) is np.ndarray:
        return address_of(tensor)
    address: int = tensor.address if isinstance(tensor, Buffer) else tensor.data_ptr()
    return address


def _dense(leaf: Any) -> bool:
    """Whether a leaf's own memory can be handed to a kernel."""
    if type(leaf) is np.ndarray:
        return leaf.flags.c_contiguous and leaf.flags.aligned and leaf.dtype.isnative
    return is_torch(leaf) and leaf.is_contiguous() and not leaf.is_neg()


@dataclass(frozen=True, slots=True)
class _Flat:
    """The common case of a signature, without Python's argument binding: every argument is one parameter and one leaf.

    positions: parameters that may be given by position, in order. arguments: by parameter name. whole: all arguments
    are tensors in the order of the positions, so that a call by position alone is its own leaves. Anything unusual in a
    call is left to `Signature.flatten`, which also says what is wrong.
    """

    positions: tuple[str, ...]
    arguments: dict[str, Input]
    order: tuple[str, ...]
    whole: bool

    @staticmethod
    def of(program: Program) -> _Flat | None:
        """The short way for this program, or None where it has none."""
        signature = program.signature
        kinds = {p.name: p.kind for p in signature.parameters}
        if any(not _is_leaf(a) or kinds.get(a.name) not in ("either", "keyword") for a in signature.arguments):
            return None
        positions = tuple(p.name for p in signature.parameters if p.kind == "either")
        by_keyword = {a.name: a.inputs[0] for a in signature.arguments}
        order = tuple(a.name for a in signature.arguments)
        whole = order == positions and all(leaf.is_tensor for leaf in by_keyword.values())
        return _Flat(positions, by_keyword, order, whole)

    def take(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any] | None:
        """The tensors of a call in the order of @main's arguments; None where the long way must decide."""
        if self.whole and not kwargs and len(args) == len(self.order):
            # what is no tensor is told apart where its type is looked up
            return args
        if len(args) + len(kwargs) != len(self.order) or len(args) > len(self.positions):
            return None
        given = dict(zip(self.positions, args, strict=False))
        leaves = []
        for name in self.order:
            value = given.get(name, _NO_ARGUMENT)
            if value is _NO_ARGUMENT:
                value = kwargs.get(name, _NO_ARGUMENT)
            leaf = self.arguments[name]
            if leaf.is_tensor:
                if value is _NO_ARGUMENT or value is None or isinstance(value, (bool, int, float, str)):
                    return None
                leaves.append(value)
            elif value is not leaf.constant and (type(value) is not type(leaf.constant) or value != leaf.constant):
                return None
        return leaves


def _is_leaf(argument: Argument) -> bool:
    return argument.tree.kind == "leaf"

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

from tilewright.ir.signature import Argument, Input
from tilewright.runtime import binding_errors as errors
from tilewright.runtime.program import Program
from tilewright.runtime.solve import axes_of, solve
from tilewright.runtime.tensors import address_of, as_buffer, describe, is_torch

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
    tensors: list[Any]
    leaves: Sequence[Any]
    torch: bool


@dataclass(frozen=True, slots=True)
class _Known:
    """What a combination of shapes means: the dims it gives, and which leaves must be copied to be dense."""

    values: tuple[int, ...]
    copied: frozenset[int]


class Binder:
    """Checks and binds the arguments of calls to one program; many threads may use it at once."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._signature = program.signature
        self._inputs = program.signature.tensors
        self._flat = _Flat.of(program)
        self._known: dict[Any, _Known] = {}
        mutated = {name for name, _ in program.signature.mutations}
        self._mutated = [i for i, leaf in enumerate(self._inputs) if leaf.name in mutated]

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Binding:
        """Checks a call's arguments, and gives dims and addresses.

        Raises, each with every problem of its kind and in this order: ArgumentError, DeviceError, DTypeError,
        RankError, AutogradError, DimMismatchError, DimRangeError.
        """
        leaves = None if self._flat is None else self._flat.take(args, kwargs)
        if leaves is None:
            leaves = self._signature.flatten(args, kwargs)
        key: list[Any] = []
        torch: Any = sys.modules.get("torch")
        # A torch that is only being imported has no Tensor yet.
        tensor_class = getattr(torch, "Tensor", ())
        any_torch = gradient = False
        for leaf in leaves:
            if type(leaf) is np.ndarray:
                key += (leaf.shape, leaf.dtype, leaf.flags.num)
            elif isinstance(leaf, tensor_class):
                any_torch = True
                strided = leaf.layout is torch.strided
                dense = strided and leaf.is_contiguous()
                key += (type(leaf), leaf.shape, leaf.dtype, leaf.device, dense, leaf.is_neg())
                gradient = gradient or leaf.requires_grad
            else:
                # A scalar or a subclass of ndarray; what is no tensor never gets into `_known`.
                key += (type(leaf), getattr(leaf, "shape", None), getattr(leaf, "dtype", None))
        gradient = gradient and torch.is_grad_enabled()
        shapes = tuple(key)
        known = None if self._program.reads else self._known.get(shapes)
        if known is None or gradient:
            known = self._check(shapes, leaves, gradient)
        return self._bound(leaves, known, any_torch)

    def _check(self, shapes: tuple[Any, ...], leaves: Sequence[Any], gradient: bool) -> _Known:
        """What is known of these shapes, and of the values of read dims, or all that is wrong with them."""
        errors.check_tensors(self._inputs, leaves)
        if gradient:
            errors.check_gradients(self._inputs, leaves)
        reads = errors.read_dims(self._program, leaves)
        key = (shapes, *reads.values()) if reads else shapes
        known = self._known.get(key)
        if known is None:
            known = self._learn(leaves, reads)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = known
        return known

    def _learn(self, leaves: Sequence[Any], reads: Mapping[str, int]) -> _Known:
        found = [describe(leaf) for leaf in leaves]
        axes = axes_of(self._inputs, [d.shape for d in found if d is not None])
        upper = {dim.name: dim.max for dim in self._program.dims if dim.kind == "runtime" and dim.max is not None}
        solution = solve(axes, {**upper, **reads})
        errors.check_dims(self._program, solution)
        copied = frozenset(i for i, leaf in enumerate(leaves) if not _dense(leaf))
        return _Known(tuple(solution.values[dim.name] for dim in self._program.dims), copied)

    def _bound(self, leaves: Sequence[Any], known: _Known, torch: bool) -> Binding:
        tensors = list(leaves)
        addresses = []
        for index, leaf in enumerate(leaves):
            if index in known.copied:
                buffer = as_buffer(leaf)
                tensors[index] = buffer
                addresses.append(buffer.address)
            elif type(leaf) is np.ndarray:
                addresses.append(address_of(leaf))
            else:
                addresses.append(leaf.data_ptr())
        if self._mutated:
            errors.check_written(self._inputs, leaves, self._mutated)
        return Binding(known.values, addresses, tensors, leaves, torch)


def _dense(leaf: Any) -> bool:
    """Whether a leaf's own memory can be handed to a kernel."""
    if type(leaf) is np.ndarray:
        return leaf.flags.c_contiguous and leaf.flags.aligned and leaf.dtype.isnative
    return is_torch(leaf) and leaf.is_contiguous() and not leaf.is_neg()


@dataclass(frozen=True, slots=True)
class _Flat:
    """The common case of a signature, without Python's argument binding: every argument is one parameter and one leaf.

    positions: parameters that may be given by position, in order. arguments: by parameter name. Anything unusual in a
    call is left to `Signature.flatten`, which also says what is wrong.
    """

    positions: tuple[str, ...]
    arguments: dict[str, Input]
    order: tuple[str, ...]

    @staticmethod
    def of(program: Program) -> _Flat | None:
        """The short way for this program, or None where it has none."""
        signature = program.signature
        kinds = {p.name: p.kind for p in signature.parameters}
        if any(not _is_leaf(a) or kinds.get(a.name) not in ("either", "keyword") for a in signature.arguments):
            return None
        positions = tuple(p.name for p in signature.parameters if p.kind == "either")
        by_keyword = {a.name: a.inputs[0] for a in signature.arguments}
        return _Flat(positions, by_keyword, tuple(a.name for a in signature.arguments))

    def take(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
        """The tensors of a call in the order of @main's arguments; None where the long way must decide."""
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

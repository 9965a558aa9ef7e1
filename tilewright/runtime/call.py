"""What a combination of shapes decides about a call, kept so that the next call like it only fills in addresses.

The base pointers of a call lie in a `Frame`. Frames wait at their call for the next one: taking and giving back is one
operation on a list, which Python makes indivisible, so concurrent calls never share a frame and need no lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.binding import Known
from tilewright.runtime.memory import Arena
from tilewright.runtime.program import Program, TensorSpec
from tilewright.runtime.resolve import BaseTable, NativePart, Resolved
from tilewright.runtime.states import StateStore
from tilewright.runtime.tensors import address_of, row_major, torch_dtype
from tilewright.runtime.weights import WeightSet

TINY_BYTES = 32 << 10
"""Bytes of all buffers of all steps up to which a call runs on its own thread, without asking for cores.

A lease and a wake-up cost about 6 us. In so few bytes, what one thread computes takes about as long: 8192 elements
through an exponential, or 0.3 MFLOP of a square product, the most FLOPs that two operands and a result of this size
allow.
"""


@dataclass(slots=True)
class Frame:
    """The base pointers of one call at a time. view: `words` again, for single words, twice as fast. weights: whose
    pointers are in it. arena: scratch memory of a call that runs alone; other calls take theirs from the pool.
    """

    words: NDArray[np.int64]
    view: memoryview
    address: int
    weights: WeightSet
    arena: Arena | None = None


@dataclass(slots=True)
class Call:
    """A call's plan. values, copied, torch: see `Known`. sizes: the dims by name. results: (shape, strides, dtype) of
    each, the dtype as torch's where the results are torch tensors. alone: the native part of a call that is so small
    that its own thread runs it; None where a team does.
    """

    values: tuple[int, ...]
    copied: frozenset[int]
    torch: bool
    sizes: dict[str, int]
    plan: Resolved
    results: tuple[tuple[Any, tuple[int, ...], Any], ...]
    alone: NativePart | None
    frames: list[Frame] = field(default_factory=list)

    @staticmethod
    def of(program: Program, known: Known, plan: Resolved, sizes: dict[str, int]) -> Call:
        """The call that these shapes make; sizes: of all dims by name."""
        dtypes = [spec.dtype for spec in program.results]
        results = tuple(
            (shape, row_major(shape), torch_dtype(dtype) if known.torch else dtype)
            for shape, dtype in zip(plan.shapes, dtypes, strict=True)
        )
        alone = None
        if len(plan.parts) == 1 and not plan.copies and traffic(program, sizes) <= TINY_BYTES:
            part = plan.parts[0]
            alone = part if isinstance(part, NativePart) else None
        return Call(known.values, known.copied, known.torch, sizes, plan, results, alone)

    def frame(self, bases: BaseTable, weights: WeightSet, states: StateStore) -> Frame:
        """A frame that no other call uses, all but inputs, outputs and the arena filled in."""
        try:
            frame = self.frames.pop()
        except IndexError:
            words = np.zeros(bases.size + len(self.values), np.int64)
            frame = Frame(words, words.data, address_of(words), weights)
            words[bases.first["state"] : bases.size] = states.pointers
            words[BaseTable.DIMS] = frame.address + words.itemsize * bases.size
            words[bases.size :] = self.values
            if self.alone is not None and self.plan.arena:
                frame.arena = Arena(self.plan.arena)
                words[BaseTable.ARENA] = frame.arena.address
        else:
            if frame.weights is weights:
                return frame
        frame.weights = weights
        frame.words[bases.first["weight"] : bases.first["state"]] = weights.pointers
        return frame


def traffic(program: Program, sizes: dict[str, int]) -> int:
    """Bytes of the buffers of all steps of @main, each step's own: what the steps touch at most, tables included.

    Of a state that a step changes in place it touches no more than it is given for it, read and written.
    """
    inputs = [TensorSpec(leaf.name, leaf.dims, leaf.dtype) for leaf in program.signature.tensors if leaf.dtype]
    spaces: dict[str, Sequence[int]] = {
        "input": [spec.bytes.evaluate(sizes) for spec in inputs],
        "output": [spec.bytes.evaluate(sizes) for spec in program.results],
        "weight": [spec.bytes.evaluate({}) for spec in program.weights],
        "packed": [spec.bytes.evaluate({}) for spec in program.packed],
        "state": [state.spec.bytes.evaluate({}) for state in program.states],
        "slot": [max((e.evaluate(sizes) for e in slot.sizes), default=0) for slot in program.main.slots],
        "dims": [8] * len(program.dims),
    }
    total = 0
    for step in program.main.steps:
        written = step.buffers[len(step.buffers) - step.written :] if step.written else ()
        changed = [spaces["state"][ref.index] for ref in written if ref.space == "state"]
        others = sum(spaces[ref.space][ref.index] for ref in step.buffers) - sum(changed)
        total += others + sum(min(size, 2 * others) for size in changed)
    return total

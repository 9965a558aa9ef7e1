"""A step plan: what one call does for one tuple of dims, in the memory layout that the native driver walks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.ir import native_abi as abi


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel call on all threads of a team.

    kernel: address of the variant that this plan's dims choose.
    refs: its buffers in declared order, each (index into the call's bases, byte offset).
    dims: the values of its formal dims in declared order.
    barrier: whether all threads wait for each other before the next step.
    """

    kernel: int
    refs: Sequence[tuple[int, int]]
    dims: Sequence[int]
    barrier: bool = True


class StepPlan:
    """Steps packed into one int64 array, laid out as `tilewright.ir.native_abi` says.

    Read only after construction: calls on many threads share it. It keeps the array alive, not the kernels' library.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        self.nsteps = len(self.steps)
        rows_at = abi.PLAN_WORDS
        at = rows_at + abi.STEP_WORDS * len(steps)
        refs_at: list[int] = []
        for step in steps:
            refs_at.append(at)
            at += abi.REF_WORDS * len(step.refs) + len(step.dims)
        self._words: NDArray[np.int64] = np.zeros(at, np.int64)
        start = self.address
        words = self._words
        words[abi.PLAN_NSTEPS] = len(steps)
        words[abi.PLAN_MAX_REFS] = max((len(step.refs) for step in steps), default=0)
        words[abi.PLAN_STEPS] = start + abi.WORD * rows_at
        for index, (step, ref_at) in enumerate(zip(steps, refs_at, strict=True)):
            dims_at = ref_at + abi.REF_WORDS * len(step.refs)
            row = words[rows_at + abi.STEP_WORDS * index :]
            row[abi.STEP_KERNEL] = step.kernel
            row[abi.STEP_REFS] = start + abi.WORD * ref_at
            row[abi.STEP_NREFS] = len(step.refs)
            row[abi.STEP_DIMS] = start + abi.WORD * dims_at
            row[abi.STEP_FLAGS] = abi.BARRIER_AFTER if step.barrier else 0
            refs = words[ref_at:dims_at].reshape(-1, abi.REF_WORDS)
            for ref, (base, offset) in zip(refs, step.refs, strict=True):
                ref[abi.REF_BASE], ref[abi.REF_OFFSET] = base, offset
            words[dims_at : dims_at + len(step.dims)] = step.dims
        words.flags.writeable = False

    @property
    def address(self) -> int:
        """Where the driver reads the plan; valid while this object lives."""
        return int(self._words.ctypes.data)

    def times(self, threads: int) -> NDArray[np.int64]:
        """Fresh zeroed room for one timed run: [threads, steps, 2], begin and end in nanoseconds."""
        return np.zeros((threads, self.nsteps, 2), np.int64)

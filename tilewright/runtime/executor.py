"""A compiled program that can be called: binds arguments, resolves dims, runs the steps, rebuilds the model's output.

No call compiles anything. What a tuple of dims decides is resolved once and kept; calls from many threads share it,
each with scratch memory of its own. Programs with states run one call at a time.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import CapacityError, DimRangeError, OptionError, TargetError
from tilewright.ir.device import HOST_NAME
from tilewright.ir.trees import LEAF
from tilewright.runtime.asked_sizes import asked_sizes
from tilewright.runtime.binding import Binder, Key
from tilewright.runtime.call import Call
from tilewright.runtime.launch import HostFunction, Times, run_parts
from tilewright.runtime.memory import ArenaPool, Footprint, shown
from tilewright.runtime.prepare import prepare_weights
from tilewright.runtime.program import Program
from tilewright.runtime.program_check import check_program
from tilewright.runtime.resolve import BaseTable, Code, Resolved, footprint, resolve
from tilewright.runtime.results import cleared_numpy, cleared_torch, fresh_numpy, fresh_torch
from tilewright.runtime.states import StateStore
from tilewright.runtime.tensors import is_torch
from tilewright.runtime.threads import ThreadPool
from tilewright.runtime.weights import Source, WeightSet, require_names

# Tuples of dims whose resolved plans are kept: a few hundred steps take about 50 KB.
_PLANS = 128


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step of a timed call.

    symbol: the variant that ran, None on the host. start: seconds after the first step's begin. seconds: from its first
    thread's begin to its last thread's end. busy: the sum over threads of the seconds inside it.
    """

    name: str
    symbol: str | None
    start: float
    seconds: float
    busy: float


@dataclass(frozen=True, slots=True)
class Profile:
    """A timed call: its steps in order, the threads it ran on, the seconds of the whole call, binding included, and the
    sizes of its dims.
    """

    steps: tuple[StepTime, ...]
    threads: int
    seconds: float
    sizes: Mapping[str, int]


class Executable:
    """A program with its code and weights, to be called like the model it was compiled from.

    code: addresses of the kernels by symbol, kept alive by this object. pool: the process's threads. threads: at most
    so many for one call; None for all cores. memory_limit: bytes that one call may need, weights included. host:
    functions that the program's host steps name. cleared: results and scratch memory are zeros when a call begins,
    for programs of strangers, whose kernels need not write all of what they give back.

    Calling raises what `Binder.bind` raises, and CapacityError. Any number of Python threads may call at once.
    """

    def __init__(
        self,
        program: Program,
        code: Code,
        weights: WeightSet,
        pool: ThreadPool,
        *,
        threads: int | None = None,
        memory_limit: int | None = None,
        host: Mapping[str, HostFunction] | None = None,
        cleared: bool = False,
    ) -> None:
        check_program(program)
        _check_options(program, threads, memory_limit, host or {})
        self.program = program
        self.memory_limit = memory_limit
        self._code = code
        self._weights = weights
        self._pool = pool
        self._threads = threads
        self._host = dict(host or {})
        self._cleared = cleared
        self._results_torch = cleared_torch if cleared else fresh_torch
        self._results_numpy = cleared_numpy if cleared else fresh_numpy
        self._bases = BaseTable(program)
        self._binder = Binder(program)
        self._arenas = ArenaPool()
        self._plans: OrderedDict[tuple[int, ...], Resolved] = OrderedDict()
        self._calls: dict[Key, Call] = {}
        self._plans_lock = threading.Lock()
        numbers = {leaf.name: number for number, leaf in enumerate(program.signature.tensors)}
        outputs = program.signature.outputs
        # A lone tensor is its own output, nothing to be put together.
        self._single = program.signature.output == LEAF and [out.index for out in outputs] == [0]
        self._mutations = [(numbers[name], result) for name, result in program.signature.mutations]
        self._stateful = bool(program.states)
        self._turn = threading.RLock()
        self._states = StateStore(program, weights, self._turn)
        self._runtime = tuple(i for i, dim in enumerate(program.dims) if dim.kind == "runtime")
        _alive.add(self)

    def __repr__(self) -> str:
        return f"<Executable of {len(self.program.main.steps)} steps on {self.program.target}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program; torch tensors in give torch tensors out, NumPy arrays give NumPy arrays, and no tensors at
        all give torch tensors where torch is loaded.
        """
        binder = self._binder
        leaves = binder.leaves(args, kwargs)
        key = binder.key(leaves)
        call = self._calls.get(key)
        if call is None:
            call = self._call_of(key, leaves)
        return self._run(call, leaves)[0]

    def profile(self, *args: Any, **kwargs: Any) -> tuple[Any, Profile]:
        """One call with a clock around every step: its output, and the times."""
        begin = time.perf_counter()
        leaves = self._binder.leaves(args, kwargs)
        call = self._call_of(self._binder.key(leaves), leaves)
        output, times, threads = self._run(call, leaves, timed=True)
        seconds = time.perf_counter() - begin
        return output, Profile(_step_times(self.program, call.plan, times), threads, seconds, call.sizes)

    @property
    def state(self) -> StateStore:
        """The program's states by name."""
        return self._states

    def reset(self) -> None:
        """Every state as it was before the first call."""
        self._states.reset(self._weights)

    @property
    def weights(self) -> WeightSet:
        return self._weights

    def update_weights(self, source: Source) -> None:
        """Takes other values for all weights but the transient; WeightsError lists everything that does not fit, and
        nothing has changed then.

        Calls that are running finish with the old values. States that start from a weight take its new value.
        """
        self.set_weights(self._prepared(source))

    def sibling(self, source: Source) -> Executable:
        """The same program with other values for all weights but the transient, beside this one; raises as
        `update_weights`.
        """
        return Executable(
            self.program,
            self._code,
            self._prepared(source),
            self._pool,
            threads=self._threads,
            memory_limit=self.memory_limit,
            host=self._host,
            cleared=self._cleared,
        )

    def _prepared(self, source: Source) -> WeightSet:
        require_names(source)
        kept = {name: self._weights.weight(name) for name in self.program.transient if name not in source}
        return prepare_weights(self.program, self._code, self._pool, {**source, **kept} if kept else source)

    def set_weights(self, weights: WeightSet) -> None:
        """Takes weights that have been prepared already, as `update_weights` does."""
        with self._turn:
            self._weights = weights
            self._states.reset(weights, weights_only=True)

    def footprint(self, dims: Mapping[str, int]) -> Footprint:
        """What the program holds while one call runs at these sizes of its declared and read dims.

        OptionError for sizes that no call may have.
        """
        return footprint(self.program, asked_sizes(self.program.dims, dims))

    def _call_of(self, key: Key, leaves: Sequence[Any]) -> Call:
        """The plan of a call with these tensors, kept for the next one like it."""
        known = self._binder.known(key, leaves)
        sizes = self.program.sizes(known.values)
        call = Call.of(self.program, known, self._resolved(known.values), sizes)
        if not self.program.reads:
            with self._plans_lock:
                self._calls[key] = call
                if len(self._calls) > _PLANS:
                    del self._calls[next(iter(self._calls))]
        return call

    def _run(self, call: Call, leaves: Sequence[Any], *, timed: bool = False) -> tuple[Any, Times | None, int]:
        if self._stateful:
            with self._turn:
                return self._run_in_turn(call, leaves, timed)
        return self._run_in_turn(call, leaves, timed)

    def _run_in_turn(self, call: Call, leaves: Sequence[Any], timed: bool) -> tuple[Any, Times | None, int]:
        addresses, kept = self._binder.addresses(leaves, call.copied)
        results = self._results_torch(call.results) if call.torch else self._results_numpy(call.results)
        frame = call.frame(self._bases, self._weights, self._states)
        view, at = frame.view, BaseTable.FIRST
        for address in addresses:
            view[at] = address
            at += 1
        for _, address in results:
            view[at] = address
            at += 1
        if self._cleared and frame.arena is not None:
            frame.arena.clear(call.plan.arena)
        times, threads = None, 1
        if call.alone is not None and not timed:
            self._pool.run_alone(call.alone.address, frame.address)
        else:
            times, threads = self._launch(call.plan, frame.words, timed=timed)
        outputs = [result for result, _ in results]
        sizes = call.sizes
        if self._runtime:
            values = tuple(frame.words[self._bases.size :].tolist())
            frame.words[self._bases.size :] = call.values
            sizes = self.program.sizes(values)
            outputs = self._cut(outputs, values)
        # Not in a `finally`: a frame that a fault has left is dropped, whatever is in it.
        call.frames.append(frame)
        del kept
        for leaf, result in self._mutations:
            _assign(leaves[leaf], outputs[result])
        return outputs[0] if self._single else self.program.signature.rebuild(outputs, sizes), times, threads

    def _launch(self, plan: Resolved, words: NDArray[np.int64], *, timed: bool) -> tuple[Times | None, int]:
        with self._pool.team(self._threads) as team:
            arena = self._arenas.take(plan.arena)
            try:
                if self._cleared:
                    arena.clear(plan.arena)
                words[BaseTable.ARENA] = arena.address
                times = run_parts(plan, words, team, self._host, timed=timed)
                for (source, source_at), (destination, destination_at), size in plan.copies:
                    ctypes.memmove(int(words[destination]) + destination_at, int(words[source]) + source_at, size)
            finally:
                self._arenas.give_back(arena)
            return times, team.threads

    def _resolved(self, values: tuple[int, ...]) -> Resolved:
        with self._plans_lock:
            plan = self._plans.get(values)
            if plan is not None:
                self._plans.move_to_end(values)
                return plan
        sizes = self.program.sizes(values)
        if self.memory_limit is not None:
            footprint(self.program, sizes).check(self.memory_limit)
        plan = resolve(self.program, self.program.main, self._bases, self._code, sizes, main=True)
        with self._plans_lock:
            self._plans[values] = plan
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        return plan

    def _cut(self, results: Sequence[Any], values: tuple[int, ...]) -> list[Any]:
        """Results at the sizes that run-time dims turned out to have; they were computed at upper bounds' strides."""
        dims = self.program.dims
        wild = [dims[i] for i in self._runtime if not 0 <= values[i] <= (dims[i].max or 0)]
        if wild:
            sizes = self.program.sizes(values)
            raise DimRangeError(
                [f"{dim.name} = {sizes[dim.name]}, computed while running, is outside 0..{dim.max}" for dim in wild],
                step="compile with a larger upper bound for it",
            )
        sizes = self.program.sizes(values)
        cut = []
        for spec, result in zip(self.program.results, results, strict=True):
            shape = spec.shape(sizes)
            if shape != tuple(result.shape):
                part = result[tuple(slice(n) for n in shape)]
                result = part.contiguous() if is_torch(part) else np.ascontiguousarray(part)
            cut.append(result)
        return cut

    def renew(self) -> None:
        """In a forked child: locks that other threads held at the fork would stay locked for good."""
        self._plans_lock = threading.Lock()
        self._turn = threading.RLock()
        self._states.renew(self._turn)


_alive: weakref.WeakSet[Executable] = weakref.WeakSet()


def _renew_in_child() -> None:
    for executable in list(_alive):
        executable.renew()


os.register_at_fork(after_in_child=_renew_in_child)


def _check_options(
    program: Program, threads: int | None, memory_limit: int | None, host: Mapping[str, HostFunction]
) -> None:
    steps = program.main.steps
    elsewhere = sorted({step.device for step in steps if step.device != HOST_NAME})
    if elsewhere:
        raise TargetError(f"steps for {', '.join(elsewhere)} cannot run on the CPU", step="compile with target='cpu'")
    if threads is not None and threads < 1:
        raise OptionError(f"threads={threads} is not a count of threads", step="threads=None uses all cores")
    if memory_limit is not None and memory_limit < 0:
        raise OptionError(f"memory_limit={memory_limit} is not a number of bytes", step="memory_limit=None sets none")
    held = sum(spec.bytes.evaluate({}) for spec in (*program.stored, *(state.spec for state in program.states)))
    if memory_limit is not None and held > memory_limit:
        raise CapacityError(
            f"weights and states are {shown(held)}, and memory_limit is {shown(memory_limit)}: no call could run",
            step="give memory_limit more, or leave it out",
        )
    missing = sorted({step.host.callee for step in steps if step.host is not None} - host.keys())
    if missing:
        raise OptionError(
            [f"the program calls {name} on the host, which was not given" for name in missing],
            step="load it with the functions it was compiled with",
        )


def _assign(leaf: Any, value: Any) -> None:
    """Writes a result into the caller's own tensor, in place."""
    if not is_torch(leaf):
        np.copyto(leaf, value)
        return
    import torch

    # A tensor made in inference mode may be written to in inference mode only.
    with torch.inference_mode() if leaf.is_inference() else torch.no_grad():
        leaf.copy_(value if is_torch(value) else torch.from_numpy(value))


def _step_times(program: Program, plan: Resolved, times: Times | None) -> tuple[StepTime, ...]:
    if times is None or not len(times.busy):
        return ()
    start = int(times.spans[0, 0])
    return tuple(
        StepTime(step.name, symbol, (begin - start) / 1e9, (end - begin) / 1e9, busy / 1e9)
        for step, symbol, (begin, end), busy in zip(
            program.main.steps, plan.variants, times.spans.tolist(), times.busy.tolist(), strict=True
        )
    )

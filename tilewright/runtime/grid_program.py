"""A program run on a device that runs grids itself (`ir/grid_abi.py`): its step table walked, one launch a step.

The device (`ir/device.py`) is told apart from the walk: memory it hands out, copies, and launches in order. Everything
else (which variant, where a slot lies, what is copied at the end) is the program's, and decided by the same functions
as on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.errors import TargetError
from tilewright.ir.device import Device
from tilewright.ir.grid_abi import Grid
from tilewright.runtime.binding import Binder, Known
from tilewright.runtime.program import Program, Routine
from tilewright.runtime.program_check import check_program
from tilewright.runtime.resolve import BaseTable, Values, choose, place_slots
from tilewright.runtime.results import fresh_numpy, fresh_torch
from tilewright.runtime.tensors import Buffer, as_buffer, row_major, torch_dtype
from tilewright.runtime.weights import Source, check_source


class GridProgram:
    """A program with its weights on a device, to be called like the model it was compiled from.

    images: the objects of the program's kernels, by the key that `Program.kernels` names them by.

    Raises TargetError for programs that run steps in Python, compute sizes while running or hold kernels of another
    ABI, WeightsError where the source does not fit, and what `Binder.bind` raises.
    """

    def __init__(self, program: Program, device: Device, source: Source, images: Mapping[str, bytes]) -> None:
        check_program(program)
        if any(step.host is not None for step in program.main.steps):
            raise TargetError("steps in Python do not run on a device", step="compile with target='cpu'")
        if any(dim.kind == "runtime" for dim in program.dims):
            raise TargetError("sizes computed while running are not known to a grid", step="compile with target='cpu'")
        self.program, self.device = program, device
        self._binder, self._table = Binder(program), BaseTable(program)
        self._kernels: dict[str, tuple[int, Grid]] = {}
        for kernel in program.kernels:
            if kernel.grid is None:
                raise TargetError(
                    f"kernel {kernel.name} splits its own grid over threads, which no device does",
                    step="compile for the device",
                )
            self._kernels[kernel.symbol] = device.load(images[kernel.key], kernel.symbol), kernel.grid
        names = check_source(program, source)
        self._held: dict[int, int] = {}
        first = self._table.first
        for index, spec in enumerate(program.packed):
            self._held[first["packed"] + index] = device.alloc(spec.bytes.evaluate({}))
        for index, spec in enumerate(program.weights):
            self._held[first["weight"] + index] = self._uploaded(as_buffer(source[names[spec.name]]))
        for routine in program.prepare:
            self._run(routine, self._held, {})
        for index, state in enumerate(program.states):
            size = state.spec.bytes.evaluate({})
            self._held[first["state"] + index] = address = device.alloc(size)
            if state.initial is None:
                device.write(address, memoryview(bytes(size)))
            else:
                device.copy(self._held[first["weight"] + state.initial], address, size)
        # @prepare was the last to read them
        for index in set(range(len(program.weights))) - set(program.resident):
            device.free(self._held.pop(first["weight"] + index))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program; torch tensors in give torch tensors out, NumPy arrays give NumPy arrays, on the host.

        One call at a time.
        """
        program = self.program
        leaves = self._binder.leaves(args, kwargs)
        known = self._binder.known(self._binder.key(leaves), leaves)
        sizes = program.sizes(known.values)
        lent: dict[int, int] = {}
        try:
            results = self._results(leaves, known, sizes, lent)
        finally:
            for address in lent.values():
                self.device.free(address)
        numbers = {leaf.name: number for number, leaf in enumerate(program.signature.tensors)}
        for name, index in program.signature.mutations:
            leaves[numbers[name]][...] = results[index]
        return program.signature.rebuild(results, sizes)

    def _results(
        self, leaves: Sequence[Any], known: Known, sizes: Mapping[str, int], lent: dict[int, int]
    ) -> list[Any]:
        """The results of @main. lent: the memory of this call, by its number among the bases, filled in here."""
        program, device, first, value = self.program, self.device, self._table.first, Values(sizes)
        for index, leaf in enumerate(leaves):
            lent[first["input"] + index] = self._uploaded(as_buffer(leaf))
        lent[BaseTable.DIMS] = self._uploaded(as_buffer(np.array(known.values, np.int64)))
        for index, spec in enumerate(program.results):
            lent[first["output"] + index] = device.alloc(value[spec.bytes])
        slots, arena = place_slots(program.main, value)
        lent[BaseTable.ARENA] = device.alloc(arena)
        bases = {**self._held, **lent}
        self._run(program.main, bases, sizes, slots)
        for copy in program.copies:
            source, destination = (self._table.place(ref, slots, value) for ref in (copy.source, copy.destination))
            device.copy(bases[source[0]] + source[1], bases[destination[0]] + destination[1], value[copy.size])
        results = []
        for index, spec in enumerate(program.results):
            shape = spec.shape(sizes)
            if known.torch:
                ((result, _),) = fresh_torch([(shape, row_major(shape), torch_dtype(spec.dtype))])
            else:
                ((result, _),) = fresh_numpy([(shape, row_major(shape), spec.dtype)])
            device.read(bases[first["output"] + index], as_buffer(result).bytes())
            results.append(result)
        return results

    def _uploaded(self, buffer: Buffer) -> int:
        address = self.device.alloc(buffer.nbytes)
        self.device.write(address, buffer.bytes())
        return address

    def _run(
        self, routine: Routine, bases: Mapping[int, int], sizes: Mapping[str, int], slots: Sequence[int] | None = None
    ) -> None:
        """Launches a routine's steps; slots: where they lie in the arena, None for an arena of the routine's own."""
        value, own = Values(sizes), None
        if slots is None:
            slots, arena = place_slots(routine, value)
            own = self.device.alloc(arena)
            bases = {**bases, BaseTable.ARENA: own}
        for step in routine.steps:
            dims = [value[e] for e in step.dims]
            function, grid = self._kernels[choose(step, dims).symbol]
            programs = grid.programs.evaluate(dict(zip(step.formal_dims, dims, strict=True)))
            if programs > 0:
                places = [self._table.place(ref, slots, value) for ref in step.buffers]
                self.device.launch(function, grid, programs, [bases[i] + offset for i, offset in places], dims)
        if own is not None:
            self.device.free(own)

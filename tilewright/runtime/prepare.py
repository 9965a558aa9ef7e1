"""@prepare run: weights in, a file of packed tensors out, with about one tensor in memory at a time.

The file is the form in which a program's weights are cached, embedded in artifacts and mapped. It is written by plain
writes, not through a mapping: what has been written does not count as this process's memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tilewright.runtime.launch import run_parts
from tilewright.runtime.memory import Arena
from tilewright.runtime.program import ALIGNMENT, Program, Routine
from tilewright.runtime.resolve import BaseTable, Code, resolve
from tilewright.runtime.safetensors_file import SafetensorsFile, SafetensorsWriter
from tilewright.runtime.tensors import Buffer, as_buffer
from tilewright.runtime.threads import ThreadPool
from tilewright.runtime.weights import Source, WeightSet, check_source


def prepare_weights(
    program: Program, code: Code, pool: ThreadPool, source: Source, path: Path | None = None
) -> WeightSet:
    """Checks the source, packs it and maps the result.

    path: the file to write; None for memory without a name. Raises WeightsError listing all that does not fit.
    """
    names = check_source(program, source)
    if path is None:
        fd = os.memfd_create("tilewright-weights", os.MFD_CLOEXEC)
    else:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        writer = SafetensorsWriter(fd, [(s.name, s.dtype, s.shape({})) for s in program.stored])
        for index in program.resident:
            name = program.weights[index].name
            writer.write(f"weight:{name}", as_buffer(source[names[name]]).bytes())
        packer = _Packer(program, code, pool, source, names, writer)
        for routine in program.prepare:
            packer.run(routine)
        writer.finish()
        return WeightSet(program, SafetensorsFile(fd if path is None else path))
    finally:
        os.close(fd)


class _Packer:
    """Runs routines of @prepare one after another; between two, nothing but the file holds what the first computed."""

    def __init__(
        self,
        program: Program,
        code: Code,
        pool: ThreadPool,
        source: Source,
        names: Mapping[str, str],
        writer: SafetensorsWriter,
    ) -> None:
        self._program = program
        self._code = code
        self._pool = pool
        self._source = source
        self._names = names
        self._writer = writer
        self._bases = BaseTable(program)
        self._written: set[int] = set()

    def run(self, routine: Routine) -> None:
        """Reads the routine's weights, runs it, and writes the packed tensors it touches for the first time."""
        program, first = self._program, self._bases.first
        resolved = resolve(program, routine, self._bases, self._code, {}, main=False)
        arena = Arena(resolved.arena)
        words = np.zeros(self._bases.size, np.int64)
        words[BaseTable.ARENA] = arena.address
        used = sorted({(ref.space, ref.index) for step in routine.steps for ref in step.buffers})
        weights = {index: self._weight(index) for space, index in used if space == "weight"}
        for index, buffer in weights.items():
            words[first["weight"] + index] = buffer.address
        places: dict[int, tuple[int, int]] = {}
        end = 0
        for index in (index for space, index in used if space == "packed"):
            places[index] = (end, program.packed[index].bytes.evaluate({}))
            end += -(-places[index][1] // ALIGNMENT) * ALIGNMENT
        room = Arena(end)
        for index, (at, size) in places.items():
            words[first["packed"] + index] = room.address + at
            if index in self._written:
                self._writer.read(f"packed:{program.packed[index].name}", room.view(at, size))
        with self._pool.team() as team:
            run_parts(resolved, words, team, {})
        for index, (at, size) in places.items():
            if index not in self._written:
                self._writer.write(f"packed:{program.packed[index].name}", room.view(at, size))
                self._written.add(index)

    def _weight(self, index: int) -> Buffer:
        return as_buffer(self._source[self._names[self._program.weights[index].name]])

"""@prepare run: weights in, a file of packed tensors out, with less than one tensor in memory.

The file is the form in which a program's weights are cached, embedded in artifacts and mapped. Kernels write straight
into its pages, a piece of their grid at a time, and the pages leave this process's memory after every piece.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from tilewright.runtime.launch import run_in_pieces
from tilewright.runtime.memory import Arena
from tilewright.runtime.program import Program, Routine
from tilewright.runtime.resolve import BaseTable, Code, resolve
from tilewright.runtime.room import Room
from tilewright.runtime.safetensors_file import SafetensorsFile, SafetensorsWriter
from tilewright.runtime.tensors import Buffer, as_buffer
from tilewright.runtime.threads import ThreadPool
from tilewright.runtime.weights import Source, WeightSet, check_source


def prepare_weights(
    program: Program,
    code: Code,
    pool: ThreadPool,
    source: Source,
    path: Path | None = None,
    *,
    room: Room | None = None,
) -> WeightSet:
    """Checks the source, packs it and maps the result.

    path: the file to write; None for memory without a name. room: becomes that file. Raises WeightsError listing all
    that does not fit.
    """
    names = check_source(program, source)
    zeros = 0
    if room is not None:
        fd, zeros = room.take(path)
    elif path is None:
        fd = os.memfd_create("tilewright-weights", os.MFD_CLOEXEC)
    else:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        writer = SafetensorsWriter(fd, [(s.name, s.dtype, s.shape({})) for s in program.stored], zeros)
        for index in program.resident:
            name = program.weights[index].name
            writer.write(f"weight:{name}", as_buffer(source[names[name]]).bytes())
        packer = _Packer(program, code, pool, source, names, writer)
        with ThreadPoolExecutor(pool.cores, "tilewright-pack") as others:
            for number, routine in enumerate(program.prepare):
                # the file grows for the next one while this one packs
                coming = packer.packed_by(*program.prepare[number + 1 : number + 2]) - packer.packed_by(routine)
                ahead = others.submit(packer.make_room, coming)
                packer.run(routine, others)
                ahead.result()
        writer.finish()
        return WeightSet(program, SafetensorsFile(fd if path is None else path))
    finally:
        os.close(fd)


# Bytes of packed tensors in this process's memory at a time and thread, about.
_PIECE: Final = 8 << 20
# Below so many bytes, handing a share to another thread costs more than it saves.
_SHARED: Final = 256 << 10


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
        # of all routines in turn: fresh pages take longer than what is computed in them
        self._arena = Arena(0)

    def packed_by(self, *routines: Routine) -> set[str]:
        """The packed tensors, by their names in the file, that routines write or read."""
        refs = {ref for routine in routines for step in routine.steps for ref in step.buffers}
        return {f"packed:{self._program.packed[ref.index].name}" for ref in refs if ref.space == "packed"}

    def make_room(self, names: Iterable[str]) -> None:
        """Writes zeros where these are going to lie."""
        for name in names:
            self._writer.make_room(name)

    def run(self, routine: Routine, others: Executor) -> None:
        """Reads the routine's weights and runs it; what it packs goes into the file piece by piece."""
        program, first = self._program, self._bases.first
        resolved = resolve(program, routine, self._bases, self._code, {}, main=False)
        self._arena.grow(resolved.arena)
        words = np.zeros(self._bases.size, np.int64)
        words[BaseTable.ARENA] = self._arena.address
        used = sorted({(ref.space, ref.index) for step in routine.steps for ref in step.buffers})
        weights = {index: self._weight(index) for space, index in used if space == "weight"}
        for index, buffer in weights.items():
            words[first["weight"] + index] = buffer.address
        packed = {
            index: self._writer.mapped(f"packed:{program.packed[index].name}")
            for space, index in used
            if space == "packed"
        }
        for index, tensor in packed.items():
            words[first["packed"] + index] = tensor.address
        size = sum(program.packed[index].bytes.evaluate({}) for index in packed)

        def drop() -> None:
            for tensor in packed.values():
                tensor.drop()

        # A lease of cores, as any call would take it.
        with self._pool.team(None if size >= _SHARED else 1) as team:
            pieces = -(-size // (_PIECE * team.threads)) * team.threads
            run_in_pieces(resolved, words, max(1, pieces), others, team.threads, drop)

    def _weight(self, index: int) -> Buffer:
        return as_buffer(self._source[self._names[self._program.weights[index].name]])

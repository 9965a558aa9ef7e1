"""Weights: the check of a state dict against a program, the keys that packed weights are cached by, what a program
holds.

A *source* is any mapping of names to torch tensors, NumPy arrays or Buffers: a state dict, or `WeightFiles`, which
reads checkpoints one tensor at a time.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import Problem, WeightsError
from tilewright.ir.dtypes import torch_name
from tilewright.runtime.contents import Contents
from tilewright.runtime.program import Program, TensorSpec
from tilewright.runtime.safetensors_file import SafetensorsFile
from tilewright.runtime.tensors import Buffer, Description, as_buffer, describe

Source = Mapping[str, Any]


class WeightFiles(Mapping[str, Buffer]):
    """One checkpoint in one or several safetensors files, mapped: no tensor is in memory before it is read.

    Raises WeightsError when a file is not in the format, or two files hold the same name.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self.paths = [Path(p) for p in paths]
        self._files: dict[str, SafetensorsFile] = {}
        twice = []
        for path in self.paths:
            file = SafetensorsFile(path)
            for name in file:
                if name in self._files:
                    twice.append(f"{name} is in {self._files[name].name} and in {file.name}")
                self._files[name] = file
        if twice:
            raise WeightsError(twice, step="give only the files of one checkpoint")

    def __getitem__(self, name: str) -> Buffer:
        return self._files[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def content_key(source: Source, contents: Contents | None = None) -> str:
    """sha256 over the sha256 of each tensor's name, dtype, shape and digest, in the order of names.

    contents: where the digests are taken, and may have been taken already.
    """
    contents = contents or Contents()
    whole = hashlib.sha256()
    digests = [(name, describe(source[name]), contents.digest(source[name])) for name in sorted(source)]
    for name, found, digest in digests:
        if found is None or found.dtype is None:
            raise TypeError(f"{name} has no tensor's memory")
        head = f"{name}\0{found.dtype.name}\0{','.join(map(str, found.shape))}\0"
        whole.update(hashlib.sha256(head.encode() + digest.result()).digest())
    return whole.hexdigest()


def check_source(program: Program, source: Source) -> dict[str, str]:
    """Holds a source against the program's weights and gives, for each weight, the name to read it by.

    Raises WeightsError listing every missing and unknown name, wrong shape, wrong dtype, and tied weights with
    different values. Values are read for tied weights only.
    """
    require_names(source)
    names: dict[str, str] = {}
    problems: list[Problem] = []
    aliases: dict[str, list[str]] = {}
    for other, name in program.tied:
        aliases.setdefault(name, []).append(other)
    for spec in program.weights:
        given = [n for n in (spec.name, *aliases.get(spec.name, ())) if n in source]
        if not given:
            problems.append(Problem(f"{spec.name} is missing: {_shown(spec)}"))
            continue
        names[spec.name] = given[0]
        faults = [fault for n in given if (fault := _fault(n, spec, _description(source, n)))]
        problems += faults
        if not faults and len(given) > 1:
            first = as_buffer(source[given[0]])
            problems += [
                Problem(f"{n} and {given[0]} are one tensor in the program, but their values differ")
                for n in given[1:]
                if not _same(first, as_buffer(source[n]))
            ]
    known = {spec.name for spec in program.weights} | {other for other, _ in program.tied} | set(program.ignored)
    for name in source:
        if name not in known:
            near = difflib.get_close_matches(name, [s.name for s in program.weights if s.name not in names], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(Problem(f"{name} is no weight of the program{hint}"))
    if problems:
        raise WeightsError(problems, step="pass the state_dict() of the model that was compiled, with other values")
    return names


def require_names(source: Source) -> None:
    """WeightsError unless the source maps names to something."""
    if isinstance(source, Mapping) and all(isinstance(name, str) for name in source):
        return
    step = "pass a state dict: model.state_dict(), or WeightFiles of a checkpoint"
    if hasattr(source, "state_dict"):
        step = "pass its tensors: update_weights(model.state_dict())"
    raise WeightsError(f"a {type(source).__name__} is no mapping from names to tensors", step=step)


def _description(source: Source, name: str) -> Description | None:
    """A tensor's description; for mapped files from the header alone, so that foreign dtypes end in a report."""
    try:
        return describe(source[name])
    except WeightsError:
        return None


def _fault(name: str, spec: TensorSpec, found: Description | None) -> Problem | None:
    if found is None:
        return Problem(f"{name} is no tensor that a program can read; it must be {_shown(spec)}")
    if found.device != "cpu":
        return Problem(f"{name} is on {found.device}, not on the CPU")
    shape = spec.shape({})
    if found.dtype != spec.dtype or found.shape != shape:
        return Problem(f"{name} is {found.dtype_name} {list(found.shape)}, in the program {_shown(spec)}")
    if not found.dense:
        return Problem(f"{name} is sparse; the program reads it dense")
    return None


def _shown(spec: TensorSpec) -> str:
    return f"{torch_name(spec.dtype)} {list(spec.shape({}))}"


def _same(a: Buffer, b: Buffer) -> bool:
    # Bytes, not numbers: a NaN equals itself here.
    return a.address == b.address or a.bytes() == b.bytes()


class WeightSet:
    """The tensors that a loaded program holds (`Program.stored`), by address; keeps their memory alive.

    pointers: of the weights and then the packed tensors by number, 0 for weights that only @prepare reads.
    """

    def __init__(self, program: Program, stored: Mapping[str, Buffer]) -> None:
        self._stored = stored
        self._buffers: dict[str, Buffer] = {}
        faults = []
        for spec in program.stored:
            buffer = stored.get(spec.name)
            if buffer is None or (buffer.dtype, buffer.shape) != (spec.dtype, spec.shape({})):
                held = "is missing" if buffer is None else f"is {torch_name(buffer.dtype)} {list(buffer.shape)}"
                faults.append(f"{spec.name} {held}; the program holds {_shown(spec)}")
            else:
                self._buffers[spec.name] = buffer
        if faults:
            raise WeightsError(faults, step="prepare the weights again: compile again, or save the artifact again")
        self.pointers: NDArray[np.int64] = np.zeros(len(program.weights) + len(program.packed), np.int64)
        for index in program.resident:
            self.pointers[index] = self._buffers[f"weight:{program.weights[index].name}"].address
        for index, packed in enumerate(program.packed):
            self.pointers[len(program.weights) + index] = self._buffers[f"packed:{packed.name}"].address

    @property
    def stored(self) -> Mapping[str, Buffer]:
        """The tensors by stored name; a SafetensorsFile when they are mapped from a file."""
        return self._stored

    def weight(self, name: str) -> Buffer:
        """A resident weight."""
        return self._buffers[f"weight:{name}"]

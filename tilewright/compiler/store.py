"""Where compiled code and packed weights are kept: the cache on disk, or memory alone."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from tilewright.compiler.code import Code
from tilewright.compiler.options import Options
from tilewright.errors import CacheError
from tilewright.runtime.cache import ENVIRONMENT, NOTE, OFF, Cache
from tilewright.runtime.cache_entry import Entry
from tilewright.runtime.cache_miss import share_alike
from tilewright.runtime.canonical import canonical_json, key_of
from tilewright.runtime.contents import Contents
from tilewright.runtime.facts import Facts
from tilewright.runtime.native import NativeLibrary
from tilewright.runtime.prepare import prepare_weights
from tilewright.runtime.program_json import program_from_text, program_text, program_to_json
from tilewright.runtime.room import Room
from tilewright.runtime.safetensors_file import SafetensorsFile
from tilewright.runtime.threads import ThreadPool, available_cores
from tilewright.runtime.weights import Source, WeightSet, content_key

_PROGRAM, _FACTS, _OBJECTS, _SOURCES, _TEXTS = "program.json", "facts.json", "objects.bin", "sources.json", "texts.json"
_PACKED, _CAPTURE = "packed.safetensors", "capture.json"
# Bytes of weights below which nobody notices how long a file takes to grow.
_WORTH_ROOM = 16 << 20
# The share of a model's modules' attributes that are equal in the same model, changed in some place.
_SAME_MODULES: Final = 7 / 8


@dataclass
class Store:
    """Looks things up in a cache and builds what is missing; without a cache it just builds.

    required: the folder was asked for, so that not being able to write it is an error. Where nobody asked, a warning
    with the error's text says that nothing is kept, once. contents: digests of weights, which may be begun before
    `weights` asks for them. room: where packed weights are going to lie, if it was begun, see `begin`.
    """

    cache: Cache | None
    required: bool = True
    contents: Contents = field(default_factory=lambda: Contents(available_cores()))
    room: Room | None = None

    @staticmethod
    def of(options: Options) -> Store:
        # TILEWRIGHT_CACHE=off is cache=False, as cache="off" is
        named = os.environ.get(ENVIRONMENT, "").strip()
        wanted = options.cache
        if wanted is False or wanted == OFF or (wanted is True and named == OFF):
            return Store(None)
        if wanted is not True:
            return Store(Cache(wanted))
        required = bool(named)
        try:
            return Store(Cache(), required)
        except CacheError as fault:
            store = Store(None, required)
            store._give_up(fault)
            return store

    def begin_room(self, size: int) -> None:
        """Makes room for packed weights of about so many bytes, beside what else is done until they are packed."""
        if size < _WORTH_ROOM or self.room is not None:
            return
        try:
            self.room = Room.within(None, size) if self.cache is None else self.cache.room(size)
        except CacheError as fault:
            self._give_up(fault)

    def forget(self) -> None:
        """Lets go of what was begun and not asked for."""
        self.contents.forget()
        if (room := self._taken_room()) is not None:
            room.drop()

    def _taken_room(self) -> Room | None:
        room, self.room = self.room, None
        return room

    def _give_up(self, fault: CacheError) -> None:
        """Goes on without a cache, or does not where one was asked for."""
        if self.required:
            raise fault
        self.cache = None
        warnings.warn(f"{fault.code} {fault.problems[0]}; going on without one. {fault.step}", stacklevel=2)

    def code(self, factors: Mapping[str, Any], build: Callable[[], tuple[Code, Facts]]) -> tuple[Code, Facts, str]:
        """Code and the facts about how it was made, and a line that says where they came from."""
        if self.cache is None:
            code, facts = build()
            return code, facts, "off"
        fresh: list[tuple[Code, Facts]] = []
        miss = self.cache.explain_miss(factors, partial(_same_code, factors))

        def fill(folder: Path) -> None:
            fresh.append(build())
            write_code(folder, *fresh[0])

        try:
            entry = self.cache.get_or_build(factors, fill)
        except CacheError as fault:
            self._give_up(fault)
            return *(fresh[0] if fresh else build()), "off (it cannot be written)"
        if fresh:
            return *fresh[0], f"miss ({miss})" if miss is not None else "miss (the entry was damaged)"
        return *read_code(entry), "hit"

    def code_if_there(self, factors: Mapping[str, Any]) -> tuple[Code, Facts] | None:
        """Code that was made before."""
        entry = None if self.cache is None else self.cache.get(factors)
        return None if entry is None else read_code(entry)

    def capture(self, factors: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """What was kept of a capture, and otherwise why there is nothing."""
        if self.cache is None:
            return None, "nothing is kept"
        entry = self.cache.get(factors)
        if entry is None:
            return None, str(self.cache.explain_miss(factors, partial(_same_model, factors)) or "the entry was damaged")
        return json.loads((entry.folder / _CAPTURE).read_text(encoding="utf-8")), ""

    def keep_capture(self, factors: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
        """Keeps plain data about a capture."""

        def fill(folder: Path) -> None:
            (folder / _CAPTURE).write_text(canonical_json(kept), encoding="utf-8")
            (folder / NOTE).write_text(str(kept.get("model", "")), encoding="utf-8")

        if self.cache is not None:
            try:
                self.cache.get_or_build(factors, fill)
            except CacheError as fault:
                self._give_up(fault)

    def weights(
        self, code: Code, library: NativeLibrary, pool: ThreadPool, source: Source, *, model: str = ""
    ) -> WeightSet:
        """The program's packed weights: prepared once for equal values by equal code, then mapped.

        model: whose they are, for people who list the cache.
        """
        program = code.program
        if self.cache is None:
            return prepare_weights(program, library, pool, source, room=self._taken_room())
        plain = program_to_json(program)
        symbols = {v.symbol for routine in program.prepare for step in routine.steps for v in step.variants}
        factors = {
            "kind": "weights",
            "content": content_key(source, self.contents),
            # which weight feeds which kernel, and what each routine writes
            "program": key_of({name: plain[name] for name in ("prepare", "weights", "packed", "states", "transient")}),
            "resident": list(program.resident),
            # the code itself: a symbol names what a kernel computes, not how it was compiled
            "objects": {symbol: hashlib.sha256(code.objects[symbol]).hexdigest() for symbol in sorted(symbols)},
            "target": program.target,
        }

        def fill(folder: Path) -> None:
            prepare_weights(program, library, pool, source, folder / _PACKED, room=self._taken_room())
            (folder / NOTE).write_text(model, encoding="utf-8")

        try:
            entry = self.cache.get_or_build(factors, fill)
        except CacheError as fault:
            self._give_up(fault)
            return prepare_weights(program, library, pool, source)
        return WeightSet(program, SafetensorsFile(entry.folder / _PACKED))


def _same_code(mine: Mapping[str, Any], other: Any) -> bool:
    """Whether code is of the same graph, or kernel: then what differs is what was asked for or what it was made with.
    What another graph has to do with this one, its capture tells.
    """
    return all(mine.get(name) == other.get(name) for name in ("graph", "tile"))


def _same_model(mine: Mapping[str, Any], other: Any) -> bool:
    """Whether captures are of one model that was changed, its code, dtype or example maybe, and not of another one of
    its class with other sizes, whose every layer differs.
    """
    return mine["model"] == other.get("model") and share_alike(mine["modules"], other.get("modules")) >= _SAME_MODULES


def write_code(folder: Path, code: Code, facts: Facts) -> None:
    """Writes a compiled program into an empty folder."""
    (folder / _PROGRAM).write_text(program_text(code.program), encoding="utf-8")
    (folder / _FACTS).write_text(canonical_json(facts.to_json()), encoding="utf-8")
    (folder / _SOURCES).write_text(json.dumps(dict(code.sources)), encoding="utf-8")
    (folder / NOTE).write_text(facts.model, encoding="utf-8")
    (folder / _TEXTS).write_text(json.dumps(dict(code.texts)), encoding="utf-8")
    names = sorted(code.objects)
    index = {"features": list(code.features), "objects": [[name, len(code.objects[name])] for name in names]}
    head = canonical_json(index).encode()
    with open(folder / _OBJECTS, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.writelines(code.objects[name] for name in names)


def read_code(entry: Entry) -> tuple[Code, Facts]:
    """Reads what write_code wrote; the cache has checked the files' hashes."""
    folder = entry.folder
    data = (folder / _OBJECTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    at, objects = 8 + size, {}
    head = json.loads(data[8:at])
    for name, length in head["objects"]:
        objects[name] = data[at : at + length]
        at += length
    code = Code(
        program_from_text((folder / _PROGRAM).read_text(encoding="utf-8")),
        objects,
        json.loads((folder / _SOURCES).read_text(encoding="utf-8")),
        json.loads((folder / _TEXTS).read_text(encoding="utf-8")),
        tuple(head["features"]),
    )
    return code, Facts.from_json(json.loads((folder / _FACTS).read_text(encoding="utf-8")))

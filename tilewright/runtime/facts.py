"""What compiling noted of a program, for its report: which passes did what, what they refused, how it was asked for.

`Facts` are the same wherever and whenever a model is compiled, so caches and artifacts keep them; an `Account` adds
what one compilation took and where its code came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, Self

from tilewright.runtime.strict_json import items, number, table, text, text_or_none

VERSION: Final = 1
"""Of the stored form."""


@dataclass(frozen=True, slots=True)
class Declined:
    """A rewrite that a pass considered and did not do. op: by its name in the IR. where: the user's "file.py:12"."""

    by: str
    op: str
    reason: str
    where: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"pass": self.by, "op": self.op, "reason": self.reason, "where": self.where}

    @staticmethod
    def from_json(data: Any) -> Declined:
        return Declined(text(data["pass"]), text(data["op"]), text(data["reason"]), text_or_none(data["where"]))


@dataclass(frozen=True)
class Facts:
    """What compiling noted.

    model: what was compiled. pipeline: the passes that ran, as text. precision, determinism, objective: in force.
    applied: rewrites by pass. patterns: by name, how often they were matched or came whole. refused: in order, each
    once. choices: what passes chose between, as `Choice.to_dict` has it, with `times`. notes: what the user must know,
    a line each.
    """

    model: str = ""
    pipeline: str = ""
    precision: str = "model"
    determinism: str = "batch"
    objective: str = "time"
    applied: Mapping[str, int] = field(default_factory=dict)
    patterns: Mapping[str, int] = field(default_factory=dict)
    refused: tuple[Declined, ...] = ()
    choices: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, dict):
                object.__setattr__(self, f.name, MappingProxyType(dict(value)))

    @property
    def options(self) -> dict[str, str]:
        """What passes are told."""
        return {"precision": self.precision, "determinism": self.determinism, "objective": self.objective}

    def stored(self) -> Facts:
        """These facts without what one compilation added."""
        return Facts(**{f.name: getattr(self, f.name) for f in fields(Facts)})

    def to_json(self) -> dict[str, Any]:
        """What is stored, as plain data."""
        return {
            "version": VERSION,
            "model": self.model,
            "pipeline": self.pipeline,
            "precision": self.precision,
            "determinism": self.determinism,
            "objective": self.objective,
            "applied": dict(self.applied),
            "patterns": dict(self.patterns),
            "refused": [declined.to_json() for declined in self.refused],
            "choices": [dict(choice) for choice in self.choices],
            "notes": list(self.notes),
        }

    @staticmethod
    def from_json(data: Any) -> Facts:
        """Reads what `to_json` gave. KeyError, TypeError or ValueError when it is anything else."""
        if not isinstance(data, dict):
            raise TypeError(f"{data!r} where an object belongs")
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']!r} where {VERSION} belongs")
        return Facts(
            model=text(data["model"]),
            pipeline=text(data["pipeline"]),
            precision=text(data["precision"]),
            determinism=text(data["determinism"]),
            objective=text(data["objective"]),
            applied=table(data["applied"], number),
            patterns=table(data["patterns"], number),
            refused=tuple(Declined.from_json(declined) for declined in items(data["refused"])),
            choices=tuple(dict(choice) for choice in items(data["choices"])),
            notes=tuple(text(note) for note in items(data["notes"])),
        )


@dataclass(frozen=True)
class Account(Facts):
    """Facts, and how this program came to be in this process.

    cache: "hit", or why not, or the artifact. capture: whether the graph was made, and why, or remembered. seconds: by
    stage. parts: seconds of a kind's parts by name. checked: what the comparison of the first call said, once there was
    one.
    """

    cache: str = ""
    capture: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    checked: str | None = None

    @classmethod
    def of(
        cls,
        facts: Facts,
        *,
        cache: str = "",
        capture: str = "",
        seconds: Mapping[str, float] | None = None,
        parts: Mapping[str, Mapping[str, float]] | None = None,
    ) -> Self:
        """The account of a program that was made so."""
        given = {f.name: getattr(facts, f.name) for f in fields(Facts)}
        return cls(**given, cache=cache, capture=capture, seconds=dict(seconds or {}), parts=dict(parts or {}))

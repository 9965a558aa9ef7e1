"""What passes choose between, and by what: options of a compilation, candidates with their counts, and the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

from tilewright.ir.cost import Work
from tilewright.ir.machine import Machine
from tilewright.ir.schedules import Schedule

# predicted times this close are equal: the model is no better, and what moves less is safer
_EQUAL: Final = 1.01


@dataclass(frozen=True, slots=True)
class Candidate:
    """One schedule for an op, and what it asks of the machine at each of the sizes it is judged at, the largest first.

    seconds: predicted. refused: why it cannot be taken; None where it can. facts: more figures for the report, at the
    largest sizes.
    """

    schedule: Schedule
    works: tuple[Work, ...]
    seconds: tuple[float, ...]
    refused: str | None = None
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def time(self) -> float:
        """Seconds, their geometric mean over the sizes: each size counts by ratios, however long it takes."""
        return _mean(self.seconds)

    def io(self, machine: Machine) -> tuple[float, float]:
        """Bytes of main memory, and of the last level that moves any: those that loads and stores name. Geometric
        means, too. Levels between are left out: what they move is modelled, and not what kernels count.
        """
        moving = [level.name for level in machine.levels if any(level.name in w.moved for w in self.works)]
        ends = (moving[0], moving[-1]) if moving else ("", "")
        far, near = (_mean([w.moved.get(name, 0.0) for w in self.works]) for name in ends)
        return far, near


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision between candidates. chosen: its place among them, None where none can be taken.

    sizes: of the named dims, that candidates were judged at. facts: figures of the op that no candidate changes.
    """

    pass_name: str
    op: str
    where: str | None
    objective: str
    sizes: tuple[Mapping[str, int], ...]
    candidates: tuple[Candidate, ...]
    chosen: int | None
    why: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The choice as plain data, for the report: seconds at each of the sizes, other figures at the largest."""
        return {
            "pass": self.pass_name,
            "op": self.op,
            "where": self.where,
            "objective": self.objective,
            "sizes": [dict(sizes) for sizes in self.sizes],
            "chosen": self.chosen,
            "why": self.why,
            **self.facts,
            "candidates": [
                {
                    "schedule": c.schedule.to_dict(),
                    "seconds": list(c.seconds),
                    "flops": {f"{unit} {dtype}": n for (unit, dtype), n in c.works[0].flops.items()},
                    "moved": dict(c.works[0].moved),
                    "refused": c.refused,
                    **c.facts,
                }
                for c in self.candidates
            ],
        }


def best(candidates: Sequence[Candidate], machine: Machine, objective: str) -> tuple[int | None, str]:
    """The place of the candidate to take, and why; None where all are refused.

    By time: the least predicted time, and among those within a hundredth of it the least moved. By io: the least moved,
    then the least time. Equal ones: the first.
    """
    admitted = [i for i, c in enumerate(candidates) if c.refused is None]
    if not admitted:
        return None, "no candidate can be taken"
    if len(admitted) == 1:
        return admitted[0], "the only one that can be taken"
    times, moved = [c.time for c in candidates], [c.io(machine) for c in candidates]
    if objective == "io":
        return min(admitted, key=lambda i: (moved[i], times[i])), "the least bytes moved"
    least = min(times[i] for i in admitted)
    equal = [i for i in admitted if times[i] <= least * _EQUAL]
    if len(equal) == 1:
        return equal[0], "the least predicted time"
    found = min(equal, key=lambda i: (moved[i], times[i]))
    return found, f"the least bytes moved of {len(equal)} with the least predicted time"


def _mean(values: Sequence[float]) -> float:
    """The geometric mean, where nothing counts as one."""
    return prod(v or 1.0 for v in values) ** (1 / len(values))

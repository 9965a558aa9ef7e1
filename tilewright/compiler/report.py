"""The report: one screen that answers what ran where, what moves, what it costs, and what was refused and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tilewright.compiler.code import Code
from tilewright.errors import MissingDependencyError, OptionError
from tilewright.ir.dims import Expr
from tilewright.ir.machine import Machine
from tilewright.option_names import known_options
from tilewright.runtime.asked_sizes import asked_sizes
from tilewright.runtime.executor import Profile
from tilewright.runtime.facts import Account
from tilewright.runtime.resolve import footprint

if TYPE_CHECKING:
    from tilewright.compiler.counting import KernelCounts
    from tilewright.compiler.report_attention import AttentionRow


# What a dim without an upper bound is shown at: enough for several tiles.
OPEN_SIZE: Final = 128
_PAGE: Final = "report.html"


@dataclass(frozen=True)
class Row:
    """One kernel of the program, all its launches together. Figures are formulas, or numbers after `.at`.

    flops: issued, with the padding of partial tiles. read, write: bytes its loads and stores name. bound: bytes of its
    launches' distinct operands and results. ratio: of what is moved to that. moved: bytes that each level of the
    machine's memory gives and takes, as modelled (`ir/tile/levels.py`). predicted: seconds by that model, of the unit
    or level that is busy longest, and of the launches. measured: seconds. moved and predicted have no formulas.
    """

    kernel: str
    launches: int
    variants: tuple[str, ...]
    flops: int | Expr | None
    read: int | Expr | None
    write: int | Expr | None
    bound: int | Expr | None
    ratio: float | None
    moved: Mapping[str, float] | None
    predicted: float | None
    measured: float | None
    where: str


@dataclass(frozen=True)
class Report:
    """See the module's docstring. `str()` is the screen; `.at(batch=8, tokens=82)` puts numbers for formulas."""

    code: Code
    facts: Account
    profile: Profile | None = None
    dims: Mapping[str, int] | None = None

    def at(self, **dims: int) -> Report:
        """The report at given sizes. OptionError names dims without a value, unknown, or out of range."""
        return replace(self, dims=asked_sizes(self.code.program.dims, dims))

    @property
    def sizes(self) -> Mapping[str, int] | None:
        """The sizes that figures are numbers at: those of `.at`, none for a program without dims; None for formulas."""
        return self.dims if self.dims is not None or self.code.program.dims else {}

    @cached_property
    def counts(self) -> Mapping[str, KernelCounts]:
        """What each kernel counts, by name, from the tile IR. MissingDependencyError where its library is absent."""
        try:
            return self.code.counts
        except ImportError as fault:
            raise _needs(fault) from fault

    @cached_property
    def machine(self) -> Machine:
        """The machine the program was compiled for, by its target's name."""
        try:
            from tilewright.ir.backend import machine_of
        except ImportError as fault:
            raise _needs(fault) from fault
        return machine_of(self.code.program.target)[1]

    @cached_property
    def rows(self) -> list[Row]:
        """A row per kernel family (the variants of one launch), in the order of first use."""
        rows, sizes = [], self.sizes
        measured: dict[str, float] = {}
        for timed in self.profile.steps if self.profile is not None else ():
            measured[timed.name] = measured.get(timed.name, 0.0) + timed.seconds
        launches = Counter(step.name for step in self.code.program.main.steps)
        names = {k.symbol: k.name for k in self.code.program.kernels}
        seen: set[str] = set()
        for step in self.code.program.main.steps:
            if step.name in seen or step.host is not None:
                continue
            seen.add(step.name)
            variants = tuple(str(names[v.symbol]) for v in step.variants)
            chosen = variants[-1]
            if sizes is not None:
                formal = {n: e.evaluate(sizes) for n, e in zip(step.formal_dims, step.dims, strict=True)}
                guard = step.guard.evaluate(formal)
                chosen = next(
                    name for name, v in zip(variants, step.variants, strict=True) if v.limit is None or guard <= v.limit
                )
            counts = self.counts[chosen]
            figures = counts.at(formal) if sizes is not None else None
            source, times = figures or counts, launches[step.name]
            work, seconds = counts.predicted(formal, self.machine) if figures else (None, None)
            rows.append(
                Row(
                    kernel=chosen,
                    launches=times,
                    variants=variants,
                    flops=_times(source.flops, times),
                    read=_times(source.read, times),
                    write=_times(source.write, times),
                    bound=_times(source.bound, times),
                    ratio=(figures.read + figures.write) / figures.bound if figures and figures.bound else None,
                    moved={level: n * times for level, n in work.moved.items()} if work is not None else None,
                    predicted=None if seconds is None else times * seconds,
                    measured=measured.get(step.name) if self.profile is not None else None,
                    # of what is torch's own code there is no line
                    where=(step.location or "").rsplit("/", 1)[-1] or (f"module {step.path}" if step.path else ""),
                )
            )
        return rows

    @cached_property
    def attentions(self) -> list[AttentionRow]:
        """What each kind of attention moves at each level, the least it could, and how its tiling was chosen; at the
        report's sizes, or those that its screen shows."""
        try:
            from tilewright.compiler.report_attention import rows_of
        except ImportError as fault:
            raise _needs(fault) from fault
        return rows_of(self.code, self.facts, self.machine, dict(self.shown.dims or {}))

    def to_dict(self) -> dict[str, Any]:
        """Everything on the screen as plain data."""
        program = self.code.program
        return {
            "model": self.facts.model,
            "target": program.target,
            "dims": [str(d) for d in program.dims],
            "at": None if self.sizes is None else dict(self.sizes),
            "kernels": [{name: _plain(value) for name, value in vars(row).items()} for row in self.rows],
            "attention": [row.to_dict() for row in self.attentions],
            "patterns": dict(self.facts.patterns),
            "applied": dict(self.facts.applied),
            "pipeline": self.facts.pipeline,
            "refused": [declined.to_json() for declined in self.facts.refused],
            "fallbacks": [s.name for s in program.main.steps if s.host is not None],
            "memory": self._memory(),
            "seconds": dict(self.facts.seconds),
            "seconds_by_part": {kind: dict(parts) for kind, parts in self.facts.parts.items()},
            "cache": self.facts.cache,
            "capture": self.facts.capture,
            "notes": list(self.facts.notes),
            "checked": self.facts.checked,
        }

    def _memory(self) -> dict[str, Any]:
        dims = dict(self.shown.dims or {})
        return {"at": dims, "bytes": footprint(self.code.program, dims).total}

    @property
    def shown(self) -> Report:
        """This report at the sizes its screen shows: those of `.at`, else of the profiled call, else the largest.

        A dim without an upper bound is at `OPEN_SIZE`, or its least if that is more.
        """
        if self.dims is not None:
            return self
        if self.profile is not None:
            return replace(self, dims=dict(self.profile.sizes))
        return replace(
            self, dims={d.name: d.max if d.max is not None else max(d.min, OPEN_SIZE) for d in self.code.program.dims}
        )

    @property
    def why_these_sizes(self) -> str:
        """What the sizes are that nobody asked for."""
        every = self.code.program.dims
        open_dims = [d.name for d in every if d.max is None]
        if not open_dims:
            return "the largest"
        chosen = f"an example, because {' and '.join(open_dims)} may be as large as you like"
        return chosen if len(open_dims) == len(every) else f"the largest that are declared; {chosen}"

    def __str__(self) -> str:
        try:
            from tilewright.compiler.report_screen import screen
        except ImportError as fault:
            raise _needs(fault) from fault
        return screen(self)

    @known_options()
    def save_html(self, path: str | Path) -> None:
        """Writes the report as one self-contained page. OptionError for what names no file that can be written."""
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise OptionError(f"the report's path is {path!r}, which names no file", step=f'name a file: "{_PAGE}"')
        place = Path(path)
        if place.is_dir():
            raise OptionError(
                f"the report cannot be written to {path}: it is a folder", step=f"name a file in it: {place / _PAGE}"
            )
        if not place.parent.is_dir():
            raise OptionError(
                f"the report cannot be written to {path}: there is no folder {place.parent}",
                step=f"mkdir -p {place.parent}",
            )
        try:
            from tilewright.compiler.report_page import page
        except ImportError as fault:
            raise _needs(fault) from fault
        made = page(self)
        try:
            place.write_text(made, encoding="utf-8")
        except OSError as fault:
            raise OptionError(
                f"the report cannot be written to {path}: {fault.strerror}", step="give a path you can write to"
            ) from fault


def _needs(fault: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"the report needs {fault.name}, which loading and calling do not", step=f"pip install {fault.name}"
    )


def _times(value: int | Expr | None, launches: int) -> int | Expr | None:
    """A figure of all launches; None for what only blocks count."""
    return None if value is None else value * launches


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Expr) else value

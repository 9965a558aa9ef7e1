"""The report: one screen that answers what ran where, what moves, what it costs, and what was refused and why."""

from __future__ import annotations

import html
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.compiler.code import Code
from tilewright.errors import MissingDependencyError, OptionError, TargetError
from tilewright.ir.dims import Expr
from tilewright.ir.machine import Machine
from tilewright.runtime.executor import Profile
from tilewright.runtime.resolve import footprint

if TYPE_CHECKING:
    from rich.console import Console

    from tilewright.compiler.counting import KernelCounts


@dataclass(frozen=True)
class Row:
    """One kernel of the program over all its launches. Figures are formulas, or numbers after `.at`.

    flops: issued, with the padding of partial tiles. read, write: bytes its loads and stores name. bound: bytes of its
    distinct operands and results. predicted, measured: seconds.
    """

    kernel: str
    launches: int
    variants: tuple[str, ...]
    flops: str
    read: str
    write: str
    bound: str
    ratio: float | None
    predicted: float | None
    measured: float | None
    where: str


@dataclass(frozen=True)
class Report:
    """See the module's docstring. `str()` is the screen; `.at(batch=8, tokens=82)` puts numbers for formulas."""

    code: Code
    facts: Mapping[str, Any]
    profile: Profile | None = None
    dims: Mapping[str, int] | None = None

    def at(self, **dims: int) -> Report:
        """The report at given sizes. OptionError names dims without a value, unknown, or out of range."""
        known = {d.name: d for d in self.code.program.dims}
        faults = [f"the program has no dim {n!r}" for n in dims if n not in known]
        faults += [f"{n} has no value" for n in known if n not in dims]
        faults += [
            f"{n} = {v} is outside {known[n].min}..{known[n].max}"
            for n, v in dims.items()
            if n in known and not (known[n].min <= v and (known[n].max is None or v <= (known[n].max or 0)))
        ]
        if faults:
            raise OptionError(faults, step=f"give {', '.join(f'{d.name}={d.min}' for d in known.values())}")
        return replace(self, dims=dims)

    @cached_property
    def counts(self) -> Mapping[str, KernelCounts]:
        """What each kernel counts, by name, from the tile IR. MissingDependencyError where its library is absent."""
        try:
            from tilewright.compiler.counting import counts_of
        except ImportError as fault:
            raise _needs(fault) from fault
        return counts_of(self.code)

    @cached_property
    def machine(self) -> Machine:
        """The machine the program was compiled for, by its target's name."""
        try:
            from tilewright.ir.backend import backends
        except ImportError as fault:
            raise _needs(fault) from fault
        name, _, machine = self.code.program.target.partition(":")
        backend = backends().get(name)
        if backend is None or machine not in backend.machines:
            raise TargetError(f"no installed backend knows {self.code.program.target}", step="see `tilewright targets`")
        return backend.machines[machine]()

    @cached_property
    def rows(self) -> list[Row]:
        """A row per kernel family (the variants of one launch), in the order of first use."""
        rows = []
        measured: dict[str, float] = {}
        for timed in self.profile.steps if self.profile is not None else ():
            measured[timed.name] = measured.get(timed.name, 0.0) + timed.seconds
        launches = Counter(step.name for step in self.code.program.main.steps)
        names = {k.symbol: (k.facts or {}).get("name", k.symbol) for k in self.code.program.kernels}
        seen: set[str] = set()
        for step in self.code.program.main.steps:
            if step.name in seen or step.host is not None:
                continue
            seen.add(step.name)
            variants = tuple(str(names[v.symbol]) for v in step.variants)
            chosen = variants[-1]
            if self.dims is not None:
                formal = {n: e.evaluate(self.dims) for n, e in zip(step.formal_dims, step.dims, strict=True)}
                guard = step.guard.evaluate(formal)
                chosen = next(
                    name for name, v in zip(variants, step.variants, strict=True) if v.limit is None or guard <= v.limit
                )
            counts = self.counts[chosen]
            figures = counts.at(formal) if self.dims is not None else None
            rows.append(
                Row(
                    kernel=chosen if self.dims is not None else step.name,
                    launches=launches[step.name],
                    variants=variants,
                    flops=_shown(figures.flops if figures else counts.flops),
                    read=_shown(figures.read if figures else counts.read),
                    write=_shown(figures.write if figures else counts.write),
                    bound=_shown(figures.bound if figures else counts.bound),
                    ratio=(figures.read + figures.write) / figures.bound if figures and figures.bound else None,
                    predicted=self.machine.seconds(matrix=figures.matrix, vector=figures.vector, moved=figures.bound)
                    if figures
                    else None,
                    measured=measured.get(step.name) if self.profile is not None else None,
                    where=(step.location or step.path).rsplit("/", 1)[-1],
                )
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything on the screen as plain data."""
        program = self.code.program
        return {
            "model": self.facts.get("model"),
            "target": program.target,
            "dims": [str(d) for d in program.dims],
            "at": dict(self.dims) if self.dims is not None else None,
            "kernels": [vars(row) | {"variants": list(row.variants)} for row in self.rows],
            "patterns": dict(self.facts.get("patterns", {})),
            "applied": dict(self.facts.get("applied", {})),
            "refused": list(self.facts.get("refused", [])),
            "fallbacks": [s.name for s in program.main.steps if s.host is not None],
            "memory": self._memory(),
            "seconds": dict(self.facts.get("seconds", {})),
            "cache": self.facts.get("cache"),
            "notes": list(self.facts.get("notes", [])),
        }

    def _memory(self) -> dict[str, Any]:
        dims = self.dims or {d.name: d.max if d.max is not None else d.min for d in self.code.program.dims}
        found = footprint(self.code.program, dict(dims))
        return {"at": dict(dims), "bytes": found.total}

    def __str__(self) -> str:
        try:
            from rich.console import Console
        except ImportError as fault:
            raise _needs(fault) from fault
        console = Console(width=118, record=True, file=io.StringIO(), highlight=False, color_system=None)
        self._print(console)
        return console.export_text()

    def _print(self, console: Console) -> None:
        from rich.table import Table

        data = self.to_dict()
        at = f" at {', '.join(f'{n}={v}' for n, v in self.dims.items())}" if self.dims else ""
        console.print(f"{data['model']} on {data['target']}, dims {'; '.join(data['dims']) or 'none'}{at}")
        steps = len(self.code.program.main.steps)
        console.print(
            f"{steps} launches of {len(self.rows)} kernels; fallbacks: {', '.join(data['fallbacks']) or 'none'}; "
            f"cache: {data['cache'] or 'off'}"
        )
        measured = ("measured",) if self.profile is not None else ()
        predicted = ("ratio", "predicted") if self.dims is not None else ()
        table = Table(box=None, pad_edge=False)
        headings = ("kernel", "x", "FLOPs", "reads B", "writes B", "bound B", *predicted, *measured, "where")
        for heading in headings:
            names = heading in ("kernel", "where")
            table.add_column(heading, justify="left" if names else "right", overflow="fold", no_wrap=names)
        for row in self.rows:
            cells = [row.kernel, str(row.launches), row.flops, row.read, row.write, row.bound]
            if predicted:
                cells += [f"{row.ratio:.2f}" if row.ratio else "", _time(row.predicted)]
            if measured:
                cells.append(_time(row.measured))
            table.add_row(*cells, row.where)
        console.print(table)
        if data["applied"]:
            console.print("applied: " + "; ".join(f"{name} {count}" for name, count in data["applied"].items()))
        if data["patterns"]:
            console.print("patterns: " + "; ".join(f"{name} {count}" for name, count in data["patterns"].items()))
        for reason, count in Counter((r["op"], r["reason"]) for r in data["refused"]).most_common(8):
            console.print(f"refused: {reason[0]}: {reason[1]}" + (f" ({count} times)" if count > 1 else ""))
        memory = data["memory"]
        sizes = ", ".join(f"{n}={v}" for n, v in memory["at"].items())
        console.print(f"memory: {memory['bytes'] / 2**20:.1f} MiB" + (f" at {sizes}" if sizes else ""))
        console.print("compile: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in data["seconds"].items()))
        for note in data["notes"]:
            console.print(f"note: {note}")

    def save_html(self, path: str | Path) -> None:
        """Writes the report as one self-contained page."""
        body = html.escape(str(self))
        data = html.escape(json.dumps(self.to_dict(), default=str))
        Path(path).write_text(
            f"<!doctype html><meta charset=utf-8><title>Tilewright report</title>"
            f"<style>body{{font:14px/1.4 system-ui;margin:2em}}pre{{overflow-x:auto}}</style>"
            f"<h1>Tilewright report</h1><pre>{body}</pre><script type=application/json id=report>{data}</script>\n"
        )


def _needs(fault: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"the report needs {fault.name}, which loading and calling do not", step=f"pip install {fault.name}"
    )


def _shown(value: int | Expr | None) -> str:
    if value is None:
        return "by blocks"
    if isinstance(value, Expr):
        return str(value) if value.constant is None else _number(value.constant)
    return _number(value)


def _number(value: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= 10 * size:
            return f"{value / size:.1f}{unit}"
    return str(value)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"

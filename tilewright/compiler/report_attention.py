"""The report's section on attention: what each one moves at each level, the least it could, and why it is tiled so."""

from __future__ import annotations

import html
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import log2
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tilewright.compiler.code import Code
from tilewright.compiler.report_screen import WIDTH, duration, number
from tilewright.ir.graph.attention import AttentionOp
from tilewright.ir.graph.structure import GroupOp
from tilewright.ir.machine import Machine
from tilewright.ir.module import parse_module
from tilewright.ir.schedules import ORDERS
from tilewright.passes.attention_tiling.bounds import bounds_of
from tilewright.passes.attention_tiling.sizes import Sizes
from tilewright.passes.attention_tiling.tilings import Tiling, scheduled
from tilewright.runtime.facts import Facts


@dataclass(frozen=True)
class AttentionRow:
    """Equal attentions of a program, at given sizes.

    tiling: the one taken. moved: bytes that each level gives and takes, by name. bounds: the least of them, by
    `passes/attention_tiling/bounds.py`. seconds: predicted, of one. choice: how the tiling was chosen, in the form of
    the report's facts; None where no pass chose it.
    """

    times: int
    where: str | None
    tiling: Tiling
    moved: Mapping[str, float]
    bounds: Mapping[str, Mapping[str, Any]]
    seconds: float
    choice: Mapping[str, Any] | None

    @property
    def ratios(self) -> dict[str, float]:
        """What is moved to the least, by level."""
        return {level: self.moved[level] / bound["bytes"] for level, bound in self.bounds.items() if bound["bytes"]}

    @property
    def title(self) -> str:
        """The attention in a few words."""
        s = self.tiling.sizes
        heads = f"{s.heads} heads" + (f" on {s.key_heads}" if s.key_heads != s.heads else "")
        features = f"{s.features}" + (f"/{s.value_features}" if s.value_features != s.features else "")
        mask = s.mask + (f" {s.window}" if s.window else "") + (", packed sequences (at most)" if s.packed else "")
        return (
            f"attention x{self.times}: {s.batch} x {heads}, {s.queries} by {s.keys}, {features} features, mask {mask}"
        )

    @property
    def line(self) -> str:
        """What the screen says: the tiling, and bytes at each level with their ratio to the least."""
        t, ratios = self.tiling, self.ratios
        levels = [
            f"{level} {number(moved)}" + (f" ({ratios[level]:.2f})" if level in ratios else "")
            for level, moved in self.moved.items()
        ]
        tile = f"{t.order} {t.rows if t.paired else t.block_q} by {t.block_k}" + (
            ", pairs made once" if t.paired else ""
        )
        return f"{self.title}: {tile}; moved (to the least) {', '.join(levels)}"

    @property
    def details(self) -> str:
        """Everything that was weighed: a line a candidate, with its figures at the largest sizes it was judged at."""
        lines = [self.line + (f" [{self.where}]" if self.where else "")]
        for level, bound in self.bounds.items():
            known = "n^2 d^2 / M, M >= d^2" if bound["regime"] == "large" else "n^2 d / sqrt(M), M < d^2"
            lines.append(
                f"  {level}: at least {number(bound['bytes'])} bytes pass {bound['past']} (each once, or {known})"
            )
        choice = self.choice
        if choice is None:
            return "\n".join([*lines, "  no pass chose this tiling: it is the lowering's own", ""])
        sizes = "; ".join(", ".join(f"{n}={v}" for n, v in at.items()) or "its sizes" for at in choice["sizes"])
        lines.append(f"  chosen by {choice['objective']}: {choice['why']}; judged at {sizes}")
        return "\n".join([*lines, _candidates(choice)])

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        return {
            "times": self.times,
            "where": self.where,
            "sizes": asdict(self.tiling.sizes),
            "schedule": self.tiling.schedule.to_dict(),
            "named": self.tiling.named,
            "moved": dict(self.moved),
            "bounds": {level: dict(bound) for level, bound in self.bounds.items()},
            "ratios": self.ratios,
            "predicted": self.seconds,
            "choice": dict(self.choice) if self.choice is not None else None,
        }

    def plot(self, machine: Machine) -> str:
        """Bytes of main memory against the number of keys, by order, with the least and the chosen point: an SVG."""
        t = self.tiling
        here = max(t.sizes.keys, 1)
        name = machine.memory.name
        stretched = {2**n: _stretched(t.sizes, 2**n) for n in range(6, 18)}
        series = {
            order: [
                (n, _memory(replace(t, sizes=at, order=order, variant=None, heads=1), machine))
                for n, at in stretched.items()
            ]
            for order in ORDERS
        }
        least = [(n, float(bounds_of(at, machine)[name]["bytes"])) for n, at in stretched.items()]
        return _svg(self.title, {**series, "the least": least}, (here, self.moved[name]))


def rows_of(code: Code, facts: Facts, machine: Machine, dims: Mapping[str, int]) -> list[AttentionRow]:
    """A row for each kind of attention in the program's groups, in order of first use."""
    choices = [c for c in facts.choices if c["pass"] == "attention-tiling"]
    if not choices:
        return []
    found: Counter[Tiling] = Counter()
    first: dict[Tiling, AttentionOp] = {}
    module = parse_module(code.texts["graph"], "graph")
    for group in [op for op in module.walk() if isinstance(op, GroupOp)]:
        for op in [op for op in group.block.ops if isinstance(op, AttentionOp)]:
            tiling = scheduled(Sizes.of(op, dims), group.schedule, machine.rules)
            found[tiling] += 1
            first.setdefault(tiling, op)
    rows = []
    for tiling, times in found.items():
        op = first[tiling]
        moved = {
            level.name: n for level in machine.levels if (n := tiling.work(machine).moved.get(level.name)) is not None
        }
        choice = next((c for c in choices if asdict(Sizes.of(op, c["sizes"][0])) == c["attention"]), None)
        bounds = bounds_of(tiling.sizes, machine)
        rows.append(AttentionRow(times, op.loc or op.path, tiling, moved, bounds, tiling.seconds(machine), choice))
    return rows


def _candidates(choice: Mapping[str, Any]) -> str:
    """A table of candidates, and the reasons of those that cannot be taken."""
    console = Console(width=WIDTH, record=True, file=io.StringIO(), highlight=False, color_system=None)
    table = Table(box=None, pad_edge=False)
    levels = list(choice["candidates"][0]["moved"])
    for heading in ("", "order", "q by k", "heads", "part", "pairs", "named", *levels, "predicted", "refused"):
        names = heading in ("", "order", "refused")
        table.add_column(heading, justify="left" if names else "right", no_wrap=True)
    reasons = list(dict.fromkeys(c["refused"] for c in choice["candidates"] if c["refused"] is not None))
    for place, candidate in enumerate(choice["candidates"]):
        schedule = candidate["schedule"]
        table.add_row(
            "*" if place == choice["chosen"] else "", schedule["order"],
            f"{schedule['block_q']} by {schedule['block_k']}",
            str(schedule.get("heads", 1)), str(schedule.get("part", "")), "once" if schedule.get("pairs") else "",
            number(candidate["named"]),
            *[number(candidate["moved"][level]) for level in levels], duration(candidate["seconds"][0]),
            "" if candidate["refused"] is None else f"({reasons.index(candidate['refused']) + 1})",
        )  # fmt: skip
    console.print(table)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    return "\n".join([*lines, *(f"  ({n}) {reason}" for n, reason in enumerate(reasons, 1)), ""])


def _stretched(sizes: Sizes, keys: int) -> Sizes:
    """The attention with so many keys; and as many queries, where it has as many now."""
    queries = keys if sizes.queries == sizes.keys else min(sizes.queries, keys)
    shift = keys - queries if sizes.shift == sizes.keys - sizes.queries else sizes.shift
    return replace(sizes, queries=queries, keys=keys, shift=shift)


def _memory(tiling: Tiling, machine: Machine) -> float:
    part = machine.rules.key_part if tiling.apart else 0
    return replace(tiling, part=part).work(machine).moved[machine.memory.name]


_COLOURS: Final = ("#1f6feb", "#d1242f", "#8250df", "#57606a")
_PLOT: Final = (640, 360, 60)  # width, height, margin


def _svg(title: str, series: Mapping[str, list[tuple[int, float]]], point: tuple[int, float]) -> str:
    """Lines in doubly logarithmic axes, with a mark at a point."""
    wide, high, margin = _PLOT
    every = [*(p for line in series.values() for p in line), point]
    left, right = (f(log2(max(x, 1)) for x, _ in every) for f in (min, max))
    low, top = (f(log2(max(y, 1)) for _, y in every) for f in (min, max))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (log2(max(x, 1)) - left) / max(right - left, 1e-9)
        up = (log2(max(y, 1)) - low) / max(top - low, 1e-9)
        return margin + across * (wide - 2 * margin), high - margin - up * (high - 2 * margin)

    parts = [
        f'<svg width="{wide}" height="{high}" font-family="system-ui" font-size="12" role="img">',
        f'<text x="{margin}" y="20">{html.escape(title)}: bytes of main memory by number of keys</text>',
    ]
    for (name, points), colour in zip(series.items(), _COLOURS, strict=True):
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in points))
        dash = ' stroke-dasharray="5 4"' if name == "the least" else ""
        x, y = at(*points[-1])
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5"{dash} points="{places}"/>')
        parts.append(f'<text x="{x + 4:.1f}" y="{y:.1f}" fill="{colour}">{html.escape(name)}</text>')
    parts += [_tick(at(x, 2**low), str(x), "middle", 16) for x, _ in next(iter(series.values()))[::2]]
    steps = range(int(low), int(top) + 1, max(1, (int(top) - int(low)) // 5))
    parts += [_tick(at(2**left, 2**step), number(2**step), "end", 4) for step in steps]
    x, y = at(*point)
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/><text x="{x + 6:.1f}" y="{y - 6:.1f}">here</text></svg>')
    return "".join(parts)


def _tick(place: tuple[float, float], text: str, anchor: str, below: int) -> str:
    shift = -6 if anchor == "end" else 0
    return f'<text x="{place[0] + shift:.1f}" y="{place[1] + below:.1f}" text-anchor="{anchor}">{text}</text>'

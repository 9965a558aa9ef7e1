"""The report as text for one screen: numbers at one set of sizes, the kernels that cost most, and the reasons."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilewright.ir.dims import Expr
from tilewright.runtime.memory import shown as bytes_text

if TYPE_CHECKING:
    from tilewright.compiler.report import Report, Row

WIDTH: Final = 118
_MOST_KERNELS: Final = 20
_MOST_REASONS: Final = 6
_LEGEND: Final = (
    "bound: operands and results, each byte once; ratio: moved / bound; "
    "predicted: by the machine's busiest unit or level"
)


def screen(report: Report) -> str:
    """The screen of a report, lines of at most WIDTH characters."""
    console = Console(width=WIDTH, record=True, file=io.StringIO(), highlight=False, color_system=None)
    shown, data = report.shown, report.to_dict()
    launches = sum(row.launches for row in shown.rows)

    def paragraph(text: str) -> None:
        """A text on as many lines as it takes: nothing is cut off."""
        for part in textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False) or [""]:
            console.print(Text(part), no_wrap=True)

    paragraph(f"{data['model']} on {data['target']}, dims {'; '.join(data['dims']) or 'none'}")
    paragraph(
        f"{_counted(launches, 'launch', 'es')} of {_counted(len(shown.rows), 'kernel')}; "
        f"fallbacks: {', '.join(data['fallbacks']) or 'none'}; memory: {bytes_text(data['memory']['bytes'])}"
    )
    paragraph(f"cache: {data['cache'] or 'off'}" + (f"; capture: {data['capture']}" if data["capture"] else ""))
    paragraph("")
    if shown.dims:
        sizes = ", ".join(f"{n}={v}" for n, v in shown.dims.items())
        why = "" if report.dims else ", the profiled call" if report.profile else f", {report.why_these_sizes}"
        others = "" if report.dims else f" (others: report.at({', '.join(f'{name}=...' for name in shown.dims)}))"
        paragraph(f"At {sizes}{why}{others}, all launches together, reads and writes in bytes:")
    console.print(kernels(shown.rows))
    paragraph(_LEGEND)
    for attention in shown.attentions:
        paragraph(attention.line)
    paragraph("")
    for label, counts in (("patterns", data["patterns"]), ("applied", data["applied"])):
        if counts:
            paragraph(f"{label}: " + "; ".join(f"{name} {count}" for name, count in counts.items()))
    for text in reasons(data["refused"]):
        paragraph(f"refused: {text}")
    paragraph("seconds to compile: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in data["seconds"].items()))
    if data["checked"]:
        paragraph(f"checked: {data['checked']}")
    for note in data["notes"]:
        paragraph(f"note: {note}")
    return console.export_text()


def kernels(rows: list[Row]) -> Table:
    """A line a kernel in the order they run, the least of a long program summed up, and the whole in the last line."""
    measured = any(row.measured is not None for row in rows)
    table = Table(box=None, pad_edge=False)
    headings = ("kernel", "x", "FLOPs", "reads", "writes", "bound", "ratio", "predicted")
    for heading in (*headings, *(("measured",) if measured else ()), "where"):
        names = heading in ("kernel", "where")
        # a long name goes on in the next line
        table.add_column(
            heading,
            justify="left" if names else "right",
            no_wrap=not names,
            overflow="fold",
            max_width=30 if names else None,
        )

    def add(name: str, part: list[Row], where: str) -> None:
        read, write, bound = (_sum(getattr(row, field) for row in part) for field in ("read", "write", "bound"))
        cells = [name, str(sum(row.launches for row in part)), number(_sum(row.flops for row in part))]
        cells += [number(read), number(write), number(bound), f"{(read + write) / bound:.2f}" if bound else ""]
        cells.append(duration(_sum(row.predicted for row in part)))
        if measured:
            cells.append(duration(_sum(row.measured for row in part)))
        table.add_row(*cells, where)

    by_cost = sorted(rows, key=lambda row: row.measured or row.predicted or 0, reverse=True)
    kept = {row.kernel for row in by_cost[:_MOST_KERNELS]}
    for row in rows:
        if row.kernel in kept:
            add(row.kernel, [row], row.where)
    if rest := by_cost[_MOST_KERNELS:]:
        add(f"{len(rest)} more", rest, "")
    add("in all", rows, "")
    return table


def reasons(refused: Iterable[dict[str, Any]]) -> list[str]:
    """Refusals with equal reasons in one line: what could not be joined with what, why, how often."""
    found: dict[str, dict[str, int]] = {}
    for entry in refused:
        what, colon, why = entry["reason"].partition(": ")
        what, why = (what, why) if colon else ("", entry["reason"])
        who = f"{entry['op']} {what}".strip().replace("graph.", "")
        # an op that says its own name again says it once
        ops = found.setdefault(why.removeprefix(f"{entry['op']} "), {})
        ops[who] = ops.get(who, 0) + 1
    ranked = sorted(found.items(), key=lambda item: -sum(item[1].values()))
    lines = []
    for why, ops in ranked[:_MOST_REASONS]:
        listed = ", ".join(name + (f" ({count} times)" if count > 1 else "") for name, count in ops.items())
        lines.append(f"{why}: {listed}")
    if len(ranked) > _MOST_REASONS:
        lines.append(f"and for {len(ranked) - _MOST_REASONS} more reasons: .to_dict()['refused']")
    return lines


def number(value: float) -> str:
    """A count in three digits and a decimal prefix."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{_three(value / size)}{prefix}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """A time in three digits, in the largest unit that it has one of."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds * 1e9)} ns"


def _counted(count: int, what: str, plural: str = "s") -> str:
    return f"{count} {what}{'' if count == 1 else plural}"


def _three(value: float) -> str:
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def _sum(values: Iterable[float | Expr | None]) -> float:
    return sum(value for value in values if isinstance(value, (int, float)))

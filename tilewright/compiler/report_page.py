"""The report as one page that needs nothing else: the screen, a bar a kernel, its formulas, and plots of attention."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tilewright.compiler.report_screen import duration, number
from tilewright.ir.dims import Expr

if TYPE_CHECKING:
    from tilewright.compiler.report import Report, Row

_STYLE: Final = (
    "body{font:14px/1.4 system-ui;margin:2em}pre{overflow-x:auto}table{border-collapse:collapse}"
    "td,th{padding:.1em .8em .1em 0;text-align:left;vertical-align:top}td.bar{width:20em}"
    "i{display:block;height:.9em;background:#4a7ebb}i.m{background:#bb6a4a}"
)


def page(report: Report) -> str:
    """The whole page as HTML."""
    plots = "".join(row.plot(report.machine) for row in report.attentions)
    details = html.escape("\n".join(row.details for row in report.attentions))
    data = html.escape(json.dumps(report.to_dict(), default=str))
    return (
        f"<!doctype html><meta charset=utf-8><title>Tilewright report</title><style>{_STYLE}</style>"
        f"<h1>Tilewright report</h1><pre>{html.escape(str(report))}</pre>"
        f"{_bars(report.shown.rows)}{_formulas(replace(report, dims=None).rows)}<pre>{details}</pre>{plots}"
        f"<script type=application/json id=report>{data}</script>\n"
    )


def _bars(rows: list[Row]) -> str:
    """A bar a kernel: predicted time, and the measured one below it where there is a profile."""
    longest = max([0.0, *(max(row.predicted or 0.0, row.measured or 0.0) for row in rows)]) or 1.0
    lines = []
    for row in rows:
        times = [
            (seconds, kind) for seconds, kind in ((row.predicted, "p"), (row.measured, "m")) if seconds is not None
        ]
        bars = "".join(f"<i class={kind} style=width:{100 * seconds / longest:.1f}%></i>" for seconds, kind in times)
        told = " / ".join(duration(seconds) for seconds, _ in times)
        lines.append(f"<tr><td>{html.escape(row.kernel)}<td>{told}<td class=bar>{bars}")
    measured = any(row.measured is not None for row in rows)
    heading = "Predicted and measured time" if measured else "Predicted time"
    return f"<h2>{heading}, all launches together</h2><table id=bars>{''.join(lines)}</table>"


def _formulas(rows: list[Row]) -> str:
    """What a kernel computes and moves over the dims; a number where nothing varies."""
    lines = []
    for row in rows:
        cells = [
            str(value) if isinstance(value, Expr) else "" if value is None else number(value)
            for value in (row.flops, row.read, row.write, row.bound)
        ]
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in (row.kernel, *cells)))
    head = "".join(f"<th>{name}" for name in ("kernel", "FLOPs", "bytes read", "bytes written", "bound"))
    return f"<h2>Formulas, all launches together</h2><table id=formulas><tr>{head}{''.join(lines)}</table>"

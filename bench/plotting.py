"""The ratios of docs/benchmarks.md as a picture."""

from __future__ import annotations

from pathlib import Path

from bench.results import Line

_MARKS = ("o", "s", "D", "^", "v")


def draw(lines: list[Line], peers: list[str], target: Path) -> None:
    """Times as fast as each peer, a row a case: medians with quartiles, on a logarithmic axis. Right of 1 is faster."""
    import matplotlib

    matplotlib.use("Agg")
    # names inside the file, and so its bytes, are the numbers' alone
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(8.5, 0.42 * len(lines) + 1.5), layout="constrained")
    rows = range(len(lines))
    for number, peer in enumerate(peers):
        shift = (number - (len(peers) - 1) / 2) * 0.16
        places = [(row + shift, line.ratios[peer]) for row, line in enumerate(lines) if peer in line.ratios]
        medians = [ratio.median for _, ratio in places]
        around = [
            [ratio.median - ratio.low for _, ratio in places],
            [ratio.high - ratio.median for _, ratio in places],
        ]
        axes.errorbar(
            medians, [place for place, _ in places], xerr=around, fmt=_MARKS[number % len(_MARKS)], markersize=4.5,
            elinewidth=1, linewidth=0, label=peer,
        )  # fmt: skip
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_yticks(list(rows), [line.case.name for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.set_xlabel("times as fast as the peer (1: equal; right: Tilewright is faster)")
    figure.legend(loc="outside upper center", ncols=len(peers), frameon=False)
    figure.savefig(target, metadata={"Date": None})
    pyplot.close(figure)

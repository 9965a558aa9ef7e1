"""From rounds to numbers: medians, spreads, ratios within a round, and the tables they are told in."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bench.cases import Case


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        found = sorted(values)
        if len(found) < 2:
            return Spread(found[0], found[0], found[0])
        low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
        return Spread(middle, low, high)

    def text(self, form: Callable[[float], str]) -> str:
        """The median, and the quartiles in brackets."""
        return f"{form(self.median)} ({form(self.low)}..{form(self.high)})"


@dataclass(frozen=True)
class Line:
    """One case's numbers. ratios: how many times as fast as each peer we are, round by round."""

    case: Case
    seconds: dict[str, Spread]
    ratios: dict[str, Spread]
    prepared: dict[str, dict[str, Any]]
    of_flops: Spread | None
    of_bandwidth: Spread

    @staticmethod
    def of(data: dict[str, Any], us: str = "tilewright") -> Line:
        """From what `rounds.compete` gives. A round's time is the median of its calls."""
        case, ours = Case.of_json(data["case"]), data["prepared"][us]
        rounds = [
            ({name: statistics.median(times) for name, times in r["seconds"].items()}, r["ceilings"])
            for r in data["rounds"]
        ]
        names = list(data["prepared"])
        # the share of what the machine gave in the same round, in the dtype's own products where it has them
        of_flops = [ours["flops"] / seconds[us] / rates[case.dtype] for seconds, rates in rounds if case.dtype in rates]
        return Line(
            case,
            {name: Spread.of(seconds[name] for seconds, _ in rounds) for name in names},
            {name: Spread.of(s[name] / s[us] for s, _ in rounds) for name in names if name != us},
            data["prepared"],
            Spread.of(of_flops) if of_flops else None,
            Spread.of(ours["bound"] / seconds[us] / rates["read"] for seconds, rates in rounds),
        )


def ceilings(found: Iterable[dict[str, Any]]) -> dict[str, Spread]:
    """The ceilings over all rounds of all cases."""
    rates: dict[str, list[float]] = {}
    for data in found:
        for r in data["rounds"]:
            for name, rate in r["ceilings"].items():
                rates.setdefault(name, []).append(rate)
    return {name: Spread.of(values) for name, values in rates.items()}


def callers_ratio(data: dict[str, Any]) -> tuple[Spread, int]:
    """Many callers' calls a second over one's, and the most threads of the operating system seen."""
    ratio = Spread.of(r["many"]["rate"] / r["one"]["rate"] for r in data["rounds"])
    return ratio, max(int(r["many"]["os_threads"]) for r in data["rounds"])


def peers_of(lines: list[Line]) -> list[str]:
    """Everybody who took part in some case."""
    return list(dict.fromkeys(name for line in lines for name in line.ratios))


def rounded(data: Any) -> Any:
    """The same with numbers of five digits: no clock here tells more."""
    match data:
        case float():
            return float(f"{data:.5g}")
        case dict():
            return {key: rounded(value) for key, value in data.items()}
        case list():
            return [rounded(value) for value in data]
        case _:
            return data


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def percent(share: float) -> str:
    return f"{share * 100:.0f}%"


def times_as_fast(ratio: float) -> str:
    return f"{ratio:.2f}"


def prefixed(value: float) -> str:
    """With a decimal prefix."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.0f} "

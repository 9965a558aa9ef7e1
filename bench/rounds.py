"""Taking turns: in every round the ceilings are measured, then everybody runs the case, in an order that rotates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.cases import CALLERS_CASE, TRIVIAL, Case
from bench.contestants import CONTESTANTS
from bench.server import Server

CALLERS = 8
_SECONDS = 0.4  # a turn's length, where one call is shorter
_CALLER_SECONDS = 1.0
_MOST_CALLS = 2000
# OpenMP's threads spin for a while after a region: they are asleep when the next one is timed.
QUIET = 0.05

Told = Callable[[str], None]


def compete(servers: dict[str, Server], ceilings: Server, case: Case, rounds: int, told: Told) -> dict[str, Any]:
    """All rounds of a case: what everybody told when preparing; of each round, ceilings and every call's seconds."""
    prepared, calls = {}, {}
    servers = {name: server for name, server in servers.items() if CONTESTANTS[name].takes(case)}
    for name, server in servers.items():
        told(f"{case.name}: {name} prepares")
        prepared[name] = server.ask("prepare", case=case.to_json())
        once = min(server.ask("time", case=case.to_json(), calls=2))
        calls[name] = max(1, min(_MOST_CALLS, int(_SECONDS / max(once, 1e-7))))
    names, found = list(servers), []
    for number in range(rounds):
        told(f"{case.name}: round {number + 1} of {rounds}")
        rates = ceilings.ask("measure")
        seconds = {}
        for name in _rotated(names, number):
            time.sleep(QUIET)
            seconds[name] = servers[name].ask("time", case=case.to_json(), calls=calls[name])
        found.append({"ceilings": rates, "seconds": seconds})
    return {"case": case.to_json(), "prepared": prepared, "rounds": found}


def callers(us: Server, rounds: int, told: Told) -> dict[str, Any]:
    """Calls a second of one Python thread and of many on one object, in turns."""
    us.ask("prepare", case=CALLERS_CASE.to_json())
    found: dict[str, Any] = {"case": CALLERS_CASE.to_json(), "callers": CALLERS, "rounds": []}
    for number in range(rounds):
        told(f"1 and {CALLERS} callers: round {number + 1} of {rounds}")
        given = {"case": CALLERS_CASE.to_json(), "seconds": _CALLER_SECONDS}
        measured = {count: us.ask("callers", count=count, **given) for count in _rotated([1, CALLERS], number)}
        found["rounds"].append({"one": measured[1], "many": measured[CALLERS]})
    return found


def overhead(servers: dict[str, Server], ceilings: Server, rounds: int, told: Told) -> dict[str, Any]:
    """A program with next to no work: what a call costs by itself."""
    return compete(servers, ceilings, TRIVIAL, rounds, told)


def _rotated(values: Sequence[Any], by: int) -> list[Any]:
    return [*values[by % len(values) :], *values[: by % len(values)]]

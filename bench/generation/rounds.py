"""Rounds of generation: in each the ceilings are measured, then every measurement is taken once, in turns."""

from __future__ import annotations

import time
from typing import Any

from bench.generation import MEASURED, NAME
from bench.rounds import QUIET, Told
from bench.server import Server


def compete(servers: dict[str, Server], ceilings: Server, rounds: int, told: Told) -> dict[str, Any]:
    """What everybody told when preparing, and all rounds; servers: by the names of GENERATORS."""
    prepared = {}
    for name, server in servers.items():
        told(f"{NAME}: {name} prepares")
        prepared[name] = server.ask("prepare_generation")
    turns = [(name, what) for name in servers for what in MEASURED[name]]
    found = []
    for number in range(rounds):
        told(f"{NAME}: round {number + 1} of {rounds}")
        measured: dict[str, Any] = {name: {} for name in servers}
        rates = ceilings.ask("measure")
        for name, what in (*turns[number % len(turns) :], *turns[: number % len(turns)]):
            time.sleep(QUIET)
            measured[name][what] = servers[name].ask("measure_generation", what=what)
        found.append({"ceilings": rates, "measured": measured})
    return {"prepared": prepared, "rounds": found}

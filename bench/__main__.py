"""`make bench`, `python -m bench`: times everybody, keeps the rounds in bench/results, and writes docs/benchmarks.*."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench.cases import FAMILIES, MODELS
from bench.contestants import CONTESTANTS
from bench.generation import GENERATORS, NAME
from bench.generation.rounds import compete as compete_generating
from bench.plotting import draw
from bench.results import Line, peers_of, rounded
from bench.rounds import callers, compete, overhead
from bench.server import GENERATING, Server
from bench.writing import document, show

ROOT = Path(__file__).resolve().parent.parent
GENERATION = "generation"
EVERYTHING = ",".join([*FAMILIES, GENERATION])


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Turns that everybody gets.")] = 7,
    family: Annotated[str, typer.Option(help="Comma-separated families of cases; all by default.")] = EVERYTHING,
    only: Annotated[str, typer.Option(help="Cases whose name contains this.")] = "",
    peers: Annotated[str, typer.Option(help="Comma-separated; all by default.")] = ",".join(CONTESTANTS),
    write: Annotated[bool, typer.Option(help="Write docs/benchmarks.{md,json,svg}, too.")] = True,
) -> None:
    """Times Tilewright and its peers side by side."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)  # a file or a pipe takes lines of any length
    names = list(dict.fromkeys(["tilewright", *filter(None, peers.split(","))]))
    if unknown := [name for name in names if name not in CONTESTANTS]:
        raise typer.BadParameter(f"no such peer: {', '.join(unknown)}; there are {', '.join(CONTESTANTS)}")
    families = [name for name in family.split(",") if name]
    if unknown := [name for name in families if name not in (*FAMILIES, GENERATION)]:
        there = ", ".join([*FAMILIES, GENERATION])
        raise typer.BadParameter(f"no such family: {', '.join(unknown)}; there are {there}")
    chosen = {name: [case for case in FAMILIES[name] if only in case.name] for name in families if name in FAMILIES}
    generates = GENERATION in families and only in NAME
    if not any(chosen.values()) and not generates:
        there = ", ".join([*(c.name for name in families for c in FAMILIES.get(name, ())), NAME])
        raise typer.BadParameter(f"no case of {family} has {only!r} in its name; there are {there}")
    before = os.getloadavg()[0]
    with console.status("starting") as status:
        from bench.ceilings import READ_BYTES

        ceilings = Server("ceilings")
        about = ceilings.ask("about")
        data: dict[str, Any] = {}
        for name, cases in chosen.items():
            if not cases:
                continue
            servers = {peer: Server(peer) for peer in names}
            measured = [compete(servers, ceilings, case, rounds, status.update) for case in cases]
            data["cases" if name == MODELS else name] = measured
            if name == MODELS:
                data["overhead"] = overhead(servers, ceilings, rounds, status.update)
                data["callers"] = callers(servers["tilewright"], rounds, status.update)
                told = (item for case in measured for item in case["prepared"].items())
                data["versions"] = {peer: about_it["version"] for peer, about_it in told}
                data |= {"rounds": rounds, "load": [before, os.getloadavg()[0]]}
            for server in servers.values():
                server.close()
            data |= {"read_bytes": READ_BYTES, **about}
        if generates:
            # after the others have given their memory back
            servers = {name: Server(GENERATING + name) for name in GENERATORS}
            data["generation"] = compete_generating(servers, ceilings, rounds, status.update)
            for server in servers.values():
                server.close()
        ceilings.close()
    data |= {"date": datetime.date.today().isoformat(), "cpu": cpu_model(), "cores": len(os.sched_getaffinity(0))}
    show(console, data)
    folder = ROOT / "bench" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{datetime.datetime.now():%Y%m%d-%H%M%S}.json"
    text = json.dumps(rounded(data), separators=(",", ":")) + "\n"
    target.write_text(text)
    console.print(f"wrote {target.relative_to(ROOT)}", highlight=False)
    if write:
        page = ROOT / "docs" / "benchmarks.md"
        # what was not measured now stays as it was
        data = json.loads(page.with_suffix(".json").read_text()) | json.loads(text)
        lines = [Line.of(case) for case in data["cases"]]
        page.write_text(document(data))
        page.with_suffix(".json").write_text(json.dumps(data, separators=(",", ":")) + "\n")
        draw(lines, peers_of(lines), page.with_suffix(".svg"))
        console.print("wrote docs/benchmarks.md, .json and .svg", highlight=False)


if __name__ == "__main__":
    typer.run(main)

"""Results as a table on the terminal and as docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.generation.writing import lines as lines_of_generation
from bench.generation.writing import section
from bench.results import (
    Line,
    Spread,
    callers_ratio,
    ceilings,
    milliseconds,
    peers_of,
    percent,
    prefixed,
    times_as_fast,
)


def headings(peers: list[str]) -> list[str]:
    """Of the columns that both tables have."""
    ratios = [f"times as fast as {name}" for name in peers]
    return [
        "case",
        "tilewright ms",
        *[f"{name} ms" for name in peers],
        *ratios,
        "FLOPs",
        "bytes",
        "of FLOP/s",
        "of GB/s",
    ]


def cells(line: Line, peers: list[str]) -> list[str]:
    """A case in those columns; a peer that does not take the case's dtype has a dash."""
    ours = line.prepared["tilewright"]
    of_flops = line.of_flops.text(percent) if line.of_flops else "-"
    return [
        line.case.name,
        line.seconds["tilewright"].text(milliseconds),
        *[line.seconds[name].text(milliseconds) if name in line.ratios else "-" for name in peers],
        *[line.ratios[name].text(times_as_fast) if name in line.ratios else "-" for name in peers],
        prefixed(ours["flops"]),
        f"{prefixed(ours['bound'])}B",
        of_flops,
        line.of_bandwidth.text(percent),
    ]


def show(console: Console, data: dict[str, Any]) -> None:
    """The terminal's tables: medians, and the quartiles of ratios."""
    if "generation" in data:
        console.print(Text("Generation"))
        for what, found in lines_of_generation(data["generation"]):
            console.print(f"{what}: {found}", markup=False, highlight=False, soft_wrap=True)
    for name in ("attention", "cases"):
        if name in data:
            console.print(_table([Line.of(case) for case in data[name]]))
    for text in remarks(data) if "cases" in data else ():
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(lines: list[Line]) -> Table:
    table = Table(title="Medians over rounds", title_justify="left", box=None, pad_edge=False)
    peers = peers_of(lines)
    ratios = [f"{name} / ours" for name in peers]
    for heading in ("case", "ours ms", *[f"{name} ms" for name in peers], *ratios, "of FLOP/s", "of GB/s"):
        table.add_column(heading, justify="left" if heading == "case" else "right", no_wrap=True)
    for line in lines:
        table.add_row(
            line.case.name,
            milliseconds(line.seconds["tilewright"].median),
            *[milliseconds(line.seconds[name].median) if name in line.ratios else "-" for name in peers],
            *[line.ratios[name].text(times_as_fast) if name in line.ratios else "-" for name in peers],
            percent(line.of_flops.median) if line.of_flops else "-",
            percent(line.of_bandwidth.median),
        )
    return table


def remarks(data: dict[str, Any]) -> list[str]:
    """What is told in sentences: ceilings, call overhead, callers."""
    found = []
    rates = ceilings([*data["cases"], data["overhead"]])
    told = [f"{prefixed(s.median)}{'B' if n == 'read' else 'FLOP'}/s {n} {_range(s)}" for n, s in rates.items()]
    found.append(f"Ceilings measured in the same rounds, {data['threads']} threads: {'; '.join(told)}.")
    least = Line.of(data["overhead"])
    micro = {name: f"{s.median * 1e6:.1f} us" for name, s in least.seconds.items()}
    found.append(f"One call of x + 1 on four numbers: {', '.join(f'{name} {t}' for name, t in micro.items())}.")
    ratio, threads = callers_ratio(data["callers"])
    count = data["callers"]["callers"]
    found.append(
        f"{count} Python threads calling one object make {ratio.text(times_as_fast)} times the calls a second of one, "
        f"with at most {threads} threads in the process, the benchmark's own included."
    )
    return found


def _range(s: Spread) -> str:
    return f"({prefixed(s.low)}..{prefixed(s.high)})"


def compiling(lines: list[Line], peers: list[str]) -> str:
    """Seconds from a model to a program, everybody's: ours serves all sizes, so its later sizes cost nothing."""
    names = [name for name in peers if any("cold" in line.prepared.get(name, {}) for line in lines)]
    found = [["case", "tilewright", "tilewright, from its cache", *names]]
    found.append(["---", *["---:"] * (len(found[0]) - 1)])
    told: set[tuple[str, str, str, float]] = set()
    for line in lines:
        model, ours = (line.case.model, line.case.dtype), line.prepared["tilewright"]
        took = [("tilewright", ours["cold"], 1), ("its cache", ours["warm"], 2)]
        took += [(name, line.prepared.get(name, {}).get("cold"), 1) for name in names]
        cells = []
        for name, seconds, digits in took:
            # one program for all sizes is told of once
            again = seconds is None or (name, *model, seconds) in told
            cells.append("-" if again else f"{seconds:.{digits}f}")
            told.add((name, *model, seconds))
        found.append([line.case.name, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in found)


def _markdown(lines: list[Line], peers: list[str]) -> str:
    names = headings(peers)
    rows = [names, ["---", *["---:"] * (len(names) - 1)], *[cells(line, peers) for line in lines]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _attention(data: dict[str, Any]) -> str:
    """The section on attention alone; empty where it was not measured."""
    if "attention" not in data:
        return ""
    lines = [Line.of(case) for case in data["attention"]]
    rounds = len(data["attention"][0]["rounds"])
    return f"""
## Attention alone

One call of torch's `scaled_dot_product_attention`, heads x tokens, 64 or 128 features a head, full and causal;
attention-step is one query of 32 heads beside 8 heads of keys and values. Rounds: {rounds}.

{_markdown(lines, peers_of(lines))}
"""


def document(data: dict[str, Any]) -> str:
    """docs/benchmarks.md."""
    lines = [Line.of(case) for case in data["cases"]]
    peers = peers_of(lines)
    table = _markdown(lines, peers)
    load = data["load"]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    bullets = "\n".join(f"- {text}" for text in remarks(data))
    return f"""# Benchmarks

Written by `make bench`; the raw rounds are in `benchmarks.json`.

Measured on {data["date"]} on {data["cpu"]}, {data["threads"]} threads, CPU class {data["machine"]}.
Versions: {versions}.

**Read ratios, not milliseconds.** The machine is virtual and was shared: its load average was {load[0]:.1f} before
and {load[1]:.1f} after the run, on {data["cores"]} cores. Rounds: {data["rounds"]}; numbers are medians over them with
quartiles in brackets; wide brackets are the neighbours. In each round everybody runs in turn, each in a process of its
own, and the ratio is taken inside the round. Neighbours slow a barrier among threads far more than a kernel, and
everybody's differently: where calls are short, the ratio of a loaded machine is not that of a quiet one.

![Times as fast as each peer](benchmarks.svg)

{table}

{bullets}

Seconds of compiling, capture or export included; a dash: nothing left to do, or nothing to compile.

{compiling(lines, peers)}

What the columns mean:

- minilm is all-MiniLM-L6-v2 with its weights, pooling and normalisation included, batch x tokens, nothing padded.
  llama-0.5b is a decoder of 28 layers with drawn weights: a prefill that ends in the last token's logits. resnet-50 is
  plain torch.nn, vit-b transformers', both at full size with drawn weights and 224 x 224 pixels. gelu, softmax,
  layer-norm and norm-gelu-add (gelu(norm(x)) + x) work on rows of 1,024 numbers that no cache holds. One compiled
  object a model and dtype serves all sizes.
- bf16: of minilm ours rounds the operands of matrix products and keeps f32 between them; eager PyTorch and Inductor run
  the model in bf16, OpenVINO with bf16 as its inference precision. llama-0.5b is a bf16 model for everybody. ONNX
  Runtime has no bf16 products on CPUs.
- Eager PyTorch and Inductor run with one thread and with all in every round, and the better one counts: where
  neighbours take a core, OpenMP's threads wait for each other for longer than they save.
- Inductor compiles every case by itself, sizes and weights being constants to it; the others serve all sizes with one
  program, exported to ONNX with open axes for ONNX Runtime and OpenVINO.
- FLOPs and bytes are the report's: FLOPs as issued, with the padding of partial tiles, and the bytes of each kernel's
  distinct operands and results. The last two columns are our rates as shares of the ceilings of the same round:
  multiply-adds in registers in the case's dtype, and a plain read of {data["read_bytes"] >> 20} MiB. A small
  model may stay in a cache, so the second share may pass 100%.
{_attention(data)}{section(data["generation"]) if "generation" in data else ""}"""

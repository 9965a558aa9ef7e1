"""What generation's rounds say: a table with one line a claim, each a ratio taken inside a round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.generation.sizes import ANSWER, LONG, LONG_LAYERS, PROMPT, REQUESTS
from bench.results import Spread, percent, times_as_fast

_HEADINGS = ("what", "median (quartiles)")


def lines(data: dict[str, Any]) -> list[tuple[str, str]]:
    """What is told, with its medians and quartiles."""
    ours = [r["measured"]["tilewright"] for r in data["rounds"]]
    reads = [r["ceilings"]["read"] for r in data["rounds"]]
    size = data["prepared"]["tilewright"]["token_bytes"]

    def over(value: Callable[[dict[str, Any]], float]) -> Spread:
        return Spread.of(value(r) for r in ours)

    token = over(lambda r: r["paged"]["token"])
    found = [
        ("one request, ms a token", token.text(lambda s: f"{s * 1e3:.1f}")),
        (
            f"of the bandwidth of a plain read, for {size / 1e6:.0f} MB a token",
            Spread.of(size / r["paged"]["token"] / read for r, read in zip(ours, reads, strict=True)).text(percent),
        ),
        (
            "time in pages of 16 to time in one piece",
            over(lambda r: r["paged"]["token"] / r["contiguous"]["token"]).text(times_as_fast),
        ),
        (
            "time of a step outside kernels",
            over(lambda r: 1 - r["paged"]["kernels"] / r["paged"]["token"]).text(percent),
        ),
        (
            f"{REQUESTS} requests' tokens a second to one's",
            over(lambda r: REQUESTS * r["paged"]["token"] / r["together"]["step"]).text(times_as_fast),
        ),
        (
            f"first token after {PROMPT} to the time of the prefill alone",
            over(lambda r: r["first"]["first"] / r["prefill"]["seconds"]).text(times_as_fast),
        ),
        *[
            (
                f"attention over {LONG} keys in {coded}, times as fast as in bf16",
                over(lambda r, coded=coded: r["attention"]["bf16"] / r["attention"][coded]).text(times_as_fast),  # type: ignore[misc]
            )
            for coded in ("int8", "int4")
        ],
    ]
    if "transformers" in data["prepared"]:
        peers = [(r["measured"]["tilewright"], r["measured"]["transformers"]["generate"]) for r in data["rounds"]]
        found += [
            (
                "times as fast as transformers' generate, a token",
                Spread.of(peer["token"] / own["paged"]["token"] for own, peer in peers).text(times_as_fast),
            ),
            (
                f"times as fast as transformers' generate, first token after {PROMPT}",
                Spread.of(peer["first"] / own["first"]["first"] for own, peer in peers).text(times_as_fast),
            ),
        ]
    return found


def section(data: dict[str, Any]) -> str:
    """Of docs/benchmarks.md."""
    rows = [_HEADINGS, ("---", "---:"), *lines(data)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    versions = ", ".join(f"{name} {told['version']}" for name, told in data["prepared"].items())
    return f"""
## Generation

The decoder of llama-0.5b in bf16, greedy, rounds: {len(data["rounds"])} ({versions}). A token's time is the median of
{ANSWER} steps after a prompt of {PROMPT}. Bytes of a token are the report's, weights and cache together. Attention over
long caches is that of {LONG_LAYERS} layers of the same shape after {LONG} tokens, kernels alone. transformers runs
its own `generate`, eager, in bf16.

{table}
"""

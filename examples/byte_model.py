"""Train a small Llama-shaped model of bytes on the Python standard library's source, and keep it as a model directory.

    python examples/byte_model.py [--folder DIR] [--steps N]
    tilewright eval DIR --text DIR/held_out.txt --kv-dtype int8

2.4 million parameters, a tokenizer whose ids are the bytes, some minutes on one core. The same Python, torch and
number of steps give the same weights; a folder that holds them is not trained again. One file in twenty is held out.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer

WINDOW, STEPS = 512, 2000
# shares of the steps with windows a step and their bytes: small steps learn most a byte, long windows their places
STAGES = ((0.7, 4, 256), (0.3, 2, WINDOW))
# one thread, so that sums are in one order on any number of cores
THREADS = 1
MATRIX_RATE, RATE, WARM, COOL = 0.02, 3e-3, 20, 0.5
HELD_OUT = 20
SHAPE: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": WINDOW, "tie_word_embeddings": True,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


def sources() -> Iterator[bytes]:
    """The standard library's modules, in the order of their names, as they are in UTF-8."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests", "idlelib", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        if not left_out.intersection(path.relative_to(root).parts):
            content = path.read_bytes()
            if _is_text(content):
                yield content


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return bool(content)


def corpus() -> tuple[bytes, bytes]:
    """What is trained on, and what is held out."""
    parts = list(sources())
    return (
        b"\n".join(part for i, part in enumerate(parts) if i % HELD_OUT),
        b"\n".join(part for i, part in enumerate(parts) if not i % HELD_OUT),
    )


def identity(text: bytes, steps: int) -> str:
    """What decides the weights: texts, settings, and what computes."""
    settings = [SHAPE, STAGES, steps, THREADS, MATRIX_RATE, RATE, WARM, COOL, torch.__version__, platform.machine()]
    return hashlib.sha256(json.dumps(settings).encode() + text).hexdigest()


def train(text: bytes, steps: int) -> Any:
    """A model after so many steps; bits by text and steps, on one kind of machine."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim > 1 and p is not embedding]
    others = [p for p in model.parameters() if p.ndim < 2 or p is embedding]
    # orthogonal steps of matrices need a fraction of the bytes that Adam's do (Jordan et al., Muon, 2024)
    optimizers = [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    begun = time.monotonic()
    for step in range(steps):
        share = min(1.0, (step + 1) / WARM, (steps - step) / (COOL * steps))
        for optimizer, rate in zip(optimizers, (MATRIX_RATE, RATE), strict=True):
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.zero_grad()
        _, count, window = STAGES[step >= STAGES[0][0] * steps]
        starts = rng.integers(0, len(data) - window - 1, count)
        ids = torch.stack([data[s : s + window + 1] for s in starts.tolist()]).long()
        # products in bf16, sums and weights in f32: several times as fast where the processor has them
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - begun
            print(f"step {step}: {loss.item() / math.log(2):.3f} bits a byte, {seconds:.0f} s", file=sys.stderr)
    return model.eval()


def byte_tokenizer() -> Any:
    """A tokenizer whose ids are the bytes of a text."""
    import tokenizers

    # byte-level tokenizers write bytes as printable characters; those that are none follow in order
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


def prepared(folder: Path, steps: int = STEPS) -> Path:
    """The model's directory, trained where it is not there yet; held_out.txt beside the weights."""
    text, held_out = corpus()
    mark, key = folder / "identity", identity(text, steps)
    if mark.is_file() and mark.read_text() == key:
        return folder
    model = train(text, steps)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "held_out.txt").write_bytes(held_out)
    mark.write_text(key)
    return folder


def default_folder() -> Path:
    """Beside what Tilewright caches."""
    from tilewright.runtime.cache import default_root

    return default_root() / "byte-model"


def main(
    folder: Annotated[Path | None, typer.Option(help="Where the model goes.", show_default="in the cache")] = None,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = STEPS,
) -> None:
    print(prepared(folder or default_folder(), steps))


if __name__ == "__main__":
    typer.run(main)

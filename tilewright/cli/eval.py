"""`tilewright eval MODEL --text FILE`: how surprising a text is to a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilewright.cli.generate import KVType, ModelFolder
from tilewright.cli.language_folder import LanguageFolder, require_kv_type
from tilewright.cli.options import Threads

if TYPE_CHECKING:
    from tilewright.runtime.generation.language_model import LanguageModel

TextFile = Annotated[Path, typer.Option("--text", metavar="FILE", help="A text file in UTF-8.", show_default=False)]
Stride = Annotated[
    int | None,
    typer.Option("--stride", metavar="N", min=1, help="By how many tokens windows move.", show_default="half a window"),
]


@dataclass(frozen=True)
class Surprise:
    """nats: the sum of -log p over `tokens` predicted tokens of a text of `size` bytes."""

    nats: float
    tokens: int
    size: int

    @property
    def perplexity(self) -> float:
        """exp of the mean of -log p a token."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """What the text would take in a compressor with this model; comparable among tokenizers."""
        return self.nats / math.log(2) / self.size


def evaluate(
    model: ModelFolder, text: TextFile, stride: Stride = None, kv_dtype: KVType = "model", threads: Threads = None
) -> None:
    """Perplexity of a text."""
    require_kv_type(kv_dtype)
    content, folder = read_text(text), LanguageFolder.of(model)
    folder.require_continued()
    show_surprise(surprise(folder.compiled(kv_dtype, threads), content, stride))


def read_text(path: Path) -> str:
    """A text file. Raises OptionError where it is none."""
    from tilewright.errors import OptionError

    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--text {path}: {error}", step="give the path of a text file in UTF-8") from error
    if not content:
        raise OptionError(f"--text {path} is empty", step="give a longer text")
    return content


def surprise(lm: LanguageModel, text: str, stride: int | None = None) -> Surprise:
    """How surprising a text is to a model."""
    nats, tokens = lm.negative_log_likelihood(lm.encode(text), stride=stride)
    return Surprise(nats, tokens, len(text.encode()))


def show_surprise(found: Surprise) -> None:
    """A line on stdout."""
    print(
        f"perplexity {found.perplexity:.4f} over {found.tokens} tokens, "
        f"{found.bits_per_byte:.4f} bits a byte of {found.size}"
    )

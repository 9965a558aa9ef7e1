"""`tilewright generate MODEL PROMPT`: a text goes on, piece by piece."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilewright.cli.language_folder import LanguageFolder, require_kv_type
from tilewright.cli.options import Threads

if TYPE_CHECKING:
    from tilewright.runtime.generation.language_model import LanguageModel
    from tilewright.runtime.generation.sampler import Sampler

ModelFolder = Annotated[str, typer.Argument(metavar="MODEL", help="A model's folder.", show_default=False)]
NewTokens = Annotated[int, typer.Option("-n", "--tokens", metavar="N", min=1, help="At most so many new tokens.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Only the likeliest tokens of this mass.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Only so many likeliest tokens.")]
MinP = Annotated[float | None, typer.Option("--min-p", help="Only tokens this likely, relative to the likeliest.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same text.", show_default="fresh")]
KVType = Annotated[
    str, typer.Option("--kv-dtype", metavar="TYPE", help="How old keys and values are kept: model, int8 or int4.")
]
Stop = Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends before this text; repeatable.")]


def generate(
    model: ModelFolder,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text; - reads it from stdin.")],
    tokens: NewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    stop: Stop = None,
    kv_dtype: KVType = "model",
    threads: Threads = None,
) -> None:
    """Continues a text and prints it as it comes; tells the speed."""
    sampler = sampler_of(temperature, top_p, top_k, min_p, seed)
    require_kv_type(kv_dtype)
    folder = LanguageFolder.of(model)
    text = sys.stdin.read() if prompt == "-" else prompt
    folder.require_room(len(folder.tokenizer.encode(text)), tokens)
    lm = folder.compiled(kv_dtype, threads)
    write_answer(lm, text, max_new_tokens=tokens, sampler=sampler, stop=stop or [])


def sampler_of(
    temperature: float, top_p: float | None, top_k: int | None, min_p: float | None, seed: int | None
) -> Sampler:
    """The sampler of a command line, checked before a model is compiled. Raises SamplerError."""
    import tilewright

    made: Sampler = tilewright.Sampler(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed)
    return made


def write_answer(lm: LanguageModel, text: str, **options: Any) -> str:
    """Prints what follows a text on stdout as it comes and the speed on stderr; the answer's text."""
    from tilewright.cli.speed import Speed

    # what is wrong with the text shows here, before the clock starts
    completion = lm.complete(text, **options)
    speed = Speed()
    for piece in completion:
        speed.count(len(completion.tokens))
        print(piece, end="", flush=True)
    speed.count(len(completion.tokens))
    print()
    speed.show()
    return completion.text

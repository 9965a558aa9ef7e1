"""`tilewright chat MODEL`: a conversation on the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tilewright.cli.generate import (
    KVType,
    MinP,
    ModelFolder,
    Seed,
    Temperature,
    TopK,
    TopP,
    sampler_of,
)
from tilewright.cli.language_folder import LanguageFolder, require_kv_type
from tilewright.cli.options import Threads

if TYPE_CHECKING:
    from tilewright.runtime.generation.language_model import LanguageModel
    from tilewright.runtime.generation.sampler import Sampler
    from tilewright.runtime.generation.session import Session

_ANSWER: Final = 1024
AnswerTokens = Annotated[
    int | None,
    typer.Option(
        "-n", "--tokens", metavar="N", min=1, help="At most so many tokens an answer.",
        show_default="1024, or half of what the model takes",
    ),
]  # fmt: skip

HELP = """/again    another answer to the last message
/undo     take back the last message and its answer
/reset    begin anew
/help     this list
/quit     end (as does Ctrl-D); Ctrl-C ends an answer"""


def chat(
    model: ModelFolder,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system message.")] = None,
    tokens: AnswerTokens = None,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    kv_dtype: KVType = "model",
    threads: Threads = None,
) -> None:
    """Talks with a model through its own chat template. /help lists what else can be typed."""
    sampler = sampler_of(temperature, top_p, top_k, min_p, seed)
    require_kv_type(kv_dtype)
    folder = LanguageFolder.of(model)
    folder.require_chat_template()
    if tokens is None:
        tokens = _ANSWER if folder.most is None else min(_ANSWER, max(1, folder.most // 2))
    folder.require_room(1, tokens)
    lm = folder.compiled(kv_dtype, threads)
    with contextlib.suppress(ImportError):
        # the line editor that input() takes up: arrows and history; some systems are built without it
        import readline  # noqa: F401
    talk(lm, input, system=system, sampler=sampler, max_new_tokens=tokens)


def talk(
    lm: LanguageModel,
    read: Callable[[str], str],
    *,
    system: str | None = None,
    sampler: Sampler | None = None,
    max_new_tokens: int = 1024,
) -> None:
    """The conversation's loop. read: gives a line for a prompt; EOFError ends, KeyboardInterrupt ends an answer.

    What a turn's text does wrong (too long for the model) is told, and the conversation goes on.
    """
    from tilewright.cli.progress import say
    from tilewright.errors import PromptError
    from tilewright.runtime.generation.session import Session

    begin = [] if system is None else [{"role": "system", "content": system}]
    with Session(lm, begin, sampler=sampler, max_new_tokens=max_new_tokens) as session:
        while (line := _line(read)) is not None:
            text = line.strip()
            if text == "/quit":
                return
            if text == "/reset":
                session.messages[:] = begin
                continue
            if text in ("/again", "/undo"):
                asked = [i for i, message in enumerate(session.messages) if message["role"] == "user"]
                if not asked:
                    say("nothing has been said yet")
                    continue
                text = session.messages[asked[-1]]["content"] if text == "/again" else ""
                del session.messages[asked[-1] :]
            elif text.startswith("/"):
                say(HELP if text == "/help" else f"unknown command {text.split()[0]}\n{HELP}")
                continue
            if text:
                try:
                    _answer(session, text)
                except PromptError as error:
                    say(f"{error}\n/undo or /reset makes room")


def _line(read: Callable[[str], str]) -> str | None:
    """The next line; None at the end, an empty one where it was interrupted."""
    try:
        return read("> ")
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print()
        return ""


def _answer(session: Session, text: str) -> None:
    from tilewright.cli.speed import Speed

    pieces = session.say(text)
    completion = session.last
    assert completion is not None
    speed = Speed()
    with contextlib.closing(pieces), contextlib.suppress(KeyboardInterrupt):
        for piece in pieces:
            speed.count(len(completion.tokens))
            print(piece, end="", flush=True)
    print()
    speed.count(len(completion.tokens))
    speed.show()

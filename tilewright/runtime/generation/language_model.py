"""A language model as people use it: ids or text in, ids or text out, one request or many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import numpy as np

from tilewright.errors import EngineError, PromptError, TextError
from tilewright.option_names import known_options
from tilewright.runtime.generation.chat_template import Message, render
from tilewright.runtime.generation.completion import Completion
from tilewright.runtime.generation.distribution import log_softmax
from tilewright.runtime.generation.engine import Engine
from tilewright.runtime.generation.grammar import Grammar, GrammarCompiler, Matcher
from tilewright.runtime.generation.prompts import checked_ids, checked_prompt, checked_source
from tilewright.runtime.generation.request import Conversation, Handle
from tilewright.runtime.generation.sampler import Sampler
from tilewright.runtime.generation.scoring import score
from tilewright.runtime.generation.speculation import Drafting
from tilewright.runtime.generation.step import Float32, StepProgram
from tilewright.runtime.generation.tokenizer import Tokenizer


class LanguageModel:
    """A compiled causal or encoder-decoder model with its tokenizer, if it has one.

    It has one engine at a time, because an engine owns the pages of the program's cache. `engine()` makes one with
    other limits; until then there is one with none but the program's. end: ids that end an answer, by default the
    tokenizer's.
    """

    def __init__(
        self, program: StepProgram, tokenizer: Tokenizer | None = None, *, end: Sequence[int] | None = None
    ) -> None:
        self.program = program
        self.tokenizer = tokenizer
        self.end = tuple(end) if end is not None else tokenizer.end if tokenizer else ()
        self._engine: Engine | None = None
        self._grammars: GrammarCompiler | None = None

    @known_options()
    def engine(
        self, *, max_batch: int | None = None, budget: int | str | None = None, drafting: Drafting | None = None
    ) -> Engine:
        """A new engine, in place of the one before. budget: of cache, in bytes or as "2GiB".

        Raises EngineError while requests of the one before are running.
        """
        from tilewright.runtime.memory import parse_bytes

        if self._engine is not None:
            if self._engine.live:
                raise EngineError(
                    f"{self._engine.live} requests are running", step="let them end, or close() the engine first"
                )
            self._engine.close()
        self._engine = Engine(
            self.program,
            max_batch=max_batch,
            budget=parse_bytes(budget) if isinstance(budget, str) else budget,
            end=self.end,
            drafting=drafting,
            matcher=self._matcher,
        )
        return self._engine

    @property
    def current(self) -> Engine:
        """The engine that requests go to."""
        return self._engine or self.engine()

    @known_options(Engine.submit, within={"sampler": Sampler})
    def generate(
        self,
        ids: Sequence[int] | Sequence[Sequence[int]],
        *,
        max_new_tokens: int | None = None,
        sampler: Sampler | None = None,
        **more: Any,
    ) -> Iterator[Any]:
        """Generated ids as they come: of one prompt, ints; of several, (index of the prompt, int).

        Greedy without a sampler. more: what `Engine.submit` takes. With one seed, equal prompts get different numbers
        and different prompts the same ones, so that a prompt's text does not depend on the others. Everything is
        checked, and nothing runs, before the first id is asked for. Leaving early cancels the rest. The ids are what an
        encoder reads, where there is one; with `source` among more, that is, and ids are how the answer begins.
        """
        encodes = bool(self.program.layout.source_tokens) and "source" not in more
        if self._is_one(ids):
            prompt, given = ([], {"source": ids} | more) if encodes else (cast("Sequence[int]", ids), more)
            return _ids_of(self.current.submit(prompt, max_new_tokens=max_new_tokens, sampler=sampler, **given))
        seen: Counter[tuple[int, ...]] = Counter()
        handles: list[Handle] = []
        with ExitStack() as undo:
            for each in cast("Sequence[Sequence[int]]", ids):
                layout = self.program.layout
                whole = checked_source(each, layout) if encodes else checked_prompt(each, layout, max_new_tokens)
                text = tuple(whole)
                given = {"key": seen[text]} | ({"source": text} if encodes else {}) | more
                prompt = () if encodes else text
                handles.append(self.current.submit(prompt, max_new_tokens=max_new_tokens, sampler=sampler, **given))
                undo.callback(handles[-1].cancel)
                seen[text] += 1
            undo.pop_all()
        return _pairs_of(handles)

    def _is_one(self, ids: Any) -> bool:
        if isinstance(ids, str):
            raise PromptError("generate() takes ids, not text", step="lm.complete(text), or the tokenizer's encode")
        return getattr(ids, "ndim", 0) == 1 or not len(ids) or not hasattr(ids[0], "__len__")

    @known_options(Engine.submit, within={"sampler": Sampler})
    def complete(
        self,
        text: str | Sequence[Message],
        *,
        stop: Sequence[str] = (),
        max_new_tokens: int | None = None,
        sampler: Sampler | None = None,
        logprobs: int | None = None,
        **more: Any,
    ) -> Completion:
        """The answer to a text or to chat messages, in pieces of text. more: what `Engine.submit` takes.

        Raises TextError without a tokenizer and, for messages, without a chat template or where that refuses them.
        """
        prompt = self.encode(text)
        source = more.pop("source", ())
        if self.program.layout.source_tokens:
            prompt, source = [], prompt
        conversation: Conversation | None = more.pop("conversation", None)
        handle = self.current.submit(
            prompt, max_new_tokens=max_new_tokens, sampler=sampler, logprobs=logprobs, source=source,
            conversation=conversation, **more,
        )  # fmt: skip
        with ExitStack() as undo:
            undo.callback(handle.cancel)
            completion = Completion(handle, self._text().decode, prompt, stop)
            undo.pop_all()
        return completion

    def encode(self, text: str | Sequence[Message]) -> list[int]:
        """Ids of a text, or of chat messages by the model's own template."""
        tokenizer = self._text()
        if isinstance(text, str):
            return tokenizer.encode(text)
        if not all(isinstance(message, Mapping) for message in text):
            raise TextError(
                f"a {type(text).__name__} of other things than messages is no prompt",
                step='pass one text a call, or messages: [{"role": "user", "content": "..."}]',
            )
        if tokenizer.chat_template is None:
            raise TextError("the model has no chat template", step="pass a text, or a model trained for chat")
        made = render(tokenizer.chat_template, text, add_generation_prompt=True, **tokenizer.special)
        # the template writes the special tokens itself
        return tokenizer.encode(made, special=False)

    @known_options()
    def logits(self, ids: Sequence[int], *, source: Sequence[int] = (), prompt: int | None = None) -> Float32:
        """Logits after every token: [tokens, vocabulary] f32, as generation sees them. source: what the encoder reads,
        where there is one; ids are the answer, its start among them. prompt: so many of the ids are the prompt, after
        which a cache with a compression gives up tokens; None for all.
        """
        read = checked_source(source, self.program.layout)
        tokens = checked_ids(ids, self.program.layout.vocabulary)
        if len(tokens) > (most := self.program.layout.max_tokens):
            raise PromptError(
                f"{len(tokens)} tokens are more than max_tokens={most}", step="score the text in parts of that length"
            )
        if prompt is not None and not 0 < prompt <= len(tokens):
            raise PromptError(f"a prompt of {prompt} among {len(tokens)} tokens", step=f"write 1 to {len(tokens)}")
        return np.concatenate(list(score(self.current, tokens, read, prompt)))

    @known_options()
    def negative_log_likelihood(
        self, ids: Sequence[int], *, stride: int | None = None, source: Sequence[int] = ()
    ) -> tuple[float, int]:
        """How surprising a text is: the sum of -log p (natural) of its tokens from the second on, and their number.

        Longer texts than the model takes are read in windows that move by `stride` tokens (default: half a window);
        every token counts once, after all the context that its window has. source: as in `logits`.
        """
        layout = self.program.layout
        read = checked_source(source, layout)
        tokens = checked_ids(ids, layout.vocabulary, "the text")
        if len(tokens) < 2:
            raise PromptError("a text of one token has nothing to predict", step="give a longer text")
        window = min(layout.max_tokens, self.current.book.longest())
        step = max(1, window // 2 if stride is None else min(stride, window - 1))
        total, counted = 0.0, 1
        for begin in range(0, max(1, len(tokens) - window + step), step):
            part = tokens[begin : begin + window]
            at = 0
            for rows in score(self.current, part, read):
                for i, row in enumerate(rows, start=at):
                    if i + 1 < len(part) and begin + i + 1 >= counted:
                        total -= float(log_softmax(row)[part[i + 1]])
                at += len(rows)
            counted = begin + len(part)
        return total, len(tokens) - 1

    def _text(self) -> Tokenizer:
        if self.tokenizer is None:
            raise TextError(
                "the model has no tokenizer",
                step="compile_lm() of a folder with a tokenizer.json, or pass ids to generate()",
            )
        return self.tokenizer

    def _matcher(self, grammar: Grammar) -> Matcher:
        if self._grammars is None:
            tokenizer = self._text()
            self._grammars = GrammarCompiler(tokenizer.definition(), self.program.layout.vocabulary, tokenizer.end)
        return self._grammars.matcher(grammar)


class _Stream(Iterator[Any]):
    """What `generate` gives: ids, or (index, id). Closed or no longer referred to, it cancels what still runs."""

    def __init__(self, handles: list[Handle], values: Iterator[Any]) -> None:
        self._handles, self._values = handles, values

    def __next__(self) -> Any:
        return next(self._values)

    def close(self) -> None:
        """Ends the requests; their pages come back."""
        for handle in self._handles:
            handle.cancel()

    def __del__(self) -> None:
        self.close()


def _ids_of(handle: Handle) -> _Stream:
    return _Stream([handle], (token.id for token in handle))


def _pairs_of(handles: list[Handle]) -> _Stream:
    """Tokens in the order of steps, and of prompts within one."""

    def pairs() -> Iterator[tuple[int, int]]:
        left = dict(enumerate(handles))
        while left:
            for index, handle in list(left.items()):
                token = next(iter(handle), None)
                if token is None:
                    del left[index]
                else:
                    yield index, token.id

    return _Stream(handles, pairs())

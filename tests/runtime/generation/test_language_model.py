"""generate, complete, logits and sessions over a real attention model in float64, against its whole-sequence form."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tests.runtime.generation.attention_model import AttentionProgram
from tests.runtime.generation.echo_program import EchoProgram, layout
from tests.runtime.generation.sample_tokenizers import ByteTokenizer
from tilewright.errors import EngineError, PromptError, TextError
from tilewright.runtime.generation.language_model import LanguageModel
from tilewright.runtime.generation.session import Session


def greedy(program: AttentionProgram, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(program.forward(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def test_logits_through_pages_are_those_of_the_whole_sequence(rng: np.random.Generator) -> None:
    for page_size, step_tokens in ((1, 5), (4, 16), (7, 64), (16, 1)):
        program = AttentionProgram(rng, page_size=page_size, step_tokens=step_tokens, pages=70)
        tokens = rng.integers(0, 13, 50).tolist()
        np.testing.assert_allclose(LanguageModel(program).logits(tokens), program.forward(tokens), rtol=1e-5, atol=1e-5)


def test_bits_depend_on_nothing_but_the_request(rng: np.random.Generator) -> None:
    """Chunks, pages, neighbours, prefixes: the same float32 bits."""
    seed = int(rng.integers(2**30))
    tokens = rng.integers(0, 13, 40).tolist()
    found = [
        LanguageModel(
            AttentionProgram(np.random.default_rng(seed), page_size=size, step_tokens=chunk, pages=64)
        ).logits(tokens)
        for size, chunk in ((4, 16), (1, 40), (8, 3))
    ]
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()
    lm = LanguageModel(AttentionProgram(np.random.default_rng(seed)))
    prompts = [tokens[:n] for n in (1, 2, 7, 20, 33)]
    sampler = tw.Sampler(temperature=0.9, top_p=0.9, seed=3)
    together: dict[int, list[int]] = {i: [] for i in range(5)}
    for index, token in lm.generate(prompts, max_new_tokens=8, sampler=sampler):
        together[index].append(token)
    for i, prompt in enumerate(prompts):
        fresh = LanguageModel(AttentionProgram(np.random.default_rng(seed)))
        assert list(fresh.generate(prompt, max_new_tokens=8, sampler=sampler)) == together[i]
    assert lm.current.book.account.reused > 0 or lm.current.book.account.computed > 0


def test_greedy_text_is_that_of_the_whole_sequence_with_every_way_of_speculating(rng: np.random.Generator) -> None:
    seed = int(rng.integers(2**30))
    prompts = [rng.integers(0, 13, n).tolist() for n in (1, 6, 19)]
    for drafting in (None, tw.PromptLookup(4, 2, 1), tw.DraftModel(AttentionProgram(np.random.default_rng(seed)), 3)):
        program = AttentionProgram(np.random.default_rng(seed))
        lm = LanguageModel(program)
        lm.engine(drafting=drafting)
        for prompt in prompts:
            assert list(lm.generate(prompt, max_new_tokens=16)) == greedy(program, prompt, 16)


def test_a_cache_that_is_too_small_for_all_changes_no_bit(rng: np.random.Generator) -> None:
    program = AttentionProgram(rng)
    lm = LanguageModel(program)
    lm.engine(budget=program.layout.bytes_for(40))
    prompts = [rng.integers(0, 13, 12).tolist() for _ in range(4)]
    found: dict[int, list[int]] = {i: [] for i in range(4)}
    for index, token in lm.generate(prompts, max_new_tokens=14):
        found[index].append(token)
    assert lm.current.book.account.preempted > 0
    assert [found[i] for i in range(4)] == [greedy(program, prompt, 14) for prompt in prompts]


def test_equal_prompts_get_different_numbers() -> None:
    lm = LanguageModel(EchoProgram(layout()))
    sampler = tw.Sampler(seed=1)
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for index, token in lm.generate([[1, 2], [3], [1, 2]], max_new_tokens=12, sampler=sampler):
        found[index].append(token)
    assert found[0] != found[2]
    assert found[0] == list(lm.generate([1, 2], max_new_tokens=12, sampler=sampler))
    assert found[1] == list(lm.generate(np.array([3]), max_new_tokens=12, sampler=sampler))


def test_several_prompts_with_one_fault_start_nothing() -> None:
    lm = LanguageModel(EchoProgram(layout()))
    with pytest.raises(PromptError, match="holds id 99"):
        lm.generate([[1], [99]])
    with pytest.raises(PromptError, match="the prompt has no tokens"):
        lm.generate([[1], []])
    with pytest.raises(PromptError, match="the prompt has no tokens"):
        lm.generate([])
    with pytest.raises(PromptError, match="takes ids, not text"):
        lm.generate("text")
    assert lm.current.live == 0


def test_a_reader_that_leaves_gives_everything_back() -> None:
    lm = LanguageModel(EchoProgram(layout(vocabulary=11)), None)
    stream = lm.generate([[1], [2]], max_new_tokens=30)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert (lm.current.live, lm.current.book.held_bytes) == (0, 0)
    lm.generate([1])
    says("text").complete("Hi")
    gc.collect()
    assert lm.current.live == 0, "a stream that nobody reads holds nothing"


def test_a_request_may_be_cancelled_from_within_a_step() -> None:
    lm = LanguageModel(EchoProgram(layout()))
    handles = [lm.current.submit([3], max_new_tokens=9)]

    def cancel(tokens: Any, logits: np.ndarray) -> np.ndarray:
        handles[0].cancel()
        with pytest.raises(EngineError, match="within a step"):
            lm.current.step()
        return logits

    lm.current.submit([1], max_new_tokens=2, sampler=tw.Sampler(logits_processor=cancel)).result()
    assert (handles[0].finish, lm.current.live, lm.current.book.held_bytes) == ("cancelled", 0, 0)


class Says:
    """A step program that says a given text: its logits point to the text's next byte, whatever was said."""

    def __init__(self, text: str, prompt: int) -> None:
        self.layout = layout(vocabulary=258, max_tokens=200, page_size=8, groups=(tw_group(60),))
        self.ids = [*text.encode(), 257]
        self.prompt = prompt

    def step(self, inputs: Any) -> np.ndarray:
        rows = np.zeros((len(inputs.wanted), 258), np.float32)
        for row, t in zip(rows, inputs.wanted, strict=True):
            row[self.ids[min(int(inputs.positions[t]) - self.prompt + 1, len(self.ids) - 1)]] = 9
        return rows

    def copy_page(self, group: int, source: int, target: int) -> None: ...


def tw_group(pages: int) -> Any:
    from tilewright.runtime.generation.step import CacheGroup

    return CacheGroup("full", pages, 8)


def says(text: str, prompt: int = 3) -> LanguageModel:
    return LanguageModel(Says(text, prompt), ByteTokenizer())  # type: ignore[arg-type]


def test_completions_stream_text_and_stop_where_asked() -> None:
    whole = says("Grüße, Welt").complete("Hi")
    pieces = list(whole)
    assert "".join(pieces) == whole.text == "Grüße, Welt"
    assert "ü" in pieces
    assert whole.finish == "stop"
    lm = says("one\n\ntwo")
    cut = lm.complete("Hi", stop=["\n\n"], logprobs=2)
    assert list(cut) == list("one")
    assert cut.finish == "stop"
    assert [token.id for token in cut.tokens] == list(b"one\n\n")
    assert cut.tokens[0].logprob is not None
    assert cut.tokens[0].logprob > -0.1
    assert lm.current.book.held_bytes == 0
    short = says("one two").complete("Hi", max_new_tokens=5, stop=["o t!"])
    assert short.read() == "one t"
    assert short.finish == "length"


def test_a_session_keeps_its_pages_and_its_messages() -> None:
    lm = LanguageModel(EchoProgram(layout(vocabulary=258, max_tokens=400, groups=(tw_group(110),))), ByteTokenizer())
    lm.program._logits = lambda digest: np.eye(258, dtype=np.float32)[97 + digest[0] % 26]  # type: ignore[attr-defined]
    with Session(lm, [{"role": "system", "content": "Be brief."}], max_new_tokens=6) as session:
        first = "".join(session.say("Hello"))
        assert len(first) == 6
        assert [m["role"] for m in session.messages] == ["system", "user", "assistant"]
        computed = lm.current.book.account.computed
        second = "".join(session.say("And?"))
        # the template closes the answer, then comes the turn: all before that was kept
        assert lm.current.book.account.computed - computed <= len("</><user>And?</><assistant>") + 1 + 6
        other = LanguageModel(lm.program, lm.tokenizer)
        assert other.complete(session.messages[:-1], max_new_tokens=6).read() == second
        with pytest.raises(PromptError):
            session.say("x" * 400)
        assert len(session.messages) == 5, "a turn that fails is taken back"
        assert lm.current.book.held_bytes > 0
    assert lm.current.book.held_bytes == 0


def test_a_text_is_as_surprising_as_the_whole_sequence_says(rng: np.random.Generator) -> None:
    program = AttentionProgram(rng)
    tokens = rng.integers(0, 13, 60).tolist()
    logits = program.forward(tokens)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = -sum(logs[i, tokens[i + 1]] for i in range(59))
    total, count = LanguageModel(program).negative_log_likelihood(tokens)
    assert count == 59
    assert total == pytest.approx(wanted, rel=1e-5)
    long = rng.integers(0, 13, 150).tolist()
    whole = 0.0
    for begin, first in ((0, 1), (20, 64), (40, 84), (60, 104), (80, 124), (100, 144)):
        part = long[begin : begin + 64]
        logits = program.forward(part)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        whole -= sum(logs[i - begin - 1, long[i]] for i in range(first, begin + len(part)))
    total, count = LanguageModel(program).negative_log_likelihood(long, stride=20)
    assert count == 149
    assert total == pytest.approx(whole, rel=1e-5)


def test_what_needs_a_tokenizer_says_so() -> None:
    lm = LanguageModel(EchoProgram(layout()))
    with pytest.raises(TextError, match="the model has no tokenizer"):
        lm.complete("Hi")
    with pytest.raises(TextError, match="the model has no tokenizer"):
        list(lm.generate([1], sampler=tw.Sampler(grammar=tw.Grammar.regex("a"))))
    with pytest.raises(TextError, match="no chat template"):
        LanguageModel(lm.program, ByteTokenizer(None)).complete([{"role": "user", "content": "Hi"}])


def test_one_engine_at_a_time() -> None:
    lm = LanguageModel(EchoProgram(layout()))
    engine = lm.engine(max_batch=2, budget="256B")
    handle = engine.submit([1], max_new_tokens=3)
    with pytest.raises(EngineError, match="1 requests are running"):
        lm.engine()
    engine.close()
    assert handle.finish == "cancelled"
    assert lm.engine().book.budget == 24 * 32


def test_logits_of_too_long_a_text_are_refused() -> None:
    lm = LanguageModel(EchoProgram(layout()))
    with pytest.raises(PromptError, match="49 tokens are more than max_tokens=48"):
        lm.logits([1] * 49)
    assert lm.logits([1] * 48).shape == (48, 11)
    assert lm.current.book.held_bytes == 0
    with pytest.raises(PromptError, match="nothing to predict"):
        lm.negative_log_likelihood([1])

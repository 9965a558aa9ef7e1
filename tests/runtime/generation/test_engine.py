"""A request's tokens are its own: alone or beside others, in chunks, preempted, shared or speculated upon."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.runtime.generation.echo_program import EchoProgram, layout
from tilewright.errors import CacheFullError, EngineError, OptionError, PromptError, SamplerError, StepProgramError
from tilewright.runtime.generation.choice import Choice
from tilewright.runtime.generation.engine import Engine
from tilewright.runtime.generation.request import Conversation
from tilewright.runtime.generation.sampler import Sampler
from tilewright.runtime.generation.speculation import DraftModel, PromptLookup
from tilewright.runtime.generation.step import CacheGroup, check_inputs

MIXED = (CacheGroup("full", 20, 8), CacheGroup("ring", 24, 4, window=6))
LAYOUTS: dict[str, dict[str, Any]] = {
    "full": {},
    "mixed": {"groups": MIXED},
    "sinks": {"groups": (CacheGroup("sinks", 24, 4, window=5, sinks=3),)},
    "one token a page": {"page_size": 1, "groups": (CacheGroup("full", 96, 8),)},
    "a page a request": {"page_size": 48, "groups": (CacheGroup("full", 4, 8),)},
    "recurrent": {"groups": (), "recurrent_bytes": 64, "state_rows": 4},
    "hybrid": {"recurrent_bytes": 64, "state_rows": 3},
    "encoder": {"source_tokens": 9, "cross_bytes": 32, "state_rows": 4, "start": 0},
}


def alone(program: EchoProgram, prompt: Sequence[int], count: int, sampler: Sampler, **more: Any) -> list[int]:
    """The text as the definition has it: one token after the other, from the tokens alone."""
    source = more.pop("source", ())
    choice = Choice(sampler, prompt, program.layout.vocabulary, **more)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(choice.choose(program.fingerprint(tokens, source)))
        choice.accept(tokens[-1])
    return tokens[len(prompt) :]


def some_requests(rng: np.random.Generator, count: int, encoder: bool) -> list[dict[str, Any]]:
    """Requests of all kinds, several with a common beginning."""
    begin = rng.integers(0, 11, 20).tolist()
    found = []
    for _ in range(count):
        own = rng.integers(0, 11, rng.integers(1, 16)).tolist()
        prompt = begin[: rng.integers(0, 21)] + own
        sampler = Sampler(
            temperature=float(rng.choice([0.0, 0.7])), top_k=int(rng.integers(1, 12)), seed=int(rng.integers(99))
        )
        found.append({
            "ids": prompt,
            "max_new_tokens": int(rng.integers(1, 49 - len(prompt))),
            "sampler": sampler,
            "priority": int(rng.integers(3)),
            "key": int(rng.integers(2)),
            "salt": str(rng.choice(["", "x"])),
            "source": rng.integers(0, 11, rng.integers(1, 9)).tolist() if encoder else [],
        })  # fmt: skip
    return found


def expected(program: EchoProgram, request: dict[str, Any]) -> list[int]:
    return alone(
        program, request["ids"], request["max_new_tokens"], request["sampler"],
        key=request["key"], source=request["source"],
    )  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_tokens_beside_others_are_those_alone(name: str, share: float, rng: np.random.Generator) -> None:
    """Bit for bit, with as little cache as one request needs, too: then most of them are preempted."""
    of = layout(**LAYOUTS[name])
    program = EchoProgram(of)
    engine = Engine(program, budget=None if share else of.bytes_for(48))
    requests = some_requests(rng, 12, name == "encoder")
    handles = [engine.submit(**request) for request in requests]
    for handle, request in zip(handles, requests, strict=True):
        assert handle.result() == expected(program, request)
        assert handle.finish == "length"
    assert engine.live == 0
    assert engine.book.held_bytes == 0
    if not share and name in ("full", "one token a page"):
        assert engine.book.account.preempted > 0


@pytest.mark.parametrize("step_tokens", [1, 3, 16])
def test_chunks_do_not_show(step_tokens: int, rng: np.random.Generator) -> None:
    for name in ("full", "mixed"):
        program = EchoProgram(layout(**LAYOUTS[name], step_tokens=step_tokens))
        engine = Engine(program)
        requests = some_requests(rng, 3, False)
        for handle, request in [(engine.submit(**each), each) for each in requests]:
            assert handle.result() == expected(program, request)


def test_decoding_goes_on_beside_a_prefill() -> None:
    program = EchoProgram(layout(step_tokens=4))
    engine = Engine(program)
    decoding = engine.submit([1], max_new_tokens=30)
    engine.step()
    engine.submit([2] * 20, max_new_tokens=1)
    for _ in range(5):
        before = len(decoding.tokens)
        engine.step()
        assert len(decoding.tokens) == before + 1
        assert np.diff(program.calls[-1].offsets).tolist() == [1, 3]
        assert len(program.calls[-1].ids) == 4


class Actions:
    """An engine in which anything may happen at any time."""

    def __init__(self, rng: np.random.Generator, name: str) -> None:
        self.rng, self.encoder = rng, name == "encoder"
        of = layout(**LAYOUTS[name])
        self.program = EchoProgram(of)
        drafting = PromptLookup(3, 2, 1) if of.rewinds and rng.integers(2) else None
        self.engine = Engine(self.program, budget=int(of.bytes_for(48) * 1.5), drafting=drafting)
        self.open: list[tuple[Any, dict[str, Any]]] = []
        self.talks = [Conversation() for _ in range(2)]
        self.done = 0

    def act(self) -> None:
        rng, engine = self.rng, self.engine
        match rng.choice(6, p=[0.12, 0.7, 0.06, 0.06, 0.03, 0.03]):
            case 0 if engine.live < 8:
                (request,) = some_requests(rng, 1, self.encoder)
                talk = self.talks[int(rng.integers(2))] if rng.integers(3) == 0 else None
                self.open.append((engine.submit(**request, conversation=talk), request))
            case 2 if self.open:
                handle, request = self.open.pop(int(rng.integers(len(self.open))))
                handle.cancel()
                held = handle.tokens
                assert held == expected(self.program, request)[: len(held)]
            case 3 if engine._running:
                engine._preempt(engine._running[int(rng.integers(len(engine._running)))])
            case 4:
                engine.forget(self.talks[int(rng.integers(2))])
            case 5 if self.open:
                handle, request = self.open.pop(0)
                assert handle.result() == expected(self.program, request)
                self.done += 1
            case _:
                engine.step()
        assert engine.book.held_bytes + engine.book.kept_bytes <= engine.book.budget


@pytest.mark.parametrize("name", ["full", "mixed", "hybrid", "encoder"])
def test_whatever_happens_no_token_is_lost_or_changed_and_every_page_comes_back(
    name: str, rng: np.random.Generator
) -> None:
    world = Actions(rng, name)
    for _ in range(700):
        world.act()
    for handle, request in world.open:
        assert handle.result() == expected(world.program, request)
    world.engine.close()
    assert world.engine.book.held_bytes == 0
    assert world.done > 5


def test_a_shared_prefix_is_computed_once_and_only_within_a_tenant(rng: np.random.Generator) -> None:
    program = EchoProgram(layout())
    engine = Engine(program)
    begin = rng.integers(0, 11, 32).tolist()
    first = engine.submit([*begin, 1], max_new_tokens=1, salt="a")
    assert (first.result(), first.reused) == (alone(program, [*begin, 1], 1, Sampler(temperature=0)), 0)
    second = engine.submit([*begin, 2, 3], max_new_tokens=1, salt="a")
    assert (second.result(), second.reused) == (alone(program, [*begin, 2, 3], 1, Sampler(temperature=0)), 32)
    other = engine.submit([*begin, 2, 3], max_new_tokens=1, salt="b")
    assert (other.result(), other.reused) == (second.tokens, 0)
    assert engine.book.account.computed == 33 + 2 + 34
    assert engine.book.account.reused == 32


def test_priority_goes_first_and_takes_the_place_of_a_lower_one() -> None:
    program = EchoProgram(layout())
    engine = Engine(program, max_batch=1)
    low = engine.submit([1, 2], max_new_tokens=20)
    for _ in range(4):
        engine.step()
    middle = engine.submit([3], max_new_tokens=2)
    high = engine.submit([4], max_new_tokens=2, priority=1)
    high.result()
    assert (low.finish, middle.finish, len(low.tokens)) == (None, None, 4)
    assert engine.book.account.preempted == 1
    assert middle.result() == alone(program, [3], 2, Sampler(temperature=0))
    assert low.finish == "length", "who came first goes on first"
    assert low.tokens == alone(program, [1, 2], 20, Sampler(temperature=0))


def test_end_tokens_and_lengths_end_a_request() -> None:
    program = EchoProgram(layout())
    whole = alone(program, [1, 2], 20, Sampler(temperature=0))
    end = whole[7]
    engine = Engine(program, end=[end])
    handle = engine.submit([1, 2])
    assert handle.result() == whole[: whole.index(end) + 1]
    assert handle.finish == "stop"
    longest = engine.submit([1, 2], end=[])
    assert len(longest.result()) == 46, "as long as max_tokens allows"
    assert longest.finish == "length"


def test_log_probabilities_are_the_models_own() -> None:
    program = EchoProgram(layout())
    handle = Engine(program).submit([1, 2], max_new_tokens=3, sampler=Sampler(top_k=1), logprobs=3)
    tokens = [1, 2]
    for event in handle:
        logits = program.fingerprint(tokens).astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum())
        assert event.logprob == pytest.approx(logs[event.id])
        assert [i for i, _ in event.top] == np.argsort(-logs, kind="stable")[:3].tolist()
        assert event.top[0] == (event.id, event.logprob)
        assert event.index == len(tokens) - 2
        tokens.append(event.id)


def test_a_cancelled_request_gives_its_pages_back_at_once_and_ends_its_stream() -> None:
    engine = Engine(EchoProgram(layout()))
    with engine.submit([1] * 9, max_new_tokens=30) as handle:
        got = [token.id for token, _ in zip(handle, range(3), strict=False)]
        assert engine.book.held_bytes > 0
    assert engine.book.held_bytes == 0
    assert (handle.finish, handle.tokens[:3]) == ("cancelled", got)
    handle.cancel()
    assert engine.submit([1], max_new_tokens=1).result()


def test_a_full_cache_waits_or_says_so_as_asked() -> None:
    program = EchoProgram(layout(groups=(CacheGroup("full", 4, 8),)))
    engine = Engine(program)
    first = engine.submit([1] * 12, max_new_tokens=4)
    engine.step()
    with pytest.raises(CacheFullError, match="96 of 128 B are held by 1 requests"):
        engine.submit([2] * 12, max_new_tokens=1, when_full="error")
    assert engine.live == 1
    waiting = engine.submit([2] * 12, max_new_tokens=1)
    assert waiting.result() == alone(program, [2] * 12, 1, Sampler(temperature=0))
    assert first.finish == "length"
    with pytest.raises(CacheFullError, match=r"17 tokens take 160 B, the cache has 128 B(.|\n)*ask for 5 new tokens"):
        engine.submit([1] * 12, max_new_tokens=6)
    assert len(engine.submit([1] * 12, max_new_tokens=5).result()) == 5
    assert len(engine.submit([1] * 12).result()) == 5, "without a length, what the cache holds"


def test_one_requests_error_is_its_own() -> None:
    program = EchoProgram(layout())
    engine = Engine(program)

    def refuse(tokens: tuple[int, ...], logits: np.ndarray) -> np.ndarray:
        return logits if len(tokens) < 4 else logits - np.inf

    broken = engine.submit([1, 2], max_new_tokens=9, sampler=Sampler(logits_processor=refuse))
    sound = engine.submit([3], max_new_tokens=9)
    assert sound.result() == alone(program, [3], 9, Sampler(temperature=0))
    with pytest.raises(SamplerError, match="every token is excluded"):
        broken.result()
    assert len(broken.tokens) == 2
    assert engine.book.held_bytes == 0


def test_many_tasks_and_threads_may_iterate(rng: np.random.Generator) -> None:
    program = EchoProgram(layout())
    engine = Engine(program)
    requests = some_requests(rng, 6, False)

    async def read(request: dict[str, Any]) -> list[int]:
        return [token.id async for token in engine.submit(**request)]

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(read(request) for request in requests))

    wanted = [expected(program, request) for request in requests]
    assert asyncio.run(all_of_them()) == wanted
    found: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda i=i, r=r: found.update({i: engine.submit(**r).result()}))
        for i, r in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(6)] == wanted


def test_a_conversation_computes_only_what_is_new() -> None:
    program = EchoProgram(layout())
    engine, talk = Engine(program), Conversation()
    first = engine.submit([1, 2, 3], max_new_tokens=4, conversation=talk)
    tokens = [1, 2, 3, *first.result()]
    held = engine.book.held_bytes
    assert held > 0
    before = engine.book.account.computed
    second = engine.submit([*tokens, 5, 6], max_new_tokens=2, conversation=talk)
    assert second.result() == alone(program, [*tokens, 5, 6], 2, Sampler(temperature=0))
    assert engine.book.account.computed - before == 1 + 2 + 1, "its last token, what was said, the first answer"
    edited = engine.submit([*tokens[:5], 9], max_new_tokens=2, conversation=talk)
    assert edited.result() == alone(program, [*tokens[:5], 9], 2, Sampler(temperature=0))
    assert edited.reused == 5
    engine.forget(talk)
    assert engine.book.held_bytes == 0


def test_resting_conversations_make_room() -> None:
    program = EchoProgram(layout(groups=(CacheGroup("full", 4, 8),)))
    engine, talk = Engine(program), Conversation()
    answer = engine.submit([1, 2, 3], max_new_tokens=4, conversation=talk).result()
    assert len(engine.submit([4] * 10, max_new_tokens=7).result()) == 7
    assert talk.holding is None
    again = engine.submit([1, 2, 3, *answer, 5], max_new_tokens=2, conversation=talk)
    assert again.result() == alone(program, [1, 2, 3, *answer, 5], 2, Sampler(temperature=0))


# --- speculation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_prompt_lookup_changes_steps_and_no_token(temperature: float, rng: np.random.Generator) -> None:
    """A text with a short memory falls into loops, which is what lookup finds."""
    groups = (CacheGroup("ring", 24, 4, window=2),)
    program = EchoProgram(layout(groups=groups), sharpness=40.0)
    sampler = Sampler(temperature=temperature, seed=int(rng.integers(99)))
    prompt = rng.integers(0, 11, 5).tolist()
    wanted = alone(program, prompt, 40, sampler)
    engine = Engine(program, drafting=PromptLookup(most=5, longest=3, shortest=1))
    assert engine.submit(prompt, max_new_tokens=40, sampler=sampler).result() == wanted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("same", [True, False])
def test_a_draft_model_changes_steps_and_no_token(temperature: float, same: bool, rng: np.random.Generator) -> None:
    sampler = Sampler(temperature=temperature, seed=int(rng.integers(99)))
    program = EchoProgram(layout())
    draft = EchoProgram(layout(groups=program.layout.groups if same else (CacheGroup("ring", 24, 4, window=3),)))
    engine = Engine(program, drafting=DraftModel(draft, most=3))
    prompts = [rng.integers(0, 11, n).tolist() for n in (1, 5, 17)]
    handles = [engine.submit(prompt, max_new_tokens=20, sampler=sampler) for prompt in prompts]
    for handle, prompt in zip(handles, prompts, strict=True):
        assert handle.result() == alone(program, prompt, 20, sampler, race=True)
        if temperature == 0:
            assert handle.tokens == alone(program, prompt, 20, sampler)
    if same:
        assert len(program.calls) <= 3 + 20 / 4 + 3, "every guess holds"
    assert engine.book.held_bytes == 0
    assert engine._drafting is not None
    assert engine._drafting.book.held_bytes == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["lookup", "model"])
def test_speculation_has_the_targets_distribution(kind: str, rng: np.random.Generator) -> None:
    """Two tokens of a vocabulary of three: how often each of the nine texts comes, against their enumeration."""
    of = layout(vocabulary=3, max_tokens=12)
    program, draft = EchoProgram(of, 2.0), EchoProgram(layout(vocabulary=3, max_tokens=12), 1.0)
    drafting = PromptLookup(2, 2, 1) if kind == "lookup" else DraftModel(draft, 2)
    engine = Engine(program, drafting=drafting)
    prompt, counts = [0, 1, 0], np.zeros((3, 3))
    base = int(rng.integers(2**60))
    for i in range(1500):
        tokens = engine.submit(prompt, max_new_tokens=3, sampler=Sampler(seed=base + i)).result()
        counts[tokens[0], tokens[1]] += 1
    p = np.array([np.exp(program.fingerprint(prompt))]).astype(np.float64)
    first = p[0] / p[0].sum()
    second = np.stack([np.exp(program.fingerprint([*prompt, t]).astype(np.float64)) for t in range(3)])
    wanted = 1500 * first[:, None] * second / second.sum(1, keepdims=True)
    statistic = ((counts - wanted) ** 2 / wanted).sum()
    assert statistic < 8 + 7 * 4, f"chi-square {statistic} with 8 degrees of freedom"
    assert any(len(call.wanted) > 1 for call in program.calls), "something was guessed"


def test_lookup_guesses_what_followed_last_time() -> None:
    lookup = PromptLookup(most=3, longest=3, shortest=2)
    choice = Choice(Sampler(seed=0), [], 10)
    assert lookup.propose([1, 2, 3, 4, 5, 9, 1, 2], 8, choice) == [3, 4, 5]
    assert lookup.propose([1, 2, 3, 1, 2, 4, 1, 2], 8, choice) == [4, 1, 2], "the last occurrence"
    assert lookup.propose([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1, choice) == [3], "the longest match"
    assert lookup.propose([1, 2, 3, 4], 8, choice) == []
    assert lookup.propose([1], 8, choice) == []


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "more", "error", "said"),
    [
        ([], {}, PromptError, "the prompt has no tokens"),
        ([1, 11], {}, PromptError, "holds id 11 at 1, the vocabulary has 11"),
        ([1, -1], {}, PromptError, "holds id -1"),
        ([[1, 2]], {}, PromptError, r"int64 \[1, 2\], not integers \[tokens\]"),
        ([0.5], {}, PromptError, "float64"),
        ([1] * 48, {}, PromptError, "48 tokens and 1 new ones are more than max_tokens=48"),
        ([1] * 40, {"max_new_tokens": 9}, PromptError, "ask for at most 8 new tokens"),
        ([1], {"max_new_tokens": 0}, PromptError, "max_new_tokens=0"),
        ([1], {"source": [1]}, PromptError, "no encoder"),
        ([1], {"when_full": "never"}, OptionError, "'never' is not one of 'wait', 'error'"),
        ([1], {"sampler": Sampler(logit_bias={99: 1.0})}, SamplerError, "token 99"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_held(
    ids: Any, more: dict[str, Any], error: type[Exception], said: str
) -> None:
    engine = Engine(EchoProgram(layout()))
    with pytest.raises(error, match=said):
        engine.submit(ids, **more)
    assert (engine.live, engine.book.held_bytes) == (0, 0)


def test_an_encoder_needs_its_source() -> None:
    engine = Engine(EchoProgram(layout(**LAYOUTS["encoder"])))
    with pytest.raises(PromptError, match="the source has no tokens"):
        engine.submit([1])
    with pytest.raises(PromptError, match="the source has 10 tokens, the encoder takes 9"):
        engine.submit([1], source=[1] * 10)
    program = EchoProgram(layout(**LAYOUTS["encoder"]))
    assert engine.submit([], source=[3], max_new_tokens=4).result() == alone(
        program, [0], 4, Sampler(temperature=0), source=[3]
    )


def test_engines_that_cannot_be_are_refused() -> None:
    with pytest.raises(EngineError, match="max_batch=5, the program takes 1 to 4"):
        Engine(EchoProgram(layout()), max_batch=5)
    with pytest.raises(EngineError, match="recurrent states"):
        Engine(EchoProgram(layout(**LAYOUTS["recurrent"])), drafting=PromptLookup())
    with pytest.raises(OptionError, match="a draft of 0 tokens"):
        DraftModel(EchoProgram(layout()), 0)
    with pytest.raises(OptionError, match="an encoder"):
        DraftModel(EchoProgram(layout(**LAYOUTS["encoder"])))
    with pytest.raises(OptionError, match="prompt lookup of 3 to 2"):
        PromptLookup(shortest=3, longest=2)


def test_the_protocol_check_sees_wrong_calls() -> None:
    """What the other tests rest on."""
    from dataclasses import replace

    program = EchoProgram(layout())
    Engine(program).submit([1, 2, 3, 4, 5], max_new_tokens=2).result()
    good = program.calls[0]
    check_inputs(program.layout, good)
    (group,) = good.groups
    wrong = {
        "do not end at": replace(good, positions=good.positions + 1),
        "not where the table says": replace(good, groups=(replace(group, slots=group.slots[::-1].copy()),)),
        "lies in no page": replace(
            good, groups=(replace(group, table=np.full_like(group.table, -1), slots=good.positions - np.int64(4)),)
        ),
        "in a vocabulary of 11": replace(good, ids=good.ids + 9),
        "do not cover": replace(good, offsets=good.offsets + 1),
        "not ascending": replace(good, wanted=np.array([3, 2], np.int32)),
        "0 groups": replace(good, groups=()),
    }
    for said, inputs in wrong.items():
        with pytest.raises(StepProgramError, match=said):
            check_inputs(program.layout, inputs)


def test_what_is_kept_does_not_grow_with_what_has_been_generated(rng: np.random.Generator) -> None:
    program = EchoProgram(layout())
    engine = Engine(program)
    generated = 0
    while generated < 5000:
        handles = [engine.submit(**request) for request in some_requests(rng, 6, False)]
        generated += sum(len(handle.result()) for handle in handles)
        program.calls.clear()
        (pool,) = engine.book.pools
        assert len(pool._published) == len(pool.kept) <= 24
        assert (pool.held, engine.live, len(engine._idle), len(engine._cancelled)) == (0, 0, 0, 0)

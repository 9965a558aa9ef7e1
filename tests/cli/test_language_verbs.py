"""What generate, chat, eval and bench do with a language model, here one that hashes what it sees."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.generation.echo_program import EchoProgram, layout
from tests.runtime.generation.sample_tokenizers import ByteTokenizer
from tilewright.cli.bench import measure, show_rounds
from tilewright.cli.chat import talk
from tilewright.cli.eval import Surprise, read_text, show_surprise, surprise
from tilewright.cli.generate import sampler_of, write_answer
from tilewright.cli.speed import Speed
from tilewright.errors import OptionError, PromptError, SamplerError
from tilewright.runtime.generation.language_model import LanguageModel
from tilewright.runtime.generation.step import CacheGroup


class Letters(EchoProgram):
    """Says letters only: which one, its fingerprint decides."""

    def _logits(self, digest: bytes) -> np.ndarray:
        return np.where(np.arange(258) == 97 + digest[0] % 26, 9.0, 0.0).astype(np.float32)


@pytest.fixture
def lm() -> LanguageModel:
    of = layout(vocabulary=258, max_tokens=300, step_tokens=32, groups=(CacheGroup("full", 200, 8),))
    return LanguageModel(Letters(of), ByteTokenizer())


def lines(*typed: str | type[BaseException]) -> tuple[object, list[str]]:
    """What a person types, and the prompts that they saw."""
    left, seen = list(typed), []

    def read(prompt: str) -> str:
        seen.append(prompt)
        each = left.pop(0) if left else EOFError
        if isinstance(each, str):
            return each
        raise each

    return read, seen


def test_an_answer_goes_to_stdout_and_its_speed_to_stderr(
    lm: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_answer(lm, "Once", max_new_tokens=9)
    shown = capsys.readouterr()
    assert shown.out == text + "\n"
    assert len(text) == 9
    assert shown.err.startswith("9 tokens, the first after ")
    assert shown.err.endswith(" tokens/s\n")
    with pytest.raises(PromptError):
        write_answer(lm, "x" * 400)
    assert capsys.readouterr() == ("", "")


def test_samplers_of_the_command_line_are_checked() -> None:
    assert sampler_of(0.5, 0.9, 3, None, 7).top_k == 3
    with pytest.raises(SamplerError, match="2 problems"):
        sampler_of(-1, 2.0, None, None, None)


def test_speed_tells_the_prompt_from_the_rest() -> None:
    times = iter([10.0, 12.0, 12.5, 14.0])
    speed = Speed(lambda: next(times))
    assert str(speed) == "0 tokens"
    speed.count(1)
    assert str(speed) == "1 token, the first after 2.00 s"
    speed.count(1)
    speed.count(2)
    speed.count(5)
    assert str(speed) == "5 tokens, the first after 2.00 s, then 2.0 tokens/s"


def test_a_conversation_remembers_undoes_and_begins_anew(lm: LanguageModel, capsys: pytest.CaptureFixture[str]) -> None:
    def answers(*typed: str) -> list[str]:
        capsys.readouterr()
        talk(lm, lines(*typed)[0], max_new_tokens=5)  # type: ignore[arg-type]
        return capsys.readouterr().out.split()

    one, two = answers("one", "two")
    assert answers("one", "two") == [one, two]
    assert answers("two") != [two], "what was said before counts"
    assert answers("one", "other", "/undo", "two")[::2] == [one, two]
    assert answers("other", "/reset", "one", "two")[1:] == [one, two]
    assert answers("one", "/again") == [one, one]
    assert answers("one", "/quit", "two") == [one]
    assert answers("", "  ", "/undo") == []
    assert lm.current.book.held_bytes == 0


def test_a_conversation_goes_on_after_what_it_cannot_do(lm: LanguageModel, capsys: pytest.CaptureFixture[str]) -> None:
    read, seen = lines("/nosuch of these", "x" * 400, KeyboardInterrupt, "one")
    talk(lm, read, max_new_tokens=5)  # type: ignore[arg-type]
    shown = capsys.readouterr()
    assert shown.err.startswith("unknown command /nosuch\n/again "), "what was typed, then what can be"
    assert "/reset    begin anew" in shown.err
    assert "TW050" in shown.err
    assert "/undo or /reset makes room" in shown.err
    assert "5 tokens" in shown.err
    assert len(seen) == 5


def test_an_interrupt_ends_the_answer_and_keeps_what_was_said(
    lm: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, run = [], lm.program.step

    def step(inputs: object) -> np.ndarray:
        steps.append(inputs)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return run(inputs)  # type: ignore[arg-type]

    lm.program.step = step  # type: ignore[method-assign]
    talk(lm, lines("one", "two")[0], max_new_tokens=5)  # type: ignore[arg-type]
    first, second = capsys.readouterr().out.split()
    assert (len(first), len(second)) == (3, 5)
    assert (lm.current.live, lm.current.book.held_bytes) == (0, 0)


def test_perplexity_of_a_text_file(lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Grüße an alle. " * 30, encoding="utf-8")
    text = read_text(path)
    found = surprise(lm, text)
    assert (found.tokens, found.size) == (len(text.encode()), len(text.encode())), "the beginning is not predicted"
    # 257 logits are 0 and one is 9, which is right by chance about once in 26 letters
    assert found.nats / found.tokens == pytest.approx(math.log(257 + math.e**9), abs=1.5)
    show_surprise(Surprise(nats=math.log(8) * 10, tokens=10, size=15))
    assert capsys.readouterr().out == "perplexity 8.0000 over 10 tokens, 2.0000 bits a byte of 15\n"
    for content, said in ((b"", "is empty"), (b"\xff\xfe", "decode"), (None, "No such file")):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(OptionError, match=said):
            read_text(path)


def test_bench_measures_reading_and_writing_apart(lm: LanguageModel, capsys: pytest.CaptureFixture[str]) -> None:
    ticks = iter(range(1000))
    rounds = measure(lm, 40, 8, requests=3, rounds=2, clock=lambda: float(next(ticks)))
    assert [(each.reading, each.writing) for each in rounds] == [(1.0, 1.0)] * 2
    assert lm.current.book.account.computed == 3 * 3 * (40 + 7), "nothing was found in the cache"
    show_rounds(rounds, 40, 8, 3)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown[1] == ["prompt", "40", "3", "1.0000", "120.0", "120.0", "120.0"]
    assert shown[2] == ["answer", "8", "3", "1.0000", "21.0", "21.0", "21.0"]

"""Every public call refuses a keyword that it does not take by a coded error, and asks for the units of sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tilewright as tw
from tests.compiler.models import compile_mlp, mlp
from tests.runtime.generation.echo_program import EchoProgram, layout
from tests.runtime.generation.sample_tokenizers import ByteTokenizer
from tilewright.errors import OptionError
from tilewright.runtime.generation.language_model import LanguageModel
from tilewright.runtime.generation.step import CacheGroup

WRONG = "zzz_nobody_takes"


@pytest.fixture(scope="module")
def program() -> Any:
    return compile_mlp(mlp(3))


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    of = layout(vocabulary=258, max_tokens=300, step_tokens=32, groups=(CacheGroup("full", 200, 8),))
    return LanguageModel(EchoProgram(of), ByteTokenizer())


def test_every_public_name_refuses_a_keyword_that_it_does_not_take() -> None:
    model = mlp(3)
    required: dict[str, tuple[Any, ...]] = {
        "compile": (model, (torch.ones(1, 24),)),
        "calibrate_attention": (model, [(torch.ones(1, 24),)]),
        "compile_lm": (model,),
    }
    # a program is made by compile(), a kernel's statics are its own, what is to be subclassed names its own options
    others = {"Compiled", "Context", "LanguageModel", "Pass", "Pipeline", "TilewrightError", "pipeline"}
    for name in sorted({*tw.__all__} - others):
        with pytest.raises(OptionError, match=rf"^TW008 wrong option: {name}\(\) has no option '{WRONG}'\n  next: "):
            getattr(tw, name)(*required.get(name, ()), **{WRONG: 1})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: tw.load("no.tilewright", threds=2),
         "load() has no option 'threds'\n  next: did you mean 'threads'?"),
        (lambda p: tw.KVCache(pages=16), "KVCache() has no option 'pages'\n  next: did you mean 'page'?"),
        (lambda p: tw.compile(mlp(3), dim={}), "compile() has no option 'dim'\n  next: did you mean 'dims'?"),
        (lambda p: tw.compile_lm(mlp(3), page=3),
         "compile_lm() has no option 'page'\n  next: write kv=tw.KVCache(page=...)"),
        (lambda p: p.update_weights({}, strict=True),
         "update_weights() has no option 'strict'\n  next: leave out strict"),
        (lambda p: p.save("x.tilewright", native=True), "save() has no option 'native'\n  next: leave out native"),
        (lambda p: p.ir(levl="tile"), "ir() has no option 'levl'\n  next: did you mean 'level'?"),
        (lambda p: p.report.save_html(file="x"), "save_html() has no option 'file'\n  next: it has path"),
    ],
)  # fmt: skip
def test_misspelt_options_are_answered_with_what_was_meant(
    call: Callable[[Any], Any], said: str, program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError) as raised:
        call(program)
    assert str(raised.value) == f"TW008 wrong option: {said}"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda lm: lm.complete("a", grammar="x"),
         "complete() has no option 'grammar'\n  next: write sampler=tw.Sampler(grammar=...)"),
        (lambda lm: lm.generate([1], temperature=0.5),
         "generate() has no option 'temperature'\n  next: write sampler=tw.Sampler(temperature=...)"),
        (lambda lm: lm.complete("a", max_tokens=3),
         "complete() has no option 'max_tokens'\n  next: did you mean 'max_new_tokens'?"),
        (lambda lm: lm.generate([1], prioritty=3),
         "generate() has no option 'prioritty'\n  next: did you mean 'priority'?"),
        (lambda lm: lm.logits([1], sauce=[2]), "logits() has no option 'sauce'\n  next: did you mean 'source'?"),
        (lambda lm: tw.Session(lm, max_new_token=3),
         "Session() has no option 'max_new_token'\n  next: did you mean 'max_new_tokens'?"),
        (lambda lm: tw.Session(lm).say("a", top_k=3),
         "say() has no option 'top_k'\n  next: write sampler=tw.Sampler(top_k=...)"),
    ],
)  # fmt: skip
def test_what_belongs_to_the_sampler_is_written_there(call: Callable[[Any], Any], said: str, lm: LanguageModel) -> None:
    with pytest.raises(OptionError) as raised:
        call(lm)
    assert str(raised.value) == f"TW008 wrong option: {said}"
    assert lm.current.live == 0


@pytest.mark.parametrize("text", ["2", " 17 ", "1.5"])
def test_a_size_as_text_has_a_unit(text: str) -> None:
    plain = text.strip()
    said = rf"'{text}' has no unit\n  next: write {plain}B, {plain}MiB or {plain}GiB$"
    for call in (
        lambda: tw.KVCache(budget=text),
        lambda: tw.compile(mlp(3), (torch.ones(1, 24),), memory_limit=text),
        lambda: tw.load("no.tilewright", memory_limit=text),
    ):
        with pytest.raises(OptionError, match=said):
            call()
    assert tw.KVCache(budget="2B").bytes == tw.KVCache(budget=2).bytes == 2
    assert tw.KVCache(budget="1.5 KiB").bytes == 1536

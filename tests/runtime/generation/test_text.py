"""Text comes out whole characters at a time, stops before a stop string, and templates can do no harm."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from tests.runtime.generation.sample_tokenizers import CHAT, ByteTokenizer, library_tokenizer, save_tokenizer
from tilewright.errors import GrammarError, MissingDependencyError, OptionError, TextError
from tilewright.runtime.generation import chat_template
from tilewright.runtime.generation.chat_template import render
from tilewright.runtime.generation.choice import Choice
from tilewright.runtime.generation.deltas import Detokenizer, StopStrings
from tilewright.runtime.generation.grammar import Grammar, GrammarCompiler
from tilewright.runtime.generation.sampler import Sampler
from tilewright.runtime.generation.tokenizer import FolderTokenizer, Tokenizer

USER = [{"role": "user", "content": "Hi"}]


@given(st.text(max_size=30), st.integers(0, 10))
def test_pieces_are_whole_characters_and_together_the_text(text: str, cut: int) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text, special=False)
    cut = len(text[:cut].encode())
    deltas = Detokenizer(tokenizer.decode, ids[:cut])
    pieces = [deltas.feed(token) for token in ids[cut:]]
    assert "".join(pieces) + deltas.flush() == text[len(ids[:cut] and bytes(ids[:cut]).decode()) :]
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)


def test_what_is_no_character_comes_out_at_the_end_and_only_once() -> None:
    deltas = Detokenizer(ByteTokenizer().decode)
    assert [deltas.feed(i) for i in "aé".encode()[:2]] == ["a", ""]
    assert deltas.flush() == "\ufffd"
    assert deltas.flush() == ""


def test_a_word_keeps_the_space_before_it() -> None:
    """Tokenizers of SentencePiece's kind decode a leading space away; the difference of two decodings keeps it."""
    words = ["▁Hello", "▁wide", "▁world", "!"]

    def decode(ids: Any) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    deltas = Detokenizer(decode)
    assert [deltas.feed(i) for i in (0, 1, 2, 3)] == ["Hello", " wide", " world", "!"]


@given(st.text("ab\n", max_size=40), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.data())
def test_text_ends_before_the_first_stop_string_however_it_is_cut(text: str, stops: list[str], data: Any) -> None:
    places = [(text.find(stop), stop) for stop in stops if stop in text]
    watch, given_out, rest = StopStrings(stops), "", text
    while rest:
        size = data.draw(st.integers(1, 5))
        piece, rest = rest[:size], rest[size:]
        given_out += watch.feed(piece)
        assert not any(stop in given_out for stop in stops)
        if watch.found is not None:
            break
    given_out += watch.flush()
    if watch.found is None:
        assert given_out == text
        assert not places
    else:
        first = min(at + len(stop) for at, stop in places)
        assert text.startswith(given_out + watch.found)
        assert len(given_out) <= first


def test_only_what_may_begin_a_stop_string_is_held() -> None:
    watch = StopStrings(["</end>"])
    assert [watch.feed(piece) for piece in ("a <", "/e", "b </en", "d> c", "d")] == ["a ", "", "</eb ", "", ""]
    assert watch.found == "</end>"
    for wrong in ("text", [""], [1]):
        with pytest.raises(OptionError, match="is not a list of texts"):
            StopStrings(wrong)  # type: ignore[arg-type]


def test_a_template_is_rendered_as_the_model_library_does() -> None:
    messages = [*USER, {"role": "assistant", "content": "Ho & <b>"}, {"role": "user", "content": "ü"}]
    assert render(CHAT, messages, add_generation_prompt=True) == (
        "<user>Hi</><assistant>Ho & <b></><user>ü</><assistant>"
    )
    loops = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    assert render(loops, messages) == '{"role": "user", "content": "Hi"}'
    assert render("{{ messages[0].role ~ ':' ~ messages[0]['content'] + '!' }}", USER) == "user:Hi!"
    assert render("{{ bos }}{{ messages[0].content.replace('H', 'h') | replace('i', 'o') }}", USER, bos="^") == "^ho"
    assert render("{{ ['a', 'b'] | join('-') }}{{ '-'.join(['c', 'd']) }}", USER) == "a-bc-d"


FAMILIES = [
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}",
    "{%- set ns = namespace(last=messages|length - 1) %}\n{%- for m in messages[::-1] %}\n"
    "    {%- set ns.last = loop.index0 %}\n{%- endfor %}\n{%- for m in messages %}\n"
    "    {%- if '</think>' in m.content %}\n"
    "        {{- m.content.split('</think>')[-1].lstrip('\\n') }}\n    {%- else %}\n"
    "        {{- '<|im_start|>' + m.role + '\\n' + m.content }}\n    {%- endif %}\n{%- endfor %}\n"
    "{% if tools is defined and tools %}{{ tools | tojson(indent=2) }}{% endif %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' ~ ns.last }}\n{%- endif %}",
    "{{ strftime_now('%Y') }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m | tojson }}"
    "{% endgeneration %}{% else %}{% continue %}{% endif %}{% endfor %}",
]


@pytest.mark.parametrize("template", FAMILIES)
def test_templates_of_model_families_render_as_in_transformers(template: str) -> None:
    messages = [
        {"role": "user", "content": " Hi & <b> "},
        {"role": "assistant", "content": "<think>a</think>\nHo"},
        {"role": "user", "content": "ü\n"},
    ]
    given_ = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    wanted = chat_template_utils.render_jinja_template([messages], chat_template=template, **given_)[0][0]
    assert render(template, messages, **given_) == wanted


ESCAPES = [
    "{{ messages.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages[0].__init__.__globals__ }}",
    "{{ (messages | attr('__class__')) }}",
    "{{ self._TemplateReference__context }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ raise_exception.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{% set x = namespace(a=1) %}{{ x.__dict__ }}",
    "{{ cycler.__init__ }}",
    "{{ range(10**9) | list }}",
    "{{ undefined.attribute }}",
    "{{ 1 / 0 }}",
    "{% for %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_reaches_nothing_but_the_messages(template: str) -> None:
    try:
        shown = render(template, USER)
    except TextError:
        return
    assert shown.strip() == "", f"undefined is all it may see: {shown}"


GROWING = [
    "{{ 'a' * 10000000000 }}",
    "{{ 10000000000 * 'a' }}",
    "{{ [1] * 10000000000 }}",
    "{{ 2 ** 10000000000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'a\\nb' | indent(1000000000) }}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s.replace('a', 'aa') %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s | replace('a', 'aa') %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = [n.s, n.s] | join(n.s) %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s.join([n.s, n.s]) %}{% endfor %}",
    "{% set n = namespace(s=3) %}{% for i in range(60) %}{% set n.s = n.s * n.s %}{% endfor %}",
    "{% for i in range(99999) %}" + "a" * 100 + "{% endfor %}",
]


@pytest.mark.parametrize("template", GROWING)
def test_a_template_cannot_fill_the_memory(template: str) -> None:
    with pytest.raises(TextError):
        render(template, USER)


def test_templates_refuse_and_are_refused_with_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TextError, match="the chat template refuses: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", USER)
    with pytest.raises(TextError, match="has 300000 characters"):
        render("a" * 300_000, USER)
    for wrong in ([], "Hi", [{"content": "Hi"}], [1]):
        with pytest.raises(TextError, match="a list of mappings with a role"):
            render(CHAT, wrong)  # type: ignore[arg-type]
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "jinja2" else real(name))
    with pytest.raises(MissingDependencyError, match="hf"):
        chat_template.render(CHAT, USER)


def test_a_folders_tokenizer_is_read_with_its_template_and_ends(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"has no tokenizer\.json"):
        FolderTokenizer(tmp_path)
    save_tokenizer(tmp_path)
    tokenizer = FolderTokenizer(tmp_path)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.end == (library_tokenizer().token_to_id("<|end|>"),)
    assert tokenizer.chat_template == CHAT
    assert tokenizer.special == {"bos_token": "<|start|>", "eos_token": "<|end|>"}
    ids = tokenizer.encode("Grüße")
    assert (tokenizer.decode(ids), len(ids)) == ("Grüße", 7)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5]}', encoding="utf-8")
    (tmp_path / "chat_template.jinja").write_text("another", encoding="utf-8")
    assert (FolderTokenizer(tmp_path).end, FolderTokenizer(tmp_path).chat_template) == ((3, 5), "another")
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(TextError, match="is damaged"):
        FolderTokenizer(tmp_path)


# --- grammars -------------------------------------------------------------------------------------------------------


def written(grammar: Grammar, rng: np.random.Generator, most: int = 200) -> tuple[str, bool]:
    """A random text under a grammar, and whether it came to its end."""
    compiler = GrammarCompiler(library_tokenizer().to_str(), 260, (257,))
    choice = Choice(
        Sampler(grammar=grammar, seed=int(rng.integers(2**60)), temperature=2.0), [], 260,
        matcher=compiler.matcher(grammar),
    )  # fmt: skip
    ids: list[int] = []
    while len(ids) < most:
        ids.append(choice.choose(rng.normal(size=260).astype(np.float32)))
        if ids[-1] == 257:
            break
        choice.accept(ids[-1])
        if choice.complete:
            break
    return library_tokenizer().decode(ids), ids[-1] == 257 or choice.complete


def test_random_choices_under_a_grammar_follow_it(rng: np.random.Generator) -> None:
    import json
    import re

    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    for _ in range(5):
        text, whole = written(Grammar.json(schema), rng, 2000)
        if whole:
            found = json.loads(text)
            assert 0 <= found["a"] <= 99
            assert found["b"] in "xy"
        text, whole = written(Grammar.regex("[a-c]{3}-[0-9]+(,[0-9]+)?"), rng)
        assert not whole or re.fullmatch("[a-c]{3}-[0-9]+(,[0-9]+)?", text)
        text, whole = written(Grammar.lark('start: "ab" | "cd"'), rng)
        assert (text, whole) in (("ab", True), ("cd", True))


def test_grammars_that_cannot_be_are_refused() -> None:
    for wrong in ("{", "[1]", {"type": object}):
        with pytest.raises(GrammarError, match="the schema is not"):
            Grammar.json(wrong)  # type: ignore[arg-type]
    compiler = GrammarCompiler(library_tokenizer().to_str(), 260, (257,))
    for grammar in (Grammar.json({"type": "strange"}), Grammar.regex("["), Grammar.lark("start: nothing")):
        with pytest.raises(GrammarError, match=grammar.kind):
            compiler.matcher(grammar)


def test_without_the_library_a_grammar_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "llguidance" else real(name))
    with pytest.raises(MissingDependencyError, match=r"pip install 'tilewright\[grammar\]'"):
        GrammarCompiler("", 260, ())

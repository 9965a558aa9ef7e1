"""A wrong line for a language model is refused from its folder's texts, before its weights are looked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.generation.sample_tokenizers import CHAT, library_tokenizer

Tw = Callable[..., tuple[int, str, str]]
CONFIG = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 256}
_EVAL = ["eval", "lm", "--text", "lm/config.json"]


@pytest.fixture
def lm(inside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder without weights: whoever goes on to read them says so."""
    monkeypatch.chdir(tmp_path)
    folder = Path("lm")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(library_tokenizer().to_str())
    return folder


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            ["generate", "lm", "a", "--tokens", "99999"],
            "TW050 prompt cannot be continued: the prompt's 1 and 99999 new tokens are more than the 256 that lm "
            "takes\n  next: write --tokens 255\n",
        ),
        (
            ["generate", "lm", "a" * 300],
            "TW050 prompt cannot be continued: the prompt's 300 and 128 new tokens are more than the 256 that lm "
            "takes\n  next: shorten the prompt to 128 tokens or less\n",
        ),
        (
            ["bench", "lm", "--prompt", "1000", "--tokens", "300"],
            "TW050 prompt cannot be continued: the prompt's 1000 and 300 new tokens are more than the 256 that lm "
            "takes\n  next: write --tokens 1 and shorten the prompt to 255 tokens or less\n",
        ),
        (
            ["generate", "nowhere", "a"],
            "TW009 not a model: there is no directory nowhere\n  next: give a directory that save_pretrained wrote\n",
        ),
        (
            ["generate", "lm", ""],
            'TW050 prompt cannot be continued: the prompt has no tokens\n  next: give a text: "Once upon a time"\n',
        ),
        (
            ["generate", "lm", "a", "--temperature", "-1"],
            "TW051 sampler is wrong: --temperature -1.0 is not a number from 0 on\n"
            "  next: --temperature 0.8 --top-p 0.95 --seed 0 is one that works\n",
        ),
        (
            ["generate", "lm", "a", "--kv-dtype", "fp8"],
            "TW008 wrong option: --kv-dtype fp8 is not one of model, int8, int4\n  next: write --kv-dtype int8\n",
        ),
        (
            ["bench", "lm", "--prompt", "200", "--tokens", "100"],
            "TW050 prompt cannot be continued: the prompt's 200 and 100 new tokens are more than the 256 that lm "
            "takes\n  next: write --tokens 56\n",
        ),
        (
            ["chat", "lm"],
            "TW054 text cannot be read or written: lm has no chat template (chat_template.jinja, or chat_template in "
            'tokenizer_config.json)\n  next: continue a text instead: tilewright generate lm "Once upon a time"\n',
        ),
    ],
)
def test_a_wrong_line_is_refused_at_once_with_what_to_type(tw: Tw, lm: Path, line: list[str], said: str) -> None:
    assert tw(*line) == (1, "", said)


@pytest.mark.parametrize("line", [["generate", "lm", "a"], ["chat", "lm"], ["bench", "lm"], _EVAL])
@pytest.mark.parametrize("architecture", ["BertModel", "ViTForImageClassification"])
def test_what_writes_no_text_is_refused_as_that(tw: Tw, lm: Path, line: list[str], architecture: str) -> None:
    (lm / "config.json").write_text(json.dumps(CONFIG | {"architectures": [architecture]}))
    assert tw(*line) == (
        1,
        "",
        f"TW037 cannot generate step by step: lm/config.json names the architecture {architecture}, which is no "
        "language model: it has no head that gives the token that follows\n  next: give the folder of a model whose "
        "architecture ends in ForCausalLM or ForConditionalGeneration\n",
    )


@pytest.mark.parametrize("flag", ["--rounds", "--tokens", "--prompt", "--requests", "--threads"])
def test_counts_are_from_1_on(tw: Tw, lm: Path, flag: str) -> None:
    code, out, err = tw("bench", "lm", flag, "0")
    assert (code, out) == (2, "")
    assert "Invalid value for" in err
    assert f"{flag}': Input should be greater than or equal to 1" in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            ["generate", "lm", "a" * 300],
            "TW050 prompt cannot be continued: the prompt has 300 tokens, the encoder of lm takes 256\n"
            "  next: shorten the prompt to 256 tokens or less\n",
        ),
        (
            ["generate", "lm", "a", "--tokens", "256"],
            "TW050 prompt cannot be continued: 256 new tokens are more than the 255 that lm gives\n"
            "  next: write --tokens 255\n",
        ),
        (
            ["eval", "lm", "--text", "lm/config.json"],
            "TW050 prompt cannot be continued: lm is an encoder-decoder model: it answers a source, and a text alone "
            "has no perplexity\n  next: give a causal model, or use lm.negative_log_likelihood(answer, source=...) in "
            "Python\n",
        ),
    ],
)
def test_the_room_of_an_encoder_decoder_model_is_its_own(tw: Tw, lm: Path, line: list[str], said: str) -> None:
    (lm / "config.json").write_text(json.dumps(CONFIG | {"is_encoder_decoder": True}))
    assert tw(*line) == (1, "", said)
    # prompt and answer are no one sequence
    assert "has no .safetensors file" in tw("generate", "lm", "a" * 200, "--tokens", "200")[2]


def test_what_is_right_goes_on_to_the_weights_and_says_what_runs(tw: Tw, lm: Path) -> None:
    (lm / "chat_template.jinja").write_text(CHAT)
    for line in (["generate", "lm", "a", "--tokens", "255"], ["chat", "lm"], ["bench", "lm", "-p", "8", "-n", "2"]):
        code, _, err = tw(*line)
        assert code == 1
        first, second, *_ = err.splitlines()
        assert first == "reading and compiling lm; what was compiled before is taken from the cache"
        assert second == "TW009 not a model: lm has no .safetensors file"

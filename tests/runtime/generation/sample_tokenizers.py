"""Small tokenizers: one of bytes, written here, and one of the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

CHAT = """{%- for m in messages -%}
<{{ m.role }}>{{ m.content }}</>
{%- endfor -%}
{%- if add_generation_prompt %}<assistant>{% endif -%}"""


class ByteTokenizer:
    """Ids 0 to 255 are bytes, 256 is the beginning and 257 the end."""

    end = (257,)

    def __init__(self, chat_template: str | None = CHAT) -> None:
        self.chat_template = chat_template
        self.special = {"bos_token": ""}

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [256] * special + list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def definition(self) -> str:
        return library_tokenizer().to_str()


def library_tokenizer():  # type: ignore[no-untyped-def]
    """Byte-level BPE without merges: a token a byte, and an end."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|start|>", special=True), AddedToken("<|end|>", special=True)])
    return made


def save_tokenizer(folder: Path) -> None:
    library_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"eos_token": {"content": "<|end|>"}, "bos_token": "<|start|>", "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")

"""tw.KVCache: how the cache of a language model is laid out, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tilewright.errors import OptionError
from tilewright.option_names import known_options
from tilewright.passes.kv_cache.layout import Codes
from tilewright.runtime.generation.compression import Compression
from tilewright.runtime.memory import parse_bytes

PAGE = 16
# A page of codes has a scale and a lowest number a feature beside its keys: with 128 features in bf16 a quarter of an
# int8 page's bytes at 16 tokens, a sixteenth at 64; and a head's rows of one page are read as one stretch.
CODED_PAGE = 64
_BITS = {"int8": 8, "int4": 4}


@known_options()
@dataclass(frozen=True, kw_only=True)
class KVCache:
    """Where keys and values lie between steps. Raises OptionError for options out of range.

    layout: "paged", in pages of `page` tokens (default 16, of codes 64) that any request may take, or "contiguous", a
    page for a whole request. budget: bytes of all pages, or a text like "2GiB"; None is what `max_batch` requests of
    `max_tokens` need. Memory is taken from the system as pages are first written.

    dtype: "model", or "int8" or "int4" for codes of old keys and values in layers without a window: with a scale a
    feature and page for keys, a token and head for values, in bf16. `recent`: so many tokens at least, the token itself
    among them, are seen as the model computed them. What a token sees of another depends on their two places alone.

    compress: a `tw.Compression`: layers without a window give up tokens of prompts.
    """

    layout: Literal["paged", "contiguous"] = "paged"
    page: int | None = None
    budget: int | str | None = None
    dtype: Literal["model", "int8", "int4"] = "model"
    recent: int = 64
    compress: Compression | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.layout not in ("paged", "contiguous"):
            faults.append(f"layout={self.layout!r} is not one of 'paged', 'contiguous'")
        if self.page is not None and (isinstance(self.page, bool) or not isinstance(self.page, int) or self.page < 1):
            faults.append(f"page={self.page!r} is not a number of tokens from 1 on")
        elif self.page is not None and self.layout == "contiguous":
            faults.append(f"page={self.page} beside layout='contiguous', whose pages hold a whole request")
        if not isinstance(self.budget, (int, str, type(None))) or isinstance(self.budget, bool):
            faults.append(f"budget={self.budget!r} is not a number of bytes or a text like '2GiB'")
        elif self.budget is not None and self.bytes is not None and self.bytes < 1:
            faults.append(f"budget={self.budget!r} holds nothing")
        if self.dtype not in ("model", *_BITS):
            faults.append(f"dtype={self.dtype!r} is not one of 'model', 'int8', 'int4'")
        elif self.dtype != "model" and self.layout == "contiguous":
            faults.append(f"dtype={self.dtype!r} beside layout='contiguous': keys are coded a page at a time")
        if isinstance(self.recent, bool) or not isinstance(self.recent, int) or self.recent < 1:
            faults.append(f"recent={self.recent!r} is not a number of tokens from 1 on")
        if not isinstance(self.compress, (Compression, type(None))):
            faults.append(f"compress={self.compress!r} is not a tw.Compression")
        elif self.compress is not None and self.dtype != "model":
            faults.append(f"compress= beside dtype={self.dtype!r}: codes of a page cannot move to others")
        elif self.compress is not None and self.layout == "contiguous":
            faults.append("compress= beside layout='contiguous': a page holds a whole request, whatever it gives up")
        if faults:
            raise OptionError(faults, step="tw.KVCache(page=16, budget='2GiB') is one that works")

    @property
    def bytes(self) -> int | None:
        """The budget in bytes."""
        return parse_bytes(self.budget) if isinstance(self.budget, str) else self.budget

    @property
    def codes(self) -> Codes | None:
        """How old keys and values are kept; None as they are."""
        return None if self.dtype == "model" else Codes(_BITS[self.dtype], self.recent)

    def page_of(self, max_tokens: int) -> int:
        """Tokens of a page."""
        own = PAGE if self.codes is None else CODED_PAGE
        return max_tokens if self.layout == "contiguous" else min(self.page or own, max_tokens)

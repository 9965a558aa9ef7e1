"""tw.KVCache: how the cache of a language model is laid out, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tilewright.errors import OptionError
from tilewright.runtime.memory import parse_bytes

PAGE = 16


@dataclass(frozen=True, kw_only=True)
class KVCache:
    """Where keys and values lie between steps. Raises OptionError for options out of range.

    layout: "paged", in pages of `page` tokens (default 16) that any request may take, or "contiguous", a page for a
    whole request. budget: bytes of all pages, or a text like "2GiB"; None is what `max_batch` requests of `max_tokens`
    need. Memory is taken from the system as pages are first written.
    """

    layout: Literal["paged", "contiguous"] = "paged"
    page: int | None = None
    budget: int | str | None = None

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
        if faults:
            raise OptionError(faults, step="tw.KVCache(page=16, budget='2GiB') is one that works")

    @property
    def bytes(self) -> int | None:
        """The budget in bytes."""
        return parse_bytes(self.budget) if isinstance(self.budget, str) else self.budget

    def page_of(self, max_tokens: int) -> int:
        """Tokens of a page."""
        return max_tokens if self.layout == "contiguous" else min(self.page or PAGE, max_tokens)

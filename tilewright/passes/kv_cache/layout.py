"""Where keys and values lie between steps: pages of a few tokens each, in states that hold so many pages."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.errors import OptionError


@dataclass(frozen=True, slots=True)
class PagedLayout:
    """page: tokens of a page. pages: how many a layer's state holds. most_tokens: of one request, prompt included.
    most_step: tokens of one step, all requests together. most_requests: of one step.
    """

    page: int = 16
    pages: int = 256
    most_tokens: int = 4096
    most_step: int = 512
    most_requests: int = 8

    def __post_init__(self) -> None:
        faults = [
            f"{name}: {getattr(self, name)} is below 1"
            for name in ("page", "pages", "most_tokens", "most_step", "most_requests")
            if getattr(self, name) < 1
        ]
        if faults:
            raise OptionError(faults, step="give numbers of 1 and more")

    @property
    def most_pages(self) -> int:
        """Of one request."""
        return -(-self.most_tokens // self.page)

    @property
    def rows(self) -> int:
        """Of a layer's state: one a token."""
        return self.page * self.pages

"""Forms of attention over pages, and what their results may differ by from float64 and from torch's on whole rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Any

import numpy as np
import torch

from tests.passes.lower_to_tile.attention_bounds import check_bounds
from tests.passes.lower_to_tile.attention_forms import Form, Kernels, magnitude_of, seen_by, torchs
from tests.passes.lower_to_tile.groups import reference
from tests.passes.lower_to_tile.test_paged import SPACE, Shape
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.graph.paging import by_row


@dataclass(frozen=True)
class PagedForm:
    """heads, groups: of queries and of keys. latent: values are a key's first features. slopes: ALiBi's."""

    dtype: str = "f32"
    heads: int = 4
    groups: int = 2
    size: int = 16
    value_size: int = 16
    scale: float = 0.25
    mask: str = "causal"
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    slopes: bool = False
    latent: bool = False
    page: int = 16

    @property
    def shape(self) -> Shape:
        return Shape(
            self.heads, self.groups, self.size, self.value_size, self.page, 40, DTYPES[self.dtype], self.sinks,
            self.slopes, prefix=self.latent,
        )  # fmt: skip

    @property
    def plain(self) -> Form:
        """A request's attention over its keys in a row."""
        return Form(
            self.dtype, self.heads, self.groups, self.size, self.value_size, self.scale, square=False, mask=self.mask,
            window=self.window, softcap=self.softcap, sinks=self.sinks, bias="pairs" if self.slopes else "",
        )  # fmt: skip


@lru_cache(None)
def _kernels(form: PagedForm) -> Kernels:
    ways = {"scale": form.scale, "mask": form.mask, "window": form.window, "softcap": form.softcap}
    return Kernels(form.shape.group(**ways), SPACE)


def check_paged(form: PagedForm, requests: list[tuple[int, int]], magnitude: float, rng: np.random.Generator) -> bool:
    """Every request of (tokens before this step, tokens in it) within `check_bounds`, which gives the result."""
    operands, sizes = form.shape.draw(requests, rng)
    operands[0] = (operands[0] * (magnitude / (3 * form.scale * sqrt(form.size)))).to(operands[0].dtype)
    kernels = _kernels(form)
    (out,), (want,) = kernels(operands, sizes, int(rng.integers(1, 3))), reference(kernels.made, operands, sizes)
    assert not out.isnan().any()
    as_torch = True
    first = 0
    for number, (old, new) in enumerate(requests):
        rows = slice(first, first + new)
        first += new
        if new:
            given = _row(form, operands, number, rows, old)
            got = (x[rows].transpose(0, 1)[None] for x in (out, want))
            as_torch &= _check_request(form, given, *got, old + new, rng)
    return as_torch


def _row(form: PagedForm, operands: list[Any], number: int, rows: slice, old: int) -> dict[str, torch.Tensor]:
    """A request's operands by name, as the plain form has them: heads before tokens."""
    q, k, rest = operands[0], operands[1], operands[2 if form.latent else 3 :]
    k, v = by_row(k), by_row(k[..., : form.value_size] if form.latent else operands[2])
    table, new = rest[2], rows.stop - rows.start
    at = torch.arange(old + new)
    places = table[number].long()[at // form.page] * form.page + at % form.page
    given = {"q": q[rows], "k": k[places], "v": v[places]}
    given = {name: x.transpose(0, 1)[None].contiguous() for name, x in given.items()}
    if form.sinks:
        given["sinks"] = rest[3]
    if form.slopes:
        given["bias"] = (rest[3][:, None, None] * (at - at[old:, None]))[None]
    return given


def _check_request(
    form: PagedForm,
    given: dict[str, torch.Tensor],
    out: torch.Tensor,
    want: torch.Tensor,
    keys: int,
    rng: np.random.Generator,
) -> bool:
    sizes = {"b": 1, "t": out.shape[2], "s": keys}
    large = magnitude_of(form.plain, given, seen_by(form.plain, given, sizes))

    def own(order: torch.Tensor) -> float:
        turned = {name: x[..., order].contiguous() if name in "qk" else x for name, x in given.items()}
        return float((torchs(form.plain, turned, sizes) - want).abs().max())

    return check_bounds(
        f"{form} {sizes}", float((out - want).abs().max()), dtype=form.dtype, large=large, keys=keys,
        most=float(given["v"].double().abs().max()), size=form.size, own=own, rng=rng,
    )  # fmt: skip


def requests_of(news: list[int], olds: list[int], page: int, pages: int = 40) -> list[tuple[int, int]]:
    """As many (old, new) as the cache has pages for."""
    found, left = [], pages - 1
    for old, new in zip(olds, news, strict=True):
        left -= -(-(old + new) // page)
        if left < 0:
            break
        found.append((old, new))
    return found or [(0, 1)]

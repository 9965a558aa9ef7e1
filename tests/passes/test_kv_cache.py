"""The step of a causal model: equal to the model in the graph's own arithmetic, and refused where tokens mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tilewright.backends.cpu.machines import MACHINES
from tilewright.errors import OptionError, StepError
from tilewright.frontend.capturing import capture
from tilewright.ir.dims import Dim, DimSpace
from tilewright.ir.dtypes import torch_name
from tilewright.ir.graph.paging import PagedAttentionOp, by_row
from tilewright.ir.graph_interpreter import interpret
from tilewright.ir.passing import Context, Pipeline, run_pipeline
from tilewright.ir.verifier import verify
from tilewright.passes.kv_cache import Codes, Kept, PagedLayout, Step, name_positions, step_of
from tilewright.passes.pipeline import PASSES

LETTERS, HEADS, SIZE = 13, 4, 6
WIDTH = HEADS * SIZE


class Decoder(torch.nn.Module):
    """One layer of attention between an embedding and a head. window: how far it sees, 0 for all. between: what is done
    to the tokens [batch, tokens, WIDTH] before the attention. whole: torch's own attention, not written out. slopes:
    by which logits fall with distance.
    """

    def __init__(
        self,
        window: int = 0,
        between: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        whole: bool = False,
        slopes: bool = False,
    ) -> None:
        super().__init__()
        self.window, self.between, self.whole, self.slopes = window, between, whole, slopes
        self.table = torch.nn.Embedding(LETTERS, WIDTH)
        self.places = torch.nn.Embedding(64, WIDTH)
        self.q, self.kv = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        batch, tokens = ids.shape
        at = torch.arange(tokens)
        x = self.table(ids) + self.places(at)
        if self.between is not None:
            x = self.between(x)
        q, k, v = (
            y.view(batch, tokens, HEADS, SIZE).transpose(1, 2) for y in (self.q(x), *self.kv(x).chunk(2, dim=-1))
        )
        if self.window:
            seen = (at[None] <= at[:, None]) & (at[None] > at[:, None] - self.window)
        if self.window and self.whole:
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        elif self.window:
            logits = q @ k.transpose(2, 3) * SIZE**-0.5
            if self.slopes:
                logits = logits + (at - tokens) * (torch.arange(1.0, HEADS + 1) / 5)[:, None, None]
            logits = logits.masked_fill(~seen, -torch.inf)
            y = logits.softmax(-1) @ v
        else:
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = self.norm(x + y.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x @ self.table.weight.T


def step(model: torch.nn.Module, layout: PagedLayout) -> tuple[Step, dict[str, torch.Tensor]]:
    """A model's step, and its weights."""
    dims = {"ids": (Dim("batch", 1, 8), Dim("tokens", 1, layout.most_tokens))}
    captured = capture(model.eval(), (torch.zeros(2, 8, dtype=torch.int64),), {}, dims)
    ctx = Context(MACHINES["avx2"], DimSpace(captured.dims), read_weight=captured.weights.__getitem__)
    name_positions(captured.module)
    run_pipeline(Pipeline.parse("canonicalize,fold,canonicalize,recognize,canonicalize", PASSES), captured.module, ctx)
    return step_of(captured.module, layout), dict(captured.weights)


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize(("page", "whole", "slopes"), [(1, False, False), (3, True, False), (16, False, True)])
def test_steps_say_what_the_model_says(
    window: int, page: int, whole: bool, slopes: bool, rng: np.random.Generator
) -> None:
    model = Decoder(window, whole=whole, slopes=slopes)
    layout = PagedLayout(page=page, most_tokens=40, most_step=64, most_requests=3, segment=1)
    made, weights = step(model, layout)
    verify(made.module)
    (group,) = made.groups
    attention = [op for op in made.module.walk() if isinstance(op, PagedAttentionOp)]
    assert [op.slopes is not None for op in attention] == [slopes and bool(window)]
    assert (group.window, group.name) == ((5, "sliding5") if window else (None, "full"))
    texts = [torch.from_numpy(rng.integers(0, LETTERS, n)) for n in (1, 19, 40)]
    pages = iter(rng.permutation(made.pages[group.name]).tolist())
    tables = [[next(pages) for _ in range(-(-len(text) // page))] for text in texts]
    # rows that no token has written are not read
    states = {name: torch.full([d.evaluate({}) for d in kind.dims], torch.nan) for name, kind in made.states.items()}
    found: list[list[torch.Tensor]] = [[] for _ in texts]
    done = [0] * len(texts)
    while any(n < len(text) for n, text in zip(done, texts, strict=True)):
        live = [i for i, text in enumerate(texts) if done[i] < len(text)]
        counts = [int(rng.integers(1, min(12, len(texts[i]) - done[i]) + 1)) for i in live]
        positions = torch.cat([torch.arange(done[i], done[i] + n) for i, n in zip(live, counts, strict=True)])
        owner = np.repeat(live, counts)
        slots = [tables[i][p // page] * page + p % page for i, p in zip(owner, positions.tolist(), strict=True)]
        width = max(len(tables[i]) for i in live)
        given = {
            "ids": torch.cat([texts[i][done[i] : done[i] + n] for i, n in zip(live, counts, strict=True)]),
            "positions": positions,
            "offsets": torch.tensor(np.cumsum([0, *counts]), dtype=torch.int32),
            "wanted": torch.arange(len(positions)),
            group.slots: torch.tensor(slots),
            group.table: torch.tensor([[*tables[i], *[0] * (width - len(tables[i]))] for i in live], dtype=torch.int32),
        }
        if group.places:
            given[group.places] = positions
        assert list(given) == list(made.arguments)
        logits = interpret(made.module, given, weights=weights, states=states)["logits"]
        for i, row in zip(owner, logits, strict=True):
            found[i].append(row)
        for i, n in zip(live, counts, strict=True):
            done[i] += n
    for text, rows in zip(texts, found, strict=True):
        wanted = model.double()(text[None])[0]
        assert torch.allclose(torch.stack(rows).double(), wanted, rtol=0, atol=2e-5)


def test_only_the_wanted_rows_reach_the_head(rng: np.random.Generator) -> None:
    made, weights = step(Decoder(), PagedLayout(page=4, most_tokens=16, most_step=16))
    shapes: list[tuple[int, ...]] = []
    zeros = {name: torch.zeros([d.evaluate({}) for d in kind.dims]) for name, kind in made.states.items()}
    given = [torch.zeros(9, dtype=torch.int64), torch.arange(9), torch.tensor([0, 9]), torch.tensor([2, 8]),
             torch.arange(9), torch.arange(3)[None]]  # fmt: skip
    kinds = list(made.arguments.values())
    given = [g.to(torch.int32) if kind.dtype.bits == 32 else g for g, kind in zip(given, kinds, strict=True)]

    def note(op: Any, results: Any) -> None:
        if op.name == "graph.norm":
            shapes.append(tuple(results[0].shape))

    logits = interpret(made.module, given, weights=weights, states=zeros, observe=note)["logits"]
    assert shapes == [(1, 2, WIDTH)]
    assert logits.shape == (2, LETTERS)


MIXING: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "mean": (lambda x: x - x.mean(1, keepdim=True), "reduces over tokens"),
    "running": (lambda x: x.cumsum(1), "along the tokens"),
    "softmax": (lambda x: x.softmax(1), "along the tokens"),
    "products": (lambda x: x + (x @ x.transpose(1, 2)) @ x, "relates tokens to tokens"),
    "shifted": (
        lambda x: x + torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1],
        "picks tokens|mixes tokens|adds tokens",
    ),
    "reversed": (lambda x: x + x.flip(1), "counts tokens"),
    "sorted": (lambda x: x.sort(1).values, "along the tokens"),
    "folded": (lambda x: x.transpose(1, 2).reshape(x.shape[0], x.shape[1], WIDTH), "moves numbers between tokens"),
}


@pytest.mark.parametrize("how", MIXING)
def test_models_that_mix_tokens_are_refused_with_the_op(how: str) -> None:
    between, why = MIXING[how]
    with pytest.raises(StepError, match=f"(?s)({why}).*test_kv_cache"):
        step(Decoder(between=between), PagedLayout(page=4, most_tokens=16, most_step=16))


def test_attention_to_later_tokens_is_refused() -> None:
    class Both(Decoder):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.table(ids)[:, None]
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)[:, 0] @ self.table.weight.T

    with pytest.raises(StepError, match="later"):
        step(Both(), PagedLayout(page=4, most_tokens=16, most_step=16))


def test_what_follows_mixed_tokens_is_no_second_problem() -> None:
    with pytest.raises(StepError) as raised:
        step(Decoder(between=lambda x: (x.cumsum(1) * 2).relu()), PagedLayout(page=4, most_tokens=16, most_step=16))
    assert str(raised.value).count("graph.") == 1


def test_a_budget_is_shared_in_the_proportion_of_need() -> None:
    layout = PagedLayout(page=16, most_tokens=256, most_step=32, most_requests=2, budget=60_000)
    groups = [
        Kept("full", None, 64, layout.columns(None, 64), ("a",), 100),
        Kept("sliding32", 32, 64, layout.columns(32, 64), ("b",), 300),
    ]
    counts = layout.counts(groups)
    assert sum(counts[g.name] * 16 * g.token_bytes for g in groups) <= 60_000
    assert layout.held(32) == 5
    assert counts["full"] / counts["sliding32"] == pytest.approx(16 / 5, rel=0.2)
    assert PagedLayout(page=16, most_tokens=256, most_step=32, most_requests=2).counts(groups)["full"] == 32


def test_layouts_of_nothing_are_refused() -> None:
    for name in ("page", "most_tokens", "most_step", "most_requests", "budget"):
        with pytest.raises(OptionError, match=name):
            PagedLayout(**{name: 0})


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_within_half_a_step_of_what_they_stand_for(bits: int, rng: np.random.Generator) -> None:
    page, tokens = 4, 22
    layout = PagedLayout(page, 40, 64, 1, segment=1, codes=Codes(bits, recent=5))
    made, weights = step(Decoder(), layout)
    full, near = made.groups
    states = {
        name: torch.zeros([d.evaluate({}) for d in kind.dims], dtype=getattr(torch, torch_name(kind.dtype)))
        for name, kind in made.states.items()
    }
    at, closed = torch.arange(tokens), torch.arange(tokens // page)
    pages = torch.arange(-(-tokens // page), dtype=torch.int32)[None]
    given = {
        "ids": torch.from_numpy(rng.integers(0, LETTERS, tokens)), "positions": at,
        "offsets": torch.tensor([0, tokens], dtype=torch.int32), "wanted": at, full.slots: at, full.table: pages,
        near.slots: at, near.table: pages, near.places: at, "closed_codes": closed, "closed_near": closed,
    }  # fmt: skip
    assert set(given) == set(made.arguments)
    given = {name: given[name] for name in made.arguments}
    interpret(made.module, given, weights=weights, states=states)
    for what in ("key", "value"):
        wanted = by_row(states[f"cache.0.near_{what}s"])[: closed.numel() * page]
        codes = by_row(states[f"cache.0.{what}s"])[: len(wanted)]
        if bits == 4:
            codes = torch.stack([codes % 16, codes // 16], -1).flatten(-2)
        scale, low = (states[f"cache.0.{what}_{n}"].float() for n in ("scales", "lows"))
        if what == "key":
            scale, low = (x.repeat_interleave(page, 0)[: len(wanted)] for x in (scale, low))
        else:
            scale, low = (by_row(x)[: len(wanted), :, None] for x in (scale, low))
        assert ((codes.float() * scale + low - wanted).abs() <= scale / 2 * (1 + 1e-5)).all()


def test_codes_that_fill_no_bytes_are_refused() -> None:
    class Odd(Decoder):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.table(ids)[:, None, :, :5]
            y = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
            return y[:, 0] @ self.table.weight[:, :5].T

    with pytest.raises(StepError, match="fill no whole bytes"):
        step(Odd(), PagedLayout(4, 16, 16, codes=Codes(4)))


def test_tables_of_windows_longer_than_a_part_of_keys_begin_where_parts_do() -> None:
    layout = PagedLayout(page=16, most_tokens=8192, most_step=64, segment=64, part=1024)
    assert layout.unit(100) == 64
    assert layout.columns(100, 64) * 16 <= 1024
    assert layout.unit(2000) == 1024


class Latents(torch.nn.Module):
    """One layer of multi-head latent attention, keys and values expanded. `turned` features of a key are shared."""

    size, turned, values = 10, 4, 6

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(LETTERS, WIDTH)
        self.q = torch.nn.Linear(WIDTH, HEADS * (SIZE + self.turned))
        self.down = torch.nn.Linear(WIDTH, self.size + self.turned)
        self.up = torch.nn.Linear(self.size, HEADS * (SIZE + self.values), bias=False)
        self.out = torch.nn.Linear(HEADS * self.values, WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        batch, tokens = ids.shape
        x = self.table(ids)
        q = self.q(x).view(batch, tokens, HEADS, -1).transpose(1, 2)
        latent, turned = self.down(x).split([self.size, self.turned], dim=-1)
        both = self.up(latent.tanh()).view(batch, tokens, HEADS, -1).transpose(1, 2)
        keys, values = both.split([SIZE, self.values], dim=-1)
        keys = torch.cat([keys, turned[:, None].expand(-1, HEADS, -1, -1)], -1)
        y = torch.nn.functional.scaled_dot_product_attention(q, keys, values, is_causal=True)
        return (x + self.out(y.transpose(1, 2).flatten(2))) @ self.table.weight.T


def test_latents_are_kept_in_the_place_of_what_they_expand_to(rng: np.random.Generator) -> None:
    model, tokens, page = Latents(), 19, 4
    made, weights = step(model, PagedLayout(page, 40, 64, 1, segment=1, codes=Codes(8)))
    verify(made.module)
    (group,) = made.groups
    assert group.token_bytes == (Latents.size + Latents.turned) * 4
    states = {name: torch.full([d.evaluate({}) for d in kind.dims], torch.nan) for name, kind in made.states.items()}
    ids, found = torch.from_numpy(rng.integers(0, LETTERS, tokens)), []
    for first, last in ((0, 7), (7, 8), (8, tokens)):
        at = torch.arange(first, last)
        given = [ids[first:last], at, torch.tensor([0, last - first], dtype=torch.int32), at - first, at]
        given.append(torch.arange(-(-last // page), dtype=torch.int32)[None])
        named = dict(zip(made.arguments, given, strict=True))
        found.append(interpret(made.module, named, weights=weights, states=states)["logits"])
    wanted = model.double()(ids[None])[0]
    assert torch.allclose(torch.cat(found).double(), wanted, rtol=0, atol=2e-5)

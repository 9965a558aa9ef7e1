"""States of requests in a step: convolutions and recurrences go on as the model says, and refusals name the op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from tests.passes.test_kv_cache import LETTERS, WIDTH, step
from tilewright.errors import OptionError, StepError
from tilewright.frontend import recurrences
from tilewright.ir.graph_interpreter import interpret
from tilewright.ir.verifier import verify
from tilewright.passes.kv_cache import Codes, PagedLayout
from tilewright.runtime.generation.compiled_step import RowStates
from tilewright.runtime.generation.step import StepInputs

LAYOUT = PagedLayout(page=4, most_tokens=40, most_step=64, most_requests=3, segment=1)


class Remembers(torch.nn.Module):
    """Embedding, something over the tokens [batch, WIDTH, tokens], head."""

    def __init__(self, over: Callable[[Any, torch.Tensor], torch.Tensor], **convolution: Any) -> None:
        super().__init__()
        self.table, self.over = torch.nn.Embedding(LETTERS, WIDTH), over
        self.conv = torch.nn.Conv1d(WIDTH, WIDTH, **({"kernel_size": 4, "groups": WIDTH} | convolution))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids).transpose(1, 2)
        return (x + self.over(self, x)).transpose(1, 2) @ self.table.weight.T


def padded_both(m: Any, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = m.conv(x)[..., : x.shape[2]]
    return y


def padded_before(m: Any, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = m.conv(pad(x, (6, 0))).tanh()
    return y


def walked(m: Any, x: torch.Tensor) -> torch.Tensor:
    """The recurrence that `remembered` is, step by step."""
    split = x.transpose(1, 2).unflatten(2, (4, -1))
    queries, keys = (y.repeat_interleave(2, 2) for y in (split[:, :, :2], split[:, :, 2:]))
    state, found = torch.zeros(1, 4, WIDTH // 4, WIDTH // 4, dtype=x.dtype), []
    for t in range(x.shape[2]):
        fade = (-split[:, t].abs().sum(-1)).exp()[..., None, None]
        state = fade * state + keys[:, t, ..., None] * split[:, t, :, None]
        found.append((queries[:, t, ..., None] * state).sum(-2))
    return torch.stack(found, 1).flatten(2).transpose(1, 2)


def remembered(m: Any, x: torch.Tensor) -> torch.Tensor:
    recurrences.define()
    split = x.transpose(1, 2).unflatten(2, (4, -1))
    y = torch.ops.tilewright.linear_attention(split[:, :, :2], split[:, :, 2:], split, -split.abs().sum(-1))
    back: torch.Tensor = y.flatten(2).transpose(1, 2)
    return back


@pytest.mark.parametrize(
    ("over", "convolution", "rows"),
    [
        (padded_both, {"padding": 3}, 3 * WIDTH),
        # zeros before, every third tap, and no bias
        (padded_before, {"kernel_size": 3, "dilation": 3, "bias": False}, 6 * WIDTH),
        (lambda m, x: padded_both(m, x) + remembered(m, x), {"padding": 3}, 3 * WIDTH + 4 * (WIDTH // 4) ** 2),
        (lambda m, x: m.conv(x), {"kernel_size": 1}, 0),
    ],
    ids=["padded", "dilated", "with a recurrence", "one tap"],
)
def test_steps_say_what_the_model_says(over: Any, convolution: Any, rows: int, rng: np.random.Generator) -> None:
    model = Remembers(over, **convolution)
    if not rows:
        with pytest.raises(StepError, match="no attention and no recurrence"):
            step(model, LAYOUT)
        return
    made, weights = step(model, LAYOUT)
    verify(made.module)
    assert (made.rows.bytes, made.groups) == (rows * 4, ())
    kept = RowStates(made.rows.states, made.rows.reaches)
    texts = [torch.from_numpy(rng.integers(0, LETTERS, n)) for n in (1, 17, 30)]
    states = {name: torch.zeros([d.evaluate({}) for d in kind.dims]) for name, kind in made.states.items()}
    found: list[list[torch.Tensor]] = [[] for _ in texts]
    where = rng.permutation(3)
    while live := [i for i, text in enumerate(texts) if len(found[i]) < len(text)]:
        begins = [len(found[i]) for i in live]
        counts = [int(rng.integers(1, min(7, len(texts[i]) - b) + 1)) for i, b in zip(live, begins, strict=True)]
        ids = np.concatenate([texts[i][b : b + n] for i, b, n in zip(live, begins, counts, strict=True)])
        positions = np.concatenate([np.arange(b, b + n) for b, n in zip(begins, counts, strict=True)])
        offsets, lengths = np.cumsum([0, *counts]).astype(np.int32), np.add(begins, counts).astype(np.int32)
        wanted = np.arange(len(ids))
        inputs = StepInputs(ids, positions, offsets, lengths, (), where[live].astype(np.int32), wanted)
        given = [ids, positions, offsets, wanted, *kept.arguments(inputs, np.ones(3, np.int64))]
        named = {n: torch.from_numpy(x) for n, x in zip(made.arguments, given, strict=True)}
        rows_found = iter(interpret(made.module, named, weights=weights, states=states)["logits"])
        for i, n in zip(live, counts, strict=True):
            found[i] += [next(rows_found) for _ in range(n)]
    if made.rows.bytes > 3 * WIDTH * 4 and made.rows.reaches == (3,):
        # the operator has no kernel of torch
        model.over = lambda m, x: padded_both(m, x) + walked(m, x)
    for text, logits in zip(texts, found, strict=True):
        wanted_logits = model.double()(text[None])[0]
        off = (torch.stack(logits).double() - wanted_logits).abs().max()
        assert off < 1e-5 * wanted_logits.abs().max()


@pytest.mark.parametrize(
    ("over", "convolution", "why"),
    [
        (lambda m, x: m.conv(x), {"kernel_size": 3, "padding": 1}, "tokens see later ones"),
        (padded_both, {"padding": 3, "groups": 1}, "see several channels"),
        (lambda m, x: m.conv(pad(x, (3, 0)))[..., :1] + x, {"stride": 2}, "leaves tokens out"),
        (lambda m, x: m.conv(x)[..., 3:], {"padding": 3}, "tokens see later|before the first token"),
    ],
    ids=["later", "channels", "strides", "shifted"],
)
def test_convolutions_that_cannot_go_on_are_refused_with_the_op(over: Any, convolution: Any, why: str) -> None:
    with pytest.raises(StepError, match=f"(?s)graph.convolution: [^\n]*({why}).*test_kv_cache_rows"):
        step(Remembers(over, **convolution), LAYOUT)


def test_a_budget_holds_the_rows_first() -> None:
    with pytest.raises(OptionError, match=f"beside the states of 3 requests, {3 * 3 * WIDTH * 4} B"):
        step(
            Remembers(padded_both, padding=3),
            PagedLayout(page=4, most_tokens=40, most_step=64, most_requests=3, segment=1, budget=3 * 3 * WIDTH * 4 - 1),
        )


class Answers(torch.nn.Module):
    """Source and ids, one attention of the ids to the source. beside: what else is made of the source."""

    def __init__(self, beside: Callable[[torch.Tensor], torch.Tensor] | None = None, scale: float = 0.3) -> None:
        super().__init__()
        self.table, self.beside, self.scale = torch.nn.Embedding(LETTERS, WIDTH), beside, scale
        self.own = torch.nn.Embedding(40, 2)

    def forward(self, source: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        s, x = (self.table(i).unflatten(2, (2, -1)).transpose(1, 2) for i in (source, ids))
        at = torch.arange(ids.shape[1])
        far = self.own((at[:, None] - at[None]).clamp(min=0)).permute(2, 0, 1)[None]
        seen = torch.where(at[None] <= at[:, None], 0.0, -torch.inf)
        y = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=far + seen, scale=self.scale)
        y = torch.nn.functional.scaled_dot_product_attention(x + y, s.tanh(), s, scale=self.scale)
        y = y if self.beside is None else y + self.beside(s)
        return y.transpose(1, 2).flatten(2) @ self.table.weight.T


SOURCED = PagedLayout(page=4, most_tokens=40, most_step=64, most_requests=2, segment=1, most_source=9)


def sourced(model: torch.nn.Module, layout: PagedLayout = SOURCED) -> Any:
    from tilewright.backends.cpu.machines import MACHINES
    from tilewright.frontend.capturing import capture
    from tilewright.ir.dims import Dim, DimSpace
    from tilewright.ir.passing import Context, Pipeline, run_pipeline
    from tilewright.passes.kv_cache import name_positions, step_of
    from tilewright.passes.pipeline import PASSES

    batch = Dim("batch", 1, 8)
    dims = {"source": (batch, Dim("source", 1, 9)), "ids": (batch, Dim("tokens", 1, 40))}
    given = tuple(torch.zeros(2, n, dtype=torch.int64) for n in (7, 8))
    captured = capture(model.eval(), given, {}, dims)
    ctx = Context(MACHINES["avx2"], DimSpace(captured.dims), read_weight=captured.weights.__getitem__)
    name_positions(captured.module)
    run_pipeline(Pipeline.parse("canonicalize,fold,canonicalize,recognize,canonicalize", PASSES), captured.module, ctx)
    return step_of(captured.module, layout), dict(captured.weights)


def test_an_answer_goes_on_from_what_the_encoder_has_left(rng: np.random.Generator) -> None:
    model = Answers()
    made, weights = sourced(model)
    verify(made.module)
    verify(made.encoder.module)
    assert made.encoder.row_bytes(2) == 9 * 2 * WIDTH * 4
    source, ids = (torch.from_numpy(rng.integers(0, LETTERS, n)) for n in (5, 23))
    left = interpret(made.encoder.module, {"ids": source}, weights=weights)
    states = {n: torch.full([d.evaluate({}) for d in kind.dims], torch.nan) for n, kind in made.states.items()}
    for name, rows in zip(made.encoder.states, left.values(), strict=True):
        # the second request's
        states[name][1, :, : len(source)] = rows
    found = []
    for first, last in ((0, 7), (7, 8), (8, 23)):
        at, count = torch.arange(first, last), last - first
        pages = torch.arange(-(-last // 4), dtype=torch.int32)[None]
        given = [ids[first:last], at, torch.tensor([0, count], dtype=torch.int32), at - first, at, pages]
        given += [torch.tensor([1]), torch.full((count,), len(source) - 1)]
        named = dict(zip(made.arguments, given, strict=True))
        found.append(interpret(made.module, named, weights=weights, states=states)["logits"])
    wanted = model.double()(source[None], ids[None])[0]
    assert torch.allclose(torch.cat(found).double(), wanted, rtol=0, atol=2e-5)


def test_what_the_encoder_brings_to_tokens_otherwise_is_refused_with_the_op() -> None:
    with pytest.raises(StepError, match=r"(?s)graph\.map: it brings what the encoder computes.*test_kv_cache_rows"):
        sourced(Answers(lambda s: s.mean(2, keepdim=True)))


def test_codes_beside_a_bias_by_distance_are_refused_with_the_op() -> None:
    with pytest.raises(StepError, match=r"(?s)graph\.attention: its bias hangs on distances.*test_kv_cache_rows"):
        sourced(Answers(), replace(SOURCED, codes=Codes(8)))

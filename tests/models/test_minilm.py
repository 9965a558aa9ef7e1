"""The product on a real model: one compiled object, every declared size, no compilation in any call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from bench.models.minilm import MOST_BATCH, MOST_TOKENS, SentenceEncoder
from bench.models.minilm import build as minilm
from tests.models.encoders import draw_call, draw_sizes
from tilewright.backends.host import workers
from tilewright.compiler import building
from tilewright.ir.module import parse_module
from tilewright.ir.tile.containment import unproved
from tilewright.runtime import native

CORNERS = [(1, 1), (1, 16), (1, MOST_TOKENS), (MOST_BATCH, 1), (8, 82), (MOST_BATCH, 31), (7, MOST_TOKENS)]


@pytest.fixture(scope="module")
def model() -> SentenceEncoder:
    return minilm()


def compiled(model: SentenceEncoder, **options: Any) -> Any:
    batch, tokens = tw.Dim("batch", 1, MOST_BATCH), tw.Dim("tokens", 1, MOST_TOKENS)
    example = draw_call(np.random.default_rng(0), 3, 8)
    return tw.compile(model, kwargs=example, dims=dict.fromkeys(example, (batch, tokens)), **options)


@pytest.fixture(scope="module")
def in_f32(model: SentenceEncoder) -> Any:
    return compiled(model)


@pytest.fixture(scope="module")
def in_bf16(model: SentenceEncoder) -> Any:
    return compiled(model, precision="bf16")


@pytest.fixture
def no_compilation(in_f32: Any, in_bf16: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would compile a kernel or link one ends the test, from here on."""

    def refuse(*_args: Any, **_named: Any) -> Any:
        raise AssertionError("a call compiled something")

    monkeypatch.setattr(type(workers.shared_pool()), "submit", refuse)
    monkeypatch.setattr(native, "load", refuse)
    monkeypatch.setattr(building, "build_kernels", refuse)
    with pytest.raises(AssertionError, match="compiled something"):
        workers.shared_pool().submit("", None)  # type: ignore[arg-type]


def eager(model: SentenceEncoder, call: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return model(**call)


@pytest.mark.parametrize("precision", ["in_f32", "in_bf16"])
def test_every_access_is_proved_to_stay_inside(precision: str, request: pytest.FixtureRequest) -> None:
    assert not unproved(parse_module(request.getfixturevalue(precision).ir("tile")))


@pytest.mark.usefixtures("no_compilation")
def test_a_hundred_drawn_cases_agree_with_pytorch(
    model: SentenceEncoder, in_f32: Any, rng: np.random.Generator
) -> None:
    worst = (0.0, (0, 0))
    for size in CORNERS + draw_sizes(rng, 100 - len(CORNERS), budget=200):
        call = draw_call(rng, *size)
        found, wanted = in_f32(**call), eager(model, call)
        assert found.shape == wanted.shape
        assert found.dtype == torch.float32
        difference = (found - wanted).abs().max().item()
        assert difference == difference, f"{size} gives NaN"
        worst = max(worst, (difference, size))
    assert worst[0] <= 2e-5, worst
    assert (found.norm(dim=-1) - 1).abs().max() < 1e-5


@pytest.mark.usefixtures("no_compilation")
def test_the_largest_size_agrees_with_pytorch(model: SentenceEncoder, in_f32: Any, rng: np.random.Generator) -> None:
    call = draw_call(rng, MOST_BATCH, MOST_TOKENS)
    found = in_f32(**call)
    # PyTorch answers for three of the rows: all 64 of them take it seconds
    rows = torch.from_numpy(rng.choice(MOST_BATCH, 3, replace=False))
    wanted = eager(model, {name: value[rows] for name, value in call.items()})
    assert (found[rows] - wanted).abs().max() <= 2e-5


@pytest.mark.usefixtures("no_compilation")
def test_a_row_that_attends_to_nothing_is_zero(model: SentenceEncoder, in_f32: Any, rng: np.random.Generator) -> None:
    call = draw_call(rng, 3, 9)
    whole = in_f32(**call)
    call["attention_mask"][1] = 0
    found = in_f32(**call)
    assert torch.equal(found[1], torch.zeros_like(found[1]))
    assert torch.equal(found[[0, 2]], whole[[0, 2]])


@pytest.mark.usefixtures("no_compilation")
def test_bf16_products_keep_the_direction(model: SentenceEncoder, in_bf16: Any, rng: np.random.Generator) -> None:
    rounded = 0.0
    for size in [(1, 1), (1, 16), (8, 82), *draw_sizes(rng, 30, budget=300)]:
        call = draw_call(rng, *size)
        found, wanted = in_bf16(**call), eager(model, call)
        assert found.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(found, wanted).min().item()
        assert cosine >= 0.999, size
        rounded = max(rounded, (found - wanted).abs().max().item())
    # farther off than f32 is allowed to be: the operands were rounded
    assert rounded > 2e-5


@pytest.mark.usefixtures("no_compilation")
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_rows_bits_do_not_depend_on_its_neighbours(
    precision: str, in_f32: Any, in_bf16: Any, rng: np.random.Generator
) -> None:
    program = in_f32 if precision == "f32" else in_bf16
    for batch, tokens in [(2, 1), (3, 130), (33, 5), *draw_sizes(rng, 12, budget=300)]:
        call = draw_call(rng, batch, tokens)
        together = program(**call)
        order = rng.permutation(batch)
        shuffled = program(**{name: value[torch.from_numpy(order)] for name, value in call.items()})
        assert torch.equal(shuffled, together[torch.from_numpy(order)])
        for row in rng.choice(batch, min(3, batch), replace=False):
            alone = program(**{name: value[row : row + 1] for name, value in call.items()})
            assert torch.equal(alone[0], together[row]), (batch, tokens, row)


@pytest.mark.usefixtures("no_compilation")
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_rows_bits_do_not_depend_on_padding_for_a_longer_neighbour(
    precision: str, in_f32: Any, in_bf16: Any, rng: np.random.Generator
) -> None:
    program = in_f32 if precision == "f32" else in_bf16
    for short, tokens in [(1, 2), (15, 17), (63, 129), *rng.integers(1, 80, (8, 2)).tolist()]:
        call = draw_call(rng, 2, short + tokens)
        call["attention_mask"][0] = (torch.arange(short + tokens) < short).long()
        alone = program(input_ids=call["input_ids"][:1, :short], attention_mask=call["attention_mask"][:1, :short])
        assert torch.equal(program(**call)[0], alone[0]), (short, tokens)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_bits_do_not_depend_on_the_number_of_threads(
    model: SentenceEncoder, precision: str, in_f32: Any, in_bf16: Any, rng: np.random.Generator
) -> None:
    all_cores, options = (in_f32, {}) if precision == "f32" else (in_bf16, {"precision": "bf16"})
    one = compiled(model, threads=1, **options)
    for size in [(1, 1), (1, 16), (8, 82), *draw_sizes(rng, 12, budget=300)]:
        call = draw_call(rng, *size)
        assert torch.equal(one(**call), all_cores(**call)), size

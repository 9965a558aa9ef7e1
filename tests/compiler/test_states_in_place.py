"""Models with caches: a step writes the rows it changes and no others, counted, and equals eager over many calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.compiler.counting import check_counts
from tilewright.compiler.divergence import Case, first_difference
from tilewright.compiler.instrumented import CountingTwin
from tilewright.compiler.options import Options
from tilewright.compiler.target import Target
from tilewright.frontend import capture
from tilewright.ir.compile_options import CompileOptions
from tilewright.passes.pipeline import default_pipeline, materialising_pipeline
from tilewright.runtime.call import TINY_BYTES, traffic

ROWS, HEADS, WIDTH = 4096, 8, 64


class Copied(torch.nn.Module):
    """What transformers' static cache does in a layer, without the attention."""

    def __init__(self, rows: int = ROWS) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(1, HEADS, rows, WIDTH), persistent=False)

    def forward(self, new: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        self.keys.index_copy_(2, at, new)
        return self.keys[:, :, :3].sum(-1)


def put_slices(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys[:, :, at] = new


def put_lines(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys[torch.zeros_like(at), :, at] = new[0].transpose(0, 1)


def put_a_stretch(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys[:, :, 2 : 2 + at.shape[0]] = new


def put_every_second(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys[:, :, : 2 * at.shape[0] : 2] = new


def put_one(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys[:, :, 4] = new[:, :, 0]


def put_elements(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys.scatter_(2, at[None, None, :, None].expand(new.shape), new)


def add_slices(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys.index_add_(2, at, new)


def add_twice(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys.index_put_((torch.zeros_like(at), torch.zeros_like(at), at), new[0, 0], accumulate=True)
    m.keys[:, :, 0] = new[:, :, -1]


def fill(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys.index_fill_(2, at, 2.5)


def from_the_end(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys[:, :, -1 - at] = new


def into_a_slice(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys[0, :, at] = new[0]


def into_some_heads(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys[:, 2:5].index_copy_(2, at, new[:, 2:5])


def into_a_head(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys[:, 3][:, at, :] = new[:, 1]


def into_some_features(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys[..., 8:24].index_add_(2, at, new[..., :16])


def into_part_of_the_rows(m: Any, new: torch.Tensor, at: torch.Tensor) -> None:
    m.keys[:, :, 2:9].index_copy_(2, at % 7, new)


# elements that a token writes
WAYS: list[tuple[Callable[..., None], int]] = [
    (put_slices, HEADS * WIDTH),
    (put_lines, HEADS * WIDTH),
    (put_a_stretch, HEADS * WIDTH),
    (put_every_second, HEADS * WIDTH),
    (put_elements, HEADS * WIDTH),
    (add_slices, HEADS * WIDTH),
    (fill, HEADS * WIDTH),
    (from_the_end, HEADS * WIDTH),
    (into_a_slice, HEADS * WIDTH),
    (into_some_heads, 3 * WIDTH),
    (into_a_head, WIDTH),
    (into_some_features, HEADS * 16),
    (into_part_of_the_rows, HEADS * WIDTH),
]


class Cache(torch.nn.Module):
    def __init__(self, put: Callable[..., None]) -> None:
        super().__init__()
        self.put = put
        self.register_buffer("keys", torch.zeros(1, HEADS, 13, WIDTH))

    def forward(self, new: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        self.put(self, new, at)
        return self.keys * 2


def given(tokens: int, rows: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    new = torch.from_numpy(rng.standard_normal((1, HEADS, tokens, WIDTH), np.float32))
    return new, torch.from_numpy(rng.permutation(rows)[:tokens].copy())


def compile_cache(model: torch.nn.Module, rows: int, tokens: int = 2, **options: Any) -> Any:
    example = (torch.zeros(1, HEADS, tokens, WIDTH), torch.arange(tokens))
    dims = {"new": (None, None, tw.Dim("tokens", 1, min(rows, 6)), None), "at": (tw.Dim("tokens", 1, min(rows, 6)),)}
    return tw.compile(model, example, dims=dims, **options)


def state_steps(compiled: Any) -> list[Any]:
    """The steps that write into a state."""
    steps = compiled.code.program.main.steps
    return [s for s in steps if any(r.space == "state" for r in s.buffers[len(s.buffers) - s.written :])]


def name_of(compiled: Any, step: Any) -> str:
    """The name in the tile IR of a step's kernel."""
    names = {k.symbol: k.name for k in compiled.code.program.kernels}
    return names[step.variants[-1].symbol]


@pytest.fixture(scope="module")
def large() -> Any:
    return compile_cache(Copied(), ROWS)


def test_a_row_of_a_large_state_moves_a_rows_bytes(large: Any, rng: np.random.Generator) -> None:
    (step,) = state_steps(large)
    assert not large.code.program.copies
    row = next(r for r in large.report.at(tokens=1).rows if r.kernel == name_of(large, step))
    assert row.write == HEADS * WIDTH * 4
    # the row, and the place of it once a program
    assert HEADS * WIDTH * 4 < row.read <= HEADS * WIDTH * 4 + 8 * 64
    arguments = given(1, ROWS, rng)
    counted = CountingTwin(large).run(*arguments)
    (launch,) = [c for c in counted if c.kernel == row.kernel]
    assert (launch.counts.of("write"), launch.counts.of("read")) == (row.write, row.read)
    check_counts(large, counted, arguments, {})


@pytest.mark.parametrize("threads", [1, 2])
def test_calls_equal_eager_and_reset_starts_again(threads: int, rng: np.random.Generator) -> None:
    compiled = compile_cache(Copied(31), 31, threads=threads)
    for _ in range(2):
        model = Copied(31)
        for tokens in (1, 4, 2, 1):
            arguments = given(tokens, 31, rng)
            torch.testing.assert_close(compiled(*arguments), model(*arguments), rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(compiled.state["keys"], model.keys.numpy())
        compiled.reset()
        assert not compiled.state["keys"].any()


@pytest.mark.parametrize(("put", "elements"), WAYS, ids=lambda p: getattr(p, "__name__", None))
def test_every_way_to_write_a_part_writes_that_part(
    put: Callable[..., None], elements: int, rng: np.random.Generator
) -> None:
    model = Cache(put)
    compiled = compile_cache(copy.deepcopy(model), 13)
    (step,) = state_steps(compiled)
    assert not compiled.code.program.copies
    figures = compiled.report.counts[name_of(compiled, step)].at({"tokens": 3})
    assert figures.write == 3 * elements * 4
    for tokens in (3, 1, 6):
        arguments = given(tokens, 13, rng)
        torch.testing.assert_close(compiled(*arguments), model(*arguments), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(compiled.state["keys"], model.keys.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("put", [add_twice, put_one], ids=lambda p: p.__name__)
def test_several_writes_of_one_buffer_are_updates_one_after_the_other(
    put: Callable[..., None], rng: np.random.Generator
) -> None:
    model = Cache(put)
    compiled = compile_cache(copy.deepcopy(model), 13)
    assert not compiled.code.program.copies
    for tokens in (3, 1, 6):
        arguments = given(tokens, 13, rng)
        torch.testing.assert_close(compiled(*arguments), model(*arguments), rtol=1e-6, atol=1e-6)


class Whole(torch.nn.Module):
    """Buffers that take new values, in parts or not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.ones(1, HEADS, 13, WIDTH))
        self.register_buffer("last", torch.zeros(1, HEADS, 13, WIDTH))

    def forward(self, new: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, ...]:
        old = self.keys.clone()
        self.last.copy_(self.keys)
        self.keys.mul_(0.5)
        self.keys[:, :, at] = new
        return old, self.keys.sum(2), self.last * 1.0


def test_other_changes_write_the_whole_state(rng: np.random.Generator) -> None:
    model = Whole()
    compiled = compile_cache(copy.deepcopy(model), 13)
    assert not state_steps(compiled)
    for tokens in (3, 1):
        arguments = given(tokens, 13, rng)
        for found, want in zip(compiled(*arguments), model(*arguments), strict=True):
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(compiled.state["last"], model.last.numpy())


class Before(torch.nn.Module):
    """Reads a cache before and after it changes, and gives it to the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(1, HEADS, 13, WIDTH))

    def forward(self, new: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, ...]:
        before = self.keys.clone()
        self.keys.index_copy_(2, at, new)
        return before @ self.keys.transpose(2, 3), self.keys


def test_what_is_read_too_late_is_copied_and_the_report_says_so(rng: np.random.Generator) -> None:
    model = Before()
    compiled = compile_cache(copy.deepcopy(model), 13)
    held = []
    for tokens in (3, 1, 2):
        arguments = given(tokens, 13, rng)
        found, want = compiled(*arguments), model(*arguments)
        held.append((found[1], want[1].clone()))
        torch.testing.assert_close(found[0], want[0], rtol=1e-4, atol=1e-4)
    for found, want in held:
        # results stay what they were when the state goes on
        assert torch.equal(found, want)
    notes = compiled.report.to_dict()["notes"]
    assert any("state" in note and "copied, because it is returned" in note for note in notes)
    assert any(row.kernel.startswith("copy") for row in compiled.report.at(tokens=1).rows)


def test_calls_from_many_threads_change_a_state_one_after_the_other(rng: np.random.Generator) -> None:
    model = Cache(add_slices)
    compiled = compile_cache(copy.deepcopy(model), 13)
    calls = [given(3, 13, rng) for _ in range(24)]
    # sums of integers are exact in any order
    calls = [((new * 4).round(), at) for new, at in calls]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda c: compiled(*c), calls))
    for new, at in calls:
        model(new, at)
    np.testing.assert_array_equal(compiled.state["keys"], model.keys.numpy())


@pytest.mark.parametrize("native", [True, False])
def test_a_saved_cache_goes_on_elsewhere(native: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    model = Cache(put_slices)
    compile_cache(copy.deepcopy(model), 13).save(tmp_path / "cache.tw")
    loaded = tw.load(tmp_path / "cache.tw", native=native)
    for tokens in (3, 1, 6):
        arguments = given(tokens, 13, rng)
        assert torch.equal(loaded(*arguments), model(*arguments))
    loaded.reset()
    assert not loaded.state["keys"].any()


class Layer(torch.nn.Module):
    """Attention over a cache of its own, as decoders with a static cache have it."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(width, width) for _ in range(4))
        self.register_buffer("keys", torch.zeros(1, 2, rows, width // 2))
        self.register_buffer("values", torch.zeros(1, 2, rows, width // 2))

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        self.keys.index_copy_(2, at, k)
        self.values.index_copy_(2, at, v)
        seen = torch.arange(self.keys.shape[2]) <= at[:, None]
        mixed = torch.nn.functional.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=seen)
        return x + self.o(mixed.transpose(1, 2).flatten(2))


class Decoder(torch.nn.Module):
    def __init__(self, layers: int = 3, width: int = 32, rows: int = 70) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(width, rows) for _ in range(layers))

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, at)
        return x


def test_a_decoder_with_a_cache_in_every_layer_writes_rows_and_copies_nothing(rng: np.random.Generator) -> None:
    torch.manual_seed(int(rng.integers(1 << 30)))
    model = Decoder().eval()
    n = tw.Dim("n", 1, 32)
    dims = {"x": (None, n, None), "at": (n,)}
    compiled = tw.compile(copy.deepcopy(model), (torch.zeros(1, 3, 32), torch.arange(3)), dims=dims)
    program = compiled.code.program
    assert len(program.states) == len(state_steps(compiled)) == 6
    assert not program.copies
    assert not [s.name for s in program.main.steps if s.name.startswith("copy")]
    # equal layers are lowered once
    assert len({s.name for s in state_steps(compiled)}) <= 2
    at = 0
    for tokens in (20, 1, 1, 32, 1):
        x = torch.from_numpy(rng.standard_normal((1, tokens, 32), np.float32))
        places = torch.arange(at, at + tokens)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, places), model(x, places), rtol=1e-4, atol=1e-4)
        at += tokens
    arguments = (torch.zeros(1, 3, 32), torch.arange(3))
    check_counts(compiled, CountingTwin(compiled).run(*arguments), arguments, {})


@pytest.mark.parametrize("pipeline", [default_pipeline, materialising_pipeline], ids=lambda p: p.__name__)
@pytest.mark.parametrize("build", [Before, lambda: Decoder(2)], ids=["read too late", "decoder"])
def test_the_search_for_a_wrong_kernel_sees_every_version_of_a_state(
    build: Callable[[], torch.nn.Module], pipeline: Callable[[], Any], rng: np.random.Generator
) -> None:
    model = build().eval()
    shape = (1, HEADS, 3, WIDTH) if isinstance(model, Before) else (1, 3, 32)
    x, at = torch.from_numpy(rng.standard_normal(shape, np.float32)), torch.tensor([4, 1, 7])

    def again() -> Any:
        return capture(copy.deepcopy(model), (x, at), {}, None)

    with torch.inference_mode():
        results = copy.deepcopy(model)(x, at)
    expected = [r.clone() for r in (results if isinstance(results, tuple) else (results,))]
    options = CompileOptions()
    case = Case(again, [x, at], expected, Target.of(Options(passes=pipeline())), options)
    # nothing is wrong: every kernel computes what its group says of the values it was given
    assert first_difference(case, lambda t: 1e-4 * float(t.abs().max())) is None


def test_a_small_step_on_a_large_state_needs_no_team(rng: np.random.Generator) -> None:
    class Kept(Copied):
        def forward(self, new: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            self.keys.index_copy_(2, at, new)
            return new * 2

    compiled = compile_cache(Kept(), ROWS)
    program = compiled.code.program
    for tokens in (1, 3):
        row = tokens * HEADS * WIDTH * 4
        # new twice, its double, the places, and what is written in the state at most
        assert traffic(program, {"tokens": tokens}) == row * 3 + tokens * 8 + 2 * (row + tokens * 8)
    assert ROWS * HEADS * WIDTH * 4 > 100 * TINY_BYTES
    compiled(*given(1, ROWS, rng))

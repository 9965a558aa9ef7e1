"""torch.compile(model, backend="tilewright"): pieces of a program are right, whatever the program does around them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo as dynamo
from torch._dynamo.backends.registry import list_backends

import tilewright as tw
from tilewright.compiler import torch_backend
from tilewright.errors import AutogradWarning, EagerWarning, UnsupportedOpError

# Products of sizes below 64, in f32.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    # Installed, the entry point names it; in a checkout whose metadata is older, the registry is told.
    if "tilewright" not in list_backends(exclude_tags=()):
        dynamo.register_backend(torch_backend.tilewright, "tilewright")
    dynamo.reset()
    dynamo.utils.counters.clear()
    yield
    dynamo.reset()


def counted(name: str) -> int:
    return int(dynamo.utils.counters["tilewright"][name])


class Block(torch.nn.Module):
    """What models are made of: a norm, a projection, attention, an activation, a residual."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(size)
        self.qkv = torch.nn.Linear(size, 3 * size)
        self.out = torch.nn.Linear(size, size)
        self.register_buffer("scale", torch.rand(size) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, size = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, tokens, 3, 4, size // 4).permute(2, 0, 3, 1, 4)
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        mixed = seen.transpose(1, 2).reshape(batch, tokens, size)
        return x + torch.nn.functional.gelu(self.out(mixed)) * self.scale


def compiled(function: Any, **options: Any) -> Any:
    dynamic = options.pop("dynamic", None)
    return torch.compile(function, backend="tilewright", dynamic=dynamic, options=options or None)


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, **CLOSE)


def tensor(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, np.float32))


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_model_is_eagers(dynamic: bool, freeze: bool, rng: np.random.Generator) -> None:
    model = Block().eval()
    run = compiled(model, dynamic=dynamic, freeze_weights=freeze)
    with torch.no_grad():
        for batch, tokens in ((3, 5), (4, 7), (2, 11)):
            x = tensor(rng, batch, tokens, 16)
            same(run(x), model(x))
    assert counted("graphs") == (1 if dynamic else counted("graphs"))
    assert counted("autograd_in_eager") == 0


def test_sizes_0_and_1(rng: np.random.Generator) -> None:
    run = compiled(lambda x: (x.softmax(-1) + x.sum(-1, keepdim=True)).relu(), dynamic=True)
    for shape in ((5, 3), (1, 3), (0, 3), (1, 1), (2, 1)):
        x = tensor(rng, *shape)
        same(run(x), (x.softmax(-1) + x.sum(-1, keepdim=True)).relu())


@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_heads_of_a_size_that_varies(masked: bool, rng: np.random.Generator) -> None:
    def written(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q @ k.mT).softmax(-1) @ k

    def whole(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        seen = k[..., 0] > 0 if masked else None
        return torch.nn.functional.scaled_dot_product_attention(q, k, k, None if seen is None else seen[..., None, :])

    run = compiled(lambda q, k: (written(q, k), whole(q, k)), dynamic=True)
    for heads, queries, keys, width in ((2, 5, 7, 16), (3, 33, 19, 5), (2, 2, 3, 40)):
        q, k = tensor(rng, heads, queries, width), tensor(rng, heads, keys, width)
        k[0, :, 0] = -1.0
        found, expected = run(q, k), (written(q.double(), k.double()), whole(q.double(), k.double()))
        same([x.double() for x in found], list(expected))
    assert counted("graphs") == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_graphs_that_read_no_tensor_give_tensors(dynamic: bool) -> None:
    def function(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        counted = torch.arange(n)
        return counted[None] <= counted[:, None], torch.ones(n, dtype=torch.bfloat16) / 3

    run = compiled(function, dynamic=dynamic)
    for n in (5, 7):
        found, expected = run(n), function(n)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", ["tilewright", "eager"])
def test_compiled_code_inside_is_a_graph_break(backend: str, rng: np.random.Generator) -> None:
    @tw.kernel("x f32[n] -> y f32[n]")
    def doubled(b: Any, x: Any, y: Any) -> None:
        (at,) = b.grid(["n"], [64])
        b.store(b.map("mul", b.load(b.dense(x), [at], [64]), 2.0), b.dense(y), [at])

    inner = tw.compile(torch.nn.ReLU(), (torch.randn(8),))
    run = torch.compile(lambda x: inner(x + 1) * 2 + doubled(x.neg()), backend=backend)
    for _ in range(2):
        x = tensor(rng, 8)
        same(run(x), (x + 1).relu() * 2 - 2 * x)
    with pytest.raises(dynamo.exc.Unsupported, match="it is compiled already"):
        torch.compile(lambda x: inner(x.abs()), backend=backend, fullgraph=True)(x)


def test_graph_breaks(rng: np.random.Generator) -> None:
    def function(x: torch.Tensor, notes: list[float]) -> torch.Tensor:
        y = x.sin() * 2
        notes.append(float(y.sum()))
        dynamo.graph_break()
        return y.exp() + x if notes[-1] < 1e9 else y

    x, notes, expected_notes = tensor(rng, 4, 6), [], []
    run = compiled(function)
    same(run(x, notes), function(x, expected_notes))
    np.testing.assert_allclose(notes, expected_notes, rtol=1e-4, atol=1e-4)
    assert counted("graphs") >= 2


def test_sizes_and_integers_as_values(rng: np.random.Generator) -> None:
    def function(x: torch.Tensor, n: int) -> tuple[torch.Tensor, int, torch.Tensor]:
        return x * n, x.shape[0] * 2 + n, torch.arange(n) + x.shape[1]

    run = compiled(function, dynamic=True)
    for rows, n in ((3, 5), (4, 9), (7, 2)):
        x = tensor(rng, rows, 6)
        found, expected = run(x, n), function(x, n)
        same(found, expected)
    assert counted("graphs") == 1


@pytest.mark.filterwarnings("error::FutureWarning")
def test_integers_of_either_sign(rng: np.random.Generator) -> None:
    def function(x: torch.Tensor, n: int) -> tuple[torch.Tensor, int]:
        return x * n + n, 3 - n

    run = compiled(function)
    for n in (2, 5, 0, 1, -1, -7, 2**40, -(2**40)):
        x = tensor(rng, 3)
        same(run(x, n), function(x, n))
    # one for the first number, one for all others; torch makes numbers 0 and 1 programs of their own
    assert counted("graphs") <= 4


def test_negative_integers_as_sizes_and_places(rng: np.random.Generator) -> None:
    def function(x: torch.Tensor, n: int) -> torch.Tensor:
        return torch.cat((x[n:], x[:n], torch.arange(5 - n)[:, None] + x[:1]))

    run = compiled(function)
    for n in (-3, -5, -2):
        x = tensor(rng, 9, 4)
        same(run(x, n), function(x, n))


def test_inputs_that_lie_otherwise_than_before(rng: np.random.Generator) -> None:
    """A recompilation takes the steps of a strided tensor as integers, which nothing is computed from."""
    run = compiled(lambda x: x * 2 + x.sum(0))
    for x in (
        tensor(rng, 4, 3),
        tensor(rng, 8, 6)[::2, ::2],
        tensor(rng, 10, 8)[::2, ::2],
        tensor(rng, 5, 7).t(),
        tensor(rng, 1, 1),
    ):
        same(run(x), x * 2 + x.sum(0))
    image = torch.nn.Conv2d(3, 4, 3).eval()
    run = compiled(image)
    with torch.no_grad():
        for x in (tensor(rng, 2, 3, 8, 8).to(memory_format=torch.channels_last), tensor(rng, 2, 3, 8, 8)):
            same(run(x), image(x))


# --- writes and views -------------------------------------------------------------------------------------------------


def add_to(x: torch.Tensor) -> torch.Tensor:
    x.add_(1)
    return x * 2


def write_a_part(x: torch.Tensor) -> torch.Tensor:
    x[:, 1:3] = 7.0
    return x.sum()


def write_through_a_view(x: torch.Tensor) -> torch.Tensor:
    x.view(-1)[2:].mul_(3)
    return x + 1


def give_it_back(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2)


def view_of_an_input(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.t(), x[1:].view(-1)


def views_of_a_result(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    y = x * 2
    return y, y.t(), y[0]


def swap(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    x.copy_(x.flip(0) if x.shape[0] > 100 else -x)
    return y


@pytest.mark.parametrize(
    "function", [add_to, write_a_part, write_through_a_view, give_it_back, view_of_an_input, views_of_a_result, swap]
)
def test_writes_and_views_are_eagers(function: Callable[[torch.Tensor], Any], rng: np.random.Generator) -> None:
    x = tensor(rng, 4, 6)
    ours, theirs = x.clone(), x.clone()
    run = compiled(function)
    for _ in range(2):
        found, expected = run(ours), function(theirs)
        same(ours, theirs)
        same(found, expected)
        for a, b in zip(torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(expected), strict=True):
            assert a.stride() == b.stride()
            assert (a.untyped_storage().data_ptr() == ours.untyped_storage().data_ptr()) == (
                b.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr()
            )
    # what is a view of what shows when one is written to
    leaves, theirs_leaves = (torch.utils._pytree.tree_leaves(v) for v in (found, expected))
    leaves[-1].fill_(5)
    theirs_leaves[-1].fill_(5)
    same(leaves, theirs_leaves)
    same(ours, theirs)


def test_results_lie_in_memory_as_eagers_do(rng: np.random.Generator) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x + 1).permute(2, 0, 1), (x * 2).transpose(0, 1)

    run = compiled(function, dynamic=True)
    for shape in ((2, 3, 4), (5, 2, 3)):
        x = tensor(rng, *shape)
        for a, b in zip(run(x), function(x), strict=True):
            same(a, b)
            assert a.stride() == b.stride()


def test_inputs_lie_anyhow(rng: np.random.Generator) -> None:
    run = compiled(lambda x, y: x @ y + 1)
    x, y = tensor(rng, 6, 4).t(), tensor(rng, 12, 3)[::2]
    same(run(x, y), x @ y + 1)


def test_buffers_that_a_model_writes_to(rng: np.random.Generator) -> None:
    class Counts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += x.sum(0)
            return x - self.seen

    for freeze in (False, True):
        model, eager = Counts(), Counts()
        run = compiled(model, freeze_weights=freeze)
        for _ in range(3):
            x = tensor(rng, 4, 3)
            same(run(x), eager(x))
        same(model.seen, eager.seen)


def test_tensors_made_in_the_function(rng: np.random.Generator) -> None:
    table = torch.from_numpy(rng.standard_normal((50, 6), np.float32))

    def function(x: torch.Tensor) -> torch.Tensor:
        return x + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) + table[:4]

    x = tensor(rng, 4, 6)
    same(compiled(function)(x), function(x))


def test_bf16(rng: np.random.Generator) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)).bfloat16().eval()
    x = tensor(rng, 5, 16).bfloat16()
    with torch.no_grad():
        found, expected = compiled(model)(x), model.double()(x.double())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-6, atol=2**-6)


# --- frozen weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [False, True])
def test_new_values_of_parameters_are_seen(freeze: bool, rng: np.random.Generator) -> None:
    model = Block().eval()
    run = compiled(model, freeze_weights=freeze)
    x = tensor(rng, 2, 3, 16)
    with torch.no_grad():
        same(run(x), model(x))
        model.out.weight.mul_(-2)
        same(run(x), model(x))
        model.load_state_dict(Block().state_dict())
        same(run(x), model(x))
        model.out.weight = torch.nn.Parameter(torch.zeros(16, 16))
        same(run(x), model(x))


def test_parameters_with_other_memory_are_packed_again(rng: np.random.Generator) -> None:
    model = torch.nn.Linear(6, 6).eval().requires_grad_(False)
    run, x = compiled(model, freeze_weights=True), tensor(rng, 5, 6)
    same(run(x), model(x))
    for _ in range(3):
        model.weight.data = tensor(rng, 6, 6)  # the memory of one before it is free to be taken again
        model.weight.data = tensor(rng, 6, 6)
        same(run(x), model(x))
    model.weight.data = model.weight.data.t()
    same(run(x), model(x))
    before = run(x)
    # what the module's docstring says is not seen: writes that torch does not count
    model.weight.data.mul_(2)
    torch.testing.assert_close(run(x), before, rtol=0, atol=0)
    dynamo.reset()
    same(run(x), model(x))


def test_parameters_made_in_inference_mode(rng: np.random.Generator) -> None:
    with torch.inference_mode():
        model = torch.nn.Linear(6, 6).eval()
        run = compiled(model, freeze_weights=True)
        for _ in range(2):
            x = tensor(rng, 5, 6)
            same(run(x), model(x))
        model.weight = torch.nn.Parameter(tensor(rng, 6, 6), requires_grad=False)
        same(run(x), model(x))


def test_layers_that_share_code_keep_their_own_weights(rng: np.random.Generator) -> None:
    layers = [Block().eval() for _ in range(3)]
    run = compiled(lambda layer, x: layer(x), freeze_weights=True)
    with torch.no_grad():
        for _ in range(2):
            for layer in layers:
                x = tensor(rng, 2, 3, 16)
                same(run(layer, x), layer(x))


# --- what it will not do ----------------------------------------------------------------------------------------------


def test_autograd_runs_in_eager_with_one_warning(rng: np.random.Generator) -> None:
    model = Block().train()
    twin = copy.deepcopy(model)
    run = compiled(model)
    x = tensor(rng, 2, 3, 16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            run(x).sum().backward()
            twin(x).sum().backward()
        compiled(lambda v: v * 2)(x.requires_grad_()).sum().backward()
    told = [str(w.message) for w in caught if issubclass(w.category, AutogradWarning)]
    assert len(told) == 1
    assert told[0].startswith("TW015")
    assert "torch.no_grad()" in told[0]
    assert counted("autograd_calls") == 4
    assert counted("autograd_in_eager") == 2
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        same(ours.grad, theirs.grad)
    # the same model without gradients is compiled
    with torch.no_grad():
        same(run(x), model(x))
    assert counted("graphs") == 1


def test_an_operator_without_a_lowering_is_named() -> None:
    with pytest.raises(dynamo.exc.BackendCompilerFailed, match=r"TW010.*aten\.linalg_svd|TW010.*_linalg_svd") as raised:
        compiled(lambda x: torch.linalg.svd(x).S)(torch.eye(3))
    assert isinstance(raised.value.inner_exception, UnsupportedOpError)
    assert "test_torch_backend.py:" in str(raised.value)


@pytest.mark.parametrize("part", [lambda b: (b[:4], b[2:]), lambda b: (b.reshape(2, 3)[0], b)])
def test_inputs_that_overlap_and_are_written_are_named(
    part: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], rng: np.random.Generator
) -> None:
    def adds(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return y * 2

    memory = torch.from_numpy(rng.standard_normal(6).astype(np.float32))
    x, y = part(memory)
    with torch.no_grad():
        with pytest.raises(Exception, match="inputs x and y share memory, and the graph writes to one of them"):
            compiled(adds)(x, y)
        dynamo.reset()
        # the step: memory of its own
        assert torch.equal(compiled(adds)(x.clone(), y), y * 2)


def test_batch_norm_in_training_mode_is_called_that(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((5, 4)).astype(np.float32))
    with torch.no_grad(), pytest.raises(Exception, match=r"TW011 .* normalises by the batch"):
        compiled(torch.nn.BatchNorm1d(4).train())(x)
    dynamo.reset()
    # one that stores no statistics computes the same in both modes
    model = torch.nn.BatchNorm1d(4, track_running_stats=False).train()
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(x), model(x), **CLOSE)


def test_what_has_no_kernel_runs_in_eager_where_asked(rng: np.random.Generator) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = torch.fft.rfft(x * 2).abs()
        dynamo.graph_break()
        return y.relu() + 1

    dropping = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Dropout(0.5)).train()
    x = tensor(rng, 4, 6)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        for _ in range(2):
            same(compiled(function, fallback="torch")(x), function(x))
        torch.manual_seed(3)
        found = compiled(dropping, fallback="torch")(x)
        torch.manual_seed(3)
        same(found, dropping(x))
    (told,) = [str(w.message) for w in caught if issubclass(w.category, EagerWarning)]
    assert "TW010" in told
    assert "fft" in told
    assert (counted("unsupported_in_eager"), counted("graphs") >= 1) == (2, True)

"""Routed experts natively: numbers, counts and bits that do not depend on who else is routed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tilewright as tw
from tilewright.compiler.instrumented import CountingTwin
from tilewright.ir.backend import kernels_of
from tilewright.ir.module import parse_module
from tilewright.ir.tile.traffic import kernel_traffic

EXPERTS, WIDTH, HIDDEN, EACH = 5, 56, 37, 2
Call = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def routed(dtype: torch.dtype) -> Any:
    """A model of one experts module, which takes the routing as an input."""
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    class Routed(transformers.PreTrainedModel):
        config_class = transformers.MixtralConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.experts = MixtralExperts(config)
            for weight in self.experts.parameters():
                torch.nn.init.normal_(weight, std=WIDTH**-0.5)

        def forward(self, x: torch.Tensor, chosen: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
            return self.experts(x, chosen, share)

    settings = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_local_experts": EXPERTS}
    return Routed(transformers.MixtralConfig(**settings, experts_implementation="batched_mm")).eval().to(dtype)


def draw(rng: np.random.Generator, tokens: int, dtype: torch.dtype) -> Call:
    x = torch.from_numpy(rng.standard_normal((tokens, WIDTH)).astype(np.float32)).to(dtype)
    chosen = np.stack([rng.permutation(EXPERTS)[:EACH] for _ in range(tokens)]) if tokens else np.zeros((0, EACH))
    return x, torch.from_numpy(chosen.astype(np.int64)), torch.from_numpy(rng.random((tokens, EACH))).to(dtype)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    model = routed(request.param)
    tokens = tw.Dim("tokens", 0, 300)
    example = draw(np.random.default_rng(0), 7, request.param)
    return model, tw.compile(model, example, dims={name: {0: tokens} for name in ("x", "chosen", "share")})


def test_numbers_are_those_of_eager_in_f64(pair: tuple[Any, Any], rng: np.random.Generator) -> None:
    model, program = pair
    dtype = next(model.parameters()).dtype
    wide = routed(torch.float64)
    wide.load_state_dict(model.state_dict())
    unit = torch.finfo(dtype).eps / 2
    for tokens in (0, 1, 2, 9, 67, 300):
        x, chosen, share = draw(rng, tokens, dtype)
        found = program(x, chosen, share)
        with torch.inference_mode():
            wanted = wide(x.double(), chosen, share.double())
        assert found.dtype == dtype
        assert found.shape == wanted.shape
        if tokens:
            # x is exact; the inner value and the result are rounded once each, dots of 56 and 37 terms run in f32
            slack = 6 * (2**0.5 * unit + 2 * 56**0.5 * 2.0**-24) * wanted.square().mean().sqrt().item()
            assert (found.double() - wanted).abs().max().item() <= slack + unit * wanted.abs().max().item()


def test_a_tokens_bits_do_not_depend_on_the_others(pair: tuple[Any, Any], rng: np.random.Generator) -> None:
    model, program = pair
    x, chosen, share = draw(rng, 211, next(model.parameters()).dtype)
    whole = program(x, chosen, share)
    for size in (1, 2, 5, 40):
        rows = torch.from_numpy(rng.choice(211, size, replace=False))
        assert torch.equal(program(x[rows], chosen[rows], share[rows]), whole[rows])


@pytest.mark.parametrize("tokens", [1, 11, 90])
def test_running_kernels_count_what_formulas_say(pair: tuple[Any, Any], tokens: int, rng: np.random.Generator) -> None:
    model, program = pair
    call = draw(rng, tokens, next(model.parameters()).dtype)
    counted = CountingTwin(program).run(*call)
    kernels = kernels_of(parse_module(program.code.texts["tile"]))
    routing = [launch for launch in counted if kernel_traffic(kernels[launch.kernel]).data_dependent]
    assert len(routing) == 2
    for launch in counted:
        traffic = kernel_traffic(kernels[launch.kernel])
        assert +traffic.counts(launch.dims, launch.buffers) == launch.counts, launch.kernel
        bounds = traffic.counts(launch.dims)
        assert all(bounds[quantity] >= number for quantity, number in launch.counts.items()), launch.kernel

"""What torch.compile(model, backend="tilewright") refuses: each fault with its place and a step that mends it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo as dynamo

from tests.compiler.test_torch_backend import (
    compiled,
    fresh,  # noqa: F401  (a fixture: the backend is registered)
)
from tilewright.errors import OptionError


class Drops(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x) + 1


@pytest.mark.parametrize(
    ("model", "said", "step"),
    [
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)), "1 (Dropout) drops", "call model.eval()"),
        (Drops(), "drop (Dropout) drops", "call model.eval()"),
        (torch.nn.Dropout(0.5), "the model (Dropout) drops", "call model.eval()"),
        (torch.nn.BatchNorm1d(4), "the model (BatchNorm1d) normalises", "call model.eval()"),
        (
            lambda x: torch.nn.functional.dropout(x, 0.5) + 1,
            "test_torch_backend_refusals.py:",
            "pass training=self.training to that call",
        ),
        (lambda x: torch.fft.rfft(x).abs(), "fft", "write these parts with supported operators"),
        (lambda x: x.double().exp(), "exp is not computed in f64", "compile the model in f32"),
    ],
)
def test_what_is_refused_names_its_place_and_the_way_out(model: Any, said: str, step: str) -> None:
    with torch.no_grad(), pytest.raises(dynamo.exc.BackendCompilerFailed) as raised:
        compiled(model)(torch.ones(3, 4))
    told = raised.value.inner_exception
    assert said in str(told)
    assert told.step.startswith(step)
    assert told.step.endswith('; or run graphs like this one in eager: options={"fallback": "torch"}')


def test_complex_arguments_keep_their_imaginary_part() -> None:
    with pytest.raises(dynamo.exc.BackendCompilerFailed, match=r"complex64 .*\n.*apart: torch\.view_as_real\(x\)"):
        compiled(lambda x: x * 2)(torch.ones(3, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"freeze": True},
            r"TW008 wrong option: torch.compile\(backend=\"tilewright\"\) has no option 'freeze'\n"
            r"  next: did you mean 'freeze_weights'\?\n",
        ),
        (
            {"zzz": 1},
            "no option 'zzz'\n  next: it has cache, determinism, expect, fallback, freeze_weights, memory_limit, "
            "objective, passes, precision, target, threads, verify_each\n",
        ),
        (
            {"freeze_weights": 1},
            'freeze_weights=1 is not True or False\n  next: options={"freeze_weights": True}\n',
        ),
        (
            {"fallback": "eager"},
            "fallback='eager' is not one of 'error', 'torch'\n  next: options={\"fallback\": \"torch\"}\n",
        ),
        (
            {"check": "first"},
            r"check is an option of tilewright.compile alone\n  next: leave it out here, and compile the module itself "
            r"for it: tw\.compile\(model, args, check=\"first\"\)\n",
        ),
    ],
)
def test_options_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(dynamo.exc.BackendCompilerFailed, match=said) as raised:
        compiled(lambda x: x + 1, **options)(torch.ones(3))
    assert isinstance(raised.value.inner_exception, OptionError)


def test_a_mode_is_refused() -> None:
    with pytest.raises(
        dynamo.exc.BackendCompilerFailed, match="mode='max-autotune' means nothing here\n  next: leave mode= out"
    ):
        torch.compile(lambda x: x + 1, backend="tilewright", mode="max-autotune")(torch.ones(3))

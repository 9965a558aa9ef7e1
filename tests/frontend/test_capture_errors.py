from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tilewright.errors import (
    ArgumentError,
    CaptureError,
    HookError,
    MissingDependencyError,
    ModelInputError,
    OptionError,
    TrainingModeError,
)
from tilewright.frontend import capture


class Trained(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.2), torch.nn.Dropout(0.0))
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.body(x))


def test_training_mode_names_every_module_that_trains() -> None:
    with pytest.raises(TrainingModeError) as caught:
        capture(Trained(), (torch.ones(2, 3),))
    assert str(caught.value) == (
        "TW011 module is in training mode: 2 problems\n"
        "  - body.1 (Dropout) drops elements with p=0.2\n"
        "  - norm (BatchNorm1d) normalises by the batch's statistics\n"
        "  next: call model.eval() before compiling"
    )
    capture(Trained().eval(), (torch.ones(2, 3),))
    capture(torch.nn.Linear(3, 3).train(), (torch.ones(2, 3),))


def test_functional_dropout_in_training_is_an_error_with_the_line() -> None:
    class Drops(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(x, 0.3)

    with pytest.raises(TrainingModeError, match=r"drops elements with p=0\.3  \(at tests/frontend/test_capture_err"):
        capture(Drops().eval(), (torch.ones(2, 3),))


def test_hooks_are_named() -> None:
    model = Trained().eval()
    handles = [
        model.body[0].register_forward_hook(lambda *a: None),
        model.norm.register_forward_pre_hook(lambda *a: None),
    ]
    with pytest.raises(HookError) as caught:
        capture(model, (torch.ones(2, 3),))
    assert "body.0 (Linear) has the forward hook test_hooks_are_named.<locals>.<lambda>" in str(caught.value)
    assert "norm (BatchNorm1d) has the forward pre-hook" in str(caught.value)
    for handle in handles:
        handle.remove()
    capture(model, (torch.ones(2, 3),))


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (torch.nn.Linear, "Linear is a class"),
        (lambda x: x, "function is not a model"),
        ({"weights": 1}, "dict is not a model"),
        ("no/such/model.pt2", "there is no file"),
    ],
)
def test_what_is_not_a_model_is_said_so(thing: object, message: str) -> None:
    with pytest.raises(ModelInputError, match=message):
        capture(thing, (torch.ones(1),))


def test_a_file_that_is_not_a_program(tmp_path: Path) -> None:
    wrong, broken = tmp_path / "model.bin", tmp_path / "model.pt2"
    wrong.write_bytes(b"x")
    broken.write_bytes(b"not a zip")
    with pytest.raises(ModelInputError, match=r"model\.bin is not a \.pt2 file"):
        capture(wrong)
    with pytest.raises(ModelInputError, match=r"model\.pt2: "):
        capture(broken)


def test_example_arguments_that_do_not_fit_forward() -> None:
    with pytest.raises(ArgumentError, match="input is missing"):
        capture(torch.nn.Linear(3, 3), ())


def test_an_unknown_fallback() -> None:
    with pytest.raises(OptionError, match="fallback='eager'"):
        capture(torch.nn.Linear(3, 3), (torch.ones(3),), fallback="eager")


def test_weights_of_a_dtype_without_a_name() -> None:
    class Complex(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("phase", torch.ones(3, dtype=torch.complex64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.phase.abs()

    with pytest.raises(CaptureError, match="phase: the dtype complex64 is not supported"):
        capture(Complex(), (torch.ones(3),))


def test_a_missing_torch_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install 'torch"):
        capture(torch.nn.Linear(3, 3), (torch.ones(3),))


def test_importing_the_frontend_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, tilewright.frontend; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import pytest
import torch

from tilewright.errors import UnsupportedOpError
from tilewright.frontend import capture
from tilewright.frontend.locations import innermost, shorten


def test_paths_start_at_the_package_wherever_it_lies(tmp_path: Path) -> None:
    package = tmp_path / "somewhere" / "package" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    assert shorten(str(package / "model.py")) == "package/inner/model.py"
    assert shorten(str(tmp_path / "script.py")) == "script.py"
    assert shorten("/anywhere/lib/python3.11/site-packages/library/part.py") == "library/part.py"


def test_the_line_is_the_users_not_the_librarys() -> None:
    library = "/env/site-packages"
    frames = [
        ("/home/user/script.py", 3),
        (f"{library}/transformers/models/llama/modeling_llama.py", 50),
        (f"{library}/transformers/integrations/sdpa_attention.py", 9),
        (f"{library}/torch/nn/modules/linear.py", 134),
        ("<string>", 1),
    ]
    assert innermost(frames) == "transformers/models/llama/modeling_llama.py:50"
    assert innermost(frames[3:]) is None


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu()


def test_ops_carry_the_users_line_and_the_modules_path() -> None:
    model = torch.nn.Sequential(Block(), Block()).eval()
    captured = capture(model, (torch.ones(2, 3),))
    line = Block.forward.__code__.co_firstlineno + 1
    matmuls = [op for op in captured.module.walk() if op.name == "graph.matmul"]
    assert [op.path for op in matmuls] == ["0.linear", "1.linear"]  # type: ignore[attr-defined]
    relus = [op for op in captured.module.walk() if op.name == "graph.map" and op.fn.data == "relu"]  # type: ignore[attr-defined]
    assert {op.loc for op in [*matmuls, *relus]} == {f"{shorten(sys.modules[__name__].__file__ or '')}:{line}"}  # type: ignore[attr-defined]


def inner(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.det(x)


def passed_on(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @wraps(function)
    def called(x: torch.Tensor) -> torch.Tensor:
        return function(x) * 2

    return called


class Helped(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.no_grad()(passed_on(inner))(x)


def test_the_line_is_the_operators_own_inside_the_functions_that_a_forward_calls() -> None:
    line = inner.__code__.co_firstlineno + 1
    for model in (Helped(), torch.nn.Sequential(Helped())):
        with pytest.raises(UnsupportedOpError) as caught:
            capture(model, (torch.ones(3, 3),))
        (problem,) = caught.value.problems
        assert problem.where == f"{shorten(__file__)}:{line}"

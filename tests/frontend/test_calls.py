from __future__ import annotations

import dataclasses
import json
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import assert_same, run
from tilewright.errors import ArgumentError
from tilewright.frontend import capture
from tilewright.ir.dims import Dim
from tilewright.ir.signature import Signature
from tilewright.ir.trees import Record

B, T = Dim("batch", 1, 64), Dim("tokens", 1, 256)


@dataclasses.dataclass
class Scores:
    first: torch.Tensor
    parts: dict[str, Any]
    absent: torch.Tensor | None = None


torch.export.register_dataclass(Scores)
Pair = namedtuple("Pair", ["left", "right"])


def floats(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


class Nested(torch.nn.Module):
    def forward(
        self,
        batch: dict[str, Any],
        *rest: torch.Tensor,
        scale: float = 2.0,
        mode: str | None = None,
        **more: torch.Tensor,
    ) -> Scores:
        x = batch["x"]["inner"] * scale
        total = sum(rest) + sum(batch["list"])
        for value in more.values():
            total = total + value
        if mode == "double":
            total = total * 2
        return Scores(x, {"total": total, "size": x.shape[1], "pair": Pair(x + 1, [x, None])})


def nested(rng: np.random.Generator, b: int, t: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    batch = {"x": {"inner": floats(rng, b, t)}, "list": [floats(rng, b), floats(rng, b)]}
    return (batch, floats(rng, b), floats(rng, b)), {"scale": 0.5, "mode": "double", "extra": floats(rng, b)}


DIMS = {"batch": {"x": {"inner": (B, T)}, "list": [(B,), (B,)]}, "rest.0": (B,), "rest.1": (B,), "extra": (B,)}


def test_nested_arguments_and_outputs_keep_their_structure(rng: np.random.Generator) -> None:
    model = Nested()
    args, kwargs = nested(rng, 3, 5)
    captured = capture(model, args, kwargs, DIMS)
    names = [i.name for i in captured.signature.tensors]
    assert names == ["batch.x.inner", "batch.list.0", "batch.list.1", "rest.0", "rest.1", "extra"]
    for size in [(3, 5), (1, 1), (2, 7)]:
        args, kwargs = nested(rng, *size)
        found = run(captured, *args, **kwargs)
        assert isinstance(found, Scores)
        assert found.parts["size"] == size[1]
        assert_same(found, model(*args, **kwargs))


def test_the_signature_survives_json_and_works_without_the_output_class(rng: np.random.Generator) -> None:
    args, kwargs = nested(rng, 2, 3)
    signature = capture(Nested(), args, kwargs, DIMS).signature
    text = json.dumps(signature.to_json())
    read = Signature.from_json(json.loads(text))
    assert read == signature
    flat = read.flatten(args, kwargs)
    assert [tuple(t.shape) for t in flat] == [(2, 3), (2,), (2,), (2,), (2,), (2,)]
    elsewhere = Signature.from_json(json.loads(text.replace(f"{__name__}:", "elsewhere:")))
    found = elsewhere.rebuild([np.zeros(1)] * 5, {"batch": 2, "tokens": 3})
    assert isinstance(found, Record)
    assert found.parts["size"] == 3
    assert found["parts"]["pair"].right[1] is None


def test_a_call_that_does_not_fit_names_every_difference(rng: np.random.Generator) -> None:
    args, kwargs = nested(rng, 2, 3)
    signature = capture(Nested(), args, kwargs, DIMS).signature
    with pytest.raises(ArgumentError) as caught:
        signature.flatten(args, kwargs | {"scale": 3.0, "mode": None, "unknown": torch.ones(1)})
    text = str(caught.value)
    assert "scale is 3.0, compiled for 0.5" in text
    assert "mode is None, compiled for 'double'" in text
    assert "unknown was not given when the program was compiled" in text
    with pytest.raises(ArgumentError, match="missing"):
        signature.flatten((), kwargs)
    with pytest.raises(ArgumentError, match="batch has no key 'list'"):
        signature.flatten(({"x": {"inner": torch.ones(1)}}, *args[1:]), kwargs)
    with pytest.raises(ArgumentError, match=r"batch\.list is a list of 1, compiled for a list of 2"):
        signature.flatten(({"x": {"inner": torch.ones(1)}, "list": [torch.ones(1)]}, *args[1:]), kwargs)
    with pytest.raises(ArgumentError, match=r"rest\.1 is missing"):
        signature.flatten(args[:2], kwargs)


class Optional(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, steps: int = 1, flag: bool = False) -> Any:
        for _ in range(steps):
            x = x + 1
        return (x if mask is None else x * mask), flag


def test_optional_inputs_and_constants(rng: np.random.Generator) -> None:
    x = floats(rng, 4)
    plain = capture(Optional(), (x,), {"mask": None, "steps": 3}, {"x": (B,)})
    assert_same(run(plain, x, None, 3), Optional()(x, None, 3))
    assert_same(run(plain, x, mask=None, steps=3, flag=False), Optional()(x, None, 3))
    with pytest.raises(ArgumentError, match="mask is a Tensor, compiled for the constant None"):
        run(plain, x, x, 3)
    with pytest.raises(ArgumentError, match="steps is 2, compiled for 3"):
        run(plain, x, None, 2)
    with pytest.raises(ArgumentError, match="flag was not given"):
        run(plain, x, None, 3, True)


def test_arrays_are_examples_too(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 4)).astype(np.float32)
    captured = capture(Optional(), (x,), None, {"x": (B, None)})
    assert_same(run(captured, torch.from_numpy(x)), Optional()(torch.from_numpy(x)))


def test_an_exported_program_and_its_file_are_models(rng: np.random.Generator, tmp_path: Any) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, *, bias: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.linear(x) + bias}

    model = Two().eval()
    rows = torch.export.Dim("rows", min=2, max=50)
    program = torch.export.export(
        model, (floats(rng, 5, 4),), {"bias": floats(rng, 3)}, dynamic_shapes={"x": {0: rows}, "bias": None}
    )
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    for source in (program, path, str(path)):
        for dims in (None, {"x": (Dim("n", 2, 50), None)}):
            captured = capture(source, (), None, dims)
            assert len(captured.dims) == 1
            for n in (5, 2, 9):
                x, bias = floats(rng, n, 4), floats(rng, 3)
                with torch.no_grad():
                    assert_same(run(captured, x, bias=bias), model(x, bias=bias))


def test_missing_examples_are_asked_for_as_compile_takes_them() -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor, *, scale: float, shift: float = 0.0) -> torch.Tensor:
            return x * y * scale + shift

    for model, args, missing, step in (
        (torch.nn.ReLU(), (), ["input"], "args=(input,)"),
        (Two(), (torch.ones(2),), ["y", "scale"], 'args=(x, y), kwargs={"scale": scale}'),
    ):
        with pytest.raises(ArgumentError) as caught:
            capture(model, args)
        assert [problem.text for problem in caught.value.problems] == [f"{name} is missing" for name in missing]
        assert caught.value.step == f"give example inputs: {step}"

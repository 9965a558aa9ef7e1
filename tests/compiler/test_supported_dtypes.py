"""A dtype that the backend lacks is refused with op, dtype and line before a kernel is lowered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

import tilewright as tw
from tests.compiler.models import compile_mlp, mlp
from tilewright.compiler.supported_dtypes import check_dtypes
from tilewright.errors import LoweringError
from tilewright.ir import backend as backend_module
from tilewright.ir.backend import BuiltKernel, Source, kernels_of, resolve_target
from tilewright.ir.machine import Machine
from tilewright.ir.module import parse_module


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes the CPU backend one without bf16; gives the kernels that it is asked to build."""
    plain, asked = resolve_target("cpu")[0], list[str]()

    def build(kernels: Iterable[tuple[str, Source]], machine: Machine) -> Mapping[str, Future[BuiltKernel]]:
        return plain.build(((asked.append(name) or name, kernel) for name, kernel in kernels), machine)

    made = replace(plain, dtypes=plain.dtypes - {"bf16"}, build=build)

    class Point:
        name, dist = "cpu", None

        def load(self) -> Any:
            return made

    monkeypatch.setattr(backend_module, "entry_points", lambda group: [Point()])
    return asked


def test_a_model_is_refused_with_the_op_the_dtype_and_the_line(without_bf16: list[str]) -> None:
    with pytest.raises(LoweringError) as caught:
        compile_mlp(mlp(1), cache=False, precision="bf16")
    text = str(caught.value)
    assert "cpu has no bf16, which kernel " in text
    assert "tile." in text
    assert "models.py:" in text
    assert "cast to one of f16, f32" in caught.value.step
    assert not without_bf16, "no kernel was lowered"
    compile_mlp(mlp(1), cache=False)
    assert without_bf16


def test_a_kernel_in_python_is_refused_at_its_own_line(without_bf16: list[str]) -> None:
    @tw.kernel("x bf16[rows, 8] -> y bf16[rows, 8]")
    def copied(b: Any, x: Any, y: Any) -> None:
        (i,) = b.grid(["rows"], [4])
        b.store(b.load(b.dense(x), [i, 0], [4, 8]), b.dense(y), [i, 0])

    with pytest.raises(
        LoweringError, match=r"(?s)cpu has no bf16, which kernel copied needs.*test_supported_dtypes\.py:"
    ):
        copied.compile(cache=False)
    assert not without_bf16


def test_every_dtype_of_a_kernel_is_asked_for_and_a_place_is_named_once() -> None:
    backend = resolve_target("cpu")[0]
    compiled = compile_mlp(mlp(2), cache=False)
    kernels = kernels_of(parse_module(compiled.ir("tile"), "tile"))
    check_dtypes(kernels, backend)
    with pytest.raises(LoweringError) as caught:
        check_dtypes(kernels, replace(backend, dtypes=backend.dtypes - {"f32"}))
    places = [problem.where for problem in caught.value.problems]
    assert len(set(places)) == len(places) > 1

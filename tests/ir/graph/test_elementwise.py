"""graph.map and graph.cast: broadcasting, dtypes, and torch's numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.graph.single_op import apply, complaint, run, value
from tilewright.ir.dtypes import DTYPES, F32, F64, I1, I64, torch_name
from tilewright.ir.graph.base import Setting
from tilewright.ir.graph.elementwise import CastOp, MapOp
from tilewright.ir.scalars import SCALARS


@given(st.lists(st.sampled_from([0, 1, 3, 5]), max_size=4), st.data())
def test_map_broadcasts_as_torch_does(shape: list[int], data: st.DataObject) -> None:
    def narrowed() -> list[int]:
        kept = shape[data.draw(st.integers(0, len(shape))) :]
        return [n if data.draw(st.booleans()) else 1 for n in kept]

    a, b = torch.randn(narrowed()), torch.randn(narrowed())
    torch.testing.assert_close(apply(MapOp, a, b, fn="mul"), a * b, rtol=0, atol=0)


def test_map_runs_every_function_of_the_table() -> None:
    for name, function in SCALARS.items():
        dtype = next(t for t in (F32, I64, I1) if function.rule == "select" or function.result([t] * function.arity))
        types = [I1, dtype, dtype] if function.rule == "select" else [dtype] * function.arity
        tensors = [torch.ones(2, 3).to(getattr(torch, torch_name(t))) for t in types]
        torch.testing.assert_close(apply(MapOp, *tensors, fn=name), function.torch(*tensors))


def test_map_keeps_symbols_and_counts_its_work() -> None:
    op = MapOp.make(value(["batch", 1, 4]), value(["tokens", 4]), fn="exp" if False else "add")
    assert str(op.out.type) == "f32[batch, tokens, 4]"
    cost = op.cost().at({"batch": 2, "tokens": 3})
    assert cost == {"matrix": 0, "vector": 24, "read": 4 * (8 + 12), "write": 96}
    square = value(["n"])
    assert MapOp.make(square, square, fn="mul").cost().read == MapOp.make(square, fn="neg").cost().read
    run(op, torch.randn(2, 1, 4), torch.randn(3, 4), sizes={"batch": 2, "tokens": 3})


@pytest.mark.parametrize(
    ("operands", "fn", "says"),
    [
        ([value([2, 3]), value([2, 4])], "add", "axis -1: 3 and 4"),
        ([value(["a"]), value(["b"])], "add", "[a], [b]"),
        ([value([2]), value([2], F64)], "add", "got (f32, f64)"),
        ([value([2])], "add", "takes 2 operands"),
        ([value([2], I64)], "exp", "got (i64)"),
        ([value([2])], "cosh", "no elementwise function is called 'cosh'"),
    ],
)
def test_map_names_what_does_not_fit(operands: list[object], fn: str, says: str) -> None:
    assert says in complaint(MapOp, *operands, fn=fn)


@pytest.mark.parametrize("source", DTYPES.values(), ids=str)
@pytest.mark.parametrize("target", DTYPES.values(), ids=str)
def test_cast_is_torchs(source: object, target: object) -> None:
    x = torch.tensor([[0.0, 1.0, 2.5], [3.49, 100.0, 0.25]]).to(getattr(torch, torch_name(source)))
    assert torch.equal(apply(CastOp, x, dtype=target.name), x.to(getattr(torch, torch_name(target))))


def test_a_wide_cast_between_floats_keeps_every_bit() -> None:
    x = torch.randn(5, dtype=torch.float64)
    narrow = CastOp.make(value([5], F64), dtype="bf16")
    assert torch.equal(narrow.evaluate(Setting(wide=True), x), x)
    assert narrow.evaluate(Setting(wide=True), torch.arange(5)).dtype == torch.float64
    assert CastOp.make(value([5]), dtype="i1").evaluate(Setting(wide=True), x).dtype == torch.bool


def test_cast_knows_its_dtypes() -> None:
    assert "'f8' is not one of" in complaint(CastOp, value([2]), dtype="f8")

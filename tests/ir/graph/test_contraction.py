"""Products and convolutions against torch and float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ir.graph.single_op import FLOATS, apply, complaint, run, value
from tilewright.ir.dtypes import F64, I64, DType, torch_name
from tilewright.ir.graph.base import Setting
from tilewright.ir.graph.contraction import MatmulOp

sizes = st.sampled_from([0, 1, 2, 3, 7])


@given(sizes, sizes, sizes, st.lists(st.sampled_from([0, 1, 3]), max_size=2), st.booleans())
def test_matmul_is_torchs(m: int, n: int, k: int, lead: list[int], transpose: bool) -> None:
    a = torch.randn(*lead, m, k, dtype=torch.float64)
    b = torch.randn(*[1 for _ in lead], k, n, dtype=torch.float64)
    given_b = b.mT.contiguous() if transpose else b
    torch.testing.assert_close(apply(MatmulOp, a, given_b, transpose_b=transpose), a @ b)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_matmul_rounds_once(dtype: DType) -> None:
    a, b = (torch.randn(17, 31).to(getattr(torch, torch_name(dtype))) for _ in range(2))
    exact = (a.double() @ b.double().mT).to(a.dtype)
    torch.testing.assert_close(apply(MatmulOp, a, b, transpose_b=True), exact)


def test_matmul_keeps_its_sums_in_the_stated_dtype() -> None:
    a, b = torch.randn(5, 300).bfloat16(), torch.randn(300, 2).bfloat16()
    kept = apply(MatmulOp, a, b, result="f32")
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept, (a.double() @ b.double()).float())
    assert apply(MatmulOp, a.double(), b.double(), result="f32").dtype == torch.float32
    wide = MatmulOp.make(value([5, 3]), value([3, 2]), result="bf16").evaluate(
        Setting(wide=True), torch.randn(5, 3).double(), torch.randn(3, 2).double()
    )
    assert wide.dtype == torch.float64
    assert "both must be floats" in complaint(MatmulOp, value([2, 3]), value([3, 2]), result="i32")
    assert "both must be floats" in complaint(MatmulOp, value([2, 3], I64), value([3, 2], I64), result="f32")


def test_matmul_keeps_symbols_and_counts_two_flops_a_multiply_add() -> None:
    op = MatmulOp.make(value(["batch", "tokens", 384]), value([1536, 384]), transpose_b=True)
    assert str(op.out.type) == "f32[batch, tokens, 1536]"
    assert op.cost().at({"batch": 2, "tokens": 3}) == {
        "matrix": 2 * 6 * 384 * 1536,
        "vector": 0,
        "read": 4 * (6 * 384 + 1536 * 384),
        "write": 4 * 6 * 1536,
    }
    run(op, torch.randn(2, 3, 384), torch.randn(1536, 384), sizes={"batch": 2, "tokens": 3})


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (value([2, 3]), value([4, 5]), "f32[2, 3] has 3, f32[4, 5] has 4"),
        (value([2, "k"]), value(["n", 5]), "has k, f32[n, 5] has n"),
        (value([3]), value([3, 5]), "rank 2 or more"),
        (value([2, 3]), value([3, 5], F64), "f32 and f64"),
        (value([2, 2, 3]), value([3, 3, 5]), "do not broadcast"),
    ],
)
def test_matmul_names_what_does_not_fit(a: object, b: object, says: str) -> None:
    assert says in complaint(MatmulOp, a, b)

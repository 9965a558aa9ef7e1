from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.frontend.against_eager import assert_same, captured_equals_eager, run
from tests.frontend.many import Many, Table
from tilewright.errors import UnsupportedOpError
from tilewright.frontend import capture
from tilewright.ir.dims import Dim

F = torch.nn.functional
B, T = Dim("batch", 0, 64), Dim("tokens", 0, 256)
SIZES = [(3, 5), (1, 1), (2, 7), (0, 4), (4, 0)]

NAMES = """neg abs sqrt rsqrt reciprocal exp exp2 expm1 log log1p log2 log10 sin cos tan sinh cosh tanh erf sigmoid
    square floor ceil trunc round sign isnan isinf isfinite nan_to_num logical_not positive clone"""
UNARY: Table = {name: getattr(torch, name) for name in NAMES.split()}
ACTIVATIONS: Table = {
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.5),
    "softplus": F.softplus,
    "softplus_beta": lambda x: F.softplus(x, beta=3.0),
    "mish": F.mish,
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "threshold": lambda x: F.threshold(x, 0.1, 20.0),
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.25)),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "glu": lambda x: F.glu(torch.cat([x, x + 1], -1)),
}
BINARY: Table = {
    "add": lambda x, y: x + y,
    "add_alpha": lambda x, y: torch.add(x, y, alpha=2.5),
    "sub": lambda x, y: x - y,
    "sub_alpha": lambda x, y: torch.sub(x, y, alpha=3),
    "rsub": lambda x, y: 1 - x,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "floordiv": lambda x, y: x // y,
    "remainder": torch.remainder,
    "fmod": torch.fmod,
    "fmod_scalar": lambda x, y: torch.fmod(x, -0.7),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "clamp": lambda x, y: x.clamp(-0.5, 0.5),
    "clamp_tensor": lambda x, y: torch.clamp(x, min=y),
    "clamp_min": lambda x, y: x.clamp_min(0.1),
    "clamp_max": lambda x, y: x.clamp_max(0.1),
    "pow": lambda x, y: x.abs() ** y,
    "squared": lambda x, y: x**2,
    "cubed": lambda x, y: x**3,
    "root": lambda x, y: x.abs() ** 0.5,
    "inverse_root": lambda x, y: x.abs() ** -0.5,
    "inverse": lambda x, y: x**-1,
    "odd_power": lambda x, y: x.abs() ** 1.7,
    "power_of": lambda x, y: 2.0**x,
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.5),
    "addcdiv": lambda x, y: torch.addcdiv(x, x, y, value=0.5),
    "logaddexp": torch.logaddexp,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != 0.5,
    "lt": lambda x, y: x < y,
    "ge": lambda x, y: x >= 0,
    "logic": lambda x, y: torch.logical_xor(x > 0, y > 0) | ((x > 1) & ~(y > 1)),
    "where": lambda x, y: torch.where(x > y, x, y),
    "where_scalar": lambda x, y: torch.where(x > y, x, 0.0),
    "where_scalars": lambda x, y: torch.where(x > y, 1.0, -1.0),
    "masked_fill": lambda x, y: x.masked_fill(y > 0, -1e9),
    "round_decimals": lambda x, y: torch.round(x, decimals=2),
}


def pair(rng: np.random.Generator, b: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.from_numpy(rng.standard_normal((b, t, 3)).astype(np.float32)) for _ in range(2))  # type: ignore[return-value]


def test_unary_functions_and_activations(rng: np.random.Generator) -> None:
    calls = [(pair(rng, *size)[0],) for size in SIZES]
    captured_equals_eager(Many(UNARY | ACTIVATIONS), calls, {"inputs.0": (B, T, None)})


def test_binary_functions_with_broadcasting(rng: np.random.Generator) -> None:
    calls = []
    for size in SIZES:
        x, y = pair(rng, *size)
        calls.append((x, y[:, :, :1]))
    captured_equals_eager(Many(BINARY), calls, {"inputs.0": (B, T, None), "inputs.1": (B, T, None)})


def test_nan_and_infinity_pass_as_in_torch() -> None:
    special = torch.tensor([[float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0]])
    other = torch.tensor([[1.0, float("nan"), float("inf"), -0.0, 0.0, float("inf")]])
    table = {k: BINARY[k] for k in ("maximum", "minimum", "fmax", "fmin", "clamp", "where", "mul", "logaddexp")}
    captured_equals_eager(Many(table), [(special, other)])
    captured_equals_eager(Many({k: UNARY[k] for k in ("isnan", "isinf", "isfinite", "nan_to_num")}), [(special,)])


PROMOTION: Table = {
    "int_plus_float": lambda i, f, b: i + 0.5,
    "int_times_tensor": lambda i, f, b: i * f,
    "int_divided": lambda i, f, b: i / 3,
    "int_floor": lambda i, f, b: i // 3,
    "int_negative_floor": lambda i, f, b: i // -2,
    "int_trunc": lambda i, f, b: torch.div(i, -3, rounding_mode="trunc"),
    "int_remainder": lambda i, f, b: i % 3,
    "int_fmod": lambda i, f, b: torch.fmod(i, 3),
    "int_power": lambda i, f, b: i**5,
    "int_compare": lambda i, f, b: i > 0.5,
    "int_exp": lambda i, f, b: torch.exp(i),
    "int_round": lambda i, f, b: torch.round(i),
    "bits": lambda i, f, b: (i & 6) | (i ^ 3),
    "shift": lambda i, f, b: (i << 2) >> 1,
    "not": lambda i, f, b: ~i,
    "bool_plus_bool": lambda i, f, b: b + b,
    "bool_times_int": lambda i, f, b: b * i,
    "bool_times_float": lambda i, f, b: b * 2.5,
    "bool_plus_int": lambda i, f, b: b + 1,
    "bool_max": lambda i, f, b: torch.maximum(b, ~b),
    "small_plus_long": lambda i, f, b: i.to(torch.int8) + i,
    "unsigned_plus_signed": lambda i, f, b: i.to(torch.uint8) + i.to(torch.int8),
    "half_plus_number": lambda i, f, b: f.to(torch.bfloat16) * 0.1,
    "half_plus_scalar_tensor": lambda i, f, b: f.to(torch.bfloat16) + torch.tensor(0.1),
    "half_plus_float": lambda i, f, b: f.to(torch.bfloat16) + f,
    "mixed_halves": lambda i, f, b: f.to(torch.bfloat16) + f.to(torch.float16),
    "double": lambda i, f, b: f.double() + f,
    "to_bool": lambda i, f, b: f.to(torch.bool),
    "to_int": lambda i, f, b: (f * 10).to(torch.int32),
    "where_mixed": lambda i, f, b: torch.where(b, i, f),
    "clamp_int": lambda i, f, b: i.clamp(-2, 2),
}


def test_dtypes_promote_as_in_torch(rng: np.random.Generator) -> None:
    calls = []
    for b, t in [(3, 5), (1, 1), (2, 7)]:
        ints = torch.from_numpy(rng.integers(-9, 9, (b, t)))
        floats = torch.from_numpy(rng.standard_normal((b, t)).astype(np.float32))
        calls.append((ints, floats, floats > 0))
    dims = {f"inputs.{i}": (B, T) for i in range(3)}
    captured_equals_eager(Many(PROMOTION), calls, dims)


def test_a_number_a_narrow_float_cannot_hold_is_not_rounded_first(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal(64).astype(np.float32)).bfloat16()
    model = Many({"third": lambda x: x * (1 / 3)})
    found = run(capture(model, (x,)), x)
    assert torch.equal(found["third"], model(x)["third"])
    # rounding 1/3 to bf16 first would differ
    assert not torch.equal(found["third"], x * torch.tensor(1 / 3, dtype=torch.bfloat16))


def test_numbers_from_sizes_keep_their_kind(rng: np.random.Generator) -> None:
    table: Table = {
        "by_root": lambda x: x / x.shape[1] ** 0.5,
        "by_size": lambda x: x * x.shape[1],
        "ratio": lambda x: x * (x.shape[0] / (x.shape[1] + 1)),
        "half": lambda x: x + x.shape[1] // 2,
    }
    calls = [(torch.from_numpy(rng.standard_normal(s).astype(np.float32)),) for s in [(3, 5), (1, 1), (2, 7)]]
    captured_equals_eager(Many(table), calls, {"inputs.0": (Dim("b", 1, 9), Dim("t", 1, 99))})


def test_all_unsupported_operators_come_in_one_error() -> None:
    model = Many({"a": torch.lgamma, "b": torch.digamma, "c": lambda x: torch.lgamma(x * 2)})
    with pytest.raises(UnsupportedOpError) as caught:
        capture(model, (torch.ones(3),))
    text = str(caught.value)
    assert "aten.lgamma.default" in text
    assert "2 uses" in text
    assert "aten.digamma.default" in text
    assert "many.py:" in text
    assert "write these parts with supported operators" in text


def test_unsupported_operators_can_stay_in_torch(rng: np.random.Generator) -> None:
    model = Many({"a": torch.lgamma, "b": lambda x: torch.igamma(x.abs(), x.abs() + 1) * x.shape[0]})
    x = torch.from_numpy(rng.standard_normal((4, 3)).astype(np.float32))
    captured = capture(model, (x,), None, {"inputs.0": (Dim("n", 1, 9), None)}, fallback="torch")
    assert set(captured.externs) == {"torch.aten.lgamma.default", "torch.aten.igamma.default"}
    for size in (4, 1, 9):
        x = torch.from_numpy(rng.standard_normal((size, 3)).astype(np.float32))
        assert_same(run(captured, x), model(x))

"""Operators of other libraries: by a kernel, by what they are made of, or refused with a code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo as dynamo

import tilewright as tw
from tests.compiler.test_torch_backend import compiled as torch_compiled
from tests.compiler.test_torch_backend import fresh  # noqa: F401  (a fixture: the backend is registered)
from tilewright.errors import KernelError, NumericMismatchError, OptionError, UnsupportedOpError
from tilewright.frontend import custom_ops


@torch.library.custom_op("tilewright_tests::swiglu", mutates_args=())
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate) * up


@swiglu.register_fake
def _(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@tw.kernel("gate T[rows, n], up T[rows, n] -> y T[rows, n]")
def swiglu_kernel(b: Any, gate: Any, up: Any, y: Any, *, T: Any) -> None:  # noqa: N803
    row, column = b.grid(["rows", "n"], [4, 64])
    at, size = [row, column], [4, 64]
    g, u = (b.cast(b.load(b.dense(v), at, size), "f32") for v in (gate, up))
    b.store(b.cast(b.map("mul", b.map("mul", g, b.map("sigmoid", g)), u), T), b.dense(y), at)


@torch.library.custom_op("tilewright_tests::best", mutates_args=())
def best(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, places = x.topk(k)
    return values.clone(), places.int()


@tw.kernel("x f32[rows, n] -> values f32[rows, k], places i32[rows, k]")
def best_kernel(b: Any, x: Any, values: Any, places: Any, *, n: int, k: int) -> None:
    (row,) = b.grid(["rows"], [4])
    top, at = b.topk(b.load(b.dense(x), [row, 0], [4, -(-n // 16) * 16], fill=float("-inf")), k)
    b.store(top, b.dense(values), [row, 0])
    b.store(at, b.dense(places), [row, 0])


@torch.library.custom_op("tilewright_tests::scaled", mutates_args=())
def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) * by


@torch.library.custom_op("tilewright_tests::unknown", mutates_args=())
def unknown(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@unknown.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@pytest.fixture(scope="module", autouse=True)
def registrations() -> None:
    tw.register_op("tilewright_tests::swiglu", kernel=swiglu_kernel)
    tw.register_op(
        "tilewright_tests::best",
        kernel=best_kernel,
        shape=lambda x, k: (x.new_empty(x.shape[0], k), x.new_empty(x.shape[0], k, dtype=torch.int32)),
    )
    tw.register_op("tilewright_tests::scaled", reference=lambda x, by: (x - x.mean(-1, keepdim=True)) * by)


class Layer(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (torch.nn.Linear(size, size) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(swiglu(self.gate(x), self.up(x))).relu()


class Stack(torch.nn.Module):
    """Two equal layers, an operator with a number, one with two results."""

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(size), Layer(size)])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        for layer in self.layers:
            x = layer(x)
        y = scaled(x, 2.0)
        values, places = best(y.t().contiguous().t(), 3)
        return y, values * 2, places


def same(found: Any, expected: Any) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_model_with_registered_operators(rng: np.random.Generator) -> None:
    model = Stack().eval()
    compiled = tw.compile(model, (torch.randn(3, 12),), dims={"x": (tw.Dim("rows", 1, 64), None)})
    with torch.no_grad():
        for rows in (1, 3, 37):
            x = torch.from_numpy(rng.standard_normal((rows, 12), np.float32))
            same(compiled(x), model(x))
    names = {row.kernel: row.launches for row in compiled.report.rows}
    assert names["swiglu_kernel"] == 2
    assert names["best_kernel"] == 1
    rows = {row.kernel: row for row in compiled.report.at(rows=10).rows}
    assert (rows["best_kernel"].read, rows["best_kernel"].write) == (10 * 12 * 4, 10 * 3 * 8)


def test_under_torch_compile(rng: np.random.Generator) -> None:
    model = Stack().eval()
    run = torch_compiled(model, dynamic=True)
    with torch.no_grad():
        for rows in (3, 5):
            x = torch.from_numpy(rng.standard_normal((rows, 12), np.float32))
            same(run(x), model(x))


def test_kernels_of_one_name_are_told_apart(rng: np.random.Generator) -> None:
    class Both(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return best(x, 2)[0], best(x, 4)[0]

    x = torch.from_numpy(rng.standard_normal((5, 9), np.float32))
    same(tw.compile(Both().eval(), (x,))(x), Both()(x))


def test_a_passes_check_follows_the_launches(rng: np.random.Generator) -> None:
    model = Layer(8).eval()
    x = torch.from_numpy(rng.standard_normal((4, 8), np.float32))
    compiled = tw.compile(model, (x,), verify_each="numeric", check="first", cache=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


class Calls(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def refused(function: Any, *shape: int, **options: Any) -> str:
    with pytest.raises(UnsupportedOpError) as raised:
        tw.compile(Calls(function).eval(), (torch.ones(*shape),), **options)
    return str(raised.value)


def test_an_operator_that_nobody_has_registered() -> None:
    text = refused(unknown, 2, 3)
    assert "tilewright_tests.unknown.default: no lowering (tw.register_op gives it one)" in text
    assert '\n  next: say how it is computed: tw.register_op("tilewright_tests::unknown", reference=f)' in text
    with pytest.raises(dynamo.exc.BackendCompilerFailed, match=r"tw\.register_op gives it one"):
        torch_compiled(unknown)(torch.ones(2))


def test_a_kernel_that_does_not_fit() -> None:
    assert "gate has 2 axes, the operator gives it" in refused(lambda x: swiglu(x, x), 2, 3, 4)
    varies = {"x": (None, tw.Dim("width", 4, 9))}
    assert "n is static in the kernel, and width in the model" in refused(lambda x: best(x, 2), 2, 5, dims=varies)
    assert "x is" in refused(lambda x: best(x.double(), 2), 2, 5)


@torch.library.custom_op("tilewright_tests::affine", mutates_args=())
def affine(x: torch.Tensor, by: int, negative: bool = False, shift: torch.Tensor | None = None) -> torch.Tensor:
    return x * by * (-1 if negative else 1) + (0 if shift is None else shift)


@affine.register_fake
def _(x: torch.Tensor, by: int, negative: bool = False, shift: torch.Tensor | None = None) -> torch.Tensor:
    return torch.empty_like(x)


@tw.kernel("x f32[rows, n] -> y f32[rows, n]")
def affine_kernel(b: Any, x: Any, y: Any, *, by: int = 7) -> None:
    row, column = b.grid(["rows", "n"], [4, 64])
    tile = b.load(b.dense(x), [row, column], [4, 64])
    b.store(b.map("mul", tile, b.constant(float(by), [4, 64], "f32")), b.dense(y), [row, column])


def test_arguments_that_a_kernel_lacks_have_their_defaults(rng: np.random.Generator) -> None:
    tw.register_op("tilewright_tests::affine", kernel=affine_kernel)
    x = torch.from_numpy(rng.standard_normal((3, 5), np.float32))
    model = Calls(lambda x: affine(x, 3, False)).eval()
    same([tw.compile(model, (x,))(x)], [model(x)])
    text = refused(lambda x: affine(x, 3, True), 2, 3)
    assert "tilewright_tests.affine.default" in text
    assert "@affine_kernel does not fit: it has no parameter for the operator's argument negative=True" in text
    assert "it takes 1 tensors, the operator gives it 2" in refused(lambda x: affine(x, 3, shift=x), 2, 3)


@torch.library.custom_op("tilewright_tests::by_default", mutates_args=())
def by_default(x: torch.Tensor, by: int = 3) -> torch.Tensor:
    return x * by


@by_default.register_fake
def _(x: torch.Tensor, by: int = 3) -> torch.Tensor:
    return torch.empty_like(x)


def test_the_operators_defaults_count_not_the_kernels(rng: np.random.Generator) -> None:
    tw.register_op("tilewright_tests::by_default", kernel=affine_kernel)
    x = torch.from_numpy(rng.standard_normal((3, 5), np.float32))
    model = Calls(by_default).eval()
    same([tw.compile(model, (x,))(x)], [model(x)])


@torch.library.custom_op("tilewright_tests::place", mutates_args=())
def place(x: torch.Tensor) -> torch.Tensor:
    return x.argmax(-1).int()


@place.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.int32)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (lambda x: x.argmax(-1), "its reference gives int64[2], its shape rule int32[2]"),
        (lambda x: x.argmax(-1, keepdim=True).int(), "its reference gives int32[2, 1], its shape rule int32[2]"),
        (lambda x: x.argmax(0).int(), "its reference gives int32[3], its shape rule int32[2]"),
        (lambda x: x.argmax(-1).int(), None),
    ],
)
def test_a_reference_gives_what_the_shape_rule_says(reference: Any, said: str | None) -> None:
    tw.register_op("tilewright_tests::place", reference=reference)
    x = torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 0.0]])
    if said is None:
        same([tw.compile(Calls(place).eval(), (x,))(x), torch_compiled(place)(x)], [place(x)] * 2)
        return
    text = refused(place, 2, 3)
    assert f"tilewright_tests.place.default: {said}" in text
    with pytest.raises(dynamo.exc.BackendCompilerFailed, match=r"TW010.*its reference gives"):
        torch_compiled(place)(x)


@torch.library.custom_op("tilewright_tests::ruled", mutates_args=())
def ruled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@ruled.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def wide(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], 7)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (wide, "its shape= gives float32[2, 7], the rule that torch has, from register_fake, float32[2, 3]"),
        (lambda x: x.new_empty(x.shape, dtype=torch.int32), "its shape= gives int32[2, 3], the rule"),
        (lambda x: (3,), "its shape= gives 3, the rule"),
        (lambda: torch.ones(2, 3), "its shape= fails: TypeError"),
        (torch.empty_like, None),
    ],
)
def test_a_shape_is_held_against_the_rule_of_the_library(shape: Any, said: str | None) -> None:
    tw.register_op("tilewright_tests::ruled", reference=lambda x: x * 2, shape=shape)
    x = torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 0.0]])
    if said is None:
        same([tw.compile(Calls(ruled).eval(), (x,))(x), torch_compiled(ruled)(x)], [x * 2] * 2)
        return
    assert f"tilewright_tests.ruled.default: {said}" in refused(ruled, 2, 3)
    with pytest.raises(dynamo.exc.BackendCompilerFailed, match=r"TW010.*its shape= "):
        torch_compiled(ruled)(x)


@torch.library.custom_op("tilewright_tests::ruleless", mutates_args=())
def ruleless(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def defined_in_text() -> Any:
    """An operator of the library's older form, which has no object of its own."""
    library = torch.library.Library("tilewright_tests_text", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CPU")
    return library, torch.ops.tilewright_tests_text.twice


@pytest.mark.parametrize("older", [False, True])
def test_a_later_registration_replaces_the_shape_of_an_earlier_one(older: bool) -> None:
    library, called = defined_in_text() if older else (None, ruleless)
    x = torch.ones(2, 3)
    tw.register_op(called, reference=lambda x: x * 2, shape=wide)
    assert "its reference gives float32[2, 3], its shape rule float32[2, 7]" in refused(called, 2, 3)
    tw.register_op(called, reference=lambda x: x * 2, shape=torch.empty_like)
    same([tw.compile(Calls(called).eval(), (x,))(x)], [x * 2])
    tw.register_op(called, reference=lambda x: (x * 2).double())
    assert tw.compile(Calls(called).eval(), (x,))(x).dtype == torch.float64
    # a kernel says nothing of shapes: the rule that there is stays
    tw.register_op(called, kernel=affine_kernel)
    assert "torch says that it gives f64[2, 3], its kernel gives f32[2, 3]" in refused(called, 2, 3)
    if older:
        # the library changes its mind: what it says counts
        torch.library.register_fake("tilewright_tests_text::twice", wide, lib=library, allow_override=True)
    else:
        ruleless.register_fake(wide)
    tw.register_op(called, reference=lambda x: x * 2, shape=torch.empty_like)
    assert "the rule that torch has, from register_fake, float32[2, 7]" in refused(called, 2, 3)


def test_operators_are_taken_as_torch_holds_them(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.standard_normal((2, 3), np.float32))
    packet = torch.ops.tilewright_tests.by_default
    for given in (by_default, packet, packet.default, "tilewright_tests::by_default"):
        by = float(rng.integers(2, 9))
        tw.register_op(given, reference=lambda x, by_=3, by=by: x * by)
        same([tw.compile(Calls(by_default).eval(), (x,))(x)], [x * by])


@torch.library.custom_op("tilewright_tests::turned", mutates_args=())
def turned(x: torch.Tensor) -> torch.Tensor:
    return x.t().clone()


@turned.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[1], x.shape[0])


def test_a_kernel_gives_the_sizes_of_the_shape_rule() -> None:
    tw.register_op("tilewright_tests::turned", kernel=affine_kernel)
    assert "torch says that it gives f32[3, 2], its kernel gives f32[2, 3]" in refused(turned, 2, 3)


@tw.kernel("x f32[rows, n] -> y f32[rows, n]")
def faulty_kernel(b: Any, x: Any, y: Any) -> None:
    row, column = b.grid(["rows", "n"], [4, 64])
    b.store(b.load(b.dense(x), [row, column], [4, 64]), b.dense(y), [row])


def test_a_fault_in_a_kernel_keeps_its_own_code_and_line() -> None:
    tw.register_op("tilewright_tests::unknown", kernel=faulty_kernel)
    try:
        with pytest.raises(KernelError, match=r"test_register_op\.py:\d+") as raised:
            tw.compile(Calls(unknown).eval(), (torch.ones(2, 3),))
    finally:
        custom_ops._REGISTERED.pop("tilewright_tests.unknown.default")
    assert raised.value.code == "TW035"


@torch.library.custom_op("tilewright_tests::written", mutates_args={"x"})
def written(x: torch.Tensor) -> None:
    x.add_(1)


@torch.library.custom_op("tilewright_tests::doubled", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_a_wrong_reference_is_named_by_the_first_call() -> None:
    tw.register_op("tilewright_tests::doubled", reference=lambda x: x * 3)
    try:
        compiled = tw.compile(Calls(twice).eval(), (torch.ones(2, 3),), check="first")
        with pytest.raises(NumericMismatchError) as raised:
            compiled(torch.ones(2, 3))
    finally:
        custom_ops._REGISTERED.pop("tilewright_tests.doubled.default")
    assert "tilewright_tests::doubled's reference, from tw.register_op, is not the operator" in str(raised.value)
    assert raised.value.step == "correct it where it is registered"


@pytest.mark.parametrize(
    ("name", "given", "step"),
    [
        ("tilewright_tests::no_such", {"reference": torch.relu}, "define it with torch.library.custom_op"),
        ("tilewright_tests::written", {"reference": torch.relu}, "write an operator that gives new tensors"),
        ("aten::view", {"reference": torch.relu}, "write an operator that gives new tensors"),
        ("tilewright_tests::swiglu", {}, "pass reference="),
        ("tilewright_tests::swiglu", {"kernel": 3, "reference": torch.relu}, "decorate the kernel's function"),
        ("tilewright_tests::ruled", {"reference": 2}, "pass a function of the operator's arguments, as reference="),
        ("tilewright_tests::ruled", {"reference": torch.relu, "shape": (3,)}, "pass a function of the operator's"),
        (3, {"reference": torch.relu}, 'give its name, "lib::name"'),
    ],
)
def test_a_refused_registration_says_what_to_do_about_it(name: Any, given: dict[str, Any], step: str) -> None:
    with pytest.raises(OptionError) as raised:
        tw.register_op(name, **given)
    assert raised.value.step.startswith(step)
    assert "; " not in raised.value.step


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("tilewright_tests::no_such", {"reference": torch.relu}, "torch has no operator 'tilewright_tests::no_such'"),
        ("relu", {"reference": torch.relu}, "torch has no operator 'relu'"),
        ("tilewright_tests::written", {"reference": torch.relu}, "tilewright_tests::written writes to its operands"),
        ("aten::view", {"reference": torch.relu}, "aten::view gives views of its operands"),
        ("tilewright_tests::swiglu", {}, "neither a kernel nor a reference"),
        ("tilewright_tests::swiglu", {"kernel": torch.relu}, "is not made with @tw.kernel"),
        ("tilewright_tests::ruled", {"reference": "relu"}, "reference='relu' is not a function"),
        ("tilewright_tests::ruled", {"reference": torch.relu, "shape": "same"}, "shape='same' is not a function"),
        (torch.relu, {"reference": torch.relu}, "is no operator of torch.library"),
        (None, {"reference": torch.relu}, "None is no operator of torch.library"),
    ],
)
def test_registrations_are_checked(name: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match="TW008") as raised:
        tw.register_op(name, **given)
    assert said in str(raised.value)

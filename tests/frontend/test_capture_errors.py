from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tilewright as tw
from tilewright.errors import (
    ArgumentError,
    CaptureError,
    DeviceError,
    DimDeclarationError,
    DTypeError,
    HookError,
    MissingDependencyError,
    ModelInputError,
    OptionError,
    SpecialisationError,
    TrainingModeError,
    UnsupportedOpError,
)
from tilewright.frontend import capture
from tilewright.ir.dims import Dim


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


def test_a_number_taken_out_of_a_tensor_is_called_that() -> None:
    class Largest(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / x.max().item()

    with pytest.raises(UnsupportedOpError, match=r"a Python number out of a tensor \(\.item\(\), float\(\)\)"):
        capture(Largest().eval(), (torch.ones(2, 3),))


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
        (lambda x: x, "<lambda> is a function, not a model"),
        ({"weights": 1}, "dict is not a model"),
        ("no/such/model.pt2", "there is no file"),
    ],
)
def test_what_is_not_a_model_is_said_so(thing: object, message: str) -> None:
    with pytest.raises(ModelInputError, match=message):
        capture(thing, (torch.ones(1),))


def test_a_function_is_told_its_ways() -> None:
    with pytest.raises(ModelInputError) as caught:
        capture(math.sqrt, (torch.ones(1),))
    assert str(caught.value) == (
        "TW009 not a model: sqrt is a function, not a model\n"
        '  next: compile it with torch.compile(f, backend="tilewright"), or call it in a torch.nn.Module\'s forward'
    )


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


def test_weights_that_are_nowhere_are_said_before_anything_reads_them() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4, device="meta") for _ in range(2))).eval()
    for x in (torch.ones(2, 4), torch.ones(2, 4, device="meta")):
        with pytest.raises(DeviceError) as caught:
            capture(model, (x,))
        assert str(caught.value) == (
            "TW007 tensor is on another device: the weights are on meta: 0.weight, 0.bias, 1.weight and 1 more\n"
            "  next: load them first: model.to_empty(device='cpu'), then model.load_state_dict(...)"
        )
    with pytest.raises(DeviceError) as caught:
        capture(torch.nn.Linear(4, 4), (torch.ones(2, 4, device="meta"),))
    assert str(caught.value) == (
        "TW007 tensor is on another device: the example's input is on meta\n"
        "  next: give example tensors on the CPU: torch.zeros_like(input, device='cpu')"
    )
    program = torch.export.export(model, (torch.ones(2, 4, device="meta"),))
    with pytest.raises(DeviceError, match=r"the weights are on meta: 0\.weight"):
        capture(program)


def test_autocast_around_the_capture_and_inside_the_model() -> None:
    model = torch.nn.Linear(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(CaptureError) as caught:
        capture(model, (torch.ones(2, 4),))
    assert str(caught.value) == (
        "TW013 capture failed: torch.autocast is on, and what it casts at each call cannot be captured\n"
        '  next: compile outside of autocast, with precision="bf16" for products of bf16 operands'
    )

    class Casts(torch.nn.Module):
        def __init__(self, enabled: bool) -> None:
            super().__init__()
            self.enabled = enabled
            self.up = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.enabled):
                return self.up(x * 2)

    capture(Casts(False), (torch.ones(2, 4),))
    with pytest.raises(
        UnsupportedOpError,
        match=r"torch\.autocast inside the model: .* \(at tests/frontend/test_capture_errors\.py:\d+\)",
    ):
        capture(Casts(True), (torch.ones(2, 4),))


def test_axes_that_go_with_a_declared_one_are_named_with_the_line_that_declares_them() -> None:
    class Masked(torch.nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            if mask.shape[0] != ids.shape[0]:
                raise ValueError(f"Expected mask.shape[0] to be {ids.shape[0]}, not {mask.shape[0]}")
            return ids * mask

    dims = {"ids": (Dim("batch", 1, 8), Dim("tokens", 1, 16))}
    with pytest.raises(SpecialisationError) as caught:
        capture(Masked(), (torch.ones(2, 5), torch.ones(2, 5)), None, dims)
    said = str(caught.value)
    where = said.partition("(at ")[2].partition(")")[0]
    assert where.startswith("tests/frontend/test_capture_errors.py:")
    product = f"tests/frontend/test_capture_errors.py:{int(where.rpartition(':')[2]) + 2}"
    assert said == (
        "TW014 a declared dim was specialised: 4 problems\n"
        f"  - batch (batch: 1..8) was fixed to 2  (at {where})\n"
        f"  - tokens (tokens: 1..16) was fixed to 5  (at {product})\n"
        "  - mask axis 0 is not declared in dims, but has the example's size of batch\n"
        "  - mask axis 1 is not declared in dims, but has the example's size of tokens\n"
        '  next: if these vary together, declare them too: dims={"ids": {0: tw.Dim("batch", 1, 8), '
        '1: tw.Dim("tokens", 1, 16)}, "mask": {0: "batch", 1: "tokens"}}'
    )
    capture(Masked(), (torch.ones(2, 5), torch.ones(2, 5)), None, {**dims, "mask": {0: "batch", 1: "tokens"}})


def test_operators_of_torchs_own_modules_are_placed_by_the_module() -> None:
    named = r"aten\.linalg_det\.default: no lowering for aten\._linalg_det\.default, .*, 1 use  \(at module 0\)"
    with pytest.raises(UnsupportedOpError, match=named):
        capture(torch.nn.Sequential(Determinant()), (torch.ones(3, 3),))


class Determinant(torch.nn.Module):
    forward = staticmethod(torch.linalg.det)


def test_paths_that_are_no_programs(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    for path, said in (
        ("bert-base-uncased", "there is no file bert-base-uncased\n  next: give the path of a .pt2 file or of a model "
         "directory, or load the model first: transformers.AutoModel.from_pretrained('bert-base-uncased')"),
        (str(tmp_path / "m.onnx"), "m.onnx: ONNX files are not read\n"
         "  next: give the PyTorch model itself, or a .pt2 file: "
         "torch.export.save(torch.export.export(model, args), 'model.pt2')"),
    ):  # fmt: skip
        with pytest.raises(ModelInputError) as caught:
            capture(path)
        assert str(caught.value) == f"TW009 not a model: {said}"


def test_an_input_of_another_dtype_is_told_the_ones_there_are() -> None:
    known = "float64, float32, float16, bfloat16, int64, int32, int16, int8, uint8, bool"
    apart = "complex numbers are not supported; pass real and imaginary parts apart: torch.view_as_real(x)"
    for dtype, step in (
        (torch.complex64, f"{apart}, which the model takes back with torch.view_as_complex"),
        (torch.uint16, f"pass it in one of {known}"),
    ):
        with pytest.raises(CaptureError) as caught:
            capture(torch.nn.Identity(), (torch.ones(2, dtype=dtype),))
        assert str(caught.value) == (
            f"TW013 capture failed: input is {dtype}, which the IR has no type for\n  next: {step}"
        )


def test_dims_of_other_kinds() -> None:
    for given, said in (
        (torch.export.Dim("b"), "is given a torch.export.Dim; use tw.Dim(name, least, largest)"),
        (-1, "is 2 in the example, but dims says -1"),
        (2.0, "is given 2.0, which is neither a tw.Dim, nor a dim's name, nor 2, nor None for fixed"),
    ):
        with pytest.raises(DimDeclarationError) as caught:
            capture(torch.nn.Linear(4, 4), (torch.ones(2, 4),), None, {"input": {0: given}})
        assert str(caught.value) == (
            f"TW006 dims declaration is wrong: input axis 0 {said}\n"
            '  next: follow the arguments: dims={"input": {0: tw.Dim("batch", 1, 64)}}'
        )


def test_dims_of_nested_arguments_are_told_in_their_own_structure() -> None:
    class Nested(torch.nn.Module):
        def forward(self, ids: torch.Tensor, inputs: dict[str, torch.Tensor], rows: list[torch.Tensor]) -> torch.Tensor:
            return ids + inputs["x"] + rows[1]

    x, dim = torch.ones(2, 4), Dim("n", 1, 8)
    names, batch = "the arguments are ids, inputs, rows", 'tw.Dim("batch", 1, 64)'
    for dims, said, shown in (
        ({"inputs.x": (dim,)}, f"dims names 'inputs.x', {names}", '"inputs": {"k": {0: %s}}'),
        ({"inputs": {"X": (dim,)}}, "inputs has no part 'X': its parts are 'k', 'x'", '"inputs": {"k": {0: %s}}'),
        ({"rows": {2: (dim,)}}, "rows has no part 2: its parts are 0, 1", '"rows": {1: {0: %s}}'),
        ({"idz": (dim,)}, f"dims names 'idz', {names}", '"ids": {0: %s}'),
    ):
        with pytest.raises(DimDeclarationError) as caught:
            capture(Nested(), (x, {"k": x, "x": x}, [3, x]), None, dims)
        assert str(caught.value) == (
            f"TW006 dims declaration is wrong: {said}\n  next: follow the arguments: dims={{{shown % batch}}}"
        )


def test_the_dims_of_an_exported_program_keep_their_names(tmp_path: Path) -> None:
    shapes = {"input": {0: torch.export.Dim("rows", max=32)}}
    program = torch.export.export(torch.nn.Linear(4, 4), (torch.ones(3, 4),), dynamic_shapes=shapes)
    assert [d.name for d in capture(program).dims] == ["rows"]
    torch.export.save(program, tmp_path / "m.pt2")
    # a file does not hold the names
    assert [d.name for d in capture(tmp_path / "m.pt2").dims] == ["input_0"]


def test_dropout_that_evaluation_mode_does_not_switch_off() -> None:
    class Drops(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(x, 0.5)

    with pytest.raises(TrainingModeError) as caught:
        capture(Drops().eval(), (torch.ones(2, 4),))
    said = str(caught.value)
    assert "(at tests/frontend/test_capture_errors.py:" in said
    assert said.endswith(
        "next: pass training=self.training to that call; where it has that, call model.eval() before compiling"
    )


@pytest.mark.filterwarnings("ignore")
def test_examples_that_are_not_dense() -> None:
    rows = [torch.ones(2), torch.ones(3)]
    for given, kind in (
        (torch.nested.nested_tensor(rows), "nested"),
        (torch.nested.nested_tensor(rows, layout=torch.jagged), "nested"),
        (torch.ones(2, 3).to_sparse(), "sparse_coo"),
        (torch.ones(2, 3).to_sparse_csr(), "sparse_csr"),
    ):
        for dims in (None, {"input": {0: Dim("b", 1, 8)}}):
            with pytest.raises(ArgumentError) as caught:
                capture(torch.nn.ReLU(), (given,), None, dims)
            assert str(caught.value) == (
                f"TW001 arguments do not match the signature: input is a {kind} tensor\n"
                "  next: give example tensors that are dense"
            )


@pytest.mark.parametrize("read", [lambda pair: pair[1], lambda pair: pair[0] + pair[1]], ids=["returned", "used"])
def test_results_that_are_not_computed_are_refused(read: Callable[..., torch.Tensor]) -> None:
    class Places(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return read(torch.nn.functional.adaptive_max_pool2d(x, 2, return_indices=True))

    with pytest.raises(UnsupportedOpError) as caught:
        capture(Places().eval(), (torch.ones(1, 1, 4, 4),))
    (problem,) = caught.value.problems
    assert problem.op == "aten.adaptive_max_pool2d.default"
    assert problem.text == "its result 1 is not computed, 1 use"


class Scaled(torch.nn.Module):
    """A product behind something else, with the argument in between in another dtype where one is given."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.inner, self.dtype = torch.nn.Linear(3, 2), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner((x * 2).to(self.dtype or x.dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_an_example_of_another_dtype_than_the_weights_is_named_with_what_converts_it(dtype: torch.dtype) -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 2)).eval(), torch.ones(4, 3, dtype=dtype)
    with pytest.raises(DTypeError) as caught:
        capture(model, (x,))
    ours = {torch.float64: "f64", torch.bfloat16: "bf16", torch.int64: "i64"}[dtype]
    assert str(caught.value) == (
        f"TW002 wrong dtype: aten.linear.default: its operands must have one dtype, and are {ours} (input) and f32 "
        "(0.weight, 0.bias)  (at module 0)\n  next: convert: input.to(torch.float32)"
    )
    capture(model, (x.to(torch.float32),))


def test_operands_of_two_dtypes_are_converted_where_the_other_one_comes_from() -> None:
    x, half = torch.ones(4, 3), torch.nn.Linear(3, 2)
    half.bias.data = half.bias.data.to(torch.bfloat16)
    for model, given, step in (
        (Scaled(), x.double(), "convert: x.to(torch.float32)"),
        (Scaled(torch.float64), x, "convert where the model computes it: .to(torch.float32)"),
        (half, x, "give the model weights of one dtype: model.to(torch.float32)"),
    ):
        with pytest.raises(DTypeError) as caught:
            capture(model.eval(), (given,))
        assert caught.value.step == step
    capture(half.to(torch.float32), (x,))


def test_a_failure_of_the_models_own_is_told_from_one_of_the_capture() -> None:
    convolution, x = torch.nn.Conv1d(3, 2, 1).eval(), torch.ones(1, 3, 5)
    with pytest.raises(CaptureError, match="next: correct the arguments or the model: called on them without"):
        capture(convolution, (x.double(),))

    class Traceless(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_compiling():
                raise TypeError("not in a trace")
            return x + 1

    with pytest.raises(CaptureError, match="torch alone runs the model on these arguments"):
        capture(Traceless().eval(), (x,))


def test_an_operator_without_a_shape_rule_is_told_how_to_get_one() -> None:
    @torch.library.custom_op("tilewright_tests::ruleless", mutates_args=())
    def ruleless(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    library = torch.library.Library("tilewright_tests", "FRAGMENT")
    library.define("plain(Tensor x) -> Tensor")
    library.impl("plain", lambda x: x * 2, "CPU")

    class Calls(torch.nn.Module):
        def __init__(self, op: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.op = op

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.op(x)

    for name, op in (("ruleless", ruleless), ("plain", torch.ops.tilewright_tests.plain)):
        model = Calls(op).eval()
        with pytest.raises(CaptureError, match=r"it has no shape rule  \(at tests/frontend/test_capture") as caught:
            capture(model, (torch.ones(3),))
        step = caught.value.step
        # what it says to write is what makes it work
        assert f'tw.register_op("tilewright_tests::{name}", reference=f)' in step
        tw.register_op(f"tilewright_tests::{name}", reference=lambda x: x * 2)
        capture(model, (torch.ones(3),))


class Overlapping(torch.nn.Module):
    """A buffer that is the beginning of another one; a call writes to one of them or to neither."""

    def __init__(self, written: str | None) -> None:
        super().__init__()
        self.written = written
        self.register_buffer("whole", torch.zeros(8))
        self.register_buffer("part", self.whole[:4])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.written is not None:
            getattr(self, self.written)[1:] += 1
        y = x + 0
        y += self.whole
        return y[:, :4] + self.part


@pytest.mark.parametrize("written", ["whole", "part"])
def test_writing_to_buffers_that_share_memory_names_them_and_the_line(written: str) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Overlapping(written), (torch.ones(2, 8),))
    (problem,) = caught.value.problems
    assert problem.text == f"whole and part share memory, and the model writes to {written}"
    assert (problem.where or "").startswith("tests/frontend/test_capture_errors.py:")
    assert caught.value.step == (
        "register whole alone and take the view in forward: self.whole[...] in place of self.part"
    )
    capture(Overlapping(None), (torch.ones(2, 8),))


def test_an_attribute_that_python_keeps_with_a_parameter_is_named() -> None:
    class Marked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(3, 3)
            self.inner.weight.scale = 2.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.inner.weight.scale

    with pytest.raises(CaptureError) as caught:
        capture(Marked(), (torch.ones(2, 3),))
    assert "inner.weight: has the attribute scale in Python alone" in str(caught.value)
    assert caught.value.step == "keep it in an attribute of the module: self.scale = ..."


def test_a_call_that_torch_refuses_anywhere_is_the_users_to_correct() -> None:
    class Sorts(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(x.sort(0, stable=True))  # type: ignore[call-overload]

    with pytest.raises(TypeError):
        Sorts()(torch.ones(2, 3))
    with pytest.raises(CaptureError) as caught:
        capture(Sorts(), (torch.ones(2, 3),))
    assert caught.value.step == (
        "correct the call, which torch refuses in eager, too; give arguments by name: x.sort(dim=0, stable=True)"
    )

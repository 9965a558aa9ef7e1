"""Printed kernels, run by Triton's own interpreter, compute what the tile interpreter computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from bench.models import minilm
from tests.compiler.models import bert, dims, llama, token_inputs
from tests.ir.tile.kernels import CASES, Case
from tests.models.encoders import draw_call
from tilewright.backends.triton.interpreter import InterpretedKernels
from tilewright.backends.triton.machines import machines
from tilewright.backends.triton.printer import print_kernel
from tilewright.compiler.options import Options
from tilewright.compiler.target import pipeline_of
from tilewright.errors import LoweringError
from tilewright.frontend.capturing import capture
from tilewright.ir.backend import kernels_of
from tilewright.ir.choices import CompileOptions
from tilewright.ir.dims import DimSpace
from tilewright.ir.dtypes import BF16, F32, I8, I16, I32, I64, U8, DType
from tilewright.ir.graph_interpreter import interpret
from tilewright.ir.machine import Machine
from tilewright.ir.passing import Context, run_pipeline
from tilewright.ir.tile.base import buffer
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.structure import KernelOp, LaunchOp
from tilewright.ir.tile_interpreter import chosen_variant, run_kernel

MACHINES: dict[str, Machine] = {n: make() for b in ("cuda", "hip") for n, make in machines(b).items()}
NEVER_WRITTEN = 77


@pytest.fixture(scope="module")
def interpreter() -> Iterator[InterpretedKernels]:
    with InterpretedKernels() as found:
        yield found


def run_both(
    kernel: KernelOp, inputs: list[Any], outputs: list[Any], sizes: Mapping[str, int], interpreter: InterpretedKernels
) -> tuple[list[Any], list[Any]]:
    """The outputs by Triton's interpreter and by the tile interpreter."""
    printed = print_kernel(kernel)
    blank = [np.full_like(o, NEVER_WRITTEN) for o in outputs]
    numbers = [sizes[d] for d in kernel.dims.data]
    programs = printed.programs.evaluate(sizes)
    found = interpreter.run(printed.source, printed.symbol, [*inputs, *blank], len(outputs), numbers, programs)
    run_kernel(kernel, [*inputs, *outputs], sizes)
    return found, outputs


def near(found: Any, wanted: Any, *, steps: float) -> None:
    """Equal but for `steps` units in the last place of the dtype at the largest magnitude; integers are equal."""
    assert found.shape == wanted.shape
    if wanted.dtype.kind != "f":
        np.testing.assert_array_equal(found, wanted)
        return
    size = max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)))
    bound = steps * float(np.finfo(wanted.dtype).eps) * size
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound, equal_nan=True)


PAGED = [case for case in CASES if case.name.startswith("paged")]
NARROW = [case for case in CASES if any(buffer(v).dtype == BF16 for v in case.kernel.buffers)]
PRINTED = [case for case in CASES if case not in PAGED and case not in NARROW]


@pytest.mark.parametrize("case", PRINTED, ids=lambda c: c.name)
def test_every_shape_of_kernel_computes_the_same(
    case: Case, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    for sizes in case.dims(rng):
        inputs, outputs, _ = case.buffers(sizes, rng)
        for found, wanted in zip(*run_both(case.kernel, inputs, outputs, sizes, interpreter), strict=True):
            near(found, wanted, steps=64)


@pytest.mark.parametrize("dtype", [I8, U8, I16, I32, I64], ids=str)
@pytest.mark.parametrize("fn", ["shl", "shr"])
def test_a_shift_by_any_amount_computes_the_same(
    fn: str, dtype: DType, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    kind, bits = dtype.numpy(), dtype.bits
    b = KernelBuilder("by_any_amount", ["n"])
    x, by, y = b.buffer(["n"], dtype), b.buffer(["n"], dtype), b.output(["n"], dtype)
    z, w = b.output(["n"], dtype), b.output(["n"], dtype)
    (i,) = b.grid(["n"], [64])
    value = b.load(b.dense(x), [i], [64])
    for out, amount in ((y, b.load(b.dense(by), [i], [64])), (z, b.constant(bits, (64,), dtype)),
                        (w, b.constant(3, (64,), dtype))):  # fmt: skip
        b.store(b.map(fn, value, amount), b.dense(out), [i])
    kernel = b.finish()
    amounts = np.array([*range(0 if dtype == U8 else -bits - 1, bits + 2), 100, np.iinfo(kind).max]).astype(kind)
    values = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, amounts.size, kind, endpoint=True)
    blank = [np.zeros(amounts.size, kind) for _ in range(3)]
    found, wanted = run_both(kernel, [values, amounts], blank, {"n": amounts.size}, interpreter)
    for a, e in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, e)


def test_a_box_of_a_load_has_the_loads_fill(interpreter: InterpretedKernels, rng: np.random.Generator) -> None:
    b = KernelBuilder("boxed", ["n"])
    x, y = b.buffer(["n"], F32), b.output([16], F32)
    (i,) = b.grid(["n"], [32])
    b.store(b.slice(b.load(b.dense(x), [i], [32], 3.0), [16], [32]), b.dense(y), [0])
    kernel, given = b.finish(), rng.standard_normal(20).astype(np.float32)
    found, wanted = run_both(kernel, [given], [np.zeros(16, np.float32)], {"n": 20}, interpreter)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[0], [*given[16:], *[3.0] * 12])


@pytest.mark.parametrize("case", PAGED, ids=lambda c: c.name)
def test_what_is_not_printed_is_refused_by_name(case: Case) -> None:
    with pytest.raises(LoweringError, match=r"tile\.view_pages: paged views are not printed, in kernel @"):
        print_kernel(case.kernel)


def lowered(model: torch.nn.Module, machine: Machine, example: dict[str, Any]) -> Any:
    """The captured model with its module lowered to kernels for a machine."""
    captured = capture(model, (), example, dict.fromkeys(("input_ids", "attention_mask"), dims()))
    ctx = Context(machine=machine, dims=DimSpace(captured.dims), options=CompileOptions(determinism="run"))
    run_pipeline(pipeline_of(Options()), captured.module, ctx)
    return captured


class Both:
    """Runs a module's launches by both interpreters and compares every result of each."""

    def __init__(self, module: ModuleOp, interpreter: InterpretedKernels, steps: float) -> None:
        self.kernels, self.interpreter, self.steps = kernels_of(module), interpreter, steps
        self.launched: set[str] = set()

    def __call__(self, op: Any, operands: Any, sizes: Mapping[str, int]) -> list[torch.Tensor]:
        assert isinstance(op, LaunchOp)
        numbers = [d.evaluate(sizes) for d in op.dims.data]
        name = chosen_variant(op, self.kernels[op.callees.data[0]], numbers)
        kernel = self.kernels[name]
        self.launched.add(name)
        inputs = [t.detach().contiguous().numpy() for t in operands]
        outputs = [np.zeros([d.evaluate(sizes) for d in t.type.dims], t.type.dtype.numpy()) for t in op.outputs]
        own = dict(zip(kernel.dims.data, numbers, strict=True))
        for found, wanted in zip(*run_both(kernel, inputs, outputs, own, self.interpreter), strict=True):
            near(found, wanted, steps=self.steps)
        return [torch.from_numpy(a) for a in outputs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize(("family", "machine"), [("encoder", "sm_90"), ("decoder", "gfx942")])
def test_every_kernel_of_a_model_computes_the_same(
    family: str, machine: str, dtype: torch.dtype, interpreter: InterpretedKernels, seed: int
) -> None:
    model = (bert(seed, 1) if family == "encoder" else llama(seed, 1)).to(dtype)
    extra = {} if family == "encoder" else {"use_cache": False}
    captured = lowered(model, MACHINES[machine], {**token_inputs(2, 8), **extra})
    both = Both(captured.module, interpreter, steps=128 if dtype == torch.float32 else 4)
    for size in ((1, 1), (2, 19)):
        given = token_inputs(*size)
        result = next(iter(interpret(captured.module, given, weights=captured.weights, launch=both).values()))
        with torch.inference_mode():
            wanted = model(**given, **extra)[0]
        # the whole model, too: a row that the mask hides from everyone is nobody's to compare
        seen = given["attention_mask"].bool()
        near(result[seen].numpy(), wanted[seen].numpy(), steps=4096 if dtype == torch.float32 else 64)
    missed = set(both.kernels) - both.launched
    assert not {name for name in missed if not name.endswith("64")}, missed


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_every_kernel_of_minilm_computes_the_same(
    dtype: torch.dtype, interpreter: InterpretedKernels, rng: np.random.Generator
) -> None:
    model = minilm()
    # the six layers have the same kernels
    model.encoder.encoder.layer = model.encoder.encoder.layer[:1]
    model = model.to(dtype)
    captured = lowered(model, MACHINES["sm_90"], draw_call(np.random.default_rng(0), 3, 8))
    both = Both(captured.module, interpreter, steps=256 if dtype == torch.float32 else 4)
    for size in ((1, 1), (2, 37)):
        call = draw_call(rng, *size)
        result = next(iter(interpret(captured.module, call, weights=captured.weights, launch=both).values()))
        with torch.inference_mode():
            near(result.numpy(), model(**call).numpy(), steps=4096 if dtype == torch.float32 else 64)

"""Kernels compile to device objects where there is no device; what is missing or too large is a coded error."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from bench.models.minilm import build as minilm
from tests.backends.triton.printed_ops import KERNELS
from tests.compiler.models import bert, compile_bert, compile_llama, compile_mlp, llama, mlp
from tests.ir.tile.kernels import matmul
from tests.models.encoders import draw_call
from tilewright.backends.triton import build as building
from tilewright.backends.triton import cuda, rocm
from tilewright.backends.triton.machines import GPUS, machines
from tilewright.backends.triton.occupancy import warps_for
from tilewright.backends.triton.worker import compile_kernel
from tilewright.errors import CapacityError, OptionError, TargetError, ToolchainError
from tilewright.ir.backend import Backend, resolve_target
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.structure import KernelOp

# ELF's numbers for the two vendors' machines
ELF_MACHINE = {"cuda": 190, "rocm": 224}


def is_object(image: bytes, backend: str) -> bool:
    return image[:4] == b"\x7fELF" and int.from_bytes(image[18:20], "little") == ELF_MACHINE[backend]


def scale(columns: int = 48) -> KernelOp:
    b = KernelBuilder("scale", dims=["n"])
    x, y = b.buffer(["n", columns], F32), b.output(["n", columns], F32)
    i, j = b.grid(["n", columns], [4, columns])
    b.store(b.map("mul", b.load(b.dense(x), [i, j], [4, columns]), b.constant(2.0, (1, 1))), b.dense(y), [i, j])
    return b.finish()


@pytest.mark.parametrize("backend", [cuda, rocm], ids=lambda b: b.name)
def test_every_machine_compiles_a_kernel_and_says_how_to_launch_it(backend: Backend) -> None:
    for name, describe in backend.machines.items():
        built = backend.build([("scale", scale())], describe())["scale"].result()
        assert is_object(built.object, backend.name), name
        assert built.grid is not None
        assert built.grid.programs == (Expr.of("n") + 3) // 4
        assert built.grid.threads == GPUS[name].threads
        assert "def scale(x0, y0, n):" in built.source


def test_warps_follow_the_tiles() -> None:
    def of(rows: int, columns: int, k: int) -> int:
        return warps_for(matmul(rows, columns, k).kernel, GPUS["sm_90"])

    assert [of(16, 64, 64), of(64, 64, 64), of(128, 128, 64), of(256, 256, 64)] == [4, 4, 8, 8]
    assert [warps_for(scale(n), GPUS["sm_90"]) for n in (7, 64, 128, 256, 3000)] == [1, 1, 2, 4, 8]
    assert [warps_for(scale(n), GPUS["gfx942"]) for n in (64, 256, 3000)] == [1, 2, 8]


@pytest.mark.parametrize(("machine", "text"), [("sm_90", "ld.global.v4.b32"), ("gfx942", "load_dwordx4")])
def test_rows_are_read_by_vectors(machine: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    gpu, printed = GPUS[machine], building.print_kernel(scale(512))
    head = {
        "symbol": printed.symbol, "signature": printed.signature, "backend": gpu.backend, "arch": gpu.arch,
        "threads": gpu.threads, "warps": 4, "stages": 2,
    }  # fmt: skip
    made = compile_kernel(head, printed.source, tmp_path)
    assert text in made.asm["ptx" if gpu.backend == "cuda" else "amdgcn"]


QUICK = [k for k in KERNELS if k.sym_name.data != "line_orders"]
SLOW = [pytest.param(k, marks=pytest.mark.slow) for k in KERNELS if k not in QUICK]


@pytest.mark.parametrize("backend", [cuda, rocm], ids=lambda b: b.name)
@pytest.mark.parametrize(
    "kernel", [*QUICK, *(pytest.param(k, marks=pytest.mark.slow) for k in KERNELS if k not in QUICK)]
)
def test_ops_of_more_than_a_line_compile(kernel: KernelOp, backend: Backend) -> None:
    name, machine = kernel.sym_name.data, backend.machines[backend.default_machine()]()
    built = backend.build([(name, kernel)], machine)[name].result()
    assert is_object(built.object, backend.name)


def test_a_model_compiles_and_says_why_it_does_not_run(seed: int) -> None:
    compiled = compile_mlp(mlp(seed), target="cuda", precision="bf16")
    program = compiled.code.program
    assert program.target == "cuda:sm_90"
    assert {step.device for step in program.main.steps} == {"cuda"}
    assert set(compiled.code.objects) == set(program.symbols)
    assert all(is_object(image, "cuda") for image in compiled.code.objects.values())
    grids = [k.grid for k in program.kernels]
    assert all(g is not None and g.programs != 0 and g.threads in (32, 64, 128, 256) for g in grids)
    assert "tl.dot(" in "".join(compiled.sources.values())
    assert "predicted" in str(compiled.report)
    with pytest.raises(TargetError, match="compiled for cuda:sm_90, and this process has no executor"):
        compiled(torch.randn(3, 24))
    # found in the cache the second time, objects and all
    again = compile_mlp(mlp(seed), target="cuda", precision="bf16")
    assert again.facts.cache == "hit"
    assert again.code.objects == compiled.code.objects


@tw.kernel("x f32[rows, 48] -> y f32[rows, 48]")
def doubled(b: Any, x: Any, y: Any) -> None:
    (i,) = b.grid(["rows"], [4])
    tile = b.load(b.dense(x), [i, 0], [4, 48], 0.0)
    b.store(b.map("add", tile, tile), b.dense(y), [i, 0])


def test_a_users_kernel_compiles_and_says_why_it_does_not_run() -> None:
    compiled = doubled.compile("cuda")
    assert {step.device for step in compiled.code.program.main.steps} == {"cuda"}
    assert "tl.store(" in compiled.sources["doubled"]
    assert "predicted" in str(compiled.report)
    with pytest.raises(TargetError, match="compiled for cuda:sm_90, and this process has no executor"):
        compiled(torch.ones(3, 48))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("target", ["cuda:sm_90", "rocm:gfx942"])
def test_a_sentence_encoder_and_a_decoder_compile(target: str, precision: str, seed: int) -> None:
    dtype = torch.float16 if precision == "f16" else torch.float32
    options: dict[str, Any] = {"target": target, **({"precision": "bf16"} if precision == "bf16" else {})}
    example = draw_call(np.random.default_rng(seed), 3, 8)
    sizes = tw.Dim("batch", 1, 64), tw.Dim("tokens", 1, 256)
    made: list[Any] = [
        tw.compile(minilm().to(dtype), kwargs=example, dims=dict.fromkeys(example, sizes), **options),
        compile_llama(llama(seed).to(dtype), **options),
        compile_bert(bert(seed).to(dtype), **options),
    ]
    for compiled in made:
        assert all(is_object(image, target.partition(":")[0]) for image in compiled.code.objects.values())


def test_shared_memory_beyond_the_machines_is_a_coded_error(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machines("cuda")["sm_90"]()
    monkeypatch.setattr(building, "ask", lambda head, source: ({"shared": 1 << 20, "threads": 128}, b""))
    with pytest.raises(CapacityError, match="needs 1048576 bytes of shared memory, sm_90 has 232448"):
        cuda.build([("scale", scale())], machine)["scale"].result()


def test_what_triton_refuses_is_a_coded_error(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machines("cuda")["sm_90"]()
    printed = building.print_kernel(scale())
    broken = replace(printed, source=printed.source.replace("tl.store", "tl.no_such_thing"))
    monkeypatch.setattr(building, "print_kernel", lambda kernel, **launched: broken)
    with pytest.raises(ToolchainError, match=r"(?s)Triton does not compile kernel scale for sm_90: .*no_such_thing"):
        cuda.build([("scale", scale())], machine)["scale"].result()


def test_without_triton_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "find_spec", lambda name: None)
    assert building.probe() == "pip install 'tilewright[gpu]'"
    monkeypatch.setattr("tilewright.ir.backend.backends", lambda: {"cuda": replace(cuda, probe=building.probe)})
    with pytest.raises(TargetError, match=r"cuda is not ready: pip install 'tilewright\[gpu\]'"):
        resolve_target("cuda:sm_90")


def test_a_preference_list_takes_what_runs_here(seed: int) -> None:
    backend, _ = resolve_target(["cuda:sm_90", "cpu:generic"])
    assert backend.name == "cpu"
    with pytest.raises(TargetError, match="cuda:sm_90 compiles here, but this process has no executor for it"):
        resolve_target(["cuda:sm_90", "rocm"])


def test_an_order_that_the_device_does_not_keep_is_not_promised(seed: int) -> None:
    with pytest.raises(OptionError, match="determinism='batch' is not promised by cuda"):
        compile_mlp(mlp(seed), target="cuda", determinism="batch")


def test_the_backends_are_entry_points() -> None:
    assert {"cpu", "cuda", "rocm", "toy"} <= {point.name for point in entry_points(group="tilewright.backends")}


@pytest.mark.parametrize("backend", [cuda, rocm], ids=lambda b: b.name)
def test_machines_are_described_alike_and_differ_in_their_facts(backend: Backend) -> None:
    described = [describe() for describe in backend.machines.values()]
    assert {m.rules.extent for m in described} == {"power-of-two"}
    assert {m.rules.dot_least for m in described} == {16}
    assert len({m.memory.bandwidth for m in described}) == len(described)
    assert all(backend.default_machine() in backend.machines for _ in described)

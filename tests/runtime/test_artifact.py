"""Artifacts: the same bits after loading, without compilers; what is damaged or foreign is refused or rebuilt."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.native_kernels import GENERIC
from tests.runtime.programs import SYMBOLS, affine, affine_program, code, kernel_object, pool, values
from tilewright.backends.host.driver import driver_text
from tilewright.backends.host.mlir import compile_object
from tilewright.errors import ArtifactError, CpuFeatureError, OptionError, TilewrightError
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import F32
from tilewright.runtime import native
from tilewright.runtime.artifact import (
    Artifact,
    KernelObject,
    NativeCode,
    Rebuildable,
    load_artifact,
    save_artifact,
)
from tilewright.runtime.artifact_file import Container, NewSection, write_container
from tilewright.runtime.executor import Executable
from tilewright.runtime.facts import Declined, Facts
from tilewright.runtime.prepare import prepare_weights
from tilewright.runtime.program import Program, TensorSpec
from tilewright.runtime.safetensors_file import SafetensorsFile

IR = {"graph": "graph.func @main", "tile": "tile.kernel @k \u00e9"}
FACTS = Facts(model="affine", applied={"fuse": 2}, refused=(Declined("fuse", "graph.map", "too many ops"),))


def native_code(features: tuple[str, ...] = ()) -> NativeCode:
    kernels = tuple(KernelObject(f"key-{symbol}", kernel_object(symbol), features) for symbol in SYMBOLS)
    return NativeCode(platform.machine(), kernels, compile_object(driver_text(GENERIC), GENERIC))


def save(path: Path, weights: Any, **changes: Any) -> Path:
    held = prepare_weights(affine_program(), code(), pool(), weights)
    assert isinstance(held.stored, SafetensorsFile)
    save_artifact(
        path,
        **{
            "program": affine_program(),
            "ir": IR,
            "native_code": native_code(),
            "weights": held.stored,
            "facts": FACTS,
            **changes,
        },
    )
    return path


def run(artifact: Artifact, x: Any) -> Any:
    library = native.load([kernel.data for kernel in artifact.native.kernels], artifact.program.symbols)
    return Executable(artifact.program, library, artifact.weights, pool())(x)


def test_a_loaded_artifact_computes_the_same_bits(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = values(rng)
    saved = save(tmp_path / "a.tw", weights)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    saved = saved.rename(moved / "b.tw")
    x = rng.standard_normal((7, 13), np.float32)
    for verify in ("all", "code"):
        artifact = load_artifact(saved, verify=verify)  # type: ignore[arg-type]
        assert artifact.program == affine_program()
        assert artifact.ir == IR
        assert artifact.facts == FACTS
        assert not artifact.rebuilt
        np.testing.assert_array_equal(run(artifact, x), affine(x, weights))
        # Mapped from the file, aligned as the kernels want it.
        assert artifact.weights.weight("bias").address % 64 == 0


LEAN = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "xdsl", "ml_dtypes", "torch_mlir", "rich", "typer", "transformers"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
import numpy as np
import tilewright
from tilewright.runtime import native
from tilewright.runtime.artifact import load_artifact
from tilewright.runtime.executor import Executable
from tilewright.runtime.threads import Driver, ThreadPool

artifact = load_artifact(sys.argv[1])
pool = ThreadPool(Driver(artifact.native.driver))
code = native.load([kernel.data for kernel in artifact.native.kernels], artifact.program.symbols)
run = Executable(artifact.program, code, artifact.weights, pool)
x = np.load(sys.argv[2])
first = run(x)
run.update_weights({"scale": np.ones(1, np.float32), "bias": np.ones(1, np.float32)})
np.save(sys.argv[3], np.stack([first, run(x)]))
"""


def test_loading_needs_numpy_and_llvmlite_alone(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = values(rng)
    saved = save(tmp_path / "a.tw", weights)
    x = rng.standard_normal((7, 13), np.float32)
    np.save(tmp_path / "x.npy", x)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", LEAN, str(saved), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = np.load(tmp_path / "y.npy")
    np.testing.assert_array_equal(first, affine(x, weights))
    np.testing.assert_array_equal(second, affine(x, {"scale": np.ones(1, np.float32), "bias": np.ones(1, np.float32)}))


SAVING = """
import sys
from pathlib import Path
import numpy as np
from tests.runtime.test_artifact import save
save(Path(sys.argv[1]), {"scale": np.array([1.25], np.float32), "bias": np.array([-3], np.float32)})
"""


def test_the_same_inputs_give_the_same_file_in_any_process(tmp_path: Path) -> None:
    contents = set()
    for home, seed in (("/nowhere", "1"), (str(tmp_path), "2")):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "HOME": home, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()}
        subprocess.run([sys.executable, "-c", SAVING, "a.tw"], env=environment, cwd=folder, check=True)
        contents.add((folder / "a.tw").read_bytes())
    assert len(contents) == 1
    content = contents.pop()
    assert str(tmp_path).encode() not in content


def test_any_flipped_bit_is_found(tmp_path: Path, rng: np.random.Generator) -> None:
    data = save(tmp_path / "a", values(rng)).read_bytes()
    path = tmp_path / "b"
    where = {*rng.integers(0, len(data), 150).tolist(), *range(80)}
    for at in where:
        altered = bytearray(data)
        altered[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(altered)
        with pytest.raises(TilewrightError) as raised:
            load_artifact(path)
        assert raised.value.code in ("TW042", "TW043")


def test_damage_names_the_section(tmp_path: Path, rng: np.random.Generator) -> None:
    saved = save(tmp_path / "a", values(rng))
    sections = Container(saved).sections
    assert list(sections) == [
        *("program", "ir/graph", "ir/tile", "kernel/key-affine", "kernel/key-affine_small", "driver", "weights")
    ]
    for name, section in sections.items():
        path = tmp_path / "b"
        shutil.copy(saved, path)
        with open(path, "r+b") as file:
            file.seek(section.end - 1)
            last = file.read(1)[0]
            file.seek(section.end - 1)
            file.write(bytes([last ^ 0x10]))
        with pytest.raises(ArtifactError) as raised:
            load_artifact(path)
        assert str(raised.value) == (
            f"TW042 artifact is damaged: {path} is altered in section {name}: its hash does not match\n"
            "  next: save or copy the artifact again"
        )
        os.truncate(path, section.end - 1)
        with pytest.raises(ArtifactError, match="is truncated"):
            load_artifact(path)


def test_code_alone_can_be_verified(tmp_path: Path, rng: np.random.Generator) -> None:
    saved = save(tmp_path / "a", values(rng))
    weights = Container(saved).section("weights")
    with open(saved, "r+b") as file:
        file.seek(weights.end - 1)
        last = file.read(1)[0]
        file.seek(weights.end - 1)
        file.write(bytes([last ^ 1]))
    load_artifact(saved, verify="code")
    with pytest.raises(ArtifactError, match="section weights"):
        load_artifact(saved)
    with pytest.raises(OptionError) as raised:
        load_artifact(saved, verify="none")  # type: ignore[arg-type]
    assert str(raised.value) == ("TW008 wrong option: verify='none' is neither 'all' nor 'code'\n  next: verify='all'")


def test_kernels_for_another_cpu_are_a_coded_error(tmp_path: Path, rng: np.random.Generator) -> None:
    saved = save(tmp_path / "a", values(rng), native_code=native_code(("avx99", "sse2")))
    with pytest.raises(CpuFeatureError) as raised:
        load_artifact(saved)
    assert str(raised.value) == (
        f"TW044 CPU lacks features: the kernels in {saved} need avx99, which this CPU does not have\n"
        "  next: tw.load(path, native=False) rebuilds them here"
    )
    saved = save(tmp_path / "b", values(rng), native_code=replace(native_code(), architecture="pdp11"))
    with pytest.raises(CpuFeatureError, match="need pdp11, which this CPU does not have"):
        load_artifact(saved)


@pytest.mark.parametrize("use_native", [True, False])
def test_a_rebuild_gets_the_ir_and_gives_the_code(use_native: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    weights = values(rng)
    saved = save(tmp_path / "a", weights, native_code=native_code(("avx99",)))
    seen: list[Rebuildable] = []

    def rebuild(parts: Rebuildable) -> tuple[Program, NativeCode]:
        seen.append(parts)
        return parts.program, native_code()

    artifact = load_artifact(saved, rebuild=rebuild, use_native=use_native)
    assert artifact.rebuilt
    assert [(p.ir, p.missing, p.facts) for p in seen] == [(IR, ("avx99",) if use_native else (), FACTS)]
    x = rng.standard_normal((2, 3), np.float32)
    np.testing.assert_array_equal(run(artifact, x), affine(x, weights))


def test_native_code_is_not_rebuilt_without_need(tmp_path: Path, rng: np.random.Generator) -> None:
    saved = save(tmp_path / "a", values(rng))

    def rebuild(parts: Rebuildable) -> tuple[Program, NativeCode]:
        pytest.fail("the kernels run here")

    assert not load_artifact(saved, rebuild=rebuild).rebuilt
    with pytest.raises(OptionError, match="can be rebuilt only where the compiler is installed"):
        load_artifact(saved, use_native=False)


def test_a_foreign_program_in_a_right_container_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    saved = save(tmp_path / "a", values(rng))
    container = Container(saved)
    parts = {name: container.read(name) for name in container.sections}
    step = b'"guard":"n"'
    assert step in parts["program"]
    swaps: list[tuple[str, bytes, str]] = [
        ("program", b"{}", "malformed"),
        ("program", parts["program"].replace(step, b'"guard":"z"'), "section program: first: main: its guard uses z"),
        ("ir/tile", b"\xff", "section ir/tile"),
        ("weights", b"{}" * 100, "section weights"),
        ("weights", parts["weights"].replace(b"packed:power", b"packed:tower"), "packed:power is missing"),
    ]
    for name, content, said in swaps:
        path = tmp_path / "b"
        changed = {**parts, name: content}
        write_container(path, container.facts, [NewSection.of(n, c) for n, c in changed.items()])
        with pytest.raises(ArtifactError, match=said):
            load_artifact(path)
    changes: list[dict[str, Any]] = [{"kernels": [{}]}, {"ir": ["other"]}, {"facts": {"model": 1}}]
    for header in (None, {}, *({**container.facts, **change} for change in changes)):
        write_container(path, header, [NewSection.of(n, c) for n, c in parts.items()])
        with pytest.raises(ArtifactError):
            load_artifact(path)


def test_a_rebuilt_program_must_hold_the_stored_tensors(tmp_path: Path, rng: np.random.Generator) -> None:
    saved = save(tmp_path / "a", values(rng))
    other = affine_program(packed=(TensorSpec("power", (Expr.of(2),), F32),))
    with pytest.raises(ArtifactError, match=r"packed:power is float32 \[1\]; the program holds float32 \[2\]"):
        load_artifact(saved, rebuild=lambda parts: (other, native_code()), use_native=False)


def test_an_artifact_that_cannot_be_written(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(ArtifactError) as raised:
        save(tmp_path / "none" / "a", values(rng))
    assert str(raised.value) == (
        "TW046 artifact cannot be read or written: "
        f"{tmp_path / 'none' / 'a'} cannot be written: there is no folder {tmp_path / 'none'}\n"
        f"  next: mkdir -p {tmp_path / 'none'}"
    )


def test_features_are_those_of_all_kernels() -> None:
    kernels = (KernelObject("a", b"", ("avx2",)), KernelObject("b", b"", ("fma", "avx2")))
    assert NativeCode(platform.machine(), kernels, b"").features == {"avx2", "fma"}
    assert NativeCode(platform.machine(), (KernelObject("a", b"", tuple(native.cpu_features())),), b"").missing() == []

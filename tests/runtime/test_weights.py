"""A state dict against a program: everything that does not fit in one error; keys by content and by file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from tests.runtime.programs import ONE, affine_program, executable, values
from tilewright.errors import WeightsError
from tilewright.ir.dims import Expr
from tilewright.ir.dtypes import BF16, F32
from tilewright.runtime.program import Program, TensorSpec
from tilewright.runtime.safetensors_file import SafetensorsFile
from tilewright.runtime.weights import WeightFiles, WeightSet, check_source, content_key


def program(**changes: Any) -> Program:
    weights = (TensorSpec("embed.weight", (Expr.of(2), Expr.of(3)), F32), TensorSpec("norm.bias", (ONE,), BF16))
    return affine_program(
        weights=weights, tied=(("head.weight", "embed.weight"),), ignored=("position_ids",), **changes
    )


def source(**changes: Any) -> dict[str, Any]:
    return {"embed.weight": torch.ones(2, 3), "norm.bias": torch.ones(1).bfloat16(), **changes}


def refused(given: dict[str, Any]) -> str:
    with pytest.raises(WeightsError) as raised:
        check_source(program(), given)
    return str(raised.value)


def test_a_fitting_state_dict_is_taken() -> None:
    fits = source(position_ids=torch.arange(3))
    assert check_source(program(), fits) == {"embed.weight": "embed.weight", "norm.bias": "norm.bias"}
    fits["head.weight"] = fits["embed.weight"]
    check_source(program(), fits)
    fits["head.weight"] = fits["embed.weight"].clone()
    check_source(program(), fits)
    del fits["embed.weight"]
    assert check_source(program(), fits)["embed.weight"] == "head.weight"


def test_everything_wrong_comes_at_once() -> None:
    given = {"embed.weight": torch.ones(3, 2).double(), "norm.bais": torch.ones(1), "head.weight": [1], "more": None}
    assert refused(given) == (
        "TW040 weights do not fit: 5 problems\n"
        "  - embed.weight is float64 [3, 2], in the program float32 [2, 3]\n"
        "  - head.weight is no tensor that a program can read; it must be float32 [2, 3]\n"
        "  - norm.bias is missing: bfloat16 [1]\n"
        "  - norm.bais is no weight of the program; did you mean norm.bias?\n"
        "  - more is no weight of the program\n"
        "  next: pass the state_dict() of the model that was compiled, with other values"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "a NoneType is no mapping from names to tensors\n  next: pass a state dict: model.state_dict(), "
         "or WeightFiles of a checkpoint"),
        ([1], "a list is no mapping from names to tensors\n  next: pass a state dict: model.state_dict(), "
         "or WeightFiles of a checkpoint"),
        (torch.nn.Linear(1, 1), "a Linear is no mapping from names to tensors\n"
         "  next: pass its tensors: update_weights(model.state_dict())"),
    ],
)  # fmt: skip
def test_what_is_no_state_dict(given: Any, said: str) -> None:
    assert refused(given) == f"TW040 weights do not fit: {said}"


def test_tied_weights_must_agree() -> None:
    given = source(**{"head.weight": torch.full((2, 3), torch.nan)})
    assert refused(given) == (
        "TW040 weights do not fit: "
        "head.weight and embed.weight are one tensor in the program, but their values differ\n"
        "  next: pass the state_dict() of the model that was compiled, with other values"
    )
    given["embed.weight"] = given["head.weight"].clone()
    check_source(program(), given)


def test_other_devices_and_layouts() -> None:
    given = {"embed.weight": torch.ones(2, 3, device="meta"), "norm.bias": torch.ones(1).bfloat16()}
    assert "embed.weight is on meta, not on the CPU" in refused(given)
    given["embed.weight"] = torch.ones(2, 3).to_sparse()
    assert "embed.weight is sparse; the program reads it dense" in refused(given)


def test_big_endian_and_strided_weights_are_right(rng: np.random.Generator) -> None:
    weights = values(rng)
    x = np.ones((1, 1), np.float32)
    odd = {"scale": weights["scale"].astype(">f4"), "bias": torch.from_numpy(np.repeat(weights["bias"], 3))[::3]}
    np.testing.assert_array_equal(executable(affine_program(), odd)(x), executable(affine_program(), weights)(x))


def test_checkpoints_in_several_files(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = values(rng)
    for name, value in weights.items():
        safetensors.numpy.save_file({name: value}, tmp_path / f"{name}.safetensors")
    paths = sorted(tmp_path.iterdir())
    files = WeightFiles(paths)
    assert sorted(files) == sorted(weights)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(executable(affine_program(), files)(x), executable(affine_program(), weights)(x))
    with pytest.raises(WeightsError, match=r"scale is in .* and in .*\n  next: give only the files of one checkpoint"):
        WeightFiles([*paths, paths[-1]])


def test_a_foreign_dtype_in_a_checkpoint_is_reported_not_raised(tmp_path: Path) -> None:
    tensors = {"scale": np.ones(1, np.uint32), "bias": np.ones(1, np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "w")
    with pytest.raises(WeightsError) as raised:
        check_source(affine_program(), WeightFiles([tmp_path / "w"]))
    assert str(raised.value) == (
        "TW040 weights do not fit: scale is no tensor that a program can read; it must be float32 [1]\n"
        "  next: pass the state_dict() of the model that was compiled, with other values"
    )


def test_content_keys_tell_contents_apart_and_nothing_else(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((2, 3)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    key = content_key({"a": a, "b": b})
    assert key == content_key({"b": torch.from_numpy(b), "a": np.asfortranarray(a)})
    changed = a.copy()
    changed[0, 0] = -changed[0, 0]
    others = [
        {"a": changed, "b": b},
        {"a": a.reshape(3, 2), "b": b},
        {"a": a, "c": b},
        {"a": a},
        {"a": a.view(np.int32), "b": b},
        {"a": np.concatenate([a.ravel(), b]), "b": b[:0]},
    ]
    keys = {key, *(content_key(other) for other in others)}
    assert len(keys) == 1 + len(others)


def test_a_weight_set_holds_what_the_program_stores(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = values(rng)
    run = executable(affine_program(), weights, tmp_path / "w")
    file = SafetensorsFile(tmp_path / "w")
    assert list(file) == sorted(file) == ["packed:power", "weight:bias", "weight:scale"]
    np.testing.assert_array_equal(file["weight:bias"].numpy(), weights["bias"])
    np.testing.assert_array_equal(file["packed:power"].numpy(), weights["scale"] * weights["scale"] + weights["bias"])
    assert run.weights.stored["weight:bias"].bytes() == file["weight:bias"].bytes()
    other = affine_program(packed=(TensorSpec("power", (Expr.of(2),), F32), TensorSpec("more", (ONE,), BF16)))
    with pytest.raises(WeightsError) as raised:
        WeightSet(other, file)
    assert str(raised.value) == (
        "TW040 weights do not fit: 2 problems\n"
        "  - packed:power is float32 [1]; the program holds float32 [2]\n"
        "  - packed:more is missing; the program holds bfloat16 [1]\n"
        "  next: prepare the weights again: compile again, or save the artifact again"
    )


def test_weights_that_only_prepare_reads_are_not_kept(rng: np.random.Generator) -> None:
    base = affine_program()
    first = base.main.steps[0]
    alone = affine_program(main=type(base.main)((first,), base.main.slots))
    assert alone.resident == (1,)
    assert [spec.name for spec in alone.stored] == ["weight:bias", "packed:power"]

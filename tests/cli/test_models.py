"""MODEL on the command line: every form it may take, and what is said about anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tilewright.cli.models import is_artifact, open_model
from tilewright.errors import ModelInputError

KINDS = "a .pt2 file, a directory with config.json and safetensors, or module:callable"


def refusal(text: str) -> str:
    with pytest.raises(ModelInputError) as caught:
        open_model(text)
    return str(caught.value).removeprefix("TW009 not a model: ")


def test_a_callable_gives_the_model_and_its_arguments() -> None:
    found = open_model("sample_models:counter")
    assert type(found.model).__name__ == "Counter"
    assert len(found.args) == 1
    assert found.kwargs == {}
    assert found.dims is None


def test_callables_that_do_not() -> None:
    folder = Path.cwd()
    assert refusal("sample_models:raises") == (
        f"sample_models:raises raised ValueError: no weights today at {folder}/sample_models.py:49\n"
        "  next: make this run first: python -c 'import sample_models as m; m.raises()'"
    )
    assert refusal("sample_models:two") == (
        "sample_models:two returned a tuple of 2, not (model, args, kwargs)\n"
        "  next: end it with: return model, (example,), {}"
    )
    assert refusal("sample_models:three") == (
        "sample_models has no callable 'three'\n"
        "  next: name one of its callables: Any, Net, make, Counter, counter, raises, two"
    )
    assert refusal("no_such_module:make") == (
        f"there is no module 'no_such_module' (looked in {folder} and on the module path)\n"
        f"  next: run it where the module can be imported, or export PYTHONPATH=/its/folder; MODEL is {KINDS}"
    )
    Path("half_there.py").write_text("import numpy\nimport no_such_dependency\n")
    assert refusal("half_there:make").startswith(
        "half_there:make raised ModuleNotFoundError: No module named 'no_such_dependency' at "
        f"{folder}/half_there.py:2\n"
    )


def test_a_path_of_a_program_is_handed_on() -> None:
    assert open_model("net.pt2").model == Path("net.pt2")


def test_other_paths(tmp_path: Path) -> None:
    assert refusal("nothing") == f"there is no nothing\n  next: give {KINDS}"
    assert refusal("") == f"MODEL is an empty text\n  next: give {KINDS}"
    assert refusal("nets/one.py:make") == (
        "nets/one.py names a file, and a module goes by its name\n  next: write nets.one:make"
    )
    (tmp_path / "net.tilewright").write_bytes(b"")
    assert refusal(f"{tmp_path}/net.tilewright") == (
        f"{tmp_path}/net.tilewright is compiled already\n  next: give {KINDS}; run and report read what is compiled"
    )
    assert (
        refusal("sample_models.py")
        == f"sample_models.py is neither a .pt2 file nor a model directory\n  next: give {KINDS}"
    )
    assert (
        refusal(str(tmp_path)) == f"{tmp_path} has no config.json\n  next: give a directory that save_pretrained wrote"
    )
    (tmp_path / "config.json").write_text("{")
    assert refusal(str(tmp_path)).startswith(f"{tmp_path}/config.json cannot be read: ")
    (tmp_path / "config.json").write_text("[]")
    assert (
        refusal(str(tmp_path))
        == f"{tmp_path}/config.json does not hold a config\n  next: save the model again with save_pretrained"
    )
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["FutureModel"]}))
    assert refusal(str(tmp_path)) == (
        f"{tmp_path} has no .safetensors file\n"
        "  next: save it with model.save_pretrained(folder): safetensors is its default"
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert refusal(str(tmp_path)).startswith(
        f"{tmp_path}/config.json names the architecture FutureModel, which transformers "
    )


def test_an_artifact_is_told_from_a_model(tmp_path: Path) -> None:
    for name in ("a.tilewright", "a.pt2"):
        (tmp_path / name).write_bytes(b"")
    assert is_artifact(str(tmp_path / "a.tilewright"))
    assert not is_artifact(str(tmp_path / "a.pt2"))
    assert not is_artifact(str(tmp_path))
    assert not is_artifact("sample_models:make")


def bert(folder: Path, **changed: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=23,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=40,
        **changed,
    )
    model = transformers.BertModel(config).eval()
    model.save_pretrained(folder)
    return model


def test_a_model_directory_gives_its_class_its_weights_and_tokens_that_it_knows(tmp_path: Path) -> None:
    saved = bert(tmp_path)
    found = open_model(str(tmp_path), seed=1)
    assert type(found.model) is type(saved)
    assert not found.model.training
    for name, tensor in saved.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name
    ids = found.kwargs["input_ids"]
    assert ids.min() >= 0
    assert ids.max() < 23
    assert torch.equal(found.kwargs["attention_mask"], torch.ones_like(ids))
    assert [str(d) for d in (found.dims or {})["input_ids"]] == ["batch: 1..64", "tokens: 1..40"]
    assert found.note == "inputs from config.json: input_ids below 23 and attention_mask"
    assert not torch.equal(ids, open_model(str(tmp_path), seed=2).kwargs["input_ids"])


def test_a_model_that_reads_no_tokens_needs_a_function(tmp_path: Path) -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, image_size=8, patch_size=4
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    assert refusal(str(tmp_path)) == (
        "ViTModel does not take input_ids and attention_mask alone\n"
        "  next: load it in Python and compile it with its own example inputs (on the command line: module:callable)"
    )

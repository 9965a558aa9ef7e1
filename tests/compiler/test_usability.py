"""What a newcomer meets first: options, paths and questions that are a little off, answered in full and at once."""

from __future__ import annotations

import copy
import gc
import pickle  # noqa: TID251  (that it is refused is what is tested)
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilewright as tw
from tests.compiler.models import Mlp, bert, close, compile_mlp, mlp, token_inputs
from tests.models.decoders import VOCABULARY, Shape
from tilewright.compiler.options import Options
from tilewright.errors import (
    ArgumentError,
    ArtifactAccessError,
    CacheError,
    CaptureError,
    OptionError,
    PassOptionError,
    WeightsError,
)
from tilewright.passes.fold import Fold
from tilewright.runtime.cache import default_root


@pytest.fixture(scope="module")
def model() -> Mlp:
    return mlp(61)


@pytest.fixture(scope="module")
def compiled(model: Mlp) -> Any:
    return compile_mlp(model, check="first")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"precision": "fp16"},
            "precision='fp16' is not one of 'model', 'f32', 'bf16'\n  next: write precision='bf16'",
        ),
        (
            {"precision": "f16"},
            "precision='f16' needs a machine with f16 products; the CPU classes have none\n"
            "  next: write precision='bf16'",
        ),
        (
            {"determinism": "exakt"},
            "determinism='exakt' is not one of None, 'free', 'run', 'batch'\n  next: write determinism='batch'",
        ),
        (
            {"determinism": "exact"},
            "determinism='exact' is not available: the CPU classes round products differently\n"
            "  next: write determinism='batch'",
        ),
        (
            {"memory_limit": -1},
            "memory_limit=-1 is not a positive number of bytes, or a text like '2GiB'\n"
            "  next: write memory_limit='1GiB'",
        ),
        (
            {"precision": torch.bfloat16},
            "precision=torch.bfloat16 is not one of 'model', 'f32', 'bf16'\n  next: write precision='bf16'",
        ),
        (
            {"precision": "float32"},
            "precision='float32' is not one of 'model', 'f32', 'bf16'\n  next: write precision='f32'",
        ),
        (
            {"determinism": True},
            "determinism=True is not one of None, 'free', 'run', 'batch'\n  next: write determinism='batch'",
        ),
        ({"check": "all"}, "check='all' is not one of None, 'first'\n  next: write check='first'"),
        ({"check": ""}, "check='' is not one of None, 'first'\n  next: write check=None"),
        ({"target": []}, "target=[] names none\n  next: write target='cpu'"),
        ({"target": ["cpu", 3]}, "target=['cpu', 3] is not a target or a list of them\n  next: write target='cpu'"),
        ({"memory_limit": "1 apple"}, "'1 apple' is not a number of bytes\n  next: write 500000000B, 512MiB or 2GiB"),
    ],
)
def test_options_name_what_works_and_suggest_nothing_that_does_not(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as raised:
        Options.of(given)
    assert str(raised.value) == f"TW008 wrong option: {said}"


def test_a_memory_limit_may_be_a_text() -> None:
    assert Options.of({"memory_limit": "1.5KiB"}).memory_limit == 1536


def test_patterns_that_do_not_exist_are_refused_before_anything_is_compiled(model: Mlp) -> None:
    known = (
        "attention, attention-mask, experts, gelu, norm, norm-of-narrow-values, polynomial-attention, "
        "relu, rotary, scaled-norm, "
        "shifted-norm, sigmoid, "
        "silu, softmax, softplus"
    )
    for expected, said in (
        ({"atention": 0}, "expect names 'atention', which is no pattern\n"
         f"  next: did you mean 'attention'? the patterns are {known}"),
        ({"norm": "1"}, f"expect['norm'] is '1', not a count\n  next: the patterns are {known}"),
    ):  # fmt: skip
        with pytest.raises(OptionError) as raised:
            compile_mlp(model, expect=expected)
        assert str(raised.value) == f"TW008 wrong option: {said}"


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"batch": 34}, "batch = 34 is outside 1..33\n  next: give batch=33"),
        ({"batch": -1}, "batch = -1 is outside 1..33\n  next: give batch=1"),
        ({"batch": 1.5}, "batch = 1.5 is not a whole number\n  next: give batch=33"),
        ({"batch": "a"}, "batch = 'a' is not a whole number\n  next: give batch=33"),
        ({"batch": True}, "batch = True is not a whole number\n  next: give batch=33"),
        (
            {"btach": 2},
            "2 problems\n  - the program has no dim 'btach'; did you mean 'batch'?\n  - batch has no value\n"
            "  next: give batch=33",
        ),
        ({}, "batch has no value\n  next: give batch=33"),
    ],
)
def test_sizes_asked_about_are_held_to_the_range_everywhere_alike(
    compiled: Any, sizes: dict[str, Any], said: str
) -> None:
    for ask in (compiled.memory, compiled.report.at):
        with pytest.raises(OptionError) as raised:
            ask(**sizes)
        assert str(raised.value) == f"TW008 wrong option: {said}"


def test_a_first_call_that_agrees_says_so_in_the_report(compiled: Any, model: Mlp) -> None:
    assert "checked" not in str(compiled.report)
    assert repr(compiled.first_call) == "<the first call will be compared with the model>"
    x = torch.randn(4, 24)
    close(compiled(x), model(x).detach())
    (line,) = [line for line in str(compiled.report).splitlines() if line.startswith("checked: ")]
    assert line.startswith("checked: the first call agrees with the model: off by ")
    assert compiled.report.to_dict()["checked"] in line


def test_a_first_call_that_disagrees_is_explained_for_booleans_too() -> None:
    class Above(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("edge", torch.zeros(5), persistent=False)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            over = (x * 2 > self.edge) & (x < 100)
            return over, torch.where(over, x, self.edge)

    found = tw.compile(Above().eval(), (torch.randn(5),), check="first", cache=False)
    compare, above = found.first_call, Above().eval()
    above.edge += 9
    compare.model = above
    with pytest.raises(tw.TilewrightError) as raised:
        found(torch.full((5,), 3.0))
    assert raised.value.code == "TW024"
    assert "output 0: largest difference 1, rounding explains 0" in str(raised.value)


def test_internals_have_short_names(compiled: Any) -> None:
    for part in (compiled, compiled.code, compiled.executable):
        assert len(repr(part)) < 120
    assert repr(compiled.code).startswith("<Code of ")


@pytest.mark.parametrize("carry", [pickle.dumps, copy.deepcopy, copy.copy])
def test_a_compiled_program_is_saved_not_pickled(compiled: Any, carry: Any) -> None:
    with pytest.raises(ArtifactAccessError) as raised:
        carry(compiled)
    assert str(raised.value) == (
        "TW046 artifact cannot be read or written: a compiled program cannot be pickled or copied\n"
        "  next: compiled.save(path), then tw.load(path) where it runs"
    )


def test_dir_names_what_is_meant_to_be_used() -> None:
    assert {"Dim", "Compiled", "compile", "load", "pipeline", "__version__"} <= set(dir(tw))
    assert not {"TYPE_CHECKING", "Any", "import_module", "annotations"} & set(dir(tw))
    assert all(hasattr(tw, name) for name in dir(tw))


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_cache_that_is_off_leaves_no_folder(
    model: Mlp, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if how == "environment":
        monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    compiled = compile_mlp(model, cache="off" if how == "option" else True)
    assert compiled.facts.cache == "off"
    assert not list(tmp_path.iterdir())
    if how == "environment":
        with pytest.raises(CacheError, match=r"^TW041 .*TILEWRIGHT_CACHE=off: there is no cache\n  next: unset"):
            default_root()


def test_what_asks_for_a_thing_is_answered_with_how_to_get_it() -> None:
    with pytest.raises(OptionError) as caught:
        tw.compile(torch.nn.Identity(), (torch.ones(2),), check=True, verify_each=True, threads=0)
    assert str(caught.value).endswith("next: write check='first', verify_each='numeric', threads=1")


def test_the_first_call_of_a_decoder_that_would_return_a_cache_is_checked() -> None:
    shape = Shape("llama", 32, 2, heads=4, kv_heads=2, tied=False)
    model, ids = shape.build(3), torch.randint(0, VOCABULARY, (2, 5))
    assert model.config.use_cache
    compiled = tw.compile(model, (ids,), check="first")
    assert "past_key_values" not in compiled(ids)
    assert "the first call agrees" in compiled.report.to_dict()["checked"]
    assert model.config.use_cache


def test_a_float_of_a_size_is_no_output() -> None:
    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x + 1, x.shape[0] * 0.5

    with pytest.raises(CaptureError) as caught:
        tw.compile(Half().eval(), (torch.randn(3),), dims={"x": (tw.Dim("n", 1, 9),)})
    assert str(caught.value) == (
        "TW013 capture failed: an output is a float computed from sizes; a compiled program returns tensors, sizes and "
        "constants\n  next: return the size itself, and compute the float where the model is called"
    )


def test_a_sparse_tensor_is_told_from_one_with_strides() -> None:
    compiled = tw.compile(torch.nn.ReLU(), (torch.randn(4, 4),))
    x = torch.randn(4, 4)
    assert torch.equal(compiled(x.T), x.T.relu())
    with pytest.raises(ArgumentError, match="pass dense tensors"):
        compiled(x.to_sparse())


def test_sizes_without_a_bound_are_not_called_the_largest() -> None:
    rows = {"input": (tw.Dim("rows", 0), 4)}
    text = str(tw.compile(torch.nn.ReLU(), (torch.randn(3, 4),), dims=rows).report)
    assert "At rows=128, an example, because rows may be as large as you like (others: " in text


def test_states_show_what_they_are(model: Mlp) -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.add_(1)
            return x * self.seen

    assert repr(tw.compile(Counting().eval(), (torch.randn(2),)).state) == "<states seen: i64 [2]>"
    assert repr(compile_mlp(model).state) == "<no states>"


def test_a_default_cache_that_cannot_be_written_is_gone_without(model: Mlp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TILEWRIGHT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    x = torch.randn(2, 24)
    with pytest.warns(UserWarning, match="TW041") as told:
        found = compile_mlp(model)
    assert [str(w.message) for w in told] == [
        "TW041 the cache in /proc/tilewright cannot be written: No such file or directory; going on without one. "
        "export TILEWRIGHT_CACHE=/a/folder/you/can/write, or compile with cache=False (--cache off)"
    ]
    assert "cache: off (it cannot be written)" in str(found.report)
    close(found(x), model(x).detach())
    with pytest.raises(CacheError, match="/proc/tilewright"):
        compile_mlp(model, cache="/proc/tilewright")
    monkeypatch.setenv("TILEWRIGHT_CACHE", "/proc/mine")
    with pytest.raises(CacheError, match="/proc/mine"):
        compile_mlp(model)


def test_a_model_directory_compiles_from_python_too(tmp_path: Path, rng: np.random.Generator) -> None:
    model = bert(62, layers=1)
    model.save_pretrained(tmp_path)
    found = tw.compile(tmp_path, check="first")
    assert [str(d) for d in found.code.program.dims] == ["batch: 1..64", "tokens: 1..64"]
    assert "note: inputs from config.json: input_ids below 71" in str(found.report)
    given = token_inputs(3, int(rng.integers(1, 64)))
    with torch.inference_mode():
        wanted = model(**given)
    close(found(**given).last_hidden_state, wanted.last_hidden_state)
    own = tw.compile(tmp_path, kwargs=token_inputs(2, 5))
    assert own.code.program.dims == ()
    with pytest.raises(tw.TilewrightError) as raised:
        tw.compile(tmp_path.parent)
    assert str(raised.value) == (
        f"TW009 not a model: {tmp_path.parent} has no config.json\n  next: give a directory that save_pretrained wrote"
    )


def test_pass_options_have_bounds() -> None:
    from tilewright.ir.passing import Pipeline
    from tilewright.passes.pipeline import PASSES

    with pytest.raises(PassOptionError) as raised:
        Pipeline.parse("fuse{max-ops=-1}", PASSES)
    assert str(raised.value) == (
        "TW022 bad pass or pass option: fuse: max-ops=-1 is below 1\n  next: write max-ops=1 or more"
    )
    with pytest.raises(PassOptionError, match="fold: max-elements=-1 is below 0"):
        Fold(max_elements=-1)
    assert str(Pipeline.parse("fold{max-elements=0}", PASSES)) == "fold{max-elements=0}"


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("", "the path is empty"),
        (3, "the path is of type int, not a text or a Path"),
        (None, "the path is of type NoneType, not a text or a Path"),
        (b"x.tw", "the path is of type bytes, not a text or a Path"),
        ("a\0b", "the path 'a\\x00b' names no file"),
    ],
)
def test_what_is_no_path_is_refused_by_save_and_load_alike(compiled: Any, path: Any, fault: str) -> None:
    with pytest.raises(ArtifactAccessError) as raised:
        compiled.save(path)
    assert str(raised.value) == (
        f'TW046 artifact cannot be read or written: {fault}\n  next: name a file: "model.tilewright"'
    )
    for native in (True, False):
        with pytest.raises(ArtifactAccessError) as raised:
            tw.load(path, native=native)
        assert str(raised.value) == (
            f"TW046 artifact cannot be read or written: {fault}\n  next: give the path of a file that save() wrote"
        )


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_path_that_never_opened_leaves_nothing_to_close() -> None:
    with pytest.raises(ArtifactAccessError):
        tw.load(None)  # type: ignore[arg-type]
    gc.collect()


def test_a_folder_is_no_place_to_save_to(compiled: Any, tmp_path: Path) -> None:
    for place, named in (
        (".", "model.tilewright"),
        ("/", "/model.tilewright"),
        (tmp_path, tmp_path / "model.tilewright"),
    ):
        with pytest.raises(ArtifactAccessError) as raised:
            compiled.save(place)
        assert str(raised.value) == (
            f"TW046 artifact cannot be read or written: {place} cannot be written: it is a folder\n"
            f"  next: name a file in it: {named}"
        )
    compiled.save(tmp_path / "model.tilewright")


class Offset(torch.nn.Module):
    """Holds a buffer that no state dict has, beside a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.register_buffer("offset", torch.arange(3.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.offset


def test_weights_that_are_no_state_dict_are_refused_beside_buffers_that_none_holds() -> None:
    model = Offset().eval()
    compiled = tw.compile(model, args=(torch.randn(2, 3),))
    said: dict[Any, str] = {
        None: "a NoneType is no mapping from names to tensors\n"
        "  next: pass a state dict: model.state_dict(), or WeightFiles of a checkpoint",
        model: "a Offset is no mapping from names to tensors\n"
        "  next: pass its tensors: update_weights(model.state_dict())",
    }
    for given, text in said.items():
        with pytest.raises(WeightsError) as raised:
            compiled.update_weights(given)
        assert str(raised.value) == f"TW040 weights do not fit: {text}"


def test_a_pipeline_holds_passes_alone() -> None:
    for edit in (
        lambda: tw.pipeline().after("fuse", 3),  # type: ignore[arg-type]
        lambda: tw.pipeline().before("fuse", 3),  # type: ignore[arg-type]
        lambda: tw.pipeline().replace("fuse", 3),  # type: ignore[arg-type]
    ):
        with pytest.raises(PassOptionError) as raised:
            edit()
        assert str(raised.value) == (
            "TW022 bad pass or pass option: 3 is no pass\n"
            "  next: give instances of subclasses of tilewright.ir.passing.Pass"
        )
    with pytest.raises(PassOptionError) as raised:
        tw.pipeline().after("fuse", Fold)  # type: ignore[arg-type]
    assert str(raised.value) == (
        "TW022 bad pass or pass option: <class 'tilewright.passes.fold.Fold'> is no pass\n"
        "  next: give an instance: Fold()"
    )

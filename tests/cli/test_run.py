"""compile, run, report and profile: a model to an artifact, and an artifact to numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.cli.sample_models import make
from tilewright.cli.profile import far_apart

Call = Callable[..., tuple[int, str, str]]


def test_compile_says_what_it_wrote(tw: Call, artifact: Path) -> None:
    code, out, err = tw("compile", "sample_models:make", "-o", "again.tilewright", "--dims", "ids=_,_")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        r"again\.tilewright: [0-9.]+ KiB, \d+ steps, \d+ kernels for cpu:[a-z0-9-]+, dims none; [0-9.]+ s, "
        r"cache miss\n",
        out,
    )


def test_run_gives_what_the_model_gives(tw: Call, artifact: Path, rng: np.random.Generator) -> None:
    ids, mask = rng.integers(0, 11, (3, 7)), rng.integers(0, 2, (3, 7))
    x = rng.standard_normal((3, 7, 12)).astype(np.float32)
    for name, array in {"ids": ids, "mask": mask, "x": x}.items():
        np.save(f"{name}.npy", array)
    code, out, err = tw(
        "run",
        "net.tilewright",
        "--input",
        "ids=ids.npy",
        "--input",
        "mask=mask.npy",
        "--input",
        "extra.x=x.npy",
        "-o",
        "out.npz",
    )
    assert code == 0
    assert err.splitlines()[1] == "wrote out.npz: y, count"
    assert re.fullmatch(r"[0-9.]+ ms, the first call, at batch=3, tokens=7", err.splitlines()[0])
    found = np.load("out.npz")
    net, _, _ = make()
    with torch.inference_mode():
        wanted = net(torch.from_numpy(ids), torch.from_numpy(mask), {"x": torch.from_numpy(x)})
    # one f32 product of 12 terms and a gelu
    np.testing.assert_allclose(found["y"], wanted["y"].numpy(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["count"], wanted["count"].numpy())
    header, y, count = out.splitlines()
    assert header.split() == ["output", "shape", "dtype", "min", "mean", "max", "not", "finite"]
    assert y.startswith("y       [3, 7, 20]  float32")
    assert count.split()[:4] == ["count", "[3]", "int64", f"{mask.sum(-1).min():.6g}"]


def test_random_inputs_follow_the_seed_and_the_sizes(tw: Call, artifact: Path) -> None:
    results = []
    for seed, name in (("5", "a"), ("5", "b"), ("6", "c")):
        code, out, _ = tw("run", "net.tilewright", "--random", seed, "--dims", "batch=2,tokens=9", "-o", f"{name}.npz")
        assert code == 0
        assert "[2, 9, 20]" in out
        results.append(np.load(f"{name}.npz")["y"])
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    # sizes of given inputs hold for the drawn ones, too
    np.save("ids.npy", np.zeros((4, 3), np.int64))
    assert "[4, 3, 20]" in tw("run", "net.tilewright", "--random", "0", "--input", "ids=ids.npy")[1]


def test_sizes_that_contradict_given_arrays_are_refused(tw: Call, artifact: Path) -> None:
    np.save("ids2.npy", np.zeros((2, 3), np.int64))
    np.save("x2.npy", np.zeros((2, 3, 12), np.float32))
    some = ["run", "net.tilewright", "--input", "ids=ids2.npy"]
    every = [*some, "--input", "mask=ids2.npy", "--input", "extra.x=x2.npy"]
    assert tw(*some, "--random", "0", "--dims", "batch=5,tokens=3")[::2] == (
        1,
        "TW008 wrong option: ids axis 0 is 2, batch=5 asks for 5\n"
        "  next: leave batch out of the sizes, or give arrays of these sizes\n",
    )
    code, _, err = tw(*every, "--dims", "batch=5")
    assert code == 1
    assert [line[4:] for line in err.splitlines()[1:-1]] == [
        f"{name} axis 0 is 2, batch=5 asks for 5" for name in ("ids", "mask", "extra.x")
    ]
    code, _, err = tw(*every, "--dims", "bacth=2")
    assert (code, err.partition("\n")[0]) == (
        1,
        "TW008 wrong option: the program has no dim 'bacth'; did you mean 'batch'?",
    )
    assert tw(*every, "--dims", "batch=2,tokens=3")[0] == 0


def test_rebuilt_kernels_give_the_same_bits(tw: Call, artifact: Path) -> None:
    line = ["run", "net.tilewright", "--random", "1", "--dims", "batch=3,tokens=5"]
    assert tw(*line, "-o", "native.npz")[0] == tw(*line, "-o", "rebuilt.npz", "--rebuild")[0] == 0
    native, rebuilt = np.load("native.npz"), np.load("rebuilt.npz")
    assert all(np.array_equal(native[name], rebuilt[name]) for name in ("y", "count"))


def test_what_is_wrong_with_a_run_is_said(tw: Call, artifact: Path) -> None:
    Path("text.npy").write_text("no array")
    np.save("wide.npy", np.zeros((2, 65), np.int64))
    np.savez("several.npz", output=np.zeros((2, 3), np.int64), other=np.zeros(2))
    np.savez("nothing.npz")
    step = "--input ids=ids.npy --input mask=mask.npy --input extra.x=extra.x.npy"
    for line, message in [
        (
            ["--input", "idz=wide.npy"],
            "TW001 arguments do not match the signature: 4 problems\n  - idz is not an input\n  - ids is not given\n"
            f"  - mask is not given\n  - extra.x is not given\n  next: give {step}, or --random 0 for random values\n",
        ),
        (
            ["--input", "ids"],
            "TW008 wrong option: --input 'ids' does not name an input and a file\n"
            "  next: write --input name=file.npy\n",
        ),
        (
            ["--input", "ids=none.npy"],
            "TW008 wrong option: --input ids: none.npy cannot be read: No such file or directory\n"
            "  next: write the array with numpy.save(path, array)\n",
        ),
        (
            ["--input", "ids=text.npy"],
            "TW008 wrong option: --input ids: text.npy cannot be read: it does not hold an array\n"
            "  next: write the array with numpy.save(path, array)\n",
        ),
        (
            ["--input", "ids=several.npz"],
            "TW008 wrong option: --input ids: several.npz holds arrays by name (output, other), not one array\n"
            '  next: numpy.save("ids.npy", numpy.load("several.npz")["output"]), then --input ids=ids.npy\n',
        ),
        (
            ["--input", "ids=nothing.npz"],
            "TW008 wrong option: --input ids: nothing.npz holds no array\n"
            "  next: write the array with numpy.save(path, array)\n",
        ),
        (
            ["--random", "0", "--dims", "batch=9,token=3"],
            "TW008 wrong option: 2 problems\n  - the program has no dim 'token'; did you mean 'tokens'?\n"
            "  - batch = 9 is outside 1..8\n"
            "  next: give sizes like batch=8,tokens=8\n",
        ),
        (
            ["--random", "0", "--input", "ids=wide.npy"],
            "TW008 wrong option: tokens = 65 is outside 1..64\n  next: give sizes like batch=8,tokens=8\n",
        ),
        (
            ["--random", "0", "-o", "no/folder.npz"],
            "TW008 wrong option: -o no/folder.npz: there is no folder no\n  next: mkdir -p no\n",
        ),
        (
            ["--random", "0", "--memory-limit", "lots"],
            "TW008 wrong option: 'lots' is not a number of bytes\n  next: write 500000000B, 512MiB or 2GiB\n",
        ),
    ]:
        code, _, err = tw("run", "net.tilewright", *line)
        assert code == 1, line
        assert err.endswith(message), err
    for model, line in (
        ("sample_models:make", "sample_models:make -o make.tilewright, then tilewright run make.tilewright"),
        ("sample_models.py:make", "sample_models:make -o make.tilewright, then tilewright run make.tilewright"),
        ("exported.pt2", "exported.pt2 -o exported.tilewright, then tilewright run exported.tilewright"),
        ("folder", "folder -o folder.tilewright, then tilewright run folder.tilewright"),
    ):
        Path("folder").mkdir(exist_ok=True)
        Path("folder/config.json").write_text("{}")
        said = f"TW046 artifact cannot be read or written: {model} is a model, and no artifact of it\n"
        said += f"  next: compile it first: tilewright compile {line}\n"
        assert tw("run", model, "--random", "0") == (1, "", said)
    assert tw("run", "sample_models.py")[2] == (
        "TW042 artifact is damaged: sample_models.py is no Tilewright artifact\n"
        "  next: give the path of a file that save() wrote\n"
    )
    code, _, err = tw("run", "net.tilewright", "--random", "0", "--memory-limit", "4KiB")
    assert code == 1
    assert err.startswith("TW028 does not fit in memory: one call at batch=8, tokens=8 needs")


def test_the_seconds_of_stages_passes_and_kernels(tw: Call, artifact: Path) -> None:
    given = ("sample_models:make", "--dims", "ids=b:1..4,_", "--dims", "mask=b,_", "--dims", "extra.x=b,_,_")
    code, text, _ = tw("report", *given, "--compile-time")
    assert code == 0
    tables = text.split("\n\n")
    assert [table.split("  ")[0] for table in tables] == [
        "stage",
        "passes: each with its verification",
        "kernels: lowering to loops, here",
        "kernels: compiling, in workers beside each other",
    ]
    stages, passes, lowering, compiling = (
        {name: float(seconds) for name, seconds in (line.rsplit(maxsplit=1) for line in table.splitlines()[1:])}
        for table in tables
    )
    assert list(stages)[:4] == ["identity", "capture", "key", "passes"]
    assert {"canonicalize", "fuse", "lower-to-tile"} < set(passes)
    assert set(lowering) == set(compiling)
    assert len(lowering) > 1
    for table in (stages, passes, lowering, compiling):
        assert abs(sum(table.values()) - 2 * table["in all"]) < 0.001 * len(table)
    assert 0 < passes["in all"] <= stages["passes"]
    assert compiling["in all"] > 0

    found = json.loads(tw("report", *given, "--compile-time", "--json")[1])
    assert set(found["seconds_by_part"]["compiling"]) == set(compiling) - {"in all"}
    assert tw("report", "net.tilewright", "--compile-time") == (
        1,
        "",
        "TW008 wrong option: net.tilewright is an artifact, which is compiled already\n"
        "  next: leave --compile-time out, or give the model it was compiled from\n",
    )


def test_the_report_as_text_as_json_and_as_a_page(tw: Call, artifact: Path) -> None:
    code, text, _ = tw("report", "net.tilewright", "--at", "batch=3,tokens=7")
    assert code == 0
    assert "dims batch: 1..8; tokens: 1..64\n" in text
    assert "At batch=3, tokens=7" in text
    code, printed, err = tw("report", "net.tilewright", "--json", "--at", "batch=3,tokens=7", "--html", "page.html")
    data = json.loads(printed)
    assert data["at"] == {"batch": 3, "tokens": 7}
    assert data["kernels"]
    assert err == "wrote page.html\n"
    page = Path("page.html").read_text()
    assert "At batch=3, tokens=7" in page
    bars, formulas = (page.partition(f"<table id={part}>")[2].partition("</table>")[0] for part in ("bars", "formulas"))
    assert all(f"<td>{row['kernel']}" in bars for row in data["kernels"])
    assert "width:100.0%" in bars
    assert "batch*" in formulas
    # of a model: compiled first; without sizes, at the largest
    code, text, _ = tw(
        "report", "sample_models:make", "--dims", "ids=b:1..4,_", "--dims", "mask=b,_", "--dims", "extra.x=b,_,_"
    )
    assert code == 0
    assert "dims b: 1..4\n" in text
    assert "At b=4, the largest" in text


def test_dims_are_not_declared_for_an_artifact(tw: Call, artifact: Path) -> None:
    assert tw("report", "net.tilewright", "--dims", "ids=b:1..4,_") == (
        1,
        "",
        "TW008 wrong option: net.tilewright is an artifact: --dims counts for a MODEL only, when it is compiled\n"
        "  next: leave --dims out, or give the model it was compiled from\n",
    )
    for verb in ("report", "profile"):
        assert tw(verb, "net.tilewright", "--precision", "bf16", "--target", "cpu:generic", "--cache", "off") == (
            1,
            "",
            "TW008 wrong option: net.tilewright is an artifact: --target, --precision, --cache counts for a MODEL "
            "only, when it is compiled\n"
            "  next: leave --target, --precision, --cache out, or give the model it was compiled from\n",
        )


def test_mistakes_of_the_user_are_not_called_faults_of_tilewright(tw: Call, artifact: Path) -> None:
    assert tw("report", "net.tilewright", "--html", "no/folder.html")[::2] == (
        1,
        "TW008 wrong option: --html no/folder.html: there is no folder no\n  next: mkdir -p no\n",
    )
    code, _, err = tw("profile", "net.tilewright", "--warmup", "0", "--trace", "no/trace.json")
    assert code == 1
    assert err == "TW008 wrong option: --trace no/trace.json: there is no folder no\n  next: mkdir -p no\n"
    code, _, err = tw("run", "net.tilewright", "--random", "-1")
    assert code == 2
    assert "Invalid value for '--random'" in err


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (2.9e-3, ""),
        (0.4e-3, ""),
        (None, ""),
        (
            8e-3,
            "measured is 8.0 times as long as predicted: others used the machine, or it is slower than its "
            "description; compare kernels by either column, not across them",
        ),
        (
            0.25e-3,
            "measured is 4.0 times as short as predicted: caches kept what it moves; compare kernels by either column, "
            "not across them",
        ),
    ],
)
def test_what_is_far_from_predicted_is_told(measured: float | None, said: str) -> None:
    row = SimpleNamespace(measured=measured, predicted=0.5e-3)
    assert far_apart(SimpleNamespace(rows=[row, SimpleNamespace(measured=None, predicted=0.5e-3)])) == said  # type: ignore[arg-type]


def test_profile_measures_every_kernel_and_writes_a_trace(tw: Call, artifact: Path) -> None:
    code, out, err = tw(
        "profile", "net.tilewright", "--at", "batch=2,tokens=6", "--json", "--trace", "trace.json", "--warmup", "0"
    )
    assert code == 0, err
    data = json.loads(out)
    assert data["at"] == {"batch": 2, "tokens": 6}
    assert all(row["measured"] > 0 for row in data["kernels"])
    assert re.fullmatch(
        r"the median of 5 timed calls took [0-9.]+ ms, of [0-9.]+ to [0-9.]+ ms on \d+ threads?\n"
        r"(measured is .*\n)?wrote trace\.json\n",
        err,
    )
    events = json.loads(Path("trace.json").read_text())["traceEvents"]
    assert [e["name"] for e in events]
    assert all(e["ph"] == "X" and e["dur"] > 0 for e in events)
    starts = [e["ts"] for e in events]
    assert starts == sorted(starts)
    assert starts[0] == 0


@pytest.mark.parametrize("name", ["missing/net.tilewright", "missing/deep/net.tilewright"])
def test_an_output_that_cannot_be_written_is_refused_before_compiling(tw: Call, name: str) -> None:
    folder = str(Path(name).parent)
    assert tw("compile", "sample_models:make", "-o", name) == (
        1,
        "",
        f"TW008 wrong option: -o {name}: there is no folder {folder}\n  next: mkdir -p {folder}\n",
    )


@pytest.mark.parametrize(
    ("line", "option", "named"),
    [
        (["compile", "sample_models:make"], "-o", "model.tilewright"),
        (["opt", "small.mlir"], "-o", "out.mlir"),
        (["report", "sample_models:make"], "--html", "report.html"),
    ],
)
def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_runs(
    tw: Call, tmp_path: Path, line: list[str], option: str, named: str
) -> None:
    assert tw(*line, option, str(tmp_path)) == (
        1,
        "",
        f"TW008 wrong option: {option} {tmp_path}: it is a folder\n"
        f"  next: name a file in it: {option} {tmp_path / named}\n",
    )


def test_expected_pattern_counts(tw: Call) -> None:
    assert tw("compile", "sample_models:make", "-o", "x.tilewright", "--expect", "gelu") == (
        1,
        "",
        "TW008 wrong option: --expect 'gelu' is not a pattern and its count\n  next: write --expect attention=6\n",
    )
    code, _, err = tw("compile", "sample_models:make", "-o", "x.tilewright", "--expect", "attention=2")
    assert code == 1
    assert err == (
        "TW016 expected pattern counts do not hold: attention: expected 2, matched 0\n"
        "  next: if the model is meant so, write --expect attention=0\n"
    )
    assert not Path("x.tilewright").exists()

"""What there is: ops, passes, targets, errors, and the machine and its settings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import tilewright
from tilewright.backends.cpu.machines import MACHINES, host_class
from tilewright.cli.env import settings
from tilewright.errors import all_errors
from tilewright.ir.catalogue import catalogue
from tilewright.passes.pipeline import PASSES, default_pipeline

Call = Callable[..., tuple[int, str, str]]
PACKAGE = Path(tilewright.__file__).parent


def table(out: str) -> dict[str, list[str]]:
    """The rows of a printed table by their first cell."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()[1:] if line.strip()]
    return {row[0]: row[1:] for row in rows}


def test_ops_lists_every_op_with_its_line(tw: Call) -> None:
    code, out, _ = tw("ops")
    assert code == 0
    assert list(table(out)) == [entry.name for entry in catalogue()]
    assert all(entry.doc in out for entry in catalogue())
    only = table(tw("ops", "tile")[1])
    assert set(only) == {entry.name for entry in catalogue("tile")}


def test_one_op_is_shown_with_all_that_it_declares(tw: Call) -> None:
    for entry in catalogue():
        code, out, _ = tw("ops", entry.name)
        assert code == 0
        assert out.startswith(entry.signature + "\n")
        assert all(f"  {declared}\n" in out for declared in map(str, entry.properties))
        assert ", ".join(entry.operands) in out


def test_passes_lists_names_first_lines_and_options_with_defaults(tw: Call) -> None:
    code, out, _ = tw("passes")
    assert code == 0
    head, _, tail = out.partition("\n\n")
    assert list(table(head)) == list(PASSES)
    assert table(head)["fuse"][-1] == "epilogues=true, prologues=true, pairs=true, max-ops=32"
    assert tail == f"The default pipeline: {default_pipeline()}\n"


def test_one_pass_is_shown_as_a_pipeline_writes_it(tw: Call) -> None:
    for name in PASSES:
        code, out, _ = tw("passes", name)
        assert code == 0
        written = out.splitlines()[-1].removeprefix("write: ")
        # with the options at their defaults, it is the pass itself
        assert str(tilewright.Pipeline.parse(written, PASSES)) == name
    assert "runs after: fuse or materialise\n" in tw("passes", "lower-to-tile")[1]
    assert tw("passes", "fusee") == (
        1,
        "",
        "TW008 wrong option: no pass is called 'fusee'\n  next: did you mean 'fuse'?\n",
    )


def test_targets_lists_every_machine_and_marks_the_default(tw: Call) -> None:
    code, out, _ = tw("targets")
    rows = table(out)
    assert code == 0
    assert {f"cpu:{name}" for name in MACHINES} <= set(rows)
    default = [name for name, row in rows.items() if row[0] == "the default here"]
    assert default == [f"cpu:{host_class()}"]
    assert rows["cpu:avx2"][1] == "8"


def test_a_machine_that_this_cpu_is_not_says_what_is_lacking(tw: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.runtime import native

    features = frozenset(MACHINES["avx512"]().features) - {"avx512f"}
    monkeypatch.setattr(native, "cpu_features", lambda: features)
    rows = table(tw("targets")[1])
    assert rows["cpu:avx512"][0] == "this CPU lacks avx512f"
    assert rows["cpu:generic"][0] in ("ready", "the default here")


def test_env_tells_versions_the_cpu_and_where_each_setting_comes_from(
    tw: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", "/somewhere")
    monkeypatch.delenv("TILEWRIGHT_THREADS", raising=False)
    code, out, _ = tw("env")
    assert code == 0
    head, _, tail = out.partition("\n\n")
    versions, knobs = table(head), table(tail)
    assert versions["tilewright"] == [tilewright.__version__]
    assert versions["CPU class"] == [host_class()]
    assert versions["cores"][0].startswith(f"{len(os.sched_getaffinity(0))} usable of ")
    assert versions["torch"] != ["not installed"]
    assert knobs["TILEWRIGHT_CACHE"][:2] == ["/somewhere", "environment"]
    assert knobs["TILEWRIGHT_THREADS"][:2] == [str(len(os.sched_getaffinity(0))), "default"]


def test_env_shows_a_wrong_setting_and_does_not_fail_of_it(tw: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_THREADS", "many")
    code, out, _ = tw("env")
    assert code == 0
    assert "wrong: TILEWRIGHT_THREADS='many' is not a count of threads  environment" in out


def test_env_knows_every_setting_that_the_package_reads() -> None:
    named = {
        name
        for path in PACKAGE.rglob("*.py")
        for name in re.findall(r"TILEWRIGHT_[A-Z_]+", path.read_text(encoding="utf-8"))
    }
    assert named == set(settings())


def test_explain_lists_every_code(tw: Call) -> None:
    code, out, _ = tw("explain")
    assert code == 0
    assert {c: [cls.__name__, cls.title] for c, cls in all_errors().items()} == table(out)
    assert tw("explain", "TW99") == (
        1,
        "",
        "TW008 wrong option: no error has the code or name 'TW99'\n  next: tilewright explain lists them\n",
    )
    assert tw("explain", "RankErorr")[2].endswith("next: did you mean RankError?\n")
    assert tw("explain", "zzzz")[2].endswith("next: tilewright explain lists them\n")

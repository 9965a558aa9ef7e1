"""The pipeline prints, parses back and edits; its passes are found by name, those of other packages too."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
from xdsl.dialects.builtin import ModuleOp

from tests.passes.encoder_text import ENCODER
from tilewright.errors import ParseError, PassOptionError
from tilewright.ir.passing import Context, Pass, Pipeline
from tilewright.passes import pipeline
from tilewright.passes.fuse import Fuse
from tilewright.passes.pipeline import PASSES, default_pipeline, materialising_pipeline
from tilewright.testing import ground


@dataclass(frozen=True)
class Nothing(Pass):
    """Changes nothing."""

    name: ClassVar[str] = "nothing"

    def run(self, module: ModuleOp, ctx: Context) -> None:
        return


def test_the_default_pipeline_prints_and_parses_back() -> None:
    for chosen in (default_pipeline(), materialising_pipeline()):
        assert Pipeline.parse(str(chosen), PASSES) == chosen


def test_options_are_part_of_the_text() -> None:
    text = "canonicalize,fold{max-elements=7},fuse{epilogues=false max-ops=3}"
    parsed = Pipeline.parse(text, PASSES)
    assert str(parsed) == text
    assert parsed.passes[2] == Fuse(epilogues=False, max_ops=3)


def test_every_name_is_its_passs_name() -> None:
    for name in PASSES:
        assert PASSES[name]().name == name
        assert (PASSES[name]().__doc__ or "").strip(), name


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("canonicalise", PassOptionError, "did you mean 'canonicalize'?"),
        ("fuse{max-op=3}", PassOptionError, "fuse takes: epilogues, prologues, pairs, max-ops"),
        ("fuse{max-ops=many}", PassOptionError, "max-ops=many is not an int"),
        ("fuse}", ParseError, "at column 5, after .fuse."),
    ],
)
def test_a_wrong_pipeline_is_told_what_is_right(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said.replace("?", r"\?")):
        Pipeline.parse(text, PASSES)


def test_a_pass_can_be_put_anywhere() -> None:
    edited = default_pipeline().after("recognize", Nothing()).without("dedupe-layers")
    names = [p.name for p in edited.passes]
    assert names[names.index("recognize") + 1] == "nothing"
    assert "dedupe-layers" not in names


def test_another_packages_pass_is_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        EntryPoint("nothing", f"{__name__}:Nothing", pipeline.GROUP),
        EntryPoint("wrong", "os:path", pipeline.GROUP),
    ]
    monkeypatch.setattr(pipeline, "entry_points", lambda group: entries)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Nothing if self.name == "nothing" else object)
    assert Pipeline.parse("nothing", PASSES).passes == (Nothing(),)
    assert list(PASSES)[-2:] == ["nothing", "wrong"]
    with pytest.raises(PassOptionError, match=r"os:path of .* is not a pass"):
        PASSES["wrong"]()


def test_a_whole_model_goes_down_to_kernels(seed: int) -> None:
    sizes = [{"b": 2, "t": 3}]
    after = ground(ENCODER, default_pipeline(), seed=seed, sizes=sizes, rounding="f32")
    assert "tile.kernel" in str(after)
    assert "graph.group" not in str(after)

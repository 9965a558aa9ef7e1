"""Every error class is raised by something a user can do, says the whole story, and is explained.

The examples of `tilewright explain` are what raises them here: each is written to a file and run as a user's script.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import itertools
import pickle  # noqa: TID251  (errors cross process borders in it: that they survive is what is tested)
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import tilewright as tw
from tilewright.cli import command_line
from tilewright.cli.error_examples import EXAMPLES, SETUP
from tilewright.cli.explain import page
from tilewright.errors import Problem, TilewrightError, all_errors
from tilewright.runtime.artifact_file import FORMAT_VERSION

PACKAGE = Path(tw.__file__).parent

# The full text that the bad half of each example gives; {N} stands for a number that depends on the machine.
TEXTS = {
    "TW001": """
TW001 arguments do not match the signature: 2 problems
  - inputs is not a parameter
  - input is missing
  next: call it as (input)""",
    "TW002": """
TW002 wrong dtype: input is float64, compiled for float32
  next: convert: input.to(torch.float32)""",
    "TW003": """
TW003 wrong rank: input has 1 axis [4], compiled for 2 axes [batch, 4]
  next: pass the shapes of the example, or compile again with an example of this rank""",
    "TW004": """
TW004 dim out of its declared range: batch = 9 is outside 1..8 (input axis 0)
  next: compile with dims={"input": {0: tw.Dim("batch", 1, 9)}}""",
    "TW005": """
TW005 dim does not match what was compiled: input axis 1 has size 5, compiled for 4 (it is not declared in dims)
  next: pass the size compiled for, or, if the model itself takes others, \
compile with dims={"input": {0: tw.Dim("batch", 1, 8), 1: tw.Dim("input_1", 4, 5)}}""",
    "TW006": """
TW006 dims declaration is wrong: dims names 'inputs', the arguments are input
  next: follow the arguments: dims={"input": {0: tw.Dim("batch", 1, 64)}}""",
    "TW007": """
TW007 tensor is on another device: input is on meta, compiled for cpu
  next: pass tensors that hold data""",
    "TW008": """
TW008 wrong option: precision='fp32' is not one of 'model', 'f32', 'bf16'
  next: write precision='f32'""",
    "TW009": """
TW009 not a model: Linear is a class
  next: pass an instance: Linear(...)""",
    "TW010": """
TW010 unsupported operators: 2 problems
  - aten.linalg_det.default: no lowering for aten._linalg_det.default, which it is made of, 1 use  (at example.py:10)
  - aten.linalg_inv.default: no lowering for aten.linalg_inv_ex.default, which it is made of, 1 use  (at example.py:10)
  next: write these parts with supported operators, or compile the rest of the model; \
whether the other operators have kernels shows after that""",
    "TW011": """
TW011 module is in training mode: 1 (Dropout) drops elements with p=0.1
  next: call model.eval() before compiling""",
    "TW012": """
TW012 module has hooks: the model (Linear) has the forward hook print
  next: call .remove() on each hook's handle, or move what it does into forward""",
    "TW013": """
TW013 capture failed: GuardOnDataDependentSymNode: Could not guard on data-dependent expression Eq(u0, 1)  \
(at example.py:10)
  next: replace what depends on tensor values (.item(), if tensor:, nonzero) by tensor arithmetic""",
    "TW014": """
TW014 a declared dim was specialised: batch (batch: 1..8) was fixed to 3  (at example.py:10)
  next: leave batch out of dims (its size is 3); or change the line that fixes it""",
    "TW015": """
TW015 autograd through a compiled call: input requires grad, and grad mode is on; \
a compiled program computes no gradients
  next: call it under torch.no_grad(), or pass input.detach()""",
    "TW016": """
TW016 expected pattern counts do not hold: attention: expected 1, matched 0
  next: if the model is meant so, write expect={"attention": 0}""",
    "TW020": """
TW020 malformed IR: graph.map: operands imply (f32[4]), declared (f32[5])  (at <text>:{N}:{N})
  next: correct the text there; tilewright ops graph.map says what it takes""",
    "TW021": """
TW021 text does not parse: pipeline: '}' is missing at column 28, after 'canonicalize,fuse{max-ops=8'
  next: write canonicalize,fuse{max-ops=8}""",
    "TW022": """
TW022 bad pass or pass option: the pipeline has no pass 'fusion'
  next: it has: canonicalize, fold, canonicalize, channels-last, recognize, merge-shared-lhs, expand-experts, \
expand-recurrences, canonicalize, hoist-weights, dedupe-layers, fuse, attention-tiling, inline-layers, plan-layout, \
lower-to-tile, place-levels, plan-memory""",
    "TW023": """
TW023 pass order: plan-layout comes before fuse or materialise, which it requires
  next: edit the default pipeline: tw.pipeline().after("recognize", MyPass())""",
    "TW024": """
TW024 results differ: after add-again: out is off by {N}, {N} is rounding (sizes {}, seed 0)
  next: tilewright opt FILE -p 'add-again' --verify-each=numeric --remarks, on the IR before this pass""",
    "TW025": """
TW025 out-of-bounds value was used: tile.store: stores a lane that was never loaded, in @copy at (0)
  next: give the load a fill value, or mask the lanes outside the view""",
    "TW026": """
TW026 no lowering: graph.attention: attention in f64: its exponentials are expanded for f32  (at example.py:10)
  next: cast q, k and v to f32""",
    "TW027": """
TW027 memory plan is unsound: main: add reads slot 0, which no longer holds its operand
  next: report the module: tilewright opt --print-after=lower-to-tile shows it""",
    "TW028": """
TW028 does not fit in memory: one call at its only sizes needs 288 B
weights       264 B  2 tensors
scratch         0 B  0 slots
results        24 B  1 tensors
  packed:weight:panels16        256 B  256
  result out                     24 B  24
  weight:bias                     8 B  8
  but memory_limit is 270 B
  next: call it with smaller dims, or give compile() or tw.load() memory_limit=288""",
    "TW029": """
TW029 reference run failed: graph.gather: indices from 4 to 4 into an axis of 4
  next: look at the operands' values and shapes""",
    "TW030": """
TW030 target cannot be used: cpu has no machine 'sse2'; it has generic, avx2, avx512, avx512-bf16, avx512-amx
  next: use one of cpu:generic, cpu:avx2, cpu:avx512, cpu:avx512-bf16, cpu:avx512-amx""",
    "TW031": """
TW031 backend manifest is invalid: backend cpu: api: 0 is not 2
  next: correct the manifest's field""",
    "TW033": """
TW033 toolchain failed: kernel @<unnamed>: Unable to parse module assembly:
    error: "-":1:25: 'llvm.return' op expected 1 operand
    note: "-":1:25: see current operation: "llvm.return"() : () -> ()
    note: "-":1:1: when returning from function
    line 1: llvm.func @f() -> i32 { llvm.return }
  next: this is a fault of Tilewright's code generator, not of the model: report the kernel and the lines above""",
    "TW034": """
TW034 a kernel's writes are unsound: tile.kernel: 1 of 4 elements of output 1 are never written, the first at [3], \
in @copy
  next: make the grid and the stores cover the output""",
    "TW035": """
TW035 user kernel is wrong: @double: no input's shape gives m  (at example.py:8)
  next: write it as "x f32[rows, 64] -> y f32[rows, 64]\"""",
    "TW036": """
TW036 a pass is at fault: graph.map: by flip (example_{N}.Flip): no elementwise function is called 'minus'; \
did you mean 'min'?
  next: mend the pass, or compile with passes=tw.pipeline().without('flip')""",
    "TW037": """
TW037 cannot generate step by step: graph.attention: tokens see later ones  (at example.py:15)
  next: use a model whose layers outside attention work on each token by itself""",
    "TW040": """
TW040 weights do not fit: 2 problems
  - bias is missing: float32 [2]
  - weight is float32 [4, 2], in the program float32 [2, 4]
  next: pass the state_dict() of the model that was compiled, with other values""",
    "TW041": """
TW041 cache is not usable: the cache in /proc/cache cannot be written: No such file or directory
  next: export TILEWRIGHT_CACHE=/a/folder/you/can/write, or compile with cache=False (--cache off)""",
    "TW042": """
TW042 artifact is damaged: linear.tilewright is truncated: section weights ends at byte {N}, the file at {N}
  next: save or copy the artifact again""",
    "TW046": """
TW046 artifact cannot be read or written: no-such-file.tilewright cannot be read: No such file or directory
  next: give the path of a file that save() wrote""",
    "TW045": """
TW045 state does not fit: there is no state 'counts'; the program has count
  next: did you mean 'count'?""",
    "TW051": """
TW051 sampler is wrong: temperature=-1 is not a number from 0 on
  next: tw.Sampler(temperature=0.8, top_p=0.95, seed=0) is one that works""",
    "TW053": """
TW053 step program breaks its protocol: page_size is 0
  next: sizes are at least 1, counts of bytes and rows at least 0""",
    "TW054": """
TW054 text cannot be read or written: messages are a list of mappings with a role
  next: pass [{"role": "user", "content": "Hello"}]""",
    "TW055": """
TW055 grammar cannot be followed: the schema is not JSON: Expecting property name enclosed in double quotes: \
line 1 column 2 (char 1)
  next: write {"type": "object", ...}""",
}

# Raised by the tests below that name them: no script can make a CPU lack a feature. Those of generation need a language
# model, whose stand-ins live in tests/runtime/generation.
ELSEWHERE = {"TW032", "TW043", "TW044", "TW050", "TW052", "TW056"}

_numbers = itertools.count()


def run_script(folder: Path, text: str) -> ModuleType:
    """Runs a text as the user's file example.py, and gives its globals."""
    path = folder / "example.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"example_{next(_numbers)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def matches(found: str, text: str) -> bool:
    """Whether a message is the text, with {N} standing for any number."""
    pattern = re.escape(text.strip()).replace(re.escape("{N}"), r"[0-9.e+-]+")
    return re.fullmatch(pattern, found) is not None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("example", None)


@pytest.mark.parametrize("code", sorted(TEXTS))
def test_the_bad_example_raises_the_whole_message(code: str, here: Path) -> None:
    with pytest.raises(TilewrightError) as caught:
        run_script(here, f"{SETUP}\n\n{EXAMPLES[code].bad.strip()}\n")
    assert type(caught.value) is all_errors()[code]
    assert matches(str(caught.value), TEXTS[code]), str(caught.value)


@pytest.mark.parametrize("code", sorted(TEXTS))
def test_the_fixed_example_runs(code: str, here: Path) -> None:
    run_script(here, f"{SETUP}\n\n{EXAMPLES[code].fixed.strip()}\n")


def test_every_class_is_raised_by_a_test() -> None:
    assert not TEXTS.keys() & ELSEWHERE
    assert {*TEXTS, *ELSEWHERE} == all_errors().keys()
    assert {code for code, example in EXAMPLES.items() if not example.runs} == ELSEWHERE


def test_every_class_is_used_in_the_package() -> None:
    named = {
        node.id if isinstance(node, ast.Name) else node.attr
        for path in PACKAGE.rglob("*.py")
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load)
    }
    unused = [cls.__name__ for cls in all_errors().values() if cls.__name__ not in named]
    assert not unused, unused


def test_codes_are_unique_and_classes_explain_themselves() -> None:
    classes = list(every_subclass(TilewrightError))
    assert len(classes) == len(all_errors()), "two classes share a code"
    for cls in classes:
        assert re.fullmatch(r"TW\d{3}", cls.code), cls
        assert cls.title, cls
        assert not cls.title.endswith("."), cls
        assert re.search(r"[.;:]", inspect.getdoc(cls) or ""), f"{cls.__name__} has no docstring of its own"
        assert inspect.getdoc(cls) != inspect.getdoc(TilewrightError), cls


def every_subclass(cls: type[TilewrightError]) -> Iterator[type[TilewrightError]]:
    for sub in cls.__subclasses__():
        if sub.__module__.startswith("tilewright"):
            yield sub
            yield from every_subclass(sub)


@pytest.mark.parametrize("code", sorted(all_errors()))
def test_explain_shows_meaning_and_both_examples(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    cls = all_errors()[code]
    for asked in (code, code.lower(), str(int(code[2:])), cls.__name__):
        assert command_line(["explain", asked]) == 0
        shown = capsys.readouterr().out
        assert shown.rstrip() == page(cls).rstrip()
    for part in (
        code,
        cls.title,
        inspect.getdoc(cls) or "",
        *EXAMPLES[code].bad.split(),
        *EXAMPLES[code].fixed.split(),
    ):
        assert part in shown


def test_the_documentation_is_what_the_classes_say() -> None:
    from tools.write_error_docs import TARGET, text

    assert TARGET.read_text(encoding="utf-8") == text(), "run: python tools/write_error_docs.py"


def test_an_error_survives_a_process_border() -> None:
    for cls in all_errors().values():
        error = cls(["one", Problem("two", op="graph.map", where="net.py:3")], step="do this")
        again = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own bytes)
        assert type(again) is cls
        assert str(again) == str(error)
        assert again.problems == error.problems


def test_several_problems_are_one_block_and_one_problem_is_one_line() -> None:
    cls = all_errors()["TW002"]
    assert str(cls("x is f64", step="convert it")) == "TW002 wrong dtype: x is f64\n  next: convert it"
    both = cls(["x is f64", Problem("y is f16", op="graph.map", where="net.py:3")], step="convert them")
    assert str(both) == (
        "TW002 wrong dtype: 2 problems\n  - x is f64\n  - graph.map: y is f16  (at net.py:3)\n  next: convert them"
    )


# --- what no script can bring about ---------------------------------------------------------------------------------


def test_a_missing_dependency_names_the_command_that_installs_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "config.json").write_text("{}", encoding="utf-8")
    (here / "model.safetensors").write_bytes(b"")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else real(name, *rest)
    )
    assert command_line(["check", "."]) == 1
    assert capsys.readouterr().err == (
        "TW032 a dependency is missing: a model directory is read by transformers\n"
        "  next: pip install 'tilewright[hf]'\n"
    )


def test_an_artifact_of_another_version_is_told_from_a_damaged_one(here: Path) -> None:
    compiled = run_script(here, SETUP).compiled
    compiled.save("linear.tilewright")
    data = bytearray((here / "linear.tilewright").read_bytes())
    data[8] = 99
    (here / "linear.tilewright").write_bytes(data)
    with pytest.raises(TilewrightError) as caught:
        tw.load("linear.tilewright")
    assert str(caught.value) == (
        "TW043 artifact version: linear.tilewright has format version 99, "
        f"this Tilewright reads version {FORMAT_VERSION}\n"
        "  next: save it again with this version of Tilewright, or load it with the one that wrote it"
    )


def test_a_cpu_without_the_features_says_which(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.runtime import native

    monkeypatch.setattr(native, "cpu_features", lambda: frozenset({"sse2", "avx"}))
    text = f'{SETUP.rpartition("compiled")[0]}\ntw.compile(model, args=(x,), target="cpu:avx2")\n'
    with pytest.raises(TilewrightError) as caught:
        run_script(here, text)
    needed = set(tw_machine("avx2").features) - {"sse2", "avx"}
    assert str(caught.value) == (
        f"TW044 CPU lacks features: the kernels need {', '.join(sorted(needed))}, which this CPU does not have\n"
        "  next: compile with target='cpu'"
    )


def test_what_generation_refuses_says_the_whole_story() -> None:
    from tests.runtime.generation.echo_program import EchoProgram, layout

    lm = tw.LanguageModel(EchoProgram(layout()))
    with pytest.raises(TilewrightError) as empty:
        lm.generate([])
    assert str(empty.value) == (
        "TW050 prompt cannot be continued: the prompt has no tokens\n"
        "  next: pass at least one token, such as the tokenizer's bos_token_id"
    )
    engine = lm.engine(budget=128)
    with pytest.raises(TilewrightError) as full:
        engine.submit([1] * 8, max_new_tokens=10)
    assert str(full.value) == (
        "TW052 cache is full: 17 tokens take 160 B, the cache has 128 B\n"
        "  next: ask for 9 new tokens, or give the cache a larger budget"
    )
    engine.submit([1])
    with pytest.raises(TilewrightError) as second:
        lm.engine()
    assert str(second.value) == (
        "TW056 engine cannot be used: 1 requests are running\n  next: let them end, or close() the engine first"
    )


def tw_machine(name: str) -> object:
    from tilewright.backends.cpu.machines import MACHINES

    return MACHINES[name]()

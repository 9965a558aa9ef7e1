"""For each error's code, lines that raise it and lines that do not: what `tilewright explain` and docs/errors.md show.

Examples start from `SETUP` and are run by the tests, so they cannot go stale; those that need another machine or a
broken installation are marked and only shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SETUP: Final = """
import torch
import tilewright as tw

model = torch.nn.Linear(4, 2).eval()
x = torch.randn(3, 4)
compiled = tw.compile(model, args=(x,), dims={"input": (tw.Dim("batch", 1, 8), None)})
""".strip()


@dataclass(frozen=True)
class Example:
    """Lines that raise the error and lines that do not. runs: both can be run as they are, after SETUP."""

    bad: str
    fixed: str
    runs: bool = True


_MODULE: Final = '''
text = """
builtin.module {
  graph.func() {sym_name = "main", arg_names = ["x"], result_names = ["y"]} {
  ^bb0(%x: !graph.tensor<[4], f32>):
    BODY
    graph.return(values=[%y])
  }
}
"""
'''.strip()

_USER_KERNEL: Final = """
@tw.kernel("SIGNATURE")
def double(b, x, y):
    (i,) = b.grid(["n"], [16])
    tile = b.load(b.dense(x), [i], [16])
    b.store(b.map("add", tile, tile), b.dense(y), [i])


double(torch.randn(5))
""".strip()


def _double(signature: str) -> str:
    """A user's kernel with this signature."""
    return _USER_KERNEL.replace("SIGNATURE", signature)


_KERNEL: Final = '''
text = """
builtin.module {
  graph.func() {sym_name = "main", arg_names = ["x"], result_names = ["y"]} {
  ^bb0(%x: !graph.tensor<[4], f32>):
    %y = tile.launch(inputs=[%x]) {callees = ["copy"], dims = [], guard = [0], limits = []} : !graph.tensor<[4], f32>
    graph.return(values=[%y])
  }
  tile.kernel() {sym_name = "copy", dims = [], extents = [4], tiles = [4], order = [0, 1], outputs = 1} {
  ^bb0(%x: !tile.buffer<[4], f32>, %y: !tile.buffer<[4], f32>, %i: !tile.index):
    %from = tile.view(%x) {extents = [READ], strides = [1]} : !tile.view<[READ], f32>
    %tile = tile.load(%from, at=[%i]) {extents = [4]} : !tile.tile<[4], f32>
    %to = tile.view(%y) {extents = [WRITTEN], strides = [1]} : !tile.view<[WRITTEN], f32>
    tile.store(%tile, %to, at=[%i])
    tile.yield(values=[])
  }
}
"""
tw.testing.run(text, {"x": torch.randn(4)})
'''.strip()


def _attention(dtype: str) -> str:
    return f"""
class Attention(torch.nn.Module):
    def forward(self, q):
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)


tw.compile(Attention(), args=(torch.randn(1, 2, 5, 8, dtype=torch.{dtype}),))
""".strip()


def _module(body: str, then: str) -> str:
    return f"{_MODULE.replace('BODY', body)}\n{then}"


def _kernel(read: int, written: int) -> str:
    return _KERNEL.replace("READ", str(read)).replace("WRITTEN", str(written))


_PLAN: Final = '''
from tilewright.ir.module import parse_module
from tilewright.passes.memory_plan_check import check_memory_plan

text = """
builtin.module {
  graph.func() {sym_name = "main", arg_names = ["x"], result_names = ["y"]} {
  ^bb0(%x: !graph.tensor<[4], f32>):
    %a = tile.launch(inputs=[%x]) {callees = ["copy"], dims = [], guard = [0], limits = [], places = [slot 0]}
      : !graph.tensor<[4], f32>
    %b = tile.launch(inputs=[%x]) {callees = ["copy"], dims = [], guard = [0], limits = [], places = [slot SLOT]}
      : !graph.tensor<[4], f32>
    %y = tile.launch(inputs=[%a, %b]) {callees = ["add"], dims = [], guard = [0], limits = [], places = [output 0]}
      : !graph.tensor<[4], f32>
    graph.return(values=[%y])
  }
  tile.kernel() {sym_name = "copy", dims = [], extents = [4], tiles = [4], order = [0, 1], outputs = 1} {
  ^bb0(%x: !tile.buffer<[4], f32>, %y: !tile.buffer<[4], f32>, %i: !tile.index):
    %from = tile.view(%x) {extents = [4], strides = [1]} : !tile.view<[4], f32>
    %tile = tile.load(%from, at=[%i]) {extents = [4]} : !tile.tile<[4], f32>
    %to = tile.view(%y) {extents = [4], strides = [1]} : !tile.view<[4], f32>
    tile.store(%tile, %to, at=[%i])
    tile.yield(values=[])
  }
  tile.kernel() {sym_name = "add", dims = [], extents = [4], tiles = [4], order = [0, 1], outputs = 1} {
  ^bb0(%x: !tile.buffer<[4], f32>, %z: !tile.buffer<[4], f32>, %y: !tile.buffer<[4], f32>, %i: !tile.index):
    %from = tile.view(%x) {extents = [4], strides = [1]} : !tile.view<[4], f32>
    %first = tile.load(%from, at=[%i]) {extents = [4]} : !tile.tile<[4], f32>
    %other = tile.view(%z) {extents = [4], strides = [1]} : !tile.view<[4], f32>
    %second = tile.load(%other, at=[%i]) {extents = [4]} : !tile.tile<[4], f32>
    %sum = tile.map(args=[%first, %second]) {fn = "add"} : !tile.tile<[4], f32>
    %to = tile.view(%y) {extents = [4], strides = [1]} : !tile.view<[4], f32>
    tile.store(%sum, %to, at=[%i])
    tile.yield(values=[])
  }
}
"""
check_memory_plan(parse_module(text))
'''.strip()

_WRONG_PASS: Final = '''
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class AddAgain(tw.Pass):
    """Turns products with a bias into products with twice the bias."""

    name: ClassVar[str] = "add-again"

    def run(self, module, ctx):
        for op in [o for o in module.walk() if o.name == "graph.map" and o.fn.data == "add"]:
            twice = type(op).make([op.results[0], op.operands[1]], fn="add")
            op.parent_block().insert_op_after(twice, op)
            op.results[0].replace_uses_with_if(twice.results[0], lambda use: use.operation is not twice)


tw.compile(model, args=(x,), passes=tw.pipeline().after("recognize", AddAgain()), verify_each="numeric")
'''.strip()

_STEPS = """
class Letters(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(16, 8)

    def forward(self, ids):
        x = self.table(ids)[:, None]
        x = torch.nn.functional.scaled_dot_product_attention(x, x, xSEES)
        return x[:, 0] @ self.table.weight.T


tw.compile_lm(Letters().eval(), max_tokens=32)
"""

_BROKEN_PASS: Final = '''
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Flip(tw.Pass):
    """Takes sums for differences."""

    name: ClassVar[str] = "flip"

    def run(self, module, ctx):
        for op in [o for o in module.walk() if o.name == "graph.map" and o.fn.data == "add"]:
            op.properties["fn"] = type(op.fn)("SUB")


tw.compile(model, args=(x,), passes=tw.pipeline().after("recognize", Flip()))
'''.strip()

EXAMPLES: Final[dict[str, Example]] = {
    "TW001": Example("compiled(inputs=x)", "compiled(input=x)"),
    "TW002": Example("compiled(x.double())", "compiled(x.double().to(torch.float32))"),
    "TW003": Example("compiled(torch.randn(4))", "compiled(torch.randn(1, 4))"),
    "TW004": Example(
        "compiled(torch.randn(9, 4))",
        'compiled = tw.compile(model, args=(x,), dims={"input": {0: tw.Dim("batch", 1, 9)}})\n'
        "compiled(torch.randn(9, 4))",
    ),
    "TW005": Example("compiled(torch.randn(3, 5))", "compiled(torch.randn(3, 4))"),
    "TW006": Example(
        'tw.compile(model, args=(x,), dims={"inputs": {0: tw.Dim("batch", 1, 8)}})',
        'tw.compile(model, args=(x,), dims={"input": {0: tw.Dim("batch", 1, 8)}})',
    ),
    "TW007": Example('compiled(x.to("meta"))', 'compiled(x.to("cpu"))'),
    "TW008": Example('tw.compile(model, args=(x,), precision="fp32")', 'tw.compile(model, args=(x,), precision="f32")'),
    "TW009": Example("tw.compile(torch.nn.Linear, args=(x,))", "tw.compile(torch.nn.Linear(4, 2), args=(x,))"),
    "TW010": Example(
        """
class Model(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.inv(x @ x.T) + torch.linalg.det(x @ x.T)


tw.compile(Model(), args=(x,))
""",
        """
class Model(torch.nn.Module):
    def forward(self, x):
        return torch.softmax(x @ x.T, -1)


tw.compile(Model(), args=(x,))
""",
    ),
    "TW011": Example(
        "model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(0.1))\ntw.compile(model, args=(x,))",
        "model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(0.1))\n"
        "tw.compile(model.eval(), args=(x,))",
    ),
    "TW012": Example(
        "handle = model.register_forward_hook(print)\ntw.compile(model, args=(x,))",
        "handle = model.register_forward_hook(print)\nhandle.remove()\ntw.compile(model, args=(x,))",
    ),
    "TW013": Example(
        """
class Model(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


tw.compile(Model(), args=(x,))
""",
        """
class Model(torch.nn.Module):
    def forward(self, x):
        return torch.where(x.sum() > 0, x, -x)


tw.compile(Model(), args=(x,))
""",
    ),
    "TW014": Example(
        """
class Model(torch.nn.Module):
    def forward(self, x):
        return x.reshape(3, 2, 2)


tw.compile(Model(), args=(x,), dims={"x": {0: tw.Dim("batch", 1, 8)}})
""",
        """
class Model(torch.nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0], 2, 2)


tw.compile(Model(), args=(x,), dims={"x": {0: tw.Dim("batch", 1, 8)}})
""",
    ),
    "TW015": Example("compiled(x.requires_grad_())", "compiled(x.requires_grad_().detach())"),
    "TW016": Example(
        'tw.compile(model, args=(x,), expect={"attention": 1})', 'tw.compile(model, args=(x,), expect={"attention": 0})'
    ),
    "TW020": Example(
        _module('%y = graph.map(args=[%x]) {fn = "exp"} : !graph.tensor<[5], f32>', "tw.testing.ir(text)"),
        _module('%y = graph.map(args=[%x]) {fn = "exp"} : !graph.tensor<[4], f32>', "tw.testing.ir(text)"),
    ),
    "TW021": Example(
        'tw.compile(model, args=(x,), passes="canonicalize,fuse{max-ops=8")',
        'from tilewright.passes.pipeline import PASSES\n\ntw.Pipeline.parse("canonicalize,fuse{max-ops=8}", PASSES)',
    ),
    "TW022": Example('tw.pipeline().without("fusion")', 'tw.pipeline().without("fold")'),
    "TW023": Example(
        'tw.compile(model, args=(x,), passes="canonicalize,plan-layout,fuse,lower-to-tile,place-levels,plan-memory")',
        'tw.compile(model, args=(x,), passes="canonicalize,fuse,plan-layout,lower-to-tile,place-levels,plan-memory")',
    ),
    "TW024": Example(_WRONG_PASS, 'tw.compile(model, args=(x,), verify_each="numeric")'),
    "TW025": Example(_kernel(3, 4), _kernel(4, 4)),
    "TW026": Example(_attention("float64"), _attention("float32")),
    "TW027": Example(_PLAN.replace("SLOT", "0"), _PLAN.replace("SLOT", "1")),
    "TW028": Example(
        'compiled = tw.compile(model, args=(x,), target="cpu:generic", memory_limit=270)\ncompiled(x)',
        'compiled = tw.compile(model, args=(x,), target="cpu:generic", memory_limit=5000)\ncompiled(x)',
    ),
    "TW029": Example(
        _module(
            "%i = graph.constant() {values = [4]} : !graph.tensor<[1], i64>\n"
            "    %y = graph.gather(%x, %i) : !graph.tensor<[1], f32>",
            'tw.testing.run(text, {"x": torch.randn(4)})',
        ),
        _module(
            "%i = graph.constant() {values = [3]} : !graph.tensor<[1], i64>\n"
            "    %y = graph.gather(%x, %i) : !graph.tensor<[1], f32>",
            'tw.testing.run(text, {"x": torch.randn(4)})',
        ),
    ),
    "TW030": Example(
        'tw.compile(model, args=(x,), target="cpu:sse2")', 'tw.compile(model, args=(x,), target="cpu:generic")'
    ),
    "TW031": Example(
        "from dataclasses import replace\nfrom tilewright.backends.cpu import backend\n\nreplace(backend, api=0)",
        'from dataclasses import replace\nfrom tilewright.backends.cpu import backend\n\nreplace(backend, name="mine")',
    ),
    "TW032": Example(
        "tilewright check model-directory/        # where transformers is not installed",
        "pip install 'tilewright[hf]'\ntilewright check model-directory/",
        runs=False,
    ),
    "TW033": Example(
        "from tilewright.backends.host.mlir import TARGETS, compile_object\n\n"
        'compile_object("llvm.func @f() -> i32 { llvm.return }", TARGETS["generic"])',
        "from tilewright.backends.host.mlir import TARGETS, compile_object\n\n"
        'compile_object("llvm.func @f() { llvm.return }", TARGETS["generic"])',
    ),
    "TW034": Example(_kernel(4, 3), _kernel(4, 4)),
    "TW035": Example(_double("x f32[n] -> y f32[m]"), _double("x f32[n] -> y f32[n]")),
    "TW036": Example(_BROKEN_PASS.replace("SUB", "minus"), _BROKEN_PASS.replace("SUB", "sub")),
    "TW037": Example(_STEPS.replace("SEES", ""), _STEPS.replace("SEES", ", is_causal=True")),
    "TW040": Example(
        'compiled.update_weights({"weight": torch.randn(4, 2)})',
        'compiled.update_weights({"weight": torch.randn(2, 4), "bias": torch.randn(2)})',
    ),
    "TW041": Example(
        'tw.compile(model, args=(x,), cache="/proc/cache")', 'tw.compile(model, args=(x,), cache="cache")'
    ),
    "TW042": Example(
        """
compiled.save("linear.tilewright")
data = open("linear.tilewright", "rb").read()
open("linear.tilewright", "wb").write(data[:-1])
tw.load("linear.tilewright")
""",
        """
compiled.save("linear.tilewright")
tw.load("linear.tilewright")
""",
    ),
    "TW046": Example(
        'tw.load("no-such-file.tilewright")', 'compiled.save("a-file.tilewright")\ntw.load("a-file.tilewright")'
    ),
    "TW043": Example(
        'tw.load("saved-by-a-later-version.tilewright")',
        "pip install --upgrade tilewright        # or save it again with this version",
        runs=False,
    ),
    "TW044": Example(
        'tw.compile(model, args=(x,), target="cpu:avx512")        # on a CPU without AVX-512',
        'tw.compile(model, args=(x,), target="cpu")        # the best class that this CPU has',
        runs=False,
    ),
    "TW045": Example(
        """
class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return x + self.count


counter = tw.compile(Counter(), args=(x,))
counter.state["counts"]
""",
        """
class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return x + self.count


counter = tw.compile(Counter(), args=(x,))
counter.state["count"]
""",
    ),
    "TW050": Example(
        "lm.generate([])        # lm: a language model",
        'lm.generate(lm.encode("Once"))',
        runs=False,
    ),
    "TW051": Example("tw.Sampler(temperature=-1)", "tw.Sampler(temperature=0)  # greedy"),
    "TW052": Example(
        """
engine = lm.engine(budget="1MiB")
engine.submit(ids, max_new_tokens=4096)        # more than the budget holds
""",
        """
engine = lm.engine(budget="1GiB")
engine.submit(ids, max_new_tokens=4096)
""",
        runs=False,
    ),
    "TW053": Example(
        """
from tilewright.runtime.generation.step import CacheGroup, StepLayout

StepLayout(1000, 64, 16, 4, page_size=0, groups=(CacheGroup("all layers", 32, 512),))
""",
        """
from tilewright.runtime.generation.step import CacheGroup, StepLayout

StepLayout(1000, 64, 16, 4, page_size=16, groups=(CacheGroup("all layers", 32, 512),))
""",
    ),
    "TW054": Example(
        """
from tilewright.runtime.generation.chat_template import render

render("{{ messages[0].content }}", ["Hello"])
""",
        """
from tilewright.runtime.generation.chat_template import render

render("{{ messages[0].content }}", [{"role": "user", "content": "Hello"}])
""",
    ),
    "TW055": Example('tw.Grammar.json("{")', """tw.Grammar.json('{"type": "object"}')"""),
    "TW056": Example(
        """
engine = lm.engine()
handle = engine.submit(ids)
lm.engine(max_batch=2)        # while a request of the first one runs
""",
        """
engine = lm.engine()
engine.submit(ids).result()
lm.engine(max_batch=2)
""",
        runs=False,
    ),
}

"""Tilewright compiles a model into kernels it wrote itself.

    import tilewright as tw

    batch, tokens = tw.Dim("batch", 1, 64), tw.Dim("tokens", 1, 256)
    compiled = tw.compile(model, kwargs=inputs, dims={"ids": (batch, tokens)})
    out = compiled(**inputs)
    print(compiled.report)

Importing this module imports no tensor library and no code generator; compile() and load() do, when they are called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tilewright.errors import TilewrightError
from tilewright.option_names import known_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tilewright.compiler.attention_bounds import ApproximateAttention, AttentionBounds
    from tilewright.compiler.compiled import Compiled
    from tilewright.compiler.kernel import Kernel
    from tilewright.compiler.kv_cache import KVCache
    from tilewright.compiler.language_model import CompiledLanguageModel
    from tilewright.ir.dims import Dim
    from tilewright.ir.passing import Context, Pass, Pipeline

__version__ = "0.1.0"

# Public names that live in rooms whose imports take time: resolved on first use.
_LAZY = {
    "Dim": "tilewright.ir.dims",
    "Pass": "tilewright.ir.passing",
    "Context": "tilewright.ir.passing",
    "Pipeline": "tilewright.ir.passing",
    "Compiled": "tilewright.compiler.compiled",
    "Kernel": "tilewright.compiler.kernel",
    "KernelBuilder": "tilewright.ir.tile.builder",
    "KVCache": "tilewright.compiler.kv_cache",
    "Compression": "tilewright.runtime.generation.compression",
    "ApproximateAttention": "tilewright.compiler.attention_bounds",
    "AttentionBounds": "tilewright.compiler.attention_bounds",
    "Sampler": "tilewright.runtime.generation.sampler",
    "Grammar": "tilewright.runtime.generation.grammar",
    "KLAnchor": "tilewright.runtime.generation.mirror",
    "BestOf": "tilewright.runtime.generation.mirror",
    "PromptLookup": "tilewright.runtime.generation.speculation",
    "DraftModel": "tilewright.runtime.generation.speculation",
    "LanguageModel": "tilewright.runtime.generation.language_model",
    "Session": "tilewright.runtime.generation.session",
}
__all__ = [
    "ApproximateAttention",
    "AttentionBounds",
    "BestOf",
    "Compiled",
    "Compression",
    "Context",
    "Dim",
    "DraftModel",
    "Grammar",
    "KLAnchor",
    "KVCache",
    "LanguageModel",
    "Pass",
    "Pipeline",
    "PromptLookup",
    "Sampler",
    "Session",
    "TilewrightError",
    "calibrate_attention",
    "compile",
    "compile_lm",
    "kernel",
    "load",
    "pipeline",
    "register_op",
]


def compile(
    model: Any,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dims: Any = None,
    **options: Any,
) -> Compiled:
    """Compiles a model for the whole declared range of its dims; no later call compiles anything.

    model: a torch.nn.Module, a torch.export.ExportedProgram, or the path of a .pt2 file or of a model directory as
    transformers saves them.
    args, kwargs: example inputs (torch tensors or NumPy arrays), nested as the model takes them; a .pt2 file and a
    model directory bring their own.
    dims: which axes vary: {"ids": (B, T)} or {"ids": {1: T}}, following the arguments' tree; the same Dim means equal.

    Options:

    - target: "cpu", "cpu:avx2", ... or a list in order of preference. Default "cpu".
    - precision: "model", "f32" or "bf16": operands of matrix products are rounded to it; sums and the rest stay.
    - passes: a pipeline, or its text; tw.pipeline() is the default one to edit.
    - determinism: "free", "run" or "batch" (the default: a row's bits do not depend on batch, neighbours or threads).
    - objective: "time" or "io": schedules are chosen by predicted time, or by the bytes they move.
    - attention: None, or a `tw.ApproximateAttention`: heads whose logits were small in calibration attend within an
      error that is stated, and in time that grows with the length; the report says which.
    - expect: pattern counts that must hold: {"attention": 6}.
    - fallback: "error", the only one yet: an operator without a lowering is an error that names it.
    - check: "first" compares the first call with the original model and names the first op that differs.
    - verify_each: "numeric" runs the module before and after every pass on random inputs.
    - materialise: True plans every op as a kernel of its own with a buffer of its own, for comparing intermediates.
    - threads, memory_limit (bytes, or "2GiB"): bounds for a call. cache: True, False, or a directory.

    Raises subclasses of TilewrightError, each with a code: `tilewright explain CODE`.
    """
    from tilewright.compiler.entry import compile_model

    return compile_model(model, args, kwargs, dims, **options)


def calibrate_attention(
    model: Any, calls: Sequence[tuple[Any, ...] | Mapping[str, Any]], *, dims: Any = None, **options: Any
) -> AttentionBounds:
    """How large logits are when a model is called: what `tw.ApproximateAttention` goes by.

        bounds = tw.calibrate_attention(model, calls, dims=dims)
        fast = tw.compile(model, args, dims=dims, attention=tw.ApproximateAttention(eps=0.01, bounds=bounds))

    model, dims: as in compile(). calls: of each call its positional arguments as a tuple, or its keyword arguments as a
    mapping. options: target, passes and precision, as they will be given to compile(). The calls run by the graph's
    slow interpreter.

    Raises ArgumentError without calls; else as compile().
    """
    from tilewright.compiler.calibration import calibrate_attention as calibrate

    return calibrate(model, calls, dims=dims, **options)


def compile_lm(
    model: Any,
    *,
    kv: KVCache | None = None,
    max_tokens: int | None = None,
    max_source: int | None = None,
    max_batch: int = 8,
    max_step: int = 512,
    **options: Any,
) -> CompiledLanguageModel:
    """Compiles a causal or encoder-decoder language model for generation; no later call compiles anything.

        lm = tw.compile_lm("path/of/a/model", max_tokens=2048)
        for piece in lm.complete("Once upon a time", max_new_tokens=64): print(piece, end="")
        for token in lm.generate([1, 306, 4658], max_new_tokens=64, sampler=tw.Sampler(top_p=0.9, seed=0)): ...

    model: a transformers model, a torch.nn.Module of ids [batch, tokens] that returns logits [batch, tokens, V] or an
    object with `.logits`, or a model directory, whose tokenizer and chat template are read as well. Its code is not
    changed: keys and values are found in the graph and kept in pages that requests share (`tw.KVCache`), the states of
    recurrences and convolutions and what an encoder has read in rows of a request's own.
    max_tokens: most of one request, prompt included; default what the model is made for, at most 4096. max_source:
    most tokens that an encoder reads; default as max_tokens. max_batch: most
    requests of one step. max_step: most tokens of one step; longer prompts are read in chunks. options: target,
    precision, threads, determinism, objective, passes, memory_limit, cache, as in compile().

    Raises StepError for a model that mixes tokens outside attention, with every op that does; else as compile().
    """
    from tilewright.compiler.language_model import compile_language_model

    return compile_language_model(
        model,
        kv=kv,
        max_tokens=max_tokens,
        max_source=max_source,
        max_batch=max_batch,
        max_step=max_step,
        **options,
    )


@known_options()
def load(
    path: str | Path, *, native: bool = True, threads: int | None = None, memory_limit: int | str | None = None
) -> Compiled:
    """Opens an artifact that `Compiled.save` wrote.

    native=False ignores its machine code and its step table and rebuilds both from its IR: the way to open a stranger's
    file. Before anything is compiled, every access of every kernel is proved to stay inside its buffer, for all sizes
    that the dims and guards admit; ArtifactError names what is not proved. All memory that its kernels get besides
    inputs and weights is zeros when a call begins: what they leave unwritten shows nothing of this process. What the
    file computes, and how long it takes, is still the stranger's choice.
    """
    from tilewright.compiler.artifacts import load_compiled
    from tilewright.runtime.memory import parse_bytes

    limit = parse_bytes(memory_limit) if isinstance(memory_limit, str) else memory_limit
    return load_compiled(path, native=native, threads=threads, memory_limit=limit)


def pipeline() -> Pipeline:
    """The default pipeline, to edit: tw.pipeline().after("recognize", MyPass())."""
    from tilewright.passes.pipeline import default_pipeline

    return default_pipeline()


@known_options()
def kernel(signature: str) -> Callable[[Callable[..., None]], Kernel]:
    """Makes a kernel of a Python function that builds it from tiles: the way the compiler's own kernels are made.

        @tw.kernel("x T[rows, n] -> y T[rows, n]")
        def double(b, x, y, *, n, T):
            (row,) = b.grid(["rows"], [8])
            tile = b.load(b.dense(x), [row, 0], [8, n])
            b.store(b.map("add", tile, tile), b.dense(y), [row, 0])

        y = double(torch.randn(3, 5))

    signature: inputs -> outputs, each a name, a dtype and dims. Keyword-only parameters are static: known from the
    inputs or given at a call, and fixed in the kernel; other names are dims of any size. The function gets the builder
    (`tilewright.ir.tile.builder.KernelBuilder`), the buffers, and the static parameters. Raises KernelError.

    Before a kernel is compiled, it is run in the tile interpreter at a few small sizes of its dims: one that leaves
    elements of an output unwritten, writes an element from two programs or stores a value from outside a view is
    refused (KernelStoreError, PoisonError) with its line and the sizes.
    """
    from tilewright.compiler.kernel import kernel as make

    return make(signature)


@known_options()
def register_op(
    name: str | Callable[..., Any],
    *,
    kernel: Kernel | None = None,
    reference: Callable[..., Any] | None = None,
    shape: Callable[..., Any] | None = None,
) -> None:
    """Teaches compile() an operator that a library has defined with torch.library. The last registration counts.

    name: "mylib::swiglu", or what torch holds it as: what torch.library.custom_op made, torch.ops.mylib.swiglu.
    kernel: made with @tw.kernel; its inputs are the operator's tensors in order, and its static parameters come from
    their dtypes and sizes, or are the operator's arguments of the same name (integers); it computes the operator with
    its other arguments at the defaults of its schema, and a call that gives one of those another value is refused.
    reference: without a kernel, a function of the operator's arguments that computes it from operators that compile.
    shape: what the operator gives, without computing it, where torch does not know yet
    (`torch.library.register_fake`); the reference says it, too. Where torch knows, it must say the same.
    Raises OptionError, also for operators that write to their operands or give views of them. Compiling raises
    UnsupportedOpError where the kernel does not fit a call, or gives, as a reference may, other dtypes or sizes than
    torch was told; what is wrong in the kernel itself keeps its own code (KernelError, KernelStoreError).
    """
    from tilewright.compiler.register_op import register_op as register

    register(name, kernel=kernel, reference=reference, shape=shape)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name == "testing":
        return import_module("tilewright.testing")
    raise AttributeError(f"module 'tilewright' has no attribute {name!r}")


def __dir__() -> list[str]:
    # what is meant to be used, lazy names included; not what this file itself imports
    return sorted([*__all__, "__version__", "testing"])

"""A language model's compression with its programs: scores and likeness, compiled once for layers that are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tilewright.compiler.entry import compile_model
from tilewright.errors import OptionError, StepError
from tilewright.ir.dims import Dim
from tilewright.ir.dtypes import F32, torch_name
from tilewright.passes.kv_cache.layout import Compact, Compressible
from tilewright.runtime.executor import Executable
from tilewright.runtime.generation.compression import Compression
from tilewright.runtime.generation.compressor import CompressedLayer, Compressor
from tilewright.runtime.program import Program

# What a program beside the step is told of its options; the rest is about the model.
_SHARED = ("target", "threads", "cache", "memory_limit", "determinism")


def compact_of(compression: Compression | None) -> Compact | None:
    """What a step keeps for a compression."""
    if compression is None:
        return None
    return Compact(compression.recent if compression.observes else 0, compression.merge is not None)


def compressor_of(
    compression: Compression, layers: Sequence[Compressible], step: Program, most_tokens: int, given: Mapping[str, Any]
) -> Compressor:
    """The programs of a compression. step: whose states the layers name. given: options of compile_lm().

    Raises OptionError where requests of `most_tokens` never give up a token, and StepError for a scorer that gives
    other things than scores.
    """
    least = compression.sinks + compression.recent + 1
    if most_tokens < least:
        raise OptionError(
            f"max_tokens={most_tokens} with {compression.sinks} sinks and {compression.recent} recent tokens, which "
            "always stay: nothing is ever given up",
            step=f"write max_tokens={least} or more, or fewer sinks and recent tokens",
        )
    options = {name: given[name] for name in _SHARED if name in given}
    # of pages [pages, heads, page, ..] what a token has
    shapes = {state.spec.name: (state.spec.dtype, state.spec.shape({})) for state in step.states}
    kinds = {name: (dtype, (*shape[1:2], *shape[3:])) for name, (dtype, shape) in shapes.items()}
    known: dict[tuple[Any, ...], tuple[Executable | None, Executable | None]] = {}

    def programs(layer: Compressible) -> tuple[Executable | None, Executable | None]:
        import torch

        def rows(count: int, name: str) -> torch.Tensor:
            dtype, shape = kinds[name]
            return torch.zeros(count, *shape, dtype=getattr(torch, torch_name(dtype)))

        score = nearest = None
        if layer.queries is not None:
            n = Dim("keys", least, most_tokens)
            keys, values = (rows(least, name) for name in (layer.keys, layer.values or layer.keys))
            counts = torch.zeros(least, keys.shape[1])
            example = (rows(compression.recent, layer.queries), keys, values, counts)
            dims = {name: {0: n} for name in ("keys", "values", "log_counts")}
            score = compile_model(_scorer(compression, layer), example, None, dims, **options).executable
            _check_scores(score(*example), (keys.shape[1], least), compression)
        if layer.log_counts is not None:
            from tilewright.compiler.scorers import Nearest

            kept, gone = Dim("kept", 1, most_tokens), Dim("gone", 1, most_tokens)
            alike, dims = (rows(3, layer.keys), rows(2, layer.keys)), {"kept": {0: kept}, "others": {0: gone}}
            nearest = compile_model(Nearest(), alike, None, dims, **options).executable
        return score, nearest

    made = []
    for layer in layers:
        names = (layer.keys, layer.values, layer.queries, layer.log_counts)
        like = (*(None if name is None else kinds[name] for name in names), layer.scale, layer.softcap)
        if like not in known:
            known[like] = programs(layer)
        made.append(CompressedLayer(*names, *known[like]))
    return Compressor(compression, tuple(made))


def _scorer(compression: Compression, layer: Compressible) -> Any:
    """The module that scores a layer's keys."""
    from tilewright.compiler.scorers import AttentionMass, Scored

    own = not isinstance(compression.scorer, str)
    return Scored(compression.scorer) if own else AttentionMass(layer.scale, layer.softcap)


def _check_scores(found: Any, wanted: tuple[int, int], compression: Compression) -> None:
    """Raises StepError where a scorer's result is no scores."""
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    if shape is None or tuple(shape) != wanted or str(dtype).removeprefix("torch.") != torch_name(F32):
        raise StepError(
            f"the scorer {type(compression.scorer).__name__} gives {dtype} {shape}, not float32 {list(wanted)}",
            step="return scores [key heads, n] in float32",
        )

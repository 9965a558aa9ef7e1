"""The models that are timed: torch modules, their arguments, and which sizes vary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.cases import Case, Dtype
from bench.models import attention, chains, decoder, minilm, trivial, vision

# name -> (lowest, highest)
Ranges = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Model:
    """How a case's model is made.

    build: the module in f32, in evaluation mode. arguments: what it is called with, from the sizes. varying: the names
    of sizes that one compiled object serves, with their ranges, by argument and axis. example: sizes to capture with.
    whole: everybody runs the whole model in the case's dtype; else we round operands of products only.
    """

    build: Callable[[], torch.nn.Module]
    arguments: Callable[[Mapping[str, int]], dict[str, torch.Tensor]]
    axes: Mapping[str, tuple[str | None, ...]]
    ranges: Ranges
    example: Mapping[str, int]
    whole: bool = False


_TOKENS = {"batch": (1, minilm.MOST_BATCH), "tokens": (1, minilm.MOST_TOKENS)}
_IMAGES = {"image": ("batch", None, None, None)}
_ROWS = {"x": ("rows", None)}
_HEADS = (None, "heads", "tokens", None)
_CONTEXT = (None, None, "context", None)

MODELS: dict[str, Model] = {
    "trivial": Model(trivial.build, trivial.arguments, {"x": ("batch", None)}, {"batch": (1, 64)}, {"batch": 2}),
    "minilm": Model(
        minilm.build, minilm.arguments,
        {"input_ids": ("batch", "tokens"), "attention_mask": ("batch", "tokens")},
        _TOKENS, {"batch": 2, "tokens": 8},
    ),
    "llama-0.5b": Model(
        decoder.build, decoder.arguments, {"input_ids": ("batch", "tokens")},
        {"batch": (1, 8), "tokens": (1, 2048)}, {"batch": 2, "tokens": 8}, whole=True,
    ),
    "resnet-50": Model(vision.resnet_50, vision.images, _IMAGES, {"batch": (1, 64)}, {"batch": 2}),
    "vit-b": Model(vision.vit_b, vision.images, _IMAGES, {"batch": (1, 64)}, {"batch": 2}),
    **{
        f"{name}-d{features}": Model(
            partial(attention.Attention, causal=name == "causal"), attention.prompt(features),
            dict.fromkeys("qkv", _HEADS), {"heads": (1, 64), "tokens": (1, 1 << 16)}, {"heads": 2, "tokens": 40},
            whole=True,
        )
        for name in ("attention", "causal") for features in (64, 128)
    },
    "attention-step": Model(
        partial(attention.Attention, causal=False), attention.step, {"k": _CONTEXT, "v": _CONTEXT},
        {"context": (1, 1 << 16)}, {"context": 40}, whole=True,
    ),
    **{
        name: Model(build, chains.arguments, _ROWS, {"rows": (1, 1 << 20)}, {"rows": 3})
        for name, build in chains.CHAINS.items()
    },
}  # fmt: skip


def build(case: Case) -> torch.nn.Module:
    """The model of a case, in f32; in the case's dtype where everybody runs the whole model in it."""
    model = MODELS[case.model]
    made = model.build().eval()
    return in_dtype(made, case.dtype) if model.whole else made


def in_dtype(model: torch.nn.Module, dtype: Dtype) -> torch.nn.Module:
    """The whole model in a dtype."""
    return model.bfloat16() if dtype == "bf16" else model


def arguments(case: Case) -> dict[str, torch.Tensor]:
    """The same for everybody: fixed seeds, nothing padded."""
    return _given(case, dict(case.sizes))


def example(case: Case) -> dict[str, torch.Tensor]:
    """Small arguments to capture with."""
    return _given(case, MODELS[case.model].example)


def _given(case: Case, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Numbers in the dtype of a model that takes them as they are."""
    model = MODELS[case.model]
    made = model.arguments(sizes)
    if case.dtype == "f32" or not model.whole:
        return made
    return {name: x.bfloat16() if x.is_floating_point() else x for name, x in made.items()}


def axes(case: Case, dim: Callable[[str, int, int], Any]) -> dict[str, dict[int, Any]]:
    """Of each argument, the axes that vary: `dim(name, lowest, highest)`, one object a name."""
    model = MODELS[case.model]
    made = {name: dim(name, *limits) for name, limits in model.ranges.items()}
    return {
        argument: {axis: made[name] for axis, name in enumerate(names) if name is not None}
        for argument, names in model.axes.items()
    }

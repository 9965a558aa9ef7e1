"""The models that are timed: torch modules, their arguments, and which sizes vary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench.cases import Case, Dtype
from bench.models import chains, decoder, minilm, trivial, vision

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
    return MODELS[case.model].arguments(dict(case.sizes))


def example(case: Case) -> dict[str, torch.Tensor]:
    """Small arguments to capture with."""
    model = MODELS[case.model]
    return model.arguments(model.example)


def axes(case: Case, dim: Callable[[str, int, int], Any]) -> dict[str, dict[int, Any]]:
    """Of each argument, the axes that vary: `dim(name, lowest, highest)`, one object a name."""
    model = MODELS[case.model]
    made = {name: dim(name, *limits) for name, limits in model.ranges.items()}
    return {
        argument: {axis: made[name] for axis, name in enumerate(names) if name is not None}
        for argument, names in model.axes.items()
    }

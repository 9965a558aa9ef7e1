"""Transformers models through their official registries: attention, masks and experts arrive as one operator each.

During a capture the configs of a model's transformers parts name our implementations and switch the cache off;
afterwards, also after a failure, they read as before.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from tilewright.errors import TrainingModeError
from tilewright.frontend import experts, operators, recurrences
from tilewright.frontend.masks import recognise

if TYPE_CHECKING:
    import torch

IMPLEMENTATION: Final = "tilewright"
_ATTRIBUTE: Final = "_attn_implementation_internal"
_EXPERTS: Final = "_experts_implementation_internal"
_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


@contextmanager
def switched(model: torch.nn.Module, kwargs: dict[str, Any], notes: list[str]) -> Iterator[None]:
    """Within it, the model's transformers parts call our operators; `notes` receives what the user should know.

    kwargs: the example's keyword arguments; `use_cache=True` among them is switched off too.
    """
    parts = _pretrained(model)
    if not parts:
        yield
        return
    _register()
    saved: list[tuple[Any, str, Any]] = []
    token = _notes.set(notes)
    try:
        for config in _switchable(parts, kwargs, notes):
            _set(saved, config, _ATTRIBUTE, IMPLEMENTATION)
        for config in _configs(parts):
            _set(saved, config, _EXPERTS, IMPLEMENTATION)
        with recurrences.replaced([model]), cacheless(model, kwargs):
            yield
    finally:
        _notes.reset(token)
        _restore(saved)


@contextmanager
def cacheless(model: torch.nn.Module, kwargs: dict[str, Any] | None = None) -> Iterator[None]:
    """Within it, the model's transformers parts return no cache. kwargs: of its call, whose `use_cache` goes off."""
    saved: list[tuple[Any, str, Any]] = []
    parts = _pretrained(model)
    if parts and kwargs and kwargs.get("use_cache"):
        kwargs["use_cache"] = False
    try:
        for config in _configs(parts):
            if getattr(config, "use_cache", False):
                _set(saved, config, "use_cache", False)
                # encoders carry the flag too and say so; it means nothing there
                if getattr(config, "is_decoder", True) or getattr(config, "is_encoder_decoder", False):
                    _note("use_cache is off in the compiled program: outputs carry no past_key_values")
        yield
    finally:
        _restore(saved)


def _restore(saved: list[tuple[Any, str, Any]]) -> None:
    for config, name, value in reversed(saved):
        config.__dict__[name] = value


def _set(saved: list[tuple[Any, str, Any]], config: Any, name: str, value: Any) -> None:
    saved.append((config, name, config.__dict__.get(name)))
    config.__dict__[name] = value


def _note(text: str) -> None:
    notes = _notes.get()
    if notes is not None and text not in notes:
        notes.append(text)


def is_transformers(model: torch.nn.Module) -> bool:
    """Whether a model has parts of transformers."""
    return bool(_pretrained(model))


def configs(model: torch.nn.Module) -> list[Any]:
    """The configs of a model's transformers parts, each once."""
    return _configs(_pretrained(model))


def registered() -> dict[str, dict[str, Any]]:
    """What transformers' registries hold, ours included: functions by implementation, for attention, masks, experts."""
    _register()
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    tables: dict[str, Any] = {
        "attention": ALL_ATTENTION_FUNCTIONS,
        "masks": ALL_MASK_ATTENTION_FUNCTIONS,
        "experts": ALL_EXPERTS_FUNCTIONS,
    }
    return {name: {key: table[key] for key in sorted(table)} for name, table in tables.items()}


def _pretrained(model: torch.nn.Module) -> list[Any]:
    # a model cannot be a transformers model if nobody has imported transformers
    library = sys.modules.get("transformers.modeling_utils")
    base = getattr(library, "PreTrainedModel", None)
    return [module for module in model.modules() if base is not None and isinstance(module, base)]


def _configs(parts: list[Any]) -> list[Any]:
    """The configs of some models and of their sub-models, each once."""
    found: dict[int, Any] = {}
    pending = [part.config for part in parts]
    while pending:
        config = pending.pop(0)
        if config is None or id(config) in found:
            continue
        found[id(config)] = config
        pending += [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return list(found.values())


def _switchable(parts: list[Any], kwargs: dict[str, Any], notes: list[str]) -> list[Any]:
    """The configs that may name another attention: those of models that look their attention up in the registry."""
    if kwargs.get("output_attentions") or any(getattr(c, "output_attentions", False) for c in _configs(parts)):
        notes.append("output_attentions keeps the model's own attention: the weights are part of the output")
        return []
    fixed = [part for part in parts if not part._can_set_attn_implementation()]
    if fixed:
        # the innermost class is the one that holds the attention
        name = type(fixed[-1]).__name__
        notes.append(f"{name} does not use the attention registry: its own attention is captured op by op")
    excluded = {id(config) for config in _configs(fixed)}
    return [config for config in _configs([p for p in parts if p not in fixed]) if id(config) not in excluded]


@cache
def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    operators.define()
    experts.register(IMPLEMENTATION)
    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, mask)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """An attention layer's call, as transformers' own implementations take it; the result is [B, Tq, H, Dv].

    A sliding window arrives in the mask. Without any mask the layer's `is_causal` decides, as in transformers' sdpa.
    """
    import torch

    if dropout:
        raise TrainingModeError(f"{type(module).__name__} drops attention with p={dropout}", step="call model.eval()")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    out = torch.ops.tilewright.attention(
        query,
        key,
        value,
        attention_mask,
        position_bias,
        s_aux,
        is_causal and attention_mask is None,
        float(scaling if scaling is not None else query.shape[-1] ** -0.5),
        float(softcap or 0.0),
    )
    return out.transpose(1, 2).contiguous(), None


def mask(
    batch_size: Any,
    q_length: Any,
    kv_length: Any,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: Any = "cpu",
    **kwargs: Any,
) -> torch.Tensor | None:
    """A mask's construction, as transformers' own take it: one operator, or the mask itself for an unknown rule."""
    import torch

    pattern = recognise(mask_function)
    if pattern is not None and pattern.kind == "none" and allow_is_bidirectional_skip and attention_mask is None:
        return None
    offset = not (isinstance(q_offset, int) and isinstance(kv_offset, int) and q_offset == kv_offset == 0)
    if pattern is None or offset:
        return _materialised(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            use_vmap=use_vmap,
            device=device,
            **kwargs,
        )
    if attention_mask is not None and pattern.valid is not None:
        attention_mask = attention_mask & pattern.valid
    valid = attention_mask if attention_mask is not None else pattern.valid
    if valid is not None:
        _require_fitting(valid, batch_size, kv_length)
    made: torch.Tensor = torch.ops.tilewright.attention_mask(
        valid,
        pattern.positions,
        pattern.segments,
        # without padding the shift is zero
        pattern.shift if attention_mask is not None else None,
        batch_size,
        q_length,
        kv_length,
        pattern.kind,
        pattern.extent,
        device=torch.device(device),
    )
    return made


def _require_fitting(valid: torch.Tensor, batch_size: Any, kv_length: Any) -> None:
    """ValueError unless a key validity broadcasts to [batch, keys].

    Said while it is traced, and by comparing sizes: the exporter then hears of an axis that stays fixed beside one that
    varies, and the user is told to declare it, too.
    """
    if any(given != wanted and given != 1 for given, wanted in zip(valid.shape, (batch_size, kv_length), strict=True)):
        raise ValueError(
            f"the attention mask has the shape {list(valid.shape)} for sequences of the shape {[batch_size, kv_length]}"
        )


def _materialised(**kwargs: Any) -> torch.Tensor | None:
    from transformers.masking_utils import sdpa_mask

    rules = _describe(kwargs["mask_function"])
    _note(f"a mask is materialised: {rules} is not causal, sliding, chunked or padding alone")
    kwargs.pop("allow_is_causal_skip", None)
    built: torch.Tensor | None = sdpa_mask(allow_is_causal_skip=False, allow_is_bidirectional_skip=False, **kwargs)
    return built


def _describe(function: Any) -> str:
    """The rules a mask function is composed of, by the names of the functions that make them."""
    parts = inspect.getclosurevars(function).nonlocals.get("mask_functions") if inspect.isfunction(function) else None
    if parts:
        return " and ".join(_describe(part) for part in parts)
    return str(getattr(function, "__qualname__", type(function).__qualname__)).split(".<locals>")[0]

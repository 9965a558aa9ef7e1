"""Recurrences of transformers models, replaced during a capture by one operator each.

Written out, a recurrence over time walks blocks of a fixed size in Python, and tracing that would fix the number of
blocks. What a function computes is known by its source: a function whose source is one of those listed here runs as
gated linear attention; one of a known name and another source is refused, because nobody has read it.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from tilewright.errors import Problem, SpecialisationError

if TYPE_CHECKING:
    import torch

LINEAR_ATTENTION: Final = "tilewright.linear_attention.default"


@dataclass(frozen=True)
class Known:
    """A recurrence: where it is looked up (a function of a module, or "Class.method"), its sources, what runs instead.

    sources: hashes of the sources that have been read (see `source_hash`). replacement: None for a recurrence that no
    operator states; `reason` then says why.
    """

    name: str
    sources: frozenset[str] = frozenset()
    replacement: Callable[..., Any] | None = None
    reason: str = ""


@contextmanager
def replaced(models: Iterable[Any]) -> Iterator[None]:
    """Within it, the known recurrences of these models' Python modules run as operators; unknown ones raise."""
    modules = {type(part).__module__ for model in models for part in model.modules()}
    saved: list[tuple[Any, str, Any]] = []
    try:
        for name in sorted(modules):
            module = sys.modules.get(name)
            if module is None or not name.startswith("transformers.models."):
                continue
            for known in KNOWN:
                owner, _, method = known.name.rpartition(".")
                holder = getattr(module, owner, None) if owner else module
                function = getattr(holder, method, None)
                if holder is not None and function is not None:
                    saved.append((holder, method, function))
                    setattr(holder, method, _instead(known, function, f"{name}.{known.name}"))
        yield
    finally:
        for holder, method, function in reversed(saved):
            setattr(holder, method, function)


@cache
def source_hash(function: Any) -> str:
    """The hash of a function's source without what decorates it, "" where there is none to read."""
    try:
        text = inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(text[text.index("def ") :].encode()).hexdigest()[:16]


def _instead(known: Known, function: Any, place: str) -> Callable[..., Any]:
    found = source_hash(function)
    if known.replacement is not None and found in known.sources:
        define()
        return known.replacement
    reason = known.reason or f"its source ({found or 'unreadable'}) is none of those that are known"

    def refuse(*_: Any, **__: Any) -> Any:
        raise _refused(place, reason)

    return refuse


def _refused(place: str, reason: str) -> SpecialisationError:
    return SpecialisationError(
        Problem(f"the recurrence {place} would be captured for one number of steps: {reason}"),
        step="use a transformers release whose recurrence is known, or compile the parts of the model around it",
    )


@cache
def define() -> Any:
    """Registers the operator; returns the library object that keeps it registered.

    linear_attention: queries, keys [B, T, G, N], values [B, T, H, P], decay [B, T, H] (logarithms, 0 or less), all f32;
    H is a multiple of G. With S[t] = exp(decay[t]) S[t-1] + keys[t] values[t]^T per head, the result [B, T, H, P] is
    queries[t] S[t].
    """
    import torch

    library: Any = torch.library.Library("tilewright", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("linear_attention(Tensor queries, Tensor keys, Tensor values, Tensor decay) -> Tensor")

    def linear_attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, decay: Any) -> torch.Tensor:
        return torch.empty_like(values, memory_format=torch.contiguous_format)

    torch.library.register_fake("tilewright::linear_attention", linear_attention, lib=library)
    return library


# --- what runs instead ----------------------------------------------------------------------------------------------


def mamba2_chunk_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803  (the callers' names)
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    chunk_size: int,
    D: torch.Tensor | None = None,  # noqa: N803
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **_: Any,
) -> torch.Tensor:
    """Mamba-2's state-space recurrence: h[t] = exp(dt A) h[t-1] + dt B x^T, y = C h + D x (Dao and Gu 2024)."""
    import torch

    if initial_states is not None or return_final_states:
        raise _refused("mamba2_chunk_scan", "it is asked for with a state from outside")
    step = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
    if dt_softplus:
        step = torch.nn.functional.softplus(step)
    step = torch.clamp(step, min=dt_limit[0], max=dt_limit[1]).float()
    x = hidden_states.float()
    found: torch.Tensor = torch.ops.tilewright.linear_attention(
        C.float(), B.float(), x * step[..., None], A.float() * step
    )
    return found if D is None else found + D[..., None] * x


def lightning_attention(
    module: Any,
    hidden_states: torch.Tensor,
    position_embeddings: Any,
    attention_mask: torch.Tensor | None,
    past_key_values: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """MiniMax's lightning attention: linear attention with one fixed decay a head, normed and gated."""
    import torch

    if past_key_values is not None:
        raise _refused("MiniMaxLightningAttention", "it is asked for with a state from outside")
    batch, length = hidden_states.shape[:2]
    heads, width = module.num_attention_heads, module.head_dim
    mixed = module.act_fn(module.qkv_proj(hidden_states))
    if attention_mask is not None:
        mixed = (mixed * attention_mask[:, :, None]).to(mixed.dtype)
    queries, keys, values = torch.split(mixed.reshape(batch, length, heads, 3 * width), width, dim=3)
    decay = (-module.slope_rate.float().reshape(1, 1, heads)).expand(batch, length, heads)
    found = torch.ops.tilewright.linear_attention(queries.float(), keys.float(), values.float(), decay)
    normed = module.norm(found.to(values.dtype).reshape(batch, length, heads * width))
    return module.out_proj(torch.sigmoid(module.output_gate(hidden_states)) * normed), None


_DELTA_RULE: Final = "a delta rule's state is multiplied by a matrix in every step, which no operator states yet"

KNOWN: Final = (
    Known("mamba2_chunk_scan", frozenset({"af1d4e984bd464c1"}), mamba2_chunk_scan),
    Known("MiniMaxLightningAttention.forward", frozenset({"eec73f4d0ecec4d9"}), lightning_attention),
    Known("torch_chunk_gated_delta_rule", reason=_DELTA_RULE),
)

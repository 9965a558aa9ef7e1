"""The two operators that stand for attention and its mask in an exported transformers model.

They exist to be traced: an attention layer calls them instead of a kernel, the exported graph holds one node for each,
and lowering turns that node into `graph.attention`. They have shapes and dtypes but no implementation.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

ATTENTION: Final = "tilewright.attention.default"
MASK: Final = "tilewright.attention_mask.default"


@cache
def define() -> Any:
    """Registers both operators, once in a process; returns the library object that keeps them registered.

    attention: q [B, H, Tq, D], k [B, Hkv, Tk, D], v [B, Hkv, Tk, Dv] -> [B, H, Tq, Dv].
    attention_mask: -> bool [B, 1, Tq, Tk], true where a query may see a key. kind: "none", "causal", "sliding" or
    "chunked"; valid: bool [B, Tk] key validity; positions: i64 [B, T] that replace the indices 0, 1, ... in the rule;
    segments: [B, T], a query sees only keys of its own segment; shift: i64 [B], subtracted from the indices.
    """
    import torch

    library: Any = torch.library.Library("tilewright", "DEF")  # type: ignore[no-untyped-call]
    library.define(
        "attention(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? bias, Tensor? sinks, "
        "bool causal, float scale, float softcap) -> Tensor"
    )
    library.define(
        "attention_mask(Tensor? valid, Tensor? positions, Tensor? segments, Tensor? shift, "
        "SymInt batch, SymInt queries, SymInt keys, str kind, int window, *, Device device) -> Tensor"
    )

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
        return query.new_empty((*query.shape[:-1], value.shape[-1]))

    def attention_mask(
        valid: Any,
        positions: Any,
        segments: Any,
        shift: Any,
        batch: Any,
        queries: Any,
        keys: Any,
        kind: str,
        window: int,
        *,
        device: torch.device,
    ) -> torch.Tensor:
        return torch.empty((batch, 1, queries, keys), dtype=torch.bool, device=device)

    torch.library.register_fake("tilewright::attention", attention, lib=library)
    torch.library.register_fake("tilewright::attention_mask", attention_mask, lib=library)
    return library

"""torch's own shortcut through nn.TransformerEncoder, which eager takes without gradients and tracing does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NOTE = (
    "nn.TransformerEncoder with src_key_padding_mask: without gradients eager takes torch's fast path, which gives 0 "
    "for padded tokens; the program gives what the layers compute for them, as eager does after "
    "torch.backends.mha.set_fastpath_enabled(False)"
)


@contextmanager
def padding_noted(notes: list[str]) -> Iterator[None]:
    """Within it, `notes` hears of encoders that are given a padding mask and would drop what it hides."""
    import torch

    encoder: Any = torch.nn.TransformerEncoder
    forward = encoder.forward

    def noting(self: Any, src: Any, mask: Any = None, src_key_padding_mask: Any = None, *args: Any, **more: Any) -> Any:
        if src_key_padding_mask is not None and getattr(self, "use_nested_tensor", False) and _NOTE not in notes:
            notes.append(_NOTE)
        return forward(self, src, mask, src_key_padding_mask, *args, **more)

    encoder.forward = noting
    try:
        yield
    finally:
        encoder.forward = forward


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Within it, eager computes what a program does: attention layers as they are written."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)

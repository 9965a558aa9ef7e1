"""Sizes that an operator needs to be equal and that torch's trace left apart.

torch's shape rule of attention looks at the queries alone, so a trace whose keys and values come in by symbols of their
own (a cache that grows, say) holds nowhere that they are as long as each other. Comparing the symbols here makes that a
guard of torch's, as any comparison in the traced program does: it holds the graph to calls in which they are equal,
traces the others again, and from here on the two are one symbol.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

_ATTENTION: Final = "aten.scaled_dot_product_attention.default"


def compare_sizes(graph: Any) -> None:
    """Compares what the attentions of an FX graph need to be equal, as far as it is so in the trace's example."""
    for node in graph.nodes:
        if str(node.target) == _ATTENTION:
            for a, b in _equals(node):
                if not (isinstance(a, int) and isinstance(b, int)) and example_size(a) == example_size(b):
                    bool(a == b)


def example_size(size: Any) -> int:
    """A size as it is in the example of the trace."""
    node = getattr(size, "node", None)
    return int(size) if node is None else int(node.hint)


def _equals(node: Any) -> Iterator[tuple[Any, Any]]:
    """The pairs of sizes: of q [..., H, Tq, D], k [..., Hkv, Tk, D], v [..., Hkv, Tk, Dv] and a mask that repeats along
    axes of one element.
    """
    q, k, v = (value.meta["val"].shape for value in node.args[:3])
    yield from zip(q[:-3], k[:-3], strict=False)
    yield from zip(k[:-1], v[:-1], strict=False)
    yield q[-1], k[-1]
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if mask is not None:
        yield from zip(reversed(mask.meta["val"].shape), reversed((*q[:-1], k[-2])), strict=False)
